"""Keys of instances whose rows are known: those of the long way, and refused where that refuses them."""

from __future__ import annotations

import asyncio
import gc
import uuid
import warnings
from collections.abc import AsyncIterator, Iterable
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from akv.canonical import encode
from akv.errors import ConfigurationError
from akv.tokens import keygen
from akv.tokens.binding import bind
from akv.tokens.identifiers import Label
from akv.tokens.keygen import CacheKey, CacheKeyGenerator
from akv.tokens.rows import rows_of
from akv.tokens.rules import Private, vector_of
from tests.tokens.kinds import (
    ALIKE,
    Amount,
    Animal,
    Code,
    Day,
    Dog,
    Flag,
    Number,
    Pair,
    Puppy,
    Raw,
    Shouted,
    Word,
    persistent,
)
from tests.tokens.recording import RecordingTokens


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = App()
    yield app
    await app.close()


class App:
    """A bound engine that is never connected; instances come as if they had been loaded and expired."""

    def __init__(self) -> None:
        self.tokens = RecordingTokens()
        self.keys = CacheKeyGenerator(self.tokens)
        self.engine: AsyncEngine = create_async_engine("sqlite+aiosqlite://")
        self.session = async_sessionmaker(self.engine)
        self.binding = bind(self.engine, self.tokens)

    async def close(self) -> None:
        await self.binding.unbind()
        await self.engine.dispose()


def held(session: AsyncSession, instances: Iterable[Any]) -> list[Any]:
    """Put instances into a session, with nothing loaded."""
    found = list(instances)
    session.add_all(found)
    session.expire_all()
    return found


async def key_and_vector(app: App, things: Iterable[Any]) -> tuple[CacheKey, list[str]]:
    vectors: list[list[str]] = []
    real = app.tokens.look

    async def look(identifiers: Any, driver: Any = None) -> Any:
        vectors.append(list(identifiers))
        return await real(identifiers, driver)

    app.tokens.look = look  # type: ignore[method-assign]
    try:
        key = await app.keys(*things)
    finally:
        app.tokens.look = real  # type: ignore[method-assign]
    assert key.shared, app.keys.private
    assert len(vectors) == 1
    return key, vectors[0]


async def by_the_long_way(app: App, things: Iterable[Any]) -> tuple[CacheKey, list[str]]:
    """Make a key as if nothing were known of any row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keygen._Asked, "_rows_of", lambda _, things: [None for _ in things])
        return await key_and_vector(app, things)


texts = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=8)
instances = st.one_of(
    st.integers(-(2**63), 2**63).map(lambda id_: persistent(Number, id_)),
    st.one_of(texts, st.text("1',#*~%a\udc80", min_size=1, max_size=4)).map(lambda id_: persistent(Word, id_)),
    st.uuids().map(lambda id_: persistent(Code, id_)),
    st.binary(max_size=4).map(lambda id_: persistent(Raw, id_)),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda id_: persistent(Amount, id_)),
    st.booleans().map(lambda id_: persistent(Flag, id_)),
    st.dates().map(lambda id_: persistent(Day, id_)),
    st.tuples(texts, st.integers()).map(lambda pair: persistent(Pair, *pair)),
    st.integers(0, 9).map(lambda id_: persistent(Dog, id_)),
    st.integers(10, 19).map(lambda id_: persistent(Puppy, id_)),
    st.integers(20, 29).map(lambda id_: persistent(Animal, id_)),
)


def _distinct(found: Iterable[Any]) -> list[Any]:
    return list({inspect(each).key: each for each in found}.values())


@given(st.lists(instances, max_size=12).map(_distinct), st.integers(1, 3), st.lists(st.sampled_from(ALIKE), max_size=2))
def test_key_is_that_of_the_long_way(found: list[Any], sessions: int, plain: list[Any]) -> None:
    async def compare() -> None:
        app = App()
        opened = [app.session() for _ in range(sessions)]
        for number, instance in enumerate(found):
            opened[number % sessions].add(instance)
        for session in opened:
            session.expire_all()
        values = [each for each in plain if not isinstance(each, Shouted)]
        things = [*found, Number, *values, {"in": found[:2]}, Label("x"), *found[:1]]
        await app.tokens.bump([name for each in found for name in rows_of(inspect(each).mapper).row(_id(each)).vector])
        assert await key_and_vector(app, things) == await by_the_long_way(app, things)
        for session in opened:
            session.expunge_all()
            await session.close()
        await app.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(compare())


def _id(instance: Any) -> Any:
    return inspect(instance).identity


async def test_key_is_the_encoding_of_database_things_and_tokens(app: App) -> None:
    async with app.session() as session:
        one, other = held(session, [persistent(Number, 1), persistent(Word, "1")])
        await app.tokens.bump(["akv:numbers#1", "akv:words%2C%20of%20all%20kinds#~"])
        key, vector = await key_and_vector(app, [one, other, 5])
        seqs = [token.seq for token in vector_of(await app.tokens.look(vector))]
        parts = [b"V" + hooked("akv:numbers#1"), b"V" + hooked("akv:words%2C%20of%20all%20kinds#'1"), b"V" + encode(5)]
    assert vector == [
        "akv:*#~",
        *("akv:numbers#~", "akv:numbers#1"),
        *("akv:words%2C%20of%20all%20kinds#~", "akv:words%2C%20of%20all%20kinds#'1"),
    ]
    assert any(seqs)
    assert key == keygen_key(encode(["epoch", parts, seqs]))


def hooked(identity: str) -> bytes:
    return encode(object(), hook=lambda _: identity)


def keygen_key(content: bytes) -> str:
    return f"akv-{blake2b(content, digest_size=32).hexdigest()}"


@given(st.lists(st.tuples(st.sampled_from([Number, Word, Flag, Code]), st.sampled_from(ALIKE)), max_size=8))
def test_keys_of_different_rows_differ(rows_of_keys: list[tuple[Any, Any]]) -> None:
    fitting = {Number: int, Word: str, Flag: bool, Code: uuid.UUID}
    wanted = [(model, id_) for model, id_ in rows_of_keys if type(id_) is fitting[model]]

    async def make() -> dict[tuple[Any, Any], CacheKey]:
        app = App()
        found = {}
        for model, id_ in wanted:
            async with app.session() as session:
                found[model, id_] = await app.keys(*held(session, [persistent(model, id_)]))
                session.expunge_all()
        await app.close()
        return found

    found = asyncio.run(make())
    assert len(set(found.values())) == len(set(wanted))


# --- what wants a closer look gets it, whatever stands beside it


@pytest.fixture
async def numbers(app: App) -> AsyncIterator[tuple[AsyncSession, list[Any]]]:
    session = app.session()
    yield session, held(session, [persistent(Number, id_) for id_ in range(5)])
    session.expunge_all()
    await session.close()


Numbers = tuple[AsyncSession, list[Any]]


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_one_deleted_instance_among_others(app: App, numbers: Numbers, place: int) -> None:
    session, found = numbers
    await session.run_sync(lambda sync: sync._deleted.setdefault(inspect(found[place]), found[place]))
    assert not (await app.keys(*found)).shared
    assert not (await app.keys({"in": found})).shared
    assert app.keys.private == {Private.DELETED: 2}


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_one_instance_whose_deletion_is_flushed_among_others(app: App, numbers: Numbers, place: int) -> None:
    session, found = numbers
    await session.run_sync(lambda sync: sync._remove_newly_deleted([inspect(found[place])]))
    assert not (await app.keys(*found)).shared
    assert app.keys.private == {Private.DELETED: 1}


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_one_pending_instance_among_others(app: App, numbers: Numbers, place: int) -> None:
    session, found = numbers
    session.add(pending := Number())
    assert not (await app.keys(*found[:place], pending, *found[place:])).shared
    assert app.keys.private == {Private.PENDING: 1}


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_one_detached_instance_among_others(app: App, numbers: Numbers, place: int) -> None:
    session, found = numbers
    session.expunge(found[place])
    with pytest.warns(RuntimeWarning, match=f"akv:numbers#{place}'"):
        assert not (await app.keys(*found)).shared
    assert app.keys.private == {Private.DETACHED: 1}


async def test_one_dirty_instance_that_is_not_even_named(app: App, numbers: Numbers) -> None:
    _, found = numbers
    found[0].note = "new"
    assert not (await app.keys(*found[1:])).shared
    assert app.keys.private == {Private.DIRTY: 1}


async def test_session_that_turns_dirty_while_tokens_are_read(app: App, numbers: Numbers) -> None:
    session, found = numbers
    real = app.tokens.look

    async def look(identifiers: Any, driver: Any = None) -> Any:
        seen = await real(identifiers, driver)
        session.add(Number())
        return seen

    app.tokens.look = look  # type: ignore[method-assign]
    assert not (await app.keys(*found)).shared
    assert app.keys.private == {Private.DIRTY: 1}


async def test_one_loaded_instance_of_unknown_age_among_others(app: App, numbers: Numbers) -> None:
    session, found = numbers
    session.add(loaded := persistent(Number, 77))
    assert not (await app.keys(*found)).shared
    assert loaded in session
    assert app.keys.private == {Private.RETAINED: 1}


async def test_transient_instance_among_others_is_its_table(app: App, numbers: Numbers) -> None:
    _, found = numbers
    assert (await key_and_vector(app, [*found, Number()]))[0] == await app.keys(*found, Number)


async def test_session_that_is_gone_leaves_its_instance_detached(app: App, numbers: Numbers) -> None:
    _, found = numbers
    lost = app.session()
    (orphan,) = held(lost, [persistent(Number, 50)])
    del lost
    gc.collect()
    with pytest.warns(RuntimeWarning, match="akv:numbers#50'"):
        assert not (await app.keys(*found, orphan)).shared
    assert app.keys.private == {Private.DETACHED: 1}


class ByClass(Session):
    """Works with Words elsewhere."""

    asked: list[Any]
    elsewhere: Any

    def get_bind(self, mapper: Any = None, **options: Any) -> Any:
        self.asked.append(mapper)
        chosen = inspect(mapper).class_ if mapper is not None else None
        return self.elsewhere if chosen is Word else super().get_bind(mapper=mapper, **options)


@pytest.fixture
async def elsewhere() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://")
    yield engine
    await engine.dispose()


async def test_session_of_its_own_mind_is_asked_once_for_each_class(app: App, elsewhere: AsyncEngine) -> None:
    session = AsyncSession(app.engine, sync_session_class=ByClass)
    sync: Any = session.sync_session
    sync.asked, sync.elsewhere = [], elsewhere.sync_engine
    found = held(session, [*(persistent(Number, id_) for id_ in range(3)), persistent(Code, uuid.UUID(int=1))])
    sync.asked.clear()
    assert (await app.keys(*found)).shared
    assert sync.asked == [inspect(Number), inspect(Code)]
    found += held(session, [persistent(Word, "here")])
    for things in (found, found[::-1]):
        with pytest.raises(ConfigurationError, match=r"this Word works on no engine .*bind\(engine, tokens\)"):
            await app.keys(*things)
    session.expunge_all()
    await session.close()


async def test_classes_of_one_session_on_several_engines(app: App, elsewhere: AsyncEngine) -> None:
    session = AsyncSession(binds={Number: app.engine, Word: elsewhere})
    number, word = held(session, [persistent(Number, 1), persistent(Word, "1")])
    assert (await app.keys(number)).shared
    with pytest.raises(ConfigurationError, match="this Word works on no engine"):
        await app.keys(number, word)
    theirs = RecordingTokens()
    binding = bind(elsewhere, theirs)
    with pytest.raises(ConfigurationError, match="this Word works on no engine"):
        await app.keys(number, word)
    await binding.unbind()
    binding = bind(elsewhere, app.tokens)
    assert (await app.keys(number, word)).shared
    await binding.unbind()
    session.expunge_all()
    await session.close()


async def test_same_class_in_a_bound_and_in_an_unbound_session(
    app: App, numbers: Numbers, elsewhere: AsyncEngine
) -> None:
    _, found = numbers
    async with AsyncSession(elsewhere) as stranger:
        (theirs,) = held(stranger, [persistent(Number, 7)])
        for things in ([*found, theirs], [theirs, *found]):
            with pytest.raises(ConfigurationError, match="this Number works on no engine"):
                await app.keys(*things)
        stranger.expunge_all()


async def test_row_whose_key_changed_is_the_new_row_once_it_is_committed(app: App, numbers: Numbers) -> None:
    session, found = numbers
    state: Any = inspect(found[0])
    before = await app.keys(found[0])
    await session.run_sync(lambda sync: sync.expunge(found[0]))
    state.key = (Number, (9,), None)
    session.add(found[0])
    session.expire_all()
    assert await app.keys(found[0]) != before
    assert (await key_and_vector(app, [found[0]]))[1][-1] == "akv:numbers#9"
