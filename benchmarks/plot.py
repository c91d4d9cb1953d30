"""
Results as SVG, beside the JSON files that they are drawn from.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import Report
from benchmarks.svg import Bars, Lines, chart

_NAMES = {
    "sqlite": "SQLite, synchronous=FULL",
    "sqlite-normal": "SQLite, synchronous=NORMAL",
    "postgres": "PostgreSQL",
    "mariadb": "MariaDB",
}
Document = Mapping[str, Any]
Drawings = Iterator[tuple[str, str]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", type=Path, help="results in JSON")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Draw what there is a drawing for."""
    for path in options.files:
        document = json.loads(path.read_text())
        for suffix, text in drawings(document):
            target = path.with_name(f"{path.stem}{suffix}.svg")
            target.write_text(text)
            report.console.print(f"drawn: {target}")


def drawings(document: Document) -> Drawings:
    """
    Draw a document.

    Returns:
        Endings of file names, and SVG.
    """
    draw: Callable[[Document], Drawings] | None = _DRAWINGS.get(document["benchmark"])
    if draw is not None and any("absent" not in result for result in document["results"]):
        yield from draw(document)


def _base(document: Document) -> Drawings:
    for backend in dict.fromkeys(result["backend"] for result in document["results"]):
        rates: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for result in document["results"]:
            if result["backend"] == backend:
                for one in result["contenders"]:
                    if "rate" in one:
                        rates[result["case"]["tasks"], result["mix"]][one["title"]].append(one["rate"])
        panels = [
            Bars(f"{_mix(mix)}, {tasks} task{'s' if tasks > 1 else ''}: calls/s", _falling(found))
            for (tasks, mix), found in rates.items()
        ]
        if panels:
            yield f"-{backend}", chart(_NAMES[backend], panels, columns=3)


def _mix(mix: str) -> str:
    return {"get": "gets", "set": "sets", "mixed": "90 % gets, 10 % sets"}[mix]


def _falling(found: Mapping[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(each) for name, each in found.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def _factors(document: Document) -> Drawings:
    for factor in dict.fromkeys(result["factor"] for result in document["results"]):
        results = [result for result in document["results"] if result["factor"] == factor]
        panels = []
        for backend in dict.fromkeys(result["backend"] for result in results):
            here = [result for result in results if result["backend"] == backend]
            groups: dict[str, list[Any]] = defaultdict(list)
            for result in here:
                gets = result["case"]["gets"]
                groups["" if factor == "mix" else f", {gets:.0%} gets"].append(result)
            panels += [_lines(f"{_NAMES[backend]}{name}", factor, each) for name, each in groups.items()]
        yield f"-{factor}", chart(f"calls/s by {factor}", panels, columns=3)


def _lines(title: str, factor: str, results: list[Any]) -> Lines:
    titles = dict.fromkeys(one["title"] for result in results for one in result["contenders"] if "rate" in one)
    series: dict[str, list[float | None]] = {name: [] for name in titles}
    for result in results:
        rates = {one["title"]: one.get("rate") for one in result["contenders"]}
        for name, each in series.items():
            each.append(rates.get(name))
    return Lines(title, [_step(factor, result["case"]) for result in results], series)


def _step(factor: str, case: Mapping[str, Any]) -> str:
    if factor == "size":
        return {10_240: "10 KiB", 1_048_576: "1 MiB"}.get(case["size"], f"{case['size']} B")
    if factor == "mix":
        return f"{case['gets']:.0%} gets"
    if factor == "keys":
        return "hot" if case["hot"] else "uniform"
    return f"{case[factor]:,}"


def _processes(document: Document) -> Drawings:
    panels = []
    for backend in dict.fromkeys(result["backend"] for result in document["results"]):
        rates = {one["contender"]: one["rate"] for one in document["results"] if one["backend"] == backend}
        panels.append(Bars(f"{_NAMES[backend]}: sets/s", rates))
    yield "", chart("four processes of 25 tasks write to one SQLite file", panels)


def _sweep(document: Document) -> Drawings:
    panels = [
        Bars(
            f"{_NAMES[result['backend']]}: p99 of gets",
            {when: statistics.median(one[when]["p99"] for one in result["rounds"]) for when in ("without", "during")},
            ours="during",
            unit=" ms",
        )
        for result in document["results"]
    ]
    yield "", chart("gets while expired rows are swept", panels)


def _mebibytes(title: str) -> Callable[[Document], Drawings]:
    def draw(document: Document) -> Drawings:
        values = {
            f"{one['contender']}, {one['backend']}": one["mebibytes"]
            for one in document["results"]
            if "mebibytes" in one
        }
        yield "", chart(title, [Bars("MiB", values, unit=" MiB")])

    return draw


def _uvloop(document: Document) -> Drawings:
    panels = []
    for backend in dict.fromkeys(result["backend"] for result in document["results"]):
        ratios = {
            f"{one['contender']}, {'gets' if one['case']['gets'] else 'sets'}, {one['case']['tasks']} tasks": one[
                "ratio"
            ]
            for one in document["results"]
            if one["backend"] == backend
        }
        panels.append(Bars(f"{_NAMES[backend]}: uvloop beside asyncio", ratios, unit="x"))
    yield "", chart("uvloop", panels)


def _tokens(document: Document) -> Drawings:
    for backend in dict.fromkeys(result["backend"] for result in document["results"]):
        parts: dict[str, list[Any]] = defaultdict(list)
        for result in document["results"]:
            if result["backend"] == backend:
                parts[result["part"]].append(result)
        panels = [panel for part, draw in _TOKENS.items() if (panel := draw(parts[part])) is not None]
        yield f"-{backend}", chart(f"{_NAMES[backend]}: bound sessions beside others", panels)


def _commits(results: list[Any]) -> Bars | None:
    values = {
        f"{way}, {result['rows']:,} rows": told["part"]["p50"]
        for result in results
        for way, told in result["ways"].items()
        if "part" in told
    }
    return Bars("commit(), p50", values, ours="bound", unit=" ms") if values else None


def _hot(results: list[Any]) -> Bars | None:
    values = {result["way"]: result["rate"] for result in results if "rate" in result}
    return Bars("commits/s that change one row", values, ours="bound") if values else None


def _keys(results: list[Any]) -> Bars | None:
    values = {f"{each['who']}, {each['tasks']} tasks": each["rate"] for each in results if "rate" in each}
    return Bars("keys/s", values) if values else None


def _capture(results: list[Any]) -> Bars | None:
    values = {result["kind"]: max(0.0, result["nanoseconds"]) / 1000 for result in results}
    return Bars("time in listeners, a statement", values, unit=" us") if values else None


_TOKENS: dict[str, Callable[[list[Any]], Bars | None]] = {
    "commit": _commits,
    "hot": _hot,
    "keys": _keys,
    "capture": _capture,
}
_DRAWINGS: dict[str, Callable[[Document], Drawings]] = {
    "base": _base,
    "factors": _factors,
    "processes": _processes,
    "sweep": _sweep,
    "scan": _mebibytes("peak memory of a scan"),
    "memory": _mebibytes("an idle store"),
    "uvloop": _uvloop,
    "tokens": _tokens,
}
