"""A cache that never makes things worse: the store fails, the function runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiosqlite
import pytest

from akv import RetryPolicy
from akv.client import AsyncKVAlchemy
from akv.errors import StoreError
from akv.memoize.guard import Breaker
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.memoize.conftest import GatedStore
from tests.memoize.test_get_or_create import corrupt, execute
from tests.memoize.test_memoize import counting
from tests.memoize.waiting import BOUND, Work, bounded, until
from tests.proxy import TCPProxy

Warnings = Callable[[], list[logging.LogRecord]]


class Monotonic:
    """The clock of a store's guard, which moves only when told to."""

    def __init__(self, kv: AsyncKVAlchemy) -> None:
        self.now = 0.0
        kv._guard.monotonic = lambda: self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    caplog.set_level(logging.WARNING, "akv")
    return lambda: caplog.records


async def test_a_store_that_refuses_costs_a_log_line_and_the_function_runs(
    kv: GatedStore, url: str, warnings: Warnings
) -> None:
    count, runs = counting(kv)
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    assert [await count(1), await count(1), await count(1)] == [1, 2, 3]
    info = count.cache_info()
    assert (info.hits, info.misses, info.fills, info.bypasses) == (0, 0, 0, 3)
    (warning,) = warnings()
    assert warning.akv_tag == count.cache_tag  # type: ignore[attr-defined]
    await execute(url, "ALTER TABLE gone RENAME TO kvstore")
    assert [await count(1), await count(1)] == [4, 4]
    assert runs == [1, 1, 1, 1]


async def test_callers_still_compute_once_while_the_store_is_down(kv: GatedStore, url: str) -> None:
    work = Work()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    tasks = [asyncio.create_task(compute()) for _ in range(20)]
    await until(lambda: compute.cache_info().bypasses == 20)
    work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == ["result"] * 20
    assert work.runs == 1


async def test_an_invalidation_that_fails_is_not_hidden(kv: GatedStore, url: str) -> None:
    count, _ = counting(kv)
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    with pytest.raises(StoreError):
        await count.cache_invalidate(1)
    with pytest.raises(StoreError):
        await count.cache_clear()


async def test_a_save_that_fails_leaves_the_result(url: str, warnings: Warnings) -> None:
    """A writer in another process holds the lock: SQLite reads go on, writes do not."""
    policy = RetryPolicy(attempts=1, total=2)
    async with AsyncKVAlchemy(url, retry=policy, sweep_every=None) as kv:
        monotonic = Monotonic(kv)
        count, _ = counting(kv)
        path = url.removeprefix("sqlite+aiosqlite:///")
        locker = await aiosqlite.connect(path, isolation_level=None)
        await locker.execute("BEGIN IMMEDIATE")
        assert [await count(1), await count(1)] == [1, 2]
        info = count.cache_info()
        assert (info.misses, info.fills, info.bypasses) == (2, 0, 0)
        await locker.execute("ROLLBACK")
        await locker.close()
        monotonic.advance(1)
        assert [await count(1), await count(1)] == [3, 3]
    assert len(warnings()) == 1


async def test_a_server_that_is_stopped_and_comes_back(private_postgres: Any) -> None:
    policy = RetryPolicy(attempts=2, total=10)
    async with AsyncKVAlchemy(private_postgres.url(), retry=policy, sweep_every=None) as kv:
        monotonic = Monotonic(kv)
        count, _ = counting(kv)
        assert await bounded(count(1)) == 1
        await asyncio.to_thread(private_postgres.stop)
        assert await bounded(count(1)) == 2
        assert count.cache_info().bypasses == 1
        await asyncio.to_thread(private_postgres.start)
        monotonic.advance(1)
        assert await bounded(count(1)) == 1


@pytest.mark.allow_blocking
async def test_a_result_that_cannot_be_encoded_is_returned_and_not_saved(kv: GatedStore, warnings: Warnings) -> None:
    @kv.memoize
    async def compute(a: int) -> Any:
        return lambda: None

    assert callable(await compute(1))
    assert callable(await compute(1))
    assert compute.cache_info().fills == 0
    assert compute.cache_info().misses == 2
    assert await kv.count() == 0
    (warning,) = warnings()
    assert "cannot be encoded" in warning.getMessage()


async def test_a_corrupt_result_is_a_miss_and_is_overwritten(kv: GatedStore, url: str, warnings: Warnings) -> None:
    count, _ = counting(kv)
    await count(1)
    await corrupt(url)
    assert [await count(1), await count(1)] == [2, 2]
    info = count.cache_info()
    assert (info.hits, info.misses, info.fills) == (1, 2, 2)
    assert len(warnings()) == 1


async def test_a_store_that_is_closed_while_the_function_runs_leaves_the_result(url: str, warnings: Warnings) -> None:
    kv = AsyncKVAlchemy(url, sweep_every=None)
    work = Work()

    @kv.memoize
    async def compute() -> Any:
        return await work()

    task = asyncio.create_task(compute())
    await bounded(work.running.wait())
    await kv.aclose()
    work.release.set()
    assert await bounded(task) == "result"
    assert len(warnings()) == 1


async def test_one_kind_of_failure_is_logged_once_a_minute(kv: GatedStore, url: str, warnings: Warnings) -> None:
    now = [0.0]
    kv._guard.monotonic = lambda: now[0]
    count, _ = counting(kv)
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    for now[0] in (0.0, 1.0, 59.9, 60.0, 61.0):
        await count(1)
    assert len(warnings()) == 2


# A store that does not answer


class Hanging(NamedTuple):
    """A store on a server that can go silent."""

    kv: AsyncKVAlchemy
    proxy: TCPProxy
    monotonic: Monotonic

    def fall_silent(self) -> None:
        self.proxy.blackhole()
        self.kv._guard.patience = 0.1

    def speak_again(self) -> None:
        self.proxy.resume()
        self.proxy.cut()  # what the silence has swallowed will not be answered any more
        self.kv._guard.patience = BOUND
        self.monotonic.advance(60)


@pytest.fixture
async def hanging(make_store: MakeStore, backend: Backend) -> AsyncIterator[Hanging]:
    async with TCPProxy.before(backend.url) as proxy:
        kv = await make_store(proxy.url, retry=RetryPolicy(total=3 * BOUND))
        kv._guard.patience = BOUND
        yield Hanging(kv, proxy, Monotonic(kv))
        await kv.aclose()


on_servers = pytest.mark.backends("postgres18-asyncpg", "mariadb")


@on_servers
async def test_a_store_that_falls_silent_is_waited_for_once_and_then_left_alone(
    hanging: Hanging, warnings: Warnings
) -> None:
    count, runs = counting(hanging.kv)
    assert await count(1) == 1
    hanging.fall_silent()
    assert await bounded(count(1)) == 2
    sent = hanging.proxy.client_bytes, hanging.proxy.connections
    assert [await bounded(count(a)) for a in (1, 2, 3)] == [3, 4, 5]
    assert (hanging.proxy.client_bytes, hanging.proxy.connections) == sent
    info = count.cache_info()
    assert (info.hits, info.misses, info.fills, info.bypasses) == (0, 1, 1, 4)
    (warning,) = warnings()
    assert "does not answer" in warning.getMessage()
    hanging.speak_again()
    assert await bounded(count(1)) == 1
    assert runs == [1, 1, 1, 2, 3]


@on_servers
async def test_a_store_that_falls_silent_while_the_function_runs_leaves_the_result(
    hanging: Hanging, warnings: Warnings
) -> None:
    work = Work()

    @hanging.kv.memoize(lock=2.0)
    async def compute() -> Any:
        return await work()

    hanging.kv._guard.patience = 1.0
    task = asyncio.create_task(compute())
    await bounded(work.running.wait())
    hanging.fall_silent()
    work.release.set()
    assert await bounded(task) == "result"
    assert [await bounded(hanging.kv.get_or_create("key", work)) for _ in range(2)] == ["result"] * 2
    assert warnings()
    hanging.speak_again()
    assert await bounded(compute()) == "result"


@on_servers
async def test_a_cancelled_task_that_still_calls_is_not_held_up_by_a_silent_store(hanging: Hanging) -> None:
    count, _ = counting(hanging.kv)
    await count(1)
    results = []

    async def cancelled() -> None:
        try:
            await asyncio.sleep(10 * BOUND)
        finally:
            results.append(await count(1))

    task = asyncio.create_task(cancelled())
    await asyncio.sleep(0)
    hanging.fall_silent()
    task.cancel()
    await bounded(asyncio.wait([task]))
    assert results == [2]
    hanging.speak_again()


@on_servers
async def test_a_store_that_is_slow_is_used_all_the_same(hanging: Hanging) -> None:
    count, runs = counting(hanging.kv)
    await count(1)
    hanging.proxy.delay = 0.05
    assert [await bounded(count(1)), await bounded(count(2)), await bounded(count(2))] == [1, 2, 2]
    assert runs == [1, 2]


@on_servers
async def test_a_store_that_cannot_be_reached_is_no_hindrance(hanging: Hanging) -> None:
    count, _ = counting(hanging.kv)
    await count(1)
    hanging.proxy.refuse()
    hanging.proxy.cut()
    assert [await bounded(count(1)) for _ in range(5)] == [2, 3, 4, 5, 6]
    await hanging.proxy.accept()
    hanging.speak_again()
    assert await bounded(count(1)) == 1


def test_a_break_ends_with_one_call_that_asks_and_grows_if_that_is_in_vain() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    assert breaker.lets_through()
    for _ in range(50):
        breaker.failed()  # of one moment: one break
    lengths = []
    for _ in range(8):
        began = now[0]
        assert not breaker.lets_through()
        while not breaker.lets_through():
            now[0] += 0.5
        assert not breaker.lets_through()
        lengths.append(now[0] - began)
        breaker.failed()
    assert lengths == [1, 2, 4, 8, 16, 30, 30, 30]
    now[0] += 30
    assert breaker.lets_through()
    breaker.answered()
    assert all(breaker.lets_through() for _ in range(3))
    breaker.failed()
    now[0] += 1
    assert breaker.lets_through()


def test_who_asks_at_the_end_of_a_break_and_never_returns_is_followed_by_another() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    breaker.failed()
    now[0] = 1.0
    assert breaker.lets_through()
    now[0] = 1.9
    assert not breaker.lets_through()
    now[0] = 2.0
    assert breaker.lets_through()
