"""
Rows of mapped instances: how a mapper names them is worked out once, and the names of the rows met last are kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper

from akv.errors import InvalidIdentifierError
from akv.tokens.identifiers import ANYTHING, row_identifier, table_identifier, unknown_rows
from akv.tokens.schema import home_of, is_plain, name_of, places_in, tables_of

Identity: TypeAlias = tuple[Any, ...]
"""The primary key by which a session knows an instance, in the order of the mapper's primary key."""

_KEPT: Final = 2**11
"""Rows whose names are kept, of each mapper."""
_PLAIN: Final[set[type]] = {int, str, bytes, UUID}
"""Types of values that never change. Equal ones have the same names, which is not so of 1, True and 1.0."""
_OF_ASYNCPG: Final = ("asyncpg.pgproto.pgproto", "UUID")


@dataclass(slots=True, eq=False)
class Row:
    """An identifier, and every identifier whose bump may concern it; mostly one object for one row."""

    identifier: str
    vector: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """
    One of the tables that instances of a mapper consist of.

    Attributes:
        name: Escaped name of the table.
        key: Its primary key, and where in the identity of an instance that stands; empty where nobody can tell.
        any_row: The identifier of any row of it.
        unknown_rows: The identifier that is bumped when rows of it changed and nobody knows which.
    """

    name: str
    key: tuple[tuple[Column[Any], int], ...]
    any_row: str
    unknown_rows: str

    @classmethod
    def of(cls, table: Table, mapper: Mapper[Any]) -> _Part:
        name = name_of(table)
        key = zip(table.primary_key.columns, places_in(table, mapper) or (), strict=False)
        return cls(name, tuple(key), table_identifier(name), unknown_rows(name))

    def row(self, identity: Identity) -> str:
        """Return the identifier of the row of an instance; of any row, if it cannot be told."""
        if not self.key:
            return self.any_row
        return row_identifier(self.name, [identity[place] for _, place in self.key])

    def has_one_spelling(self, identity: Identity) -> bool:
        """Tell whether whoever writes the row names it as whoever has read it."""
        return all(is_plain(column, identity[place]) for column, place in self.key)


class Rows:
    """
    The rows of one mapper; no reference leads from here to it, so that it may go.

    Attributes:
        any_row: The identifier of any row that is an instance of it.
    """

    def __init__(self, mapper: Mapper[Any]) -> None:
        """
        Raises:
            InvalidIdentifierError: The mapper has no table.
        """
        home = home_of(mapper)
        if home is None:
            raise InvalidIdentifierError(
                f"{mapper.class_.__qualname__} is mapped to no table: name the tables it reads"
            )
        parts = {table: _Part.of(table, mapper) for table in (home, *tables_of(mapper))}
        self.any_row = parts[home].any_row
        self._name = partial(_named, parts[home], tuple(map(parts.__getitem__, tables_of(mapper))))
        self._known = lru_cache(maxsize=_KEPT)(self._name)

    def row(self, identity: Identity) -> Row:
        """
        Return the names of the row of an instance.

        Raises:
            InvalidIdentifierError: Its primary key has a value of a type that no primary key has.
        """
        for value in identity:
            if type(value) not in _PLAIN and not _become_plain(type(value)):
                return self._name(*identity)
        return self._known(*identity)


_of_mapper: weakref.WeakKeyDictionary[Mapper[Any], Rows] = weakref.WeakKeyDictionary()


def rows_of(mapper: Mapper[Any]) -> Rows:
    """
    Return what names the rows of *mapper*.

    Raises:
        InvalidIdentifierError: It has no table.
    """
    rows = _of_mapper.get(mapper)
    if rows is None:
        rows = _of_mapper[mapper] = Rows(mapper)
    return rows


def _named(home: _Part, parts: Sequence[_Part], *identity: Any) -> Row:
    identifier = home.row(identity)
    vector = [ANYTHING]
    for part in parts:
        row = part.any_row
        if part.has_one_spelling(identity):
            row = identifier if part is home else part.row(identity)
        vector += (part.unknown_rows, row)
    return Row(identifier, tuple(vector))


def _become_plain(cls: type) -> bool:
    """Tell whether values of a type are plain after all: asyncpg has a UUID of its own, which is not imported here."""
    if (cls.__module__, cls.__qualname__) != _OF_ASYNCPG:
        return False
    _PLAIN.add(cls)
    return True
