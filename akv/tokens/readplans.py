"""
A compiled statement -> what it reads, before its parameters are known.

Rows where its WHERE pins the primary key of every appearance of a table, any row
of the table otherwise. The text of the statement has the last word on how often
a table appears: a correlated subquery, an alias or a piece of literal SQL hides
nothing in it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    Alias,
    BooleanClauseList,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Integer,
    Join,
    Lateral,
    Select,
    Subquery,
    Table,
    Uuid,
)
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, Grouping
from sqlalchemy.sql.selectable import CTE, FromGrouping, SelectStatementGrouping

from akv.tokens.capture import possible_keys
from akv.tokens.drivers import Dialect
from akv.tokens.identifiers import table_identifier
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.queries import Query, query_of
from akv.tokens.plans import Parameters, Pins, Unknown, alternatives_of, is_column_of, original_of
from akv.tokens.schema import is_own, name_of, row_of

MAX_ROWS: Final = 200
"""A statement that reads more rows than this by their keys counts as reading any row of the table."""

_TRANSLATED: Final = re.compile(r"__\[SCHEMA_[^\]]*\]\.")
"""What SQLAlchemy replaces just before it executes, where there is a ``schema_translate_map``."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ReadPlan:
    """
    What one compiled statement reads, before its parameters are known.

    Attributes:
        rows: Tables of which only rows with known keys matter, with what those rows have in common.
        tables: Those of which any row matters.
        named: Tables and views that stand in its text and for which the application's statement has no Table.
        relations: All of them, by name.
        query: What its text says.
        is_silent: It reads nothing that anybody writes.
    """

    rows: tuple[tuple[Table, tuple[Pins, ...]], ...]
    tables: tuple[Table, ...]
    named: frozenset[Relation]
    relations: frozenset[Relation]
    query: Query
    is_silent: bool

    def names(self, table: str) -> bool:
        """Tell whether one of the application's Tables in the statement has this name, as SQLite compares names."""
        described = (*self.tables, *(each for each, _ in self.rows))
        return any(each.name.lower() == table.lower() for each in described)

    def identifiers(self, dialect: Dialect, sets: Sequence[Parameters]) -> set[str]:
        """Return the rows and tables that an execution with these parameters reads."""
        found = {table_identifier(name_of(table)) for table in self.tables}
        for table, alternatives in self.rows:
            found |= _rows(table, alternatives, dialect, sets)
        return found


_plans: weakref.WeakKeyDictionary[Any, ReadPlan] = weakref.WeakKeyDictionary()


def read_plan_of(dialect: Dialect, sql: str, compiled: Any) -> ReadPlan:
    """
    Return what a statement reads.

    Args:
        dialect: Who runs it.
        sql: Its text.
        compiled: What SQLAlchemy made it of, or None.
    """
    if compiled is None:
        return _plan_of_text(dialect, sql)
    plan = _plans.get(compiled)
    if plan is None:
        plan = _plans[compiled] = _analyse(dialect, compiled)
    return plan


@lru_cache(maxsize=1024)
def _plan_of_text(dialect: Dialect, sql: str) -> ReadPlan:
    query = query_of(dialect, sql)
    names = frozenset(query.relations)
    return ReadPlan((), (), names, names, query, _is_silent(dialect, query))


def _is_silent(dialect: Dialect, query: Query) -> bool:
    """Tell whether nobody needs to be asked: of SQLite, the text is not the last word."""
    return query.is_silent or (dialect != "sqlite" and not (query.relations or query.calls or query.refusal))


def _analyse(dialect: Dialect, compiled: Any) -> ReadPlan:
    query = query_of(dialect, _TRANSLATED.sub("", compiled.string))
    # The statement that the ORM makes of the one that it was given, with joins for what is loaded eagerly.
    statement = getattr(getattr(compiled, "compile_state", None), "statement", None)
    statement = compiled.statement if statement is None else statement
    is_translated = _TRANSLATED.search(compiled.string) is not None
    names = {
        table: Relation("" if is_translated else table.schema or "", table.name) for table in _tables_in(statement)
    }
    pinned = _pinned(statement, compiled.bind_names) if query.relations else {}
    rows = {
        table: tuple(pins for alternatives in pinned[table] for pins in alternatives)
        for table, name in names.items()
        if len(pinned.get(table, ())) == query.relations.get(name, 0) > 0
    }
    others = {table: name for table, name in names.items() if not is_own(table)}
    named = frozenset(query.relations.keys() - set(names.values()))
    return ReadPlan(
        rows=tuple((table, rows[table]) for table in others if table in rows),
        tables=tuple(table for table in others if table not in rows),
        named=named,
        relations=named | frozenset(others.values()),
        query=query,
        is_silent=_is_silent(dialect, query),
    )


def _tables_in(statement: Any) -> list[Table]:
    found = {original_of(element) for element in visitors.iterate(statement) if isinstance(element, Table)}
    return sorted(found, key=lambda table: table.key)


def _rows(table: Table, alternatives: Sequence[Pins], dialect: Dialect, sets: Sequence[Parameters]) -> set[str]:
    """Return the rows that may be met, or the table where one of them cannot be named."""
    columns = list(table.primary_key.columns)
    found: set[str] = set()
    whole = {table_identifier(name_of(table))}
    for parameters in sets:
        for pins in alternatives:
            try:
                keys = possible_keys(pins, columns, parameters)
            except Unknown:
                return whole
            for key in keys:
                row = row_of(table, key) if not _may_fold(dialect, key) else None
                if row is None or len(found) >= MAX_ROWS:
                    return whole
                found.add(row)
    return found


def _may_fold(dialect: Dialect, key: Sequence[Any]) -> bool:
    """Tell whether a key may find a row that is spelled otherwise: MariaDB folds text and rounds times."""
    return dialect == "mysql" and any(
        isinstance(value, str) or (isinstance(value, datetime | time) and value.microsecond) for value in key
    )


# --- what WHERE pins --------------------------------------------------------------------------------------------------


def _pinned(statement: Any, names: Mapping[Any, str]) -> dict[Table, list[list[Pins]]]:
    """Return the appearances of tables whose rows have known keys, as far as SELECTs in FROM are followed."""
    found: dict[Table, list[list[Pins]]] = {}
    for select in _selects(statement, set()):
        sources = [source for each in select.get_final_froms() for source in _sources(each)]
        equal = list(_equalities(select))
        where = select.whereclause
        known = {source: alternatives_of(where, source, names) for source in sources}
        _spread(known, equal)
        for source, alternatives in known.items():
            table = _table_of(source)
            if _names_rows(table, alternatives):
                found.setdefault(original_of(table), []).append(alternatives)
    return found


def _selects(element: Any, seen: set[int]) -> Iterator[Select[Any]]:
    """
    Yield the SELECTs that a statement consists of: its own, those of a UNION and those that it reads FROM.

    None of them can be correlated, so each reads all tables of its FROM itself.
    """
    if id(element) in seen or isinstance(element, Lateral):
        return
    seen.add(id(element))
    if isinstance(element, Select):
        yield element
    for part in _parts(element):
        yield from _selects(part, seen)


def _parts(element: Any) -> Sequence[Any]:
    if isinstance(element, Select):
        return element.get_final_froms()
    if isinstance(element, CompoundSelect):
        return element.selects
    if isinstance(element, Join):
        return (element.left, element.right)
    return (element.element,) if isinstance(element, Subquery | CTE | FromGrouping | SelectStatementGrouping) else ()


def _sources(element: Any) -> Iterator[FromClause]:
    """Yield the tables, and aliases of tables, that one item of a FROM joins."""
    if isinstance(element, Join):
        yield from _sources(element.left)
        yield from _sources(element.right)
    elif isinstance(element, FromGrouping):
        yield from _sources(element.element)
    elif isinstance(element, Table) or (isinstance(element, Alias) and isinstance(element.element, Table)):
        yield element


def _table_of(source: Any) -> Table:
    table: Table = source if isinstance(source, Table) else source.element
    return table


def _names_rows(table: Table, alternatives: Sequence[Pins]) -> bool:
    keys = {column.key for column in table.primary_key.columns}
    return bool(keys) and all(keys <= _columns(pins) for pins in alternatives)


def _columns(pins: Pins) -> set[str]:
    return {column for names in pins for column in ((names,) if isinstance(names, str) else names)}


def _equalities(select: Select[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of expressions that are equal wherever both their rows are part of one row of the result."""
    clauses: list[Any] = [select.whereclause]
    clauses += [join.onclause for each in select.get_final_froms() for join in _joins(each)]
    while clauses:
        clause = clauses.pop()
        if isinstance(clause, Grouping):
            clauses.append(clause.element)
        elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            clauses.extend(clause.clauses)
        elif isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
            yield clause.left, clause.right
            yield clause.right, clause.left


def _joins(element: Any) -> Iterator[Join]:
    if isinstance(element, Join):
        yield element
        yield from _joins(element.left)
        yield from _joins(element.right)
    elif isinstance(element, FromGrouping):
        yield from _joins(element.element)


def _spread(known: dict[FromClause, list[Pins]], equal: Sequence[tuple[Any, Any]]) -> None:
    """Pin the key of a source that is equal to pinned columns of another one, until nothing new is learned."""
    waiting = [source for source, pins in known.items() if not _names_rows(_table_of(source), pins)]
    learned = True
    while learned:
        learned = False
        for source in list(waiting):
            for other in known:
                alternatives = _through(source, other, known[other], equal) if other is not source else None
                if alternatives is not None:
                    known[source] = alternatives
                    waiting.remove(source)
                    learned = True
                    break


def _through(
    source: FromClause, other: FromClause, pins: Sequence[Pins], equal: Sequence[tuple[Any, Any]]
) -> list[Pins] | None:
    """Return the alternatives of *source* whose key is equal to columns of *other*; None: it is not."""
    found = {
        str(left.key): str(right.key)
        for left, right in equal
        if is_column_of(left, source) and is_column_of(right, other) and _never_folds(left) and _never_folds(right)
    }
    keys = [str(column.key) for column in _table_of(source).primary_key.columns]
    if not keys or not all(key in found for key in keys):
        return None
    if not all(found[key] in alternative for alternative in pins for key in keys):
        return None
    return [{key: alternative[found[key]] for key in keys} for alternative in pins]


def _never_folds(column: ColumnElement[Any]) -> bool:
    """Tell whether equal values of a column are the same value: text may be compared by another column's rules."""
    return column.type._type_affinity in (Integer, Uuid)
