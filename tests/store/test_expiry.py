"""An expire becomes an instant; an entry is dead at it."""

import math
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st

from akv.errors import ConfigurationError, InvalidExpireError
from akv.store.expiry import EARLIEST, LATEST, naive, to_expire, utc_now
from akv.testing import FakeClock

NOW = datetime(2026, 1, 1, 12, 30, 15, 123456)
MICROSECOND = timedelta(microseconds=1)
zones = st.builds(timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)))


def test_no_expire_is_no_end() -> None:
    assert to_expire(None, NOW) is None


@pytest.mark.parametrize(
    ("expire", "expected"),
    [
        (60, NOW + timedelta(seconds=60)),
        (0.25, NOW + timedelta(milliseconds=250)),
        (1e-6, NOW + MICROSECOND),
        (0, NOW),
        (-5, NOW - timedelta(seconds=5)),
        (timedelta(days=1, microseconds=1), NOW + timedelta(days=1, microseconds=1)),
        (timedelta(0), NOW),
        (datetime(2030, 5, 6, 7, 8, 9, 10), datetime(2030, 5, 6, 7, 8, 9, 10)),
        (datetime(2030, 5, 6, 7, fold=1), datetime(2030, 5, 6, 7)),
        (datetime(2030, 5, 6, 7, tzinfo=UTC), datetime(2030, 5, 6, 7)),
        (datetime(2030, 5, 6, 7, tzinfo=timezone(timedelta(hours=2))), datetime(2030, 5, 6, 5)),
    ],
)
def test_an_expire_names_an_instant_in_naive_utc(expire: Any, expected: datetime) -> None:
    result = to_expire(expire, NOW)

    assert expected == result
    assert result is not None
    assert result.tzinfo is None
    assert result.fold == 0


@pytest.mark.parametrize(
    ("expire", "remedy"),
    [
        (True, "not bool: convert"),
        (False, "not bool: convert"),
        ("60", "not str: convert"),
        (b"60", "not bytes: convert"),
        (Decimal(60), "not Decimal: convert"),
        (Fraction(60), "not Fraction: convert"),
        (date(2030, 1, 1), "not date: convert"),
        (time(12), "not time: convert"),
        (60 + 0j, "not complex: convert"),
        ([60], "not list: convert"),
        (math.nan, "is nan: give a finite"),
        (math.inf, "is inf: give a finite"),
        (-math.inf, "is -inf: give a finite"),
        (1e300, "after the year 9999: give an earlier"),
        (10**20, "after the year 9999: give an earlier"),
        (10**400, "after the year 9999: give an earlier"),
        (10**5000, "after the year 9999: give an earlier"),
        (timedelta.max, "after the year 9999: give an earlier"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "after the year 9999: give an earlier"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_names_no_instant_is_refused_with_a_remedy(expire: Any, remedy: str) -> None:
    with pytest.raises(InvalidExpireError, match=remedy) as caught:
        to_expire(expire, NOW)

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


class NotATime(datetime):
    """As pandas.NaT: a datetime whose parts are NaN."""

    year = math.nan  # type: ignore[assignment]


def test_a_datetime_without_an_instant_is_refused() -> None:
    with pytest.raises(InvalidExpireError, match="names no instant: give a real datetime"):
        to_expire(NotATime(2030, 1, 1), NOW)


@pytest.mark.parametrize(
    "expire",
    [
        -(10**400),
        -1e300,
        -(10**12),
        timedelta.min,
        datetime.min,
        datetime(999, 12, 31, 23, 59, 59, 999999),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
    ids=str,
)
def test_what_lies_before_the_year_1000_is_stored_as_its_beginning(expire: Any) -> None:
    assert to_expire(expire, NOW) == EARLIEST == datetime(1000, 1, 1)


@pytest.mark.parametrize("expire", [datetime.max, datetime.max.replace(tzinfo=UTC), datetime.max - NOW])
def test_the_last_microsecond_of_the_calendar_is_left_to_infinity(expire: Any) -> None:
    assert to_expire(expire, NOW) == LATEST == datetime.max - MICROSECOND


class Subclass(datetime):
    pass


class Nowhere(tzinfo):
    """A zone without an offset, which makes a datetime naive."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None


@pytest.mark.parametrize("expire", [Subclass(2030, 1, 1), Subclass(2030, 1, 1, tzinfo=UTC)])
def test_drivers_get_plain_datetimes(expire: datetime) -> None:
    assert type(to_expire(expire, NOW)) is datetime
    assert type(naive(expire.replace(tzinfo=UTC))) is datetime


def test_a_zone_without_offset_is_read_as_utc() -> None:
    assert to_expire(datetime(2030, 1, 1, tzinfo=Nowhere()), NOW) == datetime(2030, 1, 1)


@given(
    seconds=st.floats(-3e10, 2e11) | st.integers(-(3 * 10**10), 2 * 10**11),
    now=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
)
def test_seconds_are_exact_to_the_microsecond(seconds: float, now: datetime) -> None:
    result = to_expire(seconds, now)

    assert result is not None
    lived = Fraction((result - now) // MICROSECOND, 10**6)
    assert abs(lived - Fraction(seconds)) <= Fraction(1, 10**6)


@given(delta=st.timedeltas(timedelta(days=-1), timedelta(days=10000)))
def test_a_timedelta_is_kept_exactly(delta: timedelta) -> None:
    assert to_expire(delta, NOW) == NOW + delta


@given(moment=st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29), timezones=zones, allow_imaginary=False))
def test_an_aware_datetime_keeps_its_instant(moment: datetime) -> None:
    result = to_expire(moment, NOW)

    assert result is not None
    assert moment == result.replace(tzinfo=UTC)
    assert result == naive(moment)


@given(
    expire=st.floats() | st.integers() | st.timedeltas() | st.datetimes() | st.datetimes(timezones=zones) | st.none()
)
def test_every_expire_becomes_a_storable_instant_or_the_named_error(expire: Any) -> None:
    try:
        result = to_expire(expire, NOW)
    except InvalidExpireError:
        return
    assert result is None or EARLIEST <= result <= LATEST


def test_the_clock_of_the_system_is_asked_at_each_call() -> None:
    with time_machine.travel(datetime(2031, 2, 3, tzinfo=UTC), tick=False) as traveller:
        assert utc_now() == datetime(2031, 2, 3, tzinfo=UTC)
        traveller.shift(timedelta(seconds=1))
        assert utc_now() == datetime(2031, 2, 3, 0, 0, 1, tzinfo=UTC)
        assert naive(utc_now()) == datetime(2031, 2, 3, 0, 0, 1)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 7, 1, 12, 0, 0, 5, tzinfo=UTC),
        datetime(2026, 7, 1, 14, 0, 0, 5, tzinfo=timezone(timedelta(hours=2))),
        Subclass(2026, 7, 1, 12, 0, 0, 5, tzinfo=UTC),
    ],
)
def test_the_time_of_a_clock_becomes_naive_utc(moment: datetime) -> None:
    assert naive(moment) == datetime(2026, 7, 1, 12, 0, 0, 5)


@pytest.mark.parametrize("result", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=Nowhere()), 1767225600.0, None])
def test_a_clock_without_a_zone_is_refused_with_a_remedy(result: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"clock must return .* for example datetime.now"):
        naive(result)


def test_a_fake_clock_moves_when_told_to() -> None:
    clock = FakeClock()
    start = clock()

    assert start == clock()
    assert start.tzinfo is UTC
    clock.advance(1.5)
    assert clock() == start + timedelta(seconds=1.5)
    clock.advance(timedelta(seconds=-1))
    assert clock() == start + timedelta(seconds=0.5)
    clock.set(datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert clock() == datetime(2030, 1, 1, tzinfo=UTC)
    assert clock().tzinfo is UTC
    assert repr(clock) == "FakeClock(2030-01-01T00:00:00+00:00)"


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), "2026-01-01", None])
def test_a_fake_clock_refuses_a_naive_time(moment: Any) -> None:
    with pytest.raises(ConfigurationError, match="add tzinfo="):
        FakeClock(moment)
    with pytest.raises(ConfigurationError, match="add tzinfo="):
        FakeClock().set(moment)
