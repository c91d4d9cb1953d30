"""
memoize: a coroutine function becomes one that remembers.

What a call does is told in :mod:`akv.memoize.recipe` (key) and :mod:`akv.memoize.answer` (look, judge, compute,
save); here are the decorator and the object that takes the function's place.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from akv.errors import ConfigurationError
from akv.memoize.guard import Guard, Place
from akv.memoize.options import CacheInfo, ExpireIf, Options, SkipIf, check_condition
from akv.memoize.recipe import Recipe

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class _Takes(Protocol[S_contra, Q, R_co]):
    """A memoized function whose first parameter admits S: mypy binds that exactly, unlike a Concatenate."""

    def __call__(self, first: S_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> Coroutine[Any, Any, R_co]: ...


class Memoized(Generic[P, R]):
    """
    A coroutine function whose results are kept in a store; call it as before.

    Concurrent calls of one key compute once in a process and its event loop, and all get the same object. The
    computation runs in a task of its own with a copy of the context of the caller that started it.

    Looked up on an instance or a class, it is bound as a function would be, and so are its methods:
    ``service.profile.cache_key(7)``.

    Guarantees:
        Cancelling a caller never disturbs others; cancelling the last one cancels the computation and returns when it
        has ended. So does cancelling the one whose session it works with: the next caller computes. An exception
        reaches all who waited and is not stored. A store that fails costs a wait of two seconds at most, now and then,
        and a log line; the function runs, and its result is returned.
    """

    def __init__(self, recipe: Recipe[R], bound: tuple[Any, ...] = ()) -> None:
        """
        Args:
            recipe: Shared by all that are bound from one function.
            bound: The instance or class, if it was looked up on one.
        """
        function = recipe.function
        self.__dict__.update(vars(function))
        self.__module__ = function.__module__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__doc__ = function.__doc__
        self._recipe = recipe
        self._bound = bound
        self._takes_class = not bound and recipe.takes_class
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Return the stored result of such a call, or compute, save and return it.

        Raises:
            UncacheableArgumentError: An argument has no canonical form.
            ClosedError: The store was closed.
            Exception: What the function raised.
        """
        return await self._recipe.call(self._bound + args, kwargs)

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R]]:
        """The function itself, bound alike: calling it neither asks nor fills the store."""
        function: Any = self._recipe.function
        return function.__get__(self._bound[0]) if self._bound else function  # type: ignore[no-any-return]

    async def cache_clear(self) -> int:
        """
        Forget every result of this function, for all instances.

        Returns:
            How many live ones were stored.

        Raises:
            StoreError: The database refused; results may still be stored.
            TokenError: The tokens did not answer; other processes may not know.

        Guarantees:
            Callers who come afterwards join no computation that began before in this process, and it is not saved. With
            tokens, one of another process is not saved either.
        """
        return await self._recipe.clear()

    async def cache_invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """
        Forget the result of one call.

        Returns:
            Whether a live one was stored.

        Raises:
            StoreError: The database refused; the result may still be stored.
            TokenError: The tokens did not answer; other processes may not know.

        Guarantees:
            Those of :meth:`cache_clear`, for this call.
        """
        return await self._recipe.invalidate(self._place(args, kwargs))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Compute now, save, and return the result, whatever is stored.

        Guarantees:
            Joins no computation that has begun; an older one that still runs is not saved, with tokens in no process.
        """
        return await self._recipe.refresh(self._with_receiver(args), kwargs)

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """
        Return the key of a call; its tag is :attr:`cache_tag`.

        Raises:
            UncacheableArgumentError: An argument has no canonical form.
        """
        return self._place(args, kwargs).key

    @property
    def cache_tag(self) -> str:
        """The tag of all results of this function in the store."""
        return self._recipe.tag

    def cache_info(self) -> CacheInfo:
        """Return what has happened so far in this process, with all instances."""
        return self._recipe.info()

    @property
    def expire_if(self) -> ExpireIf:
        """Whether to ignore the cache and compute; may be assigned."""
        return self._recipe.expire_if

    @expire_if.setter
    def expire_if(self, condition: ExpireIf) -> None:
        check_condition("expire_if", condition)
        self._recipe.expire_if = condition

    @property
    def skip_saving_to_cache_if(self) -> SkipIf:
        """Whether not to save a result; may be assigned."""
        return self._recipe.answers.skip_if

    @skip_saving_to_cache_if.setter
    def skip_saving_to_cache_if(self, condition: SkipIf) -> None:
        check_condition("skip_saving_to_cache_if", condition)
        self._recipe.answers.skip_if = condition

    def _place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        return self._recipe.place(self._with_receiver(args), kwargs)

    def _with_receiver(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._takes_class and args and not isinstance(args[0], type):
            # Since Python 3.13 a classmethod does not bind what it wraps, and cls would be taken for given.
            raise ConfigurationError(
                f"{self.__qualname__} is not bound to its class here: write @memoize above @classmethod, "
                "or give the class as first argument"
            )
        return self._bound + args

    # The first parameter of a classmethod, of a method, of a staticmethod: in this order, mypy finds the right one.
    @overload
    def __get__(self: _Takes[type[S], Q, R], instance: object, owner: type[S]) -> Memoized[Q, R]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Memoized[P, R]: ...
    @overload
    def __get__(self: _Takes[S, Q, R], instance: S, owner: type | None = None) -> Memoized[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Memoized[P, R]: ...
    def __get__(self, instance: object, owner: object = None) -> Any:
        return self if instance is None or self._bound else Memoized[..., R](self._recipe, (instance,))

    def __reduce__(self) -> Any:
        if self._bound:
            return getattr, (self._bound[0], self.__name__)
        return self.__qualname__  # as functions are pickled: by name

    def __repr__(self) -> str:
        return f"<memoized {self.__module__}.{self.__qualname__}>"


class MemoizedMember(Generic[P, R]):
    """What a classmethod or staticmethod becomes in its class: looked up, it is a :class:`Memoized`."""

    def __init__(self, recipe: Recipe[R], *, binds_class: bool) -> None:
        """
        Args:
            recipe: Of the function inside.
            binds_class: It is a classmethod.
        """
        self._memoized: Memoized[P, R] = Memoized(recipe)
        self._recipe = recipe
        self._binds_class = binds_class

    def __get__(self, instance: object, owner: type | None = None) -> Memoized[P, R]:
        if not self._binds_class:
            return self._memoized
        return Memoized(self._recipe, (owner or type(instance),))


class Decorator(Protocol):
    """What ``memoize`` with options returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a staticmethod is callable too, but is found first
        self, function: staticmethod[P, Coroutine[Any, Any, R]], /
    ) -> MemoizedMember[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Memoized[P, R]: ...
    @overload
    def __call__(self, function: classmethod[Any, P, Coroutine[Any, Any, R]], /) -> MemoizedMember[P, R]: ...


def memoize(guard: Guard, options: Options) -> Decorator:
    """
    Return the decorator that keeps results in the guarded store.

    Args:
        guard: Of the store.
        options: Checked by themselves; whether they fit the function is seen at decoration.
    """
    decorator: Any = partial(_decorated, guard, options)
    return decorator  # type: ignore[no-any-return]


def is_decorated(value: object) -> bool:
    """Tell whether ``memoize`` was written without parentheses, and got what it decorates as its first argument."""
    return callable(value) or isinstance(value, classmethod | staticmethod | property | MemoizedMember)


def _decorated(guard: Guard, options: Options, function: Any) -> Memoized[Any, Any] | MemoizedMember[Any, Any]:
    if isinstance(function, classmethod | staticmethod):
        recipe = Recipe[Any](guard, _checked_function(function.__func__), options)
        return MemoizedMember(recipe, binds_class=isinstance(function, classmethod))
    return Memoized(Recipe[Any](guard, _checked_function(function), options))


def _checked_function(function: Any) -> Any:
    if inspect.isfunction(function) and inspect.iscoroutinefunction(function):
        return function
    name = getattr(function, "__qualname__", None) or repr(function)
    raise ConfigurationError(f"memoize takes coroutine functions, and {name} is {_remedy(function)}")


def _remedy(function: object) -> str:
    if isinstance(function, Memoized | MemoizedMember):
        return "memoized already: decorate it once"
    if isinstance(function, property):
        return "a property: write @property above, and @memoize directly above async def"
    if inspect.ismethod(function):
        return "bound to an instance: decorate it where its class defines it"
    if inspect.isasyncgenfunction(function):
        return "an async generator: memoize a coroutine function that returns what it yields, as a list"
    if inspect.isfunction(function):
        return "none: write async def"
    return "no function: memoize an async def that calls it, for its results are kept under a name"
