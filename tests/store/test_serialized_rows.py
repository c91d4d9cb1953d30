"""Serialized values as rows of a store: signed ones that somebody touched, corrupt ones, and serializers of users."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from sqlalchemy import delete, insert

from akv import (
    CompressedSerializer,
    CorruptValueError,
    JSONSerializer,
    MissingKeyError,
    MsgpackSerializer,
    PickleSerializer,
    SerializationError,
    SignedPickleSerializer,
)
from akv.testing import FakeClock

# The two drivers on PostgreSQL 18 and 15 give bytes of their own kinds; one of asyncpg is enough.
pytestmark = pytest.mark.backends(exclude="postgres18-asyncpg")

OLD, NEW = b"old secret of 32 bytes, to be safe", b"new secret of 32 bytes, to be safe"


async def write_row(kv, key, value, tag="", expire=None) -> None:
    """Put bytes under a key, past every serializer."""
    async with kv.session(delete_expired=False) as session:
        await session.execute(delete(kv.model).where(kv.model.key == key, kv.model.tag == tag))
        await session.execute(insert(kv.model).values(key=key, tag=tag, value=value, expire=expire))


async def row_of(kv, key, tag="") -> Any:
    """Read the bytes of a row; None: there is no row, or it is NULL."""
    async with kv.session(commit=False) as session:
        found = await session.get(kv.model, (key, tag))
        return None if found is None else found.value


async def is_stored(kv, key, tag="") -> bool:
    async with kv.session(commit=False) as session:
        return await session.get(kv.model, (key, tag)) is not None


# Signed


@pytest.fixture
async def signed(make_store):
    kv = await make_store(serializer=SignedPickleSerializer([NEW]))
    await kv.set("key", {"paid": False})
    return kv


async def refused(kv, key="key", tag="") -> CorruptValueError:
    with pytest.raises(CorruptValueError) as error:
        await kv.get(key, tag=tag)
    assert (error.value.key, error.value.tag) == (key, tag)
    assert repr(key) in str(error.value)
    return error.value


async def test_a_signed_value_comes_back(signed):
    assert await signed.get("key") == {"paid": False}
    await signed.set("none", None)
    assert await signed.get("none") is None
    assert [(entry.key, entry.value) async for entry in signed] == [("key", {"paid": False}), ("none", None)]


@pytest.mark.parametrize("position", [0, 5, 20, 36, 37, -1], ids=lambda position: f"byte {position}")
async def test_a_signed_value_with_one_bit_changed_is_refused(signed, position):
    data = bytearray(await row_of(signed, "key"))
    data[position] ^= 1
    await write_row(signed, "key", bytes(data))
    await refused(signed)


async def test_a_signed_value_cut_off_is_refused(signed):
    data = await row_of(signed, "key")
    for length in (0, 4, 5, 20, 37, len(data) - 1):
        await write_row(signed, "key", data[:length])
        await refused(signed)


async def test_a_signed_value_moved_to_another_key_or_tag_is_refused(signed):
    data = await row_of(signed, "key")
    await write_row(signed, "other", data)
    await write_row(signed, "key", data, tag="other")
    assert "moved" in str(await refused(signed, "other"))
    await refused(signed, "key", "other")
    assert await signed.get("key") == {"paid": False}


async def test_a_signed_value_is_bound_to_where_its_key_ends_and_its_tag_begins(signed):
    await signed.set("ab", 1, tag="c")
    await write_row(signed, "a", await row_of(signed, "ab", "c"), tag="bc")
    await refused(signed, "a", "bc")


class Bomb:
    """Fails the test when it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    Bomb.exploded = True


async def test_an_unsigned_row_is_refused_and_never_unpickled(signed):
    await write_row(signed, "key", pickle.dumps(Bomb()))
    assert "PickleSerializer or kvalchemy" in str(await refused(signed))
    await write_row(signed, "key", b"\xffakvS" + b"\0" * 32 + pickle.dumps(Bomb()))
    await refused(signed)
    assert not Bomb.exploded


async def test_null_is_refused_where_values_are_signed(signed):
    await write_row(signed, "key", None)
    assert "NULL" in str(await refused(signed))


@pytest.mark.backends(exclude="sqlite-memory")
async def test_a_list_of_secrets_reads_old_rows_and_signs_new_ones_with_the_first(make_store):
    before = await make_store(serializer=SignedPickleSerializer([OLD]))
    rotating = await make_store(serializer=SignedPickleSerializer([NEW, OLD]))
    after = await make_store(serializer=SignedPickleSerializer([NEW]))
    await before.set("key", 1)
    assert await rotating.get("key") == 1
    assert "secret" in str(await refused(after))
    assert await rotating.incr("key") == 2
    assert await after.get("key") == 2
    assert await rotating.get("key") == 2
    await refused(before)


async def test_verbs_that_read_first_never_overwrite_a_row_that_was_touched(signed):
    await write_row(signed, "key", pickle.dumps(1))
    for call in (
        signed.incr("key"),
        signed.update("key", lambda value: value),
        signed.pop("key"),
        signed.pop("key", 0),
    ):
        with pytest.raises(CorruptValueError):
            await call
    assert await row_of(signed, "key") == pickle.dumps(1)


# Corrupt


@pytest.fixture
async def clock():
    return FakeClock()


@pytest.fixture
async def kv(make_store, clock):
    """A store with two sound entries around a corrupt one."""
    kv = await make_store(clock=clock)
    await kv.set_many({"a": 1, "c": 3})
    await write_row(kv, "b", b"no pickle")
    return kv


async def test_get_names_the_key_and_the_tag_of_a_corrupt_row(kv):
    error = await refused(kv, "b")
    assert isinstance(error, SerializationError)
    await write_row(kv, "b", b"no pickle", tag="t")
    await refused(kv, "b", "t")


@pytest.mark.parametrize("options", [{"default": None}, {"return_expiration": True}, {"renew_for": 5}], ids=str)
async def test_no_option_of_get_hides_a_corrupt_row(kv, options):
    with pytest.raises(CorruptValueError):
        await kv.get("b", **options)


async def test_get_many_names_the_corrupt_row(kv):
    with pytest.raises(CorruptValueError) as error:
        await kv.get_many(["a", "b", "c"])
    assert error.value.key == "b"
    assert await kv.get_many(["a", "c"]) == {"a": 1, "c": 3}


@pytest.mark.parametrize(
    "call",
    [
        lambda kv: kv.pop("b"),
        lambda kv: kv.pop("b", None),
        lambda kv: kv.incr("b"),
        lambda kv: kv.update("b", lambda value: value, default=0),
    ],
    ids=["pop", "pop with default", "incr", "update"],
)
async def test_an_atomic_verb_raises_and_the_corrupt_row_stays(kv, call):
    with pytest.raises(CorruptValueError) as error:
        await call(kv)
    assert error.value.key == "b"
    assert await row_of(kv, "b") == b"no pickle"


async def test_a_corrupt_row_does_not_fail_the_calls_that_share_its_transaction(kv):
    outcomes = await asyncio.gather(
        *(kv.incr(key) for key in ("a", "b", "c")), *(kv.get(key) for key in "abc"), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [int, CorruptValueError, int] * 2


async def test_what_does_not_read_the_value_works_on_a_corrupt_row(kv, clock):
    assert await kv.add("b", 1) is False
    assert await kv.touch("b", 10) is True
    assert await kv.count() == 3
    await refused(kv, "b")
    assert await kv.delete("b") is True
    await write_row(kv, "b", b"no pickle")
    await kv.set("b", 2)
    assert await kv.get("b") == 2


async def test_a_scan_goes_on_past_a_corrupt_row(kv):
    seen: dict[str, Any] = {}
    async for entry in kv:
        try:
            seen[entry.key] = entry.value
        except CorruptValueError as error:
            seen[entry.key] = (error.key, error.tag)
    assert seen == {"a": 1, "b": ("b", ""), "c": 3}


async def test_a_dead_corrupt_row_is_absent_and_swept(kv, clock):
    await kv.touch("b", 10)
    clock.advance(10)
    with pytest.raises(MissingKeyError):
        await kv.get("b")
    assert await kv.get_many(["a", "b"]) == {"a": 1}
    assert await kv.pop("b", "default") == "default"
    assert await is_stored(kv, "b")
    assert await kv.purge_expired() == 1
    assert not await is_stored(kv, "b")


async def test_a_dead_corrupt_row_may_be_replaced_by_the_atomic_verbs(kv, clock):
    await kv.touch("b", 10)
    clock.advance(10)
    assert await kv.incr("b", 5) == 5
    assert await kv.get("b") == 5


async def test_evicting_reads_no_values(make_store):
    kv = await make_store(max_entries=5)
    await kv.set("first", 0)
    for number in range(5):
        await write_row(kv, f"corrupt{number}", b"no pickle")
    await kv.set_many({f"sound{number}": number for number in range(5)})
    await kv.delete("nothing")
    assert await kv.count() == 5


# Serializers that meet each other's rows

SERIALIZERS = {
    "pickle": PickleSerializer(),
    "signed": SignedPickleSerializer([NEW]),
    "json": JSONSerializer(),
    "msgpack": MsgpackSerializer(),
    "compressed json": CompressedSerializer(JSONSerializer(), threshold=1),
}
VALUE = ["some text that is long enough to shrink " * 4, 1, None]


@pytest.mark.backends("sqlite-file")
@pytest.mark.parametrize("reader", SERIALIZERS)
@pytest.mark.parametrize("writer", SERIALIZERS)
async def test_a_store_names_the_writer_of_a_row_that_it_cannot_read(make_store, writer, reader):
    writing, reading = [await make_store(serializer=SERIALIZERS[name]) for name in (writer, reader)]
    await writing.set("key", VALUE)
    if writer == reader or (writer, reader) == ("json", "compressed json"):
        assert await reading.get("key") == VALUE
        return
    error = await refused(reading)
    assert any(word in str(error) for word in ("Serializer", "kvalchemy"))
    assert [entry.key async for entry in reading] == ["key"]
    await reading.set("key", VALUE)
    assert await reading.get("key") == VALUE


@pytest.mark.parametrize("name", [name for name in SERIALIZERS if name != "signed"])
async def test_none_is_null_and_null_is_none(make_store, name):
    kv = await make_store(serializer=SERIALIZERS[name])
    await kv.set("key", None)
    assert await row_of(kv, "key") is None
    assert await kv.get("key", "default") is None


# A serializer of the user's


class Anything(Exception):
    """What a user's serializer may raise."""


class Fragile:
    """Raises what it is told to."""

    def __init__(self) -> None:
        self.dumping: Exception | None = None
        self.loading: Exception | None = None

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes:
        if self.dumping:
            raise self.dumping
        return repr(value).encode()

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        if self.loading:
            raise self.loading
        assert data is not None
        return int(data)


ERRORS = [Anything("mine"), KeyError("k"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), RecursionError("deep")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_a_serializer_raises_while_it_encodes_becomes_the_named_error(make_store, error):
    fragile = Fragile()
    kv = await make_store(serializer=fragile)
    await kv.set("key", 1)
    fragile.dumping = error
    calls = (
        kv.set("key", 2),
        kv.add("new", 2),
        kv.set_many({"new": 1, "key": 2}),
        kv.incr("key"),
        kv.update("key", lambda value: value + 1),
    )
    for call in calls:
        with pytest.raises(SerializationError) as named:
            await call
        assert named.value.__cause__ is error
        assert not isinstance(named.value, CorruptValueError)
    fragile.dumping = None
    assert {entry.key: entry.value async for entry in kv} == {"key": 1}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_a_serializer_raises_while_it_decodes_becomes_the_named_error(make_store, error):
    fragile = Fragile()
    kv = await make_store(serializer=fragile)
    await kv.set("key", 1)
    fragile.loading = error
    for call in (
        kv.get("key"),
        kv.get_many(["key"]),
        kv.pop("key"),
        kv.incr("key"),
        kv.update("key", lambda value: value),
    ):
        with pytest.raises(CorruptValueError) as named:
            await call
        assert named.value.__cause__ is error
        assert (named.value.key, named.value.tag) == ("key", "")
    (entry,) = [entry async for entry in kv]
    with pytest.raises(CorruptValueError):
        _ = entry.value
    fragile.loading = None
    assert await kv.pop("key") == 1


class Wrong:
    """Gives what no database column takes."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def dumps(self, value: Any, *, key: str, tag: str) -> Any:
        return self.data

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        return data


@pytest.mark.timeout(20)
@pytest.mark.parametrize("data", ["text", 7, ["list"], object()], ids=lambda data: type(data).__name__)
async def test_a_serializer_that_gives_no_bytes_is_named(make_store, data):
    kv = await make_store(serializer=Wrong(data))
    for call in (kv.set("key", 1), kv.add("key", 1), kv.set_many({"key": 1})):
        with pytest.raises(SerializationError, match="bytes"):
            await call
    assert await kv.count() == 0


@pytest.mark.parametrize("data", [bytearray(b"data"), memoryview(b"data")], ids=lambda data: type(data).__name__)
async def test_a_serializer_may_give_anything_like_bytes(make_store, data):
    kv = await make_store(serializer=Wrong(data))
    await kv.set("key", 1)
    assert await kv.get("key") == b"data"


async def test_a_serializer_is_told_key_and_tag(make_store):
    told = []

    class Listening(PickleSerializer):
        def dumps(self, value: Any, *, key: str, tag: str) -> bytes | None:
            told.append(("dumps", key, tag))
            return super().dumps(value, key=key, tag=tag)

        def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
            told.append(("loads", key, tag))
            return super().loads(data, key=key, tag=tag)

    kv = await make_store(serializer=Listening(), default_tag="mine")
    await kv.set("key", 1)
    await kv.get("key")
    assert told == [("dumps", "key", "mine"), ("loads", "key", "mine")]
