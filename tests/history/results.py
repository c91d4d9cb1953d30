"""
What rounds have shown so far, in one JSON file, and whether that is enough.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.history.systems import AKV, POSTGRES

ROOT: Final = Path(__file__).parents[2]
COMMITTED: Final = Path(__file__).with_name("result.json")
"""The run that stands for the goal."""

VIOLATIONS: Final = ("stale", "dirty", "snapshot break", "stuck")


@dataclass(frozen=True)
class Goal:
    """What has to be shown: so many reads, each fault so often, so many hits, and not one violation."""

    reads: int = 1_000_000
    faults: int = 200
    hits: float = 0.80
    database: str = POSTGRES
    algorithm: str = AKV


@dataclass(frozen=True)
class RoundResult:
    """
    One round.

    Attributes:
        commit: Of the repository.
        code: Hash of the files of akv, committed or not.
        bypasses: Reads past the cache, by reason.
        ended: How many processes ended before their time, by role: they were killed.
        errors: What operations failed with, as they may while servers fail.
    """

    commit: str
    code: str
    database: str
    servers: str
    algorithm: str
    seed: int
    seconds: float
    reads: int
    hits: int
    fills: int
    bypasses: Mapping[str, int]
    faults: Mapping[str, int]
    ended: Mapping[str, int]
    errors: Mapping[str, int]
    violations: Mapping[str, int] = field(default_factory=dict)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def code() -> str:
    """Return a hash of what akv consists of."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "akv").rglob("*")):
        if path.suffix in (".py", ".lua"):
            found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Results:
    """
    Rounds that were kept, oldest first.

    Attributes:
        rounds: As they stand in the file.
    """

    def __init__(self, rounds: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rounds = list(rounds)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file, if there is one."""
        return cls(json.loads(path.read_text())["rounds"] if path.exists() else ())

    def add(self, result: RoundResult) -> None:
        self.rounds.append(asdict(result))

    def save(self, path: Path) -> None:
        """Write the file anew, or leave the old one."""
        content = {"goal": asdict(Goal()), "totals": self._totals_by_trial(), "rounds": self.rounds}
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(path)

    def of(self, algorithm: str, database: str) -> Results:
        """Return the rounds of one trial."""
        trial = (algorithm, database)
        return Results(each for each in self.rounds if (each["algorithm"], each["database"]) == trial)

    def total(self, name: str) -> int:
        return sum(each[name] for each in self.rounds)

    def totals(self, name: str) -> Counter[str]:
        return sum((Counter(each[name]) for each in self.rounds), Counter())

    def summary(self) -> dict[str, Any]:
        reads = self.total("reads")
        return {
            "commits": sorted({each["commit"] for each in self.rounds}),
            "code": sorted({each["code"] for each in self.rounds}),
            "servers": sorted({each["servers"] for each in self.rounds}),
            "seeds": [each["seed"] for each in self.rounds],
            "minutes": round(sum(each["seconds"] for each in self.rounds) / 60, 1),
            "reads": reads,
            "hits": round(self.total("hits") / reads, 4) if reads else 0.0,
            "bypasses": dict(self.totals("bypasses").most_common()),
            "faults": dict(self.totals("faults").most_common()),
            "ended": dict(self.totals("ended")),
            "errors": dict(self.totals("errors").most_common()),
            **{name: self.totals("violations")[name] for name in VIOLATIONS},
        }

    def _totals_by_trial(self) -> dict[str, Any]:
        trials = sorted({(each["algorithm"], each["database"]) for each in self.rounds})
        return {" on ".join(trial): self.of(*trial).summary() for trial in trials}


def missing(results: Results, goal: Goal, faults: Iterable[str]) -> list[str]:
    """
    Compare with a goal.

    Args:
        results: Rounds of any trial; those of the goal's count.
        goal: What has to be shown.
        faults: All that must have happened.

    Returns:
        What is wrong, in sentences; nothing if all is well.
    """
    found = results.of(goal.algorithm, goal.database).summary()
    problems = [f"{found[kind]} times {kind}" for kind in VIOLATIONS if found[kind]]
    if found["reads"] < goal.reads:
        problems.append(f"{found['reads']:,} reads, not {goal.reads:,}")
    if found["hits"] < goal.hits:
        problems.append(f"{found['hits']:.1%} hits, not {goal.hits:.0%}")
    if len(found["code"]) > 1:
        problems.append(f"the rounds are of {len(found['code'])} different states of akv")
    counted = found["faults"]
    rare = {name: counted.get(name, 0) for name in faults if counted.get(name, 0) < goal.faults}
    return problems + [f"{name}: {times} times, not {goal.faults}" for name, times in sorted(rare.items())]
