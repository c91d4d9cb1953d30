"""
How old a result may be: pure functions of times, of tokens and of a draw.

Instants are integers, microseconds since 1970 in UTC: exact, and the same in every serializer. Age alone is a
matter of degree here. A result whose dependencies changed is gone, whatever the options say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from akv.errors import ConfigurationError
from akv.store.expiry import LATEST, naive, to_expire, utc_now
from akv.typing import Expire, Vector

OnError: TypeAlias = Literal["raise", "stale"]
"""What callers get if the function raises: its exception, or the last value."""

SECOND: Final = 1_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_AWARE: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FORMAT: Final = 1


def micros(moment: datetime) -> int:
    """Convert naive UTC to microseconds since 1970."""
    return _micros(moment - _EPOCH)


def instant(clock_result: datetime) -> int:
    """Convert what a clock returned to microseconds since 1970."""
    if type(clock_result) is datetime and clock_result.tzinfo is UTC:
        return _micros(clock_result - _EPOCH_AWARE)
    return micros(naive(clock_result))


def _micros(since: timedelta) -> int:
    return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds


def moment(instant: int) -> datetime:
    """Convert microseconds since 1970 to naive UTC; what lies beyond the calendar is its last instant."""
    try:
        return min(_EPOCH + instant * _MICROSECOND, LATEST)
    except OverflowError:
        return LATEST


class Saved(NamedTuple):
    """
    A result as it is kept.

    Attributes:
        value: What the function returned.
        made: When it had been computed.
        took: How long that took, microseconds.
        until: When it is too old; None: never.
        fence: That of the lease under which it was computed; 0: none.
        identifiers: What it depends on.
        vector: Their tokens, as they were then.
        tracked: The identifiers are those of what was read, not those of what was declared.
    """

    value: Any
    made: int = 0
    took: int = 0
    until: int | None = None
    fence: int = 0
    identifiers: tuple[str, ...] = ()
    vector: Vector = ()
    tracked: bool = False

    def packed(self) -> dict[str, Any]:
        """Return the form in which it is stored: builtins alone, names that every serializer takes."""
        packed = {
            "akv": _FORMAT,
            "value": self.value,
            "made": self.made,
            "took": self.took,
            "until": self.until,
        }
        if self.fence:
            packed["fence"] = self.fence
        if self.identifiers:
            packed["identifiers"], packed["vector"] = list(self.identifiers), list(self.vector)
        if self.tracked:
            packed["tracked"] = True
        return packed


def unpacked(stored: object) -> Saved | None:
    """
    Return what :meth:`Saved.packed` made.

    Args:
        stored: Whatever was found; options that have changed since do not matter.

    Returns:
        None if it is something else, or of a later version.
    """
    if type(stored) is not dict or stored.get("akv") != _FORMAT:
        return None
    try:
        return Saved(
            stored["value"],
            stored["made"],
            stored["took"],
            stored["until"],
            stored.get("fence", 0),
            tuple(stored.get("identifiers", ())),
            tuple(stored.get("vector", ())),
            stored.get("tracked", False) is True,
        )
    except (KeyError, TypeError):
        return None


class Verdict(Enum):
    """What may be done with a result that was found."""

    FRESH = auto()
    """Hand it out."""
    DUE = auto()
    """Hand it out, and compute the next one behind it."""
    STALE = auto()
    """Too old; hand it out while the next one is computed behind it."""
    KEPT = auto()
    """Too old; hand it out only if computing fails."""
    GONE = auto()
    """Never hand it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """
    How long results are good for, and what may be done with older ones.

    Attributes:
        expire: Lifetime of a result.
        jitter: Part of the lifetime by which it varies at random, either way.
        stale_for: Time after its lifetime in which a result is handed out while it is computed anew.
        early: Compute anew before the lifetime ends, the likelier the closer the end and the longer it takes.
        on_error: "stale": when the function raises, hand out the last result, within ``stale_for`` if that is given.

    Raises:
        ConfigurationError: An option is out of bounds.
        InvalidExpireError: The expire names no instant.
    """

    expire: Expire = None
    jitter: float = 0.0
    stale_for: float | timedelta | None = None
    early: bool = False
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        to_expire(self.expire, naive(utc_now()))
        _check_jitter(self.jitter, self.expire)
        if self.stale_for is not None:
            object.__setattr__(self, "stale_for", seconds_of("stale_for", self.stale_for))
        if not isinstance(self.early, bool):
            raise ConfigurationError(f"early must be True or False, not {self.early!r}")
        if self.on_error not in ("raise", "stale"):
            raise ConfigurationError(f'on_error must be "raise" or "stale", not {self.on_error!r}')

    @property
    def goes_on_behind(self) -> bool:
        """Whether results are computed anew after a call has returned."""
        return self.early or self.stale_for is not None

    @property
    def is_dated(self) -> bool:
        """Whether the age of a result is more than being live."""
        return self.expire is not None and (self.goes_on_behind or self.on_error == "stale")

    @property
    def window(self) -> int | None:
        """Microseconds after its end for which a result is kept; None: for ever."""
        if self.stale_for is not None:
            return round(float(self.stale_for) * SECOND)  # type: ignore[arg-type]  # converted at the door
        return None if self.on_error == "stale" else 0

    def until(self, now: datetime, chance: float) -> int | None:
        """
        Return when a result of *now* is too old.

        Args:
            now: Naive UTC.
            chance: Drawn from [0, 1).
        """
        end = to_expire(_varied(self.expire, self.jitter * (2 * chance - 1)), now)
        return None if end is None else micros(end)

    def end(self, until: int | None) -> datetime | None:
        """Return when a result that is too old at *until* need not be kept any longer; None: never."""
        window = self.window
        return None if until is None or window is None else moment(until + window)


def judge(saved: Saved, vector: Vector, freshness: Freshness, now: int, chance: float) -> Verdict:
    """
    Say what may be done with a result.

    Args:
        saved: What was found.
        vector: The tokens of its identifiers, read after the call began.
        freshness: The options as they are today.
        now: Microseconds since 1970.
        chance: Drawn from [0, 1), once for each call.
    """
    if saved.vector != vector:
        return Verdict.GONE
    if saved.until is None or now < saved.until:
        return Verdict.DUE if freshness.early and is_due(saved, now, chance) else Verdict.FRESH
    if freshness.stale_for is not None:
        return Verdict.STALE if now < saved.until + (freshness.window or 0) else Verdict.GONE
    return Verdict.KEPT if freshness.on_error == "stale" else Verdict.GONE


def is_due(saved: Saved, now: int, chance: float) -> bool:
    """
    Decide whether this call computes the next result before the last one is too old.

    Optimal probabilistic early expiration, as Vattani, Chierichetti and Lowenstein have it (VLDB 2015), with a beta
    of 1: among any number of callers about one does it, at about the right time.
    """
    if saved.until is None:
        return False
    return now - saved.took * math.log(1.0 - chance) >= saved.until


def seconds_of(option: str, value: object) -> float:
    """
    Convert a duration of more than nothing.

    Raises:
        ConfigurationError: It is no finite number of seconds above 0, and no such timedelta.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= timedelta.max.total_seconds():  # type: ignore[operator]
        raise ConfigurationError(f"{option} must be a number of seconds above 0, or a timedelta, not {value!r}")
    return float(seconds)  # type: ignore[arg-type]


def _check_jitter(jitter: object, expire: Expire) -> None:
    is_number = isinstance(jitter, int | float) and not isinstance(jitter, bool)
    if not is_number or not 0 <= jitter < 1:  # type: ignore[operator]
        raise ConfigurationError(f"jitter must be a number from 0 to below 1, for example 0.1, not {jitter!r}")
    if jitter and isinstance(expire, datetime):
        raise ConfigurationError(
            "jitter varies a lifetime: give expire in seconds or as a timedelta, not as an instant"
        )


def _varied(expire: Expire, by: float) -> Expire:
    if not by or expire is None or isinstance(expire, datetime):
        return expire
    return expire * (1 + by)
