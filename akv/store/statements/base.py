"""
What the three databases have in common: the statements that Core can express for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    LargeBinary,
    Table,
    TextClause,
    bindparam,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.sql.expression import TextualSelect

from akv.errors import ConfigurationError
from akv.store.keys import prefix_end
from akv.store.operations import Filter, Pair, Record, Row

DEAD = datetime(1970, 1, 1)
"""Expiry of a placeholder: a row that holds the lock of a key which is absent."""

STATEMENT_BYTES = 4 * 2**20
"""Most bytes of values in one statement: MariaDB takes 16 MiB unless told otherwise, and escaping may double them."""


@dataclass(frozen=True, slots=True)
class Traits:
    """
    What a table that akv did not make cannot hold.

    Attributes:
        exact_keys: Keys are compared code point by code point.
        value_limit: Greatest length of a value in bytes; None: the database's own.
        whole_seconds: Expiries lose their fractions.
        remedy: The ALTER that mends all of it; empty where nothing is wrong.
    """

    exact_keys: bool = True
    value_limit: int | None = None
    whole_seconds: bool = False
    remedy: str = ""


class Statements:
    """The statements of one table on one dialect."""

    begin: ClassVar[str] = "BEGIN"
    """How a transaction of ours starts on a connection in AUTOCOMMIT."""
    locks_rows: ClassVar[bool] = True
    """Whether writers of different rows go past each other."""
    parallel_reads: ClassVar[int] = 2
    """How many read statements in flight pay off."""
    batch_reads: ClassVar[int] = 128
    """Rows of one read of a lane: smaller batches overlap better where two are in flight."""
    batch_writes: ClassVar[int] = 500
    """Rows of one write of a lane."""
    chunk: ClassVar[int] = 1000
    """Rows of one statement."""
    deletes_at_once: bool = True
    """Whether deleting rows and learning what they were is one statement."""

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        self.table = table
        self.dialect = dialect.name
        self.traits = traits
        self._quote = dialect.identifier_preparer
        self._one = self._rows(f"SELECT {self.columns} FROM {self.name} WHERE {self.key} = :key AND {self.tag} = :tag")
        self._renew = self._text(
            f"UPDATE {self.name} SET {self.expire} = :expire WHERE {self.key} = :key AND {self.tag} = :tag"
        ).bindparams(bindparam("expire", type_=self.table.c.expire.type))

    # Names, quoted for the dialect.

    @property
    def name(self) -> str:
        """The table."""
        return self._quote.format_table(self.table)

    @property
    def key(self) -> str:
        """The column of the key."""
        return self._quote.quote("key")

    @property
    def tag(self) -> str:
        """The column of the tag."""
        return self._quote.quote("tag")

    @property
    def value(self) -> str:
        """The column of the value."""
        return self._quote.quote("value")

    @property
    def expire(self) -> str:
        """The column of the expiry."""
        return self._quote.quote("expire")

    @property
    def columns(self) -> str:
        """All columns, in the order of :class:`Record`."""
        return f"{self.key}, {self.tag}, {self.value}, {self.expire}"

    @property
    def bare(self) -> str:
        """All columns, NULL in the place of the value: large values need not travel."""
        return f"{self.key}, {self.tag}, NULL AS {self.value}, {self.expire}"

    def qualified(self, alias: str, *, values: bool = True) -> str:
        """All columns behind an alias; without values, NULL in the place of the value."""
        value = f"{alias}.{self.value}" if values else "NULL"
        return f"{alias}.{self.key}, {alias}.{self.tag}, {value} AS {self.value}, {alias}.{self.expire}"

    def _text(self, sql: str) -> TextClause:
        return text(sql.replace(self.name, self._name_in_text))

    @property
    def _name_in_text(self) -> str:
        """The table's name as ``text()`` wants it, which reads colons and doubles percent signs itself."""
        doubled = self.name.count("%") > self.table.fullname.count("%")
        return (self.name.replace("%%", "%") if doubled else self.name).replace(":", "\\:")

    def _rows(self, sql: str) -> TextualSelect:
        return self._text(sql).columns(
            self.table.c.key, self.table.c.tag, column("value", LargeBinary()), column("expire", DateTime())
        )

    # By pairs: what the lanes live on.

    def read(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows of one moment, dead ones included; absent pairs are left out."""
        if len(pairs) == 1 and self.traits.exact_keys:
            return self.read_one(conn, pairs[0])
        return self.read_many(conn, pairs)

    def upsert(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store rows that are sorted by pair, each pair once."""
        self._check(records)
        for part in parts(records, self.chunk):
            self.upsert_many(conn, part)

    def delete(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Delete rows by sorted pairs and return what they were, without their values."""
        gone: dict[Pair, Row] = {}
        for part in chunked(pairs, self.chunk):
            gone.update(by_pair(self.delete_many(conn, part)))
        return gone

    def lock(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Lock rows by sorted pairs and read them, the value only if it is wanted; absent pairs are left out."""
        found: dict[Pair, Row] = {}
        for part in chunked(pairs, self.chunk):
            found.update(self.lock_many(conn, part, values=values))
        return found

    def renew(self, conn: Connection, expiries: Sequence[tuple[Pair, datetime | None]]) -> None:
        """Move the expiry of rows that are locked."""
        self._check([Record(key, tag, None, expire) for (key, tag), expire in expiries])
        rows = [{"key": key, "tag": tag, "expire": expire} for (key, tag), expire in expiries]
        conn.execute(self._renew, rows if len(rows) > 1 else rows[0])

    def read_one(self, conn: Connection, pair: Pair) -> dict[Pair, Row]:
        """Read one row, without the machinery for many."""
        return by_pair(conn.execute(self._one, {"key": pair[0], "tag": pair[1]}))

    def read_many(self, conn: Connection, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """Read rows in one statement: the pairs are one parameter, or two."""
        raise NotImplementedError

    def upsert_many(self, conn: Connection, records: Sequence[Record]) -> None:
        """Store at most one chunk of rows in one statement."""
        raise NotImplementedError

    def delete_many(self, conn: Connection, pairs: Sequence[Pair]) -> Iterable[Any]:
        """Delete at most one chunk of rows and return them, NULL in the place of the value."""
        raise NotImplementedError

    def lock_many(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """Lock at most one chunk of rows."""
        raise NotImplementedError

    def reserve(self, conn: Connection, pairs: Sequence[Pair], *, values: bool) -> dict[Pair, Row]:
        """
        Take the locks of pairs that were absent.

        Returns:
            Rows that another transaction stored meanwhile; a dead placeholder may stand for each of the others.
        """
        raise NotImplementedError

    def leaves_placeholders(self) -> bool:
        """Tell whether :meth:`reserve` stores rows that must go again unless something is put there."""
        return True

    def is_in_transaction(self, conn: Connection, *, writes: bool) -> bool:
        """
        Tell whether a connection that is not ours carries a transaction, and let it begin if it is about to.

        Args:
            conn: The caller's.
            writes: Whether a row will be read in order to be written.
        """
        driver = conn.connection.dbapi_connection
        return driver is not None and not conn.dialect.detect_autocommit_setting(driver)

    def _check(self, records: Iterable[Record]) -> None:
        if not self.traits.remedy:
            return
        limit = self.traits.value_limit
        for key, tag, value, expire in records:
            if limit is not None and value is not None and len(value) > limit:
                self._refuse(key, tag, f"a value of {len(value)} bytes (it holds {limit})")
            if self.traits.whole_seconds and expire is not None and expire.microsecond:
                self._refuse(key, tag, "an expiry with fractions of a second")

    def _refuse(self, key: str, tag: str, what: str) -> None:
        raise ConfigurationError(
            f"table {self.name} cannot hold {what}, needed for key {key!r}, tag {tag!r}: "
            f"run {self.traits.remedy}, and open the store anew"
        )

    # By filter: scans, counts and sweeps.

    def _live(self, now: datetime) -> ColumnElement[bool]:
        expire = self.table.c.expire
        return or_(expire.is_(None), expire > now)

    def _matches(self, where: Filter) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if where.tag is not None:
            conditions.append(self.exact(self.table.c.tag) == where.tag)
        if where.prefix:
            conditions += key_range(self.exact(self.table.c.key), where.prefix)
        return conditions

    def exact(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """A column of text as it compares and sorts code point by code point, whoever made the table."""
        return column

    def delete_where(self, conn: Connection, where: Filter, now: datetime) -> int:
        """Delete all rows that match and return how many of them were live; two statements."""
        matches = self._matches(where)
        live = conn.execute(delete(self.table).where(self._live(now), *matches)).rowcount
        conn.execute(delete(self.table).where(*matches))
        return live

    def count(self, conn: Connection, where: Filter, now: datetime) -> int:
        """Count live rows."""
        found = select(func.count()).select_from(self.table).where(self._live(now), *self._matches(where))
        return conn.execute(found).scalar_one()

    def page(self, conn: Connection, where: Filter, now: datetime, after: Pair | None, limit: int) -> list[Record]:
        """Read live rows behind *after* in the order of key, then tag."""
        c = self.table.c
        key, tag = self.exact(c.key), self.exact(c.tag)
        rows = select(c.key, c.tag, c.value, c.expire).where(self._live(now), *self._matches(where))
        if after is not None:
            # This form lets every planner start at the key; a row comparison stops MariaDB from using the index.
            rows = rows.where(key >= after[0], or_(key > after[0], tag > after[1]))
        return [Record(*row) for row in conn.execute(rows.order_by(key, tag).limit(limit))]

    def tags(self, conn: Connection, where: Filter, now: datetime, after: str | None, limit: int) -> list[str]:
        """Read distinct tags of live rows behind *after*, in order."""
        tag = self.exact(self.table.c.tag)
        found = select(tag).distinct().where(self._live(now), *self._matches(where))
        if after is not None:
            found = found.where(tag > after)
        return list(conn.execute(found.order_by(tag).limit(limit)).scalars())

    # Sweeps lock what they delete and pass over what others have locked: they wait for nobody.

    def purge(self, conn: Connection, now: datetime, limit: int) -> int:
        """Delete at most *limit* dead rows."""
        dead = [pair for pair, _ in self._take_some(conn, self.table.c.expire <= now, limit)]
        return len(self.delete(conn, sorted(dead)))

    def soonest(self, conn: Connection, limit: int) -> list[tuple[Pair, int]]:
        """Lock rows and estimate their bytes: what expires soonest first, entries without expiry last."""
        expire = self.table.c.expire
        found = self._take_some(conn, expire.is_not(None), limit)
        return found + self._take_some(conn, expire.is_(None), limit - len(found))

    def _take_some(self, conn: Connection, condition: ColumnElement[bool], limit: int) -> list[tuple[Pair, int]]:
        if limit <= 0:
            return []
        c = self.table.c
        some = select(c.key, c.tag, self._size()).where(condition).order_by(c.expire).limit(limit)
        return [((key, tag), int(size)) for key, tag, size in conn.execute(some.with_for_update(skip_locked=True))]

    def usage(self, conn: Connection, *, sizes: bool) -> tuple[int, int]:
        """Count all rows and, if it is wanted, estimate their bytes."""
        total = func.coalesce(func.sum(self._size()), literal(0)) if sizes else literal(0)
        entries, size = conn.execute(select(func.count(), total).select_from(self.table)).one()
        return int(entries), int(size)

    def _size(self) -> ColumnElement[int]:
        c = self.table.c
        return func.coalesce(self.octets(c.value), 0) + self.octets(c.key) + self.octets(c.tag)

    def octets(self, column: ColumnElement[Any]) -> ColumnElement[int]:
        """The length of a column in bytes."""
        return func.octet_length(column)


def key_range(key: ColumnElement[str], prefix: str) -> list[ColumnElement[bool]]:
    """The keys that start with a prefix, where the column is ordered by code points."""
    end = prefix_end(prefix)
    return [key >= prefix] if end is None else [key >= prefix, key < end]


def by_pair(rows: Iterable[Any]) -> dict[Pair, Row]:
    """Arrange rows of (key, tag, value, expire) by their pair."""
    return {(key, tag): Row(value, expire) for key, tag, value, expire in rows}


def parts(records: Sequence[Record], rows: int) -> list[Sequence[Record]]:
    """Cut records into what one statement carries: at most so many rows, and few enough bytes for every server."""
    if len(records) <= rows and bytes_of(records) <= STATEMENT_BYTES:
        return [records] if records else []
    cut: list[list[Record]] = []
    room = -1
    for record in records:
        size = len(record.value or b"")
        if room < size or len(cut[-1]) == rows:
            cut.append([])
            room = STATEMENT_BYTES
        cut[-1].append(record)
        room -= size
    return list(cut)


def bytes_of(records: Iterable[Record]) -> int:
    """Bytes of all values."""
    return sum(len(record.value or b"") for record in records)


def chunked(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Cut a sequence into parts of at most *size*."""
    if len(items) <= size:
        return (items,) if items else ()
    return (items[start : start + size] for start in range(0, len(items), size))
