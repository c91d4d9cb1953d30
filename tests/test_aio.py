"""Joins that outlive their caller, owned tasks, time limits, state per event loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from akv.aio import OwnedTasks, PerLoop, TimeLimit, join, shielded

BOUND = 10.0


async def test_join_returns_the_result_of_the_task() -> None:
    assert await join(asyncio.ensure_future(asyncio.sleep(0, "done"))) == "done"


async def test_join_raises_what_the_task_raises() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await join(asyncio.ensure_future(fail()))


async def test_a_caller_of_join_who_is_cancelled_often_leaves_only_when_the_task_has_ended() -> None:
    may_end = asyncio.Event()
    task = asyncio.ensure_future(may_end.wait())
    caller = asyncio.ensure_future(join(task))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert task.result() is True


async def test_join_passes_on_that_the_task_itself_was_cancelled() -> None:
    task = asyncio.ensure_future(asyncio.sleep(BOUND))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await join(task)


async def test_owned_tasks_are_kept_alive_and_forgotten_when_they_end() -> None:
    tasks = OwnedTasks()
    gate = asyncio.Event()
    tasks.spawn(gate.wait(), name="waits")
    gc.collect()
    await asyncio.sleep(0)
    assert len(tasks) == 1
    gate.set()
    await tasks.drain()
    assert len(tasks) == 0


async def test_draining_waits_for_tasks_that_tasks_start() -> None:
    tasks, done = OwnedTasks(), []

    async def second() -> None:
        await asyncio.sleep(0)
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        tasks.spawn(second(), name="second")

    tasks.spawn(first(), name="first")
    await tasks.drain()
    assert done == ["second"]


async def test_cancelling_owned_tasks_waits_until_they_have_ended() -> None:
    tasks, ended = OwnedTasks(), []

    async def slow_to_go() -> None:
        try:
            await asyncio.sleep(BOUND)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    tasks.spawn(slow_to_go(), name="slow to go")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert ended == [True]


async def test_a_block_over_its_time_is_cancelled_and_raises_timeout_error() -> None:
    limit = TimeLimit(every=0.001)
    with pytest.raises(TimeoutError):
        with limit.until(asyncio.get_running_loop().time() + 0.005):
            await asyncio.sleep(BOUND)
    await asyncio.sleep(0)  # nothing is left of the cancellation


async def test_a_block_within_its_time_is_left_alone() -> None:
    limit = TimeLimit(every=0.001)
    with limit.until(asyncio.get_running_loop().time() + BOUND):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.005)  # and the timer finds nobody


async def test_a_cancellation_from_elsewhere_stays_one_under_a_time_limit() -> None:
    limit = TimeLimit(every=0.001)

    async def limited() -> None:
        with limit.until(asyncio.get_running_loop().time() + BOUND):
            await asyncio.sleep(BOUND)

    task = asyncio.ensure_future(limited())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_block_of_a_cancelled_task_that_ends_has_a_time_limit_too() -> None:
    limit = TimeLimit(every=0.001)
    outcomes = []

    async def cancelled() -> None:
        try:
            await asyncio.sleep(BOUND)
        finally:
            with pytest.raises(TimeoutError), limit.until(asyncio.get_running_loop().time() + 0.005):
                await asyncio.sleep(BOUND)
            outcomes.append("ended")

    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert outcomes == ["ended"]


async def test_what_a_block_makes_of_its_cancellation_is_passed_on() -> None:
    limit = TimeLimit(every=0.001)
    with pytest.raises(LookupError):
        with limit.until(asyncio.get_running_loop().time() + 0.002):
            try:
                await asyncio.sleep(BOUND)
            except asyncio.CancelledError:
                raise LookupError from None
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


def each_in_a_loop_of_its_own(get: Callable[[], object], times: int) -> list[object]:
    async def once() -> object:
        return get()

    return [asyncio.run(once()) for _ in range(times)]


def test_each_loop_has_a_value_of_its_own_and_an_ended_one_leaves_it() -> None:
    made: PerLoop[object] = PerLoop(object)
    first, second = each_in_a_loop_of_its_own(made.get, 2)
    assert first is not second
    assert set(map(id, made.take_stale())) == {id(first), id(second)}
    assert len(made) == 0


async def test_a_loop_gets_the_same_value_again() -> None:
    made: PerLoop[object] = PerLoop(object)
    assert made.get() is made.get()
    assert [value for _, value in made.take_all()] != []
    assert len(made) == 0


def test_two_loops_that_change_threads_keep_their_own_values() -> None:
    numbers = itertools.count()
    per_loop = PerLoop(lambda: next(numbers))

    async def value() -> int:
        return per_loop.get()

    def value_in_thread(loop: asyncio.AbstractEventLoop) -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(loop.run_until_complete, value()).result(timeout=10)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        mine = first.run_until_complete(value())
        assert value_in_thread(second) != mine
        assert value_in_thread(first) == mine
        assert second.run_until_complete(value()) != mine
        with pytest.raises(RuntimeError, match="no running event loop"):
            per_loop.get()
    finally:
        first.close()
        second.close()


def test_loops_of_many_threads_make_one_value_each() -> None:
    made: PerLoop[object] = PerLoop(object)
    found: list[object] = []
    start = threading.Barrier(8)

    async def several() -> None:
        found.append(made.get())
        assert made.get() is found[-1] or made.get() in found

    def thread() -> None:
        start.wait(BOUND)
        asyncio.run(several())

    threads = [threading.Thread(target=thread) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(BOUND)
    assert len({id(value) for value in found}) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_a_fork_starts_empty_and_the_parent_keeps_its_own() -> None:
    made: PerLoop[object] = PerLoop(object)
    each_in_a_loop_of_its_own(made.get, 1)
    child = os.fork()
    if child == 0:
        os._exit(len(made))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(made) == 1


def test_what_cannot_be_ended_on_a_closed_loop_is_let_go_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise RuntimeError("as a greenlet of a thread that has gone")

    async def begin() -> OwnedTasks:
        tasks = OwnedTasks()
        tasks.spawn(stubborn(), name="stubborn")
        await asyncio.sleep(0)
        return tasks

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(begin())
    loop.close()
    tasks.abandon()
    del loop
    gc.collect()
    assert not said
    assert not len(tasks)


async def test_what_a_task_raises_after_its_last_caller_has_gone_is_not_reported() -> None:
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    go = asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise RuntimeError("for nobody")

    waiting = shielded(asyncio.create_task(fail()))
    await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    await asyncio.sleep(0.01)
    gc.collect()
    await asyncio.sleep(0)
    assert not said
