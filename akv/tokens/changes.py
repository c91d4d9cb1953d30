"""
What one transaction has changed so far: a change set per savepoint, merged or dropped as savepoints end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Table

from akv.tokens.identifiers import ANYTHING, GLOBAL_WRITE_TOKEN, table_identifier, unknown_rows
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
        anything: Something was written and nobody knows what.
        extra: Identifiers that were named outright.
        unresolved: Rows whose parents the flush that wrote them may still tell; those it does not tell count as
            "some row of the parent table".
        beside_flush: Something else than a flush wrote too, so that instances may not know what changed.
    """

    __slots__ = ("_rows", "_tables", "_unknown", "anything", "beside_flush", "extra", "unresolved")

    def __init__(self) -> None:
        self.anything = False
        self.extra: set[str] = set()
        self.unresolved: list[Unresolved] = []
        self.beside_flush = False
        self._rows: dict[str, set[str]] = {}
        self._tables: set[str] = set()
        self._unknown: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.anything or self.extra or self._rows or self._tables)

    @property
    def is_flushed(self) -> bool:
        """Whether all of it was written by flushes, so that the instances of those rows know."""
        return not (self.anything or self.beside_flush)

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

    def merge(self, other: ChangeSet) -> None:
        """Add everything that *other* holds."""
        self.anything |= other.anything
        self.beside_flush |= other.beside_flush
        self.extra |= other.extra
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

    __slots__ = ("_stack",)

    def __init__(self) -> None:
        self._stack: list[tuple[str | None, ChangeSet]] = [(None, ChangeSet())]

    def __iter__(self) -> Iterator[ChangeSet]:
        return (changes for _, changes in self._stack)

    @property
    def current(self) -> ChangeSet:
        """The change set of the innermost savepoint."""
        return self._stack[-1][1]

    def open(self, name: str) -> None:
        """A savepoint was set."""
        self._stack.append((name, ChangeSet()))

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
        undone = ChangeSet()
        place = self._place(name)
        if place is not None:
            for _, changes in self._stack[place:]:
                undone.merge(changes)
            del self._stack[place:]
            self.open(name)
        return undone

    def merged(self) -> ChangeSet:
        """Return all that the transaction changed, as if it committed now."""
        total = ChangeSet()
        for changes in self:
            total.merge(changes)
        return total

    def _place(self, name: str) -> int | None:
        places = (place for place in range(len(self._stack) - 1, 0, -1) if self._stack[place][0] == name)
        return next(places, None)
