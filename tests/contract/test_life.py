"""Making a store, its options, closing it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from akv import AsyncKVAlchemy
from akv.errors import ClosedError, ConfigurationError, StoreError
from akv.typing import DEFAULT
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract.helpers import collected, dump, engine_on, session_on, together
from tests.report import stable_id
from tests.servers import look


async def test_async_with_opens_and_closes(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()
    async with kv as same:
        assert same is kv
        await kv.set("hello", 1)
        assert await kv.get("hello") == 1

    with pytest.raises(ClosedError):
        await kv.get("hello")


async def test_the_first_await_makes_the_table(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()

    assert await kv.get("a", "default") == "default"


async def test_closing_twice_is_closing(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()
    await kv.set("a", 1)
    await kv.aclose()
    await kv.aclose()


async def test_a_store_that_was_never_used_can_be_closed(make_store: MakeStore) -> None:
    await (await make_store()).aclose()


async def test_every_verb_of_a_closed_store_says_so(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store()
    await kv.set("a", 1)
    proxy = kv.get_proxy("a")
    await kv.aclose()
    calls = [
        kv.get("a"), kv.get("a", None, renew_for=1), kv.set("a", 1), kv.delete("a"), kv.pop("a"), kv.add("a", 1),
        kv.incr("a"), kv.update("a", str), kv.touch("a", 1), kv.get_many(["a"]), kv.set_many({"a": 1}),
        kv.delete_many(["a"]), kv.clear(), kv.delete_tag(), kv.delete_prefix("a"), kv.count(), kv.purge_expired(),
        collected(kv.scan()), collected(aiter(kv)), collected(kv.tags()), kv.session().__aenter__(), kv.__aenter__(),
        proxy.get(), proxy.set(1), proxy.delete(),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="make a new store"):
            await call
    with pytest.raises(ClosedError):
        kv.within(None)  # type: ignore[arg-type]
    assert "closed" in repr(kv)


async def test_a_transaction_of_the_caller_outlives_neither_store_nor_its_own(
    make_store: MakeStore, backend: Backend
) -> None:
    kv: AsyncKVAlchemy = await make_store()
    async with session_on(kv, backend) as session:
        txn = kv.within(session)
        await txn.set("a", 1)
        await session.rollback()
        await session.close()
        await kv.aclose()
        with pytest.raises(ClosedError):
            await txn.get("a")


async def test_closing_waits_for_calls_on_their_way(make_store: MakeStore, backend: Backend) -> None:
    kv: AsyncKVAlchemy = await make_store()
    await kv.count()
    calls = [asyncio.ensure_future(kv.set(f"{number}", number)) for number in range(50)]
    await asyncio.sleep(0)
    await kv.aclose()
    await together(calls)

    if backend.name != "sqlite-memory":
        assert await (await make_store()).count() == 50


async def test_a_store_can_be_made_again_on_the_same_table(make_store: MakeStore, backend: Backend) -> None:
    first: AsyncKVAlchemy = await make_store()
    await first.set("a", 1)
    await first.aclose()
    second: AsyncKVAlchemy = await make_store()

    assert await second.get("a", "elsewhere") == ("elsewhere" if backend.name == "sqlite-memory" else 1)


@pytest.mark.backends(exclude="sqlite-memory")
async def test_two_stores_on_one_table_see_each_others_writes(make_store: MakeStore) -> None:
    first, second = await make_store(), await make_store()
    for number in range(20):
        await first.set("a", number)
        assert await second.get("a") == number
        assert await second.incr("a", 100) == await first.get("a")


async def test_stores_of_different_tables_share_nothing(make_store: MakeStore, table: str, backend: Backend) -> None:
    first = await make_store()
    second = await make_store(table=f"{table}_2")
    await first.set("a", 1)
    await second.set("a", 2)
    await second.clear()

    assert await first.get("a") == 1


@pytest.mark.parametrize("name", ["select", "With Spaces", 'quo"te`d', "ärger", "per%cent", "co:lon", "x" * 60])
async def test_a_table_may_have_any_name(make_store: MakeStore, name: str, backend: Backend) -> None:
    kv: AsyncKVAlchemy = await make_store(backend.fresh_url(), table=name)
    await kv.set("a", 1, expire=3600)
    assert await kv.incr("a") == 2
    assert await kv.get("a", renew_for=60) == 2
    assert await kv.get_many(["a", "b"]) == {"a": 2}
    await kv.set_many({"b": 1, "c": 1})
    assert [entry.key async for entry in kv.scan("a")] == ["a"]
    assert await kv.delete_many(["a", "b"]) == 2
    assert await kv.purge_expired() == 0
    await kv.clear()
    assert await kv.count() == 0


async def test_the_default_table_is_kvstore(backend: Backend) -> None:
    async with AsyncKVAlchemy(backend.fresh_url(), sweep_every=None) as kv:
        await kv.set("a", None)
        async with kv.session(commit=False) as session:
            rows = await session.execute(text("SELECT tag, value FROM kvstore"))
            assert rows.all() == [("", None)]


@pytest.mark.backends("postgres", "mariadb")
async def test_a_table_may_live_in_a_schema(make_store: MakeStore, backend: Backend, table: str) -> None:
    schema = f"{table}_s"
    quoted = f'"{schema}"' if backend.dialect == "postgresql" else f"`{schema}`"
    look(backend.url, f"CREATE SCHEMA {quoted}")
    try:
        inside, outside = await make_store(schema=schema), await make_store()
        await inside.set("a", 1, expire=3600)
        assert await outside.get("a", None) is None
        assert await inside.incr("a") == 2
        assert await inside.add("a", 1) is False
        assert [entry.value async for entry in inside] == [2]
        assert look(backend.url, f"SELECT count(*) FROM {quoted}.{table}") == [(1,)]
        async with session_on(inside, backend) as session:
            assert await inside.within(session).pop("a") == 2
            await session.commit()
        again = await make_store(schema=schema)
        assert await again.count() == 0
        for store in (inside, again):
            await store.aclose()
    finally:
        look(backend.url, f"DROP SCHEMA {quoted}{' CASCADE' if backend.dialect == 'postgresql' else ''}")


async def test_without_create_models_a_missing_table_is_an_error_that_names_the_remedy(
    make_store: MakeStore, backend: Backend
) -> None:
    kv: AsyncKVAlchemy = await make_store(create_models=False)
    for call in (kv.get("a", None), kv.set("a", 1), kv.incr("a"), kv.count()):
        with pytest.raises(StoreError, match="create_models=True"):
            await call


@pytest.mark.backends(exclude="sqlite-memory")
async def test_without_create_models_a_table_that_is_there_is_used(make_store: MakeStore, backend: Backend) -> None:
    await (await make_store()).set("a", 1)
    kv: AsyncKVAlchemy = await make_store(create_models=False)

    assert await kv.get("a") == 1


@pytest.mark.backends(exclude="sqlite-memory")
async def test_the_table_can_be_made_from_the_models_metadata(make_store: MakeStore, backend: Backend) -> None:
    kv: AsyncKVAlchemy = await make_store(create_models=False)
    async with engine_on(backend.url) as engine, engine.begin() as connection:
        await connection.run_sync(kv.model.metadata.create_all)  # type: ignore[attr-defined]
    await kv.set("a", 1)

    assert await kv.get("a") == 1


async def test_the_default_tag_is_what_calls_without_tag_mean(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store(default_tag="__default__")
    await kv.set("a", 1)
    await kv.set("a", 2, tag="")
    await kv.set_many({"b": 3})
    await kv.add("c", 4)
    await kv.incr("d", 5)
    await kv.update("e", lambda value: value + 1, default=5)

    assert await kv.get("a", tag=DEFAULT) == await kv.get("a", tag="__default__") == 1
    assert {key: value for (key, tag), (value, _) in (await dump(kv)).items() if tag == "__default__"} == {
        "a": 1, "b": 3, "c": 4, "d": 5, "e": 6,
    }  # fmt: skip
    assert await kv.touch("a", 60) is True
    assert await kv.pop("c") == 4
    assert await kv.delete("d") is True
    assert await kv.delete_many(["e"]) == 1
    assert await kv.delete_tag() == 2
    assert await dump(kv) == {("a", ""): (2, None)}


WRONG: list[dict[str, Any]] = [
    {"create_models": 1}, {"table": ""}, {"table": "x" * 64}, {"table": 1}, {"schema": ""}, {"default_tag": None},
    {"default_tag": "a\0"}, {"serializer": object()}, {"retry": 3}, {"tokens": 1}, {"sweep_every": 0},
    {"sweep_every": True}, {"max_entries": 0}, {"max_entries": 1.5}, {"max_bytes": -1}, {"clock": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=stable_id)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        AsyncKVAlchemy("sqlite+aiosqlite://", **options)


def test_options_have_names() -> None:
    with pytest.raises(TypeError, match="positional"):
        AsyncKVAlchemy("sqlite+aiosqlite://", True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "target", ["no url", "sqlite://", "oracle+oracledb_async://h/d", None, 1, object()], ids=stable_id
)
def test_what_is_no_async_database_is_refused_at_once(target: Any) -> None:
    with pytest.raises(ConfigurationError):
        AsyncKVAlchemy(target)
