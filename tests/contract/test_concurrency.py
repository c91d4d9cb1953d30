"""Hundreds of calls at once in one process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import StoredTypeError
from akv.testing import FakeClock
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract.helpers import dump, together
from tests.contract.model import Call, Model


@pytest.fixture
async def other(store: AsyncKVAlchemy, make_store: MakeStore, clock: FakeClock, backend: Backend) -> AsyncKVAlchemy:
    """A second store on the same table; in memory, where there is none, the first."""
    return store if backend.name == "sqlite-memory" else await make_store(clock=clock)


async def test_hundreds_of_mixed_calls_answer_as_if_made_one_after_the_other(
    store: AsyncKVAlchemy, clock: FakeClock
) -> None:
    chance = random.Random(7)

    def some_call() -> Call:
        key = f"k{chance.randrange(12)}"
        return chance.choice([
            Call("set", (key, chance.randrange(9))), Call("set", (key, "text")), Call("set", (key, 1, "", 60)),
            Call("incr", (key,)), Call("incr", (key,), {"expire": 60}), Call("add", (key, chance.randrange(9))),
            Call("pop", (key, "none")), Call("delete", (key,)), Call("touch", (key, 30)),
            Call("update", (key, repr), {"default": 0}), Call("get", (key, "none"), {"renew_for": 5}),
            Call("set_many", ({key: 1, "k0": 2, "k5": 3},)), Call("delete_many", ([key, "k3"],)),
            Call("delete_prefix", ("k1",)),
        ])  # fmt: skip

    model = Model(clock)
    for _ in range(3):
        batch = [some_call() for _ in range(250)]
        answers = await together(call.ask(store) for call in batch)
        assert answers == [call.ask_paper(model) for call in batch]
        assert await dump(store) == model.live


async def test_the_last_write_of_a_key_in_the_order_of_calls_wins(store: AsyncKVAlchemy) -> None:
    for _ in range(5):
        await together(store.set(f"{number % 3}", number) for number in range(300))
        assert await store.get_many(["0", "1", "2"]) == {"0": 297, "1": 298, "2": 299}
        writes = [store.set("a", 1), store.set_many({"a": 2, "b": 2}), store.incr("a"), store.set("b", 5)]
        await together(writes)
        assert await store.get_many(["a", "b"]) == {"a": 3, "b": 5}


async def test_of_many_pops_one_gets_the_value(store: AsyncKVAlchemy, other: AsyncKVAlchemy) -> None:
    for number in range(5):
        await store.set("a", number)
        found = await together(kv.pop("a", None) for kv in (store, other) * 25)
        assert sorted(found, key=str) == sorted([number] + [None] * 49, key=str)


async def test_of_many_adds_one_stores(store: AsyncKVAlchemy, other: AsyncKVAlchemy) -> None:
    for number in range(5):
        stored = await together(kv.add(f"{number}", name) for name, kv in enumerate((store, other) * 25))
        assert stored.count(True) == 1
        assert await store.get(f"{number}") == stored.index(True)


async def test_nothing_is_lost_among_increments_and_updates(store: AsyncKVAlchemy, other: AsyncKVAlchemy) -> None:
    both = (store, other) * 50
    counts = await together(kv.incr("n") for kv in both)
    assert sorted(counts) == list(range(1, 101))

    def adding(name: int) -> Callable[[Any], Any]:
        return lambda names: [*names, name]

    lists = await together(kv.update("names", adding(name), default=[]) for name, kv in enumerate(both))
    assert [names[-1] for names in lists] == list(range(100))
    assert sorted(await store.get("names")) == list(range(100))


async def test_deletes_answer_exactly_in_the_order_of_calls(store: AsyncKVAlchemy) -> None:
    for _ in range(5):
        answers = await together(
            [
                store.delete("a"), store.set("a", 1), store.delete("a"), store.delete("a"), store.add("a", 1),
                store.delete_many(["a", "b"]), store.delete_many(["b", "a"]), store.set("b", 1),
                store.delete_prefix("b"), store.delete("b"),
            ]
        )  # fmt: skip
        assert answers == [False, None, True, False, True, 1, 0, None, 1, False]
        first, *rest = await together([store.add("c", 1), *(store.delete("c") for _ in range(60))])
        assert (first, rest) == (True, [True] + [False] * 59)


async def test_everyone_reads_his_own_writes_under_load(store: AsyncKVAlchemy) -> None:
    async def user(name: int) -> None:
        key = f"user {name}"
        for number in range(8):
            await store.set(key, number)
            assert await store.get(key) == number
            assert await store.incr(key, 100) == number + 100
            assert (await store.get_many([key, "shared"]))[key] == number + 100
            await store.set("shared", name)
            assert await store.pop(key) == number + 100
            assert await store.get(key, "gone") == "gone"

    await together(map(user, range(40)))


async def test_a_get_sees_every_write_that_was_acknowledged_before_it(
    store: AsyncKVAlchemy, other: AsyncKVAlchemy
) -> None:
    acknowledged = 0
    await store.set("n", 0)

    async def write() -> None:
        nonlocal acknowledged
        for number in range(1, 120):
            await store.set("n", number)
            acknowledged = number

    async def read(kv: AsyncKVAlchemy) -> None:
        while acknowledged < 119:
            before = acknowledged
            assert await kv.get("n") >= before
            before = acknowledged
            assert (await kv.get_many(["n", "m"]))["n"] >= before

    await together([write(), *(read(kv) for kv in (store, other, store, other))])


async def test_a_renewal_never_restores_an_older_value(store: AsyncKVAlchemy, other: AsyncKVAlchemy) -> None:
    for number in range(25):
        await together(
            [
                *(other.get("a", None, renew_for=500) for _ in range(4)),
                store.set("a", number, expire=100),
                *(other.get("a", None, renew_for=500) for _ in range(4)),
            ]
        )
        assert await store.get("a") == await other.get("a") == number


async def test_cancelled_callers_leave_the_others_whole(store: AsyncKVAlchemy) -> None:
    await store.set_many({f"{number}": "old" for number in range(100)})
    for turns in range(8):
        calls = {number: asyncio.ensure_future(store.set(f"{number}", turns)) for number in range(100)}
        gets = {number: asyncio.ensure_future(store.get(f"{number}")) for number in range(0, 100, 5)}
        for _ in range(turns):
            await asyncio.sleep(0)
        for number in range(0, 100, 2):
            calls[number].cancel()
        for number in range(0, 100, 10):
            gets[number].cancel()
        await together(call for number, call in calls.items() if number % 2)
        await together(get for number, get in gets.items() if number % 10)

        found = await store.get_many(map(str, range(100)))
        assert all(found[f"{number}"] == turns for number in range(1, 100, 2))
        assert set(found.values()) <= {"old", *range(turns + 1)}
        await asyncio.gather(*calls.values(), *gets.values(), return_exceptions=True)


async def test_a_cancelled_write_never_lands_after_a_later_acknowledged_one(store: AsyncKVAlchemy) -> None:
    for turns in range(12):
        early = [asyncio.ensure_future(store.set("a", f"early {number}")) for number in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in early:
            call.cancel()
        await store.set("a", "later")
        await asyncio.gather(*early, return_exceptions=True)
        await store.set("another", 1)

        assert await store.get("a") == "later"


@pytest.mark.parametrize("verb", ["pop", "incr", "add"])
async def test_a_cancelled_call_happens_once_or_not_at_all(store: AsyncKVAlchemy, verb: str) -> None:
    for turns in range(8):
        await store.set("a", 1)
        await store.delete("b")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "pop": lambda: store.pop("a", None),
            "incr": lambda: store.incr("a"),
            "add": lambda: store.add("b", 1),
        }
        cancelled = asyncio.ensure_future(calls[verb]())
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await store.set("barrier", 1)

        assert await store.get("a", "popped") in {"pop": (1, "popped"), "incr": (1, 2), "add": (1,)}[verb]
        assert await store.get("b", None) in (None, 1)


async def test_one_call_that_fails_leaves_its_neighbours_whole(store: AsyncKVAlchemy) -> None:
    await store.set("text", "x")

    async def outcome(key: str) -> Any:
        try:
            return await store.incr(key)
        except StoredTypeError as error:
            return error.key

    keys = ["n", "text", "n", "m", "text", "n"]
    assert await together(map(outcome, keys)) == [1, "text", 2, 1, "text", 3]
    assert await store.get_many(["n", "m", "text"]) == {"n": 3, "m": 1, "text": "x"}


async def test_first_calls_at_once_wait_for_one_preparation(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()
    await together([*(kv.set(f"{number}", number) for number in range(20)), *(kv.get("x", None) for _ in range(20))])

    assert await kv.count() == 20


async def test_scans_and_sweeps_run_beside_writes(store: AsyncKVAlchemy) -> None:
    await store.set_many({f"stays {number:04}": number for number in range(400)})

    async def scan() -> None:
        found = [entry.value async for entry in store.scan("stays")]
        assert found == list(range(400))

    async def write(number: int) -> None:
        await store.set(f"goes {number}", 1, expire=0)
        await store.purge_expired()
        await store.set(f"goes {number}", 1, tag="t")
        assert await store.count("stays") == 400
        await store.delete_prefix(f"goes {number}")

    await together([*(scan() for _ in range(6)), *map(write, range(12))])
    assert await store.count() == 400
