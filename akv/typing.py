"""
Public protocols and aliases, for annotations in your own code.

Only shapes live here: nothing imports SQLAlchemy, Redis or another room of akv.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

Expire: TypeAlias = int | float | timedelta | datetime | None
"""
Lifetime of an entry.

None: no end. A number: seconds from now. A timedelta: from now. A datetime:
that instant, a naive one being UTC. Zero or less is already expired.
"""

Clock: TypeAlias = Callable[[], datetime]
"""Returns the current time as an aware datetime; called once per call of the store."""


class NoValue(Enum):
    """Type of :data:`ENOVAL`: one member, so that type checkers can narrow it."""

    ENOVAL = "ENOVAL"

    def __repr__(self) -> str:
        return "ENOVAL"

    def __bool__(self) -> Literal[False]:
        return False


ENOVAL: Final = NoValue.ENOVAL
"""Absence of a value, where None is a value; falsy, picklable, always the same object."""


class Default(Enum):
    """Type of :data:`DEFAULT`."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
"""Given as tag: the store's own ``default_tag``."""


@runtime_checkable
class Serializer(Protocol):
    """
    Turns values into bytes and back.

    The key and the tag are given so that a serializer can bind a value to its
    place. None stands for SQL NULL, on both sides.
    """

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes | None:
        """
        Encode a value.

        Raises:
            SerializationError: The value has no encoding.
        """

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        """
        Decode what :meth:`dumps` made.

        Raises:
            CorruptValueError: The bytes are not a value of this serializer at this place.
        """


Vector: TypeAlias = tuple[str, ...]
"""Tokens of some identifiers as text: the time that they belong to, then one for each, in their order."""


@runtime_checkable
class Tokens(Protocol):
    """Where tokens of identifiers live: in the database, or in Redis."""

    async def read(self, identifiers: Sequence[str]) -> Mapping[str, str]:
        """
        Read the tokens of identifiers in one round trip, sent after the call began.

        Returns:
            A token for each identifier. Two reads return the same token iff the identifier was not bumped between.
        """

    async def bump(self, identifiers: Sequence[str]) -> None:
        """Replace the token of each identifier."""

    async def aclose(self) -> None:
        """Close what this object owns; idempotent."""


@runtime_checkable
class MaybePrivate(Protocol):
    """A cache key that knows whether others may see what is stored under it."""

    @property
    def shared(self) -> bool:
        """False: the key belongs to one unit of work, and nothing is to be stored under it."""


Creator: TypeAlias = Callable[[], Awaitable[Any]]
"""A coroutine function without arguments that makes the value of ``get_or_create``."""
