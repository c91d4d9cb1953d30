"""Handlers that hold every connection of the app's pool while they await the store on the same engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.faults.arena import lock_row, soon

if TYPE_CHECKING:
    from tests.backends import Backend
    from tests.conftest import MakeStore

HANDLERS, POOL = 40, 5

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")


@pytest.mark.parametrize("is_ready", [True, False], ids=["used before", "first use"])
@pytest.mark.parametrize("lend", ["engine", "sessionmaker"])
async def test_no_dead_lock(lend: str, is_ready: bool, backend: Backend, make_store: MakeStore) -> None:
    engine = create_async_engine(backend.url, pool_size=POOL, max_overflow=0, pool_timeout=20)
    sessions = async_sessionmaker(engine)
    kv = await make_store(engine if lend == "engine" else sessions)
    if is_ready:
        await kv.set("n", 0)
    full = asyncio.Event()
    holding = 0

    async def handler(number: int) -> None:
        nonlocal holding
        async with sessions() as session:
            await session.execute(text("SELECT 1"))
            holding += 1
            if holding == POOL:
                full.set()
            await full.wait()
            await kv.incr("n")
            await kv.set(f"h{number}", number)
            assert await kv.get(f"h{number}") == number
            assert await kv.count(f"h{number}") >= 1
            assert [entry async for entry in kv.scan(f"h{number}")]

    await soon(asyncio.gather(*(handler(number) for number in range(HANDLERS))))
    assert await kv.get("n") == HANDLERS
    await kv.aclose()
    await engine.dispose()


@pytest.mark.backends("postgres", "mariadb")
async def test_one_who_holds_a_row_and_writes_another_while_a_third_waits_for_that_row(
    backend: Backend, make_store: MakeStore, table: str
) -> None:
    """The third call blocks the store's lane; the holder's own call must go past it, or neither ever ends."""
    engine = create_async_engine(backend.url, pool_size=POOL)
    kv = await make_store(engine)
    await kv.set_many(dict.fromkeys(("held", "other", "n", "m"), 0))
    held = asyncio.Event()

    async def holder() -> None:
        async with engine.begin() as connection:
            await kv.within(connection).set("held", "holder")
            held.set()
            await until_waiting(backend, table)
            await kv.set("other", "holder")
            await kv.incr("n")
            await asyncio.gather(*(kv.incr(name) for name in ("n", "m")))
            await kv.delete("absent")
            assert await kv.get("other") == "holder"

    async def third() -> None:
        await held.wait()
        await kv.set("held", "third")

    await soon(asyncio.gather(holder(), third()))
    assert await kv.get_many(["held", "other", "n", "m"]) == {"held": "third", "other": "holder", "n": 2, "m": 1}
    await kv.aclose()
    await engine.dispose()


@pytest.mark.backends("postgres", "mariadb")
async def test_a_batch_that_meets_a_held_row_is_split(backend: Backend, make_store: MakeStore, table: str) -> None:
    engine = create_async_engine(backend.url)
    kv = await make_store()
    await kv.set_many({str(n): 0 for n in range(10)})
    async with engine.connect() as connection:
        await lock_row(connection, table, "3")
        for verb in (lambda n: kv.incr(str(n)), lambda n: kv.set(str(n), n), lambda n: kv.delete(str(n))):
            calls = [asyncio.ensure_future(verb(n)) for n in range(10)]
            await soon(asyncio.gather(*calls[:3], *calls[4:]))
            assert not calls[3].done()
            await connection.rollback()
            await soon(calls[3])
            await kv.set_many({str(n): 0 for n in range(10)})
            await lock_row(connection, table, "3")
        await connection.rollback()
    await engine.dispose()


async def until_waiting(backend: Backend, table: str) -> None:
    """Wait until somebody waits for a row of this test's table."""
    from tests.faults.arena import Arena

    arena = Arena(backend.name, backend.dialect, backend.url)
    await arena.until(lambda: bool(arena.waiting()), "a call waits for the row")
