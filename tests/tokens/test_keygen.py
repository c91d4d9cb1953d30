"""Keys: what changes them, what makes them private, and what never happens while making one."""

from __future__ import annotations

import pickle
import uuid
import warnings
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, selectinload

from akv.errors import ConfigurationError, InvalidIdentifierError, UncacheableArgumentError
from akv.tokens.identifiers import Label
from akv.tokens.keygen import CacheKey, CacheKeyGenerator
from akv.tokens.rules import Private
from akv.tokens.things import identifier
from tests.tokens.world import Base, Document, Engineer, Order, Person, Price, Tag, User, World


async def all_keys(app: World) -> dict[str, CacheKey]:
    """Return a key for everything, made in a session of its own."""
    async with app.session() as s:
        things: dict[str, Any] = {f"user {user.id}": user for user in await s.scalars(select(User))}
        things |= {f"order {order.id}": order for order in await s.scalars(select(Order))}
        things |= {
            "User": User,
            "Order": Order,
            "users table": User.__table__,
            "all": "akv:*#*",
            "label": Label("home"),
        }
        things |= {"typed user 1": "akv:users#1", "values": (1, "foo", {"bar": "baz"})}
        found = {name: await app.keys(thing) for name, thing in things.items()}
    assert all(key.shared for key in found.values())
    return found


async def changed_by(app: World, write: Any) -> set[str]:
    before = await all_keys(app)
    await write()
    after = await all_keys(app)
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
async def shop(app: World) -> World:
    await app.add(User(id=1, name="a"), User(id=2, name="b"), Order(id=1, user_id=1), Order(id=2, user_id=2))
    return app


async def test_nothing_written_changes_no_key(shop: World) -> None:
    async def nothing() -> None:
        async with shop.session.begin() as s:
            await s.get(User, 1)

    assert await changed_by(shop, nothing) == set()


async def test_commit_changes_exactly_the_keys_that_contain_the_row(shop: World) -> None:
    async def rename() -> None:
        async with shop.session.begin() as s:
            (await s.get_one(User, 1)).name = "x"

    assert await changed_by(shop, rename) == {"user 1", "typed user 1", "User", "users table", "all"}


async def test_changed_child_changes_the_key_of_its_parent_but_of_no_other(shop: World) -> None:
    async def pay() -> None:
        async with shop.session.begin() as s:
            (await s.get_one(Order, 1)).total = 5

    assert await changed_by(shop, pay) == {"order 1", "Order", "user 1", "typed user 1", "all"}


async def test_rollback_changes_no_key(shop: World) -> None:
    async def abandon() -> None:
        async with shop.session() as s:
            (await s.get_one(User, 1)).name = "x"
            await s.flush()
            await s.execute(text("DELETE FROM orders"))
            await s.rollback()

    assert await changed_by(shop, abandon) == set()


async def test_rolled_back_savepoint_changes_no_key_and_a_released_one_waits_for_the_commit(shop: World) -> None:
    before = await all_keys(shop)
    async with shop.session.begin() as s:
        savepoint = await s.begin_nested()
        (await s.get_one(User, 1)).name = "x"
        await savepoint.rollback()
        async with s.begin_nested():
            (await s.get_one(Order, 2)).total = 5
        assert not (await shop.keys(User)).shared
    after = await all_keys(shop)
    assert {name for name in before if before[name] != after[name]} == {"order 2", "Order", "user 2", "all"}


async def test_text_that_writes_changes_every_key_of_its_table(shop: World) -> None:
    async def obscure() -> None:
        async with shop.session.begin() as s:
            await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))

    of_users = {"user 1", "user 2", "typed user 1", "User", "users table", "all"}
    assert await changed_by(shop, obscure) == of_users


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("akv:users#1", {"user 1", "typed user 1", "User", "users table", "all"}),
        ("akv:users#*", {"user 1", "user 2", "typed user 1", "User", "users table", "all"}),
        (User, {"user 1", "user 2", "typed user 1", "User", "users table", "all"}),
        (Label("home"), {"label"}),
        (
            "akv:*#*",
            {"user 1", "user 2", "order 1", "order 2", "User", "Order", "users table", "typed user 1", "label", "all"},
        ),
    ],
    ids=["row", "table", "class", "label", "everything"],
)
async def test_touch_changes_what_contains_the_thing(shop: World, thing: Any, expected: set[str]) -> None:
    assert await changed_by(shop, lambda: shop.tokens.touch(thing)) == expected


async def test_touch_in_a_transaction_changes_keys_iff_it_commits(shop: World) -> None:
    binding = shop.bind()

    async def touch(end: str) -> None:
        async with shop.session() as s:
            await binding.touch(s, User)
            await (s.commit() if end == "commit" else s.rollback())

    assert await changed_by(shop, lambda: touch("rollback")) == set()
    assert "user 1" in await changed_by(shop, lambda: touch("commit"))
    async with shop.engine.begin() as connection:
        await binding.touch(connection, Label("home"))
    await binding.unbind()


async def test_same_things_make_the_same_key_and_other_values_another(shop: World) -> None:
    made = [
        await shop.keys(*things)
        for things in [
            (1,),
            ("1",),
            (True,),
            (1.0,),
            (1, 2),
            ((1, 2),),
            ("foo", {"bar": "baz"}),
            ("akv:users#1",),
            (User,),
        ]
    ]
    again = await shop.keys("foo", {"bar": "baz"})
    assert len(set(made)) == len(made)
    assert again in made
    assert all(len(key) <= 256 and key.isascii() for key in made)


async def test_instances_inside_containers_count_as_themselves(shop: World) -> None:
    async with shop.session() as s:
        user = await s.get_one(User, 1)
        before = await shop.keys({"who": [user]}, "page")
    async with shop.session.begin() as s:
        (await s.get_one(User, 1)).name = "x"
    async with shop.session() as s:
        after = await shop.keys({"who": [await s.get_one(User, 1)]}, "page")
    assert before.shared
    assert after.shared
    assert before != after


async def test_expired_instance_is_its_row_and_is_not_loaded(shop: World) -> None:
    statements: list[str] = []
    async with shop.session() as s:
        user = await s.get_one(User, 1)
        fresh = await shop.keys(user)
        s.expire(user)
        event.listen(shop.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        expired = await shop.keys(user)
        assert user in s
    assert fresh == expired
    assert statements == []


async def test_instance_with_a_changed_key_is_private_until_it_is_flushed_away(shop: World) -> None:
    async with shop.session() as s:
        user = await s.get_one(User, 1)
        user.id = 77
        assert not (await shop.keys(user)).shared
        assert identifier(user) == "akv:users#1"


@pytest.mark.parametrize("flushed", [False, True])
async def test_session_with_uncommitted_changes_gets_private_keys_only(shop: World, flushed: bool) -> None:
    async with shop.session() as s:
        (await s.get_one(User, 1)).name = "x"
        if flushed:
            await s.flush()
        for things in [(User,), (Order,), ("akv:orders#1",), (1,)]:
            assert not (await shop.keys(*things, session=s)).shared
        await s.rollback()
        assert (await shop.keys(User, session=s)).shared
    assert shop.keys.private == {Private.DIRTY: 4}


async def test_uncommitted_changes_are_known_without_naming_the_session(shop: World) -> None:
    async with shop.session.begin() as s:
        s.add(User(name="new"))
        await s.flush()
        assert not (await shop.keys(User)).shared
    async with shop.engine.begin() as connection:
        await connection.execute(update(User.__table__).values(name="x"))  # type: ignore[arg-type]
        assert not (await shop.keys(User)).shared
        assert not (await shop.keys(User, session=connection)).shared
    assert (await shop.keys(User)).shared


async def test_pending_instance_is_its_table_and_private(shop: World) -> None:
    async with shop.session() as s:
        s.add(user := User(name="new"))
        key = await shop.keys(user)
        assert not key.shared
        assert shop.keys.private == {Private.PENDING: 1}
        assert identifier(user) == "akv:users#*"


async def test_transient_instance_and_class_are_the_table(shop: World) -> None:
    assert await shop.keys(User(name="transient")) == await shop.keys(User)


@pytest.mark.parametrize("flushed", [False, True])
async def test_deleted_instance_is_private_until_commit(shop: World, flushed: bool) -> None:
    async with shop.session() as s:
        order = await s.get_one(Order, 1)
        await s.delete(order)
        if flushed:
            await s.flush()
        assert not (await shop.keys(order)).shared
    assert shop.keys.private == {Private.DELETED: 1}


async def test_detached_instance_is_private_with_one_warning_that_names_its_identifier(shop: World) -> None:
    async with shop.session() as s:
        first, second = await s.get_one(User, 1), await s.get_one(User, 2)
    with pytest.warns(RuntimeWarning, match=r"detached User .* 'akv:users#1'"):
        assert not (await shop.keys(first)).shared
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not (await shop.keys(second)).shared
    assert shop.keys.private == {Private.DETACHED: 2}
    assert (await shop.keys(identifier(first))).shared


async def test_private_keys_never_meet(shop: World) -> None:
    async with shop.session() as s:
        s.add(User(name="new"))
        keys = {await shop.keys(User, session=s) for _ in range(5)}
    assert len(keys) == 5


async def test_instance_of_an_unbound_session_is_refused_with_the_remedy(shop: World) -> None:
    other = create_async_engine(shop.url)
    async with AsyncSession(other) as s:
        user = await s.get_one(User, 1)
        with pytest.raises(ConfigurationError, match=r"bind\(engine, tokens\)"):
            await shop.keys(user)
        with pytest.raises(ConfigurationError, match="bind it first"):
            await shop.keys(1, session=s)
    async with AsyncSession() as s:
        s.add(user := User())
        with pytest.raises(ConfigurationError, match=r"bind\(engine, tokens\)"):
            await shop.keys(user)
    await other.dispose()


async def test_scoped_session_and_engine_with_options_are_bound_with_their_engine(shop: World) -> None:
    scoped = async_scoped_session(shop.session, scopefunc=lambda: 1)
    assert (await shop.keys(await scoped.get_one(User, 1), session=scoped)).shared
    await scoped.remove()
    options = async_sessionmaker(shop.engine.execution_options(compiled_cache=None))
    async with options() as s:
        assert (await shop.keys(await s.get_one(User, 1))).shared


async def test_new_subclass_column_changes_keys_of_the_instance_its_class_and_the_base(app: World) -> None:
    await app.add(Engineer(id=1, name="e", skill="s"), Person(id=2, name="p"))

    async def keys() -> dict[str, CacheKey]:
        async with app.session() as s:
            engineer, person = await s.get_one(Engineer, 1), await s.get_one(Person, 2)
            things = {
                "engineer": engineer,
                "person": person,
                "Engineer": Engineer,
                "Person": Person,
                "typed": "akv:people#1",
            }
            return {name: await app.keys(thing) for name, thing in things.items()}

    before = await keys()
    async with app.session.begin() as s:
        (await s.get_one(Engineer, 1)).skill = "x"
    after = await keys()
    assert {name for name in before if before[name] != after[name]} == {"engineer", "Engineer", "Person", "typed"}


async def test_inheritance_that_no_foreign_key_declares_is_followed_by_its_mapper(app: World) -> None:
    class Apart(DeclarativeBase):
        pass

    class Animal(Apart):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dogs"
        dog_id: Mapped[int] = mapped_column("id", primary_key=True)
        tricks: Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "dog", "inherit_condition": dog_id == foreign(Animal.id)}

    async with app.engine.begin() as connection:
        await connection.run_sync(Apart.metadata.create_all)
    await app.add(Dog(id=1, tricks="none"))

    async def keys() -> list[CacheKey]:
        async with app.session() as s:
            return [await app.keys(thing) for thing in (await s.get_one(Animal, 1), Animal, Dog, User)]

    before = await keys()
    async with app.session.begin() as s:
        (await s.get_one(Dog, 1)).tricks = "many"
    assert [old != new for old, new in zip(before, await keys(), strict=True)] == [True, True, True, False]


async def test_instance_whose_key_has_several_spellings_depends_on_its_table(app: World) -> None:
    await app.add(Price(amount=Decimal("1.5")), Price(amount=Decimal("2.5")), Document(id=uuid.UUID(int=1)))
    async with app.session() as s:
        before = await app.keys(await s.get_one(Price, Decimal("1.50")))
    async with app.session.begin() as s:
        (await s.get_one(Price, Decimal("2.5"))).note = "x"
    async with app.session() as s:
        assert await app.keys(await s.get_one(Price, Decimal("1.50"))) != before


async def test_wrongly_typed_identity_that_a_session_holds_is_not_taken_for_the_row(app: World) -> None:
    async with app.session() as s:
        s.add(user := User(id="5"))  # type: ignore[arg-type]
        await s.commit()
        key = await app.keys(user)
        async with app.session.begin() as other:
            (await other.get_one(User, 5)).name = "x"
        assert await app.keys(user) != key


async def test_many_to_many_changes_both_ends(app: World) -> None:
    await app.add(User(id=1), User(id=2), Tag(name="red"), Tag(name="blue"))

    async def keys() -> list[CacheKey]:
        return [await app.keys(name) for name in ("akv:users#1", "akv:users#2", "akv:tags#red", "akv:tags#blue")]

    before = await keys()
    async with app.session.begin() as s:
        user = await s.get_one(User, 1, options=[selectinload(User.tags)])
        user.tags.append(await s.get_one(Tag, "red"))
    after = await keys()
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, False, True, False]


async def test_token_changes_with_its_thing_and_values_have_none(shop: World) -> None:
    before = await shop.keys.token("akv:users#1"), await shop.keys.token(Label("x"))
    await shop.tokens.touch("akv:users#1")
    assert await shop.keys.token("akv:users#1") != before[0]
    assert await shop.keys.token(Label("x")) == before[1]
    with pytest.raises(InvalidIdentifierError, match="name a mapped instance"):
        await shop.keys.token(5)


async def test_bad_things_raise_before_anything_is_read(shop: World) -> None:
    for bad in ("akv:users", "akv:users#~", "akv:*#~", "akv:users#01"):
        with pytest.raises(InvalidIdentifierError):
            await shop.keys(bad)
        with pytest.raises(InvalidIdentifierError):
            await shop.tokens.touch(bad)
    with pytest.raises(UncacheableArgumentError):
        await shop.keys(object())
    with pytest.raises(ConfigurationError):
        await shop.keys(1, session="no session")  # type: ignore[arg-type]


def test_key_survives_pickling_with_its_flag() -> None:
    key = CacheKey("akv-x", shared=False)
    copy = pickle.loads(pickle.dumps(key))
    assert (copy, copy.shared, type(copy)) == (key, False, CacheKey)


async def test_two_databases_never_share_a_key(shop: World, tmp_path: Any) -> None:
    other = World(tmp_path / "other.db")
    await other.create()
    other.bind()
    assert await other.keys(User) != await shop.keys(User)
    assert await other.keys(1) != await shop.keys(1)
    await other.close()
    assert Base.metadata.tables
    assert CacheKeyGenerator(shop.tokens).private == {}
