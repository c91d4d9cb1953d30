"""
MariaDB and MySQL: pairs as one JSON parameter, rows as one multi-VALUES statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Dialect, Table, collate, func, text

from akv.store.models import exact_collation
from akv.store.operations import Pair, Record, Row
from akv.store.statements.base import DEAD, Statements, Traits, by_pair


class MariaDBStatements(Statements):
    """Statements of one table on MariaDB or MySQL."""

    begin: ClassVar[str] = "START TRANSACTION"

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        self._collation = exact_collation(dialect)
        self.deletes_at_once = bool(getattr(dialect, "delete_returning", False)) and traits.exact_keys
        exact = f"VARCHAR(256) CHARACTER SET utf8mb4 COLLATE {self._collation}"
        source = f"JSON_TABLE(:pairs, '$[*]' COLUMNS (k {exact} PATH '$[0]', t {exact} PATH '$[1]')) u"
        same = self._same_pair()
        join = f"FROM {source} STRAIGHT_JOIN {self.name} k ON {same}"
        self._many = self._rows(f"SELECT {self.qualified('k')} {join}")
        self._insert = f"INSERT INTO {self.name} ({self.columns}) VALUES "
        self._replace = (
            f" ON DUPLICATE KEY UPDATE {self.value} = VALUES({self.value}), {self.expire} = VALUES({self.expire})"
        )
        self._keep = f" ON DUPLICATE KEY UPDATE {self.tag} = {self.tag}"

    def _same_pair(self) -> str:
        if self.traits.exact_keys:
            return f"k.{self.key} = u.k AND k.{self.tag} = u.t"
        # The index of a folding table is of no use for an exact comparison, so it finds candidates and we choose.
        return (
            f"k.{self.key} = CONVERT(u.k USING utf8mb4) AND k.{self.tag} = CONVERT(u.t USING utf8mb4) "
            f"AND BINARY k.{self.key} = BINARY u.k AND BINARY k.{self.tag} = BINARY u.t"
        )

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        return by_pair(conn.execute(self._many, {"pairs": json.dumps(pairs, ensure_ascii=False)}))

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        sql = self._insert + placeholders("(%s,%s,%s,%s)", len(records)) + self._replace
        parameters = tuple(part for record in records for part in record)
        if self.traits.exact_keys:
            conn.exec_driver_sql(sql, parameters)
        else:
            self._upsert_unfolded(conn, sql, parameters, [(record.key, record.tag) for record in records])

    def _upsert_unfolded(self, conn: Connection, sql: str, parameters: Any, pairs: Sequence[Pair]) -> None:
        """Take back what a folding table wrote to another key, so that not even the caller's transaction keeps it."""
        conn.exec_driver_sql("SAVEPOINT akv_upsert")
        conn.exec_driver_sql(sql, parameters)
        folded = set(pairs) - self.read_many(conn, pairs).keys()
        if folded:
            conn.exec_driver_sql("ROLLBACK TO SAVEPOINT akv_upsert")
            self._refuse(*min(folded), "two keys that its collation takes for one")
        conn.exec_driver_sql("RELEASE SAVEPOINT akv_upsert")

    def delete_many(self, conn: Connection, pairs: Sequence[Pair]) -> Iterable[Any]:
        """Delete at most one chunk of rows and return them, NULL in the place of the value."""
        if not self.traits.exact_keys:
            pairs = sorted(self.lock_many(conn, pairs, values=False))
        if not pairs:
            return []
        wanted = self._from(len(pairs))
        parameters = tuple(part for pair in pairs for part in pair)
        if self.deletes_at_once:
            return conn.exec_driver_sql(f"DELETE{wanted} RETURNING {self.bare}", parameters).all()
        gone = conn.exec_driver_sql(f"SELECT {self.bare}{wanted} FOR UPDATE", parameters).all()
        conn.exec_driver_sql(f"DELETE{wanted}", parameters)
        return gone

    def _from(self, pairs: int) -> str:
        """The table and so many pairs of it: IN of a single one would make a DELETE read the whole table."""
        if pairs == 1:
            return f" FROM {self.name} WHERE {self.key} = %s AND {self.tag} = %s"
        return f" FROM {self.name} WHERE ({self.key}, {self.tag}) IN ({placeholders('(%s,%s)', pairs)})"

    def lock_many(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Lock at most one chunk of rows, in the order of the primary key."""
        if not pairs:
            return {}
        sql = (
            f"SELECT {self.columns if values else self.bare}{self._from(len(pairs))} "
            f"ORDER BY {self.key}, {self.tag} FOR UPDATE"
        )
        wanted = set(pairs)
        rows = by_pair(conn.exec_driver_sql(sql, tuple(part for pair in pairs for part in pair)))
        return {pair: row for pair, row in rows.items() if pair in wanted}

    def reserve(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Insert placeholders, then read who was quicker: an upsert takes the exclusive lock, IGNORE a shared one."""
        rows = [(key, tag, None, DEAD) for key, tag in pairs]
        sql = self._insert + placeholders("(%s,%s,%s,%s)", len(rows)) + self._keep
        conn.exec_driver_sql(sql, tuple(part for row in rows for part in row))
        return self.lock_many(conn, pairs, values=values)

    def exact(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """A column in the order of code points; a table that akv did not make must be told so, and sorts."""
        if self.traits.exact_keys:
            return column
        return collate(func.convert(column.op("USING")(text("utf8mb4"))), self._collation)


@cache
def placeholders(row: str, count: int) -> str:
    """A row of placeholders, so many times."""
    return ",".join([row] * count)
