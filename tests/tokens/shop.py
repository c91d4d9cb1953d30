"""
A small application that every database can hold, on tokens that the test chooses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ForeignKey, String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv.tokens.backend import Backend as Tokens
from akv.tokens.binding import Binding, bind
from akv.tokens.keygen import CacheKeyGenerator
from tests.backends import Backend
from tests.tokens.recording import RecordingTokens


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), default="")
    code: Mapped[str | None] = mapped_column(String(50), unique=True)


class Part(Base):
    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int | None] = mapped_column(ForeignKey("items.id"))
    size: Mapped[int] = mapped_column(default=0)


ANY = "akv:*#*"


def item(id_: int) -> set[str]:
    """What a written item announces."""
    return {f"akv:items#{id_}", "akv:items#*", ANY}


class Shop:
    """An application on a database of its own."""

    def __init__(self, url: str, tokens: Tokens, *, direct_url: str | None = None, **options: Any) -> None:
        self.url = url
        self.direct_url = direct_url or url
        self.engine: AsyncEngine = create_async_engine(url, **options)
        self.session = async_sessionmaker(self.engine)
        self.tokens = tokens
        self.keys = CacheKeyGenerator(tokens)
        self.binding: Binding | None = None

    async def create(self) -> None:
        if self.engine.dialect.name == "sqlite":
            async with self.engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # readers are in no writer's way
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    def bind(self) -> Binding:
        self.binding = bind(self.engine, self.tokens)
        return self.binding

    async def close(self) -> None:
        if isinstance(self.tokens, RecordingTokens):
            self.tokens.open_doors()
        if self.binding is not None:
            await self.binding.unbind()
        await self.tokens.aclose()
        await self.engine.dispose()

    async def names(self) -> list[str]:
        """Return the names of all items, as somebody sees them who is not bound."""
        eyes = create_async_engine(self.direct_url)
        async with AsyncSession(eyes) as session:
            names = list(await session.scalars(select(Item.name).order_by(Item.id)))
        await eyes.dispose()
        return names

    async def assert_usable(self) -> None:
        """All connections are back, none of them in a transaction, and a commit works."""
        pool: Any = self.engine.pool
        assert pool.checkedout() == 0
        before = len(await self.names())
        async with self.session() as session:
            session.add(Item(id=1000 + before, name="usable"))
            await session.commit()
        assert len(await self.names()) == before + 1


@asynccontextmanager
async def shop(backend: Backend, **options: Any) -> AsyncIterator[tuple[Shop, RecordingTokens]]:
    """A bound application on recording tokens."""
    tokens = RecordingTokens()
    app = Shop(backend.fresh_url(), tokens, **options)
    await app.create()
    app.bind()
    try:
        yield app, tokens
    finally:
        await app.close()
