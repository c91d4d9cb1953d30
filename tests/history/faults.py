"""
What goes wrong outside of the workers: with Redis, with the database, and on the way to them.

Three things may be wrong at once, one of each. Whatever was least often so far is next.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.exc import SQLAlchemyError

from tests.history.arena import Arena
from tests.history.check import Checker
from tests.history.log import Kind, LogWriter
from tests.history.systems import POSTGRES
from tests.history.writes import PREPARED
from tests.private import PrivatePostgres
from tests.proxy import TCPProxy, Verdict
from tests.servers import look

FLUSH: Final = "FLUSHALL"
OLD_DATA: Final = "Redis restarted with old data"
STOPPED: Final = "Redis stopped"
FULL: Final = "Redis out of memory"
KILLED_CLIENTS: Final = "Redis connections killed"
REDIS_CUT: Final = "edge to Redis cut"
REDIS_SILENT: Final = "edge to Redis silent"
DATABASE_CUT: Final = "edge to the database cut"
DATABASE_SILENT: Final = "edge to the database silent"
REPLY_LOST: Final = "COMMIT reply lost"
TERMINATED: Final = "backend terminated"
CRASH: Final = "database server crash"

EVICTED: Final = "record evicted"
"""What must never be configured; for an ablation."""
STRICT_WITH_OUTBOX: Final = (FLUSH, OLD_DATA, DATABASE_CUT, REPLY_LOST, TERMINATED, CRASH, PREPARED)
"""A Redis that hangs, refuses or is cut off from a writer is met by readers all the same."""
LONGEST_PAUSE: Final = 5.0
_KINDS: Final = 5
"""Faults of a large group: the pace is for those, so that each kind of fault is equally often."""

Fault = Callable[[], Awaitable[None]]


class Faults:
    """
    Provokes them.

    Attributes:
        counts: How often each happened, earlier rounds included.
    """

    def __init__(
        self,
        arena: Arena,
        log: LogWriter,
        random_: random.Random,
        only: Mapping[str, int],
        checker: Checker,
        pace: int,
    ) -> None:
        """
        Args:
            arena: What fails.
            log: Of the coordinator.
            random_: Chooses.
            only: Those to provoke, and how often each happened before.
            checker: Knows how many reads were answered by the cache so far.
            pace: How many, in the mean, from one fault to the next of a group of five; more where there are fewer.
        """
        self._arena = arena
        self._log = log
        self._random = random_
        self._checker = checker
        self.pace = pace
        self.counts = Counter(only)
        self._healing: set[asyncio.Future[None]] = set()
        of_redis = {
            FLUSH: self._flush,
            OLD_DATA: self._restart_with_old_data,
            STOPPED: self._stop_redis,
            FULL: self._fill_redis,
            KILLED_CLIENTS: self._kill_clients,
            EVICTED: self._evict,
        }
        of_edges = {
            REDIS_CUT: lambda: self._cut("redis"),
            REDIS_SILENT: lambda: self._silence("redis"),
            DATABASE_CUT: lambda: self._cut("database"),
            DATABASE_SILENT: lambda: self._silence("database"),
            REPLY_LOST: self._lose_reply,
        }
        of_database = {TERMINATED: self._terminate, CRASH: self._crash}
        self._groups = [
            {name: fault for name, fault in group.items() if name in only}
            for group in (of_redis, of_edges, of_database)
        ]

    async def run(self) -> None:
        """Let things go wrong until cancelled; then all is well again."""
        async with asyncio.TaskGroup() as group:
            for faults in filter(None, self._groups):
                group.create_task(self._one_after_another(faults))
            if PREPARED in self.counts:
                group.create_task(self._end_prepared())

    async def _one_after_another(self, faults: Mapping[str, Fault]) -> None:
        while True:
            await self._recovered(self.pace * _KINDS // len(faults))
            least = min(self.counts[name] for name in faults)
            name = self._random.choice([name for name in faults if self.counts[name] <= least + 2])
            await faults[name]()
            self.counts[name] += 1

    async def _recovered(self, pace: int) -> None:
        """Wait until the cache has served again for a while, or does not seem to."""
        enough = self._checker.hits + self._random.randint(1, 2 * max(pace, 1))
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_PAUSE):
                while self._checker.hits < enough:
                    await asyncio.sleep(0.02)

    # --- Redis

    async def _flush(self) -> None:
        await self._in_redis(lambda client: client.flushall())
        self._log.fault(FLUSH)

    async def _restart_with_old_data(self) -> None:
        server = self._arena.redis
        assert server is not None
        await self._in_redis(lambda client: client.save())
        await self._moment(0.2)
        self._log.fault(OLD_DATA)
        await self._for_sure(asyncio.to_thread(server.restart, "kill"))

    async def _stop_redis(self) -> None:
        assert self._arena.redis is not None
        pid = self._arena.redis.pid
        os.kill(pid, signal.SIGSTOP)
        self._log.fault(STOPPED)
        try:
            await self._moment(0.3)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _fill_redis(self) -> None:
        await self._in_redis(lambda client: client.config_set("maxmemory", "1"))
        self._log.fault(FULL)
        try:
            await self._moment(0.2)
        finally:
            await self._for_sure(self._in_redis(lambda client: client.config_set("maxmemory", "0")))

    async def _kill_clients(self) -> None:
        await self._in_redis(lambda client: client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        self._log.fault(KILLED_CLIENTS)

    async def _evict(self) -> None:
        def evict(client: redis.Redis) -> None:
            records = [key for key in client.scan_iter() if not key.endswith((b":epoch", b":seq"))]
            client.delete(*records)

        await self._in_redis(evict)
        self._log.fault(EVICTED)

    async def _in_redis(self, work: Callable[[redis.Redis], Any]) -> None:
        assert self._arena.redis is not None
        url = self._arena.redis.url()

        def run() -> None:
            with redis.Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0)) as client:
                work(client)

        await asyncio.to_thread(run)

    # --- edges

    async def _cut(self, name: str) -> None:
        proxy = self._proxy(name)
        proxy.cut()
        self._log.fault(REDIS_CUT if name == "redis" else DATABASE_CUT)
        if self._random.random() < 0.5:
            proxy.refuse()
            try:
                await self._moment(0.3)
            finally:
                await proxy.accept()

    async def _silence(self, name: str) -> None:
        proxy = self._proxy(name)
        proxy.blackhole()
        self._log.fault(REDIS_SILENT if name == "redis" else DATABASE_SILENT)
        try:
            await self._moment(0.3)
        finally:
            proxy.cut()
            proxy.resume()

    async def _lose_reply(self) -> None:
        """Wait for a COMMIT and cut its connection when the server answers."""
        proxy = self._proxy("database")
        lost = asyncio.Event()
        word = re.compile(rb"(?<![A-Za-z_])COMMIT(?![A-Za-z_])")
        asked: set[Any] = set()

        def note(data: bytes) -> Verdict:
            if not lost.is_set() and word.search(data):
                asked.add(proxy._speaking)
            return "pass"

        def lose(data: bytes) -> Verdict:
            if lost.is_set() or proxy._speaking not in asked:
                return "pass"
            lost.set()
            self._log.fault(REPLY_LOST)
            return "cut"

        proxy.on_client_data(note)
        proxy.on_server_data(lose)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await lost.wait()
        finally:
            proxy.on_client_data()
            proxy.on_server_data()

    def _proxy(self, name: str) -> TCPProxy:
        return self._random.choice([proxy for (_, to), proxy in self._arena.proxies.items() if to == name])

    # --- the database

    async def _terminate(self) -> None:
        chosen = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        chosen += "AND backend_type = 'client backend' ORDER BY state = 'idle', random() LIMIT 2"
        if await self._ask(f"SELECT pg_terminate_backend(pid) FROM ({chosen}) AS x"):
            self._log.fault(TERMINATED)

    async def _crash(self) -> None:
        server = self._arena.server
        assert server is not None
        self._log.fault(CRASH)
        if isinstance(server, PrivatePostgres) and self._random.random() < 0.7:
            await self._for_sure(asyncio.to_thread(_crash_backend, server))
        else:
            await self._for_sure(asyncio.to_thread(server.restart, "kill"))

    async def _end_prepared(self) -> None:
        """Commit or roll back transactions that were prepared a moment ago and left behind."""
        while True:
            await self._moment(0.3)
            for gid in await self._prepared():
                await self._end_one(gid)

    async def heal(self) -> None:
        """Finish what was begun, and roll back what is still prepared: it holds locks."""
        await asyncio.gather(*self._healing)
        if PREPARED in self.counts:
            for gid in await self._prepared():
                await self._ask(f"ROLLBACK PREPARED '{gid}'")

    async def _prepared(self) -> list[str]:
        sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        return [gid for (gid,) in await self._ask(sql) or ()]

    async def _end_one(self, gid: str) -> None:
        tag = int(gid.partition("-")[2])
        wrote = self._checker.prepared.get(tag)
        if wrote is None:
            return  # its record has not come yet
        commit = self._random.random() < 0.7
        if commit:
            self._log.append(Kind.SENT, wrote, key=tag)
        if await self._ask(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{gid}'") is not None:
            self._log.append(Kind.ACKED if commit else Kind.UNDONE, key=tag)

    async def _for_sure(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody may interrupt."""
        task = asyncio.ensure_future(work)
        self._healing.add(task)
        task.add_done_callback(self._healing.discard)
        await asyncio.shield(task)

    async def _ask(self, sql: str) -> list[Any] | None:
        """Return the rows; None if the database is down."""
        try:
            return await asyncio.to_thread(look, self._arena.direct_url, sql)
        except SQLAlchemyError:
            return None

    async def _moment(self, longest: float) -> None:
        await asyncio.sleep(self._random.random() * longest)


def _crash_backend(server: PrivatePostgres) -> None:
    """Kill one backend: the server ends all others and recovers from its log, as after any crash."""
    from tests.private import wait_until

    workers = [child for child in psutil.Process(server.pid).children() if _is_client(child)]
    victim = random.choice(workers) if workers else None
    if victim is None or not _kill(victim):
        server.restart("kill")
        return
    wait_until(lambda: not victim.is_running(), "the backend is gone")
    wait_until(lambda: _answers(server), "PostgreSQL has recovered")


def _kill(process: psutil.Process) -> bool:
    """Kill it, unless it has ended meanwhile."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _is_client(process: psutil.Process) -> bool:
    try:
        return "127.0.0.1" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _answers(server: PrivatePostgres) -> bool:
    try:
        return bool(look(server.url(), "SELECT 1"))
    except SQLAlchemyError:
        return False


def names_for(database: str) -> tuple[str, ...]:
    """Return what can go wrong outside of the workers with a database."""
    redis_and_edges = (FLUSH, OLD_DATA, STOPPED, FULL, KILLED_CLIENTS, REDIS_CUT, REDIS_SILENT, DATABASE_CUT)
    common = (*redis_and_edges, DATABASE_SILENT, REPLY_LOST, CRASH)
    return (*common, TERMINATED, PREPARED) if database == POSTGRES else common
