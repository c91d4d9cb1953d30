"""
Classes with keys of every type there is, and values that look alike.
"""

from __future__ import annotations

import enum
import uuid
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import ForeignKey, Numeric, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient_to_detached, mapped_column


class Base(DeclarativeBase):
    pass


class Number(Base):
    __tablename__ = "numbers"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(default="")


class Word(Base):
    __tablename__ = "words, of all kinds"
    id: Mapped[str] = mapped_column(primary_key=True)


class Code(Base):
    __tablename__ = "codes"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


class Raw(Base):
    __tablename__ = "raws"
    id: Mapped[bytes] = mapped_column(primary_key=True)


class Amount(Base):
    __tablename__ = "amounts"
    id: Mapped[Decimal] = mapped_column(Numeric(30, 4), primary_key=True)


class Flag(Base):
    __tablename__ = "flags"
    id: Mapped[bool] = mapped_column(primary_key=True)


class Day(Base):
    __tablename__ = "days"
    id: Mapped[date] = mapped_column(primary_key=True)


class Pair(Base):
    """The table has its columns in another order than the mapper."""

    __tablename__ = "pairs"
    left: Mapped[int] = mapped_column(primary_key=True)
    right: Mapped[str] = mapped_column(primary_key=True)
    __mapper_args__ = {"primary_key": ["right", "left"]}


class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    """Its own table names the key otherwise."""

    __tablename__ = "dogs"
    number: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Puppy(Dog):
    """No table of its own."""

    __mapper_args__ = {"polymorphic_identity": "puppy"}


class Loner(Base):
    """Known by something that is no key of its table."""

    __tablename__ = "loners"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()
    __mapper_args__ = {"primary_key": ["name"]}


class Colour(enum.Enum):
    RED = "1"


class Shouted(str):
    """Equal to what is written otherwise."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.lower(self) == str(other).lower()

    def __hash__(self) -> int:
        return hash(str.lower(self))


MODELS: tuple[Any, ...] = (Number, Word, Code, Raw, Amount, Flag, Day, Animal, Dog, Puppy, Loner)
ALIKE: tuple[Any, ...] = (
    *(1, True, 1.0, "1", Decimal(1), Decimal("1.00"), b"1", uuid.UUID(int=1), Colour.RED, Shouted("A"), Shouted("a")),
    *(0, False, 0.0, -0.0, "0", "", "a", "A", "a,b", "a#*", "'1", "*", "~", "%41", "a\udc80", "ä", "\x00", None),
    *(date(2000, 1, 1), bytearray(b"1")),
)


def persistent(model: Any, *identity: Any) -> Any:
    """Make an instance that looks like one of the database."""
    names = [str(inspect(model).get_property_by_column(column).key) for column in inspect(model).primary_key]
    instance = model(**dict(zip(names, identity, strict=True)))
    make_transient_to_detached(instance)
    return instance
