"""clear, delete_tag, delete_prefix, count, purge_expired and tags."""

from __future__ import annotations

import pytest

from akv import AsyncKVAlchemy
from akv.errors import InvalidArgumentError
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.contract.helpers import AWKWARD, collected, dump, rows_of, together

STEMS = sorted({text[:1] for text in AWKWARD} | {"a%", "a_", "%%", "__", "\\%", "\\_", "aA", "Aa", "\U0010ffff" * 2})
KEYS = sorted({*AWKWARD, *(stem + end for stem in STEMS for end in ("", "x", "%", "\U0010ffff"))})


async def test_prefixes_are_literal_for_count_scan_tags_and_delete(kv: Verbs) -> None:
    await kv.set_many({key: key for key in KEYS}, tag="t")
    left = set(KEYS)
    for prefix in sorted(STEMS, key=lambda stem: (-len(stem), stem)):
        expected = sorted(key for key in left if key.startswith(prefix))
        assert [entry.key async for entry in kv.scan(prefix)] == expected, prefix
        assert await kv.count(prefix) == len(expected), prefix
        assert await collected(kv.tags(prefix)) == (["t"] if expected else []), prefix
        assert await kv.delete_prefix(prefix, tag="T") == 0
        assert await kv.delete_prefix(prefix) == len(expected), prefix
        left.difference_update(expected)

    assert [entry.key async for entry in kv.scan()] == sorted(left)
    assert not left


async def test_a_prefix_and_a_tag_narrow_together(kv: Verbs) -> None:
    for tag in ("x", "y"):
        await kv.set_many({"a1": 1, "a2": 2, "b1": 3}, tag=tag)

    assert await kv.count("a", "x") == 2
    assert [(e.key, e.tag) async for e in kv.scan("a", "x")] == [("a1", "x"), ("a2", "x")]
    assert await kv.delete_prefix("a", "x") == 2
    assert (await kv.count(), await kv.count("a"), await kv.count(tag="x")) == (4, 2, 1)


async def test_no_tag_means_every_tag_and_the_empty_tag_itself(kv: Verbs) -> None:
    await kv.set("a", 1)
    await kv.set("a", 2, tag="t")

    assert (await kv.count(), await kv.count(tag="")) == (2, 1)
    assert [entry.tag async for entry in kv.scan(tag="")] == [""]
    assert await kv.delete_prefix("", tag="") == 1
    assert await kv.delete_prefix("") == 1


async def test_delete_prefix_needs_a_prefix(kv: Verbs) -> None:
    await kv.set("a", 1)
    with pytest.raises(InvalidArgumentError, match="clear"):
        await kv.delete_prefix(None)  # type: ignore[arg-type]

    assert await kv.count() == 1


async def test_clear_deletes_every_entry_of_every_tag(kv: Verbs) -> None:
    await kv.set_many({"a": 1, "b": 2}, tag="t")
    await kv.set("a", 1, expire=0)

    assert await kv.clear() is None  # type: ignore[func-returns-value]
    assert await dump(kv) == {}
    assert await kv.purge_expired() == 0


async def test_deletions_count_what_was_live_and_take_the_dead_along(kv: Verbs, clock: FakeClock) -> None:
    await kv.set_many({"a1": 1, "a2": 1}, tag="t", expire=60)
    clock.advance(60)
    await kv.set_many({"a3": 1, "b": 1}, tag="t")

    assert await kv.delete_prefix("a") == 1
    assert await kv.purge_expired() == 0
    assert await kv.delete_tag("t") == 1
    assert await kv.delete_tag("t") == 0


async def test_purging_deletes_what_is_dead_however_much_and_nothing_else(
    store: AsyncKVAlchemy, table: str, clock: FakeClock
) -> None:
    await store.set_many({f"dead {number}": 1 for number in range(1201)}, expire=60)
    await store.set_many({"live": 1}, expire=61)
    await store.set("stays", 1)
    assert await store.purge_expired() == 0
    clock.advance(60)

    assert await store.count() == 2
    assert await rows_of(store, table) == 1203
    assert await store.purge_expired() == 1201
    assert await rows_of(store, table) == 2
    assert await store.purge_expired() == 0


async def test_tags_are_distinct_and_in_the_order_of_their_code_points(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("dead", 1, tag="dead", expire=60)
    clock.advance(60)
    for tag in ("b", "B", "ä", "a", "\uffff", "\U00010000", ""):
        await kv.set_many({"k1": 1, "k2": 1}, tag=tag)
    await kv.set("other", 1, tag="c")

    assert await collected(kv.tags()) == ["", "B", "a", "b", "c", "ä", "\uffff", "\U00010000"]
    assert await collected(kv.tags("k")) == ["", "B", "a", "b", "ä", "\uffff", "\U00010000"]
    assert await collected(kv.tags("nothing")) == []


async def test_more_tags_than_a_page_holds(store: AsyncKVAlchemy) -> None:
    tags = [f"{number:04}" for number in range(2001)]
    await together(store.set("a", 1, tag=tag) for tag in tags)

    assert await collected(store.tags()) == tags


async def test_tags_are_streamed_and_may_be_left(store: AsyncKVAlchemy) -> None:
    await together(store.set("a", 1, tag=tag) for tag in "abc")
    stream = store.tags()
    assert await anext(stream) == "a"
    await stream.aclose()  # type: ignore[attr-defined]

    assert await store.count() == 3
