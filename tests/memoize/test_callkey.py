"""A call becomes its key: normalised, injective, typed, the same in every process."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sqlalchemy import inspect as inspect_mapped
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlalchemy.orm.state import InstanceState

from akv.canonical import encode
from akv.errors import ConfigurationError, UncacheableArgumentError
from akv.memoize.callkey import MAX_LENGTH, CallKey, _shortened, function_tag
from akv.store.keys import check_key, check_tag

Function = Callable[..., Any]


def key_of(function: Function, *args: Any, **kwargs: Any) -> str:
    return CallKey(function)(args, kwargs)


async def anything(*args: Any, **kwargs: Any) -> None: ...


async def two(a: int, b: str = "b") -> None: ...


@functools.wraps(two)
async def wrapped(*args: Any, **kwargs: Any) -> None: ...


# Normalisation


def test_every_spelling_of_a_call_has_one_key() -> None:
    assert len({key_of(two, 1), key_of(two, a=1), key_of(two, 1, "b"), key_of(two, b="b", a=1)}) == 1


def test_a_wrapper_takes_the_arguments_of_what_it_wraps() -> None:
    assert len({key_of(wrapped, 1), key_of(wrapped, a=1), key_of(wrapped, 1, "b")}) == 1


def test_the_order_of_keyword_arguments_does_not_count() -> None:
    assert key_of(anything, x=1, y=2) == key_of(anything, y=2, x=1)


def test_positional_arguments_are_told_from_keyword_arguments() -> None:
    assert key_of(anything, ("x", 1)) != key_of(anything, x=1)
    assert key_of(anything, {"x": 1}) != key_of(anything, x=1)


def test_the_names_of_the_parameters_belong_to_the_key() -> None:
    """Or the results of f(user, page) would be found by f(page, user), after an update of the program."""

    async def before(user: int, page: int) -> None: ...
    async def after(page: int, user: int) -> None: ...

    assert key_of(before, 1, 2) != key_of(after, 1, 2)


def test_a_default_is_part_of_the_key() -> None:
    async def before(a: int = 1) -> None: ...
    async def after(a: int = 2) -> None: ...

    assert key_of(before) == key_of(after, 1)
    assert key_of(before) != key_of(after)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, "b", 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1})], ids=repr
)
def test_arguments_that_the_function_does_not_take_raise_what_python_raises(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as ours:
        CallKey(two)(args, kwargs)
    with pytest.raises(TypeError) as pythons:
        two(*args, **kwargs).close()
    assert str(ours.value) == str(pythons.value)


KINDS = [
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
]


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    counts = [draw(st.integers(0, 1 if kind.name.startswith("VAR") else 2)) for kind in KINDS]
    parameters: list[inspect.Parameter] = []
    must_have_default = False
    for kind, count in zip(KINDS, counts, strict=True):
        for _ in range(count):
            by_position = kind in KINDS[:2]
            may_have_default = not kind.name.startswith("VAR")
            has_default = may_have_default and (draw(st.booleans()) or (by_position and must_have_default))
            must_have_default = must_have_default or (by_position and has_default)
            default = draw(st.integers(-3, -1)) if has_default else inspect.Parameter.empty
            parameters.append(inspect.Parameter(f"p{len(parameters)}", kind, default=default))
    return inspect.Signature(parameters)


def with_signature(signature: inspect.Signature) -> Function:
    async def function(*args: Any, **kwargs: Any) -> None: ...

    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


@given(
    signatures(),
    st.lists(st.integers(0, 9), max_size=6),
    st.dictionaries(st.sampled_from(["p0", "p1", "p2", "p3", "p4", "x"]), st.integers(0, 9)),
)
def test_arguments_are_bound_as_python_binds_them(
    signature: inspect.Signature, args: list[int], kwargs: dict[str, int]
) -> None:
    only = {name for name, parameter in signature.parameters.items() if parameter.kind is KINDS[0]}
    assume(not only & kwargs.keys())  # Signature.bind refuses what Python lets into **kwargs
    key = CallKey(with_signature(signature))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            key(tuple(args), kwargs)
        return
    bound.apply_defaults()
    assert key._bind(*args, **kwargs) == tuple(bound.arguments.values())
    assert key(tuple(args), kwargs) == key(bound.args, bound.kwargs)


# Injective, typed

leaves = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, "", "0", "1", "a", "a b", "N0:", "i1:1", b"", b"1"]),
    st.sampled_from([Decimal("1"), Decimal("1.0"), UUID(int=1), date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)]),
    st.text(max_size=3),
    st.integers(),
    st.binary(max_size=2),
)
hashable = st.recursive(leaves, lambda inner: st.tuples(inner) | st.tuples(inner, inner), max_leaves=4)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
    ),
    max_leaves=8,
)
calls = st.tuples(st.lists(nested, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "ab"]), nested, max_size=2))


def shape(value: Any) -> Any:
    """An independent opinion about which values are the same: by type and content."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return kind, tuple(shape(item) for item in value)
    if isinstance(value, set):
        return kind, frozenset(shape(item) for item in value)
    if isinstance(value, dict):
        return kind, frozenset((shape(key), shape(item)) for key, item in value.items())
    return kind, repr(value)


@given(calls, calls)
def test_two_calls_have_one_key_only_if_they_are_the_same(
    one: tuple[list[Any], dict[str, Any]], other: tuple[list[Any], dict[str, Any]]
) -> None:
    same = shape(one) == shape(other)
    assert (key_of(anything, *one[0], **one[1]) == key_of(anything, *other[0], **other[1])) is same


@given(nested, st.data())
def test_a_call_that_differs_in_one_nested_place_has_another_key(value: Any, data: st.DataObject) -> None:
    changed = data.draw(mutated(value))
    assert (key_of(anything, value) == key_of(anything, changed)) is (shape(value) == shape(changed))


def mutated(value: Any) -> st.SearchStrategy[Any]:
    """Values that are almost *value*."""
    near: list[st.SearchStrategy[Any]] = [leaves, st.just([value]), st.just((value,)), st.just(str(value))]
    if isinstance(value, list | tuple) and value:
        kind = type(value)
        near += [st.just(kind(value[1:])), st.just(kind(reversed(value))), st.just(list(value)), st.just(tuple(value))]
        near.append(mutated(value[0]).map(lambda first: kind([first, *value[1:]])))
    if isinstance(value, dict) and value:
        first = next(iter(value))
        near.append(mutated(value[first]).map(lambda item: {**value, first: item}))
        near.append(st.just(list(value.items())))
    return st.one_of(near)


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.text("ab01:é\n", max_size=300),
    st.sampled_from(["N0:", "i1:1"]),
)


@given(st.lists(st.one_of(plain, leaves), max_size=4))
@example(["line\n"])
@example(["nul\0", 1])
@example(["x" * 249])
@example(["x" * 250])
@example([-1, True, None, 2**100, ""])
def test_the_short_cut_for_plain_arguments_leads_to_the_same_key(values: list[Any]) -> None:
    """Another process, or the next version, may not take it."""
    names = "abcde"[: len(values)]
    key = CallKey(with_signature(inspect.Signature([inspect.Parameter(name, KINDS[1]) for name in names])))
    assert key(tuple(values), {}) == _shortened(f"{','.join(names)}:".encode() + encode(tuple(values)))


@given(calls)
def test_every_key_is_one_that_the_store_takes(call: tuple[list[Any], dict[str, Any]]) -> None:
    check_key(key_of(anything, *call[0], **call[1]))


def test_a_short_key_is_readable() -> None:
    assert key_of(two, 7, "ä") == "a,b:L9:i1:7s2:ä"


@pytest.mark.parametrize("value", ["x" * 300, "nul \0", "line\n", "\ud800", b"\xff"], ids=ascii)
def test_a_long_or_unreadable_key_is_a_hash(value: Any) -> None:
    key = key_of(anything, value)
    assert key.startswith("#")
    assert len(key) == 65
    assert key != key_of(anything, value + value[:1])


def test_no_readable_key_looks_like_a_hash() -> None:
    async def one(a: str) -> None: ...

    assert not key_of(one, "#").startswith("#")
    assert not CallKey(one, key=lambda a: "#")(("",), {}).startswith("#")


# What has an identity of its own

mapped = registry()


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Admin(Base):
    __tablename__ = "admin"
    id: Mapped[int] = mapped_column(primary_key=True)


def stored(cls: type[Any], primary_key: int, **attributes: Any) -> Any:
    """An instance as if it had been loaded."""
    instance = cls(id=primary_key, **attributes)
    state: InstanceState[Any] = inspect_mapped(instance)
    state.key = (cls, (primary_key,), None)
    return instance


def test_a_mapped_instance_is_known_by_its_row() -> None:
    assert key_of(anything, stored(User, 1, name="a")) == key_of(anything, stored(User, 1, name="b"))
    assert key_of(anything, stored(User, 1, name="a")) != key_of(anything, stored(User, 2, name="a"))
    assert key_of(anything, stored(User, 1)) != key_of(anything, stored(Admin, 1))
    assert key_of(anything, [stored(User, 1)]) != key_of(anything, stored(User, 1))


def test_a_mapped_instance_without_a_row_has_no_key() -> None:
    with pytest.raises(UncacheableArgumentError, match=r"'args' of anything.*flush"):
        key_of(anything, User(name="a"))


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class Colour(Enum):
    RED = 1


def test_dataclasses_enums_and_classes_are_arguments() -> None:
    keys = [key_of(anything, value) for value in (Point(1, 2), Point(2, 1), Colour.RED, Point, User, (1, 2))]
    assert len(set(keys)) == len(keys)
    assert key_of(anything, Point(1, 2)) == keys[0]


# Refusals


class Opaque:
    pass


ENGINE = create_async_engine("sqlite+aiosqlite:///:memory:")


@pytest.mark.parametrize("session", [Opaque(), AsyncSession(ENGINE), ENGINE, two, lambda: None, sys], ids=type)
def test_what_has_no_canonical_form_is_named_with_the_remedies(session: Any) -> None:
    async def load(session: Any, user: int) -> None: ...

    with pytest.raises(UncacheableArgumentError) as caught:
        key_of(load, session, 7)
    for part in ("'session'", "load()", "ignore=('session',)", "key=", type(session).__name__):
        assert part in str(caught.value)


def test_what_key_returned_is_named_if_it_has_no_canonical_form() -> None:
    with pytest.raises(UncacheableArgumentError, match="key="):
        CallKey(two, key=lambda *_: Opaque())((1,), {})


def test_ignored_parameters_do_not_belong_to_the_key() -> None:
    async def load(session: Any, user: int, *rest: Any, **options: Any) -> None: ...

    key = CallKey(load, ignore=("session", "rest", "options"))
    assert key((Opaque(), 7, Opaque()), {"x": Opaque()}) == key((None,), {"user": 7})
    assert key((None, 8), {}) != key((None, 7), {})


def test_key_says_what_identifies_a_call() -> None:
    key = CallKey(two, key=lambda a, b="b": a % 10)
    assert key((17,), {}) == key((7, "x"), {}) != key((8,), {})
    assert key((7,), {}) != key_of(two, 7)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"ignore": ("sesion",)}, "'sesion'.*: a, b"),
        ({"ignore": "a"}, "tuple"),
        ({"ignore": 1}, "tuple"),
        ({"ignore": (1,)}, "a, b"),
        ({"ignore": (name for name in "ab")}, "tuple"),
        ({"key": "a"}, "plain function"),
        ({"key": two}, "plain function"),
        ({"key": lambda a, b: a, "ignore": ("b",)}, "not both"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        CallKey(two, **options)


# Tags


def test_a_function_is_known_by_module_name_and_version() -> None:
    assert function_tag(two) == "akv:memo:tests.memoize.test_callkey:two"
    assert function_tag(two, "2") == "akv:memo:tests.memoize.test_callkey:two@2"
    assert len({function_tag(two), function_tag(two, "2"), function_tag(anything), function_tag(anything, "2")}) == 4


def test_a_long_name_is_hashed_not_cut() -> None:
    def named(name: str) -> Function:
        async def function() -> None: ...

        function.__qualname__ = name
        return function

    tags = {function_tag(named("f" * 300 + end)) for end in ("", "a", "b")}
    assert len(tags) == 3
    assert all(len(check_tag(tag)) < MAX_LENGTH for tag in tags)


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_tags_are_injective_and_such_as_the_store_takes(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    def tag(module: str, name: str, version: str) -> str:
        async def function() -> None: ...

        function.__module__, function.__qualname__ = module, name
        return check_tag(function_tag(function, version))

    assert (tag(*one) == tag(*other)) is (one == other)


@pytest.mark.parametrize("version", [2, None, b"2"])
def test_a_version_is_a_str(version: Any) -> None:
    with pytest.raises(ConfigurationError, match="version="):
        function_tag(two, version)


# Other processes

SCRIPT = """
from dataclasses import dataclass
from enum import Enum
from akv.memoize.callkey import CallKey, function_tag

@dataclass
class Point:
    x: int

Colour = Enum("Colour", "RED")

async def own(*args, **kwargs): ...

key = CallKey(own)
print(key(({"a", "b", "c", 1, (2, "x")}, frozenset("abc"), {"k": {"n": {1, 2}}, "a": None}), {"z": 1, "y": b"2"}))
print(key((Point(1), Colour.RED, Point, "x" * 1000, {str(n) for n in range(100)}), {}))
print(function_tag(own, "1"))
"""


def keys_of_a_process(seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_keys_are_the_same_in_every_process_and_under_every_hash_seed() -> None:
    first, *others = [keys_of_a_process(seed) for seed in ("0", "1", "4294967295")]
    assert len(first.split()) == 3
    assert others == [first, first]


def test_scripts_do_not_share_what_they_call_main(tmp_path: Any) -> None:
    tags = []
    for name in ("one.py", "two.py"):
        script = tmp_path / name
        script.write_text(SCRIPT)
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
        tags.append(run.stdout.split()[-1])
    assert tags == ["akv:memo:__main__(one):own@1", "akv:memo:__main__(two):own@1"]
