"""What an expire may be, and that an entry is dead at its very instant for every verb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine

from akv import AsyncKVAlchemy
from akv.errors import InvalidExpireError
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.conftest import MakeStore
from tests.contract.helpers import MICROSECOND, NOON, collected, expiry

END = datetime(2026, 3, 4, 5, 6, 7, 654321)
EAST = timezone(timedelta(hours=5, minutes=45))

FORMS = [
    (None, None),
    (60, NOON + timedelta(seconds=60)),
    (0.25, NOON + timedelta(milliseconds=250)),
    (0.000001, NOON + MICROSECOND),
    (timedelta(days=400, microseconds=1), NOON + timedelta(days=400, microseconds=1)),
    (END, END),
    (END.replace(tzinfo=UTC), END),
    (END.replace(tzinfo=EAST), END - timedelta(hours=5, minutes=45)),
    (datetime(9999, 12, 31, 23, 59, 59), datetime(9999, 12, 31, 23, 59, 59)),
]


async def test_every_form_of_expire_becomes_its_instant_in_every_verb(kv: Verbs) -> None:
    for number, (expire, end) in enumerate(FORMS):
        n = f"{number}."
        await kv.set(n + "set", 1, expire=expire)
        await kv.set_many({n + "set_many": 1}, expire=expire)
        await kv.add(n + "add", 1, expire=expire)
        await kv.incr(n + "incr", expire=expire)
        await kv.update(n + "update", abs, default=1, expire=expire)
        await kv.set(n + "touch", 1, expire=5)
        await kv.touch(n + "touch", expire)

        for verb in ("set", "set_many", "add", "incr", "update", "touch"):
            assert await expiry(kv, n + verb) == end, (expire, verb)


async def test_zero_or_less_is_already_expired(kv: Verbs) -> None:
    ended: list[Any] = [0, -1, -0.5, timedelta(0), timedelta(days=-1), NOON, datetime(1, 1, 1)]
    for expire in ended:
        await kv.set("a", 1)
        await kv.set("a", 2, expire=expire)
        assert await kv.get("a", "dead") == "dead"
        assert await kv.add("b", 1, expire=expire) is True
        assert await kv.add("b", 2, expire=expire) is True
        assert await kv.incr("c", 5, expire=expire) == 5
        assert await kv.incr("c", 5, expire=expire) == 5
        await kv.set_many({"d": 1, "e": 1}, expire=expire)

        assert await kv.count() == 0, expire
        assert await kv.get_many(list("abcde")) == {}
        assert await kv.purge_expired() == 5


async def test_a_wrong_expire_is_refused_and_nothing_is_written(kv: Verbs) -> None:
    wrong: list[Any] = [True, "60", float("nan"), float("inf"), 10**12, END.date()]
    for expire in wrong:
        for call in (kv.set("a", 1, expire=expire), kv.add("a", 1, expire=expire), kv.incr("a", expire=expire)):
            with pytest.raises(InvalidExpireError) as caught:
                await call
            assert isinstance(caught.value, (TypeError, ValueError))

    assert await kv.count() == 0


Call = Callable[[Verbs], Awaitable[Any]]


async def scanned(kv: Verbs) -> list[str]:
    return [entry.key async for entry in kv.scan()]


# verb: call, its answer while "a" lives, its answer once "a" is dead
ANSWERS: dict[str, tuple[Call, Any, Any]] = {
    "get": (lambda kv: kv.get("a", "none"), 1, "none"),
    "get renewing": (lambda kv: kv.get("a", "none", renew_for=60), 1, "none"),
    "get_many": (lambda kv: kv.get_many(["a", "b"]), {"a": 1}, {}),
    "pop": (lambda kv: kv.pop("a", "none"), 1, "none"),
    "delete": (lambda kv: kv.delete("a"), True, False),
    "delete_many": (lambda kv: kv.delete_many(["a", "b"]), 1, 0),
    "add": (lambda kv: kv.add("a", 2), False, True),
    "incr": (lambda kv: kv.incr("a", 1, default=10), 2, 11),
    "update": (lambda kv: kv.update("a", lambda value: value + 1, default=20), 2, 21),
    "touch": (lambda kv: kv.touch("a", 60), True, False),
    "count": (lambda kv: kv.count(), 1, 0),
    "scan": (scanned, ["a"], []),
    "tags": (lambda kv: collected(kv.tags()), [""], []),
    "delete_tag": (lambda kv: kv.delete_tag(""), 1, 0),
    "delete_prefix": (lambda kv: kv.delete_prefix("a"), 1, 0),
    "purge_expired": (lambda kv: kv.purge_expired(), 0, 1),
}


async def test_an_entry_lives_until_its_last_microsecond_and_is_dead_at_its_instant(
    kv: Verbs, clock: FakeClock
) -> None:
    for verb, (call, alive, dead) in ANSWERS.items():
        for early, answer in ((MICROSECOND, alive), (timedelta(0), dead)):
            clock.set(NOON.replace(tzinfo=UTC))
            await kv.clear()
            await kv.set("a", 1, expire=END)
            clock.set((END - early).replace(tzinfo=UTC))

            assert await call(kv) == answer, (verb, early)


async def test_the_application_clock_decides_even_where_it_goes_backwards(kv: Verbs, clock: FakeClock) -> None:
    await kv.set("a", 1, expire=60)
    clock.advance(100 * 365 * 86_400)
    assert await kv.get("a", None) is None
    clock.advance(-100 * 365 * 86_400)
    assert await kv.get("a") == 1


async def test_freezing_time_freezes_a_store_that_has_no_clock_of_its_own(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()
    with time_machine.travel(datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC), tick=False) as frozen:
        await kv.set("a", 1, expire=10)
        assert await kv.get("a", return_expiration=True) == (1, datetime(2031, 5, 6, 7, 8, 19, 123456))
        frozen.shift(timedelta(seconds=10) - MICROSECOND)
        assert await kv.get("a") == 1
        frozen.shift(MICROSECOND)
        assert await kv.get("a", "dead") == "dead"
