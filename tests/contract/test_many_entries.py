"""get_many, set_many and delete_many, also of more rows than one statement holds: all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import InvalidArgumentError, StoreError
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.backends import Backend
from tests.contract.helpers import NOON, dump, forbid, together


async def test_get_many_returns_those_that_are_present(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("dead", 0, expire=60)
    clock.advance(60)
    await kv.set_many({"a": 1, "b": None})
    await kv.set("a", "other tag", tag="t")

    assert await kv.get_many(["b", "absent", "a", "dead"]) == {"a": 1, "b": None}
    assert await kv.get_many(["a", "b"], tag="t") == {"a": "other tag"}
    assert await kv.get_many(["absent"]) == {}


async def test_set_many_replaces_values_and_expiries_in_its_tag(kv: Verbs) -> None:
    await kv.set("a", 0, "t", expire=60)
    await kv.set_many({"a": 1, "b": 2}, "t")
    await kv.set_many({"b": 3, "c": 4}, "t", 60)

    end = NOON + timedelta(minutes=1)
    assert await dump(kv) == {("a", "t"): (1, None), ("b", "t"): (3, end), ("c", "t"): (4, end)}


async def test_delete_many_counts_the_live_ones_once(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("dead", 0, expire=60)
    clock.advance(60)
    await kv.set_many({"a": 1, "b": 2, "c": 3})
    await kv.set("a", 1, tag="t")

    assert await kv.delete_many(["a", "b", "a", "dead", "absent"]) == 2
    assert await dump(kv) == {("c", ""): (3, None), ("a", "t"): (1, None)}


async def test_any_iterable_of_keys_will_do(kv: Verbs) -> None:
    await kv.set_many(dict.fromkeys("abc", 1))

    assert await kv.get_many(key for key in "ab") == {"a": 1, "b": 1}
    assert await kv.get_many({"a": "keys of a mapping"}) == {"a": 1}
    assert await kv.delete_many({"a", "b"}) == 2
    assert await kv.delete_many(iter(["c"])) == 1


async def test_of_nothing_they_do_nothing(kv: Verbs) -> None:
    await kv.set_many({})

    assert await kv.get_many([]) == {}
    assert await kv.delete_many([]) == 0


async def test_a_single_key_is_no_iterable_of_keys(kv: Verbs) -> None:
    wrong: list[Any] = ["abc", b"abc", 1, None]
    for keys in wrong:
        for call in (kv.get_many(keys), kv.delete_many(keys), kv.set_many(keys)):
            with pytest.raises(InvalidArgumentError):
                await call


@pytest.mark.parametrize("count", [1001, 5001])
async def test_more_rows_than_one_statement_holds(kv: Verbs, count: int) -> None:
    rows = {f"key {number:05}": number for number in range(count)}
    await kv.set_many(rows, expire=60)
    assert await kv.count() == count
    assert await kv.get_many(rows) == rows
    await kv.set_many({key: -number for key, number in rows.items()})

    assert [entry.value async for entry in kv] == [-number for number in range(count)]
    assert await kv.delete_many([*rows, "absent"]) == count
    assert await kv.count() == 0


ROWS = {f"{number:05}": number for number in range(6000)}
LAST = "05999"
Verb = Callable[[AsyncKVAlchemy], Coroutine[Any, Any, Any]]


@pytest.mark.parametrize(
    "verb",
    [
        lambda kv: kv.set_many(dict.fromkeys(ROWS, "new")),
        lambda kv: kv.delete_many(ROWS),
        lambda kv: kv.clear(),
        lambda kv: kv.delete_tag(""),
        lambda kv: kv.delete_prefix("0"),
    ],
    ids=["set_many", "delete_many", "clear", "delete_tag", "delete_prefix"],
)
async def test_all_or_nothing(store: AsyncKVAlchemy, backend: Backend, table: str, verb: Verb) -> None:
    await store.set_many(ROWS)
    await forbid(store, backend, table, LAST)
    with pytest.raises(StoreError, match="no"):
        await verb(store)

    assert await store.count() == len(ROWS)
    assert await store.get_many(ROWS) == ROWS


@pytest.mark.parametrize("count", [700, 2500, 6000])
async def test_get_many_sees_all_of_a_set_many_or_nothing_of_it(
    store: AsyncKVAlchemy, make_store: Any, backend: Backend, clock: FakeClock, count: int
) -> None:
    other = store if backend.name == "sqlite-memory" else await make_store(clock=clock)
    keys = [f"{number:05}" for number in range(count)]
    await store.set_many(dict.fromkeys(keys, -1))
    done = False

    async def write() -> None:
        nonlocal done
        for generation in range(8):
            await other.set_many(dict.fromkeys(keys, generation))
        done = True

    async def read(part: int) -> None:
        # Each reader wants the keys in another order, beside readers of other keys.
        mine = keys[part:] + keys[:part]
        while not done:
            found, _ = await together([store.get_many(mine), store.get_many(f"absent {n}" for n in range(part))])
            assert len(set(found.values())) == 1, f"torn: {sorted(set(found.values()))}"

    await together([write(), read(0), read(count // 3)])


async def test_the_guilty_call_of_a_batch_fails_alone(store: AsyncKVAlchemy, backend: Backend, table: str) -> None:
    await store.set(LAST, "old")
    await forbid(store, backend, table, LAST)

    async def outcome(key: str) -> str:
        try:
            await store.set(key, "new")
        except StoreError:
            return "refused"
        return "stored"

    keys = [f"{number:05}" for number in range(5990, 6010)]
    outcomes = dict(zip(keys, await together(map(outcome, keys)), strict=True))

    assert [key for key in keys if outcomes[key] == "refused"] == [LAST]
    assert await store.get_many(keys) == {key: "old" if key == LAST else "new" for key in keys}
