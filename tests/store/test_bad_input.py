"""Every public call with every wrong argument: the named error, which doubles as the builtin, before any I/O."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, event
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from akv import (
    ENOVAL,
    AsyncKVAlchemy,
    CompressedSerializer,
    ConfigurationError,
    InvalidArgumentError,
    InvalidExpireError,
    InvalidKeyError,
    JSONSerializer,
    PickleSerializer,
    RetryPolicy,
    SerializationError,
    SignedPickleSerializer,
)
from akv.testing import FakeClock
from tests.private import wait_until

UNREACHABLE = "sqlite+aiosqlite:////nowhere/at/all/akv.db"


@dataclass(frozen=True)
class Case:
    """A call with one wrong argument, the error it gets, and what the message must say."""

    name: str
    call: Any
    error: type[Exception]
    says: str


@pytest.fixture
def connections():
    """Count attempts to connect, by whatever engine."""
    attempts: list[Any] = []

    def note(dialect, *_) -> None:
        attempts.append(dialect.name)

    event.listen(Engine, "do_connect", note)
    yield attempts
    event.remove(Engine, "do_connect", note)


@pytest.fixture(params=["store", "within session", "within connection"])
async def verbs(request):
    """The verbs, in each of their forms, where any I/O fails."""
    async with contextlib.AsyncExitStack() as stack:
        kv = AsyncKVAlchemy(UNREACHABLE, sweep_every=None, retry=RetryPolicy(attempts=1, total=0.1))
        stack.push_async_callback(kv.aclose)
        if request.param == "store":
            yield kv
            return
        engine = create_async_engine(UNREACHABLE)
        stack.push_async_callback(engine.dispose)
        session = AsyncSession(engine)
        stack.push_async_callback(session.close)
        yield kv.within(session if request.param == "within session" else engine.connect())


async def first(stream) -> Any:
    async for item in stream:
        return item
    return None


def coroutine_function():
    async def function(value=None):
        return value

    return function


class AsyncCallable:
    async def __call__(self, value):
        return value


# What a key, a tag and a prefix may be

WRONG_TEXTS = {
    "int": (7, "str"),
    "bytes": (b"key", "str"),
    "list": (["key"], "str"),
    "object": (object(), "str"),
    "too long": ("x" * 257, "256"),
    "NUL": ("a\0b", "NUL"),
    "lone surrogate": ("a\ud800", "surrogate"),
}
WRONG_KEYS = WRONG_TEXTS | {"None": (None, "str"), "ENOVAL": (ENOVAL, "str")}

BY_KEY = {
    "get": lambda kv, key: kv.get(key),
    "get with default": lambda kv, key: kv.get(key, None),
    "get renewing": lambda kv, key: kv.get(key, None, renew_for=5),
    "set": lambda kv, key: kv.set(key, 1),
    "delete": lambda kv, key: kv.delete(key),
    "pop": lambda kv, key: kv.pop(key, None),
    "add": lambda kv, key: kv.add(key, 1),
    "incr": lambda kv, key: kv.incr(key),
    "update": lambda kv, key: kv.update(key, str, default=1),
    "touch": lambda kv, key: kv.touch(key, 5),
    "get_many": lambda kv, key: kv.get_many(["good", key]),
    "delete_many": lambda kv, key: kv.delete_many(["good", key]),
    "get_proxy": lambda kv, key: kv.get_proxy(key),
}
BY_TAG = {
    "get": lambda kv, tag: kv.get("k", tag=tag),
    "get positional": lambda kv, tag: kv.get("k", None, tag),
    "set": lambda kv, tag: kv.set("k", 1, tag),
    "delete": lambda kv, tag: kv.delete("k", tag),
    "pop": lambda kv, tag: kv.pop("k", None, tag),
    "add": lambda kv, tag: kv.add("k", 1, tag),
    "incr": lambda kv, tag: kv.incr("k", tag=tag),
    "update": lambda kv, tag: kv.update("k", str, default=1, tag=tag),
    "touch": lambda kv, tag: kv.touch("k", 5, tag),
    "get_many": lambda kv, tag: kv.get_many(["k"], tag),
    "get_many of nothing": lambda kv, tag: kv.get_many([], tag),
    "set_many": lambda kv, tag: kv.set_many({"k": 1}, tag),
    "set_many of nothing": lambda kv, tag: kv.set_many({}, tag),
    "delete_many": lambda kv, tag: kv.delete_many(["k"], tag),
    "delete_many of nothing": lambda kv, tag: kv.delete_many([], tag),
    "delete_tag": lambda kv, tag: kv.delete_tag(tag),
    "get_proxy": lambda kv, tag: kv.get_proxy("k", tag=tag),
}
BY_OPTIONAL_TAG = {
    "delete_prefix": lambda kv, tag: kv.delete_prefix("p", tag),
    "count": lambda kv, tag: kv.count(tag=tag),
    "scan": lambda kv, tag: first(kv.scan(tag=tag)),
}
BY_PREFIX = {
    "delete_prefix": lambda kv, prefix: kv.delete_prefix(prefix),
    "count": lambda kv, prefix: kv.count(prefix),
    "scan": lambda kv, prefix: first(kv.scan(prefix)),
    "tags": lambda kv, prefix: first(kv.tags(prefix)),
}

# What an expire may be

WRONG_EXPIRES = {
    "bool": (True, "seconds"),
    "str": ("60", "seconds"),
    "Decimal": (Decimal(60), "seconds"),
    "object": (object(), "seconds"),
    "NaN": (math.nan, "finite"),
    "inf": (math.inf, "finite"),
    "-inf": (-math.inf, "finite"),
    "beyond the calendar": (1e15, "9999"),
    "beyond a float": (10**400, "9999"),
    "timedelta beyond the calendar": (timedelta.max, "9999"),
    "datetime beyond the calendar": (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), "9999"),
}
BY_EXPIRE = {
    "set": lambda kv, expire: kv.set("k", 1, expire=expire),
    "add": lambda kv, expire: kv.add("k", 1, expire=expire),
    "incr": lambda kv, expire: kv.incr("k", expire=expire),
    "update": lambda kv, expire: kv.update("k", str, default=1, expire=expire),
    "touch": lambda kv, expire: kv.touch("k", expire),
    "get": lambda kv, expire: kv.get("k", None, renew_for=expire),
    "set_many": lambda kv, expire: kv.set_many({"k": 1}, expire=expire),
    "set_many of nothing": lambda kv, expire: kv.set_many({}, expire=expire),
    "Proxy.set": lambda kv, expire: kv.get_proxy("k").set(1, expire=expire),
}

# What a value may be

WRONG_VALUES = {"ENOVAL": ENOVAL, "lambda": lambda: 1, "lock": threading.Lock(), "generator": (x for x in ())}
BY_VALUE = {
    "set": lambda kv, value: kv.set("k", value),
    "add": lambda kv, value: kv.add("k", value),
    "set_many": lambda kv, value: kv.set_many({"good": 1, "k": value}),
    "Proxy.set": lambda kv, value: kv.get_proxy("k").set(value),
}

# The rest

WRONG_FLAGS = {"None": None, "int": 1, "str": "yes"}
WRONG_INTS = {"None": None, "bool": True, "float": 1.5, "str": "1", "Decimal": Decimal(1)}
WRONG_FUNCTIONS = {
    "None": None,
    "int": 1,
    "str": "len",
    "coroutine function": coroutine_function(),
    "partial of a coroutine function": partial(coroutine_function()),
    "object with async __call__": AsyncCallable(),
}
WRONG_ITERABLES = {"None": None, "int": 7, "str": "abc", "bytes": b"abc"}
WRONG_MAPPINGS = {"None": None, "int": 7, "str": "abc", "list": [("k", 1)], "set": {"k"}}


def cases() -> list[Case]:
    found = []
    for verb, call in BY_KEY.items():
        found += [
            Case(f"{verb}: key {n}", partial(call, key=v), InvalidKeyError, s) for n, (v, s) in WRONG_KEYS.items()
        ]
    for verb, call in BY_TAG.items():
        found += [
            Case(f"{verb}: tag {n}", partial(call, tag=v), InvalidKeyError, s) for n, (v, s) in WRONG_KEYS.items()
        ]
    for verb, call in BY_OPTIONAL_TAG.items():
        found += [
            Case(f"{verb}: tag {n}", partial(call, tag=v), InvalidKeyError, s) for n, (v, s) in WRONG_TEXTS.items()
        ]
    for verb, call in BY_PREFIX.items():
        found += [
            Case(f"{verb}: prefix {n}", partial(call, prefix=v), InvalidKeyError, s)
            for n, (v, s) in WRONG_TEXTS.items()
        ]
    for verb, call in BY_EXPIRE.items():
        found += [
            Case(f"{verb}: expire {n}", partial(call, expire=v), InvalidExpireError, s)
            for n, (v, s) in WRONG_EXPIRES.items()
        ]
    for verb, call in BY_VALUE.items():
        found += [
            Case(f"{verb}: value {n}", partial(call, value=v), SerializationError, "k") for n, v in WRONG_VALUES.items()
        ]
    found += _others()
    return found


def _others() -> list[Case]:
    def each(name: str, call: Any, wrong: dict[str, Any], says: str) -> list[Case]:
        return [Case(f"{name} {n}", partial(call, x=v), InvalidArgumentError, says) for n, v in wrong.items()]

    return [
        Case("set_many: key int", lambda kv: kv.set_many({"good": 1, 7: 2}), InvalidKeyError, "str"),
        Case("set_many: key too long", lambda kv: kv.set_many({"x" * 257: 1}), InvalidKeyError, "256"),
        Case("delete_prefix: no prefix", lambda kv: kv.delete_prefix(None), InvalidArgumentError, "clear()"),
        *each("get: flag", lambda kv, x: kv.get("k", None, return_expiration=x), WRONG_FLAGS, "True or False"),
        *each("Proxy.get: flag", lambda kv, x: kv.get_proxy("k").get(None, x), WRONG_FLAGS, "True or False"),
        *each("incr: delta", lambda kv, x: kv.incr("k", x), WRONG_INTS, "int"),
        *each("incr: default", lambda kv, x: kv.incr("k", default=x), WRONG_INTS, "int"),
        *each("update: function", lambda kv, x: kv.update("k", x, default=1), WRONG_FUNCTIONS, "plain function"),
        *each("get_many: keys", lambda kv, x: kv.get_many(x), WRONG_ITERABLES, "[key]"),
        *each("delete_many: keys", lambda kv, x: kv.delete_many(x), WRONG_ITERABLES, "[key]"),
        *each("set_many: mapping", lambda kv, x: kv.set_many(x), WRONG_MAPPINGS, "mapping"),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
async def test_a_wrong_argument_of_a_verb_gets_the_named_error_before_any_io(verbs, case, connections):
    with pytest.raises(case.error) as refused:
        await case.call(verbs)
    check(refused.value, case)
    assert connections == []


def check(error: Exception, case: Case) -> None:
    assert case.says in str(error)
    if issubclass(case.error, InvalidArgumentError):
        assert isinstance(error, TypeError)
        assert isinstance(error, ValueError)
    if case.error is ConfigurationError:
        assert isinstance(error, ValueError)


async def test_any_io_of_these_stores_would_have_failed(verbs, connections):
    with pytest.raises(Exception, match="unable to open"):
        await verbs.get("k")
    assert connections
    # aiosqlite leaves the thread of a connection that failed to end by itself, and it talks to the loop.
    await asyncio.to_thread(wait_until, lambda: not _threads_of_connections(), "threads to end")


def _threads_of_connections() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


@pytest.mark.parametrize(
    "call",
    [
        lambda kv: kv.get(1),
        lambda kv: kv.set(1, 1),
        lambda kv: kv.delete(1),
        lambda kv: kv.pop(1),
        lambda kv: kv.add(1, 1),
        lambda kv: kv.incr(1),
        lambda kv: kv.update(1, str),
        lambda kv: kv.touch(1, 1),
        lambda kv: kv.get_many(1),
        lambda kv: kv.set_many(1),
        lambda kv: kv.delete_many(1),
        lambda kv: kv.delete_tag(1),
        lambda kv: kv.delete_prefix(1),
        lambda kv: kv.count(1),
    ],
)
async def test_verbs_raise_when_they_are_awaited_not_when_they_are_called(verbs, call):
    called = call(verbs)
    with pytest.raises(InvalidArgumentError):
        await called


# Of the store alone

STORE_CASES = [
    *(
        Case(f"get_or_create: key {n}", lambda kv, v=v: kv.get_or_create(v, coroutine_function()), InvalidKeyError, s)
        for n, (v, s) in WRONG_KEYS.items()
    ),
    *(
        Case(
            f"get_or_create: tag {n}",
            lambda kv, v=v: kv.get_or_create("k", coroutine_function(), tag=v),
            InvalidKeyError,
            s,
        )
        for n, (v, s) in WRONG_KEYS.items()
    ),
    *(
        Case(
            f"get_or_create: expire {n}",
            lambda kv, v=v: kv.get_or_create("k", coroutine_function(), expire=v),
            InvalidExpireError,
            s,
        )
        for n, (v, s) in WRONG_EXPIRES.items()
    ),
    *(
        Case(f"get_or_create: creator {n}", lambda kv, v=v: kv.get_or_create("k", v), InvalidArgumentError, "coroutine")
        for n, v in {"None": None, "int": 7, "plain function": len, "str": "f"}.items()
    ),
    *(
        Case(f"session: commit {n}", lambda kv, v=v: enter(kv.session(commit=v)), InvalidArgumentError, "True or False")
        for n, v in WRONG_FLAGS.items()
    ),
    *(
        Case(
            f"session: delete_expired {n}",
            lambda kv, v=v: enter(kv.session(delete_expired=v)),
            InvalidArgumentError,
            "True or False",
        )
        for n, v in WRONG_FLAGS.items()
    ),
    *(
        Case(f"within: {n}", lambda kv, v=v: kv.within(v), InvalidArgumentError, "AsyncSession")
        for n, v in {"None": None, "str": UNREACHABLE, "sync session": Session(), "class": AsyncSession}.items()
    ),
]


async def enter(context) -> None:
    async with context:
        pass


@pytest.fixture
async def store():
    kv = AsyncKVAlchemy(UNREACHABLE, sweep_every=None, retry=RetryPolicy(attempts=1, total=0.1))
    yield kv
    await kv.aclose()


@pytest.mark.parametrize("case", STORE_CASES, ids=lambda case: case.name)
async def test_a_wrong_argument_of_the_store_gets_the_named_error_before_any_io(store, case, connections):
    with pytest.raises(case.error) as refused:
        await case.call(store)
    check(refused.value, case)
    assert connections == []


@pytest.mark.parametrize("wrong", [datetime(2026, 1, 1), 12.5, None, "now"], ids=["naive", "float", "None", "str"])
async def test_a_clock_that_returns_no_aware_datetime_is_named(wrong, connections):
    kv = AsyncKVAlchemy(UNREACHABLE, sweep_every=None, clock=lambda: wrong)
    with pytest.raises(ConfigurationError, match="aware datetime"):
        await kv.set("k", 1, expire=5)
    with pytest.raises(ConfigurationError, match="aware datetime"):
        await kv.get("k")
    await kv.aclose()
    assert connections == []


# Construction


def store_with(**options: Any) -> Any:
    return partial(AsyncKVAlchemy, UNREACHABLE, **options)


def options(name: str, says: str, wrong: dict[str, Any], error: type[Exception] = ConfigurationError) -> list[Case]:
    return [Case(f"{name}: {n}", store_with(**{name: v}), error, says) for n, v in wrong.items()]


WRONG_SECONDS = {"zero": 0, "negative": -1, "bool": True, "str": "60", "NaN": math.nan, "inf": math.inf, "list": []}
WRONG_BOUNDS = {"zero": 0, "negative": -1, "bool": True, "float": 1.5, "str": "5"}
WRONG_NAMES = {"empty": "", "int": 7, "too long": "x" * 64, "NUL": "a\0b", "lone surrogate": "a\ud800", "bytes": b"kv"}
WRONG_SERIALIZERS = {"int": 7, "class": PickleSerializer, "module": math, "half": type("Half", (), {"dumps": len})()}


def databases() -> dict[str, tuple[Any, str]]:
    return {
        "None": (None, "URL"),
        "int": (7, "URL"),
        "empty": ("", "URL"),
        "no URL": ("the database", "URL"),
        "port": ("postgresql+asyncpg://host:port/db", "URL"),
        "sync driver of SQLite": ("sqlite:///app.db", "sqlite+aiosqlite"),
        "sync driver of PostgreSQL": ("postgresql+psycopg2://host/db", "postgresql+asyncpg"),
        "sync driver of MariaDB": ("mariadb+pymysql://host/db", "mariadb+asyncmy"),
        "unknown driver": ("postgresql+nosuchdriver://host/db", "URL"),
        "unknown database": ("nosuchdatabase://host/db", "URL"),
        "synchronous": ("sqlite+aiosqlite:///app.db?synchronous=PERHAPS", "NORMAL"),
        "sync engine": (create_engine("sqlite://"), "AsyncEngine"),
        "session": (AsyncSession(), "async_sessionmaker"),
        "sessionmaker without engine": (async_sessionmaker(), "bind"),
        "StaticPool": (create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool), "AsyncAdaptedQueuePool"),
    }


CONSTRUCTION = [
    *(Case(f"database: {n}", partial(AsyncKVAlchemy, v), ConfigurationError, s) for n, (v, s) in databases().items()),
    *options("create_models", "True or False", WRONG_FLAGS),
    *options("table", "name of 1 to 63", WRONG_NAMES | {"None": None}),
    *options("schema", "name of 1 to 63", WRONG_NAMES),
    *(Case(f"default_tag: {n}", store_with(default_tag=v), InvalidKeyError, s) for n, (v, s) in WRONG_KEYS.items()),
    *options("serializer", "dumps", WRONG_SERIALIZERS),
    *options("retry", "RetryPolicy", {"int": 3, "class": RetryPolicy, "False": False}),
    *options("tokens", "Tokens", {"int": 3, "str": "redis://localhost", "False": False}),
    *options("sweep_every", "seconds above 0, or None", WRONG_SECONDS),
    *options("max_entries", "at least 1, or None", WRONG_BOUNDS),
    *options("max_bytes", "at least 1, or None", WRONG_BOUNDS),
    *options("clock", "callable", {"None": None, "datetime": datetime.now(UTC), "float": 1.5}),
    *(
        Case(f"RetryPolicy attempts: {n}", partial(RetryPolicy, attempts=v), ConfigurationError, "at least 1")
        for n, v in {"zero": 0, "negative": -1, "bool": True, "float": 1.5, "str": "3", "None": None}.items()
    ),
    *(
        Case(f"RetryPolicy {name}: {n}", partial(RetryPolicy, **{name: v}), ConfigurationError, "at least 0")
        for name in ("total", "initial", "maximum")
        for n, v in {
            "negative": -1,
            "NaN": math.nan,
            "inf": math.inf,
            "bool": True,
            "str": "1",
            "None": None,
            "negative timedelta": timedelta(seconds=-1),
            "beyond a float": 10**400,
        }.items()
    ),
    Case(
        "RetryPolicy: maximum below initial", partial(RetryPolicy, initial=2, maximum=1), ConfigurationError, "initial"
    ),
    *(
        Case(f"RetryPolicy jitter: {n}", partial(RetryPolicy, jitter=v), ConfigurationError, "from 0 to 1")
        for n, v in {"negative": -0.1, "above 1": 1.1, "NaN": math.nan, "str": "x", "bool": True, "None": None}.items()
    ),
    *(
        Case(f"SignedPickleSerializer: {n}", partial(SignedPickleSerializer, v), ConfigurationError, "token_bytes")
        for n, v in {"None": None, "int": 7, "short": "secret", "none": [], "one short": [b"x" * 16, "y"]}.items()
    ),
    *(
        Case(f"CompressedSerializer: {n}", partial(CompressedSerializer, v), ConfigurationError, "dumps")
        for n, v in ({"None": None} | WRONG_SERIALIZERS).items()
    ),
    *(
        Case(
            f"CompressedSerializer {name}: {v}",
            partial(CompressedSerializer, JSONSerializer(), **{name: v}),
            ConfigurationError,
            name,
        )
        for name, wrong in {
            "level": [0, 10, True, 1.5, None],
            "threshold": [-1, True, 1.5, None],
            "max_size": [0, -1, True, None, 2**41],
        }.items()
        for v in wrong
    ),
    *(
        Case(f"FakeClock: {n}", partial(FakeClock, v), ConfigurationError, "aware")
        for n, v in {"None": None, "naive": datetime(2026, 1, 1), "float": 1.5, "str": "now"}.items()
    ),
    *(
        Case(f"FakeClock.set: {n}", partial(FakeClock().set, v), ConfigurationError, "aware")
        for n, v in {"None": None, "naive": datetime(2026, 1, 1), "float": 1.5, "str": "now"}.items()
    ),
    *(
        Case(f"FakeClock.advance: {n}", partial(FakeClock().advance, v), ConfigurationError, "seconds")
        for n, v in {
            "None": None,
            "str": "5",
            "bool": True,
            "NaN": math.nan,
            "inf": math.inf,
            "beyond the calendar": 1e15,
            "datetime": datetime.now(UTC),
        }.items()
    ),
]


@pytest.mark.parametrize("case", CONSTRUCTION, ids=lambda case: case.name)
def test_a_wrong_option_is_refused_at_construction(case, connections):
    with pytest.raises(case.error) as refused:
        case.call()
    check(refused.value, case)
    assert connections == []


@pytest.mark.parametrize("name", ["tabel", "ttl", "prefix"])
def test_an_unknown_option_is_a_type_error(name):
    with pytest.raises(TypeError, match=name):
        store_with(**{name: 1})()
