"""Writes that nobody described - text, functions, triggers, cascades, partitions, views - against the rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from tests.backends import Backend
from tests.tokens.site import ANY, DIALECTS, UNKNOWN, Case, Site, Write, case, site, tables, unknown, without_schemas
from tests.tokens.world import Base, Order, Tag, User

pytestmark = pytest.mark.backends(exclude="sqlite-memory")


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


@pytest.fixture
async def fresh(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend, fresh=True) as app:
        yield app


def sql(*statements: str) -> Write:
    """Return a write that sends these texts."""

    async def write(s: AsyncSession) -> None:
        for statement in statements:
            await s.execute(text(statement))

    return write


# --- SQL that SQLAlchemy did not build --------------------------------------------------------------------------------


async def text_with_columns(s: AsyncSession) -> None:
    await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1 RETURNING id").columns(User.id))


async def text_as_entity(s: AsyncSession) -> None:
    found = select(User).from_statement(text("UPDATE users SET name = 'x' WHERE id = 1 RETURNING *"))
    (await s.scalars(found)).all()


async def driver_sql(s: AsyncSession) -> None:
    await (await s.connection()).exec_driver_sql("DELETE FROM orders WHERE id = 4")


async def drop_table(s: AsyncSession) -> None:
    await (await s.connection()).run_sync(lambda c: Base.metadata.tables["remarks"].drop(c))


USERS = unknown("users")
PG = ("postgresql",)
MARIA = ("mariadb",)
TEXTS = {
    "update": case(sql("/* hidden */ UPDATE users SET name = 'x' WHERE id = 1"), USERS),
    "update nothing": case(sql("UPDATE users SET name = 'x' WHERE id = 77"), USERS, sqlite=set(), postgresql=set()),
    "insert": case(sql("INSERT INTO users (id, name) VALUES (9, 'x')"), USERS),
    "insert from select": case(
        sql("INSERT INTO remarks (id, about, text) SELECT id + 10, id, name FROM users"), unknown("remarks")
    ),
    "delete": case(sql("DELETE FROM orders WHERE id = 4"), unknown("orders", "lines"), sqlite=unknown("orders")),
    "quoted": case(sql('UPDATE "users" SET name = \'x\' WHERE id = 1'), USERS, only=("sqlite", "postgresql")),
    "backticks": case(sql("UPDATE `users` SET name = 'x' WHERE id = 1"), USERS, only=("sqlite", "mariadb")),
    "returning": case(text_with_columns, USERS, only=("sqlite", "postgresql")),
    "entity": case(text_as_entity, USERS, only=("sqlite", "postgresql")),
    "driver": case(driver_sql, unknown("orders", "lines"), sqlite=unknown("orders")),
    "with": case(
        sql("WITH q AS (SELECT 1 AS id) UPDATE users SET name = 'x' WHERE id IN (SELECT id FROM q)"),
        USERS,
        only=("sqlite", "postgresql"),
    ),
    "changing cte": case(
        sql("WITH q AS (UPDATE users SET name = 'x' WHERE id = 1 RETURNING id) SELECT * FROM q"), USERS, only=PG
    ),
    "two changing ctes": case(
        sql(
            "WITH q AS (DELETE FROM orders WHERE id = 4 RETURNING id) "
            "INSERT INTO tags (name, colour) SELECT 'n', '' FROM q"
        ),
        unknown("orders", "lines", "tags"),
        only=PG,
    ),
    "merge": case(
        sql(
            "MERGE INTO users u USING orders o ON o.user_id = u.id AND o.id = 3 WHEN MATCHED THEN UPDATE SET name = 'x'"
        ),
        USERS,
        only=PG,
    ),
    "truncate": case(sql("TRUNCATE lines, user_tags"), unknown("lines", "user_tags"), only=PG),
    "do": case(sql("DO $$ BEGIN UPDATE users SET name = 'x; COMMIT' WHERE id = 1; END $$"), USERS, only=PG),
    "explain analyze": case(sql("EXPLAIN ANALYZE UPDATE users SET name = 'x' WHERE id = 1"), USERS, only=PG),
    "prepared": case(
        sql("PREPARE p AS UPDATE users SET name = 'x' WHERE id = 1", "EXECUTE p", "DEALLOCATE p"), USERS, only=PG
    ),
    "cursor": case(
        sql("DECLARE c CURSOR FOR SELECT id FROM users WHERE id = 1 FOR UPDATE", "FETCH c",
            "UPDATE users SET name = 'x' WHERE CURRENT OF c"),
        USERS,
        only=PG,
    ),
    "insert or replace": case(
        sql("INSERT OR REPLACE INTO users (id, code, name) VALUES (50, 'c1', 'x')"), USERS, only=("sqlite",)
    ),
    "replace": case(
        sql("REPLACE INTO users (id, code, name) VALUES (3, 'c9', 'x')"), USERS, only=("sqlite", "mariadb")
    ),
    "on duplicate": case(
        sql("INSERT INTO users (code, name) VALUES ('c1', 'x') ON DUPLICATE KEY UPDATE name = 'x'"), USERS, only=MARIA
    ),
    "insert set": case(sql("INSERT IGNORE users SET name = 'x', id = 9"), USERS, only=MARIA),
    "update of two": case(
        sql("UPDATE users u JOIN orders o ON o.user_id = u.id SET u.name = 'x', o.total = 5 WHERE o.id = 3"),
        None,
        only=MARIA,
    ),
    "delete of two": case(
        sql("DELETE n, o FROM orders o JOIN `lines` n ON n.order_id = o.id WHERE o.id = 3"), None, only=MARIA
    ),
    "delete using": case(
        sql("DELETE FROM o USING orders AS o JOIN users u ON u.id = o.user_id WHERE u.id = 2 AND o.id > 100"),
        None,
        only=MARIA,
    ),
    "executable comment": case(sql("/*!50000 UPDATE users SET name = 'x' */"), UNKNOWN, only=MARIA),
    "unclear literal": case(sql(r"UPDATE users SET name = 'it\'s' WHERE id = 1"), UNKNOWN, only=MARIA),
}  # fmt: skip


def named(cases: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


@named(TEXTS)
async def test_text_counts_as_rows_of_the_tables_it_wrote(app: Site, case: Case) -> None:
    only_on(app, case.only)
    announced = without_schemas(await app.announced(case.write))
    expected = case.expected(app.dialect)
    assert expected is None or announced == expected


def only_on(app: Site, dialects: tuple[str, ...]) -> None:
    if app.dialect not in dialects:
        pytest.skip(f"no such thing on {app.dialect}")


async def test_text_beside_a_flush_widens_only_what_it_may_have_written(app: Site) -> None:
    async def write(s: AsyncSession) -> None:
        (await s.get_one(Tag, "solo")).colour = "x"
        await s.flush()
        await s.execute(text("UPDATE remarks SET text = 'x' WHERE id = 1"))

    announced = without_schemas(await app.announced(write))
    if app.dialect == "postgresql":
        assert announced == unknown("tags", "remarks")  # locks tell no rows
    else:
        assert announced >= unknown("remarks")
        assert ("akv:tags#~" in announced) == (app.dialect == "mariadb")


async def test_text_that_a_savepoint_undid_is_not_announced(app: Site) -> None:
    async def write(s: AsyncSession) -> None:
        savepoint = await s.begin_nested()
        await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))
        await savepoint.rollback()
        async with s.begin_nested():
            await s.execute(text("UPDATE remarks SET text = 'x' WHERE id = 1"))

    assert without_schemas(await app.announced(write)) == unknown("remarks")


async def test_text_in_a_transaction_that_rolls_back_is_not_announced(app: Site) -> None:
    async with app.session() as s:
        await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))
        await s.rollback()
    assert app.tokens.announced == []


async def test_text_that_fails_leaves_nothing_to_announce(app: Site) -> None:
    async def write(s: AsyncSession) -> None:
        with pytest.raises(Exception, match="users"):
            await s.execute(text("INSERT INTO users (id, name) VALUES (1, 'x')"))
        if app.dialect == "postgresql":
            await s.commit()  # a rollback, as the transaction has failed
        else:
            await s.rollback()

    assert await app.announced(write) == set()


async def test_drop_of_a_table_is_announced(fresh: Site) -> None:
    only_on(fresh, ("sqlite", "postgresql"))
    fresh.watched = []
    announced = await fresh.announced(drop_table)
    assert announced >= (UNKNOWN if fresh.dialect == "postgresql" else unknown("remarks"))


# --- what happens on its own ------------------------------------------------------------------------------------------

elsewhere = MetaData()
notes = Table(
    "notes", elsewhere, Column("id", Integer, primary_key=True), Column("user_id", Integer), Column("body", String(50))
)
"""The application knows nothing of it."""


@dataclass(frozen=True)
class Scene:
    """What the database does on its own: how it comes to do so, a write, and what must be announced at least."""

    write: Write
    setup: dict[str, list[str]]
    least: set[str]
    most: set[str] | None = None
    watched: list[Table] = field(default_factory=list)

    @property
    def only(self) -> tuple[str, ...]:
        return tuple(dialect for dialect in DIALECTS if dialect in self.setup or "all" in self.setup)


def everywhere(*statements: str, **more: list[str]) -> dict[str, list[str]]:
    return {dialect: [*statements, *more.get(dialect, [])] for dialect in more or DIALECTS}


NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, user_id INTEGER, body VARCHAR(50))"
SOME = "INSERT INTO notes VALUES (1, 1, ''), (2, 2, '')"
NOTING = (
    "CREATE FUNCTION noting() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN UPDATE notes SET body = 'x' WHERE id = 1; RETURN NULL; END $$"
)
SUMMING = (
    "CREATE FUNCTION summing() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN UPDATE orders SET total = 9 WHERE id = 2 AND total <> 9; RETURN NULL; END $$"
)
BUMP = (
    "CREATE FUNCTION bump_note(i integer) RETURNS integer LANGUAGE plpgsql AS "
    "$$ BEGIN UPDATE notes SET body = 'x' WHERE id = i; RETURN i; END $$"
)
MARIA_BUMP = (
    "CREATE FUNCTION bump_note(i INTEGER) RETURNS INTEGER MODIFIES SQL DATA "
    "BEGIN UPDATE notes SET body = 'x' WHERE id = i; RETURN i; END"
)
TAGGING = (
    "CREATE FUNCTION tagging() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN UPDATE tags SET colour = 'x'; RETURN NULL; END $$"
)
DEFERRED = (
    "CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON orders DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION noting()"
)
MORE = (
    "CREATE TABLE more (id INTEGER PRIMARY KEY, note INTEGER, body VARCHAR(50), "
    "FOREIGN KEY (note) REFERENCES notes (id) ON DELETE CASCADE)"
)
BUMPING = everywhere(NOTES, SOME, postgresql=[BUMP], mariadb=[MARIA_BUMP])


async def change_order(s: AsyncSession) -> None:
    (await s.get_one(Order, 1)).total = 5


async def call_in_core(s: AsyncSession) -> None:
    await s.execute(select(func.bump_note(1)))


async def call_in_values(s: AsyncSession) -> None:
    await s.execute(insert(Order).values(id=9, total=func.bump_note(1)))


async def call_in_where(s: AsyncSession) -> None:
    await s.execute(update(Tag).where(Tag.name == "solo", func.bump_note(1) == 1).values(colour="x"),
                    execution_options={"synchronize_session": False})  # fmt: skip


async def flush_tag(s: AsyncSession) -> None:
    (await s.get_one(Tag, "solo")).colour = "x"


async def rename_tag(s: AsyncSession) -> None:
    (await s.get_one(Tag, "solo")).name = "renamed"


async def remove_tag(s: AsyncSession) -> None:
    await s.delete(await s.get_one(Tag, "solo"))


def with_keys(action: str, key: str = "REFERENCES tags (name)") -> dict[str, list[str]]:
    table = f"CREATE TABLE notes (id INTEGER PRIMARY KEY, user_id INTEGER, body VARCHAR(100) {key} {action})"
    rows = "INSERT INTO notes VALUES (1, 1, 'solo'), (2, 2, NULL)"
    innodb = table.replace(f" {key} {action})", f", FOREIGN KEY (body) {key} {action})")
    return {"sqlite": [table, rows], "postgresql": [table, rows], "mariadb": [innodb, rows]}


view_of_notes = Table("seen_notes", elsewhere, Column("id", Integer, primary_key=True), Column("body", String(50)))
events = Table("events", elsewhere, Column("id", Integer, primary_key=True), Column("body", String(50)))
events_low = Table("events_low", elsewhere, Column("id", Integer, primary_key=True), Column("body", String(50)))
knowing = MetaData()
known_events = Table("events", knowing, Column("id", Integer, primary_key=True), Column("body", String(50)))
Table("events_low", knowing, Column("id", Integer, primary_key=True), Column("body", String(50)))
PARTITIONS = [
    "CREATE TABLE events (id INTEGER PRIMARY KEY, body VARCHAR(50)) PARTITION BY RANGE (id)",
    "CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100)",
    "INSERT INTO events VALUES (1, '')",
]
INHERITED = [
    "CREATE TABLE events (id INTEGER PRIMARY KEY, body VARCHAR(50))",
    "CREATE TABLE events_low (PRIMARY KEY (id)) INHERITS (events)",
    "INSERT INTO events_low VALUES (1, '')",
]


async def write_partition(s: AsyncSession) -> None:
    await s.execute(events_low.update().where(events_low.c.id == 1).values(body="x"))


async def write_partitioned(s: AsyncSession) -> None:
    await s.execute(known_events.update().where(known_events.c.id == 1).values(body="x"))


async def write_partitioned_without_knowing(s: AsyncSession) -> None:
    lone = Table("events", MetaData(), Column("id", Integer, primary_key=True), Column("body", String(50)))
    await s.execute(lone.update().where(lone.c.id == 1).values(body="x"))


async def write_view(s: AsyncSession) -> None:
    await s.execute(view_of_notes.update().where(view_of_notes.c.id == 1).values(body="x"))


VIEW = ["CREATE VIEW seen_notes AS SELECT id, body FROM notes WHERE id < 10"]
SCENES = {
    "trigger writes another table": Scene(
        change_order,
        everywhere(
            NOTES,
            SOME,
            sqlite=["CREATE TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE notes SET body = 'x' WHERE id = 1; END"],
            postgresql=[NOTING, "CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION noting()"],
            mariadb=["CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW UPDATE notes SET body = 'x' WHERE id = 1"],
        ),
        {ANY} | tables("orders"),
    ),
    "trigger writes another row of its table": Scene(
        change_order,
        {
            "sqlite": ["CREATE TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE orders SET total = 9 WHERE id = 2; END"],
            "postgresql": [
                SUMMING,
                "CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION summing()",
            ],
        },
        unknown("orders"),
    ),
    "trigger of a statement": Scene(
        change_order,
        {"postgresql": [NOTES, SOME, NOTING, "CREATE TRIGGER t AFTER UPDATE ON orders EXECUTE FUNCTION noting()"]},
        unknown("notes"),
    ),
    "deferred trigger": Scene(
        change_order,
        {
            "postgresql": [
                NOTES,
                SOME,
                NOTING,
                DEFERRED,
            ]
        },
        unknown("notes", "orders"),
    ),
    "trigger of a trigger": Scene(
        change_order,
        everywhere(
            NOTES,
            SOME,
            sqlite=[
                "CREATE TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE tags SET colour = 'x'; END",
                "CREATE TRIGGER u AFTER UPDATE ON tags BEGIN UPDATE notes SET body = 'x' WHERE id = 1; END",
            ],
            postgresql=[
                NOTING,
                TAGGING,
                "CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION tagging()",
                "CREATE TRIGGER u AFTER UPDATE ON tags FOR EACH ROW EXECUTE FUNCTION noting()",
            ],
        ),
        unknown("tags", "notes"),
    ),
    "rule": Scene(
        change_order,
        {"postgresql": [NOTES, SOME, "CREATE RULE r AS ON UPDATE TO orders DO ALSO UPDATE notes SET body = 'x'"]},
        unknown("notes"),
    ),
    "function in Core": Scene(call_in_core, BUMPING, {ANY}),
    "function in text": Scene(sql("SELECT bump_note(1)"), BUMPING, {ANY}),
    "function, quoted and apart": Scene(
        sql('SELECT "bump_note" /* here */ (1)'), {"postgresql": BUMPING["postgresql"]}, unknown("notes")
    ),
    "function among inserted values": Scene(call_in_values, BUMPING, {ANY} | tables("orders")),
    "function in a condition": Scene(call_in_where, BUMPING, {ANY} | tables("tags")),
    "function in a view": Scene(
        sql("SELECT * FROM bumping"),
        everywhere(
            NOTES,
            SOME,
            postgresql=[BUMP, "CREATE VIEW bumping AS SELECT bump_note(1)"],
            mariadb=[MARIA_BUMP, "CREATE VIEW bumping AS SELECT bump_note(1)"],
        ),
        {ANY},
    ),
    "set-returning function": Scene(sql("SELECT * FROM bump_note(1)"), {"postgresql": BUMPING["postgresql"]}, {ANY}),
    "procedure": Scene(
        sql("CALL bump_notes()"),
        {
            "postgresql": [
                NOTES,
                SOME,
                "CREATE PROCEDURE bump_notes() LANGUAGE sql AS $$ UPDATE notes SET body = 'x' WHERE id = 1 $$",
            ]
        },
        unknown("notes"),
    ),
    "view, in text": Scene(
        sql("UPDATE seen_notes SET body = 'x' WHERE id = 1"),
        everywhere(NOTES, SOME, *VIEW, postgresql=[], mariadb=[]),
        unknown("notes"),
    ),
    "view, in Core": Scene(write_view, everywhere(NOTES, SOME, *VIEW, postgresql=[], mariadb=[]), unknown("notes")),
    "view of a view": Scene(
        sql("UPDATE twice SET body = 'x' WHERE id = 1"),
        everywhere(NOTES, SOME, *VIEW, "CREATE VIEW twice AS SELECT * FROM seen_notes", postgresql=[], mariadb=[]),
        unknown("notes"),
    ),
    "view with a trigger of its own": Scene(
        sql("UPDATE seen_notes SET body = 'x' WHERE id = 1"),
        {
            "sqlite": [
                NOTES,
                SOME,
                *VIEW,
                "CREATE TRIGGER t INSTEAD OF UPDATE ON seen_notes BEGIN UPDATE notes SET body = 'x' WHERE id = 1; END",
            ],
        },
        unknown("notes"),
    ),
    "deletion follows a key that no Table declares": Scene(
        remove_tag, with_keys("ON DELETE CASCADE"), unknown("notes")
    ),
    "deletion empties a key that no Table declares": Scene(
        remove_tag, with_keys("ON DELETE SET NULL"), unknown("notes")
    ),
    "update follows a key that no Table declares": Scene(rename_tag, with_keys("ON UPDATE CASCADE"), unknown("notes")),
    "deletion follows such a key twice": Scene(
        remove_tag,
        {
            dialect: [
                *statements,
                MORE,
                "INSERT INTO more VALUES (1, 1, '')",
            ]
            for dialect, statements in with_keys("ON DELETE CASCADE").items()
        },
        unknown("notes", "more"),
    ),
    "write to a partition": Scene(
        write_partition,
        {"postgresql": PARTITIONS},
        unknown("events") | {"akv:events_low#1"},
        watched=[events, events_low],
    ),
    "write to what is partitioned": Scene(
        write_partitioned,
        {"postgresql": PARTITIONS},
        unknown("events_low") | {"akv:events#1"},
        watched=[events, events_low],
    ),
    "text write to what is partitioned": Scene(
        sql("UPDATE events SET body = 'x' WHERE id = 1"),
        {"postgresql": PARTITIONS},
        unknown("events", "events_low"),
        watched=[events, events_low],
    ),
    "write to an heir": Scene(
        write_partition, {"postgresql": INHERITED}, unknown("events"), watched=[events, events_low]
    ),
    "write to what has heirs": Scene(
        write_partitioned, {"postgresql": INHERITED}, unknown("events_low"), watched=[events, events_low]
    ),
    "trigger of a partition": Scene(
        write_partitioned_without_knowing,
        {
            "postgresql": [
                *PARTITIONS,
                NOTES,
                SOME,
                NOTING,
                "CREATE TRIGGER t AFTER UPDATE ON events_low FOR EACH ROW EXECUTE FUNCTION noting()",
            ]
        },
        unknown("notes"),
        watched=[events, notes],
    ),
    "materialized view": Scene(
        sql("REFRESH MATERIALIZED VIEW seen_notes"),
        {
            "postgresql": [
                NOTES,
                SOME,
                "CREATE MATERIALIZED VIEW seen_notes AS SELECT id, body FROM notes",
                "UPDATE notes SET body = 'x' WHERE id = 1",
            ]
        },
        unknown("seen_notes"),
        watched=[view_of_notes],
    ),
}  # fmt: skip
SCENES["default that writes"] = Scene(
    sql("INSERT INTO remarks (id, about, text) VALUES (9, 1, 'x')"),
    {
        "postgresql": [
            NOTES,
            SOME,
            BUMP,
            "ALTER TABLE remarks ADD COLUMN counted integer DEFAULT bump_note(2)",
            "UPDATE notes SET body = '' WHERE id = 2",
        ]
    },
    unknown("notes"),
)


async def insert_remark(s: AsyncSession) -> None:
    await s.execute(text("SELECT 1"))
    await s.execute(insert(Base.metadata.tables["remarks"]).values(id=9, about=1, text="x"))


SCENES["default that writes, in Core"] = Scene(
    insert_remark, SCENES["default that writes"].setup, unknown("notes", "remarks")
)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
async def test_what_the_database_does_on_its_own_is_announced(backend: Backend, scene: Scene) -> None:
    if backend.dialect not in scene.only:
        pytest.skip(f"no such thing on {backend.dialect}")
    async with site(backend, fresh=True) as app:
        await app.run(*scene.setup[backend.dialect])
        app.watched += scene.watched or ([notes] if NOTES[:18] in " ".join(scene.setup[backend.dialect]) else [])
        enforce_keys(app)
        before = await app.rows()
        announced = await app.announced(scene.write)
        assert await app.rows() != before
        assert scene.least <= announced or "akv:*#~" in announced


def enforce_keys(app: Site) -> None:
    if app.dialect == "sqlite":
        event.listen(
            app.engine.sync_engine, "connect", lambda dbapi, _: dbapi.cursor().execute("PRAGMA foreign_keys=ON")
        )


async def test_key_that_refers_to_its_own_table_is_followed(fresh: Site) -> None:
    tree, unaware = (
        Table("tree", MetaData(), Column("id", Integer, primary_key=True), Column("up", Integer)) for _ in range(2)
    )
    parent = "FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE"
    await fresh.run(
        f"CREATE TABLE tree (id INTEGER PRIMARY KEY, up INTEGER, {parent})",
        "INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2)",
    )
    fresh.watched = [tree]
    enforce_keys(fresh)

    async def write(s: AsyncSession) -> None:
        await s.execute(unaware.delete().where(unaware.c.id == 1))

    assert without_schemas(await fresh.announced(write)) >= unknown("tree")


async def test_table_without_triggers_stays_exact_beside_others_with(fresh: Site) -> None:
    await fresh.run(*SCENES["trigger writes another table"].setup[fresh.dialect])
    announced = without_schemas(await fresh.announced(flush_tag))
    assert announced == (unknown("tags") if fresh.dialect == "mariadb" else {"akv:tags#solo", ANY} | tables("tags"))


async def test_trigger_made_by_a_transaction_counts_in_it_and_afterwards(fresh: Site) -> None:
    only_on(fresh, ("sqlite", "postgresql"))
    await fresh.run(NOTES, SOME)
    if fresh.dialect == "postgresql":
        await fresh.run(NOTING)
    fresh.watched.append(notes)
    trigger = SCENES["trigger writes another table"].setup[fresh.dialect][-1]
    await fresh.announced(flush_tag)

    async def write(s: AsyncSession) -> None:
        await s.execute(text(trigger))
        await change_order(s)

    assert await fresh.announced(write) >= unknown("notes")
    await fresh.run("UPDATE notes SET body = ''")

    async def again(s: AsyncSession) -> None:
        (await s.get_one(Order, 2)).total = 6

    assert await fresh.announced(again) >= unknown("notes")


async def test_temporary_trigger_counts_too(app: Site) -> None:
    only_on(app, ("sqlite",))

    async def write(s: AsyncSession) -> None:
        await s.execute(text("CREATE TEMP TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE tags SET colour = 'x'; END"))
        await change_order(s)

    assert await app.announced(write) >= unknown("tags")


# --- the driver's own connection --------------------------------------------------------------------------------------


async def driver_connection(s: AsyncSession) -> Any:
    await s.execute(text("SELECT 1"))  # asyncpg begins no sooner, and commits on its own before
    return (await (await s.connection()).get_raw_connection()).driver_connection


async def write_through_the_driver(s: AsyncSession) -> None:
    raw = await driver_connection(s)
    if hasattr(raw, "cursor") and not hasattr(raw, "execute"):
        async with raw.cursor() as cursor:
            await cursor.execute("UPDATE users SET name = 'x' WHERE id = 1")
    else:
        await raw.execute("UPDATE users SET name = 'x' WHERE id = 1")


async def copy_through_the_driver(s: AsyncSession) -> None:
    raw = await driver_connection(s)
    if hasattr(raw, "copy_records_to_table"):
        await raw.copy_records_to_table("users", records=[(70, "copied")], columns=["id", "name"])
        return
    async with raw.cursor() as cursor, cursor.copy("COPY users (id, name) FROM STDIN") as copy:
        await copy.write_row((70, "copied"))


async def read_through_the_driver(s: AsyncSession) -> None:
    raw = await driver_connection(s)
    await (raw.fetch if hasattr(raw, "fetch") else raw.execute)("SELECT 1")


async def test_write_through_the_driver_s_own_connection_is_announced(app: Site) -> None:
    for write in (write_through_the_driver, copy_through_the_driver):
        if write is write_through_the_driver or app.dialect == "postgresql":
            announced = await app.announced(write)
            assert announced >= (unknown("users") if app.dialect == "postgresql" else UNKNOWN)


async def test_write_through_the_driver_before_the_transaction_is_announced_with_it(app: Site) -> None:
    only_on(app, ("postgresql",))
    engine: Any = app.engine
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("SELECT 1"))
        await raw.execute("UPDATE users SET name = 'x' WHERE id = 1")
        await connection.commit()
    assert app.tokens.changes() >= unknown("users")


async def test_reading_through_the_driver_announces_nothing_and_is_forgotten_with_the_connection(app: Site) -> None:
    only_on(app, ("postgresql",))
    assert await app.announced(read_through_the_driver) == set()
    with app.beside() as beside:
        assert await app.announced(sql("SELECT 1")) == set()
    assert beside == []


# --- names ------------------------------------------------------------------------------------------------------------


async def test_text_meets_tables_under_every_name_they_may_have(app: Site) -> None:
    schema = await default_schema(app)
    announced = await app.announced(sql("UPDATE users SET name = 'x' WHERE id = 1"))
    assert announced == unknown("users", f"{schema}.users")


async def test_text_meets_tables_whose_schema_is_translated(app: Site) -> None:
    schema = await default_schema(app)
    only_on(app, ("postgresql", "mariadb"))
    tenants = app.engine.execution_options(schema_translate_map={"tenant": schema})
    async with tenants.begin() as connection:
        await connection.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))
    assert app.tokens.changes() >= unknown("users", "tenant.users")


async def test_tables_of_other_schemas_have_names_of_their_own(fresh: Site) -> None:
    only_on(fresh, PG)
    await fresh.run("CREATE SCHEMA sales", "CREATE TABLE sales.bills (id INTEGER PRIMARY KEY, body VARCHAR(50))",
                    "INSERT INTO sales.bills VALUES (1, ''), (2, '')")  # fmt: skip
    bills = Table(
        "bills", MetaData(schema="sales"), Column("id", Integer, primary_key=True), Column("body", String(50))
    )
    fresh.watched.append(bills)

    async def write(s: AsyncSession) -> None:
        await s.execute(bills.update().where(bills.c.id == 1).values(body="x"))

    assert await fresh.announced(write) == {"akv:sales.bills#1", ANY} | tables("sales.bills")
    assert await fresh.announced(sql("UPDATE sales.bills SET body = 'y'")) == unknown("bills", "sales.bills")
    on_path = sql("SET LOCAL search_path = sales, public", "UPDATE bills SET body = 'z'")
    assert await fresh.announced(on_path) == unknown("bills", "sales.bills")


async def default_schema(app: Site) -> str:
    if app.dialect == "mariadb":
        return str(app.engine.url.database)
    return "main" if app.dialect == "sqlite" else "public"
