"""MariaDB shows some changes before COMMIT: those are announced before the statement that makes them visible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from akv.errors import CommitRefusedError, UntrackedWriteError
from tests.backends import Backend
from tests.servers import look
from tests.tokens.recording import RecordingTokens
from tests.tokens.redefining import redefining, waiting
from tests.tokens.redis_world import until
from tests.tokens.shop import ANY, Base, Item, Shop, item

pytestmark = pytest.mark.backends("mariadb")

BOUND = 30
ANYTHING = {"akv:*#~", ANY}


@pytest.fixture
def app(made: tuple[Shop, RecordingTokens]) -> Shop:
    return made[0]


@pytest.mark.parametrize(
    ("sql", "changes_rows"),
    [
        ("CREATE TABLE other (id INTEGER)", False),
        ("create index some on items (name)", False),
        ("LOCK TABLES items READ", False),
        ("START TRANSACTION", False),
        ("/* really */ BEGIN", False),
        ("SET autocommit = 1", False),
        ("ANALYZE TABLE items", False),
        ("DROP INDEX IF EXISTS nothing ON items", False),
        ("ALTER TABLE items ADD COLUMN more INTEGER", True),
        ("TRUNCATE parts", True),
        ("DROP TABLE parts", True),
        ("CREATE OR REPLACE TABLE parts (id INTEGER)", True),
        ("CREATE TABLE other SELECT * FROM items", True),
    ],
)
@pytest.mark.parametrize("kind", ["session", "core"])
async def test_what_commits_by_itself_is_announced_before_and_resolved_after(
    app: Shop, tokens: RecordingTokens, sql: str, changes_rows: bool, kind: str
) -> None:
    tokens.marked.shut()
    async with app.session() if kind == "session" else app.engine.connect() as on:
        await on.execute(insert(Item).values(id=1, name="committed"))
        running = asyncio.create_task(on.execute(text(sql)))
        await asyncio.wait_for(tokens.marked.arrived.wait(), BOUND)
        assert await app.names() == []
        tokens.marked.open()
        await asyncio.wait_for(running, BOUND)
        assert await app.names() == ["committed"]
        await tokens.drain()
        assert tokens.announced == [item(1) | (ANYTHING if changes_rows else set())]
        assert tokens.resolved == ["mark 1"]
        assert tokens.marks == set()
        await on.rollback()
    assert len(tokens.announced) == 1
    assert await app.names() == ["committed"]


@pytest.mark.parametrize("sql", ["CREATE TABLE other (id INTEGER)", "START TRANSACTION", "ANALYZE TABLE items"])
async def test_nothing_is_announced_where_nothing_was_changed(app: Shop, tokens: RecordingTokens, sql: str) -> None:
    async with app.session() as session:
        await session.scalars(select(Item))
        await session.execute(text(sql))
        await session.commit()
    async with app.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("DROP TABLE IF EXISTS other"), execution_options={"akv_untracked": True})
        await connection.execute(text(sql))
    assert tokens.announced == []


async def test_making_tables_announces_nothing(app: Shop, tokens: RecordingTokens) -> None:
    async with app.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    assert tokens.announced == []


async def test_changes_after_an_implicit_commit_belong_to_the_next_transaction(
    app: Shop, tokens: RecordingTokens
) -> None:
    async with app.session() as session:
        session.add(Item(id=1))
        await session.flush()
        await session.execute(text("CREATE TABLE other (id INTEGER)"))
        session.add(Item(id=2))
        await session.flush()
        await session.rollback()
    async with app.session() as session:
        session.add(Item(id=3))
        await session.commit()
    assert tokens.announced == [item(1), item(3)]
    assert len(await app.names()) == 2


async def test_refused_before_an_implicit_commit_nothing_is_committed(app: Shop, tokens: RecordingTokens) -> None:
    async with app.session() as session:
        await session.execute(insert(Item).values(id=1, name="late"))
        tokens.refusal = CommitRefusedError("Redis is away")
        with pytest.raises(CommitRefusedError):
            await session.execute(text("TRUNCATE parts"))
        assert await app.names() == []
        tokens.refusal = None
        await session.commit()
    assert await app.names() == ["late"]
    assert tokens.announced == [item(1)]


async def test_failed_ddl_leaves_what_was_open_to_be_announced_again(app: Shop, tokens: RecordingTokens) -> None:
    """Nobody tells whether it has committed before it failed."""
    async with app.session() as session:
        await session.execute(insert(Item).values(id=1))
        with pytest.raises(Exception, match="Unknown table"):
            await session.execute(text("DROP TABLE nothing"))
        await session.commit()
    assert tokens.announced[0] == item(1) | ANYTHING
    assert tokens.announced[-1] >= item(1)
    assert tokens.marks == set()


@pytest.mark.parametrize("sql", ["CALL change_all()", "EXECUTE IMMEDIATE 'UPDATE items SET name = 1'"])
async def test_what_may_run_anything_is_refused_unless_declared(app: Shop, tokens: RecordingTokens, sql: str) -> None:
    async with app.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE PROCEDURE change_all() UPDATE items SET name = 'called'")
    async with app.session() as session:
        session.add(Item(id=1))
        await session.flush()
        with pytest.raises(UntrackedWriteError, match="akv_changes"):
            await session.execute(text(sql))
        await session.execute(text(sql), execution_options={"akv_changes": [Item]})
        assert tokens.announced == [item(1) | {"akv:items#~"}]  # in case it commits
        await session.commit()
    assert tokens.announced[-1] == item(1) | {"akv:items#~"}
    assert tokens.marks == set()
    assert await app.names() != [""]


async def test_declared_changes_count_instead_of_what_would_be_found(app: Shop, tokens: RecordingTokens) -> None:
    async with app.session() as session:
        await session.execute(text("DELETE FROM items"), execution_options={"akv_changes": ["akv:items#7"]})
        await session.commit()
    assert tokens.announced == [item(7)]


# --- tables without transactions


@pytest.fixture
async def untransactional(backend: Backend) -> AsyncIterator[tuple[Shop, RecordingTokens]]:
    """The items are in a table whose rows are visible at once, and stay after a rollback."""
    tokens = RecordingTokens()
    app = Shop(backend.fresh_url(), tokens)
    async with app.engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, name VARCHAR(50), code VARCHAR(50)) ENGINE=Aria"
        )
        await connection.exec_driver_sql("CREATE TABLE parts (id INTEGER PRIMARY KEY, item_id INTEGER, size INTEGER)")
    app.bind()
    yield app, tokens
    await app.close()


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("how", ["core", "text"])
async def test_row_that_is_visible_at_once_is_announced_at_once(
    untransactional: tuple[Shop, RecordingTokens], end: str, how: str
) -> None:
    app, tokens = untransactional
    tokens.marked.shut()
    write: Any = insert(Item).values(id=1, name="at once")
    if how == "text":
        write = text("INSERT INTO items VALUES (1, 'at once', NULL)")
    async with app.session() as session:
        running = asyncio.create_task(session.execute(write))
        await asyncio.wait_for(tokens.marked.arrived.wait(), BOUND)
        assert await app.names() == []
        tokens.marked.open()
        await asyncio.wait_for(running, BOUND)
        assert await app.names() == ["at once"]
        assert tokens.marks == {"mark 1"}
        await (session.commit() if end == "commit" else session.rollback())
    await tokens.drain()
    expected = {"akv:items#~", "akv:items#*", ANY} if how == "core" else ANYTHING
    assert tokens.announced[0] == expected
    assert tokens.marks == set()


async def test_table_with_transactions_beside_one_without_is_announced_at_commit(
    untransactional: tuple[Shop, RecordingTokens],
) -> None:
    app, tokens = untransactional
    async with app.session() as session:
        await session.execute(text("INSERT INTO parts (id) VALUES (1)"))
        assert tokens.announced == []
        await session.commit()
    assert len(tokens.announced) == 1


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO shown VALUES (1, 'at once', NULL)",
        "INSERT INTO shown_again VALUES (1, 'at once', NULL)",
        "INSERT INTO parts (id) VALUES (1)",
        "INSERT INTO parts (id) VALUES (log_item())",
    ],
    ids=["view", "view of a view", "trigger", "function"],
)
async def test_row_that_is_visible_at_once_by_a_detour_is_announced_at_once(
    untransactional: tuple[Shop, RecordingTokens], write: str
) -> None:
    app, tokens = untransactional
    async with app.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE VIEW shown AS SELECT * FROM items")
        await connection.exec_driver_sql("CREATE VIEW shown_again AS SELECT * FROM shown")
        if "log_item" in write:
            await connection.exec_driver_sql(
                "CREATE FUNCTION log_item() RETURNS INT MODIFIES SQL DATA "
                "BEGIN INSERT INTO items VALUES (1, 'at once', NULL); RETURN 1; END"
            )
        elif "parts" in write:
            await connection.exec_driver_sql(
                "CREATE TRIGGER also AFTER INSERT ON parts FOR EACH ROW INSERT INTO items VALUES (1, 'at once', NULL)"
            )
    tokens.marked.shut()
    async with app.session() as session:
        running = asyncio.create_task(session.execute(text(write)))
        await asyncio.wait_for(tokens.marked.arrived.wait(), BOUND)
        assert await app.names() == []
        tokens.marked.open()
        await asyncio.wait_for(running, BOUND)
        assert await app.names() == ["at once"]
        await session.rollback()
    await tokens.drain()


@pytest.mark.parametrize("how", ["core", "text"])
async def test_table_of_the_same_name_in_another_database_counts_for_nothing(
    app: Shop, tokens: RecordingTokens, backend: Backend, how: str
) -> None:
    elsewhere = Shop(backend.fresh_url(), RecordingTokens())
    async with elsewhere.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE items (id INTEGER PRIMARY KEY) ENGINE=MyISAM")
    try:
        async with app.session() as session:
            core = insert(Item).values(id=1, name="late")
            await session.execute(core if how == "core" else text("INSERT INTO items (id, name) VALUES (1, 'late')"))
            assert tokens.announced == []
            await session.commit()
        assert len(tokens.announced) == 1
    finally:
        await elsewhere.close()


async def test_table_of_another_database_is_told_by_its_schema(
    app: Shop, tokens: RecordingTokens, backend: Backend
) -> None:
    elsewhere = Shop(backend.fresh_url(), RecordingTokens())
    name = elsewhere.engine.url.database
    async with elsewhere.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE items (id INTEGER PRIMARY KEY) ENGINE=MyISAM")
    try:
        async with app.session() as session:
            await session.execute(text(f"INSERT INTO {name}.items (id) VALUES (1)"))
            assert len(tokens.announced) == 1
            await session.rollback()
    finally:
        await elsewhere.close()


@pytest.mark.parametrize("name", ["logs", "view_of_logs"])
async def test_table_that_is_being_redefined_counts_as_one_without_transactions(
    app: Shop, tokens: RecordingTokens, name: str
) -> None:
    """A transaction that has read something is not shown it: MariaDB does not let it wait."""
    look(app.direct_url, "CREATE TABLE logs (id INTEGER) ENGINE=MyISAM")
    look(app.direct_url, "CREATE VIEW view_of_logs AS SELECT id FROM logs")
    async with app.session() as session:
        await session.scalars(select(Item))
        async with redefining(app.direct_url, name):
            writing = asyncio.create_task(session.execute(text(f"INSERT INTO {name} (id) VALUES (1)")))
            await until(lambda: waiting(app.direct_url) == 2, "it waits for the definition")
            assert len(tokens.announced) == 1
        await writing
        assert len(tokens.announced) == 1
        await session.rollback()


async def test_engines_of_tables_are_asked_for_once(app: Shop, tokens: RecordingTokens) -> None:
    asked: list[str] = []
    from akv.tokens.drivers import Driver

    real = Driver.fetch

    async def fetch(self: Driver, sql: str, *args: Any) -> Any:
        asked.append(sql)
        return await real(self, sql, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Driver, "fetch", fetch)
        for number in range(3):
            async with app.session.begin() as session:
                session.add(Item(id=number + 1))
    assert len([sql for sql in asked if "information_schema.ENGINES" in sql]) == 1
