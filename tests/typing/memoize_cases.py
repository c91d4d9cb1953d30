"""
What type checkers say about memoize; read by test_typing, never executed.

A comment at the end, E and codes, marks a line on which mypy must report those errors; no other line has one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, assert_type

from akv.client import AsyncKVAlchemy
from akv.memoize.decorator import Memoized
from akv.memoize.lease import Lock
from akv.memoize.options import CacheInfo

kv = AsyncKVAlchemy("sqlite+aiosqlite:///never.db")


@dataclass
class Profile:
    name: str


@kv.memoize
async def bare(user_id: int, lang: str = "en") -> Profile:
    return Profile(f"{user_id}{lang}")


@kv.memoize(60, lambda: False, lambda result: result is None)
async def positional_options(user_id: int) -> Profile | None:
    return None


@kv.memoize(expire=timedelta(minutes=1), ignore=("session",), version="2")
async def with_options(session: object, /, *ids: int, deep: bool = False, **rest: str) -> list[Profile]:
    return []


@kv.memoize(expire=datetime(2030, 1, 1, tzinfo=UTC), key=lambda user_id: user_id % 10)
async def with_key(user_id: int) -> int:
    return user_id


@kv.memoize(
    expire=60,
    jitter=0.1,
    stale_for=timedelta(seconds=30),
    early=True,
    on_error="stale",
    near=10_000,
    near_bytes=2**20,
    near_shared=True,
    lock=True,
)
async def with_age(user_id: int) -> Profile:
    return Profile("")


@kv.memoize(depends_on=lambda user_id: [f"akv:users#{user_id}", Profile], track=True)
async def with_dependencies(user_id: int) -> Profile:
    return Profile("")


@kv.memoize(stale_for=0.5, lock=2.5)
async def with_seconds(*, user_id: int = 1) -> Profile:
    return Profile("")


async def functions() -> None:
    assert_type(await bare(1), Profile)
    assert_type(await bare(user_id=1, lang="de"), Profile)
    assert_type(await bare.refresh(1), Profile)
    assert_type(bare.cache_key(1), str)
    assert_type(bare.cache_tag, str)
    assert_type(await bare.cache_clear(), int)
    assert_type(await bare.cache_invalidate(1, lang="de"), bool)
    assert_type(bare.cache_info(), CacheInfo)
    assert_type(bare.cache_info().hits, int)
    assert_type(await bare.__wrapped__(1), Profile)
    assert_type(await positional_options(1), Profile | None)
    assert_type(await with_options(object(), 1, 2, deep=True, x="y"), list[Profile])
    assert_type(await with_key(1), int)
    assert_type(await with_age(user_id=1), Profile)
    assert_type(await with_dependencies(1), Profile)
    assert_type(await with_seconds(), Profile)
    bare.expire_if = True
    bare.skip_saving_to_cache_if = lambda result: result.name == ""

    function: Callable[[int], Coroutine[Any, Any, int]] = with_key
    memoized: Memoized[[int], int] = with_key
    print(function, memoized)

    await bare("1")  # E: arg-type
    await bare()  # E: call-arg
    await bare(1, language="de")  # E: call-arg
    await bare.refresh("1")  # E: arg-type
    await bare.cache_invalidate(lang="de")  # E: call-arg
    bare.cache_key(1, 2)  # E: arg-type
    await bare.__wrapped__("1")  # E: arg-type
    await bare.cache_clear(1)  # E: call-arg
    bare.expire_if = "yes"  # E: assignment
    bare.cache_info().hits = 1  # E: misc
    wrong: str = await bare(1)  # E: assignment
    await with_age("1")  # E: arg-type
    await with_age.cache_invalidate()  # E: call-arg
    await with_dependencies(user="1")  # E: call-arg
    await with_seconds(1)  # E: call-arg
    await with_options(session=object())  # E: call-arg
    await with_options(object(), deep=1)  # E: arg-type
    print(wrong)


class Service:
    @kv.memoize
    async def method(self, user_id: int, lang: str = "en") -> Profile:
        return Profile(lang)

    @kv.memoize(expire=60)
    async def alone(self) -> int:
        return 1

    @classmethod
    @kv.memoize
    async def below(cls, user_id: int) -> Profile:
        return Profile("")

    @kv.memoize(expire=60)
    @classmethod
    async def above(cls, user_id: int) -> Profile:
        return Profile("")

    @staticmethod
    @kv.memoize
    async def static_below(user_id: int) -> Profile:
        return Profile("")

    @kv.memoize(expire=60)
    @staticmethod
    async def static_above(user_id: int) -> Profile:
        return Profile("")

    @kv.memoize(expire=60, stale_for=30, near=10, lock=True)
    async def aged(self, user_id: int) -> Profile:
        return Profile("")


class Special(Service):
    async def use(self) -> None:
        assert_type(await self.method(1), Profile)
        assert_type(await super().method(1), Profile)


async def methods(service: Service, special: Special) -> None:
    assert_type(await service.method(1, lang="de"), Profile)
    assert_type(service.method.cache_key(7), str)
    assert_type(await service.method.cache_invalidate(user_id=7), bool)
    assert_type(await service.method.refresh(7), Profile)
    assert_type(await service.method.__wrapped__(7), Profile)
    assert_type(await service.alone(), int)
    assert_type(await service.aged(1), Profile)
    assert_type(await special.aged.refresh(user_id=1), Profile)
    assert_type(await Service.method(service, 1), Profile)
    assert_type(await special.method(1), Profile)
    for classmethod_ in (Service.below, Service.above, service.below, service.above, Special.below, special.above):
        assert_type(await classmethod_(1), Profile)
        assert_type(classmethod_.cache_key(1), str)
    for static in (Service.static_below, Service.static_above, service.static_below, service.static_above):
        assert_type(await static(1), Profile)
        assert_type(static.cache_key(1), str)

    await service.method("1")  # E: arg-type
    await service.method(service, 1)  # E: arg-type
    await service.alone(1)  # E: call-arg
    await service.aged()  # E: call-arg
    service.method.cache_key("1")  # E: arg-type
    await service.method.cache_invalidate()  # E: call-arg
    await Service.method(1)  # E: arg-type
    await Service.below("1")  # E: arg-type
    await service.above("1")  # E: arg-type
    Service.above.cache_key(1, 2)  # E: call-arg
    await Service.static_below("1")  # E: arg-type
    service.static_above.cache_key("1")  # E: arg-type


async def made() -> Profile:
    return Profile("")


async def made_of(user_id: int) -> Profile:
    return Profile(str(user_id))


async def creators() -> None:
    assert_type(await kv.get_or_create("key", made, tag="tag", expire=60), Profile)
    assert_type(await kv.get_or_create("key", partial(made_of, 1)), Profile)
    aged = kv.get_or_create("key", made, expire=60, jitter=0.1, stale_for=30, early=True, on_error="stale", lock=True)
    assert_type(await aged, Profile)
    await kv.get_or_create("key", made_of)  # E: arg-type
    await kv.get_or_create("key", made, on_error="hide")  # E: arg-type
    await kv.get_or_create("key", made())  # E: arg-type
    await kv.get_or_create("key", lambda: 1)  # E: arg-type
    await kv.get_or_create("key", made, 60)  # E: call-arg
    await kv.get_or_create("key", made, expire="60")  # E: arg-type


async def locks() -> None:
    async with kv.lock("name", lease=timedelta(seconds=5), timeout=0.5) as lock:
        assert_type(lock, Lock)
        assert_type(lock.fence, int)
        assert_type(lock.is_held, bool)
    kv.lock(1)  # E: arg-type
    kv.lock("name", 10)  # E: call-arg
    kv.lock("name", lease=None)  # E: arg-type


@kv.memoize  # E: arg-type
def not_a_coroutine() -> int:
    return 1


@kv.memoize(expire="60")  # E: call-overload
async def wrong_expire() -> int:
    return 1


@kv.memoize(expire_if=lambda x: True)  # E: arg-type
async def wrong_condition() -> int:
    return 1


@kv.memoize(version=2)  # E: call-overload
async def wrong_version() -> int:
    return 1


@kv.memoize(60, False, False, "key")  # E: call-overload
async def too_many_positions() -> int:
    return 1


@kv.memoize(on_error="ignore")  # E: call-overload
async def wrong_on_error() -> int:
    return 1


@kv.memoize(near="many")  # E: call-overload
async def wrong_near() -> int:
    return 1


@kv.memoize(stale_for="30")  # E: call-overload
async def wrong_stale_for() -> int:
    return 1
