"""Batches on their way to Redis: which calls share one, and which go at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from akv.aio import OwnedTasks
from akv.tokens.redis.lanes import Lane

BOUND = 30


class Server:
    """Answers a batch once it is let to; a call is its own size."""

    def __init__(self, *, largest: int = 100, at_once: int = 2, shared_from: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.open = asyncio.Event()
        self.tasks = OwnedTasks()
        self.lane: Lane[int, int] = Lane(
            self.send, self.tasks, size=lambda call: call, largest=largest, at_once=at_once, shared_from=shared_from
        )

    async def send(self, calls: list[int]) -> Sequence[int]:
        self.batches.append(calls)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.open.wait()
        self.under_way -= 1
        return [-call for call in calls]

    async def answers(self, calls: Sequence[int]) -> list[int]:
        futures = [self.lane.submit(call) for call in calls]
        for _ in range(10):
            await asyncio.sleep(0)
        self.open.set()
        return list(await asyncio.wait_for(asyncio.gather(*futures), BOUND))


async def test_calls_of_one_moment_share_a_batch() -> None:
    server = Server()
    assert await server.answers([1] * 64) == [-1] * 64
    assert server.batches == [[1] * 64]


async def test_many_calls_of_one_moment_are_halved_between_two_batches_under_way_at_once() -> None:
    server = Server(shared_from=20)
    assert await server.answers([1] * 64) == [-1] * 64
    assert server.batches == [[1] * 32, [1] * 32]
    assert server.most_under_way == 2


async def test_few_calls_are_not_halved() -> None:
    server = Server(shared_from=20)
    assert await server.answers([1] * 20) == [-1] * 20
    assert server.batches == [[1] * 20]


async def test_what_waits_for_the_last_room_is_not_halved() -> None:
    server = Server(shared_from=20)
    first = [server.lane.submit(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await server.answers([1] * 64) == [-1] * 64
    assert server.batches == [[2], [1] * 64]
    assert await first[0] == -2


async def test_batch_is_halved_only_down_to_what_it_is_worth() -> None:
    server = Server(shared_from=20)
    assert await server.answers([1] * 24) == [-1] * 24
    assert server.batches == [[1] * 20, [1] * 4]


async def test_call_that_is_larger_than_a_batch_may_be_goes_alone() -> None:
    server = Server(largest=50, shared_from=20)
    assert await server.answers([70, 60, 5]) == [-70, -60, -5]
    assert server.batches == [[70], [60], [5]]


async def test_batch_that_is_cancelled_before_its_first_step_leaves_its_calls_to_the_next() -> None:
    server = Server(at_once=1)
    gone, waits = server.lane.submit(1), server.lane.submit(2)
    gone.cancel()
    for task in server.tasks._tasks:
        task.cancel()
    assert await server.answers([3]) == [-3]
    assert await waits == -2
    assert server.batches == [[2, 3]]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100), st.integers(1, 3), st.integers(1, 100))
def test_every_call_goes_once_in_order_and_no_batch_is_too_large(
    calls: list[int], largest: int, at_once: int, shared_from: int
) -> None:
    async def run() -> Server:
        server = Server(largest=largest, at_once=at_once, shared_from=shared_from)
        assert await server.answers(calls) == [-call for call in calls]
        return server

    server = asyncio.run(run())
    assert [call for batch in server.batches for call in batch] == calls
    assert all(len(batch) == 1 or sum(batch) <= largest for batch in server.batches)
    assert server.most_under_way <= at_once
