"""
Random programs: reads of every kind in tracked functions, writes of every kind elsewhere.

After each step a call must return what computing it anew returns. ``AKV_RANDOM_READS=100000`` makes longer ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from tests.memoize import reading
from tests.memoize.reading import READS, WRITES, Base, Person
from tests.memoize.shop import App, Place, place_of
from tests.servers import connect
from tests.tokens.redis_world import forget

pytestmark = [pytest.mark.backends("sqlite-file", "postgres", "mariadb"), pytest.mark.timeout(3600)]

CALLS = int(os.environ.get("AKV_RANDOM_READS", "2600"))
NUMBERS = (1, 2)
WRITES_PER_CALL = 0.025
KINDS = (*READS, "nested", "declared", "given a session", "given an instance")
PLAIN = {"nested": "by_key", "declared": "in_columns", "given a session": "by_key", "given an instance": "by_key"}


class Process:
    """One process, as far as the caches are concerned: a store, tokens and near caches of its own."""

    def __init__(self, app: App, near: int | None) -> None:
        self.app = app
        kv = app.kv

        @kv.memoize(track=True, near=near)
        async def read(kind: str, number: int) -> Any:
            async with app.session() as session:
                return await READS[kind](session, number)

        @kv.memoize(depends_on=lambda number: f"akv:people#{number}", near=near)
        async def age(number: int) -> Any:
            async with app.session() as session:
                return await READS["in_columns"](session, number)

        @kv.memoize(track=True, near=near)
        async def nested(number: int) -> Any:
            return await read("by_key", number)

        @kv.memoize(track=True, near=near)
        async def declared(number: int) -> Any:
            return await age(number)

        @kv.memoize(track=True, near=near, ignore=("session",))
        async def with_session(session: AsyncSession, number: int) -> Any:
            return await READS["by_key"](session, number)

        @kv.memoize(track=True, near=near)
        async def of_instance(person: Person) -> Any:
            return person.name, person.age

        self.read = read
        self.special = {"nested": nested, "declared": declared}
        self.with_session, self.of_instance = with_session, of_instance
        self.memoized: list[Any] = [read, age, nested, declared, with_session, of_instance]

    async def call(self, kind: str, number: int) -> Any:
        if kind in READS:
            return await self.read(kind, number)
        if kind in self.special:
            return await self.special[kind](number)
        async with self.app.session() as session:
            if kind == "given a session":
                return await self.with_session(session, number)
            return await self.of_instance(await session.get_one(Person, number))

    async def write(self, random_: random.Random) -> None:
        """Write; on SQLite again, if what was read first is not the newest any more, or a slow machine keeps a lock."""
        for left in reversed(range(20)):
            try:
                async with reading.writing(self.app) as session:
                    await random_.choice(WRITES)(session, random_)
            except OperationalError:
                if not left:
                    raise
            else:
                return


class Program:
    """Steps, and what came of them."""

    def __init__(self, processes: list[Process], eyes: AsyncEngine, seed: int) -> None:
        self.random = random.Random(seed)
        self.calls: Counter[str] = Counter()
        self._processes = processes
        self._eyes = eyes

    async def run(self, calls: int) -> None:
        kinds = list(KINDS)
        while self.calls.total() < calls:
            self.random.shuffle(kinds)
            for kind in kinds:
                if self.random.random() < WRITES_PER_CALL:
                    await self._write(kind)
                await self.check(kind, self.random.choice(NUMBERS))

    async def _write(self, kind: str) -> None:
        """Write alone, or while somebody computes or looks for the same."""
        writing = self.random.choice(self._processes).write(self.random)
        if self.random.random() < 0.5:
            await writing
            return
        numbers = [self.random.choice(NUMBERS) for _ in range(3)]
        await asyncio.gather(*(self.random.choice(self._processes).call(kind, n) for n in numbers), writing)

    async def check(self, kind: str, number: int) -> None:
        returned = await self.random.choice(self._processes).call(kind, number)
        async with AsyncSession(self._eyes) as session:
            expected = await READS[PLAIN.get(kind, kind)](session, number)
        assert as_plain(returned) == as_plain(expected), (kind, number, self.calls.total())
        self.calls[kind] += 1

    def hits(self) -> float:
        infos = [memoized.cache_info() for process in self._processes for memoized in process.memoized]
        hits = sum(info.hits for info in infos)
        return hits / sum(info.hits + info.misses + info.bypasses for info in infos)


def as_plain(value: Any) -> Any:
    return [as_plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def office(backend: Any, servers: Any) -> Any:
    made = place_of(backend, servers)
    with connect(made.url) as connection:
        Base.metadata.create_all(connection)
    yield made
    if made.redis:
        forget(made.redis, made.namespace)


async def open_office(place: Place, eyes: AsyncEngine) -> list[App]:
    async with AsyncSession(eyes) as session:
        for objects in reading.population():
            session.add_all(objects)
            await session.flush()
        await session.commit()
    apps = [App(place), App(place)]
    for app in apps:
        await app.begin(Person)
    return apps


async def test_a_tracked_call_returns_what_computing_it_anew_returns(office: Place) -> None:
    eyes = create_async_engine(office.url)
    apps = await open_office(office, eyes)
    program = Program([Process(apps[0], None), Process(apps[1], 100)], eyes, seed=len(office.url))
    try:
        await program.run(CALLS)
    finally:
        for app in apps:
            await app.close()
        await eyes.dispose()
    assert min(program.calls[kind] for kind in KINDS) >= min(100, CALLS // 26)
    assert program.hits() >= 0.5, program.hits()
