"""get_or_create: a value that is made once."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from akv.client import AsyncKVAlchemy
from akv.errors import InvalidArgumentError, InvalidExpireError, InvalidKeyError
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
        (("key", lambda: None), {}, InvalidArgumentError),
        (("key", "value"), {}, InvalidArgumentError),
        (("key", None), {}, InvalidArgumentError),
        (("key", Work), {}, InvalidArgumentError),
    ],
    ids=["key", "long", "tag", "expire", "sync", "value", "none", "class"],
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
