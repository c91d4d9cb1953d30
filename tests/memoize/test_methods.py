"""Methods, classmethods and staticmethods; what cannot be memoized."""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akv.client import AsyncKVAlchemy
from akv.errors import ConfigurationError, InvalidExpireError, UncacheableArgumentError
from akv.memoize.decorator import Memoized
from akv.store.client import Store
from tests.memoize.conftest import GatedStore
from tests.memoize.waiting import Work

_kv = AsyncKVAlchemy("sqlite+aiosqlite:///:memory:")
"""Decorates at import; each test puts its own store in its place."""


@pytest.fixture(autouse=True)
def _use(kv: GatedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kv._guard, "store", kv)
    Service.runs.clear()


@dataclass(frozen=True)
class Service:
    name: str
    runs: ClassVar[list[int]] = []

    @_kv.memoize
    async def method(self, a: int, b: str = "b") -> str:
        self.runs.append(a)
        return f"{self.name}{a}"

    @_kv.memoize(ignore=("self",))
    async def alike(self, a: int = 1) -> str:
        return f"{self.name}{a}"

    @classmethod
    @_kv.memoize
    async def inside(cls, a: int = 1) -> str:
        return f"{cls.__name__}{a}"

    @_kv.memoize(expire=60)
    @classmethod
    async def outside(cls, a: int = 1) -> str:
        return f"{cls.__name__}{a}"

    @staticmethod
    @_kv.memoize
    async def static_inside(a: int = 1) -> int:
        return a

    @_kv.memoize(expire=60)
    @staticmethod
    async def static_outside(a: int = 1) -> int:
        return a


class Special(Service):
    pass


async def test_a_method_is_bound_and_so_are_its_helpers() -> None:
    one, other = Service("one"), Service("other")
    assert [await one.method(1), await other.method(1), await one.method(a=1)] == ["one1", "other1", "one1"]
    assert one.runs == [1, 1]
    assert one.method.cache_key(7) == Service.method.cache_key(one, 7) != other.method.cache_key(7)
    assert await one.method.cache_invalidate(1) is True
    assert await other.method.cache_invalidate(1) is True
    assert await one.method.refresh(2) == "one2"
    assert await one.method.__wrapped__(2) == "one2"
    assert await Service.method(one, 2) == "one2"
    assert one.method.cache_info() == other.method.cache_info() == Service.method.cache_info()
    assert await Service.method.cache_clear() == 1


async def test_equal_instances_share_their_results() -> None:
    await Service("same").method(1)
    await Service("same").method(1)
    assert Service.runs == [1]


async def test_an_ignored_self_is_any_instance() -> None:
    assert [await Service("one").alike(), await Service("other").alike(1)] == ["one1", "one1"]


async def test_an_option_assigned_on_an_instance_is_the_methods() -> None:
    Service("one").method.expire_if = True
    try:
        assert Service("other").method.expire_if is True
    finally:
        Service.method.expire_if = False


@pytest.mark.parametrize("name", ["inside", "outside"])
async def test_a_classmethod_is_bound_to_the_class_it_is_looked_up_on(name: str) -> None:
    one, special = getattr(Service, name), getattr(Special, name)
    assert [await one(2), await special(2), await getattr(Special("x"), name)(2)] == [
        "Service2",
        "Special2",
        "Special2",
    ]
    assert await one.cache_clear() == 2


async def test_helpers_of_a_classmethod_are_bound_if_memoize_is_above() -> None:
    await Service.outside(2)
    assert Service.outside.cache_key(2) == Service("x").outside.cache_key(a=2) != Special.outside.cache_key(2)
    assert await Service.outside.cache_invalidate(2) is True


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="since 3.13 a classmethod does not bind what it wraps")
async def test_helpers_of_a_classmethod_are_bound_if_memoize_is_below() -> None:
    await Service.inside(2)
    assert await Service.inside.cache_invalidate(2) is True


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before 3.13 a classmethod binds what it wraps")
async def test_helpers_of_a_classmethod_refuse_if_memoize_is_below() -> None:
    await Service.inside(2)
    unbound: Any = Service.inside
    for helper in (unbound.cache_key, unbound.cache_invalidate, unbound.refresh):
        with pytest.raises(ConfigurationError, match="above @classmethod"):
            await helper(2)
    assert await unbound.cache_invalidate(Service, 2) is True


@pytest.mark.parametrize("name", ["static_inside", "static_outside"])
async def test_a_staticmethod_is_not_bound(name: str) -> None:
    for found in (getattr(Service, name), getattr(Service("x"), name)):
        assert await found(2) == 2
        assert found.cache_key(2) == "a:L4:i1:2"
    assert await getattr(Service, name).cache_clear() == 1


async def test_a_self_without_canonical_form_is_refused_with_the_remedies(kv: GatedStore) -> None:
    class Plain:
        @kv.memoize
        async def method(self, a: int) -> int:
            return a

    with pytest.raises(UncacheableArgumentError, match=r"'self' of .*Plain\.method\(\).*ignore=\('self',\)"):
        await Plain().method(1)


async def test_an_overridden_method_may_ask_for_the_one_above(kv: GatedStore) -> None:
    class Below(Service):
        @kv.memoize
        async def method(self, a: int, b: str = "b") -> str:
            return f"below {await super().method(a)}"

    assert await Below("x").method(1) == "below x1"


async def test_a_bound_method_stays_bound_in_another_class(kv: GatedStore) -> None:
    class Borrower:
        method = Service("lender").method

    assert await Borrower().method(1) == "lender1"


async def test_abstract_methods_stay_abstract(kv: GatedStore) -> None:
    class Abstract(ABC):
        @kv.memoize
        @abstractmethod
        async def inner(self) -> None: ...

        @abstractmethod
        @kv.memoize
        async def outer(self) -> None: ...

    assert Abstract.__abstractmethods__ == {"inner", "outer"}


async def test_a_property_may_be_memoized_below(kv: GatedStore) -> None:
    work = Work()
    work.release.set()

    class Lazy:
        @property
        @kv.memoize(ignore=("self",))
        async def value(self) -> Any:
            return await work()

    assert [await Lazy().value, await Lazy().value] == ["result"] * 2
    assert work.runs == 1


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

    @_kv.memoize
    async def greeting(self) -> str:
        return f"hello {self.name}"


async def test_a_mapped_instance_is_known_by_its_row_and_never_loaded(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        user = User(id=1, name="Ada")
        session.add(user)
        await session.commit()
        await session.refresh(user)
        assert await user.greeting() == "hello Ada"
        session.expire(user)
        assert await user.greeting() == "hello Ada"
    assert user.greeting.cache_info().hits == 1
    await engine.dispose()


# Refused at decoration


def sync(*_: Any) -> None: ...
async def generator() -> AsyncIterator[int]:
    yield 1


async def fine(a: int) -> None: ...


class Callable_:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (sync, "sync is none: write async def"),
        (lambda: None, "write async def"),
        (generator, "generator.*as a list"),
        (property(sync), "@property above"),
        (staticmethod(sync), "sync is none"),
        (classmethod(sync), "sync is none"),
        (Callable_().method, "where its class defines it"),
        (Callable_(), "an async def that calls it"),
        (Callable_, "an async def that calls it"),
        (functools.partial(fine, 1), "an async def that calls it"),
        (len, "an async def that calls it"),
        (_kv.memoize(fine), "memoized already"),
        (_kv.memoize(staticmethod(fine)), "memoized already"),
    ],
    ids=[
        "sync",
        "lambda",
        "generator",
        "property",
        "static",
        "class",
        "bound",
        "object",
        "type",
        "partial",
        "builtin",
        "twice",
        "member",
    ],
)
def test_what_is_no_coroutine_function_is_refused_with_the_remedy(function: Any, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        _kv.memoize(function)
    with pytest.raises(ConfigurationError, match=remedy):
        _kv.memoize(expire=60)(function)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"expire": "60"}, InvalidExpireError),
        ({"expire": True}, InvalidExpireError),
        ({"expire": float("nan")}, InvalidExpireError),
        ({"jitter": 1.5}, ConfigurationError),
        ({"stale_for": 0}, ConfigurationError),
        ({"early": "yes"}, ConfigurationError),
        ({"on_error": "hide"}, ConfigurationError),
        ({"near": 0}, ConfigurationError),
        ({"lock": 0}, ConfigurationError),
        ({"track": True}, ConfigurationError),
        ({"track": "yes"}, ConfigurationError),
        ({"depends_on": "akv:users#1"}, ConfigurationError),
        ({"expire_if": "yes"}, ConfigurationError),
        ({"expire_if": None}, ConfigurationError),
        ({"skip_saving_to_cache_if": 1}, ConfigurationError),
        ({"version": 2}, ConfigurationError),
        ({"ignore": ("b",)}, ConfigurationError),
        ({"ignore": "a"}, ConfigurationError),
        ({"key": "a"}, ConfigurationError),
        ({"key": lambda a: a, "ignore": ("a",)}, ConfigurationError),
    ],
)
def test_wrong_options_are_refused_at_decoration(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        _kv.memoize(**options)(fine)


@pytest.mark.parametrize("name", ["expire_if", "skip_saving_to_cache_if"])
def test_an_option_that_is_assigned_is_checked_too(name: str) -> None:
    memoized: Memoized[[int], None] = _kv.memoize(fine)
    with pytest.raises(ConfigurationError, match=name):
        setattr(memoized, name, "yes")


def test_the_store_floor_knows_nothing_of_memoize() -> None:
    assert not hasattr(Store, "memoize")
    assert callable(AsyncKVAlchemy.memoize)
