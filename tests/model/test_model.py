"""The protocol holds in every order of steps, and each of its rules is needed for that."""

from __future__ import annotations

from typing import Final

import pytest

from akv.tokens.rules import Rule
from tests.model.__main__ import main
from tests.model.ablations import ABLATIONS, ANCESTOR, GATE_ABLATIONS, SOUND, Ablation
from tests.model.catalogue import GATE_ROWS, HUGE, LONG, QUICK
from tests.model.explorer import explore
from tests.model.gate_rows import GateRows
from tests.model.protocol import Protocol
from tests.model.scenario import Scenario

ENOUGH: Final = 200_000
"""States; the largest scenario of a test run has a third of them."""


def title(thing: object) -> str:
    """Name a parameter of a test."""
    if isinstance(thing, Ablation):
        return thing.unsound.title
    assert isinstance(thing, Scenario | GateRows)
    return thing.title


@pytest.mark.parametrize("scenario", dict.fromkeys((*QUICK, *SOUND)), ids=title)
def test_scenario_is_sound(scenario: Scenario) -> None:
    result = explore(Protocol(scenario), ENOUGH)
    assert not result.violation, "\n".join(result.trace)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=title)
def test_rule_left_out_is_caught(ablation: Ablation) -> None:
    result = explore(Protocol(ablation.unsound), ENOUGH)
    assert f"{ablation.violation}:" in result.violation


def test_every_rule_has_an_ablation() -> None:
    assert {ablation.rule for ablation in ABLATIONS} == set(Rule)


@pytest.mark.parametrize("rows", GATE_ROWS, ids=title)
def test_gate_rows_are_sound(rows: GateRows) -> None:
    assert not explore(rows).violation


@pytest.mark.parametrize("rows", GATE_ABLATIONS, ids=title)
def test_gate_rows_used_otherwise_are_caught(rows: GateRows) -> None:
    assert explore(rows).violation.startswith("WRONG:")


@pytest.mark.parametrize("scenario", ANCESTOR, ids=title)
def test_ancestor_is_caught(scenario: Scenario) -> None:
    result = explore(Protocol(scenario))
    assert result.violation.startswith("POISONED:" if scenario.only_at_rest else "STALE:")


def test_no_two_scenarios_are_the_same() -> None:
    every = [*QUICK, *LONG, *HUGE]
    assert len(set(every)) == len(every)
    assert len({scenario.title for scenario in every}) == len(every)


def test_command_shows_the_shortest_way_into_a_violation() -> None:
    lines: list[str] = []
    assert main(["show", "without DIRTY_IS_PRIVATE"], lines.append) == 0
    steps = [line.split(maxsplit=1)[1] for line in lines if line.startswith("     ")]
    assert steps == [
        "W12 changes a row",
        "DIRTY0 takes the stamp of 1.0",
        "DIRTY0 calls",
        "DIRTY0 R1: 1.0",
        "DIRTY0 misses",
        "DIRTY0 computes {W12}",
        "DIRTY0 saves and returns {W12}",
    ]
    assert lines[-1] == "as expected"


def test_command_fails_when_something_is_not_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("tests.model.__main__.QUICK", (ABLATIONS[0].unsound,))
    assert main(["show", "without MARK_BEFORE_COMMIT"], lines.append) == 1
    assert lines[-1] == "NOT AS EXPECTED: without MARK_BEFORE_COMMIT: RC"


@pytest.mark.parametrize("arguments", [["tell"], ["show"], ["quick", "RC"]])
def test_command_says_how_it_is_used(arguments: list[str]) -> None:
    lines: list[str] = []
    assert main(arguments, lines.append) == 2
    assert lines[0].startswith("usage:")
