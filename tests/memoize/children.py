"""What the processes of test_turns.py do: ``python -m tests.memoize.children JOB URL TABLE``."""

from __future__ import annotations

import asyncio
import os
import sys

from akv import AsyncKVAlchemy

CALLERS = 50
PATIENCE = 60.0


def opened(url: str, table: str) -> AsyncKVAlchemy:
    """A store that waits for its database however slow the machine is."""
    kv = AsyncKVAlchemy(url, table=table, sweep_every=None)
    kv._guard.patience = PATIENCE
    return kv


async def stampede(kv: AsyncKVAlchemy) -> None:
    """Call a cold key often and at once, when told to; print what came of it."""

    @kv.memoize(lock=True)
    async def compute(a: int) -> int:
        await kv.incr("runs")
        await asyncio.sleep(0.5)
        return os.getpid()

    await kv.count()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(*set(await asyncio.gather(*(compute(1) for _ in range(CALLERS)))), flush=True)


async def hang(kv: AsyncKVAlchemy) -> None:
    """Begin to compute, say so, and never end."""

    @kv.memoize(lock=2.0)
    async def compute(a: int) -> str:
        await kv.incr("runs")
        print("computing", flush=True)
        await asyncio.Event().wait()
        return "never"

    await compute(1)


async def follow(kv: AsyncKVAlchemy) -> None:
    """Want what another process computes."""

    @kv.memoize(lock=2.0)
    async def compute(a: int) -> str:
        await kv.incr("runs")
        return "computed"

    compute._recipe.tag = compute.cache_tag.replace("follow", "hang")
    print("waiting", flush=True)
    print(await compute(1), flush=True)


async def main(job: str, url: str, table: str) -> None:
    async with asyncio.timeout(PATIENCE), opened(url, table) as kv:
        await {"stampede": stampede, "hang": hang, "follow": follow}[job](kv)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
