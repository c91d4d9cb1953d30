"""
What a hit costs: near ones beside other caches of coroutines, those with dependencies beside the query itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from itertools import cycle
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from akv import AsyncKVAlchemy
from benchmarks.bound import Bound, Sessions, be_patient, bound, filled, unbound
from benchmarks.contenders import Absent
from benchmarks.contenders.contender import need
from benchmarks.far import far
from benchmarks.harness import Effort, Tick
from benchmarks.options import effort_of
from benchmarks.places import NoServer, Place, place_for
from benchmarks.report import Report
from benchmarks.rounds import Call, Measured, in_turns, ratio
from benchmarks.works import WORKS, Work, fill_orders
from tests.proxy import TCPProxy

PARTS: Final = ("near", "hits")
NEAR_GOAL: Final = 5.0
_FAR: Final = 0.001
_KEYS: Final = 100
"""Calls of near caches that are timed together, each with another argument: one alone is too short for the clock."""
_NUMBERS: Final = range(1, 11)
_COUNTED: Final = 10
_TTL: Final = 3_600
_QUERY, _AUTOCOMMIT, _HIT, _NEAR = "query", "query, AUTOCOMMIT", "hit", "hit, near"
_WAYS: Final = (_QUERY, _AUTOCOMMIT, _HIT, _NEAR)
_DISTANCES: Final = ("local", "1 ms away")

Ask = Callable[[int], Awaitable[Any]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["postgres"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (all)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure near hits in memory, and hits with dependencies where the database and Redis are servers."""
    effort = effort_of(options)
    servers = [backend for backend in options.backends if not backend.startswith("sqlite")]
    with report.progress(_steps(options, effort, len(servers))) as tick:
        if "near" in options.parts:
            await _near(effort, report, tick)
        for backend in options.backends if "hits" in options.parts else ():
            if backend not in servers:
                report.no_server(backend, "there is no way to it on which round trips could be counted or slowed down")
                continue
            try:
                async with filled(backend) as (place, _):
                    await fill_orders(place)
                    report.server(backend, place.settings)
                    await _hits(place, effort, report, tick)
            except NoServer as reason:
                report.no_server(backend, str(reason))
    _judge(report)


def _steps(options: argparse.Namespace, effort: Effort, servers: int) -> int:
    ways = {"near": 5, "hits": servers * len(WORKS) * len(_WAYS) * len(_DISTANCES)}
    return (effort.rounds + 1) * sum(ways[part] for part in options.parts)


# --- near, without dependencies ---------------------------------------------------------------------------------------


async def _near(effort: Effort, report: Report, tick: Tick) -> None:
    absent: dict[str, str] = {}
    async with place_for("sqlite") as place, AsyncKVAlchemy(place.url, sweep_every=None) as kv:
        be_patient(kv)
        asks: dict[str, Ask] = {
            "akv, a str": kv.memoize(near=2 * _KEYS, version="str")(_name),
            "akv, a dict, copied": kv.memoize(near=2 * _KEYS, version="dict")(_profile),
            "akv, a dict, near_shared": kv.memoize(near=2 * _KEYS, near_shared=True, version="shared")(_profile),
        }
        for name, decorate in (("async_lru", _async_lru), ("cachetools", _cachetools)):
            try:
                asks[name] = decorate(_name)
            except Absent as reason:
                absent[name] = str(reason)
        for ask in asks.values():
            for number in range(_KEYS):
                await ask(number)
        found = await in_turns({name: [_many(ask)] for name, ask in asks.items()}, effort, tick, "near hits")
    _tell_near(report, found, absent)


async def _name(number: int) -> str:
    return f"user {number}"


async def _profile(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"user {number}", "mail": f"{number}@example.org", "roles": ["reader", "writer"]}


def _async_lru(function: Ask) -> Ask:
    found: Ask = need("async_lru", "async_lru").alru_cache(maxsize=2 * _KEYS, ttl=_TTL)(function)
    return found


def _cachetools(function: Ask) -> Ask:
    """Wrap a coroutine function as users of cachetools do, which has nothing for them itself."""
    cachetools = need("cachetools", "cachetools")
    key_of = need("cachetools.keys", "cachetools").hashkey
    cache: Any = cachetools.TTLCache(maxsize=2 * _KEYS, ttl=_TTL)

    @wraps(function)
    async def cached(*args: Any, **kwargs: Any) -> Any:
        key = key_of(*args, **kwargs)
        try:
            return cache[key]
        except KeyError:
            cache[key] = value = await function(*args, **kwargs)
            return value

    return cached


def _many(ask: Ask) -> Call:
    """Call with every argument once, and tell the mean."""

    async def call() -> float:
        began = time.perf_counter()
        for number in range(_KEYS):
            await ask(number)
        return (time.perf_counter() - began) / _KEYS

    return call


def _tell_near(report: Report, found: Mapping[str, Measured], absent: Mapping[str, str]) -> None:
    table = _table(
        f"hits near, without dependencies: means of {_KEYS} calls", ("", "p50 us", "p90 us", "p99 us", "of async_lru")
    )
    yardstick = found.get("async_lru")
    for name, each in found.items():
        told = each.summary()
        told["of_one"] = told.pop("part", None)
        beside = ratio(each.medians, yardstick.medians) if yardstick else None
        report.add(part="near", way=name, calls_together=_KEYS, of_async_lru=beside, **told)
        table.add_row(name, *_times(told, 1000), "" if beside is None else f"{beside:.2f}x")
    for name, reason in absent.items():
        report.add(part="near", way=name, absent=reason)
        table.add_row(name, f"[yellow]absent: {escape(reason)}")
    report.console.print(table)


# --- with dependencies ------------------------------------------------------------------------------------------------


class _App:
    """One process of an application, at one distance from its servers."""

    def __init__(self, name: str, plain: Sessions, autocommit: Sessions, made: Bound, kv: AsyncKVAlchemy) -> None:
        self.name = name
        self._plain = plain
        self._autocommit = autocommit
        self._made = made
        self._kv = kv

    def ways(self, work: Work) -> dict[str, Any]:
        """Make the ways of getting what *work* finds, each a function of a number."""
        return {
            _QUERY: _asking(work, self._plain),
            _AUTOCOMMIT: _asking(work, self._autocommit),
            _HIT: self._memoized(work, _HIT),
            _NEAR: self._memoized(work, _NEAR, near=2 * len(_NUMBERS)),
        }

    def _memoized(self, work: Work, way: str, **options: Any) -> Any:
        version = f"{self.name}/{work.name}/{way}"
        return self._kv.memoize(version=version, **work.rests_on, **options)(_asking(work, self._made.sessions))


def _asking(work: Work, sessions: Sessions) -> Ask:
    async def asked(number: int) -> Any:
        async with sessions() as session:
            return await work.find(session, number)

    return asked


@asynccontextmanager
async def _app(place: Place, name: str, url: str, redis_url: str) -> AsyncIterator[_App]:
    async with AsyncExitStack() as stack:
        engine, plain = await stack.enter_async_context(unbound(url))
        made = await stack.enter_async_context(bound(place, name.replace(" ", "_"), url=url, redis_url=redis_url))
        kv = await stack.enter_async_context(AsyncKVAlchemy(url, tokens=made.tokens, sweep_every=None))
        be_patient(kv)
        autocommit: Sessions = type(plain)(engine.execution_options(isolation_level="AUTOCOMMIT"))
        yield _App(name, plain, autocommit, made, kv)


async def _hits(place: Place, effort: Effort, report: Report, tick: Tick) -> None:
    url = place.url.render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        far_url = await stack.enter_async_context(far(url, _FAR))
        far_redis = await stack.enter_async_context(far(place.redis_url, _FAR))
        database = await stack.enter_async_context(TCPProxy.before(url))
        redis = await stack.enter_async_context(TCPProxy.before(place.redis_url))
        addresses = ((url, place.redis_url), (far_url, far_redis))
        apps = [
            await stack.enter_async_context(_app(place, name, *where))
            for name, where in zip(_DISTANCES, addresses, strict=True)
        ]
        counted = await stack.enter_async_context(_app(place, "counted", database.url, redis.url))
        for work in WORKS:
            trips = await _trips(counted.ways(work), lambda: (database.requests, redis.requests))
            await _measure(place, work, apps, trips, effort, report, tick)


async def _trips(ways: Mapping[str, Any], count: Callable[[], tuple[int, int]]) -> dict[str, dict[str, float]]:
    """How often each way goes to the database and to Redis, on average."""
    found = {}
    for way, ask in ways.items():
        await _prime(ask)
        before = count()
        for _, number in zip(range(_COUNTED), cycle(_NUMBERS), strict=False):
            await ask(number)
        after = count()
        names = ("database", "redis")
        found[way] = {name: (end - begin) / _COUNTED for name, begin, end in zip(names, before, after, strict=True)}
    return found


async def _prime(ask: Any) -> None:
    """
    Ask for everything, twice.

    Raises:
        AssertionError: The second time was no hit of what is memoized.
    """
    for _ in range(2):
        for number in _NUMBERS:
            await ask(number)
    info = _info(ask)
    if info is not None and (info.hits, info.misses) != (len(_NUMBERS), len(_NUMBERS)):
        raise AssertionError(f"{ask!r} does not remember: {info}")


def _info(ask: Any) -> Any:
    return ask.cache_info() if hasattr(ask, "cache_info") else None


async def _measure(
    place: Place,
    work: Work,
    apps: Sequence[_App],
    trips: Mapping[str, Mapping[str, float]],
    effort: Effort,
    report: Report,
    tick: Tick,
) -> None:
    asks = {(app.name, way): ask for app in apps for way, ask in app.ways(work).items()}
    expected = [await asks[apps[0].name, _QUERY](number) for number in _NUMBERS]
    for ask in asks.values():
        await _prime(ask)
        if [await ask(number) for number in _NUMBERS] != expected:
            raise AssertionError(f"{ask!r} does not find what the query finds")
    ways = {f"{way}, {distance}": [_one(ask)] for (distance, way), ask in asks.items()}
    found = await in_turns(ways, effort, tick, f"{place.backend}: {work.title}")
    table = _table(
        f"{place.backend}: {work.title}",
        ("", "database trips", "Redis trips", "p50 ms", "p90 ms", "p99 ms", "CPU us", "of query", "of AUTOCOMMIT"),
    )
    verdicts = []
    for (distance, way), ask in asks.items():
        each = found[f"{way}, {distance}"]
        beside = {name: ratio(each.medians, found[f"{name}, {distance}"].medians) for name in (_QUERY, _AUTOCOMMIT)}
        told = each.summary() | {"of_query": beside[_QUERY], "of_autocommit": beside[_AUTOCOMMIT], "trips": trips[way]}
        info = _info(ask)
        if info is not None:
            told |= {"cold": info.misses - len(_NUMBERS), "bypasses": info.bypasses, "verdict": _verdict(beside)}
            verdicts.append(f"{distance}, {way}: {told['verdict']}")
        report.add(part="hits", backend=place.backend, work=work.name, distance=distance, way=way, **told)
        table.add_row(f"{way}, {distance}", *_cells(told))
    report.console.print(table)
    for verdict in verdicts:
        report.console.print(f"[dim]{place.backend}, {work.name}, {verdict}")


def _one(ask: Ask) -> Call:
    numbers = cycle(_NUMBERS)

    async def call() -> None:
        await ask(next(numbers))

    return call


def _verdict(beside: Mapping[str, float]) -> str:
    """Say who is cheaper."""
    dearer = [f"{name} ({slower:.2f}x)" for name, slower in beside.items() if slower > 1]
    if not dearer:
        return f"the hit is cheaper than the {_QUERY} ({beside[_QUERY]:.2f}x)"
    return f"the query is cheaper: a hit takes longer than the {' and the '.join(dearer)}"


def _cells(told: Mapping[str, Any]) -> list[str]:
    trips = [f"{told['trips'][name]:g}" for name in ("database", "redis")]
    if "failed" in told:
        return [*trips, f"[red]{escape(told['failed'])}"]
    cells = [*trips, *_times(told), f"{told['cpu']:.0f}", f"{told['of_query']:.2f}x", f"{told['of_autocommit']:.2f}x"]
    if told["errors"]:
        cells[-1] += f" [red]{told['errors']} errors: {escape(told['first_error'])}"
    if told.get("cold") or told.get("bypasses"):
        cells[-1] += f" [red]{told['cold']} misses, {told['bypasses']} bypasses"
    return cells


def _times(told: Mapping[str, Any], scale: float = 1) -> list[str]:
    times = told.get("of_one") or told["latencies"]
    return [f"{times[name] * scale:.2f}" for name in ("p50", "p90", "p99")]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _judge(report: Report) -> None:
    """Hold the results against the goals."""
    verdicts = [*_goals(report.document["results"])]
    report.document["goals"] = verdicts
    if verdicts:
        table = _table("goals", ("", "goal", "reached", "met"))
        for each in verdicts:
            said = "[green]met" if each["met"] else "[red]missed"
            table.add_row(each["what"], each["goal"], each["reached"], said)
        report.console.print(table)


def _goals(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in results:
        if one["part"] == "near" and one["way"].startswith("akv") and one["of_async_lru"]:
            reached, what = one["of_async_lru"], f"near hit beside async_lru: {one['way']}"
            yield _goal(what, f"within {NEAR_GOAL:g}x", f"{reached:.2f}x", reached <= NEAR_GOAL)
        if one["part"] == "hits" and one["way"] == _NEAR and one["distance"] == _DISTANCES[0]:
            trips = (one["trips"]["database"], one["trips"]["redis"])
            what = f"{one['backend']}: round trips of a near hit: {one['work']}"
            yield _goal(what, "0 database, 1 Redis", f"{trips[0]:g} database, {trips[1]:g} Redis", trips == (0, 1))


def _goal(what: str, goal: str, reached: str, met: bool) -> dict[str, Any]:
    return {"what": what, "goal": goal, "reached": reached, "met": met}
