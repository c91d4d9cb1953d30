"""Dead rows go in the background, and a bounded table stays within its bounds while it is written."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.ext.asyncio import create_async_engine

from akv.store.retry import RetryPolicy
from akv.testing import FakeClock
from tests.servers import look

SOON = 0.02
PATIENCE = 20
TASKS = 64
ON_SERVERS = pytest.mark.backends("postgres", "mariadb")
SHARED = pytest.mark.backends(exclude=("sqlite-memory", "postgres18-psycopg"))


async def rows(kv) -> int:
    """Count all rows, dead ones too."""
    async with kv.session(commit=False) as session:
        return await session.scalar(select(func.count()).select_from(kv.model))


async def until(condition) -> None:
    """Wait until an async condition holds, or fail."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.01)


async def after_the_writes(kv) -> None:
    """Return when everything that the store has submitted so far has been written."""
    await kv.delete("nothing of that name")


def tasks_named(name) -> list[asyncio.Task]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


@contextmanager
def statements_seen():
    """Collect the statements of every engine."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


# Dead rows


async def test_expired_rows_are_deleted_in_batches_of_bounded_size(make_store):
    clock = FakeClock()
    kv = await make_store(clock=clock)
    await kv.set_many({f"dead{i}": i for i in range(1200)}, expire=10)
    await kv.set_many({f"live{i}": i for i in range(10)}, expire=100)
    clock.advance(10)
    with statements_seen() as seen:
        assert await kv.purge_expired() == 1200
    assert [statement.split()[0] for statement in seen].count("COMMIT") >= 3
    assert await rows(kv) == 10


async def test_the_sweep_deletes_what_is_dead_and_leaves_what_lives(make_store):
    clock = FakeClock()
    kv = await make_store(clock=clock, sweep_every=SOON)
    await kv.set("dies", 1, expire=10)
    await kv.set("lives", 2, expire=10.000001)
    await kv.set("stays", 3)
    clock.advance(10)
    await until(lambda: _has(kv, 2))
    assert await kv.get_many(["dies", "lives", "stays"]) == {"lives": 2, "stays": 3}


async def _has(kv, count) -> bool:
    return await rows(kv) == count


async def test_the_sweep_goes_on_turn_after_turn(make_store):
    clock = FakeClock()
    kv = await make_store(clock=clock, sweep_every=SOON)
    for _ in range(3):
        await kv.set("dies", 1, expire=10)
        clock.advance(10)
        await until(lambda: _has(kv, 0))


@pytest.mark.backends("sqlite-memory")
async def test_without_an_interval_nothing_sweeps(make_store):
    kv = await make_store(sweep_every=None)
    await kv.set("key", 1)
    assert not tasks_named("akv sweep")


async def test_aclose_in_the_middle_of_a_sweep_leaves_nothing_running(make_store):
    clock = FakeClock()
    kv = await make_store(clock=clock, sweep_every=SOON)
    await kv.set_many({f"dead{i}": i for i in range(3000)}, expire=10)
    assert tasks_named("akv sweep")
    clock.advance(10)

    async def has_begun() -> bool:
        return await rows(kv) < 3000

    await until(has_begun)
    await kv.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@ON_SERVERS
async def test_dead_rows_that_others_have_locked_are_passed_over(make_store, backend):
    clock = FakeClock()
    kv = await make_store(clock=clock)
    await kv.set_many({"locked": 1, "free1": 2, "free2": 3}, expire=10)
    engine = create_async_engine(backend.url)
    async with engine.connect() as connection:
        await kv.within(connection).set("locked", 4, expire=10)
        clock.advance(10)
        assert await kv.purge_expired() == 2
        await connection.rollback()
    await engine.dispose()
    assert await kv.purge_expired() == 1


@pytest.mark.backends("sqlite-file")
async def test_the_sweep_survives_a_database_that_is_busy(make_store, backend, table, caplog):
    clock = FakeClock()
    kv = await make_store(clock=clock, sweep_every=SOON, retry=RetryPolicy(attempts=1, total=0.2))
    await kv.set("dies", 1, expire=10)
    with closing(await asyncio.to_thread(_writer, backend.url)) as writer:
        clock.advance(10)
        await until(lambda: _was_logged(caplog, "sweeping failed"))
        await asyncio.to_thread(writer.rollback)
    await until(lambda: _has(kv, 0))


def _writer(url) -> sqlite3.Connection:
    connection = sqlite3.connect(url.partition("///")[2], isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def _was_logged(caplog, text) -> bool:
    return any(record.name == "akv" and text in record.getMessage() for record in caplog.records)


@pytest.mark.backends("sqlite-memory")
async def test_the_sweep_survives_a_server_that_goes_and_comes_back(make_store, private_postgres, caplog):
    clock = FakeClock()
    kv = await make_store(
        private_postgres.url(), clock=clock, sweep_every=SOON, retry=RetryPolicy(attempts=2, total=0.5)
    )
    await kv.set("dies", 1, expire=10)
    await asyncio.to_thread(private_postgres.stop, "immediate")
    clock.advance(10)
    await until(lambda: _was_logged(caplog, "sweeping failed"))
    await asyncio.to_thread(private_postgres.start)
    table = kv.model.__table__.name
    await until(lambda: _is_empty(private_postgres.url(), table))


async def _is_empty(url, table) -> bool:
    return look(url, f"SELECT COUNT(*) FROM {table}") == [(0,)]


@pytest.mark.backends("sqlite-memory")
async def test_the_sweep_survives_a_clock_that_fails(make_store, caplog):
    clock = FakeClock()
    broken = False

    def sometimes_broken():
        if broken:
            raise OSError("no time")
        return clock()

    kv = await make_store(clock=sometimes_broken, sweep_every=SOON)
    await kv.set("dies", 1, expire=10)
    clock.advance(10)
    broken = True
    await until(lambda: _was_logged(caplog, "no time"))
    broken = False
    await until(lambda: _has(kv, 0))


# Bounds


@asynccontextmanager
async def sampled(measure):
    """Ask again and again while the block runs; yields what was measured."""
    seen: list[int] = [await measure()]

    async def sample() -> None:
        while True:
            seen.append(await measure())
            await asyncio.sleep(0)

    task = asyncio.create_task(sample())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        seen.append(await measure())


@SHARED
async def test_max_entries_is_held_within_a_tenth_while_many_tasks_write(make_store):
    most = 500
    kv, watcher = await make_store(max_entries=most), await make_store()

    async def write(task) -> None:
        for turn in range(8):
            await kv.set(f"{task}-{turn}-set", turn)
            await kv.add(f"{task}-{turn}-add", turn)
            await kv.incr(f"{task}-{turn}-incr")
            await kv.update(f"{task}-{turn}-update", lambda value: value + 1, default=0)

    async with sampled(watcher.count) as seen:
        await asyncio.gather(*(write(task) for task in range(TASKS)))
        await after_the_writes(kv)
    assert max(seen) <= most * 1.1
    assert seen[-1] >= most * 0.9
    assert len(seen) > 10


@SHARED
@pytest.mark.parametrize("verb", ["set", "add", "update"])
async def test_max_bytes_is_held_within_a_tenth_while_many_tasks_write_values_of_all_sizes(make_store, verb):
    most = 500_000
    kv, watcher = await make_store(max_bytes=most), await make_store()
    chance = random.Random(7)

    async def size() -> int:
        async with watcher.session(commit=False) as session:
            c = watcher.model
            per_row = func.coalesce(func.length(c.value), 0) + func.length(c.key) + func.length(c.tag)
            return int(await session.scalar(select(func.coalesce(func.sum(per_row), 0))) or 0)

    async def write(task) -> None:
        for turn in range(6):
            value = b"x" * (20_000 if chance.random() < 0.1 and verb != "update" else chance.randrange(1, 3000))
            if verb == "update":
                await kv.update(f"{task}-{turn}", lambda _, value=value: value, default=None)
            else:
                await getattr(kv, verb)(f"{task}-{turn}", value)

    async with sampled(size) as seen:
        await asyncio.gather(*(write(task) for task in range(TASKS)))
        await after_the_writes(kv)
    assert max(seen) <= most * 1.1
    assert seen[-1] >= most * 0.9


async def test_what_expires_soonest_is_evicted_first_and_what_has_no_expiry_last(make_store):
    most = 100
    kv = await make_store(clock=FakeClock(), max_entries=most)
    order = list(range(40))
    random.Random(3).shuffle(order)
    for number in order:
        await kv.set(f"ends{number:02}", 0, expire=1000 + number)
    await kv.set_many({f"stays{number:02}": 0 for number in range(60)})
    for number in range(30):
        await kv.set(f"new{number:02}", 0)
    await after_the_writes(kv)
    left = {entry.key async for entry in kv}
    evicted = 130 - len(left)
    assert 20 <= evicted <= 30
    assert {f"ends{number:02}" for number in range(40)} - left == {f"ends{number:02}" for number in range(evicted)}


async def test_entries_without_expiry_go_when_nothing_else_is_left(make_store):
    kv = await make_store(max_entries=20)
    await kv.set("ends", 0, expire=1000)
    for number in range(40):
        await kv.set(f"stays{number}", 0)
    await after_the_writes(kv)
    assert await kv.get("ends", None) is None
    assert 18 <= await kv.count() <= 22


@SHARED
async def test_a_store_opened_on_a_table_far_over_its_bound_brings_it_down(make_store):
    filler = await make_store()
    await filler.set_many({f"key{number}": number for number in range(11_000)})
    kv = await make_store(max_entries=200)
    await kv.set("one more", 1)

    async def is_within() -> bool:
        return await rows(filler) <= 220

    await until(is_within)
    assert await rows(filler) >= 180


@SHARED
async def test_eviction_by_bytes_converges_where_a_few_entries_hold_nearly_all_bytes(make_store):
    filler = await make_store(clock=FakeClock())
    await filler.set_many({f"small{number:04}": 1 for number in range(3000)}, expire=1000)
    await filler.set_many({f"large{number}": b"x" * 200_000 for number in range(4)}, expire=2000)
    kv = await make_store(max_bytes=500_000)
    await kv.set("one more", 1, expire=3000)

    async def is_within() -> bool:
        return [entry.key async for entry in filler] == ["large2", "large3", "one more"]

    await until(is_within)


@SHARED
async def test_the_sweep_evicts_what_others_wrote(make_store):
    other = await make_store()
    kv = await make_store(max_entries=10, sweep_every=SOON)
    await kv.set("key", 1)
    await other.set_many({f"key{number}": number for number in range(100)})

    async def is_within() -> bool:
        return await rows(other) == 10

    await until(is_within)


async def test_a_value_larger_than_the_bound_is_evicted_and_the_store_goes_on(make_store):
    kv = await make_store(max_bytes=10_000)
    await kv.set("huge", b"x" * 50_000)
    await after_the_writes(kv)
    assert await kv.get("huge", None) is None
    await kv.set("small", 1)
    assert await kv.get("small") == 1


async def test_a_table_within_its_bounds_loses_nothing(make_store):
    kv = await make_store(max_entries=100, max_bytes=1_000_000)
    for turn in range(3):
        await kv.set_many({f"key{number}": turn for number in range(100)})
    await after_the_writes(kv)
    assert await kv.count() == 100
