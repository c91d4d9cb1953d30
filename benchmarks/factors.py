"""
One factor at a time, away from the base case: size, tasks, mix, hot keys, rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.contenders import YARDSTICKS, Contender, contenders_for
from benchmarks.harness import Case, Effort, Field, Tick
from benchmarks.options import dialect_of, effort_of
from benchmarks.places import NoServer, place_for
from benchmarks.report import Report

_SIZES = {100: 1.0, 10 * 2**10: 0.1, 2**20: 0.002}
"""Bytes of a value, and the part of the rows that keeps the table below half a gigabyte."""
_TASKS = (1, 16, 64, 256, 1024)
_MIXES = (1.0, 0.9, 0.5, 0.0)
_ROWS = (0.01, 0.1, 1.0, 10.0)
"""Of the base case's 100,000: 1,000 to 1,000,000."""
FACTORS = ("size", "tasks", "mix", "keys", "rows")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(contenders=list(YARDSTICKS))
    parser.add_argument("--factors", nargs="+", choices=FACTORS, default=list(FACTORS), help="which (all)")
    parser.add_argument("--rows", type=int, default=100_000, help="entries of the base case (%(default)s)")


def series(factor: str, rows: int) -> Iterator[Case]:
    """List the cases of a factor; the base case is among them."""
    base = Case(rows=rows)
    if factor == "size":
        yield from (replace(base, size=size, rows=max(64, int(rows * part))) for size, part in _SIZES.items())
    elif factor == "tasks":
        yield from (replace(base, tasks=tasks, gets=gets) for gets in (1.0, 0.9, 0.0) for tasks in _TASKS)
    elif factor == "mix":
        yield from (replace(base, gets=gets) for gets in _MIXES)
    elif factor == "keys":
        yield from (replace(base, hot=hot) for hot in (False, True))
    else:
        yield from (replace(base, rows=max(10, int(rows * part)), gets=gets) for part in _ROWS for gets in (1.0, 0.9))


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure the yardsticks on every backend."""
    effort = effort_of(options)
    found = {factor: list(series(factor, options.rows)) for factor in options.factors}
    kinds = {backend: contenders_for(dialect_of(backend), options.contenders) for backend in options.backends}
    steps = sum(map(len, kinds.values())) * sum(map(len, found.values())) * (effort.rounds + 1)
    with report.progress(steps) as tick:
        for backend in options.backends:
            for factor, cases in found.items():
                for filled in dict.fromkeys((case.rows, case.size) for case in cases):
                    same = [case for case in cases if (case.rows, case.size) == filled]
                    await _same_table(backend, same, kinds[backend], effort, report, tick, factor)
    _growth(report)


async def _same_table(
    backend: str,
    cases: list[Case],
    kinds: list[type[Contender]],
    effort: Effort,
    report: Report,
    tick: Tick,
    factor: str,
) -> None:
    try:
        async with place_for(backend) as place, Field.of(place, kinds, effort, cases[0]) as field:
            report.server(backend, place.settings)
            for case in cases:
                report.case(backend, case, await field.measure(case, tick), factor=factor)
    except NoServer as reason:
        report.no_server(backend, str(reason))


def _growth(report: Report) -> None:
    """Say how the cost of a get grows with the table, and what 256 tasks are beside 64."""
    derived: list[dict[str, object]] = []
    for backend in dict.fromkeys(result["backend"] for result in report.document["results"]):
        by_rows, by_tasks = (_gets(report, backend, factor) for factor in ("rows", "tasks"))
        if by_rows:
            what = f"dearest get beside the cheapest, {min(by_rows):,} to {max(by_rows):,} rows"
            ratio = max(by_rows.values()) / min(by_rows.values())
            derived.append({"backend": backend, "what": what, "ratio": ratio, "goal": "at most 1.3"})
        if {64, 256} <= by_tasks.keys():
            goal = "at least 1.7" if backend == "postgres" else "none"
            ratio = by_tasks[256] / by_tasks[64]
            derived.append({"backend": backend, "what": "gets/s, 256 tasks beside 64", "ratio": ratio, "goal": goal})
    for one in derived:
        report.console.print(f"{one['backend']}: {one['what']}: {one['ratio']:.2f} (goal: {one['goal']})")
    report.document["derived"] = derived


def _gets(report: Report, backend: str, factor: str) -> dict[int, float]:
    """Gets per second of akv by the steps of a factor."""
    return {
        result["case"][factor]: one["rate"]
        for result in report.document["results"]
        if (result["backend"], result["factor"], result["case"]["gets"]) == (backend, factor, 1.0)
        for one in result["contenders"]
        if one["name"] == "akv" and "rate" in one
    }
