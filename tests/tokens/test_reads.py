"""Reads through SQLAlchemy: exactly what each kind of them depends on, on every database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Integer,
    TypeDecorator,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    lambda_stmt,
    lateral,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    aliased,
    contains_eager,
    defer,
    immediateload,
    joinedload,
    load_only,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    undefer,
    with_polymorphic,
)

from akv.tokens import watching
from akv.tokens.readplans import MAX_ROWS
from tests.backends import Backend
from tests.tokens.reading import Account, Apart, Case, Purchase, Truck, Vehicle, case, plain, recorded, rows
from tests.tokens.site import Site, site, tables
from tests.tokens.world import (
    Document,
    Dog,
    Engineer,
    Line,
    Order,
    Person,
    Pet,
    Plain,
    Price,
    Remark,
    Shelf,
    Tag,
    User,
    user_tags,
)

pytestmark = pytest.mark.backends(exclude="sqlite-memory")


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend) as app:
        yield app


def of(statement: Any) -> Any:
    """Return a read that fetches all that a statement returns."""

    async def read(s: AsyncSession) -> None:
        (await s.execute(statement)).unique().all()

    return read


def get(entity: Any, key: Any, **options: Any) -> Any:
    async def read(s: AsyncSession) -> None:
        await s.get(entity, key, **options)

    return read


class Shifted(TypeDecorator[int]):
    """Sends another number than it is given."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> int | None:
        return None if value is None else value + 1


me, other = aliased(User), aliased(User)
ORDERS_OF_1 = select(Order).where(Order.user_id == 1)
COUNTED = select(func.count(Order.id)).where(Order.user_id == User.id).scalar_subquery()


# --- rows by their keys -----------------------------------------------------------------------------------------------

ROWS = {
    "get": case(get(User, 1), rows("users", 1)),
    "get nothing": case(get(User, 77), rows("users", 77)),
    "get composite": case(get(Line, (1, 2)), rows("lines", "1,2")),
    "get composite with text": case(get(Plain, (1, "x")), rows("plain", "1,x"), mariadb=tables("plain")),
    "get by text": case(get(Tag, "red"), rows("tags", "red"), mariadb=tables("tags")),
    "get by number that is rounded": case(get(Price, 1), tables("prices")),
    "get for update": case(get(User, 1, with_for_update=True), rows("users", 1)),
    "get joined": case(get(Engineer, 2), rows("people", 2) | rows("engineers", 2)),
    "get base of joined": case(get(Person, 1), rows("people", 1)),
    "get single": case(get(Dog, 1), rows("pets", 1)),
    "get with options": case(
        get(User, 1, options=[selectinload(User.orders)]), rows("users", 1) | tables("orders")
    ),
    "where": case(of(select(User).where(User.id == 1)), rows("users", 1)),
    "where and more": case(of(select(User.name).where(User.id == 1, User.name != "x")), rows("users", 1)),
    "where in": case(of(select(User).where(User.id.in_([1, 77]))), rows("users", 1, 77)),
    "where in nothing": case(of(select(User).where(User.id.in_([]))), tables("users")),
    "where or": case(
        of(select(User).where(or_(User.id == 1, and_(User.name == "x", User.id == 2)))), rows("users", 1, 2)
    ),
    "where tuple in": case(
        of(select(Line).where(tuple_(Line.order_id, Line.number).in_([(1, 1), (3, 1)]))), rows("lines", "1,1", "3,1")
    ),
    "core": case(of(select(User.__table__.c.name).where(User.__table__.c.id == 1)), rows("users", 1)),
    "aggregate": case(of(select(func.count()).select_from(User).where(User.id == 1)), rows("users", 1)),
    "alias": case(of(select(me).where(me.id == 1)), rows("users", 1)),
    "both of a self-join": case(
        of(select(me, other).join(other, true()).where(me.id == 1, other.id == 2)), rows("users", 1, 2)
    ),
    "both through each other": case(of(select(me, other).where(me.id == 1, other.id == me.id)), rows("users", 1)),
    "union": case(
        of(union_all(select(User.id).where(User.id == 1), select(Order.id).where(Order.id == 2))),
        rows("users", 1) | rows("orders", 2),
    ),
    "subquery": case(
        of(select(select(User).where(User.id == 1).subquery().c.name)), rows("users", 1)
    ),
    "cte": case(of(select(select(User).where(User.id == 1).cte().c.name)), rows("users", 1)),
    "polymorphic": case(
        of(select(with_polymorphic(Person, "*")).where(Person.id == 2)), rows("people", 2) | rows("engineers", 2)
    ),
    "lambda": case(of(lambda_stmt(lambda: select(User).where(User.id == 1))), rows("users", 1)),
    "explicit parameter": case(of(select(User).where(User.id == bindparam("x", 1))), rows("users", 1)),
    "wide parameter": case(of(select(User).where(User.id == bindparam("x", 1, type_=BigInteger))), rows("users", 1)),
    "parameter first": case(of(select(User).where(bindparam("x", 1) == User.id)), rows("users", 1)),
    "column subquery": case(of(select(User.name, COUNTED).where(User.id == 1)), rows("users", 1) | tables("orders")),
    "outer join": case(
        of(select(User, Order).outerjoin(Order, Order.user_id == User.id).where(User.id == 1)),
        rows("users", 1) | tables("orders"),
    ),
}  # fmt: skip


async def uuid_key(s: AsyncSession) -> None:
    from tests.tokens.site import DOCUMENT

    await s.get(Document, DOCUMENT)


ROWS["get by uuid"] = case(uuid_key, rows("documents", "uuid:00000000-0000-0000-0000-000000000005"))

# --- any row of tables ------------------------------------------------------------------------------------------------

numbers = select(literal_column("1").label("n")).cte("numbers", recursive=True)
numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < select(func.max(Order.id)).scalar_subquery()))
chain = select(Person.id, Person.boss_id).where(Person.id == 2).cte("chain", recursive=True)
chain = chain.union_all(select(Person.id, Person.boss_id).join(chain, chain.c.boss_id == Person.id))

TABLES = {
    "all": case(of(select(User)), tables("users")),
    "other column": case(of(select(User).where(User.name == "a")), tables("users")),
    "not": case(of(select(User).where(~(User.id == 1))), tables("users")),
    "or other": case(of(select(User).where(or_(User.id == 1, User.name == "x"))), tables("users")),
    "part of key": case(of(select(Line).where(Line.order_id == 1)), tables("lines")),
    "expression": case(of(select(User).where(User.id + 0 == 1)), tables("users")),
    "sent as another": case(
        of(select(User).where(User.id == bindparam("x", 0, type_=Shifted))), tables("users")
    ),
    "many": case(of(select(User).where(User.id.in_(range(MAX_ROWS + 1)))), tables("users")),
    "one of a self-join": case(of(select(me.id, other.id).join(other, true()).where(me.id == 1)), tables("users")),
    "join": case(of(select(User).join(User.orders)), tables("users", "orders")),
    "secondary": case(of(select(User).join(User.tags)), tables("users", "user_tags", "tags")),
    "secondary alone": case(of(select(user_tags)), tables("user_tags")),
    "exists": case(of(select(User.id).where(exists().where(Order.user_id == User.id))), tables("users", "orders")),
    "pinned inside of not exists": case(
        of(select(Order.id).where(~exists().where(Order.user_id == User.id, User.id == 1))), tables("users", "orders")
    ),
    "pinned where it is correlated": case(
        of(select(User.id).where(~exists().where(Order.user_id == User.id, User.id == 1))), tables("users", "orders")
    ),
    "pinned in one of two": case(
        of(union_all(select(User.id).where(User.id == 1), select(User.id).where(User.name == "x"))), tables("users")
    ),
    "pinned outside, all inside": case(
        of(select(User.name, select(func.max(me.id)).scalar_subquery()).where(User.id == 1)), tables("users")
    ),
    "in subquery": case(of(select(User.id).where(User.id.in_(select(Order.user_id)))), tables("users", "orders")),
    "lateral": case(
        of(select(User.id, lateral(select(Order.id).where(Order.user_id == User.id)).c.id)),
        tables("users", "orders"),
        only=("postgresql",),
    ),
    "recursive": case(of(select(chain)), tables("people")),
    "recursive with a bound": case(of(select(numbers)), tables("orders")),
    "hierarchy": case(of(select(with_polymorphic(Person, "*"))), tables("people", "engineers")),
    "subclass": case(of(select(Engineer)), tables("people", "engineers")),
    "base": case(of(select(Person.name)), tables("people")),
    "single": case(of(select(Dog)), tables("pets")),
    "text in it": case(of(select(text("name")).select_from(text("users"))), tables("users")),
    "literal column": case(
        of(select(User.id, literal_column("(SELECT count(*) FROM orders)")).where(User.id == 1)),
        rows("users", 1) | tables("orders"),
    ),
    "text": case(of(text("SELECT users.name FROM users, tags")), tables("users", "tags")),
    "text as entity": case(of(select(User).from_statement(text("SELECT * FROM users"))), tables("users")),
    "text with columns": case(of(text("SELECT id FROM users").columns(User.id)), tables("users")),
    "nothing": case(of(select(func.now())), set()),
}  # fmt: skip

# --- what the ORM loads beside ----------------------------------------------------------------------------------------


async def lazy(s: AsyncSession) -> None:
    account = await s.get(Account, 1)
    assert account is not None
    for purchase in await account.awaitable_attrs.purchases:
        await purchase.awaitable_attrs.account  # answered from the identity map


async def lazy_to_one(s: AsyncSession) -> None:
    purchase = await s.get(Purchase, 3)
    assert purchase is not None
    assert (await purchase.awaitable_attrs.account).name == "b"


async def lazy_to_none(s: AsyncSession) -> None:
    purchase = await s.get(Purchase, 4)
    assert purchase is not None
    assert await purchase.awaitable_attrs.account is None


async def write_only(s: AsyncSession) -> None:
    account = await s.get(Account, 1)
    assert account is not None
    (await s.scalars(account.later.select())).all()


async def refreshed(s: AsyncSession) -> None:
    user = await s.get(User, 1)
    await s.refresh(user)
    await s.refresh(user, ["orders"])


async def expired(s: AsyncSession) -> None:
    account = await s.get(Account, 2)
    assert account is not None
    s.expire(account, ["name"])
    await account.awaitable_attrs.name


async def deferred(s: AsyncSession) -> None:
    account = await s.get(Account, 1, options=[load_only(Account.id)])
    assert account is not None
    await account.awaitable_attrs.spent


async def subclass_columns(s: AsyncSession) -> None:
    person: Any = await s.get(Person, 2)
    await s.refresh(person, ["skill"])


async def soft(s: AsyncSession) -> None:
    remark = await s.get(Remark, 1)
    await s.refresh(remark, ["user"])


ACCOUNT = rows("users", 1) | tables("orders")
LOADED = {
    "lazy": case(lazy, ACCOUNT),
    "lazy to one": case(lazy_to_one, rows("users", 2) | tables("orders")),
    "lazy to none": case(lazy_to_none, rows("orders", 4)),
    "write-only": case(write_only, ACCOUNT),
    "refresh": case(refreshed, ACCOUNT),
    "expired": case(expired, rows("users", 2) | tables("orders")),
    "deferred": case(deferred, ACCOUNT),
    "columns of the subclass": case(subclass_columns, rows("people", 2) | rows("engineers", 2)),
    "without foreign key": case(soft, rows("remarks", 1) | rows("users", 1)),
    "selectin": case(
        of(select(User).where(User.id == 1).options(selectinload(User.orders).selectinload(Order.lines))),
        rows("users", 1) | tables("orders", "lines"),
    ),
    "selectin many to many": case(
        of(select(User).where(User.id == 1).options(selectinload(User.tags))),
        rows("users", 1) | tables("user_tags", "tags"),
    ),
    "selectin to one": case(
        of(select(Order).where(Order.id.in_([1, 3])).options(selectinload(Order.user))),
        rows("orders", 1, 3) | rows("users", 1, 2),
    ),
    "selectin polymorphic": case(
        of(select(Person).where(Person.id.in_([1, 2])).options(selectin_polymorphic(Person, [Engineer]))),
        rows("people", 1, 2) | rows("engineers", 2),
    ),
    "joined": case(of(select(User).where(User.id == 1).options(joinedload(User.orders))), ACCOUNT),
    "joined in a limit": case(
        of(select(User).where(User.id == 1).limit(1).options(joinedload(User.orders))), ACCOUNT
    ),
    "joined to one": case(
        of(select(Order).where(Order.id == 3).options(joinedload(Order.user))), rows("orders", 3) | tables("users")
    ),
    "joined many to many": case(
        of(select(User).where(User.id == 1).options(joinedload(User.tags))),
        rows("users", 1) | tables("user_tags", "tags"),
    ),
    "subquery": case(of(select(User).where(User.id == 1).options(subqueryload(User.orders))), ACCOUNT),
    "immediate": case(of(select(User).where(User.id == 1).options(immediateload(User.orders))), ACCOUNT),
    "contains eager": case(
        of(select(User).join(User.orders).where(User.id == 1).options(contains_eager(User.orders))), ACCOUNT
    ),
    "column property": case(of(select(Account).where(Account.id == 1)), ACCOUNT),
    "column property left out": case(
        of(select(Account).where(Account.id == 1).options(defer(Account.spent))), rows("users", 1)
    ),
    "column property asked for": case(
        of(select(Account).where(Account.id == 1).options(undefer(Account.spent))), ACCOUNT
    ),
    "hybrid": case(of(select(Account.name, Account.size).where(Account.id == 1)), ACCOUNT),
}  # fmt: skip

CASES = {
    f"{group}: {name}": each
    for group, cases in (("rows", ROWS), ("tables", TABLES), ("loaded", LOADED))
    for name, each in cases.items()
}


@pytest.mark.parametrize("name", CASES)
async def test_read_depends_on_exactly(app: Site, name: str) -> None:
    each: Case = CASES[name]
    if app.dialect not in each.only:
        pytest.skip(f"no such statement on {app.dialect}")
    reads = await recorded(app, each.read)
    assert reads.unattributed is None
    assert plain(reads.identifiers) == each.expected(app.dialect)
    again = await recorded(app, each.read)
    assert (again.unattributed, again.identifiers) == (None, reads.identifiers)


def closure(id_: int) -> Any:
    return lambda_stmt(lambda: select(User.code).where(User.id == id_))


async def test_parameters_of_each_execution_count(app: Site) -> None:
    for id_ in (1, 2, 3):
        for statement in (
            select(User.name).where(User.id == id_),
            closure(id_),
            select(User.id).where(User.id.in_([id_, 9])).where(User.id != 9),
        ):
            assert (await recorded(app, of(statement))).identifiers - rows("users", 9) == rows("users", id_)


async def test_statement_that_was_compiled_outside_of_any_recording(app: Site) -> None:
    statement = select(User.name, COUNTED).where(User.id == 1)
    async with app.session() as session:
        await of(statement)(session)
    assert (await recorded(app, of(statement))).identifiers == rows("users", 1) | tables("orders")


async def test_concrete_inheritance(backend: Backend) -> None:
    async with site(backend, fresh=True) as app:
        async with app.eyes.begin() as connection:
            await connection.run_sync(Apart.metadata.create_all)
        reads = await recorded(app, of(select(Vehicle)))
        assert (reads.identifiers, reads.unattributed) == (tables("vehicles", "trucks"), None)
        assert (await recorded(app, get(Truck, 1))).identifiers == tables("trucks")


# --- ways of executing ------------------------------------------------------------------------------------------------


async def streamed(s: AsyncSession) -> None:
    async for _ in await s.stream(select(User.id)):
        await s.get(Order, 1)


async def streamed_scalars(s: AsyncSession) -> None:
    result = await s.stream_scalars(select(User).options(selectinload(User.orders)).execution_options(yield_per=1))
    async for part in result.partitions(1):
        assert part


async def streamed_alone(s: AsyncSession) -> None:
    assert [id_ async for id_ in await s.stream_scalars(select(User.id))]


async def in_run_sync(s: AsyncSession) -> None:
    await s.run_sync(lambda sync: [len(user.orders) for user in sync.scalars(select(User))])


async def through_its_connection(s: AsyncSession) -> None:
    connection = await s.connection()
    await connection.execute(select(User.id))
    await connection.exec_driver_sql("SELECT id FROM orders")


WAYS = {
    "stream and ask": (streamed, tables("users") | rows("orders", 1)),
    "stream and load beside": (streamed_scalars, tables("users", "orders")),
    "stream": (streamed_alone, tables("users")),
    "run_sync": (in_run_sync, tables("users", "orders")),
    "connection": (through_its_connection, tables("users", "orders")),
}


@pytest.mark.parametrize("name", WAYS)
async def test_way_of_executing(app: Site, name: str) -> None:
    read, expected = WAYS[name]
    if name.startswith("stream and") and app.dialect == "mariadb":
        pytest.skip("a driver that streams runs no second statement meanwhile")
    reads = await recorded(app, read)
    assert (plain(reads.identifiers), reads.unattributed) == (expected, None)


async def test_core_connections(app: Site) -> None:
    async with app.engine.connect() as connection:
        reads = await recorded(app, lambda _: connection.execute(select(Shelf.code)))
        assert reads.identifiers == tables("shelves")
        assert not reads.sessions
        assert len(reads.transactions) == 1
    async with app.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        reads = await recorded(app, lambda _: connection.execute(select(Pet.id)))
        assert (reads.identifiers, reads.unattributed) == (tables("pets"), None)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (insert(Tag).from_select(["name", "colour"], select(User.name, User.name)), tables("tags", "users")),
        (update(User).where(User.id == 1).values(name="x"), tables("users")),
        (delete(Line).where(Line.order_id.in_(select(Order.id))), tables("lines", "orders")),
        (insert(User).values(name="x").returning(User.id), tables("users")),
    ],
    ids=["insert from select", "update", "delete", "returning"],
)
async def test_write_is_a_read_of_what_may_be_undone(app: Site, write: Any, expected: set[str]) -> None:
    async def run(s: AsyncSession) -> None:
        await s.execute(write)
        await s.rollback()

    reads = await recorded(app, run)
    assert plain(reads.identifiers) == expected
    assert reads.unattributed is not None
    assert reads.unattributed.startswith("it changes data: ")


async def test_without_recording_nothing_is_analysed(app: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(watching, "starting", fail)
    monkeypatch.setattr(watching, "ran", fail)
    async with app.session() as session:
        await lazy(session)
    with pytest.raises(AssertionError):
        await recorded(app, lazy)
