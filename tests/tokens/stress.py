"""
One process of several that read through a cache and write, on one SQLite file, for some seconds.

Run as a module by ``test_processes``; prints counts as JSON. Versions only grow,
and those of writes that roll back are enormous: a cached value below what the
database showed before the read began is stale, an enormous one is dirty.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import event, exc, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from tests.tokens.world import Order, User, World

USERS = 4
NEVER_COMMITTED = 1_000_000


class Cache:
    """A table in a file of its own."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def get(self, key: str) -> tuple[int, int] | None:
        rows = list(await self._connection.execute_fetchall("SELECT a, b FROM cache WHERE key = ?", (key,)))
        return tuple(rows[0]) if rows else None

    async def set(self, key: str, value: tuple[int, int]) -> None:
        await self._connection.execute("INSERT OR REPLACE INTO cache VALUES (?, ?, ?)", (key, *value))
        await self._connection.commit()


class Worker:
    def __init__(self, app: World, cache: Cache, eyes: aiosqlite.Connection, seed: int) -> None:
        self.app, self.cache, self.eyes = app, cache, eyes
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                if self.random.random() < 0.15:
                    await self.write()
                else:
                    await self.read()
            except exc.OperationalError as error:
                if "locked" not in str(error):
                    raise
                self.counts["locked"] += 1

    # --- reading

    async def shown(self, id_: int) -> tuple[int, int]:
        """Return what the database shows: versions of a user, and of its orders together."""
        sql = (
            "SELECT CAST(name AS INTEGER), (SELECT coalesce(sum(total), 0) FROM orders WHERE user_id = users.id) "
            "FROM users WHERE id = ?"
        )
        return tuple(next(iter(await self.eyes.execute_fetchall(sql, (id_,)))))  # type: ignore[return-value]

    async def read(self) -> None:
        id_ = self.random.randint(1, USERS)
        ways = [self.loaded_first, self.key_first, self.retained, self.dirty]
        (way,) = self.random.choices(ways, [5, 5, 5, 1])
        async with self.app.session(expire_on_commit=way != self.retained) as session:
            await way(session, id_)

    async def loaded_first(self, session: AsyncSession, id_: int) -> None:
        floor = await self.shown(id_)
        user = await self.load(session, id_)
        await asyncio.sleep(self.random.choice([0, 0, 0.002]))
        await self.through_cache(session, id_, floor, user, loaded=user)

    async def key_first(self, session: AsyncSession, id_: int) -> None:
        floor = await self.shown(id_)
        await self.through_cache(session, id_, floor, f"akv:users#{id_}")

    async def retained(self, session: AsyncSession, id_: int) -> None:
        user = await self.load(session, id_)
        await session.commit()
        await asyncio.sleep(self.random.choice([0, 0.001, 0.005]))
        floor = await self.shown(id_)
        await self.through_cache(session, id_, floor, user, loaded=user)

    async def dirty(self, session: AsyncSession, id_: int) -> None:
        user = await self.load(session, id_)
        user.name = str(int(user.name) + NEVER_COMMITTED)
        await session.flush()
        floor = await self.shown(id_)
        await self.through_cache(session, id_, floor, user, loaded=user)
        await session.rollback()

    async def through_cache(
        self, session: AsyncSession, id_: int, floor: tuple[int, int], thing: Any, loaded: User | None = None
    ) -> None:
        key = await self.app.keys(thing, session=session)
        self.counts["reads"] += 1
        if not key.shared:
            self.counts["private"] += 1
            return
        value = await self.cache.get(key)
        if value is None:
            user = loaded or await self.load(session, id_)
            await self.cache.set(key, (int(user.name), sum(order.total for order in user.orders)))
            return
        self.counts["hits"] += 1
        self.counts["stale"] += value[0] < floor[0] or value[1] < floor[1]
        self.counts["impossible"] += max(value) >= NEVER_COMMITTED

    async def load(self, session: AsyncSession, id_: int) -> User:
        return await session.get_one(User, id_, options=[selectinload(User.orders)])

    # --- writing

    async def write(self) -> None:
        id_ = self.random.randint(1, USERS)
        way = self.random.choice([self.flush, self.flush_order, self.core, self.sql, self.savepoint])
        async with self.app.session() as session:
            await session.execute(text("SELECT 1"))
            await way(session, id_)
            await asyncio.sleep(self.random.choice([0, 0, 0.001]))
            await (session.commit() if self.random.random() < 0.8 else session.rollback())
        self.counts["writes"] += 1

    async def flush(self, session: AsyncSession, id_: int) -> None:
        user = await session.get_one(User, id_)
        user.name = str(int(user.name) + 1)
        await session.flush()

    async def flush_order(self, session: AsyncSession, id_: int) -> None:
        order = await session.scalar(select(Order).where(Order.user_id == id_).limit(1))
        if order is None or self.random.random() < 0.05:
            session.add(Order(user_id=id_, total=1))
        else:
            order.total += 1
        await session.flush()

    async def core(self, session: AsyncSession, id_: int) -> None:
        await session.execute(insert(Order).values(user_id=id_, total=1))
        await session.execute(update(Order).where(Order.user_id == id_).values(total=Order.total + 1))

    async def sql(self, session: AsyncSession, id_: int) -> None:
        await session.execute(text("UPDATE users SET name = CAST(name AS INTEGER) + 1 WHERE id = :id"), {"id": id_})

    async def savepoint(self, session: AsyncSession, id_: int) -> None:
        savepoint = await session.begin_nested()
        user = await session.get_one(User, id_)
        user.name = str(int(user.name) + NEVER_COMMITTED)
        await session.flush()
        await savepoint.rollback()
        other = await session.get_one(User, self.random.randint(1, USERS))
        async with session.begin_nested():
            other.name = str(int(other.name) + 1)


async def main(path: str, seconds: float, seed: int) -> Counter[str]:
    app = World(Path(path))
    event.listen(app.engine.sync_engine, "connect", lambda dbapi, _: dbapi.cursor().execute("PRAGMA synchronous = OFF"))
    app.bind()
    async with aiosqlite.connect(f"{path}.cache", timeout=30) as connection, aiosqlite.connect(path) as eyes:
        await connection.execute("PRAGMA synchronous = OFF")
        workers = [Worker(app, Cache(connection), eyes, seed * 100 + number) for number in range(4)]
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.run(until))
    await app.close()
    return sum((worker.counts for worker in workers), Counter())


async def prepare(path: Path) -> None:
    """Create the application and the cache."""
    app = World(path)
    await app.create()
    app.bind()
    await app.add(*(User(id=number, name="1") for number in range(1, USERS + 1)))
    async with app.engine.connect() as connection:
        assert await connection.scalar(select(func.count(User.id))) == USERS
    await app.close()
    async with aiosqlite.connect(f"{path}.cache") as cache:
        await cache.execute("PRAGMA journal_mode = WAL")
        await cache.execute("CREATE TABLE cache (key TEXT PRIMARY KEY, a INTEGER, b INTEGER)")
        await cache.commit()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))))
