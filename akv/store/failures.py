"""
What an exception of a driver means: whether anything happened, and whether it may pass.
"""

from __future__ import annotations

import sqlite3
from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class Failure(Enum):
    """What a failed attempt tells."""

    REFUSED = auto()
    """The database understood and said no: trying again gives the same."""
    ROLLED_BACK = auto()
    """Nothing was done, and the next attempt may succeed: deadlock, serialization failure, busy, a race."""
    CONNECTION_LOST = auto()
    """Nobody knows how far the database got; it is there again soon, perhaps."""


_SQLSTATE_ROLLED_BACK = {
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # lock not available in time
    "23505",  # unique violation: somebody else was quicker
    "53300",  # too many connections
}
_SQLSTATE_LOST = ("08", "57P")  # connection exceptions; the server stops, starts or killed the backend
_LIBPQ_PASSING = ("starting up", "shutting down", "recovery", "too many clients", "terminating connection", "reserved")
_MYSQL_ROLLED_BACK = {
    1205,  # lock wait timeout
    1213,  # deadlock
    1062,  # duplicate entry
    1020,  # record changed since last read
    1040,  # too many connections
    1203,  # too many connections of this user
}
_MYSQL_LOST = {
    1053,  # server shutdown in progress
    1077,
    1079,
    1152,
    1158,
    1159,
    1160,
    1161,
    1184,
    1927,  # connection was killed
    1317,  # query was interrupted
    2002,
    2003,
    2006,  # server has gone away
    2013,  # lost connection during query
    2014,
    2027,
    2055,
}
_SQLITE_ROLLED_BACK = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_PROTOCOL,
}


def classify(error: BaseException) -> Failure:
    """
    Tell what an exception of a driver, of SQLAlchemy or of a socket means.

    Args:
        error: As it came out of SQLAlchemy.
    """
    if isinstance(error, DBAPIError):
        return _classify_driver(error)
    if isinstance(error, PoolTimeoutError):
        return Failure.ROLLED_BACK
    if isinstance(error, OSError | EOFError | TimeoutError | PendingRollbackError):
        return Failure.CONNECTION_LOST
    return _by_code(error) or Failure.REFUSED


def is_from_database(error: BaseException) -> bool:
    """Tell a failure of the database from one of the code that uses it; SQLAlchemy 2.0 lets asyncpg's through."""
    return isinstance(error, SQLAlchemyError | OSError) or isinstance(getattr(error, "sqlstate", None), str)


def _classify_driver(error: DBAPIError) -> Failure:
    original = error.orig
    known = _by_code(original)
    if known is not None:
        return known
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return Failure.CONNECTION_LOST
    if isinstance(original, OSError | EOFError) or isinstance(getattr(original, "__cause__", None), OSError | EOFError):
        return Failure.CONNECTION_LOST
    if isinstance(error, OperationalError) and getattr(original, "sqlstate", "") is None:
        return _by_libpq(str(original))
    return Failure.REFUSED


def _by_libpq(message: str) -> Failure:
    """Psycopg has no code for a connection that failed: either nobody answered, or a server said FATAL."""
    is_verdict = "FATAL:" in message and not any(phrase in message for phrase in _LIBPQ_PASSING)
    return Failure.REFUSED if is_verdict else Failure.CONNECTION_LOST


def _by_code(original: BaseException | None) -> Failure | None:
    code = _sqlite_code(original)
    if code is not None:
        return Failure.ROLLED_BACK if code & 0xFF in _SQLITE_ROLLED_BACK else Failure.REFUSED
    number = original.args[0] if original is not None and original.args else None
    if isinstance(number, int):
        return _by_number(number)  # asyncmy has an SQLSTATE as well, which tells less
    state = getattr(original, "sqlstate", None)
    return _by_sqlstate(state) if isinstance(state, str) else None


def _by_sqlstate(state: str) -> Failure | None:
    if state in _SQLSTATE_ROLLED_BACK:
        return Failure.ROLLED_BACK
    if state.startswith(_SQLSTATE_LOST):
        return Failure.CONNECTION_LOST
    return Failure.REFUSED


def _by_number(number: int) -> Failure | None:
    if number in _MYSQL_ROLLED_BACK:
        return Failure.ROLLED_BACK
    if number in _MYSQL_LOST:
        return Failure.CONNECTION_LOST
    # From 1000 to 1999 the server itself speaks, even if it hangs up afterwards (a packet that is too large).
    return Failure.REFUSED if 1000 <= number < 2000 else None


def _sqlite_code(original: BaseException | None) -> int | None:
    """The code of sqlite3, which SQLAlchemy's adapter keeps on the exception itself or on its cause."""
    for candidate in (original, getattr(original, "__cause__", None)):
        if isinstance(candidate, sqlite3.Error):
            code = getattr(candidate, "sqlite_errorcode", None)
            return int(code) if code is not None else None
    return None


def is_busy(error: BaseException) -> bool:
    """Tell whether somebody else holds a lock or the connections that the call needed."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = _sqlite_code(error.orig)
    if code is not None:
        return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return getattr(error.orig, "sqlstate", None) == "55P03" or number == 1205
