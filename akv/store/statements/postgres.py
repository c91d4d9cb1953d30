"""
PostgreSQL: arrays as parameters, so that one SQL text serves batches of every size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Dialect, Table, collate

from akv.store.operations import Pair, Record, Row
from akv.store.statements.base import Statements, Traits, by_pair

_PAIRS = "unnest(CAST(:keys AS text[]), CAST(:tags AS text[])) WITH ORDINALITY AS u(k, t, i)"
_RECORDS = (
    "unnest(CAST(:keys AS text[]), CAST(:tags AS text[]), CAST(:vals AS bytea[]), "
    "CAST(:ends AS timestamp[])) AS u(k, t, v, e)"
)


class PostgresStatements(Statements):
    """Statements of one table on PostgreSQL."""

    begin: ClassVar[str] = "BEGIN ISOLATION LEVEL READ COMMITTED"
    chunk: ClassVar[int] = 5000

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        same = f"k.{self.key} = u.k AND k.{self.tag} = u.t"
        # LATERAL with OFFSET 0: a generic plan made while the table was empty would otherwise scan it for ever.
        self._many = self._rows(
            f"SELECT u.k, u.t, r.* FROM {_PAIRS} CROSS JOIN LATERAL "
            f"(SELECT k.{self.value}, k.{self.expire} FROM {self.name} k WHERE {same} OFFSET 0) r"
        )
        self._of_one_tag = self._rows(
            f"SELECT u.k, r.* FROM unnest(CAST(:keys AS text[])) AS u(k) CROSS JOIN LATERAL "
            f"(SELECT k.{self.tag}, k.{self.value}, k.{self.expire} FROM {self.name} k "
            f"WHERE k.{self.key} = u.k AND k.{self.tag} = :tag OFFSET 0) r"
        )
        self._upsert = self._text(
            f"INSERT INTO {self.name} ({self.columns}) SELECT u.k, u.t, u.v, u.e FROM {_RECORDS} "
            f"ON CONFLICT ({self.key}, {self.tag}) DO UPDATE "
            f"SET {self.value} = excluded.{self.value}, {self.expire} = excluded.{self.expire}"
        )
        # Locked in the order of the pairs first: DELETE ... USING alone locks in the order of its plan and dead-locks.
        locked = f"{_PAIRS} CROSS JOIN LATERAL (SELECT k.* FROM {self.name} k WHERE {same} OFFSET 0 FOR UPDATE) k"
        self._delete = self._rows(
            f"WITH l AS MATERIALIZED (SELECT k.{self.key} AS a, k.{self.tag} AS b FROM {locked}) "
            f"DELETE FROM {self.name} k USING l WHERE k.{self.key} = l.a AND k.{self.tag} = l.b "
            f"RETURNING {self.qualified('k', values=False)}"
        )
        self._lock = {
            values: self._rows(f"SELECT {self.qualified('k', values=values)} FROM {locked}") for values in (False, True)
        }
        self._reserve = self._rows(
            f"INSERT INTO {self.name} AS k ({self.columns}) "
            f"SELECT u.k, u.t, NULL, TIMESTAMP '1970-01-01' FROM {_PAIRS} ORDER BY u.i "
            f"ON CONFLICT ({self.key}, {self.tag}) DO UPDATE SET {self.tag} = k.{self.tag} "
            f"RETURNING {self.qualified('k')}"
        )

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        return by_pair(conn.execute(self._many, arrays(pairs)))

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        conn.execute(self._upsert, record_arrays(records))

    def delete_many(self, conn: Connection, pairs: Sequence[Pair]) -> Iterable[Any]:
        """Delete at most one chunk of rows and return them, NULL in the place of the value."""
        return conn.execute(self._delete, arrays(pairs)).all()

    def lock_many(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Lock at most one chunk of rows."""
        return by_pair(conn.execute(self._lock[values], arrays(pairs)))

    def reserve(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Insert placeholders; the row of whoever was quicker is locked and returned."""
        return by_pair(conn.execute(self._reserve, arrays(pairs)))

    def exact(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """A column in the order of code points, which is that of its index where akv made the table."""
        return collate(column, "C")


def arrays(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Turn pairs into two array parameters."""
    return {"keys": [key for key, _ in pairs], "tags": [tag for _, tag in pairs]}


def record_arrays(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Turn records into four array parameters."""
    keys, tags, values, ends = zip(*records, strict=True)
    return {"keys": list(keys), "tags": list(tags), "vals": list(values), "ends": list(ends)}
