"""How a call of a memoized function is answered: key, look, judge, compute, save."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from akv.errors import ConfigurationError
from akv.memoize.callkey import CallKey, function_tag
from akv.memoize.flight import Flight
from akv.memoize.guard import Guard, Nothing, Place
from akv.store.expiry import naive, to_expire, utc_now
from akv.typing import Expire

R = TypeVar("R")

ExpireIf: TypeAlias = bool | Callable[[], bool | Awaitable[bool]]
"""Whether to ignore the cache and compute; a callable is asked at each call."""

SkipIf: TypeAlias = bool | Callable[[Any], bool | Awaitable[bool]]
"""Whether not to save; a callable is asked about each result."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """
    What has happened so far in this process; each call is a hit, a miss or a bypass.

    Attributes:
        hits: Calls answered from the store.
        misses: Calls that found nothing in the store.
        fills: Results that were saved.
        bypasses: Calls that did not ask the store, told so by ``expire_if`` or ``refresh``, or got no answer.
    """

    hits: int
    misses: int
    fills: int
    bypasses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What ``memoize`` was told.

    Raises:
        ConfigurationError: An option is of the wrong type.
        InvalidExpireError: The expire names no instant.
    """

    expire: Expire = None
    expire_if: ExpireIf = False
    skip_saving_to_cache_if: SkipIf = False
    key: Callable[..., Any] | None = None
    ignore: Collection[str] = ()
    version: str = ""

    def __post_init__(self) -> None:
        to_expire(self.expire, naive(utc_now()))
        check_condition("expire_if", self.expire_if)
        check_condition("skip_saving_to_cache_if", self.skip_saving_to_cache_if)


class Recipe(Generic[R]):
    """A coroutine function, and how its results are kept and found."""

    def __init__(self, guard: Guard, function: Callable[..., Awaitable[R]], options: Options) -> None:
        """
        Raises:
            ConfigurationError: An option does not fit the function.
        """
        self.guard = guard
        self.function = function
        self.tag = function_tag(function, options.version)
        self.expire = options.expire
        self.expire_if = options.expire_if
        self.skip_if = options.skip_saving_to_cache_if
        self.hits = self.misses = self.fills = self.bypasses = 0
        self._key_of = CallKey(function, ignore=options.ignore, key=options.key)
        self.takes_class = _takes_class(function, self._key_of.signature)

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        """Return where the result of a call is kept."""
        return Place(self.tag, self._key_of(args, kwargs))

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, forced: bool = False) -> R:
        """
        Answer a call.

        Args:
            args: The receiver included, if the function has one.
            kwargs: As the caller gave them.
            forced: Compute, whatever is stored.
        """
        place = self.place(args, kwargs)  # key
        flights = self.guard.flights
        since = flights.landings
        missed = await self._look(place, forced)  # look
        if not isinstance(missed, Nothing):  # judge
            value: R = missed
            return value

        async def fill(flight: Flight[R]) -> R:
            found = await self.guard.look_again(place, missed, since)
            if not isinstance(found, Nothing):
                value: R = found
                return value
            result = await self.function(*args, **kwargs)  # compute
            if found is not Nothing.DOWN and not await _holds(self.skip_if, result):  # save
                self.fills += bool(await flight.save(lambda: self.guard.set(place, result, self.expire)))
            return result

        return await flights.fly(place, fill, forced=missed is Nothing.UNASKED)

    async def _look(self, place: Place, forced: bool) -> Any:
        if forced or await _holds(self.expire_if):
            self.bypasses += 1
            return Nothing.UNASKED
        found = await self.guard.look(place)
        if not isinstance(found, Nothing):
            self.hits += 1
        elif found is Nothing.DOWN:
            self.bypasses += 1
        else:
            self.misses += 1
        return found

    async def clear(self) -> int:
        """Forget the results of all calls; return how many live ones were stored."""
        await self.guard.flights.outdate(lambda place: place.tag == self.tag)
        return await self.guard.store.delete_tag(self.tag)

    async def invalidate(self, place: Place) -> bool:
        """Forget the result at one place; return whether a live one was stored."""
        await self.guard.flights.outdate(lambda other: other == place)
        return await self.guard.store.delete(place.key, place.tag)


def check_condition(name: str, condition: object) -> None:
    """
    Check what decides about a call or a result.

    Raises:
        ConfigurationError: It is no bool and no callable.
    """
    if not isinstance(condition, bool) and not callable(condition):
        raise ConfigurationError(
            f"{name} must be a bool or a callable, not {condition!r}: write {name}=lambda ...: ..."
        )


async def _holds(condition: bool | Callable[..., bool | Awaitable[bool]], *args: Any) -> bool:
    answer = condition(*args) if callable(condition) else condition
    return bool(await answer if inspect.isawaitable(answer) else answer)


def _takes_class(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    """Tell whether a function looks like the inside of a classmethod."""
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(signature.parameters), None)
    return first == "cls" and bool(owner) and not owner.endswith("<locals>")
