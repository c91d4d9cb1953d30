"""A process forks with an open store: the child gets connections of its own, and the parent keeps its."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.arena import run_program

if TYPE_CHECKING:
    from tests.backends import Backend

pytestmark = [
    pytest.mark.backends("sqlite-file", "postgres", "mariadb"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]

COMMON = """
import asyncio, gc, multiprocessing, os, sys, warnings
from sqlalchemy import text
from akv.store.client import Store

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
url, mine = sys.argv[1:3]
kv = Store(url)

async def work(name):
    await asyncio.gather(*(kv.set(f"{name}{n}", n) for n in range(20)), *(kv.incr("n") for _ in range(20)))
    assert await asyncio.gather(*(kv.get(f"{name}{n}") for n in range(20))) == list(range(20))
    assert len([entry async for entry in kv.scan(name)]) == 20
    async with kv.session() as session:
        assert (await session.get(kv.model, (f"{name}1", ""))) is not None
        return (await session.execute(text(mine))).scalar() if mine else os.getpid()

def wait_for(pid):
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
"""

BETWEEN_LOOPS = (
    COMMON
    + """
async def main(name):
    return await work(name)

first = asyncio.run(main("before"))
pid = os.fork()
if pid == 0:
    assert not len(kv._runtimes)
    asyncio.run(main("child"))
    asyncio.run(kv.aclose())
    del kv
    gc.collect()
    os._exit(0)
wait_for(pid)
asyncio.run(main("after"))
async def end():
    print(await kv.get("n"))
    await kv.aclose()
asyncio.run(end())
"""
)

IN_A_RUNNING_LOOP = (
    COMMON
    + """
async def main():
    mine_before = await work("before")
    here, there = os.pipe()
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            async def child():
                theirs = await work(f"child{number}")
                os.write(there, f"{theirs}\\n".encode())
                await kv.aclose()
            asyncio.run(child())
            gc.collect()
            os._exit(0)
        pids.append(pid)
    # The parent works on while its children do.
    for turn in range(3):
        mine_after = await work(f"after{turn}")
    for pid in pids:
        await asyncio.to_thread(wait_for, pid)
    mine_after = await work("last")
    os.close(there)
    theirs = [int(line) for line in os.read(here, 1000).split()]
    assert len(theirs) == 2
    assert not {mine_before, mine_after} & set(theirs), "a connection was shared"
    assert mine_before == mine_after, "the parent lost its connection"
    print(await kv.get("n"))
    await kv.aclose()

asyncio.run(main())
"""
)

MULTIPROCESSING = (
    COMMON
    + """
def child(number):
    async def run():
        await work(f"child{number}")
        await kv.aclose()
    asyncio.run(run())

async def main():
    await work("before")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    await work("meanwhile")
    for process in processes:
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0
    await work("after")
    print(await kv.get("n"))
    await kv.aclose()

asyncio.run(main())
"""
)

MINE = {"sqlite": "", "postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}


@pytest.mark.parametrize(
    ("program", "increments"),
    [(BETWEEN_LOOPS, 3 * 20), (IN_A_RUNNING_LOOP, 7 * 20), (MULTIPROCESSING, 6 * 20)],
    ids=["between loops", "in a running loop", "multiprocessing"],
)
async def test_a_fork_with_an_open_store(program: str, increments: int, backend: Backend) -> None:
    url = backend.fresh_url()
    out = await run_program(program, url, MINE[backend.dialect])
    assert out == f"{increments}\n"
