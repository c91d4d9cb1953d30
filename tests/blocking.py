"""
Calls that block the event loop, found by blockbuster, and the few that may.
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blockbuster import blockbuster

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent.name


class _Every(set[str]):
    """The functions of a whole file."""

    def __contains__(self, name: object) -> bool:
        return True


_ALLOWED: list[tuple[str, set[str]]] = [
    # The infrastructure starts servers and makes databases synchronously, and says so.
    (f"{HERE}/servers.py", _Every()),
    (f"{HERE}/private.py", _Every()),
    (f"{HERE}/binaries.py", _Every()),
    # The first use of a driver imports it, and drivers read their version and tables while they are imported.
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
    # create_async_engine() makes the path of a SQLite file absolute: a string operation and getcwd.
    ("sqlalchemy/dialects/sqlite/pysqlite.py", {"create_connect_args"}),
    # asyncpg looks for ~/.pgpass and for certificates whenever it connects; its own affair, and local.
    ("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args", "_read_password_from_pgpass", "_parse_tls_version"}),
    # redis-py looks up its own version for every connection object it makes.
    ("redis/utils.py", {"get_lib_version"}),
    # psycopg looks up the connection's time zone when it meets the first timestamp that has one.
    ("zoneinfo/_tzpath.py", _Every()),
    ("zoneinfo/_common.py", _Every()),
    # The sync drivers of the tests themselves, who look at a database from outside; akv has no use for PyMySQL.
    ("pymysql/connections.py", _Every()),
    # pytest's handlers write every log record, to /dev/null if to nowhere else.
    ("logging/__init__.py", {"emit"}),
    # Assertion messages read the source of the failing line.
    ("linecache.py", _Every()),
    ("traceback.py", _Every()),
]

_calls: list[str] = []


class _Recorded(blockbuster.BlockingError):
    """A blocking call; remembered, because what was called may catch it."""

    def __init__(self, func: str) -> None:
        super().__init__(func)
        _calls.append(f"{func}\n{''.join(traceback.format_stack(limit=12)[:-2])}")


def _guard() -> blockbuster.BlockBuster:
    guard = blockbuster.BlockBuster()
    for function in guard.functions.values():
        for file, names in _ALLOWED:
            function.can_block_in(file, names)
    return guard


_GUARD = _guard()


@contextmanager
def forbidden() -> Iterator[list[str]]:
    """Make blocking calls on a running event loop raise; yields what was called and from where."""
    _calls.clear()
    blockbuster.BlockingError = _Recorded  # type: ignore[misc]
    _GUARD.activate()
    try:
        yield _calls
    finally:
        _GUARD.deactivate()
