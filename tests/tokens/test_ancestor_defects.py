"""What alkey 0.7.1 does wrong, by the numbers of the list in the design; each a way to serve stale or dirty data."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from tests.tokens.test_processes import key_of, run
from tests.tokens.world import User, World


@pytest.fixture
async def shop(app: World) -> World:
    await app.add(User(id=1, name="a"), User(id=2, name="b"), User(id=3, name="c"))
    return app


async def test_1_sessions_and_processes_do_not_empty_one_another_s_changes(shop: World) -> None:
    before = await key_of(shop), await key_of(shop, 2)
    async with shop.session() as mine:
        (await mine.get_one(User, 2)).name = "mine"
        await run("child", str(shop.path), "commit")  # its first session has the number that ours has here
        await mine.rollback()
        (await mine.get_one(User, 2)).name = "mine"
        await mine.commit()
    assert await key_of(shop) != before[0]
    assert await key_of(shop, 2) != before[1]


async def test_2_released_savepoint_bumps_nothing_before_the_real_commit_and_everything_with_it(shop: World) -> None:
    before = await key_of(shop)
    async with shop.session() as s:
        async with s.begin_nested():
            (await s.get_one(User, 1)).name = "x"
        during = asyncio.create_task(_key_from_elsewhere(shop))
        assert await during == before
        await s.commit()
    assert await key_of(shop) != before


async def _key_from_elsewhere(app: World) -> str:
    """What another process would find: no transaction of this context counts."""
    import contextvars

    return await contextvars.Context().run(asyncio.create_task, key_of(app))


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_3_rolled_back_savepoint_drops_its_own_changes_only(shop: World, end: str) -> None:
    before = [await key_of(shop, number) for number in (1, 2, 3)]
    async with shop.session() as s:
        (await s.get_one(User, 1)).name = "x"
        await s.flush()
        savepoint = await s.begin_nested()
        (await s.get_one(User, 2)).name = "x"
        await s.flush()
        await savepoint.rollback()
        (await s.get_one(User, 3)).name = "x"
        await (s.commit() if end == "commit" else s.rollback())
    changed = [await key_of(shop, number) != old for number, old in zip((1, 2, 3), before, strict=True)]
    assert changed == ([True, False, True] if end == "commit" else [False, False, False])


async def test_5_key_made_after_loading_does_not_put_old_attributes_under_the_new_token(shop: World) -> None:
    async with shop.session() as s:
        user = await s.get_one(User, 1)
        old = await key_of(shop)
        await run("child", str(shop.path), "commit")
        assert user.name == "a"
        assert await shop.keys(user) == old
    assert await key_of(shop) != old


async def test_6_reader_with_an_old_snapshot_does_not_meet_the_new_token(shop: World) -> None:
    async with shop.session() as s:
        await s.execute(text("SELECT * FROM users"))
        await run("child", str(shop.path), "commit")
        inside = await shop.keys(await s.get_one(User, 1))
        assert (await s.get_one(User, 1)).name == "a"
    assert inside.shared
    assert await key_of(shop) != inside


async def test_7_reader_in_a_dirty_transaction_shares_no_key(shop: World) -> None:
    async with shop.session() as s:
        user = await s.get_one(User, 1)
        user.name = "uncommitted"
        await s.flush()
        assert not (await shop.keys(user)).shared
        assert not (await shop.keys("akv:users#1")).shared
        await s.rollback()
    async with shop.session() as s:
        assert (await shop.keys(await s.get_one(User, 1))).shared


async def test_9_two_bumps_are_never_equal_however_fast(shop: World) -> None:
    keys = set()
    for _ in range(30):
        await shop.tokens.touch("akv:users#1")
        keys.add(await shop.keys("akv:users#1"))
    assert len(keys) == 30
