"""
The table of tokens and the SQL on it: runs on a driver's connection, in whatever transaction is open there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Column, MetaData, String, Table
from sqlalchemy import exc as sa_exc
from sqlalchemy.schema import CreateTable

from akv.errors import ConfigurationError
from akv.tokens.backend import Absent
from akv.tokens.schema import OWN

metadata: Final = MetaData()
"""The table of tokens, for Alembic and for ``create_tables=False``."""

token_table: Final = Table(
    "akv_token",
    metadata,
    Column("record", String(255), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("origin", String(64)),
    info={OWN: True},
)
"""One row per record; that of the empty name is the counter, and says in ``origin`` which database this is."""

_FOUND: Final = "INSERT INTO akv_token (record, seq, origin) VALUES ('', 0, ?) ON CONFLICT (record) DO NOTHING"
_READ: Final = "SELECT record, seq, origin FROM akv_token WHERE record IN (SELECT value FROM json_each(?))"
_COUNT: Final = "UPDATE akv_token SET seq = seq + 1 WHERE record = '' RETURNING seq, origin"
_BUMP: Final = (
    "INSERT INTO akv_token (record, seq) SELECT value, ?2 FROM json_each(?1) WHERE true "
    "ON CONFLICT (record) DO UPDATE SET seq = excluded.seq"
)
MISSING: Final = (
    "the table akv_token does not exist in this database: leave create_tables=True, or create it from "
    "DatabaseTokens.metadata (Alembic: add that to target_metadata)"
)


class TableMissingError(ConfigurationError):
    """There is no table of tokens, and akv is not to create it."""


class Records(NamedTuple):
    """Records of one snapshot: the newest token there is, which database it is, and the token of each record."""

    newest: int
    origin: str
    seqs: Mapping[str, int]


class Counted(NamedTuple):
    """A fresh token, and the database it is of."""

    seq: int
    origin: str


async def read_records(driver: Any, records: Iterable[str]) -> Records:
    """
    Read records in one statement, hence in one snapshot.

    Raises:
        Absent: There is nothing to read yet.
    """
    try:
        rows = await driver.execute_fetchall(_READ, (json.dumps(["", *records]),))
    except sqlite3.OperationalError as error:
        _raise_unless_missing(error)
        raise Absent from error
    seqs = {record: seq for record, seq, _ in rows}
    origin = next((origin for record, _, origin in rows if not record), None)
    if origin is None:
        raise Absent
    return Records(seqs[""], origin, seqs)


async def create(driver: Any, origin: str, *, table_too: bool) -> None:
    """
    Create what is missing of table and counter.

    Raises:
        TableMissingError: The table is missing and not to be created.
    """
    if table_too:
        await driver.execute(_create_table())
    try:
        await driver.execute(_FOUND, (origin,))
    except sqlite3.OperationalError as error:
        _raise_unless_missing(error)
        raise TableMissingError(MISSING) from error


async def count(driver: Any) -> Counted:
    """
    Take the next token; takes the write lock with it.

    Raises:
        Absent: There is no counter yet.
    """
    try:
        rows = list(await driver.execute_fetchall(_COUNT))
    except sqlite3.OperationalError as error:
        _raise_unless_missing(error)
        raise Absent from error
    if not rows:
        raise Absent
    return Counted(*rows[0])


async def bump_records(driver: Any, records: Collection[str], seq: int) -> None:
    """Give each record the token *seq*."""
    await driver.execute(_BUMP, (json.dumps(sorted(records)), seq))


@asynccontextmanager
async def write_transaction(driver: Any) -> AsyncIterator[None]:
    """Run the block in a transaction that holds the write lock from its start."""
    if not driver.in_transaction:
        await driver.execute("BEGIN IMMEDIATE")
    try:
        yield
        await driver.commit()
    except BaseException:
        await driver.rollback()
        raise


@contextmanager
def raised_as_by_sqlalchemy() -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy would, which is what callers of a session expect."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise sa_exc.OperationalError("(tokens of akv, in akv_token)", None, error) from error
    except sqlite3.Error as error:
        raise sa_exc.DatabaseError("(tokens of akv, in akv_token)", None, error) from error


@cache
def _create_table() -> str:
    """Write the table's DDL; the dialect is imported here, for a program that has no SQLite needs none of it."""
    from sqlalchemy.dialects import sqlite

    token_table.dialect_options["sqlite"]["with_rowid"] = False
    dialect: Any = sqlite
    return str(CreateTable(token_table, if_not_exists=True).compile(dialect=dialect.dialect()))


def _raise_unless_missing(error: sqlite3.OperationalError) -> None:
    if "no such table: akv_token" not in str(error).replace("main.", ""):
        raise error
