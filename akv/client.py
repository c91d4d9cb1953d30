"""The store with everything on it: what ``akv`` exports as AsyncKVAlchemy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, overload

from akv.memoize.create import get_or_create
from akv.memoize.decorator import Decorator, Memoized, MemoizedMember, is_decorated, memoize
from akv.memoize.freshness import Freshness, OnError, seconds_of
from akv.memoize.guard import Guard, Place
from akv.memoize.lease import LOCK_TAG, Lock, Name
from akv.memoize.options import LEASE, NEAR_BYTES, ExpireIf, Options, SkipIf, lease_of
from akv.store.client import Store
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
        jitter: float = 0.0,
        stale_for: float | timedelta | None = None,
        early: bool = False,
        on_error: OnError = "raise",
        lock: bool | float = False,
    ) -> R:
        """
        Return the value stored under *key*, making and storing it if there is none.

        Args:
            key: At most 256 characters, compared code point by code point.
            creator: A coroutine function without arguments, for example ``functools.partial(load, 7)``.
            tag: At most 256 characters; left out: the store's default tag.
            expire: Lifetime of what is made; None: no end.
            jitter: As :meth:`memoize` has it, and so are the following.
            stale_for: The creator runs in the background then, perhaps after this call has returned.
            early: The same.
            on_error: What happens if the creator raises.
            lock: One process at a time makes the value.

        Returns:
            The stored value: if another process was quicker, what that one made.

        Raises:
            InvalidArgumentError: *creator* is no coroutine function.
            ConfigurationError: An option is out of bounds.

        Guarantees:
            Concurrent callers of an event loop run one creator; cancelling one disturbs no other, and cancelling the
            last one cancels the creator. Its exception reaches all of them and nothing is stored. If the store fails,
            or cannot encode the value, the value is made and returned, not stored.

            The row holds the value itself, for :meth:`get` and the others, and lives for as long as the value may be
            handed out here: with ``stale_for`` that much longer, with ``on_error="stale"`` alone until the year 9999.
            What the age is judged by stands in a row beside it, whose tag begins with ``akv:made:``.
        """
        place = Place(*reversed(self._codec.pair(key, tag)))
        freshness = Freshness(expire=expire, jitter=jitter, stale_for=stale_for, early=early, on_error=on_error)
        shared = getattr(key, "shared", True) is not False
        return await get_or_create(self._guard, place, creator, freshness, lease=lease_of(lock), shared=shared)

    def lock(self, name: str, *, lease: float | timedelta = LEASE, timeout: float | timedelta | None = None) -> Lock:
        """
        Return an async context manager that one task of one process holds at a time.

        Args:
            name: At most 256 characters, compared code point by code point; no key of yours: its row has a tag of
                akv's own, ``akv:lock``.
            lease: Seconds after which another one may take it from a holder who was killed; who is alive renews it.
            timeout: Seconds to wait for it; None: for ever.

        Raises:
            InvalidKeyError: *name* is not what a key may be.
            ConfigurationError: *lease* or *timeout* is out of bounds.

        Guarantees:
            Entering raises TimeoutError if it was not free in time, StoreError if the database refuses. ``.fence`` is
            greater than that of every earlier holder: let what the lock protects refuse a smaller one than it has
            seen, for a process that slept longer than its lease does not know that it has lost it. The clocks of the
            processes must agree to within a part of the lease. Cancelled: it is not held, or given back. Who holds it
            and asks for it once more waits for himself.
        """
        row = Name(*self._codec.pair(name, LOCK_TAG))
        return Lock(self._guard.locks, row, seconds_of("lease", lease), _checked_timeout(timeout))

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
        jitter: float = 0.0,
        stale_for: float | timedelta | None = None,
        early: bool = False,
        on_error: OnError = "raise",
        key: Callable[..., Any] | None = None,
        ignore: Collection[str] = (),
        version: str = "",
        near: int | None = None,
        near_bytes: int = NEAR_BYTES,
        near_shared: bool = False,
        lock: bool | float = False,
        depends_on: Any = None,
        track: bool = False,
    ) -> Decorator: ...
    def memoize(
        self,
        expire: Any = None,
        expire_if: ExpireIf = False,
        skip_saving_to_cache_if: SkipIf = False,
        *,
        jitter: float = 0.0,
        stale_for: float | timedelta | None = None,
        early: bool = False,
        on_error: OnError = "raise",
        key: Callable[..., Any] | None = None,
        ignore: Collection[str] = (),
        version: str = "",
        near: int | None = None,
        near_bytes: int = NEAR_BYTES,
        near_shared: bool = False,
        lock: bool | float = False,
        depends_on: Any = None,
        track: bool = False,
    ) -> Any:
        """
        Keep the results of a coroutine function in the store; with or without parentheses.

        Args:
            expire: Lifetime of a result; None: no end.
            expire_if: True, or a callable without arguments, sync or async, asked at each call: compute whatever is
                stored, and save.
            skip_saving_to_cache_if: True, or a callable of the result, sync or async: do not save it.
            jitter: Part of the lifetime by which it varies at random: 0.1 is 10 % either way.
            stale_for: Seconds after the lifetime in which a result is returned while it is computed anew in the
                background; by the caller himself, if he gave a session, a connection or an instance of a session.
            early: Compute anew in the background before the lifetime ends, the likelier the nearer the end and the
                longer it took: among many callers about one does.
            on_error: "stale": if the function raises, return the last result, however old unless ``stale_for`` says.
            key: A function of the call's arguments; what it returns identifies the call instead of them.
            ignore: Names of parameters that do not belong to the key, for example ``("session",)``.
            version: Change it when results of before must not be found any more.
            near: Most results that this process keeps at hand; None: none. Those with dependencies are validated by a
                round trip to the tokens, none to the database. Without dependencies, what another process invalidates
                is seen here when it has expired.
            near_bytes: Most bytes of them, estimated.
            near_shared: Return the very same object each time, even one that can be changed; otherwise such are copied.
            lock: True, or the seconds of a lease: one process at a time computes a call, the others wait for its
                result; one that is killed is replaced when its lease has ended.
            depends_on: What results depend on: a mapped class or Table (any row of it), a mapped instance (its row), a
                Label, an ``akv:`` string, or several of them in a list, tuple or set; or a function of the call's
                arguments that returns such. Needs tokens, and an engine that is bound to them.
            track: Depend on the rows and tables that the function reads through bound engines while it runs, and on
                what memoized calls within it depend on; with ``depends_on``, on that too. A read that cannot be
                attributed keeps the result from being saved; one warning says why.

        Returns:
            A :class:`Memoized`; functions, methods, classmethods and staticmethods become one.

        Raises:
            ConfigurationError: What is decorated is no coroutine function, or an option is wrong.
            InvalidExpireError: The expire names no instant.

        Guarantees:
            A call is known by its arguments as the function sees them, defaults applied: typed, and the same in every
            process. A function is known by its module and qualified name; two that share them, as the closures that a
            function makes at each of its calls do, share their results.

            A call with dependencies that starts after the database shows a change of one of them returns what was
            computed after it, whatever the options about age say. Where nobody can tell, it is computed and not saved;
            ``cache_info().reasons`` counts why: with a session or connection among the arguments or in an attribute
            of one, or a transaction open in this context, that has uncommitted changes or is older than what it would
            meet; with a detached instance; while a commit of what it depends on is under way, or tokens do not answer.
        """
        function, expire = (expire, None) if is_decorated(expire) else (None, expire)
        settings = Options(
            freshness=Freshness(expire=expire, jitter=jitter, stale_for=stale_for, early=early, on_error=on_error),
            expire_if=expire_if,
            skip_saving_to_cache_if=skip_saving_to_cache_if,
            key=key,
            ignore=ignore,
            version=version,
            near=near,
            near_bytes=near_bytes,
            near_shared=near_shared,
            lock=lease_of(lock),
            tokens=self.tokens,
            depends_on=depends_on,
            track=track,
        )
        decorate: Any = memoize(self._guard, settings)
        return decorate if function is None else decorate(function)

    @property
    def _guard(self) -> Guard:
        found = self.__dict__.get("_memoize_guard")
        guard: Guard = found or self.__dict__.setdefault("_memoize_guard", self._make_guard())  # threads agree
        return guard

    def _make_guard(self) -> Guard:
        return Guard(self, clock=self._codec.clock, spawn=self._spawn)


def _checked_timeout(timeout: object) -> float | None:
    return None if timeout is None else 0.0 if timeout == 0 else seconds_of("timeout", timeout)
