"""
SQL cut into tokens, as far as it takes to find keywords, names and calls: literals and comments hide nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["word", "name", "literal", "sign"]


class Token(NamedTuple):
    """
    A piece of SQL.

    Attributes:
        kind: An unquoted word, a quoted name, a literal, or any other character.
        text: Unquoted; a word in upper case, a literal empty.
        plain: As written, without quotes.
    """

    kind: Kind
    text: str
    plain: str

    @property
    def is_name(self) -> bool:
        """Whether it may be the name of something."""
        return self.kind in ("word", "name")


class Lexed(NamedTuple):
    """
    A text in tokens.

    Attributes:
        tokens: In order, without comments.
        unclear: The server's settings decide how the text is read, or it is not ended properly.
    """

    tokens: tuple[Token, ...]
    unclear: bool


_WORD: Final = r"(?P<word>[^\W\d][\w$]*)|(?P<number>\d[\w.]*)|(?P<sign>\S)"
_PATTERNS: Final = {
    "postgresql": re.compile(
        r"(?P<comment>--[^\n]*|/\*.*?\*/)"
        r"|(?P<literal>[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)"
        r'|(?P<name>"(?:[^"]|"")*")|' + _WORD,
        re.DOTALL,
    ),
    "mysql": re.compile(
        r"(?P<comment>--(?=\s|$)[^\n]*|#[^\n]*|/\*.*?\*/)"
        r"|(?P<literal>'(?:[^'\\]|''|\\.)*'|\"(?:[^\"\\]|\"\"|\\.)*\")"
        r"|(?P<name>`(?:[^`]|``)*`)|" + _WORD,
        re.DOTALL,
    ),
    "sqlite": re.compile(
        r"(?P<comment>--[^\n]*|/\*.*?\*/)"
        r"|(?P<literal>'(?:[^']|'')*')"
        r'|(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])|' + _WORD,
        re.DOTALL,
    ),
}
_UNCLEAR_LITERAL: Final = {
    "postgresql": re.compile(r"^'.*\\'", re.DOTALL),
    "mysql": re.compile(r"\\['\"]"),
    "sqlite": re.compile(r"(?!)"),
}
_HIDES_CODE: Final = ("/*!", "/*M!")


def lex(dialect: Literal["postgresql", "mysql", "sqlite"], sql: str) -> Lexed:
    """
    Cut *sql* into tokens.

    Guarantees:
        Unless unclear, every keyword, name and call that the server sees is among them. MariaDB may take text in
        double quotes for a name: such a literal keeps its text in ``plain``.
    """
    tokens: list[Token] = []
    unclear = False
    for match in _PATTERNS[dialect].finditer(sql):
        found, kind = match[0], match.lastgroup
        if kind == "word":
            tokens.append(Token("word", found.upper(), found))
        elif kind == "name":
            plain = found[1:-1].replace(found[0] * 2, found[0])
            tokens.append(Token("name", plain, plain))
        elif kind == "comment":
            unclear = unclear or "/*" in found[2:] or found.startswith(_HIDES_CODE)
        elif kind == "sign":
            unclear = unclear or found in "'\"`"
            tokens.append(Token("sign", found, found))
        else:
            unclear = unclear or _UNCLEAR_LITERAL[dialect].search(found) is not None
            tokens.append(Token("literal", "", found[1:-1] if found[0] == '"' else ""))
    return Lexed(tuple(tokens), unclear or _has_open_comment(tokens))


def _has_open_comment(tokens: list[Token]) -> bool:
    """Tell whether a comment is never closed: its start was read as two signs, which no statement has side by side."""
    return any(
        left.kind == right.kind == "sign" and left.text == "/" and right.text == "*" for left, right in pairwise(tokens)
    )


def statements_of(tokens: tuple[Token, ...]) -> list[tuple[Token, ...]]:
    """Return the statements that semicolons part, without empty ones."""
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind == "sign" and token.text == ";":
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts if part]
