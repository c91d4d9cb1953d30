"""What a memoized function does, on a real store."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from akv import CompressedSerializer, JSONSerializer, MsgpackSerializer, PickleSerializer, SignedPickleSerializer
from akv.client import AsyncKVAlchemy
from akv.errors import ClosedError, UncacheableArgumentError
from akv.memoize.decorator import Memoized
from akv.testing import FakeClock
from tests.memoize.conftest import GatedStore
from tests.memoize.waiting import Work, bounded, started, until


def counting(kv: AsyncKVAlchemy, **options: Any) -> tuple[Memoized[..., Any], list[int]]:
    """A memoized function that returns how often it ran, and the arguments of its runs."""
    runs: list[int] = []

    @kv.memoize(**options)
    async def count(a: int, b: str = "b") -> int:
        runs.append(a)
        return len(runs)

    return count, runs


# Look, compute, save


async def test_the_second_call_is_answered_from_the_store(kv: GatedStore) -> None:
    count, runs = counting(kv)
    assert [await count(1), await count(1), await count(a=1), await count(1, b="b")] == [1, 1, 1, 1]
    assert await count(2) == 2
    assert runs == [1, 2]


async def test_works_without_parentheses(kv: GatedStore) -> None:
    work = Work()
    work.release.set()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    assert [await compute(), await compute()] == ["result"] * 2
    assert work.runs == 1


async def test_the_ancestors_options_come_in_its_order(kv: GatedStore, clock: FakeClock) -> None:
    runs: list[int] = []

    @kv.memoize(60, lambda: len(runs) == 1, lambda result: result == 3)
    async def count() -> int:
        runs.append(1)
        return len(runs)

    assert [await count(), await count(), await count()] == [1, 2, 2]
    clock.advance(60)
    assert [await count(), await count()] == [3, 4]


async def test_a_stored_none_is_a_value(kv: GatedStore) -> None:
    work = Work(result=None)
    work.release.set()

    @kv.memoize
    async def nothing() -> None:
        await work()

    await nothing()
    await nothing()
    assert work.runs == 1


async def test_another_store_object_finds_the_result(kv: GatedStore, url: str) -> None:
    count, _ = counting(kv)
    await count(1)
    async with AsyncKVAlchemy(url, clock=kv._codec.clock, sweep_every=None) as other:
        same, runs = counting(other)
        assert await same(1) == 1
        assert runs == []


async def test_a_result_dies_at_its_expiry(kv: GatedStore, clock: FakeClock) -> None:
    count, _ = counting(kv, expire=timedelta(seconds=60))
    assert await count(1) == 1
    clock.advance(59.999999)
    assert await count(1) == 1
    clock.advance(0.000001)
    assert await count(1) == 2


async def test_the_entry_is_under_the_functions_tag_and_the_calls_key(kv: GatedStore) -> None:
    count, _ = counting(kv, version="2")
    await count(7)
    (entry,) = [entry async for entry in kv]
    assert (entry.tag, entry.key) == (count.cache_tag, count.cache_key(7))
    assert entry.tag == "akv:memo:tests.memoize.test_memoize:counting.<locals>.count@2"
    assert entry.key == "a,b:L8:i1:7s1:b"


@pytest.mark.parametrize(
    "serializer",
    [JSONSerializer(), MsgpackSerializer(), SignedPickleSerializer("x" * 16), CompressedSerializer(PickleSerializer())],
    ids=repr,
)
async def test_every_serializer_keeps_results(tmp_path: Path, serializer: Any) -> None:
    async with AsyncKVAlchemy(f"sqlite+aiosqlite:///{tmp_path}/kv.db", serializer=serializer, sweep_every=None) as kv:
        count, runs = counting(kv, expire=60, stale_for=30, early=True, lock=True, on_error="stale")
        work = Work()
        work.release.set()
        for _ in range(2):
            assert await count(1) == 1
            assert await kv.get_or_create("key", work, expire=60, stale_for=30, early=True, lock=True) == "result"
        assert (runs, work.runs) == ([1], 1)


ANCESTOR = """
import sys
from kvalchemy import KVAlchemy

for entry in KVAlchemy(sys.argv[1]):
    print(entry.value["value"] if entry.tag.startswith("akv:memo:") else type(entry.value).__name__)
"""


async def test_the_ancestor_can_iterate_a_table_with_results_in_it(kv: GatedStore, url: str, clock: FakeClock) -> None:
    clock.set(datetime.now(UTC))

    @kv.memoize(expire=60, stale_for=30, lock=True, near=10)
    async def compute() -> dict[str, list[int]]:
        return {"any": [1, 2]}

    await compute()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ANCESTOR, url.replace("+aiosqlite", "")), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await bounded(program.communicate())
    assert sorted(out.decode().splitlines()) == ["dict", "{'any': [1, 2]}"]


async def test_another_version_is_another_function(kv: GatedStore) -> None:
    old, new = counting(kv)[0], counting(kv, version="2")[0]
    assert await old(1) == 1
    assert await new(1) == 1
    assert await new.cache_clear() == 1
    assert await old.cache_clear() == 1


async def test_closures_of_one_name_share_their_results(kv: GatedStore) -> None:
    (one, _), (other, runs) = counting(kv), counting(kv)
    await one(1)
    assert await other(1) == 1
    assert runs == []


async def test_wrong_arguments_raise_what_the_function_would(kv: GatedStore) -> None:
    count, runs = counting(kv)
    with pytest.raises(TypeError, match=r"count\(\) missing 1 required positional argument: 'a'"):
        await count()
    with pytest.raises(UncacheableArgumentError, match=r"'a' of .*count\(\)"):
        await count(object())
    assert runs == []


async def test_an_exception_is_raised_and_not_stored(kv: GatedStore) -> None:
    work = Work(result=LookupError("gone"))
    work.release.set()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    for _ in range(2):
        with pytest.raises(LookupError):
            await compute()
    assert work.runs == 2
    assert await kv.count() == 0


async def test_memoized_functions_nest(kv: GatedStore) -> None:
    count, runs = counting(kv)

    @kv.memoize
    async def outer(a: int) -> int:
        found: int = await count(a)
        return 10 * found

    assert [await outer(1), await outer(1)] == [10, 10]
    assert runs == [1]
    await count.cache_clear()
    assert await outer(1) == 10


async def test_a_closed_store_is_the_callers_mistake(url: str) -> None:
    kv = AsyncKVAlchemy(url, sweep_every=None)
    count, runs = counting(kv)
    await kv.aclose()
    with pytest.raises(ClosedError):
        await count(1)
    assert runs == []


def test_one_function_serves_several_event_loops(url: str) -> None:
    kv = AsyncKVAlchemy(url, sweep_every=None)
    count, runs = counting(kv)

    async def call() -> Any:
        return await bounded(count(1))

    assert [asyncio.run(call()), asyncio.run(call())] == [1, 1]
    assert runs == [1]
    asyncio.run(kv.aclose())


@pytest.mark.backends("sqlite", "postgres", "mariadb")
async def test_memoize_works_on_every_backend(make_store: Any) -> None:
    kv = await make_store()
    count, runs = counting(kv, expire=60)
    assert await bounded(asyncio.gather(*(count(a) for a in (1, 1, 2)))) == [1, 1, 2]
    assert await count(1) == 1
    assert await count.cache_invalidate(1) is True
    assert await count(1) == 3
    assert await count.cache_clear() == 2
    assert await kv.get_or_create("key", lambda_free, expire=60) == "made"
    assert await kv.get("key") == "made"
    assert runs == [1, 2, 1]


async def lambda_free() -> str:
    return "made"


# expire_if and skip_saving_to_cache_if


def _async(answer: bool) -> Callable[..., Any]:
    async def say(*_: Any) -> bool:
        await asyncio.sleep(0)
        return answer

    return say


@pytest.mark.parametrize("told", [True, lambda: True, lambda: 1, _async(True)], ids=["bool", "sync", "truthy", "async"])
async def test_expire_if_computes_again_and_saves(kv: GatedStore, told: Any) -> None:
    count, _ = counting(kv, expire_if=told)
    assert [await count(1), await count(1)] == [1, 2]
    assert count.expire_if is told
    count.expire_if = False
    assert await count(1) == 2


@pytest.mark.parametrize("told", [False, lambda: False, _async(False)], ids=["bool", "sync", "async"])
async def test_a_false_expire_if_leaves_the_cache_alone(kv: GatedStore, told: Any) -> None:
    count, _ = counting(kv, expire_if=told)
    assert [await count(1), await count(1)] == [1, 1]


async def test_expire_if_is_asked_at_each_call(kv: GatedStore) -> None:
    answers = [False, True, False]
    count, _ = counting(kv, expire_if=lambda: answers.pop(0))
    assert [await count(1), await count(1), await count(1)] == [1, 2, 2]


@pytest.mark.parametrize("told", [True, lambda result: result == 1, _async(True)], ids=["bool", "sync", "async"])
async def test_a_result_that_is_to_be_skipped_is_returned_and_not_saved(kv: GatedStore, told: Any) -> None:
    count, _ = counting(kv, skip_saving_to_cache_if=told)
    assert await count(1) == 1
    assert await kv.count() == 0
    assert count.skip_saving_to_cache_if is told
    count.skip_saving_to_cache_if = False
    assert [await count(1), await count(1)] == [2, 2]


async def test_an_ordinary_call_is_no_reason_to_keep_a_forced_one_waiting(kv: GatedStore) -> None:
    old, new = Work("old"), Work("new")
    works = [old, new]

    @kv.memoize
    async def compute() -> Any:
        return await works.pop(0)()

    (ordinary,) = await started(compute())
    await bounded(old.running.wait())
    new.release.set()
    assert await bounded(compute.refresh()) == "new"
    old.release.set()
    assert await bounded(ordinary) == "old"
    assert await compute() == "new"


# Single flight


async def test_concurrent_callers_of_a_cold_key_compute_once(kv: GatedStore) -> None:
    work = Work()

    @kv.memoize
    async def compute(a: int) -> Any:
        return await work()

    tasks = [asyncio.create_task(compute(1)) for _ in range(50)]
    await until(lambda: compute.cache_info().misses == 50)
    work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == ["result"] * 50
    assert work.runs == 1
    assert compute.cache_info().fills == 1


async def test_a_caller_whose_look_was_overtaken_by_a_fill_looks_again(kv: GatedStore) -> None:
    """It saw nothing, and when it has the reply, there is no flight to join any more."""
    count, runs = counting(kv)
    kv.read.clear()
    (slow,) = await started(count(1))
    await until(lambda: kv.reading == 1)
    slow_gate, kv.read = kv.read, asyncio.Event()
    kv.read.set()
    assert await bounded(count(1)) == 1
    slow_gate.set()
    assert await bounded(slow) == 1
    assert runs == [1]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_cancelling_one_caller_disturbs_no_other(kv: GatedStore, cancelled: int) -> None:
    work = Work()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    tasks = [asyncio.create_task(compute()) for _ in range(3)]
    await until(lambda: compute.cache_info().misses == 3)
    tasks[cancelled].cancel()
    await bounded(asyncio.wait([tasks[cancelled]]))
    work.release.set()
    others = [task for task in tasks if task is not tasks[cancelled]]
    assert await bounded(asyncio.gather(*others)) == ["result"] * 2
    assert work.runs == 1
    assert await compute() == "result"


async def test_cancelling_all_callers_cancels_the_computation_and_saves_nothing(kv: GatedStore) -> None:
    work = Work()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    tasks = [asyncio.create_task(compute()) for _ in range(3)]
    await until(lambda: compute.cache_info().misses == 3)
    for task in tasks:
        task.cancel()
    await bounded(asyncio.wait(tasks))
    assert work.cancelled == 1
    assert await kv.count() == 0


async def test_a_leader_who_takes_his_session_along_leaves_the_work_to_the_next(kv: GatedStore) -> None:
    @kv.memoize(ignore=("session",))
    async def load(session: Work) -> Any:
        return await session()

    his, mine = Work(RuntimeError("this session is closed")), Work("mine")
    (leader,) = await started(load(his))
    await bounded(his.running.wait())
    (waiter,) = await started(load(mine))
    await until(lambda: load.cache_info().misses == 2)
    leader.cancel()
    await bounded(asyncio.wait([leader]))
    his.release.set()
    mine.release.set()
    assert await bounded(waiter) == "mine"
    assert await load(his) == "mine"


# Invalidation


async def test_cache_clear_forgets_every_call_of_this_function_alone(kv: GatedStore) -> None:
    count, _ = counting(kv)
    other, _ = counting(kv, version="other")
    await kv.set("mine", 1)
    for a in (1, 2):
        await count(a)
        await other(a)
    assert await count.cache_clear() == 2
    assert [await count(1), await other(1), await kv.get("mine")] == [3, 1, 1]


async def test_cache_invalidate_forgets_one_call(kv: GatedStore) -> None:
    count, _ = counting(kv)
    await count(1)
    await count(2)
    assert await count.cache_invalidate(b="b", a=1) is True
    assert await count.cache_invalidate(1) is False
    assert [await count(2), await count(1)] == [2, 3]


@pytest.mark.parametrize("clear", [True, False], ids=["clear", "invalidate"])
async def test_invalidation_beats_a_running_fill(kv: GatedStore, clear: bool) -> None:
    before, after = Work("before"), Work("after")
    works = [before, after]

    @kv.memoize
    async def compute(a: int) -> Any:
        return await works.pop(0)()

    old = asyncio.create_task(compute(1))
    await bounded(before.running.wait())
    await bounded(compute.cache_clear() if clear else compute.cache_invalidate(1))
    new = asyncio.create_task(compute(1))
    await bounded(after.running.wait())
    before.release.set()
    assert await bounded(old) == "before"
    after.release.set()
    assert await bounded(new) == "after"
    assert await compute(1) == "after"
    assert compute.cache_info().fills == 1


async def test_invalidating_one_call_leaves_the_fills_of_others_alone(kv: GatedStore) -> None:
    work = Work()

    @kv.memoize
    async def compute(a: int) -> Any:
        return await work()

    task = asyncio.create_task(compute(1))
    await bounded(work.running.wait())
    await bounded(compute.cache_invalidate(2))
    work.release.set()
    await bounded(task)
    assert compute.cache_info().fills == 1


@pytest.mark.parametrize("clear", [True, False], ids=["clear", "invalidate"])
async def test_invalidation_beats_a_save_that_is_under_way(kv: GatedStore, clear: bool) -> None:
    count, _ = counting(kv)
    kv.write.clear()
    (old,) = await started(count(1))
    await until(lambda: kv.writing == 1)
    (clearing,) = await started(count.cache_clear() if clear else count.cache_invalidate(1))
    await asyncio.sleep(0)
    assert not clearing.done()
    kv.write.set()
    assert await bounded(clearing)
    assert await bounded(old) == 1
    assert await kv.count() == 0


async def test_refresh_computes_saves_and_returns(kv: GatedStore) -> None:
    count, _ = counting(kv)
    assert await count(1) == 1
    assert await count.refresh(1) == 2
    assert await count(1) == 2


async def test_refresh_is_not_overwritten_by_a_save_that_was_under_way(kv: GatedStore) -> None:
    count, _ = counting(kv)
    kv.write.clear()
    (old,) = await started(count(1))
    await until(lambda: kv.writing == 1)
    (new,) = await started(count.refresh(1))
    kv.write.set()
    assert list(await bounded(asyncio.gather(old, new))) == [1, 2]
    assert await count(1) == 2


# Counters


async def test_cache_info_counts_each_call_once(kv: GatedStore) -> None:
    count, _ = counting(kv)
    await count(1)
    await count(1)
    await count(2)
    await count.refresh(1)
    info = count.cache_info()
    assert (info.hits, info.misses, info.fills, info.bypasses) == (1, 2, 3, 1)


# The object in the function's place


async def test_the_function_itself_is_there_to_bypass_the_cache(kv: GatedStore) -> None:
    count, runs = counting(kv)
    assert [await count.__wrapped__(1), await count.__wrapped__(1)] == [1, 2]
    assert await kv.count() == 0
    assert runs == [1, 1]


async def test_it_looks_like_the_function(kv: GatedStore) -> None:
    async def original(a: int, *, b: str = "b") -> int:
        """Say what it does."""
        return a

    original.mark = "kept"  # type: ignore[attr-defined]
    memoized = kv.memoize(original)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "mark"):
        assert getattr(memoized, name) == getattr(original, name)
    assert inspect.signature(memoized) == inspect.signature(original)
    assert memoized.__wrapped__ is original
    assert inspect.iscoroutinefunction(memoized.__call__)
    assert "original" in repr(memoized)


_store = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:")


@_store.memoize
async def importable() -> None: ...


class Importable:
    @_store.memoize
    async def method(self) -> None: ...

    @_store.memoize
    @staticmethod
    async def static() -> None: ...


def test_it_pickles_by_name_as_functions_do() -> None:
    assert pickle.loads(pickle.dumps(importable)) is importable
    assert pickle.loads(pickle.dumps(Importable.static)) is Importable.static
    bound = pickle.loads(pickle.dumps(Importable().method))
    assert isinstance(bound, Memoized)
    assert isinstance(bound._bound[0], Importable)
