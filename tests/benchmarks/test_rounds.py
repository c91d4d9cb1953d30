"""What benchmarks of several ways stand on: turns, counts, and a server that seems to be far away."""

from __future__ import annotations

import time

import redis.asyncio

from benchmarks.ancestor import Ancestor
from benchmarks.bound import Row
from benchmarks.far import far
from benchmarks.harness import Effort
from benchmarks.rounds import Measured, in_turns, ratio


async def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    called: list[str] = []

    async def one() -> float:
        called.append("one")
        return 0.5

    async def other() -> None:
        called.append("other")

    found = await in_turns({"one": [one], "other": [other, other]}, Effort(2, 0.0, 1), turns.append, "title")

    assert turns == [f"title: {name}" for name in ("one", "other", "other", "one", "one", "other")]
    assert called == ["one", "other", "other", "other", "other", "one", "one", "other", "other"]
    assert found["one"].parts == [0.5, 0.5]
    assert len(found["other"].whole) == 4
    assert not found["other"].parts


async def test_errors_are_counted_and_shown_and_hide_no_other_way() -> None:
    async def fails() -> None:
        raise ValueError("why")

    async def works() -> None:
        pass

    found = await in_turns({"fails": [fails], "works": [works]}, Effort(1, 0.0, 1), lambda _: None, "")

    assert found["fails"].summary() == {"failed": "ValueError: why"}
    assert found["works"].summary()["calls"] == 1
    assert ratio(found["fails"].rates, found["works"].rates) == 0.0


def test_a_ratio_is_the_median_of_those_of_each_round() -> None:
    assert ratio([10, 100, 3], [1, 1, 1]) == 10
    assert Measured().summary() == {"failed": "no call returned"}


async def test_the_ancestor_keeps_a_token_until_somebody_replaces_it(redis_url: str, redis_namespace: str) -> None:
    ancestor = Ancestor(redis_url, redis_namespace)
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        await ancestor.answers()
        key = await ancestor.key(Row(id=1), Row, "plain", 5)
        assert await ancestor.key(Row(id=1), Row, "plain", 5) == key
        assert key.endswith("/plain/5")
        assert len([name async for name in client.scan_iter(match=f"{redis_namespace}*")]) == 2
        await client.set(f"{redis_namespace}:alkey:bench_rows#1", "another")
        assert await ancestor.key(Row(id=1), Row, "plain", 5) != key
    finally:
        await ancestor.forget(redis_namespace)
    assert not [name async for name in client.scan_iter(match=f"{redis_namespace}*")]
    await client.aclose()


async def test_a_far_server_takes_its_time(redis_url: str) -> None:
    async with far(redis_url, 0.02) as url:
        client = redis.asyncio.Redis.from_url(url)
        await client.ping()
        began = time.perf_counter()
        await client.ping()
        assert time.perf_counter() - began >= 0.02
        await client.aclose()
