"""Every option about age, near caches and leases: none of them ever returns a result whose dependencies changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from akv.memoize import freshness
from akv.memoize.dependencies import Standing
from akv.tokens.redis import RedisTokens
from tests.memoize.shop import App, Place, User, opened
from tests.memoize.waiting import BOUND, Work, bounded, started, until
from tests.proxy import TCPProxy

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")

OPTIONS: list[dict[str, Any]] = [
    {"stale_for": 1000},
    {"early": True},
    {"on_error": "stale"},
    {"on_error": "stale", "stale_for": 1000},
    {"jitter": 0.5},
    {"near": 10},
    {"near": 10, "stale_for": 1000, "early": True, "on_error": "stale", "lock": True},
]


class Failing:
    """Reads the age of user 1; raises when told to."""

    def __init__(self, app: App, **options: Any) -> None:
        self.app = app
        self.runs = 0
        self.fails = False

        @app.kv.memoize(expire=60, depends_on=User, **options)
        async def age() -> int:
            self.runs += 1
            if self.fails:
                raise ValueError("the source is down")
            return await app.age()

        self.age = age

    async def rests(self) -> None:
        """Wait until nothing is computed behind."""
        await until(lambda: not self.app.kv._guard.behind)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("seconds", [0, 59, 61], ids=["young", "nearly too old", "too old"])
async def test_a_change_ends_a_result_of_any_age(app: App, options: dict[str, Any], seconds: int) -> None:
    source = Failing(app, **options)
    assert await source.age() == 0
    app.clock.advance(seconds)
    await app.birthday()
    assert await source.age() == 1
    await source.rests()


@pytest.mark.parametrize("options", [o for o in OPTIONS if "on_error" in o], ids=lambda options: "-".join(options))
async def test_a_failure_is_not_covered_by_a_result_whose_dependencies_changed(
    app: App, options: dict[str, Any]
) -> None:
    source = Failing(app, **options)
    await source.age()
    app.clock.advance(61)
    await app.birthday()
    source.fails = True
    with pytest.raises(ValueError, match="the source is down"):
        await source.age()


async def test_nor_by_one_whose_dependencies_change_while_it_fails(app: App) -> None:
    entered, go = asyncio.Event(), asyncio.Event()
    fails = False

    @app.kv.memoize(expire=60, depends_on=User, on_error="stale")
    async def age() -> int:
        if fails:
            entered.set()
            await go.wait()
            raise ValueError("the source is down")
        return await app.age()

    await age()
    app.clock.advance(61)
    fails = True
    (task,) = await started(age())
    await bounded(entered.wait())
    await app.birthday()
    go.set()
    with pytest.raises(ValueError, match="the source is down"):
        await bounded(task)


async def test_a_failure_is_covered_while_nothing_has_changed(app: App) -> None:
    source = Failing(app, on_error="stale")
    await source.age()
    app.clock.advance(61)
    source.fails = True
    assert await source.age() == 0
    assert source.runs == 2


async def test_a_stale_result_is_returned_while_nothing_has_changed_and_refreshed_behind(app: App) -> None:
    source = Failing(app, stale_for=1000)
    await source.age()
    app.clock.advance(61)
    assert await source.age() == 0
    await source.rests()
    assert source.runs == 2
    assert await source.age() == 0
    assert (source.runs, source.age.cache_info().hits) == (2, 2)


async def test_without_the_vector_in_its_verdict_stale_results_would_be_served(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: results are judged by their age alone."""
    monkeypatch.setattr(Standing, "holds", lambda self, saved, tracked: True)
    monkeypatch.setattr(
        "akv.memoize.dependent.judge", lambda saved, vector, *rest: freshness.judge(saved, saved.vector, *rest)
    )
    source = Failing(app, stale_for=1000)
    await source.age()
    await app.birthday()
    assert await source.age() == 0


# --- near -------------------------------------------------------------------------------------------------------------


@pytest.mark.backends("postgres", "mariadb")
async def test_a_near_result_costs_one_round_trip_to_redis_and_none_to_the_database(place: Place) -> None:
    real = place
    async with TCPProxy.before(real.url) as database, TCPProxy.before(real.redis) as redis:
        place = Place(database.url, redis.url, real.namespace)
        async with opened(place) as app:
            source = Failing(app, near=10)
            await source.age()
            await source.age()
            before = database.requests, redis.requests
            for _ in range(10):
                assert await source.age() == 0
            assert (database.requests - before[0], redis.requests - before[1]) == (0, 10)
            assert source.runs == 1


async def test_a_near_result_is_let_go_when_another_process_has_changed_its_row(app: App, place: Place) -> None:
    source = Failing(app, near=10)
    assert [await source.age(), await source.age()] == [0, 0]
    async with opened(place) as other:
        await other.birthday()
    assert [await source.age(), await source.age()] == [1, 1]
    assert source.runs == 2


async def test_what_another_process_has_saved_is_found_though_the_near_one_no_longer_holds(
    app: App, place: Place
) -> None:
    mine = Failing(app, near=10)
    await mine.age()
    async with opened(place) as other:
        theirs = Failing(other, near=10)
        theirs.age._recipe.tag = mine.age.cache_tag
        await other.birthday()
        assert await theirs.age() == 1
    assert await mine.age() == 1
    assert mine.runs == 1


async def test_near_results_that_can_be_changed_are_copies(app: App) -> None:
    @app.kv.memoize(depends_on=User, near=10)
    async def names() -> list[str]:
        return ["a"]

    await names()
    (await names()).append("b")
    assert await names() == ["a"]


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_with_a_lease_one_process_computes_and_the_other_takes_its_result(app: App, place: Place) -> None:
    async with opened(place) as other:
        first, second = Work("first"), Work("second")

        @app.kv.memoize(depends_on=User, lock=True)
        async def mine() -> Any:
            return await first()

        @other.kv.memoize(depends_on=User, lock=True)
        async def theirs() -> Any:
            return await second()

        theirs._recipe.tag = mine.cache_tag
        (leader,) = await started(mine())
        await bounded(first.running.wait())
        followers = await started(*(theirs() for _ in range(5)))
        await asyncio.wait(followers, timeout=0.2)
        first.release.set()
        assert await bounded(leader) == "first"
        assert await bounded(asyncio.gather(*followers)) == ["first"] * 5
        assert second.runs == 0


async def test_a_lease_does_not_hand_over_what_was_computed_before_a_commit(app: App, place: Place) -> None:
    async with opened(place) as other:
        entered, go = asyncio.Event(), asyncio.Event()

        @app.kv.memoize(depends_on=User, lock=True)
        async def mine() -> int:
            found = await app.age()
            entered.set()
            await go.wait()
            return found

        @other.kv.memoize(depends_on=User, lock=True)
        async def theirs() -> int:
            return await other.age()

        theirs._recipe.tag = mine.cache_tag
        (leader,) = await started(mine())
        await bounded(entered.wait())
        await other.birthday()
        (follower,) = await started(theirs())
        await asyncio.wait([follower], timeout=0.1)
        go.set()
        assert await bounded(leader) == 0
        assert await bounded(follower) == 1
        assert await theirs() == 1


# --- the store or the tokens do not answer ----------------------------------------------------------------------------


async def test_a_store_that_is_down_is_done_without(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from akv.errors import StoreError

    source = Failing(app)
    await source.age()

    async def broken(*_: Any, **__: Any) -> Any:
        raise StoreError("no")

    monkeypatch.setattr(app.kv, "get", broken)
    monkeypatch.setattr(app.kv, "set", broken)
    assert [await source.age() for _ in range(3)] == [0, 0, 0]
    assert source.runs == 4
    assert source.age.cache_info().reasons == {"store": 3}


@pytest.fixture
async def proxied(place: Place) -> AsyncIterator[tuple[App, TCPProxy]]:
    """An application that reaches its Redis through a proxy."""
    async with TCPProxy.before(place.redis) as redis:
        through = Place(place.url, redis.url, place.namespace)
        async with opened(through) as app:
            app.tokens._core.options.__dict__["read_timeout"] = 0.1
            yield app, redis
            redis.resume()
            await redis.accept()


def assert_lines(caplog: pytest.LogCaptureFixture, part: str, count: int) -> None:
    assert len([record for record in caplog.records if part in record.getMessage()]) == count


@pytest.mark.backends("postgres", "mariadb")
async def test_redis_that_is_down_is_done_without(proxied: Any, caplog: pytest.LogCaptureFixture) -> None:
    app, redis = proxied
    source = Failing(app, near=10)
    await source.age()
    redis.refuse()
    redis.cut()
    assert [await bounded(source.age()) for _ in range(10)] == [0] * 10
    assert source.runs == 11
    assert source.age.cache_info().reasons == {"unreachable": 10}
    assert source.age.cache_info().fills == 1
    assert_lines(caplog, "tokens cannot be read", 1)
    await redis.accept()
    async with asyncio.timeout(BOUND):
        while source.age.cache_info().hits == 0:
            await asyncio.sleep(0.05)
            await source.age()


@pytest.mark.backends("postgres", "mariadb")
async def test_redis_that_hangs_costs_a_bounded_wait_and_then_none(proxied: Any) -> None:
    app, redis = proxied
    source = Failing(app)
    await source.age()
    redis.blackhole()
    asked, ask = 0, app.tokens._here()._send_looks

    async def counted(calls: Any) -> Any:
        nonlocal asked
        asked += 1
        return await ask(calls)

    app.tokens._here()._looks._send = counted
    for _ in range(20):
        assert await bounded(source.age()) == 0
    assert asked < 10  # the breaker: without it, each call would wait again
    assert source.age.cache_info().reasons["unreachable"] == 20


@pytest.mark.backends("postgres", "mariadb")
async def test_while_redis_is_down_many_callers_compute_at_most_twice(proxied: Any) -> None:
    app, redis = proxied
    work = Work("computed")

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    redis.refuse()
    redis.cut()
    tasks = await started(*(compute() for _ in range(20)))
    await bounded(work.running.wait())
    tasks += await started(*(compute() for _ in range(20)))
    await asyncio.sleep(0.3)
    work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == ["computed"] * 40
    assert work.runs <= 2
    assert isinstance(app.tokens, RedisTokens)


async def test_tokens_in_a_database_that_refuses_are_done_without(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    source = Failing(app)
    await source.age()

    async def broken(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT", None, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(app.tokens, "look", broken)
        assert await source.age() == 0
    assert source.runs == 2
    assert source.age.cache_info().reasons == {"unreachable": 1}
