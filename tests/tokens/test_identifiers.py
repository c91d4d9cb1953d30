"""Identifiers: readable, injective, strict."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv.errors import InvalidIdentifierError
from akv.tokens.identifiers import (
    GLOBAL_WRITE_TOKEN,
    Label,
    check_identifier,
    decode_key,
    encode_key,
    record_of,
    row_identifier,
    table_identifier,
    table_name,
    touched_by,
    vector_of,
)
from akv.tokens.things import identifier
from tests.tokens.world import Engineer, Plain, User

keys = st.one_of(
    st.integers(),
    st.booleans(),
    st.text(),
    st.sampled_from(["", "1", "-1", "'1", "*", "~", "null:", "a,b", "a%2Cb", "true", "uuid:1", "\ud800"]),
    st.binary(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))])),
    st.times(),
    st.timedeltas(),
    st.none(),
)
parts = st.text(min_size=1, max_size=5) | st.sampled_from(["users", "a.b", "a", "b", "label:x", "*"])


def row(schema: str | None, table: str, values: tuple[Any, ...]) -> str:
    return row_identifier(table_name(table, schema), values)


def _shape(value: Any) -> Any:
    """What two keys of one column have in common if they are the same key."""
    if isinstance(value, bool | int | float | Decimal):
        whole = value if isinstance(value, int) else int(value) if value == value // 1 else None
        return ("number", whole) if whole is not None else (type(value), value)
    if isinstance(value, datetime):
        return (datetime, value.tzinfo is not None, value.astimezone(UTC) if value.tzinfo else value.replace(fold=0))
    return (type(value), value)


@given(
    st.tuples(st.none() | parts, parts, st.lists(keys, min_size=1, max_size=3)),
    st.tuples(st.none() | parts, parts, st.lists(keys, min_size=1, max_size=3)),
)
def test_identifiers_are_equal_iff_the_rows_are(left: Any, right: Any) -> None:
    one, other = (row(schema, table, tuple(values)) for schema, table, values in (left, right))
    assert (one == other) == (left[:2] == right[:2] and list(map(_shape, left[2])) == list(map(_shape, right[2])))


@given(keys)
def test_key_survives_the_round_trip(value: Any) -> None:
    text = encode_key(value)
    assert encode_key(decode_key(text)) == text
    assert _shape(decode_key(text)) == _shape(value)


@given(st.none() | parts, parts, st.lists(keys, min_size=1, max_size=3))
def test_identifier_of_any_row_is_accepted_as_text(schema: str | None, table: str, values: list[Any]) -> None:
    text = row(schema, table, tuple(values))
    assert check_identifier(text) == text
    assert check_identifier(table_identifier(table_name(table, schema)))


@given(st.text(max_size=5), st.text(max_size=5))
def test_labels_are_equal_iff_their_names_are(left: str, right: str) -> None:
    assert (Label(left).identifier == Label(right).identifier) == (left == right)
    assert check_identifier(Label(left).identifier)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1,), "akv:users#1"),
        ((-5,), "akv:users#-5"),
        ((True,), "akv:users#1"),
        (("bob",), "akv:users#bob"),
        (("bob@example.org",), "akv:users#bob@example.org"),
        (("1",), "akv:users#'1"),
        (("",), "akv:users#'"),
        (("a b/c",), "akv:users#a%20b%2Fc"),
        ((1, "x"), "akv:users#1,x"),
        ((Decimal("3.0000"),), "akv:users#3"),
        ((Decimal("1.50"),), "akv:users#decimal:1.5"),
        ((b"\x01\xff",), "akv:users#bytes:01ff"),
        ((uuid.UUID(int=1),), "akv:users#uuid:00000000-0000-0000-0000-000000000001"),
        ((date(2024, 1, 2),), "akv:users#date:2024-01-02"),
        ((datetime(2024, 1, 2, 3),), "akv:users#datetime:2024-01-02T03:00:00"),
        ((time(1),), "akv:users#time:01:00:00"),
        ((timedelta(seconds=1),), "akv:users#timedelta:1000000"),
        ((None, 1), "akv:users#null:,1"),
    ],
)
def test_common_keys_are_readable(values: tuple[Any, ...], expected: str) -> None:
    assert row_identifier("users", values) == expected


def test_things_have_the_identifiers_that_the_contract_names() -> None:
    class Elsewhere(DeclarativeBase):
        metadata = MetaData(schema="sales")

    class Invoice(Elsewhere):
        __tablename__ = "in voices"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert identifier(User) == "akv:users#*"
    assert identifier(User()) == "akv:users#*"
    assert identifier(Engineer) == "akv:people#*"
    assert identifier(Invoice) == "akv:sales.in%20voices#*"
    assert identifier(Table("t", MetaData(), Column("id", Integer, primary_key=True))) == "akv:t#*"
    assert identifier(Label("home page")) == "akv:label:home%20page"
    assert identifier("akv:users#1") == "akv:users#1"
    assert identifier(GLOBAL_WRITE_TOKEN) == "akv:*#*"
    assert identifier(Plain) == "akv:plain#*"


@pytest.mark.parametrize(
    "bad",
    [
        "", "akv", "akv:", "akv:users", "users#1", "akv:#1", "akv:users#", "akv:users#~", "akv:*#~", "akv:*#1",
        "akv:users#01", "akv:users#+1", "akv:users#-0", "akv:users#'abc", "akv:users#1,", "akv:users#,1",
        "akv:users#a b",
        "akv:users#%2f", "akv:us ers#1", "akv:a.b.c#1", "akv:users#1#2", "akv:users#*,1", "akv:users#uuid:xyz",
        "akv:users#uuid:00000000000000000000000000000001", "akv:users#decimal:1.50", "akv:users#date:2024-1-2",
        "akv:users#what:1", "akv:users#bytes:0", "akv:users#bytes:FF", "akv:users#null:1", "akv:users#%FF",
        "akv:label:a b", "akv:label:%2f", "akv:memo:f", "akv:users#1\n", " akv:users#1", "akv:users#float:nan?",
        "akv:%FF#1",
    ],
)  # fmt: skip
def test_malformed_identifier_raises_the_named_error(bad: str) -> None:
    with pytest.raises(InvalidIdentifierError):
        check_identifier(bad)


@pytest.mark.parametrize("bad", [None, 5, object(), ["akv:users#1"], int, b"akv:users#1", DeclarativeBase])
def test_thing_without_identifier_raises_the_named_error(bad: Any) -> None:
    with pytest.raises(InvalidIdentifierError):
        identifier(bad)


@pytest.mark.parametrize("bad", [None, 1, b"x"])
def test_label_takes_a_str_only(bad: Any) -> None:
    with pytest.raises(InvalidIdentifierError, match="str"):
        Label(bad)


def test_key_of_a_type_that_no_table_has_is_refused() -> None:
    with pytest.raises(InvalidIdentifierError, match="touch its table"):
        row_identifier("users", [object()])


def test_vectors_hold_what_the_protocol_says() -> None:
    assert vector_of("akv:users#1") == ("akv:*#~", "akv:users#~", "akv:users#1")
    assert vector_of("akv:users#*") == ("akv:*#~", "akv:users#*")
    assert vector_of("akv:*#*") == ("akv:*#*",)
    assert vector_of("akv:label:x") == ("akv:*#~", "akv:label:x")
    assert vector_of("akv:memo:f#*") == ("akv:*#~", "akv:memo:f#*")
    assert vector_of("akv:memo:f#abc") == ("akv:*#~", "akv:memo:f#*", "akv:memo:f#abc")


def test_touching_reaches_everything_that_contains_the_thing() -> None:
    assert set(touched_by("akv:users#1")) == {"akv:users#1", "akv:users#*", "akv:*#*"}
    assert set(touched_by("akv:users#*")) == {"akv:users#~", "akv:users#*", "akv:*#*"}
    assert set(touched_by("akv:*#*")) == {"akv:*#~", "akv:*#*"}
    assert touched_by("akv:label:x") == ("akv:label:x",)
    assert touched_by("akv:memo:f#abc") == ("akv:memo:f#abc",)


def test_rows_and_labels_share_slots_and_tables_have_records_of_their_own() -> None:
    assert {record_of(f"akv:users#{number}", 4) for number in range(100)} == {"#0", "#1", "#2", "#3"}
    assert record_of("akv:label:x", 1) == "#0"
    assert record_of("akv:memo:f#abc", 1) == "#0"
    for own in ("akv:users#*", "akv:users#~", "akv:*#*", "akv:*#~", "akv:memo:f#*"):
        assert record_of(own, 4) == own
    assert record_of("akv:users#1", 2**20) == "#442669"  # the same in every process and release
