"""
The store, as a cache that is never worse than no cache.

What goes wrong in the store is a miss here, or a value that is not kept, and a
line in the log now and then; what goes wrong in the user's code is not touched.
A store that does not answer is waited for a moment, and then left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from akv.aio import PerLoop, TimeLimit
from akv.errors import (
    ClosedError,
    CorruptValueError,
    SerializationError,
    StoreError,
    StoreUnavailableError,
    TokenError,
)
from akv.memoize.flight import Flights, step_out
from akv.memoize.freshness import instant
from akv.memoize.lease import LeaseStore, Locks, Spawn
from akv.typing import Clock, Default, Expire

log = logging.getLogger("akv")

T = TypeVar("T")

_QUIET: Final = 60.0  # seconds between two log lines about one kind of failure
_PATIENCE: Final = 2.0  # seconds that a call waits for the store
_FIRST_BREAK, _LONGEST_BREAK = 1.0, 30.0  # seconds for which a store that did not answer is not asked


class Place(NamedTuple):
    """Where a result is kept."""

    tag: str
    key: str


class Nothing(Enum):
    """Why no value was found."""

    ABSENT = auto()
    CORRUPT = auto()
    DOWN = auto()
    UNASKED = auto()


class MemoStore(LeaseStore, Protocol):
    """What memoize uses of a store."""

    async def get(self, key: str, default: Any = ..., tag: str | Default = ..., return_expiration: bool = ...) -> Any:
        """Return the live value, or *default*; with its expiry if that is wanted."""

    async def set(self, key: str, value: Any, tag: str | Default = ..., expire: Expire = ...) -> None:
        """Store a value."""

    async def add(self, key: str, value: Any, tag: str | Default = ..., expire: Expire = ...) -> bool:
        """Store a value if there is none."""

    async def delete(self, key: str, tag: str | Default = ...) -> bool:
        """Delete an entry."""

    async def delete_tag(self, tag: str | Default = ...) -> int:
        """Delete all entries of a tag."""


class Guard:
    """
    A store, and what is being computed for it.

    Attributes:
        store: Asked directly where its errors are the caller's business.
        flights: Computations under way.
        locks: Leases in the store.
        patience: Seconds that a call waits for the store.
        clock: The store's.
        monotonic: Clock of log lines and of breaks, seconds.
        chance: Draws from [0, 1).
    """

    def __init__(
        self,
        store: MemoStore,
        *,
        clock: Clock,
        spawn: Spawn,
        patience: float = _PATIENCE,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            store: Stays the caller's.
            clock: The store's.
            spawn: Starts tasks that the store owns.
            patience: Seconds that a call waits for the store.
            monotonic: Clock of log lines and of breaks, seconds.
            chance: Draws from [0, 1).
        """
        self.store = store
        self.flights = Flights()
        self.locks = Locks(store, self.now, spawn)
        self.patience = patience
        self.chance = chance
        self.clock = clock
        self.monotonic = monotonic
        self._spawn = spawn
        self._reading, self._writing, self._asking = (Breaker(lambda: self.monotonic()) for _ in range(3))
        self._logged: dict[str, float] = {}
        self._here: PerLoop[_Here] = PerLoop(self._new_here)

    def now(self) -> int:
        """The application's time, microseconds since 1970."""
        return instant(self.clock())

    async def read(self, ask: Callable[[], Awaitable[Any]], place: Place) -> Any:
        """
        Return what *ask* finds, or why that is nothing.

        Args:
            ask: Reads from the store.
            place: For the log.

        Raises:
            ClosedError: The store was closed.
        """
        try:
            return await self._bounded(ask, self._reading)
        except CorruptValueError as error:
            self.log_rarely("a stored result cannot be decoded, it is computed again: %s", error, place)
            return Nothing.CORRUPT
        except (StoreError, TimeoutError) as error:
            self.log_rarely("the store does not answer, results are computed without it: %s", error, place)
            return Nothing.DOWN

    async def write(self, write: Callable[[], Awaitable[T]], place: Place) -> T | Nothing:
        """Return what *write* returned, or DOWN if it is not known to have happened."""
        try:
            return await self._bounded(write, self._writing)
        except SerializationError as error:
            self.log_rarely("a result cannot be encoded, it is returned but not saved: %s", error, place)
        except (StoreError, ClosedError, TimeoutError) as error:
            self.log_rarely("a result could not be saved, it is returned all the same: %s", error, place)
        return Nothing.DOWN

    async def ask(self, ask: Callable[[], Awaitable[T]], place: Place) -> T | Nothing:
        """
        Return what tokens say, or DOWN if they do not answer.

        Raises:
            ConfigurationError: They are not ours to use.
            ClosedError: They were closed.
        """
        try:
            return await self._bounded(ask, self._asking)
        except (SQLAlchemyError, TokenError, StoreError, TimeoutError) as error:
            self.log_unreachable(error, place)
            return Nothing.DOWN

    def log_unreachable(self, error: Exception, place: Place) -> None:
        """Warn that tokens cannot be read, unless that was done a moment ago."""
        self.log_rarely("tokens cannot be read, so results with dependencies are not saved: %s", error, place)

    async def _bounded(self, call: Callable[[], Awaitable[T]], breaker: Breaker) -> T:
        if not breaker.lets_through():
            raise StoreError("it did not answer a moment ago, and is left alone for a while")
        try:
            with self._here.get().limit.until(asyncio.get_running_loop().time() + self.patience):
                answer = await call()
        except (TimeoutError, StoreUnavailableError) as error:
            breaker.failed()
            raise error if str(error) else TimeoutError(f"no answer within {self.patience} s") from None
        except StoreError:
            breaker.answered()
            raise
        breaker.answered()
        return answer

    @property
    def behind(self) -> set[Place]:
        """What is being computed in the background of the running event loop."""
        return self._here.get().behind

    def _new_here(self) -> _Here:
        self._here.take_stale()
        return _Here()

    def go_on_behind(self, place: Place, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """
        Let the store do some work of a place in the background, unless it is about it already.

        Guarantees:
            Ends with the store. What the work raises is logged.
        """
        behind = self.behind
        if place in behind:
            return
        task = self._spawn(self._behind_the_scene(place, work), name=f"akv-refresh-{place}")
        behind.add(place)
        task.add_done_callback(lambda _: behind.discard(place))

    async def _behind_the_scene(self, place: Place, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        step_out()
        try:
            await work()
        except Exception as error:
            self.log_rarely("a result could not be computed anew, the last one stays: %r", error, place)

    def log_rarely(self, message: str, error: Exception, place: Place) -> None:
        """Warn of a kind of failure, unless that was done a moment ago."""
        now = self.monotonic()
        last = self._logged.get(message)
        if last is None or now - last >= _QUIET:
            self._logged[message] = now
            log.warning(message, error, extra={"akv_key": place.key, "akv_tag": place.tag})


class _Here:
    """What belongs to one event loop."""

    __slots__ = ("behind", "limit")

    def __init__(self) -> None:
        self.limit = TimeLimit(every=_PATIENCE / 8)
        self.behind: set[Place] = set()


class Breaker:
    """Lets nobody wait for a store that has kept somebody waiting in vain; asks again now and then."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """
        Args:
            monotonic: Clock, seconds.
        """
        self._monotonic = monotonic
        self._break = 0.0
        self._until = 0.0
        self._is_probing = False

    def lets_through(self) -> bool:
        """Tell whether to ask: always, or, at the end of a break, the one who comes first."""
        if not self._break:
            return True
        now = self._monotonic()
        if now < self._until:
            return False
        self._until, self._is_probing = now + self._break, True
        return True

    def failed(self) -> None:
        """Begin a break; a longer one, if the call at the end of the last one was in vain too."""
        if self._break and not self._is_probing:
            return  # it went through before the break
        self._break = min(2 * self._break, _LONGEST_BREAK) or _FIRST_BREAK
        self._until, self._is_probing = self._monotonic() + self._break, False

    def answered(self) -> None:
        """End the break."""
        self._break, self._is_probing = 0.0, False
