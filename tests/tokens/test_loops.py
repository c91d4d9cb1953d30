"""One tokens object in several event loops, threads and processes that fork."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from akv.tokens.binding import bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.identifiers import Label
from tests.tokens.world import User, World

ROOT = Path(__file__).parents[2]


def test_loops_that_end_without_notice_leave_nothing_behind(tmp_path: Path) -> None:
    tokens = DatabaseTokens(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    before = threading.active_count()
    seen = set()
    for _ in range(4):
        seen.add(asyncio.run(_touch(tokens)))
    assert len(seen) == 4
    asyncio.run(tokens.aclose())
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join(timeout=10)
    assert threading.active_count() <= before


async def _touch(tokens: DatabaseTokens) -> str:
    await tokens.touch(Label("x"))
    return (await tokens.read(["akv:label:x"]))["akv:label:x"]


def test_several_threads_write_and_make_keys_at_once(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    asyncio.run(_prepare(path))
    tokens = DatabaseTokens(f"sqlite+aiosqlite:///{path}")
    with ThreadPoolExecutor(3) as pool:
        keys = list(pool.map(lambda number: asyncio.run(_use(path, tokens, number)), range(3)))
    assert len({key for made in keys for key in made}) == 15
    asyncio.run(tokens.aclose())


async def _prepare(path: Path) -> None:
    app = World(path)
    await app.create()
    await app.add(*(User(id=number) for number in range(3)))
    await app.close()


async def _use(path: Path, tokens: DatabaseTokens, number: int) -> list[str]:
    """Change a row of one's own five times, with an engine of one's own; return the keys in between."""
    app = World(path)
    await app.use(tokens)
    binding = bind(app.engine, tokens)
    keys = []
    for turn in range(5):
        await _rename(app, number, f"turn {turn}")
        async with app.session() as s:
            key = await app.keys(await s.get_one(User, number))
            assert key.shared
            keys.append(key)
    await binding.unbind()
    await app.engine.dispose()
    return keys


async def _rename(app: World, number: int, name: str) -> None:
    """Writers of other threads may be first: then the transaction starts again, as applications do it."""
    for _ in range(100):
        try:
            async with app.session.begin() as s:
                (await s.get_one(User, number)).name = name
        except OperationalError:
            continue
        return
    raise AssertionError("the write lock was never free")


async def test_tasks_of_one_loop_share_connections(app: World) -> None:
    await app.add(User(id=1))
    keys = await asyncio.wait_for(asyncio.gather(*(app.keys("akv:users#1", number) for number in range(50))), 60)
    assert len(set(keys)) == 50


async def test_transaction_that_goes_on_while_a_child_task_reads_makes_its_key_private(app: World) -> None:
    await app.add(User(id=1))
    gate = threading.Event()
    async with app.session() as first, app.session() as second:
        raw: Any = (await (await first.connection()).get_raw_connection()).driver_connection
        await raw.create_function("wait_for_gate", 0, lambda: gate.wait(30))
        user = await second.get_one(User, 1)
        slow = asyncio.create_task(first.execute(text("SELECT wait_for_gate()")))
        await _until(lambda: raw._tx.empty())
        child = asyncio.create_task(app.keys("akv:users#1"))  # asks the first connection first, and waits there
        await _until(lambda: not raw._tx.empty())
        user.name = "x"
        await second.flush()
        gate.set()
        key = await asyncio.wait_for(child, 60)
        await slow
    assert not key.shared


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_child_opens_connections_of_its_own(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys
from akv.tokens.database import DatabaseTokens
from akv.tokens.identifiers import Label
tokens = DatabaseTokens(sys.argv[1])
async def touch():
    await tokens.touch(Label("x"))
    return await tokens.read(["akv:label:x"])
async def main():
    await touch()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            status = 0 if asyncio.run(touch()) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    await touch()
    await tokens.aclose()
asyncio.run(main())
"""
    arguments = [sys.executable, "-c", program, f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"]
    done = subprocess.run(arguments, cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
