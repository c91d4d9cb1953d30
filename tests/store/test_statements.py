"""The SQL: the stored form of the table, plans that use its indexes, and the fallback without RETURNING."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Dialect, Table, event
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from akv.store import statements
from akv.store.models import model_for, table_of
from akv.store.operations import Filter
from akv.store.statements import Statements, Traits
from akv.store.statements.mariadb import MariaDBStatements
from akv.store.statements.postgres import PostgresStatements
from akv.store.statements.sqlite import SQLiteStatements
from tests.private import wait_until
from tests.servers import look

NOW = datetime(2030, 1, 1)
ROWS = 3000
PAIRS = [(f"key{number:05}", "tag") for number in range(100, 120)]

# The stored form


STORED = {
    "sqlite": {
        (
            'CREATE TABLE kvstore ( "key" VARCHAR(256) NOT NULL, tag VARCHAR(256) NOT NULL, value BLOB, '
            'expire DATETIME, PRIMARY KEY ("key", tag) )'
        ),
        "CREATE INDEX ix_kvstore_expire ON kvstore (expire) WHERE expire IS NOT NULL",
    },
    "postgresql": {
        "key character varying 256 C NO",
        "tag character varying 256 C NO",
        "value bytea None None YES",
        "expire timestamp without time zone None None YES",
        "CREATE UNIQUE INDEX kvstore_pkey ON public.kvstore USING btree (key, tag)",
        "CREATE INDEX ix_kvstore_expire ON public.kvstore USING btree (expire) WHERE (expire IS NOT NULL)",
    },
    "mariadb": {
        (
            "CREATE TABLE `kvstore` ( `key` varchar(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL, "
            "`tag` varchar(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL, "
            "`value` longblob DEFAULT NULL, `expire` datetime(6) DEFAULT NULL, PRIMARY KEY (`key`,`tag`), "
            "KEY `ix_kvstore_expire` (`expire`) )"
        ),
    },
}
LOOK = {
    "sqlite": ["SELECT sql FROM sqlite_master WHERE tbl_name = 'kvstore' AND sql IS NOT NULL"],
    "postgresql": [
        (
            "SELECT column_name, data_type, character_maximum_length, collation_name, is_nullable "
            "FROM information_schema.columns WHERE table_name = 'kvstore'"
        ),
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'kvstore'",
    ],
    "mariadb": ["SHOW CREATE TABLE kvstore"],
}


@pytest.mark.backends("sqlite-file", "postgres", "mariadb")
async def test_the_table_is_what_databases_in_use_hold(make_store, backend):
    url = backend.fresh_url()
    kv = await make_store(url, table="kvstore")
    await kv.set("key", 1)
    found = [
        row[1:] if backend.dialect == "mariadb" else row for sql in LOOK[backend.dialect] for row in look(url, sql)
    ]
    shown = {" ".join(" ".join(map(str, row)).split()).partition(" ENGINE=")[0] for row in found}
    assert shown == STORED[backend.dialect]


@pytest.mark.backends("mariadb")
async def test_a_table_that_akv_made_lacks_nothing(make_store, caplog):
    kv = await make_store()
    await kv.set("key", 1)
    assert (await kv._statements()).traits == Traits()
    assert not caplog.records


# Plans


KINDS: dict[str, type[Statements]] = {
    "sqlite": SQLiteStatements,
    "postgresql": PostgresStatements,
    "mariadb": MariaDBStatements,
}


@dataclass
class Plans:
    """Plans of the statements about a table of some thousand rows."""

    engine: AsyncEngine
    dialect: str
    table: str

    async def of(self, work: Callable[[Statements, Connection], Any]) -> list[str]:
        """Run work in a transaction that is rolled back, and explain each of its statements in one text."""
        seen: list[tuple[str, Any]] = []

        def note(_connection, _cursor, statement, parameters, *_) -> None:
            seen.append((statement, parameters))

        async with self.engine.connect() as connection:
            model = model_for(self.table, None)
            sql = KINDS[self.dialect](table_of(model), self.engine.dialect, Traits())
            event.listen(self.engine.sync_engine, "before_cursor_execute", note)
            await connection.run_sync(lambda conn: work(sql, conn))
            event.remove(self.engine.sync_engine, "before_cursor_execute", note)
            return [await self._explain(connection, *one) for one in seen]

    async def _explain(self, connection, statement, parameters) -> str:
        explain = "EXPLAIN QUERY PLAN " if self.dialect == "sqlite" else "EXPLAIN "
        rows = await connection.exec_driver_sql(explain + statement, parameters)
        return "\n".join(str(tuple(row)) for row in rows)

    def check(self, plan: str, index: str = "primary", *, sorts: bool = False) -> None:
        """Fail unless a plan finds the rows of the table by an index, and sorts nothing."""
        names = {
            "sqlite": {"primary": f"sqlite_autoindex_{self.table}_1"},
            "postgresql": {"primary": f"{self.table}_pkey"},
            "mariadb": {"primary": "'PRIMARY'"},
        }[self.dialect]
        assert names.get(index, f"ix_{self.table}_expire") in plan, plan
        scans = {
            "sqlite": (f"SCAN {self.table}'", "SCAN k'"),
            "postgresql": (f"Seq Scan on {self.table}",),
            "mariadb": ("'k', 'ALL'", f"'{self.table}', 'ALL'"),
        }[self.dialect]
        assert not any(scan in plan for scan in scans), plan
        sort = {"sqlite": "TEMP B-TREE", "postgresql": "Sort", "mariadb": "filesort"}[self.dialect]
        assert sorts or sort not in plan, plan


@pytest.fixture
async def plans(make_store, backend, table):
    kv = await make_store()
    await kv.set_many({f"key{number:05}": number for number in range(ROWS)}, tag="tag")
    ends = {f"key{number:05}": number for number in range(0, ROWS, 10)}
    await kv.set_many(ends, tag="tag", expire=NOW + timedelta(days=1))
    await kv.set_many(dict.fromkeys(list(ends)[:20], 0), tag="tag", expire=NOW)
    engine = create_async_engine(backend.url)
    async with engine.connect() as connection:
        analyze = {"sqlite": "ANALYZE", "postgresql": f"ANALYZE {table}", "mariadb": f"ANALYZE TABLE {table}"}
        await connection.exec_driver_sql(analyze[backend.dialect])
        await connection.commit()
    yield Plans(engine, backend.dialect, table)
    await engine.dispose()


HOT = {
    "get": lambda sql, conn: sql.read(conn, PAIRS[:1]),
    "get_many": lambda sql, conn: sql.read_many(conn, PAIRS),
    "delete_many": lambda sql, conn: sql.delete(conn, [*PAIRS[:3]]),
    "delete": lambda sql, conn: sql.delete(conn, PAIRS[:1]),
    "lock": lambda sql, conn: sql.lock(conn, PAIRS, values=True),
    "lock without values": lambda sql, conn: sql.lock(conn, PAIRS, values=False),
    "renew": lambda sql, conn: sql.renew(conn, [(PAIRS[0], NOW)]),
    "page": lambda sql, conn: sql.page(conn, Filter(), NOW, PAIRS[0], 20),
    "page of a prefix": lambda sql, conn: sql.page(conn, Filter("key001"), NOW, PAIRS[0], 20),
    "count of a prefix": lambda sql, conn: sql.count(conn, Filter("key0010"), NOW),
    "delete of a prefix": lambda sql, conn: sql.delete_where(conn, Filter("key0010"), NOW),
}

EXPLAINED = pytest.mark.backends("sqlite-file", "postgres", "mariadb")


@EXPLAINED
@pytest.mark.parametrize("name", HOT)
async def test_hot_statements_find_their_rows_by_the_primary_key(plans, name):
    found = await plans.of(HOT[name])
    assert found
    for plan in found:
        plans.check(plan)


@EXPLAINED
async def test_the_sweep_finds_dead_rows_by_the_index_of_the_expiry(plans):
    find, *_ = await plans.of(lambda sql, conn: sql.purge(conn, NOW, 500))
    plans.check(find, "expire", sorts=True)


@EXPLAINED
async def test_eviction_finds_what_expires_soonest_by_the_index_of_the_expiry(plans):
    found, *_ = await plans.of(lambda sql, conn: sql.soonest(conn, 20))
    plans.check(found, "expire", sorts=True)


GENERIC = {"get_many": "_many", "lock": "_lock"}


@pytest.mark.backends("postgres")
@pytest.mark.parametrize("name", GENERIC)
async def test_a_plan_that_postgres_kept_from_an_empty_table_still_uses_the_primary_key(
    make_store, backend, table, name
):
    kv = await make_store()
    await kv.count()
    sql = PostgresStatements(table_of(model_for(table, None)), asyncpg.dialect(), Traits())
    chosen = getattr(sql, GENERIC[name])
    compiled = (chosen[True] if name == "lock" else chosen).compile(dialect=asyncpg.dialect())
    assert compiled.positiontup == ["keys", "tags"]
    call = "EXECUTE p (ARRAY['key00001'], ARRAY['tag'])"
    engine = create_async_engine(backend.url)
    async with engine.connect() as connection:
        run = connection.exec_driver_sql
        await run(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        await run("SET plan_cache_mode = force_generic_plan")
        await run(f"PREPARE p (text[], text[]) AS {compiled}")
        await run(call)
        await run(f"INSERT INTO {table} SELECT 'key' || i, 'tag' FROM generate_series(1, 20000) i")
        plan = "\n".join(row[0] for row in await run(f"EXPLAIN {call}"))
        await connection.rollback()
    await engine.dispose()
    assert f"{table}_pkey" in plan
    assert f"Seq Scan on {table}" not in plan


# Many rows


async def test_more_rows_than_one_statement_takes_are_read_written_and_deleted(make_store):
    kv = await make_store()
    count = 5_100
    await kv.set_many({f"key{number}": number for number in range(count)})
    assert await kv.get_many(f"key{number}" for number in range(count)) == {f"key{n}": n for n in range(count)}
    assert await kv.delete_many(f"key{number}" for number in range(1, count + 50)) == count - 1
    assert await kv.count() == 1


# Without RETURNING, as on MySQL


class WithoutReturning(MariaDBStatements):
    """What MySQL gets."""

    def __init__(self, table: Table, dialect: Dialect, traits: Traits) -> None:
        super().__init__(table, dialect, traits)
        assert self.deletes_at_once
        self.deletes_at_once = False


@pytest.fixture
async def without_returning(make_store, monkeypatch) -> Any:
    monkeypatch.setitem(statements._BY_DIALECT, "mariadb", WithoutReturning)
    return await make_store()


@pytest.mark.backends("mariadb")
async def test_deleting_without_returning_tells_what_was_live(without_returning):
    kv = without_returning
    await kv.set_many({"a": 1, "b": 2, "A": 3})
    await kv.set("dead", 1, expire=-1)
    assert await kv.delete("a") is True
    assert await kv.delete("a") is False
    assert await kv.delete("dead") is False
    assert await kv.delete_many(["a", "b", "absent", "b"]) == 1
    assert await kv.pop("A") == 3
    assert await kv.count() == 0


@pytest.mark.backends("mariadb")
async def test_a_delete_without_returning_that_comes_second_is_told_so(without_returning, backend, table):
    kv = without_returning
    await kv.set("key", 1)
    engine = create_async_engine(backend.url)
    waiting = (
        f"SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE '%{table}%'"
    )
    async with engine.connect() as connection:
        assert await kv.within(connection).delete("key") is True
        second = asyncio.create_task(kv.delete("key"))
        await asyncio.to_thread(wait_until, lambda: bool(look(backend.url, waiting)), "the second to wait")
        await connection.commit()
    assert await second is False
    await engine.dispose()


@pytest.mark.backends("mariadb")
async def test_deleting_without_returning_works_in_the_callers_transaction(without_returning, backend):
    kv = without_returning
    await kv.set("key", 1)
    engine = create_async_engine(backend.url)
    async with engine.connect() as connection:
        assert await kv.within(connection).delete("key") is True
        assert await kv.within(connection).delete("key") is False
        await connection.rollback()
    await engine.dispose()
    assert await kv.get("key") == 1
