"""
What akv needs from asyncio: joins that outlive their caller, owned tasks, state per event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
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
        retrieve(task)
        raise cancelled
    return task.result()


async def join_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run *coroutine* to its end, however often the caller is cancelled meanwhile; see :func:`join`."""
    return await join(asyncio.ensure_future(coroutine))


def retrieve(task: asyncio.Future[Any]) -> None:
    """Take note of what a task that has ended raised, so that the loop does not report it as lost."""
    if not task.cancelled():
        task.exception()


def shielded(task: asyncio.Task[T]) -> asyncio.Future[T]:
    """
    Wait for a task that goes on without its callers.

    Returns:
        A future of its outcome; where all who waited have gone, nobody misses that.
    """
    # asyncio.shield() alone leaves an exception that nobody waits for any more to be reported by the loop.
    task.add_done_callback(retrieve)
    return asyncio.shield(task)


class TimeLimit:
    """
    Cancels the tasks of one event loop that are over their time, all of them with one timer.

    A timer of its own for each of many short calls would cost more than the calls.
    """

    def __init__(self, *, every: float) -> None:
        """
        Args:
            every: Seconds between two looks; a task may be over its time by that much.
        """
        self._loop = asyncio.get_running_loop()
        self._every = every
        self._timer: asyncio.TimerHandle | None = None
        self._until: dict[asyncio.Task[Any], float] = {}

    def until(self, when: float) -> _Limited:
        """
        Return a context manager whose block is cancelled at *when*, and then raises TimeoutError.

        Args:
            when: By the clock of the event loop, seconds.
        """
        return _Limited(self, when)

    def _watch(self, task: asyncio.Task[Any], when: float) -> None:
        self._until[task] = when
        if self._timer is None:
            self._timer = self._loop.call_later(self._every, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        for task in [task for task, when in self._until.items() if when <= now]:
            del self._until[task]
            task.cancel()
        self._timer = self._loop.call_later(self._every, self._look) if self._until else None

    def _is_over(self, task: asyncio.Task[Any]) -> bool:
        return self._until.pop(task, None) is None


class _Limited:
    """A block with a time limit."""

    __slots__ = ("_cancelling", "_limit", "_task", "_when")

    def __init__(self, limit: TimeLimit, when: float) -> None:
        self._limit = limit
        self._when = when
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- asyncio runs coroutines in tasks
        self._task = task
        self._cancelling = task.cancelling()  # not 0 in what a cancelled task does at its end

    def __enter__(self) -> None:
        self._limit._watch(self._task, self._when)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._limit._is_over(self._task):
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


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

    def abandon(self) -> None:
        """Forget tasks whose event loop has ended: they can neither run nor be cancelled any more."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if iscoroutine(coroutine) and (task.get_loop().is_closed() or getcoroutinestate(coroutine) == CORO_CREATED):
                # The garbage collector would do the same, and report that it never began, or that what it was in
                # the middle of (a greenlet of a thread that has gone) cannot be ended.
                with suppress(Exception):
                    coroutine.close()
        self._tasks.clear()


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
        self._last: tuple[asyncio.AbstractEventLoop, T] | None = None
        _forgotten_by_children.add(self)

    def get(self) -> T:
        """
        Return the value of the running loop.

        Raises:
            RuntimeError: No event loop is running.
        """
        # Up to Python 3.11 get_running_loop() asks the kernel for the process id: a fifth of a batched get.
        last = self._last
        if last is not None and getattr(last[0], "_thread_id", None) == threading.get_ident():
            return last[1]
        loop = asyncio.get_running_loop()
        with self._lock:
            entry = self._values.get(id(loop))
            if entry is None or entry[0] is not loop:
                entry = self._values[id(loop)] = (loop, self._make())
            self._last = entry
        return entry[1]

    def take_stale(self) -> list[T]:
        """Remove and return the values of loops that have been closed."""
        with self._lock:
            self._last = None
            stale = [key for key, (loop, _) in self._values.items() if loop.is_closed()]
            return [self._values.pop(key)[1] for key in stale]

    def take_all(self) -> list[tuple[asyncio.AbstractEventLoop, T]]:
        """Remove and return every value with its loop."""
        with self._lock:
            values, self._values, self._last = self._values, {}, None
        return list(values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        return iter([value for _, value in list(self._values.values())])

    def _forget(self) -> None:
        _inherited.append(self._values)
        self._values, self._last = {}, None
        self._lock = threading.RLock()


_inherited: list[object] = []
"""What processes got from their parent: kept, because finalizers would close the parent's connections."""
_forgotten_by_children: weakref.WeakSet[PerLoop[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for states in list(_forgotten_by_children):
        states._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
