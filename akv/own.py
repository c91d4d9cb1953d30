"""
Statements of akv's own inside the caller's transaction: they change nothing that an identifier speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_own: ContextVar[bool] = ContextVar("akv_own_statements", default=False)


@contextmanager
def own_statements() -> Iterator[None]:
    """Mark every statement that the block executes as one on akv's own tables."""
    before = _own.set(True)
    try:
        yield
    finally:
        _own.reset(before)


def is_own_statement() -> bool:
    """Tell whether what executes now was marked by :func:`own_statements`."""
    return _own.get()
