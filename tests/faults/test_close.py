"""The store is closed while it is in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from akv.errors import ClosedError
from akv.store.client import Store
from tests.faults.arena import soon

if TYPE_CHECKING:
    from tests.backends import Backend
    from tests.conftest import MakeStore

pytestmark = pytest.mark.usefixtures("complaints")


async def test_calls_on_their_way_are_finished(make_store: MakeStore) -> None:
    kv = await make_store(sweep_every=1000)
    await kv.set("n", 0)
    calls: list[asyncio.Task[Any]] = [asyncio.ensure_future(kv.incr("n")) for _ in range(20)]
    calls += [asyncio.ensure_future(kv.get("n")) for _ in range(20)]
    calls += [asyncio.ensure_future(kv.count()) for _ in range(5)]
    await asyncio.sleep(0)
    await soon(kv.aclose())
    outcomes = await soon(asyncio.gather(*calls))
    assert sorted(outcomes[:20]) == list(range(1, 21))


async def test_a_first_use_on_its_way_is_finished_and_nothing_stays_open(backend: Backend, table: str) -> None:
    kv = Store(backend.url, table=table)
    calls = [asyncio.ensure_future(kv.incr("n")) for _ in range(5)]
    await asyncio.sleep(0)
    runtime = next(iter(kv._runtimes))
    await soon(kv.aclose())
    assert sorted(await soon(asyncio.gather(*calls))) == [1, 2, 3, 4, 5]
    assert all(connection.is_closed for connection in runtime._open._open)


async def test_afterwards_every_call_is_refused(make_store: MakeStore) -> None:
    kv = await make_store()
    await kv.set("a", 1)
    scan = kv.scan()
    await asyncio.gather(kv.aclose(), kv.aclose())
    await kv.aclose()
    for call in (kv.get("a"), kv.set("a", 1), kv.incr("n"), kv.clear(), kv.count(), anext(scan)):
        with pytest.raises(ClosedError, match="make a new store"):
            await call
    with pytest.raises(ClosedError):
        kv.within(create_async_engine("sqlite+aiosqlite:///:memory:").connect())
    with pytest.raises(ClosedError):
        async with kv.session():
            pass


async def test_a_session_open_at_the_time_ends_well(make_store: MakeStore) -> None:
    kv = await make_store(sweep_every=1000)
    await kv.set("a", 1)
    runtime = next(iter(kv._runtimes))
    async with kv.session(delete_expired=False) as session:
        assert await session.get(kv.model, ("a", "")) is not None
        await soon(kv.aclose())
    assert all(connection.is_closed for connection in runtime._open._open)


@pytest.mark.backends("sqlite-file", "postgres18-asyncpg", "mariadb")
async def test_a_borrowed_engine_stays_open(backend: Backend, make_store: MakeStore) -> None:
    engine = create_async_engine(backend.url)
    async with engine.connect() as connection:
        kv = await make_store(engine)
        await kv.set("a", 1)
        await kv.aclose()
        assert (await connection.exec_driver_sql("SELECT 1")).scalar() == 1
        assert engine.sync_engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    await engine.dispose()


async def test_the_context_manager_closes_when_the_block_fails(backend: Backend, table: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Store(backend.url, table=table) as kv:
            await kv.set("a", 1)
            raise ZeroDivisionError
    with pytest.raises(ClosedError):
        await kv.get("a")
