"""Several processes on one file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.tokens import stress
from tests.tokens.world import User, World

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours, which is gone afterwards whatever happens."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-m",
        f"tests.tokens.{module}",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def run(module: str, *arguments: str) -> str:
    async with process(module, *arguments) as started:
        out, _ = await asyncio.wait_for(started.communicate(), 60)
        assert started.returncode == 0
        return out.decode().strip()


@pytest.fixture
async def shop(app: World) -> World:
    await app.add(User(id=1, name="a"), User(id=2, name="b"))
    return app


async def key_of(app: World, id_: int = 1) -> str:
    async with app.session() as s:
        key = await app.keys(await s.get_one(User, id_))
        assert key.shared
        return key


async def test_processes_make_the_same_keys(shop: World) -> None:
    assert await run("child", str(shop.path), "key") == await key_of(shop)
    assert await run("child", str(shop.path), "typed key") == await shop.keys("akv:users#1", 1, {"a": "b"})


async def test_commit_in_one_process_changes_the_key_in_the_other(shop: World) -> None:
    before, unrelated = await key_of(shop), await key_of(shop, 2)
    await run("child", str(shop.path), "commit")
    assert await key_of(shop) != before
    assert await key_of(shop, 2) == unrelated


async def test_rollback_in_one_process_changes_nothing_in_the_other(shop: World) -> None:
    before = await key_of(shop)
    await run("child", str(shop.path), "rollback")
    assert await key_of(shop) == before


@pytest.mark.parametrize(
    ("moment", "said", "changes"), [("hang", b"flushed", False), ("commit and hang", b"committed", True)]
)
async def test_killed_process_leaves_row_and_token_in_agreement(
    shop: World, moment: str, said: bytes, changes: bool
) -> None:
    before = await key_of(shop)
    async with process("child", str(shop.path), moment) as other:
        assert other.stdout is not None
        assert (await asyncio.wait_for(other.stdout.readline(), 60)).strip() == said
        other.kill()
        await other.wait()
    assert (await key_of(shop) != before) is changes
    async with shop.session() as s:
        assert (await s.get_one(User, 1)).name == ("a+" if changes else "a")


async def test_cache_shared_by_processes_is_never_stale_or_dirty(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    await stress.prepare(path)
    async with process("stress", str(path), "60", "9") as victim:
        counts = [
            json.loads(out) for out in await asyncio.gather(*(run("stress", str(path), "4", str(n)) for n in (1, 2)))
        ]
        victim.kill()
    total = sum(map(Counter, counts), Counter())
    assert total["stale"] == 0
    assert total["impossible"] == 0
    assert total["hits"] > 0
    assert total["writes"] > 0
    counts = [json.loads(await run("stress", str(path), "1", "3"))]  # nobody misses the process that was killed
    assert counts[0].get("stale", 0) == 0
