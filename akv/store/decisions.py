"""
What the atomic verbs decide about a locked row: pure functions of what is stored.

Each returns a step that a transaction asks, perhaps more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from akv.errors import MissingKeyError, StoredTypeError
from akv.store.codec import Codec
from akv.store.operations import Decision, Pair, Row, Step
from akv.typing import ENOVAL


def value_or_missing(pair: Pair, default: Any) -> Any:
    """
    Return the default of a verb that found nothing live.

    Raises:
        MissingKeyError: There is none.
    """
    if default is ENOVAL:
        raise MissingKeyError(*pair)
    return default


def live(row: Row | None, now: datetime) -> Row | None:
    """Return a row that is visible at *now*, or None."""
    return row if row is not None and row.is_live(now) else None


def popping(codec: Codec, pair: Pair, now: datetime) -> Step:
    """Drop a live row; the result is its value, or ENOVAL."""

    def step(row: Row | None) -> Decision:
        if row is None or not row.is_live(now):
            return Decision.keep(ENOVAL)
        return Decision.drop(codec.decode(pair, row))

    return step


def adding(data: bytes | None, end: datetime | None, now: datetime) -> Step:
    """Put a row unless a live one is there; the result is whether it was put."""

    def step(row: Row | None) -> Decision:
        if row is not None and row.is_live(now):
            return Decision.keep(False)
        return Decision.put(data, end, True)

    return step


def adding_up(codec: Codec, pair: Pair, now: datetime, delta: int, default: int, created: datetime | None) -> Step:
    """Add to a live int, or to the default; the result is the sum."""

    def step(row: Row | None) -> Decision:
        if row is None or not row.is_live(now):
            return Decision.put(codec.encode(pair, default + delta), created, default + delta)
        total = _integer(pair, codec.decode(pair, row)) + delta
        return Decision.put(codec.encode(pair, total), row.expire, total)

    return step


def updating(codec: Codec, pair: Pair, now: datetime, function: Callable[[Any], Any], default: Any, end: Any) -> Step:
    """Put a function of the live value, or of the default; *end* is ENOVAL to keep the expiry."""

    def step(row: Row | None) -> Decision:
        live = row if row is not None and row.is_live(now) else None
        new = function(value_or_missing(pair, default) if live is None else codec.decode(pair, live))
        kept = live.expire if live is not None else None
        return Decision.put(codec.encode(pair, new), kept if end is ENOVAL else end, new)

    return step


def touching(now: datetime, end: datetime | None) -> Step:
    """Move the expiry of a live row; the result is whether one was there."""

    def step(row: Row | None) -> Decision:
        is_live = row is not None and row.is_live(now)
        return Decision.renew(end, True) if is_live else Decision.keep(False)

    return step


def renewing(now: datetime, end: datetime | None) -> Step:
    """Move the expiry of a live row that has one; the result is the row as it is afterwards, or None."""

    def step(row: Row | None) -> Decision:
        found = live(row, now)
        if found is None or found.expire is None:
            return Decision.keep(found)
        return Decision.renew(end, Row(found.value, end))

    return step


def _integer(pair: Pair, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise StoredTypeError(
            f"incr works on an int, but key {pair[0]!r}, tag {pair[1]!r} holds {type(value).__name__}: "
            f"set() an int first, or use update()",
            key=pair[0],
            tag=pair[1],
        )
    return value
