"""
What a database does on its own when tables are written, as its catalog says: triggers, foreign keys, partitions, views.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from akv.tokens.changes import ChangeSet, bare_name
from akv.tokens.identifiers import table_name


class Relation(NamedTuple):
    """A table or view, as the database calls it."""

    schema: str
    name: str


class ForeignKey(NamedTuple):
    """
    A foreign key that does more than forbid.

    Attributes:
        child: The table whose rows the database changes.
        local: The referring columns of the child.
        columns: What they refer to: a row that stays, and changes none of these, changes no child.
        removes: Whether rows of the child go with those of the parent.
        empties: Whether they are changed when rows of the parent go.
        updates: Whether they are changed when *columns* are.
    """

    child: Relation
    local: frozenset[str]
    columns: frozenset[str]
    removes: bool
    empties: bool
    updates: bool


@dataclass(frozen=True)
class Catalog:
    """
    One reading of a database's catalog.

    Tables are found by their bare, escaped name, whatever the schema: one too many does no harm.

    Attributes:
        functions: Names of functions that may write, in lower case.
        views: Names of what calls such functions when it is read, in lower case.
        triggers: Tables and views where a write may write anything else.
        keys: Foreign keys that act on rows of other tables, by the table that they refer to.
        beneath: The tables and views that a view reads.
        wholes: What a table is a partition of, or inherits from.
        parts: The partitions and heirs of a table: they are named only where the application knows them.
        deferrable: Whether there are triggers that may wait for COMMIT.
        is_blind: Whether triggers were not shown, so that any write may write anything.
        is_whole: Whether it is worth keeping; else something was being redefined when it was read.
    """

    functions: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()
    triggers: frozenset[str] = frozenset()
    keys: Mapping[str, Collection[ForeignKey]] = field(default_factory=dict)
    beneath: Mapping[str, Collection[Relation]] = field(default_factory=dict)
    wholes: Mapping[str, Collection[Relation]] = field(default_factory=dict)
    parts: Mapping[str, Collection[Relation]] = field(default_factory=dict)
    deferrable: bool = False
    is_blind: bool = False
    is_whole: bool = True

    def concerns(self, tables: Iterable[str]) -> bool:
        """Tell whether writing *tables* may change more than what was written."""
        return self.is_blind or any(
            bare in known
            for bare in map(bare_name, tables)
            for known in (self.triggers, self.keys, self.beneath, self.wholes, self.parts)
        )

    def may_fire(self, tables: Iterable[str]) -> list[str]:
        """Return those of *tables* where a write may write anything else."""
        return [name for name in tables if self.is_blind or bare_name(name) in self.triggers]

    def follow(self, changes: ChangeSet) -> None:
        """Add what the database changed on its own, as far as its catalog names the tables."""
        walk = _Walk({bare_name(table): "" for table in changes.tables}, set())
        done: set[_Step] = set()
        while steps := [
            step for table in walk.tables for step in self._steps(table, walk, changes) if step not in done
        ]:
            for step in steps:
                done.add(step)
                walk.take(step)
                add_rows(changes, step.relation, lost=step.lost, columns=step.columns)

    def _steps(self, table: str, walk: _Walk, changes: ChangeSet) -> Iterator[_Step]:
        for key in self.keys.get(table, ()):
            if key.removes and changes.may_lose_rows(table):
                yield _Step(key.child)
            elif (key.empties and changes.may_lose_rows(table)) or (
                key.updates and changes.assigns(table, key.columns)
            ):
                yield _Step(key.child, lost=False, columns=key.local)
        for below in self.beneath.get(table, ()):
            yield _Step(below)
        for whole in self.wholes.get(table, ()):
            if walk.written.get(table) != table_name(whole.name):
                yield _Step(whole, goes="up")
        if table in walk.written:
            for part in self.parts.get(table, ()):
                if changes.knows(part.name):
                    yield _Step(part, goes="down", origin=table)


class _Step(NamedTuple):
    """A table that changed because another one did; without *columns* any of its columns may have."""

    relation: Relation
    lost: bool = True
    columns: frozenset[str] | None = None
    goes: Literal["up", "down", ""] = ""
    origin: str = ""


class _Walk(NamedTuple):
    """
    Where a walk along the catalog has been, so that it goes up from a partition and never down again to the others.

    Attributes:
        written: Tables that were written, with the table they are parts of if they were reached from that.
        touched: Tables of which only parts were written.
    """

    written: dict[str, str]
    touched: set[str]

    @property
    def tables(self) -> list[str]:
        """All of them."""
        return [*self.written, *self.touched]

    def take(self, step: _Step) -> None:
        """Note where a step led."""
        table = table_name(step.relation.name)
        if step.goes == "up":
            self.touched.update({table} - self.written.keys())
        else:
            self.written.setdefault(table, step.origin)


def add_rows(
    changes: ChangeSet, relation: Relation, *, lost: bool = True, columns: frozenset[str] | None = None
) -> None:
    """
    Add that rows of a table changed, nobody knows which, under every name that an application may have for it.

    Args:
        changes: Where to add.
        relation: The table. A Table without schema is found through the search path, one with a schema by that, or
            by what ``schema_translate_map`` makes of it: all of these change.
        lost: Whether rows may have gone.
        columns: Which columns may have changed; None: any.
    """
    for name in changes.spellings(*relation):
        changes.add_unknown(name)
    changes.add_effect(relation.name, lost=lost, columns=columns)
