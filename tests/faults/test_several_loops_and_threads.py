"""One store, several event loops and threads; loops that end without notice; closing from elsewhere."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from akv.errors import ClosedError, ConfigurationError
from akv.store.client import Store
from tests.faults.arena import BOUND, SESSIONS, run_program, sqlite_threads
from tests.private import wait_until
from tests.servers import look

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from tests.backends import Backend

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")


def in_thread(target: Callable[[], Any]) -> Any:
    """Run something in a thread of its own, within a bound."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(target).result(BOUND)


def sessions(backend: Backend, url: str) -> set[int]:
    """The server's ids of the connections to a database; SQLite: the threads that serve its connections."""
    if backend.dialect == "sqlite":
        return sqlite_threads()
    return {int(number) for (number,) in look(url, SESSIONS[backend.dialect])}


def none_left(backend: Backend, url: str) -> None:
    wait_until(lambda: not sessions(backend, url), "every connection has gone")


async def work(kv: Store, name: str) -> None:
    """Use every lane, a scan and a session."""
    await asyncio.gather(*(kv.set(f"{name}{n}", n) for n in range(20)), *(kv.incr("n") for _ in range(20)))
    assert await asyncio.gather(*(kv.get(f"{name}{n}") for n in range(20))) == list(range(20))
    assert len([entry async for entry in kv.scan(name)]) == 20
    async with kv.session() as session:
        await session.get(kv.model, (f"{name}1", ""))


@pytest.fixture
def url(backend: Backend) -> str:
    return backend.fresh_url()


CALLS: dict[str, Callable[[Store], Coroutine[Any, Any, Any]]] = {
    "get": lambda kv: kv.get("a", None),
    "set": lambda kv: kv.set("a", 1),
    "incr": lambda kv: kv.incr("n"),
    "count": lambda kv: kv.count(),
}


@pytest.mark.parametrize("used", [True, False], ids=["used", "first-use"])
@pytest.mark.parametrize("name", CALLS)
def test_a_task_that_asyncio_run_cancels_may_still_use_the_store(
    backend: Backend, url: str, name: str, used: bool
) -> None:
    """The store's own tasks are cancelled too, at whatever step they are, and before their first one."""
    call, done = CALLS[name], []

    async def at_last(kv: Store) -> None:
        try:
            await asyncio.sleep(BOUND)
        finally:
            done.append(await asyncio.wait_for(call(kv), 10))
            await kv.aclose()

    async def main(steps: int) -> None:
        kv = Store(url)
        if used:
            await call(kv)
        tasks = [asyncio.create_task(at_last(kv)), asyncio.create_task(call(kv))]
        for _ in range(steps):
            await asyncio.sleep(0)
        assert len(tasks) == 2

    for steps in range(8):
        in_thread(lambda steps=steps: asyncio.run(main(steps)))
        assert len(done) == steps + 1
    gc.collect()  # psycopg leaves a connection that is cancelled while it opens to the garbage collector
    none_left(backend, url)


def test_many_loops_in_many_threads_at_once(backend: Backend, url: str) -> None:
    kv = Store(url)  # made outside any loop, with a sweep
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    async def serve(name: str) -> None:
        await asyncio.to_thread(together.wait, BOUND)
        for _ in range(3):
            await work(kv, name)

    def run(name: str) -> None:
        try:
            asyncio.run(asyncio.wait_for(serve(name), BOUND))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"{n}-",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * BOUND)
        assert not thread.is_alive()
    assert not failures
    assert len(kv._runtimes) == 6  # each loop had connections of its own

    async def close() -> None:
        assert await kv.get("n") == 6 * 3 * 20
        await kv.aclose()

    asyncio.run(close())
    none_left(backend, url)


def test_loops_that_follow_each_other_without_a_word(backend: Backend, url: str) -> None:
    kv = Store(url)
    for turn in range(5):
        asyncio.run(work(kv, f"{turn}-"))
        assert len(kv._runtimes) == 1  # what the loop before had is gone
    asyncio.run(kv.aclose())
    none_left(backend, url)


def test_connections_of_a_loop_that_ended_are_let_go_by_the_next(backend: Backend, url: str) -> None:
    kv = Store(url)
    asyncio.run(work(kv, "a"))
    before = sessions(backend, url)
    assert before

    async def look_again() -> None:
        await kv.get("a1")
        await asyncio.to_thread(
            wait_until, lambda: not before & sessions(backend, url), "the connections of the first loop have gone"
        )
        assert sessions(backend, url)

    asyncio.run(look_again())
    asyncio.run(kv.aclose())
    none_left(backend, url)


def test_a_loop_closed_with_tasks_of_the_store_pending(
    backend: Backend, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kv = Store(url, sweep_every=1000)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work(kv, "a"))
    loop.close()  # the sweep is left, cancelled by nobody
    asyncio.run(kv.aclose())
    del loop
    gc.collect()
    none_left(backend, url)
    assert not caplog.records


def test_a_loop_that_ends_in_the_middle_of_calls(backend: Backend, url: str, caplog: pytest.LogCaptureFixture) -> None:
    kv = Store(url)

    async def leave() -> list[asyncio.Task[None]]:
        await kv.set("old", 0)
        tasks = [asyncio.ensure_future(work(kv, f"{n}-")) for n in range(5)]
        await asyncio.sleep(0)
        return tasks  # asyncio.run() cancels them

    for _ in range(5):
        tasks = asyncio.run(leave())
        assert all(task.cancelled() for task in tasks)

    async def close() -> None:
        assert await kv.get("old") == 0
        await work(kv, "after")
        await kv.aclose()

    asyncio.run(close())
    gc.collect()
    none_left(backend, url)
    assert not caplog.records


def test_closed_from_another_loop_while_its_own_is_at_work(backend: Backend, url: str) -> None:
    kv = Store(url)
    started, closed = threading.Event(), threading.Event()

    async def serve() -> int:
        calls = 0
        with pytest.raises(ClosedError):
            while True:
                await kv.incr("n")
                calls += 1
                started.set()
        await asyncio.to_thread(closed.wait, BOUND)
        await asyncio.to_thread(none_left, backend, url)
        return calls

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(asyncio.run, serve())
        assert started.wait(BOUND)
        asyncio.run(asyncio.wait_for(kv.aclose(), BOUND))
        closed.set()
        calls = serving.result(BOUND)
    assert count_of(url) == calls


def count_of(url: str) -> int:
    async def ask() -> int:
        async with Store(url) as kv:
            return int(await kv.get("n"))

    return asyncio.run(ask())


def test_closed_from_another_loop_while_its_own_stands_still(
    backend: Backend, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kv = Store(url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work(kv, "a"))
    in_thread(lambda: asyncio.run(kv.aclose()))
    none_left(backend, url)
    with pytest.raises(ClosedError):
        loop.run_until_complete(kv.get("a1"))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gc.collect()
    assert not [record for record in caplog.records if "pending" not in record.getMessage()]


def test_closed_from_another_loop_while_its_own_is_ending(backend: Backend, url: str) -> None:
    for _ in range(5):
        kv = Store(url)
        ready = threading.Event()

        async def serve(kv: Store = kv, ready: threading.Event = ready) -> None:
            await kv.incr("n")
            ready.set()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert ready.wait(BOUND)
        asyncio.run(asyncio.wait_for(kv.aclose(), BOUND))
        thread.join(BOUND)
        assert not thread.is_alive()
    none_left(backend, url)


def test_a_store_that_is_forgotten_says_so_and_leaves_nothing_behind(backend: Backend, url: str) -> None:
    kv = Store(url)
    asyncio.run(work(kv, "a"))
    with pytest.warns(ResourceWarning, match="was never closed"):
        del kv
    none_left(backend, url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


def test_a_borrowed_engine_is_of_one_loop(backend: Backend, url: str) -> None:
    kv = Store(create_async_engine(url, poolclass=NullPool))

    async def first() -> None:
        await kv.set("a", 1)
        with pytest.raises(ConfigurationError, match="make the store from a URL"):
            await asyncio.to_thread(asyncio.run, kv.get("a"))
        await kv.aclose()

    asyncio.run(first())
    none_left(backend, url)


@pytest.mark.backends("sqlite-memory")
def test_a_database_in_memory_is_of_one_loop(backend: Backend) -> None:
    kv = Store(backend.url)

    async def first() -> None:
        await kv.set("a", 1)
        with pytest.raises(ConfigurationError, match="use a file"):
            await asyncio.to_thread(asyncio.run, kv.get("a"))
        await kv.aclose()

    asyncio.run(first())


ENDS = """
import asyncio, sys, warnings
from akv.store.client import Store

kv = Store(sys.argv[1])

async def main():
    await kv.set("a", 1)
    print(await kv.get("a"))

asyncio.run(main())
if sys.argv[2] == "closed":
    asyncio.run(kv.aclose())
else:
    warnings.simplefilter("ignore", ResourceWarning)
"""


@pytest.mark.parametrize("how", ["closed", "never closed"])
async def test_the_interpreter_ends(how: str, backend: Backend, url: str) -> None:
    assert await run_program(ENDS, url, how) == "1\n"
