"""
How long gets take while 1,000,000 expired rows are deleted.

The sweep runs in every other stretch of time, so that both are measured in the
same noise.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

from rich.table import Table
from sqlalchemy import text

from benchmarks.contenders.akv import Akv
from benchmarks.harness import Case, Effort, calls, closed_loop, entries, percentiles
from benchmarks.options import effort_of
from benchmarks.places import NoServer, Place, fill, place_for
from benchmarks.report import Report

GOAL = 3.0
_AT_ONCE = 50_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tasks", type=int, default=64, help="tasks that get at once (%(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="live entries (%(default)s)")
    parser.add_argument("--expired", type=int, default=1_000_000, help="expired entries (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure gets without a sweep and during it, in turns."""
    effort = effort_of(options)
    case = Case(options.tasks, options.rows, gets=1.0)
    with report.progress(len(options.backends) * effort.rounds) as tick:
        for backend in options.backends:
            try:
                async with place_for(backend) as place:
                    report.server(backend, place.settings)
                    await fill(place, entries(case, effort.seed))
                    rounds = []
                    for number in range(effort.rounds):
                        tick(f"{backend}: sweep {number + 1}")
                        rounds.append(await _round(place, case, effort, options.expired))
            except NoServer as reason:
                report.no_server(backend, str(reason))
            else:
                _tell(report, backend, options.expired, rounds)


async def _bury(place: Place, expired: int, seed: int) -> None:
    for start in range(0, expired, _AT_ONCE):
        some = entries(Case(rows=min(_AT_ONCE, expired - start)), seed)
        dead = {f"dead:{start}:{key}": data for key, data in some.items()}
        await fill(place, dead, expire=-1)


async def _round(place: Place, case: Case, effort: Effort, expired: int) -> dict[str, Any]:
    await _bury(place, expired, effort.seed)
    contender = Akv(place)
    await contender.open()
    try:
        before = await _dead(contender)
        ops = calls(case, effort.seed, contender.value)
        await closed_loop(contender, ops, case.tasks, effort.warm_up)
        without: list[float] = []
        during: list[float] = []
        errors, took, is_swept = 0, 0.0, False
        while not is_swept:
            quiet, _ = await closed_loop(contender, ops, case.tasks, effort.seconds, without)
            began = time.perf_counter()
            sweep = asyncio.create_task(contender.store.purge_expired())
            busy, _ = await closed_loop(contender, ops, case.tasks, effort.seconds, during)
            took += time.perf_counter() - began
            is_swept = sweep.done()
            sweep.cancel()
            await asyncio.wait([sweep])
            errors += quiet.errors + busy.errors
        swept = before - await _dead(contender)
    finally:
        await contender.close()
    times = {"without": percentiles(without), "during": percentiles(during)}
    ratio = times["during"]["p99"] / times["without"]["p99"]
    return {**times, "p99_ratio": ratio, "seconds": took, "swept": swept, "errors": errors}


async def _dead(contender: Akv) -> int:
    async with contender.store.session(commit=False) as session:
        return int((await session.execute(text("SELECT count(*) FROM kvstore WHERE expire IS NOT NULL"))).scalar_one())


def _tell(report: Report, backend: str, expired: int, rounds: list[dict[str, Any]]) -> None:
    table = Table(title=f"{backend}: gets while {expired:,} expired rows are swept", title_justify="left")
    for column in ("", "p50 ms", "p90 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if not column else "right")
    for when in ("without", "during"):
        table.add_row(
            when, *(f"{statistics.median(one[when][part] for one in rounds):.2f}" for part in rounds[0][when])
        )
    report.console.print(table)
    ratio = statistics.median(one["p99_ratio"] for one in rounds)
    seconds = statistics.median(one["seconds"] for one in rounds)
    said = f"p99 during the sweep is {ratio:.2f}x of without (goal: at most {GOAL}), {seconds:.1f} s"
    report.console.print(f"{backend}: {said}")
    report.add(backend=backend, p99_ratio=ratio, goal=GOAL, rounds=rounds)
