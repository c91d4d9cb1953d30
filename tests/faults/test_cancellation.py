"""A call is cancelled at the k-th step of the event loop, for every k until it completes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.faults.arena import BOUND, at_rest, checked_out, lock_row, soon

if TYPE_CHECKING:
    from akv.store.client import Store
    from tests.backends import Backend
    from tests.conftest import MakeStore

pytestmark = pytest.mark.usefixtures("complaints")

Call = Callable[["Store"], Coroutine[Any, Any, Any]]

MOST_STEPS = 400
ABSENT = "absent"


async def scan(kv: Store) -> None:
    async for _ in kv.scan():
        pass


async def write_in_session(kv: Store) -> None:
    async with kv.session() as session:
        row = await session.get(kv.model, ("a", ""))
        assert row is not None
        row.value = (await session.get_one(kv.model, ("new", ""))).value


CALLS: dict[str, tuple[Call, Any]] = {
    "get": (lambda kv: kv.get("a"), 1),
    "get(renew_for)": (lambda kv: kv.get("a", renew_for=60), 1),
    "set": (lambda kv: kv.set("a", 2), 2),
    "incr": (lambda kv: kv.incr("a"), 2),
    "pop": (lambda kv: kv.pop("a"), ABSENT),
    "update": (lambda kv: kv.update("a", lambda n: n + 1), 2),
    "set_many": (lambda kv: kv.set_many({"a": 2, "b": 2}), 2),
    "delete": (lambda kv: kv.delete("a"), ABSENT),
    "count": (lambda kv: kv.count(), 1),
    "scan": (scan, 1),
    "session": (write_in_session, 2),
}


async def forgive_asyncpg(complaints: list[dict[str, Any]]) -> None:
    """Where the user's own task is cancelled inside the driver, asyncpg loses a future about its end when it closes."""
    gc.collect()
    await asyncio.sleep(0)
    ours = [one for one in complaints if "unexpected connection_lost() call" not in str(one.get("exception"))]
    complaints[:] = ours


@asynccontextmanager
async def cancelled_at(step: int, task: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Cancel *task* after so many turns of the event loop."""
    loop: Any = asyncio.get_running_loop()
    turn = loop._run_once
    turns = 0

    def counted() -> None:
        nonlocal turns
        turn()
        turns += 1
        if turns == step:
            task.cancel()

    loop._run_once = counted
    try:
        yield
    finally:
        del loop._run_once


async def was_cancelled(step: int, coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Run *coroutine*, cancelled at *step*; return whether that was before it ended."""
    task = asyncio.ensure_future(coroutine)
    async with cancelled_at(step, task):
        await asyncio.wait([task], timeout=BOUND)
    assert task.done(), f"hangs when cancelled at step {step}"
    if not task.cancelled():
        task.result()
    return task.cancelled()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.backends(exclude="postgres15")
async def test_a_cancelled_call_leaves_the_old_or_the_new_value_and_nothing_else(
    name: str, make_store: MakeStore, complaints: list[dict[str, Any]]
) -> None:
    call, new = CALLS[name]
    kv = await make_store()
    await kv.set("new", 2)
    await kv.set("a", 1)
    await call(kv)  # what is made at first use is made
    seen = set()
    for step in range(1, MOST_STEPS):
        await kv.set_many({"a": 1, "b": 1}, expire=1000)
        await at_rest(kv)
        cancelled = await was_cancelled(step, call(kv))
        await soon(kv.set("next", step))
        assert await soon(kv.get("next")) == step
        await at_rest(kv)
        assert checked_out(kv) == 0
        seen.add(await kv.get("a", ABSENT))
        if not cancelled:
            break
    else:
        pytest.fail(f"still not complete after {MOST_STEPS} steps")
    assert step > 2
    assert new in seen
    assert seen <= {1, new}
    if name == "session":
        await forgive_asyncpg(complaints)


@pytest.mark.backends("sqlite-file", "postgres18", "mariadb")
async def test_first_use(backend: Backend, make_store: MakeStore) -> None:
    for step in range(1, MOST_STEPS):
        url = backend.fresh_url() if step == 1 or backend.dialect == "sqlite" else backend.url
        kv = await make_store(url, table=f"t{step}_{id(backend)}")
        cancelled = await was_cancelled(step, kv.incr("n"))
        assert await soon(kv.incr("n")) in (1, 2)
        await at_rest(kv)
        await kv.aclose()
        if not cancelled:
            return
    pytest.fail(f"still not complete after {MOST_STEPS} steps")


@pytest.mark.backends("sqlite-file", "postgres18", "mariadb")
async def test_aclose(backend: Backend, make_store: MakeStore) -> None:
    for step in range(1, MOST_STEPS):
        kv = await make_store(sweep_every=1000)
        await asyncio.gather(*(kv.set(str(n), n) for n in range(10)), scan(kv))
        async with kv.session() as session:
            await session.connection()
        pools = [engine.sync_engine.pool for runtime in kv._runtimes for engine in runtime._engines.owned]
        opened = [connection for runtime in kv._runtimes for connection in runtime._open._open]
        calls = [asyncio.ensure_future(kv.incr("n")) for _ in range(3)]
        await asyncio.sleep(0)
        cancelled = await was_cancelled(step, kv.aclose())
        await soon(asyncio.gather(*calls))
        await kv.aclose()
        assert opened
        assert all(connection.is_closed for connection in opened)
        assert sum(pool.checkedout() for pool in pools) == 0  # type: ignore[attr-defined]
        if not cancelled:
            return
    pytest.fail(f"still not complete after {MOST_STEPS} steps")


# On SQLite a cancellation makes SQLAlchemy itself leave the caller's connection locked in its transaction.
@pytest.mark.backends("postgres18", "mariadb")
async def test_within_the_callers_transaction(
    backend: Backend, make_store: MakeStore, complaints: list[dict[str, Any]]
) -> None:
    kv = await make_store()
    engine = create_async_engine(backend.url)

    async def work() -> None:
        async with engine.begin() as connection:
            txn = kv.within(connection)
            await txn.set("a", 2)
            await txn.incr("n")
            assert await txn.get("a") == 2

    try:
        for step in range(1, MOST_STEPS):
            await kv.set_many({"a": 1, "n": 0})
            cancelled = await was_cancelled(step, work())
            assert await soon(kv.incr("next")) == step
            assert await kv.get_many(["a", "n"]) in ({"a": 1, "n": 0}, {"a": 2, "n": 1})
            assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            if not cancelled:
                break
        else:
            pytest.fail(f"still not complete after {MOST_STEPS} steps")
    finally:
        await engine.dispose()
    await forgive_asyncpg(complaints)


async def test_cancelling_one_caller_disturbs_no_other_of_the_batch(make_store: MakeStore) -> None:
    kv = await make_store()
    await kv.set_many({str(n): 0 for n in range(10)})
    for turns in range(8):
        reads = [asyncio.ensure_future(kv.get(str(n))) for n in range(10)]
        writes = [asyncio.ensure_future(kv.set(str(n), turns)) for n in range(10)]
        adds = [asyncio.ensure_future(kv.incr("n")) for _ in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for tasks in (reads, writes, adds):
            tasks[3].cancel()
        outcomes = await soon(asyncio.gather(*reads, *writes, *adds, return_exceptions=True))
        others = [outcome for n, outcome in enumerate(outcomes) if n % 10 != 3]
        assert not [outcome for outcome in others if isinstance(outcome, BaseException)]
        await at_rest(kv)


async def test_all_callers_cancelled_at_once(make_store: MakeStore) -> None:
    kv = await make_store()
    for turns in range(8):
        tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(kv.incr("n")) for _ in range(20)]
        tasks += [asyncio.ensure_future(kv.get("n", None)) for _ in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=BOUND)
        assert all(task.done() for task in tasks)
        await at_rest(kv)
    before = await kv.get("n", 0)
    assert await kv.incr("n") == before + 1


@pytest.mark.backends("postgres", "mariadb")
async def test_a_call_cancelled_while_it_waits_for_a_row(backend: Backend, make_store: MakeStore, table: str) -> None:
    kv = await make_store()
    await kv.set_many({"a": 1, "b": 0})
    engine = create_async_engine(backend.url)
    async with engine.connect() as other:
        await lock_row(other, table, "a")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(kv.incr("a"), 0.1)
        assert await soon(kv.get("a")) == 1
        await soon(kv.set("b", 1))  # another row goes past
        await other.rollback()
    await engine.dispose()
    await at_rest(kv)
    assert await kv.get("a") in (2, 3, 4)  # a cancelled write may land later


@pytest.mark.backends("sqlite-file", "postgres18", "mariadb")
async def test_a_cancelled_first_write_never_lands_after_a_later_one(backend: Backend, make_store: MakeStore) -> None:
    for step in range(1, MOST_STEPS):
        url = backend.fresh_url() if step == 1 or backend.dialect == "sqlite" else backend.url
        kv = await make_store(url, table=f"t{step}_{id(backend)}")
        cancelled = await was_cancelled(step, kv.set("a", "cancelled"))
        await kv.set("a", step)
        await at_rest(kv)
        assert await kv.get("a") == step
        await kv.aclose()
        if not cancelled:
            return
    pytest.fail(f"still not complete after {MOST_STEPS} steps")


async def test_a_cancelled_write_never_lands_after_a_later_one(make_store: MakeStore) -> None:
    kv = await make_store()
    for turns in range(30):
        task = asyncio.ensure_future(kv.set("a", "cancelled"))
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        task.cancel()
        await kv.set("a", turns)
        with suppress(asyncio.CancelledError):
            await task
        await at_rest(kv)
        assert await kv.get("a") == turns
