"""
The table at the end of a test run: what passed, failed and was skipped, by backend and suite.

A pytest plugin. The suite of a test is the first folder below ``tests``, or
its file where it lies there directly; the backend is that of the fixture
``backend``, or "-".
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

NO_BACKEND = "-"
TOTAL = "total"

Counts: TypeAlias = dict[str, dict[str, Counter[str]]]
"""How many tests had which outcome, by backend and suite."""


Place: TypeAlias = tuple[str, int, str]
"""File, line and reason of a skip."""


@dataclass
class Result:
    """What became of one test."""

    backend: str
    suite: str
    outcome: str


_results: dict[str, Result] = {}
_counted: Counter[tuple[str, str]] = Counter()


def note_counter(backend: str, counter: str, number: int) -> None:
    """Keep what a server counted of the failures that a test provoked on it; printed at the end, added up."""
    _counted[backend, counter] += number


def stable_id(value: object) -> str:
    """Name a parameter of a test: as it looks, without the address that is another one in each worker."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value) if isinstance(value, str) else repr(value))[:60]


def suite_of(nodeid: str) -> str:
    """Return the suite that a test belongs to."""
    parts = PurePosixPath(nodeid.partition("::")[0]).parts
    inside = parts[1:] if parts[:1] == ("tests",) else parts or (NO_BACKEND,)
    return inside[0] if len(inside) > 1 else inside[0].removeprefix("test_").removesuffix(".py")


def render(counts: Counts) -> list[str]:
    """Return the lines of the table; a cell is passed/failed/skipped, empty where nothing ran."""
    suites = sorted({suite for row in counts.values() for suite in row})
    rows = [["backend", *suites, TOTAL]]
    for backend, row in counts.items():
        rows.append([backend, *(_cell(row.get(suite)) for suite in suites), _cell(_sum(row.values()))])
    columns = [_sum(row.get(suite, Counter()) for row in counts.values()) for suite in suites]
    rows.append([TOTAL, *map(_cell, columns), _cell(_sum(columns))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, start=Counter())


def _cell(counter: Counter[str] | None) -> str:
    return f"{counter['passed']}/{counter['failed']}/{counter['skipped']}" if counter else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and call.excinfo is not None and isinstance(report.longrepr, tuple):
        report.longrepr = _where_skipped(call.excinfo, report.longrepr)
    callspec = getattr(item, "callspec", None)
    vars(report)["backend"] = callspec.params.get("backend", NO_BACKEND) if callspec else NO_BACKEND
    return report


def _where_skipped(raised: pytest.ExceptionInfo[BaseException], default: Place) -> Place:
    """Blame the line that found a server absent, not the test: pytest then folds all its tests into one line."""
    for entry in raised.traceback:
        if Path(entry.path).name == "servers.py":
            return str(entry.path), entry.lineno + 1, default[2]
    return default


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A test counts once: by its call, unless its set-up skipped or broke it or its teardown breaks.
    if report.when == "call" or not report.passed:
        backend = str(getattr(report, "backend", NO_BACKEND))
        _results[report.nodeid] = Result(backend, suite_of(report.nodeid), report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of several hands its counters over."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["counted"] = [[*key, number] for key, number in _counted.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for backend, counter, number in getattr(node, "workeroutput", {}).get("counted", ()):
        note_counter(backend, counter, number)


def count(results: Iterable[Result]) -> Counts:
    """Add up the results of tests."""
    counts: Counts = {}
    for result in results:
        counts.setdefault(result.backend, {}).setdefault(result.suite, Counter())[result.outcome] += 1
    return counts


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _results:
        return
    terminalreporter.section("backend x suite: passed/failed/skipped")
    for line in render(count(_results.values())):
        terminalreporter.write_line(line)
    if _counted:
        terminalreporter.section("failures provoked, as the servers counted them")
    for (backend, counter), number in sorted(_counted.items()):
        terminalreporter.write_line(f"{backend:24}{counter:48}{number:>6}")
