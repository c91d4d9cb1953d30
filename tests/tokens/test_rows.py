"""Names of rows that are kept: the same as those worked out anew, for every key, and gone with the class."""

from __future__ import annotations

import gc
import uuid
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Table, create_engine, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, mapped_column

from akv.errors import InvalidIdentifierError
from akv.tokens import keygen, rows
from akv.tokens.identifiers import row_identifier, table_identifier, unknown_rows
from akv.tokens.redis.formats import read_record
from akv.tokens.rows import rows_of
from akv.tokens.schema import home_of, name_of, row_of, tables_of
from tests.tokens.kinds import ALIKE, MODELS, Code, Number, Pair, Raw, persistent


def named(model: Any, identity: tuple[Any, ...]) -> tuple[str, tuple[str, ...]]:
    row = rows_of(inspect(model)).row(identity)
    return row.identifier, row.vector


def by_hand(model: Any, identity: tuple[Any, ...]) -> tuple[str, tuple[str, ...]]:
    """Work the names of a row out, as if nothing were ever kept."""
    mapper: Mapper[Any] = inspect(model)
    home = home_of(mapper)
    assert home is not None
    key = _key_in(home, mapper, identity)
    vector = ["akv:*#~"]
    for table in tables_of(mapper):
        of_table = _key_in(table, mapper, identity)
        row = row_of(table, of_table) if of_table is not None else None
        vector += [unknown_rows(name_of(table)), row if row is not None else table_identifier(name_of(table))]
    name = name_of(home)
    return (row_identifier(name, key) if key is not None else table_identifier(name)), tuple(vector)


def _key_in(table: Table, mapper: Mapper[Any], identity: tuple[Any, ...]) -> tuple[Any, ...] | None:
    values = {
        mapper.get_property_by_column(column): value for column, value in zip(mapper.primary_key, identity, strict=True)
    }
    wanted = [mapper.get_property_by_column(column) for column in table.primary_key.columns]
    return tuple(values[prop] for prop in wanted) if all(prop in values for prop in wanted) else None


values = st.one_of(
    st.sampled_from(ALIKE),
    st.integers(),
    st.text(st.characters(), max_size=8),
    st.text("1',#*~%a\udc80", max_size=4),
    st.uuids(),
    st.binary(max_size=4),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.floats(),
    st.dates(),
)


@given(st.sampled_from(MODELS), st.lists(values, min_size=1, max_size=12))
def test_rows_met_before_have_the_names_that_are_worked_out_anew(model: Any, ids: list[Any]) -> None:
    for id_ in [*ids, *reversed(ids)]:
        assert named(model, (id_,)) == by_hand(model, (id_,))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=12))
def test_rows_of_composite_keys_too(identities: list[tuple[Any, Any]]) -> None:
    for identity in [*identities, *reversed(identities)]:
        assert named(Pair, identity) == by_hand(Pair, identity)
    assert rows_of(inspect(Pair)).row(("b", 1)).identifier == "akv:pairs#1,b"


@pytest.mark.parametrize("model", MODELS)
def test_keys_that_python_takes_for_equal_keep_names_of_their_own(model: Any) -> None:
    for first in ALIKE:
        for second in ALIKE:
            rows_of(inspect(model)).row((first,))
            assert named(model, (second,)) == by_hand(model, (second,)), (first, second)


def test_key_that_changes_in_place_has_the_names_of_what_it_is_now() -> None:
    key = bytearray(b"\x01")
    assert rows_of(inspect(Raw)).row((key,)).identifier == "akv:raws#bytes:01"
    key[0] = 2
    assert rows_of(inspect(Raw)).row((key,)).identifier == "akv:raws#bytes:02"


def test_key_that_no_table_has_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(InvalidIdentifierError, match="type list"):
            rows_of(inspect(Number)).row(([1],))


def test_uuids_of_asyncpg_are_kept_like_others() -> None:
    theirs = pytest.importorskip("asyncpg.pgproto.pgproto").UUID
    found = rows_of(inspect(Code))
    one, other = theirs(int_hex(1)), theirs(int_hex(2))
    assert [named(Code, (one,)), named(Code, (other,))] == [by_hand(Code, (one,)), by_hand(Code, (other,))]
    assert found.row((theirs(int_hex(1)),)) is found.row((one,))
    assert named(Code, (one,)) == named(Code, (uuid.UUID(int=1),))


def int_hex(number: int) -> str:
    return str(uuid.UUID(int=number))


# --- what is kept, and for how long


def test_names_are_kept_of_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Apart(DeclarativeBase):
        pass

    class Many(Apart):
        __tablename__ = "many"
        id: Mapped[int] = mapped_column(primary_key=True)

    monkeypatch.setattr(rows, "_KEPT", 100)
    found = rows_of(inspect(Many))
    for id_ in range(1_000):
        found.row((id_,))
    assert found._known.cache_info().currsize == 100
    assert named(Many, (3,)) == by_hand(Many, (3,))


def test_parts_of_keys_are_kept_in_bounded_number() -> None:
    for number in range(keygen._KEPT + 100):
        keygen._part_of_name(f"akv:users#{number}")
        keygen._encode_again(number)
    assert keygen._part_of_name.cache_info().currsize == keygen._KEPT
    assert keygen._encode_again.cache_info().currsize == keygen._KEPT


def test_class_that_is_gone_leaves_nothing_behind() -> None:
    gc.collect()
    before = len(rows._of_mapper)
    gone = _make_use_of_a_class()
    gc.collect()
    assert gone() is None
    assert len(rows._of_mapper) == before


def _make_use_of_a_class() -> weakref.ref[Any]:
    class Apart(DeclarativeBase):
        pass

    class Fleeting(Apart):
        __tablename__ = "fleeting"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine("sqlite://")
    with Session(engine) as session:
        instance = persistent(Fleeting, 1)
        session.add(instance)
        mapper: Mapper[Any] = inspect(Fleeting)
        assert rows_of(mapper).row(inspect(instance).identity).identifier == "akv:fleeting#1"
    engine.dispose()
    return weakref.ref(mapper)


def test_calls_are_kept_in_bounded_number() -> None:
    for number in range(keygen._KEPT_CALLS + 100):
        keygen._of_rows(rows.Row(f"akv:users#{number}", ()))
    assert keygen._of_rows.cache_info().currsize == keygen._KEPT_CALLS


def test_records_of_redis_are_kept_read_in_bounded_number() -> None:
    most = read_record.cache_info().maxsize
    assert most is not None
    for number in range(most + 100):
        read_record(f"epoch {number}")
    assert read_record.cache_info().currsize == most
