r"""
How fast akv is beside its peers.

Official results are made on a quiet machine with these commands, one for each
file, and committed under benchmarks/results/ with their plots::

    python -m benchmarks base --runs 3 --contenders akv core session asyncpg aiosqlite asyncmy cashews aiocache \
        --json benchmarks/results/base.json
    python -m benchmarks base --runs 3 --tasks 1 --mixes get set --json benchmarks/results/base-1-task.json
    python -m benchmarks base --mixes get set --json benchmarks/results/peers.json
    python -m benchmarks factors --json benchmarks/results/factors.json
    python -m benchmarks processes --json benchmarks/results/processes.json
    python -m benchmarks sweep --json benchmarks/results/sweep.json
    python -m benchmarks scan --json benchmarks/results/scan.json
    python -m benchmarks memory --json benchmarks/results/memory.json
    python -m benchmarks uvloop --json benchmarks/results/uvloop.json
    python -m benchmarks tokens --json benchmarks/results/tokens.json
    python -m benchmarks memoize --json benchmarks/results/memoize.json
    python -m benchmarks stampede --json benchmarks/results/stampede.json

``--json`` draws the plots too; ``python -m benchmarks plot FILE ...`` draws them
again. ``python -m benchmarks list`` says who is here: a contender that is not
installed (``pip install 'akv[bench]'``), or whose server does not answer, is
listed as absent with the reason. Servers: the standard ports of this machine, or
AKV_TEST_POSTGRES_URL, AKV_TEST_MARIADB_URL, AKV_TEST_REDIS_URL; databases, files
and Redis keys are made for the run and removed.

Where the time goes: ``py-spy record -f speedscope -o profile.json -- python -m
benchmarks base --contenders akv --backends postgres --mixes get``.

Benchmarks of a shared machine want a grain of salt: absolute figures move
several-fold between runs, so contenders take turns within a round, and what
counts are the medians of the ratios of each round, and CPU time per call.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks import options as shared_options
from benchmarks import plot
from benchmarks.report import Report


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A sub-command: its module, and how long it measures unless told otherwise."""

    module: str
    rounds: int = 0
    seconds: float = 0.0


BENCHMARKS = {
    "base": Benchmark("base", rounds=7, seconds=1.0),
    "factors": Benchmark("factors", rounds=5, seconds=0.5),
    "processes": Benchmark("processes", rounds=3, seconds=3.0),
    "sweep": Benchmark("sweep", rounds=1, seconds=1.0),
    "scan": Benchmark("scan", rounds=1),
    "memory": Benchmark("memory", rounds=5),
    "uvloop": Benchmark("uvloop", rounds=5, seconds=1.0),
    "tokens": Benchmark("tokens", rounds=7, seconds=0.5),
    "memoize": Benchmark("memoize", rounds=5, seconds=0.3),
    "stampede": Benchmark("stampede", rounds=3),
    "list": Benchmark("listing"),
    "plot": Benchmark("plot"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    console = Console(width=None if sys.stdout.isatty() else 180)
    shown = {name: str(value) for name, value in vars(options).items() if name not in ("run", "json", "benchmark")}
    # So that `timeout` ends a run as Ctrl-C does: with databases and files removed.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    report = Report(options.benchmark, given, shown, console)
    try:
        with asyncio.Runner(loop_factory=_loop_factory(options.uvloop)) as runner:
            runner.run(options.run(options, report))
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; what was made for the run is removed")
        return 130
    if options.json:
        report.write(options.json)
        for suffix, text in plot.drawings(report.document):
            target = options.json.with_name(f"{options.json.stem}{suffix}.svg")
            target.write_text(text)
            console.print(f"drawn: {target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        module = importlib.import_module(f"benchmarks.{benchmark.module}")
        said = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=said, description=said)
        shared_options.declare(command, rounds=benchmark.rounds, seconds=benchmark.seconds)
        module.arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _loop_factory(wants_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not wants_uvloop:
        return None
    try:
        make: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError as error:
        raise SystemExit("uvloop is not installed: pip install 'akv[bench]'") from error
    return make


if __name__ == "__main__":
    sys.exit(main())
