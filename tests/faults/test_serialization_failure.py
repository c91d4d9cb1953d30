"""The server's default isolation is stricter than the store needs, so that plain upserts meet error 40001."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from akv.errors import StoreUnavailableError
from akv.store.client import Store
from akv.store.retry import RetryPolicy
from tests.faults.arena import Arena, count_lines, lock_row, soon

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.faults.conftest import Proved
    from tests.private import PrivatePostgres

Strict = Callable[[str], Arena]

LEVELS = pytest.mark.parametrize("level", ["repeatable read", "serializable"])
REFUSED = r"ERROR:.*could not serialize access"


@pytest.fixture(params=["asyncpg", "psycopg"])
def strict(request: pytest.FixtureRequest, calm_postgres: PrivatePostgres) -> Strict:
    """Make a database whose default isolation is the given level."""

    def make(level: str) -> Arena:
        name = f"akv_{uuid4().hex[:10]}"
        calm_postgres.create_database(name)
        arena = Arena("postgres18", "postgresql", calm_postgres.url(name, request.param))
        arena.configure(default_transaction_isolation=level)
        return arena

    return make


async def overwrite(kv: Store) -> None:
    await kv.set("a", "ours")


async def overwrite_many(kv: Store) -> None:
    await kv.set_many({"a": "ours", "b": "ours"})


async def delete(kv: Store) -> None:
    await kv.delete("a")  # False where the database served it before the other's write
    await kv.set("a", "ours")


@LEVELS
@pytest.mark.parametrize("call", [overwrite, overwrite_many, delete])
async def test_a_write_that_cannot_be_serialized_is_tried_again(
    call: Callable[[Store], Awaitable[None]],
    level: str,
    strict: Strict,
    calm_postgres: PrivatePostgres,
    proved: Proved,
) -> None:
    arena = strict(level)
    before = await count_lines(calm_postgres, REFUSED)
    async with Store(arena.url, sweep_every=None) as kv:
        await kv.set("a", "old")
        async with arena.foreigner() as other:
            await lock_row(other, "kvstore", "a")
            await other.exec_driver_sql("UPDATE kvstore SET expire = NULL")
            ours = asyncio.ensure_future(call(kv))
            await arena.until(lambda: len(arena.waiting()) == 1, "the call waits for the row")
            await other.commit()
            await soon(ours)
        assert await kv.get("a") == "ours"
    proved("serialization failures (server's log)", before, await count_lines(calm_postgres, REFUSED))


@LEVELS
async def test_increments_of_many_stores_are_exact(level: str, strict: Strict) -> None:
    arena = strict(level)
    stores = [Store(arena.url, sweep_every=None) for _ in range(4)]
    await soon(asyncio.gather(*(kv.incr("n") for kv in stores for _ in range(10))))
    assert await stores[0].get("n") == 40
    for kv in stores:
        await kv.aclose()


async def test_without_another_attempt_the_error_names_it(
    strict: Strict, calm_postgres: PrivatePostgres, proved: Proved
) -> None:
    arena = strict("serializable")
    before = await count_lines(calm_postgres, REFUSED)
    async with Store(arena.url, sweep_every=None, retry=RetryPolicy(attempts=1)) as kv:
        await kv.set("a", "old")
        async with arena.foreigner() as other:
            await lock_row(other, "kvstore", "a")
            await other.exec_driver_sql("UPDATE kvstore SET expire = NULL")
            ours = asyncio.ensure_future(kv.set("a", "ours"))
            await arena.until(lambda: len(arena.waiting()) == 1, "the call waits for the row")
            await other.commit()
            with pytest.raises(StoreUnavailableError, match="could not serialize access") as caught:
                await soon(ours)
        assert caught.value.attempts == 1
        assert getattr(caught.value.__cause__.orig, "sqlstate", None) == "40001"  # type: ignore[union-attr]
        assert await kv.get("a") == "old"
    proved("serialization failures (server's log)", before, await count_lines(calm_postgres, REFUSED))
