"""
uvloop beside plain asyncio: the same calls on both, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.contenders import contenders_for
from benchmarks.contenders.contender import Absent, Contender, need
from benchmarks.harness import Case, Effort, Round, calls, closed_loop, entries
from benchmarks.options import dialect_of, effort_of
from benchmarks.places import NoServer, fill, place_for
from benchmarks.report import Report

MIXES = {"get": 1.0, "set": 0.0}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(contenders=["akv", "core"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 64], help="tasks that call at once (1 64)")
    parser.add_argument("--rows", type=int, default=10_000, help="entries (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure in a thread for each loop, so that both kinds take turns in one process."""
    try:
        loops = {"asyncio": asyncio.new_event_loop, "uvloop": need("uvloop", "uvloop").new_event_loop}
    except Absent as reason:
        report.console.print(f"[yellow]uvloop is absent: {escape(str(reason))}")
        report.add(absent=str(reason))
        return
    effort = effort_of(options)
    cases = [Case(tasks, options.rows, gets=gets) for tasks in options.tasks for gets in MIXES.values()]
    kinds = {backend: contenders_for(dialect_of(backend), options.contenders) for backend in options.backends}
    table = Table(title="uvloop beside asyncio", title_justify="left")
    for column in ("backend", "contender", "case", "asyncio calls/s", "uvloop calls/s", "ratio", "by CPU"):
        table.add_column(column, justify="left" if column in ("backend", "contender", "case") else "right")
    with report.progress(sum(map(len, kinds.values())) * len(cases) * effort.rounds * 2) as tick:
        for backend in options.backends:
            try:
                async with place_for(backend) as place:
                    report.server(backend, place.settings)
                    await fill(place, entries(cases[0], effort.seed))
                    for kind in kinds[backend]:
                        for case in cases:
                            found: dict[str, list[Round]] = {name: [] for name in loops}
                            for _ in range(effort.rounds):
                                for name, make in loops.items():
                                    tick(f"{backend}: {kind.name} on {name}")
                                    found[name].append(await asyncio.to_thread(_on, make, kind(place), case, effort))
                            table.add_row(
                                backend, kind.name, case.title, *_tell(report, backend, kind.name, case, found)
                            )
            except NoServer as reason:
                report.no_server(backend, str(reason))
    report.console.print(table)


def _on(make: Any, contender: Contender, case: Case, effort: Effort) -> Round:
    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(_measure(contender, case, effort))


async def _measure(contender: Contender, case: Case, effort: Effort) -> Round:
    await contender.open()
    try:
        ops = calls(case, effort.seed, contender.value)
        await closed_loop(contender, ops, case.tasks, effort.warm_up)
        return (await closed_loop(contender, ops, case.tasks, effort.seconds))[0]
    finally:
        await contender.close()


def _tell(report: Report, backend: str, name: str, case: Case, found: dict[str, list[Round]]) -> list[str]:
    pairs = list(zip(found["uvloop"], found["asyncio"], strict=True))
    rate = statistics.median(fast.rate / plain.rate for fast, plain in pairs)
    cpu = statistics.median(plain.cpu / fast.cpu for fast, plain in pairs)
    rates = {loop: statistics.median(one.rate for one in rounds) for loop, rounds in found.items()}
    described = {slot: getattr(case, slot) for slot in case.__slots__}
    report.add(backend=backend, contender=name, case=described, rates=rates, ratio=rate, cpu_ratio=cpu)
    return [f"{rates['asyncio']:,.0f}", f"{rates['uvloop']:,.0f}", f"{rate:.2f}x", f"{cpu:.2f}x"]
