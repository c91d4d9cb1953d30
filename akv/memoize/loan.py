"""
What a computation has from its caller alone: the session of a request, and what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy.exc import IllegalStateChangeError, PendingRollbackError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.base import DEFAULT_STATE_ATTR

_LENT: Final = (AsyncSession, AsyncConnection, async_scoped_session)
_UNUSABLE: Final = (PendingRollbackError, ResourceClosedError, IllegalStateChangeError)
_ABORTED: Final = "25P02"  # PostgreSQL: the transaction has failed, and takes no statement until it is rolled back


class SessionLoan:
    """Sessions among the arguments of one call."""

    __slots__ = ("_args", "_kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """
        Args:
            args: The receiver included: a repository holds the session of a request.
            kwargs: As the caller gave them.
        """
        self._args = args
        self._kwargs = kwargs

    def is_given(self) -> bool:
        """Tell whether there is a session, which its owner may go on using: that bears no company."""
        return any(map(_is_lent, (*self._args, *self._kwargs.values())))

    def explains(self, error: BaseException) -> bool:
        """Tell whether a computation has failed because its session can do nothing until it is rolled back."""
        return any(isinstance(each, _UNUSABLE) or _is_aborted(each) for each in _chain(error)) and self.is_given()


def _is_lent(value: object) -> bool:
    if isinstance(value, _LENT) or _is_in_session(value):
        return True
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return any(map(_is_lent, value.values() if isinstance(value, Mapping) else value))
    attributes = None if isinstance(value, type) else getattr(value, "__dict__", None)
    return isinstance(attributes, dict) and any(isinstance(each, _LENT) for each in list(attributes.values()))


def _is_in_session(value: object) -> bool:
    state = getattr(value, DEFAULT_STATE_ATTR, None)
    return isinstance(state, InstanceState) and state.session is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, or while handling what."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_aborted(error: BaseException) -> bool:
    driver = getattr(error, "orig", None) or error
    return bool(getattr(driver, "sqlstate", None) == _ABORTED)
