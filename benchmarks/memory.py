"""
What an idle store costs: RSS after the first get, minus RSS with SQLAlchemy and the driver imported.
"""

from __future__ import annotations

import argparse
import statistics

from rich.table import Table

from benchmarks.children import ask
from benchmarks.places import NoServer, fill, place_for
from benchmarks.report import Report

GOAL = 5.0
_WHAT = {"akv": "akv", "session": "engine and AsyncSession alone"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["sqlite", "postgres", "mariadb"])


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure fresh processes, one after the other."""
    table = Table(title="an idle store", title_justify="left")
    for column in ("backend", "what", "MiB", "smallest", "largest", "goal"):
        table.add_column(column, justify="left" if column in ("backend", "what") else "right")
    with report.progress(len(options.backends) * len(_WHAT) * options.rounds) as tick:
        for backend in options.backends:
            try:
                async with place_for(backend) as place:
                    report.server(backend, place.settings)
                    await fill(place, {"user:000000001:profile": b"x" * 100})
                    url = place.akv_url.render_as_string(hide_password=False)
                    found: dict[str, list[float]] = {name: [] for name in _WHAT}
                    for number in range(options.rounds):
                        for name in _WHAT:
                            tick(f"{backend}: {name}, process {number + 1}")
                            found[name].append((await ask(f"idle-{name}", url))["bytes"] / 2**20)
            except NoServer as reason:
                report.no_server(backend, str(reason))
                continue
            for name, each in found.items():
                middle = statistics.median(each)
                goal = GOAL if name == "akv" else None
                report.add(backend=backend, contender=name, mebibytes=middle, rounds=each, goal=goal)
                numbers = [f"{middle:.2f}", f"{min(each):.2f}", f"{max(each):.2f}", f"< {goal}" if goal else ""]
                table.add_row(backend, _WHAT[name], *numbers)
    report.console.print(table)
