"""
What a process did, in a file mapped into memory: a record that was appended outlives SIGKILL.

One process appends, the coordinator reads behind it. Times are of CLOCK_MONOTONIC,
which is one clock for all processes of a machine.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

now: Final = time.monotonic_ns


class Kind(IntEnum):
    """What a record says."""

    READ = 1
    """A read returned ``value``."""
    SNAPSHOT = 2
    """The same in a REPEATABLE READ transaction whose snapshot shows ``beside``, of the same rows."""
    OWN = 3
    """The same inside a transaction that has itself written ``beside``."""
    AUDIT = 4
    """The database itself showed ``value``."""
    SENT = 5
    """The COMMIT of the transaction ``key``, which wrote ``value``, is about to be sent."""
    ACKED = 6
    """The commit of the transaction ``key`` has returned."""
    UNDONE = 7
    """The transaction ``key`` has been rolled back, or its COMMIT will never be sent."""
    FAULT = 8
    """Something was made to go wrong; ``beside`` names it."""
    COUNT = 9
    """Something happened; ``beside`` names it."""
    NOTE = 10
    """Words for whoever looks for the cause of a violation."""
    PREPARED = 11
    """The transaction ``key`` is about to be prepared, and wrote ``value``; somebody else will end it."""


class Outcome(IntEnum):
    """What a read did; from BYPASS on, why it could not use the cache is in ``reason``."""

    HIT = 0
    FILL = 1
    BYPASS = 2


class Seen(NamedTuple):
    """One row as somebody saw it: its number, its version, and who wrote that."""

    row: int
    version: int
    tag: int


Value: TypeAlias = bytes
"""Rows as packed by :func:`pack`."""

_SEEN: Final = struct.Struct("<HIQ")
_HEAD: Final = struct.Struct("<IBBBBHHQQQ")
_ENDS: Final = struct.Struct("<QQ")
_START: Final = 64
SIZE: Final = 48 * 2**20
"""Bytes of a log; the pages that are not used cost nothing."""


class Record(NamedTuple):
    """One line of the history."""

    end: int
    kind: int
    outcome: int
    reason: int
    way: int
    subject: int
    start: int
    key: int
    value: Value
    beside: bytes
    slot: int


def pack(rows: Iterable[tuple[int, int, int]]) -> Value:
    """Write rows as bytes."""
    return b"".join([_SEEN.pack(*row) for row in rows])


def unpack(value: Value) -> Iterator[tuple[int, int, int]]:
    """Read the rows of :func:`pack`."""
    return _SEEN.iter_unpack(value)


class LogFullError(RuntimeError):
    """A process wrote more than a log holds."""


class LogWriter:
    """Appends records."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._end = _START

    def append(
        self,
        kind: int,
        value: Value = b"",
        beside: bytes = b"",
        *,
        start: int = 0,
        key: int = 0,
        outcome: int = 0,
        reason: int = 0,
        way: int = 0,
        subject: int = 0,
    ) -> int:
        """Append a record that ends now, and return when that is."""
        body = value + beside
        length = _HEAD.size + len(body)
        begin, until = self._end, self._end + length
        if until > SIZE:
            raise LogFullError("make rounds shorter")
        self._map[begin + _HEAD.size : until] = body
        self._end = until
        end = now()
        _HEAD.pack_into(self._map, begin, length, kind, outcome, reason, way, subject, len(value), end, start, key)
        _ENDS.pack_into(self._map, 0, until, end)
        return end

    def beat(self) -> None:
        """Say that there is nothing to say up to now."""
        _ENDS.pack_into(self._map, 0, self._end, now())

    def fault(self, name: str) -> None:
        self.append(Kind.FAULT, beside=name.encode())

    def count(self, name: str) -> None:
        self.append(Kind.COUNT, beside=name.encode())

    def note(self, text: str) -> None:
        self.append(Kind.NOTE, beside=text.encode())


class LogReader:
    """
    Reads what a process has appended since the last time.

    Attributes:
        until: Nothing that ended before it is missing.
    """

    def __init__(self, path: Path, slot: int) -> None:
        with path.open("w+b") as file:
            file.truncate(SIZE)
            self._map = mmap.mmap(file.fileno(), 0)
        self._path = path
        self._slot = slot
        self._end = _START
        _ENDS.pack_into(self._map, 0, _START, now())
        self.until = 0

    def read(self) -> list[Record]:
        until, self.until = _ENDS.unpack_from(self._map, 0)
        records = []
        while self._end < until:
            records.append(self._record())
        return records

    def close(self) -> None:
        self._map.close()
        self._path.unlink()

    def _record(self) -> Record:
        at = self._end
        length, kind, outcome, reason, way, subject, split, end, start, key = _HEAD.unpack_from(self._map, at)
        body = self._map[at + _HEAD.size : at + length]
        self._end = at + length
        return Record(end, kind, outcome, reason, way, subject, start, key, body[:split], body[split:], self._slot)
