"""
Who computes one thing for many callers, as each does it; all of them live in every process of the stampede.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from sqlalchemy import make_url

from akv import AsyncKVAlchemy
from benchmarks.bound import Bound, Row, be_patient, bound
from benchmarks.contenders.contender import need
from benchmarks.places import Place

ROW: Final = 7
"""Whose change is the token change."""
_KEPT: Final = 600.0
"""Seconds for which an old value may be handed out, by those who do that."""
_CONNECTIONS: Final = 64
_PATIENCE: Final = 60.0
_NO_TOKENS: Final = "cannot: nothing tells it that a row has changed"


@dataclass(frozen=True)
class Setting:
    """
    What all have in common.

    Attributes:
        place: Where.
        seconds: That a computation takes.
        lifetime: Of a result, seconds.
    """

    place: Place
    seconds: float
    lifetime: float


@dataclass(frozen=True)
class App:
    """A bound engine and a store, as one process of an application has them."""

    made: Bound
    kv: AsyncKVAlchemy

    @classmethod
    async def of(cls, place: Place, stack: AsyncExitStack) -> Self:
        """Make one that is ready, and let *stack* close it."""
        made = await stack.enter_async_context(bound(place, "storm"))
        kv = await stack.enter_async_context(AsyncKVAlchemy(place.url, tokens=made.tokens, sweep_every=None))
        be_patient(kv)
        await kv.count()
        return cls(made, kv)


class Computation:
    """Takes its time, never comes to the same result twice, and counts."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._seconds = seconds
        self._numbers = itertools.count()

    def begin(self) -> str:
        """Count, and return the result to be."""
        self.count += 1
        return f"{os.getpid()}: {next(self._numbers)}"

    async def run(self) -> str:
        """Compute as a coroutine does."""
        found = self.begin()
        await asyncio.sleep(self._seconds)
        return found

    def block(self) -> str:
        """Compute as a thread does."""
        found = self.begin()
        time.sleep(self._seconds)
        return found


class Storm(ABC):
    """
    One way of sparing computations.

    Attributes:
        name: In results and tables.
        distribution: What to install for it.
        cannot: Why a token change cannot invalidate what it keeps.
        is_dependent: What it keeps does not expire, but depends on a row.
    """

    name: ClassVar[str]
    distribution: ClassVar[str] = ""
    cannot: ClassVar[str] = _NO_TOKENS
    is_dependent: ClassVar[bool] = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.computation = Computation(setting.seconds)
        self.call: Callable[[], Awaitable[str]]

    @abstractmethod
    async def open(self, app: App, stack: AsyncExitStack) -> None:
        """Set :attr:`call`, which is of *app* or of the contender's own making; *stack* closes what is open."""

    @property
    def _prefix(self) -> str:
        return f"{self.setting.place.namespace}:{type(self).__name__}"


class _Akv(Storm):
    cannot: ClassVar[str] = ""
    options: ClassVar[dict[str, Any]] = {}

    async def open(self, app: App, stack: AsyncExitStack) -> None:
        options = dict(self.options)
        if not self.is_dependent:
            options["expire"] = self.setting.lifetime

        @app.kv.memoize(version=type(self).__name__, **options)
        async def compute() -> str:
            if options.get("track"):
                async with app.made.sessions() as session:
                    await session.get_one(Row, ROW)
            return await self.computation.run()

        self.call = compute


class Akv(_Akv):
    """Single flight in each process."""

    name: ClassVar[str] = "akv"


class AkvLock(_Akv):
    """One process computes."""

    name: ClassVar[str] = "akv, lock=True"
    options: ClassVar[dict[str, Any]] = {"lock": True}


class AkvStale(_Akv):
    """Nobody waits."""

    name: ClassVar[str] = "akv, lock=True, stale_for"
    options: ClassVar[dict[str, Any]] = {"lock": True, "stale_for": _KEPT}


class _AkvDependent(_Akv):
    is_dependent: ClassVar[bool] = True


class AkvDependsOn(_AkvDependent):
    """Invalidated by a commit; single flight in each process."""

    name: ClassVar[str] = "akv, depends_on"
    options: ClassVar[dict[str, Any]] = {"depends_on": f"akv:{Row.__tablename__}#{ROW}"}


class AkvDependsOnLock(_AkvDependent):
    """Invalidated by a commit; one process computes."""

    name: ClassVar[str] = "akv, depends_on, lock=True"
    options: ClassVar[dict[str, Any]] = {**AkvDependsOn.options, "lock": True}


class AkvTrackedLock(_AkvDependent):
    """Invalidated by a commit that nobody has declared; one process computes."""

    name: ClassVar[str] = "akv, track=True, lock=True"
    options: ClassVar[dict[str, Any]] = {"track": True, "lock": True}


class _Cashews(Storm):
    distribution: ClassVar[str] = "cashews"

    async def open(self, app: App, stack: AsyncExitStack) -> None:
        cache = need("cashews", "cashews").Cache()
        cache.setup(self.setting.place.redis_url, suppress=False, max_connections=_CONNECTIONS)
        await cache.init()
        stack.push_async_callback(cache.close)

        async def compute() -> str:
            return await self.computation.run()

        self.call = self._decorator(cache)(compute)

    @abstractmethod
    def _decorator(self, cache: Any) -> Any: ...


class CashewsLock(_Cashews):
    """Its lock in Redis, and its protection within a process, which is on by default."""

    name: ClassVar[str] = "cashews, cache(lock=True)"

    def _decorator(self, cache: Any) -> Any:
        return cache.cache(ttl=self.setting.lifetime, key=self._prefix, lock=True)


class CashewsEarly(_Cashews):
    """The old value is handed out while it is computed anew."""

    name: ClassVar[str] = "cashews, early"

    def _decorator(self, cache: Any) -> Any:
        return cache.early(ttl=_KEPT, early_ttl=self.setting.lifetime, key=self._prefix)


class Aiocache(Storm):
    """Its decorator against stampedes, which holds its RedLock."""

    name: ClassVar[str] = "aiocache, cached_stampede (RedLock)"
    distribution: ClassVar[str] = "aiocache"

    async def open(self, app: App, stack: AsyncExitStack) -> None:
        aiocache = need("aiocache", "aiocache")
        url = make_url(self.setting.place.redis_url)
        decorator = aiocache.cached_stampede(
            ttl=self.setting.lifetime,
            key=self._prefix,
            cache=aiocache.Cache.REDIS,
            serializer=need("aiocache.serializers", "aiocache").PickleSerializer(),
            endpoint=url.host,
            port=url.port or 6379,
            db=int(url.database or 0),
            password=url.password,
            pool_max_size=_CONNECTIONS,
            connection_pool_class=need("redis.asyncio", "redis").BlockingConnectionPool,
        )

        async def compute() -> str:
            return await self.computation.run()

        self.call = decorator(compute)
        stack.push_async_callback(decorator.cache.close)


class Dogpile(Storm):
    """Its lock in Redis; asyncio's default executor, in which the others wait or get the old value."""

    name: ClassVar[str] = "dogpile.cache in a thread"
    distribution: ClassVar[str] = "dogpile.cache"

    async def open(self, app: App, stack: AsyncExitStack) -> None:
        make = need("dogpile.cache", "dogpile.cache").make_region
        region = make(key_mangler=lambda key: f"{self._prefix}:{key}").configure(
            "dogpile.cache.redis",
            expiration_time=self.setting.lifetime,
            arguments={"url": self.setting.place.redis_url, "distributed_lock": True, "thread_local_lock": False},
        )

        async def call() -> str:
            found: str = await asyncio.to_thread(region.get_or_create, "storm", self.computation.block)
            return found

        self.call = call
        stack.callback(region.backend.reader_client.close)


STORMS: Final[tuple[type[Storm], ...]] = (
    Akv,
    AkvLock,
    AkvStale,
    CashewsLock,
    CashewsEarly,
    Aiocache,
    Dogpile,
    AkvDependsOn,
    AkvDependsOnLock,
    AkvTrackedLock,
)


class Crew:
    """All of them in one process, on one event loop."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._stack = AsyncExitStack()
        self._storms: dict[str, Storm] = {}

    async def open(self) -> dict[str, str]:
        """Open everybody; return who is absent, and why."""
        absent = {}
        self._app = await App.of(self._setting.place, self._stack)
        for kind in STORMS:
            storm = kind(self._setting)
            try:
                await storm.open(self._app, self._stack)
            except Exception as error:
                absent[kind.name] = f"{type(error).__name__}: {error}"
            else:
                self._storms[kind.name] = storm
        return absent

    async def close(self) -> None:
        """Close everybody."""
        await self._stack.aclose()

    async def fill(self, names: list[str]) -> dict[str, str]:
        """Let everybody compute, at once; return what they have now."""
        values = await asyncio.gather(*(self._filled(self._storms[name]) for name in names))
        return dict(zip(names, values, strict=True))

    async def _filled(self, storm: Storm) -> str:
        """Call until a call computes nothing, neither itself nor behind it."""
        async with asyncio.timeout(_PATIENCE):
            count, value = -1, ""
            while count != storm.computation.count:
                count, value = storm.computation.count, await storm.call()
                await self._settle()
        return value

    async def _settle(self) -> None:
        """Let a computation end that has begun behind a call."""
        await asyncio.sleep(self._setting.seconds + 0.1)

    async def change(self) -> None:
        """Commit a change of the row."""
        async with self._app.made.sessions.begin() as session:
            (await session.get_one(Row, ROW)).value += 1

    async def storm(self, name: str, callers: int, at: float, before: str) -> dict[str, Any]:
        """
        Call at once.

        Args:
            name: Whom.
            callers: How often.
            at: When, Unix time.
            before: The value that is old.

        Returns:
            The seconds that each caller waited, computations, old values, and errors.
        """
        storm = self._storms[name]
        count = storm.computation.count
        waits: list[float] = []

        async def caller(began: float) -> str:
            found = await storm.call()
            waits.append(time.perf_counter() - began)
            return found

        await asyncio.sleep(max(0.0, at - time.time()))
        began = time.perf_counter()
        found = await asyncio.gather(*(caller(began) for _ in range(callers)), return_exceptions=True)
        await self._settle()
        errors = [each for each in found if isinstance(each, BaseException)]
        return {
            "waits": waits,
            "computations": storm.computation.count - count,
            "old": sum(each == before for each in found),
            "errors": len(errors),
            "first_error": f"{type(errors[0]).__name__}: {errors[0]}" if errors else "",
        }
