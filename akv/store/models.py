"""
The table: kvalchemy's, so that its databases open with akv and akv's with it.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, cast
from zlib import crc32

from sqlalchemy import DateTime, Dialect, Index, LargeBinary, MetaData, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine

from akv.store.keys import MAX_LENGTH


def exact_collation(dialect: Dialect) -> str:
    """Name the collation of a MariaDB or MySQL server that compares code point by code point, trailing spaces too."""
    return "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"


class ExactText(TypeDecorator[str]):
    """Text that a database compares and orders by code points, as Python does."""

    impl = String(MAX_LENGTH)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the collation that the database has for this."""
        if dialect.name in ("mysql", "mariadb"):
            return String(MAX_LENGTH, collation=exact_collation(dialect))
        if dialect.name == "postgresql":
            return String(MAX_LENGTH, collation="C")
        return String(MAX_LENGTH)


class Instant(TypeDecorator[datetime]):
    """A naive datetime with its microseconds, which MariaDB and MySQL keep only if told so."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type; the import is here because a dialect that is not used costs a megabyte."""
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import DATETIME

            return DATETIME(fsp=6)
        return DateTime()


# A BLOB of this length is what MariaDB and MySQL call LONGBLOB.
_VALUE = LargeBinary().with_variant(LargeBinary(2**32 - 1), "mysql", "mariadb")
_LONGEST_NAME = 63


class Entries:
    """
    The columns of an entry, for a mapped class of any table name.

    Attributes:
        key: At most 256 characters, compared code point by code point.
        tag: The same.
        value: The encoded value; NULL is None with the default serializer.
        expire: Naive UTC; the entry is dead at this instant. NULL: no end.
    """

    key: Mapped[str] = mapped_column(ExactText(), primary_key=True, sort_order=0)
    tag: Mapped[str] = mapped_column(ExactText(), primary_key=True, sort_order=1)
    value: Mapped[bytes | None] = mapped_column(_VALUE, sort_order=2)
    expire: Mapped[datetime | None] = mapped_column(Instant(), sort_order=3)


class Base(DeclarativeBase):
    """Declarative base of :class:`KVStore`; its ``metadata`` is what Alembic wants."""


class KVStore(Entries, Base):
    """The default table, ``kvstore``."""

    __tablename__ = "kvstore"


def _short_enough(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}_{crc32(name.encode()):08x}"


def _index_expiry(table: Table) -> None:
    """Index what the sweep looks for."""
    Index(_short_enough(f"ix_{table.name}_expire"), table.c.expire)


def narrow_indexes(table: Table, dialect: str) -> None:
    """
    Leave entries without expiry out of the index, where the database has partial indexes.

    Called before the table is created, for the one dialect at hand: to mention a dialect is to import it.
    """
    if dialect in ("postgresql", "sqlite"):
        for index in table.indexes:
            index.dialect_options[dialect]["where"] = table.c.expire.is_not(None)


_index_expiry(cast(Table, KVStore.__table__))


@cache
def model_for(table: str, schema: str | None) -> type[Entries]:
    """
    Return the mapped class of a table; the same class for the same name.

    Args:
        table: Name of the table.
        schema: Its schema; None: the connection's default.
    """
    if (table, schema) == (KVStore.__tablename__, None):
        return KVStore
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData(schema=schema)})
    model = type("KVStore", (Entries, base), {"__tablename__": table})
    _index_expiry(table_of(model))
    return model


def table_of(model: type[Entries]) -> Table:
    """Return the table of a mapped class."""
    return cast(Table, model.__table__)  # type: ignore[attr-defined]
