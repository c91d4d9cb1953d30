"""
What listeners of a bound engine take, statement by statement: a clock before the first of them, one behind the last.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from benchmarks.bound import TABLE, Row, Sessions

_EVENTS: Final = ("before_cursor_execute", "after_cursor_execute", "after_execute")
MANY: Final = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """A statement: how it runs, once, and how many rows it is about."""

    name: str
    run: Callable[[AsyncSession, int], Awaitable[Any]]
    rows: int = 1


async def _select(session: AsyncSession, number: int) -> None:
    await session.execute(select(Row.value).where(Row.id == number))


async def _update(session: AsyncSession, number: int) -> None:
    await session.execute(update(TABLE).where(TABLE.c.id == number).values(value=number))


async def _textual(session: AsyncSession, number: int) -> None:
    await session.execute(text("UPDATE bench_rows SET value = :value WHERE id = 1"), {"value": number})


async def _insert(session: AsyncSession, number: int) -> None:
    await session.execute(insert(TABLE).values(id=-number, value=number))
    await session.execute(delete(TABLE).where(TABLE.c.id == -number))


async def _flush(session: AsyncSession, number: int) -> None:
    (await session.get_one(Row, 1)).value = -number
    await session.flush()


async def _flush_many(session: AsyncSession, number: int) -> None:
    for row in await session.scalars(select(Row).where(Row.id <= MANY)):
        row.value = -number
    await session.flush()


KINDS: Final = (
    Kind("SELECT of a row", _select),
    Kind("UPDATE of a row", _update),
    Kind("INSERT and DELETE of a row", _insert, rows=2),
    Kind("UPDATE by text()", _textual),
    Kind("flush of a row", _flush),
    Kind(f"flush of {MANY} rows, each", _flush_many, rows=MANY),
)


class Clock:
    """Adds up the CPU time, in nanoseconds, between the first listener and the last one of each event."""

    def __init__(self) -> None:
        self.spent = 0
        self._since = 0

    def _start(self, *_: object) -> None:
        self._since = time.thread_time_ns()

    def _stop(self, *_: object) -> None:
        self.spent += time.thread_time_ns() - self._since

    def before(self, engine: AsyncEngine) -> None:
        """Stand before listeners that will be put on an engine; its events know no other way to be the first."""
        for name in _EVENTS:
            event.listen(engine.sync_engine, name, self._start)

    @contextmanager
    def behind(self, *engines: AsyncEngine) -> Iterator[None]:
        """Stand behind the listeners of engines, and around those of the flushes of all sessions."""
        for engine in engines:
            for name in _EVENTS:
                event.listen(engine.sync_engine, name, self._stop)
        event.listen(Session, "after_flush", self._start, insert=True)
        event.listen(Session, "after_flush", self._stop)
        try:
            yield
        finally:
            event.remove(Session, "after_flush", self._start)
            event.remove(Session, "after_flush", self._stop)


async def nanoseconds(kind: Kind, sessions: Sessions, clock: Clock, times: int) -> float:
    """The median over *times* statements of one transaction, which is rolled back; the clock's own time included."""
    found = []
    async with sessions() as session:
        for number in range(1, times + 1):
            clock.spent = 0
            await kind.run(session, number)
            found.append(clock.spent / kind.rows)
    return statistics.median(found)
