"""Instances that outlive their transaction: old attributes never stand under new tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached, selectinload

from akv.tokens.rules import Private, one_view
from tests.tokens.world import Order, User, World


@pytest.fixture
async def app(keeping_app: World) -> World:
    await keeping_app.add(User(id=1, name="old"), User(id=2, name="b"), Order(id=1, user_id=1))
    await keeping_app.keys(1)  # this process has seen the newest token
    return keeping_app


async def rename(app: World, id_: int = 1) -> None:
    """Somebody else commits a change."""
    async with app.session.begin() as s:
        (await s.get_one(User, id_)).name = "new"


async def retained(app: World, *ids: int) -> tuple[AsyncSession, list[User]]:
    """Return a session after its transaction, and instances that it keeps."""
    session = app.session()
    users = [await session.get_one(User, id_) for id_ in ids]
    await session.commit()
    return session, users


async def test_retained_instance_is_shared_while_nobody_wrote_its_row(app: World) -> None:
    session, (user, other) = await retained(app, 1, 2)
    await rename(app, 2)
    fresh = app.session()
    assert await app.keys(user) == await app.keys(await fresh.get_one(User, 1))
    assert (await app.keys(user)).shared
    assert not (await app.keys(other)).shared
    await session.close()
    await fresh.close()


async def test_retained_instance_is_private_once_its_row_was_written(app: World) -> None:
    session, (user,) = await retained(app, 1)
    await rename(app)
    assert user.name == "old"
    assert not (await app.keys(user)).shared
    assert app.keys.private == {Private.RETAINED: 1}
    await session.close()


async def test_selecting_again_does_not_help_but_expiring_does(app: World) -> None:
    session, (user,) = await retained(app, 1)
    await rename(app)
    await session.scalars(select(User))
    assert user.name == "old"
    assert not (await app.keys(user)).shared
    await session.commit()
    assert not (await app.keys(user)).shared
    session.expire_all()
    assert (await app.keys(user)).shared
    await session.refresh(user)
    assert user.name == "new"
    assert (await app.keys(user)).shared
    await session.close()


async def test_what_a_session_wrote_itself_is_private_until_it_is_loaded_again(app: World) -> None:
    async with app.session() as session:
        user = await session.get_one(User, 1, options=[selectinload(User.orders)])
        other = await session.get_one(User, 2)
        session.add(Order(user_id=1))
        await session.commit()
        assert len(user.orders) == 1  # in the database there are two
        assert not (await app.keys(user)).shared
        assert (await app.keys(other)).shared
        session.expire_all()
        await session.refresh(user)
        assert (await app.keys(user)).shared


async def test_bulk_update_that_instances_do_not_know_of_is_not_published(app: World) -> None:
    async with app.session() as session:
        user = await session.get_one(User, 1)
        unsynced = {"synchronize_session": False}
        await session.execute(update(User).where(User.id == 1).values(name="x"), execution_options=unsynced)
        await session.commit()
        assert user.name == "old"
        assert not (await app.keys(user)).shared


async def test_instance_loaded_while_a_newer_token_was_unknown_is_private_once(app: World) -> None:
    """Another process bumped before our load: we cannot know that, until we have read tokens."""
    async with app.engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
    app.tokens.stamp = None
    session, (user,) = await retained(app, 1)
    assert not (await app.keys(user)).shared
    again, (user,) = await retained(app, 1)
    assert (await app.keys(user)).shared
    await session.close()
    await again.close()


async def test_key_made_inside_the_transaction_tells_how_new_its_instances_are(app: World) -> None:
    app.tokens.stamp = None
    session = app.session()
    user = await session.get_one(User, 1)
    inside = await app.keys(user)
    await session.commit()
    assert inside.shared
    assert await app.keys(user) == inside
    await session.close()


@pytest.mark.parametrize("way", ["add", "merge", "transient"])
async def test_instance_from_outside_voids_the_stamp_until_all_is_expired(app: World, way: str) -> None:
    _, (old,) = await retained(app, 1)
    await _.close()
    session, (other,) = await retained(app, 2)
    if way == "add":
        session.add(old)
    elif way == "merge":
        old = await session.merge(old, load=False)
    else:
        old = User(id=1, name="made up")
        make_transient_to_detached(old)
        session.add(old)
    assert not (await app.keys(other)).shared
    await session.refresh(other)
    assert not (await app.keys(other)).shared
    await session.commit()
    session.expire_all()
    assert (await app.keys(other)).shared
    await session.close()


async def test_session_that_was_in_use_before_bind_has_no_stamp(tmp_path: Path) -> None:
    app = World(tmp_path / "app.db", expire_on_commit=False)
    await app.create()
    session = app.session()
    session.add(user := User(id=1))
    await session.commit()
    app.bind()
    assert not (await app.keys(user)).shared
    await session.close()
    await app.close()


async def test_session_that_joins_an_older_transaction_has_its_stamp(app: World) -> None:
    """The snapshot is older than the session, and so is what the session loads."""
    async with app.engine.connect() as connection:
        await connection.execute(select(User))
        await rename(app)
        await app.tokens.read(["akv:*#*"])
        session = AsyncSession(connection, expire_on_commit=False)
        user = await session.get_one(User, 1)
        assert user.name == "old"
        await session.commit()
        await connection.commit()
    assert not (await app.keys(user)).shared
    await session.close()


async def test_loaded_in_a_savepoint_that_was_rolled_back_is_not_published(app: World) -> None:
    async with app.session() as session:
        savepoint = await session.begin_nested()
        unsynced = {"synchronize_session": False}
        await session.execute(update(User).where(User.id == 1).values(name="ghost"), execution_options=unsynced)
        user = await session.get_one(User, 1)
        await savepoint.rollback()
        assert user.name == "ghost"
        assert not (await app.keys(user)).shared
        await session.commit()
        assert not (await app.keys(user)).shared
        session.expire_all()
        assert (await app.keys(user)).shared


async def test_collection_loaded_in_a_savepoint_that_was_rolled_back_is_not_published(app: World) -> None:
    async with app.session() as session:
        savepoint = await session.begin_nested()
        session.add(Order(id=7, user_id=1))
        await session.flush()
        user = await session.get_one(User, 1, options=[selectinload(User.orders)])
        await savepoint.rollback()
        assert not (await app.keys(user)).shared


async def test_transactions_of_one_context_that_see_different_tokens_share_no_key(app: World) -> None:
    async with app.session() as old, app.session() as new:
        await old.get_one(User, 1)
        await rename(app)
        await new.get_one(User, 1)
        assert not (await app.keys(User)).shared
        assert app.keys.private == {Private.SNAPSHOT: 1}
        assert (await app.keys("akv:users#2", "akv:orders#1")).shared


async def test_parent_that_only_an_old_instance_names_is_not_believed(app: World) -> None:
    session = app.session()
    order = await session.get_one(Order, 1)
    await session.commit()
    async with app.session.begin() as s:
        (await s.get_one(Order, 1)).user_id = 2
    before = await app.keys("akv:users#2")
    assert order.user_id == 1  # the database knows better
    order.total = 5
    await session.commit()
    assert await app.keys("akv:users#2") != before
    await session.close()


def test_rules_say_what_is_one_view() -> None:
    assert one_view([])
    assert one_view([(1, 2), (1, 2)])
    assert not one_view([(1, 2), (1, 3)])
