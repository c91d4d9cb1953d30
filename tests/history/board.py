"""
A page of memory that all processes share: whether to go on, and what the labels stand for.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from tests.history.rows import LABELS

_WORD: Final = struct.Struct("<Q")
_FIRST_LABEL: Final = 64


def create(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_FIRST_LABEL + LABELS * _WORD.size)


class Board:
    """Each word has one writer, and is written at once."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @property
    def stopping(self) -> bool:
        return self._map[0] != 0

    def stop(self) -> None:
        self._map[0] = 1

    @property
    def is_calm(self) -> bool:
        """Whether nobody writes, and nothing goes wrong any more."""
        return self._map[1] != 0

    def calm_down(self) -> None:
        self._map[1] = 1

    def label(self, number: int) -> int:
        """Return the version of what a label stands for."""
        version: int = _WORD.unpack_from(self._map, _FIRST_LABEL + number * _WORD.size)[0]
        return version

    def set_label(self, number: int, version: int) -> None:
        _WORD.pack_into(self._map, _FIRST_LABEL + number * _WORD.size, version)


def tag_of_label(number: int, version: int) -> int:
    """Return the tag of a version, which tags of transactions never equal."""
    return 1 << 63 | number << 40 | version if version else 0
