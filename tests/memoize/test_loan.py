"""Which failures are those of the leader's session, and which are everybody's."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import (
    DBAPIError,
    IllegalStateChangeError,
    IntegrityError,
    NoResultFound,
    PendingRollbackError,
    ResourceClosedError,
)
from sqlalchemy.ext.asyncio import AsyncSession

from akv.memoize.loan import SessionLoan


class DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def wrapped(error: Exception) -> Exception:
    try:
        raise RuntimeError("the handler's own") from error
    except RuntimeError as outside:
        return outside


OF_THE_SESSION = [
    PendingRollbackError("roll back first"),
    ResourceClosedError("closed"),
    IllegalStateChangeError("in use"),
    DBAPIError("SELECT 1", None, DriverError("25P02")),
    DriverError("25P02"),
]
OF_EVERYBODY = [
    NoResultFound("none"),
    IntegrityError("INSERT", None, DriverError("23505")),
    ValueError("the function's own"),
]


@pytest.mark.parametrize("error", [*OF_THE_SESSION, *map(wrapped, OF_THE_SESSION)], ids=repr)
def test_a_session_that_can_do_nothing_explains_the_failure(error: Exception) -> None:
    assert SessionLoan((AsyncSession(),), {}).explains(error)
    assert SessionLoan((), {"session": AsyncSession()}).explains(error)
    assert not SessionLoan((1,), {}).explains(error)


@pytest.mark.parametrize("error", [*OF_EVERYBODY, *map(wrapped, OF_EVERYBODY)], ids=repr)
def test_any_other_failure_is_everybodys(error: Exception) -> None:
    assert not SessionLoan((AsyncSession(),), {}).explains(error)
