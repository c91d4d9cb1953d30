"""
Identifiers: the names of what can change, as strings that anybody may type.

::

    akv:users#1          a row               akv:*#*      anything
    akv:users#*          any row of a table  akv:users#~  rows of a table changed, nobody knows which
    akv:label:home       a free label        akv:*#~      something changed, nobody knows what

The two on the lower right are written by akv alone. A key is never read from one
record but from a *vector*: all the records whose bump may concern it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

from akv.errors import InvalidIdentifierError

GLOBAL_WRITE_TOKEN: Final = "akv:*#*"  # noqa: S105 - no secret
"""The identifier that changes with every write that bound engines see."""

ANYTHING: Final = "akv:*#~"
"""Bumped when something was written and nobody knows what; stands in the vector of every key."""

_SAFE: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_SAFE_IN_KEY: Final = _SAFE | frozenset(b".@")
_INTEGER: Final = re.compile(r"-?[0-9]+")
_WORD: Final = r"(?:[A-Za-z0-9_\-]|%[0-9A-F]{2})+"
_TABLE: Final = re.compile(rf"akv:({_WORD}(?:\.{_WORD})?)#(.+)", re.DOTALL)
_LABEL: Final = re.compile(rf"akv:label:({_WORD}|)")
_MEMO: Final = re.compile(rf"akv:memo:({_WORD})#(?:\*|{_WORD})")


@dataclass(frozen=True, slots=True)
class Label:
    """
    A free identifier to depend on and to touch, for what no table knows.

    Attributes:
        name: Any str; two labels of one name are the same label.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidIdentifierError(f"a label is named by a str, not by {self.name!r}")

    @property
    def identifier(self) -> str:
        """The label as an identifier."""
        return f"akv:label:{_escape(self.name, _SAFE)}"


def table_identifier(name: str) -> str:
    """Return the identifier of any row of the table whose escaped name is *name*."""
    return f"akv:{name}#*"


def unknown_rows(name: str) -> str:
    """Return the identifier that is bumped when rows of a table changed and nobody knows which."""
    return f"akv:{name}#~"


def row_identifier(name: str, values: Iterable[Any]) -> str:
    """
    Return the identifier of one row.

    Args:
        name: Escaped name of the table, as :func:`table_name` makes it.
        values: The primary key, in the order of the table's primary key columns.

    Raises:
        InvalidIdentifierError: A value is of a type that no primary key has.
    """
    return f"akv:{name}#{','.join(map(encode_key, values))}"


def table_name(name: str, schema: str | None = None) -> str:
    """Return the escaped, schema-qualified name of a table, as it stands in identifiers."""
    return ".".join(_escape(part, _SAFE) for part in (schema, name) if part)


def memo_identifier(function: str, call: str | None = None) -> str:
    """
    Return the identifier of the calls of a memoized function, or of one of them.

    Args:
        function: What tells it from other functions.
        call: The key of the call; None: all of them.
    """
    name = "*" if call is None else blake2b(call.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"akv:memo:{_function_name(function)}#{name}"


def plain_part(part: str) -> str:
    """Return a part of an escaped name, unescaped."""
    return _unescape(part)


def encode_key(value: Any) -> str:
    """
    Return one primary key value as it stands in identifiers: equal values look alike, others differ.

    Raises:
        InvalidIdentifierError: No primary key is of this type.
    """
    if isinstance(value, Enum):
        return f"enum:{_escape(value.name, _SAFE)}"
    if isinstance(value, int):
        return f"{value:d}"
    if isinstance(value, str):
        text = _escape(str.__str__(value), _SAFE_IN_KEY)
        return f"'{text}" if not text or _INTEGER.fullmatch(text) else text
    for type_, encode in _TYPED:
        if isinstance(value, type_):
            return str(encode(value))
    raise InvalidIdentifierError(f"a primary key of type {type(value).__qualname__} has no identifier: touch its table")


def decode_key(text: str) -> Any:
    """
    Return the value that :func:`encode_key` makes *text* of.

    Raises:
        InvalidIdentifierError: It makes *text* of no value.
    """
    try:
        value = _decode(text)
    except (ValueError, ArithmeticError):
        value = None
    else:
        if (
            text == "null:"
            or (text.startswith("enum:") and _escape(value, _SAFE) == text[5:])
            or encode_key(value) == text
        ):
            return value
    raise InvalidIdentifierError(f"{text!r} is no primary key value: {_WAYS}")


def check_identifier(text: str) -> str:
    """
    Return *text* if it is an identifier that users may name.

    Raises:
        InvalidIdentifierError: It is malformed, not in its one canonical form, or one of akv's own (``#~``).
    """
    if not isinstance(text, str):
        raise InvalidIdentifierError(f"an identifier is a str such as 'akv:users#1', not {text!r}")
    if text == GLOBAL_WRITE_TOKEN or _MEMO.fullmatch(text) or _is_canonical_label(text):
        return text
    match = _TABLE.fullmatch(text)
    if match is None or match[2] == "~" or match[1] != _canonical_name(match[1]):
        raise InvalidIdentifierError(f"{text!r} is no identifier: {_WAYS}")
    if match[2] != "*":
        for part in match[2].split(","):
            decode_key(part)
    return text


def vector_of(identifier: str) -> tuple[str, ...]:
    """Return the identifiers whose bump may concern *identifier*, itself among them."""
    if identifier == GLOBAL_WRITE_TOKEN:
        return (GLOBAL_WRITE_TOKEN,)
    table, mark, row = identifier.partition("#")
    if not mark or row == "*":
        return (ANYTHING, identifier)
    if table.startswith("akv:memo:"):
        return (ANYTHING, f"{table}#*", identifier)
    return (ANYTHING, f"{table}#~", identifier)


def touched_by(identifier: str) -> tuple[str, ...]:
    """Return the identifiers to bump so that *identifier*, and all that contains it, changes."""
    if identifier in (GLOBAL_WRITE_TOKEN, ANYTHING):
        return (GLOBAL_WRITE_TOKEN, ANYTHING)
    table, mark, row = identifier.partition("#")
    if not mark or table.startswith("akv:memo:"):
        return (identifier,)
    return (f"{table}#~" if row in ("*", "~") else identifier, f"{table}#*", GLOBAL_WRITE_TOKEN)


def record_of(identifier: str, slots: int) -> str:
    """Return the name of the record of *identifier*: its own, or one of *slots* that rows, labels and calls share."""
    if identifier.endswith(("#*", "#~")):
        return identifier
    digest = blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return f"#{int.from_bytes(digest) % slots}"


def canonical_vector(identifiers: Sequence[str]) -> tuple[str, ...]:
    """Return the union of the vectors of *identifiers*, each member once, in a stable order."""
    return tuple(dict.fromkeys(member for identifier in identifiers for member in vector_of(identifier)))


def _escape(text: str, safe: frozenset[int]) -> str:
    data = text.encode("utf-8", "surrogatepass")
    if safe.issuperset(data):
        return text
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in data)


@lru_cache(maxsize=1024)
def _function_name(name: str) -> str:
    return _escape(name, _SAFE)


def _unescape(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogatepass")


def _canonical_name(name: str) -> str:
    try:
        return ".".join(_escape(_unescape(part), _SAFE) for part in name.split("."))
    except UnicodeDecodeError:
        return ""


def _is_canonical_label(text: str) -> bool:
    match = _LABEL.fullmatch(text)
    return match is not None and match[1] == _canonical_name(match[1])


def _decimal(value: Decimal) -> str:
    if value.is_finite():
        sign, digits, exponent = value.as_tuple()
        while len(digits) > 1 and digits[-1] == 0:
            digits, exponent = digits[:-1], int(exponent) + 1
        if digits == (0,):
            return "0"
        if 0 <= int(exponent) <= 40:
            return f"{int(value)}"
        value = Decimal((sign, digits, int(exponent)))
    return f"decimal:{value}"


def _datetime(value: datetime) -> str:
    if value.tzinfo is not None:
        value = value.astimezone(UTC)
    return f"datetime:{value.replace(fold=0).isoformat()}"


_TYPED: Final[tuple[tuple[Any, Any], ...]] = (
    (UUID, lambda value: f"uuid:{UUID(int=value.int)}"),
    ((bytes, bytearray, memoryview), lambda value: f"bytes:{bytes(value).hex()}"),
    (float, lambda value: f"{int(value)}" if value.is_integer() else f"float:{float.hex(value)}"),
    (Decimal, _decimal),
    (datetime, _datetime),  # before date, from which it derives
    (date, lambda value: f"date:{date.isoformat(value)}"),
    (time, lambda value: f"time:{time.isoformat(value)}"),
    (timedelta, lambda value: f"timedelta:{value // timedelta(microseconds=1)}"),
    (type(None), lambda _: "null:"),
)
_DECODERS: Final[dict[str, Any]] = {
    "uuid": UUID,
    "bytes": bytes.fromhex,
    "float": float.fromhex,
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "enum": _unescape,
    "null": lambda _: None,
}
_WAYS: Final = (
    "write akv:<table>#<key>, akv:<table>#* or akv:*#*, "
    "let identifier(thing) make it, or use Label(name) for a free one"
)


def _decode(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text)
    if text.startswith("'"):
        return _unescape(text[1:])
    tag, colon, payload = text.partition(":")
    if colon:
        return _DECODERS.get(tag, _refuse)(payload)
    return _unescape(text)


def _refuse(payload: str) -> Any:
    raise ValueError(payload)
