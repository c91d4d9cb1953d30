"""What a process has at hand: bounded, never shared by accident, never older than an invalidation."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from akv.client import AsyncKVAlchemy
from akv.errors import ConfigurationError
from akv.memoize.freshness import Saved
from akv.memoize.near import Near
from akv.testing import FakeClock
from tests.memoize.conftest import GatedStore
from tests.memoize.test_memoize import counting
from tests.memoize.test_store_down import execute
from tests.memoize.waiting import bounded, started, until


@dataclass
class Point:
    x: int


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


IMMUTABLE = [
    None, True, 1, 2**100, 1.5, 1j, "text", b"bytes", Decimal("1.0"), UUID(int=1), timedelta(1),
    datetime(2026, 1, 1, tzinfo=UTC), (), (1, ("a", b"b")), frozenset({1, (2,)}),
]  # fmt: skip
MUTABLE = [[1], {"a": [1]}, {1}, bytearray(b"x"), (1, [2]), Point(1), [Point(1)]]


def near(entries: int = 100, max_bytes: int = 10**6, **options: Any) -> Near:
    return Near(entries, max_bytes, **options)


# The LRU


def test_the_least_recently_used_goes_first() -> None:
    held = near(2)
    held.put("a", Saved(1))
    held.put("b", Saved(2))
    held.get("a")
    held.put("c", Saved(3))
    assert [held.get(key) is not None for key in "abc"] == [True, False, True]
    assert len(held) == 2


def test_bytes_are_bounded_too() -> None:
    held = near(1000, 10_000)
    for number in range(100):
        held.put(f"{number}", Saved("x" * 1000))
    assert 5 <= len(held) <= 10
    assert held.size <= 10_000
    assert held.get("99") is not None


@pytest.mark.parametrize("value", ["x" * 20_000, ["x" * 20_000], ("x" * 10_000, b"y" * 10_000)], ids=type)
def test_what_is_larger_than_all_of_it_is_not_held_and_displaces_nothing_else(value: Any) -> None:
    held = near(1000, 10_000)
    held.put("small", Saved(1))
    held.put("large", Saved(1))
    held.put("large", Saved(value))
    assert held.get("small") is not None
    assert held.get("large") is None


def test_sizes_are_given_back() -> None:
    held = near()
    for _ in range(3):
        held.put("a", Saved("x" * 1000))
        held.put("b", Saved([1]))
    held.forget("a")
    held.forget("a")
    held.forget()
    assert (len(held), held.size) == (0, 0)


def test_an_answer_that_was_overtaken_is_not_held() -> None:
    held = near()
    ticket = held.ticket
    held.forget("another")
    held.put("a", Saved("old"), ticket)
    assert held.get("a") is None
    ticket = held.ticket
    held.put("a", Saved("new"))
    held.put("a", Saved("old"), ticket)
    found = held.get("a")
    assert found is not None
    assert found.value() == "new"


def test_threads_may_use_it_at_once() -> None:
    held = near(50, 10**5)
    failures: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            for turn in range(3000):
                key = f"{(turn * seed) % 97}"
                found = held.get(key)
                if found is None or found.value() != key:
                    held.put(key, Saved(key))
                if turn % 500 == seed:
                    held.forget()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert held.size == sum(found.size for found in held._held.values())
    assert len(held) <= 50


# Values


@pytest.mark.parametrize("value", IMMUTABLE, ids=repr)
def test_what_nobody_can_change_is_shared(value: Any) -> None:
    held = near()
    held.put("a", Saved(value))
    found = held.get("a")
    assert found is not None
    assert found.value() is value


@pytest.mark.parametrize("value", MUTABLE, ids=repr)
def test_what_can_be_changed_is_made_anew_for_each_caller(value: Any) -> None:
    held = near()
    held.put("a", Saved(value))
    found = held.get("a")
    assert found is not None
    one, other = found.value(), found.value()
    assert one == other == value
    assert len({id(one), id(other), id(value)}) == 3


@pytest.mark.parametrize("value", MUTABLE, ids=repr)
def test_it_is_shared_if_that_is_asked_for(value: Any) -> None:
    held = near(shared=True)
    held.put("a", Saved(value))
    found = held.get("a")
    assert found is not None
    assert found.value() is value
    assert found.size > 400


@pytest.mark.parametrize("shared", [True, False])
def test_what_cannot_be_copied_is_not_held(shared: bool) -> None:
    held = near(shared=shared)
    held.put("a", Saved(Unpicklable()))
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    held.put("b", Saved(deep))
    assert len(held) == 0


# Before the store


async def test_a_result_at_hand_costs_no_question_to_the_store(kv: GatedStore, url: str) -> None:
    count, runs = counting(kv, near=10)
    assert await count(1) == 1
    await execute(url, "DELETE FROM kvstore")
    assert [await count(1), await count(a=1)] == [1, 1]
    assert runs == [1]
    assert count.cache_info().hits == 2


async def test_what_another_process_stored_comes_near_when_it_is_found(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    (count, _), (other, runs) = counting(kv), counting(kv, near=10)
    await count(1)
    assert await other(1) == 1
    await execute(url, "DELETE FROM kvstore")
    assert await other(1) == 1
    assert runs == []


async def test_a_result_at_hand_grows_old_as_it_does_in_the_store(kv: GatedStore, clock: FakeClock) -> None:
    count, _ = counting(kv, near=10, expire=60)
    assert await count(1) == 1
    clock.advance(59.999999)
    assert await count(1) == 1
    clock.advance(0.000001)
    assert await count(1) == 2


async def test_a_result_at_hand_that_is_stale_is_looked_for_in_the_store_first(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    """Another process may have computed it by now."""
    count, runs = counting(kv, near=10, expire=60, stale_for=30)
    async with AsyncKVAlchemy(url, clock=clock, sweep_every=None) as elsewhere:
        other, _ = counting(elsewhere, expire=60, stale_for=30)
        await count(1)
        clock.advance(60)
        assert await other.refresh(1) == 1
        await count(1)
    assert runs == [1]
    assert not kv._guard.behind


async def test_a_result_may_be_changed_by_whoever_got_it(kv: GatedStore) -> None:
    @kv.memoize(near=10)
    async def listed() -> list[int]:
        return [1]

    for _ in range(3):
        found = await listed()
        assert found == [1]
        found.append(2)


async def test_results_are_the_same_object_if_that_is_asked_for(kv: GatedStore) -> None:
    @kv.memoize(near=10, near_shared=True)
    async def listed() -> list[int]:
        return [1]

    assert await listed() is await listed()


@pytest.mark.parametrize("clear", [True, False], ids=["clear", "invalidate"])
async def test_invalidation_reaches_what_is_at_hand(kv: GatedStore, clear: bool) -> None:
    count, _ = counting(kv, near=10)
    await count(1)
    await count(2)
    await (count.cache_clear() if clear else count.cache_invalidate(1))
    assert [await count(1), await count(2)] == ([3, 4] if clear else [3, 2])


@pytest.mark.parametrize("clear", [True, False], ids=["clear", "invalidate"])
async def test_an_answer_of_the_store_that_an_invalidation_overtook_is_not_held(kv: GatedStore, clear: bool) -> None:
    """It is returned to who asked before, and to nobody afterwards."""
    (count, _), (same, _) = counting(kv), counting(kv, near=10)
    await count(1)
    kv.read.clear()
    (early,) = await started(same(1))
    await until(lambda: kv.reading == 1)
    await bounded(same.cache_clear() if clear else same.cache_invalidate(1))
    kv.read.set()
    assert await bounded(early) == 1
    assert await same(1) == 1
    assert same.cache_info().fills == 1


async def test_an_answer_of_the_store_that_a_fill_overtook_is_not_held(kv: GatedStore) -> None:
    (count, _), (same, runs) = counting(kv), counting(kv, near=10)
    await count(1)
    runs.append(0)
    kv.read.clear()
    (early,) = await started(same(1))
    await until(lambda: kv.reading == 1)
    assert await bounded(same.refresh(1)) == 2
    kv.read.set()
    assert await bounded(early) == 1
    assert await same(1) == 2


async def test_what_is_at_hand_is_ignored_by_who_wants_it_computed(kv: GatedStore) -> None:
    count, _ = counting(kv, near=10)
    assert [await count(1), await count.refresh(1), await count(1)] == [1, 2, 2]
    count.expire_if = True
    assert await count(1) == 3


async def test_what_is_not_saved_is_not_at_hand_either(kv: GatedStore) -> None:
    count, _ = counting(kv, near=10, skip_saving_to_cache_if=True)
    assert [await count(1), await count(1)] == [1, 2]


async def test_what_is_at_hand_serves_while_the_store_is_down(kv: GatedStore, url: str) -> None:
    count, runs = counting(kv, near=10)
    await count(1)
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    assert await count(1) == 1
    assert runs == [1]


async def test_near_is_bounded(kv: GatedStore, url: str) -> None:
    count, runs = counting(kv, near=2)
    for a in (1, 2, 3):
        await count(a)
    await execute(url, "DELETE FROM kvstore")
    for a in (3, 2, 1):
        await count(a)
    assert runs == [1, 2, 3, 1]


async def test_methods_of_all_instances_share_what_is_at_hand(kv: GatedStore) -> None:
    @dataclass(frozen=True)
    class Service:
        name: str

        @kv.memoize(near=10)
        async def method(self, a: int) -> str:
            return f"{self.name}{a}"

    assert [await Service("x").method(1), await Service("x").method(1), await Service("y").method(1)] == [
        "x1",
        "x1",
        "y1",
    ]
    assert Service.method.cache_info().hits == 1


def test_several_event_loops_share_what_is_at_hand(url: str) -> None:
    kv = AsyncKVAlchemy(url, sweep_every=None)
    count, runs = counting(kv, near=10)

    async def call() -> Any:
        return await bounded(count(1))

    assert [asyncio.run(call()) for _ in range(3)] == [1, 1, 1]
    assert runs == [1]
    asyncio.run(kv.aclose())


@pytest.mark.parametrize(
    "options",
    [
        {"near": 0},
        {"near": -1},
        {"near": True},
        {"near": 1.5},
        {"near": "many"},
        {"near": 10, "near_bytes": 0},
        {"near": 10, "near_bytes": None},
        {"near": 10, "near_shared": 1},
    ],
    ids=str,
)
def test_bounds_that_bound_nothing_are_refused(options: dict[str, Any]) -> None:
    kv = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:")
    with pytest.raises(ConfigurationError):
        kv.memoize(**options)
