"""The server ends a connection of the store: idle, or in the middle of a call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from akv.errors import StoreUnavailableError
from akv.store.retry import RetryPolicy
from tests.faults.arena import lock_row, soon

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from akv.store.client import Store
    from tests.conftest import MakeStore
    from tests.faults.arena import Arena
    from tests.faults.conftest import Proved

pytestmark = pytest.mark.backends("postgres", "mariadb")

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "set": lambda kv: kv.set("a", 11),
    "set_many": lambda kv: kv.set_many({"a": 11, "b": 2}),
    "incr": lambda kv: kv.incr("a"),
    "update": lambda kv: kv.update("a", lambda n: n + 1),
    "add": lambda kv: kv.add("a", 5),
    "pop": lambda kv: kv.pop("a"),
    "delete": lambda kv: kv.delete("a"),
    "touch": lambda kv: kv.touch("a", None),
}
LEFT = {"set": 11, "set_many": 11, "incr": 11, "update": 11, "add": 10, "pop": None, "delete": None, "touch": 10}
RETURNED = {"set": None, "set_many": None, "incr": 11, "update": 11, "add": False, "pop": 10, "delete": True,
            "touch": True}  # fmt: skip


def gone(arena: Arena, sessions: set[int]) -> int:
    return len(sessions - arena.sessions())


async def kill_all(arena: Arena, proved: Proved, sessions: set[int]) -> None:
    assert sessions
    for session in sessions:
        arena.kill(session)
    await arena.until(lambda: gone(arena, sessions) == len(sessions), "the server has ended the connections")
    proved("connections ended by the server", 0, gone(arena, sessions))


async def scan(kv: Store) -> list[object]:
    return [entry.value async for entry in kv.scan("a")]


async def use_session(kv: Store) -> object:
    async with kv.session() as session:
        return (await session.execute(select(kv.model.key).where(kv.model.key == "a"))).scalar()


async def test_idle_connections_that_were_killed_are_replaced(
    arena: Arena, make_store: MakeStore, proved: Proved
) -> None:
    kv = await make_store(arena.url)
    reads = {"get": lambda kv: kv.get("a"), "scan": scan, "session": use_session}
    expected = RETURNED | {"get": 10, "scan": [10], "session": "a"}
    for name, call in (CALLS | reads).items():
        await asyncio.gather(*(kv.get(str(n), None) for n in range(300)), kv.set("a", 10), use_session(kv))
        await kill_all(arena, proved, arena.sessions())
        assert await soon(call(kv)) == expected[name], name
        assert await kv.get("a", None) == LEFT.get(name, 10), name


async def test_a_call_whose_connection_is_killed_while_it_waits_for_a_row_is_tried_again(
    arena: Arena, make_store: MakeStore, table: str, proved: Proved
) -> None:
    kv = await make_store(arena.url)
    for name, call in CALLS.items():
        await kv.set("a", 10)
        async with arena.foreigner() as other:
            await lock_row(other, table, "a")
            ours = asyncio.ensure_future(call(kv))
            await arena.until(lambda: len(arena.waiting()) == 1, f"{name} waits for the row")
            await kill_all(arena, proved, arena.waiting())
            await other.rollback()
            assert await soon(ours) == RETURNED[name], name
        assert await kv.get("a", None) == LEFT[name], name


async def test_killed_again_and_again_it_ends_in_an_error_with_its_cause(
    arena: Arena, make_store: MakeStore, table: str, proved: Proved
) -> None:
    kv = await make_store(arena.url, retry=RetryPolicy(attempts=3))
    await kv.set("a", 10)
    async with arena.foreigner() as other:
        await lock_row(other, table, "a")
        ours = asyncio.ensure_future(kv.incr("a"))
        for _ in range(3):
            await arena.until(lambda: len(arena.waiting()) == 1, "the call waits for the row")
            await kill_all(arena, proved, arena.waiting())
        with pytest.raises(StoreUnavailableError, match=r"unavailable.*3 attempts") as caught:
            await soon(ours)
    assert caught.value.attempts == 3
    assert caught.value.elapsed > 0
    assert caught.value.__cause__ is not None
    assert await kv.incr("a") == 11
