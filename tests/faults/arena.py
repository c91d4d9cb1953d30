"""
A database of one test, seen through its server's own books: counters, sessions, locks.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.private import wait_until
from tests.servers import look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from akv.store.client import Store
    from tests.backends import Dialect
    from tests.private import PrivateServer

ROOT = Path(__file__).parent.parent.parent
BOUND = 30.0
"""Seconds after which a wait is a hang."""

_DEADLOCKS = {
    "postgresql": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
    "mariadb": "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'INNODB_DEADLOCKS'",
}
SESSIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
_WAITING = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT t.trx_mysql_thread_id FROM information_schema.innodb_trx t "
    "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
    "WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()",
}
_KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


@dataclass(frozen=True)
class Arena:
    """
    A database that nobody else uses.

    Attributes:
        name: For the table of counters.
        dialect: "postgresql" or "mariadb".
        url: Through the async driver under test.
    """

    name: str
    dialect: Dialect
    url: str

    def configure(self, **settings: str) -> None:
        """Set PostgreSQL's defaults of the sessions that connect from now on."""
        database = make_url(self.url).database
        for name, value in settings.items():
            look(self.url, f"ALTER DATABASE {database} SET {name} = '{value}'")

    def deadlocks(self) -> int:
        """How many deadlocks the server has counted."""
        return int(look(self.url, _DEADLOCKS[self.dialect])[0][0])

    def sessions(self) -> set[int]:
        """The server's ids of all connections to this database."""
        return {int(number) for (number,) in look(self.url, SESSIONS[self.dialect])}

    def waiting(self) -> set[int]:
        """The server's ids of the connections that wait for a lock."""
        return {int(number) for (number,) in look(self.url, _WAITING[self.dialect])}

    def kill(self, session: int) -> None:
        """End a connection from the server's side."""
        look(self.url, _KILL[self.dialect].format(session))

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = BOUND) -> None:
        """Wait on the server's books while the event loop goes on."""
        await asyncio.to_thread(wait_until, condition, what, seconds)

    @asynccontextmanager
    async def foreigner(self, *settings: str) -> AsyncIterator[AsyncConnection]:
        """Open a connection that is none of the store's; its transaction begins with the first statement."""
        engine = create_async_engine(self.url, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                for setting in settings:
                    await connection.exec_driver_sql(setting)
                await connection.commit()
                yield connection
        finally:
            await engine.dispose()


async def lock_row(connection: AsyncConnection, table: str, key: str) -> None:
    """Lock the row of *key* in the transaction of *connection*."""
    quote = "`" if connection.dialect.name != "postgresql" else '"'
    wanted = text(f"SELECT 1 FROM {quote}{table}{quote} WHERE {quote}key{quote} = :key FOR UPDATE")
    assert (await connection.execute(wanted, {"key": key})).all(), f"no row of {key!r} to lock"


def sqlite_threads() -> set[int]:
    """Return the numbers of the threads that serve connections to SQLite, each one of its own."""
    found = (re.match(r"Thread-(\d+) \(_connection_worker", thread.name) for thread in threading.enumerate())
    return {int(match[1]) for match in found if match}


async def settled(future: Awaitable[Any]) -> Any:
    """Await something that must not hang; return its result, or its exception."""
    return (await asyncio.wait_for(asyncio.gather(future, return_exceptions=True), BOUND))[0]


async def soon(future: Awaitable[Any]) -> Any:
    """Await something that must not hang."""
    return await asyncio.wait_for(future, BOUND)


def checked_out(store: Store) -> int:
    """How many connections of the store's pools are in use, of all its event loops; a lane's idle ones are not."""
    return sum(
        sum(in_use(engine.sync_engine.pool) for engine in runtime._engines.owned) - len(runtime._sessions)
        for runtime in store._runtimes
    )


def in_use(pool: Any) -> int:
    """How many connections of a pool are checked out."""
    return int(pool.checkedout())


async def at_rest(store: Store) -> None:
    """Wait until the store has nothing on its way on this event loop, and no connection in use."""

    async def rest() -> None:
        while checked_out(store) or any(runtime._calls for runtime in store._runtimes):
            await asyncio.sleep(0.001)

    await asyncio.wait_for(rest(), BOUND)


async def run_program(source: str, *arguments: str, seconds: float = BOUND) -> str:
    """
    Run Python source in a process of its own, warnings about resources being errors, and return what it printed.

    It must end by itself within the bound, successfully, and say nothing on stderr.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "always::ResourceWarning", "-c", source, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        raise AssertionError(f"the program had not ended after {seconds} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert (process.returncode, err.decode()) == (0, ""), out.decode() + err.decode()
    return out.decode()


async def count_lines(server: PrivateServer, pattern: str) -> int:
    """How many lines of a server's log match."""
    path = server.folder.parent / f"{server.folder.name}.log"
    return len(re.findall(pattern, await asyncio.to_thread(path.read_text, errors="replace")))
