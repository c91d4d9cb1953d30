"""
The table at first use: made where it is missing, examined where somebody else made it.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from akv.errors import ConfigurationError
from akv.store.models import exact_collation, narrow_indexes
from akv.store.statements import Traits

log = logging.getLogger("akv")

_COLUMNS = {"key", "tag", "value", "expire"}
_BLOB_LIMITS = {"tinyblob": 255, "blob": 65_535, "mediumblob": 16_777_215}


def prepare(conn: Connection, table: Table, *, create: bool) -> Traits:
    """
    Create the table if it is missing and wanted, and learn what it can hold.

    Args:
        conn: In AUTOCOMMIT.
        table: What the store expects.
        create: Whether akv may create it.

    Raises:
        ConfigurationError: A table of that name is no table of entries.

    Guarantees:
        Safe among tasks and processes that do the same at the same time.
    """
    if not _exists(conn, table):
        if not create:
            return Traits()
        _create(conn, table)
    _check_columns(conn, table)
    if conn.dialect.name in ("mysql", "mariadb"):
        return _mariadb_traits(conn, table)
    return Traits()


def _exists(conn: Connection, table: Table) -> bool:
    return inspect(conn).has_table(table.name, schema=table.schema)


def _create(conn: Connection, table: Table) -> None:
    narrow_indexes(table, conn.dialect.name)
    try:
        table.create(conn, checkfirst=True)
    except DBAPIError:
        if not _exists(conn, table):
            raise
        # Another process was quicker; that is all we wanted.


def _check_columns(conn: Connection, table: Table) -> None:
    found = {column["name"] for column in inspect(conn).get_columns(table.name, schema=table.schema)}
    missing = sorted(_COLUMNS - found)
    if missing:
        raise ConfigurationError(
            f"table {table.fullname} exists but has no column {', '.join(missing)}: "
            f"choose another name, AsyncKVAlchemy(..., table=...)"
        )


_MARIADB_COLUMNS = text(
    "SELECT column_name, data_type, collation_name, datetime_precision FROM information_schema.columns "
    "WHERE table_name = :table AND table_schema = COALESCE(:schema, DATABASE())"
)


def _mariadb_traits(conn: Connection, table: Table) -> Traits:
    """Compare a table that kvalchemy may have made with what the contract needs."""
    parameters = {"table": table.name, "schema": table.schema}
    columns: dict[str, Any] = {row[0]: row for row in conn.execute(_MARIADB_COLUMNS, parameters)}
    exact = exact_collation(conn.dialect)
    traits = Traits(
        exact_keys=all(columns[name][2] == exact for name in ("key", "tag")),
        value_limit=_BLOB_LIMITS.get(columns["value"][1].lower()),
        whole_seconds=not columns["expire"][3],
    )
    if traits == Traits():
        return traits
    remedy = _alter(conn, table, traits, exact)
    log.warning(
        "table %s is readable, but cannot hold all that akv promises (%s); what it cannot hold is refused until you "
        "run %s",
        table.fullname,
        ", ".join(_shortcomings(traits)),
        remedy,
    )
    return Traits(traits.exact_keys, traits.value_limit, traits.whole_seconds, remedy)


def _shortcomings(traits: Traits) -> list[str]:
    found = []
    if not traits.exact_keys:
        found.append("its collation takes different keys for one")
    if traits.value_limit is not None:
        found.append(f"values end at {traits.value_limit} bytes")
    if traits.whole_seconds:
        found.append("expiries lose their fractions of a second")
    return found


def _alter(conn: Connection, table: Table, traits: Traits, collation: str) -> str:
    quoted = conn.dialect.identifier_preparer.format_table(table)
    text_type = f"VARCHAR(256) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL"
    changes = []
    if not traits.exact_keys:
        changes += [f"MODIFY `key` {text_type}", f"MODIFY `tag` {text_type}"]
    if traits.value_limit is not None:
        changes.append("MODIFY `value` LONGBLOB")
    if traits.whole_seconds:
        changes.append("MODIFY `expire` DATETIME(6)")
    return f"ALTER TABLE {quoted} {', '.join(changes)}"
