"""
Concurrent calls made cheap: those of one moment become one call of Redis.

A call joins only a batch that is not yet sent. A lone call is sent at once, without a timer.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from akv.aio import OwnedTasks

Call = TypeVar("Call")
Answer = TypeVar("Answer")


class Lane(Generic[Call, Answer]):
    """Calls of one kind on one event loop, on their way into batches."""

    def __init__(
        self,
        send: Callable[[list[Call]], Awaitable[Sequence[Answer]]],
        tasks: OwnedTasks,
        *,
        size: Callable[[Call], int],
        largest: int,
        at_once: int,
        shared_from: int | None = None,
    ) -> None:
        """
        Args:
            send: Sends a batch and returns an answer for each call of it.
            tasks: The owner of the batches: cancelling a caller never touches one.
            size: The size of a call.
            largest: A batch takes no further call beyond this size.
            at_once: How many batches may be under way.
            shared_from: A batch beyond this size leaves half of what waits to the next one, if that may leave at once;
                None: never.
        """
        self._send = send
        self._tasks = tasks
        self._size = size
        self._largest = largest
        self._shared_from = largest if shared_from is None else shared_from
        self._room = at_once
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Call, asyncio.Future[Answer]]] = []
        self._boarding: object | None = None

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        """Return a future of the answer; one that is cancelled before its batch is sent is not sent."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append((call, future))
        self._wake()
        return future

    def fail(self, error: Exception) -> None:
        """Give up what waits."""
        waiting, self._waiting = self._waiting, []
        _fail(waiting, error)

    def forget(self) -> None:
        """Send nothing more: the event loop has ended."""
        self._waiting.clear()

    def _wake(self) -> None:
        """
        Let the next batch leave in the loop's next turn; what is called until then joins it.

        After a batch has landed, that turn comes behind the wake-ups of its callers, so that what they call next is
        on board.
        """
        if self._waiting and self._boarding is None and self._room:
            boarding = self._boarding = object()
            self._room -= 1
            task = self._tasks.spawn(self._fly(), name="akv batch for Redis")
            task.add_done_callback(lambda _: self._stayed(boarding))

    def _stayed(self, boarding: object) -> None:
        """Let another batch leave for one whose task was cancelled before its first step, as asyncio.run() does."""
        if self._boarding is boarding:
            self._boarding = None
            self._room += 1
            self._waiting = [each for each in self._waiting if not each[1].done()]
            self._wake()

    async def _fly(self) -> None:
        self._boarding = None
        batch = self._take()
        self._wake()
        try:
            if batch:
                await self._carry(batch)
        finally:
            self._room += 1
            self._wake()

    async def _carry(self, batch: list[tuple[Call, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._send([call for call, _ in batch])
        except Exception as error:
            _fail(batch, error)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _take(self) -> list[tuple[Call, asyncio.Future[Answer]]]:
        waiting = self._waiting = [each for each in self._waiting if not each[1].done()]
        sizes = [self._size(call) for call, _ in waiting]
        room = self._largest
        if self._room:  # Redis works on one half while who was answered by the other makes its next call
            room = min(room, max(self._shared_from, sum(sizes) // 2))
        taken = sum(size <= room for size in accumulate(sizes))
        batch = waiting[: max(taken, 1)]
        del waiting[: len(batch)]
        return batch


def _fail(batch: Sequence[tuple[Call, asyncio.Future[Answer]]], error: Exception) -> None:
    """Give each caller an exception of its own: a shared one would collect all their tracebacks."""
    for _, future in batch:
        if not future.done():
            mine = copy.copy(error)
            mine.__cause__ = error.__cause__
            future.set_exception(mine)
