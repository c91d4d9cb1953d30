"""
Explicit invalidation, told to every process: a memoized function and each of its calls have tokens too.

What has dependencies depends on these as well. What has none is not validated when it is found; there, a computation
is not saved if the tokens have changed since it began.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from akv.errors import ClosedError, TokenError
from akv.memoize.guard import Guard, Nothing, Place
from akv.tokens.backend import Unreachable
from akv.tokens.identifiers import memo_identifier
from akv.typing import Tokens

T = TypeVar("T")

_TAG: Final = "akv:memo:"


def call_identifier(place: Place) -> str:
    """Return the identifier that stands for one call."""
    return memo_identifier(place.tag.removeprefix(_TAG), place.key)


def function_identifier(tag: str) -> str:
    """Return the identifier that stands for all calls of one function."""
    return memo_identifier(tag.removeprefix(_TAG))


class Invalidations:
    """What this process tells others, and is told by them."""

    def __init__(self, guard: Guard, tokens: Tokens) -> None:
        """
        Args:
            guard: Of the store.
            tokens: Of the store.
        """
        self._guard = guard
        self._tokens = tokens

    def identifiers(self, place: Place) -> tuple[str, ...]:
        """Return what stands for a call, and for all calls of its function."""
        return function_identifier(place.tag), call_identifier(place)

    async def of_call(self, place: Place) -> None:
        """
        Let nobody believe or save what was computed for a call until now.

        Raises:
            TokenError: The tokens do not answer; others may not know.
        """
        await self._bump(call_identifier(place))

    async def of_function(self, tag: str) -> None:
        """
        Let nobody believe or save what was computed for any call of a function until now.

        Raises:
            TokenError: The tokens do not answer; others may not know.
        """
        await self._bump(function_identifier(tag))

    async def told(self, place: Place) -> Hashable:
        """Return something that changes when the call is invalidated; DOWN if nobody can tell."""
        try:
            return await self._guard.ask(partial(self._state, self.identifiers(place)), place)
        except ClosedError:  # whoever has no dependencies does without tokens
            return Nothing.DOWN

    async def save(
        self, place: Place, told: Hashable, save: Callable[[], Awaitable[T | None]], undo: Callable[[], Awaitable[Any]]
    ) -> T | None:
        """
        Save, unless the call was invalidated since it was *told*.

        Args:
            place: Of the call.
            told: What :meth:`told` returned before it was computed.
            save: Saves the result, and returns None if it did not.
            undo: Called if the call was invalidated while it was being saved.
        """
        if await self._is_invalid(place, told):
            return None
        saved = await save()
        if saved is not None and await self._is_invalid(place, told):
            await undo()
            return None
        return saved

    async def _is_invalid(self, place: Place, told: Hashable) -> bool:
        if told is Nothing.DOWN:
            return False
        now = await self.told(place)
        return now is not Nothing.DOWN and now != told

    async def _state(self, names: Sequence[str]) -> Hashable:
        look = getattr(self._tokens, "look", None)
        if look is None:
            return tuple((await self._tokens.read(names)).values())
        try:
            seen = await look(names)
        except Unreachable as error:
            raise TokenError(f"tokens cannot be read: {error}") from error
        if seen.epoch is None:
            return ()
        return seen.epoch.id, *(record.seq for record in seen.records if record.epoch == seen.epoch.id)

    async def _bump(self, name: str) -> None:
        try:
            await self._tokens.bump([name])
        except SQLAlchemyError as error:
            raise TokenError(f"other processes may not know of the invalidation, so do it again: {error}") from error
