"""
Connections of our own to the user's database, beside the user's pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from akv.aio import OwnedTasks, PerLoop, join_coroutine, shielded

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]
"""What to do on a connection of ours, in AUTOCOMMIT; short, and harmless if nobody waits for it any more."""

_AT_ONCE: Final = 4
"""Connections of one event loop at one time."""

_LAST_CALL: Final = 5.0
"""Seconds that what is on its way has to end when we close."""


class OwnConnections:
    """
    Opens a connection for each piece of work, with the settings of an engine that somebody else owns.

    The work is rare and short, so no connection is kept: nothing is idle on the
    server, nothing is left to a loop that ended without notice or to a child
    process, and no broken connection is ever met. The user's pool is never
    asked, for its connections may all be held by those who wait for us.
    """

    def __init__(self, engine: Engine) -> None:
        """
        Args:
            engine: Lends its settings: driver, arguments, listeners of its pool.

        Guarantees:
            No I/O.
        """
        self._lender = engine
        self._loops = PerLoop(self._make)

    async def run(self, work: Work[T]) -> T:
        """
        Do *work* on a new connection.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused, or cannot be reached.

        Guarantees:
            A cancelled caller leaves no trace: the work goes on in a task of ours, and the connection is closed.
        """
        return await shielded(self.start(work, name="akv on a connection of its own"))

    def start(self, work: Work[T], *, name: str) -> asyncio.Task[T]:
        """Begin *work* on a new connection in a task of ours."""
        here = self._loops.get()
        for left in self._loops.take_stale():
            left.tasks.abandon()
        return here.tasks.spawn(here.run(work), name=name)

    async def aclose(self) -> None:
        """Let what is on its way end, and end what does not; idempotent."""
        here = asyncio.get_running_loop()
        for loop, own in self._loops.take_all():
            if loop is here:
                await join_coroutine(own.end())

    def _make(self) -> _Own:
        engine = create_async_engine(
            self._lender.url,
            pool=self._lender.pool.recreate(),
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
        )
        return _Own(engine)


class _Own:
    """What one event loop has."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.tasks = OwnedTasks()
        self._engine = engine
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self, work: Work[T]) -> T:
        async with self._turns, self._engine.connect() as connection:
            try:
                result = await work(connection)
                await connection.commit()  # SQLite's driver may be in a mode of its own that AUTOCOMMIT does not end
                return result
            finally:
                await connection.invalidate()  # closed, not pooled

    async def end(self) -> None:
        try:
            await asyncio.wait_for(self.tasks.drain(), _LAST_CALL)
        except TimeoutError:
            await self.tasks.cancel()
