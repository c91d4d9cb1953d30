"""
RedisTokens on a real Redis, with gates whose answers the test decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Self
from uuid import uuid4

import pytest
import redis
from redis.asyncio import Redis
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import create_async_engine

from akv.tokens.outbox import Parcel
from akv.tokens.redis import RedisTokens
from akv.tokens.redis.formats import read_epoch, read_record
from akv.tokens.rules import Record, Seen, active_epoch

PATIENT = {"read_timeout": 10, "commit_timeout": 10}
"""For tests of anything but time: the machine may be slow."""


class ScriptedGate:
    """
    A gate without a database.

    Attributes:
        over: Marks whose transaction has ended.
        asked: What :meth:`ended` was asked, call by call.
        drains: How many drains have begun.
        may_end: Set: drains end at once.
        entered: How many transactions have entered.
    """

    def __init__(self, database: str = "some/database") -> None:
        self.database = database
        self.over: set[str] = set()
        self.asked: list[set[str]] = []
        self.drains = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.entered = 0
        self.error: Exception | None = None
        self._numbers = count(1)

    async def enter(self, driver: Any) -> str:
        self.entered += 1
        if self.error is not None:
            raise self.error
        return f"m{next(self._numbers)}"

    async def ended(self, marks: Collection[str]) -> set[str]:
        self.asked.append(set(marks))
        return self.over & set(marks)

    async def drain(self) -> None:
        self.drains += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error

    async def fingerprint(self, driver: Any = None) -> str:
        return self.database

    async def aclose(self) -> None:
        pass


class Clock:
    """A monotonic clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


DRIVER: Any = object()


def new_engine() -> Engine:
    """An engine that is never connected: tokens only tell engines apart."""
    return create_async_engine("sqlite+aiosqlite:////nowhere/at/all.db").sync_engine


def bind_to(tokens: RedisTokens, gate: ScriptedGate) -> Engine:
    """Attach an engine whose gate is *gate*."""
    engine = new_engine()
    tokens._core.gates[engine] = gate
    tokens.attach(engine)
    return engine


class Bound:
    """Tokens with one bound engine, as a process of an application has them."""

    def __init__(self, tokens: RedisTokens, gate: ScriptedGate | None = None) -> None:
        self.tokens = tokens
        self.gate = gate or ScriptedGate()
        self.engine = bind_to(tokens, self.gate)
        self.outbox = FakeOutbox()
        tokens._core.outboxes[self.engine] = self.outbox  # type: ignore[assignment]

    async def prepare(self) -> None:
        await self.tokens.prepare(DRIVER, self.engine)

    async def announce(self, *identifiers: str) -> Any:
        return await self.tokens.announce(DRIVER, self.engine, identifiers)

    async def commit(self, *identifiers: str) -> None:
        announcement = await self.announce(*identifiers)
        if announcement is not None:
            await self.tokens.resolve(announcement)

    async def active(self) -> Seen:
        """Meet the epoch until it is active, and whoever helped with that has gone home."""
        here = self.tokens._here()
        async with asyncio.timeout(30):
            while active_epoch(seen := await self.tokens.look(())) is None:
                await asyncio.sleep(0.005)
            while here._epochs._is_running or len(here._asking.pool._connecting):
                await asyncio.sleep(0.001)
        return seen


@asynccontextmanager
async def bound(url: str, namespace: str, gate: ScriptedGate | None = None, **options: Any) -> AsyncIterator[Bound]:
    tokens = RedisTokens.from_url(url, namespace=namespace, **{**PATIENT, **options})
    try:
        yield Bound(tokens, gate)
    finally:
        await tokens.aclose()


class Inside:
    """What stands in Redis, beside the tokens' backs."""

    def __init__(self, url: str, namespace: str) -> None:
        self.namespace = namespace
        self.client = Redis.from_url(url, decode_responses=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    def key(self, name: str) -> str:
        return f"{{{self.namespace}}}{name}"

    async def record(self, name: str) -> Record:
        return read_record(await self.client.get(self.key(name)) or "")

    async def epoch(self) -> Any:
        return read_epoch(await self.client.get(self.key(":epoch")) or "")

    async def flush(self) -> None:
        """Lose everything of the namespace."""
        keys = [key async for key in self.client.scan_iter(match=self.key("*"), count=1000)]
        if keys:
            await self.client.delete(*keys)


def forget(url: str, namespace: str) -> None:
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{{{namespace}}}*", count=1000):
            client.delete(key)


@pytest.fixture
def space(redis_url: str) -> Iterator[tuple[str, str]]:
    """URL and namespace on Redis and on Valkey, in turn."""
    namespace = f"akv_test_{uuid4().hex[:12]}"
    yield redis_url, namespace
    forget(redis_url, namespace)


async def until(condition: Any, what: str, seconds: float = 20) -> None:
    """Wait until *condition* holds; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.005)


class FakeOutbox:
    """
    An outbox without a database.

    Attributes:
        parcels: What is in it.
        taken: How often it was looked into.
    """

    def __init__(self) -> None:
        self.parcels: dict[str, Parcel] = {}
        self.taken = 0
        self.error: Exception | None = None

    async def prepare(self) -> str:
        return "akv_outbox"

    async def put(self, driver: Any, identifiers: Collection[str]) -> None:
        id_ = uuid4().hex
        self.parcels[id_] = Parcel(id_, tuple(identifiers))

    async def take(self, limit: int = 100) -> list[Parcel]:
        self.taken += 1
        if self.error is not None:
            raise self.error
        return list(self.parcels.values())[:limit]

    async def delete(self, ids: Collection[str]) -> None:
        for id_ in ids:
            self.parcels.pop(id_, None)

    async def aclose(self) -> None:
        pass
