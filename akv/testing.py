"""What users' tests want."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from akv.errors import ConfigurationError


class FakeClock:
    """
    A clock that moves only when told to; give it as ``clock=``.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    >>> clock().isoformat()
    '2026-01-01T12:00:01.500000+00:00'
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)) -> None:
        """
        Args:
            start: The first time shown, aware.

        Raises:
            ConfigurationError: *start* is no aware datetime.
        """
        self.set(start)

    def __call__(self) -> datetime:
        """Return the time shown, in UTC."""
        return self._now

    def __repr__(self) -> str:
        return f"FakeClock({self._now.isoformat()})"

    def advance(self, seconds: float | timedelta) -> None:
        """
        Move the clock.

        Args:
            seconds: Seconds or a timedelta; negative moves it back.

        Raises:
            ConfigurationError: *seconds* is neither, or leads out of the calendar.
        """
        try:
            if isinstance(seconds, bool):
                raise TypeError("a bool is no duration")
            self._now += seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"FakeClock.advance takes seconds or a timedelta, not {seconds!r}: {error}"
            ) from error

    def set(self, moment: datetime) -> None:
        """
        Show another time.

        Args:
            moment: An aware datetime.

        Raises:
            ConfigurationError: *moment* is no aware datetime.
        """
        self._now = _in_utc(moment)


def _in_utc(moment: object) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ConfigurationError(f"FakeClock needs an aware datetime, not {moment!r}: add tzinfo=timezone.utc")
    return moment.astimezone(UTC)
