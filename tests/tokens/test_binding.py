"""bind(): what it takes, what it refuses, and what becomes of transactions that go wrong at the worst moment."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import Insert, event, exc, insert, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from akv.errors import ClosedError, ConfigurationError, InvalidIdentifierError, UntrackedWriteError
from akv.tokens.binding import bind
from akv.tokens.database import DatabaseTokens
from tests.report import stable_id
from tests.tokens.world import Base, Line, Order, User, World, records

ANY = "akv:*#*"
UNKNOWN = {"akv:*#~", ANY}


@pytest.fixture
async def loose(tmp_path: Path) -> AsyncIterator[World]:
    """An application whose engine is not bound yet."""
    app = World(tmp_path / "app.db")
    await app.create()
    yield app
    await app.close()


async def bumps(app: World, engine: AsyncEngine | None = None) -> bool:
    """Tell whether a commit is announced."""
    before = await app.tokens_table()
    async with AsyncSession(engine or app.engine) as s:
        s.add(User())
        await s.commit()
    return bool(await app.bumped_since(before))


# --- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["engine", "options", "maker", "binds", "session", "scoped", "connection"])
async def test_everything_that_leads_to_an_engine_binds_it(loose: World, kind: str) -> None:
    async with loose.engine.connect() as connection, loose.session() as session:
        target: Any = {
            "engine": loose.engine,
            "options": loose.engine.execution_options(compiled_cache=None),
            "maker": loose.session,
            "binds": async_sessionmaker(binds={User: loose.engine}),
            "session": session,
            "scoped": async_scoped_session(loose.session, scopefunc=lambda: 1),
            "connection": connection,
        }[kind]
        assert not await bumps(loose)
        binding = bind(target, loose.tokens)
        assert await bumps(loose)
        await binding.unbind()
        assert not await bumps(loose)


async def test_begin_handling_that_was_there_before_is_no_transaction_of_unknown_content(loose: World) -> None:
    @event.listens_for(loose.engine.sync_engine, "connect")
    def leave_transactions_to_sqlalchemy(dbapi: Any, _record: object) -> None:
        dbapi.isolation_level = None

    @event.listens_for(loose.engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    await loose.engine.dispose()
    bind(loose.engine, loose.tokens)
    async with loose.session.begin() as session:
        session.add_all([User(id=1), User(id=2)])
    before = await loose.tokens_table()
    async with loose.session.begin() as session:
        (await session.get_one(User, 1)).name = "Ada"
    assert await loose.bumped_since(before) == records({"akv:users#1", "akv:users#*", ANY})


@pytest.mark.parametrize(
    "target", [None, "sqlite:///x", AsyncSession, async_sessionmaker(), AsyncSession(), object()], ids=stable_id
)
async def test_what_leads_to_no_engine_is_refused(loose: World, target: Any) -> None:
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        bind(target, loose.tokens)


async def test_sync_engine_is_refused(loose: World) -> None:
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        bind(loose.engine.sync_engine, loose.tokens)  # type: ignore[arg-type]


async def test_bindings_of_one_engine_are_counted(loose: World) -> None:
    first, second = bind(loose.engine, loose.tokens), bind(loose.session, loose.tokens)
    await first.unbind()
    await first.unbind()
    assert await bumps(loose)
    await second.unbind()
    assert not await bumps(loose)
    third = bind(loose.engine, loose.tokens)
    assert await bumps(loose)
    await third.unbind()


async def test_binding_twice_announces_once(loose: World) -> None:
    bindings = [bind(loose.engine, loose.tokens) for _ in range(3)]
    await bumps(loose)
    before = (await loose.tokens_table())[""]
    await bumps(loose)
    assert (await loose.tokens_table())[""] == before + 1
    for binding in bindings:
        await binding.unbind()


async def test_other_tokens_are_refused_until_the_first_are_unbound(loose: World) -> None:
    binding = bind(loose.engine, loose.tokens)
    other = DatabaseTokens(loose.url)
    with pytest.raises(ConfigurationError, match="unbind those first"):
        bind(loose.engine, other)
    await binding.unbind()
    rebound = bind(loose.engine, other)
    assert await bumps(loose)
    await rebound.unbind()
    await other.aclose()


async def test_transaction_that_began_before_unbind_is_still_announced(loose: World) -> None:
    binding = bind(loose.engine, loose.tokens)
    before = await loose.tokens_table()
    async with loose.session() as s:
        s.add(User())
        await s.flush()
        await binding.unbind()
        await s.commit()
    assert await loose.bumped_since(before) == records({"akv:users#1", "akv:users#*", ANY})


# --- BEGIN ---------------------------------------------------------------------------------------------------------


async def savepoint_survives_rollback(app: World) -> bool:
    """Tell whether a released savepoint is undone by rolling back, as only a real transaction does it."""
    async with app.session() as s:
        async with s.begin_nested():
            s.add(User(name="ghost"))
        await s.rollback()
        return (await s.scalar(select(User).where(User.name == "ghost"))) is not None


async def test_bind_makes_savepoints_real_on_an_ordinary_engine_and_says_so_once(
    loose: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="akv")
    assert await savepoint_survives_rollback(loose)  # and leaves a connection in the pool in the driver's default mode
    async with loose.session.begin() as s:
        await s.execute(text("DELETE FROM users"))
    binding = loose.bind()
    before = await loose.tokens_table()
    assert not await savepoint_survives_rollback(loose)
    assert not await savepoint_survives_rollback(loose)
    assert await loose.bumped_since(before) == set()
    assert [record.getMessage() for record in caplog.records if "BEGIN" in record.getMessage()] == [
        f"akv sends BEGIN on {loose.engine.sync_engine!r}: the driver would not, and would commit SAVEPOINTs on its own"
    ]
    await binding.unbind()


async def test_begin_handling_of_the_application_is_left_alone(loose: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="akv")
    said: list[str] = []

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(loose.engine.sync_engine, "connect", lambda dbapi, _: setattr(dbapi, "isolation_level", None))
    event.listen(loose.engine.sync_engine, "begin", begin)
    event.listen(loose.engine.sync_engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    await loose.engine.dispose()
    binding = bind(loose.engine, loose.tokens, install_begin=False)
    assert await bumps(loose)
    assert [sql for sql in said if sql.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
    assert not [record for record in caplog.records if "BEGIN" in record.getMessage()]
    await binding.unbind()


async def test_install_begin_false_refuses_an_engine_in_the_default_mode(loose: World) -> None:
    if sys.version_info < (3, 12):
        with pytest.raises(ConfigurationError, match="install_begin"):
            bind(loose.engine, loose.tokens, install_begin=False)
    event.listen(loose.engine.sync_engine, "begin", lambda _: None)  # now it might handle BEGIN, and does not
    binding = bind(loose.engine, loose.tokens, install_begin=False)
    async with loose.session() as s:
        with pytest.raises(ConfigurationError, match="install_begin"):
            await s.execute(select(User))
    await binding.unbind()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has autocommit=False since Python 3.12")
async def test_autocommit_false_of_the_driver_needs_no_begin(loose: World) -> None:
    engine = create_async_engine(loose.url, connect_args={"autocommit": False})
    binding = bind(engine, loose.tokens, install_begin=False)
    assert await bumps(loose, engine)
    async with AsyncSession(engine) as s:
        assert (await loose.keys(User, session=s)).shared
    await binding.unbind()
    await engine.dispose()


# --- transactions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrote", [True, False])
async def test_transaction_open_at_bind_counts_as_anything(loose: World, wrote: bool) -> None:
    before = await loose.tokens_table()
    async with loose.session() as s:
        await s.execute(text("BEGIN"))
        if wrote:
            s.add(User())
            await s.flush()
        loose.bind()
        await s.commit()
    assert await loose.bumped_since(before) >= UNKNOWN


async def test_transaction_of_unknown_content_left_open_counts_as_anything(app: World) -> None:
    async with app.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("BEGIN")
        await driver.execute("INSERT INTO users (name) VALUES ('x')")
        before = await app.tokens_table()
        await connection.execute(select(User))
        await connection.commit()
    assert await app.bumped_since(before) >= UNKNOWN


@pytest.mark.parametrize("how", ["option", "engine"])
async def test_dml_on_an_autocommit_connection_is_refused_before_it_runs(app: World, how: str) -> None:
    engine = app.engine if how == "option" else create_async_engine(app.url, isolation_level="AUTOCOMMIT")
    binding = bind(engine, app.tokens)
    async with engine.connect() as connection:
        if how == "option":
            await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert (await connection.scalar(text("SELECT count(*) FROM users"))) == 0
        with pytest.raises(UntrackedWriteError, match="akv_untracked"):
            await connection.execute(insert(User))
        with pytest.raises(UntrackedWriteError, match="akv_untracked"):
            await connection.execute(text("INSERT INTO users (name) VALUES ('x')"))
        assert (await connection.scalar(text("SELECT count(*) FROM users"))) == 0
        before = await app.tokens_table()
        await connection.execute(insert(User).values(name="x"), execution_options={"akv_untracked": True})
        assert await app.bumped_since(before) == set()
        await binding.touch(connection, User)
        assert "akv:users#~" in await app.bumped_since(before)
    async with app.engine.connect() as connection:  # the next user of the connection has real transactions again
        await connection.execute(insert(User).values(name="y"))
        await connection.rollback()
        assert (await connection.scalar(text("SELECT count(*) FROM users"))) == 1
    await binding.unbind()
    if engine is not app.engine:
        await engine.dispose()


@pytest.mark.parametrize(
    "sql", [insert(User).values(id=7), text("INSERT INTO users (id, name) VALUES (7, '')")], ids=["core", "text"]
)
async def test_what_a_listener_writes_just_before_commit_is_announced_too(app: World, sql: Any) -> None:
    """An outbox, for instance, stands on the engine's commit event as we do."""
    event.listen(app.engine.sync_engine, "commit", lambda connection: connection.execute(sql), once=True)
    before = await app.tokens_table()
    async with app.session.begin() as s:
        s.add(Order(id=1))
    row = "akv:users#7" if isinstance(sql, Insert) else "akv:users#~"
    bumped = await app.bumped_since(before)
    assert bumped >= records({row, "akv:users#*", "akv:orders#1", "akv:orders#*", ANY})
    assert not bumped & records({"akv:*#~"})
    async with app.session() as s:
        assert (await app.keys(await s.get_one(User, 7))).shared


async def test_what_a_trigger_adds_to_a_late_write_is_announced_too(app: World) -> None:
    async with app.session.begin() as s:
        await s.execute(
            text("CREATE TRIGGER t AFTER INSERT ON users BEGIN INSERT INTO orders (id, total) VALUES (new.id, 0); END")
        )
    event.listen(
        app.engine.sync_engine, "commit", lambda connection: connection.execute(insert(User).values(id=7)), once=True
    )
    before = await app.tokens_table()
    async with app.session.begin() as s:
        s.add(Order(id=1))
    assert await app.bumped_since(before) >= records({"akv:users#*", "akv:orders#~", "akv:orders#*", ANY})


@pytest.mark.parametrize("alone", [False, True])
async def test_a_late_write_that_never_reports_back_counts_as_all_that_it_could_change(app: World, alone: bool) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("after the database has done it")

    def write(connection: Any) -> None:
        event.listen(connection, "after_execute", fail)
        with pytest.raises(RuntimeError):
            connection.execute(insert(User).values(id=7))

    event.listen(app.engine.sync_engine, "commit", write, once=True)
    before = await app.tokens_table()
    async with app.session.begin() as s:
        await s.execute(select(User))
        s.add_all([] if alone else [Order(id=1)])
    expected = {"akv:users#~", "akv:users#*", ANY} | (set() if alone else {"akv:orders#1"})
    assert await app.bumped_since(before) >= records(expected)


async def test_untracked_inside_a_transaction_is_announced_all_the_same(app: World) -> None:
    before = await app.tokens_table()
    async with app.session.begin() as s:
        await s.execute(insert(User).values(id=5), execution_options={"akv_untracked": True})
    assert await app.bumped_since(before) == records({"akv:users#5", "akv:users#*", ANY})


@pytest.mark.parametrize("sql", ["COMMIT", "/* now */ end transaction", "ROLLBACK;"])
async def test_transaction_control_in_sql_is_refused(app: World, sql: str) -> None:
    async with app.session() as s:
        s.add(User())
        await s.flush()
        with pytest.raises(UntrackedWriteError, match=r"use commit\(\)"):
            await s.execute(text(sql))


async def test_savepoints_in_sql_count_like_those_of_the_session(app: World) -> None:
    before = await app.tokens_table()
    async with app.engine.begin() as connection:
        await connection.execute(text('SAVEPOINT "Mine"'))
        await connection.execute(insert(User).values(id=1))
        await connection.execute(text("ROLLBACK TRANSACTION TO SAVEPOINT mine"))
        await connection.execute(insert(User).values(id=2))
        await connection.execute(text("RELEASE mine"))
    assert await app.bumped_since(before) == records({"akv:users#2", "akv:users#*", ANY})


async def test_savepoints_of_a_core_connection_count(app: World) -> None:
    before = await app.tokens_table()
    async with app.engine.begin() as connection:
        outer = await connection.begin_nested()
        await connection.execute(insert(User).values(id=1))
        inner = await connection.begin_nested()
        await connection.execute(insert(User).values(id=2))
        await inner.commit()
        await outer.rollback()
        async with connection.begin_nested():
            await connection.execute(insert(User).values(id=3))
    assert await app.bumped_since(before) == records({"akv:users#3", "akv:users#*", ANY})


async def test_outer_transaction_of_a_test_suite_decides(app: World) -> None:
    before = await app.tokens_table()
    async with app.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as s:
            s.add(User())
            await s.commit()
            assert not (await app.keys(User, session=s)).shared
        await outer.rollback()
    assert await app.bumped_since(before) == set()


# --- commits that go wrong -----------------------------------------------------------------------------------------


async def assert_usable(app: World) -> None:
    """The pool has its connections back, none of them in a transaction, and the next commit is announced."""
    pool: Any = app.engine.pool
    assert pool.checkedout() == 0
    async with app.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        assert not raw.in_transaction
    assert await bumps(app)


async def test_refused_bump_rolls_the_write_back(app: World) -> None:
    await app.engine.dispose()
    async with aiosqlite.connect(app.path) as other:
        await other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON akv_token BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        await other.commit()
    async with app.session() as s:
        s.add(User(name="refused"))
        with pytest.raises(exc.DatabaseError, match="disk full"):
            await s.commit()
    async with aiosqlite.connect(app.path) as other:
        await other.execute("DROP TRIGGER full")
        await other.commit()
    await assert_usable(app)
    async with app.session() as s:
        assert await s.scalar(select(User).where(User.name == "refused")) is None


async def test_refused_commit_is_not_committed_by_what_follows_on_the_same_connection(app: World) -> None:
    impatient = create_async_engine(app.url, connect_args={"timeout": 0})
    binding = bind(impatient, app.tokens)
    async with impatient.connect() as connection, aiosqlite.connect(app.path) as other:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("CREATE TEMP TABLE mine (id INTEGER)"))
        await connection.execute(text("INSERT INTO mine VALUES (1)"))  # needs no lock of the file; the bump does
        await other.execute("BEGIN IMMEDIATE")
        with pytest.raises(exc.OperationalError, match="locked"):
            await connection.commit()
        assert not raw.in_transaction
        await connection.rollback()
        await other.rollback()
        with pytest.raises(exc.OperationalError, match="no such table"):
            await connection.execute(text("SELECT * FROM mine"))
    await binding.unbind()
    await impatient.dispose()


async def test_failed_commit_is_not_committed_by_the_next_user_of_the_connection(app: World) -> None:
    async with app.session.begin() as s:
        s.add(Order(id=1))
    async with app.session() as s:
        await s.execute(text("PRAGMA foreign_keys"))
    await app.engine.dispose()
    event.listen(app.engine.sync_engine, "connect", lambda dbapi, _: dbapi.cursor().execute("PRAGMA foreign_keys=ON"))
    async with app.session() as s:
        await s.execute(text("PRAGMA defer_foreign_keys = ON"))
        s.add(Line(order_id=99, number=1))
        with pytest.raises(exc.IntegrityError):
            await s.commit()  # COMMIT itself fails and leaves SQLite's transaction open
    before = await app.tokens_table()
    async with app.session.begin() as s:
        assert (await s.scalars(select(Line))).all() == []
    assert await app.bumped_since(before) == set()
    await assert_usable(app)


async def _take(steps: int, task: asyncio.Task[None]) -> None:
    """Let the loop turn so often; behind 300 turns it only waits for SQLite's thread, so wait for that, ever longer."""
    for _ in range(min(steps, 300)):
        await asyncio.sleep(0)
    if steps > 300:
        await asyncio.wait([task], timeout=0.001 * 1.5 ** (steps - 300))


async def test_cancelled_commit_is_whole_or_not_at_all(app: World) -> None:
    """Cancel at every step of the event loop until the commit gets through; token and row always agree."""
    finished = False
    for steps in range(328):
        before = await app.tokens_table()
        task = asyncio.ensure_future(_commit_one(app, f"n{steps}"))
        await _take(steps, task)
        finished = task.done()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, exc.SQLAlchemyError)) if not finished else _nothing():
            await task
        async with app.session() as s:
            landed = await s.scalar(select(User.id).where(User.name == f"n{steps}"))
        bumped = await app.bumped_since(before)
        assert (landed is not None) == ("akv:users#*" in bumped)
        if finished:
            break
    assert finished
    await assert_usable(app)


async def _commit_one(app: World, name: str) -> None:
    async with app.session() as s:
        s.add(User(name=name))
        await s.commit()


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("point", ["count", "bump_records"])
async def test_cancellation_inside_the_bump_rolls_back(app: World, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from akv.tokens import records as table

    real, inside = getattr(table, point), asyncio.Event()

    async def slow(*args: Any) -> Any:
        result = await real(*args)
        inside.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return result

    monkeypatch.setattr(table, point, slow)
    before = await app.tokens_table()
    task = asyncio.ensure_future(_commit_one(app, "cancelled"))
    await asyncio.wait_for(inside.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert await app.bumped_since(before) == set()
    async with app.session() as s:
        assert await s.scalar(select(User).where(User.name == "cancelled")) is None
    await assert_usable(app)


async def test_busy_at_commit_rolls_back_and_is_raised_as_sqlalchemy_does(app: World) -> None:
    """A transaction that only touched takes the write lock at its commit, and may not get it."""
    binding = app.bind()
    impatient = create_async_engine(app.url, connect_args={"timeout": 0})
    bound = bind(impatient, app.tokens)
    async with aiosqlite.connect(app.path) as other:
        await other.execute("BEGIN IMMEDIATE")
        async with AsyncSession(impatient) as s:
            await binding.touch(s, User)
            with pytest.raises(exc.OperationalError, match="locked"):
                await s.commit()
        await other.rollback()
    async with AsyncSession(impatient) as s:
        await binding.touch(s, User)
        await s.commit()
    for each in (binding, bound):
        await each.unbind()
    await impatient.dispose()


# --- databases and options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://localhost/x", "counter rows would serialise"),
        ("mysql+asyncmy://localhost/x", "RedisTokens"),
        ("sqlite:///app.db", r"sqlite\+aiosqlite"),
        ("sqlite+aiosqlite://", "database file"),
        ("sqlite+aiosqlite:///:memory:", "database file"),
        ("sqlite+aiosqlite:///file:x?mode=memory&cache=shared&uri=true", "database file"),
        ("no url", "URL"),
        (5, "URL"),
        (None, "URL"),
    ],
)
def test_other_databases_are_refused_with_the_reason(url: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        DatabaseTokens(url)


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "8", 2**41, None])
def test_bad_slots_are_refused(slots: Any) -> None:
    with pytest.raises(ConfigurationError, match="slots"):
        DatabaseTokens("sqlite+aiosqlite:///app.db", slots=slots)


async def test_engine_of_another_kind_is_refused_at_bind(loose: World) -> None:
    for url in ("postgresql+asyncpg://localhost/x", "sqlite+aiosqlite://"):
        engine = create_async_engine(url)
        with pytest.raises(ConfigurationError):
            bind(engine, loose.tokens)
        await engine.dispose()


async def test_engine_of_another_file_is_refused_at_its_first_transaction(loose: World, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    binding = bind(engine, loose.tokens)
    for _ in range(2):
        async with AsyncSession(engine) as s:
            s.add(User())
            with pytest.raises(ConfigurationError, match="same file"):
                await s.commit()
    async with AsyncSession(engine) as s:
        await binding.unbind()
        assert (await s.scalars(select(User))).all() == []
    await engine.dispose()


async def test_connection_to_another_file_is_refused_even_if_the_first_one_was_right(
    app: World, tmp_path: Path
) -> None:
    other = World(tmp_path / "other.db")
    await other.create()
    elsewhere = False

    def connect(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        _arguments[:] = [str(other.path if elsewhere else app.path)]

    event.listen(app.engine.sync_engine, "do_connect", connect)
    assert await bumps(app)
    await app.engine.dispose()
    elsewhere = True
    async with app.session() as s:
        with pytest.raises(ConfigurationError, match="same file"):
            await app.keys(User, *(await s.scalars(select(User))))
        s.add(User())
        with pytest.raises(ConfigurationError, match="same file"):
            await s.commit()
    async with aiosqlite.connect(other.path) as eyes:
        assert list(await eyes.execute_fetchall("SELECT * FROM users")) == []
    await other.close()


async def test_tables_that_are_not_to_be_created_are_named_when_missing(tmp_path: Path) -> None:
    app = World(tmp_path / "app.db")
    await app.use(DatabaseTokens(app.url, create_tables=False))
    async with app.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    with pytest.raises(ConfigurationError, match="create_tables=True"):
        await app.tokens.read([ANY])
    app.bind()
    async with app.session() as s:
        s.add(User())
        with pytest.raises(ConfigurationError, match=r"DatabaseTokens\.metadata"):
            await s.commit()
    async with app.engine.begin() as connection:
        await connection.run_sync(DatabaseTokens.metadata.create_all)
    assert await bumps(app)
    await app.tokens.read([ANY])
    await app.close()


async def test_table_is_created_by_the_first_commit_if_nothing_else_did(loose: World) -> None:
    async with aiosqlite.connect(loose.path) as other:
        await other.execute("DROP TABLE akv_token")
    loose.bind()
    async with loose.session.begin() as s:
        s.add(User(id=1))
        await s.flush()
        async with aiosqlite.connect(loose.path) as other:
            tables = await other.execute_fetchall("SELECT name FROM sqlite_master WHERE name = 'akv_token'")
            assert list(tables) == [("akv_token",)]
    assert (await loose.keys("akv:users#1")).shared


async def test_database_whose_file_was_replaced_is_taken_as_new(loose: World) -> None:
    loose.bind()
    key = await loose.keys("akv:users#1")
    await loose.engine.dispose()
    async with aiosqlite.connect(loose.path) as other:
        await other.execute("DROP TABLE akv_token")
    async with loose.session.begin() as s:
        s.add(User())
    assert await loose.keys("akv:users#1") != key
    assert await bumps(loose)


async def test_other_slots_than_those_of_the_file_are_refused(loose: World) -> None:
    other = DatabaseTokens(loose.url, slots=16)
    with pytest.raises(ConfigurationError, match="slots=1048576"):
        await other.read([ANY])
    await loose.use(other)
    loose.bind()
    async with loose.session() as s:
        s.add(User())
        with pytest.raises(ConfigurationError, match="slots=1048576"):
            await s.commit()


async def test_few_slots_only_cost_foreign_changes(tmp_path: Path) -> None:
    app = World(tmp_path / "app.db")
    await app.use(DatabaseTokens(app.url, slots=1))
    await app.create()
    first = await app.tokens.read(["akv:users#1", "akv:users#2"])
    await app.tokens.touch("akv:users#1")
    second = await app.tokens.read(["akv:users#1", "akv:users#2"])
    assert first["akv:users#2"] != second["akv:users#2"]
    await app.close()


async def test_read_and_bump_speak_the_protocol(app: World) -> None:
    from akv.typing import Tokens

    assert isinstance(app.tokens, Tokens)
    names = ["akv:users#1", "akv:users#2", "akv:users#*", ANY, "akv:memo:f#*", "akv:memo:f#abc"]
    before = await app.tokens.read(names)
    assert await app.tokens.read(names) == before
    await app.tokens.bump(["akv:users#1"])
    assert {name for name, token in (await app.tokens.read(names)).items() if token != before[name]} == {"akv:users#1"}
    before = await app.tokens.read(names)
    await app.tokens.bump(["akv:memo:f#*"])
    after = await app.tokens.read(names)
    assert {name for name in names if after[name] != before[name]} == {"akv:memo:f#*", "akv:memo:f#abc"}
    with pytest.raises(InvalidIdentifierError):
        await app.tokens.read(["users"])


async def test_tokens_never_repeat(app: World) -> None:
    seen = set()
    for _ in range(20):
        await app.tokens.touch("akv:users#1")
        seen.add((await app.tokens.read(["akv:users#1"]))["akv:users#1"])
    assert len(seen) == 20


async def test_closed_tokens_say_so(tmp_path: Path) -> None:
    tokens = DatabaseTokens(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    await tokens.touch(User)
    await tokens.aclose()
    await tokens.aclose()
    with pytest.raises(ClosedError):
        await tokens.touch(User)


async def test_touching_through_tokens_inside_a_write_transaction_fails_and_leaves_it_usable(app: World) -> None:
    tokens = DatabaseTokens(create_async_engine(app.url, connect_args={"timeout": 0}))
    async with app.session.begin() as s:
        s.add(User())
        await s.flush()
        with pytest.raises(exc.OperationalError, match="locked"):
            await tokens.touch(User)
    await tokens.aclose()


async def test_borrowed_engine_lends_settings_but_no_connection(loose: World) -> None:
    engine = create_async_engine(loose.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    opened: list[Any] = []
    event.listen(engine.sync_engine, "connect", lambda dbapi, _: opened.append(dbapi))
    tokens = DatabaseTokens(engine)
    async with engine.connect() as connection:
        await connection.execute(select(User))
        await asyncio.wait_for(tokens.touch(User), 10)
    assert len(opened) == 2
    await tokens.aclose()
    assert (await bumps(loose, engine)) is False
    await engine.dispose()


def test_sqlite_is_new_enough_for_the_tests() -> None:
    assert sqlite3.sqlite_version_info >= (3, 38)
