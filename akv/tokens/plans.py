"""
A compiled statement -> what it will write, before its parameters are known.

Analysed once per compiled form: SQLAlchemy keeps those, and so do we.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import BindParameter, BooleanClauseList, Column, Delete, Insert, Table, Update, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement, Grouping

from akv.tokens.schema import replaces_on_conflict, tables_of

Kind: TypeAlias = Literal["insert", "update", "delete"]
Parameters: TypeAlias = Mapping[str, Any]
Pins: TypeAlias = dict[str, Callable[[Parameters], Sequence[Any]]]
"""Columns that a WHERE clause fixes, by key, each with a reader of its possible values."""

MAX_ALTERNATIVES: Final = 64


class Unknown(Exception):  # noqa: N818 - not an error: unwinds to where the statement is widened
    """The rows of a statement cannot be told from its parameters."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What one compiled statement writes, before its parameters are known.

    Attributes:
        kind: What it does.
        table: The table it names.
        alternatives: For UPDATE and DELETE, what the rows it may hit have in common; one suffices for a row.
        assigned: Keys of the columns that an UPDATE sets.
        widened: Whether its rows can never be told (upsert, INSERT from SELECT, conflict clauses).
        beside: Other tables of a mapped class, some of whose rows belong to those written.
    """

    kind: Kind
    table: Table
    alternatives: tuple[Pins, ...]
    assigned: frozenset[str]
    widened: bool
    beside: tuple[Table, ...]


_plans: weakref.WeakKeyDictionary[Any, tuple[Plan, ...] | None] = weakref.WeakKeyDictionary()


def plans_of(compiled: Any) -> tuple[Plan, ...] | None:
    """
    Return what a compiled statement writes.

    Returns:
        A plan for each INSERT, UPDATE and DELETE in it; None if it writes something that no plan describes.
    """
    try:
        return _plans[compiled]
    except KeyError:
        plans = _plans[compiled] = _analyse(compiled)
        return plans


def _analyse(compiled: Any) -> tuple[Plan, ...] | None:
    statement = getattr(compiled, "statement", None)
    if statement is None:
        return None
    plans = []
    for element in visitors.iterate(statement):
        if isinstance(element, UpdateBase):
            plan = _plan(element, compiled, top=element is statement)
            if plan is None:
                return None
            plans.append(plan)
    return tuple(plans) or None


def _plan(element: UpdateBase, compiled: Any, *, top: bool) -> Plan | None:
    table = getattr(element, "table", None)
    if not isinstance(table, Table):
        return None
    table = table.metadata.tables.get(table.key, table)  # the ORM hands out annotated copies
    kind = _kind(element)
    beside = () if kind == "delete" else _beside(element, table)
    widened = not top or not table.primary_key.columns or replaces_on_conflict(table)
    if isinstance(element, Insert):
        widened = widened or element.select is not None or _resolves_conflicts(compiled.string)
        return Plan(kind, table, (), frozenset(), widened, beside)
    where = element.whereclause if isinstance(element, Update | Delete) else None
    alternatives = tuple(_alternatives(where, table, compiled.bind_names))
    return Plan(
        kind, table, alternatives, _assigned(compiled, table), widened or _is_replacing(compiled.string), beside
    )


def _kind(element: UpdateBase) -> Kind:
    if isinstance(element, Insert):
        return "insert"
    return "update" if isinstance(element, Update) else "delete"


def _beside(element: UpdateBase, table: Table) -> tuple[Table, ...]:
    """Name the other tables of a mapped class: the ORM executes one statement for each, all of one appearance."""
    entity = element.entity_description.get("entity")
    mapper = inspect(entity, raiseerr=False) if isinstance(entity, type) else None
    if not isinstance(mapper, Mapper):
        return ()
    return tuple(other for other in tables_of(mapper) if other is not table)


def _resolves_conflicts(sql: str) -> bool:
    return "ON CONFLICT" in sql or "ON DUPLICATE KEY" in sql or not _starts_plainly(sql, "INSERT INTO")


def _is_replacing(sql: str) -> bool:
    return not (_starts_plainly(sql, "UPDATE ") or _starts_plainly(sql, "DELETE ")) or sql.startswith("UPDATE OR ")


def _starts_plainly(sql: str, start: str) -> bool:
    return sql.lstrip().startswith(start)


def _assigned(compiled: Any, table: Table) -> frozenset[str]:
    """Name the columns that an UPDATE sets: SQLAlchemy writes ``SET name=...`` without, comparisons with blanks."""
    quote = compiled.preparer.format_column
    return frozenset(column.key for column in table.columns if f" {quote(column)}=" in compiled.string)


def _alternatives(clause: Any, table: Table, names: Mapping[Any, str]) -> list[Pins]:
    """
    Return what rows for which *clause* holds have in common.

    Every such row agrees with at least one of the alternatives; an empty one agrees with every row.
    """
    if isinstance(clause, Grouping):
        return _alternatives(clause.element, table, names)
    if isinstance(clause, BooleanClauseList):
        parts = [_alternatives(part, table, names) for part in clause.clauses]
        if clause.operator is operators.or_:
            return [pins for part in parts for pins in part]
        if clause.operator is operators.and_:
            return _both(parts)
    if isinstance(clause, BinaryExpression):
        return [_comparison(clause, table, names)]
    return [{}]


def _both(parts: Iterable[list[Pins]]) -> list[Pins]:
    result: list[Pins] = [{}]
    for part in parts:
        if len(result) * len(part) <= MAX_ALTERNATIVES:
            result = [{**left, **right} for left in result for right in part]
    return result


def _comparison(clause: BinaryExpression[Any], table: Table, names: Mapping[Any, str]) -> Pins:
    left: ColumnElement[Any] = clause.left
    right: ColumnElement[Any] = clause.right
    if clause.operator is operators.eq and isinstance(left, BindParameter):
        left, right = right, left
    if not isinstance(right, BindParameter) or not _is_column(left, table) or right not in names:
        return {}
    if clause.operator is operators.eq:
        return {str(left.key): _one(names[right])}
    if clause.operator is operators.in_op:
        return {str(left.key): _many(names[right])}
    return {}


def _is_column(element: Any, table: Table) -> bool:
    owner = getattr(element, "table", None)
    return isinstance(element, Column) and isinstance(owner, Table) and owner.key == table.key


def _one(name: str) -> Callable[[Parameters], Sequence[Any]]:
    def read(parameters: Parameters) -> Sequence[Any]:
        if name not in parameters:
            raise Unknown
        return (parameters[name],)

    return read


def _many(name: str) -> Callable[[Parameters], Sequence[Any]]:
    def read(parameters: Parameters) -> Sequence[Any]:
        """Read an expanding parameter: a list, or ``name_1``, ``name_2``, … once it was expanded."""
        if isinstance(parameters.get(name), list | tuple):
            return parameters[name]  # type: ignore[no-any-return]
        values: list[Any] = []
        while f"{name}_{len(values) + 1}" in parameters:
            values.append(parameters[f"{name}_{len(values) + 1}"])
        if not values:
            raise Unknown
        return values

    return read
