"""
What a contender is: get and set on one backend, and what it promises about them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.places import Place


class Absent(Exception):  # noqa: N818
    """A contender or a server that is not to be had here; the message says why."""


class Contender(ABC):
    """
    One way of doing the work.

    Attributes:
        name: As options and results call it.
        title: As tables and plots call it.
        dialects: Backends on which it can do the work.
        serializer: What turns values into bytes.
        setup: How it is set up, where there was a choice.
        distribution: What to install for it; empty: nothing beyond akv itself.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    dialects: ClassVar[tuple[str, ...]]
    serializer: ClassVar[str]
    setup: ClassVar[str] = ""
    distribution: ClassVar[str] = ""

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def durability(self) -> str:
        """What an acknowledged set has survived."""
        return self.place.durability

    @abstractmethod
    async def open(self) -> None:
        """Connect; the shared table ``kvstore`` exists and is filled."""

    async def fill(self, entries: Mapping[str, bytes]) -> None:  # noqa: B027
        """Store entries, if the contender does not read the shared table."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect, and remove what is not in the place's own database or folder."""

    @abstractmethod
    async def get(self, key: str) -> Any:
        """Return the value of a key; None: a miss."""

    @abstractmethod
    async def set(self, key: str, value: Any) -> None:
        """Store a value."""

    def value(self, data: bytes) -> Any:
        """Turn a random value into what the contender's interface takes; outside of the measured time."""
        return data

    async def check(self) -> None:
        """
        Store and read one value.

        Raises:
            AssertionError: It did not come back.
        """
        value = self.value(b"to and fro")
        await self.set("check", value)
        found = await self.get("check")
        if found != value:
            raise AssertionError(f"{self.title} stored {value!r} and read {found!r}")


def need(module: str, distribution: str) -> Any:
    """
    Import a module of an optional contender.

    Raises:
        Absent: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"{distribution} is not installed ({error}): pip install 'akv[bench]'") from error
