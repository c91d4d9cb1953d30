"""
The five asynchronous drivers behind one face: what their connections know, and how to ask them beside SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from akv.errors import ConfigurationError

T = TypeVar("T")
Dialect: TypeAlias = Literal["postgresql", "mysql", "sqlite"]

_IN_TRANSACTION: Final = (1, 2, 3)  # libpq: a statement runs; idle inside; failed
_FAILED: Final = 3
_STATEMENT: Final = "(a statement of akv's own, about tokens)"


class Driver:
    """
    The driver's connection beneath a SQLAlchemy connection.

    The properties are read from memory, so listeners may ask for them at any time.
    """

    __slots__ = ("_dbapi", "_dialect", "_driver", "_kind", "_pooled")

    def __init__(self, connection: Connection) -> None:
        """
        Args:
            connection: A connection that is open.

        Raises:
            ConfigurationError: Its driver is none that akv knows.
        """
        self._dialect = connection.dialect
        self._kind = _kind_of(self._dialect.driver)
        pooled: Any = connection.connection
        self._pooled = pooled
        self._dbapi = pooled.dbapi_connection
        self._driver = self._dbapi.driver_connection

    @property
    def dbapi(self) -> Any:
        """The adapted DBAPI connection: what SQLAlchemy holds."""
        return self._dbapi

    @property
    def connection(self) -> Any:
        """The driver's own connection, to be awaited."""
        return self._driver

    @property
    def info(self) -> dict[Any, Any]:
        """What SQLAlchemy keeps beside the connection, as long as that exists."""
        info: dict[Any, Any] = self._pooled.info
        return info

    @property
    def dialect(self) -> Dialect:
        """What kind of database it is; MariaDB is "mysql"."""
        return self._kind.dialect

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await *work* from inside a listener: SQLAlchemy runs those in a greenlet of its own; never nested."""
        result: T = self._dbapi.run_async(lambda _: work)
        return result

    async def fetch(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """
        Run one statement on the driver's own connection, in whatever transaction is open there.

        Args:
            sql: With the placeholders of its database: ``$1`` on PostgreSQL, ``%s`` on MariaDB (there, a literal
                percent sign is doubled if there are arguments), ``?`` on SQLite.
            args: One for each placeholder.

        Returns:
            The rows; none where the statement returns none.

        Raises:
            Exception: The driver's own, untranslated.
        """
        return await self._kind.fetch(self._driver, sql, args)

    async def roll_back(self) -> None:
        """Roll back what is open, so that SQLAlchemy's adapter of the driver knows of it too."""
        await greenlet_spawn(self._dbapi.rollback)

    def invalidate(self) -> None:
        """Keep the connection from ever being used again."""
        if self._pooled.is_valid:
            self._pooled.invalidate()

    @contextmanager
    def raising_as_sqlalchemy(self) -> Iterator[None]:
        """
        Raise errors of the driver as SQLAlchemy would, which is what callers of a session expect.

        Guarantees:
            As in SQLAlchemy, a connection that the database has ended is not used again.
        """
        try:
            yield
        except Exception as error:
            translated = self._translated(error)
            if translated is error:
                raise
            if isinstance(translated, DBAPIError) and translated.connection_invalidated:
                self.invalidate()
            raise translated from error

    def _translated(self, error: Exception) -> Exception:
        adapted, base = self._adapted(error), self._dialect.loaded_dbapi.Error
        if not isinstance(adapted, base):
            return error
        is_lost = self._dialect.is_disconnect(adapted, self._dbapi, None)
        return DBAPIError.instance(
            _STATEMENT, None, adapted, base, connection_invalidated=is_lost, dialect=self._dialect
        )

    def _adapted(self, error: Exception) -> Exception:
        """Return what SQLAlchemy's adapter of the driver makes of an error."""
        adapt = getattr(self._dbapi, "_handle_exception", None)
        if adapt is None:  # psycopg on SQLAlchemy 2.0, whose errors are those of a DBAPI already
            return error
        try:
            adapt(error)
        except Exception as adapted:
            return adapted
        return error

    @property
    def in_transaction(self) -> bool:
        """Whether the database has a transaction open, whatever SQLAlchemy believes; some open it when it is needed."""
        return self._kind.in_transaction(self._driver)

    @property
    def is_idle(self) -> bool:
        """
        Whether the database has said that no transaction is open: after COMMIT was sent, that it has ended.

        Not to be asked while anything runs: SQLite says so as soon as it begins to commit.
        """
        return self._kind.is_alive(self._driver) and not self._kind.in_transaction(self._driver)

    @property
    def is_failed(self) -> bool:
        """Whether PostgreSQL has given the transaction up, as far as the driver tells (asyncpg does not)."""
        return self._kind.is_failed(self._driver)

    @property
    def commits_alone(self) -> bool:
        """Whether a statement that ran now would be committed by itself."""
        return not self.in_transaction and self._kind.is_autocommitting(self._dbapi, self._driver)

    @property
    def is_always_in_transaction(self) -> bool:
        """Whether SQLite's driver itself opens a transaction after each one (``autocommit=False`` of Python 3.12)."""
        return self._kind.is_always_in_transaction(self._driver)

    @property
    def rows_changed(self) -> int:
        """
        How many rows SQLite has changed on this connection since it was opened, by triggers and cascades too.

        Elsewhere always 0.
        """
        return self._kind.rows_changed(self._driver)


def is_in_transaction(driver: str, connection: Any) -> bool:
    """Tell whether a driver's own connection has a transaction open, given SQLAlchemy's name of the driver."""
    return _kind_of(driver).in_transaction(connection)


class _Kind(Protocol):
    """What one driver calls the things that all of them have."""

    dialect: Dialect

    async def fetch(self, driver: Any, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]: ...

    def in_transaction(self, driver: Any) -> bool: ...

    def is_alive(self, driver: Any) -> bool: ...

    def is_failed(self, driver: Any) -> bool: ...

    def is_autocommitting(self, dbapi: Any, driver: Any) -> bool: ...

    def is_always_in_transaction(self, driver: Any) -> bool: ...

    def rows_changed(self, driver: Any) -> int: ...


@cache
def _kind_of(driver: str) -> _Kind:
    """
    Return what is known of a driver, by SQLAlchemy's name of it.

    Raises:
        ConfigurationError: Nothing is.
    """
    kinds: dict[str, type[_Kind]] = {
        "asyncpg": _Asyncpg,
        "psycopg": _Psycopg,
        "psycopg_async": _Psycopg,
        "asyncmy": _Asyncmy,
        "aiomysql": _Aiomysql,
        "aiosqlite": _Aiosqlite,
    }
    if driver not in kinds:
        raise ConfigurationError(
            f"akv does not know the driver {driver!r}: use asyncpg or psycopg, asyncmy or aiomysql, or aiosqlite"
        )
    return kinds[driver]()


class _Server:
    """What drivers of database servers have in common."""

    def is_failed(self, driver: Any) -> bool:
        return False

    def is_always_in_transaction(self, driver: Any) -> bool:
        return False

    def rows_changed(self, driver: Any) -> int:
        return 0


class _Asyncpg(_Server):
    dialect: Dialect = "postgresql"

    async def fetch(self, driver: Any, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await driver.fetch(sql, *args)]

    def in_transaction(self, driver: Any) -> bool:
        return bool(driver.is_in_transaction())

    def is_alive(self, driver: Any) -> bool:
        return not driver.is_closed()

    def is_autocommitting(self, dbapi: Any, driver: Any) -> bool:
        return bool(dbapi.autocommit)


class _Psycopg(_Server):
    dialect: Dialect = "postgresql"

    async def fetch(self, driver: Any, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        from psycopg import AsyncRawCursor
        from psycopg.rows import tuple_row

        async with AsyncRawCursor(driver, row_factory=tuple_row) as cursor:
            await cursor.execute(sql, args or None)
            return await cursor.fetchall() if cursor.description else []

    def in_transaction(self, driver: Any) -> bool:
        return driver.pgconn.transaction_status in _IN_TRANSACTION

    def is_alive(self, driver: Any) -> bool:
        return not driver.closed

    def is_failed(self, driver: Any) -> bool:
        return bool(driver.pgconn.transaction_status == _FAILED)

    def is_autocommitting(self, dbapi: Any, driver: Any) -> bool:
        return bool(driver.autocommit)


class _MySQL(_Server):
    dialect: Dialect = "mysql"

    async def fetch(self, driver: Any, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        async with driver.cursor(self.cursor_class()) as cursor:
            await cursor.execute(sql, args or None)
            return list(await cursor.fetchall()) if cursor.description else []

    def cursor_class(self) -> Any:
        """Return the cursor that makes tuples, whatever the application prefers."""
        raise NotImplementedError

    def in_transaction(self, driver: Any) -> bool:
        return bool(driver.get_transaction_status())

    def is_alive(self, driver: Any) -> bool:
        return bool(driver.connected)

    def is_autocommitting(self, dbapi: Any, driver: Any) -> bool:
        return bool(driver.get_autocommit())


class _Asyncmy(_MySQL):
    def cursor_class(self) -> Any:
        from asyncmy.cursors import Cursor

        return Cursor


class _Aiomysql(_MySQL):
    def cursor_class(self) -> Any:
        from aiomysql import Cursor  # type: ignore[import-not-found, unused-ignore]

        return Cursor

    def is_alive(self, driver: Any) -> bool:
        return not driver.closed


class _Aiosqlite:
    dialect: Dialect = "sqlite"

    async def fetch(self, driver: Any, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await driver.execute_fetchall(sql, args)]

    def in_transaction(self, driver: Any) -> bool:
        try:
            return bool(driver.in_transaction)
        except ValueError:
            return False  # closed

    def is_alive(self, driver: Any) -> bool:
        try:
            return driver.in_transaction is not None
        except ValueError:
            return False

    def is_failed(self, driver: Any) -> bool:
        return False

    def is_autocommitting(self, dbapi: Any, driver: Any) -> bool:
        return True  # in the mode that akv works in: BEGIN is sent by SQLAlchemy's event or by nobody

    def is_always_in_transaction(self, driver: Any) -> bool:
        inner = getattr(driver, "_conn", driver)
        return getattr(inner, "autocommit", None) is False

    def rows_changed(self, driver: Any) -> int:
        try:
            return int(driver.total_changes)
        except ValueError:
            return 0  # closed
