"""
The hot statements on the driver itself: one hop between threads, or one round trip, without SQLAlchemy's cursor.

Only for connections of ours in AUTOCOMMIT: elsewhere SQLAlchemy has yet to say
BEGIN when a statement comes, and the driver would run ahead of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import ClauseElement, Connection, Dialect, Table
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

from akv.store.operations import Pair, Record, Row
from akv.store.statements.base import Traits, by_pair
from akv.store.statements.postgres import PostgresStatements, arrays, record_arrays
from akv.store.statements.sqlite import SQLiteStatements, as_array, as_json, placeholders, stored_values

T = TypeVar("T")


class DirectPostgres(PostgresStatements):
    """PostgreSQL by asyncpg."""

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        self._one_sql, self._one_names = compiled(self._one, dialect)
        self._many_sql, self._many_names = compiled(self._many, dialect)
        self._of_one_tag_sql, self._of_one_tag_names = compiled(self._of_one_tag, dialect)
        self._upsert_sql, self._upsert_names = compiled(self._upsert, dialect)

    def read_one(self, conn: Connection, pair: Pair) -> dict[Pair, Row]:
        """Read one row."""
        named = {"key": pair[0], "tag": pair[1]}
        return self._fetch(conn, self._one_sql, [named[name] for name in self._one_names])

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        named: dict[str, Any] = arrays(pairs)
        tags = set(named["tags"])
        if len(tags) > 1:
            return self._fetch(conn, self._many_sql, [named[name] for name in self._many_names])
        # Almost every batch is of one tag; asyncpg takes a look at each element of an array.
        named["tag"] = tags.pop()
        return self._fetch(conn, self._of_one_tag_sql, [named[name] for name in self._of_one_tag_names])

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        named = record_arrays(records)
        parameters = [named[name] for name in self._upsert_names]
        through(conn, self._upsert_sql, lambda driver: driver.execute(self._upsert_sql, *parameters))

    def _fetch(self, conn: Connection, sql: str, parameters: list[Any]) -> dict[Pair, Row]:
        return by_pair(through(conn, sql, lambda driver: driver.fetch(sql, *parameters)))


class DirectSQLite(SQLiteStatements):
    """SQLite by aiosqlite: one hop to its thread and back, where a cursor takes four."""

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        self._one_sql, self._one_names = compiled(self._one, dialect)
        self._many_sql, _ = compiled(self._many, dialect)
        self._of_one_tag_sql, self._of_one_tag_names = compiled(self._of_one_tag, dialect)

    def read_one(self, conn: Connection, pair: Pair) -> dict[Pair, Row]:
        """Read one row."""
        named = {"key": pair[0], "tag": pair[1]}
        return _parsed(self._fetch(conn, self._one_sql, [named[name] for name in self._one_names]))

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        tags = {tag for _, tag in pairs}
        if len(tags) > 1:
            return _parsed(self._fetch(conn, self._many_sql, list(as_json(pairs).values())))
        named = {"keys": as_array([key for key, _ in pairs]), "tag": tags.pop()}
        return _parsed(self._fetch(conn, self._of_one_tag_sql, [named[name] for name in self._of_one_tag_names]))

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        sql = self._insert + placeholders(len(records)) + self._replace
        self._fetch(conn, sql, stored_values(records))

    def _fetch(self, conn: Connection, sql: str, parameters: list[Any]) -> Iterable[Any]:
        return through(conn, sql, lambda driver: driver.execute_fetchall(sql, parameters))


def through(conn: Connection, sql: str, call: Callable[[Any], Awaitable[T]]) -> T:
    """
    Run a call of the driver's own.

    Args:
        conn: A connection of ours in AUTOCOMMIT.
        sql: For the error.
        call: Gets the driver's connection.

    Raises:
        DBAPIError: From the driver's exception, as SQLAlchemy would have raised it.

    Guarantees:
        A connection that broke, or on which the call was cancelled, does not go back to the pool.
    """
    adapted = cast("AsyncAdapt_dbapi_connection", conn.connection.dbapi_connection)
    try:
        return adapted.run_async(call)
    except Exception as error:
        is_lost = _is_lost(adapted.driver_connection, error)
        if is_lost:
            conn.invalidate(error)
        raise DBAPIError(sql, None, error, connection_invalidated=is_lost) from error
    except BaseException:
        conn.invalidate()
        raise


def _is_lost(driver: Any, error: Exception) -> bool:
    is_closed = getattr(driver, "is_closed", None)
    return isinstance(error, OSError | EOFError) or (is_closed is not None and bool(is_closed()))


def compiled(statement: ClauseElement, dialect: Dialect) -> tuple[str, list[str]]:
    """Write a statement as the driver wants it, and name its parameters in their order."""
    text = cast("SQLCompiler", statement.compile(dialect=dialect))
    return str(text), list(text.positiontup or ())


def _parsed(rows: Iterable[Any]) -> dict[Pair, Row]:
    parse = datetime.fromisoformat
    return {(key, tag): Row(value, parse(end) if end else None) for key, tag, value, end in rows}
