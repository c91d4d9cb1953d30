"""
Four processes of 25 tasks write to one SQLite file at once.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

from rich.table import Table

from benchmarks.contenders import Contender, contenders_for
from benchmarks.harness import Case, calls, closed_loop, entries, percentiles
from benchmarks.options import effort_of
from benchmarks.places import Place, fill, place_for
from benchmarks.report import Report

GOAL = 8.0
_PATIENCE = 120.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["sqlite", "sqlite-normal"], contenders=["akv", "core"])
    parser.add_argument("--processes", type=int, default=4, help="processes (%(default)s)")
    parser.add_argument("--tasks", type=int, default=25, help="tasks of each (%(default)s)")
    parser.add_argument("--rows", type=int, default=10_000, help="entries (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure akv beside single statements in AUTOCOMMIT."""
    backends = [backend for backend in options.backends if backend.startswith("sqlite")]
    kinds = contenders_for("sqlite", options.contenders)
    case = Case(options.tasks, options.rows, gets=0.0)
    effort = effort_of(options)
    with report.progress(len(backends) * len(kinds) * effort.rounds) as tick:
        for backend in backends:
            async with place_for(backend) as place:
                report.server(backend, place.settings)
                await fill(place, entries(case, effort.seed))
                found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}
                for number in range(effort.rounds):
                    for kind in kinds:
                        tick(f"{backend}: {options.processes} processes: {kind.name}")
                        seed = effort.seed + 1000 * number
                        work = (place, kind.name, case, effort.seconds, seed, options.processes)
                        found[kind.name].append(await asyncio.to_thread(_together, *work))
            _tell(report, backend, options, found)


def _together(place: Place, name: str, case: Case, seconds: float, seed: int, processes: int) -> dict[str, Any]:
    """Start processes, which begin to write at the same moment."""
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_worker, args=(place, name, case, seconds, seed + number, gate, answers), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        results = [answers.get(timeout=_PATIENCE + seconds) for _ in workers]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()
            worker.join()
    latencies = [each for result in results for each in result["latencies"]]
    return {
        "rate": sum(result["rate"] for result in results),
        "errors": sum(result["errors"] for result in results),
        "first_error": next((result["first_error"] for result in results if result["first_error"]), ""),
        "latencies": percentiles(latencies),
    }


def _worker(
    place: Place, name: str, case: Case, seconds: float, seed: int, gate: Barrier, answers: Queue[dict[str, Any]]
) -> None:
    (kind,) = contenders_for("sqlite", [name])
    answers.put(asyncio.run(_write(kind(place), case, seconds, seed, gate)))


async def _write(contender: Contender, case: Case, seconds: float, seed: int, gate: Barrier) -> dict[str, Any]:
    latencies: list[float] = []
    await contender.open()
    try:
        ops = calls(case, seed, contender.value)
        await asyncio.to_thread(gate.wait, _PATIENCE)
        result, error = await closed_loop(contender, ops, case.tasks, seconds, latencies)
    finally:
        await contender.close()
    return {"rate": result.rate, "errors": result.errors, "first_error": error, "latencies": latencies}


def _tell(report: Report, backend: str, options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    title = f"{backend}: {options.processes} processes of {options.tasks} tasks write"
    table = Table(title=title, title_justify="left")
    for column in ("contender", "sets/s", "p50 ms", "p99 ms", "max ms", "errors", "akv is"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, rounds in found.items():
        ratio = statistics.median(
            mine["rate"] / max(other["rate"], 1e-9)
            for mine, other in zip(found.get("akv", rounds), rounds, strict=True)
        )
        rate = statistics.median(one["rate"] for one in rounds)
        times = {part: statistics.median(one["latencies"][part] for one in rounds) for part in rounds[0]["latencies"]}
        errors = sum(one["errors"] for one in rounds)
        report.add(
            backend=backend,
            contender=name,
            rate=rate,
            latencies=times,
            errors=errors,
            first_error=next((one["first_error"] for one in rounds if one["first_error"]), ""),
            akv_is=ratio,
            goal=GOAL,
            rounds=rounds,
        )
        shown = [f"{times[part]:.2f}" for part in ("p50", "p99", "max")]
        table.add_row(name, f"{rate:,.0f}", *shown, str(errors), f"{ratio:.2f}x")
    report.console.print(table)
