"""
What a run tells: a table for people, a document for results.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.contenders import ALL
from benchmarks.harness import Case, Outcome, Tick, ratios

_PACKAGES = (
    *("sqlalchemy", "greenlet", "asyncpg", "aiosqlite", "asyncmy", "psycopg", "pymysql", "redis", "uvloop"),
    *("async_lru", "cachetools", "dogpile.cache"),
)
_ROOT = Path(__file__).resolve().parent.parent


class Report:
    """One run of one benchmark."""

    def __init__(self, benchmark: str, arguments: list[str], options: Mapping[str, Any], console: Console) -> None:
        self.console = console
        self.document: dict[str, Any] = {
            "benchmark": benchmark,
            "command": " ".join(["python", "-m", "benchmarks", *arguments]),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            **_commit(),
            "options": dict(options),
            "machine": machine(),
            "versions": versions(),
            "servers": {},
            "absent_backends": {},
            "results": [],
        }

    def server(self, backend: str, settings: Mapping[str, str]) -> None:
        """Note what decides the durability of a backend."""
        self.document["servers"][backend] = dict(settings)
        self.console.print(f"[dim]{backend}: {', '.join(f'{name}={value}' for name, value in settings.items())}")

    def no_server(self, backend: str, reason: str) -> None:
        """Note a backend that is not to be had."""
        self.document["absent_backends"][backend] = reason
        self.console.print(f"[yellow]{backend} is absent: {escape(reason)}")

    def add(self, **result: Any) -> None:
        """Note a result."""
        self.document["results"].append(result)

    def case(self, backend: str, case: Case, outcomes: list[Outcome], **more: Any) -> None:
        """Note and print what everybody did in a case."""
        described = {name: getattr(case, name) for name in case.__slots__}
        against = compare(outcomes)
        rows = [one.summary() | ({"akv_is": against[one.name]} if one.name in against else {}) for one in outcomes]
        self.add(backend=backend, case=described, contenders=rows, **more)
        self.console.print(case_table(backend, case, outcomes, against))

    def write(self, path: Path) -> None:
        """Write the document."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document, indent=1, default=str) + "\n")
        self.console.print(f"written: {path}")

    @contextmanager
    def progress(self, total: int) -> Iterator[Tick]:
        """Show how far a run is; each tick says what begins now."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=-1)
            yield lambda now: bar.update(task, advance=1, description=now)


def compare(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Put akv beside everybody else."""
    ours = next((one for one in outcomes if one.name == "akv" and one.measured), None)
    if ours is None:
        return {}
    return {one.name: ratios(ours, one) for one in outcomes if one.measured and one is not ours}


def case_table(backend: str, case: Case, outcomes: list[Outcome], against: Mapping[str, Mapping[str, float]]) -> Table:
    """Arrange a case for people."""
    table = Table(title=f"{backend}: {case.title}", title_justify="left")
    table.add_column("contender")
    for name in ("calls/s", "p50 ms", "p90 ms", "p99 ms", "CPU us", "akv is", "by CPU"):
        table.add_column(name, justify="right")
    table.add_column("errors, durability, serializer, setup", overflow="fold")
    for one in outcomes:
        table.add_row(one.title, *_cells(one, against.get(one.name)))
    return table


def _cells(one: Outcome, against: Mapping[str, float] | None) -> list[str]:
    if not one.measured:
        return [""] * 7 + [f"[yellow]{'absent' if one.absent else 'failed'}: {escape(one.absent or one.failed)}"]
    data = one.summary()
    times = [f"{data['latencies'][name]:.2f}" for name in ("p50", "p90", "p99")]
    beside = ["1", "1"] if against is None else [f"{against['rate']:.2f}x", f"{against['cpu']:.2f}x"]
    errors = sum(each.errors for each in one.rounds)
    misses = sum(each.misses for each in one.rounds)
    notes = [f"[red]{errors} errors ({escape(one.first_error)})[/red]"] if errors else []
    notes += [f"[red]{misses} misses[/red]"] if misses else []
    return [
        f"{data['rate']:,.0f}",
        *times,
        f"{data['cpu']:.1f}",
        *beside,
        "; ".join([*notes, *filter(None, (one.durability, one.serializer, one.setup))]),
    ]


def machine() -> dict[str, Any]:
    """Describe the machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": model, "cpus": os.cpu_count(), "system": platform.platform(), "load_at_start": load}


def versions() -> dict[str, str]:
    """Tell which versions ran."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([*_PACKAGES, *(one.distribution for one in ALL if one.distribution)]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        try:
            ran = subprocess.run(
                ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return ran.stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or "unknown", "changed_since": bool(git("status", "--porcelain", "akv"))}


def is_terminal() -> bool:
    """Whether people are watching."""
    return sys.stderr.isatty()
