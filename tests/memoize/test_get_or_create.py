"""get_or_create: a value that is made once."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from akv.client import AsyncKVAlchemy
from akv.errors import ConfigurationError, InvalidArgumentError, InvalidExpireError, InvalidKeyError
from akv.store.expiry import naive
from akv.testing import FakeClock
from tests.memoize.conftest import GatedStore
from tests.memoize.waiting import Work, bounded, started, until


async def test_makes_the_value_once_and_stores_it_under_key_and_tag(kv: GatedStore, clock: FakeClock) -> None:
    work = Work(result=None)
    work.release.set()
    for _ in range(2):
        assert await kv.get_or_create("key", functools.partial(work.__call__), tag="tag", expire=60) is None
    assert work.runs == 1
    assert await kv.get("key", tag="tag") is None
    clock.advance(60)
    await kv.get_or_create("key", work, tag="tag")
    assert work.runs == 2


async def test_the_default_tag_is_the_stores(url: str) -> None:
    async with AsyncKVAlchemy(url, default_tag="mine", sweep_every=None) as kv:
        work = Work()
        tasks = await started(kv.get_or_create("key", work), kv.get_or_create("key", work, tag="mine"))
        work.release.set()
        await bounded(asyncio.gather(*tasks))
        assert work.runs == 1
        assert await kv.get("key", tag="mine") == "result"


async def test_concurrent_callers_run_one_creator(kv: GatedStore) -> None:
    work = Work()
    tasks = [asyncio.create_task(kv.get_or_create("key", work)) for _ in range(20)]
    await bounded(work.running.wait())
    tasks[0].cancel()
    await bounded(asyncio.wait(tasks[:1]))
    work.release.set()
    assert await bounded(asyncio.gather(*tasks[1:])) == ["result"] * 19
    assert work.runs == 1


async def test_other_keys_and_tags_have_other_creators(kv: GatedStore) -> None:
    works = {("a", "t"): Work(1), ("a", "u"): Work(2), ("b", "t"): Work(3)}
    tasks = await started(*(kv.get_or_create(key, work, tag=tag) for (key, tag), work in works.items()))
    for work in works.values():
        work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == [1, 2, 3]


async def test_what_another_store_wrote_meanwhile_is_returned_not_overwritten(kv: GatedStore, url: str) -> None:
    work = Work("mine")
    (task,) = await started(kv.get_or_create("key", work))
    await bounded(work.running.wait())
    async with AsyncKVAlchemy(url, clock=kv._codec.clock, sweep_every=None) as other:
        await other.set("key", "theirs")
    work.release.set()
    assert await bounded(task) == "theirs"
    assert await kv.get("key") == "theirs"


async def test_a_look_that_a_creation_overtook_is_repeated(kv: GatedStore) -> None:
    work = Work()
    work.release.set()
    kv.read.clear()
    (slow,) = await started(kv.get_or_create("key", work))
    await until(lambda: kv.reading == 1)
    gate, kv.read = kv.read, asyncio.Event()
    kv.read.set()
    await bounded(kv.get_or_create("key", work))
    gate.set()
    assert await bounded(slow) == "result"
    assert work.runs == 1


async def test_an_exception_reaches_the_callers_and_nothing_is_stored(kv: GatedStore) -> None:
    work = Work(LookupError("gone"))
    tasks = await started(*(kv.get_or_create("key", work) for _ in range(3)))
    work.release.set()
    assert await bounded(asyncio.gather(*tasks, return_exceptions=True)) == [work.result] * 3
    assert await kv.count() == 0


async def test_a_corrupt_entry_is_made_again(kv: GatedStore, url: str, caplog: pytest.LogCaptureFixture) -> None:
    await kv.set("key", "value")
    await corrupt(url)
    work = Work()
    work.release.set()
    with caplog.at_level(logging.WARNING, "akv"):
        assert await kv.get_or_create("key", work) == "result"
    assert await kv.get("key") == "result"
    assert len(caplog.records) == 1


@pytest.mark.allow_blocking
async def test_a_value_that_cannot_be_encoded_is_returned_not_stored(kv: GatedStore) -> None:
    work = Work(result=lambda: None)
    work.release.set()
    assert await kv.get_or_create("key", work) is work.result
    assert await kv.count() == 0


# Age: the row holds the plain value, and what its age is judged by lies beside it


async def test_a_stale_value_is_returned_and_made_anew_behind(kv: GatedStore, clock: FakeClock) -> None:
    old, new = Work("old"), Work("new")
    old.release.set()

    async def get(work: Work) -> Any:
        return await bounded(kv.get_or_create("key", work, expire=60, stale_for=30))

    assert await get(old) == "old"
    assert await kv.get("key", return_expiration=True) == ("old", naive(clock()) + timedelta(seconds=90))
    clock.advance(59.999999)
    assert await get(new) == "old"
    clock.advance(0.000001)
    assert [await get(new), await get(new)] == ["old", "old"]
    await bounded(new.running.wait())
    assert await kv.get("key") == "old"
    new.release.set()
    await until(lambda: not kv._guard.behind)
    assert [await get(old), await kv.get("key")] == ["new", "new"]
    clock.advance(90)
    assert await get(old) == "old"
    assert (old.runs, new.runs) == (2, 1)


async def test_the_last_value_stands_in_for_a_failure_without_limit(kv: GatedStore, clock: FakeClock) -> None:
    work = Work("value")
    work.release.set()
    for _ in range(2):
        assert await kv.get_or_create("key", work, expire=60, on_error="stale") == "value"
    work.result = LookupError("gone")
    clock.advance(10**8)
    await kv.purge_expired()
    assert await kv.get_or_create("key", work, expire=60, on_error="stale") == "value"
    assert work.runs == 2
    with pytest.raises(LookupError):
        await kv.get_or_create("another", work, expire=60, on_error="stale")


async def test_a_value_that_took_long_is_made_anew_early_by_any_process(
    kv: GatedStore, url: str, clock: FakeClock
) -> None:
    async def slow() -> str:
        clock.advance(10)
        return "slow"

    work = Work("quick")
    work.release.set()
    await kv.get_or_create("key", slow, expire=60, early=True)
    clock.advance(55)
    async with AsyncKVAlchemy(url, clock=clock, sweep_every=None) as other:
        for chance, runs in ((0.392, 0), (0.394, 1)):
            other._guard.chance = lambda chance=chance: chance  # type: ignore[misc]
            assert await other.get_or_create("key", work, expire=60, early=True) == "slow"
            await until(lambda runs=runs: work.runs == runs and not other._guard.behind)  # type: ignore[misc]
    assert await kv.get("key") == "quick"


async def test_the_lifetime_varies_by_the_jitter(kv: GatedStore, clock: FakeClock) -> None:
    work = Work()
    work.release.set()
    kv._guard.chance = lambda: 0.75
    await kv.get_or_create("key", work, expire=100, jitter=0.1)
    assert (await kv.get("key", return_expiration=True))[1] == naive(clock()) + timedelta(seconds=105)


@pytest.mark.parametrize("expire", [None, 1000])
async def test_a_value_that_was_set_is_as_fresh_as_it_is_live(
    kv: GatedStore, clock: FakeClock, expire: float | None
) -> None:
    work = Work()
    work.release.set()
    options: list[dict[str, Any]] = [{"stale_for": 30}, {"on_error": "stale"}, {"early": True}]
    for told in options:
        await kv.get_or_create("key", work, expire=60, **told)
        await kv.set("key", "mine", expire=expire)
        runs = work.runs
        for seconds in (70, 929):
            clock.advance(seconds)
            assert await kv.get_or_create("key", work, expire=60, **told) == "mine"
            assert not kv._guard.behind
        assert work.runs == runs
        await kv.delete("key")


async def test_a_value_that_was_deleted_is_made_again(kv: GatedStore, clock: FakeClock) -> None:
    work = Work()
    work.release.set()
    for _ in range(2):
        await kv.get_or_create("key", work, expire=60, stale_for=30, on_error="stale")
        await kv.delete("key")
    assert work.runs == 2


async def test_what_lies_beside_goes_with_the_value(kv: GatedStore, clock: FakeClock) -> None:
    work = Work()
    work.release.set()
    for tag in ("tag", "t" * 256):
        for _ in range(2):
            await kv.get_or_create("key", work, tag=tag, expire=60, stale_for=30)
    assert work.runs == 2
    assert await kv.count() == 4
    clock.advance(90)
    assert await kv.purge_expired() == 4


async def test_what_lies_beside_a_value_without_limit_goes_when_the_value_is_too_old(
    kv: GatedStore, clock: FakeClock
) -> None:
    work = Work()
    work.release.set()
    await kv.get_or_create("key", work, expire=60, on_error="stale")
    assert await kv.count() == 2
    clock.advance(60)
    assert await kv.purge_expired() == 1
    await kv.get_or_create("key", work, expire=60, on_error="stale")
    assert work.runs == 2


class PrivateKey(str):
    """What a key generator returns for what only one unit of work may see."""

    __slots__ = ()
    shared = False


async def test_nothing_is_stored_under_a_private_key(kv: GatedStore) -> None:
    work = Work()
    work.release.set()
    for _ in range(2):
        assert await kv.get_or_create(PrivateKey("key"), work) == "result"
    assert work.runs == 2
    assert await kv.count() == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((1, Work.__call__), {}, InvalidKeyError),
        (("k" * 257, Work.__call__), {}, InvalidKeyError),
        (("key", Work.__call__), {"tag": 1}, InvalidKeyError),
        (("key", Work.__call__), {"expire": "60"}, InvalidExpireError),
        (("key", Work.__call__), {"jitter": 1}, ConfigurationError),
        (("key", Work.__call__), {"stale_for": 0}, ConfigurationError),
        (("key", Work.__call__), {"early": 1}, ConfigurationError),
        (("key", Work.__call__), {"on_error": "hide"}, ConfigurationError),
        (("key", Work.__call__), {"lock": "yes"}, ConfigurationError),
        (("key", lambda: None), {}, InvalidArgumentError),
        (("key", "value"), {}, InvalidArgumentError),
        (("key", None), {}, InvalidArgumentError),
        (("key", Work), {}, InvalidArgumentError),
    ],
    ids=[
        "key",
        "long",
        "tag",
        "expire",
        "jitter",
        "stale_for",
        "early",
        "on_error",
        "lock",
        "sync",
        "value",
        "none",
        "class",
    ],
)
async def test_bad_input_is_refused_before_any_io(
    tmp_path: Any, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    kv = AsyncKVAlchemy(f"sqlite+aiosqlite:///{tmp_path}/none.db")
    with pytest.raises(error):
        await kv.get_or_create(*arguments, **options)
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    await kv.aclose()


async def corrupt(url: str) -> None:
    """Spoil every stored value, behind the store's back."""
    await execute(url, f"UPDATE kvstore SET value = x'{pickle.dumps('x')[:-1].hex()}'")


async def execute(url: str, statement: str) -> None:
    """Let another connection execute a statement and commit."""

    def run() -> None:
        with closing(sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))) as connection, connection:
            connection.execute(statement)

    await asyncio.to_thread(run)
