"""What is accumulated, and the committed run against its goal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.history.results import COMMITTED, VIOLATIONS, Goal, Results, RoundResult, code, missing
from tests.history.systems import POSTGRES
from tests.history.worker import faults_for

ROUND = RoundResult(
    commit="c",
    code="s",
    database="postgres",
    servers="PostgreSQL, Redis",
    algorithm="akv",
    seed=1,
    seconds=60.0,
    reads=1000,
    hits=900,
    fills=80,
    bypasses={"marked": 20},
    faults={"kill W1": 2, "stall W1": 1},
    ended={"worker": 2},
    errors={},
)
GOAL = Goal(reads=2000, faults=3, hits=0.8)
FAULTS = ("kill W1", "stall W1")


def results(*rounds: RoundResult) -> Results:
    found = Results()
    for each in rounds:
        found.add(each)
    return found


def test_rounds_add_up() -> None:
    enough = replace(ROUND, seed=2, faults={"kill W1": 1, "stall W1": 2})
    assert missing(results(ROUND, enough), GOAL, FAULTS) == []
    summary = results(ROUND, enough).summary()
    assert (summary["reads"], summary["hits"], summary["seeds"]) == (2000, 0.9, [1, 2])
    assert summary["faults"] == {"kill W1": 3, "stall W1": 3}


def test_whatever_is_missing_is_named() -> None:
    few = replace(ROUND, hits=700)
    assert missing(results(few), GOAL, FAULTS) == [
        "1,000 reads, not 2,000",
        "70.0% hits, not 80%",
        "kill W1: 2 times, not 3",
        "stall W1: 1 times, not 3",
    ]


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_one_violation_is_too_many(kind: str) -> None:
    found = results(*[ROUND] * 5, replace(ROUND, violations={kind: 1}))
    assert missing(found, GOAL, FAULTS) == [f"1 times {kind}"]


def test_other_trials_do_not_count() -> None:
    found = results(*[ROUND] * 3, replace(ROUND, algorithm="ancestor", violations={"stale": 5}))
    assert missing(found, GOAL, FAULTS) == []
    assert missing(results(*[replace(ROUND, database="sqlite")] * 3), GOAL, ()) != []


def test_rounds_of_different_code_are_no_proof() -> None:
    found = results(*[ROUND] * 3, replace(ROUND, code="another"))
    assert missing(found, GOAL, FAULTS) == ["the rounds are of 2 different states of akv"]


def test_file_accumulates(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    for _ in range(2):
        found = Results.load(path)
        found.add(ROUND)
        found.save(path)
    assert json.loads(path.read_text())["totals"]["akv on postgres"]["reads"] == 2000
    assert len(code()) == 16


def test_committed_run_reaches_the_goal() -> None:
    if not COMMITTED.exists():
        pytest.skip("no long run has been committed yet: python -m tests.history --minutes 60 --out <this file>")
    assert missing(Results.load(COMMITTED), Goal(), faults_for(POSTGRES)) == []
