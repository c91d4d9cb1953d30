"""
SQLite: one JSON parameter for pairs; one writer, so the transaction itself is the lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Dialect, LargeBinary, Table, cast, func

from akv.store.operations import Pair, Record, Row
from akv.store.statements.base import Statements, Traits, by_pair

_PAIRS = "json_each(:pairs) p"
_KEY = "json_extract(p.value, '$[0]')"
_TAG = "json_extract(p.value, '$[1]')"


class SQLiteStatements(Statements):
    """Statements of one table on SQLite."""

    begin: ClassVar[str] = "BEGIN IMMEDIATE"
    locks_rows: ClassVar[bool] = False
    parallel_reads: ClassVar[int] = 1
    batch_reads: ClassVar[int] = 1000

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        # CROSS JOIN keeps SQLite from scanning the table and looking into the JSON for each row.
        same = f"{_PAIRS} CROSS JOIN {self.name} k ON k.{self.key} = {_KEY} AND k.{self.tag} = {_TAG}"
        self._many = self._rows(f"SELECT {self.qualified('k')} FROM {same}")
        self._of_one_tag = self._rows(
            f"SELECT {self.qualified('k')} FROM json_each(:keys) p "
            f"CROSS JOIN {self.name} k ON k.{self.key} = p.value AND k.{self.tag} = :tag"
        )
        self._bare = self._rows(f"SELECT {self.qualified('k', values=False)} FROM {same}")
        self._delete = self._rows(
            f"DELETE FROM {self.name} WHERE rowid IN (SELECT k.rowid FROM {same}) RETURNING {self.bare}"
        )
        self._touch = self._text(f"UPDATE {self.name} SET {self.tag} = {self.tag} WHERE 0")
        self._insert = f"INSERT INTO {self.name} ({self.columns}) VALUES "
        self._replace = (
            f" ON CONFLICT ({self.key}, {self.tag}) DO UPDATE "
            f"SET {self.value} = excluded.{self.value}, {self.expire} = excluded.{self.expire}"
        )

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        return by_pair(conn.execute(self._many, as_json(pairs)))

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        sql = self._insert + placeholders(len(records)) + self._replace
        conn.exec_driver_sql(sql, tuple(stored_values(records)))

    def delete_many(self, conn: Connection, pairs: Sequence[Pair]) -> Iterable[Any]:
        """Delete at most one chunk of rows and return them, NULL in the place of the value."""
        return conn.execute(self._delete, as_json(pairs)).all()

    def lock_many(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Read rows inside a transaction that holds the one write lock already."""
        return by_pair(conn.execute(self._many if values else self._bare, as_json(pairs)))

    def reserve(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Nothing to do: nobody else can write."""
        return {}

    def leaves_placeholders(self) -> bool:
        """No placeholders are needed."""
        return False

    def is_in_transaction(self, conn: Connection, *, writes: bool) -> bool:
        """
        Become the writer by an UPDATE of nothing.

        The driver begins its transaction only there, so that a SELECT before it would see a row that others may
        still change; and whether it is in AUTOCOMMIT, or has transactions begun by hand, shows only there as well.
        """
        if not writes:
            return True
        conn.execute(self._touch)
        return bool(getattr(conn.connection.driver_connection, "in_transaction", True))

    def octets(self, column: ColumnElement[Any]) -> ColumnElement[int]:
        """The length in bytes: of a BLOB as it is, which need not be read for it; octet_length came only in 3.43."""
        return func.length(column if column is self.table.c.value else cast(column, LargeBinary))


def as_json(pairs: Sequence[Pair]) -> dict[str, str]:
    """Turn pairs into one JSON parameter."""
    return {"pairs": json.dumps(pairs, ensure_ascii=False)}


def as_array(keys: Sequence[str]) -> str:
    """Turn keys into one JSON parameter."""
    return json.dumps(keys, ensure_ascii=False)


def stored_values(records: Sequence[Record]) -> list[Any]:
    """Lay out records as parameters, expiries as SQLAlchemy's DateTime stores them on SQLite."""
    values: list[Any] = []
    for key, tag, value, end in records:
        values += (key, tag, value, None if end is None else end.isoformat(" ", "microseconds"))
    return values


@cache
def placeholders(rows: int) -> str:
    """The VALUES of a statement for some rows."""
    return ",".join(["(?,?,?,?)"] * rows)
