"""
SQL -> the tables that it reads, by the places where names of tables stand.

What follows FROM, JOIN or a comma between them is a table, a view or a common
table expression; one name too many, such as a column after an unusual FROM, does
no harm. What is not read for sure is refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from akv.tokens.drivers import Dialect
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.lexer import Token, lex, statements_of

_SHOWN: Final = 60
"""Characters of a statement that a reason quotes."""


class Query(NamedTuple):
    """
    What a text of SQL reads.

    Attributes:
        relations: Tables and views that it names, with how often; the schema is "" where it names none.
        calls: What stands before an opening parenthesis, in lower case: functions, among others.
        refusal: Why nobody can tell what it reads; None: it is all here, or SQLite tells.
        is_silent: It returns no row of anything.
    """

    relations: Mapping[Relation, int]
    calls: frozenset[str]
    refusal: str | None = None
    is_silent: bool = False


_ANALYSED: Final = frozenset(
    ("SELECT", "WITH", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "SET")
)
_READS_NOTHING: Final = frozenset(
    (
        "BEGIN", "CLOSE", "COMMIT", "DEALLOCATE", "END", "LISTEN", "LOCK", "NOTIFY", "RELEASE", "RESET", "ROLLBACK",
        "SAVEPOINT", "START", "TRUNCATE", "UNLISTEN", "UNLOCK",
    )
)  # fmt: skip
_ENDS_OF_FROM: Final = frozenset(
    ("WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION", "INTERSECT", "EXCEPT", "RETURNING", "SELECT")
)
_ENDS_OF_FROM_BY_DIALECT: Final = {"postgresql": "WINDOW", "mysql": "SET"}
"""To others these are names like any."""
_STAND_BEFORE_TABLES: Final = frozenset(("LATERAL", "ONLY", "TABLE"))
_WRITING_WORDS: Final = frozenset(("INSERT", "INTO", "REPLACE", "UPDATE"))
_NOT_THE_VERB: Final = frozenset(("FOR", "KEY", "DO", "THEN"))
"""Words before an UPDATE that is followed by no table."""
_MODIFIERS: Final = frozenset(("DELAYED", "HIGH_PRIORITY", "IGNORE", "LOW_PRIORITY"))
_HAVE_FROM_INSIDE: Final = frozenset(("EXTRACT", "OVERLAY", "POSITION", "SUBSTRING", "TRIM"))
_LOCKS: Final = frozenset(("UPDATE", "SHARE", "NO", "KEY"))
_SYSTEM_SCHEMAS: Final = frozenset(("information_schema", "mysql", "performance_schema", "pg_catalog", "sys"))


@lru_cache(maxsize=1024)
def query_of(dialect: Dialect, sql: str) -> Query:
    """Return what a text reads."""
    lexed = lex(dialect, sql)
    relations: Counter[Relation] = Counter()
    calls: set[str] = set()
    unclear = lexed.unclear
    firsts = [(tokens, _first_word(tokens)) for tokens in statements_of(lexed.tokens)]
    for tokens, first in firsts:
        if first in _ANALYSED:
            walk = _Walk(dialect, tokens)
            walk.run()
            unclear |= walk.unclear
            relations += walk.relations
            calls |= walk.calls
        elif not _is_silent(dialect, first):
            return Query({}, frozenset(), f"nobody tells what is read by {shown(sql)}")
    if unclear:
        return Query(
            {}, frozenset(), None if dialect == "sqlite" else f"no table is recognised for sure in {shown(sql)}"
        )
    is_silent = not any(first in _ANALYSED for _, first in firsts)
    return Query(relations, frozenset(calls), _refusal(relations, sql), is_silent)


def shown(sql: str) -> str:
    """Return the beginning of a statement, for a message."""
    text = " ".join(sql.split())
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def is_of_system(relation: Relation) -> bool:
    """Tell whether a table describes the database rather than the application's rows."""
    return relation.schema.lower() in _SYSTEM_SCHEMAS or relation.name.lower().startswith(("pg_", "sqlite_", "pragma_"))


def _refusal(relations: Mapping[Relation, int], sql: str) -> str | None:
    if any(map(is_of_system, relations)):
        return f"the database's own tables change without notice: {shown(sql)}"
    return None


def _first_word(tokens: Sequence[Token]) -> str:
    return next((token.text for token in tokens if token.text != "("), "")


def _is_silent(dialect: Dialect, first: str) -> bool:
    return first in _READS_NOTHING or (first == "SHOW" and dialect == "postgresql")


@dataclass(slots=True)
class _Frame:
    """
    A pair of parentheses, or the whole statement.

    Attributes:
        start: Place of its first token.
        expects: A table is named next.
        in_from: A comma is followed by another table.
        is_argument: It holds the argument of a function that has a FROM of its own.
        ctes: Names that WITH gives to queries in here.
        defines: What the pair of parentheses that begins at a place is given as name.
    """

    start: int
    expects: bool = False
    in_from: bool = False
    is_target: bool = False
    is_argument: bool = False
    ctes: set[str] = field(default_factory=set)
    defines: tuple[int, str] | None = None


class _Walk:
    """A walk along the tokens of one statement."""

    def __init__(self, dialect: Dialect, tokens: Sequence[Token]) -> None:
        self.relations: Counter[Relation] = Counter()
        self.calls: set[str] = set()
        self.unclear = False
        self._dialect = dialect
        self._tokens = tokens
        self._place = 0
        self._frames = [_Frame(0)]
        self._deletes = any(token.kind == "word" and token.text in ("DELETE", "MERGE") for token in tokens)

    def run(self) -> None:
        """Walk to the end."""
        while self._place < len(self._tokens):
            token = self._tokens[self._place]
            if token.kind == "sign":
                self._sign(token)
            elif token.kind == "literal":
                self._literal(token)
            elif not self._keyword(token):
                self._name()
            self._place += 1

    @property
    def _frame(self) -> _Frame:
        return self._frames[-1]

    def _text(self, offset: int) -> str:
        """Return a token further on; names in quotes are no keywords."""
        place = self._place + offset
        token = self._tokens[place] if 0 <= place < len(self._tokens) else None
        return token.text if token is not None and token.kind in ("word", "sign") else ""

    def _sign(self, token: Token) -> None:
        frame = self._frame
        if token.text == "(":
            is_argument = self._text(-1) in _HAVE_FROM_INSIDE
            self._frames.append(_Frame(self._place, frame.expects, frame.expects, False, is_argument))
            frame.expects = False
        elif token.text == ")":
            self._close()
        elif token.text == ",":
            frame.expects = frame.in_from
        elif token.text == "@" and self._dialect == "mysql" and "@" not in (self._text(1), self._text(-1)):
            self.unclear = True  # a variable of the connection, of any age
        elif frame.expects:
            self.unclear = True

    def _close(self) -> None:
        ended = self._frames.pop() if len(self._frames) > 1 else self._frame
        frame = self._frame
        if frame.defines is not None and frame.defines[0] == ended.start:
            frame.ctes.add(frame.defines[1])
            frame.defines = None
            if self._text(1) == ",":
                self._define(self._place + 2)

    def _literal(self, token: Token) -> None:
        if self._frame.expects:
            if token.plain:  # MariaDB may take text in double quotes for a name
                self._read([token.plain])
            else:
                self.unclear = True

    def _keyword(self, token: Token) -> bool:
        """Follow a keyword; tell whether it was one."""
        if token.kind != "word" or self._text(1) == ".":
            return False
        word, frame = token.text, self._frame
        if word in ("FROM", "JOIN", "STRAIGHT_JOIN", "USING"):
            self._from(word)
        elif word in _WRITING_WORDS:
            self._write(word)
        elif word in _ENDS_OF_FROM or word == _ENDS_OF_FROM_BY_DIALECT.get(self._dialect):
            frame.expects = frame.in_from = False
            frame.is_argument = frame.is_argument and word != "SELECT"
        elif self._ends_from(word):
            frame.expects = frame.in_from = False
        elif word == "WITH":
            self._define(self._place + 1)
        elif word in _STAND_BEFORE_TABLES:
            frame.expects = frame.expects or word == "TABLE"
        else:
            return word in _MODIFIERS and frame.is_target
        return True

    def _ends_from(self, word: str) -> bool:
        if word == "FOR":
            return self._text(1) in _LOCKS
        return word == "VALUES" and (self._frame.expects or self._place == self._frame.start + 1)

    def _write(self, word: str) -> None:
        frame = self._frame
        if word == "INTO" or (word == "UPDATE" and self._text(-1) not in _NOT_THE_VERB):
            frame.expects = frame.is_target = True
            frame.in_from = word == "UPDATE" and self._dialect == "mysql"
        elif word in ("INSERT", "REPLACE") and self._dialect == "mysql" and self._place == 0:
            frame.expects = frame.is_target = True

    def _from(self, word: str) -> None:
        frame = self._frame
        is_comparison = self._text(-1) == "DISTINCT" and self._text(-2) in ("IS", "NOT")
        if word == "FROM" and (is_comparison or frame.is_argument):
            return
        if word == "USING" and self._text(1) == "(" and not self._deletes:
            return  # columns
        frame.expects = frame.in_from = True
        frame.is_target = self._text(-1) == "DELETE"

    def _define(self, place: int) -> None:
        """Follow the definition of a common table expression, if one stands at a place."""
        is_recursive = self._word_at(place) == "RECURSIVE"
        place += is_recursive
        body = self._body_at(place + 1)
        if body is None or not self._tokens[place].is_name:
            return
        name = self._folded(self._tokens[place])
        self._frame.defines = (body, name)
        if is_recursive or name in self._frame.ctes:
            self._frame.ctes.add(name)
        self._place = body - 1

    def _body_at(self, place: int) -> int | None:
        """Return where the parentheses of ``[(column, …)] AS [[NOT] MATERIALIZED] (…)`` open."""
        if self._word_at(place) == "(":
            while place < len(self._tokens) and self._word_at(place) != ")":
                place += 1
            place += 1
        if self._word_at(place) != "AS":
            return None
        place += 1
        while self._word_at(place) in ("NOT", "MATERIALIZED"):
            place += 1
        return place if self._word_at(place) == "(" else None

    def _word_at(self, place: int) -> str:
        return self._text(place - self._place)

    def _name(self) -> None:
        path = [self._folded(self._tokens[self._place])]
        while self._text(1) == "." and self._place + 2 < len(self._tokens) and self._tokens[self._place + 2].is_name:
            self._place += 2
            path.append(self._folded(self._tokens[self._place]))
        if self._text(1) == "(" and not self._frame.is_target:
            self.calls.add(path[-1].lower())
            self._frame.expects = False
        elif self._frame.expects:
            self._read(path)

    def _read(self, path: Sequence[str]) -> None:
        frame = self._frame
        frame.expects = False
        is_target, frame.is_target = frame.is_target, False
        is_cte = len(path) == 1 and not is_target and any(path[0] in each.ctes for each in self._frames)
        if not is_cte:
            self.relations[Relation(path[-2] if len(path) > 1 else "", path[-1])] += 1

    def _folded(self, token: Token) -> str:
        return token.plain.lower() if self._dialect == "postgresql" and token.kind == "word" else token.plain
