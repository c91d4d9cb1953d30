"""Keys by tokens that stand outside of the database: marks, epochs, stamps and snapshots, on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from akv.tokens import concern
from akv.tokens.identifiers import Label
from akv.tokens.keygen import CacheKey
from akv.tokens.rules import Epoch, Private
from tests.backends import Backend
from tests.tokens.recording import RecordingTokens
from tests.tokens.shop import Item, Shop, shop

pytestmark = pytest.mark.backends(exclude="sqlite-memory")

BOUND = 30


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[tuple[Shop, RecordingTokens]]:
    async with shop(backend) as made:
        async with made[0].session.begin() as session:
            session.add_all([Item(id=1, name="old"), Item(id=2, name="b")])
        yield made


@pytest.fixture
def app(made: tuple[Shop, RecordingTokens]) -> Shop:
    return made[0]


async def key_of(app: Shop, id_: int = 1) -> CacheKey:
    async with app.session() as session:
        return await app.keys(await session.get_one(Item, id_))


async def rename(app: Shop, id_: int = 1) -> None:
    async with app.session.begin() as session:
        (await session.get_one(Item, id_)).name = "new"


def reasons(app: Shop) -> dict[Private, int]:
    return dict(app.keys.private)


async def test_commit_changes_the_key_of_its_row_only(app: Shop) -> None:
    before = [await key_of(app, 1), await key_of(app, 2), await app.keys(Item), await app.keys(Label("x"))]
    assert all(key.shared for key in before)
    assert [await key_of(app, 1), await key_of(app, 2)] == before[:2]
    await rename(app)
    after = [await key_of(app, 1), await key_of(app, 2), await app.keys(Item), await app.keys(Label("x"))]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, False, True, False]
    assert reasons(app) == {}


async def test_marked_row_is_private_and_others_are_not(app: Shop, tokens: RecordingTokens) -> None:
    tokens.at_resolve.shut()
    committing = asyncio.create_task(rename(app))
    await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
    assert not (await key_of(app)).shared
    assert not (await app.keys(Item)).shared
    assert (await key_of(app, 2)).shared
    assert reasons(app) == {Private.MARKED: 2}
    tokens.at_resolve.open()
    await asyncio.wait_for(committing, BOUND)
    assert (await key_of(app)).shared


async def test_mark_that_is_resolved_at_once_is_waited_for(
    app: Shop, tokens: RecordingTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concern, "PATIENCE", BOUND)
    tokens.at_resolve.shut()
    before = await key_of(app)
    committing = asyncio.create_task(rename(app))
    await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
    slept = asyncio.Event()

    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds == BOUND:
            tokens.at_resolve.open()
            await committing
            slept.set()
        await real(0)

    monkeypatch.setattr(concern.asyncio, "sleep", sleep)
    after = await app.keys("akv:items#1")
    monkeypatch.undo()
    assert slept.is_set(), reasons(app)
    assert after.shared
    assert await key_of(app) != before


@pytest.mark.parametrize("epoch", [None, Epoch("epoch", "run", active=False), Epoch("epoch", "other run", active=True)])
async def test_without_an_active_epoch_every_key_is_private(
    app: Shop, tokens: RecordingTokens, epoch: Epoch | None
) -> None:
    tokens.epoch = epoch
    assert not (await key_of(app)).shared
    assert not (await app.keys("value")).shared
    assert reasons(app) == {Private.EPOCH: 2}


async def test_another_epoch_makes_other_keys(app: Shop, tokens: RecordingTokens) -> None:
    before = [await app.keys(Item), await app.keys("value")]
    tokens.epoch = Epoch("another", "run", active=True)
    after = [await app.keys(Item), await app.keys("value")]
    assert all(key.shared for key in before + after)
    assert not set(before) & set(after)


async def test_unreachable_tokens_make_private_keys(app: Shop, tokens: RecordingTokens) -> None:
    tokens.unreachable = True
    assert not (await key_of(app)).shared
    assert reasons(app) == {Private.UNREACHABLE: 1}


async def test_open_transaction_older_than_a_commit_makes_its_rows_private(app: Shop, tokens: RecordingTokens) -> None:
    async with app.session() as old:
        item = await old.get_one(Item, 1)
        assert (await app.keys(item)).shared
        await asyncio.create_task(_elsewhere(rename(app)))
        assert not (await app.keys(item)).shared
        assert not (await app.keys("akv:items#1", session=old)).shared
        assert (await app.keys("akv:items#2", session=old)).shared
        await old.rollback()
        assert (await app.keys("akv:items#1", session=old)).shared
    assert reasons(app) == {Private.RETAINED: 2}


async def _elsewhere(work: object) -> None:
    """Run with an empty context, as another request does."""
    import contextvars

    await contextvars.Context().run(asyncio.create_task, work)  # type: ignore[arg-type]


async def test_repeatable_read_never_puts_its_snapshot_under_a_newer_token(app: Shop, backend: Backend) -> None:
    if backend.dialect == "sqlite":
        pytest.skip("every transaction of SQLite is a snapshot")
    engine = app.engine.execution_options(isolation_level="REPEATABLE READ")
    async with AsyncSession(engine) as old:
        await old.execute(text("SELECT count(*) FROM items"))
        await asyncio.create_task(_elsewhere(rename(app)))
        item = await old.get_one(Item, 1)
        assert item.name == "old"
        assert not (await app.keys(item)).shared
    fresh = await key_of(app)
    assert fresh.shared


async def test_core_connection_counts_like_a_session(app: Shop) -> None:
    async with app.engine.connect() as connection:
        await connection.execute(select(Item))
        assert (await app.keys("akv:items#1", session=connection)).shared
        await connection.execute(update(Item).where(Item.id == 2).values(name="x"))
        assert not (await app.keys("akv:items#1", session=connection)).shared
        await connection.rollback()
        assert (await app.keys("akv:items#1", session=connection)).shared
    assert reasons(app) == {Private.DIRTY: 1}


async def test_retained_instances_keep_the_stamp_of_their_transaction(app: Shop, tokens: RecordingTokens) -> None:
    async with AsyncSession(app.engine, expire_on_commit=False) as session:
        first = await session.get_one(Item, 1)
        await session.commit()
        assert (await app.keys(first)).shared
        await rename(app)
        await session.scalars(select(Item))  # loads nothing anew
        await session.commit()
        assert first.name == "old"
        assert not (await app.keys(first)).shared
        assert (await app.keys("akv:items#2")).shared
        assert not (await app.keys("akv:items#1", session=session)).shared
        session.expire_all()
        assert (await app.keys(first)).shared
        await session.refresh(first)
        assert first.name == "new"
        assert (await app.keys(first)).shared


async def test_own_commit_makes_retained_instances_private_until_they_are_expired(app: Shop) -> None:
    async with AsyncSession(app.engine, expire_on_commit=False) as session:
        item = await session.get_one(Item, 1)
        item.name = "mine"
        await session.commit()
        assert not (await app.keys(item)).shared
        session.expire_all()
        assert (await app.keys(item)).shared


async def test_instance_from_outside_voids_the_stamp(app: Shop) -> None:
    async with AsyncSession(app.engine, expire_on_commit=False) as session:
        old = await session.get_one(Item, 1)
    async with app.session() as session:
        other = await session.get_one(Item, 2)
        assert (await app.keys(other)).shared
        session.add(old)
        assert not (await app.keys(other)).shared
        await session.commit()
        assert (await app.keys(other)).shared


async def test_key_costs_one_read_of_tokens_and_no_statement(app: Shop, tokens: RecordingTokens) -> None:
    sent: list[str] = []
    async with app.session() as session:
        items = list(await session.scalars(select(Item)))
        event.listen(app.engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        tokens.looks = 0
        assert (await app.keys(*items, Item, "value", session=session)).shared
        assert tokens.looks == 1
        session.add(pending := Item(id=3))
        assert not (await app.keys(pending)).shared
        assert tokens.looks == 1
    assert sent == []
    assert reasons(app) == {Private.PENDING: 1}


async def test_engine_bound_to_other_tokens_is_named(app: Shop) -> None:
    other = create_async_engine(app.url)
    async with AsyncSession(other) as session:
        item = await session.get_one(Item, 1)
        with pytest.raises(ValueError, match=r"bind\(engine, tokens\)"):
            await app.keys(item)
    await other.dispose()
