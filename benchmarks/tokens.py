"""
What it costs that keys never go stale: commits, statements and keys of bound engines beside those of unbound ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from rich.markup import escape
from rich.table import Table
from sqlalchemy import select, update

from benchmarks import capture
from benchmarks.ancestor import Ancestor
from benchmarks.bound import ROWS, TABLE, Bound, Row, Sessions, bound, changing, filled, unbound
from benchmarks.contenders.contender import need
from benchmarks.far import far
from benchmarks.harness import Effort, Tick
from benchmarks.options import effort_of
from benchmarks.places import NoServer, Place
from benchmarks.report import Report
from benchmarks.rounds import Call, Measured, in_turns, ratio
from benchmarks.trips import counter, trips_of

PARTS: Final = ("commit", "hot", "keys", "capture")
KEYS_GOAL: Final = 20.0
_FAR: Final = 0.001


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["postgres", "mariadb", "sqlite"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (all)")
    parser.add_argument(
        "--changed", type=int, nargs="+", default=[0, 1, 100, 1_000], help="rows of a commit (%(default)s)"
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 64], help="tasks that make keys at once (1 64)")
    parser.add_argument("--instances", type=int, default=10, help="instances of a key (%(default)s)")
    parser.add_argument("--writers", type=int, default=8, help="tasks that change the hot row (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure on every backend: SQLite with tokens in the same file, the others with Redis."""
    effort = effort_of(options)
    with report.progress(_steps(options, effort)) as tick:
        for backend in options.backends:
            try:
                async with filled(backend, ":ancestor") as (place, ancestor):
                    report.server(backend, place.settings)
                    await _Run(place, ancestor, options, effort, report, tick).run()
            except NoServer as reason:
                report.no_server(backend, str(reason))
    _judge(report)


def _steps(options: argparse.Namespace, effort: Effort) -> int:
    ways = {"commit": 2 * len(options.changed), "hot": 3, "keys": 2 * len(options.tasks), "capture": len(capture.KINDS)}
    return len(options.backends) * (effort.rounds + 1) * sum(ways[part] for part in options.parts)


class _Run:
    """One backend."""

    def __init__(
        self,
        place: Place,
        ancestor: Ancestor,
        options: argparse.Namespace,
        effort: Effort,
        report: Report,
        tick: Tick,
    ) -> None:
        self._place = place
        self._ancestor = ancestor
        self._options = options
        self._effort = effort
        self._report = report
        self._tick = tick

    async def run(self) -> None:
        """Measure what was asked for."""
        parts = {"commit": self._commits, "hot": self._hot, "keys": self._keys, "capture": self._capture}
        for name in self._options.parts:
            await parts[name]()

    async def _ways(self, stack: AsyncExitStack) -> tuple[Sessions, Bound]:
        _, plain = await stack.enter_async_context(unbound(self._place.url))
        return plain, await stack.enter_async_context(bound(self._place, "near"))

    async def _turns(self, ways: Mapping[str, Sequence[Call]], title: str) -> dict[str, Measured]:
        return await in_turns(ways, self._effort, self._tick, f"{self._place.backend}: {title}")

    # --- commits

    async def _commits(self) -> None:
        table = _table(
            f"{self._place.backend}: commit() of a session",
            ("rows changed", "p50 ms", "p99 ms", "bound p50", "bound p99", "ratio", "CPU us more", "trips", "bound"),
        )
        async with AsyncExitStack() as stack:
            plain, made = await self._ways(stack)
            counted = await stack.enter_async_context(counter(self._place))
            for rows in self._options.changed:
                ways = {"unbound": [changing(plain, rows)], "bound": [changing(made.sessions, rows)]}
                found = await self._turns(ways, f"commit of {rows} rows")
                trips = {way: await trips_of(counted, way, rows) for way in ways}
                self._tell_commit(table, rows, found, trips)
        self._report.console.print(table)

    def _tell_commit(
        self, table: Table, rows: int, found: Mapping[str, Measured], trips: Mapping[str, Mapping[str, float]]
    ) -> None:
        one, other = found["unbound"], found["bound"]
        slower = ratio(other.medians, one.medians)
        more = statistics.median(mine - theirs for mine, theirs in zip(other.cpus, one.cpus, strict=False))
        self._report.add(
            part="commit",
            backend=self._place.backend,
            rows=rows,
            commit_ratio=slower,
            cpu_more=more,
            ways={way: each.summary() | {"trips": trips[way]} for way, each in found.items()},
        )
        times = [f"{each.summary()['part'][name]:.2f}" for each in (one, other) for name in ("p50", "p99")]
        table.add_row(
            f"{rows:,}",
            *times,
            f"{slower:.2f}x",
            f"{more:,.0f}",
            *map(_shown_trips, (trips["unbound"], trips["bound"])),
        )

    # --- a hot row

    async def _hot(self) -> None:
        writers = self._options.writers
        ways: dict[str, Sequence[Call]] = {}
        pings: dict[str, float] = {}
        async with AsyncExitStack() as stack:
            plain, made = await self._ways(stack)
            ways["unbound"] = [_incrementing(plain)] * writers
            ways["bound"] = [_incrementing(made.sessions)] * writers
            if self._place.dialect != "sqlite":
                url = await stack.enter_async_context(far(self._place.redis_url, _FAR))
                away = await stack.enter_async_context(bound(self._place, "far", redis_url=url))
                ways["bound, Redis 1 ms away"] = [_incrementing(away.sessions)] * writers
                pings = {"near": await _ping(self._place.redis_url), "far": await _ping(url)}
            found = await self._turns(ways, f"{writers} writers of one row")
        self._tell_hot(found, pings)

    def _tell_hot(self, found: Mapping[str, Measured], pings: Mapping[str, float]) -> None:
        table = _table(
            f"{self._place.backend}: {self._options.writers} tasks change one row",
            ("", "commits/s", "of unbound", "p50 ms", "p99 ms", "CPU us", "errors"),
        )
        for way, each in found.items():
            told = each.summary() | {"of_unbound": ratio(each.rates, found["unbound"].rates)}
            self._report.add(
                part="hot", backend=self._place.backend, way=way, writers=self._options.writers, pings=pings, **told
            )
            table.add_row(way, *_cells(told, told["of_unbound"]))
        self._report.console.print(table)
        if pings:
            self._report.console.print(
                f"[dim]a PING takes {pings['near']:.2f} ms, and {pings['far']:.2f} ms through the proxy"
            )

    # --- keys

    async def _keys(self) -> None:
        table = _table(
            f"{self._place.backend}: keys of {self._options.instances} instances",
            ("tasks", "who", "keys/s", "akv is", "p50 ms", "p99 ms", "CPU us", "errors"),
        )
        async with AsyncExitStack() as stack:
            _, made = await self._ways(stack)
            await changing(made.sessions, ROWS - 1)()  # so that tokens of every row have been written
            await made.keys("akv:*#*")  # and this process has seen the newest: what is loaded now is as new
            sets = [await self._loaded(stack, made, number) for number in range(max(self._options.tasks))]
            for tasks in self._options.tasks:
                akv: Sequence[Call] = [_key_of_akv(made, each) for each in sets[:tasks]]
                theirs: Sequence[Call] = [_key_of_ancestor(self._ancestor, each) for each in sets[:tasks]]
                found = await self._turns({"akv": akv, "alkey": theirs}, f"keys, {tasks} tasks")
                for who, each in found.items():
                    told = each.summary() | {"akv_is": ratio(found["akv"].rates, each.rates)}
                    self._report.add(part="keys", backend=self._place.backend, tasks=tasks, who=who, **told)
                    table.add_row(str(tasks), who, *_cells(told, told["akv_is"]))
        self._report.console.print(table)

    async def _loaded(self, stack: AsyncExitStack, made: Bound, number: int) -> list[Row]:
        """Load instances as a handler does; they stay in a session of their own, which has no transaction open."""
        session = await stack.enter_async_context(made.sessions())
        size = self._options.instances
        first = 1 + number * size % (ROWS - size)
        rows = await session.scalars(select(Row).where(Row.id.between(first, first + size - 1)).order_by(Row.id))
        found = list(rows)
        await session.commit()
        for each in found:  # the ancestor's tokens are there too
            await self._ancestor.key(each)
        return found

    # --- statements

    async def _capture(self) -> None:
        table = _table(f"{self._place.backend}: in listeners, of a statement", ("", "ns", "smallest", "largest"))
        times = max(3, int(100 * self._effort.seconds))
        async with AsyncExitStack() as stack:
            clock = capture.Clock()
            engine, plain = await stack.enter_async_context(unbound(self._place.url))
            clock.before(engine)
            made = await stack.enter_async_context(bound(self._place, "near", before=clock.before))
            stack.enter_context(clock.behind(engine, made.engine))
            found: dict[str, list[float]] = {kind.name: [] for kind in capture.KINDS}
            for number in range(self._effort.rounds + 1):
                for kind in capture.KINDS:
                    self._tick(f"{self._place.backend}: listeners: {kind.name}")
                    idle = await capture.nanoseconds(kind, plain, clock, times)
                    busy = await capture.nanoseconds(kind, made.sessions, clock, times)
                    if number:
                        found[kind.name].append(busy - idle)
        for name, each in found.items():
            middle = statistics.median(each)
            self._report.add(part="capture", backend=self._place.backend, kind=name, nanoseconds=middle, rounds=each)
            table.add_row(name, *(f"{value:,.0f}" for value in (middle, min(each), max(each))))
        self._report.console.print(table)


def _incrementing(sessions: Sessions) -> Call:
    change = update(TABLE).where(TABLE.c.id == 1).values(value=TABLE.c.value + 1)

    async def increment() -> None:
        async with sessions.begin() as session:
            await session.execute(change)

    return increment


def _key_of_akv(made: Bound, instances: Sequence[Row]) -> Call:
    async def key() -> None:
        if not (await made.keys(*instances)).shared:
            raise AssertionError(f"a key was private: {dict(made.keys.private)}")

    return key


def _key_of_ancestor(ancestor: Ancestor, instances: Sequence[Row]) -> Call:
    async def key() -> None:
        await ancestor.key(*instances)

    return key


async def _ping(url: str) -> float:
    """Milliseconds that Redis takes to answer nothing in particular."""
    client = need("redis.asyncio", "redis").Redis.from_url(url)
    found = []
    for _ in range(50):
        began = time.perf_counter()
        await client.ping()
        found.append(time.perf_counter() - began)
    await client.aclose()
    return statistics.median(found) * 1000


def _cells(told: Mapping[str, Any], beside: float) -> list[str]:
    if "failed" in told:
        return [f"[red]{escape(told['failed'])}"]
    errors = f"[red]{told['errors']}: {escape(told['first_error'])}" if told["errors"] else "0"
    times = [f"{told['latencies'][name]:.2f}" for name in ("p50", "p99")]
    return [f"{told['rate']:,.0f}", f"{beside:.2f}x", *times, f"{told['cpu']:.0f}", errors]


def _shown_trips(trips: Mapping[str, float]) -> str:
    return f"{trips['commit_database']:g} + {trips['commit_redis']:g} Redis"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "who") else "right")
    return table


def _judge(report: Report) -> None:
    """Hold the results against the goals."""
    verdicts = [*_goals(report.document["results"])]
    report.document["goals"] = verdicts
    if verdicts:
        table = _table("goals", ("", "goal", "reached"))
        for each in verdicts:
            colour = "green" if each["met"] else "red"
            table.add_row(each["what"], each["goal"], f"[{colour}]{each['reached']:.2f}")
        report.console.print(table)


def _goals(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in results:
        if one["part"] == "keys" and one["who"] == "alkey" and one["tasks"] == 64 and one["backend"] != "sqlite":
            reached = one["akv_is"]
            what = f"{one['backend']}: keys/s at 64 tasks beside alkey"
            yield {"what": what, "goal": f"at least {KEYS_GOAL:g}x", "reached": reached, "met": reached >= KEYS_GOAL}
        if one["part"] == "commit" and one["rows"] == 0:
            trips = {way: told["trips"] for way, told in one["ways"].items()}
            more = sum(trips["bound"][name] - trips["unbound"][name] for name in ("commit_database", "commit_redis"))
            what = f"{one['backend']}: round trips that a commit without changes adds"
            yield {"what": what, "goal": "0", "reached": more, "met": more == 0}
