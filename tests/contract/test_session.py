"""kv.session(): an AsyncSession on the store's models."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from akv import AsyncKVAlchemy
from akv.testing import FakeClock
from tests.contract.helpers import NOON, dump, row, rows_of


async def test_a_session_reads_and_writes_the_stores_rows(store: AsyncKVAlchemy) -> None:
    await store.set("a", None, tag="t", expire=60)
    async with store.session() as session:
        assert isinstance(session, AsyncSession)
        found = (await session.scalars(select(store.model))).one()
        assert (found.key, found.tag, found.value, found.expire) == ("a", "t", None, NOON + timedelta(minutes=1))
        session.add(row(store, key="b"))

    assert await store.get_many(["a", "b"]) == {"b": None}
    assert await store.count() == 2


async def test_it_makes_the_table_if_it_is_the_first_use(store: AsyncKVAlchemy) -> None:
    async with store.session() as session:
        assert (await session.scalars(select(store.model))).all() == []


async def test_without_commit_nothing_stays(store: AsyncKVAlchemy) -> None:
    async with store.session(commit=False) as session:
        session.add(row(store, key="a"))
        await session.flush()

    assert await store.count() == 0


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_exception_rolls_back_and_reaches_the_caller(
    store: AsyncKVAlchemy, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with store.session() as session:
            session.add(row(store, key="a"))
            await session.flush()
            raise error

    assert await store.count() == 0
    await store.set("b", 1)


async def test_the_expired_are_deleted_after_the_commit_unless_told_not_to(
    store: AsyncKVAlchemy, table: str, clock: FakeClock
) -> None:
    await store.set("dead", 1, expire=60)
    await store.set("live", 1, expire=61)
    clock.advance(60)
    async with store.session(delete_expired=False):
        pass
    async with store.session(commit=False):
        pass
    assert await rows_of(store, table) == 2
    async with store.session():
        pass

    assert await rows_of(store, table) == 1
    assert await dump(store) == {("live", ""): (1, NOON + timedelta(seconds=61))}


async def test_what_is_committed_stays_though_deleting_the_expired_comes_second(store: AsyncKVAlchemy) -> None:
    async with store.session() as session:
        session.add(row(store, key="b", expire=NOON + timedelta(seconds=1)))
        session.add(row(store, key="a", expire=NOON))

    assert await dump(store) == {("b", ""): (None, NOON + timedelta(seconds=1))}
    assert await store.purge_expired() == 0


async def test_the_verbs_work_inside_a_session_of_the_store(store: AsyncKVAlchemy) -> None:
    async with store.session() as session:
        txn = store.within(session)
        await txn.set("a", 1)
        assert await txn.incr("a") == 2

    assert await store.get("a") == 2
