"""
The most memory that a scan over 1,000,000 rows takes.
"""

from __future__ import annotations

import argparse
import statistics
import time

from rich.markup import escape
from rich.table import Table

from benchmarks.children import ask
from benchmarks.contenders import Absent
from benchmarks.contenders.contender import need
from benchmarks.contenders.threads import SYNC_DRIVERS
from benchmarks.harness import Case, entries
from benchmarks.places import NoServer, Place, fill, place_for
from benchmarks.report import Report


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["sqlite", "postgres", "mariadb"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="entries (%(default)s)")
    parser.add_argument("--size", type=int, default=100, help="bytes of a value (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure fresh processes, one after the other."""
    table = Table(title=f"a scan over {options.rows:,} rows of {options.size:,} B", title_justify="left")
    for column in ("backend", "what", "peak MiB", "entries", "seconds"):
        table.add_column(column, justify="left" if column in ("backend", "what") else "right")
    absent = _ancestor_is_absent()
    if absent:
        report.console.print(f"[yellow]kvalchemy is absent: {escape(absent)}")
    with report.progress(len(options.backends) * 2 * options.rounds) as tick:
        for backend in options.backends:
            try:
                async with place_for(backend) as place:
                    report.server(backend, place.settings)
                    await fill(place, entries(Case(rows=options.rows, size=options.size), options.seed))
                    for name, url in _urls(place, absent).items():
                        peaks, seconds, found = [], [], {}
                        for _ in range(options.rounds):
                            tick(f"{backend}: {name}")
                            began = time.perf_counter()
                            found = await ask(f"scan-{name}", url)
                            seconds.append(time.perf_counter() - began)
                            peaks.append(found["bytes"] / 2**20)
                        middle, took = statistics.median(peaks), statistics.median(seconds)
                        report.add(
                            backend=backend,
                            contender=name,
                            mebibytes=middle,
                            rounds=peaks,
                            entries=found["entries"],
                            seconds=took,
                        )
                        table.add_row(backend, name, f"{middle:.1f}", f"{found['entries']:,}", f"{took:.1f}")
                    if absent:
                        report.add(backend=backend, contender="kvalchemy", absent=absent)
            except NoServer as reason:
                report.no_server(backend, str(reason))
    report.console.print(table)


def _ancestor_is_absent() -> str:
    try:
        need("kvalchemy", "kvalchemy")
    except Absent as reason:
        return str(reason)
    return ""


def _urls(place: Place, absent: str) -> dict[str, str]:
    urls = {"akv": place.akv_url.render_as_string(hide_password=False)}
    if not absent:
        urls["kvalchemy"] = place.url.set(drivername=SYNC_DRIVERS[place.dialect]).render_as_string(hide_password=False)
    return urls
