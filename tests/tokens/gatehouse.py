"""
A database with a gate, seen through one driver, and transactions that go through it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from akv.tokens.drivers import Driver
from akv.tokens.gates import Gate, gate_for
from tests import backends
from tests.faults.arena import BOUND, SESSIONS
from tests.private import Absent
from tests.servers import absent, connect, look

if TYPE_CHECKING:
    from tests.servers import Session

T = TypeVar("T")
ROOT = Path(__file__).parents[2]

AIOMYSQL = "mariadb-aiomysql"
EVERYWHERE = [*backends.select(exclude=("sqlite-memory",)), AIOMYSQL]
ON_SERVERS = [name for name in EVERYWHERE if not name.startswith("sqlite")]
ON_POSTGRES = [name for name in EVERYWHERE if name.startswith("postgres")]
ON_MARIADB = [name for name in EVERYWHERE if name.startswith("mariadb")]

KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}", "mariadb": "KILL {}"}
_WHO = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()", "mariadb": "SELECT CONNECTION_ID()"}


class House:
    """
    Attributes:
        url: Through the driver.
        engine: The application's.
        gate: Of that engine.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.engine = create_async_engine(url, pool_pre_ping=True)
        self.gate = gate_for(self.engine.sync_engine, **options)

    @property
    def dialect(self) -> str:
        return self.engine.dialect.name

    async def create(self) -> None:
        """Make a table to write into, and what the gate needs."""
        async with self.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS things (n INTEGER PRIMARY KEY)"))
        await self.gate.fingerprint()

    async def close(self) -> None:
        await self.gate.aclose()
        await self.engine.dispose()

    @asynccontextmanager
    async def writer(self, n: int, engine: AsyncEngine | None = None) -> AsyncIterator[Writer]:
        """Open a transaction that has inserted *n*; what is left of it is rolled back."""
        async with (engine or self.engine).connect() as connection:
            await connection.execute(text("INSERT INTO things (n) VALUES (:n)"), {"n": n})
            yield Writer(self.gate, connection)

    async def numbers(self) -> set[int]:
        """What others see."""
        async with self.engine.connect() as connection:
            return set(await connection.scalars(text("SELECT n FROM things")))

    def sessions(self) -> set[int]:
        """The server's ids of all connections to this database."""
        return {int(number) for (number,) in look(self.url, SESSIONS["postgresql" if self.is_postgres else "mariadb"])}

    @property
    def is_postgres(self) -> bool:
        return self.dialect == "postgresql"

    def kill(self, session: int) -> None:
        """End a connection from the server's side."""
        look(self.url, KILL[self.dialect].format(session))


class Writer:
    """A transaction that is open."""

    def __init__(self, gate: Gate, connection: AsyncConnection) -> None:
        self._gate = gate
        self.connection = connection

    @property
    def driver(self) -> Driver:
        assert self.connection.sync_connection is not None
        return Driver(self.connection.sync_connection)

    async def enter(self) -> str:
        return await self._gate.enter(self.driver)

    async def session(self) -> int:
        """The server's id of the connection; SQLite has none."""
        if self.connection.dialect.name == "sqlite":
            return 0
        return int(await self.connection.scalar(text(_WHO[self.connection.dialect.name])))


def url_of(name: str, servers: Session, folder: Path, *, fresh: bool = False) -> str:
    """Return the URL of the session's database, or of a new one; skip where there is no server."""
    if name == AIOMYSQL:
        pytest.importorskip("aiomysql")
        return url_of("mariadb", servers, folder, fresh=fresh).replace("+asyncmy", "+aiomysql")
    try:
        backend = backends.catalogue()[name](servers, folder)
    except Absent as reason:
        absent(str(reason))
    return backend.fresh_url() if fresh else backend.url


@asynccontextmanager
async def open_house(url: str) -> AsyncIterator[House]:
    """A house in a database that others use later."""
    house = House(url)
    await house.create()
    try:
        yield house
    finally:
        await house.close()
        if house.dialect != "sqlite":
            drop_tables(url)


def drop_tables(url: str) -> None:
    """Drop what a test made; a transaction that it left open is an error, not a wait."""
    with connect(url) as connection:
        is_postgres = connection.dialect.name == "postgresql"
        connection.exec_driver_sql("SET lock_timeout = '5s'" if is_postgres else "SET lock_wait_timeout = 5")
        for name in ("things", "akv_gate", "akv_outbox"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


async def soon(future: Awaitable[T]) -> T:
    """Await something that must not hang."""
    return await asyncio.wait_for(future, BOUND)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so, within a bound."""

    async def ask() -> None:
        while not await condition():
            await asyncio.sleep(0.005)

    await soon(ask())


async def until_ended(gate: Gate, mark: str) -> None:
    async def has_ended() -> bool:
        return mark in await gate.ended([mark])

    await until(has_ended)


class Questions:
    """Counts what a gate asks its database, so that a test can tell that a drain waits."""

    def __init__(self, gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = gate._own.run
        self._asked = 0
        monkeypatch.setattr(gate._own, "run", self._counted)

    async def several(self) -> None:
        """Wait until the gate has asked three more times."""
        before = self._asked

        async def enough() -> bool:
            return self._asked >= before + 3

        await until(enough)

    async def _counted(self, work: Any) -> Any:
        self._asked += 1
        return await self._run(work)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module of these tests in a process of its own, which is gone afterwards, with all that it has started."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            os.killpg(started.pid, signal.SIGKILL)
            await started.wait()
