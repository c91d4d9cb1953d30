"""
SQLAlchemy by hand: Core at its cheapest, and AsyncSession as most people write it.
"""

from __future__ import annotations

import pickle
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, LargeBinary, String, bindparam, event, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.contenders.contender import Contender
from benchmarks.places import Place


class Base(DeclarativeBase):
    """The mapped classes of this module."""


class Stored(Base):
    """The shared table, as a user maps it."""

    __tablename__ = "kvstore"

    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    tag: Mapped[str] = mapped_column(String(256), primary_key=True)
    value: Mapped[bytes | None] = mapped_column(LargeBinary)
    expire: Mapped[datetime | None] = mapped_column(DateTime)


CONNECTIONS = 16
"""More than SQLAlchemy's 5 + 10: the overflow is closed whenever it is returned, which costs it a third at 64 tasks."""


def engine_for(place: Place, **options: Any) -> AsyncEngine:
    """Make an engine; on SQLite with the place's synchronous setting."""
    engine = create_async_engine(place.url, pool_size=CONNECTIONS, max_overflow=0, **options)
    if place.dialect == "sqlite":

        def prepare(connection: Any, _record: Any) -> None:
            connection.execute(f"PRAGMA synchronous = {place.synchronous}")

        event.listen(engine.sync_engine, "connect", prepare)
    return engine


def upsert_for(dialect: str) -> Any:
    """Build the one-row upsert once, so that SQLAlchemy compiles it once."""
    table = Stored.__table__
    values = {name: bindparam(name, type_=table.c[name].type) for name in ("key", "tag", "value", "expire")}
    if dialect == "mariadb":
        insert = mysql.insert(Stored).values(**values)
        return insert.on_duplicate_key_update(value=insert.inserted.value, expire=insert.inserted.expire)
    kind: Any = postgresql if dialect == "postgresql" else sqlite
    insert = kind.insert(Stored).values(**values)
    changed = {"value": insert.excluded.value, "expire": insert.excluded.expire}
    return insert.on_conflict_do_update(index_elements=["key", "tag"], set_=changed)


class CoreAutocommit(Contender):
    """Core statements built once, AUTOCOMMIT set on the engine: SQLAlchemy's cheapest call."""

    name: ClassVar[str] = "core"
    setup: ClassVar[str] = f"{CONNECTIONS} connections"
    title: ClassVar[str] = "SQLAlchemy Core, AUTOCOMMIT"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite", "postgresql", "mariadb")
    serializer: ClassVar[str] = "pickle"

    async def open(self) -> None:
        options = {} if self.place.dialect == "postgresql" else {"skip_autocommit_rollback": True}
        self._engine = engine_for(self.place, isolation_level="AUTOCOMMIT", **options)
        wanted = Stored.key == bindparam("key"), Stored.tag == bindparam("tag")
        self._get = select(Stored.value, Stored.expire).where(*wanted)
        self._set = upsert_for(self.place.dialect)

    async def close(self) -> None:
        await self._engine.dispose()

    async def get(self, key: str) -> Any:
        async with self._engine.connect() as connection:
            row = (await connection.execute(self._get, {"key": key, "tag": ""})).one_or_none()
        return None if row is None else pickle.loads(row.value)

    async def set(self, key: str, value: Any) -> None:
        async with self._engine.connect() as connection:
            row = {"key": key, "tag": "", "value": pickle.dumps(value), "expire": None}
            await connection.execute(self._set, row)


class SessionByHand(Contender):
    """AsyncSession, ORM entities, merge and commit: what the SQLAlchemy tutorial leads to."""

    name: ClassVar[str] = "session"
    setup: ClassVar[str] = f"{CONNECTIONS} connections"
    title: ClassVar[str] = "AsyncSession by hand"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite", "postgresql", "mariadb")
    serializer: ClassVar[str] = "pickle"

    async def open(self) -> None:
        self._engine = engine_for(self.place)
        self._sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

    async def get(self, key: str) -> Any:
        async with self._sessions.begin() as session:
            found = await session.execute(select(Stored).where(Stored.key == key, Stored.tag == ""))
            row = found.scalar_one_or_none()
            return None if row is None or row.value is None else pickle.loads(row.value)

    async def set(self, key: str, value: Any) -> None:
        async with self._sessions.begin() as session:
            await session.merge(Stored(key=key, tag="", value=pickle.dumps(value), expire=None))
