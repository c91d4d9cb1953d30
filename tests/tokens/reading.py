"""Classes and views over the tables of world.py that make all kinds of reads, and what a recording of them says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, Integer, MetaData, String, Table, func, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    WriteOnlyMapped,
    column_property,
    mapped_column,
    relationship,
)

from akv.tokens.reads import Reads, recording
from tests.tokens.site import DIALECTS, Site
from tests.tokens.world import Base, Order
from tests.tokens.world import User as PlainUser

Read: TypeAlias = Callable[[AsyncSession], Awaitable[Any]]

users: Any = PlainUser.__table__
orders: Any = Order.__table__


class Again(AsyncAttrs, DeclarativeBase):
    """Other classes for the same tables."""

    metadata = Base.metadata


class Purchase(Again):
    __table__ = orders
    account: Mapped[Account | None] = relationship(back_populates="purchases", overlaps="user,orders")


class Account(Again):
    __table__ = users
    spent = column_property(select(func.sum(orders.c.total)).where(orders.c.user_id == users.c.id).scalar_subquery())
    shout = column_property(func.upper(users.c.name))
    purchases: Mapped[list[Purchase]] = relationship(back_populates="account", overlaps="user,orders")
    later: WriteOnlyMapped[Purchase] = relationship(viewonly=True)

    @hybrid_property
    def size(self) -> int:
        return len(self.purchases)

    @size.inplace.expression
    @classmethod
    def _size(cls) -> Any:
        return select(func.count(orders.c.id)).where(orders.c.user_id == cls.id).scalar_subquery()


class Apart(DeclarativeBase):
    """Tables of its own, and views."""

    metadata = MetaData()


class Vehicle(ConcreteBase, Apart):
    __tablename__ = "vehicles"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_identity": "vehicle", "concrete": True}


class Truck(Vehicle):
    __tablename__ = "trucks"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), default="")
    load: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "truck", "concrete": True}


views = MetaData()
buyers = Table("buyers", views, Column("id", Integer, primary_key=True), Column("name", String(100)))
"""A view of users who have orders; see VIEWS."""

VIEWS = (
    "CREATE VIEW buyers AS SELECT u.id, u.name FROM users u JOIN orders o ON o.user_id = u.id",
    "CREATE VIEW rich_buyers AS SELECT b.id, t.tag FROM buyers b LEFT JOIN user_tags t ON t.user_id = b.id",
)
DROPS = ("DROP VIEW IF EXISTS rich_buyers", "DROP VIEW IF EXISTS buyers")


@dataclass(frozen=True)
class Case:
    """A read, and what it depends on, by dialect where they differ."""

    read: Read
    everywhere: set[str]
    differing: dict[str, set[str]]
    only: tuple[str, ...]

    def expected(self, dialect: str) -> set[str]:
        return self.differing.get(dialect, self.everywhere)


def case(read: Read, expected: set[str], *, only: tuple[str, ...] = DIALECTS, **differing: set[str]) -> Case:
    return Case(read, expected, differing, only)


def rows(table: str, *keys: object) -> set[str]:
    return {f"akv:{table}#{key}" for key in keys}


async def recorded(app: Site, read: Read, session: AsyncSession | None = None) -> Reads:
    """Record a read in a session of its own, or in one from outside."""
    with recording(app.tokens) as reads:
        if session is not None:
            await read(session)
        else:
            async with app.session() as own:
                await read(own)
    return reads


def plain(identifiers: Iterable[str]) -> set[str]:
    """Leave the names out under which writers would announce that name a schema."""
    return {name for name in identifiers if "." not in name.partition("#")[0]}
