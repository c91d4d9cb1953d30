"""Waiting in tests of memoize: always for something, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

BOUND = 20.0


async def bounded(awaitable: Awaitable[R]) -> R:
    """Await, but fail rather than hang."""
    async with asyncio.timeout(BOUND):
        return await awaitable


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0)


async def started(*coroutines: Coroutine[Any, Any, R]) -> list[asyncio.Task[R]]:
    """Start a task for each coroutine, and let all of them make their first step."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


class Work:
    """
    A computation that says when it runs and ends when it is told to.

    Attributes:
        runs: How often it was started.
        cancelled: How often it was cancelled and has finished unwinding.
        result: What it returns, or raises if it is an exception.
    """

    def __init__(self, result: Any = "result") -> None:
        self.runs = 0
        self.cancelled = 0
        self.result = result
        self.running = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, *_: Any) -> Any:
        self.runs += 1
        self.running.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # unwinding takes a while
            self.cancelled += 1
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result
