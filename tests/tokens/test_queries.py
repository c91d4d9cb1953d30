"""SQL -> the tables that it names, beside what PostgreSQL itself locks to read it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.functions import reading_more
from akv.tokens.opaque.queries import query_of
from tests.backends import Backend
from tests.tokens.site import Site, site
from tests.tokens.test_reads_opaque import TEXTS

HARD = (
    "SELECT 1 FROM users AS u (a, b), LATERAL (SELECT 1 FROM orders WHERE user_id = u.a) x, tags",
    "SELECT 1 FROM users TABLESAMPLE SYSTEM (50), orders",
    "SELECT 1 FROM (((users CROSS JOIN tags) CROSS JOIN (SELECT 1 FROM orders) o) CROSS JOIN lines)",
    "SELECT 1 FROM users NATURAL FULL JOIN tags, people",
    "SELECT 1 FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY(SELECT id FROM users))) r, tags",
    "SELECT CASE WHEN EXISTS (TABLE tags) THEN (SELECT max(id) FROM users) END FROM pets GROUP BY kind HAVING true",
    "(SELECT id FROM users) EXCEPT (SELECT id FROM orders) INTERSECT SELECT id FROM people ORDER BY 1 LIMIT 1",
    "WITH a AS (SELECT 1 FROM users), b AS NOT MATERIALIZED (SELECT 1 FROM a, tags) TABLE b",
    "WITH a (x) AS (WITH b AS (SELECT 1 FROM users) SELECT 1 FROM b) SELECT 1 FROM a, tags",
    "SELECT 1 FROM users WHERE id IN (WITH q AS (SELECT id FROM orders) TABLE q) AND name IS NOT DISTINCT FROM code",
    "SELECT substring(name FROM (SELECT 1 FROM tags LIMIT 1)), trim(trailing 'x' FROM name) FROM users",
    "SELECT array_agg(id ORDER BY (SELECT count(*) FROM tags)) FILTER (WHERE id > 1) FROM users",
    "SELECT 1 FROM users u JOIN orders o USING (id) JOIN LATERAL (SELECT 1 FROM tags) t ON true",
    "SELECT sum(id) OVER (PARTITION BY (SELECT 1 FROM tags LIMIT 1)) FROM users WINDOW w AS (ORDER BY id), v AS (w)",
    "SELECT 1 FROM users FOR NO KEY UPDATE",
    "SELECT DISTINCT ON (id) id FROM users, tags",
    'SELECT "users".id AS "from", 1 AS "join" FROM users, "tags" AS "where"',
    "SELECT U&'FROM orders', E'it\\'s FROM orders', $$ FROM orders $$ FROM users",
    "SELECT x.* FROM (VALUES (1, (SELECT 1 FROM tags LIMIT 1))) AS x, users",
    "INSERT INTO tags (name, colour) SELECT name, '' FROM users ON CONFLICT (name) DO UPDATE SET colour = 'x'",
    "UPDATE users u SET name = o.total::text, code = 'c' FROM orders o, people p WHERE false",
    "DELETE FROM lines USING orders o, users u WHERE false",
    "MERGE INTO users u USING (SELECT 1 AS i FROM orders LIMIT 1) o ON id = i WHEN MATCHED THEN UPDATE SET name = 'x'",
)  # fmt: skip

LOCKED = """
    SELECT DISTINCT c.relname::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND c.relkind = 'r' AND c.oid >= 16384
"""


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


@pytest.mark.backends("postgres15")
async def test_every_table_that_postgres_locks_is_named(app: Site) -> None:
    statements = [statement for statement, _, only in TEXTS.values() if "postgresql" in only]
    for statement in (*HARD, *statements):
        async with app.eyes.connect() as connection:
            await connection.exec_driver_sql("SET standard_conforming_strings = on")
            await connection.exec_driver_sql(statement)
            locked = set(await connection.scalars(text(LOCKED)))
        query = query_of("postgresql", statement)
        assert query.refusal is None
        assert locked <= {name for _, name in query.relations}, statement


WORDS = (
    "SELECT", "FROM", "JOIN", "WITH", "RECURSIVE", "AS", "(", ")", ",", ".", ";", "a", "b", '"c"', "`d`", "'e'", "[f]",
    "UPDATE", "SET", "DELETE", "USING", "INSERT", "INTO", "VALUES", "TABLE", "ONLY", "LATERAL", "WHERE", "UNION", "FOR",
    "DISTINCT", "IS", "NOT", "MATERIALIZED", "extract", "1", "@", "$", "$$", "/*", "*/", "--", "\n", "{", "}", "%",
)  # fmt: skip


@given(words=st.lists(st.sampled_from(WORDS), max_size=25), dialect=st.sampled_from(["postgresql", "mysql", "sqlite"]))
def test_no_text_is_too_odd(words: list[str], dialect: str) -> None:
    query = query_of(dialect, " ".join(words))  # type: ignore[arg-type]
    assert query.refusal is None or not query.relations or "own tables" in query.refusal


@pytest.mark.parametrize(
    ("dialect", "sql", "expected"),
    [
        ("mysql", "UPDATE users u, orders o SET u.name = 'x', o.total = 1", {"users", "orders"}),
        ("mysql", "INSERT IGNORE users SET name = 'x', id = 9", {"users"}),
        ("mysql", "REPLACE LOW_PRIORITY users (id) SELECT id FROM tags", {"users", "tags"}),
        ("mysql", "INSERT INTO users (id) VALUES (1), (2) ON DUPLICATE KEY UPDATE name = 'x', id = 2", {"users"}),
        ("mysql", "DELETE n, o FROM orders o JOIN `lines` n ON n.order_id = o.id, tags", {"orders", "lines", "tags"}),
        ("mysql", 'SELECT 1 FROM "users"', {"users"}),
        ("sqlite", 'SELECT [id] FROM [users], "tags" NOT INDEXED', {"users", "tags"}),
        ("postgresql", "SELECT 1 FROM a.b, c.d.e", {"b", "e"}),
    ],
)
def test_tables_of_a_text(dialect: str, sql: str, expected: set[str]) -> None:
    query = query_of(dialect, sql)  # type: ignore[arg-type]
    assert query.refusal is None
    assert {name for _, name in query.relations} == expected


def test_schemas_and_case() -> None:
    query = query_of("postgresql", 'SELECT 1 FROM Public.Users, "S"."T", users')
    assert query.relations == {Relation("public", "users"): 1, Relation("S", "T"): 1, Relation("", "users"): 1}
    assert set(query_of("mysql", "SELECT 1 FROM Shop.Users").relations) == {Relation("Shop", "Users")}


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("postgresql", "query_to_xml"),
        ("postgresql", "pg_total_relation_size"),
        ("postgresql", "currval"),
        ("postgresql", "ts_stat"),
        ("postgresql", "dblink"),
        ("mysql", "load_file"),
        ("mysql", "nextval"),
        ("sqlite", "load_extension"),
        ("sqlite", "anything_else"),
    ],
)
def test_functions_of_the_database_that_read_more(dialect: str, name: str) -> None:
    assert reading_more(dialect, {"lower", name}, ()) == name  # type: ignore[arg-type]
    assert reading_more(dialect, {"lower", "count", "coalesce"}, ()) is None  # type: ignore[arg-type]
    assert reading_more("postgresql", {"pg_advisory_xact_lock", "pg_typeof", "interval"}, ()) is None
