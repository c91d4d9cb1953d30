"""
SQL that SQLAlchemy did not build: what its first words say, and what SQLite's own counter of changed rows says.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")


class Effect(Enum):
    """What running a statement does to the transaction it runs in."""

    NOTHING = auto()
    WRITES = auto()
    ENDS = auto()
    SAVEPOINT = auto()
    RELEASE = auto()
    ROLLBACK_TO = auto()


class Reading(NamedTuple):
    """An effect, and the name of the savepoint that it is about."""

    effect: Effect
    savepoint: str = ""


_COMMENT: Final = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)+", re.DOTALL)
_NAME: Final = r"(\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|'[^']*'|[^\s;]+)"
_SAVEPOINT: Final = re.compile(rf"SAVEPOINT\s+{_NAME}", re.IGNORECASE)
_RELEASE: Final = re.compile(rf"RELEASE\s+(?:SAVEPOINT\s+)?{_NAME}", re.IGNORECASE)
_ROLLBACK_TO: Final = re.compile(rf"ROLLBACK\s+(?:TRANSACTION\s+)?TO\s+(?:SAVEPOINT\s+)?{_NAME}", re.IGNORECASE)
_WRITE_WORD: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_FIRST_WORD: Final = re.compile(r"[A-Za-z]*")
_HARMLESS: Final = frozenset(
    # None of these changes a row that anybody could have read before.
    ("SELECT", "VALUES", "EXPLAIN", "PRAGMA", "BEGIN", "CREATE", "ANALYZE", "REINDEX", "ATTACH", "DETACH", "VACUUM")
)


@lru_cache(maxsize=4096)
def read(sql: str) -> Reading:
    """
    Return what *sql* does, judged by its first words.

    Guarantees:
        Whatever may change a row of a table of SQLite, seen as a whole statement, is not NOTHING.
    """
    start = _COMMENT.match(sql)
    text = sql[start.end() :] if start is not None else sql
    first = _FIRST_WORD.match(text)
    word = first[0].upper() if first is not None else ""
    if not text or word in _HARMLESS or (word == "WITH" and not _WRITE_WORD.search(text)):
        return Reading(Effect.NOTHING)
    for pattern, effect in (
        (_SAVEPOINT, Effect.SAVEPOINT),
        (_RELEASE, Effect.RELEASE),
        (_ROLLBACK_TO, Effect.ROLLBACK_TO),
    ):
        match = pattern.match(text)
        if match is not None:
            return Reading(effect, match[1].strip("\"`[]'").lower())
    return Reading(Effect.ENDS if word in ("COMMIT", "END", "ROLLBACK") else Effect.WRITES)


class Driver:
    """
    The driver's connection beneath a SQLAlchemy connection.

    The properties are read from memory, so listeners may ask for them at any time.
    """

    __slots__ = ("_dbapi", "_driver")

    def __init__(self, connection: Connection) -> None:
        pooled: Any = connection.connection
        self._dbapi = pooled.dbapi_connection
        self._driver: Any = self._dbapi.driver_connection

    @property
    def dbapi(self) -> Any:
        """The adapted DBAPI connection: what SQLAlchemy holds."""
        return self._dbapi

    @property
    def connection(self) -> Any:
        """The driver's own connection, to be awaited."""
        return self._driver

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await *work* from inside a listener: SQLAlchemy runs those in a greenlet of its own."""
        result: T = self._dbapi.run_async(lambda _: work)
        return result

    @property
    def in_transaction(self) -> bool:
        """Whether the database has a transaction open, whatever SQLAlchemy believes."""
        try:
            return bool(self._driver.in_transaction)
        except ValueError:
            return False  # closed

    @property
    def is_always_in_transaction(self) -> bool:
        """Whether the driver itself opens a transaction after each one (``autocommit=False`` of Python 3.12)."""
        inner = getattr(self._driver, "_conn", self._driver)
        return getattr(inner, "autocommit", None) is False

    @property
    def rows_changed(self) -> int:
        """How many rows this connection has changed since it was opened, those of triggers and cascades included."""
        return int(self._driver.total_changes)
