"""One RedisTokens object in several event loops, threads and processes that fork."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from akv.tokens import rules
from akv.tokens.redis import RedisTokens
from tests.proxy import TCPProxy
from tests.tokens.redis_world import PATIENT, Bound, Clock, bound, until

ROOT = Path(__file__).parents[2]
ROW = "akv:users#1"


def sockets() -> int:
    return len(psutil.Process().net_connections(kind="tcp"))


@pytest.fixture
def app(space: tuple[str, str]) -> Iterator[Bound]:
    made = Bound(RedisTokens.from_url(space[0], namespace=space[1], **PATIENT))
    yield made
    asyncio.run(made.tokens.aclose())


async def _use(app: Bound, row: str = ROW) -> int:
    await app.active()
    await app.commit(row)
    return rules.vector_of(await app.tokens.look([row]))[0].seq


def test_loops_that_end_without_notice_leave_nothing_behind(app: Bound) -> None:
    before = sockets()
    seqs = [asyncio.run(_use(app)) for _ in range(5)]
    assert seqs == [1, 2, 3, 4, 5]
    assert sockets() - before <= 2  # those of the last one
    asyncio.run(app.tokens.aclose())
    gc.collect()
    assert sockets() <= before


def test_a_loop_that_ends_in_the_middle_of_everything_harms_nobody(app: Bound) -> None:
    async def leave() -> None:
        await _use(app)
        announced = [await app.announce(f"akv:t#{number}") for number in range(5)]
        for each in announced:
            app.tokens.resolve(each)
        for number in range(5):
            asyncio.ensure_future(app.tokens.look([f"akv:t#{number}"]))  # noqa: RUF006
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    asyncio.run(_use(app))


def test_loops_of_one_process_look_into_a_quiet_outbox_as_one(space: tuple[str, str]) -> None:
    tokens = RedisTokens.from_url(space[0], namespace=space[1], when_unreachable="outbox", outbox_every=0.05, **PATIENT)
    app = Bound(tokens)
    clock = tokens._core.clock = Clock()

    async def wait(seconds: float) -> None:
        await app.prepare()
        await asyncio.sleep(seconds)

    for looks in (1, 2):
        for _ in range(3):
            asyncio.run(wait(0.05))
            assert app.outbox.taken == looks
        clock.now += 0.51
    tokens._core.clock = time.monotonic
    tokens._core.relayed_at = time.monotonic()  # another loop did, and has ended

    async def wait_for_a_look() -> None:
        await app.prepare()
        await until(lambda: app.outbox.taken == 3, "this one does")

    asyncio.run(wait_for_a_look())
    asyncio.run(tokens.aclose())


def test_a_loop_that_only_commits_looks_into_the_outbox_too(space: tuple[str, str]) -> None:
    """The engine was prepared on another loop, which has ended."""
    tokens = RedisTokens.from_url(space[0], namespace=space[1], when_unreachable="outbox", **PATIENT)
    app = Bound(tokens)

    async def commit() -> None:
        await app.commit(ROW)
        await until(lambda: not app.outbox.parcels, "the outbox is empty")

    asyncio.run(app.prepare())
    asyncio.run(app.outbox.put(None, [ROW]))
    tokens._core.relayed_at = float("-inf")
    asyncio.run(commit())
    asyncio.run(tokens.aclose())


async def test_a_connection_that_uvloop_has_closed_is_replaced(space: tuple[str, str]) -> None:
    """Its transports raise RuntimeError where those of asyncio raise OSError."""
    uvloop = pytest.importorskip("uvloop")
    here = asyncio.get_running_loop()

    async def elsewhere() -> None:
        async with bound(proxy.url, space[1], max_connections=1) as app:
            assert await _use(app) == 1
            (link,) = app.tokens._here()._asking.pool._idle
            here.call_soon_threadsafe(proxy.cut)
            await until(link._transport.is_closing, "the loop has noticed it")
            assert await _use(app) == 2

    async with TCPProxy.before(space[0]) as proxy:
        await asyncio.to_thread(uvloop.run, elsewhere())


def test_several_threads_work_at_once(app: Bound) -> None:
    def work(number: int) -> list[int]:
        async def main() -> list[int]:
            return [await _use(app, f"akv:t{number}#*") for _ in range(5)]

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as pool:
        seqs = [seq for found in pool.map(work, range(4)) for seq in found]
    assert sorted(seqs) == list(range(1, 21))


async def test_closing_closes_what_a_running_loop_of_another_thread_has(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy:
        async with bound(proxy.url, space[1]) as app:
            await app.active()
            ready, done = threading.Event(), threading.Event()

            async def elsewhere() -> None:
                await _use(app)
                ready.set()
                while not done.is_set():
                    await asyncio.sleep(0.001)

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(ready.wait, 20)
            await app.tokens.aclose()
            await until(lambda: not proxy.open_connections, "every connection is closed")
            done.set()
            await asyncio.to_thread(thread.join, 20)


def test_closing_lets_go_of_what_a_loop_that_stands_still_has(app: Bound) -> None:
    loop = asyncio.new_event_loop()
    before = sockets()
    loop.run_until_complete(_use(app))
    asyncio.run(app.tokens.aclose())
    assert sockets() == before
    loop.close()


def test_a_child_has_connections_of_its_own(space: tuple[str, str]) -> None:
    program = """
import asyncio, os, sys
from tests.tokens.redis_world import PATIENT, Bound
from akv.tokens import rules
from akv.tokens.redis import RedisTokens
app = Bound(RedisTokens.from_url(sys.argv[1], namespace=sys.argv[2], **PATIENT))
async def use(row):
    await app.active()
    await app.commit(row)
    return rules.vector_of(await app.tokens.look([row]))[0].seq
async def main():
    assert await use("akv:a#*") == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            status = 0 if asyncio.run(use("akv:b#*")) == 2 else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert await use("akv:a#*") == 3
    await app.tokens.aclose()
asyncio.run(main())
"""
    _run(program, *space)


def test_a_program_that_closes_nothing_ends_quietly(space: tuple[str, str]) -> None:
    program = """
import asyncio, sys
from tests.tokens.redis_world import PATIENT, Bound
from akv.tokens.redis import RedisTokens
app = Bound(RedisTokens.from_url(sys.argv[1], namespace=sys.argv[2], when_unreachable="outbox", **PATIENT))
async def main():
    await app.prepare()
    await app.active()
    await app.commit("akv:a#*")
asyncio.run(main())
"""
    _run(program, *space)


def _run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True, env={**os.environ})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
