"""
The base case: 100 bytes, 64 tasks, 100,000 rows, uniform keys; 90 % gets, then pure gets and pure sets.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from benchmarks.contenders import contenders_for
from benchmarks.harness import Case, Effort, Field, Tick
from benchmarks.options import dialect_of, effort_of
from benchmarks.places import NoServer, place_for
from benchmarks.report import Report

MIXES = {"get": 1.0, "set": 0.0, "mixed": 0.9}


@dataclass(frozen=True, slots=True)
class Goal:
    """akv is to be so many times better than somebody, by calls per second or by CPU time per call."""

    backend: str
    mix: str
    beside: str
    at_least: float
    by: str = "rate"
    tasks: int = 64


def _goals() -> Iterable[Goal]:
    yield Goal("postgres", "get", "session", 50)
    yield Goal("postgres", "set", "session", 45)
    yield Goal("postgres", "get", "core", 15)
    yield Goal("postgres", "set", "core", 10)
    yield Goal("postgres", "get", "asyncpg", 8, "cpu")
    yield Goal("postgres", "set", "asyncpg", 8, "cpu")
    yield Goal("postgres", "get", "cashews", 5)
    yield Goal("postgres", "get", "aiocache", 5)
    for backend in ("sqlite", "sqlite-normal"):
        yield Goal(backend, "get", "session", 70)
        yield Goal(backend, "set", "session", 140)
        yield Goal(backend, "get", "core", 30)
        yield Goal(backend, "set", "core", 35)
        yield Goal(backend, "set", "aiosqlite", 2.5, "cpu")
    yield Goal("mariadb", "get", "session", 40)
    yield Goal("mariadb", "set", "session", 30)
    yield Goal("mariadb", "get", "core", 14)
    yield Goal("mariadb", "set", "core", 6)
    for backend in ("postgres", "sqlite", "sqlite-normal", "mariadb"):
        for mix in ("get", "set"):
            taken = {("postgres", "get"): 1.2, ("sqlite", "get"): 1.5, ("sqlite-normal", "get"): 1.5}
            yield Goal(backend, mix, "core", taken.get((backend, mix), 0.95), tasks=1)


GOALS = tuple(_goals())


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tasks", type=int, nargs="+", default=[64], help="tasks that call at once (%(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="entries (%(default)s)")
    parser.add_argument("--size", type=int, default=100, help="bytes of a value (%(default)s)")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES), help="get, set, mixed (all)")
    parser.add_argument("--runs", type=int, default=1, help="whole runs, of whose results medians are taken (1)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure every contender on every backend."""
    effort = effort_of(options)
    cases = [
        (mix, Case(tasks, options.rows, options.size, MIXES[mix])) for tasks in options.tasks for mix in options.mixes
    ]
    kinds = {backend: contenders_for(dialect_of(backend), options.contenders) for backend in options.backends}
    steps = sum(len(found) for found in kinds.values()) * len(cases) * (effort.rounds + 1) * options.runs
    with report.progress(steps) as tick:
        for number in range(options.runs):
            for backend in options.backends:
                await _backend(
                    backend, cases, replace(effort, seed=effort.seed + number), report, tick, options, number
                )
    _judge(report)


async def _backend(
    backend: str,
    cases: list[tuple[str, Case]],
    effort: Effort,
    report: Report,
    tick: Tick,
    options: argparse.Namespace,
    number: int,
) -> None:
    try:
        kinds = contenders_for(dialect_of(backend), options.contenders)
        async with place_for(backend) as place, Field.of(place, kinds, effort, cases[0][1]) as field:
            report.server(backend, place.settings)
            for mix, case in cases:
                report.case(backend, case, await field.measure(case, tick), mix=mix, run=number)
    except NoServer as reason:
        report.no_server(backend, str(reason))


def _judge(report: Report) -> None:
    """Hold the results against the goals: the median over the runs."""
    table = Table(title="goals", title_justify="left")
    for column in ("backend", "tasks", "call", "beside", "goal", "reached"):
        table.add_column(column, justify="right" if column in ("goal", "reached") else "left")
    verdicts: list[dict[str, Any]] = []
    for goal in GOALS:
        found = [ratio for result in report.document["results"] for ratio in _reached(goal, result)]
        if not found:
            continue
        reached = statistics.median(found)
        is_met = reached >= goal.at_least
        verdicts.append({name: getattr(goal, name) for name in goal.__slots__} | {"reached": reached, "met": is_met})
        by = " by CPU" if goal.by == "cpu" else ""
        shown = f"[{'green' if is_met else 'red'}]{reached:.2f}x"
        table.add_row(goal.backend, str(goal.tasks), goal.mix, goal.beside + by, f"{goal.at_least}x", shown)
    report.document["goals"] = verdicts
    if verdicts:
        report.console.print(table)


def _reached(goal: Goal, result: Mapping[str, Any]) -> Iterable[float]:
    if (result["backend"], result["mix"], result["case"]["tasks"]) == (goal.backend, goal.mix, goal.tasks):
        for one in result["contenders"]:
            if one["name"] == goal.beside and "akv_is" in one:
                yield one["akv_is"][goal.by]
