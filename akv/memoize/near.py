"""
The results of one function that this process has at hand: a bounded LRU in front of the store.

Knows nothing of age: what it returns is judged like what the store returns.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections import OrderedDict
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from weakref import WeakSet

from akv.memoize.freshness import Saved

_ATOMS: Final = frozenset(
    (type(None), bool, int, float, complex, str, bytes, date, datetime, time, timedelta, Decimal, UUID)
)
_OVERHEAD: Final = 400
"""Bytes around a value, roughly, besides its key and its dependencies: its times, its place in the LRU."""


class Held:
    """
    A result at hand.

    Attributes:
        saved: All about it; without the value, where that could be changed by whoever gets it.
        size: Bytes, estimated.
    """

    __slots__ = ("_data", "saved", "size")

    def __init__(self, saved: Saved, data: bytes | None, size: int) -> None:
        self.saved = saved
        self.size = size
        self._data = data

    def value(self) -> Any:
        """Return the value; one that can be changed is made anew for each caller."""
        return self.saved.value if self._data is None else pickle.loads(self._data)  # noqa: S301 -- pickled below


class Near:
    """
    A bounded LRU of results; several event loops and threads may use it at once.

    Attributes:
        ticket: Changes whenever something happens here that an answer of the store may not know of.
        size: Bytes of all that is held, estimated.
    """

    def __init__(self, entries: int, max_bytes: int, *, shared: bool = False) -> None:
        """
        Args:
            entries: Most results.
            max_bytes: Most bytes, estimated.
            shared: Hand out the very same object each time, even one that can be changed.
        """
        self.ticket = 0
        self.size = 0
        self._most = entries
        self._max_bytes = max_bytes
        self._shared = shared
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._changing = threading.Lock()
        _all.add(self)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str) -> Held | None:
        """Return what is at hand for a key, and let it stay longest."""
        held = self._held.get(key)
        if held is not None:
            try:  # noqa: SIM105 -- suppress() takes longer than all the rest
                self._held.move_to_end(key)
            except KeyError:  # another thread has just let it go
                pass
        return held

    def put(self, key: str, saved: Saved, ticket: int | None = None) -> None:
        """
        Hold a result, unless it is too large or cannot be copied.

        Args:
            key: Of the call.
            saved: As it is in the store.
            ticket: :attr:`ticket`, taken before the store was asked: if it has changed since, the answer may be older
                than what happened here, and is not held. None: this is what happened here.
        """
        held = _held(saved, len(key) + sum(map(len, saved.identifiers)), shared=self._shared)
        with self._changing:
            if ticket is None:
                self.ticket += 1
            elif ticket != self.ticket:
                return
            self._drop(key)
            if held is not None and held.size <= self._max_bytes:
                self._held[key] = held
                self.size += held.size
                self._shrink()

    def forget(self, key: str | None = None) -> None:
        """Let go of one result, or of all; an answer of the store that is on its way will not be held."""
        with self._changing:
            self.ticket += 1
            for each in list(self._held) if key is None else (key,):
                self._drop(each)

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.size -= held.size

    def _shrink(self) -> None:
        while len(self._held) > self._most or self.size > self._max_bytes:
            _, held = self._held.popitem(last=False)
            self.size -= held.size


def _held(saved: Saved, beside: int, *, shared: bool) -> Held | None:
    try:
        size = _size_if_unchangeable(saved.value)
        if size is not None:
            return Held(saved, None, size + beside + _OVERHEAD)
        data = pickle.dumps(saved.value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return None  # the store's own serializer may know it all the same
    size = len(data) + beside + _OVERHEAD
    return Held(saved, None, size) if shared else Held(saved._replace(value=None), data, size)


def _size_if_unchangeable(value: Any) -> int | None:
    """Return the bytes of a value that nobody can change, or None."""
    if type(value) in _ATOMS:
        return sys.getsizeof(value)
    if type(value) is not tuple and type(value) is not frozenset:
        return None
    total = sys.getsizeof(value)
    for item in value:
        size = _size_if_unchangeable(item)
        if size is None:
            return None
        total += size
    return total


_all: WeakSet[Near] = WeakSet()


def _after_fork() -> None:
    """Unlock what another thread, which the child does not have, was about to change."""
    for near in list(_all):
        near._changing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
