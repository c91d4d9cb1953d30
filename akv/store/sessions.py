"""
AsyncSessions of an engine of ours, each on a connection that it keeps from one unit of work to the next.

Opening and closing a session costs as much as a query. In AUTOCOMMIT nothing
is open on the server between two units of work, so one may follow the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from akv.aio import join_coroutine

T = TypeVar("T")


class Sessions:
    """Sessions of one event loop."""

    def __init__(self, engine: AsyncEngine, *, keeps: bool) -> None:
        """
        Args:
            engine: Its driver is in AUTOCOMMIT.
            keeps: Whether its connections are for akv alone; otherwise each goes back to the pool at once.
        """
        self._engine = engine
        self._keeps = keeps
        self._idle: list[AsyncSession] = []

    def __len__(self) -> int:
        """How many sessions are idle on a connection that they keep."""
        return len(self._idle)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* on the connection of a session, in SQLAlchemy's greenlet.

        Guarantees:
            After an exception, cancellation included, the connection has gone back to the pool, which closes it if it
            is broken.
        """
        session = self._idle.pop() if self._idle else AsyncSession(self._engine)
        try:
            result = await session.run_sync(lambda sync: work(sync.connection()))
        except BaseException:
            await join_coroutine(session.close())
            raise
        if self._keeps:
            self._idle.append(session)
        else:
            await session.close()
        return result

    async def aclose(self) -> None:
        """Give the connections back to the pool; those of a loop that ends meanwhile are left to :meth:`drop`."""
        while self._idle:
            # Awaited here rather than in a task of its own, which such a loop would never begin.
            await self._idle[-1].close()
            self._idle.pop()

    def drop(self) -> None:
        """Forget connections whose event loop has ended, without the pool mourning them."""
        while self._idle:
            self._idle.pop().sync_session.connection().connection.detach()
