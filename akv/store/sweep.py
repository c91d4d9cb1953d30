"""
Dead and surplus rows go in the background, in bounded batches that block nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from akv.errors import StoreError
from akv.store.operations import Decision, Effect, Evict, Evicted, Modify, Operation, Purge, Row, Set

log = logging.getLogger("akv")

PURGE_BATCH = 500
_EVICT_BATCH = 5000
_SLACK = 0.04
"""Part of a bound that may be written between two looks at the table."""
_SMALL = 64
"""Bytes of an entry, where nothing is known."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    What a store sweeps.

    Attributes:
        every: Seconds between two sweeps of dead rows; None: no sweep in the background.
        max_entries: Most rows; None: no bound.
        max_bytes: Most bytes of keys, tags and values, estimated; None: no bound.
    """

    every: float | None
    max_entries: int | None
    max_bytes: int | None

    @property
    def evicts(self) -> bool:
        """Whether the table is bounded."""
        return self.max_entries is not None or self.max_bytes is not None


class Sweeper:
    """Sweeps the table of one store on one event loop."""

    def __init__(
        self, run: Callable[[Operation[Any]], Awaitable[Any]], bounds: Bounds, now: Callable[[], datetime]
    ) -> None:
        self._run = run
        self._bounds = bounds
        self._now = now
        self._rows = 0
        self._bytes = 0.0
        self._typical: float = _SMALL
        self._has_looked = False

    async def forever(self) -> None:
        """Delete dead and surplus rows until cancelled; a failing database is left alone until the next turn."""
        while True:
            await asyncio.sleep(self._bounds.every or 0)
            try:
                while await self._run(Purge(self._now(), PURGE_BATCH)):
                    pass
            except Exception as error:
                log.warning("sweeping failed, and is tried again at the next turn: %s", error)
            else:
                if self._bounds.evicts:
                    await self.evict(self._run(self.eviction()))

    def wrote(self, operation: Operation[Any]) -> bool:
        """
        Count what a call writes.

        Returns:
            Whether an eviction is due: so much was written since the last look at the table that it may have
            grown over its bounds, or nobody has looked yet.
        """
        if not self._bounds.evicts or not isinstance(operation, Set | Modify):
            return False
        self._rows += len(operation.touched)
        self._bytes += self._weight(operation)
        most, size = self._bounds.max_entries, self._bounds.max_bytes
        is_due = (
            not self._has_looked
            or (most is not None and self._rows > _SLACK * most)
            or (size is not None and self._bytes > _SLACK * size)
        )
        if is_due:
            self._has_looked = True
            self._rows, self._bytes = 0, 0.0
        return is_due

    def _weight(self, operation: Set | Modify) -> float:
        """Estimate the bytes of what a call writes: where only its step knows, by what is usual."""
        if isinstance(operation, Modify) and not operation.size:
            return self._typical
        return operation.size + sum(len(key) + len(tag) for key, tag in operation.touched)

    def weighing(self, operation: Operation[Any]) -> Operation[Any]:
        """Let a step whose bytes are not known beforehand tell them, where they matter."""
        if self._bounds.max_bytes is None or not isinstance(operation, Modify) or operation.size:
            return operation
        estimate = self._typical

        def step(row: Row | None) -> Decision:
            decision = operation.step(row)
            if decision.effect is Effect.PUT:
                size = len(decision.row.value or b"")
                self._bytes += size - estimate
                self._typical += (size - self._typical) / 8
            return decision

        return replace(operation, step=step)

    def eviction(self) -> Evict:
        """Make the operation that deletes surplus rows; writes that are called meanwhile wait behind it."""
        most, size = self._bounds.max_entries, self._bounds.max_bytes
        return Evict(most, size, max(_EVICT_BATCH, int(2 * _SLACK * (most or 0))))

    async def evict(self, first: Awaitable[Evicted]) -> None:
        """Wait for an eviction, and follow it with others while it leaves the table over its bounds."""
        try:
            found = await first
            while found.is_over:
                found = await self._run(self.eviction())
        except StoreError as error:
            log.warning("evicting failed, and is tried again after the next writes: %s", error)
            self._has_looked = False
        else:
            self._typical = max(_SMALL, found.size / max(found.entries, 1), self._typical)
