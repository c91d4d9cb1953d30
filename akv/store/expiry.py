"""
Lifetimes and instants: an expire becomes naive UTC here, once.

Stored instants are naive UTC with microseconds, as the ancestor's table has them.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from akv.errors import ConfigurationError, InvalidExpireError

if TYPE_CHECKING:
    from akv.typing import Expire

EARLIEST: Final = datetime(1000, 1, 1)
"""What lies before is stored as this instant: MariaDB's DATETIME begins here, and the entry is dead anyway."""

LATEST: Final = datetime.max - timedelta(microseconds=1)
"""What lies after is stored as this instant: asyncpg writes ``datetime.max`` itself as PostgreSQL's infinity."""

_EPOCH: Final = datetime(2000, 1, 1)
_EPOCH_AWARE: Final = datetime(2000, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """Return the current time, aware; asked of the system at each call, so that freezing it works."""
    return datetime.now(UTC)


def naive(clock_result: object) -> datetime:
    """
    Convert what a clock returned to naive UTC.

    Args:
        clock_result: An aware datetime of any zone.

    Raises:
        ConfigurationError: It is no datetime, or a naive one.
    """
    if type(clock_result) is datetime and clock_result.tzinfo is UTC:
        return _EPOCH + (clock_result - _EPOCH_AWARE)  # ten times faster than replace()
    if not isinstance(clock_result, datetime) or clock_result.utcoffset() is None:
        raise ConfigurationError(
            f"clock must return an aware datetime, for example datetime.now(timezone.utc), not {clock_result!r}"
        )
    return _in_naive_utc(clock_result)


def to_expire(expire: Expire, now: datetime) -> datetime | None:
    """
    Convert an expire to the instant at which its entry dies.

    Args:
        expire: None, seconds from *now*, a timedelta from *now*, or a datetime (naive: UTC).
        now: Naive UTC.

    Returns:
        Naive UTC, exact to the microsecond and between EARLIEST and LATEST; None for no end.

    Raises:
        InvalidExpireError: NaN, infinite, a bool, later than the year 9999, or of another type.

    Guarantees:
        A number of seconds is rounded to the nearest microsecond, so no entry lives a microsecond too long.
    """
    if expire is None:
        return None
    if isinstance(expire, datetime):
        return _within_range(_instant(expire))
    if isinstance(expire, timedelta):
        return _within_range(_later(now, expire, expire))
    if isinstance(expire, bool) or not isinstance(expire, (int, float)):
        raise InvalidExpireError(
            f"expire must be None, an int or float of seconds, a timedelta or a datetime, not {type(expire).__name__}: "
            "convert it to one of these"
        )
    return _within_range(_after_seconds(now, expire))


def _after_seconds(now: datetime, seconds: float) -> datetime:
    try:
        if not math.isfinite(seconds):
            raise InvalidExpireError(f"expire is {seconds}: give a finite number of seconds, or None for no end")
        delta = timedelta(seconds=seconds)
    except OverflowError:
        return _beyond_the_calendar(seconds > 0, seconds)
    return _later(now, delta, seconds)


def _later(now: datetime, delta: timedelta, expire: object) -> datetime:
    try:
        return _plain(now + delta)
    except OverflowError:
        return _beyond_the_calendar(delta > timedelta(0), expire)


def _instant(expire: datetime) -> datetime:
    try:
        return _in_naive_utc(expire)
    except OverflowError:
        return _beyond_the_calendar(expire.year > EARLIEST.year, expire)
    except (TypeError, ValueError) as error:  # pandas.NaT is a datetime too
        raise InvalidExpireError(
            f"expire {expire!r} names no instant: give a real datetime, or None for no end"
        ) from error


def _beyond_the_calendar(is_future: bool, expire: object) -> datetime:
    if not is_future:
        return EARLIEST
    raise InvalidExpireError(
        f"expire {_shown(expire)} lies after the year 9999: give an earlier instant, or None for no end"
    )


def _shown(expire: object) -> str:
    try:
        return repr(expire)
    except ValueError:  # an int of more digits than Python converts
        return "that large"


def _within_range(instant: datetime) -> datetime:
    return min(max(instant, EARLIEST), LATEST)


def _in_naive_utc(moment: datetime) -> datetime:
    offset = moment.utcoffset()
    plain = _plain(moment)
    return plain if offset is None else plain - offset


def _plain(moment: datetime) -> datetime:
    """Drop the zone and the subclass: drivers know ``datetime`` alone."""
    if type(moment) is datetime and moment.tzinfo is None and not moment.fold:
        return moment
    return datetime(
        moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, moment.microsecond
    )
