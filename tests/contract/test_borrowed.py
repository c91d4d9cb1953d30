"""A store on the caller's AsyncEngine or async_sessionmaker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from akv import AsyncKVAlchemy
from akv.errors import ConfigurationError
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract.helpers import PATIENCE, engine_on, together

ONE_CONNECTION: dict[str, Any] = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}


def options_for(backend: Backend) -> dict[str, Any]:
    """In memory a pool must keep its one connection, the database."""
    return ONE_CONNECTION if backend.name == "sqlite-memory" else {}


async def use(kv: AsyncKVAlchemy) -> None:
    await kv.set("a", 1)
    assert await kv.incr("a") == 2
    await kv.set_many({"b": 1, "c": 1})
    assert await together(kv.get(key) for key in "abc") == [2, 1, 1]
    assert await kv.delete_many(["d", "e"]) == 0
    assert [entry.key async for entry in kv] == ["a", "b", "c"]
    await kv.clear()


@pytest.mark.parametrize("kind", ["engine", "sessionmaker"])
async def test_the_verbs_work_on_what_was_lent(make_store: MakeStore, backend: Backend, kind: str) -> None:
    async with engine_on(backend.url, **options_for(backend)) as engine:
        kv: AsyncKVAlchemy = await make_store(engine if kind == "engine" else async_sessionmaker(engine))
        await use(kv)
        async with kv.session() as session:
            assert session.bind is engine
            await kv.within(session).set("a", 1)
        assert await kv.get("a") == 1
        await kv.aclose()


async def test_closing_the_store_leaves_the_engine_open(make_store: MakeStore, backend: Backend, table: str) -> None:
    async with engine_on(backend.url, **options_for(backend)) as engine:
        first: AsyncKVAlchemy = await make_store(engine)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await first.set("a", 1)
        pool = engine.pool
        await first.aclose()

        assert engine.pool is pool
        async with engine.connect() as connection:
            rows = await connection.execute(text(f"SELECT count(*) FROM {table}"))
            assert rows.scalar_one() == 1
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        second: AsyncKVAlchemy = await make_store(engine)
        assert await second.get("a") == 1
        await second.aclose()


async def test_the_sessions_of_a_lent_factory_are_its_own(make_store: MakeStore, backend: Backend) -> None:
    class Mine(AsyncSession):
        pass

    async with engine_on(backend.url, **options_for(backend)) as engine:
        kv: AsyncKVAlchemy = await make_store(async_sessionmaker(engine, class_=Mine, info={"of": "the caller"}))
        async with kv.session() as session:
            assert isinstance(session, Mine)
            assert session.info["of"] == "the caller"
        await kv.aclose()


@pytest.mark.backends(exclude="sqlite-memory")
async def test_settings_of_a_lent_engine_are_not_touched(make_store: MakeStore, backend: Backend) -> None:
    settings = {
        "sqlite": ["PRAGMA journal_mode", "PRAGMA synchronous", "PRAGMA busy_timeout"],
        "postgresql": ["SHOW lock_timeout", "SHOW statement_timeout"],
        "mariadb": ["SELECT @@innodb_lock_wait_timeout", "SELECT @@autocommit"],
    }[backend.dialect]

    async def read(engine: AsyncEngine) -> list[Any]:
        async with engine.connect() as connection:
            found = [(await connection.execute(text(setting))).scalar_one() for setting in settings]
            return [*found, await connection.get_isolation_level()]

    async with engine_on(backend.url) as engine:
        before = await read(engine)
        kv: AsyncKVAlchemy = await make_store(engine)
        await use(kv)
        assert await read(engine) == before
        await engine.dispose()
        assert await read(engine) == before
        await kv.aclose()


@pytest.mark.backends(exclude="sqlite-memory")
@pytest.mark.parametrize("first_use", [False, True], ids=["prepared", "first use"])
async def test_handlers_that_hold_all_of_the_pool_do_not_starve_the_store(
    make_store: MakeStore, backend: Backend, first_use: bool
) -> None:
    async with engine_on(backend.url, pool_size=5, max_overflow=0, pool_timeout=PATIENCE) as engine:
        kv: AsyncKVAlchemy = await make_store(engine)
        if not first_use:
            await kv.count()
        most = 0

        async def handler(number: int) -> int:
            nonlocal most
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT 1"))
                most = max(most, engine.pool.checkedout())  # type: ignore[attr-defined]
                await asyncio.sleep(0)
                await kv.set(f"{number}", number)
                await kv.incr("n")
                return int(await kv.get(f"{number}"))

        assert await together(map(handler, range(40))) == list(range(40))
        assert await kv.get("n") == 40
        assert most == 5
        await kv.aclose()


async def test_another_event_loop_is_refused_with_the_remedy(make_store: MakeStore, backend: Backend) -> None:
    async with engine_on(backend.url, **options_for(backend)) as engine:
        kv: AsyncKVAlchemy = await make_store(engine)
        await kv.set("a", 1)
        with pytest.raises(ConfigurationError, match=r"from a URL|one store for each loop"):
            await asyncio.to_thread(asyncio.run, kv.get("a"))
        assert await kv.get("a") == 1
        await kv.aclose()


async def close_connections_of(kv: AsyncKVAlchemy) -> None:
    """Leave no sockets behind on a loop that is about to end: that would be a warning, and is not the point here."""
    for runtime in kv._runtimes:
        for engine in runtime._engines.owned:
            await engine.dispose()


def test_another_event_loop_is_refused_though_the_first_has_ended(backend: Backend, table: str) -> None:
    engine = create_async_engine(backend.url, **options_for(backend))
    kv = AsyncKVAlchemy(engine, table=table, sweep_every=None)

    async def first() -> None:
        await kv.set("a", 1)
        await close_connections_of(kv)
        await engine.dispose()

    asyncio.run(first())
    with pytest.raises(ConfigurationError, match="loop"):
        asyncio.run(kv.get("a", None))
    asyncio.run(kv.aclose())


@pytest.mark.backends("sqlite-memory")
def test_a_database_in_memory_is_not_made_anew_on_another_loop(backend: Backend) -> None:
    kv = AsyncKVAlchemy(backend.url, sweep_every=None)

    async def first() -> None:
        await kv.set("a", 1)
        await close_connections_of(kv)

    asyncio.run(first())
    with pytest.raises(ConfigurationError, match="in-memory"):
        asyncio.run(kv.get("a", None))
    asyncio.run(kv.aclose())


@pytest.mark.backends("sqlite")
async def test_an_engine_whose_tasks_share_one_connection_is_refused(backend: Backend) -> None:
    async with engine_on(backend.url, poolclass=StaticPool) as engine:
        for target in (engine, async_sessionmaker(engine)):
            with pytest.raises(ConfigurationError, match="poolclass="):
                AsyncKVAlchemy(target)


@pytest.mark.backends("sqlite-file")
async def test_an_ordinary_engine_of_a_file_works_under_load(make_store: MakeStore, backend: Backend) -> None:
    async with engine_on(backend.url) as engine:
        kv: AsyncKVAlchemy = await make_store(engine)

        async def transaction(number: int) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await kv.within(session).set(f"t{number}", number)

        await together([*(transaction(number) for number in range(5)), *(kv.incr("n") for _ in range(20))])
        assert (await kv.get("n"), await kv.count("t")) == (20, 5)
        await kv.aclose()


@pytest.mark.backends("sqlite-file")
async def test_a_factory_without_engine_is_refused(backend: Backend) -> None:
    async with engine_on(backend.url) as engine:
        for factory in (async_sessionmaker(), async_sessionmaker(bind=None)):
            with pytest.raises(ConfigurationError, match="engine"):
                AsyncKVAlchemy(factory)
        assert isinstance(AsyncKVAlchemy(async_sessionmaker(bind=engine)), AsyncKVAlchemy)
