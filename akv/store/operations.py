"""
What a verb wants from the store, as small frozen values.

A verb builds one operation; lanes and transactions run operations. An
operation knows no SQL and does no I/O: whether it reads or writes, which rows
it touches and how the decision about a row is made is all it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)

Pair: TypeAlias = tuple[str, str]
"""A key and its tag: the identity of an entry."""


FEW = 1000
"""Rows that any database which is alive reads or writes in the time of a retry policy."""


class Row(NamedTuple):
    """What is stored under a pair: undecoded, possibly dead."""

    value: bytes | None
    expire: datetime | None

    def is_live(self, now: datetime) -> bool:
        """Tell whether the entry is visible at *now*: an entry is dead at its expiry instant."""
        return self.expire is None or self.expire > now


class Record(NamedTuple):
    """A whole stored row."""

    key: str
    tag: str
    value: bytes | None
    expire: datetime | None


NOTHING = Row(None, None)


class Effect(Enum):
    """What a decision does to the row that it was asked about."""

    KEEP = auto()
    PUT = auto()
    RENEW = auto()
    DROP = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """
    The outcome of a :class:`Modify` step.

    Attributes:
        effect: What happens to the row.
        result: What the verb returns.
        row: The new row (PUT), or one whose expire is the new expiry (RENEW).
    """

    effect: Effect
    result: Any
    row: Row = NOTHING

    @classmethod
    def keep(cls, result: Any) -> Decision:
        """Leave the row as it is."""
        return cls(Effect.KEEP, result)

    @classmethod
    def put(cls, value: bytes | None, expire: datetime | None, result: Any) -> Decision:
        """Store a value and its expiry."""
        return cls(Effect.PUT, result, Row(value, expire))

    @classmethod
    def renew(cls, expire: datetime | None, result: Any) -> Decision:
        """Move the expiry and leave the value untouched."""
        return cls(Effect.RENEW, result, Row(None, expire))

    @classmethod
    def drop(cls, result: Any) -> Decision:
        """Delete the row."""
        return cls(Effect.DROP, result)


Step: TypeAlias = Callable[[Row | None], Decision]
"""Decides about a locked row; pure, because a retried transaction asks again. May raise: then nothing is written."""


class Operation(Generic[T_co]):
    """
    Base of all operations; the type parameter is what running it returns.

    Attributes:
        repeatable: Whether running it once more, after it may have happened, gives what its caller asked for.
        is_short: Whether it touches few rows, so that a database which takes long does not answer at all.
    """

    __slots__ = ()
    repeatable: ClassVar[bool] = True

    @property
    def is_short(self) -> bool:
        """Sweeping operations take as long as the table is large."""
        return False


@dataclass(frozen=True, slots=True)
class Get(Operation[dict[Pair, Row]]):
    """Read rows, dead ones included."""

    pairs: tuple[Pair, ...]

    @property
    def is_short(self) -> bool:
        """By the number of rows."""
        return len(self.pairs) <= FEW


class Write(Operation[Any]):
    """
    Base of what changes rows that are known by their pairs.

    Attributes:
        touched: The rows that the operation may change.
    """

    __slots__ = ()

    touched: tuple[Pair, ...]

    @property
    def is_short(self) -> bool:
        """By the number of rows."""
        return len(self.touched) <= FEW

    @property
    def size(self) -> int:
        """Bytes of the values that the operation sends, to bound a batch; 0 where only its step knows."""
        return 0


@dataclass(frozen=True, slots=True)
class Set(Write):
    """Store rows, whatever was there: a record for each touched pair, in their order."""

    touched: tuple[Pair, ...]
    records: tuple[Record, ...]

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(len(record.value or b"") for record in self.records)


@dataclass(frozen=True, slots=True)
class Delete(Write):
    """Delete rows; returns how many of them were live."""

    touched: tuple[Pair, ...]
    now: datetime


@dataclass(frozen=True, slots=True)
class Modify(Write):
    """
    Lock a row, decide about it, and write what was decided, in one transaction.

    Attributes:
        touched: The one row.
        step: The decision.
        reads_value: False: the step looks at the expiry alone, so that a large value need not travel.
        again: Whether the operation may run twice (see :class:`Operation`).
        sent: Bytes of the value, where they are known before the decision.
    """

    touched: tuple[Pair]
    step: Step = field(compare=False)
    reads_value: bool = True
    again: bool = False
    sent: int = 0

    @property
    def size(self) -> int:
        """Bytes of the value, as far as they are known."""
        return self.sent

    @property
    def pair(self) -> Pair:
        """The row."""
        return self.touched[0]

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """As the verb said."""
        return self.again


class Filter(NamedTuple):
    """Which rows a sweeping operation means; None is no limit."""

    prefix: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteWhere(Operation[int]):
    """Delete every row that the filter matches, dead ones too; returns how many were live."""

    where: Filter
    now: datetime


@dataclass(frozen=True, slots=True)
class Purge(Operation[int]):
    """Delete at most *limit* dead rows; returns how many."""

    now: datetime
    limit: int


class Evicted(NamedTuple):
    """
    What an eviction saw and did.

    Attributes:
        gone: Rows that were deleted.
        entries: Rows that there were before.
        size: Their bytes, estimated; 0 where no bound asks for them.
        is_over: Whether the table is still over its bounds, because the limit was reached.
    """

    gone: int
    entries: int
    size: int
    is_over: bool


@dataclass(frozen=True, slots=True)
class Evict(Operation[Evicted]):
    """
    Delete rows until the table is within its bounds, at most *limit* of them.

    What expires soonest goes first, entries without expiry last.
    """

    max_entries: int | None
    max_bytes: int | None
    limit: int


@dataclass(frozen=True, slots=True)
class Count(Operation[int]):
    """Count live rows."""

    where: Filter
    now: datetime


@dataclass(frozen=True, slots=True)
class Page(Operation[list[Record]]):
    """Read the next live rows in the order of key, then tag."""

    where: Filter
    now: datetime
    after: Pair | None
    limit: int


@dataclass(frozen=True, slots=True)
class Tags(Operation[list[str]]):
    """Read the next distinct tags of live rows, in order."""

    where: Filter
    now: datetime
    after: str | None
    limit: int
