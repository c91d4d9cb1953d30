"""Reads that no statement shows: identity maps, instances from outside, tasks, nested recordings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import selectinload

from akv.own import own_statements
from akv.tokens.binding import bind
from akv.tokens.reads import ENTERED, MAX_ROWS, OTHER_TOKENS, UNCOMMITTED, Reads, current, recording
from akv.tokens.sessions import record_of_session
from akv.tokens.tables import outbox_table
from tests.backends import Backend
from tests.tokens.reading import Account, Purchase, plain, recorded, rows
from tests.tokens.recording import RecordingTokens
from tests.tokens.site import Site, site, tables
from tests.tokens.test_reads import get, of
from tests.tokens.world import Engineer, Order, Person, Tag, User

pytestmark = pytest.mark.backends("sqlite-file", "postgres15")
on_sqlite = pytest.mark.backends("sqlite-file")


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


@pytest.fixture
async def outside(app: Site) -> AsyncIterator[AsyncSession]:
    """A session that keeps what it loads."""
    async with AsyncSession(app.engine, expire_on_commit=False) as session:
        yield session


# --- identity maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [False, True], ids=["in its transaction", "after it"])
async def test_row_that_the_identity_map_gives_out_is_read(app: Site, outside: AsyncSession, ended: bool) -> None:
    kept = [await outside.get(User, 1), await outside.get(User, 2)]
    if ended:
        await outside.commit()
    reads = await recorded(app, get(User, 1), outside)
    assert (reads.identifiers, reads.unattributed) == (rows("users", 1), None)
    assert reads.sessions == {outside.sync_session}
    assert kept


async def test_loaded_before_and_given_out_by_a_statement(app: Site, outside: AsyncSession) -> None:
    """A query returns the instance that is there, with the collection that was loaded before."""
    kept = await outside.get(User, 1, options=[selectinload(User.orders), selectinload(User.tags)])
    engineer = await outside.get(Engineer, 2)
    reads = await recorded(app, of(select(User).where(User.id == 1)), outside)
    assert reads.identifiers == rows("users", 1) | tables("orders", "user_tags", "tags")
    reads = await recorded(app, of(select(Person.id)), outside)
    assert reads.identifiers == tables("people") | rows("engineers", 2)
    assert kept
    assert engineer


async def test_what_hangs_on_an_instance_that_is_given_out(app: Site, outside: AsyncSession) -> None:
    account = await outside.get(Account, 2, options=[selectinload(Account.purchases).selectinload(Purchase.account)])
    assert account is not None
    reads = await recorded(app, get(Account, 2), outside)
    assert reads.identifiers == rows("users", 2) | tables("orders")
    purchase = await outside.get(Purchase, 3)
    reads = await recorded(app, get(Purchase, 3), outside)
    assert reads.identifiers == rows("users", 2) | tables("orders")  # through its account, to whatever that has loaded
    assert purchase


async def test_reference_to_a_row_is_that_row(app: Site, outside: AsyncSession) -> None:
    order = await outside.get(Order, 3, options=[selectinload(Order.user)])
    reads = await recorded(app, get(Order, 3), outside)
    assert reads.identifiers == rows("orders", 3) | rows("users", 2)
    nobody = await outside.get(Order, 4, options=[selectinload(Order.user)])
    reads = await recorded(app, get(Order, 4), outside)
    assert reads.identifiers == rows("orders", 4) | tables("users")
    assert order
    assert nobody


async def test_reference_that_the_identity_map_answers(app: Site, outside: AsyncSession) -> None:
    account = await outside.get(Account, 2)
    purchase = await outside.get(Purchase, 3)
    assert purchase is not None

    async def read(_: AsyncSession) -> None:
        assert await purchase.awaitable_attrs.account is account

    reads = await recorded(app, read, outside)
    assert reads.identifiers == rows("users", 2) | tables("orders")  # what the account has spent
    assert reads.sessions == {outside.sync_session}


async def test_expired_instance_is_loaded_again(app: Site, outside: AsyncSession) -> None:
    user = await outside.get(User, 1)
    outside.expire_all()
    reads = await recorded(app, get(User, 1), outside)
    assert (reads.identifiers, reads.unattributed) == (rows("users", 1), None)
    assert user


async def test_instance_that_a_coroutine_is_given(app: Site, outside: AsyncSession) -> None:
    user = await outside.get(User, 1, options=[selectinload(User.orders)])
    with recording(app.tokens) as reads:
        reads.hold(user)
        reads.hold("nothing")
    assert reads.identifiers == rows("users", 1) | tables("orders")
    assert reads.sessions == {outside.sync_session}
    detached = User(id=5)
    with recording(app.tokens) as reads:
        reads.hold(detached)
    assert reads.identifiers == tables("users")


async def test_session_of_the_coroutine_holds_nothing_from_outside(app: Site) -> None:
    async def read(s: AsyncSession) -> None:
        user = await s.get(User, 1)
        assert await s.get(User, 1) is user
        assert record_of_session(s.sync_session).transactions()

    reads = await recorded(app, read)
    assert reads.identifiers == rows("users", 1)


# --- what forbids saving ----------------------------------------------------------------------------------------------


async def test_unflushed_changes(app: Site, outside: AsyncSession) -> None:
    user = await outside.get(User, 1)
    assert user is not None
    user.name = "changed"
    assert (await recorded(app, get(User, 1), outside)).unattributed == UNCOMMITTED
    with outside.no_autoflush:
        assert (await recorded(app, of(select(Tag)), outside)).unattributed == UNCOMMITTED


async def test_flushed_changes(app: Site, outside: AsyncSession) -> None:
    await outside.execute(text("UPDATE users SET name = 'changed' WHERE id = 1"))
    reads = await recorded(app, of(select(User)), outside)
    assert (reads.unattributed, reads.dirty) == (UNCOMMITTED, True)
    await outside.rollback()
    reads = await recorded(app, of(select(User)), outside)
    assert (reads.unattributed, reads.dirty) == (None, False)


async def test_first_reason_is_told_and_dirt_remembered(app: Site, outside: AsyncSession) -> None:
    async def read(s: AsyncSession) -> None:
        await s.execute(text("EXPLAIN SELECT 1"))
        await s.execute(text("UPDATE users SET name = 'changed' WHERE id = 1"))

    reads = await recorded(app, read)
    assert reads.unattributed is not None
    assert "EXPLAIN" in reads.unattributed
    assert reads.dirty


async def test_changes_that_a_savepoint_takes_back_after_they_were_read(app: Site) -> None:
    async def read(s: AsyncSession) -> None:
        savepoint = await s.begin_nested()
        with own_statements():  # so that the writing itself is no reason
            await s.execute(text("SELECT 1"))
        (await s.get(User, 1)).name = "changed"  # type: ignore[union-attr]
        await s.flush()
        await s.execute(select(User))
        await savepoint.rollback()

    assert (await recorded(app, read)).unattributed is not None


@pytest.mark.parametrize("how", ["add", "merge"])
async def test_instance_that_enters_from_outside(app: Site, how: str) -> None:
    async with app.session() as session:
        user = await session.get(User, 1)
        assert user is not None
        await session.refresh(user)
        session.expunge(user)

    async def read(s: AsyncSession) -> None:
        if how == "add":
            s.add(user)
        else:
            await s.merge(user, load=False)

    assert (await recorded(app, read)).unattributed == ENTERED


async def test_engine_of_other_tokens(app: Site, backend: Backend) -> None:
    other = create_async_engine(app.engine.url)
    binding = bind(other, RecordingTokens())
    with recording(app.tokens) as reads:
        async with AsyncSession(other) as session:
            await session.execute(select(User))
    assert (reads.identifiers, reads.unattributed) == (set(), OTHER_TOKENS)
    await binding.unbind()
    with recording(app.tokens) as reads:
        async with AsyncSession(other) as session:
            await session.execute(text("SELECT 1 FROM users"))
    assert reads.unattributed is not None  # bound no more
    await other.dispose()


async def test_identity_map_of_an_unbound_engine(app: Site) -> None:
    async with AsyncSession(app.eyes) as session:
        user = await session.get(User, 1)
        assert (await recorded(app, get(User, 1), session)).unattributed == OTHER_TOKENS
        assert user


async def test_transaction_that_began_before_its_engine_was_bound(app: Site) -> None:
    engine = create_async_engine(app.engine.url)
    async with engine.connect() as connection:
        await connection.execute(select(User.id))
        binding = bind(engine, app.tokens)
        with recording(app.tokens) as reads:
            await connection.execute(select(User.id))
        assert reads.unattributed == "it reads in a transaction that began before its engine was bound"
    await binding.unbind()
    await engine.dispose()


async def test_tables_of_akv_do_not_count(app: Site, outside: AsyncSession) -> None:
    async with app.eyes.begin() as connection:
        await connection.run_sync(outbox_table.create, checkfirst=True)

    async def read(s: AsyncSession) -> None:
        await s.execute(select(outbox_table))
        await s.execute(text("SELECT * FROM akv_outbox"))
        with own_statements():
            await s.execute(select(User))

    reads = await recorded(app, read)
    assert (reads.identifiers, reads.unattributed) == (set(), None)


async def test_transaction_from_outside_is_named(app: Site, outside: AsyncSession) -> None:
    await outside.execute(select(User.id))
    (transaction,) = record_of_session(outside.sync_session).transactions()
    reads = await recorded(app, of(select(Tag)), outside)
    assert reads.transactions == {transaction}


# --- whose reads ------------------------------------------------------------------------------------------------------


async def test_tasks_of_the_coroutine_count_and_others_do_not(app: Site) -> None:
    async def read(entity: Any) -> None:
        async with app.session() as session:
            await session.scalars(select(entity))
            await asyncio.sleep(0.01)

    async def coroutine(first: Any, second: Any) -> Reads:
        with recording(app.tokens) as reads:
            await asyncio.gather(read(first), read(second))
            async with asyncio.TaskGroup() as group:
                group.create_task(read(Person))
        return reads

    one, two = await asyncio.gather(coroutine(User, Tag), coroutine(Order, Order))
    assert one.identifiers == tables("users", "tags", "people")
    assert two.identifiers == tables("orders", "people")


async def test_task_that_outlives_the_recording(app: Site) -> None:
    go = asyncio.Event()

    async def late() -> None:
        await go.wait()
        assert current() is None
        async with app.session() as session:
            await session.scalars(select(User))

    with recording(app.tokens) as reads:
        task = asyncio.create_task(late())
    go.set()
    await task
    assert (reads.identifiers, reads.unattributed, reads.sessions) == (set(), None, set())


async def test_recording_that_has_ended_learns_nothing_but_those_around_it_do(app: Site) -> None:
    go = asyncio.Event()

    async def late() -> None:
        await go.wait()
        async with app.session() as session:
            await session.scalars(select(User))

    with recording(app.tokens) as outer:
        with recording(app.tokens) as inner:
            task = asyncio.create_task(late())
        go.set()
        await task
        inner.add(["akv:label:late"])
    outer.refuse("too late")
    assert (inner.identifiers, inner.unattributed) == (set(), None)
    assert (outer.identifiers, outer.unattributed) == (tables("users") | {"akv:label:late"}, None)


async def test_nested_recordings(app: Site) -> None:
    async with app.session() as session:
        with recording(app.tokens) as outer:
            await session.scalars(select(User))
            with recording(app.tokens) as inner:
                assert current() is inner
                await session.scalars(select(Tag))
                inner.add(["akv:label:home"])
            assert current() is outer
            await session.scalars(select(Order))
            with recording(RecordingTokens()) as foreign:
                await session.scalars(select(Person))
            outer.add(["akv:memo:f#1", "akv:memo:f#*"])
    assert current() is None
    assert inner.identifiers == tables("tags") | {"akv:label:home"}
    assert foreign.identifiers == set()
    assert foreign.unattributed == OTHER_TOKENS
    own = tables("users", "tags", "orders", "people") | {"akv:label:home", "akv:memo:f#1", "akv:memo:f#*"}
    assert (outer.identifiers, outer.unattributed) == (own, None)


async def test_what_the_inner_cannot_attribute_the_outer_cannot_either(app: Site) -> None:
    with recording(app.tokens) as outer:
        with recording(app.tokens) as inner:
            inner.refuse("why")
    assert outer.unattributed == inner.unattributed == "why"
    with recording(app.tokens) as outer:
        with recording(RecordingTokens()) as inner:
            inner.add(["akv:users#1"])
    assert (outer.identifiers, outer.unattributed) == (set(), OTHER_TOKENS)


async def test_no_row_beside_its_table_and_no_more_rows_than_a_vector_should_have(app: Site) -> None:
    with recording(app.tokens) as reads:
        reads.add(rows("users", *range(MAX_ROWS)) | rows("tags", 1) | tables("tags"))
        assert reads.identifiers == rows("users", *range(MAX_ROWS)) | tables("tags")
        reads.add(rows("users", "one more"))
    assert reads.identifiers == tables("users", "tags")


@on_sqlite
async def test_sessions_of_two_makers(app: Site) -> None:
    maker = async_sessionmaker(app.engine)
    with recording(app.tokens) as reads:
        async with maker() as one, app.session() as two:
            await one.scalar(select(func.count()).select_from(User))
            await two.scalar(select(func.count()).select_from(Tag))
            assert reads.sessions == {one.sync_session, two.sync_session}
    assert plain(reads.identifiers) == tables("users", "tags")
