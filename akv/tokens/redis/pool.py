"""
The connections of one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from akv.errors import ClosedError
from akv.tokens.redis.tasks import LoopTasks
from akv.tokens.redis.wire import BrokenError, Link, Settings

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for a connection, and whether one is being opened because of that."""

    future: asyncio.Future[Link]
    has_attempt: bool = False

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Pool:
    """
    Lends connections, and opens them in tasks of its own.

    Opening one may take longer than anybody has time to wait: then it is there for whoever comes next.
    """

    def __init__(self, settings: Settings, most: int) -> None:
        """
        Args:
            settings: How to connect.
            most: The number of connections never exceeded.
        """
        self._settings = settings
        self._most = most
        self._connecting = LoopTasks()
        self._open: set[Link] = set()
        self._idle: list[Link] = []
        self._waiting: deque[_Waiter] = deque()
        self._is_closed = False

    async def ask(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """
        Do *work* on a connection; once more on another one, if the first has merely grown old.

        Raises:
            BrokenError: Redis cannot be reached.
            RefusedError: Redis refuses the work.
            ConfigurationError: It never will do it.
        """
        was_idle = bool(self._idle)
        try:
            return await self._on(await self._take(), work)
        except BrokenError:
            if not was_idle:
                raise
        await self._forget_idle()  # they are as old
        return await self._on(await self._take(), work)

    async def _on(self, link: Link, work: Callable[[Link], Awaitable[T]]) -> T:
        is_whole = False
        try:
            result = await work(link)
            is_whole = True
            return result
        except BrokenError:
            raise
        except Exception:  # an answer, if not the one that was hoped for
            is_whole = True
            raise
        finally:
            if is_whole and not self._is_closed:
                self._give(link)
            else:
                await self._drop(link)

    async def _take(self) -> Link:
        if self._is_closed:
            raise _closed()
        if self._idle:
            return self._idle.pop()
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        waiter = _Waiter(asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._connect_for(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._give(waiter.future.result())
            raise

    def _give(self, link: Link) -> None:
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                future.set_result(link)
                return
        self._idle.append(link)

    async def _drop(self, link: Link) -> None:
        await link.close()
        self._open.discard(link)  # not before: if that fails, let_go() does it
        self._connect_for_next()

    async def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for link in idle:
            await self._drop(link)

    def _connect_for(self, waiter: _Waiter) -> None:
        """Open a connection because of *waiter*, even if others are being opened: those may never be."""
        if len(self._open) < self._most and not self._is_closed:
            waiter.has_attempt = True
            link = Link(self._settings)
            self._open.add(link)
            task = self._connecting.spawn(self._connect(link, waiter), name="akv connects to Redis")
            task.add_done_callback(lambda task: self._attempted(task, link, waiter))

    def _attempted(self, task: asyncio.Task[None], link: Link, waiter: _Waiter) -> None:
        """Try again if the attempt was cancelled, maybe before its first step, as asyncio.run() does at its end."""
        if task.cancelled():
            self._open.discard(link)
            waiter.has_attempt = False
            self._connect_for_next()

    def _connect_for_next(self) -> None:
        waiter = next((each for each in self._waiting if not (each.has_attempt or each.future.done())), None)
        if waiter is not None:
            self._connect_for(waiter)

    async def _connect(self, link: Link, waiter: _Waiter) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                await link.open()
        except Exception as error:
            await link.close()
            self._open.discard(link)
            late = BrokenError(f"no connection within {self._settings.connect_seconds} s")
            waiter.fail(late if isinstance(error, TimeoutError) else error)
            self._connect_for_next()
        else:
            self._give(link)

    async def aclose(self) -> None:
        """Close every connection; what is still lent is closed when it comes back."""
        self._is_closed = True
        await self._connecting.cancel()
        for waiter in self._waiting:
            waiter.fail(_closed())
        await self._forget_idle()

    def let_go(self) -> None:
        """Close what an event loop that has ended has left behind."""
        self._is_closed = True
        self._connecting.abandon()
        for link in self._open:
            link.let_go()
        self._open.clear()
        self._idle.clear()


def _closed() -> ClosedError:
    return ClosedError("these RedisTokens are closed: make new ones")
