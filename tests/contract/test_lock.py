"""kv.lock: one holder among tasks, stores and processes; a fence for those who do not know that they lost it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import ClosedError, ConfigurationError, InvalidArgumentError, InvalidKeyError, StoreError
from akv.memoize.lease import LOCK_TAG, Lock
from akv.testing import FakeClock
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract.helpers import AWKWARD, PATIENCE, together

elsewhere = pytest.mark.backends(exclude="sqlite-memory")  # where two stores see one database


class Sleeper:
    """
    Waits of a store's locks that end when they are told to.

    Attributes:
        asked: Seconds of the waits so far.
    """

    def __init__(self, kv: AsyncKVAlchemy) -> None:
        self.asked: list[float] = []
        self._ended = 0
        self._woken = asyncio.Event()
        kv._guard.locks.sleep = self

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._woken.wait()

    async def wake(self) -> None:
        """End the wait that there is, as soon as there is one, and wait for the next."""
        await self._asked(self._ended + 1)
        self._ended += 1
        self._woken.set()
        self._woken = asyncio.Event()
        await self._asked(self._ended + 1)

    async def _asked(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.asked) < times:
                await asyncio.sleep(0)


async def row(kv: AsyncKVAlchemy, name: str = "name") -> Any:
    return await kv.get(name, None, LOCK_TAG)


async def settled(kv: AsyncKVAlchemy, name: str = "name") -> None:
    """Wait until nobody holds the lock."""
    async with asyncio.timeout(PATIENCE):
        while (await row(kv, name))["holder"]:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def soon(lock: Lock) -> AsyncIterator[Lock]:
    """Hold a lock, but do not wait for ever."""
    async with asyncio.timeout(PATIENCE):
        await lock.__aenter__()
    try:
        yield lock
    finally:
        await lock.__aexit__(None, None, None)


# One at a time


async def test_one_task_at_a_time_holds_it(store: AsyncKVAlchemy) -> None:
    inside, most, order = 0, 0, []

    async def task(number: int) -> None:
        nonlocal inside, most
        async with store.lock("name"):
            inside += 1
            most = max(most, inside)
            order.append(number)
            await asyncio.sleep(0)
            inside -= 1

    await together(task(number) for number in range(10))
    assert most == 1
    assert order == list(range(10))


@elsewhere
async def test_one_store_at_a_time_holds_it(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(3)]

    async def task(kv: AsyncKVAlchemy) -> None:
        for _ in range(5):
            async with kv.lock("name"):
                seen = await kv.get("count", 0)
                await kv.set("count", seen + 1)

    await together(task(kv) for kv in stores)
    assert await stores[0].get("count") == 15


async def test_locks_of_different_names_do_not_wait_for_each_other(store: AsyncKVAlchemy) -> None:
    async with soon(store.lock("one")), soon(store.lock("other")):
        pass


@pytest.mark.parametrize("name", AWKWARD[:12])
async def test_names_are_told_apart_as_keys_are(store: AsyncKVAlchemy, name: str) -> None:
    async with soon(store.lock(name)), soon(store.lock(name + "a")):
        pass


async def test_a_lock_is_no_entry_of_the_users(store: AsyncKVAlchemy) -> None:
    await store.set("name", "mine")
    async with soon(store.lock("name")):
        assert await store.get("name") == "mine"
        await store.delete("name")
    assert await store.get("name", None) is None
    assert [tag async for tag in store.tags()] == [LOCK_TAG]


async def test_it_is_given_back_if_the_block_raises(store: AsyncKVAlchemy) -> None:
    with pytest.raises(LookupError):
        async with soon(store.lock("name")):
            raise LookupError
    async with soon(store.lock("name", timeout=0)):
        pass


async def test_a_lock_may_be_used_again_but_not_twice_at_once(store: AsyncKVAlchemy) -> None:
    lock = store.lock("name")
    fences = []
    for _ in range(2):
        async with lock:
            assert lock.is_held
            fences.append(lock.fence)
            with pytest.raises(InvalidArgumentError, match="for each async with"):
                await lock.__aenter__()
        assert not lock.is_held
    assert fences[0] < fences[1]


# The fence


@elsewhere
async def test_the_fence_grows_with_every_holder(make_store: MakeStore, clock: FakeClock) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)
    fences = []
    for kv in (one, other, one, one, other):
        async with soon(kv.lock("name")) as lock:
            fences.append(lock.fence)
    assert fences == sorted(set(fences))


async def test_the_fence_grows_even_when_the_row_was_swept(store: AsyncKVAlchemy, clock: FakeClock) -> None:
    async with soon(store.lock("name")) as lock:
        before = lock.fence
    clock.advance(timedelta(days=1))
    assert await store.purge_expired() == 1
    async with soon(store.lock("name")) as lock:
        assert lock.fence > before


@elsewhere
async def test_a_late_holder_is_refused_by_his_fence(make_store: MakeStore, clock: FakeClock) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)

    def write(fence: int, what: str) -> Any:
        def step(stored: tuple[int, str]) -> tuple[int, str]:
            if stored[0] > fence:
                raise LookupError("too late")
            return fence, what

        return step

    async with soon(one.lock("name")) as late:
        clock.advance(10)
        async with soon(other.lock("name")) as lock:
            await other.update("resource", write(lock.fence, "new"), default=(0, ""))
        with pytest.raises(LookupError):
            await one.update("resource", write(late.fence, "old"), default=(0, ""))
    assert (await one.get("resource"))[1] == "new"


# The lease


@elsewhere
async def test_a_holder_who_does_not_renew_is_taken_over_when_his_lease_has_ended(
    make_store: MakeStore, clock: FakeClock
) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)
    async with soon(one.lock("name", lease=5)) as lock:
        clock.advance(4.999999)
        assert lock.is_held
        with pytest.raises(TimeoutError):
            await other.lock("name", timeout=0).__aenter__()
        clock.advance(0.000001)
        assert not lock.is_held
        async with soon(other.lock("name", timeout=0)):
            pass


@elsewhere
async def test_who_has_lost_it_does_not_give_back_what_another_one_holds(
    make_store: MakeStore, clock: FakeClock
) -> None:
    one, other, third = [await make_store(clock=clock) for _ in range(3)]
    async with soon(one.lock("name")):
        clock.advance(10)
        holding = other.lock("name")
        await holding.__aenter__()
    with pytest.raises(TimeoutError):
        await third.lock("name", timeout=0).__aenter__()
    await holding.__aexit__(None, None, None)


@elsewhere
async def test_it_is_renewed_while_it_is_held(make_store: MakeStore, clock: FakeClock) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)
    sleeper = Sleeper(one)
    async with soon(one.lock("name", lease=timedelta(seconds=9))) as lock:
        for _ in range(5):
            clock.advance(8)
            await sleeper.wake()
            with pytest.raises(TimeoutError):
                await other.lock("name", timeout=0).__aenter__()
        assert lock.is_held
    assert sleeper.asked == [3.0] * 6


@elsewhere
async def test_a_lock_that_was_lost_is_known_at_the_next_renewal(
    make_store: MakeStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)
    sleeper = Sleeper(one)
    async with soon(one.lock("name")) as lock:
        clock.advance(10)
        async with soon(other.lock("name")):
            clock.advance(-10)
            assert lock.is_held  # as far as is known here
            with caplog.at_level(logging.WARNING, "akv"):
                await sleeper._asked(1)
                sleeper._woken.set()
                async with asyncio.timeout(PATIENCE):
                    while lock.is_held:
                        await asyncio.sleep(0)
            assert "lost" in caplog.text


async def test_a_store_that_was_cleared_does_not_free_what_is_held(store: AsyncKVAlchemy) -> None:
    sleeper = Sleeper(store)
    async with soon(store.lock("name")) as lock:
        await store.clear()
        await sleeper.wake()
        assert (await row(store))["fence"] == lock.fence
    assert not (await row(store))["holder"]


# Waiting


@elsewhere
@pytest.mark.parametrize("timeout", [0, 0.05, timedelta(milliseconds=50)], ids=str)
async def test_who_waits_in_vain_is_told_so(make_store: MakeStore, timeout: Any) -> None:
    one, other = await make_store(), await make_store()
    async with soon(one.lock("name")):
        for kv in (one, other):
            with pytest.raises(TimeoutError, match="'name'"):
                await kv.lock("name", timeout=timeout).__aenter__()
    async with soon(other.lock("name", timeout=0)):
        pass


@elsewhere
async def test_who_waits_gets_it_when_it_is_given_back(make_store: MakeStore) -> None:
    one, other = await make_store(), await make_store()
    async with soon(one.lock("name")):
        waiters = [asyncio.create_task(kv.lock("name").__aenter__()) for kv in (one, other)]
        await asyncio.wait(waiters, timeout=0.05)
        assert not any(task.done() for task in waiters)
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    for task in asyncio.as_completed(waiters):
        async with asyncio.timeout(PATIENCE):
            await (await task).__aexit__(None, None, None)


# Cancellation


@elsewhere
async def test_who_is_cancelled_while_he_waits_holds_nothing(make_store: MakeStore) -> None:
    one, other = await make_store(), await make_store()
    async with soon(one.lock("name")):
        waiters = [asyncio.create_task(kv.lock("name").__aenter__()) for kv in (one, other)]
        await asyncio.wait(waiters, timeout=0.03)
        for task in waiters:
            task.cancel()
        await asyncio.wait(waiters)
        assert all(task.cancelled() for task in waiters)
    await settled(one)
    async with soon(other.lock("name", timeout=0)), soon(one.lock("another", timeout=0)):
        pass


@pytest.mark.parametrize("turns", range(8))
async def test_who_is_cancelled_while_he_takes_it_gives_it_back(store: AsyncKVAlchemy, turns: int) -> None:
    async with store.lock("name"):
        pass
    task = asyncio.create_task(store.lock("name").__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        await task.result().__aexit__(None, None, None)
    await settled(store)
    async with soon(store.lock("name", timeout=5)):
        pass


@pytest.mark.parametrize("turns", range(8))
async def test_who_is_cancelled_while_he_gives_it_back_has_given_it_back(store: AsyncKVAlchemy, turns: int) -> None:
    async def hold() -> None:
        async with store.lock("name"):
            released.set()

    released = asyncio.Event()
    task = asyncio.create_task(hold())
    await released.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await settled(store)


async def test_who_is_cancelled_while_he_holds_it_gives_it_back(store: AsyncKVAlchemy) -> None:
    async def hold() -> None:
        async with store.lock("name"):
            held.set()
            await asyncio.Event().wait()

    held = asyncio.Event()
    task = asyncio.create_task(hold())
    await held.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    async with soon(store.lock("name", timeout=0)):
        pass


# The store


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        (1, {}, InvalidKeyError),
        ("x" * 257, {}, InvalidKeyError),
        ("nul\0", {}, InvalidKeyError),
        *(("name", {"lease": bad}, ConfigurationError) for bad in (0, -1, None, "10", True, float("nan"))),
        *(("name", {"timeout": bad}, ConfigurationError) for bad in (-1, "10", True, float("nan"))),
    ],
    ids=str,
)
async def test_wrong_arguments_are_refused_before_any_io(
    store: AsyncKVAlchemy, name: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.lock(name, **options)


async def test_a_closed_store_has_no_locks(make_store: MakeStore) -> None:
    kv = await make_store()
    async with kv.lock("name"):
        await kv.aclose()
    with pytest.raises(ClosedError):
        await kv.lock("name").__aenter__()


@elsewhere
async def test_a_store_that_is_closed_leaves_its_locks_to_their_leases(make_store: MakeStore, clock: FakeClock) -> None:
    one, other = await make_store(clock=clock), await make_store(clock=clock)
    async with one.lock("name"):
        await one.aclose()
    with pytest.raises(TimeoutError):
        await other.lock("name", timeout=0).__aenter__()
    clock.advance(10)
    async with soon(other.lock("name", timeout=0)):
        pass


async def test_what_the_database_refuses_is_raised(make_store: MakeStore) -> None:
    kv = await make_store(create_models=False)
    with pytest.raises(StoreError):
        await kv.lock("name").__aenter__()


# Processes

HOLDER = """
import asyncio, sys
from akv import AsyncKVAlchemy

async def main(url, table, lease):
    kv = AsyncKVAlchemy(url, table=table, sweep_every=None)
    async with kv.lock("name", lease=float(lease)) as lock:
        print(lock.fence, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""

COUNTER = """
import asyncio, sys
from akv import AsyncKVAlchemy

async def main(url, table):
    async with AsyncKVAlchemy(url, table=table, sweep_every=None) as kv:
        async def task():
            for _ in range(3):
                async with kv.lock("name"):
                    seen = await kv.get("count", 0)
                    await asyncio.sleep(0.001)
                    await kv.set("count", seen + 1)
        await asyncio.gather(*(task() for _ in range(5)))

asyncio.run(main(*sys.argv[1:]))
"""


async def _program(source: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, *arguments, stdout=asyncio.subprocess.PIPE
    )


@elsewhere
async def test_processes_count_together_without_losing_one(make_store: MakeStore, backend: Backend, table: str) -> None:
    kv = await make_store()
    await kv.count()
    programs = [await _program(COUNTER, backend.url, table) for _ in range(3)]
    async with asyncio.timeout(3 * PATIENCE):
        assert [await program.wait() for program in programs] == [0, 0, 0]
    assert await kv.get("count") == 45


@elsewhere
async def test_a_holder_who_was_killed_is_taken_over_within_his_lease(
    make_store: MakeStore, backend: Backend, table: str
) -> None:
    kv = await make_store()
    await kv.count()
    program = await _program(HOLDER, backend.url, table, "2")
    assert program.stdout is not None
    async with asyncio.timeout(PATIENCE):
        fence = int(await program.stdout.readline())
    waiting = asyncio.create_task(kv.lock("name").__aenter__())
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    until = (await row(kv))["until"]
    program.send_signal(signal.SIGKILL)
    await program.wait()
    async with asyncio.timeout(PATIENCE):
        lock = await waiting
    assert kv._guard.now() >= until  # it was renewed for as long as its holder lived, and no longer
    assert lock.fence > fence
    await lock.__aexit__(None, None, None)
