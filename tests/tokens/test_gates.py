"""Gates: who entered, who has ended, and who is waited for; on every database, through every driver."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, event, make_url, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from akv.errors import ConfigurationError
from akv.tokens.gates import TransactionAborted, gate_for, mariadb, sqlite
from akv.tokens.schema import OWN
from akv.tokens.tables import gate_table, metadata
from tests.faults.test_cancellation import MOST_STEPS, was_cancelled
from tests.private import free_port
from tests.servers import look
from tests.tokens.gatehouse import (
    EVERYWHERE,
    ON_MARIADB,
    ON_POSTGRES,
    ON_SERVERS,
    House,
    Questions,
    open_house,
    process,
    soon,
    until,
    until_ended,
    url_of,
)

if TYPE_CHECKING:
    from tests.private import Nursery, PrivateMariaDB, PrivatePostgres, PrivateServer
    from tests.servers import Session

GALERA = Path("/usr/lib/galera/libgalera_smm.so")

everywhere = pytest.mark.parametrize("house", EVERYWHERE, indirect=True)
on_servers = pytest.mark.parametrize("house", ON_SERVERS, indirect=True)
on_postgres = pytest.mark.parametrize("house", ON_POSTGRES, indirect=True)
on_postgres_alone = pytest.mark.parametrize("own_house", ON_POSTGRES, indirect=True)
on_mariadb = pytest.mark.parametrize("house", ON_MARIADB, indirect=True)
on_sqlite = pytest.mark.parametrize("house", ["sqlite-file"], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, servers: Session, tmp_path: Path) -> Iterator[str]:
    """URL of a new database through the driver that the test's ``house`` names."""
    yield url_of(request.param, servers, tmp_path, fresh=True)
    servers.drop_new_databases()


@pytest.fixture
async def house(request: pytest.FixtureRequest, servers: Session, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(url_of(request.param, servers, tmp_path)) as made:
        yield made


@pytest.fixture
async def own_house(request: pytest.FixtureRequest, servers: Session, tmp_path: Path) -> AsyncIterator[House]:
    """A house in a database that nobody uses afterwards."""
    async with open_house(url_of(request.param, servers, tmp_path, fresh=True)) as made:
        yield made
    servers.drop_new_databases()


async def house_at(url: str, **options: Any) -> House:
    made = House(url, **options)
    await made.create()
    return made


# --- who has ended


@everywhere
async def test_a_transaction_that_entered_has_not_ended_until_it_commits(house: House) -> None:
    async with house.writer(1) as writer:
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()
        await writer.connection.commit()
        assert await house.gate.ended([mark]) == {mark}
    assert await house.numbers() == {1}


@everywhere
async def test_rolling_back_ends_it_as_well(house: House) -> None:
    async with house.writer(1) as writer:
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()
        await writer.connection.rollback()
        assert await house.gate.ended([mark]) == {mark}
    assert await house.numbers() == set()


@everywhere
async def test_what_it_committed_is_visible_once_it_is_said_to_have_ended(house: House) -> None:
    for n in range(10):
        async with house.writer(n) as writer:
            mark = await writer.enter()
            committing = asyncio.create_task(writer.connection.commit())
            await until_ended(house.gate, mark)
            assert n in await house.numbers()
            await committing


@on_servers
async def test_of_several_exactly_those_that_ended(house: House) -> None:
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(house.writer(n)) for n in range(6)]
        marks = await asyncio.gather(*(writer.enter() for writer in writers))
        assert len(set(marks)) == 6
        assert await house.gate.ended(marks) == set()
        await writers[1].connection.commit()
        await writers[2].connection.rollback()
        await writers[5].connection.commit()
        assert await house.gate.ended(marks) == {marks[1], marks[2], marks[5]}
        assert await house.gate.ended(marks[:2]) == {marks[1]}


@everywhere
async def test_marks_are_words_and_never_the_same(house: House) -> None:
    marks = set()
    for n in range(20):
        async with house.writer(n) as writer:
            marks.add(await writer.enter())
            marks.add(await writer.enter())
    assert len(marks) == 40
    assert not any(character.isspace() for mark in marks for character in mark)
    assert await house.gate.ended(marks) == marks


@everywhere
async def test_nobody_is_asked_about_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.gate, "_own", None)
    assert await house.gate.ended([]) == set()


@on_servers
async def test_a_killed_backend_has_ended(house: House) -> None:
    async with house.writer(1) as writer:
        mark = await writer.enter()
        session = await writer.session()
        assert await house.gate.ended([mark]) == set()
        house.kill(session)
        await until_ended(house.gate, mark)
        await writer.connection.invalidate()
    assert await house.numbers() == set()


@everywhere
async def test_a_killed_process_has_ended(house: House) -> None:
    async with process("tests.tokens.gate_writers", "hang", house.url) as writer:
        assert writer.stdout is not None
        mark = (await soon(writer.stdout.readline())).decode().strip()
        assert await house.gate.ended([mark]) == set()
        writer.kill()
        await until_ended(house.gate, mark)
    assert await house.numbers() == set()


@everywhere
async def test_a_savepoint_that_is_rolled_back_does_not_end_it(house: House) -> None:
    async with house.writer(1) as writer:
        await writer.connection.execute(text("SAVEPOINT s"))
        await writer.connection.execute(text("INSERT INTO things (n) VALUES (2)"))
        await writer.connection.execute(text("ROLLBACK TO SAVEPOINT s"))
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()
        await writer.connection.commit()
    assert await house.gate.ended([mark]) == {mark}
    assert await house.numbers() == {1}


@everywhere
async def test_the_gate_works_while_the_pool_is_exhausted(house: House) -> None:
    engine = create_async_engine(house.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    gate = gate_for(engine.sync_engine)
    async with house.writer(1, engine) as writer:
        mark = await gate.enter(writer.driver)
        assert await gate.ended([mark]) == set()
        drain = asyncio.create_task(gate.drain())
        assert await gate.fingerprint() == await house.gate.fingerprint()
        await writer.connection.commit()
        await soon(drain)
    await gate.aclose()
    await engine.dispose()


# --- who is waited for


@everywhere
async def test_drain_returns_where_nobody_is_inside(house: House) -> None:
    await soon(house.gate.drain())


@everywhere
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_drain_waits_for_who_entered_before(house: House, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house.writer(1) as writer:
        await writer.enter()
        questions = Questions(house.gate, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        assert not drain.done()
        await getattr(writer.connection, end)()
        await soon(drain)


@on_servers
async def test_drain_waits_for_each_and_for_them_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        before = [await stack.enter_async_context(house.writer(n)) for n in range(3)]
        aside = await stack.enter_async_context(house.writer(10))  # writes, and has not entered
        after = await stack.enter_async_context(house.writer(11))
        for writer in before:
            await writer.enter()
        questions = Questions(house.gate, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        late = await after.enter()
        for writer in before:
            assert not drain.done()
            await questions.several()
            await writer.connection.commit()
        await soon(drain)
        assert await house.gate.ended([late]) == set()
        assert aside.driver.in_transaction


@on_sqlite
async def test_drain_does_not_wait_for_readers(house: House) -> None:
    async with house.engine.connect() as reader:
        await reader.exec_driver_sql("BEGIN")
        await reader.execute(text("SELECT * FROM things"))
        await soon(house.gate.drain())


@on_servers
async def test_many_enter_and_end_while_drains_run(house: House) -> None:
    """A drain may return only when all have ended that had entered when it was called."""
    engine = create_async_engine(house.url, pool_size=8)
    inside: set[int] = set()

    async def write(first: int) -> None:
        for n in range(first, first + 15):
            async with house.writer(n, engine) as writer:
                await house.gate.enter(writer.driver)
                inside.add(n)
                await asyncio.sleep(n % 3 / 1000)
                inside.discard(n)
                await (writer.connection.commit() if n % 2 else writer.connection.rollback())

    async def drain() -> int:
        count = 0
        while not writing.done():
            waited_for = set(inside)
            await house.gate.drain()
            assert not waited_for & inside
            count += 1
        return count

    writing = asyncio.gather(*(write(100 * number) for number in range(8)))
    drained, _ = await soon(asyncio.gather(asyncio.gather(drain(), drain()), writing))
    assert min(drained) > 2
    await soon(house.gate.drain())
    await engine.dispose()


@on_postgres
async def test_namespaces_do_not_wait_for_each_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other = gate_for(house.engine.sync_engine, namespace="other")
    async with house.writer(1) as writer:
        await writer.enter()
        await soon(other.drain())
        questions = Questions(house.gate, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        assert not drain.done()
        await writer.connection.commit()
        await soon(drain)
    await other.aclose()


@everywhere
async def test_a_drain_that_takes_long_says_so_once(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("akv.tokens.gates._WAITS_BEFORE_WARNING", 2)
    async with house.writer(1) as writer:
        await writer.enter()
        questions = Questions(house.gate, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        await questions.several()
        await writer.connection.commit()
        await soon(drain)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


# --- prepared and left behind; crashes of the server


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_prepared_transaction_can_still_commit_though_nobody_holds_it(
    private_postgres: PrivatePostgres, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await house_at(private_postgres.url(driver=driver))
    for n, end in enumerate(["COMMIT PREPARED", "ROLLBACK PREPARED"]):
        async with house.engine.connect() as connection:
            await connection.execute(text(f"INSERT INTO things (n) VALUES ({n})"))
            mark = await house.gate.enter(_driver_of(connection))
            await connection.exec_driver_sql(f"PREPARE TRANSACTION 'left-{n}'")
            await connection.invalidate()
        await _stays_inside(house, mark, monkeypatch)
        if n == 0:
            await house.engine.dispose()
            await asyncio.to_thread(private_postgres.restart, "kill")  # it survives even that
            await _stays_inside(house, mark, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        look(house.url, f"{end} 'left-{n}'")
        await soon(drain)
        assert await house.gate.ended([mark]) == {mark}
    assert await house.numbers() == {0}
    await house.close()


@on_mariadb
async def test_an_xa_transaction_can_still_commit_though_nobody_holds_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, end in enumerate(["COMMIT", "ROLLBACK"]):
        xid = f"'{make_url(house.url).database}-{n}'"
        async with house.engine.connect() as connection:
            await connection.exec_driver_sql(f"XA START {xid}")
            await connection.exec_driver_sql(f"INSERT INTO things (n) VALUES ({n})")
            mark = await house.gate.enter(_driver_of(connection))
            await connection.exec_driver_sql(f"XA END {xid}")
            await connection.exec_driver_sql(f"XA PREPARE {xid}")
            await connection.invalidate()
        await _stays_inside(house, mark, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        look(house.url, f"XA {end} {xid}")
        await soon(drain)
        assert await house.gate.ended([mark]) == {mark}
    assert await house.numbers() == {0}


async def _stays_inside(house: House, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        questions = Questions(house.gate, patch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        assert not drain.done()
        drain.cancel()
        await asyncio.wait([drain])
    assert await house.gate.ended([mark]) == set()


def _driver_of(connection: Any) -> Any:
    from akv.tokens.drivers import Driver

    return Driver(connection.sync_connection)


@pytest.fixture
def forgetful_postgres(nursery: Nursery) -> Iterator[PrivatePostgres]:
    """A PostgreSQL that writes nothing down about a transaction which only has an id."""
    server = nursery.postgres(wal_level="minimal", max_wal_senders="0")
    yield server
    nursery.end(server)


@asynccontextmanager
async def _only_entered(house: House) -> AsyncIterator[tuple[AsyncConnection, str]]:
    async with house.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        yield connection, await house.gate.enter(_driver_of(connection))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_ids_of_a_future_that_a_crash_has_undone_have_ended(
    forgetful_postgres: PrivatePostgres, driver: str
) -> None:
    house = await house_at(forgetful_postgres.url(driver=driver))
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(_only_entered(house)) for _ in range(8)]
        marks = [mark for _, mark in opened]  # to ask about them now would write a newer id down
        await asyncio.to_thread(forgetful_postgres.kill)
        with pytest.raises((sa_exc.DBAPIError, OSError)):
            await house.gate.ended(marks)
        for connection, _ in opened:
            await connection.invalidate()
    await asyncio.to_thread(forgetful_postgres.start)
    assert int(look(house.url, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0]) <= min(map(_xid, marks))
    assert await house.gate.ended(marks) == set(marks)
    await soon(house.gate.drain())
    await house.close()


async def test_an_id_that_comes_back_after_a_crash_is_that_of_its_new_owner(
    forgetful_postgres: PrivatePostgres,
) -> None:
    house = await house_at(forgetful_postgres.url())
    async with _only_entered(house) as (connection, lost):
        await asyncio.to_thread(forgetful_postgres.restart, "kill")
        await connection.invalidate()
    async with _only_entered(house) as (connection, again):
        assert _xid(again) == _xid(lost)
        assert again != lost
        assert await house.gate.ended([lost, again]) == set()  # of the lost one it only becomes known later
        await connection.commit()
    assert await house.gate.ended([lost, again]) == {lost, again}
    await house.close()


def _xid(mark: str) -> int:
    return int(mark.partition(":")[0])


async def test_a_crash_of_mariadb_ends_what_was_open(private_mariadb: PrivateMariaDB) -> None:
    house = await house_at(private_mariadb.url())
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(house.writer(n)) for n in range(4)]
        marks = [await writer.enter() for writer in writers]
        await writers[0].connection.commit()
        await asyncio.to_thread(private_mariadb.restart, "kill")
        for writer in writers:
            await writer.connection.invalidate()

    async def all_have_ended() -> bool:
        return await house.gate.ended(marks) == set(marks)

    await until(all_have_ended)
    await soon(house.gate.drain())
    await house.close()


# --- what the database itself does to a transaction


@on_postgres
async def test_a_transaction_that_failed_has_nothing_to_announce(house: House) -> None:
    async with house.writer(1) as writer:
        with pytest.raises(sa_exc.DBAPIError):
            await writer.connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(TransactionAborted):
            await writer.enter()
        await writer.connection.commit()
    assert await house.numbers() == set()


@everywhere
async def test_what_enter_meets_is_raised_and_nothing_entered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house.writer(1) as writer:
        driver = writer.driver

        async def refuse(*_: object) -> list[Any]:
            raise RuntimeError("no")

        monkeypatch.setattr(type(driver), "fetch", refuse)
        with pytest.raises(RuntimeError, match="no"):
            await house.gate.enter(driver)
        monkeypatch.undo()
        await writer.connection.rollback()
    await soon(house.gate.drain())


@on_postgres
async def test_who_holds_the_lock_exclusively_is_named_and_not_waited_for(house: House) -> None:
    key = house.gate._key  # type: ignore[attr-defined]
    async with house.engine.begin() as other:
        await other.execute(text(f"SELECT pg_advisory_xact_lock({key})"))
        async with house.writer(1) as writer:
            with pytest.raises(ConfigurationError, match=str(key)):
                await soon(writer.enter())


@on_postgres
async def test_a_holder_without_an_id_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock table shows a transaction that is just ending like this."""
    key = house.gate._key  # type: ignore[attr-defined]
    async with house.engine.connect() as other:
        await other.execute(text(f"SELECT pg_advisory_xact_lock_shared({key})"))
        questions = Questions(house.gate, monkeypatch)
        drain = asyncio.create_task(house.gate.drain())
        await questions.several()
        assert not drain.done()
        await other.rollback()
        await soon(drain)


def test_ids_in_the_lock_table_are_completed_by_those_next_to_them() -> None:
    from akv.tokens.gates.postgres import _ids_of, _in_full

    turn = 2**32
    assert _in_full(7, 10) == 7
    assert _in_full(12, 10) == 12
    assert _in_full(7, 3 * turn + 10) == 3 * turn + 7
    assert _in_full(turn - 3, 3 * turn + 10) == 3 * turn - 3
    assert _in_full(5, 3 * turn - 3) == 3 * turn + 5
    assert _ids_of([("10", None, None)]) == set()
    assert _ids_of([("10", "3/7", "8"), ("10", "3/7", "9"), ("10", "-1/6", None)]) == {"8", "9", "6"}
    assert _ids_of([("10", "3/7", "8"), ("10", "4/7", None)]) is None


@on_sqlite
async def test_a_writer_of_an_attached_file_alone_holds_the_lock_of_the_main_one(house: House, tmp_path: Path) -> None:
    async with house.engine.connect() as connection:
        await connection.exec_driver_sql(f"ATTACH '{tmp_path / 'other.db'}' AS other")
        await connection.exec_driver_sql("CREATE TABLE other.t (n INTEGER)")
        await connection.commit()
        await connection.execute(text("INSERT INTO other.t VALUES (1)"))
        assert await house.gate.ended(["of somebody"]) == {"of somebody"}  # it has not entered yet
        mark = await house.gate.enter(_driver_of(connection))
        assert await house.gate.ended([mark]) == set()
        await connection.commit()
        assert await house.gate.ended([mark]) == {mark}


@on_sqlite
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
async def test_entering_changes_nothing_in_the_file(house: House, journal: str) -> None:
    async with house.engine.connect() as connection:
        await connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
        await connection.exec_driver_sql("BEGIN")
        version = await connection.scalar(text("PRAGMA data_version"))
        driver = _driver_of(connection)
        rows = driver.rows_changed
        mark = await house.gate.enter(driver)
        assert await house.gate.ended([mark]) == set()
        assert driver.rows_changed == rows
        await connection.commit()
        assert await house.gate.ended([mark]) == {mark}
        assert await connection.scalar(text("PRAGMA data_version")) == version


@on_sqlite
async def test_a_file_that_lost_the_gate_gets_it_from_the_writer(house: House) -> None:
    async with house.engine.begin() as connection:
        await connection.execute(text("DROP TABLE akv_gate"))
    async with house.writer(1) as writer:
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()
        await writer.connection.commit()
    assert await house.gate.ended([mark]) == {mark}
    assert await house.gate.fingerprint()


# --- the rows of MariaDB


@pytest.fixture
def clean_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "_CLEAN_EVERY", 1)


async def _rows(house: House) -> set[str]:
    return {row for (row,) in look(house.url, "SELECT id FROM akv_gate")}


@on_mariadb
async def test_old_rows_are_deleted_and_open_ones_neither_touched_nor_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mariadb, "_CLEAN_EVERY", 2**62)  # not by chance before it is time
    async with house.writer(0) as opened:
        marks = [await opened.enter()]
        for n in range(1, 6):
            async with house.writer(n) as writer:
                marks.append(await writer.enter())
                await writer.connection.commit()
        assert await _rows(house) == set(marks[1:])
        monkeypatch.setattr(mariadb, "_CLEAN_EVERY", 1)
        async with house.writer(7) as writer:
            marks.append(await writer.enter())

            async def cleaned() -> bool:
                return not await _rows(house)

            await until(cleaned)
            assert await house.gate.ended(marks) == set(marks[1:-1])
            await writer.connection.commit()
        await opened.connection.commit()
    assert await house.gate.ended(marks) == set(marks)


@on_mariadb
@pytest.mark.usefixtures("clean_always")
async def test_many_clean_at_once(house: House) -> None:
    other = House(house.url)

    async def write(which: House, n: int) -> str:
        async with which.writer(n) as writer:
            mark = await writer.enter()
            await writer.connection.commit()
        return mark

    marks = await asyncio.gather(*(write(house if n % 2 else other, n) for n in range(24)))
    assert await house.gate.ended(marks) == set(marks)
    await other.close()
    await soon(house.gate.drain())


@on_mariadb
async def test_a_gate_whose_table_was_dropped_refuses_one_commit_and_makes_it_again(house: House) -> None:
    look(house.url, "DROP TABLE akv_gate")
    async with house.writer(1) as writer:
        with pytest.raises(Exception, match="akv_gate"):
            await writer.enter()
    async with house.writer(2) as writer:
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()


async def test_where_statements_are_logged_nothing_warns_of_ours(
    private_mariadb_with_statements: PrivateMariaDB,
) -> None:
    house = await house_at(private_mariadb_with_statements.url())
    async with house.writer(1) as writer:
        mark = await writer.enter()
        assert (await writer.connection.exec_driver_sql("SHOW WARNINGS")).all() == []
        assert await house.gate.ended([mark]) == set()
        await writer.connection.commit()
    assert await house.gate.ended([mark]) == {mark}
    await house.close()
    assert "Unsafe statement" not in private_mariadb_with_statements._tail()


@pytest.fixture
def private_mariadb_with_statements(nursery: Nursery) -> Iterator[PrivateMariaDB]:
    server = nursery.mariadb(log_bin="log", binlog_format="STATEMENT", server_id="7")
    yield server
    nursery.end(server)


# --- which database it is, and which it may be


@everywhere
async def test_a_fingerprint_is_that_of_the_database_whoever_asks(house: House, tmp_path: Path) -> None:
    expected = await house.gate.fingerprint()
    other = House(house.url, namespace="other")
    assert await other.gate.fingerprint() == expected
    assert await house.gate.fingerprint() == expected
    async with house.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        await connection.rollback()
        driver = _driver_of(connection)
        assert await house.gate.fingerprint(driver) == expected
        assert not driver.in_transaction  # nor is a snapshot left behind, which would grow old
    await other.close()


@everywhere
async def test_two_databases_have_two_fingerprints(
    house: House, servers: Session, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["house"]
    other = House(url_of(name, servers, tmp_path, fresh=True))
    assert await other.gate.fingerprint() != await house.gate.fingerprint()
    await other.close()
    servers.drop_new_databases()


async def test_a_standby_is_refused(private_postgres: PrivatePostgres) -> None:
    house = await house_at(private_postgres.url())
    async with house.writer(1) as writer:
        mark = await writer.enter()
        await writer.connection.commit()
    await house.engine.dispose()
    await asyncio.to_thread(private_postgres.stop)
    (private_postgres.folder / "standby.signal").touch()
    await asyncio.to_thread(private_postgres.start)
    for question in (house.gate.drain, house.gate.fingerprint, lambda: house.gate.ended([mark])):
        with pytest.raises(ConfigurationError, match="standby"):
            await soon(question())
    future = f"{_xid(mark) + 1000}:future"
    with pytest.raises(ConfigurationError, match="standby"):
        await soon(house.gate.ended([future]))
    await house.close()


@pytest.fixture
def galera(nursery: Nursery) -> Iterator[PrivateMariaDB]:
    """A cluster of one."""
    if not GALERA.exists():
        pytest.skip(f"no Galera: {GALERA} is not there")
    port = free_port()
    server = nursery.mariadb(
        wsrep_on="ON",
        wsrep_provider=str(GALERA),
        wsrep_cluster_address="gcomm://",
        wsrep_node_address="127.0.0.1",
        wsrep_provider_options=f"base_port={port};gmcast.listen_addr=tcp://127.0.0.1:{port}",
        binlog_format="ROW",
        innodb_autoinc_lock_mode="2",
    )
    yield server
    nursery.end(server)


async def test_a_galera_cluster_is_refused(galera: PrivateMariaDB) -> None:
    house = House(galera.url())
    with pytest.raises(ConfigurationError, match="Galera"):
        await house.gate.fingerprint()
    await house.close()


@on_mariadb
async def test_mysql_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def call_itself_mysql(*_: object) -> str:
        return "8.0.40"

    monkeypatch.setattr(mariadb, "_scalar", call_itself_mysql)
    with pytest.raises(ConfigurationError, match="not of MySQL"):
        await gate_for(house.engine.sync_engine).fingerprint()


@on_mariadb
async def test_a_mariadb_without_server_uid_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "_SERVER", "@@no_such_uid")
    with pytest.raises(ConfigurationError, match="newer release"):
        await gate_for(house.engine.sync_engine).fingerprint()


async def test_the_gate_of_mariadb_is_made_with_transactions_or_refused(private_mariadb: PrivateMariaDB) -> None:
    look(private_mariadb.url(), "SET GLOBAL default_storage_engine = MyISAM")
    house = House(private_mariadb.url())
    assert await house.gate.fingerprint()
    await house.close()
    look(private_mariadb.url(), "ALTER TABLE akv_gate ENGINE=MyISAM")
    house = House(private_mariadb.url())
    with pytest.raises(ConfigurationError, match="ENGINE=InnoDB"):
        await house.gate.fingerprint()
    await house.close()


@on_mariadb
async def test_an_engine_without_a_database_is_refused(house: House) -> None:
    nowhere = House(make_url(house.url).set(database="").render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match="name a database"):
        await nowhere.gate.fingerprint()
    await nowhere.close()


async def test_another_server_than_before_is_refused(two_servers: list[PrivateServer]) -> None:
    houses = [await house_at(server.url("elsewhere")) for server in two_servers]
    house = houses[0]
    reached = two_servers[0].port

    @event.listens_for(house.engine.sync_engine, "do_connect")
    def redirect(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters["port"] = reached

    async with house.writer(1) as writer:
        mark = await writer.enter()
        assert await house.gate.ended([mark]) == set()
        reached = two_servers[1].port
        for question in (house.gate.drain, lambda: house.gate.ended([mark])):
            with pytest.raises(ConfigurationError, match="another one than before"):
                await soon(question())
        reached = two_servers[0].port
        assert await house.gate.ended([mark]) == set()
    for each in houses:
        await each.close()


async def test_a_transaction_on_another_mariadb_server_does_not_enter(private_mariadb: PrivateMariaDB) -> None:
    here, there = await house_at(private_mariadb.url()), House(private_mariadb.url())
    there.gate._place = (await here.gate._ready())._replace(server="elsewhere/1")  # type: ignore[attr-defined]
    there.gate._is_there = True  # type: ignore[attr-defined]
    for _ in range(2):
        async with here.writer(1) as writer:
            with pytest.raises(ConfigurationError, match="another one than before"):
                await there.gate.enter(writer.driver)
    await here.close()
    await there.close()


@pytest.fixture(params=["mariadb", "postgres"])
def two_servers(request: pytest.FixtureRequest, nursery: Nursery) -> Iterator[list[Any]]:
    """Two servers with a database of the same name, which tell themselves apart."""
    servers = [getattr(nursery, request.param)() for _ in range(2)]
    servers[1].create_database("first")  # private servers are copies of one: numbers of databases differ at least
    for server in servers:
        server.create_database("elsewhere")
    yield servers
    for server in servers:
        nursery.end(server)


@pytest.mark.parametrize("house", [*ON_MARIADB, "sqlite-file"], indirect=True)
async def test_without_create_tables_the_table_has_to_be_there(house: House) -> None:
    look(house.url, "DROP TABLE akv_gate")
    gate = gate_for(house.engine.sync_engine, create_tables=False)
    with pytest.raises(ConfigurationError, match="create_tables=True"):
        await gate.fingerprint()
    async with house.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    assert await gate.fingerprint()
    await gate.aclose()


@on_postgres_alone
async def test_a_user_who_may_not_see_which_cluster_it_is_is_told_what_to_grant(own_house: House) -> None:
    name = make_url(own_house.url).database
    look(own_house.url, f"CREATE ROLE {name}_r LOGIN")
    try:
        look(own_house.url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        limited = House(make_url(own_house.url).set(username=f"{name}_r").render_as_string(hide_password=False))
        with pytest.raises(ConfigurationError, match="GRANT EXECUTE"):
            await limited.gate.fingerprint()
        async with limited.engine.connect() as connection:
            with pytest.raises(ConfigurationError, match="GRANT EXECUTE"):
                await limited.gate.fingerprint(_driver_of(connection))
        look(own_house.url, f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {name}_r")
        assert await limited.gate.fingerprint() == await own_house.gate.fingerprint()
        await limited.close()
    finally:
        look(own_house.url, f"DROP OWNED BY {name}_r")
        look(own_house.url, f"DROP ROLE {name}_r")


def test_there_is_no_gate_without_an_asynchronous_driver_a_file_or_a_known_database() -> None:
    with pytest.raises(ConfigurationError, match="create_async_engine"):
        gate_for(create_engine("sqlite:///app.db"))
    for rest in ("", "/:memory:", "/file:x?mode=memory&uri=true"):
        engine = create_async_engine(f"sqlite+aiosqlite://{rest}", poolclass=NullPool)
        with pytest.raises(ConfigurationError, match="use a file"):
            gate_for(engine.sync_engine)
    engine = create_async_engine("sqlite+aiosqlite:///app.db")
    engine.dialect.name = "oracle"
    with pytest.raises(ConfigurationError, match="PostgreSQL, MariaDB or SQLite"):
        gate_for(engine.sync_engine)


def test_the_tables_are_akvs_own() -> None:
    assert {table.name for table in metadata.tables.values()} == {"akv_gate", "akv_outbox"}
    assert all(table.info[OWN] for table in metadata.tables.values())
    assert gate_table.metadata is metadata


# --- cancellation, closing, loops


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop reports to its exception handler: must stay empty."""
    loop = asyncio.get_running_loop()
    found: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not found, found


@everywhere
@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("question", ["ended", "drain", "fingerprint"])
async def test_a_cancelled_question_leaves_nothing_behind(house: House, question: str) -> None:
    async with house.writer(1) as writer:
        mark = await writer.enter()
        await writer.connection.commit()
    ask = {
        "ended": lambda: house.gate.ended([mark]),
        "drain": house.gate.drain,
        "fingerprint": lambda: gate_for(house.engine.sync_engine).fingerprint(),
    }[question]
    for step in range(1, MOST_STEPS):
        cancelled = await was_cancelled(step, ask())
        if not cancelled:
            break
    else:
        pytest.fail(f"still not complete after {MOST_STEPS} steps")
    assert step > 2
    assert await house.gate.ended([mark]) == {mark}
    await house.gate.aclose()
    await house.engine.dispose()
    if house.dialect != "sqlite":

        async def nobody_is_connected() -> bool:
            return not house.sessions()

        await until(nobody_is_connected)


@everywhere
@pytest.mark.usefixtures("complaints")
async def test_work_goes_on_when_nobody_waits_for_it_any_more(house: House) -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        begun.set()
        await go_on.wait()
        await connection.execute(text("INSERT INTO things (n) VALUES (1)"))
        done.set()

    asking = asyncio.create_task(house.gate._own.run(work))  # type: ignore[attr-defined]
    await soon(begun.wait())
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    go_on.set()
    await soon(done.wait())
    await house.gate.aclose()
    assert await house.numbers() == {1}


@on_sqlite
async def test_a_driver_that_is_always_in_a_transaction_asks_as_well(house: House) -> None:
    async with house.engine.connect() as own:
        await own.exec_driver_sql("BEGIN")
        await own.execute(text("SELECT * FROM things"))
        assert await sqlite._is_nobody_writing(own)
        async with house.writer(1):
            await own.exec_driver_sql("BEGIN")
            assert not await sqlite._is_nobody_writing(own)
        assert await sqlite._is_nobody_writing(own)


@on_servers
@pytest.mark.usefixtures("complaints")
async def test_closing_ends_a_question_that_gets_no_answer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akv.tokens.connections._LAST_CALL", 0.05)
    begun = asyncio.Event()

    async def hang(connection: Any) -> None:
        begun.set()
        await connection.exec_driver_sql("SELECT pg_sleep(60)" if house.is_postgres else "SELECT SLEEP(60)")

    asking = asyncio.create_task(house.gate._own.run(hang))  # type: ignore[attr-defined]
    await soon(begun.wait())
    await soon(house.gate.aclose())
    with pytest.raises(asyncio.CancelledError):
        await soon(asking)
    await house.gate.aclose()


@everywhere
async def test_questions_keep_no_connection(house: House) -> None:
    async with house.writer(1) as writer:
        mark = await writer.enter()
    await house.engine.dispose()
    assert await house.gate.ended([mark]) == {mark}
    await soon(house.gate.drain())

    async def nobody_is_connected() -> bool:
        return not house.sessions()

    if house.dialect != "sqlite":
        await until(nobody_is_connected)


@pytest.mark.parametrize("url", EVERYWHERE, indirect=True)
def test_one_gate_in_loops_that_end_without_notice(url: str) -> None:
    gate = gate_for(create_async_engine(url).sync_engine)

    async def use(n: int) -> str:
        house = House(url)
        house.gate = gate
        await house.create()
        async with house.writer(n) as writer:
            mark = await writer.enter()
            assert await gate.ended([mark]) == set()
            await writer.connection.commit()
        assert await gate.ended([mark]) == {mark}
        await house.engine.dispose()
        return mark

    assert len({asyncio.run(use(n)) for n in range(3)}) == 3
    asyncio.run(gate.aclose())


@everywhere
async def test_the_settings_of_the_engine_are_lent(house: House) -> None:
    """A listener of the user's pool prepares our connections too."""
    engine = create_async_engine(house.url)
    seen = []
    event.listen(engine.sync_engine, "connect", lambda dbapi, _: seen.append(dbapi))
    gate = gate_for(engine.sync_engine)
    await gate.fingerprint()
    assert len(seen) == 1
    async with engine.connect():
        assert len(seen) == 2  # the user's pool was not asked
    await gate.aclose()
    await engine.dispose()
