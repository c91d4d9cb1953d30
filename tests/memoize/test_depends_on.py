"""depends_on: a result is returned only while nothing that it depends on has changed."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from akv import AsyncKVAlchemy, Label, identifier
from akv.errors import ConfigurationError, InvalidIdentifierError
from akv.memoize import dependencies
from akv.tokens import rules
from tests.memoize.shop import App, Order, User
from tests.memoize.waiting import Work, bounded, started, until

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")


class Counted:
    """Reads the age of a user in a session of its own, and counts how often."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.runs = 0

    async def age(self, number: int) -> int:
        self.runs += 1
        return await self.app.age(number)


def ages(app: App, **options: Any) -> tuple[Any, Counted]:
    """A memoized function of a user's number, and what counts its runs."""
    counted = Counted(app)

    @app.kv.memoize(**{"depends_on": lambda number: f"akv:users#{number}", **options})
    async def age(number: int) -> int:
        return await counted.age(number)

    return age, counted


# --- what changes a result --------------------------------------------------------------------------------------------


async def test_a_result_is_kept_while_its_row_stays_and_computed_anew_when_it_changes(app: App) -> None:
    age, counted = ages(app)
    assert [await age(1), await age(1), await age(2)] == [0, 0, 0]
    assert counted.runs == 2
    await app.birthday(1)
    assert [await age(1), await age(2)] == [1, 0]
    assert counted.runs == 3
    assert await age(1) == 1
    assert counted.runs == 3


@pytest.mark.parametrize("of", [User, User.__table__, "akv:users#*", [User, Label("x")], (User, {"akv:orders#*"})])
async def test_things_of_many_kinds_may_be_declared(app: App, of: Any) -> None:
    age, counted = ages(app, depends_on=of)
    assert [await age(1), await age(1)] == [0, 0]
    await app.birthday(2)
    assert [await age(1), await age(1)] == [0, 0]
    assert counted.runs == 2


async def test_a_label_is_touched_by_hand(app: App) -> None:
    age, counted = ages(app, depends_on=Label("home"))
    await age(1)
    await app.birthday()
    await age(1)
    assert counted.runs == 1
    await app.tokens.touch(Label("home"))
    assert await age(1) == 1


async def test_what_was_changed_in_bulk_counts_for_each_row(app: App) -> None:
    age, counted = ages(app)
    await age(1)
    await app.rename_everybody()
    await age(1)
    assert counted.runs == 2


async def test_a_rollback_changes_nothing(app: App) -> None:
    age, counted = ages(app)
    await age(1)
    async with app.session() as session:
        (await session.get_one(User, 1)).age = 99
        await session.flush()
        await session.rollback()
    await age(1)
    assert counted.runs == 1


async def test_an_instance_among_the_arguments_is_a_dependency_if_it_is_declared(app: App) -> None:
    runs = 0

    @app.kv.memoize(depends_on=lambda user: user)
    async def age(user: User) -> int:
        nonlocal runs
        runs += 1
        return user.age

    async def asked() -> int:
        await app.tokens.look(())  # or the stamp of the session may be older than our own last commit
        async with app.session() as session:
            return await age(await session.get_one(User, 1))

    assert [await asked(), await asked()] == [0, 0]
    await app.birthday()
    assert [await asked(), await asked()] == [1, 1]
    assert runs == 2


async def test_one_row_for_each_call_of_builtins_alone(app: App) -> None:
    age, _ = ages(app)
    await age(1)
    await app.birthday()
    await age(1)
    entries = [entry async for entry in app.kv.scan(tag=age.cache_tag)]
    assert len(entries) == 1
    stored = entries[0].value
    assert stored["value"] == 1
    assert {type(each) for each in (stored, *stored.values(), *stored["identifiers"], *stored["vector"])} <= {
        dict, list, str, int, type(None),
    }  # fmt: skip
    assert "akv:users#1" in stored["identifiers"]
    assert b"akv.memoize" not in pickle.dumps(stored)


async def test_dependencies_that_are_declared_otherwise_now_are_not_those_of_what_is_stored(app: App) -> None:
    age, counted = ages(app)
    await age(1)
    other, recounted = ages(app, depends_on=Order)
    assert other.cache_tag == age.cache_tag
    await other(1)
    assert (counted.runs, recounted.runs) == (1, 1)


async def test_what_was_stored_without_dependencies_is_not_taken_for_valid(app: App) -> None:
    age, _ = ages(app, depends_on=None)
    await age(1)
    await app.birthday()
    assert await age(1) == 0
    other, _ = ages(app)
    assert await other(1) == 1


# --- options ----------------------------------------------------------------------------------------------------------


async def test_options_fail_at_decoration(app: App) -> None:
    async def compute() -> None: ...

    async def things() -> None: ...

    with pytest.raises(ConfigurationError, match="plain function"):
        app.kv.memoize(depends_on=things)(compute)
    for wrong in ("users", "akv:users", 7, object()):
        with pytest.raises(InvalidIdentifierError):
            app.kv.memoize(depends_on=wrong)(compute)


async def test_tokens_that_cannot_tell_how_new_they_are_will_not_do() -> None:
    class Plain:
        async def read(self, identifiers: Any) -> Any: ...
        async def bump(self, identifiers: Any) -> None: ...
        async def aclose(self) -> None: ...

    kv = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:", tokens=Plain())
    with pytest.raises(ConfigurationError, match="DatabaseTokens or RedisTokens"):

        @kv.memoize(depends_on=User)
        async def compute() -> None: ...


# --- sessions of the caller's -----------------------------------------------------------------------------------------


async def test_who_has_changed_something_sees_it_and_shares_nothing(app: App) -> None:
    @app.kv.memoize(depends_on=User, ignore=("session",))
    async def total(session: AsyncSession) -> int:
        return sum(await session.scalars(select(User.age)))

    async with app.session() as session:
        assert await total(session) == 0
    async with app.session() as session:
        await session.execute(update(User).values(age=5))
        assert await total(session) == 10
        assert await total(session) == 10
        async with app.session() as other:
            assert await total(other) == 0
    assert total.cache_info().reasons["dirty"] >= 2
    async with app.session() as session:
        assert await total(session) == 0


async def test_a_session_that_an_argument_holds_counts_too(app: App) -> None:
    class Repository:
        def __init__(self, session: AsyncSession) -> None:
            self.session = session

        @app.kv.memoize(depends_on=User, ignore=("self",))
        async def total(self) -> int:
            return sum(await self.session.scalars(select(User.age)))

    async with app.session() as session:
        assert await Repository(session).total() == 0
    async with app.session() as session:
        user = await session.get_one(User, 1)
        user.age = 7
        assert await Repository(session).total() == 7


async def test_a_computation_that_writes_is_not_saved_and_not_shared(app: App) -> None:
    written, release = asyncio.Event(), asyncio.Event()

    @app.kv.memoize(depends_on=User, ignore=("session",))
    async def total(session: AsyncSession | None) -> int:
        if session is None:
            return await app.age(1)
        await session.execute(update(User).where(User.id == 1).values(age=User.age + 10))
        written.set()
        await release.wait()
        return (await session.scalars(select(User.age).where(User.id == 1))).one()

    async with app.session() as session:
        (writer,) = await started(total(session))
        await bounded(written.wait())
        joined = await started(*(total(None) for _ in range(5)))
        await asyncio.wait(joined, timeout=0.1)
        release.set()
        assert await bounded(writer) == 10
        assert await bounded(asyncio.gather(*joined)) == [0] * 5
        assert await bounded(total(None)) == 0
        await session.rollback()
    assert await total(None) == 0


async def test_an_open_snapshot_neither_takes_nor_leaves_what_is_newer(app: App) -> None:
    @app.kv.memoize(depends_on=User, ignore=("session",))
    async def inside(session: AsyncSession) -> int:
        return (await session.scalars(select(User.age).where(User.id == 1))).one()

    frozen = app.engine
    if app.is_on_redis:  # a transaction of SQLite is one anyway
        frozen = frozen.execution_options(isolation_level="REPEATABLE READ")
    async with AsyncSession(frozen) as session:
        assert await inside(session) == 0
        await session.execute(select(User.age))
        await app.birthday()
        assert await inside(session) == 0
        async with app.session() as other:
            assert await inside(other) == 1
        assert await inside(session) == 0
    async with app.session() as other:
        assert await inside(other) == 1


async def test_a_session_of_an_unbound_engine_is_refused(app: App) -> None:
    @app.kv.memoize(depends_on=User, ignore=("session",))
    async def total(session: AsyncSession) -> int:
        return 0

    engine = create_async_engine(app.place.url)
    async with async_sessionmaker(engine)() as session:
        with pytest.raises(ConfigurationError, match="bind it first"):
            await total(session)
    await engine.dispose()


async def test_detached_instances_share_nothing_and_say_so_once(app: App) -> None:
    async with app.session() as session:
        user = await session.get_one(User, 1)

    @app.kv.memoize(depends_on=lambda user: identifier(user))
    async def age(user: User) -> int:
        return user.age

    with pytest.warns(RuntimeWarning, match=r"detached User.*'akv:users#1'") as caught:
        assert await age(user) == 0
    assert caught[0].filename == __file__
    assert await age(user) == 0
    assert age.cache_info().reasons == {"detached": 2}
    assert await app.saved(age) == 0


# --- one computation for many callers ---------------------------------------------------------------------------------


async def test_many_callers_of_the_same_tokens_compute_once(app: App) -> None:
    work = Work(5)

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    tasks = await started(*(compute() for _ in range(50)))
    await bounded(work.running.wait())
    await asyncio.sleep(0.05)
    tasks += await started(*(compute() for _ in range(50)))
    await asyncio.sleep(0.05)
    work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == [5] * 100
    assert work.runs == 1
    assert await app.saved(compute) == 1


class Held:
    """Ages of users, read at once and returned when they are let go."""

    def __init__(self, app: App, **options: Any) -> None:
        self.app = app
        self.runs = 0
        self.go = asyncio.Event()

        @app.kv.memoize(**{"depends_on": User, **options})
        async def age() -> int:
            found = await app.age(1)
            self.runs += 1
            await self.go.wait()
            return found

        self.age = age


async def test_who_comes_after_a_commit_never_gets_what_was_computed_before_it(app: App) -> None:
    held = Held(app)
    (before,) = await started(held.age())
    await until(lambda: held.runs == 1)
    await app.birthday()
    after = await started(*(held.age() for _ in range(10)))
    await until(lambda: held.runs == 2)
    held.go.set()
    assert await bounded(asyncio.gather(*after)) == [1] * 10
    assert await bounded(before) == 0
    assert await bounded(held.age()) == 1
    assert held.runs <= 3


async def test_without_the_rule_about_joining_they_would(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation: flights are keyed by the call alone, and everybody takes what they bring."""
    monkeypatch.setattr("akv.memoize.dependent.DependentAnswers._fly", _join_anything)
    held = Held(app)
    (before,) = await started(held.age())
    await until(lambda: held.runs == 1)
    await app.birthday()
    after = await started(*(held.age() for _ in range(10)))
    await asyncio.sleep(0.1)
    held.go.set()
    assert await bounded(asyncio.gather(*after)) == [0] * 10  # stale, every one of them
    await bounded(before)


async def _join_anything(self: Any, call: Any, found: Any, forced: bool) -> Any:
    from functools import partial

    return await self._guard.flights.fly(call.place, partial(self._fill, call, found))


async def test_a_result_during_whose_computation_something_changed_is_not_saved(app: App) -> None:
    held = Held(app)
    (task,) = await started(held.age())
    await until(lambda: held.runs == 1)
    await app.birthday()
    held.go.set()
    assert await bounded(task) == 0
    assert await app.saved(held.age) == 0
    assert await held.age() == 1


async def test_without_the_second_read_a_value_is_saved_under_tokens_that_it_does_not_have(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: what is newer than its tokens is saved."""
    monkeypatch.setattr(dependencies, "confirms", lambda again, fill: fill.usable)
    entered, go = asyncio.Event(), asyncio.Event()

    @app.kv.memoize(depends_on=User)
    async def age() -> int:
        entered.set()
        await go.wait()
        return await app.age(1)

    (task,) = await started(age())
    await bounded(entered.wait())
    await app.birthday()
    go.set()
    assert await bounded(task) == 1
    assert await app.saved(age) == 1


@pytest.mark.parametrize("which", [0, 5, 9])
async def test_a_caller_that_is_cancelled_disturbs_no_other(app: App, which: int) -> None:
    work = Work("done")

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    tasks = await started(*(compute() for _ in range(10)))
    await bounded(work.running.wait())
    await asyncio.sleep(0.05)
    tasks[which].cancel()
    await asyncio.wait([tasks[which]])
    work.release.set()
    others = [task for task in tasks if task is not tasks[which]]
    assert await bounded(asyncio.gather(*others)) == ["done"] * 9
    assert (work.runs, work.cancelled) == (1, 0)
    assert tasks[which].cancelled()


async def test_the_last_caller_that_is_cancelled_ends_the_computation(app: App) -> None:
    work = Work()

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    tasks = await started(*(compute() for _ in range(3)))
    await bounded(work.running.wait())
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (work.runs, work.cancelled) == (1, 1)
    assert await app.saved(compute) == 0


async def test_an_exception_reaches_all_and_is_not_stored(app: App) -> None:
    work = Work(ValueError("no"))

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    tasks = await started(*(compute() for _ in range(5)))
    await bounded(work.running.wait())
    await asyncio.sleep(0.05)
    work.release.set()
    results = await bounded(asyncio.gather(*tasks, return_exceptions=True))
    assert [str(result) for result in results] == ["no"] * 5
    assert work.runs == 1
    assert await app.saved(compute) == 0


async def test_a_caller_may_have_a_time_limit_of_its_own(app: App) -> None:
    work = Work("late")

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    (patient,) = await started(compute())
    await bounded(work.running.wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await compute()
    work.release.set()
    assert await bounded(patient) == "late"
    assert work.runs == 1


# --- a commit that is under way ---------------------------------------------------------------------------------------


async def leave_a_mark(app: App) -> None:
    """Commit a change of user 1, and let nobody resolve its mark."""
    here = app.tokens._here()
    resolve = here.resolve
    here.resolve = lambda announcement: asyncio.create_task(asyncio.sleep(0))
    await app.birthday()
    here.resolve = resolve


@pytest.mark.backends("postgres", "mariadb")
async def test_while_a_commit_is_under_way_many_callers_compute_at_most_twice(app: App) -> None:
    work = Work("computed")

    @app.kv.memoize(depends_on=User)
    async def compute() -> Any:
        return await work()

    await leave_a_mark(app)
    tasks = await started(*(compute() for _ in range(20)))
    await bounded(work.running.wait())
    await asyncio.sleep(0.05)
    tasks += await started(*(compute() for _ in range(20)))
    await asyncio.sleep(0.05)
    work.release.set()
    assert await bounded(asyncio.gather(*tasks)) == ["computed"] * 40
    assert work.runs <= 2
    assert compute.cache_info().reasons["marked"] == 40
    assert await app.saved(compute) == 0


@pytest.mark.backends("postgres", "mariadb")
async def test_a_mark_that_goes_a_moment_later_costs_a_moment(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    age, _ = ages(app)
    await age(1)
    look, marked = app.tokens.look, 1

    async def once_marked(identifiers: Any, driver: Any = None) -> Any:
        nonlocal marked
        seen = await look(identifiers, driver)
        if not marked or not identifiers:
            return seen
        marked -= 1
        return seen._replace(records=tuple(r._replace(epoch=seen.epoch.id, marks=("m",)) for r in seen.records))

    monkeypatch.setattr(app.tokens, "look", once_marked)
    assert await age(1) == 0
    assert age.cache_info().hits == 1
    assert rules.Private.MARKED.name.lower() not in age.cache_info().reasons
