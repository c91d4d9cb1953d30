"""Every kind of write changes what it must, by the database's own account; ORM flushes change exactly that."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, exc, func, insert, literal, select, text, tuple_, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, selectinload

from akv.own import own_statements
from tests.backends import Backend
from tests.tokens.site import ANY, Case, Site, case, site, tables, unknown, without_schemas
from tests.tokens.world import (
    Document,
    Dog,
    Engineer,
    Line,
    Order,
    Pet,
    Plain,
    Price,
    Remark,
    Shelf,
    Tag,
    User,
    user_tags,
)
from tests.tokens.world import assert_covers as assert_covers

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
    await s.delete(await s.get_one(Order, 3))


async def update_composite(s: AsyncSession) -> None:
    (await s.get_one(Plain, (1, "1"))).value = 7


async def change_key(s: AsyncSession) -> None:
    (await s.get_one(Tag, "blue")).colour = "x"
    await s.flush()
    (await s.get_one(Plain, (1, "x"))).b = "y"


async def insert_composite(s: AsyncSession) -> None:
    s.add(Line(order_id=4, number=1))


async def change_key_that_others_refer_to(s: AsyncSession) -> None:
    (await s.get_one(Shelf, "A")).code = "C"


async def delete_row_that_others_refer_to(s: AsyncSession) -> None:
    await s.delete(await s.get_one(Shelf, "A"))


async def update_versioned(s: AsyncSession) -> None:
    (await s.get_one(Pet, 1)).name = "changed"


async def insert_into_single_table(s: AsyncSession) -> None:
    s.add(Dog(id=9))


async def insert_update_and_delete(s: AsyncSession) -> None:
    s.add(tag := Tag(name="brief"))
    await s.flush()
    tag.colour = "x"
    await s.flush()
    await s.delete(tag)


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
FLUSHES: list[Case] = [
    case(insert_row, {"akv:users#4", ANY} | tables("users")),
    case(insert_many, {"akv:users#4", "akv:users#5", "akv:users#6", ANY} | tables("users")),
    case(insert_with_uuid, {f"akv:documents#uuid:{uuid.UUID(int=9)}", ANY} | tables("documents")),
    case(insert_child, {"akv:orders#9", "akv:users#2", ANY} | tables("orders")),
    case(insert_child_of_nobody, {"akv:orders#9", ANY} | tables("orders")),
    case(insert_composite, {"akv:lines#4,1", "akv:orders#4", ANY} | tables("lines")),
    case(insert_into_single_table, {"akv:pets#9", ANY} | tables("pets")),
    case(update_row, {"akv:users#1", ANY} | tables("users")),
    case(update_to_same_value, set()),
    case(update_versioned, {"akv:pets#1", ANY} | tables("pets")),
    case(update_by_expression, ORDER_TO | {"akv:users#1"}),
    case(update_child, ORDER_TO | {"akv:users#1"}),
    case(update_child_whose_parent_was_never_loaded, ORDER_TO | unknown("users")),
    case(move_child, ORDER_TO | {"akv:users#1", "akv:users#2"}),
    case(move_child_whose_parent_was_never_loaded, ORDER_TO | unknown("users")),
    case(move_child_by_expression, ORDER_TO | unknown("users")),
    case(append_to_collection, {"akv:orders#3", "akv:users#2", "akv:users#3", ANY} | tables("orders")),
    case(remove_orphan, {"akv:orders#2", "akv:users#1", ANY} | tables("orders") | unknown("lines")),
    case(
        add_tag,
        {"akv:user_tags#2,red", "akv:users#2", "akv:tags#red", ANY} | tables("user_tags"),
        mariadb={"akv:user_tags#2,red", "akv:users#2"} | tables("user_tags") | unknown("tags"),
    ),
    case(
        remove_tag,
        {"akv:user_tags#1,red", "akv:users#1", "akv:tags#red", ANY} | tables("user_tags"),
        mariadb={"akv:users#1"} | unknown("user_tags", "tags"),
    ),
    case(delete_row, {"akv:users#3", ANY} | tables("users")),
    case(delete_with_cascade, {"akv:users#2", "akv:orders#3", ANY} | tables("users", "orders") | unknown("lines")),
    case(delete_with_database_cascade, {"akv:orders#3", "akv:users#2", ANY} | tables("orders") | unknown("lines")),
    case(
        delete_row_that_others_refer_to,
        {"akv:shelves#A"} | tables("shelves") | unknown("books"),
        mariadb=unknown("shelves", "books"),
    ),
    case(
        update_composite,
        {"akv:plain#1,'1", "akv:users#1", ANY} | tables("plain"),
        mariadb={"akv:users#1"} | unknown("plain"),
    ),
    case(
        change_key,
        {"akv:tags#blue", "akv:plain#1,x", "akv:plain#1,y", "akv:users#1", ANY} | tables("tags", "plain"),
        mariadb={"akv:users#1"} | unknown("tags", "plain"),
    ),
    case(
        change_key_that_others_refer_to,
        {"akv:shelves#A", "akv:shelves#C"} | tables("shelves") | unknown("books"),
        mariadb=unknown("shelves", "books"),
    ),
    case(insert_subclass, {"akv:people#9", "akv:engineers#9", "akv:people#1", ANY} | tables("people", "engineers")),
    case(update_base_column, {"akv:people#2", "akv:people#1", ANY} | tables("people")),
    case(
        update_subclass_column,
        {"akv:people#2", "akv:engineers#2", "akv:people#1", ANY} | tables("people", "engineers"),
    ),
    case(delete_subclass, {"akv:people#2", "akv:engineers#2", "akv:people#1", ANY} | tables("people", "engineers")),
    case(inexact_key, unknown("prices")),
    case(write_soft_child, {"akv:remarks#1", "akv:users#1", "akv:users#2", ANY} | tables("remarks")),
    case(delete_soft_child, {"akv:remarks#1", "akv:users#1", ANY} | tables("remarks")),
    case(replace_row, ORDER_TO | {"akv:users#1", "akv:users#3"}),
    case(merge_row, {"akv:users#2", ANY} | tables("users")),
    case(insert_update_and_delete, {"akv:tags#brief", ANY} | tables("tags"), mariadb=unknown("tags")),
]


pytestmark = pytest.mark.backends(exclude="sqlite-memory")


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


@pytest.mark.parametrize("case", FLUSHES, ids=str)
async def test_flush_changes_exactly_its_identifiers(app: Site, case: Case) -> None:
    assert without_schemas(await app.announced(case.write)) == case.expected(app.dialect)


# --- everything else: nothing missed, and exact where the statement tells ---------------------------------------------

UNSYNCED = {"synchronize_session": False}


async def bulk_update_pinned(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id == 1).values(name="x"))


async def bulk_update_evaluated(s: AsyncSession) -> None:
    await s.execute(
        update(User).where(User.id == 1).values(name="x"), execution_options={"synchronize_session": "evaluate"}
    )


async def bulk_update_fetched(s: AsyncSession) -> None:
    await s.execute(
        update(User).where(User.id == 1).values(name="x"), execution_options={"synchronize_session": "fetch"}
    )


async def bulk_update_unsynced(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id == 1).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_in(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id.in_([1, 2]), User.name == "a").values(name="x"))


async def bulk_update_or(s: AsyncSession) -> None:
    await s.execute(update(User).where((User.id == 1) | (User.id == 2)).values(name="x"))


async def bulk_update_filtered(s: AsyncSession) -> None:
    await s.execute(update(User).filter_by(id=1).values(name="x"))


async def bulk_update_unpinned(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.name != "c").values(name="x"))


async def bulk_update_tuple(s: AsyncSession) -> None:
    await s.execute(update(Line).where(tuple_(Line.order_id, Line.number).in_([(1, 1), (3, 1)])).values(note="x"))


async def bulk_update_key(s: AsyncSession) -> None:
    await s.execute(update(Tag).where(Tag.name == "solo").values(name="green"), execution_options=UNSYNCED)


async def bulk_update_key_in_other_case(s: AsyncSession) -> None:
    await s.execute(update(Tag).where(Tag.name == "SOLO").values(colour="green"), execution_options=UNSYNCED)


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


async def bulk_update_pinned_from(s: AsyncSession) -> None:
    await s.execute(
        update(User).where(User.id == 1, User.id == Order.user_id, Order.total == 0).values(name="x"),
        execution_options=UNSYNCED,
    )


async def bulk_update_of_two_tables(s: AsyncSession) -> None:
    await s.execute(
        update(User).where(User.id == Order.user_id, Order.id == 3).values({User.name: "x", Order.total: 9}),
        execution_options=UNSYNCED,
    )


async def bulk_update_of_an_alias_beside(s: AsyncSession) -> None:
    other = aliased(Order)
    await s.execute(
        update(User).where(User.id == other.user_id, other.id == 3).values({other.total: 9}),
        execution_options=UNSYNCED,
    )


async def bulk_update_alias(s: AsyncSession) -> None:
    other = aliased(User)
    await s.execute(update(other).where(other.id == 1).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_subclass(s: AsyncSession) -> None:
    await s.execute(update(Engineer).where(Engineer.id == 2).values(skill="x"), execution_options=UNSYNCED)


async def bulk_update_single_table_subclass(s: AsyncSession) -> None:
    await s.execute(update(Dog).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_subclass_by_primary_keys(s: AsyncSession) -> None:
    await s.execute(update(Engineer), [{"id": 2, "name": "x", "skill": "y"}])


async def bulk_update_subquery(s: AsyncSession) -> None:
    users = select(Order.user_id).where(Order.id == 3)
    await s.execute(update(User).where(User.id.in_(users)).values(name="x"), execution_options=UNSYNCED)


async def bulk_update_with_text_key(s: AsyncSession) -> None:
    await s.execute(update(User).where(User.id == literal("1")).values(name="x"), execution_options=UNSYNCED)


async def bulk_delete_pinned(s: AsyncSession) -> None:
    await s.execute(delete(Order).where(Order.id == 4))


async def bulk_delete_unpinned(s: AsyncSession) -> None:
    await s.execute(delete(Order).where(Order.total == 0))


async def bulk_delete_using(s: AsyncSession) -> None:
    await s.execute(
        delete(Order).where(Order.user_id == User.id, User.name == "b", Order.id == 3), execution_options=UNSYNCED
    )


async def bulk_insert(s: AsyncSession) -> None:
    await s.execute(insert(User), [{"name": "x"}, {"name": "y"}])


async def bulk_insert_returning(s: AsyncSession) -> None:
    (await s.scalars(insert(User).returning(User), [{"name": "x"}, {"name": "y"}])).all()


async def bulk_insert_with_keys(s: AsyncSession) -> None:
    await s.execute(insert(User), [{"id": 7, "name": "x"}, {"id": 8, "name": "y"}])


async def bulk_insert_with_default_keys(s: AsyncSession) -> None:
    await s.execute(insert(Document), [{"title": "x"}, {"title": "y"}])


async def bulk_insert_subclass(s: AsyncSession) -> None:
    await s.execute(insert(Engineer), [{"id": 7, "name": "x", "skill": "s"}])


async def bulk_save(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.bulk_save_objects([User(name="x"), Order(user_id=1)]))


async def bulk_insert_mappings(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.bulk_insert_mappings(User, [{"id": 7, "name": "x"}]))


async def bulk_update_mappings(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.bulk_update_mappings(User, [{"id": 1, "name": "x"}]))


async def legacy_update(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.query(User).filter(User.id == 1).update({"name": "x"}))


async def legacy_delete(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: sync.query(Order).filter(Order.id == 4).delete())


async def same_statement_twice(s: AsyncSession) -> None:
    for key in (1, 2):
        await s.execute(update(User).where(User.id == key).values(name="x"))


async def insert_values(s: AsyncSession) -> None:
    await s.execute(insert(Order).values(user_id=1))


async def insert_several_values(s: AsyncSession) -> None:
    await s.execute(Order.__table__.insert().values([{"user_id": 1}, {"user_id": 2}]))  # type: ignore[attr-defined]


async def insert_from_select(s: AsyncSession) -> None:
    await s.execute(insert(Order).from_select(["user_id", "total"], select(User.id, literal(0))))


async def insert_expression(s: AsyncSession) -> None:
    await s.execute(insert(Order).values(user_id=select(User.id).where(User.name == "b").scalar_subquery()))


def upsert(s: AsyncSession, update_to: dict[str, Any] | None, rows: list[dict[str, Any]]) -> Any:
    dialect = s.get_bind().dialect.name
    if dialect in ("mysql", "mariadb"):
        return mysql.insert(User).values(rows).on_duplicate_key_update(update_to or {"id": User.id})
    statement: Any = (sqlite if dialect == "sqlite" else postgresql).insert(User).values(rows)
    if update_to is None:
        return statement.on_conflict_do_nothing()
    return statement.on_conflict_do_update(index_elements=["code"], set_=update_to)


async def upsert_on_other_unique(s: AsyncSession) -> None:
    await s.execute(upsert(s, {"name": "x"}, [{"id": 99, "code": "c1", "name": "x"}]))


async def upsert_without_key(s: AsyncSession) -> None:
    await s.execute(upsert(s, {"name": "x"}, [{"code": "c1", "name": "x"}]))


async def upsert_many(s: AsyncSession) -> None:
    await s.execute(upsert(s, {"name": "x"}, [{"code": "c1", "name": "x"}, {"code": "c9", "name": "y"}]))


async def upsert_that_does_nothing(s: AsyncSession) -> None:
    await s.execute(upsert(s, None, [{"id": 1, "code": "c1", "name": "x"}]))


async def insert_or_replace(s: AsyncSession) -> None:
    await s.execute(insert(User).prefix_with("OR REPLACE").values(id=50, code="c1", name="x"))


async def insert_ignore(s: AsyncSession) -> None:
    await s.execute(insert(User).prefix_with("IGNORE").values(id=50, code="c1", name="x"))


async def update_or_replace(s: AsyncSession) -> None:
    await s.execute(
        update(User).prefix_with("OR REPLACE").where(User.id == 3).values(code="c1"), execution_options=UNSYNCED
    )


async def core_update(s: AsyncSession) -> None:
    users = User.__table__
    await s.execute(users.update().where(users.c.id == 1).values(name="x"))  # type: ignore[attr-defined]


async def core_update_by_attribute(s: AsyncSession) -> None:
    await s.execute(update(User.__table__).where(User.id == 1).values(name="x"))


async def core_delete_by_attribute(s: AsyncSession) -> None:
    await s.execute(delete(Line.__table__).where(Line.order_id == 1, Line.number == 1))


async def core_insert_beside_attributes(s: AsyncSession) -> None:
    await s.execute(insert(Remark.__table__).from_select(["id", "text"], select(User.id + 10, User.name)))


async def core_insert_many(s: AsyncSession) -> None:
    await s.execute(Tag.__table__.insert(), [{"name": "p", "colour": ""}, {"name": "q", "colour": ""}])  # type: ignore[attr-defined]


async def core_many_updates(s: AsyncSession) -> None:
    users = User.__table__
    await (await s.connection()).execute(
        users.update().where(users.c.id == bindparam("who")).values(name=bindparam("what")),  # type: ignore[attr-defined]
        [{"who": 1, "what": "x"}, {"who": 2, "what": "y"}],
    )


async def core_delete_from_secondary(s: AsyncSession) -> None:
    await s.execute(user_tags.delete().where(user_tags.c.user_id == 1))


async def core_on_a_connection(s: AsyncSession) -> None:
    await (await s.connection()).execute(update(User.__table__).where(User.__table__.c.id == 1).values(name="x"))


async def core_outside_any_session(s: AsyncSession) -> None:
    engine: Any = s.bind
    async with engine.begin() as connection:
        await connection.execute(update(User.__table__).where(User.__table__.c.id == 1).values(name="x"))


async def update_in_a_cte(s: AsyncSession) -> None:
    changed = update(User).where(User.id == 1).values(name="x").returning(User.id).cte()
    (await s.execute(select(changed.c.id))).all()


async def key_update_in_a_cte(s: AsyncSession) -> None:
    changed = update(Order).where(Order.id == 4).values(id=14).returning(Order.id).cte()
    (await s.execute(select(changed.c.id))).all()


async def key_update_in_a_cte_beside_another_key(s: AsyncSession) -> None:
    moved = update(Order).where(Order.id == 4).values(id=14).cte()
    await s.execute(insert(User).values(id=77, name="x").add_cte(moved))


async def insert_beside_a_cte(s: AsyncSession) -> None:
    gone = delete(Order).where(Order.id == 4).cte()
    await s.execute(insert(User).values(name="x").add_cte(gone))


async def half_of_many_inserts(s: AsyncSession) -> None:
    """The first row stays in the transaction although the statement fails."""
    connection = await s.connection()
    with pytest.raises(exc.IntegrityError):
        await connection.execute(insert(User.__table__), [{"id": 60, "name": "x"}, {"id": 1, "name": "y"}])


USER = {"akv:users#1", ANY} | tables("users")
BOTH_USERS = {"akv:users#1", "akv:users#2", ANY} | tables("users")
SERVERS = ("postgresql", "mariadb")
OTHERS: list[Case] = [
    case(bulk_update_pinned, USER),
    case(bulk_update_evaluated, USER),
    case(bulk_update_fetched, USER),
    case(bulk_update_unsynced, USER),
    case(bulk_update_in, BOTH_USERS),
    case(bulk_update_or, BOTH_USERS),
    case(bulk_update_filtered, USER),
    case(bulk_update_unpinned, unknown("users")),
    case(bulk_update_tuple, {"akv:lines#1,1", "akv:lines#3,1", "akv:orders#1", "akv:orders#3", ANY} | tables("lines")),
    case(bulk_update_key, {"akv:tags#solo", "akv:tags#green", ANY} | tables("tags"), mariadb=unknown("tags")),
    case(bulk_update_key_in_other_case, {"akv:tags#SOLO", ANY} | tables("tags"), mariadb=unknown("tags")),
    case(bulk_update_key_by_expression, unknown("orders", "users")),
    case(bulk_update_by_primary_keys, BOTH_USERS),
    case(bulk_update_returning, USER, only=("sqlite", "postgresql")),
    case(bulk_update_from, unknown("users")),
    case(bulk_update_pinned_from, USER),
    case(bulk_update_of_two_tables, unknown("users", "orders"), only=("mariadb",)),
    case(bulk_update_of_an_alias_beside, unknown("users", "orders"), only=("mariadb",)),
    case(bulk_update_alias, unknown("users"), mariadb=None),
    case(
        bulk_update_subclass,
        {"akv:engineers#2"} | tables("engineers") | unknown("people"),  # nobody knows the boss
    ),
    case(bulk_update_single_table_subclass, unknown("pets")),
    case(bulk_update_subclass_by_primary_keys, {"akv:engineers#2"} | tables("engineers") | unknown("people")),
    case(bulk_update_subquery, unknown("users")),
    case(bulk_update_with_text_key, unknown("users"), only=("sqlite", "mariadb")),
    case(bulk_delete_pinned, {"akv:orders#4"} | tables("orders") | unknown("users", "lines")),
    case(bulk_delete_unpinned, unknown("orders", "users", "lines")),
    case(bulk_delete_using, {"akv:orders#3"} | tables("orders") | unknown("users", "lines"), only=SERVERS),
    case(bulk_insert, unknown("users")),
    case(bulk_insert_returning, {"akv:users#4", "akv:users#5", ANY} | tables("users")),
    case(bulk_insert_with_keys, {"akv:users#7", "akv:users#8", ANY} | tables("users")),
    case(bulk_insert_with_default_keys, None),
    case(bulk_insert_subclass, None),
    case(bulk_save, None),
    case(bulk_insert_mappings, {"akv:users#7", ANY} | tables("users")),
    case(bulk_update_mappings, USER),
    case(legacy_update, USER),
    case(legacy_delete, {"akv:orders#4"} | tables("orders") | unknown("users", "lines")),
    case(same_statement_twice, BOTH_USERS),
    case(insert_values, {"akv:orders#5", "akv:users#1", ANY} | tables("orders")),
    case(insert_several_values, unknown("orders", "users")),
    case(insert_from_select, unknown("orders", "users", "lines")),
    case(insert_expression, {"akv:orders#5", ANY} | tables("orders") | unknown("users")),
    case(upsert_on_other_unique, None),
    case(upsert_without_key, None),
    case(upsert_many, None),
    case(upsert_that_does_nothing, None),
    case(insert_or_replace, None, only=("sqlite",)),
    case(insert_ignore, None, only=("mariadb",)),
    case(update_or_replace, None, only=("sqlite",)),
    case(core_update, USER),
    case(core_update_by_attribute, USER),
    case(core_delete_by_attribute, {"akv:lines#1,1", "akv:orders#1", ANY} | tables("lines")),
    case(core_insert_beside_attributes, unknown("remarks")),
    case(core_insert_many, {"akv:tags#p", "akv:tags#q", ANY} | tables("tags")),
    case(core_many_updates, BOTH_USERS),
    case(core_delete_from_secondary, unknown("user_tags", "tags", "users")),
    case(core_on_a_connection, USER),
    case(core_outside_any_session, USER),
    case(update_in_a_cte, USER, only=("postgresql",)),
    case(key_update_in_a_cte, None, only=("postgresql",)),
    case(key_update_in_a_cte_beside_another_key, None, only=("postgresql",)),
    case(insert_beside_a_cte, None, only=("postgresql",)),
    case(half_of_many_inserts, unknown("users"), only=("sqlite", "mariadb")),
]


@pytest.mark.parametrize("case", OTHERS, ids=str)
async def test_other_write_misses_nothing_and_is_exact_where_its_statement_tells(app: Site, case: Case) -> None:
    if app.dialect not in case.only:
        pytest.skip(f"no such statement on {app.dialect}")
    announced = without_schemas(await app.announced(case.write))
    assert announced, "nothing was announced"
    expected = case.expected(app.dialect)
    assert expected is None or announced == expected


async def reads(s: AsyncSession) -> None:
    await s.execute(text("SELECT * FROM users"))
    await s.execute(text("-- a comment\nWITH q AS (SELECT 1) SELECT count(*), max(1) FROM q"))
    await s.get(User, 1)
    await s.execute(select(User).with_for_update())
    await s.execute(select(func.count(User.id), func.coalesce(func.max(User.name), "")))


async def failing_insert(s: AsyncSession) -> None:
    with pytest.raises(exc.IntegrityError):
        async with s.begin_nested():
            await (await s.connection()).execute(insert(User.__table__).values(id=1, name="x"))


async def test_transaction_that_reads_adds_no_statement(app: Site) -> None:
    await app.announced(reads)
    with app.beside() as beside:
        assert await app.announced(reads) == set()
    assert beside == []


async def test_plain_write_asks_the_database_for_nothing(app: Site) -> None:
    await app.announced(update_row)
    with app.beside() as beside:
        await app.announced(update_child)
    assert not beside


async def test_write_that_failed_and_was_rolled_back_changes_nothing(app: Site) -> None:
    assert await app.announced(failing_insert) == set()


async def test_statements_of_akv_s_own_change_no_identifier(app: Site) -> None:
    async def own(s: AsyncSession) -> None:
        with own_statements():
            await s.execute(text("UPDATE users SET name = 'x'"))
            await insert_values(s)
            await failing_insert(s)

    async def mixed(s: AsyncSession) -> None:
        await own(s)
        await core_update(s)

    for write, expected in ((own, set[str]()), (mixed, USER)):
        async with app.session.begin() as s:
            await write(s)
        assert app.tokens.changes() == expected


async def test_more_rows_than_the_limit_are_announced_as_rows_of_the_table(app: Site) -> None:
    async def many(s: AsyncSession) -> None:
        s.add_all([User(name=str(number)) for number in range(1_001)])
        s.add(Tag(name="one"))

    assert await app.announced(many) == {"akv:tags#one", ANY} | tables("tags") | unknown("users")
