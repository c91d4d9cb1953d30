"""
A cache that all processes share, as a table in mapped memory.

It forgets nothing but what another key overwrites, however the token store
fails: a key that comes back with an old value is met again.
"""

from __future__ import annotations

import mmap
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final
from zlib import crc32

_HEAD: Final = struct.Struct("<16sIH")
_PLACE: Final = 4096
_PLACES: Final = 2**14


def create(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_PLACE * _PLACES)


class Cache:
    """Maps keys to values of up to 4,000 bytes; several processes may write at once, and torn entries are none."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def get(self, key: str) -> bytes | None:
        name = _name(key)
        at = _place(name)
        found, check, length = _HEAD.unpack_from(self._map, at)
        if found != name:
            return None
        value = self._map[at + _HEAD.size : at + _HEAD.size + length]
        return value if crc32(value, length) == check else None

    def set(self, key: str, value: bytes) -> None:
        name = _name(key)
        at = _place(name)
        assert len(value) <= _PLACE - _HEAD.size
        _HEAD.pack_into(self._map, at, b"", 0, 0)
        self._map[at + _HEAD.size : at + _HEAD.size + len(value)] = value
        _HEAD.pack_into(self._map, at, name, crc32(value, len(value)), len(value))


def _name(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()


def _place(name: bytes) -> int:
    return int.from_bytes(name[:4], "little") % _PLACES * _PLACE


def number_of(key: str) -> int:
    """Return a number that stands for a key in the log."""
    return int.from_bytes(_name(key)[:8], "little")
