"""A foreign transaction and a call of the store want the same rows in opposite orders."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from tests.faults.arena import lock_row, soon
from tests.servers import look

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from akv.store.client import Store
    from tests.conftest import MakeStore
    from tests.faults.arena import Arena
    from tests.faults.conftest import Proved

pytestmark = pytest.mark.backends("postgres", "mariadb")

# Who looks for a dead-lock first is its victim; MariaDB chooses the transaction that has changed less.
PATIENT = {"postgresql": "SET deadlock_timeout = '20s'", "mariadb": "SET innodb_lock_wait_timeout = 20"}
HASTY = {"postgresql": "SET deadlock_timeout = '10ms'", "mariadb": "SET innodb_lock_wait_timeout = 20"}

TRIES = 5
"""PostgreSQL looks for a dead-lock once, some time after a wait has begun: a busy machine may bring the other later."""


async def set_both(kv: Store) -> None:
    await kv.set_many({"a": 1, "b": 1})


async def incr_both(kv: Store) -> None:
    await asyncio.gather(kv.incr("a"), kv.incr("b"))


async def delete_both(kv: Store) -> None:
    assert await kv.delete_many(["a", "b"]) == 2


async def update_both(kv: Store) -> None:
    await asyncio.gather(kv.update("a", lambda n: n + 1), kv.update("b", lambda n: n + 1))


@pytest.mark.parametrize(
    ("call", "left"),
    [(set_both, {"a": 1, "b": 1}), (incr_both, {"a": 1, "b": 1}), (delete_both, {}), (update_both, {"a": 1, "b": 1})],
)
async def test_the_store_is_the_victim_and_tries_again(
    call: Callable[[Store], Awaitable[None]],
    left: dict[str, int],
    arena: Arena,
    make_store: MakeStore,
    table: str,
    proved: Proved,
) -> None:
    before = arena.deadlocks()
    for seconds in range(1, 2 * TRIES, 2):
        look_after(arena, seconds)
        kv = await make_store(arena.url)
        await kv.set_many({"a": 0, "b": 0, **{f"weight{n}": n for n in range(50)}})
        async with arena.foreigner(PATIENT[arena.dialect]) as other:
            await make_heavy(other, arena, table)
            await lock_row(other, table, "b")
            ours = asyncio.ensure_future(call(kv))
            await arena.until(lambda: len(arena.waiting()) == 1, "the call waits for b")
            await soon(lock_row(other, table, "a"))  # granted by the victim's rollback
            await other.rollback()
            await soon(ours)
        assert await kv.get_many(["a", "b"]) == left
        await kv.aclose()
        if await is_counted(arena, before):
            break
    proved("deadlocks, the store the victim", before, arena.deadlocks())


async def test_the_other_is_the_victim_and_the_store_goes_on(
    arena: Arena, make_store: MakeStore, table: str, proved: Proved
) -> None:
    look_after(arena, 20)
    kv = await make_store(arena.url)
    await kv.set_many({"a": 0, "b": 0, **{f"weight{n}": n for n in range(50)}})
    before = arena.deadlocks()
    async with arena.foreigner(HASTY[arena.dialect]) as other:
        await lock_row(other, table, "b")
        heavy = asyncio.ensure_future(kv.set_many({"a": 1, "b": 1, **{f"aa{n}": n for n in range(50)}}))
        await arena.until(lambda: len(arena.waiting()) == 1, "the call waits for b")
        with pytest.raises(Exception, match=r"(?i)deadlock"):
            await soon(lock_row(other, table, "a"))
        await other.rollback()
        await soon(heavy)
    assert await kv.get_many(["a", "b"]) == {"a": 1, "b": 1}
    await kv.aclose()
    await arena.until(lambda: arena.deadlocks() > before, "the server counts the deadlock")
    proved("deadlocks, the other the victim", before, arena.deadlocks())


def look_after(arena: Arena, seconds: int) -> None:
    """Let PostgreSQL look for a dead-lock when a new connection of the store has waited so long."""
    if arena.dialect == "postgresql":
        look(arena.url, f"ALTER DATABASE \"{make_url(arena.url).database}\" SET deadlock_timeout = '{seconds}s'")


async def is_counted(arena: Arena, before: int) -> bool:
    """Tell whether the server has counted a dead-lock since; PostgreSQL's backends report when they leave."""
    try:
        await arena.until(lambda: arena.deadlocks() > before, "the server counts the deadlock", 3)
    except TimeoutError:
        return False
    return True


async def make_heavy(other: object, arena: Arena, table: str) -> None:
    """Let a transaction have changed so many rows that MariaDB spares it."""
    if arena.dialect == "mariadb":
        await other.exec_driver_sql(f"UPDATE {table} SET expire = NULL, tag = 'x' WHERE `key` LIKE 'weight%%'")  # type: ignore[attr-defined]
