"""
A server further away than it is: ``python -m benchmarks.far URL SECONDS`` holds back what it forwards.

It runs in a process of its own, on timers that are more exact than those of epoll.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.proxy import TCPProxy

_ROOT = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def far(url: str, round_trip: float) -> AsyncIterator[str]:
    """
    Move the server of *url* away.

    Args:
        url: A Redis or a database.
        round_trip: Seconds there and back.

    Returns:
        The URL through the proxy.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, url, str(round_trip)), stdin=PIPE, stdout=PIPE, cwd=_ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the delaying proxy did not start")
        yield line.decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


async def _serve(url: str, round_trip: float) -> None:
    async with TCPProxy.before(url) as proxy:
        proxy.delay = round_trip / 2
        print(proxy.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(sys.argv[1], float(sys.argv[2])))
