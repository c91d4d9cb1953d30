"""
Two engines on one database, one of them bound to tokens: everything else is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import URL, event, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv import AsyncKVAlchemy, CacheKeyGenerator, DatabaseTokens, bind
from akv.tokens.redis import RedisTokens
from benchmarks.ancestor import Ancestor
from benchmarks.contenders import Absent
from benchmarks.places import NoServer, Place, place_for
from benchmarks.rounds import Call

ROWS: Final = 2_000
_CONNECTIONS: Final = 16
_PATIENCE: Final = 5.0
"""Seconds that tokens wait for Redis: on a busy machine the usual milliseconds would be a test of the machine."""
_BUSY: Final = 60.0


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Row(Base):
    """Something that is read and changed."""

    __tablename__ = "bench_rows"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


TABLE: Final = Base.metadata.tables["bench_rows"]
Sessions = async_sessionmaker[AsyncSession]


@dataclass(frozen=True)
class Bound:
    """An engine that is bound, and what belongs to it."""

    engine: AsyncEngine
    sessions: Sessions
    tokens: Any
    keys: CacheKeyGenerator


@asynccontextmanager
async def filled(backend: str, ancestors: str = "") -> AsyncIterator[tuple[Place, Ancestor]]:
    """
    Make a place with rows in it, and a Redis that is clean in the end.

    Args:
        backend: The place's.
        ancestors: What the names of the ancestor's keys end with.

    Raises:
        NoServer: Nobody answers.
    """
    async with place_for(backend) as place:
        try:
            ancestor = Ancestor(place.redis_url, f"{place.namespace}{ancestors}")
            await ancestor.answers()
        except Absent as reason:
            raise NoServer(str(reason)) from reason
        try:
            await fill(place)
            yield place, ancestor
        finally:
            await ancestor.forget(place.namespace)


async def fill(place: Place) -> None:
    """Make the table, with rows numbered from 1."""
    engine = create_async_engine(place.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Row), [{"id": number, "value": 0} for number in range(1, ROWS + 1)])
    await engine.dispose()


@asynccontextmanager
async def unbound(url: URL | str) -> AsyncIterator[tuple[AsyncEngine, Sessions]]:
    """Make an engine as an application would; on SQLite with the BEGIN that a bound one has too."""
    async with _engine(url) as (engine, sessions):
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", lambda dbapi, _: setattr(dbapi, "isolation_level", None))
            event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        yield engine, sessions


@asynccontextmanager
async def _engine(url: URL | str) -> AsyncIterator[tuple[AsyncEngine, Sessions]]:
    engine = create_async_engine(url, pool_size=_CONNECTIONS, max_overflow=0)
    try:
        yield engine, async_sessionmaker(engine, expire_on_commit=False)
    finally:
        await engine.dispose()


@asynccontextmanager
async def bound(
    place: Place,
    name: str,
    *,
    url: URL | str = "",
    redis_url: str = "",
    before: Callable[[AsyncEngine], None] = lambda _: None,
) -> AsyncIterator[Bound]:
    """
    Make an engine that is bound to tokens of its own, ready to be used.

    Args:
        place: The database: on SQLite the tokens are in there, else in Redis.
        name: Tells its namespace in Redis from others of the place.
        url: Another way to the database.
        redis_url: Another way to Redis.
        before: What is done with the engine before it is bound.
    """
    async with AsyncExitStack() as stack:
        engine, sessions = await stack.enter_async_context(_engine(url or place.url))
        if place.dialect == "sqlite":
            tokens: Any = DatabaseTokens(place.url)
        else:
            tokens = RedisTokens.from_url(
                redis_url or place.redis_url,
                namespace=f"{place.namespace}_{name}",
                read_timeout=_PATIENCE,
                commit_timeout=_PATIENCE,
            )
        stack.push_async_callback(tokens.aclose)
        before(engine)
        binding = bind(engine, tokens)
        stack.push_async_callback(binding.unbind)
        found = Bound(engine, sessions, tokens, CacheKeyGenerator(tokens))
        await _begin(found)
        yield found


def be_patient(kv: AsyncKVAlchemy) -> None:
    """Let memoized functions wait for a busy machine, as tokens do here, before they go on without their store."""
    kv._guard.patience = _BUSY


async def _begin(one: Bound) -> None:
    """Commit something, and wait until keys can be shared."""
    async with one.sessions.begin() as session:
        row = await session.get_one(Row, 1)
        row.value += 1
    async with asyncio.timeout(60):
        while not (await one.keys("akv:*#*")).shared:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.01)


def changing(sessions: Sessions, rows: int, note: Callable[[], None] = lambda: None) -> Call:
    """
    Change rows by a flush, and commit: that is the part of interest.

    Args:
        sessions: Where.
        rows: How many; 0: one is read and none changed.
        note: Is called before the commit and after it.
    """
    wanted = select(Row).where(Row.id.between(2, 1 + max(1, rows)))

    async def change() -> float:
        async with sessions() as session:
            for row in await session.scalars(wanted):
                row.value += bool(rows)
            await session.flush()
            note()
            began = time.perf_counter()
            await session.commit()
            took = time.perf_counter() - began
            note()
            return took

    return change
