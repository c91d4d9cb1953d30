"""Results that grow old, where a user meets them: expire, jitter, stale_for, early, on_error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from akv.client import AsyncKVAlchemy
from akv.errors import ConfigurationError
from akv.memoize.decorator import Memoized
from akv.testing import FakeClock
from tests.memoize.conftest import GatedStore
from tests.memoize.test_memoize import counting
from tests.memoize.waiting import Work, bounded, started, until


class Source:
    """
    What a memoized function asks: returns how often it was asked, unless it is to fail, taking its time.

    Attributes:
        took: Seconds by which the store's clock moves meanwhile.
        fails: What to raise.
        runs: How often it was asked.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.took = 0.0
        self.runs = 0
        self.fails: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def on(self, kv: AsyncKVAlchemy, **options: Any) -> Memoized[[], int]:
        @kv.memoize(**options)
        async def ask() -> int:
            return await self()

        return ask

    async def __call__(self) -> int:
        self.runs += 1
        mine = self.runs
        await self.gate.wait()
        self.clock.advance(self.took)
        if self.fails is not None:
            raise self.fails
        return mine


@pytest.fixture
async def source(clock: FakeClock) -> Source:
    return Source(clock)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "akv")
    return lambda: [record.getMessage() for record in caplog.records]


def draws(kv: AsyncKVAlchemy, chance: float) -> None:
    """Let chance have no say."""
    kv._guard.chance = lambda: chance


async def filled(ask: Memoized[..., Any], times: int) -> None:
    """Wait until so many results have been saved."""
    await until(lambda: ask.cache_info().fills == times)


# jitter


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 90), (0.25, 95), (0.5, 100), (0.75, 105)])
async def test_jitter_varies_the_lifetime(
    kv: GatedStore, clock: FakeClock, source: Source, chance: float, seconds: float
) -> None:
    draws(kv, chance)
    ask = source.on(kv, expire=100, jitter=0.1)
    await ask()
    clock.advance(seconds - 0.000001)
    assert await ask() == 1
    clock.advance(0.000001)
    assert await ask() == 2


# stale_for


async def test_a_stale_result_is_returned_at_once_and_computed_anew_behind(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(60)
    source.gate.clear()
    assert [await bounded(ask()), await bounded(ask())] == [1, 1]
    await until(lambda: source.runs == 2)
    source.gate.set()
    await filled(ask, 2)
    assert await ask() == 2
    assert source.runs == 2
    info = ask.cache_info()
    assert (info.hits, info.misses, info.fills, info.bypasses) == (3, 1, 2, 0)


async def test_many_callers_of_a_stale_result_cause_one_computation(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(89.999999)
    source.gate.clear()
    assert set(await bounded(asyncio.gather(*(ask() for _ in range(100))))) == {1}
    assert [task.get_name()[:11] for task in asyncio.all_tasks()].count("akv-refresh") == 1
    source.gate.set()
    await filled(ask, 2)
    assert source.runs == 2


async def test_after_its_window_a_result_is_computed_while_the_caller_waits(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(90)
    assert await ask() == 2


async def test_who_comes_after_the_window_waits_for_the_computation_that_is_under_way(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(60)
    source.gate.clear()
    assert await bounded(ask()) == 1
    await until(lambda: source.runs == 2)
    clock.advance(30)
    (late,) = await started(ask())
    await until(lambda: ask.cache_info().misses == 2)
    source.gate.set()
    assert await bounded(late) == 2
    assert source.runs == 2


async def test_a_failure_behind_leaves_the_last_result_for_as_long_as_it_may_be_returned(
    kv: GatedStore, clock: FakeClock, source: Source, warnings: Callable[[], list[str]]
) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    source.fails = LookupError("gone")
    clock.advance(60)
    for runs in (2, 3):
        assert await ask() == 1
        await until(lambda runs=runs: source.runs == runs and not kv._guard.behind)  # type: ignore[misc]
    (warning,) = warnings()
    assert "LookupError" in warning
    clock.advance(30)
    with pytest.raises(LookupError):
        await ask()


async def test_a_caller_who_is_cancelled_takes_nothing_along(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(60)
    source.gate.clear()

    async def ask_and_stay() -> None:
        await ask()
        await asyncio.Event().wait()

    (caller,) = await started(ask_and_stay())
    await until(lambda: source.runs == 2)
    caller.cancel()
    await bounded(asyncio.wait([caller]))
    source.gate.set()
    await filled(ask, 2)


async def test_closing_the_store_ends_what_it_does_behind(url: str, clock: FakeClock) -> None:
    old, new = Work("old"), Work("new")
    works = [old, new]
    old.release.set()
    kv = AsyncKVAlchemy(url, clock=clock, sweep_every=None)

    @kv.memoize(expire=60, stale_for=30)
    async def compute() -> Any:
        return await works.pop(0)()

    await compute()
    clock.advance(60)
    assert await compute() == "old"
    await bounded(new.running.wait())
    await bounded(kv.aclose())
    assert new.cancelled == 1


async def test_closing_the_store_leaves_who_waits_his_result(url: str, clock: FakeClock, source: Source) -> None:
    kv = AsyncKVAlchemy(url, clock=clock, sweep_every=None)
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(60)
    source.gate.clear()
    await ask()
    await until(lambda: source.runs == 2)
    clock.advance(30)
    (waiter,) = await started(ask())
    await until(lambda: ask.cache_info().misses == 2)
    await bounded(kv.aclose())
    source.gate.set()
    assert await bounded(waiter) == 2


async def test_invalidation_beats_a_computation_behind(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    ask = source.on(kv, expire=60, stale_for=30)
    await ask()
    clock.advance(60)
    source.gate.clear()
    await ask()
    await until(lambda: source.runs == 2)
    await bounded(ask.cache_invalidate())
    (after,) = await started(ask())
    await until(lambda: source.runs == 3)
    source.gate.set()
    assert await bounded(after) == 3
    await until(lambda: not kv._guard.behind)
    assert await ask() == 3
    assert ask.cache_info().fills == 2


async def test_what_is_computed_behind_is_no_part_of_what_caused_it(kv: GatedStore, clock: FakeClock) -> None:
    """The outer computation does not wait for it, so it may itself wait for the outer one."""
    gate = asyncio.Event()
    gate.set()
    outer_runs, inner_runs = [], []

    @kv.memoize(expire=60)
    async def outer() -> int:
        outer_runs.append(1)
        found = await inner()
        await gate.wait()
        return found

    @kv.memoize(expire=60, stale_for=30)
    async def inner() -> int:
        inner_runs.append(1)
        return 1 if len(inner_runs) == 1 else 10 + await outer()

    assert await outer() == 1
    clock.advance(60)
    gate.clear()
    (caller,) = await started(outer())
    await until(lambda: len(inner_runs) == 2 and outer.cache_info().misses == 3)
    gate.set()
    assert await bounded(caller) == 1
    await filled(inner, 2)
    assert await inner() == 11
    assert len(outer_runs) == 2


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_callers_session_is_not_used_behind_his_back(
    kv: GatedStore, clock: FakeClock, url: str, by_name: bool
) -> None:
    engine = create_async_engine(url)
    runs: list[object] = []

    @kv.memoize(expire=60, stale_for=30, ignore=("session",))
    async def load(session: AsyncSession) -> int:
        runs.append(session)
        return len(runs)

    async with AsyncSession(engine) as session:
        call: Callable[[], Any] = (lambda: load(session=session)) if by_name else (lambda: load(session))
        assert await call() == 1
        clock.advance(60)
        assert await call() == 2
        assert await call() == 2
    assert load.cache_info().misses == 2
    await engine.dispose()


@pytest.mark.parametrize("options", [{"stale_for": 30}, {"early": True}], ids=str)
async def test_a_failure_before_the_callers_eyes_leaves_what_may_be_returned(
    kv: GatedStore, clock: FakeClock, url: str, options: dict[str, Any]
) -> None:
    """It would have been returned, had he not given a session."""
    engine = create_async_engine(url)
    failures: list[Exception] = []

    @kv.memoize(expire=60, ignore=("session",), **options)
    async def load(session: AsyncSession) -> str:
        if failures:
            raise failures[0]
        clock.advance(10)
        return "loaded"

    async with AsyncSession(engine) as session:
        assert await load(session) == "loaded"
        failures.append(LookupError("gone"))
        draws(kv, 0.999)
        clock.advance(60 if "stale_for" in options else 59)
        assert await load(session) == "loaded"
        clock.advance(31)
        with pytest.raises(LookupError):
            await load(session)
    await engine.dispose()


# early


async def test_a_result_that_is_due_early_is_returned_and_computed_anew_behind(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    """It took 10 s and has 5 s left: it is due for a draw u with -10 * ln(1 - u) >= 5, that is u >= 0.393."""
    source.took = 10
    ask = source.on(kv, expire=60, early=True)
    await ask()
    clock.advance(55)
    draws(kv, 0.392)
    assert await ask() == 1
    assert not kv._guard.behind
    draws(kv, 0.394)
    source.took = 0
    assert await ask() == 1
    await filled(ask, 2)
    draws(kv, 0.0)
    assert await ask() == 2
    assert source.runs == 2
    assert ask.cache_info().misses == 1


async def test_early_is_decided_by_one_draw_for_each_call(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    """A second draw for what is near would make it rarer than the formula says."""
    source.took = 10
    ask = source.on(kv, expire=60, early=True, near=10)
    await ask()
    clock.advance(55)
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(0.5)
        return 0.5

    kv._guard.chance = draw
    source.gate.clear()
    assert await ask() == 1
    assert len(drawn) == 1
    await until(lambda: source.runs == 2)
    source.gate.set()
    await filled(ask, 2)


# on_error


async def test_the_last_result_stands_in_for_a_failure_however_old_it_is(
    kv: GatedStore, clock: FakeClock, source: Source, warnings: Callable[[], list[str]]
) -> None:
    ask = source.on(kv, expire=60, on_error="stale")
    await ask()
    source.fails = LookupError("gone")
    clock.advance(10**8)
    assert await kv.purge_expired() == 0
    assert list(await bounded(asyncio.gather(ask(), ask(), ask()))) == [1, 1, 1]
    assert source.runs == 2
    (warning,) = warnings()
    assert "LookupError" in warning
    source.fails = None
    assert await ask() == 3
    assert ask.cache_info().misses == 5


async def test_a_failure_is_raised_where_nothing_stands_in(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    source.fails = LookupError("gone")
    with pytest.raises(LookupError):
        await source.on(kv, expire=60, on_error="stale")()


async def test_stale_for_bounds_what_stands_in(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    ask = source.on(kv, expire=60, stale_for=30, on_error="stale")
    await ask()
    source.fails = LookupError("gone")
    clock.advance(89)
    assert await ask() == 1
    await until(lambda: not kv._guard.behind)
    clock.advance(1)
    with pytest.raises(LookupError):
        await ask()


async def test_what_has_grown_too_old_while_it_was_computed_anew_does_not_stand_in(
    kv: GatedStore, clock: FakeClock, source: Source
) -> None:
    """Who comes after the window joins a computation that began within it, and gets nothing of before."""
    ask = source.on(kv, expire=60, stale_for=30, on_error="stale")
    await ask()
    clock.advance(60)
    source.gate.clear()
    assert await ask() == 1
    await until(lambda: source.runs == 2)
    source.fails = LookupError("gone")
    clock.advance(30)
    (late,) = await started(ask())
    await until(lambda: ask.cache_info().misses == 2)
    source.gate.set()
    with pytest.raises(LookupError):
        await bounded(late)


async def test_only_failures_are_stood_in_for(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    ask = source.on(kv, expire=60, on_error="stale")
    await ask()
    clock.advance(60)
    source.gate.clear()
    (caller,) = await started(ask())
    await until(lambda: source.runs == 2)
    caller.cancel()
    await bounded(asyncio.wait([caller]))
    assert caller.cancelled()


async def test_who_wants_it_computed_gets_the_failure(kv: GatedStore, clock: FakeClock, source: Source) -> None:
    ask = source.on(kv, expire=60, on_error="stale")
    await ask()
    source.fails = LookupError("gone")
    with pytest.raises(LookupError):
        await ask.refresh()
    assert await ask() == 1


# Options that change


@pytest.mark.parametrize(
    ("before", "after", "age", "served"),
    [
        ({"expire": 60}, {"expire": 60, "jitter": 0.1, "near": 10, "lock": True, "early": True}, 59, True),
        ({"expire": 60}, {"expire": 10}, 59, True),
        ({"expire": 60}, {"expire": 600}, 60, False),
        ({}, {"expire": 60}, 1000, True),
        ({"expire": 60, "stale_for": 30}, {"expire": 60}, 60, False),
        ({"expire": 60, "on_error": "stale"}, {"expire": 60}, 60, False),
        ({"expire": 60, "on_error": "stale"}, {"expire": 60, "stale_for": 30}, 89, True),
        ({"expire": 60, "on_error": "stale"}, {"expire": 60, "stale_for": 30}, 90, False),
    ],
)
async def test_results_of_other_options_are_found_and_judged_by_those_of_today(
    kv: GatedStore, clock: FakeClock, before: dict[str, Any], after: dict[str, Any], age: float, served: bool
) -> None:
    (old, _), (new, _) = counting(kv, **before), counting(kv, **after)
    await old(1)
    clock.advance(age)
    await new(1)
    assert new.cache_info().hits == served
    assert await kv.count(tag=new.cache_tag) == 1


async def test_what_stood_in_the_row_before_is_a_miss(kv: GatedStore) -> None:
    count, runs = counting(kv)
    await kv.set(count.cache_key(1), "something else", count.cache_tag)
    assert [await count(1), await count(1)] == [1, 1]
    assert runs == [1]


# Dependencies come with tokens


@pytest.mark.parametrize("options", [{"depends_on": "akv:users#1"}, {"depends_on": lambda a: a}, {"track": True}])
def test_dependencies_need_tokens(options: dict[str, Any]) -> None:
    kv = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:")
    with pytest.raises(ConfigurationError, match="tokens"):
        kv.memoize(**options)
