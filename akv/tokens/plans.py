"""
A compiled statement -> what it will write, before its parameters are known.

Analysed once per compiled form: SQLAlchemy keeps those, and so do we.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BindParameter,
    BooleanClauseList,
    Column,
    ColumnClause,
    Delete,
    FromClause,
    Insert,
    Table,
    TypeDecorator,
    Update,
    inspect,
)
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement, Grouping, Tuple
from sqlalchemy.sql.selectable import AliasedReturnsRows
from sqlalchemy.types import TypeEngine

from akv.tokens.schema import relations_of, replaces_on_conflict, tables_of

Kind: TypeAlias = Literal["insert", "update", "delete"]
Parameters: TypeAlias = Mapping[str, Any]
Pins: TypeAlias = dict["str | tuple[str, ...]", Callable[[Parameters], Sequence[Any]]]
"""
Columns that a WHERE clause fixes, by key, each with a reader of its possible values.

Several columns together where they are fixed together: then the values are tuples.
"""

MAX_ALTERNATIVES: Final = 64
_SEVERAL_TABLES: Final = re.compile(r"^UPDATE .*(?:,| JOIN )", re.DOTALL)
_NAME: Final = r"(?:`[^`]*`|[^\s,`.]+)"
_SET_COLUMN: Final = re.compile(rf"(?:^|, )(?:({_NAME}(?:\.{_NAME})?)\.)?{_NAME}=")


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
        columns: Their names in the database; None: any column may change.
        widened: Whether its rows can never be told (upsert, INSERT from SELECT, conflict clauses).
        beside: Other tables of which rows are written too: those of a mapped class, those that a MariaDB UPDATE sets.
    """

    kind: Kind
    table: Table
    alternatives: tuple[Pins, ...]
    assigned: frozenset[str]
    columns: frozenset[str] | None
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
    table = original_of(table)
    kind = _kind(element)
    beside = () if kind == "delete" else _beside(element, table)
    if beside and top:
        table, beside = _executed_on(kind, table, beside, compiled)
    replaces = not table.primary_key.columns or replaces_on_conflict(table)
    if isinstance(element, Insert):
        widened = replaces or not top or element.select is not None or _resolves_conflicts(compiled.string)
        columns = None if widened else frozenset[str]()
        return Plan(kind, table, (), frozenset(), columns, widened, beside)
    beside += _set_beside(element, table, compiled)
    assigned = _assigned(compiled, table)
    widened = replaces or (_is_replacing(compiled.string) if top else not _keeps_keys(table, assigned))
    columns = None if widened else frozenset(table.columns[key].name for key in assigned)
    where = element.whereclause if isinstance(element, Update | Delete) else None
    alternatives = tuple(alternatives_of(where, table, compiled.bind_names))
    return Plan(kind, table, alternatives, assigned, columns, widened, beside)


def original_of(table: Table) -> Table:
    """Return the Table of the application: the ORM hands out annotated copies."""
    return table.metadata.tables.get(table.key, table)


def _keeps_keys(table: Table, assigned: frozenset[str]) -> bool:
    """Tell whether a statement that is part of another one sets nothing whose value we need: names may be taken."""
    keys = {*table.primary_key.columns, *(column for link in relations_of(table).parents for column in link.local)}
    return assigned.isdisjoint(column.key for column in keys)


def _kind(element: UpdateBase) -> Kind:
    if isinstance(element, Insert):
        return "insert"
    return "update" if isinstance(element, Update) else "delete"


def _beside(element: UpdateBase, table: Table) -> tuple[Table, ...]:
    """Name the other tables of a mapped class: the ORM executes one statement for each, all of one appearance."""
    try:
        entity = element.entity_description.get("entity")
    except KeyError:
        return ()  # a Table, in a statement that the ORM handles for the sake of its WHERE
    mapper = inspect(entity, raiseerr=False) if isinstance(entity, type) else None
    if not isinstance(mapper, Mapper):
        return ()
    return tuple(other for other in tables_of(mapper) if other is not table)


def _executed_on(kind: Kind, table: Table, beside: tuple[Table, ...], compiled: Any) -> tuple[Table, tuple[Table, ...]]:
    """Tell which of the tables of a mapped class this one statement is about, if its text tells."""
    for each in (table, *beside):
        name = compiled.preparer.format_table(each)
        if compiled.string.startswith((f"UPDATE {name} SET ", f"INSERT INTO {name} (")):
            return each, ()
    return table, beside


def _set_beside(element: UpdateBase, table: Table, compiled: Any) -> tuple[Table, ...]:
    """Name the other tables that a MariaDB UPDATE of several tables sets; under an alias, it could be any of them."""
    head, _, tail = compiled.string.partition(" SET ")
    if not isinstance(element, Update) or not _SEVERAL_TABLES.search(head):
        return ()
    read = {original_of(each) for each in map(_owner, visitors.iterate(element)) if isinstance(each, Table)} - {table}
    names = {each: compiled.preparer.format_table(each) for each in (table, *read)}
    owners = {owner for owner in _SET_COLUMN.findall(tail) if owner}
    if owners and owners <= set(names.values()):
        read = {each for each in read if names[each] in owners}
    return tuple(sorted(read, key=lambda each: each.key))


def _owner(element: Any) -> Any:
    """Return the table that an element is, or is a column of, whatever its alias."""
    owner = element.table if isinstance(element, Column) else element
    while isinstance(owner, AliasedReturnsRows):
        owner = owner.element
    return owner


def _resolves_conflicts(sql: str) -> bool:
    return "ON CONFLICT" in sql or "ON DUPLICATE KEY" in sql or not _starts_plainly(sql, "INSERT INTO")


def _is_replacing(sql: str) -> bool:
    return not (_starts_plainly(sql, "UPDATE ") or _starts_plainly(sql, "DELETE ")) or sql.startswith("UPDATE OR ")


def _starts_plainly(sql: str, start: str) -> bool:
    return sql.lstrip().startswith(start)


def _assigned(compiled: Any, table: Table) -> frozenset[str]:
    """
    Name the columns that an UPDATE sets.

    SQLAlchemy writes ``SET name=...`` without blanks, and comparisons with; MariaDB's UPDATE of several tables has
    ``SET table.name=...``.
    """
    quote = compiled.preparer.format_column
    return frozenset(
        column.key
        for column in table.columns
        if f" {quote(column)}=" in compiled.string or f".{quote(column)}=" in compiled.string
    )


def alternatives_of(clause: Any, table: FromClause, names: Mapping[Any, str]) -> list[Pins]:
    """
    Return what rows for which *clause* holds have in common.

    Args:
        clause: A WHERE clause.
        table: The table whose rows are meant, or an alias of it.
        names: The compiled statement's names of parameters.

    Returns:
        Every such row agrees with at least one of the alternatives; an empty one agrees with every row.
    """
    if isinstance(clause, Grouping):
        return alternatives_of(clause.element, table, names)
    if isinstance(clause, BooleanClauseList):
        parts = [alternatives_of(part, table, names) for part in clause.clauses]
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


def _comparison(clause: BinaryExpression[Any], table: FromClause, names: Mapping[Any, str]) -> Pins:
    left: ColumnElement[Any] = clause.left
    right: ColumnElement[Any] = clause.right
    if isinstance(left, Tuple):
        return _tuples(clause, left, table, names)
    if clause.operator is operators.eq and isinstance(left, BindParameter):
        left, right = right, left
    if not isinstance(right, BindParameter) or not is_column_of(left, table) or right not in names:
        return {}
    if not _is_sent_as(right.type, left.type):
        return {}
    if clause.operator is operators.eq:
        return {str(left.key): _one(names[right])}
    if clause.operator is operators.in_op:
        return {str(left.key): _many(names[right])}
    return {}


def _tuples(clause: BinaryExpression[Any], left: Tuple, table: FromClause, names: Mapping[Any, str]) -> Pins:
    members = tuple(left.clauses)
    fits = clause.operator is operators.in_op and all(is_column_of(member, table) for member in members)
    types = getattr(clause.right.type, "types", ())
    if not fits or clause.right not in names or not all(map(_is_sent_as, types, (each.type for each in members))):
        return {}
    return {tuple(str(member.key) for member in members): _many_tuples(names[clause.right], len(members))}


def is_column_of(element: Any, table: FromClause) -> bool:
    """Tell whether an expression is a column of *table*, or of the alias that it is; the ORM hands out copies."""
    owner = getattr(element, "table", None)
    if isinstance(table, Table):
        return isinstance(element, Column) and isinstance(owner, Table) and owner.key == table.key
    return owner is not None and isinstance(element, ColumnClause) and hash(owner) == hash(table)


def _is_sent_as(type_: TypeEngine[Any], of_column: TypeEngine[Any]) -> bool:
    """Tell whether a parameter says what the column would hold: a type may make another value of it on the way."""
    if type_ is of_column:
        return True
    decorated = isinstance(type_, TypeDecorator) or isinstance(of_column, TypeDecorator)
    return not decorated and type_._type_affinity is of_column._type_affinity


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


def _many_tuples(name: str, width: int) -> Callable[[Parameters], Sequence[Any]]:
    def read(parameters: Parameters) -> Sequence[Any]:
        """Read an expanding parameter of tuples: a list, or ``name_1_1``, ``name_1_2``, … once it was expanded."""
        if isinstance(parameters.get(name), list | tuple):
            return parameters[name]  # type: ignore[no-any-return]
        values: list[tuple[Any, ...]] = []
        while f"{name}_{len(values) + 1}_1" in parameters:
            row = len(values) + 1
            values.append(tuple(parameters[f"{name}_{row}_{place}"] for place in range(1, width + 1)))
        if not values:
            raise Unknown
        return values

    return read
