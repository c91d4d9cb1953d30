"""
How long to wait for Redis, and when not to ask it at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("akv")

_TURNS: Final = 8
"""Turns of the event loop that a reply has after the time is over: it may wait in the socket while the loop stood."""
_FAILURES: Final = 3
_PAUSE: Final = 1.0


class Budget:
    """
    A block that raises TimeoutError when it takes too long.

    Unlike :func:`asyncio.timeout` it gives a reply that has arrived its chance: an event loop that was busy with
    something else for that long says nothing about Redis.
    """

    __slots__ = ("_cancelling", "_handle", "_is_over", "_loop", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - asyncio runs coroutines in tasks
        self._task = task
        self._cancelling = task.cancelling()  # not 0 in what a cancelled task does at its end
        self._handle: asyncio.Handle = self._loop.call_later(self._seconds, self._due, _TURNS)

    def _due(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._due, turns - 1)
        else:
            self._is_over = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._handle.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError(f"no answer within {self._seconds} s") from error


class Breaker:
    """
    Spares readers the wait for a Redis that does not answer: after some failures in a row only one in a while asks.

    Writers ask always, and their answers count here too.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: Monotonic, seconds.
        """
        self._clock = clock
        self._failures = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last few attempts have all failed."""
        return self._failures >= _FAILURES

    def allows(self) -> bool:
        """Tell whether a reader may ask now; while the breaker is open, one may after each pause."""
        if not self.is_open:
            return True
        if self._clock() < self._next_probe:
            return False
        self._next_probe = self._clock() + _PAUSE
        return True

    def succeeded(self) -> None:
        """Note that Redis has answered."""
        if self.is_open:
            logger.info("Redis answers again")
        self._failures = 0

    def failed(self, reason: object) -> None:
        """Note that Redis has not answered, or has refused."""
        self._failures += 1
        self._next_probe = self._clock() + _PAUSE
        if self._failures == _FAILURES:
            logger.warning("Redis does not serve us, so nothing is shared through tokens until it does: %s", reason)
