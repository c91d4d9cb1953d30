"""The store is used in the middle of the app's own write transaction on the same SQLite file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from akv.errors import StoreUnavailableError
from akv.store.retry import RetryPolicy
from tests.faults.arena import settled, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.backends import Backend
    from tests.conftest import MakeStore

pytestmark = pytest.mark.backends("sqlite-file")

BRIEF = RetryPolicy(total=0.3)


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(backend.url)
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE orders (number INTEGER)"))
        await connection.commit()
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("lent", [True, False], ids=["on the app's engine", "on a URL"])
async def test_an_error_in_bounded_time_names_the_remedy_and_the_remedy_works(
    lent: bool, app: AsyncEngine, make_store: MakeStore
) -> None:
    kv = await make_store(app if lent else None, retry=BRIEF)
    await kv.set("last", 0)
    async with app.begin() as connection:
        await connection.execute(text("INSERT INTO orders VALUES (1)"))
        for call in (
            lambda: kv.set("last", 1),
            lambda: kv.incr("orders"),
            lambda: kv.pop("last"),
            lambda: kv.delete("last"),
            lambda: kv.clear(),
        ):
            error = await settled(call())
            assert isinstance(error, StoreUnavailableError), error
            assert "database is locked" in str(error)
            assert "kv.within(session)" in str(error)
        await soon(kv.within(connection).set("last", 1))
        assert await soon(kv.within(connection).incr("orders")) == 1
    assert await kv.get("last") == 1
    assert await kv.get("orders") == 1
    async with app.connect() as connection:
        assert (await connection.execute(text("SELECT number FROM orders"))).all() == [(1,)]
    await kv.aclose()


async def test_the_first_use_inside_it_ends_the_same_way(app: AsyncEngine, make_store: MakeStore) -> None:
    kv = await make_store(app, retry=BRIEF)
    async with app.begin() as connection:
        await connection.execute(text("INSERT INTO orders VALUES (1)"))
        error = await settled(kv.set("last", 1))
        assert isinstance(error, StoreUnavailableError), error
        assert "kv.within(session)" in str(error)
    await kv.set("last", 1)
    assert await kv.get("last") == 1
    await kv.aclose()


@pytest.mark.backends("sqlite-memory")
async def test_in_memory_the_one_connection_is_the_callers_own(make_store: MakeStore) -> None:
    engine = create_async_engine(
        "sqlite+aiosqlite:///:memory:",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.2,
    )
    kv = await make_store(engine, retry=BRIEF)
    await kv.set("last", 0)
    async with engine.begin() as connection:
        error = await settled(kv.set("last", 1))
        assert isinstance(error, StoreUnavailableError), error
        assert "kv.within(session)" in str(error)
        await soon(kv.within(connection).set("last", 1))
    assert await soon(asyncio.ensure_future(kv.get("last"))) == 1
    await kv.aclose()
    await engine.dispose()
