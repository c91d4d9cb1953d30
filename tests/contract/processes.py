"""What the processes of test_processes.py do; each function runs in four of them at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from multiprocessing.synchronize import Barrier
from typing import Any, TypeAlias

from akv import AsyncKVAlchemy

PROCESSES, TASKS, ROUNDS = 4, 25, 10
PATIENCE = 60
Job: TypeAlias = Callable[[AsyncKVAlchemy, int], Coroutine[Any, Any, Any]]

_barrier: Barrier | None = None


def begin(barrier: Barrier) -> None:
    """Meet the others here before every job."""
    global _barrier
    _barrier = barrier


def work(name: str, url: str, table: str, me: int) -> Any:
    """Run one job on a store of this process."""
    assert _barrier is not None
    _barrier.wait(PATIENCE)

    async def main() -> Any:
        async with asyncio.timeout(PATIENCE):
            if name == "create":
                return await create(url, table)
            async with AsyncKVAlchemy(url, table=table, sweep_every=None) as kv:
                return await JOBS[name](kv, me)

    return asyncio.run(main())


async def in_rounds(one: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    """25 tasks, each 10 times."""

    async def task(number: int) -> list[Any]:
        return [await one(number * ROUNDS + turn) for turn in range(ROUNDS)]

    found = await asyncio.gather(*map(task, range(TASKS)))
    return [item for items in found for item in items]


async def setting(kv: AsyncKVAlchemy, me: int) -> list[int]:
    """Set the key; returns the number of the call that this process made last, and what it saw."""
    calls = 0

    async def one(_: int) -> tuple[int, int]:
        nonlocal calls
        calls += 1
        await kv.set("set", (me, calls))
        seen: tuple[int, int] = await kv.get("set")
        return seen

    seen = await in_rounds(one)
    assert all(0 <= who < PROCESSES and 1 <= what <= TASKS * ROUNDS for who, what in seen)
    return [me, calls]


async def incrementing(kv: AsyncKVAlchemy, me: int) -> list[Any]:
    return await in_rounds(lambda _: kv.incr("incr"))


async def popping(kv: AsyncKVAlchemy, me: int) -> list[Any]:
    """Take the baton, and hand on the next."""

    async def one(_: int) -> Any:
        baton = await kv.pop("pop", None)
        if baton is not None:
            await kv.set("pop", baton + 1)
        return baton

    return await in_rounds(one)


async def adding(kv: AsyncKVAlchemy, me: int) -> list[Any]:
    """Hold the key alone for a moment."""

    async def one(number: int) -> Any:
        if not await kv.add("add", (me, number)):
            return None
        held = await kv.get("add")
        return held == (me, number) and await kv.delete("add")

    return await in_rounds(one)


async def updating(kv: AsyncKVAlchemy, me: int) -> list[Any]:
    async def one(number: int) -> Any:
        mine = me * 1000 + number
        return (await kv.update("update", lambda names: [*names, mine], default=[]))[-1] == mine

    return await in_rounds(one)


async def create(url: str, table: str) -> int:
    """Twenty first uses of the table, through four stores."""
    stores = [AsyncKVAlchemy(url, table=table, sweep_every=None) for _ in range(4)]
    try:
        return sum(await asyncio.gather(*(kv.incr("n", 0) for kv in stores * 5), *(kv.incr("n") for kv in stores * 5)))
    finally:
        for kv in stores:
            await kv.aclose()


JOBS: dict[str, Job] = {
    "set": setting,
    "incr": incrementing,
    "pop": popping,
    "add": adding,
    "update": updating,
}
