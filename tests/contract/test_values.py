"""Values of every kind and of a megabyte."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest

from akv import AsyncKVAlchemy
from akv.errors import SerializationError
from akv.store.verbs import Verbs
from tests.contract.helpers import dump, together

MEBIBYTE = 2**20


@dataclass
class Point:
    x: int
    y: int


class Colour(Enum):
    RED = 1


VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63, -(2**200), 0.0, -0.0, 1e308, math.inf, "", "ä\U0001f600\0\ud800", "'%s:k\\\n",
    b"", b"\0\xff'\\%s:k", bytearray(b"x"), (), (1, (2,)), [], [[], {}], {}, {1: "a", "1": "b", None: ()}, {1, 2},
    frozenset({1}), 1 + 2j, Decimal("1.10"), Fraction(1, 3), date(2026, 1, 1), datetime(2026, 1, 1, 1, 1, 1, 1, UTC),
    timedelta(microseconds=1), UUID(int=1), Point(1, 2), Colour.RED, int, len, range(3), Ellipsis, KeyError("a").args,
]  # fmt: skip


async def test_values_of_every_kind_come_back_equal_and_of_their_type(kv: Verbs) -> None:
    for value in VALUES:
        await kv.set("one", value)
        found = await kv.get("one")
        assert (type(found), found) == (type(value), value)
    await kv.set_many({str(number): value for number, value in enumerate(VALUES)}, tag="many")

    assert await kv.get_many(map(str, range(len(VALUES))), tag="many") == {str(n): v for n, v in enumerate(VALUES)}
    for number, value in enumerate(VALUES):
        assert await kv.pop(str(number), tag="many") == value


async def test_a_nan_comes_back(kv: Verbs) -> None:
    await kv.set("nan", math.nan)

    assert math.isnan(await kv.get("nan"))


async def test_a_value_that_comes_back_is_nobody_elses(kv: Verbs) -> None:
    await kv.set("list", [])
    (await kv.get("list")).append(1)

    assert await kv.get("list") == []


@pytest.mark.parametrize("verb", ["set", "add", "set_many", "update"])
async def test_a_value_that_cannot_be_encoded_is_refused_and_nothing_is_written(kv: Verbs, verb: str) -> None:
    await kv.set("kept", 1)
    value = lambda: None  # noqa: E731 -- what pickle refuses
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "set": lambda: kv.set("kept", value),
        "add": lambda: kv.add("new", value),
        "set_many": lambda: kv.set_many({"new": 1, "kept": value}),
        "update": lambda: kv.update("kept", lambda _: value),
    }
    with pytest.raises(SerializationError):
        await calls[verb]()

    assert await dump(kv) == {("kept", ""): (1, None)}


async def test_a_mebibyte_comes_back_from_every_verb(kv: Verbs) -> None:
    big = random.Random(1).randbytes(MEBIBYTE)
    await kv.set("a", big)
    assert await kv.get("a", renew_for=60) == big
    assert await kv.add("b", big) is True
    assert await kv.update("a", lambda value: value + b"!") == big + b"!"
    assert await kv.touch("a", 60) is True
    assert await kv.get_many(["a", "b"]) == {"a": big + b"!", "b": big}
    assert [len(entry.value) async for entry in kv.scan()] == [MEBIBYTE + 1, MEBIBYTE]
    assert await kv.pop("a") == big + b"!"


async def test_many_mebibytes_at_once(store: AsyncKVAlchemy) -> None:
    big = {f"{number}": random.Random(number).randbytes(MEBIBYTE) for number in range(12)}
    await together(store.set(key, value) for key, value in big.items())

    assert await together(store.get(key) for key in big) == list(big.values())
    assert await together(store.pop(key) for key in big) == list(big.values())


async def test_set_many_holds_more_than_one_statement_can_carry(store: AsyncKVAlchemy) -> None:
    big = {f"{number:02}": bytes([number]) * MEBIBYTE for number in range(20)}
    await store.set_many(big)

    assert await store.get_many(big) == big
    assert [entry.key async for entry in store.scan()] == list(big)
    assert await store.delete_many(big) == 20
