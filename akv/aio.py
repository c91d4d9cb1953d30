"""
What akv needs from asyncio: joins that outlive their caller, owned tasks, state per event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def join(task: asyncio.Future[T]) -> T:
    """
    Wait until *task* has ended, however often the caller is cancelled meanwhile.

    Args:
        task: A task or future that the caller has started and wants finished.

    Returns:
        The result of the task, or its exception.

    Raises:
        asyncio.CancelledError: The caller was cancelled; raised only once the task has ended.

    Guarantees:
        Cancelling the caller never cancels the task.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # retrieved, so that the loop does not report it as lost
        raise cancelled
    return task.result()


class OwnedTasks:
    """
    Background tasks of one owner on one event loop.

    The event loop itself keeps only weak references to tasks; this keeps strong
    ones, and ends what is left when the owner closes.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """
        Start *coroutine* as a task of this owner.

        Args:
            coroutine: What to run.
            name: Name of the task, for debuggers and for ``asyncio.all_tasks()``.

        Returns:
            The running task.
        """
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Wait until every task that runs now, and those they start, has ended."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def cancel(self) -> None:
        """
        Cancel every task and wait until all have ended.

        Guarantees:
            None of the tasks runs afterwards, even if the caller is cancelled meanwhile.
        """
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await join(asyncio.ensure_future(self.drain()))


class PerLoop(Generic[T]):
    """
    One value for each running event loop, made at first use.

    Several loops may run in several threads at once. A loop that ends without
    notice leaves its value to :meth:`take_stale`; after a fork the child
    starts empty, and what the parent made is kept alive untouched, because
    closing a socket that two processes share would break the parent's.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        """
        Args:
            make: Called on the loop's thread; does no I/O.
        """
        self._make = make
        self._lock = threading.RLock()
        self._values: dict[int, tuple[asyncio.AbstractEventLoop, T]] = {}
        self._inherited: list[dict[int, tuple[asyncio.AbstractEventLoop, T]]] = []
        _forgotten_by_children.add(self)

    def get(self) -> T:
        """
        Return the value of the running loop.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = asyncio.get_running_loop()
        entry = self._values.get(id(loop))
        if entry is not None and entry[0] is loop:
            return entry[1]
        with self._lock:
            entry = self._values[id(loop)] = (loop, self._make())
        return entry[1]

    def take_stale(self) -> list[T]:
        """Remove and return the values of loops that have been closed."""
        with self._lock:
            stale = [key for key, (loop, _) in self._values.items() if loop.is_closed()]
            return [self._values.pop(key)[1] for key in stale]

    def take_all(self) -> list[tuple[asyncio.AbstractEventLoop, T]]:
        """Remove and return every value with its loop."""
        with self._lock:
            values, self._values = self._values, {}
        return list(values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        return iter([value for _, value in list(self._values.values())])

    def _forget(self) -> None:
        self._inherited.append(self._values)
        self._values = {}
        self._lock = threading.RLock()


_forgotten_by_children: weakref.WeakSet[PerLoop[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for states in list(_forgotten_by_children):
        states._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
