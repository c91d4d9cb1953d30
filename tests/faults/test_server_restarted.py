"""The server goes away and comes back while the store is working."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from akv.errors import OutcomeUnknownError, StoreUnavailableError
from akv.store.client import Store
from akv.store.retry import RetryPolicy
from tests.faults.arena import BOUND, count_lines, settled, soon

if TYPE_CHECKING:
    from tests.faults.conftest import Proved
    from tests.private import PrivateMariaDB, PrivatePostgres, PrivateServer

PATIENT = RetryPolicy(attempts=1000, total=BOUND, maximum=0.1)
STARTED = r"ready (to accept|for) connections"
"""What a server writes into its log each time that it has started."""


@pytest.fixture(params=["postgres18-asyncpg", "postgres18-psycopg", "mariadb"])
def mortal(request: pytest.FixtureRequest) -> tuple[PrivateServer, str]:
    """A server to restart, and its URL through the driver."""
    kind, _, driver = request.param.partition("-")
    fixture = "private_mariadb" if kind == "mariadb" else "private_postgres"
    server: PrivatePostgres | PrivateMariaDB = request.getfixturevalue(fixture)
    return server, server.url(driver=driver or None)


async def test_under_load_nothing_acknowledged_is_lost_and_nothing_counted_twice(
    mortal: tuple[PrivateServer, str], proved: Proved
) -> None:
    server, url = mortal
    stop = asyncio.Event()
    acknowledged = unknown = 0

    async def count(kv: Store) -> None:
        nonlocal acknowledged, unknown
        while not stop.is_set():
            try:
                await kv.incr("n")
                acknowledged += 1
            except OutcomeUnknownError:
                unknown += 1

    async def write(kv: Store, key: str) -> int:
        last = 0
        while not stop.is_set():
            last += 1
            await kv.set(key, last)
            assert await kv.get(key) == last
        return last

    async with Store(url, sweep_every=None, retry=PATIENT) as kv:
        await kv.set("n", 0)
        writers = [asyncio.ensure_future(write(kv, f"w{n}")) for n in range(5)]
        counters = [asyncio.ensure_future(count(kv)) for _ in range(5)]
        before = await count_lines(server, STARTED)

        async def go_on() -> None:
            goal = acknowledged + 20
            while acknowledged < goal:
                ended, _ = await asyncio.wait([*writers, *counters], timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
                assert not ended, [task.exception() for task in ended]

        for mode in ("immediate", "fast", "kill") if url.startswith("postgresql") else ("kill", "fast"):
            await soon(go_on())
            await asyncio.to_thread(server.restart, mode)
        await soon(go_on())
        stop.set()
        lasts = await soon(asyncio.gather(*writers))
        await soon(asyncio.gather(*counters))
        proved("server restarted under load (its log)", before, await count_lines(server, STARTED))
        assert [await kv.get(f"w{n}") for n in range(5)] == lasts
        assert acknowledged <= await kv.get("n") <= acknowledged + unknown


CALLS: dict[str, Any] = {
    "get": lambda kv: kv.get("a"),
    "set": lambda kv: kv.set("a", 1),
    "incr": lambda kv: kv.incr("n"),
    "delete": lambda kv: kv.delete("b"),
    "count": lambda kv: kv.count(),
    "clear": lambda kv: kv.clear(),
}


async def test_a_server_that_stays_away_is_a_bounded_wait_and_an_error_with_its_cause(
    mortal: tuple[PrivateServer, str],
) -> None:
    server, url = mortal
    retry = RetryPolicy(attempts=4, total=2, maximum=0.1)
    async with Store(url, sweep_every=None, retry=retry) as kv:
        await kv.set("a", 1)
        fresh = Store(url, sweep_every=None, retry=retry)
        await asyncio.to_thread(server.stop, "fast")
        for store in (kv, fresh):
            for name, call in CALLS.items():
                error = await settled(call(store))
                assert isinstance(error, StoreUnavailableError), (name, error)
                assert error.attempts > 1, name
                assert error.elapsed > 0, name
                assert error.__cause__ is not None, name
        await asyncio.to_thread(server.start)
        assert await kv.get("a") == 1
        assert await kv.incr("n") == 1
        assert await fresh.get("a") == 1
        await fresh.aclose()
