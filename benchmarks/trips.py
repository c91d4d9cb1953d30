"""
Round trips, counted: by proxies on the way to servers, by SQLite's own trace where there is no way.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.bound import Bound, Sessions, bound, changing, unbound
from benchmarks.places import Place
from tests.proxy import TCPProxy

_WARM_UP: Final = 3
_COUNTED: Final = 10
Counts = tuple[int, int]
"""To the database, to Redis."""


class Counter:
    """
    Counts what leaves two engines, one of them bound.

    Attributes:
        unbound: Sessions of the one.
        bound: Sessions of the other.
    """

    def __init__(self, unbound: Sessions, bound: Sessions, count: Callable[[], Counts]) -> None:
        self.unbound = unbound
        self.bound = bound
        self.count = count


async def trips_of(counted: Counter, way: str, rows: int) -> dict[str, float]:
    """How often a transaction and its commit go to the database and to Redis, on average."""
    sessions = counted.bound if way == "bound" else counted.unbound
    seen: list[tuple[int, int]] = []
    change = changing(sessions, rows, lambda: seen.append(counted.count()))
    for _ in range(_WARM_UP):
        await change()
    seen.clear()
    began = counted.count()
    for _ in range(_COUNTED):
        await change()
    ended = counted.count()
    commits = [
        (after[0] - before[0], after[1] - before[1]) for before, after in zip(seen[::2], seen[1::2], strict=True)
    ]
    return {
        "commit_database": statistics.mean(database for database, _ in commits),
        "commit_redis": statistics.mean(redis for _, redis in commits),
        "transaction_database": (ended[0] - began[0]) / _COUNTED,
        "transaction_redis": (ended[1] - began[1]) / _COUNTED,
    }


@asynccontextmanager
async def counter(place: Place) -> AsyncIterator[Counter]:
    """Make two engines and count: round trips, or statements of SQLite."""
    async with AsyncExitStack() as stack:
        if place.dialect == "sqlite":
            statements = _Statements()
            engine, plain = await stack.enter_async_context(unbound(place.url))
            other = await stack.enter_async_context(bound(place, "counted"))
            for each in (engine, other.engine):
                await each.dispose()  # connections from before would not be counted
                statements.of(each)
            yield Counter(plain, other.sessions, lambda: (statements.count, 0))
            return
        database = await stack.enter_async_context(TCPProxy.before(place.url.render_as_string(hide_password=False)))
        redis = await stack.enter_async_context(TCPProxy.before(place.redis_url))
        _, plain = await stack.enter_async_context(unbound(database.url))
        made: Bound = await stack.enter_async_context(bound(place, "counted", url=database.url, redis_url=redis.url))
        yield Counter(plain, made.sessions, lambda: (database.requests, redis.requests))


class _Statements:
    def __init__(self) -> None:
        self.count = 0

    def of(self, engine: AsyncEngine) -> None:
        event.listen(engine.sync_engine, "connect", self._connected)

    def _connected(self, dbapi: Any, _record: object) -> None:
        dbapi.run_async(lambda connection: connection.set_trace_callback(self._noted))

    def _noted(self, _sql: str) -> None:
        self.count += 1
