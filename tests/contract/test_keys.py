"""Keys and tags are compared code point by code point, whatever they hold."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import InvalidKeyError
from akv.store.verbs import Verbs
from tests.conftest import MakeStore
from tests.contract.helpers import AWKWARD, SEVEN, collected, dump

LONGEST = "\U0001f600" * 256


async def test_seven_keys_are_seven_entries_for_every_verb(kv: Verbs) -> None:
    for key in SEVEN:
        await kv.set(key, f"set {key}")
    assert await kv.get_many(SEVEN) == {key: f"set {key}" for key in SEVEN}
    for key in SEVEN:
        assert await kv.add(key, "other") is False
        assert await kv.get(key) == f"set {key}"
        assert await kv.update(key, lambda value: value + "!") == f"set {key}!"
        assert await kv.get(key, renew_for=60) == f"set {key}!"
    assert [entry.key async for entry in kv.scan()] == sorted(SEVEN)
    for number, key in enumerate(SEVEN):
        await kv.touch(key, 60 + number)
        assert await kv.count() == 7 - number
        assert await kv.pop(key) == f"set {key}!"
        assert await kv.delete(key) is False

    for key in SEVEN:
        assert await kv.add(key, 0) is True
        assert await kv.incr(key, 5) == 5
    assert await kv.delete_many(SEVEN[:3]) == 3
    assert await kv.get_many(SEVEN) == dict.fromkeys(SEVEN[3:], 5)


async def test_seven_tags_are_seven_places(kv: Verbs) -> None:
    for tag in SEVEN:
        await kv.set_many({"x": tag, "y": tag}, tag=tag)
    assert await collected(kv.tags()) == sorted(SEVEN)
    for number, tag in enumerate(SEVEN):
        assert await kv.get("x", tag=tag) == tag
        assert await kv.count(tag=tag) == 2
        assert [entry.value async for entry in kv.scan(tag=tag)] == [tag, tag]
        assert await kv.delete_tag(tag) == 2
        assert await kv.count() == 12 - 2 * number


async def test_awkward_keys_and_tags_come_back_as_they_are(kv: Verbs) -> None:
    for text in AWKWARD:
        await kv.set(text, text, tag=text)
        assert await kv.get(text, tag=text) == text
    await kv.set_many({key: key for key in AWKWARD}, tag="many")

    assert await kv.get_many([*AWKWARD, "absent"], tag="many") == {key: key for key in AWKWARD}
    assert [entry.key async for entry in kv.scan(tag="many")] == sorted(set(AWKWARD))
    assert await collected(kv.tags()) == sorted({*AWKWARD, "many"})
    for text in AWKWARD:
        assert await kv.count(prefix=text, tag=text) == 1
        assert await kv.pop(text, tag=text) == text
        assert await kv.add(text, text, tag=text) is True
        assert await kv.delete(text, tag=text) is True
    assert await kv.delete_many(AWKWARD, tag="many") == len(set(AWKWARD))
    assert await kv.count() == 0


async def test_the_longest_key_in_the_longest_tag_is_held_whole(kv: Verbs) -> None:
    almost = LONGEST[:-1] + "\U0001f601"
    await kv.set(LONGEST, 1, tag=LONGEST)
    await kv.set(almost, 2, tag=LONGEST)
    await kv.set(LONGEST, 3, tag=almost)

    assert await kv.incr(LONGEST, tag=LONGEST) == 2
    assert await kv.get_many([LONGEST, almost], tag=LONGEST) == {LONGEST: 2, almost: 2}
    assert await kv.count(prefix=LONGEST) == 2
    assert await kv.delete_prefix(LONGEST, tag=almost) == 1
    assert await dump(kv) == {(LONGEST, LONGEST): (2, None), (almost, LONGEST): (2, None)}


async def test_what_is_no_key_is_refused_and_nothing_is_written(kv: Verbs) -> None:
    wrong: list[Any] = ["x" * 257, "a\0", "\ud800", 1, b"a", None]
    for key in wrong:
        for call in (kv.set(key, 1), kv.incr(key), kv.set_many({"good": 1, key: 2}), kv.set("good", 1, tag=key)):
            with pytest.raises(InvalidKeyError):
                await call

    assert await kv.count() == 0


class Name(StrEnum):
    KEY = "key"
    OTHER = "other"
    TAG = "tag"


class Shouting(str):
    """A str that reads otherwise than it is."""

    def __str__(self) -> str:
        return self.upper()


@pytest.mark.parametrize(("key", "other", "tag"), [(*Name,), (Shouting("key"), Shouting("other"), Shouting("tag"))])
async def test_subclasses_of_str_are_the_text_that_they_hold(kv: Verbs, key: str, other: str, tag: str) -> None:
    await kv.set(key, 1, tag=tag)
    await kv.set_many({other: 2}, tag=tag)
    assert await kv.add(key, 3, tag=tag) is False
    assert await kv.incr(key, tag=tag) == 2
    assert await kv.update(key, lambda value: value + 1, tag=tag) == 3
    assert await kv.touch(key, None, tag=tag) is True
    assert await kv.get(key, tag=tag, renew_for=60) == 3

    assert await kv.get("key", tag="tag") == await kv.get(key, tag=tag) == 3
    assert await kv.get_many([key, other], tag=tag) == {"key": 3, "other": 2}
    assert await kv.count(prefix=key, tag=tag) == 1
    assert [(entry.key, entry.tag) async for entry in kv.scan(prefix=key, tag=tag)] == [("key", "tag")]
    assert await collected(kv.tags(prefix=key)) == ["tag"]
    assert all(type(tag) is str for tag in await collected(kv.tags()))
    assert await kv.get_proxy(key, tag=tag).get() == 3
    assert await kv.pop(key, tag=tag) == 3
    assert await kv.delete(key, tag=tag) is False
    assert await kv.delete_prefix(other, tag=tag) == 1
    await kv.set(key, 1, tag=tag)
    assert await kv.delete_tag(tag) == 1
    await kv.set(key, 1, tag=tag)
    assert await kv.delete_many([key], tag=tag) == 1


async def test_a_default_tag_may_be_an_enum_too(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store(default_tag=Name.TAG)
    await kv.set("a", 1)

    assert await kv.get("a", tag="tag") == 1
    assert await kv.delete_tag() == 1


class PrivateKey(str):
    """As a cache key that belongs to one unit of work."""

    shared = False


class SharedKey(str):
    """As a cache key that others may see."""

    shared = True


async def test_nothing_is_stored_or_looked_up_under_a_private_key(kv: Verbs) -> None:
    await kv.set("mine", "stored")
    await kv.set(PrivateKey("mine"), "private")

    assert await kv.get(PrivateKey("mine"), "default") == "default"
    assert await kv.get(PrivateKey("mine"), "default", renew_for=60) == "default"
    assert await kv.get("mine") == "stored"


async def test_a_private_key_needs_no_database(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store("sqlite+aiosqlite:////nowhere/at/all.db")
    await kv.set(PrivateKey("a"), 1)

    assert await kv.get(PrivateKey("a"), "default") == "default"


async def test_a_shared_cache_key_is_a_key_like_others(kv: Verbs) -> None:
    await kv.set(SharedKey("ours"), 1)

    assert await kv.get("ours") == 1
