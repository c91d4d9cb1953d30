"""Short histories on real servers, the ancestor's among them, and the checker on a system without one of its rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from akv.tokens.rules import Rule
from tests.history.__main__ import ABSENT
from tests.history.ablations import TABLE, Ablation
from tests.history.results import VIOLATIONS, Goal, Results, missing
from tests.history.systems import MARIADB, POSTGRES, SQLITE
from tests.history.worker import faults_for
from tests.servers import absent

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)
SCHEDULE = ("--round", "20", "--writes", "30", "--plans", "200", "--pace", "1000")
"""Denser than that of a long run: everything is to happen within a minute, on a machine busy with other tests."""


def history(*arguments: str, seconds: float = 800) -> subprocess.CompletedProcess[str]:
    """Run the checker in a process of its own: it forks, and this one may have threads."""
    command = [sys.executable, "-m", "tests.history", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode == ABSENT:
        absent(done.stderr.strip())
    return done


def summary_of(path: Path, database: str, algorithm: str = "akv") -> dict[str, Any]:
    return Results.load(path).of(algorithm, database).summary()


@pytest.mark.parametrize(
    ("database", "minutes", "hits"), [(POSTGRES, 1.0, 0.6), (MARIADB, 0.4, 0.4), (SQLITE, 0.3, 0.4)]
)
def test_nothing_is_stale_whatever_goes_wrong(tmp_path: Path, database: str, minutes: float, hits: float) -> None:
    out = tmp_path / "out.json"
    goal = Goal(reads=5_000, faults=1, hits=hits, database=database)
    done = history(
        *("--database", database, "--minutes", str(minutes), "--at-most", "8", *SCHEDULE, "--out", str(out)),
        *("--goal-reads", str(goal.reads), "--goal-faults", str(goal.faults), "--goal-hits", str(goal.hits)),
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert missing(Results.load(out), goal, faults_for(database)) == []
    errors = summary_of(out, database)["errors"]
    assert [name for name in errors if name.startswith("unexpected")] == []


def kinds_of_ancestor(out: Path, wanted: str, rounds: int) -> set[str]:
    """Run the ancestor until a kind of violation is found; return all that were."""
    found: set[str] = set()
    for seed in range(1, rounds + 1):
        done = history(
            *("--algorithm", "ancestor", "--minutes", "0.3", *SCHEDULE), *("--seed", str(seed), "--out", str(out))
        )
        assert done.returncode in (0, 1), done.stderr
        summary = summary_of(out, POSTGRES, "ancestor")
        found = {kind for kind in VIOLATIONS if summary[kind]}
        if wanted in found:
            break
    return found


def test_ancestor_is_caught_on_the_same_schedule(tmp_path: Path) -> None:
    """Round upon round, for a busy machine makes few reads of each kind in one."""
    assert "stale" in kinds_of_ancestor(tmp_path / "out.json", "stale", rounds=8)


@pytest.mark.long
def test_ancestor_is_caught_with_what_was_never_committed(tmp_path: Path) -> None:
    """Half of the rounds on a quiet machine show it, and fewer on a busy one."""
    assert "dirty" in kinds_of_ancestor(tmp_path / "out.json", "dirty", rounds=30)


def groups() -> Iterator[tuple[str, list[str]]]:
    """Some rules at a time: the servers are started once for them."""
    names = [rule.name for rule, how in TABLE.items() if isinstance(how, Ablation)]
    for first in range(0, len(names), 7):
        yield names[first], names[first : first + 7]


@pytest.mark.long
@pytest.mark.parametrize("names", [pytest.param(names, id=first) for first, names in groups()])
def test_checker_misses_a_rule_that_is_switched_off(tmp_path: Path, names: list[str]) -> None:
    out = tmp_path / "out.json"
    done = history("--ablations", ",".join(names), "--minutes", "1.5", "--out", str(out))
    print(done.stdout, done.stderr)
    found = json.loads(out.read_text())
    assert [name for name in names if not found[name]["violations"]] == []


def test_every_rule_is_switched_off_or_says_why_not() -> None:
    assert set(TABLE) == set(Rule)
    assert all(isinstance(how, Ablation) or len(how) > 20 for how in TABLE.values())
    assert sum(isinstance(how, Ablation) for how in TABLE.values()) > len(TABLE) / 2
