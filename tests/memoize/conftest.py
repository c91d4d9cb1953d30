"""Stores for the tests of memoize: real ones, on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from akv.client import AsyncKVAlchemy
from akv.testing import FakeClock
from tests.memoize.waiting import BOUND

if TYPE_CHECKING:
    from tests.backends import Backend
    from tests.memoize.shop import App, Place
    from tests.servers import Session


class GatedStore(AsyncKVAlchemy):
    """
    A store whose replies can be held back.

    Attributes:
        read: While it is clear, what was read does not arrive.
        write: While it is clear, what is to be written is not sent.
        reading: How many reads are held back.
        writing: How many writes are held back.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.read, self.write = asyncio.Event(), asyncio.Event()
        self.read.set()
        self.write.set()
        self.reading = self.writing = 0

    async def get(self, *args: Any, **options: Any) -> Any:
        found = await super().get(*args, **options)
        self.reading += 1
        await self.read.wait()
        self.reading -= 1
        return found

    async def set(self, *args: Any, **options: Any) -> None:
        self.writing += 1
        await self.write.wait()
        self.writing -= 1
        await super().set(*args, **options)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/kv.db"


@pytest.fixture
async def kv(url: str, clock: FakeClock) -> AsyncIterator[GatedStore]:
    async with GatedStore(url, clock=clock, sweep_every=None) as store:
        store._guard.patience = BOUND  # however slow the machine is
        yield store


@pytest.fixture
def place(backend: Backend, servers: Session) -> Iterator[Place]:
    """Where the processes of one application meet."""
    from tests.memoize.shop import left, place_of

    made = place_of(backend, servers)
    made.create()
    yield made
    left(made)


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    """One process of it."""
    from tests.memoize.shop import opened

    async with opened(place) as app:
        yield app
