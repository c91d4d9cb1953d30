"""
The verbs of one entry: each checks its arguments, encodes, builds one operation, and decodes what came of it.

No SQL and no session here. Who runs the operation, a lane or the caller's own
transaction, is the subclass's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import datetime
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from akv.errors import InvalidArgumentError
from akv.store.codec import Codec
from akv.store.decisions import adding, adding_up, live, popping, renewing, touching, updating, value_or_missing
from akv.store.expiry import to_expire
from akv.store.operations import Delete, Get, Modify, Operation, Set
from akv.typing import DEFAULT, ENOVAL, Default, Expire, NoValue

T = TypeVar("T")


class EntryVerbs(ABC):
    """What is done to one entry."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    @abstractmethod
    def _run(self, operation: Operation[Any]) -> Awaitable[Any]:
        """Run one operation: the only way from a verb to the database."""

    async def get(
        self,
        key: str,
        default: Any = ENOVAL,
        tag: str | Default = DEFAULT,
        return_expiration: bool = False,
        *,
        renew_for: Expire = None,
    ) -> Any:
        """
        Return the value stored under *key*.

        Args:
            key: At most 256 characters, compared code point by code point.
            default: Returned when nothing live is stored.
            tag: At most 256 characters; left out: the store's default tag.
            return_expiration: Return ``(value, expire)``, expire being naive UTC or None.
            renew_for: New expire of an entry that has one, counted from now; None: leave it.

        Returns:
            The value, else the default. A stored None is a value.

        Raises:
            MissingKeyError: Nothing live is stored, and no default was given.
            CorruptValueError: The stored bytes cannot be decoded.

        Guarantees:
            Sees every write that was acknowledged before the call. A renewal happens in the transaction of the
            read: it never revives a dead entry, and never restores an older value.
        """
        pair = self._codec.pair(key, tag)
        check_flag("return_expiration", return_expiration)
        now = self._codec.now()
        renewed = None if renew_for is None else to_expire(renew_for, now)
        if getattr(key, "shared", True) is False:
            row = None
        elif renewed is None:
            row = live((await self._run(Get((pair,)))).get(pair), now)
        else:
            row = await self._run(Modify((pair,), renewing(now, renewed), again=True))
        if row is None:
            found, end = value_or_missing(pair, default), None
        else:
            found, end = self._codec.decode(pair, row), row.expire
        return (found, end) if return_expiration else found

    async def set(self, key: str, value: Any, tag: str | Default = DEFAULT, expire: Expire = None) -> None:
        """
        Store a value, whatever was there.

        Args:
            key: At most 256 characters, compared code point by code point.
            value: Anything that the store's serializer can encode.
            tag: At most 256 characters; left out: the store's default tag.
            expire: Lifetime; None: no end. Zero or less: already expired.

        Raises:
            SerializationError: The value cannot be encoded; nothing is written.

        Guarantees:
            One upsert; returns after its COMMIT. Cancelled: the old or the new value, never after a later
            acknowledged write.
        """
        pair = self._codec.pair(key, tag)
        record = self._codec.record(pair, value, self._end(expire))
        if getattr(key, "shared", True) is not False:
            await self._run(Set((pair,), (record,)))

    async def delete(self, key: str, tag: str | Default = DEFAULT) -> bool:
        """
        Delete an entry.

        Returns:
            Whether a live one was there.
        """
        operation = Delete((self._codec.pair(key, tag),), self._codec.now())
        return bool(await self._run(operation))

    async def pop(self, key: str, default: Any = ENOVAL, tag: str | Default = DEFAULT) -> Any:
        """
        Delete an entry and return its value.

        Returns:
            The value, else the default.

        Raises:
            MissingKeyError: Nothing live is stored, and no default was given.
            CorruptValueError: The value cannot be decoded; the entry stays.
            OutcomeUnknownError: The connection broke while COMMIT was under way.

        Guarantees:
            One transaction: of any number of concurrent pops, among processes too, one gets the value.
        """
        pair = self._codec.pair(key, tag)
        found = await self._run(Modify((pair,), popping(self._codec, pair, self._codec.now())))
        return value_or_missing(pair, default) if found is ENOVAL else found

    async def add(self, key: str, value: Any, tag: str | Default = DEFAULT, expire: Expire = None) -> bool:
        """
        Store a value only if nothing live is stored.

        Returns:
            Whether it was stored.

        Raises:
            OutcomeUnknownError: The connection broke while COMMIT was under way.

        Guarantees:
            One transaction: of any number of concurrent adds, among processes too, one returns True.
        """
        pair, now = self._codec.pair(key, tag), self._codec.now()
        data, end = self._codec.encode(pair, value), to_expire(expire, now)
        return bool(await self._run(Modify((pair,), adding(data, end, now), reads_value=False, sent=len(data or b""))))

    async def incr(
        self, key: str, delta: int = 1, *, default: int = 0, tag: str | Default = DEFAULT, expire: Expire = None
    ) -> int:
        """
        Add *delta* to the integer under *key* and return the sum.

        Args:
            key: At most 256 characters, compared code point by code point.
            delta: Any int; the sum is unbounded.
            default: Value to start from when the key is absent or expired.
            tag: At most 256 characters; left out: the store's default tag.
            expire: Lifetime of an entry that this call creates; an existing one keeps its own.

        Raises:
            StoredTypeError: The stored value is not an int (a TypeError); nothing is written.
            OutcomeUnknownError: The connection broke while COMMIT was under way.

        Guarantees:
            One transaction, atomic between tasks and processes. Cancelled: the old or the new value.
        """
        pair, now = self._codec.pair(key, tag), self._codec.now()
        _check_int("delta", delta)
        _check_int("default", default)
        step = adding_up(self._codec, pair, now, delta, default, to_expire(expire, now))
        result: int = await self._run(Modify((pair,), step))
        return result

    async def update(
        self,
        key: str,
        function: Callable[[Any], T],
        *,
        default: Any = ENOVAL,
        tag: str | Default = DEFAULT,
        expire: Expire | NoValue = ENOVAL,
    ) -> T:
        """
        Replace a value by a function of it and return the new value.

        Args:
            key: At most 256 characters, compared code point by code point.
            function: Sync and pure, called under the row lock with the value; a retried transaction calls it again.
            default: What the function gets when nothing live is stored.
            tag: At most 256 characters; left out: the store's default tag.
            expire: New lifetime, None being no end; left out: an existing entry keeps its own.

        Raises:
            MissingKeyError: Nothing live is stored, and no default was given.
            OutcomeUnknownError: The connection broke while COMMIT was under way.

        Guarantees:
            One transaction, atomic between tasks and processes. What the function raises reaches the caller, and
            nothing is written.
        """
        pair, now = self._codec.pair(key, tag), self._codec.now()
        _check_function(function)
        end = ENOVAL if isinstance(expire, NoValue) else to_expire(expire, now)
        result: T = await self._run(Modify((pair,), updating(self._codec, pair, now, function, default, end)))
        return result

    async def touch(self, key: str, expire: Expire, tag: str | Default = DEFAULT) -> bool:
        """
        Move the expiry of a live entry and leave its value untouched.

        Args:
            key: At most 256 characters, compared code point by code point.
            expire: New lifetime; None: no end.
            tag: At most 256 characters; left out: the store's default tag.

        Returns:
            Whether a live entry was there.
        """
        pair, now = self._codec.pair(key, tag), self._codec.now()
        step = touching(now, to_expire(expire, now))
        return bool(await self._run(Modify((pair,), step, reads_value=False, again=True)))

    def _end(self, expire: Expire) -> datetime | None:
        return None if expire is None else to_expire(expire, self._codec.now())


def check_flag(name: str, value: object) -> None:
    """
    Check an argument that switches something.

    Raises:
        InvalidArgumentError: It is neither True nor False.
    """
    if value is not True and value is not False:
        raise InvalidArgumentError(f"{name} must be True or False, not {value!r}")


def _check_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be an int, not {type(value).__name__}")


def _check_function(function: object) -> None:
    call = getattr(type(function), "__call__", None)  # noqa: B004 -- an object may have an async __call__
    if not callable(function) or iscoroutinefunction(function) or iscoroutinefunction(call):
        raise InvalidArgumentError(
            "update takes a plain function of the value, because it runs under the row lock: "
            "await what you need first, and close over it"
        )
