"""get, set, delete, pop, add, incr, update and touch, one call after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from akv import AsyncKVAlchemy
from akv.errors import (
    CorruptValueError,
    InvalidArgumentError,
    MissingKeyError,
    SerializationError,
    StoredTypeError,
)
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from akv.typing import ENOVAL
from tests.contract.helpers import JUNK, NOON, dump, expiry, plant

IN_A_MINUTE = NOON + timedelta(minutes=1)
IN_AN_HOUR = NOON + timedelta(hours=1)


# get and set


async def test_what_was_set_comes_back(kv: Verbs) -> None:
    await kv.set("hello", {"any": "value"})

    assert await kv.get("hello") == {"any": "value"}


async def test_set_replaces_value_and_expiry(kv: Verbs) -> None:
    await kv.set("a", 1, expire=60)
    await kv.set("a", 2)

    assert await kv.get("a", return_expiration=True) == (2, None)
    assert await kv.count() == 1


async def test_an_absent_key_raises_an_error_that_is_a_key_error_and_names_key_tag_and_remedy(kv: Verbs) -> None:
    with pytest.raises(MissingKeyError, match="pass default=") as caught:
        await kv.get("nothing", tag="here")

    assert isinstance(caught.value, KeyError)
    assert (caught.value.key, caught.value.tag) == ("nothing", "here")


async def test_a_default_is_returned_for_an_absent_key_and_not_stored(kv: Verbs) -> None:
    defaults: list[Any] = [None, 0, "", "x", [], False]
    for default in defaults:
        assert await kv.get("nothing", default) is default
    assert await kv.count() == 0


async def test_enoval_is_no_default(kv: Verbs) -> None:
    with pytest.raises(MissingKeyError):
        await kv.get("nothing", ENOVAL)


async def test_a_stored_none_is_a_value(kv: Verbs) -> None:
    await kv.set("none", None)

    assert await kv.get("none", "default") is None
    assert await kv.get("none") is None
    assert await kv.get_many(["none"]) == {"none": None}
    assert await kv.add("none", 1) is False
    assert await kv.pop("none", "default") is None


async def test_the_expiration_comes_with_the_value_when_asked_for(kv: Verbs) -> None:
    await kv.set("ends", 1, expire=60)
    await kv.set("stays", 2)

    assert await kv.get("ends", return_expiration=True) == (1, IN_A_MINUTE)
    assert await kv.get("stays", return_expiration=True) == (2, None)
    assert await kv.get("nothing", 3, return_expiration=True) == (3, None)


async def test_the_parameters_of_get_and_set_have_the_order_of_the_ancestor(kv: Verbs) -> None:
    await kv.set("a", 1, "t", 60)

    assert await kv.get("a", None, "t", True) == (1, IN_A_MINUTE)
    assert await kv.delete("a", "t") is True
    assert await kv.pop("a", 0, "t") == 0


async def test_the_same_key_lives_once_in_each_tag(kv: Verbs) -> None:
    for tag in ("", "t", "T"):
        await kv.set("a", tag, tag=tag)
    await kv.delete("a", tag="t")

    assert await dump(kv) == {("a", ""): ("", None), ("a", "T"): ("T", None)}


async def test_enoval_is_not_stored(kv: Verbs) -> None:
    with pytest.raises(SerializationError, match="ENOVAL"):
        await kv.set("a", ENOVAL)

    assert await kv.count() == 0


# get with renew_for


RENEWALS: list[tuple[Any, datetime]] = [
    (3600, IN_AN_HOUR),
    (0.5, NOON + timedelta(seconds=0.5)),
    (timedelta(hours=1), IN_AN_HOUR),
    (IN_AN_HOUR, IN_AN_HOUR),
]


async def test_a_renewal_moves_the_expiry_and_keeps_the_value(kv: Verbs) -> None:
    for renew_for, end in RENEWALS:
        await kv.set("a", [1], expire=60)

        assert await kv.get("a", return_expiration=True, renew_for=renew_for) == ([1], end)
        assert await kv.get("a", return_expiration=True) == ([1], end)


async def test_an_entry_without_expiry_is_not_renewed(kv: Verbs) -> None:
    await kv.set("a", 1)

    assert await kv.get("a", return_expiration=True, renew_for=60) == (1, None)
    assert await expiry(kv, "a") is None


async def test_a_renewal_that_ends_the_entry_still_returns_what_was_live(kv: Verbs) -> None:
    await kv.set("a", 1, expire=60)

    assert await kv.get("a", renew_for=0) == 1
    assert await kv.get("a", "dead") == "dead"


async def test_a_renewal_does_not_revive_the_dead(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("a", 1, expire=60)
    clock.advance(60)

    assert await kv.get("a", "dead", renew_for=600) == "dead"
    with pytest.raises(MissingKeyError):
        await kv.get("a", renew_for=600)
    assert await kv.get("a", "still dead") == "still dead"


async def test_a_renewal_of_nothing_stores_nothing(kv: Verbs) -> None:
    assert await kv.get("a", "default", return_expiration=True, renew_for=60) == ("default", None)
    assert await kv.count() == 0
    assert await kv.purge_expired() == 0


async def test_a_renewal_reads_every_tag_for_itself(kv: Verbs) -> None:
    await kv.set("a", 1, tag="x", expire=60)
    await kv.set("a", 2, tag="y", expire=60)
    await kv.get("a", tag="x", renew_for=3600)

    assert (await expiry(kv, "a", "x"), await expiry(kv, "a", "y")) == (IN_AN_HOUR, IN_A_MINUTE)


# delete and pop


async def test_delete_tells_whether_something_was_there(kv: Verbs) -> None:
    await kv.set("a", None)

    assert await kv.delete("a") is True
    assert await kv.delete("a") is False
    assert await kv.get("a", "gone") == "gone"


async def test_pop_takes_the_value_away(kv: Verbs) -> None:
    await kv.set("a", "value")

    assert await kv.pop("a", "default") == "value"
    assert await kv.pop("a", "default") == "default"


async def test_pop_of_nothing_raises_and_leaves_nothing(kv: Verbs) -> None:
    with pytest.raises(MissingKeyError) as caught:
        await kv.pop("a", tag="t")

    assert (caught.value.key, caught.value.tag) == ("a", "t")
    assert await kv.count() == 0
    assert await kv.purge_expired() == 0


async def test_a_value_that_cannot_be_decoded_is_not_popped_away(store: AsyncKVAlchemy) -> None:
    await plant(store, "bad", "t")
    with pytest.raises(CorruptValueError) as caught:
        await store.pop("bad", "default", tag="t")

    assert (caught.value.key, caught.value.tag) == ("bad", "t")
    assert await store.count() == 1


@pytest.mark.parametrize("verb", ["get", "get_many", "incr", "update", "renew"])
async def test_reading_a_value_that_cannot_be_decoded_raises_and_changes_nothing(
    store: AsyncKVAlchemy, verb: str
) -> None:
    await plant(store, "bad")
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "get": lambda: store.get("bad", "default"),
        "get_many": lambda: store.get_many(["bad", "other"]),
        "incr": lambda: store.incr("bad"),
        "update": lambda: store.update("bad", str, default=""),
        "renew": lambda: store.get("bad", "default", renew_for=60),
    }
    with pytest.raises(CorruptValueError, match="'bad'"):
        await calls[verb]()

    async with store.session() as session:
        row = await session.get_one(store.model, ("bad", ""))
        assert (row.value, row.expire) == (JUNK, None)


async def test_what_cannot_be_decoded_can_be_replaced_touched_and_deleted(store: AsyncKVAlchemy) -> None:
    await plant(store, "a")
    await plant(store, "b")

    assert await store.add("a", 1) is False
    assert await store.touch("a", 60) is True
    await store.set("a", 1)
    assert await store.delete("b") is True
    assert await dump(store) == {("a", ""): (1, None)}


# add


async def test_add_stores_only_what_is_absent(kv: Verbs) -> None:
    assert await kv.add("a", 1, expire=60) is True
    assert await kv.add("a", 2) is False
    assert await kv.get("a", return_expiration=True) == (1, IN_A_MINUTE)
    assert await kv.add("a", 3, tag="t") is True


async def test_add_takes_the_place_of_the_dead(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("a", 1, expire=60)
    clock.advance(60)

    assert await kv.add("a", 2) is True
    assert await kv.get("a", return_expiration=True) == (2, None)


# incr


async def test_incr_counts_from_zero_by_one(kv: Verbs) -> None:
    assert [await kv.incr("n") for _ in range(3)] == [1, 2, 3]
    assert await kv.get("n") == 3


async def test_incr_adds_any_int_to_the_default(kv: Verbs) -> None:
    assert await kv.incr("n", 5, default=10, tag="t") == 15
    assert await kv.incr("n", -20, default=99, tag="t") == -5
    assert await kv.incr("n", 2**200, tag="t") == 2**200 - 5
    assert await kv.incr("n", 0, tag="t") == 2**200 - 5


async def test_the_expire_of_incr_is_for_what_it_creates(kv: Verbs, clock: FakeClock) -> None:
    await kv.incr("n", expire=60)
    await kv.incr("n", expire=3600)
    await kv.set("m", 1)
    await kv.incr("m", expire=60)

    assert await kv.get("n", return_expiration=True) == (2, IN_A_MINUTE)
    assert await kv.get("m", return_expiration=True) == (2, None)
    clock.advance(60)
    assert await kv.incr("n", default=7) == 8
    assert await expiry(kv, "n") is None


async def test_incr_of_another_type_is_a_type_error_and_changes_nothing(kv: Verbs) -> None:
    for value in ("1", 1.0, None, True, [1]):
        await kv.set("n", value, expire=60)
        with pytest.raises(StoredTypeError, match=type(value).__name__) as caught:
            await kv.incr("n")

        assert isinstance(caught.value, TypeError)
        assert (caught.value.key, caught.value.tag) == ("n", "")
        assert await kv.get("n", return_expiration=True) == (value, IN_A_MINUTE)


# update


async def test_update_stores_and_returns_a_function_of_the_value(kv: Verbs) -> None:
    await kv.set("a", [1], tag="t")

    assert await kv.update("a", lambda value: [*value, 2], tag="t") == [1, 2]
    assert await kv.get("a", tag="t") == [1, 2]


async def test_update_gives_a_default_to_the_function_where_nothing_is_stored(kv: Verbs, clock: FakeClock) -> None:
    assert await kv.update("a", lambda value: [value], default=None, expire=60) == [None]
    assert await expiry(kv, "a") == IN_A_MINUTE
    clock.advance(60)
    assert await kv.update("a", lambda value: value + 1, default=1) == 2
    assert await expiry(kv, "a") is None


async def test_update_of_nothing_without_default_raises_and_stores_nothing(kv: Verbs) -> None:
    calls: list[Any] = []
    with pytest.raises(MissingKeyError):
        await kv.update("a", calls.append)

    assert not calls
    assert await kv.count() == 0
    assert await kv.purge_expired() == 0


@pytest.mark.parametrize(
    ("options", "end"), [({}, IN_A_MINUTE), ({"expire": 3600}, IN_AN_HOUR), ({"expire": None}, None)]
)
async def test_update_keeps_the_expiry_unless_another_is_given(
    kv: Verbs, options: dict[str, Any], end: datetime | None
) -> None:
    await kv.set("a", 1, expire=60)
    await kv.update("a", str, **options)

    assert await kv.get("a", return_expiration=True) == ("1", end)


async def test_what_the_function_of_update_raises_reaches_the_caller_and_nothing_is_written(kv: Verbs) -> None:
    await kv.set("a", 0, expire=60)
    with pytest.raises(ZeroDivisionError):
        await kv.update("a", lambda value: 1 // value)
    with pytest.raises(ZeroDivisionError):
        await kv.update("b", lambda value: 1 // value, default=0)

    assert await dump(kv) == {("a", ""): (0, IN_A_MINUTE)}
    assert await kv.purge_expired() == 0


async def test_update_refuses_a_coroutine_function(kv: Verbs) -> None:
    async def function(value: Any) -> Any:
        return value

    with pytest.raises(InvalidArgumentError, match="plain function"):
        assert await kv.update("a", function, default=1) is None  # it is never called


async def test_a_result_of_update_that_cannot_be_encoded_leaves_the_old_value(kv: Verbs) -> None:
    await kv.set("a", 1)
    with pytest.raises(SerializationError):
        await kv.update("a", lambda _: lambda: None)

    assert await kv.get("a") == 1


# touch


async def test_touch_moves_the_expiry_and_leaves_the_value(kv: Verbs) -> None:
    await kv.set("ends", b"value", expire=5)
    await kv.set("stays", b"value")

    for key in ("ends", "stays"):
        for expire, end in [*RENEWALS, (None, None), (60, IN_A_MINUTE)]:
            assert await kv.touch(key, expire) is True
            assert await kv.get(key, return_expiration=True) == (b"value", end)


async def test_touch_of_nothing_is_false_and_stores_nothing(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("dead", 1, expire=60)
    clock.advance(60)

    assert await kv.touch("dead", 60) is False
    assert await kv.touch("absent", 60) is False
    assert await kv.touch("dead", None) is False
    assert await kv.count() == 0


async def test_touch_may_end_an_entry(kv: Verbs) -> None:
    await kv.set("a", 1)

    assert await kv.touch("a", 0) is True
    assert await kv.get("a", "ended") == "ended"
