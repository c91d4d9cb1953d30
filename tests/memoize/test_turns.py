"""lock=True: of many processes one computes, and the others take what it has saved."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from akv.client import AsyncKVAlchemy
from akv.errors import ConfigurationError
from akv.memoize.decorator import Memoized
from akv.memoize.lease import TURN_TAG
from akv.testing import FakeClock
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.memoize.conftest import GatedStore
from tests.memoize.test_get_or_create import corrupt
from tests.memoize.test_store_down import execute
from tests.memoize.waiting import BOUND, Work, bounded, started, until

ROOT = Path(__file__).parents[2]
PROCESSES = 8


@asynccontextmanager
async def elsewhere(url: str, clock: FakeClock) -> AsyncIterator[AsyncKVAlchemy]:
    """A store as another process would have it."""
    async with AsyncKVAlchemy(url, clock=clock, sweep_every=None) as kv:
        kv._guard.patience = BOUND
        yield kv


def shared(kv: AsyncKVAlchemy, work: Any, **options: Any) -> Memoized[[], Any]:
    """The same function in every store."""

    @kv.memoize(**{"lock": True, **options})
    async def compute() -> Any:
        return await work()

    return compute


async def leases(kv: AsyncKVAlchemy) -> list[Any]:
    return [entry.value async for entry in kv.scan(tag=TURN_TAG)]


async def given_back(kv: AsyncKVAlchemy) -> None:
    async with asyncio.timeout(BOUND):
        while any(lease["holder"] for lease in await leases(kv)):
            await asyncio.sleep(0.001)


async def test_who_comes_second_takes_what_the_first_has_saved(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work("first"), Work("second")
    async with elsewhere(url, clock) as other:
        (leader,) = await started(shared(kv, first)())
        await bounded(first.running.wait())
        followers = [asyncio.create_task(shared(other, second)()) for _ in range(10)]
        await asyncio.wait(followers, timeout=0.05)
        assert not any(task.done() for task in followers)
        first.release.set()
        assert await bounded(leader) == "first"
        assert await bounded(asyncio.gather(*followers)) == ["first"] * 10
    assert (first.runs, second.runs) == (1, 0)
    assert all(not lease["holder"] for lease in await leases(kv))


async def test_who_finds_the_lease_free_looks_once_more(kv: GatedStore, url: str, clock: FakeClock) -> None:
    """What it waited for may have been saved between its look and its turn."""
    first, second = Work("first"), Work("second")
    first.release.set()
    mine = shared(kv, second)
    async with elsewhere(url, clock) as other:
        kv.read.clear()
        (late,) = await started(mine())
        await until(lambda: kv.reading == 1)
        assert await bounded(shared(other, first)()) == "first"
        kv.read.set()
        assert await bounded(late) == "first"
    assert second.runs == 0


async def test_a_failure_lets_the_next_one_compute(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work(LookupError("gone")), Work("second")
    async with elsewhere(url, clock) as other:
        (leader,) = await started(shared(kv, first)())
        await bounded(first.running.wait())
        (follower,) = await started(shared(other, second)())
        first.release.set()
        second.release.set()
        with pytest.raises(LookupError):
            await bounded(leader)
        assert await bounded(follower) == "second"


async def test_who_is_cancelled_lets_the_next_one_compute(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work("first"), Work("second")
    async with elsewhere(url, clock) as other:
        (leader,) = await started(shared(kv, first)())
        await bounded(first.running.wait())
        (follower,) = await started(shared(other, second)())
        leader.cancel()
        await bounded(asyncio.wait([leader]))
        second.release.set()
        assert await bounded(follower) == "second"
    assert first.cancelled == 1


async def test_who_is_cancelled_while_he_waits_his_turn_holds_nothing(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    first, second = Work("first"), Work("second")
    async with elsewhere(url, clock) as other:
        (leader,) = await started(shared(kv, first)())
        await bounded(first.running.wait())
        (follower,) = await started(shared(other, second)())
        await asyncio.wait([follower], timeout=0.05)
        follower.cancel()
        await bounded(asyncio.wait([follower]))
        first.release.set()
        assert await bounded(leader) == "first"
        await given_back(kv)
    assert second.runs == 0


async def test_a_holder_whose_lease_has_ended_is_replaced_and_saves_nothing(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    first, second = Work("first"), Work("second")
    second.release.set()
    async with elsewhere(url, clock) as other:
        mine = shared(kv, first)
        (leader,) = await started(mine())
        await bounded(first.running.wait())
        clock.advance(10)
        assert await bounded(shared(other, second)()) == "second"
        first.release.set()
        assert await bounded(leader) == "first"
        assert await mine() == "second"
        assert mine.cache_info().fills == 0


async def test_a_holder_whose_lease_has_ended_saves_nothing_even_where_nothing_is_left(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    """What another process computed meanwhile, and invalidated, does not come back in an older form."""
    first, second = Work("first"), Work("second")
    second.release.set()
    async with elsewhere(url, clock) as other:
        mine, theirs = shared(kv, first), shared(other, second)
        (leader,) = await started(mine())
        await bounded(first.running.wait())
        clock.advance(10)
        assert await bounded(theirs()) == "second"
        assert await theirs.cache_invalidate()
        first.release.set()
        assert await bounded(leader) == "first"
        assert mine.cache_info().fills == 0
        assert await kv.count(tag=mine.cache_tag) == 0


async def test_a_late_holder_who_does_not_know_it_is_refused_by_his_fence(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    """His clock is slow, or he was stopped between looking at it and saving."""
    first, second = Work("first"), Work("second")
    second.release.set()
    async with elsewhere(url, FakeClock()) as ahead:
        ahead._codec.clock.advance(10)  # type: ignore[attr-defined]
        mine = shared(kv, first)
        (leader,) = await started(mine())
        await bounded(first.running.wait())
        assert await bounded(shared(ahead, second)()) == "second"
        first.release.set()
        assert await bounded(leader) == "first"
        assert await mine() == "second"
        assert mine.cache_info().fills == 0


async def test_a_result_under_a_lease_replaces_one_without(kv: GatedStore, url: str) -> None:
    work = Work("old")
    work.release.set()
    await shared(kv, work, lock=False)()
    work.result = "new"
    locked = shared(kv, work)
    locked.expire_if = True
    assert await locked() == "new"
    await corrupt(url)
    locked.expire_if = False
    work.result = "mended"
    assert [await locked(), await locked()] == ["mended"] * 2


async def test_a_result_that_is_computed_behind_is_computed_by_one(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work("first"), Work("second")
    first.release.set()
    options = {"expire": 60, "stale_for": 30}
    async with elsewhere(url, clock) as other:
        mine, theirs = shared(kv, first, **options), shared(other, second, **options)
        await mine()
        clock.advance(60)
        first.release.clear()
        assert await bounded(mine()) == "first"
        await until(lambda: first.runs == 2)
        assert await bounded(theirs()) == "first"
        first.result = "newer"
        first.release.set()
        await until(lambda: mine.cache_info().fills == 2)
        await until(lambda: not other._guard.behind)
        assert await theirs() == "newer"
    assert second.runs == 0


async def test_who_wants_it_computed_does_not_wait_his_turn(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work("first"), Work("second")
    second.release.set()
    async with elsewhere(url, clock) as other:
        (leader,) = await started(shared(kv, first)())
        await bounded(first.running.wait())
        assert await bounded(shared(other, second).refresh()) == "second"
        first.release.set()
        assert await bounded(leader) == "first"


async def test_a_function_that_asks_for_its_own_result_does_not_wait_for_itself(kv: GatedStore) -> None:
    depth = 0

    @kv.memoize(lock=True)
    async def compute() -> int:
        nonlocal depth
        depth += 1
        return 1 if depth == 3 else 1 + await compute()

    assert await bounded(compute()) == 3


async def test_get_or_create_takes_turns_too(kv: GatedStore, url: str, clock: FakeClock) -> None:
    first, second = Work("first"), Work("second")
    async with elsewhere(url, clock) as other:
        (leader,) = await started(kv.get_or_create("key", first, lock=True))
        await bounded(first.running.wait())
        (follower,) = await started(other.get_or_create("key", second, lock=True))
        await asyncio.wait([follower], timeout=0.05)
        first.release.set()
        assert [await bounded(leader), await bounded(follower)] == ["first", "first"]
    assert second.runs == 0


async def test_a_store_that_is_down_is_no_reason_to_wait(
    kv: GatedStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work("result")
    compute = shared(kv, work)
    kv.read.clear()
    (caller,) = await started(compute())
    await until(lambda: kv.reading == 1)
    await execute(url, "ALTER TABLE kvstore RENAME TO gone")
    work.release.set()
    with caplog.at_level(logging.WARNING, "akv"):
        kv.read.set()
        assert await bounded(caller) == "result"
        assert await bounded(compute()) == "result"
    assert caplog.records


@pytest.mark.parametrize("lock", [0, -1, "yes", float("nan"), float("inf")])
def test_a_lease_is_a_number_of_seconds(lock: Any) -> None:
    kv = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:")
    with pytest.raises(ConfigurationError, match="lock"):
        kv.memoize(lock=lock)


# Processes


async def child(job: str, backend: Backend, table: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.memoize.children", job, backend.url, table),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(4 * BOUND):
        return (await process.stdout.readline()).decode().strip()


@pytest.mark.backends(exclude="sqlite-memory")
async def test_a_stampede_of_processes_computes_once(make_store: MakeStore, backend: Backend, table: str) -> None:
    kv = await make_store()
    await kv.count()
    children = [await child("stampede", backend, table) for _ in range(PROCESSES)]
    try:
        assert await asyncio.gather(*map(said, children)) == ["ready"] * PROCESSES
        for process in children:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        results = await asyncio.gather(*map(said, children))
    finally:
        for process in children:
            process.kill() if process.returncode is None else None
            await process.wait()
    assert await kv.get("runs") == 1
    (pid,) = set(results)
    assert int(pid) in {process.pid for process in children}


@pytest.mark.backends("sqlite-file", "postgres18-asyncpg", "mariadb")
async def test_who_was_killed_while_he_computed_is_replaced(
    make_store: MakeStore, backend: Backend, table: str
) -> None:
    kv = await make_store()
    await kv.count()
    holder = await child("hang", backend, table)
    assert await said(holder) == "computing"
    follower = await child("follow", backend, table)
    assert await said(follower) == "waiting"
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    assert await said(follower) == "computed"
    assert await follower.wait() == 0
    assert await kv.get("runs") == 2
