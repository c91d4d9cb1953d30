"""Two-phase commits: announced before PREPARE, and resolved by nothing but the end of the second phase."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, exc, insert
from sqlalchemy.ext.asyncio import async_sessionmaker

from akv.errors import CommitRefusedError
from tests.backends import Backend
from tests.servers import look
from tests.tokens.recording import RecordingTokens
from tests.tokens.shop import Item, Shop, item, shop

pytestmark = pytest.mark.backends("postgres", "mariadb")


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[tuple[Shop, RecordingTokens]]:
    if backend.dialect == "postgresql" and look(backend.url, "SHOW max_prepared_transactions") == [("0",)]:
        pytest.skip("this server prepares no transactions")
    async with shop(backend) as made:
        yield made


@pytest.fixture
def app(made: tuple[Shop, RecordingTokens]) -> Shop:
    return made[0]


async def test_session_announces_before_it_prepares_and_resolves_when_commit_returns(
    app: Shop, tokens: RecordingTokens
) -> None:
    steps = tokens.steps
    event.listen(app.engine.sync_engine, "commit_twophase", lambda *_: steps.append("second phase"))
    async with async_sessionmaker(app.engine, twophase=True)() as session:
        session.add(Item(id=1, name="a"))
        async with session.begin_nested():
            session.add(Item(id=2, name="b"))
        savepoint = await session.begin_nested()
        session.add(Item(id=3))
        await session.flush()
        await savepoint.rollback()
        await session.commit()
        assert steps == ["mark", "second phase", "resolve begins", "resolved"]
        session.add(Item(id=4))
        await session.flush()
        await session.rollback()
    assert tokens.announced == [item(1) | item(2)]
    assert await app.names() == ["a", "b"]
    await app.assert_usable()


async def test_read_only_two_phase_commit_announces_nothing(app: Shop, tokens: RecordingTokens) -> None:
    async with async_sessionmaker(app.engine, twophase=True)() as session:
        await session.get(Item, 1)
        await session.commit()
    assert tokens.steps == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_prepared_transaction_keeps_its_mark_until_it_ends(app: Shop, tokens: RecordingTokens, end: str) -> None:
    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(insert(Item).values(id=1, name="prepared"))
        transaction.prepare()
        assert tokens.marks == {"mark 1"}
        assert tokens.resolved == []
        transaction.commit() if end == "commit" else transaction.rollback()

    async with app.engine.connect() as connection:
        await connection.run_sync(work)
    await tokens.drain()
    assert tokens.announced == [item(1)]
    assert tokens.resolved == ["mark 1"]
    assert await app.names() == (["prepared"] if end == "commit" else [])
    await app.assert_usable()


async def test_commit_without_prepare_is_announced_too(app: Shop, tokens: RecordingTokens) -> None:
    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(insert(Item).values(id=1, name="at once"))
        transaction.commit()

    async with app.engine.connect() as connection:
        await connection.run_sync(work)
    assert tokens.announced == [item(1)]
    assert tokens.resolved == ["mark 1"]
    assert await app.names() == ["at once"]
    await app.assert_usable()


async def test_refused_before_prepare_nothing_is_left(app: Shop, tokens: RecordingTokens) -> None:
    tokens.refusal = CommitRefusedError("Redis is away")
    async with async_sessionmaker(app.engine, twophase=True)() as session:
        session.add(Item(id=1))
        with pytest.raises(CommitRefusedError):
            await session.commit()
        await session.rollback()
    tokens.refusal = None
    assert await app.names() == []
    await app.assert_usable()


async def test_transaction_left_behind_prepared_keeps_its_mark(
    app: Shop, tokens: RecordingTokens, backend: Backend
) -> None:
    """It can still commit, perhaps tomorrow, by another process."""
    left: list[Any] = []

    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(insert(Item).values(id=1, name="left behind"))
        transaction.prepare()
        left.append(transaction.xid)
        connection.invalidate()

    async with app.engine.connect() as connection:
        await connection.run_sync(work)
    await tokens.drain()
    assert tokens.marks == {"mark 1"}
    assert tokens.resolved == []
    if backend.driver == "psycopg":  # PostgreSQL knows it by a name that the driver makes of ours
        left = [
            name for (name,) in look(app.url, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        ]
    async with app.engine.connect() as connection:
        if backend.dialect == "postgresql":
            ((count,),) = look(app.url, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
            assert count == 1
            look(app.url, f"ROLLBACK PREPARED '{left[0]}'")
        else:
            look(app.url, f"XA ROLLBACK '{left[0]}'")
    assert await app.names() == []


async def test_recovered_transaction_is_committed_by_whoever_finds_it(
    app: Shop, tokens: RecordingTokens, backend: Backend
) -> None:
    """Its mark was set where it was prepared; what comes later is for the sweeper."""
    if backend.driver != "asyncpg":
        pytest.skip("SQLAlchemy cannot recover through this driver")
    left: list[Any] = []

    def prepare(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(insert(Item).values(id=1, name="recovered"))
        transaction.prepare()
        left.append(transaction.xid)
        connection.invalidate()

    def recover(connection: Connection) -> None:
        connection.commit_prepared(left[0], recover=True)

    async with app.engine.connect() as connection:
        await connection.run_sync(prepare)
    async with app.engine.connect() as connection:
        await connection.run_sync(recover)
    assert await app.names() == ["recovered"]
    assert tokens.marks == {"mark 1"}


async def test_prepare_that_fails_leaves_the_mark_to_the_sweeper(
    app: Shop, tokens: RecordingTokens, backend: Backend
) -> None:
    """Nobody here can tell whether it was prepared before it failed."""
    if backend.dialect == "mariadb":
        pytest.skip("InnoDB checks constraints at once, so XA PREPARE does not fail")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(
            "ALTER TABLE parts ALTER CONSTRAINT parts_item_id_fkey DEFERRABLE INITIALLY DEFERRED"
        )
        connection.commit()
        tokens.announced.clear()
        transaction = connection.begin_twophase()
        connection.exec_driver_sql("INSERT INTO parts (id, item_id, size) VALUES (1, 99, 0)")
        with pytest.raises(exc.IntegrityError):
            transaction.prepare()
        connection.invalidate()

    async with app.engine.connect() as connection:
        await connection.run_sync(work)
    await tokens.drain()
    assert len(tokens.announced) == len(tokens.marks) == 1
    await app.assert_usable()


@pytest.mark.backends("postgres18-asyncpg")
async def test_prepared_transaction_keeps_its_mark_when_prepare_seems_to_have_failed(
    app: Shop, tokens: RecordingTokens
) -> None:
    """SQLAlchemy then rolls back what is no longer there, and the connection goes back to its pool as any other."""

    def fail(_c: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("PREPARE TRANSACTION"):
            raise RuntimeError("somebody else's listener")

    def work(connection: Connection) -> None:
        event.listen(connection, "after_cursor_execute", fail)
        transaction = connection.begin_twophase()
        connection.execute(insert(Item).values(id=1, name="left behind"))
        with pytest.raises(RuntimeError):
            transaction.prepare()
        transaction.rollback()

    async with app.engine.connect() as connection:
        await connection.run_sync(work)
    await app.assert_usable()
    await tokens.drain()
    assert "mark 1" in tokens.marks
    assert "mark 1" not in tokens.resolved
    ((left,),) = look(app.url, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
    look(app.url, f"COMMIT PREPARED '{left}'")
    assert "left behind" in await app.names()
