"""
The end of what several event loops have.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from akv.aio import PerLoop
    from akv.tokens.redis.runtime import Runtime

_LOOKS: Final = 100
_LOOK_AGAIN: Final = 0.05


async def close_everywhere(runtimes: Sequence[tuple[asyncio.AbstractEventLoop, Runtime]]) -> None:
    """Close what belongs to each loop: on that loop, if it runs; else what it has left is let go of."""
    for loop, runtime in runtimes:
        if loop is asyncio.get_running_loop():
            await runtime.aclose()
        elif not loop.is_running() or not await _close_over_there(loop, runtime):
            runtime.drop()


async def _close_over_there(loop: asyncio.AbstractEventLoop, runtime: Runtime) -> bool:
    """Return whether the loop did it, and did not end or stand still meanwhile."""
    closing = runtime.aclose()
    try:
        answer = asyncio.run_coroutine_threadsafe(closing, loop)
    except RuntimeError:  # it has been closed this very moment
        closing.close()
        return False
    waiting = asyncio.wrap_future(answer)
    for _ in range(_LOOKS):
        done, _ = await asyncio.wait([waiting], timeout=_LOOK_AGAIN)
        if done or not loop.is_running():
            break
    if not waiting.done() or waiting.cancelled():
        return False
    waiting.result()
    return True


def close_at_exit(runtimes: PerLoop[Runtime]) -> None:
    """See to it that the interpreter, when it takes itself apart, finds no connection that nobody has closed."""
    _left.add(runtimes)


def _let_go_of_all() -> None:
    for runtimes in list(_left):
        for _, runtime in runtimes.take_all():
            runtime.drop()


_left: WeakSet[PerLoop[Runtime]] = WeakSet()
atexit.register(_let_go_of_all)
