"""
How results lie in the store: a memoized one with all about it in one row, one of get_or_create as its plain value.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

from akv.errors import CorruptValueError
from akv.memoize.freshness import Saved, micros, moment, unpacked
from akv.memoize.guard import Guard, Nothing, Place

_ASIDE: Final = "akv:made:"
_WITHOUT_LIMIT: Final = datetime(9999, 12, 31)
"""Expiry of a value that is kept however old it is; None would be that of what a plain set has written."""
_LONG_AGO: Final = 0
_LONGEST_TAG: Final = 256


class Shelf(Protocol):
    """Where results are looked for and kept; a store that fails is a miss, or a value that is not kept."""

    async def look(self, place: Place) -> Saved | Nothing:
        """Return what is kept at a place, however old."""

    async def keep(self, place: Place, saved: Saved, end: datetime | None, found: Saved | Nothing) -> Saved | None:
        """
        Keep a result until *end*.

        Args:
            place: Where.
            saved: The result.
            end: Naive UTC; None: for ever.
            found: What was there when it was computed.

        Returns:
            What is kept now; None if nothing was.
        """


class MemoShelf:
    """One row for each call."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def look(self, place: Place) -> Saved | Nothing:
        """Return what is kept at a place, however old."""
        tag, key = place
        stored = await self._guard.read(lambda: self._guard.store.get(key, Nothing.ABSENT, tag), place)
        return stored if isinstance(stored, Nothing) else unpacked(stored) or Nothing.ABSENT

    async def keep(self, place: Place, saved: Saved, end: datetime | None, found: Saved | Nothing) -> Saved | None:
        """Keep a result until *end*, unless the holder of a later lease has kept his."""
        write = partial(self._fenced if saved.fence else self._set, place, saved, end)
        return saved if await self._guard.write(write, place) is None else None

    async def _set(self, place: Place, saved: Saved, end: datetime | None) -> None:
        await self._guard.store.set(place.key, saved.packed(), place.tag, end)

    async def _fenced(self, place: Place, saved: Saved, end: datetime | None) -> Nothing | None:
        store, (tag, key) = self._guard.store, place
        try:
            await store.update(key, partial(_unless_later, saved), default=None, tag=tag, expire=end)
        except _TooLateError:
            return Nothing.DOWN
        except CorruptValueError:
            await self._set(place, saved, end)
        return None


class PlainShelf:
    """
    The value itself in its row, and beside it, under a tag of akv's own, what its age is judged by.

    A row that was written by other means has nothing beside it that fits its expiry, and is as fresh as it is live.
    """

    def __init__(self, guard: Guard, *, is_dated: bool) -> None:
        """
        Args:
            guard: Of the store.
            is_dated: Age is more than being live.
        """
        self._guard = guard
        self._is_dated = is_dated

    async def look(self, place: Place) -> Saved | Nothing:
        """Return what is kept at a place, however old."""
        tag, key = place
        if self._is_dated:
            found: Saved | Nothing = await self._guard.read(partial(self._both, place), place)
            return found
        value = await self._guard.read(lambda: self._guard.store.get(key, Nothing.ABSENT, tag), place)
        return value if isinstance(value, Nothing) else Saved(value)

    async def _both(self, place: Place) -> Saved | Nothing:
        store, (tag, key) = self._guard.store, place
        # Of one moment, hence one statement.
        (value, end), aside = await asyncio.gather(
            store.get(key, Nothing.ABSENT, tag, return_expiration=True), store.get(key, None, _aside(tag))
        )
        if value is Nothing.ABSENT:
            return Nothing.ABSENT
        dates = unpacked(aside)
        if dates is not None and dates.value == _mark(end):
            return dates._replace(value=value)
        return Saved(value, until=_LONG_AGO if end == _WITHOUT_LIMIT else None)

    async def keep(self, place: Place, saved: Saved, end: datetime | None, found: Saved | Nothing) -> Saved | None:
        """Keep a result until *end*, unless another process was quicker to make one."""
        if self._is_dated and end is None:
            end = _WITHOUT_LIMIT
        if found is not Nothing.ABSENT:
            written = await self._guard.write(partial(self._set, place, saved, end), place)
            return saved if written is None else None
        added = await self._guard.write(lambda: self._guard.store.add(place.key, saved.value, place.tag, end), place)
        if added is False:
            theirs = await self.look(place)
            return None if isinstance(theirs, Nothing) else theirs
        if added is True and self._is_dated:
            await self._guard.write(partial(self._set_aside, place, saved, end), place)
        return saved if added is True else None

    async def _set(self, place: Place, saved: Saved, end: datetime | None) -> None:
        value = self._guard.store.set(place.key, saved.value, place.tag, end)
        await (asyncio.gather(value, self._set_aside(place, saved, end)) if self._is_dated else value)

    async def _set_aside(self, place: Place, saved: Saved, end: datetime | None) -> None:
        if end == _WITHOUT_LIMIT and saved.until is not None:
            end_aside: datetime | None = moment(saved.until)  # to be swept when it has nothing left to say
        else:
            end_aside = end
        dates = saved._replace(value=_mark(end))
        await self._guard.store.set(place.key, dates.packed(), _aside(place.tag), end_aside)


class _TooLateError(Exception):
    """The holder of a later lease has kept his result."""


def _unless_later(saved: Saved, stored: object) -> dict[str, Any]:
    later = unpacked(stored)
    if later is not None and later.fence > saved.fence:
        raise _TooLateError
    return saved.packed()


def _mark(end: datetime | None) -> int | None:
    """What stands beside a row to say that it belongs to that row, and to no later one."""
    return None if end is None else micros(end)


def _aside(tag: str) -> str:
    name = _ASIDE + tag
    if len(name) <= _LONGEST_TAG:
        return name
    return f"{_ASIDE}#{hashlib.blake2b(tag.encode(), digest_size=32).hexdigest()}"
