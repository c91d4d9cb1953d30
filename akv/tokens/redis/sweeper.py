"""
The sweeper: marks whose transaction has ended without anybody saying so.

A writer that died, was cancelled in its COMMIT or lost the reply to it leaves its mark. Whoever
meets the same mark twice, a second apart, asks the database about it; no clock ever decides.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from akv.aio import OwnedTasks

logger = logging.getLogger("akv")

PATIENCE: Final = 1.0
_KEPT: Final = 1000


@dataclass(slots=True)
class _Met:
    """A mark that was met: since when it waits for a question, when it was seen last, and where."""

    since: float
    last: float
    identifiers: set[str]


class Sweeper:
    """What readers of one event loop have met, and the task that asks about it."""

    def __init__(
        self,
        clock: Callable[[], float],
        tasks: OwnedTasks,
        *,
        ended: Callable[[Collection[str]], Awaitable[set[str]]],
        resolve: Callable[[str, Collection[str]], Awaitable[None]],
    ) -> None:
        """
        Args:
            clock: Monotonic, seconds.
            tasks: The owner of the task.
            ended: Asks a gate which of some marks belong to transactions that can no longer commit.
            resolve: Takes a mark away from what it stands in, with a bump.
        """
        self._clock = clock
        self._tasks = tasks
        self._ended = ended
        self._resolve = resolve
        self._met: dict[str, _Met] = {}
        self._due: set[str] = set()
        self._most = _KEPT
        self._is_running = False

    def met(self, identifier: str, marks: Iterable[str]) -> None:
        """Note that *marks* stand in the record of *identifier*; ask about those that were met a while ago."""
        now = self._clock()
        for mark in marks:
            known = self._met.get(mark)
            if known is None:
                self._met[mark] = _Met(now, now, {identifier})
                continue
            known.last = now
            known.identifiers.add(identifier)
            if now - known.since >= PATIENCE:
                self._due.add(mark)
        if len(self._met) > self._most:
            self._forget_old(now)
        if self._due and not self._is_running:
            self._is_running = True
            self._tasks.spawn(self._sweep(), name="akv sweeps marks")

    async def _sweep(self) -> None:
        try:
            while self._due:
                due, self._due = self._due, set()
                await self._ask(due)
        except Exception as error:
            logger.warning("cannot find out which transactions have ended: %s", error, exc_info=error)
        finally:
            self._is_running = False

    async def _ask(self, due: set[str]) -> None:
        for mark in due:
            self._met[mark].since = self._clock()  # not again before a while has passed
        ended = await self._ended(due)
        for mark in ended:
            await self._resolve(mark, self._met.pop(mark).identifiers)

    def _forget_old(self, now: float) -> None:
        """Most marks are resolved a moment after they were met, and never met again."""
        self._met = {
            mark: met for mark, met in self._met.items() if now - met.last < 10 * PATIENCE or mark in self._due
        }
        self._most = max(_KEPT, 2 * len(self._met))
