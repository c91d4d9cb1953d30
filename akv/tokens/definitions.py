"""
Statements that define or maintain something, and change no row that anybody could have read before.
"""

from __future__ import annotations

from typing import Final

from akv.tokens.drivers import Dialect
from akv.tokens.opaque.lexer import Token, lex, statements_of

_NO_ROWS: Final = frozenset(
    (
        "ANALYZE", "BEGIN", "CACHE", "CHECK", "CHECKPOINT", "CLUSTER", "COMMENT", "CREATE", "FLUSH", "GRANT", "INSTALL",
        "LOCK", "OPTIMIZE", "REINDEX", "RESET", "REVOKE", "SECURITY", "SET", "SHUTDOWN", "START", "STOP", "UNINSTALL",
        "UNLOCK", "VACUUM",
    )
)  # fmt: skip
_NO_ROWS_IN: Final[dict[Dialect, frozenset[str]]] = {
    "postgresql": frozenset(
        ("DATABASE", "INDEX", "PUBLICATION", "ROLE", "SUBSCRIPTION", "SYSTEM", "TABLESPACE", "USER")
    ),
    "mysql": frozenset(("EVENT", "FUNCTION", "INDEX", "PROCEDURE", "ROLE", "SERVER", "USER")),
}
"""What may be dropped or altered; a database of PostgreSQL is never the one that is connected to."""


def changes_no_row(dialect: Dialect, sql: str) -> bool:
    """Tell whether *sql* changes no row for sure."""
    if dialect == "sqlite":
        return False  # there, such statements are known as harmless anyway
    lexed = lex(dialect, sql)
    statements = statements_of(lexed.tokens)
    return not lexed.unclear and bool(statements) and all(_changes_no_row(dialect, each) for each in statements)


def first_words(sql: str) -> set[str]:
    """Return the first words of the statements in a text for MariaDB, in upper case."""
    return {tokens[0].text for tokens in statements_of(lex("mysql", sql).tokens)}


def _changes_no_row(dialect: Dialect, tokens: tuple[Token, ...]) -> bool:
    words = [token.text for token in tokens if token.kind == "word"]
    first, second = (*words[:2], "", "")[:2]
    if first in ("ALTER", "DROP"):
        return second in _NO_ROWS_IN[dialect]
    if first == "CREATE":
        return second != "OR" and "SELECT" not in words
    return first in _NO_ROWS
