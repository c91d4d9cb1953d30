"""Another process holds the one write lock of an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from akv.errors import StoreUnavailableError
from akv.store.retry import RetryPolicy
from tests.faults.arena import BOUND, settled, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from akv.store.client import Store
    from tests.backends import Backend
    from tests.conftest import MakeStore
    from tests.faults.conftest import Proved

pytestmark = pytest.mark.backends("sqlite-file")

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""
TRY = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname)
"""

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "set": lambda kv: kv.set("a", 1),
    "set_many": lambda kv: kv.set_many({"a": 1, "b": 1}),
    "delete": lambda kv: kv.delete("old"),
    "pop": lambda kv: kv.pop("old"),
    "add": lambda kv: kv.add("a", 1),
    "incr": lambda kv: kv.incr("a"),
    "update": lambda kv: kv.update("old", lambda n: n + 1),
    "touch": lambda kv: kv.touch("old", 60),
    "get(renew_for)": lambda kv: kv.get("expiring", renew_for=60),
    "clear": lambda kv: kv.clear(),
    "purge_expired": lambda kv: kv.purge_expired(),
}


@asynccontextmanager
async def held_by_another_process(backend: Backend, proved: Proved) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold the write lock; yields what lets go of it."""
    path = str(make_url(backend.url).database)
    python = sys.executable
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec(python, "-c", HOLD, path, stdin=pipe, stdout=pipe)
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert await soon(holder.stdout.readline()) == b"held\n"
    third = await asyncio.create_subprocess_exec(python, "-c", TRY, path, stdout=pipe)
    proved("busy, as a third process saw it", 0, (await soon(third.communicate()))[0].count(b"SQLITE_BUSY"))

    async def let_go() -> None:
        holder.stdin.write(b"\n")  # type: ignore[union-attr]
        await soon(holder.wait())

    try:
        yield let_go
    finally:
        if holder.returncode is None:
            await let_go()


async def filled(make_store: MakeStore, retry: RetryPolicy) -> Store:
    kv = await make_store(retry=retry)
    await kv.set("old", 1)
    await kv.set("expiring", 1, expire=1000)
    return kv


async def test_every_write_survives_a_lock_that_is_released_in_time(
    backend: Backend, make_store: MakeStore, proved: Proved
) -> None:
    kv = await filled(make_store, RetryPolicy(total=BOUND))
    for name, call in CALLS.items():
        await kv.set_many({"old": 1, "expiring": 1}, expire=1000)
        async with held_by_another_process(backend, proved) as let_go:
            ours = asyncio.ensure_future(call(kv))
            await asyncio.wait([ours], timeout=0.1)
            assert not ours.done(), name
            await let_go()
            await soon(ours)


async def test_reads_go_on_meanwhile(backend: Backend, make_store: MakeStore, proved: Proved) -> None:
    kv = await filled(make_store, RetryPolicy())
    async with held_by_another_process(backend, proved):
        assert await soon(kv.get("old")) == 1
        assert await soon(kv.count()) == 2
        assert [entry.key async for entry in kv] == ["expiring", "old"]


async def test_a_lock_held_longer_than_the_policy_allows_is_an_error_that_names_the_remedy(
    backend: Backend, make_store: MakeStore, proved: Proved
) -> None:
    kv = await filled(make_store, RetryPolicy(total=0.3))
    async with held_by_another_process(backend, proved):
        for name, call in CALLS.items():
            error = await settled(call(kv))
            assert isinstance(error, StoreUnavailableError), (name, error)
            assert "kv.within(session)" in str(error), name
            assert "database is locked" in str(error), name
            assert error.attempts > 1, name
            assert error.elapsed > 0, name
            original = error.__cause__.orig  # type: ignore[union-attr]
            assert original.sqlite_errorcode == sqlite3.SQLITE_BUSY, name
    assert await kv.get("old") == 1
    assert await kv.incr("n") == 1


async def test_the_first_use_waits_for_the_lock_too(backend: Backend, make_store: MakeStore, proved: Proved) -> None:
    async with held_by_another_process(backend, proved) as let_go:
        kv = await make_store(retry=RetryPolicy(total=BOUND))
        ours = asyncio.ensure_future(kv.set("a", 1))
        await asyncio.wait([ours], timeout=0.1)
        await let_go()
        await soon(ours)
    assert await kv.get("a") == 1
