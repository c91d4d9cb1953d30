"""
The outbox: changes that were committed while Redis could not be reached, kept in the database beside the data.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from secrets import token_hex
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.errors import ConfigurationError
from akv.tokens.connections import OwnConnections
from akv.tokens.tables import ensure, outbox_table

if TYPE_CHECKING:
    from akv.tokens.drivers import Driver

_PUT: Final = {
    "postgresql": "($1, $2, $3, now() AT TIME ZONE 'utc')",
    "mysql": "(%s, %s, %s, UTC_TIMESTAMP())",
    "sqlite": "(?, ?, ?, CURRENT_TIMESTAMP)",
}
_SCHEMA: Final = {
    "postgresql": "SELECT nspname FROM pg_namespace"
    " WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('akv_outbox'))",
    "mysql": "SELECT DATABASE()",
    "sqlite": "SELECT 'main'",
}


class Parcel(NamedTuple):
    """
    The changes of one transaction.

    Attributes:
        id: Never used twice, so that whoever deletes it late deletes nothing else; begins with the time.
        identifiers: What changed.
    """

    id: str
    identifiers: tuple[str, ...]


class Outbox:
    """
    Changes on their way to Redis.

    The writer puts them there in its own transaction; any process takes them,
    bumps, and only then deletes them. Several that take the same bump twice,
    which is harmless. Those of other namespaces are neither taken nor deleted:
    a bump here says nothing there.
    """

    def __init__(self, engine: Engine, *, namespace: str = "akv", create_tables: bool = True) -> None:
        """
        Args:
            engine: Lends its settings; its pool is never used.
            namespace: Of the tokens that are to change.
            create_tables: Whether to create ``akv_outbox`` where it is missing.

        Guarantees:
            No I/O.
        """
        self._own = OwnConnections(engine)
        self._namespace = namespace
        self._create_tables = create_tables
        self._table: str | None = None

    async def prepare(self) -> str:
        """
        Create the table where it is missing, before the first transaction that may need it.

        Returns:
            The table's name, quoted and qualified.

        Raises:
            ConfigurationError: It is missing, and cannot be created, or lacks a column; says the remedy.
            sqlalchemy.exc.DBAPIError: The database cannot be asked.
        """
        if self._table is None:
            self._table = await self._own.run(self._prepare)
        return self._table

    async def put(self, driver: Driver, identifiers: Collection[str]) -> None:
        """
        Keep *identifiers* in the transaction that is open on *driver*.

        Raises:
            Exception: The driver's own, untranslated; the transaction must not commit.
        """
        table = await self.prepare()
        sql = f"INSERT INTO {table} (namespace, id, identifiers, created) VALUES {_PUT[driver.dialect]}"
        try:
            await driver.fetch(sql, self._namespace, _new_id(), json.dumps(sorted(identifiers)))
        except BaseException:
            self._table = None  # it may be gone
            raise

    async def take(self, limit: int = 100) -> list[Parcel]:
        """
        Read what is committed, the oldest first as far as clocks agree, and leave it there.

        Args:
            limit: Of how many transactions at most.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be asked.
        """
        table = await self.prepare()
        sql = text(f"SELECT id, identifiers FROM {table} WHERE namespace = :namespace ORDER BY id LIMIT :limit")
        rows = await self._own.run(lambda connection: _fetch(connection, sql, namespace=self._namespace, limit=limit))
        return [Parcel(id_, tuple(json.loads(identifiers))) for id_, identifiers in rows]

    async def delete(self, ids: Collection[str]) -> None:
        """
        Delete parcels after their identifiers were bumped; what is gone already is no error.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be asked.
        """
        if ids:
            table = await self.prepare()
            await self._own.run(lambda connection: _delete(connection, table, self._namespace, sorted(ids)))

    async def aclose(self) -> None:
        """End what is on its way; idempotent."""
        await self._own.aclose()

    async def _prepare(self, connection: AsyncConnection) -> str:
        await ensure(connection, outbox_table, create=self._create_tables)
        await connection.run_sync(_check_columns, self._namespace)
        schema = (await connection.execute(text(_SCHEMA[_family(connection)]))).scalar_one()
        quote = connection.dialect.identifier_preparer.quote_identifier
        return f"{quote(schema)}.{quote(outbox_table.name)}"


def _new_id() -> str:
    """Return an id that sorts by time, so that the index that finds the rows of a namespace finds the oldest first."""
    return f"{time_ns() // 1_000_000:012x}{token_hex(10)}"


def _check_columns(connection: Connection, namespace: str) -> None:
    """Refuse a table of a version that knew no namespaces; only people know whose rows it holds."""
    column = outbox_table.c.namespace
    if column.name not in {found["name"] for found in inspect(connection).get_columns(outbox_table.name)}:
        type_, whose = column.type.compile(connection.dialect), namespace.replace("'", "''")
        raise ConfigurationError(
            f"the table {outbox_table.name} was made by an earlier version of akv. If it is empty, drop it; else give "
            f"its rows the namespace that they are of: ALTER TABLE {outbox_table.name} ADD COLUMN "
            f"{column.name} {type_} DEFAULT '{whose}' NOT NULL"
        )


async def _delete(connection: AsyncConnection, table: str, namespace: str, ids: list[str]) -> None:
    if _family(connection) == "mysql":
        from akv.tokens.gates.mariadb import delete_rows

        return await delete_rows(connection, table, [{"namespace": namespace, "id": one} for one in ids])
    which = "namespace = :namespace AND id IN :ids"
    where = which
    if _family(connection) == "postgresql":  # what another one deletes just now need not be waited for
        taken = f"SELECT id FROM {table} WHERE {which} ORDER BY id FOR UPDATE SKIP LOCKED"
        where = f"namespace = :namespace AND id IN ({taken})"
    sql = text(f"DELETE FROM {table} WHERE {where}").bindparams(bindparam("ids", expanding=True))
    await connection.execute(sql, {"namespace": namespace, "ids": ids})
    return None


async def _fetch(connection: AsyncConnection, statement: Any, **parameters: Any) -> Any:
    return (await connection.execute(statement, parameters)).all()


def _family(connection: AsyncConnection) -> str:
    name = connection.dialect.name
    return "mysql" if name == "mariadb" else name
