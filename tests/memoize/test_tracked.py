"""track=True: a result depends on what was read while it was computed, whatever that was."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import joinedload, selectinload

from akv import Label
from akv.memoize import dependencies, tracking
from akv.tokens.rules import may_join, may_save_tracked
from tests.memoize.shop import App, Order, User
from tests.memoize.waiting import BOUND, Work, bounded, started, until

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")

Read = Callable[[AsyncSession], Awaitable[Any]]


class Source:
    """A tracked function that reads in a session of its own, and how often it ran."""

    def __init__(self, app: App, read: Read, **options: Any) -> None:
        self.runs = 0

        @app.kv.memoize(**{"track": True, **options})
        async def value() -> Any:
            self.runs += 1
            async with app.session() as session:
                return await read(session)

        self.value = value


async def add_orders(app: App) -> None:
    async with app.session.begin() as session:
        session.add_all([Order(id=1, user_id=1, total=10), Order(id=2, user_id=1, total=20)])


async def get(session: AsyncSession) -> Any:
    return (await session.get_one(User, 1)).age


async def columns(session: AsyncSession) -> Any:
    return (await session.execute(select(User.age).where(User.id == 1))).scalar_one()


async def summed(session: AsyncSession) -> Any:
    return await session.scalar(select(func.sum(User.age)))


async def joined(session: AsyncSession) -> Any:
    return await session.scalar(select(func.max(User.age)).join(Order, Order.user_id == User.id, isouter=True))


async def eager(session: AsyncSession) -> Any:
    user = (await session.scalars(select(User).order_by(User.id).options(selectinload(User.orders)))).first()
    assert user is not None
    return user.age, [order.total for order in user.orders]


async def eager_joined(session: AsyncSession) -> Any:
    user = (await session.scalars(select(User).where(User.id == 1).options(joinedload(User.orders)))).unique().one()
    return user.age


async def cte(session: AsyncSession) -> Any:
    young = select(User.id, User.age).where(User.age < 1000).cte("young")
    return await session.scalar(select(func.sum(young.c.age)))


async def raw(session: AsyncSession) -> Any:
    return await session.scalar(text("SELECT age FROM users WHERE id = 1"))


READS = [get, columns, summed, joined, eager, eager_joined, cte, raw]


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
async def test_what_was_read_is_what_a_result_depends_on(app: App, read: Read) -> None:
    source = Source(app, read)
    before = await source.value()
    assert await source.value() == before
    assert source.runs == 1
    await app.birthday()
    after = await source.value()
    assert after != before
    async with app.session() as session:
        assert after == await read(session)
    assert await source.value() == after
    assert source.runs == 2


async def test_other_rows_and_tables_do_not_matter(app: App) -> None:
    source = Source(app, get)
    await source.value()
    await app.birthday(2)
    async with app.session.begin() as session:
        session.add(Order(id=1, user_id=2))  # a change of user 2 as well, and of no other
    await source.value()
    assert source.runs == 1


async def test_a_collection_depends_on_what_may_come_into_it(app: App) -> None:
    source = Source(app, eager)
    assert await source.value() == (0, [])
    await add_orders(app)
    assert await source.value() == (0, [10, 20])


async def test_a_label_may_be_declared_beside(app: App) -> None:
    source = Source(app, get, depends_on=Label("weather"))
    await source.value()
    await app.tokens.touch(Label("weather"))
    await source.value()
    await app.birthday()
    assert await source.value() == 1
    assert source.runs == 3


async def test_an_instance_that_is_given_is_a_dependency(app: App) -> None:
    runs = 0

    @app.kv.memoize(track=True)
    async def greeting(user: User) -> str:
        nonlocal runs
        runs += 1
        return f"{user.name} {user.age}"

    async def asked() -> str:
        await app.tokens.look(())  # or the stamp of the session may be older than our own last commit
        async with app.session() as session:
            return await greeting(await session.get_one(User, 1))

    assert [await asked(), await asked()] == ["user 1 0"] * 2
    await app.birthday()
    assert [await asked(), await asked()] == ["user 1 1"] * 2
    assert runs == 2


async def test_what_was_stored_under_declared_dependencies_is_not_what_tracking_would_have_found(app: App) -> None:
    source = Source(app, get, track=False, depends_on=Label("x"))
    await source.value()
    await app.birthday()
    assert await source.value() == 0
    tracked = Source(app, get)
    assert tracked.value.cache_tag == source.value.cache_tag
    assert await tracked.value() == 1


# --- nested calls -----------------------------------------------------------------------------------------------------


async def test_a_nested_call_hands_its_dependencies_to_the_outer_one_on_a_hit_too(app: App) -> None:
    inner = Source(app, get)
    outer_runs = 0

    @app.kv.memoize(track=True)
    async def outer(name: str) -> Any:
        nonlocal outer_runs
        outer_runs += 1
        return name, await inner.value()

    assert await outer("computes it") == ("computes it", 0)
    assert await outer("finds it") == ("finds it", 0)
    assert (inner.runs, outer_runs) == (1, 2)
    await app.birthday()
    assert await outer("finds it") == ("finds it", 1)
    assert await outer("computes it") == ("computes it", 1)


@pytest.mark.parametrize("near", [None, 10])
async def test_so_does_one_with_declared_dependencies(app: App, near: int | None) -> None:
    @app.kv.memoize(depends_on=Label("inner"), near=near)
    async def inner() -> int:
        return next(numbers)

    numbers = iter(range(10))

    @app.kv.memoize(track=True)
    async def outer(_: int) -> int:
        return await inner()

    assert [await outer(1), await outer(2), await outer(2)] == [0, 0, 0]
    await app.tokens.touch(Label("inner"))
    assert [await outer(1), await outer(2)] == [1, 1]
    await inner.cache_invalidate()
    assert [await outer(1), await outer(2)] == [2, 2]


@pytest.mark.parametrize("near", [None, 10])
async def test_a_result_lives_no_longer_than_one_that_it_was_made_of(app: App, near: int | None) -> None:
    numbers = iter(range(10))

    @app.kv.memoize(expire=60, near=near)
    async def inner() -> int:
        return next(numbers)

    @app.kv.memoize(track=True)
    async def outer(_: int) -> int:
        return await inner()

    await inner()
    app.clock.advance(30)
    assert [await outer(1), await outer(1)] == [0, 0]
    app.clock.advance(29)
    assert await outer(1) == 0
    app.clock.advance(2)
    assert await outer(1) == 1
    await inner.cache_clear()
    assert await outer(1) == 2


async def test_who_joins_the_computation_of_a_nested_call_gets_its_dependencies(app: App) -> None:
    held = Held(app)

    @app.kv.memoize(track=True)
    async def outer(_: int) -> Any:
        return await held.value()

    tasks = await started(outer(1), outer(2))
    await until(lambda: held.runs == 1)
    await asyncio.sleep(0.05)
    held.go.set()
    assert await bounded(asyncio.gather(*tasks)) == [0, 0]
    await app.birthday()
    assert [await outer(1), await outer(2)] == [1, 1]


class Missing(Exception): ...


async def test_so_does_who_catches_the_exception_that_it_ends_with(app: App) -> None:
    @app.kv.memoize(track=True)
    async def inner() -> Any:
        async with app.session() as session:
            user = await session.get(User, 9)
        if user is None:
            raise Missing
        return user.age

    @app.kv.memoize(track=True)
    async def outer(_: int) -> Any:
        await app.age()
        try:
            return await inner()
        except Missing:
            return "nobody"

    assert await bounded(asyncio.gather(*map(outer, range(4)))) == ["nobody"] * 4
    async with app.session.begin() as session:
        session.add(User(id=9, age=9))
    assert await bounded(asyncio.gather(*map(outer, range(4)))) == [9] * 4


async def test_who_catches_an_exception_depends_on_what_was_declared_for_the_call(app: App) -> None:
    is_there = False

    @app.kv.memoize(depends_on=Label("home"))
    async def inner() -> str:
        if not is_there:
            raise Missing
        return "somebody"

    @app.kv.memoize(track=True)
    async def outer() -> Any:
        await app.age()
        try:
            return await inner()
        except Missing:
            return "nobody"

    assert await outer() == "nobody"
    is_there = True
    await app.tokens.touch(Label("home"))
    assert await outer() == "somebody"


# --- one computation for many callers ---------------------------------------------------------------------------------


class Held:
    """The age of user 1, read at once and returned when it is let go."""

    def __init__(self, app: App, **options: Any) -> None:
        self.runs = self.ended = 0
        self.go = asyncio.Event()

        @app.kv.memoize(track=True, **options)
        async def value() -> int:
            found = await app.age()
            self.runs += 1
            await self.go.wait()
            self.ended += 1
            return found

        self.value = value


async def test_many_callers_compute_once(app: App) -> None:
    held = Held(app)
    tasks = await started(*(held.value() for _ in range(50)))
    await until(lambda: held.runs == 1)
    await asyncio.sleep(0.05)
    tasks += await started(*(held.value() for _ in range(50)))
    await asyncio.sleep(0.1)
    held.go.set()
    assert await bounded(asyncio.gather(*tasks)) == [0] * 100
    assert held.runs == 1
    assert await app.saved(held.value) == 1


async def test_who_comes_after_a_commit_waits_for_the_next_computation_together_with_all_others(app: App) -> None:
    held = Held(app)
    (before,) = await started(held.value())
    await until(lambda: held.runs == 1)
    await app.birthday()
    after = await started(*(held.value() for _ in range(20)))
    await asyncio.sleep(0.1)
    assert held.runs == 1  # one runs, one waits
    held.go.set()
    assert await bounded(before) == 0
    assert await bounded(asyncio.gather(*after)) == [1] * 20
    assert held.runs == 2
    assert await held.value() == 1


async def test_without_the_rule_about_joining_they_would_get_what_is_stale(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "may_join", lambda arrival, fill, sessions: True)
    held = Held(app)
    (before,) = await started(held.value())
    await until(lambda: held.runs == 1)
    await app.birthday()
    after = await started(*(held.value() for _ in range(20)))
    await asyncio.sleep(0.1)
    held.go.set()
    assert await bounded(asyncio.gather(before, *after)) == [0] * 21
    assert may_join is not dependencies.may_join


async def test_a_change_during_the_computation_keeps_its_result_from_being_saved(app: App) -> None:
    held = Held(app)
    (task,) = await started(held.value())
    await until(lambda: held.runs == 1)
    await app.birthday()
    held.go.set()
    assert await bounded(task) == 0
    assert await app.saved(held.value) == 0
    assert await held.value() == 1


async def test_without_s0_it_would_be_saved(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "may_save_tracked", lambda s0, again, sessions: True)
    held = Held(app)
    (task,) = await started(held.value())
    await until(lambda: held.runs == 1)
    await app.birthday()
    held.go.set()
    await bounded(task)
    assert await held.value() == 0  # stale
    assert may_save_tracked is not tracking.may_save_tracked


@pytest.mark.parametrize("which", [0, 5, 9])
async def test_a_caller_that_is_cancelled_disturbs_no_other(app: App, which: int) -> None:
    held = Held(app)
    tasks = await started(*(held.value() for _ in range(10)))
    await until(lambda: held.runs == 1)
    await asyncio.sleep(0.05)
    tasks[which].cancel()
    await asyncio.wait([tasks[which]])
    held.go.set()
    assert await bounded(asyncio.gather(*(task for task in tasks if task is not tasks[which]))) == [0] * 9
    assert held.runs == 1


async def test_the_last_caller_that_is_cancelled_ends_the_computation(app: App) -> None:
    held = Held(app)
    tasks = await started(*(held.value() for _ in range(3)))
    await until(lambda: held.runs == 1)
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (held.runs, held.ended) == (1, 0)


async def test_an_exception_of_a_computation_from_before_is_not_for_who_comes_after(app: App) -> None:
    go, runs = asyncio.Event(), 0

    @app.kv.memoize(track=True)
    async def value() -> int:
        nonlocal runs
        runs += 1
        age = await app.age()
        await go.wait()
        if age == 0:
            raise ValueError("too young")
        return age

    before = await started(value(), value())
    await until(lambda: runs == 1)
    await app.birthday()
    (after,) = await started(value())
    await asyncio.sleep(0.05)
    go.set()
    assert await bounded(after) == 1
    assert [str(e) for e in await asyncio.gather(*before, return_exceptions=True)] == ["too young"] * 2


@pytest.mark.parametrize("how", ["cache_invalidate", "cache_clear"])
async def test_an_invalidation_beats_a_computation_that_runs(app: App, how: str) -> None:
    held = Held(app)
    (task,) = await started(held.value())
    await until(lambda: held.runs == 1)
    await getattr(held.value, how)()
    held.go.set()
    assert await bounded(task) == 0
    assert await app.saved(held.value) == 0


# --- sessions from outside --------------------------------------------------------------------------------------------


def given(app: App, read: Read) -> tuple[Any, list[int]]:
    """A tracked function that is given a session."""
    runs: list[int] = []

    @app.kv.memoize(track=True, ignore=("session",))
    async def value(session: AsyncSession) -> Any:
        runs.append(1)
        return await read(session)

    return value, runs


async def test_with_a_clean_session_a_result_is_saved_and_shared(app: App) -> None:
    value, runs = given(app, columns)
    for _ in range(3):
        async with app.session() as session:
            assert await value(session) == 0
    assert len(runs) == 1
    await app.birthday()
    await app.tokens.look(())
    async with app.session() as session:
        assert await value(session) == 1


async def test_with_a_dirty_one_it_is_not(app: App) -> None:
    value, runs = given(app, columns)
    async with app.session() as session:
        await session.execute(update(User).values(age=9))
        assert await value(session) == 9
        assert await app.saved(value) == 0
    async with app.session() as session:
        assert await value(session) == 0
    assert len(runs) == 2


async def test_with_an_old_snapshot_or_old_instances_it_is_not(app: App) -> None:
    keeping = async_sessionmaker(app.engine, expire_on_commit=False)
    value, _ = given(app, get)
    async with keeping() as session:
        user = await session.get_one(User, 1)
        await session.commit()
        await app.birthday()
        assert await value(session) == user.age == 0  # out of the identity map
        assert await app.saved(value) == 0
        async with app.session() as fresh:
            assert await value(fresh) == 1


async def test_callers_with_sessions_of_their_own_share_a_computation(app: App) -> None:
    go, runs = asyncio.Event(), 0

    @app.kv.memoize(track=True, ignore=("session",))
    async def value(session: AsyncSession) -> Any:
        nonlocal runs
        runs += 1
        found = await columns(session)
        await go.wait()
        return found

    async def handler() -> Any:
        async with app.session() as session:
            return await value(session)

    tasks = await started(*(handler() for _ in range(10)))
    await until(lambda: runs == 1)
    await asyncio.sleep(0.1)
    go.set()
    assert await bounded(asyncio.gather(*tasks)) == [0] * 10
    assert runs == 1


class Repository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session


@pytest.mark.parametrize(
    "given",
    [lambda session: session, Repository, lambda session: [session], lambda session: {"on": [session]}],
    ids=["session", "attribute", "list", "mapping"],
)
async def test_a_caller_that_is_cancelled_gets_its_session_back_unused(app: App, given: Callable[..., Any]) -> None:
    go, users = asyncio.Event(), []

    @app.kv.memoize(track=True, ignore=("given",))
    async def value(given: Any) -> Any:
        given = given["on"] if isinstance(given, dict) else given
        session = given[0] if isinstance(given, list) else getattr(given, "session", given)
        users.append(session)
        try:
            await go.wait()
            return await columns(session)
        finally:
            users.remove(session)

    async def handler() -> Any:
        async with app.session() as session:
            try:
                return await value(given(session))
            finally:
                assert session not in users

    (leader,) = await started(handler())
    await until(lambda: len(users) == 1)
    (waiter,) = await started(handler())
    await asyncio.sleep(0.05)
    leader.cancel()
    await bounded(asyncio.wait([leader]))
    assert leader.cancelled()
    go.set()
    assert await bounded(waiter) == 0
    assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def flush_what_is_there(session: AsyncSession) -> None:
    session.add(User(id=1))
    await session.flush()


async def ask_for_what_is_not_there(session: AsyncSession) -> None:
    await session.execute(text("SELECT nothing FROM nowhere"))


@pytest.mark.parametrize("spoil", [flush_what_is_there, ask_for_what_is_not_there])
@pytest.mark.parametrize("options", [{}, {"depends_on": User}, {"track": True}], ids=["plain", "declared", "tracked"])
async def test_a_session_that_must_be_rolled_back_fails_its_owner_alone(
    app: App, options: dict[str, Any], spoil: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    @app.kv.memoize(ignore=("session",), **options)
    async def value(session: AsyncSession) -> Any:
        return await columns(session)

    async with app.session() as his, app.session() as mine:
        await mine.connection()
        with pytest.raises(SQLAlchemyError):
            await spoil(his)
        leader, waiter = await started(value(his), value(mine))
        await asyncio.wait([leader, waiter], timeout=BOUND)
        assert waiter.result() == 0
        # Only PostgreSQL gives a transaction up for a statement that it does not understand.
        is_spoilt = spoil is flush_what_is_there or app.engine.dialect.name == "postgresql"
        assert isinstance(leader.exception(), SQLAlchemyError) if is_spoilt else leader.result() == 0
        assert value.cache_info().misses == 2
        await his.rollback()


# --- what cannot be attributed ----------------------------------------------------------------------------------------


async def test_a_read_that_cannot_be_attributed_keeps_a_result_from_being_saved_and_says_why_once(app: App) -> None:
    from akv.tokens import reads

    async def odd(session: AsyncSession) -> Any:
        current = reads.current()
        assert current is not None
        current.refuse("it reads tea leaves")
        return await get(session)

    source = Source(app, odd)
    with pytest.warns(RuntimeWarning, match=r"value\(\) are not saved, for it reads tea leaves"):
        assert await source.value() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await source.value() == 0
    assert source.runs == 2
    assert await app.saved(source.value) == 0


async def test_many_callers_of_what_cannot_be_attributed_compute_at_most_twice(app: App) -> None:
    from akv.tokens import reads

    work = Work("computed")

    @app.kv.memoize(track=True)
    async def value() -> Any:
        current = reads.current()
        assert current is not None
        current.refuse("it reads tea leaves")
        return await work()

    async def stampede() -> list[Any]:
        tasks = await started(*(value() for _ in range(20)))
        await bounded(work.running.wait())
        tasks += await started(*(value() for _ in range(20)))
        await asyncio.sleep(0.1)
        work.release.set()
        return await bounded(asyncio.gather(*tasks))

    with pytest.warns(RuntimeWarning, match="tea leaves"):
        assert await stampede() == ["computed"] * 40
    assert work.runs <= 2


async def test_a_function_that_reads_nothing_is_not_kept_for_ever(app: App) -> None:
    """It may read through an engine that nobody has bound."""
    engine = create_async_engine(app.place.url)
    eyes = async_sessionmaker(engine)

    @app.kv.memoize(track=True)
    async def value() -> int:
        async with eyes() as session:
            return (await session.get_one(User, 1)).age

    with pytest.warns(RuntimeWarning, match=r"not saved, for it reads nothing .* bind the engine"):
        assert await value() == 0
    await app.birthday()
    assert await value() == 1
    await engine.dispose()


async def test_unless_something_is_declared(app: App) -> None:
    async def nothing(session: AsyncSession) -> Any:
        return "constant"

    source = Source(app, nothing, depends_on=Label("x"))
    assert [await source.value(), await source.value()] == ["constant"] * 2
    assert source.runs == 1


# --- near, age, leases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"near": 10}, {"stale_for": 1000}, {"on_error": "stale"}, {"early": True}, {"lock": True}],
    ids=lambda options: "-".join(options),
)
async def test_no_option_returns_a_result_whose_dependencies_changed(app: App, options: dict[str, Any]) -> None:
    source = Source(app, get, expire=60, **options)
    assert [await source.value(), await source.value()] == [0, 0]
    assert source.runs == 1
    await app.birthday()
    assert await source.value() == 1
    app.clock.advance(61)
    await app.birthday()
    assert await source.value() == 2
    await until(lambda: not app.kv._guard.behind)
