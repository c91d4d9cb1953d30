"""Atomicity between processes: 4 of them, 25 tasks each, 10 rounds, one key."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from tests.backends import Backend
from tests.contract import processes
from tests.contract.processes import PROCESSES, ROUNDS, TASKS

pytestmark = pytest.mark.backends(exclude="sqlite-memory")  # its data are seen by its own process alone

CALLS = PROCESSES * TASKS * ROUNDS
SECONDS = 90

Run = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    """Four processes that start every job together."""
    context = multiprocessing.get_context("spawn")
    workers = context.Pool(PROCESSES, processes.begin, (context.Barrier(PROCESSES),))
    try:
        yield workers
    finally:
        workers.terminate()
        workers.join()


@pytest.fixture
def run(pool: Any, backend: Backend, table: str) -> Run:
    def run_everywhere(job: str) -> list[Any]:
        jobs = [(job, backend.url, table, number) for number in range(PROCESSES)]
        found: list[Any] = pool.starmap_async(processes.work, jobs, chunksize=1).get(SECONDS)
        return found

    return run_everywhere


@pytest.fixture
def final(backend: Backend, table: str) -> Callable[[str], Any]:
    """What is stored in the end."""

    async def read(key: str) -> Any:
        async with AsyncKVAlchemy(backend.url, table=table, sweep_every=None) as kv:
            return await kv.get(key, "nothing")

    return lambda key: asyncio.run(read(key))


@pytest.fixture
def stored(backend: Backend, table: str) -> Callable[[str, Any], None]:
    async def store(key: str, value: Any) -> None:
        async with AsyncKVAlchemy(backend.url, table=table, sweep_every=None) as kv:
            await kv.set(key, value)

    return lambda key, value: asyncio.run(store(key, value))


def test_set_the_last_call_of_some_process_stays(run: Run, final: Callable[[str], Any]) -> None:
    last = [tuple(found) for found in run("set")]

    assert [calls for _, calls in last] == [TASKS * ROUNDS] * PROCESSES
    assert final("set") in last


def test_incr_nothing_is_lost_and_nobody_gets_the_same_number(run: Run, final: Callable[[str], Any]) -> None:
    numbers = [number for found in run("incr") for number in found]

    assert sorted(numbers) == list(range(1, CALLS + 1))
    assert final("incr") == CALLS


def test_pop_nobody_is_served_twice(run: Run, final: Callable[[str], Any], stored: Callable[[str, Any], None]) -> None:
    stored("pop", 0)
    batons = [baton for found in run("pop") for baton in found if baton is not None]

    assert batons
    assert sorted(batons) == list(range(len(batons)))
    assert final("pop") == len(batons)


def test_add_one_at_a_time_holds_the_key(run: Run, final: Callable[[str], Any]) -> None:
    held = [answer for found in run("add") for answer in found if answer is not None]

    assert len(held) >= PROCESSES
    assert all(held)
    assert final("add") == "nothing"


def test_update_nothing_is_lost(run: Run, final: Callable[[str], Any]) -> None:
    assert all(answer for found in run("update") for answer in found)

    names = final("update")
    assert sorted(names) == sorted(me * 1000 + number for me in range(PROCESSES) for number in range(TASKS * ROUNDS))
    for me in range(PROCESSES):
        for task in range(TASKS):
            mine = [name for name in names if name // 1000 == me and name % 1000 // ROUNDS == task]
            assert mine == sorted(mine)


def test_the_first_use_may_be_raced(run: Run, final: Callable[[str], Any]) -> None:
    run("create")

    assert final("n") == PROCESSES * 20
