"""
The gate of SQLite: there is one writer, and it holds the write lock until it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.errors import ConfigurationError
from akv.tokens.connections import OwnConnections
from akv.tokens.gates import Pauses, fetch_outside
from akv.tokens.tables import ensure, gate_table

if TYPE_CHECKING:
    from akv.tokens.drivers import Driver

_PATIENCE: Final = 50
"""Milliseconds that one question waits for the writer."""

_TAKE_WRITE_LOCK: Final = "DELETE FROM main.akv_gate WHERE false"
"""Changes nothing and writes no page, but begins to write: into main, if only an attached file was written yet."""

_IDENTITY: Final = "SELECT id FROM main.akv_gate"


class SQLiteGate:
    """
    A transaction that entered holds the write lock of the file.

    Whoever gets that lock knows that nobody else is inside, whatever the marks.
    """

    def __init__(self, engine: Engine, *, create_tables: bool) -> None:
        """
        Args:
            engine: Lends its settings.
            create_tables: Whether to create ``akv_gate``, which names the file, where it is missing.

        Raises:
            ConfigurationError: The database is in memory.
        """
        if _is_in_memory(engine.url):
            raise ConfigurationError(
                "an SQLite database in memory belongs to one connection, and nobody else can ask it: use a file"
            )
        self._own = OwnConnections(engine)
        self._create_tables = create_tables

    async def enter(self, driver: Driver) -> str:
        """Hold the write lock; see :class:`Gate`."""
        try:
            await driver.fetch(_TAKE_WRITE_LOCK)
        except sqlite3.OperationalError as error:
            if not _is_missing(error) or not self._create_tables:
                raise
            await driver.fetch(f"CREATE TABLE IF NOT EXISTS main.{gate_table.name} (id VARCHAR(32) PRIMARY KEY)")
        return token_hex(16)

    async def ended(self, marks: Collection[str]) -> set[str]:
        """See :class:`Gate`: all or none."""
        if not marks or not await self._own.run(_is_nobody_writing):
            return set()
        return set(marks)

    async def drain(self) -> None:
        """See :class:`Gate`."""
        pauses = Pauses("the transaction that holds the write lock of the SQLite file")
        while not await self._own.run(_is_nobody_writing):
            await pauses.take()

    async def fingerprint(self, driver: Driver | None = None) -> str:
        """See :class:`Gate`: a random id in the file itself."""
        identity = await self._own.run(self._identify)  # always asked: a file may be replaced by another
        if driver is not None:
            ((identity,),) = await fetch_outside(driver, _IDENTITY) or [("",)]
        return str(identity)

    async def aclose(self) -> None:
        """See :class:`Gate`."""
        await self._own.aclose()

    async def _identify(self, connection: AsyncConnection) -> str:
        await ensure(connection, gate_table, create=self._create_tables)
        (identity,) = [*await connection.scalars(text(_IDENTITY))] or [None]
        if identity is None:
            only_once = text("INSERT INTO main.akv_gate (id) SELECT :id WHERE NOT EXISTS (SELECT 1 FROM main.akv_gate)")
            await connection.execute(only_once, {"id": token_hex(16)})
            identity = await connection.scalar(text(_IDENTITY))
        return str(identity)


async def _is_nobody_writing(connection: AsyncConnection) -> bool:
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute(f"PRAGMA busy_timeout = {_PATIENCE}")
    if driver.in_transaction:
        await driver.execute("ROLLBACK")  # the driver has opened it by itself (autocommit=False)
    try:
        # In one call, so that the lock is given back whatever happens to us meanwhile.
        await driver.executescript("BEGIN IMMEDIATE; ROLLBACK")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
    return True


def _is_missing(error: sqlite3.OperationalError) -> bool:
    return "no such table" in str(error)


def _is_in_memory(url: URL) -> bool:
    database = url.database or ""
    return database in ("", ":memory:") or ":memory:" in database or url.query.get("mode") == "memory"
