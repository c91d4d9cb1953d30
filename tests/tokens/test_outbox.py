"""The outbox: part of the writer's transaction, taken by anybody, deleted by what it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import create_async_engine

from akv.errors import ConfigurationError
from akv.tokens import outbox as module
from akv.tokens.outbox import Outbox
from akv.tokens.tables import metadata
from tests.faults.test_cancellation import MOST_STEPS, was_cancelled
from tests.servers import look
from tests.tokens.gatehouse import (
    EVERYWHERE,
    ON_MARIADB,
    ON_POSTGRES,
    ON_SERVERS,
    House,
    open_house,
    soon,
    until,
    url_of,
)

if TYPE_CHECKING:
    from typing import Any

    from tests.servers import Session

everywhere = pytest.mark.parametrize("house", EVERYWHERE, indirect=True)
on_servers = pytest.mark.parametrize("house", ON_SERVERS, indirect=True)
on_postgres = pytest.mark.parametrize("house", ON_POSTGRES, indirect=True)
on_postgres_alone = pytest.mark.parametrize("own_house", ON_POSTGRES, indirect=True)
on_mariadb = pytest.mark.parametrize("house", ON_MARIADB, indirect=True)


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


@pytest.fixture
async def outbox(house: House) -> AsyncIterator[Outbox]:
    made = Outbox(house.engine.sync_engine)
    await made.prepare()
    yield made
    await made.aclose()


async def put(house: House, outbox: Outbox, n: int, *identifiers: str) -> None:
    async with house.writer(n) as writer:
        await outbox.put(writer.driver, identifiers)
        await writer.connection.commit()


async def taken(outbox: Outbox) -> list[tuple[str, ...]]:
    return [parcel.identifiers for parcel in await outbox.take()]


@everywhere
async def test_a_parcel_is_there_when_its_transaction_has_committed(house: House, outbox: Outbox) -> None:
    async with house.writer(1) as writer:
        await outbox.put(writer.driver, ["akv:users#1", "akv:users#*"])
        assert await taken(outbox) == []
        await writer.connection.commit()
    assert await taken(outbox) == [("akv:users#*", "akv:users#1")]
    assert await taken(outbox) == [("akv:users#*", "akv:users#1")]  # taking leaves it there


@everywhere
async def test_a_transaction_that_rolls_back_takes_its_parcel_along(house: House, outbox: Outbox) -> None:
    async with house.writer(1) as writer:
        await outbox.put(writer.driver, ["akv:users#1"])
        await writer.connection.rollback()
    assert await outbox.take() == []


@everywhere
async def test_parcels_are_deleted_by_what_they_were(house: House, outbox: Outbox) -> None:
    for n in range(3):
        await put(house, outbox, n, f"akv:users#{n}")
    parcels = {parcel.identifiers[0]: parcel.id for parcel in await outbox.take()}
    await outbox.delete([parcels["akv:users#0"], parcels["akv:users#2"]])
    assert await taken(outbox) == [("akv:users#1",)]
    await outbox.delete([])
    await outbox.delete([*parcels.values(), "never there"])
    assert await outbox.take() == []


@everywhere
async def test_whoever_deletes_late_deletes_nothing_newer(house: House, outbox: Outbox) -> None:
    await put(house, outbox, 1, "akv:users#1")
    (old,) = await outbox.take()
    await outbox.delete([old.id])
    for n in range(2, 5):
        await put(house, outbox, n, "akv:users#1")  # the same once more, and again
    await outbox.delete([old.id])
    assert await taken(outbox) == [("akv:users#1",)] * 3


@everywhere
async def test_a_large_set_of_changes_and_any_character(house: House, outbox: Outbox) -> None:
    names = tuple(sorted({f"akv:{'wide' * 30}#{n}" for n in range(2000)} | {"akv:label:é%中\U0001f600\\'\"%s"}))
    assert sum(map(len, names)) > 2**16
    await put(house, outbox, 1, *names)
    assert await taken(outbox) == [names]


@everywhere
async def test_as_many_as_asked_for_the_oldest_first(
    house: House, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, seconds in enumerate((5, 10, 4000, 1, 20)):
        monkeypatch.setattr(module, "time_ns", lambda seconds=seconds: (1_700_000_000 + seconds) * 10**9)
        await put(house, outbox, n, f"akv:users#{n}")
    assert [parcel.identifiers for parcel in await outbox.take(3)] == [
        ("akv:users#3",),
        ("akv:users#0",),
        ("akv:users#1",),
    ]


@everywhere
async def test_namespaces_in_one_database_neither_take_nor_delete_what_is_of_others(
    house: House, outbox: Outbox
) -> None:
    names = ["akv", "AKV", "ak", "akv2", "it's"]
    boxes = {name: Outbox(house.engine.sync_engine, namespace=name) for name in names}
    for n, name in enumerate(names):
        await put(house, boxes[name], n, f"akv:users#{n}")
    parcels = {name: await box.take() for name, box in boxes.items()}
    for n, name in enumerate(names):
        assert [parcel.identifiers for parcel in parcels[name]] == [(f"akv:users#{n}",)]
    ids = [parcel.id for found in parcels.values() for parcel in found]
    await boxes["ak"].delete(ids)
    assert {name: await box.take() for name, box in boxes.items()} == {**parcels, "ak": []}
    assert await outbox.take() == parcels["akv"]  # what is said nowhere is the default
    for box in boxes.values():
        await box.aclose()


@everywhere
async def test_when_it_was_put_is_noted_in_utc(house: House, outbox: Outbox) -> None:
    await put(house, outbox, 1, "akv:users#1")
    now = {
        "postgresql": "now() AT TIME ZONE 'utc'",
        "mariadb": "UTC_TIMESTAMP()",
        "sqlite": "CURRENT_TIMESTAMP",
    }[house.dialect]
    assert look(house.url, f"SELECT created > {now} OR created < '2020-01-01' FROM akv_outbox") == [(False,)]


@everywhere
async def test_many_relays_at_once_lose_nothing(house: House, outbox: Outbox) -> None:
    """Each bumps what it takes and deletes it then; one of them is slow."""
    bumped: set[str] = set()
    done = asyncio.Event()
    boxes = [Outbox(house.engine.sync_engine) for _ in range(3)]

    async def write(first: int) -> None:
        for n in range(first, first + 10):
            await put(house, outbox, n, f"akv:users#{n}")

    async def relay(box: Outbox, pause: float) -> None:
        while not done.is_set() or await box.take():
            parcels = await box.take(7)
            bumped.update(name for parcel in parcels for name in parcel.identifiers)
            await asyncio.sleep(pause)
            await box.delete([parcel.id for parcel in parcels])

    async def write_all() -> None:
        await asyncio.gather(write(0), write(100))
        done.set()

    await soon(asyncio.gather(write_all(), *(relay(box, number / 200) for number, box in enumerate(boxes))))
    assert bumped == {f"akv:users#{n}" for n in (*range(10), *range(100, 110))}
    assert await outbox.take() == []
    for box in boxes:
        await box.aclose()


@on_servers
async def test_relays_do_not_wait_for_writers_nor_writers_for_relays(house: House, outbox: Outbox) -> None:
    for n in range(4):
        await put(house, outbox, n, f"akv:users#{n}")
    async with house.writer(10) as writer:
        await outbox.put(writer.driver, ["akv:users#10"])
        parcels = await soon(outbox.take())
        await soon(outbox.delete([parcel.id for parcel in parcels]))
        await soon(put(house, outbox, 11, "akv:users#11"))
        assert await taken(outbox) == [("akv:users#11",)]
        await writer.connection.commit()
    assert sorted(await taken(outbox)) == [("akv:users#10",), ("akv:users#11",)]


@everywhere
async def test_the_pool_of_the_user_is_not_needed(house: House) -> None:
    engine = create_async_engine(house.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    outbox = Outbox(engine.sync_engine)
    async with engine.connect():
        assert await outbox.take() == []
        await outbox.delete(["never there"])
    await outbox.aclose()
    await engine.dispose()


# --- the table


@everywhere
async def test_many_create_the_table_at_once(house: House) -> None:
    boxes = [Outbox(house.engine.sync_engine) for _ in range(8)]
    names = await soon(asyncio.gather(*(box.prepare() for box in boxes)))
    assert len(set(names)) == 1
    assert await boxes[0].take() == []
    for box in boxes:
        await box.aclose()


@everywhere
async def test_without_create_tables_it_has_to_be_there(house: House) -> None:
    outbox = Outbox(house.engine.sync_engine, create_tables=False)
    with pytest.raises(ConfigurationError, match=r"akv_outbox does not exist.*create_tables=True"):
        await outbox.prepare()
    async with house.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await put(house, outbox, 1, "akv:users#1")
    assert await taken(outbox) == [("akv:users#1",)]
    await outbox.aclose()


_FORMER = (
    "CREATE TABLE akv_outbox (id VARCHAR(32) PRIMARY KEY, identifiers {text} NOT NULL, created {time} NOT NULL)",
    "INSERT INTO akv_outbox (id, identifiers, created) VALUES ('abc', '[\"akv:users#7\"]', '2026-01-01 00:00:00')",
)


@everywhere
async def test_a_table_without_namespaces_is_refused_until_it_is_altered_as_said(house: House) -> None:
    outbox = Outbox(house.engine.sync_engine, namespace="it's")
    create, insert = _FORMER
    types = {"mariadb": ("LONGTEXT", "DATETIME"), "postgresql": ("TEXT", "TIMESTAMP"), "sqlite": ("TEXT", "DATETIME")}
    text_type, time_type = types[house.dialect]
    look(house.url, create.format(text=text_type, time=time_type))
    look(house.url, insert)
    async with house.writer(1) as writer:
        for step in (outbox.prepare, outbox.take, lambda: outbox.put(writer.driver, ["akv:users#1"])):
            with pytest.raises(ConfigurationError, match=r"earlier version of akv.*ALTER TABLE akv_outbox") as refused:
                await step()
    look(house.url, "ALTER" + str(refused.value).partition("ALTER")[2])
    await put(house, outbox, 2, "akv:users#2")
    parcels = await outbox.take()
    assert {parcel.identifiers for parcel in parcels} == {("akv:users#2",), ("akv:users#7",)}
    other = Outbox(house.engine.sync_engine, namespace="It's")
    assert await other.take() == []
    await outbox.delete([parcel.id for parcel in parcels])
    assert await outbox.take() == []
    await outbox.aclose()
    await other.aclose()


@on_postgres_alone
async def test_a_user_who_may_not_create_tables_is_told_so(own_house: House) -> None:
    role = f"{make_url(own_house.url).database}_r"
    look(own_house.url, f"CREATE ROLE {role} LOGIN")
    try:
        look(own_house.url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        engine = create_async_engine(make_url(own_house.url).set(username=role))
        outbox = Outbox(engine.sync_engine)
        with pytest.raises(ConfigurationError, match=r"akv_outbox does not exist.*permission denied"):
            await outbox.prepare()
        await outbox.aclose()
        await engine.dispose()
    finally:
        look(own_house.url, f"DROP OWNED BY {role}")
        look(own_house.url, f"DROP ROLE {role}")


@on_postgres
async def test_a_search_path_of_the_transaction_leads_nowhere_else(house: House, outbox: Outbox) -> None:
    async with house.writer(1) as writer:
        await writer.connection.execute(text("SET LOCAL search_path = pg_catalog"))
        await outbox.put(writer.driver, ["akv:users#1"])
        await writer.connection.commit()
    assert await taken(outbox) == [("akv:users#1",)]


@on_postgres_alone
async def test_the_search_path_of_the_engine_says_where_it_is(own_house: House) -> None:
    look(own_house.url, 'CREATE SCHEMA "Te nant"')
    engine = create_async_engine(own_house.url)

    @event.listens_for(engine.sync_engine, "connect")
    def choose(dbapi: Any, _record: object) -> None:
        cursor = dbapi.cursor()
        cursor.execute("""SELECT set_config('search_path', '"Te nant"', false)""")
        cursor.close()
        dbapi.commit()

    outbox = Outbox(engine.sync_engine)
    assert await outbox.prepare() == '"Te nant"."akv_outbox"'
    await put(own_house, outbox, 1, "akv:users#1")
    assert await taken(outbox) == [("akv:users#1",)]
    await outbox.aclose()
    await engine.dispose()


@on_mariadb
async def test_another_current_database_of_the_transaction_leads_nowhere_else(house: House, outbox: Outbox) -> None:
    async with house.writer(1) as writer:
        await writer.connection.exec_driver_sql("USE information_schema")
        await outbox.put(writer.driver, ["akv:users#1"])
        mark = await writer.enter()
        await writer.connection.commit()
        await writer.connection.invalidate()
    assert await taken(outbox) == [("akv:users#1",)]
    assert await house.gate.ended([mark]) == {mark}


@everywhere
async def test_a_table_that_was_dropped_is_refused_once_and_made_again(house: House, outbox: Outbox) -> None:
    look(house.url, "DROP TABLE akv_outbox")
    async with house.writer(1) as writer:
        with pytest.raises(Exception, match="akv_outbox"):
            await outbox.put(writer.driver, ["akv:users#1"])
        await writer.connection.rollback()
    await outbox.prepare()
    await put(house, outbox, 2, "akv:users#2")
    assert await taken(outbox) == [("akv:users#2",)]


@everywhere
async def test_a_database_that_fails_says_so(house: House, outbox: Outbox) -> None:
    look(house.url, "DROP TABLE akv_outbox")
    with pytest.raises(sa_exc.DBAPIError, match="akv_outbox"):
        await outbox.take()


# --- cancellation


@everywhere
@pytest.mark.parametrize("call", ["take", "delete"])
async def test_a_cancelled_relay_leaves_nothing_behind(house: House, outbox: Outbox, call: str) -> None:
    await put(house, outbox, 1, "akv:users#1")
    (parcel,) = await outbox.take()
    ask = {"take": outbox.take, "delete": lambda: outbox.delete([parcel.id])}[call]
    for step in range(1, MOST_STEPS):
        if not await was_cancelled(step, ask()):
            break
    else:
        pytest.fail(f"still not complete after {MOST_STEPS} steps")
    assert step > 2
    assert await taken(outbox) == ([("akv:users#1",)] if call == "take" else [])
    await outbox.aclose()
    await house.engine.dispose()
    if house.dialect != "sqlite":

        async def nobody_is_connected() -> bool:
            return not house.sessions()

        await until(nobody_is_connected)
