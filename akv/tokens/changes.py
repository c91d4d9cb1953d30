"""
What one transaction has changed so far: a change set per savepoint, merged or dropped as savepoints end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import MetaData, Table

from akv.tokens.identifiers import ANYTHING, GLOBAL_WRITE_TOKEN, table_identifier, table_name, unknown_rows
from akv.tokens.schema import Key, Link, name_of

ROWS_PER_TRANSACTION: Final = 1_000
"""More changed rows than this in one transaction are announced as "rows of these tables"."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """
    A changed row whose statement does not tell which parent it points at.

    Attributes:
        table: The table of the row.
        key: Its primary key.
        link: Leads to the parent.
        new: Whether the row was inserted, so that it pointed at nothing before.
    """

    table: Table
    key: Key
    link: Link
    new: bool


class ChangeSet:
    """
    The identifiers that some statements changed.

    Tables are given by their escaped names, rows by their identifiers.

    Attributes:
        dialect: Of the database: "postgresql", "mysql" or "sqlite"; "" where it does not matter.
        anything: Something was written and nobody knows what.
        opaque: Something ran of which only the database can tell what it wrote.
        redefined: Triggers, views or functions may be others now.
        calls: Names that statements called, and of which nobody knows yet whether they are functions that write.
        extra: Identifiers that were named outright.
        unresolved: Rows whose parents the flush that wrote them may still tell; those it does not tell count as
            "some row of the parent table".
        beside_flush: Something else than a flush wrote too, so that instances may not know what changed.
    """

    __slots__ = (
        "_assigned",
        "_lost",
        "_metadata",
        "_rows",
        "_schemas",
        "_tables",
        "_unknown",
        "anything",
        "beside_flush",
        "calls",
        "dialect",
        "extra",
        "opaque",
        "redefined",
        "unresolved",
    )

    def __init__(self, dialect: str = "") -> None:
        self.dialect = dialect
        self.anything = False
        self.opaque = False
        self.redefined = False
        self.calls: set[str] = set()
        self.extra: set[str] = set()
        self.unresolved: list[Unresolved] = []
        self.beside_flush = False
        self._rows: dict[str, set[str]] = {}
        self._tables: set[str] = set()
        self._unknown: set[str] = set()
        self._lost: set[str] = set()
        self._assigned: dict[str, set[str] | None] = {}
        self._metadata: set[MetaData] = set()
        self._schemas: set[tuple[str | None, str | None]] = set()

    def __bool__(self) -> bool:
        return bool(self.anything or self.opaque or self.extra or self._rows or self._tables)

    @property
    def is_flushed(self) -> bool:
        """Whether all of it was written by flushes, so that the instances of those rows know."""
        return not (self.anything or self.opaque or self.beside_flush)

    @property
    def tables(self) -> Collection[str]:
        """Escaped names of the tables that were written."""
        return self._tables

    def add_row(self, table: str, row: str, *, touches_table: bool = True) -> None:
        """
        Record that a row changed.

        Args:
            table: Its table.
            row: Its identifier.
            touches_table: False for a row that only counts as changed because a child of it did.
        """
        if touches_table:
            self._tables.add(table)
        if table not in self._unknown:
            rows = self._rows.setdefault(table, set())
            rows.add(row)
            if len(rows) > ROWS_PER_TRANSACTION:
                self.add_unknown(table)

    def add_unknown(self, table: str) -> None:
        """Record that rows of a table changed and that nobody knows which."""
        self._tables.add(table)
        self._unknown.add(table)
        self._rows.pop(table, None)

    def add_effect(self, table: str, *, lost: bool, columns: Collection[str] | None) -> None:
        """
        Record how a table was written, for what the database then does on its own.

        Args:
            table: Its name, neither escaped nor with a schema.
            lost: Whether rows may have gone.
            columns: Columns that may have changed in rows that were there; None: any.
        """
        bare = table_name(table)
        if lost:
            self._lost.add(bare)
        self._assign(bare, columns)

    def may_lose_rows(self, bare: str) -> bool:
        """Tell whether rows of a table may have gone, whatever its schema."""
        return bare in self._lost

    def assigns(self, bare: str, columns: Iterable[str]) -> bool:
        """Tell whether any of *columns* of a table may have changed, whatever its schema."""
        assigned = self._assigned.get(bare, ())
        return assigned is None or not frozenset(columns).isdisjoint(assigned)

    def add_context(self, metadata: MetaData, schemas: Mapping[str | None, str | None] | None) -> None:
        """Record what Tables the application has, and what ``schema_translate_map`` made of their schemas."""
        self._metadata.add(metadata)
        self.add_schemas(schemas)

    def add_schemas(self, schemas: Mapping[str | None, str | None] | None) -> None:
        """Record what a ``schema_translate_map`` made of the schemas of Tables."""
        if schemas:
            self._schemas.update((actual, of_table) for of_table, actual in schemas.items())

    @property
    def schemas(self) -> set[str]:
        """The schemas that ``schema_translate_map`` led to."""
        return {actual for actual, _ in self._schemas if actual is not None}

    def knows(self, table: str) -> bool:
        """Tell whether the application has a Table of this name beside those that were written."""
        return any(each.name == table for metadata in self._metadata for each in metadata.tables.values())

    def spellings(self, schema: str, table: str) -> set[str]:
        """Return the escaped names that Tables may have for a table of the database."""
        of_tables = {of_table for actual, of_table in self._schemas if actual in (schema, None)}
        return {table_name(table, each) for each in (None, schema, *of_tables)}

    def merge(self, other: ChangeSet) -> None:
        """Add everything that *other* holds."""
        self.anything |= other.anything
        self.opaque |= other.opaque
        self.redefined |= other.redefined
        self.beside_flush |= other.beside_flush
        self.calls |= other.calls
        self.extra |= other.extra
        self._lost |= other._lost
        self._metadata |= other._metadata
        self._schemas |= other._schemas
        for table, columns in other._assigned.items():
            self._assign(table, columns)
        self.unresolved += other.unresolved
        self._tables |= other._tables
        for table in other._unknown:
            self.add_unknown(table)
        for table, rows in other._rows.items():
            for row in rows:
                self.add_row(table, row, touches_table=False)

    def identifiers(self) -> set[str]:
        """Return every identifier to bump: the rows, their tables, and what those imply."""
        for missing in self.unresolved:
            self.add_unknown(name_of(missing.link.parent))
        self._keep_to_limit()
        found = set(self.extra)
        found.update(*self._rows.values())
        found.update(map(table_identifier, self._tables), map(unknown_rows, self._unknown))
        if self.anything:
            found.add(ANYTHING)
        if self.anything or self._tables:
            found.add(GLOBAL_WRITE_TOKEN)
        return found

    def _assign(self, bare: str, columns: Collection[str] | None) -> None:
        known = self._assigned.setdefault(bare, set())
        if columns is None:
            self._assigned[bare] = None
        elif known is not None:
            known.update(columns)

    def _keep_to_limit(self) -> None:
        total = sum(map(len, self._rows.values()))
        for table in sorted(self._rows, key=lambda table: -len(self._rows[table])):
            if total <= ROWS_PER_TRANSACTION:
                return
            total -= len(self._rows[table])
            self.add_unknown(table)


class Frames:
    """
    The change sets of one open transaction, one for each savepoint that is still there.

    Names follow the database's own rules: ROLLBACK TO keeps the savepoint it goes back to, RELEASE ends it and all
    that were set after it.
    """

    __slots__ = ("_dialect", "_stack")

    def __init__(self, dialect: str = "") -> None:
        self._dialect = dialect
        self._stack: list[tuple[str | None, ChangeSet]] = [(None, ChangeSet(dialect))]

    def __iter__(self) -> Iterator[ChangeSet]:
        return (changes for _, changes in self._stack)

    @property
    def current(self) -> ChangeSet:
        """The change set of the innermost savepoint."""
        return self._stack[-1][1]

    def open(self, name: str) -> None:
        """A savepoint was set."""
        self._stack.append((name, ChangeSet(self._dialect)))

    def release(self, name: str) -> None:
        """A savepoint was released: what it and those inside it changed belongs to the one around it."""
        place = self._place(name)
        if place is not None:
            inner = self._stack[place:]
            del self._stack[place:]
            for _, changes in inner:
                self.current.merge(changes)

    def roll_back_to(self, name: str) -> ChangeSet:
        """
        The transaction went back to a savepoint: what was changed since is undone.

        Returns:
            What that was.
        """
        undone = ChangeSet(self._dialect)
        place = self._place(name)
        if place is not None:
            for _, changes in self._stack[place:]:
                undone.merge(changes)
            del self._stack[place:]
            self.open(name)
        return undone

    def merged(self) -> ChangeSet:
        """Return all that the transaction changed, as if it committed now."""
        total = ChangeSet(self._dialect)
        for changes in self:
            total.merge(changes)
        return total

    def _place(self, name: str) -> int | None:
        places = (place for place in range(len(self._stack) - 1, 0, -1) if self._stack[place][0] == name)
        return next(places, None)


def bare_name(table: str) -> str:
    """Return an escaped name without its schema."""
    return table.rpartition(".")[2]
