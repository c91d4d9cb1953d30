"""The store's verbs inside a bound session change no key: its table is nothing that an identifier speaks of."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv import GLOBAL_WRITE_TOKEN, AsyncKVAlchemy, CacheKeyGenerator, DatabaseTokens, bind


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def test_entries_written_within_a_bound_session_change_no_key_and_its_rows_still_do(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    tokens = DatabaseTokens(url)
    binding = bind(sessions, tokens)
    keys = CacheKeyGenerator(tokens)
    async with AsyncKVAlchemy(engine, sweep_every=None) as kv:
        before = await keys(User, GLOBAL_WRITE_TOKEN)

        async with sessions.begin() as session:
            txn = kv.within(session)
            await txn.set("a", 1)
            assert await txn.incr("a") == 2
            await txn.delete_prefix("b")
        assert await kv.get("a") == 2
        assert await keys(User, GLOBAL_WRITE_TOKEN) == before

        async with sessions.begin() as session:
            session.add(User(id=1, name="Ada"))
            await kv.within(session).set("last", 1)
        assert await keys(User, GLOBAL_WRITE_TOKEN) != before
    await binding.unbind()
    await tokens.aclose()
    await engine.dispose()
