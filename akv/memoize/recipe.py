"""A coroutine function and how its results are kept and found."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from akv.errors import TokenError
from akv.memoize.answer import Answers, Outcome
from akv.memoize.callkey import CallKey, function_tag
from akv.memoize.guard import Guard, Nothing, Place
from akv.memoize.loan import SessionLoan
from akv.memoize.near import Near
from akv.memoize.options import CacheInfo, Options, holds
from akv.memoize.outer import Outer, outer
from akv.memoize.shelf import MemoShelf

if TYPE_CHECKING:
    from akv.memoize.dependencies import Dependencies
    from akv.memoize.invalidation import Invalidations

R = TypeVar("R")
T = TypeVar("T")


class Recipe(Generic[R]):
    """
    A coroutine function, and how its results are kept and found.

    Attributes:
        expire_if: Whether to ignore what is kept.
        answers: What happens to calls.
    """

    def __init__(self, guard: Guard, function: Callable[..., Awaitable[R]], options: Options) -> None:
        """
        Raises:
            ConfigurationError: An option does not fit the function.
        """
        self.guard = guard
        self.function = function
        self.tag = function_tag(function, options.version)
        self.expire_if = options.expire_if
        self._dependencies = _dependencies(function, options)
        self._invalidations = _invalidations(guard, options)
        self._tokens = options.tokens
        self.answers = self._make_answers(options)
        self._key_of = CallKey(function, ignore=options.ignore, key=options.key)
        self._goes_on_behind = options.freshness.goes_on_behind
        self.takes_class = _takes_class(function, self._key_of.signature)

    def _make_answers(self, options: Options) -> Answers[R]:
        kind: type[Answers[R]] = Answers
        if self._dependencies is not None:
            from akv.memoize.dependent import DependentAnswers

            kind = DependentAnswers
        return kind(
            self.guard,
            MemoShelf(self.guard),
            options.freshness,
            skip_if=options.skip_saving_to_cache_if,
            near=_near(options),
            lease=options.lock,
            invalidations=self._invalidations,
        )

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        """Return where the result of a call is kept."""
        return Place(self.tag, self._key_of(args, kwargs))

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, forced: bool = False) -> R:
        """
        Answer a call.

        Args:
            args: The receiver included, if the function has one.
            kwargs: As the caller gave them.
            forced: Compute, whatever is kept.
        """
        key, answers = self._key_of(args, kwargs), self.answers
        forced = forced or (self.expire_if is not False and await holds(self.expire_if))
        chance = answers.draw()
        told = outer.get()
        if not forced and answers.near is not None and self._dependencies is None and told is None:
            value = answers.at_hand(key, chance)
            if not isinstance(value, Nothing):
                return value
        place, compute = Place(self.tag, key), partial(self.function, *args, **kwargs)
        loan = SessionLoan(args, kwargs)
        waits = self._goes_on_behind and loan.is_given()
        basis = None if self._dependencies is None else self._dependencies.of_call(place, args, kwargs)
        try:
            outcome = await answers.answer(place, compute, chance, forced=forced, waits=waits, basis=basis, loan=loan)
        except Exception:
            if told is not None and basis is not None:  # whoever catches this rests on it as on a result
                told.rests_on(self._tokens, basis.identifiers, None)
            raise
        if told is not None:
            self._tell(told, place, outcome)
        return outcome.value

    def _tell(self, told: Outer, place: Place, outcome: Outcome[R]) -> None:
        """Hand what a result rests on to the tracked computation that has called."""
        if outcome.evidence is not None:
            told.rests_on(self._tokens, outcome.evidence.identifiers, outcome.until)
        elif self._invalidations is not None:
            told.rests_on(self._tokens, self._invalidations.identifiers(place), outcome.until)
        else:
            told.rests_on(None, (), outcome.until)

    async def refresh(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """Compute, whatever is kept here or is being computed in any process."""
        if self._invalidations is not None:
            place = self.place(args, kwargs)
            try:
                await self._invalidations.of_call(place)
            except TokenError as error:
                self.guard.log_unreachable(error, place)
        return await self.call(args, kwargs, forced=True)

    async def clear(self) -> int:
        """Forget the results of all calls, in every process; return how many live ones were stored."""
        await self.guard.flights.outdate(lambda place: place.tag == self.tag)
        try:
            if self._invalidations is not None:  # first: what is saved after this is not believed
                await self._invalidations.of_function(self.tag)
        finally:
            deleted = await self._delete(None, self.guard.store.delete_tag(self.tag))
        return deleted

    async def invalidate(self, place: Place) -> bool:
        """Forget the result at one place, in every process; return whether a live one was stored."""
        await self.guard.flights.outdate(lambda other: other == place)
        try:
            if self._invalidations is not None:
                await self._invalidations.of_call(place)
        finally:
            deleted = await self._delete(place.key, self.guard.store.delete(place.key, place.tag))
        return deleted

    async def _delete(self, key: str | None, delete: Awaitable[T]) -> T:
        try:
            return await delete
        finally:
            if self.answers.near is not None:
                self.answers.near.forget(key)

    def info(self) -> CacheInfo:
        """Return what has happened so far."""
        counts = self.answers
        return CacheInfo(counts.hits, counts.misses, counts.fills, counts.bypasses, dict(counts.reasons))


def _dependencies(function: Callable[..., Any], options: Options) -> Dependencies | None:
    """Return what results rest on. The invalidation half is loaded here, for whoever wants it."""
    if options.track:
        from akv.memoize.tracking import Tracking

        return Tracking(options.tokens, function.__qualname__, options.depends_on)
    if options.depends_on is None:
        return None
    from akv.memoize.dependencies import Dependencies

    return Dependencies(options.tokens, options.depends_on)


def _invalidations(guard: Guard, options: Options) -> Invalidations | None:
    if options.tokens is None:
        return None
    from akv.memoize.invalidation import Invalidations

    return Invalidations(guard, options.tokens)


def _near(options: Options) -> Near | None:
    if options.near is None:
        return None
    return Near(options.near, options.near_bytes, shared=options.near_shared)


def _takes_class(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    """Tell whether a function looks like the inside of a classmethod."""
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(signature.parameters), None)
    return first == "cls" and bool(owner) and not owner.endswith("<locals>")
