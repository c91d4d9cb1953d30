"""
``python -m tests.model``: explore, and say whether all ended as expected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from tests.model.ablations import ABLATIONS, ANCESTOR, GATE_ABLATIONS, SOUND
from tests.model.catalogue import GATE_ROWS, HUGE, LONG, QUICK
from tests.model.explorer import Explorable, Result, explore
from tests.model.protocol import Protocol
from tests.model.scenario import Scenario

Model: TypeAlias = Explorable[Any]
Models: TypeAlias = list[tuple[Model, str]]
"""Each with the first word of the violation that is expected; empty: none is."""

WIDTH: Final = 66


def main(arguments: list[str], write: Callable[[str], object] = print) -> int:
    """Run one command; return the exit status."""
    command, names = (arguments or ["all"])[0], arguments[1:]
    if command not in ("all", "quick", "huge", "show") or (command == "show") != bool(names):
        write("usage: python -m tests.model [all | quick | huge | show NAME...]")
        return 2
    tables = _tables(command)
    if names:
        tables = {title: [m for m in models if _is_named(m[0], names)] for title, models in tables.items()}
    results = [result for title, models in tables.items() for result in _report(title, models, bool(names), write)]
    return _conclude(results, write)


def _tables(command: str) -> dict[str, Models]:
    if command == "huge":
        return {"scenarios": _expected(map(Protocol, HUGE), "")}
    every = (*QUICK, *SOUND) if command == "quick" else (*QUICK, *SOUND, *LONG)
    return {
        "scenarios": _expected([*map(Protocol, dict.fromkeys(every)), *GATE_ROWS], ""),
        "rules left out": [
            *((Protocol(ablation.unsound), ablation.violation) for ablation in ABLATIONS),
            *_expected(GATE_ABLATIONS, "WRONG"),
        ],
        "the ancestor": [(Protocol(scenario), _of_ancestor(scenario)) for scenario in ANCESTOR],
    }


def _expected(models: Iterable[Model], violation: str) -> Models:
    return [(model, violation) for model in models]


def _of_ancestor(scenario: Scenario) -> str:
    return "POISONED" if scenario.only_at_rest else "STALE"


def _is_named(model: Model, names: list[str]) -> bool:
    return any(name in model.title for name in names)


def _report(
    title: str, models: Models, traces: bool, write: Callable[[str], object]
) -> Iterable[tuple[str, Result, bool]]:
    if models:
        write(f"\n{title:{WIDTH}}    states transitions  seconds")
    for model, expected in models:
        result = explore(model)
        outcome = f"{len(result.trace)} steps, {result.violation}" if result.violation else ""
        write(f"{model.title:{WIDTH}}{result.states:10,}{result.transitions:12,}{result.seconds:9.1f}  {outcome}")
        for number, line in enumerate(result.trace if traces else (), 1):
            write(f"    {number:2} {line}")
        yield model.title, result, is_as_expected(result, expected)


def is_as_expected(result: Result, expected: str) -> bool:
    """Tell whether an exploration found the violation that it should, or none."""
    return f"{expected}:" in result.violation if expected else not result.violation


def _conclude(results: list[tuple[str, Result, bool]], write: Callable[[str], object]) -> int:
    surprises = [title for title, _, is_expected in results if not is_expected]
    states, seconds = sum(result.states for _, result, _ in results), sum(result.seconds for _, result, _ in results)
    write(f"\n{len(results)} explored, {states:,} states, {seconds:.0f} s")
    write("NOT AS EXPECTED: " + "; ".join(surprises) if surprises else "as expected")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
