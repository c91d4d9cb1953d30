"""One face for five drivers: what their connections know, and statements beside SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from akv.errors import ConfigurationError
from akv.tokens.drivers import Driver
from tests.backends import Backend
from tests.servers import Session

ONE = {"postgresql": "SELECT $1::int, '100%'", "mysql": "SELECT %s, '100%%'", "sqlite": "SELECT ?, '100%'"}


@pytest.fixture
async def engine(backend: Backend) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(backend.fresh_url())
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY)"))
    yield engine
    await engine.dispose()


def driver_of(connection: AsyncConnection) -> Driver:
    assert connection.sync_connection is not None
    return Driver(connection.sync_connection)


async def begin(connection: AsyncConnection) -> None:
    """SQLite's driver begins no transaction before it writes."""
    if connection.dialect.name == "sqlite":
        await connection.execute(text("BEGIN"))


async def test_statement_runs_in_the_transaction_that_is_open(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        driver = driver_of(connection)
        assert not driver.in_transaction
        await begin(connection)
        await connection.execute(text("INSERT INTO t VALUES (1)"))
        assert driver.in_transaction
        assert not driver.commits_alone
        assert await driver.fetch("INSERT INTO t VALUES (2)") == []
        assert await driver.fetch("SELECT id FROM t ORDER BY id") == [(1,), (2,)]
        assert await driver.fetch(ONE[driver.dialect], 7) == [(7, "100%")]
        await driver.roll_back()
        assert not driver.in_transaction
        await connection.rollback()
        assert (await connection.scalar(text("SELECT count(*) FROM t"))) == 0
        await begin(connection)
        await connection.execute(text("INSERT INTO t VALUES (3)"))
        await connection.commit()
        assert not driver.in_transaction
        assert driver.rows_changed == (2 if driver.dialect == "sqlite" else 0) + 1 * (driver.dialect == "sqlite")


@pytest.mark.backends("postgres", "mariadb")
async def test_autocommit_is_known_before_the_first_statement(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert not driver_of(connection).commits_alone
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert driver_of(connection).commits_alone
        await connection.execute(text("SELECT 1"))
        assert driver_of(connection).commits_alone
    async with engine.connect() as connection:
        assert not driver_of(connection).commits_alone


@pytest.mark.backends("postgres")
async def test_failed_transaction_is_still_one(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        driver = driver_of(connection)
        with pytest.raises(Exception, match="does not exist"):
            await connection.execute(text("SELECT * FROM nothing"))
        assert driver.in_transaction
        assert driver.is_failed is ("psycopg" in connection.dialect.driver)
        with pytest.raises(Exception, match="aborted") as failed:
            await driver.fetch("SELECT 1")
        assert getattr(failed.value, "sqlstate", None) == "25P02"


async def test_coroutine_is_awaited_inside_a_listener(engine: AsyncEngine) -> None:
    found: list[Any] = []

    def listener(connection: Any) -> None:
        driver = Driver(connection)
        found.append(driver.run(driver.fetch("SELECT count(*) FROM t")))
        found.append(driver.run(asyncio.sleep(0, "slept")))

    event.listen(engine.sync_engine, "commit", listener)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
    assert found == [[(0,)], "slept"]


async def test_invalidated_connection_is_not_used_again(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        driver = driver_of(connection)
        await connection.run_sync(lambda _: driver.invalidate())
    async with engine.connect() as connection:
        assert driver_of(connection).connection is not driver.connection


def test_unknown_driver_is_refused_with_those_that_are_known() -> None:
    class Stub:
        class dialect:
            driver = "mysqlconnector"

    with pytest.raises(ConfigurationError, match="asyncpg or psycopg, asyncmy or aiomysql, or aiosqlite"):
        Driver(Stub())  # type: ignore[arg-type]


async def test_aiomysql_is_known_like_asyncmy(servers: Session) -> None:
    pytest.importorskip("aiomysql")
    url = make_url(servers.database(servers.mariadb())).set(drivername="mysql+aiomysql")
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        driver = driver_of(connection)
        assert driver.dialect == "mysql"
        await connection.execute(text("CREATE TEMPORARY TABLE t (id INTEGER PRIMARY KEY) ENGINE=InnoDB"))
        await connection.execute(text("INSERT INTO t VALUES (1)"))
        assert driver.in_transaction
        assert await driver.fetch("SELECT id, %s FROM t", 7) == [(1, 7)]
        await driver.roll_back()
        assert not driver.in_transaction
    await engine.dispose()
