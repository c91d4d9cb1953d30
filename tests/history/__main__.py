"""
Run rounds for some minutes and add what they show to a file, or compare a file with the goal.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from akv.tokens.rules import Rule
from tests.history import trials
from tests.history.ablations import TABLE, Ablation
from tests.history.results import Goal, Results, RoundResult, missing
from tests.history.systems import AKV, ANCESTOR, MARIADB, OUTBOX, POSTGRES, SQLITE
from tests.history.trials import Trials, settings_for
from tests.history.worker import faults_for
from tests.private import Absent

_SHORTEST = 5.0
ABSENT = 3
"""Exit code where this machine lacks a server."""


def main() -> int:
    options = _parser().parse_args()
    if options.verify is not None:
        return _verify(options)
    work = _without_rules if options.ablations else _with_all_rules
    try:
        return trials.run(options.database, lambda trials_: work(trials_, options))
    except Absent as error:
        print(error, file=sys.stderr)
        return ABSENT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.history", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long at least; of each rule with --ablations")
    parser.add_argument("--at-most", type=float, default=0.0, help="minutes: go on that long until the goal is reached")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each further round has the next one")
    parser.add_argument("--out", type=Path, help="JSON file; what it holds already is kept")
    parser.add_argument("--database", choices=(POSTGRES, MARIADB, SQLITE), default=POSTGRES)
    parser.add_argument("--algorithm", choices=(AKV, OUTBOX, ANCESTOR), default=AKV)
    parser.add_argument("--round", type=float, default=60.0, help="seconds")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--pace", type=int, default=2000, help="mean hits between two faults outside of the workers")
    parser.add_argument("--writes", type=int, help="mean reads of a process between two writes; few for a short run")
    parser.add_argument("--plans", type=int, help="mean reads of a process between two faults of its writes")
    parser.add_argument("--notes", action="store_true", help="log what akv does, for the trace of a violation")
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    parser.add_argument("--ablations", metavar="RULES", help="names with commas between, or all: switch each off")
    parser.add_argument("--control", action="store_true", help="with --ablations: leave the rules on all the same")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="compare with the goal, run nothing")
    parser.add_argument("--goal-reads", type=int, default=Goal.reads)
    parser.add_argument("--goal-faults", type=int, default=Goal.faults)
    parser.add_argument("--goal-hits", type=float, default=Goal.hits)
    return parser


def _goal(options: argparse.Namespace) -> Goal:
    return Goal(options.goal_reads, options.goal_faults, options.goal_hits, options.database, options.algorithm)


def _verify(options: argparse.Namespace) -> int:
    problems = missing(Results.load(options.verify), _goal(options), faults_for(options.database, options.algorithm))
    print("\n".join(problems) or "The goal is reached.")
    return 1 if problems else 0


async def _with_all_rules(trials_: Trials, options: argparse.Namespace) -> int:
    results = Results.load(options.out) if options.out else Results()
    began, seed, violations = time.monotonic(), options.seed, 0
    while (left := _seconds_left(options, results, time.monotonic() - began)) > 0:
        settings = settings_for(
            options.database,
            options.algorithm,
            min(options.round, max(left, _SHORTEST)),
            results.of(options.algorithm, options.database).totals("faults"),
            processes=options.processes,
            pace=options.pace,
            stop_at_violation=options.stop,
            options={"notes": options.notes} | _density(options),
        )
        result = await trials_.round(settings, seed)
        results.add(result)
        if options.out:
            results.save(options.out)
        print(_sentence(result), flush=True)
        violations += sum(result.violations.values())
        seed += 1
        if violations and options.stop:
            break
    return 1 if violations else 0


def _density(options: argparse.Namespace) -> dict[str, int]:
    given = {"reads_per_write": options.writes, "reads_per_plan": options.plans}
    return {name: each for name, each in given.items() if each is not None}


def _seconds_left(options: argparse.Namespace, results: Results, passed: float) -> float:
    left = options.minutes * 60 - passed
    if left <= 0 and missing(results, _goal(options), faults_for(options.database, options.algorithm)):
        left = min(options.at_most * 60 - passed, options.round)
    return float(left)


async def _without_rules(trials_: Trials, options: argparse.Namespace) -> int:
    names = [rule.name for rule, how in TABLE.items() if isinstance(how, Ablation)]
    found, missed = {}, 0
    for seed, name in enumerate(names if options.ablations == "all" else options.ablations.split(","), options.seed):
        result = await trials_.ablation(Rule[name], options.minutes * 60, seed, control=options.control)
        found[name] = asdict(result)
        missed += bool(result.violations) is options.control
        print(f"{name}: {_sentence(result)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    return 1 if missed else 0


def _sentence(result: RoundResult) -> str:
    reads, faults = result.reads, sum(result.faults.values())
    hits = f"{result.hits / max(1, reads):.1%} hits"
    found = ", ".join(f"{times} {kind}" for kind, times in result.violations.items()) or "no violation"
    return f"seed {result.seed}, {result.seconds:.0f} s: {reads:,} reads, {hits}, {faults} faults, {found}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
