"""What is known of triggers, functions and keys: how long it is believed, and what counts where nothing is known."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from akv.tokens.binding import bind
from akv.tokens.changes import ChangeSet
from akv.tokens.listeners import bound_engine_of
from akv.tokens.opaque.catalog import Catalog, ForeignKey, Relation
from akv.tokens.opaque.information import SOMETHING, InformationSchema
from akv.tokens.opaque.witness import CATALOG_SECONDS
from tests.backends import Backend
from tests.tokens.recording import RecordingTokens
from tests.tokens.redefining import redefining
from tests.tokens.site import ANY, UNKNOWN, Site, site, tables, unknown, without_schemas
from tests.tokens.test_writes_opaque import BUMPING, NOTES, SCENES, SOME, change_order, flush_tag, notes, sql
from tests.tokens.world import Order, User

on_servers = pytest.mark.backends(exclude=("sqlite-file", "sqlite-memory"))
TRIGGER = SCENES["trigger writes another table"].setup


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend, fresh=True) as app:
        await app.run(NOTES, SOME)
        yield app


@contextmanager
def clock_of(app: Site) -> Iterator[Clock]:
    """Put a clock of the test's own into the witness of a bound engine."""
    bound: Any = bound_engine_of(app.engine.sync_engine)
    clock = bound._witness._clock = Clock()
    yield clock


# --- age --------------------------------------------------------------------------------------------------------------


@on_servers
async def test_trigger_that_others_made_counts_once_the_catalog_is_old(app: Site) -> None:
    with clock_of(app) as clock:
        assert without_schemas(await app.announced(flush_tag)) >= {ANY} | tables("tags")
        await app.run(*TRIGGER[app.dialect][2:])
        clock.now += CATALOG_SECONDS
        app.watched.append(notes)
        announced = await app.announced(change_order)
        assert announced >= (unknown("notes", "orders") if app.dialect == "postgresql" else UNKNOWN)


@pytest.mark.parametrize(
    ("message", "skipped", "is_whole"),
    [
        ("Table 'shop'.'Orders' was skipped since ...", {Relation("shop", "Orders")}, False),
        ("Table 'other'.'orders' was skipped since ...", {Relation("other", "orders")}, True),
        ("in words that nobody knows", {SOMETHING}, False),
    ],
)
async def test_what_information_schema_leaves_out_counts_where_it_is(
    message: str, skipped: set[Relation], is_whole: bool
) -> None:
    class Skipping:
        async def fetch(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
            return [("Warning", 1684, message), ("Note", 1356, "a view")] if sql == "SHOW WARNINGS" else [("row",)]

    information = InformationSchema(Skipping())  # type: ignore[arg-type]
    assert await information.fetch("SELECT 1") == [("row",)]
    assert information.skipped == skipped
    assert information.is_whole(["Shop"]) is is_whole


@pytest.mark.backends("mariadb")
async def test_trigger_of_a_table_that_was_being_redefined_counts(app: Site) -> None:
    """A transaction that has read something is not shown such a table: MariaDB does not let it wait."""

    async def change_note(session: AsyncSession) -> None:
        await session.execute(notes.update().where(notes.c.id == 2).values(body=notes.c.body + "x"))

    touch_order = sql("UPDATE orders SET id = id WHERE id = 1")
    await app.run(*TRIGGER[app.dialect][2:])
    with clock_of(app) as clock:
        clock.now += CATALOG_SECONDS
        assert (await app.announced(touch_order)) >= UNKNOWN
        assert not (await app.announced(change_note)) >= UNKNOWN
        clock.now += CATALOG_SECONDS
        async with redefining(app.engine.url.render_as_string(hide_password=False), "orders"):
            async with app.session.begin() as session:
                await change_note(session)
            assert app.tokens.changes() >= UNKNOWN
        assert (await app.announced(touch_order)) >= UNKNOWN
        assert not (await app.announced(change_note)) >= UNKNOWN


@on_servers
async def test_function_that_others_made_counts_once_the_catalog_is_old(app: Site) -> None:
    with clock_of(app) as clock:
        await app.announced(sql("SELECT count(*) FROM users"))
        clock.now += CATALOG_SECONDS
        with app.beside() as beside:
            await app.announced(sql("SELECT count(*) FROM users"))
        assert beside == []  # known not to write
        await app.run(BUMPING[app.dialect][-1])
        app.watched.append(notes)
        announced = await app.announced(sql("SELECT bump_note(1)"))
        assert announced >= (unknown("notes") if app.dialect == "postgresql" else UNKNOWN)


@on_servers
async def test_old_catalog_alone_widens_nothing(app: Site) -> None:
    with clock_of(app) as clock:
        for tag in ("solo", "red"):

            async def write(s: AsyncSession, tag: str = tag) -> None:
                s.add(Order(id=50 + len(tag), total=1))
                await s.execute(text("SELECT lower('X')"))

            clock.now += CATALOG_SECONDS
            announced = without_schemas(await app.announced(write))
            assert announced == {f"akv:orders#{50 + len(tag)}", ANY} | tables("orders")


@pytest.mark.backends("postgres")
async def test_catalog_read_beside_ddl_is_not_kept(app: Site) -> None:
    """The trigger that a transaction drops is there again when it rolls back."""
    await app.run(*TRIGGER["postgresql"][2:])
    app.watched.append(notes)
    await app.announced(flush_tag)
    async with app.session() as s:
        await s.execute(text("DROP TRIGGER t ON orders"))
        await s.execute(text("UPDATE tags SET colour = 'y' WHERE name = 'solo'"))
        await s.flush()
        bound: Any = bound_engine_of(app.engine.sync_engine)
        raw = (await s.connection()).sync_connection
        from akv.tokens import transactions

        transaction = transactions.transaction_of(raw)  # type: ignore[arg-type]
        assert transaction is not None
        changes = transaction.frames.merged()
        assert bound._witness.must_settle(transaction.driver, changes)
        await bound._witness.settle(transaction.driver, changes)
        await s.rollback()
    assert await app.announced(change_order) >= unknown("notes")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.backends("postgres")
async def test_constraint_that_waits_for_commit_fails_it_as_an_integrity_error(app: Site) -> None:
    await app.run(
        "CREATE TABLE more (id INTEGER PRIMARY KEY, note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON more DEFERRABLE FOR EACH ROW EXECUTE FUNCTION nothing()",
    )
    async with app.session() as s:
        await s.execute(text("INSERT INTO more VALUES (1, 77)"))
        with pytest.raises(exc.IntegrityError):
            await s.commit()
    assert app.tokens.announced == []
    assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert without_schemas(await app.announced(flush_tag)) == {"akv:tags#solo", ANY} | tables("tags")


@pytest.mark.backends("postgres")
async def test_commit_of_a_transaction_that_postgresql_gave_up_announces_nothing(app: Site) -> None:
    async with app.session() as s:
        await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))
        with pytest.raises(exc.DBAPIError):
            await s.execute(text("SELECT 1 / 0"))
        await s.commit()
    assert app.tokens.announced == []


@pytest.mark.backends("mariadb")
async def test_whoever_may_not_see_triggers_is_warned_once_and_announces_anything(
    backend: Backend, app: Site, caplog: pytest.LogCaptureFixture
) -> None:
    user, database = f"akv_{uuid4().hex[:8]}", app.engine.url.database
    await app.run(
        f"CREATE USER {user}@'%%' IDENTIFIED BY 'secret'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO {user}@'%%'",
    )
    engine = create_async_engine(app.engine.url.set(username=user, password="secret"))
    tokens = RecordingTokens()
    binding = bind(engine, tokens)
    try:
        with caplog.at_level(logging.WARNING, "akv"):
            for name in ("x", "y"):
                async with AsyncSession(engine) as s, s.begin():
                    (await s.get_one(User, 1)).name = name
                assert tokens.changes() >= UNKNOWN
        (record,) = caplog.records
        assert f"GRANT TRIGGER ON {database}.*" in record.getMessage()
        await app.run(f"GRANT TRIGGER ON {database}.* TO {user}@'%%'")
    finally:
        await binding.unbind()
        await engine.dispose()
        await app.run(f"DROP USER {user}@'%%'")


# --- what follows from what, without a database -----------------------------------------------------------------------


def relation(name: str) -> Relation:
    return Relation("s", name)


def key(child: str, *, local: str = "up", columns: str = "id", delete: str = "", update: bool = False) -> ForeignKey:
    return ForeignKey(
        relation(child), frozenset([local]), frozenset([columns]), delete == "cascade", bool(delete), update
    )


def followed(catalog: Catalog, changes: ChangeSet) -> set[str]:
    catalog.follow(changes)
    return {name for name in changes.tables if "." not in name}


def written(table: str, *, lost: bool = False, columns: frozenset[str] | None = frozenset()) -> ChangeSet:
    changes = ChangeSet()
    changes.add_row(table, f"akv:{table}#1")
    changes.add_effect(table, lost=lost, columns=columns)
    return changes


def test_deletion_follows_cascades_and_stops_where_rows_stay() -> None:
    catalog = Catalog(
        keys={
            "a": [key("b", delete="cascade"), key("c", delete="empty")],
            "b": [key("d", delete="cascade")],
            "c": [key("e", delete="cascade"), key("f", columns="up", update=True)],
        }
    )
    assert followed(catalog, written("a", lost=True)) == {"a", "b", "c", "d", "f"}
    assert followed(catalog, written("a")) == {"a"}


def test_update_follows_only_the_columns_that_are_referred_to() -> None:
    catalog = Catalog(keys={"a": [key("b", columns="code", update=True)]})
    assert followed(catalog, written("a", columns=frozenset(["name"]))) == {"a"}
    assert followed(catalog, written("a", columns=frozenset(["code"]))) == {"a", "b"}
    assert followed(catalog, written("a", columns=None)) == {"a", "b"}


def test_keys_in_a_circle_end() -> None:
    catalog = Catalog(keys={"a": [key("b", delete="cascade")], "b": [key("a", delete="cascade")]})
    assert followed(catalog, written("a", lost=True)) == {"a", "b"}


def test_partition_counts_for_what_it_is_part_of_and_not_for_its_siblings() -> None:
    catalog = Catalog(
        wholes={"low": [relation("all")], "high": [relation("all")], "lowest": [relation("low")]},
        parts={"all": [relation("low"), relation("high")], "low": [relation("lowest")]},
    )
    changes = written("lowest")
    for name in ("low", "high", "all", "lowest"):
        changes.add_context(_metadata_with(name), None)
    assert followed(catalog, changes) == {"lowest", "low", "all"}
    changes = written("all")
    changes.add_context(_metadata_with("lowest", "low"), None)
    assert followed(catalog, changes) == {"all", "low", "lowest"}
    assert "akv:all#~" not in changes.identifiers()


def _metadata_with(*names: str) -> Any:
    from sqlalchemy import Column, Integer, MetaData, Table

    metadata = MetaData()
    for name in names:
        Table(name, metadata, Column("id", Integer, primary_key=True))
    return metadata


def test_tables_of_a_translated_schema_are_found_under_their_own() -> None:
    changes = ChangeSet()
    changes.add_schemas({"tenant": "t7", None: "t7", "any": None})
    assert changes.spellings("t7", "users") == {"users", "t7.users", "tenant.users", "any.users"}
    assert changes.spellings("t8", "users") == {"users", "t8.users", "any.users"}
