"""Scans: ordered by code point, in pages, undisturbed by what happens meanwhile."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import CorruptValueError
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.contract.helpers import AWKWARD, NOON, collected, dump, plant, together


async def test_entries_come_in_the_order_of_code_points_by_key_then_tag(kv: Verbs) -> None:
    tags = ["", "B", "a", "ä", "\uffff", "\U00010000"]
    for tag in tags:
        await kv.set_many(dict.fromkeys(AWKWARD, 1), tag=tag)

    found = [(entry.key, entry.tag) async for entry in kv]
    assert found == sorted((key, tag) for key in set(AWKWARD) for tag in tags)


async def test_an_entry_has_key_tag_value_and_naive_expire(kv: Verbs) -> None:
    await kv.set("a", {"any": "value"}, "t", expire=60)
    (entry,) = await collected(kv.scan())

    assert (entry.key, entry.tag, entry.value) == ("a", "t", {"any": "value"})
    assert entry.expire == NOON + timedelta(minutes=1)


async def test_iterating_the_store_is_scanning_all_of_it(kv: Verbs) -> None:
    await kv.set_many({"a": 1, "b": 2}, tag="t")

    assert [entry.value async for entry in kv] == [entry.value async for entry in kv.scan()] == [1, 2]


async def test_an_empty_store_has_no_entries(kv: Verbs) -> None:
    assert await dump(kv) == {}


@pytest.mark.parametrize("count", [63, 64, 65, 64 + 1000, 2500])
async def test_every_entry_comes_once_whatever_the_pages(store: AsyncKVAlchemy, count: int) -> None:
    # One key in many tags beside many keys, so that pages end inside a key too.
    await store.set_many({f"{number:05}": number for number in range(count - 30)})
    await together(store.set("00031", tag, tag=f"t{tag:02}") for tag in range(30))

    found = [(entry.key, entry.tag) async for entry in store.scan()]
    assert found == sorted(set(found))
    assert len(found) == count


async def test_large_entries_come_in_small_pages(store: AsyncKVAlchemy) -> None:
    big = {f"{number:03}": bytes([number]) * 200_000 for number in range(90)}
    await store.set_many(big)

    assert [(entry.key, entry.value) async for entry in store.scan()] == list(big.items())


async def test_rows_that_come_and_go_meanwhile_do_not_disturb_it(store: AsyncKVAlchemy, clock: FakeClock) -> None:
    await store.set_many({f"m{number:04}": number for number in range(300)})
    await store.set_many({f"n{number:04}": number for number in range(10)}, expire=60)
    seen = []
    async for entry in store.scan():
        seen.append(entry.key)
        if len(seen) == 1:
            await store.set_many({"a before": 1, "z after": 1})
            await store.delete_many(["m0000", "m0299"])
            clock.advance(60)

    assert seen[:-1] == [f"m{number:04}" for number in range(299)]
    assert seen[-1] == "z after"


async def test_the_row_at_which_a_page_ends_may_vanish(store: AsyncKVAlchemy) -> None:
    await store.set_many({f"{number:04}": number for number in range(200)})
    seen = []
    async for entry in store.scan():
        seen.append(entry.value)
        assert await store.delete(entry.key)

    assert seen == list(range(200))
    assert await store.count() == 0


async def test_what_a_page_holds_is_of_the_moment_it_was_read(store: AsyncKVAlchemy) -> None:
    await store.set_many({"a": 1, "b": 2})
    stream = store.scan()
    first = await anext(stream)
    await store.clear()

    assert (first.value, [entry.value async for entry in stream]) == (1, [2])


async def test_a_corrupt_row_raises_when_its_value_is_asked_for_and_does_not_end_the_scan(
    store: AsyncKVAlchemy,
) -> None:
    await store.set_many({"a": 1, "c": 3})
    await plant(store, "b", "t")
    keys, values, errors = [], [], []
    async for entry in store:
        keys.append(entry.key)
        try:
            values.append(entry.value)
        except CorruptValueError as error:
            errors.append((error.key, error.tag, str(error)))

    assert (keys, values) == (["a", "b", "c"], [1, 3])
    ((key, tag, message),) = errors
    assert (key, tag) == ("b", "t")
    assert "'b'" in message
    assert await store.count() == 3


class Loud:
    """Says when it is decoded."""

    decoded = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _loud, ()


def _loud() -> Loud:
    Loud.decoded += 1
    return Loud()


async def test_a_value_is_decoded_only_when_asked_for(store: AsyncKVAlchemy) -> None:
    await plant(store, "a", value=pickle.dumps(Loud()))
    before = Loud.decoded
    (entry,) = await collected(store.scan())
    assert Loud.decoded == before
    assert isinstance(entry.value, Loud)
    assert Loud.decoded == before + 1


async def test_an_entry_does_not_show_its_bytes(store: AsyncKVAlchemy) -> None:
    await store.set("a", "secret")
    (entry,) = await collected(store.scan())

    assert "secret" not in repr(entry)


async def test_a_scan_may_be_left_and_others_may_run_beside_it(store: AsyncKVAlchemy) -> None:
    await store.set_many({f"{number:04}": number for number in range(300)})
    for _ in range(10):
        stream = store.scan()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    counts = await together(collected(store.scan()) for _ in range(10))
    assert [len(found) for found in counts] == [300] * 10
