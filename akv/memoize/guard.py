"""
The store, as a cache that is never worse than no cache.

What goes wrong in the store is a miss here, or a value that is not kept, and a
line in the log now and then; what goes wrong in the user's code is not touched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from akv.errors import ClosedError, CorruptValueError, SerializationError, StoreError
from akv.memoize.flight import Flights
from akv.typing import Default, Expire

log = logging.getLogger("akv")

T = TypeVar("T")

_QUIET: Final = 60.0  # seconds between two log lines about one kind of failure


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


class MemoStore(Protocol):
    """What memoize uses of a store."""

    async def get(self, key: str, default: Any = ..., tag: str | Default = ...) -> Any:
        """Return the live value, or *default*."""

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
    """

    def __init__(self, store: MemoStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            store: Stays the caller's.
            monotonic: Clock that spaces log lines, seconds.
        """
        self.store = store
        self.flights = Flights()
        self._monotonic = monotonic
        self._logged: dict[str, float] = {}

    async def look(self, place: Place) -> Any:
        """
        Return the value at a place, or the :class:`Nothing` that says why there is none.

        Raises:
            ClosedError: The store was closed.
        """
        try:
            return await self.store.get(place.key, Nothing.ABSENT, place.tag)
        except CorruptValueError as error:
            self._log_rarely("a stored result cannot be decoded, it is computed again: %s", error, place)
            return Nothing.CORRUPT
        except StoreError as error:
            self._log_rarely("the store does not answer, results are computed without it: %s", error, place)
            return Nothing.DOWN

    async def look_again(self, place: Place, found: Nothing, since: int) -> Any:
        """
        Look once more if what was computed meanwhile may have filled the place.

        Args:
            place: Where *found* was found.
            found: What the first look returned.
            since: ``flights.landings`` as it was before the first look.
        """
        if found in (Nothing.DOWN, Nothing.UNASKED) or self.flights.landings == since:
            return found
        return await self.look(place)

    async def set(self, place: Place, value: Any, expire: Expire) -> bool:
        """Store a value, whatever is there; return whether that worked."""
        return await self._tried(self.store.set(place.key, value, place.tag, expire), place) is None

    async def add(self, place: Place, value: Any, expire: Expire) -> bool | Nothing:
        """Store a value if none is there; return whether that was so, DOWN if it is not known."""
        return await self._tried(self.store.add(place.key, value, place.tag, expire), place)

    async def _tried(self, write: Awaitable[T], place: Place) -> T | Nothing:
        try:
            return await write
        except SerializationError as error:
            self._log_rarely("a result cannot be encoded, it is returned but not saved: %s", error, place)
        except (StoreError, ClosedError) as error:
            self._log_rarely("a result could not be saved, it is returned all the same: %s", error, place)
        return Nothing.DOWN

    def _log_rarely(self, message: str, error: Exception, place: Place) -> None:
        now = self._monotonic()
        last = self._logged.get(message)
        if last is None or now - last >= _QUIET:
            self._logged[message] = now
            log.warning(message, error, extra={"akv_key": place.key, "akv_tag": place.tag})
