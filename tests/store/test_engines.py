"""Engines of ours are set for concurrency; those that are lent stay as they were."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from akv.store.engines import is_memory, own_engines, parse_url
from tests.servers import look

PATIENCE = 1.5
SYNCHRONOUS = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}
FILE = pytest.mark.backends("sqlite-file")
SERVERS = pytest.mark.backends("postgres", "mariadb")


async def ask(source, *questions):
    """Ask an engine or a session for settings, on one connection."""
    async with source.connect() if hasattr(source, "connect") else source as connection:
        return [(await connection.execute(text(question))).scalar() for question in questions]


@pytest.fixture
async def ours(backend):
    """The engines that a store makes from the URL of the backend; call it with a query to add to the URL."""
    made = []

    def make(query=""):
        url, _ = parse_url(backend.url + query)
        made.append(own_engines(url, patience=PATIENCE))
        return made[-1]

    yield make
    for engines in made:
        for engine in engines.owned:
            await engine.dispose()


# SQLite, ours


@FILE
async def test_a_file_of_ours_is_set_for_concurrency(ours):
    engines = ours()
    questions = ("PRAGMA journal_mode", "PRAGMA synchronous", "PRAGMA busy_timeout")
    assert await ask(engines.lanes, *questions) == ["wal", SYNCHRONOUS["FULL"], PATIENCE * 1000]
    assert await ask(engines.sessions(), *questions) == ["wal", SYNCHRONOUS["FULL"], PATIENCE * 1000]


@FILE
@pytest.mark.parametrize("chosen", [*SYNCHRONOUS, "normal"])
async def test_the_url_chooses_how_synchronous_a_file_is(ours, chosen):
    engines = ours(f"?synchronous={chosen}")
    for source in (engines.lanes, engines.sessions()):
        assert await ask(source, "PRAGMA synchronous") == [SYNCHRONOUS[chosen.upper()]]


@FILE
async def test_a_store_takes_the_choice_of_its_url(make_store, backend):
    kv = await make_store(f"{backend.url}?synchronous=NORMAL&timeout=3")
    await kv.set("key", 1)
    async with kv.session() as session:
        assert await session.scalar(text("PRAGMA synchronous")) == SYNCHRONOUS["NORMAL"]
    assert look(backend.url, "PRAGMA journal_mode") == [("wal",)]


@FILE
async def test_a_session_of_ours_reads_before_it_writes_while_others_write(make_store):
    kv = await make_store()
    await kv.set("count", 0)

    async def add_one() -> None:
        async with kv.session() as session:
            row = await session.get(kv.model, ("count", ""))
            row.value = kv._codec.encode(("count", ""), kv._codec.serializer.loads(row.value, key="count", tag="") + 1)

    await asyncio.gather(*(add_one() for _ in range(8)), *(kv.set(f"other{number}", 1) for number in range(8)))
    assert await kv.get("count") == 8


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+aiosqlite://", True),
        ("sqlite+aiosqlite:///", True),
        ("sqlite+aiosqlite:///:memory:", True),
        ("sqlite+aiosqlite:///file::memory:?cache=shared&uri=true", True),
        ("sqlite+aiosqlite:///file:name?mode=memory&cache=shared&uri=true", True),
        ("sqlite+aiosqlite:///app.db", False),
        ("sqlite+aiosqlite:////tmp/app.db?mode=rw", False),
        ("postgresql+asyncpg://host/memory", False),
    ],
)
def test_a_database_in_memory_is_told_by_its_url(url, expected):
    assert is_memory(make_url(url)) is expected


@pytest.mark.backends("sqlite-memory")
async def test_a_database_in_memory_has_one_connection_and_a_queue(make_store):
    kv = await make_store()
    await asyncio.gather(*(kv.set(f"key{number}", number) for number in range(50)))

    async def look_inside() -> int:
        async with kv.session(commit=False) as session:
            return int(await session.scalar(text(f"SELECT COUNT(*) FROM {kv.model.__tablename__}")) or 0)

    assert await asyncio.gather(*(look_inside() for _ in range(5))) == [50] * 5


# Servers, ours


LIMITS = {
    "postgresql": ("SHOW lock_timeout", "1500ms", "SHOW transaction_isolation"),
    "mariadb": ("SELECT @@innodb_lock_wait_timeout", 2, "SELECT @@tx_isolation"),
}


@SERVERS
async def test_our_statements_never_wait_for_a_lock_without_end(ours, backend):
    question, expected, _ = LIMITS[backend.dialect]
    assert await ask(ours().lanes, question) == [expected]


@SERVERS
async def test_our_statements_are_transactions_of_their_own(ours, backend, table, tables):
    tables.add(table)
    engines = ours()
    async with engines.lanes.connect() as connection:
        await connection.execute(text(f"CREATE TABLE {table} (n INT)"))
        await connection.execute(text(f"INSERT INTO {table} VALUES (1)"))
        assert look(backend.url, f"SELECT n FROM {table}") == [(1,)]


@pytest.mark.backends("mariadb")
async def test_our_statements_lock_no_gaps(ours, backend):
    assert await ask(ours().lanes, LIMITS["mariadb"][2]) == ["READ-COMMITTED"]


@pytest.mark.backends("postgres")
async def test_a_default_of_serializable_does_not_reach_our_transactions(make_store, backend):
    url = f"{backend.url}?options=-c%20default_transaction_isolation%3Dserializable"
    if backend.driver == "asyncpg":
        engine = create_async_engine(
            backend.url, connect_args={"server_settings": {"default_transaction_isolation": "serializable"}}
        )
    else:
        engine = create_async_engine(url)
    stores = [await make_store(engine) for _ in range(2)]
    await asyncio.gather(*(kv.incr("count") for kv in stores for _ in range(20)))
    assert await stores[0].get("count") == 40
    await engine.dispose()


# Lent


SETTINGS = {
    "sqlite": ("PRAGMA journal_mode", "PRAGMA synchronous", "PRAGMA busy_timeout"),
    "postgresql": ("SHOW lock_timeout", "SHOW transaction_isolation"),
    "mariadb": ("SELECT @@innodb_lock_wait_timeout", "SELECT @@tx_isolation", "SELECT @@autocommit"),
}


@pytest.mark.backends(exclude="sqlite-memory")
async def test_the_settings_of_an_engine_that_is_lent_stay_as_they_were(make_store, backend):
    engine = create_async_engine(backend.url, pool_size=2)
    before = await ask(engine, *SETTINGS[backend.dialect])
    pool = engine.pool
    kv = await make_store(engine)
    await kv.set("key", 1)
    assert await kv.incr("key") == 2
    async with kv.session() as session:
        assert await ask_session(session, *SETTINGS[backend.dialect]) == before
    assert await ask(engine, *SETTINGS[backend.dialect]) == before
    await kv.aclose()
    assert await ask(engine, *SETTINGS[backend.dialect]) == before
    assert engine.pool is pool
    assert (pool.size(), pool.checkedout()) == (2, 0)
    await engine.dispose()


async def ask_session(session, *questions):
    return [(await session.execute(text(question))).scalar() for question in questions]


@pytest.mark.backends("sqlite-file")
async def test_a_file_that_is_lent_is_not_switched_to_another_journal(make_store, backend):
    engine = create_async_engine(backend.url)
    kv = await make_store(engine)
    await kv.set("key", 1)
    await engine.dispose()
    assert look(backend.url, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.backends(exclude="sqlite-memory")
async def test_the_store_needs_no_connection_of_a_pool_that_is_lent(make_store, backend):
    engine = create_async_engine(backend.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    kv = await make_store(engine)
    async with engine.connect():
        await kv.set("key", 1)
        assert await kv.get("key") == 1
        assert engine.pool.checkedout() == 1
    await engine.dispose()


@SERVERS
async def test_the_isolation_level_of_an_engine_that_is_lent_is_that_of_its_sessions(make_store, backend):
    engine = create_async_engine(backend.url, isolation_level="SERIALIZABLE")
    kv = await make_store(async_sessionmaker(engine))
    await asyncio.gather(*(kv.incr("count") for _ in range(20)))
    async with kv.session() as session:
        (level,) = await ask_session(session, LIMITS[backend.dialect][2])
    assert level.lower() == "serializable"
    assert await kv.get("count") == 20
    await engine.dispose()


@pytest.mark.backends(exclude="sqlite-memory")
async def test_an_engine_that_is_lent_in_autocommit_serves_the_store(make_store, backend):
    engine = create_async_engine(backend.url, isolation_level="AUTOCOMMIT")
    kv = await make_store(engine)
    assert await kv.incr("count") == 1
    assert await kv.pop("count") == 1
    await kv.set_many({f"key{number}": number for number in range(3)})
    assert await kv.count() == 3
    await engine.dispose()
