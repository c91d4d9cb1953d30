"""
The command line: ``python -m akv``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from akv.errors import AKVError

_REDIS = "redis://localhost:6379"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments: As typed; None: those of the process.

    Returns:
        The exit status: 0, 1 when akv refused something, 2 when the command line is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        from akv.cli.demo import demo
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        print("the demo prints with rich: pip install 'akv[cli]'", file=sys.stderr)
        return 1
    try:
        asyncio.run(demo(options.database, redis=options.redis, orders=options.orders))
    except AKVError as error:
        print(f"akv: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m akv", description="An asyncio key-value store on SQLAlchemy.")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="a small shop that shows what akv does, on a database of its own")
    demo.add_argument(
        "--database",
        metavar="URL",
        help="run on this database, for example postgresql+asyncpg://localhost/test; "
        "makes tables named akv_demo_* and drops them again (what tokens need, akv_token or akv_gate, stays). "
        "Default: a new SQLite file",
    )
    demo.add_argument(
        "--redis",
        metavar="URL",
        nargs="?",
        const=_REDIS,
        help=f"keep tokens in this Redis, and read in a second process; removes its keys again. Without URL: {_REDIS}",
    )
    demo.add_argument("--orders", type=_at_least_one, default=3000, help="how many orders the shop has (3000)")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give a number of at least 1")
    return number
