"""
What a key, a tag and a prefix may be.

The rules are those that every database can keep: no NUL, because PostgreSQL
stores none; no lone surrogates, because UTF-8 has none; no more than the
columns hold, because some databases would cut silently.
"""

from __future__ import annotations

from akv.errors import InvalidKeyError

MAX_LENGTH = 256
"""Longest key, tag or prefix, in characters (code points)."""

_FIRST_SURROGATE, _AFTER_SURROGATES, _LAST_CODE_POINT = 0xD800, 0xE000, 0x10FFFF


def check_key(key: object) -> str:
    """
    Return *key* itself if the store can hold it.

    Args:
        key: A str or an instance of a subclass, of at most 256 characters; empty is allowed.

    Raises:
        InvalidKeyError: Not a str, too long, or holding NUL or a lone surrogate.
    """
    if type(key) is str and len(key) <= MAX_LENGTH and key.isascii() and "\0" not in key:
        return key
    return _check("key", key)


def check_tag(tag: object) -> str:
    """
    Return *tag* itself if the store can hold it.

    Args:
        tag: As a key.

    Raises:
        InvalidKeyError: As for a key.
    """
    if type(tag) is str and len(tag) <= MAX_LENGTH and tag.isascii() and "\0" not in tag:
        return tag
    return _check("tag", tag)


def check_prefix(prefix: object) -> str | None:
    """
    Return *prefix* itself if keys can begin with it.

    Args:
        prefix: As a key; None means every key.

    Raises:
        InvalidKeyError: As for a key.
    """
    return None if prefix is None else _check("prefix", prefix)


def prefix_end(prefix: str) -> str | None:
    """
    Find where, in code point order, the strings that start with *prefix* end.

    Args:
        prefix: Any str without lone surrogates.

    Returns:
        The smallest string greater than all of them; None if no string is.
    """
    stem = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not stem:
        return None
    successor = ord(stem[-1]) + 1
    return stem[:-1] + chr(_AFTER_SURROGATES if successor == _FIRST_SURROGATE else successor)


def _check(role: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidKeyError(f"{role} must be a str, not {type(value).__name__}: convert it, for example with str()")
    if len(value) > MAX_LENGTH:
        raise InvalidKeyError(
            f"{role} has {len(value)} characters, at most {MAX_LENGTH} fit: shorten it, or use a hash of it; "
            f"it begins {value[:32]!r}"
        )
    if "\0" in value:
        raise InvalidKeyError(f"{role} {value!r} holds a NUL character, which databases refuse: remove or escape it")
    if not is_encodable(value):
        raise InvalidKeyError(
            f"{role} {value!r} holds a lone surrogate, which UTF-8 cannot express: "
            "decode its source with errors='replace', or escape it"
        )
    return value


def is_encodable(value: str) -> bool:
    """Tell whether UTF-8 can express a text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
