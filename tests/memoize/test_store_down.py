"""A cache that never makes things worse: the store fails, the function runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiosqlite
import pytest

from akv import RetryPolicy
from akv.client import AsyncKVAlchemy
from akv.errors import StoreError
from akv.memoize.guard import Guard, Nothing, Place
from akv.typing import ENOVAL
from tests.memoize.conftest import GatedStore
from tests.memoize.test_get_or_create import corrupt, execute
from tests.memoize.test_memoize import counting
from tests.memoize.waiting import Work, bounded, until

Warnings = Callable[[], list[logging.LogRecord]]


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
    policy = RetryPolicy(attempts=1, total=0.1)
    async with AsyncKVAlchemy(url, retry=policy, sweep_every=None) as kv:
        count, _ = counting(kv)
        path = url.removeprefix("sqlite+aiosqlite:///")
        locker = await aiosqlite.connect(path, isolation_level=None)
        await locker.execute("BEGIN IMMEDIATE")
        assert [await count(1), await count(1)] == [1, 2]
        info = count.cache_info()
        assert (info.misses, info.fills, info.bypasses) == (2, 0, 0)
        await locker.execute("ROLLBACK")
        await locker.close()
        assert [await count(1), await count(1)] == [3, 3]
    assert len(warnings()) == 1


async def test_a_server_that_is_stopped_and_comes_back(private_postgres: Any) -> None:
    policy = RetryPolicy(attempts=2, total=0.2)
    async with AsyncKVAlchemy(private_postgres.url(), retry=policy, sweep_every=None) as kv:
        count, _ = counting(kv)
        assert await bounded(count(1)) == 1
        await asyncio.to_thread(private_postgres.stop)
        assert await bounded(count(1)) == 2
        assert count.cache_info().bypasses == 1
        await asyncio.to_thread(private_postgres.start)
        assert await bounded(count(1)) == 1


@pytest.mark.allow_blocking
async def test_a_result_that_cannot_be_encoded_is_returned_and_not_saved(kv: GatedStore, warnings: Warnings) -> None:
    @kv.memoize
    async def compute(a: int) -> Any:
        return (lambda: None) if a else ENOVAL

    assert callable(await compute(1))
    assert callable(await compute(1))
    assert await compute(0) is ENOVAL
    assert compute.cache_info().fills == 0
    assert compute.cache_info().misses == 3
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
    guard = Guard(kv, monotonic=lambda: now[0])
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    for now[0] in (0.0, 1.0, 59.9, 60.0, 61.0):
        assert await guard.look(Place("tag", "key")) is Nothing.DOWN
    assert len(warnings()) == 2
    assert await guard.set(Place("tag", "key"), 1, None) is False
    assert len(warnings()) == 3
