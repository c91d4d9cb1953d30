"""
Who runs, on which backend; each contender does the same work in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.contenders.akv import Akv
from benchmarks.contenders.contender import Absent, Contender
from benchmarks.contenders.drivers import Aiosqlite, Asyncmy, Asyncpg
from benchmarks.contenders.hand import CoreAutocommit, SessionByHand
from benchmarks.contenders.peers import AdvancedAlchemy, PyKeyValue
from benchmarks.contenders.redis import Aiocache, Cashews
from benchmarks.contenders.threads import DiskCache, KVAlchemyInThread

ALL: tuple[type[Contender], ...] = (
    Akv,
    Asyncpg,
    Aiosqlite,
    Asyncmy,
    CoreAutocommit,
    SessionByHand,
    KVAlchemyInThread,
    PyKeyValue,
    AdvancedAlchemy,
    DiskCache,
    Cashews,
    Aiocache,
)
YARDSTICKS = ("akv", "asyncpg", "aiosqlite", "asyncmy", "core", "session")
"""What a series of many cases measures: the peers are slower than these, and in the base case."""


def contenders_for(dialect: str, only: Iterable[str] = ()) -> list[type[Contender]]:
    """
    Return who can do the work on a dialect.

    Raises:
        ValueError: *only* names somebody unknown.
    """
    wanted = set(only)
    unknown = wanted - {one.name for one in ALL}
    if unknown:
        raise ValueError(f"no contender {sorted(unknown)}: there are {', '.join(one.name for one in ALL)}")
    return [one for one in ALL if dialect in one.dialects and (not wanted or one.name in wanted)]


__all__ = ["ALL", "YARDSTICKS", "Absent", "Contender", "contenders_for"]
