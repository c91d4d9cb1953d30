"""Reads whose tables no Table names: text, views, functions, policies; and what is refused with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from akv.tokens.listeners import bound_engine_of
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.readcatalog import catalog_of_postgres
from akv.tokens.opaque.witness import CATALOG_SECONDS
from tests.backends import Backend
from tests.tokens.reading import VIEWS, buyers, plain, recorded, rows
from tests.tokens.redefining import redefining, waiting
from tests.tokens.redis_world import until
from tests.tokens.site import Site, site, tables
from tests.tokens.test_catalog import Clock
from tests.tokens.test_reads import get, of
from tests.tokens.world import Base, User

pytestmark = pytest.mark.backends(exclude="sqlite-memory")
on_servers = pytest.mark.backends(exclude=("sqlite-file", "sqlite-memory"))
on_postgres = pytest.mark.backends("postgres")
on_mariadb = pytest.mark.backends("mariadb")
on_sqlite = pytest.mark.backends("sqlite-file")


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


@pytest.fixture
async def fresh(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend, fresh=True) as app:
        yield app


def sql(statement: str) -> Any:
    """Return a read that sends a text."""

    async def read(s: AsyncSession) -> None:
        (await s.execute(text(statement))).all()

    return read


@contextmanager
def clock_of(app: Site) -> Iterator[Clock]:
    """Put a clock of the test's own into what reads the catalog for readers."""
    bound: Any = bound_engine_of(app.engine.sync_engine)
    clock = Clock()
    if app.dialect != "sqlite":
        bound._reader._clock = clock
        bound._reader._good_until = float("-inf")
    yield clock


# --- texts ------------------------------------------------------------------------------------------------------------

ALL = ("sqlite", "postgresql", "mariadb")
STANDARD = ("sqlite", "postgresql")
COUNTING_DOWN = (
    "WITH RECURSIVE q (n) AS (SELECT max(id) FROM people UNION ALL SELECT n - 1 FROM q WHERE n > 0), "
    "r AS (SELECT 1 AS x FROM tags) SELECT q.n FROM q, r"
)
TEXTS: dict[str, tuple[str, set[str], tuple[str, ...]]] = {
    "join": ("SELECT u.name FROM users u JOIN orders AS o ON o.user_id = u.id", tables("users", "orders"), ALL),
    "commas": ("SELECT 1 FROM users u, orders o, tags WHERE o.user_id = u.id", tables("users", "orders", "tags"), ALL),
    "comma after a condition": (
        "SELECT 1 FROM users u JOIN orders o ON o.user_id IN (u.id, 2), tags",
        tables("users", "orders", "tags"),
        ALL,
    ),
    "parentheses": (
        "SELECT 1 FROM (users u JOIN (orders o JOIN tags ON 1 = 1) ON o.user_id = u.id)",
        tables("users", "orders", "tags"),
        ALL,
    ),
    "derived": ("SELECT 1 FROM (SELECT id FROM users) x", tables("users"), ALL),
    "scalar": ("SELECT (SELECT max(id) FROM orders), 2", tables("orders"), ALL),
    "exists": ("SELECT 1 FROM tags WHERE NOT EXISTS (SELECT 1 FROM orders)", tables("tags", "orders"), ALL),
    "union": ("SELECT id FROM users UNION ALL SELECT id FROM orders", tables("users", "orders"), ALL),
    "with": ("WITH q AS (SELECT id FROM users) SELECT * FROM q JOIN orders USING (id)", tables("users", "orders"), ALL),
    "with that hides a table": (
        "WITH users AS (SELECT * FROM users WHERE id = 1), o AS (SELECT * FROM users) SELECT * FROM o",
        tables("users"),
        ALL[1:],  # to SQLite it is a circle
    ),
    "recursive": (
        COUNTING_DOWN,
        tables("people", "tags"),
        ALL,
    ),
    "inner with": ("SELECT * FROM (WITH q AS (SELECT id FROM users) SELECT id FROM q) x", tables("users"), ALL),
    "quoted": ('SELECT "id" FROM "users"', tables("users"), STANDARD),
    "backticks": ("SELECT `id` FROM `users`", tables("users"), ("sqlite", "mariadb")),
    "brackets": ("SELECT [id] FROM [users]", tables("users"), ("sqlite",)),
    "literal as a name": ("SELECT id FROM 'users'", tables("users"), ("sqlite",)),
    "case": ("select ID from USERS", tables("users"), STANDARD),
    "comments": ("SELECT 1 /* FROM tags */ FROM users -- , orders", tables("users"), ALL),
    "literal": ("SELECT ' FROM tags ', 'it''s' FROM users", tables("users"), ALL),
    "dollars": ("SELECT $q$ FROM tags $q$ FROM users", tables("users"), ("postgresql",)),
    "no table": ("SELECT 1", set(), ALL),
    "values": ("SELECT * FROM (VALUES (1), (2)) AS v", set(), STANDARD),
    "distinct from": ("SELECT name IS DISTINCT FROM code FROM users", tables("users"), STANDARD[1:]),
    "extract": (
        "SELECT EXTRACT(year FROM now()), substring(name FROM 1 FOR 1), trim(BOTH FROM name) FROM users",
        tables("users"),
        ("postgresql",),
    ),
    "table": ("TABLE users", tables("users"), ("postgresql",)),
    "only": ("SELECT 1 FROM ONLY users, LATERAL (SELECT 1 FROM tags) t", tables("users", "tags"), ("postgresql",)),
    "set-returning": ("SELECT 1 FROM generate_series(1, 3) g, users", tables("users"), ("postgresql",)),
    "json": ("SELECT value FROM json_each('[1]'), users", tables("users"), ("sqlite",)),
    "filter and window": (
        "SELECT count(*) FILTER (WHERE id > 1) OVER w FROM users WINDOW w AS (ORDER BY id), v AS (ORDER BY name)",
        tables("users"),
        ("postgresql",),
    ),
    "locks": ("SELECT u.id FROM users u JOIN tags ON true FOR UPDATE OF u", tables("users", "tags"), ("postgresql",)),
    "qualified": ("SELECT public.users.id FROM public.users", tables("users"), ("postgresql",)),
    "straight join": ("SELECT 1 FROM users STRAIGHT_JOIN tags", tables("users", "tags"), ("mariadb",)),
    "hints": (
        "SELECT u.id FROM users u USE INDEX (PRIMARY) LEFT JOIN orders o ON o.user_id = u.id, tags LIMIT 1, 2",
        tables("users", "orders", "tags"),
        ("mariadb",),
    ),
    "functions": ("SELECT upper(name), coalesce(code, '') FROM users", tables("users"), ALL),
    "savepoint": ("SAVEPOINT s", set(), ()),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("through", ["text", "driver"])
async def test_text_depends_on_exactly(app: Site, name: str, through: str) -> None:
    statement, expected, only = TEXTS[name]
    if app.dialect not in only:
        pytest.skip(f"no such statement on {app.dialect}")

    async def driver(s: AsyncSession) -> None:
        (await (await s.connection()).exec_driver_sql(statement)).all()

    reads = await recorded(app, sql(statement) if through == "text" else driver)
    assert (plain(reads.identifiers), reads.unattributed) == (expected, None)


async def test_text_counts_under_the_names_of_tables_with_a_schema(app: Site) -> None:
    schema = {"sqlite": "main", "postgresql": "public"}.get(app.dialect, app.engine.url.database)
    reads = await recorded(app, sql("SELECT 1 FROM users"))
    assert reads.identifiers == tables("users", f"{schema}.users")


@on_sqlite
async def test_names_count_as_the_tables_are_spelled(fresh: Site, tmp_path: Path) -> None:
    await fresh.run('CREATE TABLE "Things" (id int)')
    for statement in ("SELECT count(*) FROM things", "SELECT 1 FROM THINGS", "SELECT ID FROM things"):
        assert (await recorded(fresh, sql(statement))).identifiers == tables("Things", "main.Things")

    async def read(s: AsyncSession) -> None:
        raw = await (await s.connection()).get_raw_connection()
        await raw.driver_connection.rollback()  # type: ignore[union-attr]
        await s.execute(text(f"ATTACH '{tmp_path / 'other.db'}' AS other"))
        await s.execute(text("CREATE TABLE other.far (id int)"))

    async with fresh.session() as session:
        await read(session)
        reads = await recorded(fresh, sql("SELECT count(*) FROM far"), session)
        assert reads.identifiers == tables("far", "other.far")


async def test_statements_about_transactions_read_nothing(app: Site) -> None:
    async def read(s: AsyncSession) -> None:
        async with s.begin_nested():
            pass
        await s.rollback()

    reads = await recorded(app, read)
    assert (reads.identifiers, reads.unattributed) == (set(), None)


REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "explain": ("EXPLAIN SELECT 1 FROM users", ALL),
    "pragma": ("PRAGMA table_info(users)", ("sqlite",)),
    "pragma as a table": ("SELECT * FROM pragma_table_info('users')", ("sqlite",)),
    "catalog": ("SELECT 1 FROM sqlite_master", ("sqlite",)),
    "catalog of postgres": ("SELECT relname FROM pg_class", ("postgresql",)),
    "information schema": ("SELECT table_name FROM information_schema.tables", ("postgresql", "mariadb")),
    "show": ("SHOW TABLES", ("mariadb",)),
    "sizes": ("SELECT pg_relation_size('users')", ("postgresql",)),
    "variable": ("SELECT @x", ("mariadb",)),
    "hidden by the server's settings": (r"SELECT '\' FROM users, tags -- '", ("mariadb",)),
    "executable comment": ("SELECT 1 /*! FROM users */", ("mariadb",)),
    "braces": ("SELECT 1 FROM { OJ users LEFT JOIN tags ON 1 = 1 }", ("mariadb",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_text_that_is_refused_with_the_reason(app: Site, name: str) -> None:
    statement, only = REFUSED[name]
    if app.dialect not in only:
        pytest.skip(f"no such statement on {app.dialect}")
    reads = await recorded(app, lambda s: _driver_sql(s, statement))
    assert reads.unattributed is not None
    assert statement[:20] in reads.unattributed.replace("\\\\", "\\")


async def _driver_sql(s: AsyncSession, statement: str) -> None:
    await (await s.connection()).exec_driver_sql(statement)


# --- functions --------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "postgresql": "CREATE FUNCTION lookup(integer) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM tags'",
    "mariadb": "CREATE FUNCTION lookup(x INT) RETURNS INT READS SQL DATA RETURN (SELECT count(*) FROM tags)",
}


@on_servers
async def test_function_of_users_may_read_anything(fresh: Site) -> None:
    assert (await recorded(fresh, of(select(func.lower("A"))))).unattributed is None
    await fresh.run(FUNCTIONS[fresh.dialect])
    with clock_of(fresh) as clock:
        clock.now += CATALOG_SECONDS
        for read in (
            of(select(func.lookup(1))),
            sql("SELECT lookup(1)"),
            of(select(User.id).where(func.lookup(1) > 9)),
        ):
            reads = await recorded(fresh, read)
            assert reads.unattributed is not None
            assert "'lookup'" in reads.unattributed
        await fresh.run("CREATE VIEW seen AS SELECT id, lookup(id) AS n FROM users")
        clock.now += CATALOG_SECONDS
        reads = await recorded(fresh, sql("SELECT n FROM seen"))
        assert reads.unattributed is not None
        assert "'lookup'" in reads.unattributed


@on_sqlite
async def test_function_of_the_application_may_read_anything(app: Site) -> None:
    async def read(s: AsyncSession) -> None:
        raw = await (await s.connection()).get_raw_connection()
        await raw.driver_connection.create_function("lookup", 0, lambda: 1)  # type: ignore[union-attr]
        await s.execute(text("SELECT lookup()"))

    reads = await recorded(app, read)
    assert reads.unattributed is not None
    assert "'lookup'" in reads.unattributed


# --- views ------------------------------------------------------------------------------------------------------------


async def test_view_is_what_lies_beneath_it(fresh: Site) -> None:
    await fresh.run(*VIEWS)
    for read in (sql("SELECT name FROM buyers"), of(select(buyers)), of(select(buyers).where(buyers.c.id == 1))):
        reads = await recorded(fresh, read)
        assert reads.unattributed is None
        assert plain(reads.identifiers) >= tables("users", "orders")
        assert plain(reads.identifiers) <= tables("users", "orders", "buyers") | rows("buyers", 1)
    reads = await recorded(fresh, sql("SELECT tag FROM rich_buyers"))
    assert tables("users", "orders", "user_tags") <= plain(reads.identifiers)
    assert plain(reads.identifiers) <= tables("users", "orders", "user_tags", "buyers", "rich_buyers")


async def test_view_that_others_make_anew(fresh: Site) -> None:
    """SQLite tells at once; of the others the catalog is believed for a while."""
    await fresh.run(*VIEWS)
    read = sql("SELECT name FROM buyers")
    with clock_of(fresh) as clock:
        assert tables("tags").isdisjoint((await recorded(fresh, read)).identifiers)
        await fresh.run(
            "DROP VIEW rich_buyers", "DROP VIEW buyers", "CREATE VIEW buyers AS SELECT 1 AS id, name FROM tags"
        )
        clock.now += CATALOG_SECONDS
        assert tables("tags") <= (await recorded(fresh, read)).identifiers


async def test_view_that_this_process_makes_anew(fresh: Site) -> None:
    await fresh.run(*VIEWS)
    read = sql("SELECT name FROM buyers")
    assert tables("tags").isdisjoint((await recorded(fresh, read)).identifiers)
    async with fresh.engine.begin() as connection:
        await connection.exec_driver_sql("DROP VIEW rich_buyers")
        await connection.exec_driver_sql("DROP VIEW buyers")
        await connection.exec_driver_sql("CREATE VIEW buyers AS SELECT 1 AS id, name FROM tags")
        reads = await recorded(fresh, lambda _: connection.exec_driver_sql("SELECT name FROM buyers"))
        assert tables("tags") <= reads.identifiers
    assert tables("tags") <= (await recorded(fresh, read)).identifiers


async def test_view_that_is_newer_than_the_catalog(fresh: Site) -> None:
    await recorded(fresh, of(select(User)))
    await fresh.run(*VIEWS)
    assert tables("users", "orders") <= plain((await recorded(fresh, of(select(buyers)))).identifiers)


@on_mariadb
async def test_view_that_is_being_redefined_is_not_taken_for_a_table(fresh: Site) -> None:
    """A transaction that has read something is not shown it: MariaDB does not let it wait."""
    await fresh.run(*VIEWS)
    url = fresh.engine.url.render_as_string(hide_password=False)

    async def read(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1 FROM tags"))
        with clock_of(fresh):
            async with redefining(url, "buyers"):
                reading = asyncio.create_task(session.execute(text("SELECT name FROM buyers")))
                await until(lambda: waiting(url) == 2, "it waits for the definition")
            await reading

    reads = await recorded(fresh, read)
    assert reads.unattributed is not None
    assert "could not be read" in reads.unattributed
    reads = await recorded(fresh, sql("SELECT name FROM buyers"))
    assert reads.unattributed is None
    assert tables("users", "orders") <= plain(reads.identifiers)


async def test_catalog_is_read_once(fresh: Site) -> None:
    if fresh.dialect == "sqlite":
        pytest.skip("SQLite has told already")
    await recorded(fresh, of(select(User)))
    with fresh.beside() as asked:
        for read in (of(select(User)), sql("SELECT 1 FROM orders"), get(User, 1)):
            await recorded(fresh, read)
    assert asked == []


@on_sqlite
async def test_statement_that_was_prepared_outside_of_any_recording(fresh: Site) -> None:
    await fresh.run(*VIEWS)
    async with fresh.engine.connect() as connection:  # one connection: the driver keeps what it has prepared
        for _ in range(2):
            await connection.exec_driver_sql("SELECT name FROM buyers")
        for _ in range(2):
            reads = await recorded(fresh, lambda _: connection.exec_driver_sql("SELECT name FROM buyers"))
            assert plain(reads.identifiers) == tables("users", "orders", "buyers")
        await connection.rollback()
        await fresh.run(
            "DROP VIEW rich_buyers", "DROP VIEW buyers", "CREATE VIEW buyers AS SELECT 1 AS id, name FROM tags"
        )
        await connection.exec_driver_sql("SELECT name FROM buyers")  # prepared anew by SQLite itself, unnoted
        await connection.rollback()
        reads = await recorded(fresh, lambda _: connection.exec_driver_sql("SELECT name FROM buyers"))
        assert plain(reads.identifiers) == tables("tags", "buyers")


@on_mariadb
async def test_view_of_another_schema(fresh: Site, backend: Backend) -> None:
    from sqlalchemy.engine import make_url

    other = make_url(backend.fresh_url()).database
    own = fresh.engine.url.database
    await fresh.run(f"CREATE VIEW `{other}`.far AS SELECT name FROM `{own}`.users")
    reads = await recorded(fresh, sql(f"SELECT name FROM `{other}`.far"))
    assert reads.unattributed is None
    assert tables("users", f"{own}.users", f"{other}.far") <= reads.identifiers


@on_postgres
async def test_materialized_view_is_a_table(fresh: Site) -> None:
    await fresh.run("CREATE MATERIALIZED VIEW kept AS SELECT count(*) AS n FROM users")
    reads = await recorded(fresh, sql("SELECT n FROM kept"))
    assert (plain(reads.identifiers), reads.unattributed) == (tables("kept"), None)
    announced = await fresh.announced(lambda s: _driver_sql(s, "REFRESH MATERIALIZED VIEW kept"))
    assert tables("kept") <= announced


@on_postgres
async def test_partition_changes_with_its_table(fresh: Site) -> None:
    await fresh.run(
        "CREATE TABLE events (id int, day int) PARTITION BY LIST (day)",
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
    )
    assert tables("events_1", "events") <= (await recorded(fresh, sql("SELECT id FROM events_1"))).identifiers


@on_postgres
async def test_policy_reads_other_tables(fresh: Site) -> None:
    await fresh.run(
        "ALTER TABLE tags ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON tags USING (EXISTS (SELECT 1 FROM user_tags t WHERE t.tag = tags.name))",
    )
    reads = await recorded(fresh, of(select(Base.metadata.tables["tags"].c.name)))
    assert (plain(reads.identifiers), reads.unattributed) == (tables("tags", "user_tags"), None)


def test_foreign_table_changes_elsewhere() -> None:
    catalog = catalog_of_postgres(
        [("relation", "public", "far", "f", None), ("beneath", "public", "near", "public", "far")]
    )
    assert catalog.beyond([Relation("", "near")]).refusal == "'far' is a foreign table, whose rows change elsewhere"


@on_postgres
async def test_text_without_schema_counts_for_every_schema(fresh: Site) -> None:
    await fresh.run("CREATE SCHEMA other", "CREATE TABLE other.users (id int)")
    reads = await recorded(fresh, sql("SELECT 1 FROM users"))
    assert reads.identifiers == tables("users", "public.users", "other.users")
    reads = await recorded(fresh, sql("SELECT 1 FROM other.users"))
    assert reads.identifiers == tables("users", "other.users")
    await fresh.run(
        *(f"CREATE SCHEMA s{n}" for n in range(9)), *(f"CREATE TABLE s{n}.users (id int)" for n in range(9))
    )
    with clock_of(fresh) as clock:
        clock.now += CATALOG_SECONDS
        assert (await recorded(fresh, sql("SELECT 1 FROM users"))).identifiers == {"akv:*#*"}


@on_postgres
async def test_schema_translate_map(fresh: Site) -> None:
    await fresh.run("CREATE SCHEMA tenant", "CREATE TABLE tenant.things (id int PRIMARY KEY)")
    metadata = MetaData(schema="any")
    things = Table("things", metadata)
    from sqlalchemy import Column, Integer

    things.append_column(Column("id", Integer, primary_key=True))
    options = {"schema_translate_map": {"any": "tenant"}}
    reads = await recorded(fresh, of(select(things).where(things.c.id == 1).execution_options(**options)))
    assert reads.unattributed is None
    assert "akv:any.things#1" in reads.identifiers or "akv:any.things#*" in reads.identifiers
    reads = await recorded(fresh, of(text("SELECT 1 FROM tenant.things").execution_options(**options)))
    assert reads.identifiers == tables("things", "tenant.things", "any.things")
