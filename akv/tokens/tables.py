"""
Tables that tokens in Redis keep in the application's own database: the gate and the outbox.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Connection, DateTime, MetaData, String, Table, Text, inspect
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.errors import ConfigurationError
from akv.tokens.schema import OWN

metadata: Final = MetaData()
"""Both tables, for Alembic and for ``create_tables=False``."""

_NAMESPACE: Final = String(100).with_variant(String(100, collation="ascii_bin"), "mysql", "mariadb")  # a is not A

gate_table: Final = Table(
    "akv_gate",
    metadata,
    Column("id", String(32), primary_key=True),
    info={OWN: True},
)
"""MariaDB: one row for each transaction that may still commit, and old ones; SQLite: one row, which names the file."""

outbox_table: Final = Table(
    "akv_outbox",
    metadata,
    Column("namespace", _NAMESPACE, primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("identifiers", Text().with_variant(Text(2**24), "mysql", "mariadb"), nullable=False),  # more than 64 kB
    Column("created", DateTime, nullable=False),
    info={OWN: True},
)
"""
Changes that were committed while Redis could not be reached.

Those of one namespace lie together, the oldest first; ``created`` is UTC, and for people only.
"""


async def ensure(connection: AsyncConnection, table: Table, *, create: bool) -> None:
    """
    Make sure that *table* exists.

    Args:
        connection: One of ours, in AUTOCOMMIT.
        table: One of the above.
        create: Whether akv may create it.

    Raises:
        ConfigurationError: It is missing, and akv may not create it, or the database does not let it.

    Guarantees:
        Safe among tasks and processes that do the same at the same time.
    """
    await connection.run_sync(_ensure, table, create)


def _ensure(connection: Connection, table: Table, create: bool) -> None:
    if _exists(connection, table):
        return
    if not create:
        raise ConfigurationError(_missing(table))
    _prefer_innodb(connection, table)
    try:
        table.create(connection, checkfirst=True)
    except sa_exc.DBAPIError as error:
        if _exists(connection, table):
            return  # another process was quicker
        if isinstance(error, sa_exc.ProgrammingError):
            raise ConfigurationError(f"{_missing(table)}; the database said: {error.orig}") from error
        raise


def _exists(connection: Connection, table: Table) -> bool:
    return inspect(connection).has_table(table.name)


def _prefer_innodb(connection: Connection, table: Table) -> None:
    """Name the engine for the one dialect at hand: to mention a dialect is to import it."""
    name = connection.dialect.name
    if name in ("mysql", "mariadb"):
        table.dialect_options[name]["engine"] = "InnoDB"


def _missing(table: Table) -> str:
    return (
        f"the table {table.name} does not exist in this database: leave create_tables=True and let the database user "
        "create tables, or create it from RedisTokens.metadata (Alembic: add that to target_metadata)"
    )
