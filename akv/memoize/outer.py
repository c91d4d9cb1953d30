"""
What memoized calls within a tracked computation tell it: their results rest on something that it did not read itself.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol


class Outer(Protocol):
    """A tracked computation."""

    def rests_on(self, tokens: Any, identifiers: tuple[str, ...] | None, until: int | None) -> None:
        """
        A memoized call within has returned.

        Args:
            tokens: Those of its store; None: it has no dependencies.
            identifiers: What its result depends on; None: nobody knows.
            until: When its result is too old; None: never.
        """


outer: ContextVar[Outer | None] = ContextVar("akv_outer", default=None)
"""The tracked computation that the running code is part of."""
