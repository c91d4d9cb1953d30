"""Attempts, waits and what ends them, on a clock of the test's own."""

import asyncio
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.errors import ConfigurationError
from akv.store import retry
from akv.store.retry import Exhausted, RetryPolicy


class Passing(Exception):
    pass


class Final(Exception):
    pass


def is_passing(error: BaseException) -> bool:
    return isinstance(error, Passing)


class World:
    """A call that fails as told, in a time that only waits and the call itself move."""

    def __init__(self, *outcomes: Any, takes: float = 0.0) -> None:
        self.outcomes = list(outcomes)
        self.takes = takes
        self.now = 1000.0
        self.calls = 0
        self.waits: list[float] = []

    async def attempt(self) -> Any:
        self.calls += 1
        self.now += self.takes
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def run(self, policy: RetryPolicy, transient: Callable[[BaseException], bool] = is_passing) -> Any:
        return await retry.run(policy, self.attempt, transient, sleep=self.sleep, monotonic=lambda: self.now)


def policy(**options: Any) -> RetryPolicy:
    return RetryPolicy(**{"attempts": 5, "total": 100, "initial": 1, "maximum": 8, "jitter": 0, **options})


async def test_a_success_builds_nothing_of_tenacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "AsyncRetrying", None)
    world = World("value")

    assert await world.run(policy()) == "value"
    assert (world.calls, world.waits) == (1, [])


async def test_a_final_failure_propagates_itself_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "AsyncRetrying", None)
    error = Final()
    world = World(error)

    with pytest.raises(Final) as caught:
        await world.run(policy())

    assert caught.value is error
    assert (world.calls, world.waits) == (1, [])


async def test_a_transient_failure_is_tried_again_after_a_wait() -> None:
    world = World(Passing(), Passing(), "value")

    assert await world.run(policy()) == "value"
    assert (world.calls, world.waits) == (3, [1, 2])


async def test_waits_double_up_to_the_maximum() -> None:
    world = World(*[Passing()] * 6, "value")

    assert await world.run(policy(attempts=7)) == "value"
    assert world.waits == [1, 2, 4, 8, 8, 8]


async def test_durations_may_be_timedeltas() -> None:
    world = World(Passing(), Passing(), "value")
    given = policy(initial=timedelta(seconds=1), maximum=timedelta(seconds=1.5), total=timedelta(minutes=1))

    assert (given.initial, given.maximum, given.total) == (1.0, 1.5, 60.0)
    await world.run(given)
    assert world.waits == [1, 1.5]


async def test_the_last_attempt_is_the_last() -> None:
    errors = [Passing(number) for number in range(5)]
    world = World(*errors)

    with pytest.raises(Exhausted) as caught:
        await world.run(policy())

    assert caught.value.__cause__ is errors[4]
    assert (caught.value.attempts, caught.value.elapsed) == (5, 15.0)
    assert (world.calls, world.waits) == (5, [1, 2, 4, 8])


async def test_one_attempt_means_no_retry() -> None:
    error = Passing()
    world = World(error, "value")

    with pytest.raises(Exhausted) as caught:
        await world.run(policy(attempts=1))

    assert caught.value.__cause__ is error
    assert (caught.value.attempts, caught.value.elapsed) == (1, 0.0)
    assert (world.calls, world.waits) == (1, [])


async def test_no_wait_begins_that_would_end_past_the_total() -> None:
    world = World(Passing())

    with pytest.raises(Exhausted) as caught:
        await world.run(policy(total=6.9))

    assert world.waits == [1, 2]
    assert (caught.value.attempts, caught.value.elapsed) == (3, 3.0)


async def test_a_wait_that_ends_with_the_total_is_waited() -> None:
    world = World(Passing())

    with pytest.raises(Exhausted):
        await world.run(policy(total=7))

    assert world.waits == [1, 2, 4]


async def test_the_first_attempt_counts_for_the_total() -> None:
    world = World(Passing(), takes=6.5)

    with pytest.raises(Exhausted) as caught:
        await world.run(policy(total=7))

    assert (caught.value.attempts, caught.value.elapsed) == (1, 6.5)
    assert world.waits == []


async def test_a_final_failure_ends_the_retries_and_is_itself() -> None:
    error = Final()
    world = World(Passing(), error, "value")

    with pytest.raises(Final) as caught:
        await world.run(policy())

    assert caught.value is error
    assert world.calls == 2


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_cancellation_is_never_tried_again(failures: int) -> None:
    world = World(*[Passing()] * failures, asyncio.CancelledError(), "value")

    with pytest.raises(asyncio.CancelledError):
        await world.run(policy(), lambda error: True)

    assert failures + 1 == world.calls


async def test_cancellation_ends_a_wait() -> None:
    world = World(Passing())
    waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(retry.run(policy(), world.attempt, is_passing, sleep=sleep))
    async with asyncio.timeout(10):
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert world.calls == 1


async def test_calls_at_once_do_not_share_their_counts() -> None:
    worlds = [World(*[Passing()] * failures, failures) for failures in range(5)]

    results = await asyncio.gather(*(world.run(policy()) for world in worlds))

    assert results == [0, 1, 2, 3, 4]
    assert [world.calls for world in worlds] == [1, 2, 3, 4, 5]


async def test_the_real_clock_is_the_default() -> None:
    world = World(Passing(), "value")

    async with asyncio.timeout(10):
        assert await retry.run(policy(initial=0, maximum=0), world.attempt, is_passing) == "value"


@given(jitter=st.floats(0, 1))
async def test_jitter_takes_a_random_part_of_each_wait(jitter: float) -> None:
    world = World(Passing())

    with pytest.raises(Exhausted):
        await world.run(policy(jitter=jitter))

    for full, wait in zip([1, 2, 4, 8], world.waits, strict=True):
        assert full * (1 - jitter) <= wait <= full


async def test_waits_with_jitter_differ() -> None:
    waits = set()
    for _ in range(20):
        world = World(Passing(), "value")
        await world.run(policy(jitter=1))
        waits.update(world.waits)

    assert len(waits) == 20


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"attempts": 0}, "attempts must be an int of at least 1, not 0"),
        ({"attempts": 2.0}, "attempts must be an int of at least 1, not 2.0"),
        ({"attempts": True}, "attempts must be an int of at least 1, not True"),
        ({"total": -1}, "total must be a finite number of seconds of at least 0, or a timedelta, not -1"),
        ({"total": float("inf")}, "total must be a finite .* not inf"),
        ({"total": 10**400}, "total must be a finite"),
        ({"total": timedelta(seconds=-1)}, "total must be a finite .* not -1.0"),
        ({"total": None}, "total must be a finite .* not None"),
        ({"initial": float("nan")}, "initial must be a finite .* not nan"),
        ({"initial": True}, "initial must be a finite .* not True"),
        ({"maximum": "1"}, "maximum must be a finite .* not '1'"),
        ({"initial": 2, "maximum": 1}, r"maximum must be at least initial \(2.0 seconds\), not 1.0"),
        ({"jitter": 1.5}, "jitter must be a number from 0 to 1, not 1.5"),
        ({"jitter": -0.1}, "jitter must be a number from 0 to 1, not -0.1"),
        ({"jitter": float("nan")}, "jitter must be a number from 0 to 1, not nan"),
        ({"jitter": "0"}, "jitter must be a number from 0 to 1, not '0'"),
    ],
)
def test_a_policy_out_of_bounds_is_refused_with_the_bound(options: dict[str, Any], bound: str) -> None:
    with pytest.raises(ConfigurationError, match=bound):
        RetryPolicy(**options)


def test_a_policy_is_a_frozen_value() -> None:
    assert RetryPolicy(total=timedelta(seconds=3)) == RetryPolicy(total=3)
    assert RetryPolicy() == pickle.loads(pickle.dumps(RetryPolicy()))
    with pytest.raises(AttributeError):
        RetryPolicy().attempts = 3  # type: ignore[misc]
