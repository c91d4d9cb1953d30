"""
Memoized functions on trial: declared dependencies and tracked ones, called by all readers of a process at once.

Their results lie in a store that nothing befalls, on a file beside the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession

from akv import AsyncKVAlchemy
from tests.history.log import Value
from tests.history.systems import things_of

Query: TypeAlias = Callable[[AsyncSession, int], Awaitable[Value]]

NEAR: Final = 1000
"""Results that every second process has at hand."""

_runs: ContextVar[list[int]] = ContextVar("runs")


class Memoized:
    """The memoized functions of one process."""

    def __init__(self, folder: Path, tokens: Any, *, near: bool) -> None:
        self.kv = AsyncKVAlchemy(f"sqlite+aiosqlite:///{folder / 'memoized.db'}", tokens=tokens, sweep_every=None)
        at_hand = NEAR if near else None

        @self.kv.memoize(
            depends_on=lambda subject, compute: list(things_of(subject)), ignore=("compute",), near=at_hand
        )
        async def declared(subject: int, compute: Callable[[int], Awaitable[Value]]) -> Value:
            _runs.get().append(subject)
            return await compute(subject)

        @self.kv.memoize(track=True, ignore=("sessions", "query"), near=at_hand)
        async def tracked(subject: int, sessions: Callable[[], AsyncSession], query: Query) -> Value:
            _runs.get().append(subject)
            async with sessions() as session:
                return await query(session, subject)

        @self.kv.memoize(track=True, ignore=("session", "query"), near=at_hand)
        async def given(subject: int, session: AsyncSession, query: Query) -> Value:
            _runs.get().append(subject)
            return await query(session, subject)

        @self.kv.memoize(track=True, ignore=("sessions", "query"))
        async def nested(subject: int, sessions: Callable[[], AsyncSession], query: Query) -> Value:
            return await tracked(subject, sessions, query)

        self.declared, self.tracked, self.given, self.nested = declared, tracked, given, nested

    async def call(self, awaitable: Awaitable[Value]) -> tuple[Value, bool]:
        """Return a result, and whether it was found, or computed for another caller."""
        runs: list[int] = []
        before = _runs.set(runs)
        try:
            return await awaitable, not runs
        finally:
            _runs.reset(before)

    async def close(self) -> None:
        await self.kv.aclose()
