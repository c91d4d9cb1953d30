"""
What SQL does, judged by its words: the first ones, and the names that it calls.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from enum import Enum, auto
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

from akv.tokens.drivers import Dialect
from akv.tokens.opaque.lexer import Lexed, Token, lex, statements_of


class Effect(Enum):
    """
    What running a statement does to the transaction it runs in.

    COMMITS: MariaDB commits what is open, on its own, before the statement and after it. CALLS: it reads, but what
    it calls may write.
    """

    NOTHING = auto()
    CALLS = auto()
    WRITES = auto()
    COMMITS = auto()
    ENDS = auto()
    SAVEPOINT = auto()
    RELEASE = auto()
    ROLLBACK_TO = auto()


class Reading(NamedTuple):
    """
    What a text of SQL says.

    Attributes:
        effect: What it does, if the functions that it calls do nothing.
        savepoint: The name of the savepoint that it is about.
        calls: What stands before an opening parenthesis, in lower case: functions, among others.
        names: Every word and quoted name in it, in lower case.
        redefines: It may change what triggers, views and functions there are.
    """

    effect: Effect
    savepoint: str = ""
    calls: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    redefines: bool = False

    @property
    def is_harmless(self) -> bool:
        """Whether nobody needs to know of it."""
        return self.effect is Effect.NOTHING


NOTHING: Final = Reading(Effect.NOTHING)
_LONG: Final = 4_000
"""Texts beyond this many characters are read anew each time, unless SQLAlchemy keeps them compiled."""

_of_compiled: weakref.WeakKeyDictionary[Any, Reading] = weakref.WeakKeyDictionary()


def reading_of(dialect: Dialect, sql: str, compiled: Any) -> Reading:
    """
    Return what a statement says that is about to run.

    Args:
        dialect: Who runs it.
        sql: Its text.
        compiled: What SQLAlchemy made it of, or None; is read in its place, being the same for all parameters.
    """
    text = sql if compiled is None else compiled.string
    if len(text) <= _LONG:
        return _read_and_keep(dialect, text)
    reading = _of_compiled.get(compiled) if compiled is not None else None
    if reading is None:
        reading = _READERS[dialect](text)
        if compiled is not None:
            _of_compiled[compiled] = reading
    return reading


@lru_cache(maxsize=2048)
def _read_and_keep(dialect: Dialect, sql: str) -> Reading:
    return _READERS[dialect](sql)


# --- SQLite: functions cannot write ----------------------------------------------------------------------------------

_COMMENT: Final = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)+", re.DOTALL)
_NAME: Final = r"(\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|'[^']*'|[^\s;]+)"
_SAVEPOINT: Final = re.compile(rf"SAVEPOINT\s+{_NAME}", re.IGNORECASE)
_RELEASE: Final = re.compile(rf"RELEASE\s+(?:SAVEPOINT\s+)?{_NAME}", re.IGNORECASE)
_ROLLBACK_TO: Final = re.compile(rf"ROLLBACK\s+(?:TRANSACTION\s+)?TO\s+(?:SAVEPOINT\s+)?{_NAME}", re.IGNORECASE)
_WRITE_WORD: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_FIRST_WORD: Final = re.compile(r"[A-Za-z]*")
_HARMLESS_ON_SQLITE: Final = frozenset(
    # None of these changes a row that anybody could have read before.
    ("SELECT", "VALUES", "EXPLAIN", "PRAGMA", "BEGIN", "CREATE", "ANALYZE", "REINDEX", "ATTACH", "DETACH", "VACUUM")
)


def read_sqlite(sql: str) -> Reading:
    """
    Return what *sql* does on SQLite.

    Guarantees:
        Whatever may change a row of a table of SQLite, seen as a whole statement, is not NOTHING.
    """
    start = _COMMENT.match(sql)
    text = sql[start.end() :] if start is not None else sql
    first = _FIRST_WORD.match(text)
    word = first[0].upper() if first is not None else ""
    if not text or word in _HARMLESS_ON_SQLITE or (word == "WITH" and not _WRITE_WORD.search(text)):
        return NOTHING
    for pattern, effect in (
        (_SAVEPOINT, Effect.SAVEPOINT),
        (_RELEASE, Effect.RELEASE),
        (_ROLLBACK_TO, Effect.ROLLBACK_TO),
    ):
        match = pattern.match(text)
        if match is not None:
            return Reading(effect, match[1].strip("\"`[]'").lower())
    return Reading(Effect.ENDS if word in ("COMMIT", "END", "ROLLBACK") else Effect.WRITES)


# --- PostgreSQL: what is not known as harmless is left to its own account -------------------------------------------

_READS_ON_POSTGRES: Final = frozenset(("SELECT", "VALUES", "DECLARE", "TABLE"))
_NOTHING_ON_POSTGRES: Final = frozenset(
    ("SHOW", "RESET", "LISTEN", "UNLISTEN", "NOTIFY", "BEGIN", "START", "FETCH", "MOVE", "CLOSE", "DEALLOCATE")
)
_REDEFINES_NOTHING: Final = frozenset(
    ("INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "COPY", "LOCK", "WITH", "SET", "EXPLAIN", "REFRESH", "EXECUTE")
)
_WRITE_WORDS: Final = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE"))


def read_postgres(sql: str) -> Reading:
    """
    Return what *sql* does on PostgreSQL.

    Guarantees:
        Whatever may change a row, but by a function or view that it names, is not NOTHING or CALLS.
    """
    lexed = lex("postgresql", sql)
    first = lexed.tokens[0].text if lexed.tokens else ""
    # The body of a function may be written without quotes, with semicolons and END in it.
    parts = [lexed.tokens] if first == "CREATE" else statements_of(lexed.tokens)
    return _together(lexed, [_read_postgres_statement(part) for part in parts])


def _read_postgres_statement(tokens: tuple[Token, ...]) -> Reading:
    words = [token.text for token in tokens]
    first = words[0]
    second = words[1] if len(words) > 1 else ""
    about = _read_savepoint(words, tokens)
    if about is not None:
        return about
    if first in ("COMMIT", "END", "ABORT", "ROLLBACK") or (first == "PREPARE" and second == "TRANSACTION"):
        return Reading(Effect.ENDS)
    if first in _READS_ON_POSTGRES or (first == "WITH" and not _has_write_word(tokens)):
        return Reading(Effect.CALLS)
    if (
        first in _NOTHING_ON_POSTGRES
        or (first == "SET" and second != "CONSTRAINTS")
        or (first == "EXPLAIN" and not {"ANALYZE", "ANALYSE"} & set(words))
        or first == "PREPARE"
    ):
        return NOTHING
    return Reading(Effect.WRITES, redefines=first not in _REDEFINES_NOTHING)


def _has_write_word(tokens: tuple[Token, ...]) -> bool:
    """Tell whether a WITH holds a statement that writes; FOR UPDATE and FOR NO KEY UPDATE only lock."""
    return any(
        token.kind == "word" and token.text in _WRITE_WORDS and before.text not in ("FOR", "KEY")
        for before, token in pairwise(tokens)
    )


# --- MariaDB: what is not known as harmless counts as anything --------------------------------------------------------

_READS_ON_MARIADB: Final = frozenset(("SELECT", "VALUES", "DO", "SET", "TABLE"))
_NOTHING_ON_MARIADB: Final = frozenset(("SHOW", "DESCRIBE", "DESC", "EXPLAIN", "USE", "HELP", "KILL", "DEALLOCATE"))
_COMMITS_ON_MARIADB: Final = frozenset(
    (
        "ALTER", "ANALYZE", "BEGIN", "CACHE", "CALL", "CHANGE", "CHECK", "CREATE", "DROP", "EXECUTE", "FLUSH", "GRANT",
        "INSTALL", "LOCK", "OPTIMIZE", "RENAME", "REPAIR", "RESET", "REVOKE", "SHUTDOWN", "START", "STOP", "TRUNCATE",
        "UNINSTALL", "UNLOCK",
    )
)  # fmt: skip

_ANALYZES_TABLES: Final = ("TABLE", "LOCAL", "NO_WRITE_TO_BINLOG")


def read_mariadb(sql: str) -> Reading:
    """
    Return what *sql* does on MariaDB.

    Guarantees:
        Whatever may change a row, but by a function or view that it names, is not NOTHING or CALLS; whatever commits
        on its own, but by a function, is COMMITS or ENDS.
    """
    lexed = lex("mysql", sql)
    return _together(lexed, [_read_mariadb_statement(part) for part in statements_of(lexed.tokens)])


def _read_mariadb_statement(tokens: tuple[Token, ...]) -> Reading:
    words = [token.text for token in tokens]
    while words[0] == "(" and len(words) > 1:
        words, tokens = words[1:], tokens[1:]
    first = words[0]
    second = words[1] if len(words) > 1 else ""
    about = _read_savepoint(words, tokens)
    if about is not None:
        return about
    if first in ("COMMIT", "ROLLBACK") or (first == "XA" and second in ("PREPARE", "COMMIT", "ROLLBACK")):
        return Reading(Effect.ENDS)
    if first == "SET" and {"AUTOCOMMIT", "PASSWORD", "STATEMENT"} & set(words):
        return Reading(Effect.WRITES if second == "STATEMENT" else Effect.COMMITS)
    if first in _READS_ON_MARIADB or (first == "WITH" and not _has_write_word(tokens)):
        return Reading(Effect.CALLS)
    if first in ("CREATE", "DROP") and "TEMPORARY" in words[1:4] and "PROCEDURE" not in words:
        return Reading(Effect.CALLS)
    if first in _NOTHING_ON_MARIADB or first in ("XA", "PREPARE"):
        return NOTHING
    if first in _COMMITS_ON_MARIADB and (first != "ANALYZE" or second in _ANALYZES_TABLES):
        return Reading(Effect.COMMITS, redefines=True)
    return Reading(Effect.WRITES, redefines=first not in ("INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "WITH"))


# --- both -------------------------------------------------------------------------------------------------------------


def _read_savepoint(words: list[str], tokens: tuple[Token, ...]) -> Reading | None:
    """Read a statement about a savepoint: its name is the last word of it."""
    first = words[0]
    name = tokens[-1].plain.lower()
    if first == "SAVEPOINT":
        return Reading(Effect.SAVEPOINT, name)
    if first == "RELEASE":
        return Reading(Effect.RELEASE, name)
    if first == "ROLLBACK" and "TO" in words[1:3]:
        return Reading(Effect.ROLLBACK_TO, name)
    return None


_STRENGTH: Final = (Effect.NOTHING, Effect.CALLS, Effect.WRITES, Effect.COMMITS, Effect.ENDS)


def _together(lexed: Lexed, readings: list[Reading]) -> Reading:
    """Return what statements sent in one text do: the strongest of what each does, and at least WRITES if unclear."""
    calls = frozenset(
        left.plain.lower()
        for left, right in pairwise(lexed.tokens)
        if left.is_name and right.text == "(" and right.kind == "sign"
    )
    names = frozenset(token.plain.lower() for token in lexed.tokens if token.is_name)
    if len(readings) == 1 and not lexed.unclear:
        return readings[0]._replace(calls=calls, names=names)
    effects = [each.effect if each.effect in _STRENGTH else Effect.WRITES for each in readings]
    if lexed.unclear:
        effects.append(Effect.WRITES)
    effect = max(effects, key=_STRENGTH.index, default=Effect.NOTHING)
    return Reading(effect, "", calls, names, lexed.unclear or any(each.redefines for each in readings))


_READERS: Final[dict[str, Callable[[str], Reading]]] = {
    "sqlite": read_sqlite,
    "postgresql": read_postgres,
    "mysql": read_mariadb,
}
