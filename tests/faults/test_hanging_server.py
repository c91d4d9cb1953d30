"""A server that has gone silent: connections are open, and nothing answers any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from akv.errors import OutcomeUnknownError, StoreUnavailableError
from akv.store.retry import RetryPolicy
from tests.faults.arena import settled
from tests.faults.wire import commits
from tests.proxy import TCPProxy

if TYPE_CHECKING:
    from tests.conftest import MakeStore
    from tests.faults.arena import Arena
    from tests.proxy import Verdict

pytestmark = pytest.mark.backends("postgres18-asyncpg", "mariadb")

BRIEF = RetryPolicy(total=2)


async def test_no_call_waits_for_ever(arena: Arena, make_store: MakeStore) -> None:
    async with TCPProxy.before(arena.url) as proxy:
        kv = await make_store(proxy.url, retry=BRIEF)
        await kv.set("a", 1)
        proxy.blackhole()
        calls = [kv.get("a"), kv.set("a", 2), kv.incr("n"), kv.delete("b"), kv.touch("a", 60)]
        for error in await asyncio.gather(*map(settled, calls)):
            assert isinstance(error, StoreUnavailableError), error
            assert error.elapsed >= 1.5
        proxy.resume()
        assert await settled(kv.get("a")) == 1
        assert await settled(kv.incr("n")) == 1
        await kv.aclose()


async def test_a_server_silent_from_the_start(arena: Arena, make_store: MakeStore) -> None:
    async with TCPProxy.before(arena.url) as proxy:
        proxy.blackhole()
        kv = await make_store(proxy.url, retry=BRIEF)
        assert isinstance(await settled(kv.get("a")), StoreUnavailableError)
        proxy.resume()
        assert await settled(kv.get("a", None)) is None
        await kv.aclose()


async def test_silence_after_commit_is_an_unknown_outcome(arena: Arena, make_store: MakeStore) -> None:
    async with TCPProxy.before(arena.url) as proxy:
        asks = commits(arena.dialect)
        armed = False

        def swallow_from_commit_on(data: bytes) -> Verdict:
            if asks(data) and armed:
                proxy.blackhole()
                return "drop"
            return "pass"

        proxy.on_client_data(swallow_from_commit_on)
        kv = await make_store(proxy.url, retry=BRIEF)
        assert await kv.incr("n") == 1
        armed = True
        assert isinstance(await settled(kv.incr("n")), OutcomeUnknownError)
        armed = False
        proxy.resume()
        assert await settled(kv.incr("n")) == 2
        await kv.aclose()
