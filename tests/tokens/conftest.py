from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends import Backend
from tests.tokens.recording import RecordingTokens
from tests.tokens.redis_world import space as space
from tests.tokens.shop import Shop, shop
from tests.tokens.world import World, world


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "app.db") as app:
        yield app


@pytest.fixture
async def keeping_app(tmp_path: Path) -> AsyncIterator[World]:
    """The same with sessions that keep what they loaded after commit."""
    async with world(tmp_path / "app.db", expire_on_commit=False) as app:
        yield app


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[tuple[Shop, RecordingTokens]]:
    """A shop on each backend in turn, and what it announces."""
    async with shop(backend) as made:
        yield made


@pytest.fixture
def tokens(made: tuple[Shop, RecordingTokens]) -> RecordingTokens:
    return made[1]
