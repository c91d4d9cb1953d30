"""Every kind of write changes what it must, by the database's own account; ORM flushes change exactly that."""

from __future__ import annotations

import ast
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, exc, insert, literal, select, text, tuple_, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, selectinload

from akv.own import own_statements
from akv.tokens.identifiers import row_identifier
from tests.tokens.world import (
    Base,
    Document,
    Engineer,
    Line,
    Order,
    Person,
    Plain,
    Price,
    Remark,
    Tag,
    User,
    World,
    records,
    user_tags,
)

ANY = "akv:*#*"
UNKNOWN = {"akv:*#~", ANY}
DOCUMENT = uuid.UUID(int=5)

Write = Callable[[AsyncSession], Awaitable[None]]


async def populate(app: World) -> None:
    await app.add(
        User(id=1, name="a", code="c1", tags=[Tag(name="red"), Tag(name="blue")]),
        User(id=2, name="b", code="c2"),
        User(id=3, name="c"),
    )
    await app.add(
        Order(id=1, user_id=1), Order(id=2, user_id=1), Order(id=3, user_id=2), Order(id=4),
        Line(order_id=1, number=1), Line(order_id=1, number=2), Line(order_id=3, number=1),
        Person(id=1, name="boss"), Engineer(id=2, name="e", skill="s", boss_id=1), Engineer(id=3, name="f", skill="t"),
        Document(id=DOCUMENT), Price(amount=Decimal("1.5")), Remark(id=1, about=1),
        Plain(a=1, b="x"), Plain(a=1, b="1"),
    )  # fmt: skip


def tables(*names: str) -> set[str]:
    return {f"akv:{name}#*" for name in names}


def unknown(*names: str) -> set[str]:
    return {f"akv:{name}#~" for name in names} | tables(*names) | {ANY}


# --- flush: exactly these ------------------------------------------------------------------------------------------


async def insert_row(s: AsyncSession) -> None:
    s.add(User(name="new"))


async def insert_many(s: AsyncSession) -> None:
    s.add_all([User(name="x"), User(name="y"), User(name="z")])


async def insert_with_uuid(s: AsyncSession) -> None:
    s.add(Document(id=uuid.UUID(int=9)))


async def insert_child(s: AsyncSession) -> None:
    s.add(Order(id=9, user_id=2))


async def insert_child_of_nobody(s: AsyncSession) -> None:
    s.add(Order(id=9))


async def update_row(s: AsyncSession) -> None:
    (await s.get_one(User, 1)).name = "changed"


async def update_to_same_value(s: AsyncSession) -> None:
    (await s.get_one(User, 1)).name = "a"


async def update_by_expression(s: AsyncSession) -> None:
    (await s.get_one(Order, 1)).total = Order.total + 1


async def update_child(s: AsyncSession) -> None:
    (await s.get_one(Order, 1)).total = 5


async def update_child_whose_parent_was_never_loaded(s: AsyncSession) -> None:
    order = await s.get_one(Order, 1)
    s.expire(order, ["user_id"])
    order.total = 5


async def move_child(s: AsyncSession) -> None:
    (await s.get_one(Order, 1)).user = await s.get_one(User, 2)


async def move_child_whose_parent_was_never_loaded(s: AsyncSession) -> None:
    order = await s.get_one(Order, 1)
    s.expire(order, ["user_id"])
    order.user_id = 2


async def move_child_by_expression(s: AsyncSession) -> None:
    (await s.get_one(Order, 1)).user_id = literal(1) + 1


async def append_to_collection(s: AsyncSession) -> None:
    user = await s.get_one(User, 3, options=[selectinload(User.orders)])
    user.orders.append(await s.get_one(Order, 3))


async def remove_orphan(s: AsyncSession) -> None:
    user = await s.get_one(User, 1, options=[selectinload(User.orders)])
    user.orders.remove(next(order for order in user.orders if order.id == 2))


async def add_tag(s: AsyncSession) -> None:
    user = await s.get_one(User, 2, options=[selectinload(User.tags)])
    user.tags.append(await s.get_one(Tag, "red"))


async def remove_tag(s: AsyncSession) -> None:
    user = await s.get_one(User, 1, options=[selectinload(User.tags)])
    user.tags.remove(await s.get_one(Tag, "red"))


async def delete_row(s: AsyncSession) -> None:
    await s.delete(await s.get_one(User, 3))


async def delete_with_cascade(s: AsyncSession) -> None:
    await s.delete(await s.get_one(User, 2))


async def delete_with_database_cascade(s: AsyncSession) -> None:
    await s.execute(text("PRAGMA foreign_keys"))
    await s.delete(await s.get_one(Order, 3))


async def update_composite(s: AsyncSession) -> None:
    (await s.get_one(Plain, (1, "1"))).value = 7


async def change_key(s: AsyncSession) -> None:
    (await s.get_one(Tag, "blue")).colour = "x"
    await s.flush()
    (await s.get_one(Plain, (1, "x"))).b = "y"


async def insert_subclass(s: AsyncSession) -> None:
    s.add(Engineer(id=9, name="n", skill="s", boss_id=1))


async def update_base_column(s: AsyncSession) -> None:
    (await s.get_one(Engineer, 2)).name = "changed"


async def update_subclass_column(s: AsyncSession) -> None:
    (await s.get_one(Engineer, 2)).skill = "changed"


async def delete_subclass(s: AsyncSession) -> None:
    await s.delete(await s.get_one(Engineer, 2))


async def inexact_key(s: AsyncSession) -> None:
    (await s.get_one(Price, Decimal("1.5"))).note = "changed"


async def write_soft_child(s: AsyncSession) -> None:
    (await s.get_one(Remark, 1)).about = 2


async def delete_soft_child(s: AsyncSession) -> None:
    await s.delete(await s.get_one(Remark, 1))


async def replace_row(s: AsyncSession) -> None:
    await s.delete(await s.get_one(Order, 1))
    s.add(Order(id=1, user_id=3, total=9))


async def merge_row(s: AsyncSession) -> None:
    await s.merge(User(id=2, name="merged"))


ORDER_TO = {"akv:orders#1", ANY} | tables("orders")
FLUSHES: list[tuple[Write, set[str]]] = [
    (insert_row, {"akv:users#4", ANY} | tables("users")),
    (insert_many, {"akv:users#4", "akv:users#5", "akv:users#6", ANY} | tables("users")),
    (insert_with_uuid, {f"akv:documents#uuid:{uuid.UUID(int=9)}", ANY} | tables("documents")),
    (insert_child, {"akv:orders#9", "akv:users#2", ANY} | tables("orders")),
    (insert_child_of_nobody, {"akv:orders#9", ANY} | tables("orders")),
    (update_row, {"akv:users#1", ANY} | tables("users")),
    (update_to_same_value, set()),
    (update_by_expression, ORDER_TO | {"akv:users#1"}),
    (update_child, ORDER_TO | {"akv:users#1"}),
    (update_child_whose_parent_was_never_loaded, ORDER_TO | unknown("users")),
    (move_child, ORDER_TO | {"akv:users#1", "akv:users#2"}),
    (move_child_whose_parent_was_never_loaded, ORDER_TO | unknown("users")),
    (move_child_by_expression, ORDER_TO | unknown("users")),
    (append_to_collection, {"akv:orders#3", "akv:users#2", "akv:users#3", ANY} | tables("orders")),
    (remove_orphan, {"akv:orders#2", "akv:users#1", ANY} | tables("orders") | unknown("lines")),
    (add_tag, {"akv:user_tags#2,red", "akv:users#2", "akv:tags#red", ANY} | tables("user_tags")),
    (remove_tag, {"akv:user_tags#1,red", "akv:users#1", "akv:tags#red", ANY} | tables("user_tags")),
    (delete_row, {"akv:users#3", ANY} | tables("users")),
    (delete_with_cascade, {"akv:users#2", "akv:orders#3", ANY} | tables("users", "orders") | unknown("lines")),
    (delete_with_database_cascade, {"akv:orders#3", "akv:users#2", ANY} | tables("orders") | unknown("lines")),
    (update_composite, {"akv:plain#1,'1", "akv:users#1", ANY} | tables("plain")),
    (change_key, {"akv:tags#blue", "akv:plain#1,x", "akv:plain#1,y", "akv:users#1", ANY} | tables("tags", "plain")),
    (insert_subclass, {"akv:people#9", "akv:engineers#9", "akv:people#1", ANY} | tables("people", "engineers")),
    (update_base_column, {"akv:people#2", "akv:people#1", ANY} | tables("people")),
    (update_subclass_column, {"akv:people#2", "akv:engineers#2", "akv:people#1", ANY} | tables("people", "engineers")),
    (delete_subclass, {"akv:people#2", "akv:engineers#2", "akv:people#1", ANY} | tables("people", "engineers")),
    (inexact_key, unknown("prices")),
    (write_soft_child, {"akv:remarks#1", "akv:users#1", "akv:users#2", ANY} | tables("remarks")),
    (delete_soft_child, {"akv:remarks#1", "akv:users#1", ANY} | tables("remarks")),
    (replace_row, ORDER_TO | {"akv:users#1", "akv:users#3"}),
    (merge_row, {"akv:users#2", ANY} | tables("users")),
]


def name_of(case: Any) -> str:
    return getattr(case, "__name__", "")


@pytest.mark.parametrize(("write", "expected"), FLUSHES, ids=name_of)
async def test_flush_changes_exactly_its_identifiers(app: World, write: Write, expected: set[str]) -> None:
    bumped = await published(app, write)
    assert bumped == records(expected)


# --- everything else: nothing missed -------------------------------------------------------------------------------


async def bulk_update_pinned(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id == 1).values(name="x"))


async def bulk_update_in(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id.in_([1, 2]), User.name == "a").values(name="x"))


async def bulk_update_or(s: AsyncSession) -> None:
    await s.execute(update(User).where((User.id == 1) | (User.id == 2)).values(name="x"))


async def bulk_update_unpinned(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.name != "c").values(name="x"))


async def bulk_update_tuple(s: AsyncSession) -> None:
    await s.execute(update(Plain).where(tuple_(Plain.a, Plain.b).in_([(1, "x")])).values(value=3))


async def bulk_update_key(s: AsyncSession) -> None:
    await s.execute(update(Tag).where(Tag.name == "blue").values(name="green"), execution_options=UNSYNCED)


async def bulk_update_key_by_expression(s: AsyncSession) -> None:
    await s.execute(update(Order).where(Order.id == 4).values(id=Order.id + 10), execution_options=UNSYNCED)


async def bulk_update_by_primary_keys(s: AsyncSession) -> None:
    await s.execute(update(User), [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}])


async def bulk_update_returning(s: AsyncSession) -> None:
    (await s.execute(update(User).where(User.id == 1).values(name="x").returning(User.name))).all()


async def bulk_update_from(s: AsyncSession) -> None:
    await s.execute(
        update(User).where(User.id == Order.user_id, Order.id == 3).values(name="x"), execution_options=UNSYNCED
    )


async def bulk_update_alias(s: AsyncSession) -> None:
    other = aliased(User)
    await s.execute(update(other).where(other.id == 1).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_subclass(s: AsyncSession) -> None:
    await s.execute(update(Engineer).where(Engineer.id == 2).values(skill="x"), execution_options=UNSYNCED)


async def bulk_update_subquery(s: AsyncSession) -> None:
    users = select(Order.user_id).where(Order.id == 3)
    await s.execute(update(User).where(User.id.in_(users)).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_with_text_key(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id == literal("1")).values(name="x"), execution_options=UNSYNCED)


async def bulk_delete_pinned(s: AsyncSession) -> None:
    await s.execute(delete(Order).where(Order.id == 4))


async def bulk_delete_unpinned(s: AsyncSession) -> None:
    await s.execute(delete(Order).where(Order.total == 0))


async def bulk_insert(s: AsyncSession) -> None:
    await s.execute(insert(User), [{"name": "x"}, {"name": "y"}])


async def bulk_insert_returning(s: AsyncSession) -> None:
    (await s.scalars(insert(User).returning(User), [{"name": "x"}, {"name": "y"}])).all()


async def bulk_insert_with_keys(s: AsyncSession) -> None:
    await s.execute(insert(User), [{"id": 7, "name": "x"}, {"id": 8, "name": "y"}])


async def bulk_insert_subclass(s: AsyncSession) -> None:
    await s.execute(insert(Engineer), [{"id": 7, "name": "x", "skill": "s"}])


async def bulk_save(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.bulk_save_objects([User(name="x"), Order(user_id=1)]))


async def bulk_update_mappings(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.bulk_update_mappings(User, [{"id": 1, "name": "x"}]))


async def insert_values(s: AsyncSession) -> None:
    await s.execute(insert(Order).values(user_id=1))


async def insert_several_values(s: AsyncSession) -> None:
    await s.execute(Order.__table__.insert().values([{"user_id": 1}, {"user_id": 2}]))  # type: ignore[attr-defined]


async def insert_from_select(s: AsyncSession) -> None:
    await s.execute(insert(Order).from_select(["user_id"], select(User.id)))


async def insert_expression(s: AsyncSession) -> None:
    await s.execute(insert(Order).values(user_id=select(User.id).where(User.name == "b").scalar_subquery()))


async def upsert_on_other_unique(s: AsyncSession) -> None:
    statement = upsert(User).values(id=99, code="c1", name="x")
    await s.execute(statement.on_conflict_do_update(index_elements=["code"], set_={"name": "x"}))


async def insert_or_replace(s: AsyncSession) -> None:
    await s.execute(insert(User).prefix_with("OR REPLACE").values(id=50, code="c1", name="x"))


async def update_or_replace(s: AsyncSession) -> None:
    await s.execute(
        update(User).prefix_with("OR REPLACE").where(User.id == 3).values(code="c1"), execution_options=UNSYNCED
    )


async def core_many_updates(s: AsyncSession) -> None:
    users = User.__table__
    await (await s.connection()).execute(
        users.update().where(users.c.id == bindparam("who")).values(name=bindparam("what")),  # type: ignore[attr-defined]
        [{"who": 1, "what": "x"}, {"who": 2, "what": "y"}],
    )


async def core_delete_from_secondary(s: AsyncSession) -> None:
    await s.execute(user_tags.delete().where(user_tags.c.user_id == 1))


async def text_update(s: AsyncSession) -> None:
    await s.execute(text("/* hidden */ UPDATE users SET name = 'x' WHERE id = 1"))


async def text_with_columns(s: AsyncSession) -> None:
    await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1 RETURNING id").columns(User.id))


async def text_as_entity(s: AsyncSession) -> None:
    found = select(User).from_statement(text("UPDATE users SET name = 'x' WHERE id = 1 RETURNING *"))
    (await s.scalars(found)).all()


async def text_cte(s: AsyncSession) -> None:
    await s.execute(text("WITH q AS (SELECT 1 AS id) UPDATE users SET name = 'x' WHERE id IN (SELECT id FROM q)"))


async def driver_sql(s: AsyncSession) -> None:
    await (await s.connection()).exec_driver_sql("DELETE FROM orders WHERE id = 4")


async def drop_table(s: AsyncSession) -> None:
    await (await s.connection()).run_sync(lambda c: Base.metadata.tables["remarks"].drop(c))


async def raw_driver_connection(s: AsyncSession) -> None:
    raw: Any = (await (await s.connection()).get_raw_connection()).driver_connection
    await raw.execute("UPDATE users SET name = 'x' WHERE id = 1")


async def half_of_many_inserts(s: AsyncSession) -> None:
    """The first row stays in the transaction although the statement fails."""
    connection = await s.connection()
    with pytest.raises(exc.IntegrityError):
        await connection.execute(insert(User.__table__), [{"id": 60, "name": "x"}, {"id": 1, "name": "y"}])


async def cascade_nobody_declared(s: AsyncSession) -> None:
    await s.execute(text("PRAGMA defer_foreign_keys = ON"))
    await s.execute(delete(User).where(User.id == 2), execution_options=UNSYNCED)


UNSYNCED = {"synchronize_session": False}
OTHERS: list[tuple[Write, set[str] | None]] = [
    (bulk_update_pinned, {"akv:users#1", ANY} | tables("users")),
    (bulk_update_in, {"akv:users#1", "akv:users#2", ANY} | tables("users")),
    (bulk_update_or, {"akv:users#1", "akv:users#2", ANY} | tables("users")),
    (bulk_update_unpinned, unknown("users")),
    (bulk_update_tuple, None),
    (bulk_update_key, {"akv:tags#blue", "akv:tags#green", ANY} | tables("tags")),
    (bulk_update_key_by_expression, None),
    (bulk_update_by_primary_keys, {"akv:users#1", "akv:users#2", ANY} | tables("users")),
    (bulk_update_returning, {"akv:users#1", ANY} | tables("users")),
    (bulk_update_from, unknown("users")),
    (bulk_update_alias, None),
    (bulk_update_subclass, None),
    (bulk_update_subquery, unknown("users")),
    (bulk_update_with_text_key, unknown("users")),
    (bulk_delete_pinned, None),
    (bulk_delete_unpinned, None),
    (bulk_insert, unknown("users")),
    (bulk_insert_returning, {"akv:users#4", "akv:users#5", ANY} | tables("users")),
    (bulk_insert_with_keys, {"akv:users#7", "akv:users#8", ANY} | tables("users")),
    (bulk_insert_subclass, None),
    (bulk_save, None),
    (bulk_update_mappings, {"akv:users#1", ANY} | tables("users")),
    (insert_values, {"akv:orders#5", "akv:users#1", ANY} | tables("orders")),
    (insert_several_values, None),
    (insert_from_select, None),
    (insert_expression, {"akv:orders#5", ANY} | tables("orders") | unknown("users")),
    (upsert_on_other_unique, None),
    (insert_or_replace, None),
    (update_or_replace, None),
    (core_many_updates, {"akv:users#1", "akv:users#2", ANY} | tables("users")),
    (core_delete_from_secondary, None),
    (text_update, UNKNOWN),
    (text_with_columns, UNKNOWN),
    (text_as_entity, UNKNOWN),
    (text_cte, UNKNOWN),
    (driver_sql, UNKNOWN),
    (drop_table, UNKNOWN),
    (raw_driver_connection, UNKNOWN),
    (half_of_many_inserts, unknown("users")),
]


@pytest.mark.parametrize(("write", "expected"), OTHERS, ids=name_of)
async def test_other_write_misses_nothing(app: World, write: Write, expected: set[str] | None) -> None:
    bumped = await published(app, write)
    assert bumped, "nothing was announced"
    if expected is not None:
        assert bumped == records(expected)


async def reads(s: AsyncSession) -> None:
    await s.execute(text("SELECT * FROM users"))
    await s.execute(text("-- a comment\nWITH q AS (SELECT 1) SELECT * FROM q"))
    await s.get(User, 1)
    await s.execute(select(User).with_for_update())
    await s.execute(text("PRAGMA user_version"))


async def failing_insert(s: AsyncSession) -> None:
    with pytest.raises(exc.IntegrityError):
        await (await s.connection()).execute(insert(User.__table__).values(id=1))


@pytest.mark.parametrize("nothing", [reads, failing_insert], ids=name_of)
async def test_transaction_that_changes_nothing_adds_no_statement(app: World, nothing: Write) -> None:
    assert await published(app, nothing) == set()


async def test_statements_of_akv_s_own_change_no_identifier(app: World) -> None:
    async def write(s: AsyncSession) -> None:
        with own_statements():
            await s.execute(text("UPDATE users SET name = 'x'"))
            await insert_values(s)
            await failing_insert(s)

    await populate(app)
    rows, tokens = await app.dump(), await app.tokens_table()
    async with app.session.begin() as s:
        await write(s)
    assert await app.dump() != rows
    assert await app.bumped_since(tokens) == set()
    async with app.session.begin() as s:
        await write(s)
        await update_row(s)
    assert await app.bumped_since(tokens) == records({"akv:users#1", ANY} | tables("users"))


async def test_more_rows_than_the_limit_are_announced_as_rows_of_the_table(app: World) -> None:
    async def many(s: AsyncSession) -> None:
        s.add_all([User(name=str(number)) for number in range(1_001)])
        s.add(Tag(name="one"))

    assert await published(app, many) == records({"akv:tags#one", ANY} | tables("tags") | unknown("users"))


async def test_trigger_makes_a_write_to_its_table_count_as_anything(app: World) -> None:
    async with app.session.begin() as s:
        await s.execute(text("CREATE TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE tags SET colour = 'x'; END"))
    assert await published(app, update_child) >= UNKNOWN
    assert not await published(app, inexact_key) >= UNKNOWN


async def test_temporary_trigger_counts_too(app: World) -> None:
    async def write(s: AsyncSession) -> None:
        await s.execute(text("CREATE TEMP TRIGGER t AFTER UPDATE ON orders BEGIN UPDATE tags SET colour = 'x'; END"))
        await update_child(s)

    assert await published(app, write) >= UNKNOWN
    await app.engine.dispose()


@pytest.mark.parametrize("after", [insert_row, reads])
async def test_write_through_the_driver_is_seen_by_what_follows(app: World, after: Write) -> None:
    async def write(s: AsyncSession) -> None:
        await raw_driver_connection(s)
        await after(s)

    assert await published(app, write) >= UNKNOWN


async def test_cascade_that_the_metadata_does_not_know_counts_as_anything(app: World) -> None:
    async with app.session.begin() as s:
        await s.execute(text("CREATE TABLE notes (tag TEXT REFERENCES tags (name) ON DELETE CASCADE)"))
        await s.execute(text("INSERT INTO notes VALUES ('solo')"))
        s.add(Tag(name="solo"))

    async def remove(s: AsyncSession) -> None:
        await s.delete(await s.get_one(Tag, "solo"))

    await app.engine.dispose()
    from sqlalchemy import event

    event.listen(app.engine.sync_engine, "connect", lambda dbapi, _: dbapi.cursor().execute("PRAGMA foreign_keys=ON"))
    assert "akv:*#~" in await published(app, remove)


async def published(app: World, write: Write) -> set[str]:
    """Run a write in a session of its own; return the records it bumped, checked against what the database changed."""
    if not await app.dump():
        await populate(app)
    rows, tokens = await app.dump(), await app.tokens_table()
    async with app.session() as session:
        await write(session)
        await session.commit()
    bumped = await app.bumped_since(tokens)
    if write is not drop_table:
        assert_covers(bumped, rows, await app.dump())
    return bumped


def assert_covers(bumped: set[str], before: dict[Any, Any], after: dict[Any, Any]) -> None:
    for table, key in before.keys() | after.keys():
        if before.get((table, key)) != after.get((table, key)):
            needed = {f"akv:{table}#*", ANY}
            assert needed <= bumped or "akv:*#~" in bumped, (table, key)
            row = records([row_identifier(table, _python(table, ast.literal_eval(key)))])
            assert row <= bumped or f"akv:{table}#~" in bumped or "akv:*#~" in bumped, (table, key)


def _python(table: str, key: list[Any]) -> list[Any]:
    return [uuid.UUID(key[0])] if table == "documents" else key
