"""
What tables and mappers say: names, rows, parents, and what the database changes on its own.

Nothing here is executed and nothing is loaded; everything is derived from
metadata, once per table.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import (
    CHAR,
    NCHAR,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    String,
    Table,
    Time,
    Uuid,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import Mapper, MapperProperty, RelationshipDirection, RelationshipProperty
from sqlalchemy.types import TypeEngine

from akv.tokens.identifiers import row_identifier, table_name

Key: TypeAlias = tuple[Any, ...]
"""Values of a table's primary key, in the order of its columns."""

OWN: Final = "akv"
"""Tables whose ``info`` holds a true value under this key are akv's own: writing them changes no identifier."""

_CHANGING_ACTIONS: Final = ("CASCADE", "SET NULL", "SET DEFAULT")


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """
    A reference from rows of a table to a parent's, by foreign key or many-to-one relationship.

    Attributes:
        parent: The table that is pointed at.
        local: The referring columns; where *exact*, in the order of the parent's primary key.
        exact: Whether the columns name the parent's primary key, and with it the row.
        extends: Whether they are the whole primary key, so that a row continues the parent's (joined inheritance).
    """

    parent: Table
    local: tuple[Column[Any], ...]
    exact: bool
    extends: bool


@dataclass(frozen=True, slots=True)
class Action:
    """
    What the database does to rows of another table when one of this table changes.

    Attributes:
        child: The other table.
        link: Leads from it to this one.
        cascades: Whether the same then happens to what refers to those rows.
    """

    child: Table
    link: Link
    cascades: bool


@dataclass(frozen=True, slots=True)
class Relations:
    """
    What the foreign keys around one table say.

    Attributes:
        parents: The rows that its own rows point at.
        deleted: What happens elsewhere when one of its rows goes.
        rekeyed: What happens elsewhere when one of its rows changes a column that others refer to.
    """

    parents: tuple[Link, ...]
    deleted: tuple[Action, ...]
    rekeyed: tuple[Action, ...]


_relations: weakref.WeakKeyDictionary[Table, tuple[int, Relations]] = weakref.WeakKeyDictionary()
_names: weakref.WeakKeyDictionary[Table, str] = weakref.WeakKeyDictionary()
_links: weakref.WeakKeyDictionary[Any, Link] = weakref.WeakKeyDictionary()
_soft_links: weakref.WeakKeyDictionary[Mapper[Any], tuple[Link, ...]] = weakref.WeakKeyDictionary()


def name_of(table: Table) -> str:
    """Return the escaped, schema-qualified name of *table*, as it stands in identifiers."""
    name = _names.get(table)
    if name is None:
        name = _names[table] = table_name(table.name, table.schema)
    return name


def is_own(table: Table) -> bool:
    """Tell whether *table* is one of akv's own, which no identifier speaks of."""
    return bool(table.info.get(OWN))


def relations_of(table: Table) -> Relations:
    """Return the links from and to *table*, as far as its metadata knows them by now."""
    size = len(table.metadata.tables)
    known = _relations.get(table)
    if known is None or known[0] != size:
        known = _relations[table] = (size, _find_relations(table))
    return known[1]


def row_of(table: Table, key: Key) -> str | None:
    """
    Return the identifier of a row, or None where another spelling of the key might name the same row.

    A database may store a value in a form of its own (a padded CHAR, a rounded
    number): what was written then differs from what is read back, and only the
    table can be named safely.
    """
    columns = list(table.primary_key.columns)
    if not columns or not all(map(is_plain, columns, key)):
        return None
    return row_identifier(name_of(table), key)


def is_plain(column: Column[Any], value: Any) -> bool:
    """Tell whether *value*, written into *column*, is read back as equal by everybody."""
    if isinstance(value, Enum):
        return False
    variants = getattr(column.type, "_variant_mapping", {}).values()
    return all(_keeps(type_, value) for type_ in (column.type, *variants))


def _keeps(type_: TypeEngine[Any], value: Any) -> bool:
    if isinstance(type_, Integer | Boolean):
        return isinstance(value, int)
    if isinstance(type_, String):
        folding = type_.collation is not None or isinstance(type_, CHAR | NCHAR | EnumType) or _is_citext(type_)
        return isinstance(value, str) and not folding
    if isinstance(type_, Uuid):
        return isinstance(value, UUID) and type_.as_uuid
    if isinstance(type_, LargeBinary):
        return isinstance(value, bytes)
    if type(type_) in (Date, DateTime, Time):
        expected = {Date: date, DateTime: datetime, Time: time}[type(type_)]
        return type(value) is expected and getattr(value, "tzinfo", None) is None
    return False


def _is_citext(type_: TypeEngine[Any]) -> bool:
    return type_.__visit_name__ == "CITEXT"


def replaces_on_conflict(table: Table) -> bool:
    """Tell whether a plain INSERT or UPDATE may delete other rows, by a conflict clause in the table's definition."""
    return any(
        "on_conflict" in option and str(setting).upper() == "REPLACE"
        for item in (*table.columns, *table.constraints)
        for option, setting in item.dialect_kwargs.items()
    )


def _find_relations(table: Table) -> Relations:
    deleted: list[Action] = []
    rekeyed: list[Action] = []
    for child in table.metadata.tables.values():
        for constraint in child.foreign_key_constraints:
            if _referred(constraint) is not table:
                continue
            link = _link(child, constraint)
            for found, action in ((deleted, constraint.ondelete), (rekeyed, constraint.onupdate)):
                if action is not None and action.upper() in _CHANGING_ACTIONS:
                    found.append(Action(child, link, action.upper() == "CASCADE"))
    parents = [_link(table, constraint) for constraint in _resolvable(table)]
    return Relations(tuple(parents), tuple(deleted), tuple(rekeyed))


def _resolvable(table: Table) -> list[Any]:
    constraints = [constraint for constraint in table.foreign_key_constraints if _referred(constraint) is not None]
    return sorted(constraints, key=lambda constraint: [column.name for column in constraint.columns])


def _referred(constraint: Any) -> Table | None:
    try:
        return constraint.referred_table  # type: ignore[no-any-return]
    except sa_exc.InvalidRequestError:
        return None  # refers to a table that this metadata does not hold: no identifier of ours names it


def _link(child: Table, constraint: Any) -> Link:
    link = _links.get(constraint)
    if link is None:
        pairs = [(element.parent, element.column) for element in constraint.elements]
        link = _links[constraint] = link_by(child, constraint.referred_table, pairs)
    return link


def link_by(child: Table, parent: Table, pairs: Sequence[tuple[Any, Any]]) -> Link:
    """Return the link that pairs of (referring, referred) columns make."""
    order = list(parent.primary_key.columns)
    by_remote = {remote: local for local, remote in pairs}
    exact = bool(order) and set(by_remote) == set(order)
    local = tuple(by_remote[column] for column in order) if exact else tuple(column for column, _ in pairs)
    extends = exact and parent is not child and set(local) == set(child.primary_key.columns)
    return Link(parent, local, exact, extends)


def soft_links_of(mapper: Mapper[Any]) -> tuple[Link, ...]:
    """Return the many-to-one relationships of *mapper* that no foreign key of its tables declares."""
    links = _soft_links.get(mapper)
    if links is None:
        links = _soft_links[mapper] = tuple(_find_soft_links(mapper))
    return links


def _find_soft_links(mapper: Mapper[Any]) -> list[Link]:
    declared = {
        frozenset(column for column in link.local)
        for table in tables_of(mapper)
        for link in relations_of(table).parents
    }
    links = []
    for relationship in mapper.relationships:
        joined = relationship.local_remote_pairs or ()  # SQLAlchemy 2.0 types it as perhaps None
        pairs = [(local, remote) for local, remote in joined if isinstance(local, Column)]
        if not pairs or not _points_at_parent(relationship) or frozenset(local for local, _ in pairs) in declared:
            continue
        parent = next((remote.table for _, remote in pairs if isinstance(remote.table, Table)), None)
        if parent is not None:
            links.append(link_by(pairs[0][0].table, parent, pairs))
    return links


def _points_at_parent(relationship: RelationshipProperty[Any]) -> bool:
    return relationship.direction is RelationshipDirection.MANYTOONE and relationship.secondary is None


def tables_of(mapper: Mapper[Any]) -> tuple[Table, ...]:
    """Return the tables that an instance of *mapper* consists of, its base's first."""
    return tuple(table for table in mapper.tables if isinstance(table, Table))


def hierarchy_tables_of(mapper: Mapper[Any]) -> tuple[Table, ...]:
    """Return the tables that a query for the class of *mapper* may read, those of its subclasses included."""
    members = (table for member in mapper.self_and_descendants for table in tables_of(member))
    return tuple(dict.fromkeys(members))


def home_of(mapper: Mapper[Any]) -> Table | None:
    """Return the table whose row an instance is: the base's under inheritance, its own where it is concrete."""
    home = mapper
    while home.inherits is not None and not home.concrete:
        home = home.inherits
    if isinstance(home.local_table, Table):
        return home.local_table
    return next(iter(tables_of(mapper)), None)


def places_in(table: Table, mapper: Mapper[Any]) -> tuple[int, ...] | None:
    """Return where in the identities of *mapper* the primary key of *table* stands, or None where nobody can tell."""
    places = {id(_property(mapper, column)): place for place, column in enumerate(mapper.primary_key)}
    props = [_property(mapper, column) for column in table.primary_key.columns]
    if not props or not all(id(prop) in places for prop in props):
        return None
    return tuple(places[id(prop)] for prop in props)


def attribute_of(mapper: Mapper[Any], column: Column[Any]) -> str | None:
    """Return the attribute of *mapper* that holds *column*."""
    prop = _property(mapper, column)
    return prop.key if prop is not None else None


def _property(mapper: Mapper[Any], column: ColumnElement[Any]) -> MapperProperty[Any] | None:
    try:
        return mapper.get_property_by_column(column)
    except sa_exc.InvalidRequestError:
        return None
