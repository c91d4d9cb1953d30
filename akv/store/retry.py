"""
How often and how long a failing call is tried again.

The policy is ours and frozen; tenacity does the waiting, and is built only
once something has failed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeGuard, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from akv.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    Bounds of retrying one call of the store.

    The wait before the n-th retry is ``initial * 2**(n - 1)``, at most
    ``maximum``, less a random part of it. Durations are seconds or timedeltas.

    Attributes:
        attempts: How often a call is tried in all, at least 1; 1 means never again.
        total: Time for all attempts and waits together; no wait begins that would end later.
        initial: Wait before the first retry.
        maximum: Longest wait, at least ``initial``.
        jitter: Fraction of each wait that is random, from 0 to 1.

    Raises:
        ConfigurationError: A value is out of bounds.
    """

    attempts: int = 12
    total: float | timedelta = 10.0
    initial: float | timedelta = 0.02
    maximum: float | timedelta = 1.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        _check_attempts(self.attempts)
        for name in ("total", "initial", "maximum"):
            object.__setattr__(self, name, _checked_seconds(name, getattr(self, name)))
        if _seconds(self.maximum) < _seconds(self.initial):
            raise ConfigurationError(
                f"retry maximum must be at least initial ({self.initial} seconds), not {self.maximum}"
            )
        if not _is_finite_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"retry jitter must be a number from 0 to 1, not {self.jitter!r}")

    @property
    def seconds(self) -> float:
        """The total in seconds."""
        return _seconds(self.total)


class Exhausted(Exception):  # noqa: N818 -- never reaches a user
    """
    The last attempt failed too; ``__cause__`` is its exception.

    Attributes:
        attempts: How many attempts were made.
        elapsed: Seconds since the first began.
    """

    def __init__(self, attempts: int, elapsed: float) -> None:
        super().__init__(attempts, elapsed)
        self.attempts = attempts
        self.elapsed = elapsed


async def run(
    policy: RetryPolicy,
    attempt: Callable[[], Awaitable[T]],
    transient: Callable[[BaseException], bool],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> T:
    """
    Await *attempt* until it succeeds, fails for good, or the policy is used up.

    Args:
        policy: The bounds.
        attempt: Called for each attempt.
        transient: Whether an exception may pass by itself.
        sleep: How to wait, seconds.
        monotonic: Clock for the total, seconds.

    Raises:
        Exhausted: Still transient after the last attempt.

    Guarantees:
        Any other exception propagates unchanged, cancellation included.
    """
    started = monotonic()
    try:
        return await attempt()
    except Exception as error:
        if not transient(error):
            raise
        failures = [error]

    async def again() -> T:
        if failures:
            raise failures.pop()  # tenacity counts the first attempt too
        return await attempt()

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, Exception) and transient(error)

    def is_used_up(state: RetryCallState) -> bool:
        ends = monotonic() - started + state.upcoming_sleep
        return state.attempt_number >= policy.attempts or ends > _seconds(policy.total)

    def give_up(state: RetryCallState) -> NoReturn:
        cause = state.outcome.exception() if state.outcome else None
        raise Exhausted(state.attempt_number, monotonic() - started) from cause

    retrying = AsyncRetrying(
        sleep=sleep,
        stop=is_used_up,
        wait=_waits(policy),
        retry=retry_if_exception(may_pass),
        retry_error_callback=give_up,
        reraise=True,
    )
    return await retrying(again)


def _waits(policy: RetryPolicy) -> Callable[[RetryCallState], float]:
    full = wait_exponential(multiplier=_seconds(policy.initial), max=_seconds(policy.maximum))

    def wait(state: RetryCallState) -> float:
        return full(state) * (1 - policy.jitter * random.random())  # noqa: S311 -- nothing secret

    return wait


def _check_attempts(attempts: object) -> None:
    if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
        raise ConfigurationError(f"retry attempts must be an int of at least 1, not {attempts!r}")


def _checked_seconds(name: str, value: object) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_finite_number(value) or value < 0:
        raise ConfigurationError(
            f"retry {name} must be a finite number of seconds of at least 0, or a timedelta, not {value!r}"
        )
    return float(value)


def _seconds(value: float | timedelta) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _is_finite_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
