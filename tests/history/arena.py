"""
Where rounds take place: servers of our own, and the edges by which each worker reaches them.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.history import rows
from tests.history.systems import MARIADB, POSTGRES
from tests.private import Nursery, PrivateMariaDB, PrivatePostgres, PrivateValkey
from tests.proxy import TCPProxy
from tests.servers import _drop_database, connect, look


@dataclass(frozen=True)
class Edges:
    """How one worker reaches the servers."""

    database: str
    redis: str = ""


class PrivateRedis(PrivateValkey):
    """The redis-server of this machine."""

    kind = "Redis"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {"bind": "127.0.0.1", "port": str(self.port), "save": "", "appendonly": "no", **self.settings}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return subprocess.Popen([self.program(), *options], stdout=log, stderr=log, cwd=self.folder)

    @staticmethod
    def program() -> str:
        found = shutil.which("redis-server")
        assert found is not None
        return found


class Arena:
    """
    The servers of all rounds, and what one round has of them.

    Attributes:
        database: Which kind.
        nursery: Of the servers.
        server: The database server; None: a file.
        redis: The Redis of this round; None: tokens are in the database.
        servers: What they call themselves.
        direct_url: Where the auditor reads.
        proxies: Between a worker and a server, by slot and "database" or "redis".
    """

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self.nursery = Nursery()
        self.server: PrivatePostgres | PrivateMariaDB | None = None
        self.redis: PrivateValkey | None = None
        self.servers = "SQLite"
        self.direct_url = ""
        self.proxies: dict[tuple[int, str], TCPProxy] = {}
        self._folder = folder
        self._redises: list[PrivateValkey] = []
        self._version = ""
        self._rounds = 0
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start the servers."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        if self.database == POSTGRES:
            self.server = self.nursery.postgres(max_prepared_transactions="60", max_connections="300")
        elif self.database == MARIADB:
            self.server = self.nursery.mariadb()
        if self.server is not None:
            ((version,),) = look(
                self.server.url(), "SHOW server_version" if self.database == POSTGRES else "SELECT VERSION()"
            )
            self._version = version.split()[0]
            self._redises = [self.nursery.valkey()]
            if shutil.which("redis-server") is not None:
                self._redises.append(self._private_redis())

    def _private_redis(self) -> PrivateRedis:
        return self.nursery._started(PrivateRedis(self.nursery._new("redis", None), {}))

    async def prepare(self, slots: int) -> None:
        """Make tables and edges for a round; every other slot reaches the servers through proxies."""
        self._rounds += 1
        if self.server is None:
            await self._prepare_file()
        else:
            name = f"round{self._rounds}"
            await asyncio.to_thread(self.server.create_database, name)
            self.direct_url = self.server.url(name)
            self.redis = self._redises[self._rounds % len(self._redises)]
            self.servers = f"{self.server.kind} {self._version}, {self.redis.kind}"
            await self._open_edges(slots)
        await _make_tables(self.direct_url)

    async def _prepare_file(self) -> None:
        self.direct_url = f"sqlite+aiosqlite:///{self._folder / f'app-{self._rounds}.db'}"
        engine = create_async_engine(self.direct_url)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        await engine.dispose()

    async def _open_edges(self, slots: int) -> None:
        assert self.redis is not None
        for slot in range(1, slots, 2):
            for name, url in (("database", self.direct_url), ("redis", self.redis.url())):
                proxy = TCPProxy.before(url)
                self.proxies[slot, name] = await self._stack.enter_async_context(proxy)

    def edges(self, slot: int) -> Edges:
        """Return how the worker of a slot reaches the servers: on PostgreSQL, some by another driver."""
        database, redis = self.direct_url, self.redis.url() if self.redis is not None else ""
        proxy = self.proxies.get((slot, "database"))
        if proxy is not None:
            database, redis = proxy.url, self.proxies[slot, "redis"].url
        if self.database == POSTGRES and slot % 4 > 1:
            database = database.replace("+asyncpg", "+psycopg").replace("?ssl=disable", "?sslmode=disable")
        return Edges(database, redis)

    async def describe(self) -> str:
        """Return what stands in the way of readers: marks, the epoch, transactions that hold on."""
        return await asyncio.to_thread(self._describe)

    def _describe(self) -> str:
        lines = []
        if self.redis is not None:
            with redis.Redis.from_url(self.redis.url(), decode_responses=True) as client:
                lines.append(f"run_id {client.info('server')['run_id']}")
                found = {key: client.get(key) for key in client.scan_iter()}
            lines += [f"{key}: {text}" for key, text in found.items() if key.endswith(":epoch") or text.count(" ") > 1]
        if self.database == POSTGRES:
            lines += map(str, look(self.direct_url, "SELECT gid, transaction FROM pg_prepared_xacts"))
            busy = "SELECT pid, state, backend_xid, now() - xact_start, query FROM pg_stat_activity"
            lines += map(str, look(self.direct_url, f"{busy} WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"))
            lines += map(
                str, look(self.direct_url, "SELECT pid, virtualtransaction FROM pg_locks WHERE locktype = 'advisory'")
            )
        return "\n".join(lines)

    async def finish(self) -> None:
        """Close the edges of a round and drop its database."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        self.proxies.clear()
        if self.server is not None:
            await asyncio.to_thread(self._drop)

    def _drop(self) -> None:
        assert self.server is not None
        with connect(self.server.url(driver="psycopg" if self.database == POSTGRES else "pymysql")) as connection:
            _drop_database(connection, make_url(self.direct_url).database or "")

    async def close(self) -> None:
        """End the servers."""
        await asyncio.to_thread(self.nursery.close)


async def _make_tables(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(rows.create)
    await engine.dispose()
