"""A bound application with a store beside it, as one process has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import ForeignKey, String, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from akv.testing import FakeClock
from akv.tokens import rules
from akv.tokens.binding import bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.redis import RedisTokens
from tests.backends import Backend
from tests.memoize.conftest import GatedStore
from tests.memoize.waiting import BOUND
from tests.private import Absent
from tests.servers import Session, connect
from tests.tokens.redis_world import PATIENT, forget, until


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(default="")
    age: Mapped[int] = mapped_column(default=0)
    orders: Mapped[list[Order]] = relationship(back_populates="user", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    total: Mapped[int] = mapped_column(default=0)
    user: Mapped[User] = relationship(back_populates="orders")


class Place:
    """
    Where the processes of one application meet: a database of its own and, off SQLite, a namespace in Redis.

    Attributes:
        url: The database.
        redis: URL of Redis; empty: the tokens are in the database.
    """

    def __init__(self, url: str, redis: str = "", namespace: str = "") -> None:
        self.url = url
        self.redis = redis
        self.namespace = namespace or f"akv_test_{uuid4().hex[:12]}"

    def create(self) -> None:
        with connect(self.url) as connection:
            Base.metadata.create_all(connection)
            for number in (1, 2):
                connection.execute(User.__table__.insert().values(id=number, name=f"user {number}", age=0))

    def tokens(self, **options: Any) -> Any:
        if not self.redis:
            return DatabaseTokens(self.url)
        return RedisTokens.from_url(self.redis, namespace=self.namespace, **{**PATIENT, **options})

    def arguments(self) -> tuple[str, str, str]:
        return self.url, self.redis, self.namespace


class App:
    """One process of the application."""

    def __init__(self, place: Place, clock: FakeClock | None = None, **tokens: Any) -> None:
        self.place = place
        self.engine: AsyncEngine = create_async_engine(place.url)
        self.session = async_sessionmaker(self.engine)
        self.tokens = place.tokens(**tokens)
        self.binding = bind(self.engine, self.tokens)
        self.clock = clock or FakeClock()
        self.kv = GatedStore(place.url, tokens=self.tokens, clock=self.clock, sweep_every=None)
        self.kv._guard.patience = BOUND

    @property
    def is_on_redis(self) -> bool:
        return bool(self.place.redis)

    async def start(self) -> None:
        await self.begin(User)

    async def begin(self, entity: type[Any]) -> None:
        """Let everything be there that is made at first use; some row of *entity* is looked for."""
        await self.kv.count()
        async with self.session() as session:
            await session.get(entity, 1)
        if self.is_on_redis:
            await until(self.is_active, "the epoch is active")

    async def is_active(self) -> bool:
        return rules.active_epoch(await self.tokens.look(())) is not None

    async def close(self) -> None:
        await self.kv.aclose()
        await self.binding.unbind()
        await self.tokens.aclose()
        await self.engine.dispose()

    async def birthday(self, number: int = 1) -> None:
        async with self.session.begin() as session:
            (await session.get_one(User, number)).age += 1

    async def rename_everybody(self) -> None:
        async with self.session.begin() as session:
            await session.execute(update(User).values(name="nobody"))

    async def age(self, number: int = 1) -> int:
        async with self.session() as session:
            return (await session.scalars(select(User.age).where(User.id == number))).one()

    async def saved(self, memoized: Any) -> int:
        """How many results of a function are stored."""
        return await self.kv.count(tag=memoized.cache_tag)


def place_of(backend: Backend, servers: Session) -> Place:
    """A new place on a backend: Redis beside a server, tokens in the file on SQLite."""
    if backend.dialect == "sqlite":
        return Place(backend.fresh_url())
    try:
        redis = servers.redis()
    except Absent:
        redis = servers.valkey()
    return Place(backend.fresh_url(), redis)


@asynccontextmanager
async def opened(place: Place, **options: Any) -> AsyncIterator[App]:
    app = App(place, **options)
    try:
        await app.start()
        yield app
    finally:
        await app.close()


def left(place: Place) -> None:
    if place.redis:
        forget(place.redis, place.namespace)
