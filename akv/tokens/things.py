"""
What people name - instances, classes, tables, labels, strings - as identifiers.

Nothing here loads an attribute: an instance is known by its identity, which
SQLAlchemy keeps even when everything else has expired.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.orm import InstanceState, Mapper

from akv.errors import InvalidIdentifierError
from akv.tokens.identifiers import (
    ANYTHING,
    Label,
    check_identifier,
    table_identifier,
    touched_by,
    vector_of,
)
from akv.tokens.rows import rows_of
from akv.tokens.schema import hierarchy_tables_of, name_of


def identifier(thing: Any) -> str:
    """
    Return the identifier of *thing*.

    Args:
        thing: A mapped instance (its row once it has one, else its table), a mapped class or Table (any row of it),
            a :class:`Label`, or an ``akv:`` string.

    Raises:
        InvalidIdentifierError: None can be derived, or the string is malformed.

    Guarantees:
        Loads nothing, neither expired attributes nor rows.
    """
    if isinstance(thing, str):
        return check_identifier(thing)
    if isinstance(thing, Label):
        return thing.identifier
    if isinstance(thing, Table):
        return table_identifier(name_of(thing))
    state = state_of(thing)
    mapper = state.mapper if state is not None else mapper_of(thing)
    if mapper is None:
        raise InvalidIdentifierError(
            f"no identifier for a {type(thing).__qualname__}: "
            "name a mapped instance or class, a Table, a Label or an akv: string"
        )
    rows = rows_of(mapper)
    if state is None or state.identity is None:
        return rows.any_row
    return rows.row(state.identity).identifier


def vector_of_thing(thing: Any) -> tuple[str, ...]:
    """
    Return all identifiers whose bump may concern *thing*.

    An instance or class is followed into every table that it consists of.

    Raises:
        InvalidIdentifierError: None can be derived.
    """
    state = state_of(thing)
    mapper = state.mapper if state is not None else mapper_of(thing)
    if mapper is None:
        return vector_of(identifier(thing))
    rows = rows_of(mapper)
    if state is None or state.identity is None:
        return (ANYTHING, *(table_identifier(name_of(table)) for table in hierarchy_tables_of(mapper)))
    return rows.row(state.identity).vector


def touched_by_thing(thing: Any) -> set[str]:
    """
    Return the identifiers to bump so that *thing*, and all that contains it, changes.

    Raises:
        InvalidIdentifierError: None can be derived.
    """
    mapper = mapper_of(thing)
    tables = hierarchy_tables_of(mapper) if mapper is not None else ()
    named = [table_identifier(name_of(table)) for table in tables] or [identifier(thing)]
    return {touched for name in named for touched in touched_by(name)}


def state_of(thing: Any) -> InstanceState[Any] | None:
    """Return SQLAlchemy's record of a mapped instance, or None for anything else."""
    if isinstance(thing, type) or not hasattr(thing, "_sa_instance_state"):
        return None
    state = inspect(thing, raiseerr=False)
    return state if isinstance(state, InstanceState) else None


def mapper_of(thing: Any) -> Mapper[Any] | None:
    """Return the mapper of a mapped class, or None for anything else."""
    mapper: Any = inspect(thing, raiseerr=False) if isinstance(thing, type) else None
    return mapper if isinstance(mapper, Mapper) else None
