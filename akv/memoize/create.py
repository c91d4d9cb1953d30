"""get_or_create: a value of the store that is made when it is missing."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from akv.errors import InvalidArgumentError
from akv.memoize.flight import Flight
from akv.memoize.guard import Guard, Nothing, Place
from akv.typing import Expire

R = TypeVar("R")


async def get_or_create(
    guard: Guard, place: Place, creator: Callable[[], Awaitable[R]], expire: Expire, *, shared: bool = True
) -> R:
    """
    Return the value at a place, making it if there is none.

    Args:
        guard: Of the store.
        place: Checked key and tag.
        creator: A coroutine function.
        expire: Checked lifetime of what is made.
        shared: False: the key belongs to one unit of work, so the value is made for it alone.

    Raises:
        InvalidArgumentError: *creator* is no coroutine function.
    """
    _check_creator(creator)
    if not shared:
        return await creator()
    since = guard.flights.landings
    found = await guard.look(place)
    if isinstance(found, Nothing):
        return await guard.flights.fly(place, partial(_create, guard, place, creator, expire, found, since))
    value: R = found
    return value


async def _create(
    guard: Guard,
    place: Place,
    creator: Callable[[], Awaitable[R]],
    expire: Expire,
    missed: Nothing,
    since: int,
    flight: Flight[R],  # noqa: ARG001, RUF100 -- what a computation is given
) -> R:
    found = await guard.look_again(place, missed, since)
    if not isinstance(found, Nothing):
        value: R = found
        return value
    value = await creator()
    return value if found is Nothing.DOWN else await _kept(guard, place, value, expire, found)


async def _kept(guard: Guard, place: Place, value: R, expire: Expire, missed: Nothing) -> R:
    """Store a value, and return what is stored: another process may have been quicker."""
    if missed is Nothing.CORRUPT:
        await guard.set(place, value, expire)
    elif await guard.add(place, value, expire) is False:
        stored: Any = await guard.look(place)
        return value if isinstance(stored, Nothing) else stored
    return value


def _check_creator(creator: object) -> None:
    call = getattr(type(creator), "__call__", None)  # noqa: B004 -- a Memoized, or another object with async __call__
    if not inspect.iscoroutinefunction(creator) and not inspect.iscoroutinefunction(call):
        raise InvalidArgumentError(
            f"creator must be a coroutine function without arguments, not {creator!r}: "
            "write async def, or functools.partial(function, argument)"
        )
