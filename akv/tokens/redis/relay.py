"""
The relay: passes on what was committed while Redis could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from akv.aio import OwnedTasks
from akv.tokens.backend import Unreachable

if TYPE_CHECKING:
    from akv.tokens.redis.core import Core

logger = logging.getLogger("akv")

_QUIET: Final = 10
"""
How many times longer it waits where it knows of nothing to pass on.

It looks all the same: a writer that could not reach Redis may have left something and died. Until somebody finds it,
readers that do reach Redis are stale, and nothing but the table tells of it. One look of a process is enough.
"""


class Relay:
    """The task of one event loop that empties the outbox."""

    def __init__(self, core: Core, tasks: OwnedTasks, bump: Callable[[str, Collection[str]], Awaitable[None]]) -> None:
        """
        Args:
            core: Knows the outbox.
            tasks: The owner of the task.
            bump: Gives identifiers fresh tokens; the first argument is an empty mark.
        """
        self._core = core
        self._tasks = tasks
        self._bump = bump
        self._is_running = False
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Begin to look into the outbox now and then, where there is one; idempotent."""
        if not self._is_running and self._core.options.when_unreachable == "outbox":
            self._is_running = True
            self._tasks.spawn(self._forever(), name="akv relays the outbox")

    def soon(self) -> None:
        """Look into the outbox often: something is about to be committed there."""
        self._wake.set()
        self.start()

    async def _forever(self) -> None:
        every = self._core.options.outbox_every
        once_more = False  # what was about to be committed may not have been there yet
        while True:
            knows_some = self._wake.is_set()
            self._wake.clear()
            if knows_some or once_more or self._quiet() <= 0:
                await self._look()
            once_more = knows_some
            if knows_some or self._wake.is_set():
                await asyncio.sleep(every)
            else:
                with suppress(TimeoutError):  # not wait_for, which may miss its own cancellation
                    async with asyncio.timeout(self._quiet()):
                        await self._wake.wait()

    def _quiet(self) -> float:
        """Return the seconds until it is time to look though nobody knows of anything, in this loop or another one."""
        core = self._core
        return core.relayed_at + core.options.outbox_every * _QUIET - core.clock()

    async def _look(self) -> None:
        self._core.relayed_at = self._core.clock()
        try:
            await self.pass_on()
        except Unreachable as error:
            logger.debug("what is in the outbox stays there: %s", error)
            self._wake.set()
        except Exception as error:
            logger.warning("what is in the outbox cannot be passed on: %s", error, exc_info=error)

    async def pass_on(self) -> None:
        """
        Bump what is in the outbox, and only then delete it.

        Raises:
            Unreachable: Redis does not answer; what was not bumped is still there.
            sqlalchemy.exc.DBAPIError: The database cannot be asked.
        """
        engine = self._core.any_bound()
        if engine is None:
            return
        outbox = self._core.outbox(engine)
        while parcels := await outbox.take():
            await self._bump("", {identifier for parcel in parcels for identifier in parcel.identifiers})
            await outbox.delete([parcel.id for parcel in parcels])
