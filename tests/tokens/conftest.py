from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
