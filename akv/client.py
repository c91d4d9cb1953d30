"""The store with everything on it: what ``akv`` exports as AsyncKVAlchemy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from akv.memoize.create import get_or_create
from akv.memoize.decorator import Decorator, Memoized, MemoizedMember, is_decorated, memoize
from akv.memoize.guard import Guard, Place
from akv.memoize.recipe import ExpireIf, Options, SkipIf
from akv.store.client import Store
from akv.store.expiry import to_expire
from akv.typing import DEFAULT, Default, Expire

P = ParamSpec("P")
R = TypeVar("R")


class AsyncKVAlchemy(Store):
    """
    A key-value store in a SQL database, and memoized coroutines whose results live there.

    Concurrent tasks of an event loop, several loops and threads, and several processes may use it at once. A
    store made from a URL owns its engines, one set for each event loop; one made from an engine or a session
    factory belongs, like that engine, to one event loop, and keeps connections of its own beside its pool.

    Making a store does no I/O: the first await creates the table, unless told not to.
    """

    async def get_or_create(
        self,
        key: str,
        creator: Callable[[], Awaitable[R]],
        *,
        tag: str | Default = DEFAULT,
        expire: Expire = None,
    ) -> R:
        """
        Return the value stored under *key*, making and storing it if there is none.

        Args:
            key: At most 256 characters, compared code point by code point.
            creator: A coroutine function without arguments, for example ``functools.partial(load, 7)``.
            tag: At most 256 characters; left out: the store's default tag.
            expire: Lifetime of what is made; None: no end.

        Returns:
            The stored value: if another process was quicker, what that one made.

        Raises:
            InvalidArgumentError: *creator* is no coroutine function.

        Guarantees:
            Concurrent callers of an event loop run one creator; cancelling one disturbs no other, and cancelling the
            last one cancels the creator. Its exception reaches all of them and nothing is stored. If the store fails,
            or cannot encode the value, the value is made and returned, not stored.
        """
        place = Place(*reversed(self._codec.pair(key, tag)))
        to_expire(expire, self._codec.now())
        shared = getattr(key, "shared", True) is not False
        return await get_or_create(self._guard, place, creator, expire, shared=shared)

    @overload
    def memoize(  # type: ignore[overload-overlap]
        self, function: staticmethod[P, Coroutine[Any, Any, R]], /
    ) -> MemoizedMember[P, R]: ...
    @overload
    def memoize(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Memoized[P, R]: ...
    @overload
    def memoize(self, function: classmethod[Any, P, Coroutine[Any, Any, R]], /) -> MemoizedMember[P, R]: ...
    @overload
    def memoize(
        self,
        expire: Expire = None,
        expire_if: ExpireIf = False,
        skip_saving_to_cache_if: SkipIf = False,
        *,
        key: Callable[..., Any] | None = None,
        ignore: Collection[str] = (),
        version: str = "",
    ) -> Decorator: ...
    def memoize(
        self,
        expire: Any = None,
        expire_if: ExpireIf = False,
        skip_saving_to_cache_if: SkipIf = False,
        *,
        key: Callable[..., Any] | None = None,
        ignore: Collection[str] = (),
        version: str = "",
    ) -> Any:
        """
        Keep the results of a coroutine function in the store; with or without parentheses.

        Args:
            expire: Lifetime of a result; None: no end.
            expire_if: True, or a callable without arguments, sync or async, asked at each call: compute whatever is
                stored, and save.
            skip_saving_to_cache_if: True, or a callable of the result, sync or async: do not save it.
            key: A function of the call's arguments; what it returns identifies the call instead of them.
            ignore: Names of parameters that do not belong to the key, for example ``("session",)``.
            version: Change it when results of before must not be found any more.

        Returns:
            A :class:`Memoized`; functions, methods, classmethods and staticmethods become one.

        Raises:
            ConfigurationError: What is decorated is no coroutine function, or an option is wrong.
            InvalidExpireError: The expire names no instant.

        Guarantees:
            A call is known by its arguments as the function sees them, defaults applied: typed, and the same in every
            process. A function is known by its module and qualified name; two that share them, as the closures that a
            function makes at each of its calls do, share their results.
        """
        function, expire = (expire, None) if is_decorated(expire) else (None, expire)
        options = Options(
            expire=expire,
            expire_if=expire_if,
            skip_saving_to_cache_if=skip_saving_to_cache_if,
            key=key,
            ignore=ignore,
            version=version,
        )
        decorate: Any = memoize(self._guard, options)
        return decorate if function is None else decorate(function)

    @property
    def _guard(self) -> Guard:
        found = self.__dict__.get("_memoize_guard")
        guard: Guard = found or self.__dict__.setdefault("_memoize_guard", Guard(self))  # setdefault: threads agree
        return guard
