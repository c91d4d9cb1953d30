"""A small application on an SQLite file, and what its database says about its own changes."""

from __future__ import annotations

import ast
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, MetaData, Numeric, String, Table, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, relationship

from akv.tokens.binding import Binding, bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.identifiers import record_of, row_identifier
from akv.tokens.keygen import CacheKeyGenerator


class Base(DeclarativeBase):
    metadata = MetaData()
    type_annotation_map = {str: String(100)}


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    code: Mapped[str | None] = mapped_column(unique=True)
    orders: Mapped[list[Order]] = relationship(back_populates="user", cascade="all, delete-orphan")
    tags: Mapped[list[Tag]] = relationship(secondary="user_tags")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    total: Mapped[int] = mapped_column(default=0)
    user: Mapped[User | None] = relationship(back_populates="orders")
    lines: Mapped[list[Line]] = relationship(back_populates="order", passive_deletes=True)


class Line(Base):
    """Composite key; deleted by the database with its order."""

    __tablename__ = "lines"
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(default="")
    order: Mapped[Order] = relationship(back_populates="lines")


class Tag(Base):
    __tablename__ = "tags"
    name: Mapped[str] = mapped_column(primary_key=True)
    colour: Mapped[str] = mapped_column(default="")


user_tags = Table(
    "user_tags",
    Base.metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("tag", ForeignKey("tags.name"), primary_key=True),
)


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    boss_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    skill: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {"polymorphic_identity": "engineer"}


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str] = mapped_column(default="")


class Price(Base):
    """A key that SQLite may give back in another spelling."""

    __tablename__ = "prices"
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 4), primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(default="")


class Remark(Base):
    """Points at a user without a foreign key."""

    __tablename__ = "remarks"
    id: Mapped[int] = mapped_column(primary_key=True)
    about: Mapped[int | None]
    text: Mapped[str] = mapped_column(default="")
    user: Mapped[User | None] = relationship(primaryjoin=lambda: foreign(Remark.about) == User.id)


class Plain(Base):
    """Two columns for a key, one of them text."""

    __tablename__ = "plain"
    a: Mapped[int] = mapped_column(Integer, primary_key=True)
    b: Mapped[str] = mapped_column(String(20), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)
    __table_args__ = (ForeignKeyConstraint(["a"], ["users.id"]),)


class Shelf(Base):
    """Renamed and emptied by the database where books point at it."""

    __tablename__ = "shelves"
    code: Mapped[str] = mapped_column(primary_key=True)


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shelf: Mapped[str | None] = mapped_column(ForeignKey("shelves.code", ondelete="SET NULL", onupdate="CASCADE"))


class Pet(Base):
    """One table for several classes, with a version of each row."""

    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    revision: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "pet", "version_id_col": revision}


class Dog(Pet):
    __mapper_args__ = {"polymorphic_identity": "dog"}


class World:
    """An application, its binding, and a look at its tokens from outside."""

    def __init__(self, path: Path, *, begin_immediate: bool = False, **options: Any) -> None:
        self.path = path
        self.url = f"sqlite+aiosqlite:///{path}"
        self.engine: AsyncEngine = create_async_engine(self.url)
        self.session = async_sessionmaker(self.engine, **options)
        self.tokens = DatabaseTokens(self.url)
        self.keys = CacheKeyGenerator(self.tokens)
        self.binding: Binding | None = None

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await self.tokens.bump(["akv:label:start"])

    async def use(self, tokens: DatabaseTokens) -> None:
        """Replace the tokens by others; before binding."""
        await self.tokens.aclose()
        self.tokens = tokens
        self.keys = CacheKeyGenerator(tokens)

    def bind(self) -> Binding:
        self.binding = bind(self.engine, self.tokens)
        return self.binding

    async def close(self) -> None:
        if self.binding is not None:
            await self.binding.unbind()
        await self.tokens.aclose()
        await self.engine.dispose()

    async def add(self, *objects: Any) -> None:
        async with self.session.begin() as session:
            session.add_all(objects)

    async def tokens_table(self) -> dict[str, int]:
        """Read the records past everything of ours."""
        return dict(await self._rows("SELECT record, seq FROM akv_token"))

    async def bumped_since(self, before: dict[str, int]) -> set[str]:
        after = await self.tokens_table()
        return {record for record, seq in after.items() if record and seq != before.get(record)}

    async def dump(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """Return every row of every table, by table and row identifier."""
        found = {}
        for table in Base.metadata.sorted_tables:
            columns = [column.name for column in table.columns]
            keys = [columns.index(column.name) for column in table.primary_key.columns]
            for row in await self._rows(f"SELECT {', '.join(columns)} FROM {table.name}"):
                found[table.name, repr([row[place] for place in keys])] = tuple(row)
        return found

    async def _rows(self, sql: str) -> list[Any]:
        import aiosqlite

        async with aiosqlite.connect(self.path) as connection:
            return list(await connection.execute_fetchall(sql))


@asynccontextmanager
async def world(path: Path, **options: Any) -> AsyncIterator[World]:
    """An application with its tables, bound, and with the table of tokens in place."""
    app = World(path, **options)
    await app.create()
    app.bind()
    try:
        yield app
    finally:
        await app.close()


def records(names: Iterable[str]) -> set[str]:
    """Return the records of identifiers; ``t#*`` stands for itself."""
    return {record_of(name, 2**20) for name in names}


async def run_sql(session: AsyncSession, sql: str) -> None:
    await session.execute(text(sql))


def assert_covers(bumped: set[str], before: dict[Any, Any], after: dict[Any, Any]) -> None:
    """Check the records that were bumped against what the database changed, by :meth:`World.dump`."""
    for table, key in before.keys() | after.keys():
        if before.get((table, key)) != after.get((table, key)):
            needed = {f"akv:{table}#*", "akv:*#*"}
            assert needed <= bumped or "akv:*#~" in bumped, (table, key)
            row = records([row_identifier(table, _python(table, ast.literal_eval(key)))])
            assert row <= bumped or f"akv:{table}#~" in bumped or "akv:*#~" in bumped, (table, key)


def _python(table: str, key: list[Any]) -> list[Any]:
    return [uuid.UUID(key[0])] if table == "documents" else key
