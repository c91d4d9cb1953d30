"""
Options that every benchmark shares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.contenders import ALL
from benchmarks.harness import Effort
from benchmarks.places import BACKENDS


def declare(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """Declare them, with a benchmark's own defaults."""
    names = [one.name for one in ALL]
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="where (all)")
    parser.add_argument("--contenders", nargs="+", choices=names, default=[], help="who (all that can)", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds, help="seconds of each round (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides keys and values (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of plain asyncio")


def effort_of(options: argparse.Namespace) -> Effort:
    """Return how long is measured."""
    return Effort(options.rounds, options.seconds, options.seed)


def dialect_of(backend: str) -> str:
    """Return the dialect of a backend."""
    return {"postgres": "postgresql", "sqlite-normal": "sqlite"}.get(backend, backend)
