"""Values to bytes and back: what survives, what is refused, and what the refusal says."""

import copy
import math
import pickle
import pickletools
import random
import sys
import threading
import tracemalloc
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from akv.errors import ConfigurationError, CorruptValueError, SerializationError
from akv.store.serializers import (
    CompressedSerializer,
    JSONSerializer,
    MsgpackSerializer,
    PickleSerializer,
    SignedPickleSerializer,
    check_serializer,
)
from akv.typing import Serializer

OLD, NEW = b"old secret of 32 bytes".ljust(32, b"."), b"new secret of 32 bytes".ljust(32, b".")
PLACE = {"key": "hello", "tag": "greetings"}
BOMB = b"\xffakvZ" + zlib.compress(bytes(10**6))

SERIALIZERS: dict[str, Serializer] = {
    "pickle": PickleSerializer(),
    "signed": SignedPickleSerializer(NEW),
    "json": JSONSerializer(),
    "msgpack": MsgpackSerializer(),
    "compressed pickle": CompressedSerializer(PickleSerializer(), threshold=0),
    "compressed signed": CompressedSerializer(SignedPickleSerializer(NEW), threshold=0),
    "compressed json": CompressedSerializer(JSONSerializer(), threshold=100),
    "compressed twice": CompressedSerializer(CompressedSerializer(MsgpackSerializer(), threshold=10), threshold=0),
}

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
places = st.fixed_dictionaries({"key": st.text(max_size=20), "tag": st.text(max_size=20)})


@dataclass
class Point:
    x: int
    y: int


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Unpicklable:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.fixture(params=SERIALIZERS.values(), ids=SERIALIZERS)
def serializer(request: pytest.FixtureRequest) -> Any:
    return request.param


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- every serializer


@given(value=plain, place=places)
def test_plain_values_come_back_with_their_types(value: Any, place: dict[str, str]) -> None:
    for serializer in SERIALIZERS.values():
        result = serializer.loads(serializer.dumps(value, **place), **place)

        assert result == value
        assert repr(result) == repr(value)  # 1, 1.0 and True are equal


@pytest.mark.parametrize("value", [0, False, "", [], {}, "x" * 2**20, "ä🎉\x00", -0.0])
def test_values_that_look_empty_or_large_come_back(serializer: Serializer, value: Any) -> None:
    assert repr(serializer.loads(serializer.dumps(value, **PLACE), **PLACE)) == repr(value)


@given(
    data=st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\xffakvS" + tail),
    magic=st.sampled_from("SJMZQ"),
)
def test_no_bytes_raise_anything_but_the_named_error(data: bytes, magic: str) -> None:
    data = data.translate(None, b"ciRpr\x93")  # no imports, no calls, no vast memos
    for serializer in SERIALIZERS.values():
        for row in (data, b"\xffakv" + magic.encode() + data):
            with suppress(CorruptValueError):
                serializer.loads(row, **PLACE)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff", b"\xffakv", b"\xffakvQ", b"garbage", b"\x80\x04\x95", BOMB[:-3]]
)
def test_what_cannot_be_decoded_names_key_and_tag(serializer: Serializer, data: bytes) -> None:
    with pytest.raises(
        CorruptValueError, match=r"key 'hello', tag 'greetings' cannot be read: .*(delete|open it)"
    ) as caught:
        serializer.loads(data, **PLACE)

    assert (caught.value.key, caught.value.tag) == ("hello", "greetings")


@pytest.mark.parametrize("value", [threading.Lock(), nested(200_000)], ids=["unpicklable", "too deep"])
def test_what_cannot_be_encoded_names_key_tag_type_and_remedy(serializer: Serializer, value: Any) -> None:
    message = f"value of type {type(value).__qualname__} for key 'hello', tag 'greetings' .*: store a plainer value"
    with pytest.raises(SerializationError, match=message) as caught:
        serializer.dumps(value, **PLACE)

    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value, CorruptValueError)


def test_a_serializer_has_a_repr_and_can_be_copied(serializer: Serializer) -> None:
    data = serializer.dumps([1], **PLACE)

    assert repr(serializer).startswith(type(serializer).__name__)
    assert copy.deepcopy(serializer).loads(data, **PLACE) == [1]
    assert pickle.loads(pickle.dumps(serializer)).loads(data, **PLACE) == [1]


@pytest.mark.parametrize("magic", [b"\xffakvS", b"\xffakvJ", b"\xffakvM", b"\xffakvZ"])
def test_no_pickle_begins_like_another_form(magic: bytes) -> None:
    assert magic[:1] not in {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


WRITERS = {
    "pickle": "PickleSerializer or kvalchemy",
    "signed": "SignedPickleSerializer",
    "json": "JSONSerializer",
    "msgpack": "MsgpackSerializer",
    "compressed pickle": "CompressedSerializer",
}
READERS = ["pickle", "signed", "json", "msgpack"]


@pytest.mark.parametrize(
    ("writer", "reader"), [(writer, reader) for writer in WRITERS for reader in READERS if writer != reader]
)
def test_a_row_of_another_serializer_says_who_wrote_it(writer: str, reader: str) -> None:
    data = SERIALIZERS[writer].dumps(["some value"] * 100, **PLACE)

    message = f"written by {WRITERS[writer]}, and this store reads with .*; open it with"
    with pytest.raises(CorruptValueError, match=message):
        SERIALIZERS[reader].loads(data, **PLACE)


def test_a_row_of_nobody_we_know_says_so() -> None:
    with pytest.raises(CorruptValueError, match="written by a serializer that akv does not know"):
        PickleSerializer().loads(b"\xffakvQ...", **PLACE)
    with pytest.raises(CorruptValueError, match="written by a serializer that akv does not know"):
        JSONSerializer().loads(b'{"bare": "json"}', **PLACE)


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack", "compressed pickle", "compressed json"])
def test_none_is_null(name: str) -> None:
    assert SERIALIZERS[name].dumps(None, **PLACE) is None
    assert SERIALIZERS[name].loads(None, **PLACE) is None


def test_the_stored_bytes_are_as_they_were_in_the_first_release() -> None:
    stored = {
        "pickle": "80049506000000000000005d944b01612e",
        "signed": "ff616b76533e58bee1d4dcc4aac69d71ce9bc0a1a004dd9131fb0ceaf286b50228555c7881"
        "80049506000000000000005d944b01612e",
        "json": "ff616b764a5b315d",
        "msgpack": "ff616b764d9101",
    }

    assert {name: SERIALIZERS[name].dumps([1], **PLACE).hex() for name in stored} == stored  # type: ignore[union-attr]


# --- pickle


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1, 2},
        b"\x00\xff",
        2**100,
        Point(1, 2),
        Colour.RED,
        uuid.UUID(int=7),
        Decimal("1.10"),
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["pickle", "signed", "compressed signed"])
def test_pickle_keeps_types(name: str, value: Any) -> None:
    serializer = SERIALIZERS[name]
    result = serializer.loads(serializer.dumps(value, **PLACE), **PLACE)

    assert result == value
    assert type(result) is type(value)


def test_the_default_is_plain_pickle_both_ways() -> None:
    assert pickle.loads(PickleSerializer().dumps({"any": "value"}, **PLACE) or b"") == {"any": "value"}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert PickleSerializer().loads(pickle.dumps({"any": "value"}, protocol), **PLACE) == {"any": "value"}


@pytest.mark.parametrize("error", [ValueError("of the value"), RecursionError(), MemoryError(), Speechless()], ids=repr)
def test_an_exception_of_the_value_itself_is_wrapped(error: Exception) -> None:
    with pytest.raises(SerializationError, match=type(error).__name__) as caught:
        PickleSerializer().dumps(Unpicklable(error), **PLACE)

    assert caught.value.__cause__ is error


def test_an_interrupt_while_encoding_is_not_wrapped() -> None:
    with pytest.raises(KeyboardInterrupt):
        PickleSerializer().dumps(Unpicklable(KeyboardInterrupt()), **PLACE)


def test_a_class_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = PickleSerializer().dumps(Point(1, 2), **PLACE)
    monkeypatch.delattr(sys.modules[__name__], "Point")

    with pytest.raises(CorruptValueError, match=r"AttributeError.*Point.*importable") as caught:
        PickleSerializer().loads(data, **PLACE)

    assert isinstance(caught.value.__cause__, AttributeError)


# --- signed pickle


def test_none_is_stored_signed() -> None:
    serializer = SignedPickleSerializer(NEW)
    data = serializer.dumps(None, **PLACE)

    assert data.startswith(b"\xffakvS")
    assert serializer.loads(data, **PLACE) is None


def test_null_is_refused() -> None:
    with pytest.raises(CorruptValueError, match=r"unsigned NULL.*write the entry again"):
        SignedPickleSerializer(NEW).loads(None, **PLACE)


def test_an_unsigned_pickle_is_refused_without_being_loaded() -> None:
    with pytest.raises(CorruptValueError, match="written by PickleSerializer or kvalchemy"):
        SignedPickleSerializer(NEW).loads(pickle.dumps(Trap()), **PLACE)


class Trap:
    """A pickle that fails the test when it is loaded."""

    def __reduce__(self) -> Any:
        return sprung, ()


def sprung() -> None:
    raise AssertionError("unpickled before the signature was checked")


@pytest.mark.parametrize("bit", range(8))
def test_flipping_any_bit_is_refused(bit: int) -> None:
    serializer = SignedPickleSerializer(NEW)
    data = serializer.dumps({"any": "value"}, **PLACE)

    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << bit
        with pytest.raises(CorruptValueError):
            serializer.loads(bytes(altered), **PLACE)


@given(value=plain, place=places, data=st.data())
def test_any_other_bytes_are_refused(value: Any, place: dict[str, str], data: st.DataObject) -> None:
    serializer = SignedPickleSerializer(NEW)
    row = serializer.dumps(value, **place)
    start = data.draw(st.integers(0, len(row)))
    end = data.draw(st.integers(start, len(row)))
    altered = row[:start] + data.draw(st.binary(max_size=8)) + row[end:]
    assume(altered != row)

    with pytest.raises(CorruptValueError):
        serializer.loads(altered, **place)


@given(place=places, other=places)
def test_a_row_moved_to_another_key_or_tag_is_refused(place: dict[str, str], other: dict[str, str]) -> None:
    assume(place != other)
    serializer = SignedPickleSerializer(NEW)

    with pytest.raises(CorruptValueError, match="moved from another key or tag"):
        serializer.loads(serializer.dumps(1, **place), **other)


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("hell", "ogreetings"),
        ("hellog", "reetings"),
        ("hellogreetings", ""),
        ("", "hellogreetings"),
        ("greetings", "hello"),
    ],
)
def test_key_and_tag_do_not_run_into_each_other(key: str, tag: str) -> None:
    serializer = SignedPickleSerializer(NEW)

    with pytest.raises(CorruptValueError):
        serializer.loads(serializer.dumps(1, **PLACE), key=key, tag=tag)


def test_an_old_secret_reads_while_it_is_listed_and_the_newest_writes() -> None:
    old, both, new = SignedPickleSerializer(OLD), SignedPickleSerializer([NEW, OLD]), SignedPickleSerializer([NEW])

    assert both.loads(old.dumps("value", **PLACE), **PLACE) == "value"
    assert both.loads(new.dumps("value", **PLACE), **PLACE) == "value"
    assert new.loads(both.dumps("value", **PLACE), **PLACE) == "value"
    with pytest.raises(CorruptValueError, match="no longer listed; list that secret"):
        new.loads(old.dumps("value", **PLACE), **PLACE)


def test_a_secret_may_be_text() -> None:
    assert SignedPickleSerializer(NEW.decode()).loads(SignedPickleSerializer(NEW).dumps(1, **PLACE), **PLACE) == 1


def test_a_secret_is_never_shown() -> None:
    assert repr(SignedPickleSerializer([NEW, OLD])) == "SignedPickleSerializer(<2 secrets>)"
    with pytest.raises(ConfigurationError) as caught:
        SignedPickleSerializer("too short")
    assert "too short" not in str(caught.value)


@pytest.mark.parametrize(
    ("secrets", "problem"),
    [
        ([], "secrets is empty"),
        ((), "secrets is empty"),
        ("", "has 0 bytes, fewer than 16"),
        (b"x" * 15, "has 15 bytes, fewer than 16"),
        ([NEW, b"short"], "has 5 bytes, fewer than 16"),
        (None, "is a NoneType"),
        (1234567890123456, "is a int"),
        ([NEW, None], "is a NoneType"),
        ({NEW: OLD}, "is a dict"),
        (bytearray(NEW), "is a bytearray"),
    ],
)
def test_secrets_that_protect_nothing_are_refused_with_a_remedy(secrets: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{problem}.*: give one.*secrets.token_bytes\(32\)"):
        SignedPickleSerializer(secrets)


# --- JSON and MessagePack


@pytest.mark.parametrize(
    ("value", "result"),
    [((1, 2), [1, 2]), ({1: "a"}, {"1": "a"}), (2**100, 2**100), (Level.HIGH, 3), ("\ud800", "\ud800")],
)
def test_json_gives_back_what_it_says(value: Any, result: Any) -> None:
    serializer = JSONSerializer()

    assert serializer.loads(serializer.dumps(value, **PLACE), **PLACE) == result


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        b"x",
        {1},
        Point(1, 2),
        Colour.RED,
        uuid.UUID(int=7),
        Decimal(1),
        datetime(2026, 1, 1),
        {(1,): 2},
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_json_refuses_what_would_not_come_back(value: Any) -> None:
    with pytest.raises(SerializationError, match="has no JSON form"):
        JSONSerializer().dumps(value, **PLACE)


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (math.inf, math.inf),
        ({1: "a", b"b": 2, 1.5: None}, {1: "a", b"b": 2, 1.5: None}),
        (
            datetime(2026, 1, 1, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2))),
            datetime(2025, 12, 31, 23, 2, 3, 4, tzinfo=UTC),
        ),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        (datetime(2026, 1, 1), "2026-01-01T00:00:00"),
        (date(2026, 1, 1), "2026-01-01"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.10"), "1.10"),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_msgpack_gives_back_what_it_says(value: Any, result: Any) -> None:
    serializer = MsgpackSerializer()
    loaded = serializer.loads(serializer.dumps(value, **PLACE), **PLACE)

    assert loaded == result
    assert type(loaded) is type(result)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1j, "\ud800"], ids=repr)
def test_msgpack_refuses_what_has_no_form(value: Any) -> None:
    with pytest.raises(SerializationError, match="has no MessagePack form"):
        MsgpackSerializer().dumps(value, **PLACE)


def test_msgpack_without_msgspec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)

    with pytest.raises(ConfigurationError, match=r"pip install akv\[msgpack\]"):
        MsgpackSerializer()


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_text_that_is_cut_off_is_refused(name: str) -> None:
    data = SERIALIZERS[name].dumps(["some", {"value": 1}], **PLACE) or b""

    for length in range(len(data)):
        with pytest.raises(CorruptValueError):
            SERIALIZERS[name].loads(data[:length], **PLACE)


# --- compressed


def test_what_shrinks_is_stored_small() -> None:
    data = CompressedSerializer(JSONSerializer()).dumps("x" * 10_000, **PLACE) or b""

    assert data.startswith(b"\xffakvZ")
    assert len(data) < 100


def test_what_is_short_is_stored_as_the_inner_serializer_wrote_it() -> None:
    value = "x" * 100

    assert CompressedSerializer(JSONSerializer()).dumps(value, **PLACE) == JSONSerializer().dumps(value, **PLACE)


def test_what_does_not_shrink_is_stored_as_the_inner_serializer_wrote_it() -> None:
    value = random.Random(1).randbytes(5000)

    assert CompressedSerializer(PickleSerializer()).dumps(value, **PLACE) == PickleSerializer().dumps(value, **PLACE)


def test_compression_can_be_turned_on_for_a_table_in_use() -> None:
    rows = [PickleSerializer().dumps(value, **PLACE) for value in (None, "short", "x" * 5000)]

    assert [CompressedSerializer(PickleSerializer()).loads(row, **PLACE) for row in rows] == [None, "short", "x" * 5000]


class Raw:
    """Bytes as they are: may begin like a compressed row."""

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes:
        return bytes(value)

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        return data


@given(value=st.binary(max_size=40), threshold=st.sampled_from([0, 10, 1000]))
def test_bytes_that_begin_like_compressed_ones_come_back(value: bytes, threshold: int) -> None:
    serializer = CompressedSerializer(Raw(), threshold=threshold)
    for row in (value, b"\xffakvZ" + value, BOMB):
        assert serializer.loads(serializer.dumps(row, **PLACE), **PLACE) == row


def test_every_cut_and_every_tail_is_refused() -> None:
    serializer = CompressedSerializer(PickleSerializer(), threshold=0)
    data = serializer.dumps(["value"] * 30, **PLACE) or b""
    assert data.startswith(b"\xffakvZ")

    for altered in [*(data[:length] for length in range(len(data))), data + b"x", data + data]:
        with pytest.raises(CorruptValueError):
            serializer.loads(altered, **PLACE)


def test_altered_rows_never_give_another_value_under_a_signature() -> None:
    serializer = CompressedSerializer(SignedPickleSerializer(NEW), threshold=0)
    value = ["value"] * 30
    data = serializer.dumps(value, **PLACE) or b""
    refused = 0
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 0x01
        try:
            assert serializer.loads(bytes(altered), **PLACE) == value
        except CorruptValueError:
            refused += 1

    assert refused > len(data) - 8


def test_a_row_that_expands_without_end_is_refused_early() -> None:
    with pytest.raises(CorruptValueError, match="expands to more than max_size=1000 bytes; raise max_size"):
        CompressedSerializer(Raw(), max_size=1000).loads(BOMB, **PLACE)


def test_a_row_that_expands_without_end_takes_no_memory() -> None:
    bomb = b"\xffakvZ" + zlib.compress(bytes(3 * 10**7))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptValueError):
            CompressedSerializer(Raw(), max_size=1000).loads(bomb, **PLACE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 10**6


def test_the_largest_value_that_can_be_read_can_be_written_and_no_larger() -> None:
    serializer = CompressedSerializer(Raw(), max_size=1000, threshold=0)

    assert serializer.loads(serializer.dumps(bytes(1000), **PLACE), **PLACE) == bytes(1000)
    with pytest.raises(SerializationError, match="encodes to 1001 bytes, more than max_size=1000: store it in parts"):
        serializer.dumps(bytes(1001), **PLACE)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"level": 0}, "level must be an int from 1 to 9, not 0"),
        ({"level": 10}, "level must be an int from 1 to 9, not 10"),
        ({"level": True}, "level must be an int from 1 to 9, not True"),
        ({"threshold": -1}, "threshold must be an int of at least 0, not -1"),
        ({"threshold": 1.5}, "threshold must be an int of at least 0, not 1.5"),
        ({"max_size": 0}, "max_size must be an int from 1 to 1099511627776, not 0"),
        ({"max_size": None}, "max_size must be an int from 1 to"),
    ],
)
def test_options_out_of_bounds_are_refused_with_the_bound(options: dict[str, Any], bound: str) -> None:
    with pytest.raises(ConfigurationError, match=bound):
        CompressedSerializer(PickleSerializer(), **options)


@pytest.mark.parametrize("thing", [None, "pickle", pickle, PickleSerializer, object()])
def test_what_is_no_serializer_is_refused_with_a_remedy(thing: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"serializer must be an object with dumps.* for example PickleSerializer\(\)"
    ):
        check_serializer(thing)
    with pytest.raises(ConfigurationError, match="serializer must be an object with dumps"):
        CompressedSerializer(thing)


def test_any_object_with_the_two_methods_is_a_serializer() -> None:
    raw = Raw()

    assert check_serializer(raw) is raw
