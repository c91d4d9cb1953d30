"""
The drivers alone, with their own pools: what no layer above them can beat call by call.
"""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

from benchmarks.contenders.contender import Contender, need

CONNECTIONS = 10

_GET = "SELECT value, expire FROM kvstore WHERE key = {} AND tag = {}"
_INSERT = "INSERT INTO kvstore (key, tag, value, expire) VALUES ({}, {}, {}, {})"
_REPLACE = " ON CONFLICT (key, tag) DO UPDATE SET value = excluded.value, expire = excluded.expire"


class Asyncpg(Contender):
    """A pool of asyncpg; each set is one statement, so one commit."""

    name: ClassVar[str] = "asyncpg"
    title: ClassVar[str] = "raw asyncpg pool"
    dialects: ClassVar[tuple[str, ...]] = ("postgresql",)
    serializer: ClassVar[str] = "pickle"
    setup: ClassVar[str] = f"{CONNECTIONS} connections"
    distribution: ClassVar[str] = "asyncpg"

    async def open(self) -> None:
        asyncpg = need("asyncpg", "asyncpg")
        self._pool = await asyncpg.create_pool(self.place.plain_url, min_size=CONNECTIONS, max_size=CONNECTIONS)
        self._get = _GET.format("$1", "$2")
        self._set = _INSERT.format("$1", "$2", "$3", "$4") + _REPLACE

    async def close(self) -> None:
        await self._pool.close()

    async def get(self, key: str) -> Any:
        row = await self._pool.fetchrow(self._get, key, "")
        return None if row is None else pickle.loads(row[0])

    async def set(self, key: str, value: Any) -> None:
        await self._pool.execute(self._set, key, "", pickle.dumps(value), None)


class Aiosqlite(Contender):
    """One connection of aiosqlite in autocommit, one hop to its thread per call."""

    name: ClassVar[str] = "aiosqlite"
    title: ClassVar[str] = "raw aiosqlite, one connection"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite",)
    serializer: ClassVar[str] = "pickle"
    distribution: ClassVar[str] = "aiosqlite"

    async def open(self) -> None:
        aiosqlite = need("aiosqlite", "aiosqlite")
        self._connection = await aiosqlite.connect(self.place.url.database, isolation_level=None)
        await self._connection.execute(f"PRAGMA synchronous = {self.place.synchronous}")
        self._get = _GET.format("?", "?")
        self._set = _INSERT.format("?", "?", "?", "?") + _REPLACE

    async def close(self) -> None:
        await self._connection.close()

    async def get(self, key: str) -> Any:
        rows = await self._connection.execute_fetchall(self._get, (key, ""))
        return pickle.loads(rows[0][0]) if rows else None

    async def set(self, key: str, value: Any) -> None:
        await self._connection.execute_fetchall(self._set, (key, "", pickle.dumps(value), None))


class Asyncmy(Contender):
    """A pool of asyncmy in autocommit."""

    name: ClassVar[str] = "asyncmy"
    title: ClassVar[str] = "raw asyncmy pool"
    dialects: ClassVar[tuple[str, ...]] = ("mariadb",)
    serializer: ClassVar[str] = "pickle"
    setup: ClassVar[str] = f"{CONNECTIONS} connections"
    distribution: ClassVar[str] = "asyncmy"

    async def open(self) -> None:
        asyncmy = need("asyncmy", "asyncmy")
        url = self.place.url
        self._pool = await asyncmy.create_pool(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            db=url.database,
            autocommit=True,
            minsize=CONNECTIONS,
            maxsize=CONNECTIONS,
        )
        self._get = _GET.format("%s", "%s").replace("key", "`key`")
        insert = _INSERT.format("%s", "%s", "%s", "%s").replace("key", "`key`")
        self._set = insert + " ON DUPLICATE KEY UPDATE value = VALUES(value), expire = VALUES(expire)"

    async def close(self) -> None:
        self._pool.close()
        await self._pool.wait_closed()

    async def get(self, key: str) -> Any:
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(self._get, (key, ""))
            row = await cursor.fetchone()
        return None if row is None else pickle.loads(row[0])

    async def set(self, key: str, value: Any) -> None:
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(self._set, (key, "", pickle.dumps(value), None))
