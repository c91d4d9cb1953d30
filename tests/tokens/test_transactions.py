"""
From BEGIN to the resolved mark, on every database and driver: what is announced, when, and what is never announced.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, exc, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from akv.errors import CommitRefusedError, UntrackedWriteError
from akv.tokens.binding import bind
from akv.tokens.drivers import Driver
from tests.backends import Backend
from tests.proxy import TCPProxy
from tests.tokens.recording import RecordingTokens
from tests.tokens.shop import ANY, Item, Part, Shop, item, shop

pytestmark = pytest.mark.backends(exclude="sqlite-memory")

BOUND = 30
"""Seconds after which a test that waits has failed."""


@pytest.fixture
def app(made: tuple[Shop, RecordingTokens]) -> Shop:
    return made[0]


# --- the order of things


async def test_mark_stands_before_the_row_is_visible_and_is_gone_when_commit_returns(
    app: Shop, tokens: RecordingTokens
) -> None:
    tokens.marked.shut()
    async with app.session() as session:
        session.add(Item(id=1, name="a"))
        committing = asyncio.create_task(session.commit())
        await asyncio.wait_for(tokens.marked.arrived.wait(), BOUND)
        assert tokens.marks == {"mark 1"}
        assert await app.names() == []
        tokens.marked.open()
        await asyncio.wait_for(committing, BOUND)
    assert await app.names() == ["a"]
    assert tokens.marks == set()
    assert tokens.resolved == ["mark 1"]
    assert tokens.changes() == item(1)


async def test_row_is_visible_before_the_mark_is_resolved(app: Shop, tokens: RecordingTokens) -> None:
    tokens.at_resolve.shut()
    async with app.session() as session:
        session.add(Item(id=1, name="a"))
        committing = asyncio.create_task(session.commit())
        await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
        assert await app.names() == ["a"]
        assert tokens.marks == {"mark 1"}
        assert not committing.done()
        tokens.at_resolve.open()
        await asyncio.wait_for(committing, BOUND)
    assert tokens.marks == set()


async def test_core_commit_returns_after_its_keys_have_changed(app: Shop, tokens: RecordingTokens) -> None:
    tokens.at_resolve.shut()
    async with app.engine.connect() as connection:
        await connection.execute(insert(Item).values(id=1))
        committing = asyncio.create_task(connection.commit())
        await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
        assert not committing.done()
        tokens.at_resolve.open()
        await asyncio.wait_for(committing, BOUND)
        assert tokens.resolved == ["mark 1"]
    async with app.engine.begin() as connection:
        await connection.execute(insert(Item).values(id=2))
    assert tokens.resolved == ["mark 1", "mark 2"]
    assert tokens.changes() == item(1) | item(2)


async def test_session_gives_its_connection_back_before_it_waits(app: Shop, tokens: RecordingTokens) -> None:
    pool: Any = app.engine.pool
    tokens.at_resolve.shut()
    async with app.session() as session:
        session.add(Item(id=1))
        committing = asyncio.create_task(session.commit())
        await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
        async with asyncio.timeout(BOUND):
            while pool.checkedout():
                await asyncio.sleep(0.001)
        tokens.at_resolve.open()
        await asyncio.wait_for(committing, BOUND)


@pytest.mark.parametrize("way", ["begin block", "maker block", "run_sync", "scoped"])
async def test_every_way_to_commit_a_session_is_the_same(app: Shop, tokens: RecordingTokens, way: str) -> None:
    if way == "begin block":
        async with app.session() as session, session.begin():
            session.add(Item(id=1))
    elif way == "maker block":
        async with app.session.begin() as session:
            session.add(Item(id=1))
    elif way == "run_sync":
        async with app.session() as session:
            session.add(Item(id=1))
            await session.run_sync(lambda sync: sync.commit())
    else:
        from sqlalchemy.ext.asyncio import async_scoped_session

        scoped = async_scoped_session(app.session, scopefunc=lambda: 1)
        scoped.add(Item(id=1))
        await scoped.commit()
        assert tokens.resolved == ["mark 1"]
        await scoped.remove()
    assert tokens.resolved == ["mark 1"]
    assert tokens.announced == [item(1)]


async def test_several_transactions_of_one_session_are_resolved_each_at_its_end(
    app: Shop, tokens: RecordingTokens
) -> None:
    async with app.session() as session:
        for number in (1, 2, 3):
            session.add(Item(id=number))
            await session.commit()
            assert tokens.resolved == [f"mark {each}" for each in range(1, number + 1)]


# --- what is not announced


async def test_read_only_commit_sends_nothing(app: Shop, tokens: RecordingTokens) -> None:
    sent: list[str] = []
    event.listen(app.engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    ran = _count_runs(app)
    async with app.session() as session:
        await session.scalars(select(Item))
        sent.clear()
        ran.clear()
        await session.commit()
    async with app.engine.connect() as connection:
        await connection.execute(select(Item))
        sent.clear()
        ran.clear()
        await connection.commit()
    assert sent == []
    assert ran == []
    assert (tokens.announced, tokens.resolved, tokens.looks) == ([], [], 0)


def _count_runs(app: Shop) -> list[object]:
    """Count what is awaited inside listeners."""
    runs: list[object] = []
    real = Driver.run

    def run(self: Driver, work: Any) -> Any:
        runs.append(work)
        return real(self, work)

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(Driver, "run", run)
    event.listen(app.engine.sync_engine, "engine_disposed", lambda _: monkeypatch.undo())
    return runs


@pytest.mark.parametrize("end", ["rollback", "close", "raise"])
@pytest.mark.parametrize("kind", ["session", "core"])
async def test_rolled_back_is_not_announced(app: Shop, tokens: RecordingTokens, end: str, kind: str) -> None:
    with pytest.raises(KeyError) if end == "raise" else _nothing():
        async with app.session() if kind == "session" else app.engine.connect() as on:
            await on.execute(insert(Item).values(id=1))
            if end == "raise":
                raise KeyError
            if end == "rollback":
                await on.rollback()
    assert (tokens.announced, tokens.resolved) == ([], [])
    await app.assert_usable()


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


async def test_savepoints_decide_what_of_a_session_is_announced(app: Shop, tokens: RecordingTokens) -> None:
    async with app.session() as session:
        async with session.begin_nested():
            session.add(Item(id=1))
        assert tokens.announced == []
        dropped = await session.begin_nested()
        session.add(Item(id=2))
        await session.flush()
        async with session.begin_nested():
            session.add(Item(id=3))
        await dropped.rollback()
        with pytest.raises(exc.IntegrityError):
            async with session.begin_nested():
                session.add_all([Item(id=4, code="same"), Item(id=5, code="same")])
        session.add(Item(id=6))
        await session.commit()
    assert tokens.announced == [item(1) | item(6)]


async def test_savepoints_of_a_core_connection_decide_alike(app: Shop, tokens: RecordingTokens) -> None:
    async with app.engine.begin() as connection:
        outer = await connection.begin_nested()
        await connection.execute(insert(Item).values(id=1))
        inner = await connection.begin_nested()
        await connection.execute(insert(Item).values(id=2))
        await inner.commit()
        await outer.rollback()
        async with connection.begin_nested():
            await connection.execute(insert(Item).values(id=3))
    assert tokens.announced == [item(3)]


async def test_outer_transaction_of_a_test_suite_decides(app: Shop, tokens: RecordingTokens) -> None:
    async with app.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Item(id=1))
            await session.commit()
            assert tokens.announced == []
        await outer.rollback()
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Item(id=2))
            await session.commit()
        await outer.commit()
        assert tokens.announced == [item(2)]
        assert tokens.resolved == ["mark 1"]


# --- refused


@pytest.mark.parametrize("kind", ["session", "core", "savepoint"])
async def test_refused_commit_writes_nothing_and_leaves_all_usable(
    app: Shop, tokens: RecordingTokens, kind: str
) -> None:
    tokens.refusal = CommitRefusedError("Redis is away")
    async with app.engine.connect() if kind == "core" else app.session() as on:
        if kind == "savepoint":
            await on.begin_nested()
        await on.execute(insert(Item).values(id=1, name="refused"))
        with pytest.raises(CommitRefusedError, match="Redis is away"):
            await on.commit()
        await on.rollback()
        tokens.refusal = None
        await on.execute(insert(Item).values(id=2, name="taken"))
        await on.commit()
    assert await app.names() == ["taken"]
    assert tokens.announced == [item(2)]
    assert tokens.marks == set()
    await app.assert_usable()


async def test_connection_of_a_refused_commit_is_not_in_a_transaction_when_it_goes_back(
    app: Shop, tokens: RecordingTokens
) -> None:
    tokens.refusal = CommitRefusedError("Redis is away")
    connection = await app.engine.connect()
    assert connection.sync_connection is not None
    driver = Driver(connection.sync_connection)
    await connection.execute(insert(Item).values(id=1, name="refused"))
    with pytest.raises(CommitRefusedError):
        await connection.commit()
    assert driver.is_idle
    await connection.close()
    tokens.refusal = None
    async with app.session() as session:
        session.add(Item(id=2, name="next user"))
        await session.commit()
    assert await app.names() == ["next user"]


async def test_transaction_block_that_is_refused_raises_and_writes_nothing(app: Shop, tokens: RecordingTokens) -> None:
    tokens.refusal = CommitRefusedError("Redis is away")
    with pytest.raises(CommitRefusedError):
        async with app.session.begin() as session:
            session.add(Item(id=1))
    with pytest.raises(CommitRefusedError):
        async with app.engine.begin() as connection:
            await connection.execute(insert(Item).values(id=1))
    tokens.refusal = None
    assert await app.names() == []
    await app.assert_usable()


@pytest.mark.backends("postgres", "mariadb")
async def test_error_of_a_statement_of_ours_is_raised_as_by_sqlalchemy(
    app: Shop, tokens: RecordingTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(driver: Driver, *_: object) -> None:
        await driver.fetch("SELECT nonsense FROM nowhere")

    monkeypatch.setattr(tokens, "announce", broken)
    async with app.session() as session:
        session.add(Item(id=1, name="refused"))
        with pytest.raises(exc.ProgrammingError, match="nowhere"):
            await session.commit()
    monkeypatch.undo()
    assert await app.names() == []
    await app.assert_usable()


async def test_commit_that_the_database_refuses_is_resolved_once_it_has_ended(
    app: Shop, tokens: RecordingTokens, backend: Backend
) -> None:
    """The mark stood; the transaction can commit no more, and whoever waits need not wait for a sweeper."""
    if backend.dialect == "mariadb":
        pytest.skip("InnoDB checks constraints at once, so COMMIT does not fail")
    async with app.session() as session:
        if backend.dialect == "postgresql":
            await session.execute(text("ALTER TABLE parts ALTER CONSTRAINT parts_item_id_fkey DEFERRABLE"))
            await session.commit()
            await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        else:
            await session.execute(text("PRAGMA defer_foreign_keys = ON"))
            await session.commit()
            await app.engine.dispose()
            event.listen(app.engine.sync_engine, "connect", _check_foreign_keys)
            await session.execute(text("PRAGMA defer_foreign_keys = ON"))
        tokens.announced.clear()
        tokens.resolved.clear()
        session.add(Part(id=1, item_id=99))
        with pytest.raises(exc.IntegrityError):
            await session.commit()
    await tokens.drain()
    assert len(tokens.announced) == len(tokens.resolved) == 1
    assert tokens.marks == set()
    await app.assert_usable()


def _check_foreign_keys(dbapi: Any, _: object) -> None:
    dbapi.cursor().execute("PRAGMA foreign_keys=ON")


# --- nobody knows how it ended


@pytest.mark.backends("postgres", "mariadb")
async def test_nothing_is_resolved_when_the_reply_to_commit_is_lost(backend: Backend) -> None:
    """Whether it was done only the database knows: the mark stays for those who will ask it."""
    direct, tokens = backend.fresh_url(), RecordingTokens()
    async with TCPProxy.before(direct) as proxy:
        app = Shop(proxy.url, tokens, direct_url=direct)
        await app.create()
        app.bind()
        async with app.session() as session:
            session.add(Item(id=1, name="landed"))
            await session.flush()
            proxy.cut_reply_to(b"COMMIT")
            with pytest.raises(exc.DBAPIError):
                await session.commit()
        await tokens.drain()
        assert await app.names() == ["landed"]
        assert tokens.marks == {"mark 1"}
        assert tokens.resolved == []
        await app.assert_usable()
        await app.close()


# --- AUTOCOMMIT, transaction control


async def test_dml_on_an_autocommit_connection_is_refused_before_it_runs(app: Shop, tokens: RecordingTokens) -> None:
    async with app.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert (await connection.scalars(select(Item.id))).all() == []
        for write in (insert(Item).values(id=1), text("INSERT INTO items (id, name) VALUES (1, 'x')")):
            with pytest.raises(UntrackedWriteError, match="akv_untracked"):
                await connection.execute(write)
        assert (await connection.scalars(select(Item.id))).all() == []
        await connection.execute(insert(Item).values(id=1), execution_options={"akv_untracked": True})
        await connection.commit()
        assert tokens.announced == []
        assert app.binding is not None
        await app.binding.touch(connection, Item)
        assert tokens.bumped == [{"akv:items#~", "akv:items#*", ANY}]
    async with app.engine.connect() as connection:  # the next user has real transactions again
        await connection.execute(insert(Item).values(id=2))
        await connection.rollback()
    assert len(await app.names()) == 1


async def test_touched_in_a_transaction_is_announced_iff_it_commits(app: Shop, tokens: RecordingTokens) -> None:
    assert app.binding is not None
    async with app.session() as session:
        await app.binding.touch(session, Item)
        await session.rollback()
        assert tokens.announced == []
        await app.binding.touch(session, Item)
        await session.commit()
    assert tokens.announced == [{"akv:items#~", "akv:items#*", ANY}]
    assert tokens.resolved == ["mark 1"]
    await app.assert_usable()


@pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "/* now */ commit work"])
async def test_transaction_control_in_sql_is_refused(app: Shop, tokens: RecordingTokens, sql: str) -> None:
    async with app.session() as session:
        session.add(Item(id=1))
        await session.flush()
        with pytest.raises(UntrackedWriteError, match=r"use commit\(\)"):
            await session.execute(text(sql))
        await session.commit()
    assert tokens.announced == [item(1)]


# --- before and after bind


async def test_transaction_open_at_bind_counts_as_anything(app: Shop, tokens: RecordingTokens) -> None:
    assert app.binding is not None
    await app.binding.unbind()
    async with app.session() as session:
        await session.execute(insert(Item).values(id=1))
        app.bind()
        await session.commit()
    assert tokens.announced == [{"akv:*#~", ANY}]
    assert tokens.resolved == ["mark 1"]
    await app.assert_usable()


async def test_read_only_transaction_open_at_bind_leaves_no_mark(app: Shop, tokens: RecordingTokens) -> None:
    assert app.binding is not None
    await app.binding.unbind()
    async with app.session() as session:
        await session.execute(select(Item))
        app.bind()
        await session.commit()
    await tokens.drain()
    assert tokens.marks == set()


@pytest.mark.backends("postgres18-psycopg")
async def test_what_is_loaded_in_a_snapshot_that_somebody_left_open_is_private(backend: Backend) -> None:
    """The snapshot is older than the transaction that finds it; rolled back, that announces nothing."""
    kept: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "pool_size": 1, "pool_reset_on_return": None}
    async with shop(backend, max_overflow=0, **kept) as (app, tokens):
        async with app.session.begin() as session:
            session.add(Item(id=1, name="old"))
        left: Any = await app.engine.raw_connection()
        await left.driver_connection.execute("SELECT count(*) FROM items")
        left.close()
        other = Shop(app.url, tokens)
        other.bind()
        async with other.session.begin() as session:
            (await session.get_one(Item, 1)).name = "new"
        announced = len(tokens.announced)
        async with app.engine.connect() as connection:
            outer = await connection.begin()
            options: dict[str, Any] = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
            async with AsyncSession(connection, **options) as session:
                loaded = await session.get_one(Item, 1)
                assert loaded.name == "old"
                await session.commit()
                await outer.rollback()
                assert not (await app.keys(loaded)).shared
                session.expire_all()
                await session.refresh(loaded)
                assert loaded.name == "new"
                assert (await app.keys(loaded)).shared
        assert len(tokens.announced) == announced
        await other.close()


async def test_transaction_that_began_before_unbind_is_still_announced(app: Shop, tokens: RecordingTokens) -> None:
    assert app.binding is not None
    async with app.session() as session:
        session.add(Item(id=1))
        await session.flush()
        await app.binding.unbind()
        await session.commit()
    assert tokens.announced == [item(1)]
    assert tokens.resolved == ["mark 1"]
    async with app.session() as session:
        session.add(Item(id=2))
        await session.commit()
    assert tokens.announced == [item(1)]
    assert tokens.attached == []


async def test_drain_waits_for_what_nobody_joined(app: Shop, tokens: RecordingTokens) -> None:
    tokens.at_resolve.shut()
    async with app.session() as session:
        session.add(Item(id=1))
        committing = asyncio.create_task(session.commit())
        await asyncio.wait_for(tokens.at_resolve.arrived.wait(), BOUND)
        committing.cancel()
        assert app.binding is not None
        draining = asyncio.create_task(app.binding.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        tokens.at_resolve.open()
        with pytest.raises(asyncio.CancelledError):
            await committing
        await asyncio.wait_for(draining, BOUND)
        assert tokens.resolved == ["mark 1"]
        session.add(Item(id=2))
        await session.commit()  # the session has not noticed
    assert tokens.resolved == ["mark 1", "mark 2"]


# --- several engines


async def test_each_engine_of_a_session_is_announced_to_its_own_tokens(backend: Backend) -> None:
    async with shop(backend) as (first, ours), shop(backend) as (second, theirs):
        session = async_sessionmaker(binds={Item: first.engine, Part: second.engine})()
        async with session:
            session.add_all([Item(id=1), Part(id=1)])
            await session.commit()
            assert (ours.resolved, theirs.resolved) == (["mark 1"], ["mark 1"])
            session.add_all([Item(id=2), Part(id=2)])
            await session.rollback()
        assert ours.announced == [item(1)]
        assert theirs.announced == [{"akv:parts#1", "akv:parts#*", ANY}]


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
async def test_engine_that_committed_before_the_other_refused_is_resolved(backend: Backend) -> None:
    """Without two-phase commit nobody can prevent that one half is in the database; it is announced like any other."""
    async with shop(backend) as (first, ours), shop(backend) as (second, theirs):
        session = async_sessionmaker(binds={Item: first.engine, Part: second.engine})()
        theirs.refusal = ours.refusal = CommitRefusedError("Redis is away")
        async with session:
            session.add_all([Item(id=1), Part(id=1)])
            await session.flush()
            for number, tokens in enumerate((ours, theirs), start=2):
                tokens.refusal = None
                with pytest.raises(CommitRefusedError):
                    await session.commit()
                await session.rollback()
                tokens.refusal = CommitRefusedError("Redis is away")
                session.add_all([Item(id=number), Part(id=number)])
        await ours.drain()
        await theirs.drain()
        assert ours.marks == theirs.marks == set()
        ours.refusal = theirs.refusal = None
        await first.assert_usable()
        await second.assert_usable()


# --- listeners of others


async def test_what_another_listener_writes_just_before_commit_is_announced_too(
    app: Shop, tokens: RecordingTokens
) -> None:
    write = insert(Item).values(id=7)
    event.listen(app.engine.sync_engine, "commit", lambda connection: connection.execute(write), once=True)
    async with app.session.begin() as session:
        session.add(Part(id=1))
    assert tokens.announced == [{"akv:parts#1", "akv:parts#*", ANY}, item(7)]
    assert sorted(tokens.resolved) == ["mark 1", "mark 2"]
    assert tokens.marks == set()


async def test_listener_of_another_that_fails_before_commit_leaves_no_mark(app: Shop, tokens: RecordingTokens) -> None:
    def fail(_: object) -> None:
        raise KeyError("theirs")

    event.listen(app.engine.sync_engine, "commit", fail, once=True)
    with pytest.raises(KeyError, match="theirs"):
        async with app.session.begin() as session:
            session.add(Item(id=1))
    await tokens.drain()
    assert len(tokens.announced) == 1
    assert tokens.marks == set()
    assert await app.names() == []
    await app.assert_usable()


async def test_stamp_is_asked_to_be_fresh_before_the_first_statement_only(app: Shop, tokens: RecordingTokens) -> None:
    async with app.session() as session:
        await session.scalars(select(Item))
        assert tokens.freshened == 1
        await session.execute(update(Item).values(name="x"))
        assert tokens.freshened == 1
        await session.commit()
        await session.scalars(select(Item))
    assert tokens.freshened == 2


async def test_engine_is_prepared_once_and_outside_of_the_transaction(backend: Backend) -> None:
    async with shop(backend) as (app, tokens):
        begun: list[bool] = []

        def look(connection: Any) -> None:
            begun.append(Driver(connection).in_transaction)

        event.listen(app.engine.sync_engine, "begin", look)
        for _ in range(2):
            async with app.session() as session:
                await session.scalars(select(Item))
        assert tokens.prepared == [app.engine.sync_engine]
        assert begun == [backend.dialect == "sqlite"] * 2  # SQLite's BEGIN was sent by a listener before this one


@pytest.mark.backends("postgres", "mariadb")
async def test_connection_that_died_in_the_pool_is_given_up_at_the_first_statement_of_ours(backend: Backend) -> None:
    url = backend.fresh_url()
    async with TCPProxy.before(url) as proxy:
        app = Shop(proxy.url, RecordingTokens(), direct_url=url, pool_size=1, max_overflow=0)
        try:
            await app.create()
            app.bind()
            proxy.cut()
            with pytest.raises(exc.DBAPIError) as caught:
                async with app.session() as session:
                    await session.scalars(select(Item))
            assert caught.value.connection_invalidated
            await app.assert_usable()
        finally:
            await app.close()


async def test_binding_again_attaches_once(app: Shop, tokens: RecordingTokens) -> None:
    again = bind(app.session, tokens)
    assert tokens.attached == [app.engine.sync_engine]
    await again.unbind()
    assert tokens.attached == [app.engine.sync_engine]
