"""get_or_create: a value of the store that is made when it is missing."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from akv.errors import InvalidArgumentError
from akv.memoize.answer import Answers
from akv.memoize.freshness import Freshness
from akv.memoize.guard import Guard, Place
from akv.memoize.shelf import PlainShelf

R = TypeVar("R")


async def get_or_create(
    guard: Guard,
    place: Place,
    creator: Callable[[], Awaitable[R]],
    freshness: Freshness,
    *,
    lease: float | None = None,
    shared: bool = True,
) -> R:
    """
    Return the value at a place, making it if there is none.

    Args:
        guard: Of the store.
        place: Checked key and tag.
        creator: A coroutine function.
        freshness: Lifetime of what is made, and what may be done with older values.
        lease: Seconds of the lease under which one process makes it; None: each for itself.
        shared: False: the key belongs to one unit of work, so the value is made for it alone.

    Raises:
        InvalidArgumentError: *creator* is no coroutine function.
    """
    _check_creator(creator)
    if not shared:
        return await creator()
    answers = Answers[R](guard, PlainShelf(guard, is_dated=freshness.is_dated), freshness, lease=lease)
    return (await answers.answer(place, creator, answers.draw())).value


def _check_creator(creator: object) -> None:
    call = getattr(type(creator), "__call__", None)  # noqa: B004 -- a Memoized, or another object with async __call__
    if not inspect.iscoroutinefunction(creator) and not inspect.iscoroutinefunction(call):
        raise InvalidArgumentError(
            f"creator must be a coroutine function without arguments, not {creator!r}: "
            "write async def, or functools.partial(function, argument)"
        )
