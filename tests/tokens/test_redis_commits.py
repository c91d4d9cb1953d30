"""Commits of real databases announced to a real Redis: keys change with them, and with nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from copy import copy
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv.errors import CommitRefusedError, ConfigurationError
from akv.tokens import rules
from akv.tokens.binding import bind
from akv.tokens.keygen import CacheKeyGenerator
from akv.tokens.redis import RedisTokens
from akv.tokens.rules import Private
from tests.backends import Backend
from tests.proxy import TCPProxy
from tests.servers import Session, connect, look
from tests.tokens.redis_world import PATIENT, Clock, forget, until

pytestmark = pytest.mark.backends(exclude="sqlite-memory")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    age: Mapped[int] = mapped_column(default=0)


ONE, TWO = "akv:users#1", "akv:users#2"


class App:
    """One process of an application."""

    def __init__(self, url: str, tokens: RedisTokens) -> None:
        self.url = url
        self.engine: AsyncEngine = create_async_engine(url)
        self.session = async_sessionmaker(self.engine)
        self.tokens = tokens
        self.binding = bind(self.engine, tokens)
        self.keys = CacheKeyGenerator(tokens)

    async def birthday(self, number: int = 1) -> None:
        async with self.session.begin() as session:
            (await session.get_one(User, number)).age += 1

    async def active(self) -> None:
        await until(self._is_active, "the epoch is active")

    async def _is_active(self) -> bool:
        return rules.active_epoch(await self.tokens.look(())) is not None

    def ages(self) -> list[int]:
        return [age for (age,) in look(self.url, "SELECT age FROM users ORDER BY id")]


class Place:
    """A database of its own and a namespace of its own."""

    def __init__(self, backend: Backend, redis: str) -> None:
        self.url = backend.fresh_url()
        self.redis = redis
        self.namespace = f"akv_test_{uuid4().hex[:12]}"

    def create(self) -> None:
        with connect(self.url) as connection:
            Base.metadata.create_all(connection)
            connection.execute(text("INSERT INTO users (id, age) VALUES (1, 0), (2, 0)"))

    def neighbour(self) -> Place:
        """Another namespace in the same database."""
        other = copy(self)
        other.namespace = f"{self.namespace}_b"
        return other

    @asynccontextmanager
    async def app(self, *, redis: str | None = None, **options: Any) -> AsyncIterator[App]:
        tokens = RedisTokens.from_url(redis or self.redis, namespace=self.namespace, **{**PATIENT, **options})
        app = App(self.url, tokens)
        try:
            yield app
        finally:
            await app.binding.unbind()
            await tokens.aclose()
            await app.engine.dispose()


@pytest.fixture
def place(backend: Backend, servers: Session) -> Iterator[Place]:
    place = Place(backend, servers.redis())
    place.create()
    yield place
    for each in (place, place.neighbour()):
        forget(place.redis, each.namespace)


async def test_keys_change_with_the_commit_that_changes_their_row(place: Place) -> None:
    async with place.app() as app, place.app() as other:
        await app.active()
        one, two = await app.keys(ONE), await app.keys(TWO)
        assert one.shared
        async with app.session.begin() as session:
            (await session.get_one(User, 1)).age = 1
            await session.flush()
            assert await other.keys(ONE) == one
        assert await other.keys(ONE) != one
        assert await other.keys(TWO) == two
        assert await other.keys(ONE) == await app.keys(ONE)


async def test_keys_have_changed_when_commit_returns(place: Place) -> None:
    async with place.app() as app, place.app() as other:
        await app.active()
        for _ in range(10):
            await app.birthday()
            seen = await other.tokens.look([ONE, "akv:users#*", "akv:*#*"])
            assert rules.usable(seen)
            assert {token.seq for token in rules.vector_of(seen)} == {seen.seq}


async def test_a_rollback_changes_no_key(place: Place) -> None:
    async with place.app() as app:
        await app.active()
        key = await app.keys(ONE)
        async with app.session() as session:
            (await session.get_one(User, 1)).age = 1
            await session.flush()
            await session.rollback()
        assert await app.keys(ONE) == key
        assert app.ages() == [0, 0]


async def test_what_only_reads_asks_redis_for_nothing_at_its_commit(place: Place) -> None:
    async with TCPProxy.before(place.redis) as proxy, place.app(redis=proxy.url) as app:
        await app.active()
        async with app.session.begin() as session:
            await session.get_one(User, 1)
            before = proxy.requests
        assert proxy.requests == before


async def test_a_commit_is_three_round_trips(place: Place) -> None:
    async with TCPProxy.before(place.redis) as proxy, place.app(redis=proxy.url) as app:
        await app.active()
        await app.birthday()
        app.tokens._core.clock = Clock()  # so that the stamp stays fresh
        await app.tokens.look(())
        async with app.session.begin() as session:
            (await session.get_one(User, 1)).age = 7
            await session.flush()
            before = proxy.requests
        assert proxy.requests - before == 2  # MARK, RESOLVE


@pytest.mark.backends(exclude="sqlite")
async def test_commits_of_one_moment_share_their_marks(place: Place) -> None:
    async with TCPProxy.before(place.redis) as proxy, place.app(redis=proxy.url) as app:
        async with app.session.begin() as session:
            session.add_all([User(id=number) for number in range(10, 30)])
        await app.active()
        app.tokens._core.clock = Clock()  # stamps stay fresh
        await app.tokens.look(())
        await asyncio.gather(*(app.birthday(number) for number in range(10, 15)))  # connections are open
        proxy.delay = 0.05
        before = proxy.requests
        await asyncio.gather(*(app.birthday(number) for number in range(10, 25)))
        assert proxy.requests - before < 20  # 15 x (MARK, RESOLVE) alone


# --- Redis is away ----------------------------------------------------------------------------------------------------


async def test_a_commit_that_cannot_be_announced_is_refused_and_nothing_is_written(place: Place) -> None:
    async with TCPProxy.before(place.redis) as proxy, place.app(redis=proxy.url) as app:
        await app.active()
        key = await app.keys(ONE)
        proxy.refuse()
        proxy.cut()
        for _ in range(3):  # more often than a pool has connections that could be left dirty
            with pytest.raises(CommitRefusedError):
                await app.birthday()
        assert app.ages() == [0, 0]
        private = await app.keys(ONE)
        assert not private.shared
        assert app.keys.private[Private.UNREACHABLE] == 1
        await proxy.accept()
        await app.birthday()
        assert app.ages() == [1, 0]
        assert await app.keys(ONE) != key


async def test_or_it_is_passed_on_when_redis_is_back(place: Place) -> None:
    async with (
        TCPProxy.before(place.redis) as proxy,
        place.app(redis=proxy.url, when_unreachable="outbox", outbox_every=0.02) as app,
        place.app() as other,
    ):
        await app.active()
        key, two = await other.keys(ONE), await other.keys(TWO)
        proxy.refuse()
        proxy.cut()
        await app.birthday()
        assert app.ages() == [1, 0]
        assert look(app.url, "SELECT count(*) FROM akv_outbox")[0][0] == 1
        await proxy.accept()
        await until(lambda: not look(app.url, "SELECT count(*) FROM akv_outbox")[0][0], "the outbox is empty", 80)
        assert await other.keys(ONE) != key
        assert await other.keys(TWO) == two


async def test_namespaces_of_one_database_pass_on_each_its_own(place: Place) -> None:
    """A row of the other one means nothing here, and its own would be gone if the other one deleted it."""
    neighbour = place.neighbour()
    outbox: dict[str, Any] = {"when_unreachable": "outbox", "outbox_every": 0.02}
    async with (
        TCPProxy.before(place.redis) as proxy,
        place.app(redis=proxy.url, **outbox) as app,
        neighbour.app(redis=proxy.url, **outbox) as other,
        place.app() as reader,
        neighbour.app() as other_reader,
    ):
        for each in (app, other):
            await each.active()
        before = [await reader.keys(ONE), await reader.keys(TWO)]
        other_before = [await other_reader.keys(ONE), await other_reader.keys(TWO)]
        proxy.refuse()
        proxy.cut()
        await app.birthday(1)
        async with other.session.begin() as session:
            await other.binding.touch(session, TWO)
        assert look(app.url, "SELECT count(*), count(DISTINCT namespace) FROM akv_outbox") == [(2, 2)]
        await proxy.accept()
        await until(lambda: not look(app.url, "SELECT count(*) FROM akv_outbox")[0][0], "the outbox is empty", 80)
        after = [await reader.keys(ONE), await reader.keys(TWO)]
        other_after = [await other_reader.keys(ONE), await other_reader.keys(TWO)]
        assert [old != new for old, new in zip(before, after, strict=True)] == [True, False]
        assert [old != new for old, new in zip(other_before, other_after, strict=True)] == [False, True]


async def test_a_table_that_knows_no_namespaces_is_refused_before_anything_is_written(place: Place) -> None:
    look(place.url, "CREATE TABLE akv_outbox (id VARCHAR(32) PRIMARY KEY, identifiers VARCHAR(99))")
    async with place.app(when_unreachable="outbox") as app:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=f"ALTER TABLE akv_outbox.*DEFAULT '{place.namespace}'"):
                await app.birthday()
        assert app.ages() == [0, 0]
    async with place.app() as app:  # who refuses commits needs no outbox
        await app.birthday()
        assert app.ages() == [1, 0]


async def test_a_refused_commit_of_the_outbox_leaves_nothing_in_it(place: Place) -> None:
    async with (
        TCPProxy.before(place.redis) as proxy,
        place.app(redis=proxy.url, when_unreachable="outbox") as app,
    ):
        await app.active()
        proxy.refuse()
        proxy.cut()
        async with app.session() as session:
            (await session.get_one(User, 1)).age = 7
            await session.flush()
            await session.rollback()
        assert look(app.url, "SELECT count(*) FROM akv_outbox")[0][0] == 0


# --- lost marks, dead writers -----------------------------------------------------------------------------------------


class Held:
    """Holds a commit back between its mark and its COMMIT."""

    def __init__(self, app: App) -> None:
        self.is_marked = asyncio.Event()
        self.may_commit = asyncio.Event()
        self._announce = app.tokens.announce
        app.tokens.announce = self.announce  # type: ignore[method-assign]

    async def announce(self, *arguments: Any) -> Any:
        announcement = await self._announce(*arguments)
        self.is_marked.set()
        await self.may_commit.wait()
        return announcement


async def test_an_epoch_waits_for_a_commit_whose_mark_was_lost(place: Place) -> None:
    async with place.app() as app, place.app() as other:
        await app.active()
        held = Held(app)
        commit = asyncio.create_task(app.birthday())
        await held.is_marked.wait()
        assert not (await other.keys(ONE)).shared
        await asyncio.to_thread(forget, place.redis, place.namespace)  # Redis loses everything
        for _ in range(20):
            assert not (await other.keys(ONE)).shared
            await asyncio.sleep(0.005)
        held.may_commit.set()
        await commit
        await other.active()
        assert (await other.keys(ONE)).shared


async def test_a_mark_is_swept_once_its_transaction_has_ended_and_not_before(place: Place) -> None:
    async with place.app() as app, place.app() as other:
        clock = other.tokens._core.clock = Clock()
        async with other.session.begin() as session:
            await session.get_one(User, 1)  # first use
        await app.active()
        app.tokens.resolve = lambda _: asyncio.create_task(asyncio.sleep(0))  # type: ignore[method-assign]
        held = Held(app)
        commit = asyncio.create_task(app.birthday())
        await held.is_marked.wait()
        await _meet(other, clock)
        assert rules.is_marked(await other.tokens.look([ONE]))
        held.may_commit.set()
        await commit
        await _meet(other, clock)
        seen = await other.tokens.look([ONE])
        assert rules.usable(seen)
        assert rules.vector_of(seen)[0].seq >= 1


async def _meet(app: App, clock: Clock) -> None:
    """Meet the mark for two seconds, and wait for what comes of that."""
    sweeper = app.tokens._here()._sweeper
    for _ in range(3):
        await app.tokens.look([ONE])
        await until(lambda: not sweeper._is_running, "the sweep ends")
        clock.now += 1


async def test_a_writer_whose_commit_is_cancelled_leaves_nothing_stale(place: Place) -> None:
    async with place.app() as app, place.app() as other:
        clock = other.tokens._core.clock = Clock()
        async with other.session.begin() as session:
            await session.get_one(User, 1)
        await app.active()
        for turns in range(0, 60, 3):
            key, age = await other.keys(ONE), app.ages()[0]
            task = asyncio.create_task(app.birthday())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if app.ages()[0] != age:
                assert await other.keys(ONE) != key
            await until(lambda: _usable_in_the_end(other, clock), "nothing stays marked")


async def _usable_in_the_end(app: App, clock: Clock) -> bool:
    clock.now += 1
    return rules.usable(await app.tokens.look([ONE]))


# --- databases --------------------------------------------------------------------------------------------------------


async def test_a_second_database_is_refused(place: Place, backend: Backend) -> None:
    async with place.app() as app:
        await app.active()
        await app.birthday()
        second = Place(backend, place.redis)
        second.namespace = place.namespace
        await asyncio.to_thread(second.create)
        async with second.app() as other:
            with pytest.raises(ConfigurationError, match="belongs to another database"):
                await other.birthday()
            assert other.ages() == [0, 0]


async def test_missing_tables_are_named(place: Place) -> None:
    async with place.app(create_tables=False, when_unreachable="outbox") as app:
        with pytest.raises(ConfigurationError, match=r"RedisTokens\.metadata"):
            await app.birthday()
        assert app.ages() == [0, 0]
        async with app.engine.connect() as connection:
            await connection.rollback()
    engine = create_async_engine(place.url)
    async with engine.begin() as connection:
        await connection.run_sync(RedisTokens.metadata.create_all)
    await engine.dispose()
    async with place.app(create_tables=False, when_unreachable="outbox") as app:
        await app.active()
        await app.birthday()
        assert app.ages() == [1, 0]


async def test_a_bulk_update_changes_the_keys_of_all_rows(place: Place) -> None:
    async with place.app() as app:
        await app.active()
        one, two = await app.keys(ONE), await app.keys(TWO)
        async with app.session.begin() as session:
            await session.execute(update(User).values(age=5).execution_options(synchronize_session=False))
        assert await app.keys(ONE) != one
        assert await app.keys(TWO) != two


async def test_an_old_session_gets_private_keys(place: Place) -> None:
    async with place.app() as app:
        await app.active()
        async with AsyncSession(app.engine, expire_on_commit=False) as session:
            user = await session.get_one(User, 1)
            assert (await app.keys(user)).shared
            await session.commit()
            await app.birthday()
            assert not (await app.keys(user)).shared
            assert app.keys.private[Private.RETAINED] == 1
