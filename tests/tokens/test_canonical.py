"""The canonical encoding: typed, injective, the same in every process."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import pathlib
import subprocess
import sys
import typing
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.canonical import encode
from akv.errors import UncacheableArgumentError


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    A = 1
    B = 2


class Name(str):
    __slots__ = ("shared",)

    def __str__(self) -> str:
        return "always the same"

    def encode(self, *args: Any) -> bytes:
        return b"always the same"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: Any


class Undecorated(Point):
    def __init__(self, x: Any, note: str) -> None:
        super().__init__(x)
        self.note = note


@dataclasses.dataclass
class Tagged(dict):  # type: ignore[type-arg]
    label: str

    def __init__(self, label: str, **items: Any) -> None:
        super().__init__(**items)
        self.label = label


class Pair(typing.NamedTuple):
    a: Any
    b: Any


class Struct(msgspec.Struct):
    x: Any


class Model(pydantic.BaseModel):
    x: Any
    _secret: int = pydantic.PrivateAttr(0)


class Open(pydantic.BaseModel, extra="allow"):
    x: Any


@attrs.define
class Attrs:
    x: Any


def _private(x: int, secret: int) -> Model:
    model = Model(x=x)
    model._secret = secret
    return model


def _named(text: str, shared: bool) -> Name:
    name = Name(text)
    name.shared = shared
    return name


MOMENT = datetime(2024, 10, 27, 2, 30)
DISTINCT: list[Any] = [
    None, True, False, 0, 1, -1, 10**40, 1.0, 0.0, -0.0, math.inf, -math.inf, math.nan,
    1j, complex(-0.0, 0), complex(0, -0.0),
    "", "1", "True", "None", "a", "ä", "a\u0308", "\ud800", b"", b"1", b"a", bytearray(b"a"),
    [], (), {}, set(), frozenset(), [1], (1,), {1}, frozenset({1}), {1: 1}, [[1], 2], [[1, 2]], [1, [2]],
    ["i1:1"], ["a", "b"], ["ab"],
    {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": {"b": 1}}, {1: "a"}, {"1": "a"}, {True: "a"}, [("a", 1)], {("a", 1)},
    collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), collections.Counter("a"),
    Colour.RED, Colour.BLUE, Level.LOW, Mode.A, Mode.A | Mode.B, Mode(0),
    uuid.UUID(int=1), uuid.UUID(int=2), str(uuid.UUID(int=1)),
    Decimal("1"), Decimal("1.0"), Decimal("-0"), Decimal("NaN"), Decimal("Infinity"),
    date(2024, 1, 1), datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01", time(0),
    time(0, fold=1), time(0, tzinfo=UTC),
    MOMENT, MOMENT.replace(fold=1), MOMENT.replace(microsecond=1), MOMENT.replace(tzinfo=ZoneInfo("Europe/Berlin")),
    MOMENT.replace(tzinfo=ZoneInfo("Europe/Paris")), MOMENT.replace(tzinfo=timezone(timedelta(hours=2))),
    timedelta(0), timedelta(1), timedelta(microseconds=1), timedelta(days=-1, microseconds=1),
    pathlib.Path("a"), pathlib.PurePath("a"), pathlib.Path("b"), pathlib.PureWindowsPath("a"),
    Name("a"), Name("b"), _named("a", True), _named("a", False), Pair(1, 2), Pair(2, 1), (1, 2),
    Point(1), Point("1"), Point(1, 1), Slotted(1), Undecorated(1, "x"), Undecorated(1, "y"), Struct(1), Struct("1"),
    Tagged("a"), Tagged("a", x=1), Tagged("b", x=1),
    Model(x=1), Model(x="1"), _private(1, 5), Open(x=1), Open(x=1, y=2), Attrs(1), Attrs("1"), {"x": 1},
    int, str, Point, Colour, "builtins.int",
]  # fmt: skip


def test_values_that_differ_in_type_or_content_have_different_encodings() -> None:
    for left, right in combinations(DISTINCT, 2):
        assert encode(left) != encode(right), (left, right)
        assert encode([left, 1]) != encode([right, 1])


def test_equal_values_of_one_type_have_one_encoding() -> None:
    assert encode({"a": 1, "b": [2]}) == encode({"b": [2], "a": 1})
    assert encode({"x", "y", 1}) == encode({1, "y", "x"})
    assert encode(Point({"a": 1, "b": 2})) == encode(Point({"b": 2, "a": 1}))
    assert encode(Model(x=1)) == encode(Model(x=1))
    assert encode(math.nan) == encode(float("nan"))


def test_subclass_of_uuid_that_a_driver_returns_counts_as_the_uuid() -> None:
    from asyncpg.pgproto.pgproto import UUID

    assert encode(UUID(str(uuid.UUID(int=7)))) == encode(uuid.UUID(int=7))


def test_cached_property_of_a_model_is_no_part_of_it() -> None:
    import functools

    class Cached(pydantic.BaseModel):
        x: int

        @functools.cached_property
        def double(self) -> int:
            return self.x * 2

    fresh, used = Cached(x=1), Cached(x=1)
    assert used.double == 2
    assert encode(fresh) == encode(used)


def test_hook_answers_for_instances_however_deep_and_cannot_be_imitated() -> None:
    class Mapped:
        pass

    def hook(value: Any) -> str | None:
        return "akv:users#1" if isinstance(value, Mapped) else None

    assert encode([Mapped()], hook=hook) == encode([Mapped()], hook=hook)
    assert encode([Mapped()], hook=hook) != encode(["akv:users#1"], hook=hook)
    assert encode({"k": Point(Mapped())}, hook=hook) != encode({"k": Point(None)}, hook=hook)


def _itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


class Local:
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "object has no canonical form"),
        (lambda: None, "function has no canonical form"),
        (Local(), "Local has no canonical form"),
        (collections.defaultdict(list), "defaultdict has no canonical form"),
        ([1, {"a": (object(),)}], "object has no canonical form"),
        (_itself(), "contains itself"),
        (_deep(), "nested this deeply"),
        ((i for i in ()), "generator has no canonical form"),
        (memoryview(b"a"), "memoryview has no canonical form"),
        (type("Nowhere", (), {}), "cannot be imported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_canonical_form_raises_the_named_error(value: Any, said: str) -> None:
    with pytest.raises(UncacheableArgumentError, match=said):
        encode(value)


def test_encoding_is_the_same_in_another_process_with_another_hash_seed() -> None:
    program = (
        "from akv.canonical import encode; from datetime import date; import uuid\n"
        "print(encode([{'a', 'b', 'c', 1}, {'x': 1, 'y': {2: 3}}, date(2024, 1, 1), uuid.UUID(int=3), int]).hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, cwd=pathlib.Path(__file__).parents[2],
            capture_output=True, check=True, timeout=60,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(runs) == 1


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text("1:sli", max_size=6)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("ab1", max_size=2) | st.integers(0, 2), inner, max_size=3)
    ),
    max_leaves=8,
)


def _shape(value: Any) -> Any:
    """A value that compares equal iff type and content are the same, by other means than the encoder."""
    if isinstance(value, dict):
        return dict, sorted(((_shape(k), _shape(v)) for k, v in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return type(value), [_shape(item) for item in value]
    return type(value), repr(value)


@given(_values, _values)
def test_encodings_are_equal_iff_the_values_are(left: Any, right: Any) -> None:
    assert (encode(left) == encode(right)) == (_shape(left) == _shape(right))
