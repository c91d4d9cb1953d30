"""The application of world.py on any database: what its engine announces, beside what its rows say has changed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias
from unittest.mock import patch

from sqlalchemy import Connection, Table, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from akv.tokens.binding import bind
from akv.tokens.drivers import Driver
from akv.tokens.identifiers import row_identifier
from akv.tokens.schema import name_of
from tests.backends import Backend
from tests.tokens.recording import RecordingTokens
from tests.tokens.world import (
    Base,
    Book,
    Document,
    Dog,
    Engineer,
    Line,
    Order,
    Person,
    Pet,
    Plain,
    Price,
    Remark,
    Shelf,
    Tag,
    User,
)

ANY = "akv:*#*"
UNKNOWN = {"akv:*#~", ANY}
DOCUMENT = uuid.UUID(int=5)
DIALECTS = ("sqlite", "postgresql", "mariadb")
NUMBERED = ("users", "orders", "people", "remarks")

Write: TypeAlias = Callable[[AsyncSession], Awaitable[None]]
Rows: TypeAlias = dict[tuple[str, tuple[Any, ...]], tuple[Any, ...]]


def tables(*names: str) -> set[str]:
    return {f"akv:{name}#*" for name in names}


def unknown(*names: str) -> set[str]:
    return {f"akv:{name}#~" for name in names} | tables(*names) | {ANY}


@dataclass(frozen=True)
class Case:
    """A write, and what it announces: by dialect where they differ; None: more than a test wants to say."""

    write: Write
    everywhere: set[str] | None
    differing: dict[str, set[str] | None]
    only: tuple[str, ...]

    def expected(self, dialect: str) -> set[str] | None:
        return self.differing.get(dialect, self.everywhere)

    def __str__(self) -> str:
        return getattr(self.write, "__name__", "")


def case(
    write: Write, expected: set[str] | None, *, only: tuple[str, ...] = DIALECTS, **differing: set[str] | None
) -> Case:
    return Case(write, expected, differing, only)


class Site:
    """
    A bound application on recording tokens, and a look at its rows past them.

    Attributes:
        watched: The tables whose rows are compared.
    """

    def __init__(self, backend: Backend, url: str) -> None:
        self.backend = backend
        self.dialect = backend.dialect
        self.engine: AsyncEngine = create_async_engine(url)
        self.session = async_sessionmaker(self.engine)
        self.eyes: AsyncEngine = create_async_engine(url)
        self.tokens = RecordingTokens()
        self.watched: list[Table] = list(Base.metadata.sorted_tables)

    async def start(self) -> None:
        async with self.eyes.begin() as connection:
            await connection.run_sync(_empty)
        async with AsyncSession(self.eyes) as session:
            for objects in population():
                session.add_all(objects)
                await session.flush()
            await session.commit()
        async with self.eyes.begin() as connection:
            if self.dialect == "postgresql":
                for name in NUMBERED:
                    await connection.execute(
                        text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name}))")
                    )
        self.binding = bind(self.engine, self.tokens)

    async def run(self, *statements: str) -> None:
        """Run SQL that nobody sees."""
        async with self.eyes.begin() as connection:
            for sql in statements:
                await connection.exec_driver_sql(sql)

    async def rows(self) -> Rows:
        """Return every row of every table that is watched."""
        found: Rows = {}
        async with self.eyes.connect() as connection:
            for table in self.watched:
                columns = list(table.columns)
                key = [columns.index(column) for column in table.primary_key.columns]
                for row in await connection.execute(select(table)):
                    found[name_of(table), tuple(row[place] for place in key)] = tuple(row)
        return found

    async def announced(self, write: Write) -> set[str]:
        """Run a write in a session of its own; return what it announced, checked against the rows that changed."""
        self.tokens.changes()
        before = await self.rows()
        async with self.session() as session:
            await write(session)
            await session.commit()
        announced = self.tokens.changes()
        assert_tells(announced, before, await self.rows())
        return announced

    @contextmanager
    def beside(self) -> Iterator[list[str]]:
        """Collect what akv asks the database through the driver, but for the tokens' own."""
        asked: list[str] = []
        fetch = Driver.fetch

        async def noted(driver: Driver, sql: str, *args: Any) -> list[tuple[Any, ...]]:
            if sql != "SELECT 1":
                asked.append(sql)
            return await fetch(driver, sql, *args)

        with patch.object(Driver, "fetch", noted):
            yield asked

    async def close(self) -> None:
        await self.binding.unbind()
        await self.tokens.aclose()
        await self.engine.dispose()
        await self.eyes.dispose()


@asynccontextmanager
async def site(backend: Backend, *, fresh: bool = False) -> AsyncIterator[Site]:
    """A populated application; on servers in the session's database, or in a *fresh* one for those that add to it."""
    made = Site(backend, backend.fresh_url() if fresh else backend.url)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def population() -> list[list[Any]]:
    """Return the rows to begin with, parents first."""
    return [
        [
            User(id=1, name="a", code="c1", tags=[Tag(name="red"), Tag(name="blue")]),
            User(id=2, name="b", code="c2"),
            User(id=3, name="c"),
            Shelf(code="A"),
            Shelf(code="B"),
            Tag(name="solo"),
        ],
        [
            *(Order(id=id_, user_id=user) for id_, user in ((1, 1), (2, 1), (3, 2), (4, None))),
            *(Line(order_id=order, number=number) for order, number in ((1, 1), (1, 2), (3, 1))),
            *(Book(id=1, shelf="A"), Book(id=2, shelf="B"), Dog(id=1), Pet(id=2)),
            *(Person(id=1, name="boss"), Engineer(id=2, name="e", skill="s", boss_id=1), Engineer(id=3, name="f")),
            *(Document(id=DOCUMENT), Price(amount=Decimal("1.5")), Remark(id=1, about=1)),
            *(Plain(a=1, b="x"), Plain(a=1, b="1")),
        ],
    ]


def _empty(connection: Connection) -> None:
    """Make the tables, or empty them, so that numbers begin anew."""
    Base.metadata.create_all(connection)
    quote = connection.dialect.identifier_preparer.format_table
    names = [quote(table) for table in Base.metadata.sorted_tables]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")
    elif connection.dialect.name != "sqlite":
        connection.exec_driver_sql("SET SESSION foreign_key_checks = 0")
        for name in names:
            connection.exec_driver_sql(f"TRUNCATE TABLE {name}")
        connection.exec_driver_sql("SET SESSION foreign_key_checks = 1")


def assert_tells(announced: Iterable[str], before: Rows, after: Rows) -> None:
    """Fail unless everything that changed was announced."""
    told = set(announced)
    for table, key in before.keys() | after.keys():
        if before.get((table, key)) != after.get((table, key)) and "akv:*#~" not in told:
            assert {f"akv:{table}#*", ANY} <= told, (table, key, told)
            assert f"akv:{table}#~" in told or row_identifier(table, key) in told, (table, key, told)


def without_schemas(announced: Iterable[str]) -> set[str]:
    """Leave the other names out that Tables with a schema would have."""
    return {name for name in announced if "." not in name.partition("#")[0]}
