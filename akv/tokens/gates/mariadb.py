"""
The gate of MariaDB: a row for each transaction, which READ UNCOMMITTED shows before READ COMMITTED does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from secrets import randbelow, token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Engine, bindparam, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.errors import ConfigurationError
from akv.tokens.connections import OwnConnections
from akv.tokens.gates import fetch_outside, wait_until_ended
from akv.tokens.tables import ensure, gate_table

if TYPE_CHECKING:
    from akv.tokens.drivers import Driver

logger = logging.getLogger("akv")

_COMMITTED: Final = "READ COMMITTED"
_UNCOMMITTED: Final = "READ UNCOMMITTED"
_SERVER: Final = "CONCAT(@@server_uid, '/', @@server_id)"
"""Two servers in containers may have the same server_uid, which is made of the network address and the port."""

_CLEAN_EVERY: Final = 256
"""One of so many transactions has old rows deleted, whatever process it runs in."""

_CLEANED_AT_ONCE: Final = 1000
_UNKNOWN_VARIABLE: Final = 1193


class _Place(NamedTuple):
    """
    Where the rows are.

    Attributes:
        server: Identity of the server.
        schema: Name of the database.
        table: The table, quoted and qualified.
        logs_statements: Whether a statement must not mention what differs between servers.
    """

    server: str
    schema: str
    table: str
    logs_statements: bool


class MariaDBGate:
    """
    A transaction that entered has inserted a row with its mark.

    While it can commit, the row is visible at READ UNCOMMITTED and not at READ
    COMMITTED; afterwards it is visible at both, or, rolled back or deleted, at
    none. Nothing waits for a lock. All of it holds on one server only.
    """

    def __init__(self, engine: Engine, *, create_tables: bool) -> None:
        """
        Args:
            engine: Lends its settings.
            create_tables: Whether to create ``akv_gate`` where it is missing.
        """
        self._own = OwnConnections(engine)
        self._create_tables = create_tables
        self._place: _Place | None = None
        self._is_there = False
        self._is_closed = False

    async def enter(self, driver: Driver) -> str:
        """Insert a row; see :class:`Gate`."""
        place = await self._ready()
        mark = token_hex(16)
        try:
            self._check(place, await self._insert(driver, place, mark))
        except BaseException:
            self._is_there = False  # perhaps
            raise
        if not randbelow(_CLEAN_EVERY) and not self._is_closed:
            self._own.start(self._clean, name="akv deletes old rows of akv_gate").add_done_callback(_log_failure)
        return mark

    async def ended(self, marks: Collection[str]) -> set[str]:
        """See :class:`Gate`."""
        if not marks:
            return set()
        place = await self._ready()
        return await self._own.run(lambda connection: self._ended(connection, place, set(marks)))

    async def drain(self) -> None:
        """See :class:`Gate`."""
        place = await self._ready()
        await wait_until_ended(self, await self._own.run(lambda connection: self._entered(connection, place)))

    async def fingerprint(self, driver: Driver | None = None) -> str:
        """See :class:`Gate`: the server's identity and the database's name."""
        place = await self._ready()
        server = place.server
        if driver is not None:
            ((server,),) = await fetch_outside(driver, f"SELECT {_SERVER}")
        return f"{server}/{place.schema}"

    async def aclose(self) -> None:
        """See :class:`Gate`."""
        self._is_closed = True
        await self._own.aclose()

    # --- the rows ------------------------------------------------------------------------------------------------

    async def _insert(self, driver: Driver, place: _Place, mark: str) -> str:
        """Insert the row of *mark*, and return which server it is on."""
        insert = f"INSERT INTO {place.table} (id) VALUES (%s)"
        if place.logs_statements:
            await driver.fetch(insert, mark)
            ((server,),) = await driver.fetch(f"SELECT {_SERVER}")
        else:
            ((server,),) = await driver.fetch(f"{insert} RETURNING {_SERVER}", mark)
        return str(server)

    async def _ended(self, connection: AsyncConnection, place: _Place, marks: set[str]) -> set[str]:
        chosen = "WHERE id IN :marks"
        over = await self._visible(connection, place, _COMMITTED, chosen, marks=sorted(marks))
        left = marks - over
        if left:
            over |= left - await self._visible(connection, place, _UNCOMMITTED, chosen, marks=sorted(left))
        return over

    async def _entered(self, connection: AsyncConnection, place: _Place) -> set[str]:
        inserted = await self._visible(connection, place, _UNCOMMITTED)
        return inserted - await self._visible(connection, place, _COMMITTED)

    async def _visible(
        self, connection: AsyncConnection, place: _Place, isolation: str, which: str = "", **parameters: Any
    ) -> set[str]:
        """Return the marks that have a row at *isolation*, of those *which* a clause chooses."""
        await connection.execute(text(f"SET TRANSACTION ISOLATION LEVEL {isolation}"))
        # One statement, because something between us and the server may send two to different ones.
        statement = text(f"SELECT {_SERVER} UNION ALL (SELECT id FROM {place.table} {which})")
        if parameters:
            statement = statement.bindparams(*(bindparam(name, expanding=True) for name in parameters))
        found = set(await connection.scalars(statement, parameters))
        servers = {row for row in found if "/" in row}
        self._check(place, *servers)
        return found - servers

    async def _clean(self, connection: AsyncConnection) -> None:
        """Delete rows of transactions that have committed: a row that is absent means the same."""
        place = await self._ready()
        old = await self._visible(connection, place, _COMMITTED, f"LIMIT {_CLEANED_AT_ONCE}")
        await delete_rows(connection, place.table, [{"id": one} for one in sorted(old)])

    # --- the server ----------------------------------------------------------------------------------------------

    async def _ready(self) -> _Place:
        if self._place is None or not self._is_there:
            place = await self._own.run(self._prepare)
            self._check(self._place or place, place.server)  # a server is never exchanged: others ask the first one
            self._place = place
            self._is_there = True
        return self._place

    async def _prepare(self, connection: AsyncConnection) -> _Place:
        server, schema = await _examine(connection)
        await ensure(connection, gate_table, create=self._create_tables)
        await _check_engine(connection)
        quote = connection.dialect.identifier_preparer.quote_identifier
        logs_statements = await _scalar(connection, "SELECT @@global.log_bin AND @@global.binlog_format = 'STATEMENT'")
        return _Place(server, schema, f"{quote(schema)}.{quote(gate_table.name)}", bool(logs_statements))

    def _check(self, place: _Place, server: str) -> None:
        if server != place.server:
            raise ConfigurationError(
                f"this MariaDB server is {server}, another one than before ({place.server}): what a transaction may "
                "still do, only its own server knows; bind an engine that always reaches the same one"
            )


async def delete_rows(connection: AsyncConnection, table: str, keys: Sequence[Mapping[str, str]]) -> None:
    """
    Delete rows of a table of ours one by one, in one transaction.

    Args:
        connection: One of ours, in AUTOCOMMIT.
        table: Its name as in SQL.
        keys: The primary key of each row, all columns of it.

    Guarantees:
        Locks no row but these and no gap, so that nobody who inserts waits.
    """
    if not keys:
        return
    where = " AND ".join(f"{column} = :{column}" for column in keys[0])
    await connection.execute(text(f"SET TRANSACTION ISOLATION LEVEL {_COMMITTED}"))
    await connection.execute(text("START TRANSACTION"))
    # An IN of many would be a scan of a small table, which waits for rows that are not committed.
    await connection.execute(text(f"DELETE FROM {table} WHERE {where}"), keys)
    await connection.execute(text("COMMIT"))


async def _examine(connection: AsyncConnection) -> tuple[str, str]:
    """
    Return the identity of the server and the name of the database.

    Raises:
        ConfigurationError: Its transactions cannot be followed.
    """
    version = await _scalar(connection, "SELECT VERSION()")
    if "MariaDB" not in version:
        raise ConfigurationError(f"akv follows transactions of MariaDB, not of MySQL ({version})")
    if await _scalar(connection, "SELECT @@global.wsrep_on"):
        raise ConfigurationError(
            "this is a Galera cluster, where no node knows what runs on the others: use a single primary, or PostgreSQL"
        )
    schema = await _scalar(connection, "SELECT DATABASE()")
    if schema is None:
        raise ConfigurationError("name a database in the URL of the engine: the table akv_gate has to be somewhere")
    try:
        return str(await _scalar(connection, f"SELECT {_SERVER}")), str(schema)
    except sa_exc.DBAPIError as error:
        if _UNKNOWN_VARIABLE in getattr(error.orig, "args", ()):
            raise ConfigurationError(f"MariaDB {version} has no server_uid: take a newer release of it") from error
        raise


async def _check_engine(connection: AsyncConnection) -> None:
    engine = await _scalar(
        connection,
        "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'akv_gate'",
    )
    if engine != "InnoDB":
        raise ConfigurationError(
            f"the table akv_gate is of the engine {engine}, which has no transactions: ALTER TABLE akv_gate "
            "ENGINE=InnoDB"
        )


async def _scalar(connection: AsyncConnection, sql: str) -> Any:
    return (await connection.execute(text(sql))).scalar()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("old rows of akv_gate stay until the next time: %r", error)
