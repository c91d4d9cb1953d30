"""
One attempt is one transaction: retried, its failures named, nothing leaked.

This is the only door from operations to the database. Drivers' exceptions are
wrapped here, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn, TypeVar

from sqlalchemy import Connection

from akv.aio import TimeLimit
from akv.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from akv.store.failures import Failure, classify, is_busy, is_from_database
from akv.store.retry import Exhausted, RetryPolicy, run
from akv.store.sessions import Sessions

T = TypeVar("T")

_WITHIN = (
    " Where the caller itself holds the lock or the connection in a transaction, "
    "use kv.within(session) to work inside it."
)


class CommitInterrupted(Exception):  # noqa: N818 -- never reaches a user
    """COMMIT was sent, and its reply did not come; ``__cause__`` says how."""


class Transactor:
    """Runs work on sessions of one event loop, whose driver is in AUTOCOMMIT; made on that loop."""

    def __init__(self, sessions: Sessions, policy: RetryPolicy) -> None:
        self._sessions = sessions
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._limit = TimeLimit(every=min(1.0, policy.seconds / 4))

    async def run(
        self,
        work: Callable[[Connection], T],
        *,
        repeatable: bool = True,
        is_short: bool = False,
        passes: Callable[[BaseException], bool] = lambda _: False,
    ) -> T:
        """
        Run *work* until it succeeds or will not.

        Args:
            work: Runs on one connection, in SQLAlchemy's greenlet; asked again at each attempt.
            repeatable: Whether the work may run again after a COMMIT whose outcome is unknown.
            is_short: Whether a database that has not answered when the policy's total is over never will: a server
                that hangs must not hang its callers, and deleting a million rows may take its time.
            passes: Failures for which the caller has a better remedy than trying again.

        Raises:
            StoreUnavailableError: Still failing after the last attempt that the policy allows.
            OutcomeUnknownError: The reply to COMMIT was lost and the work is not repeatable.
            StoreError: The database refused.
        """
        busy: BaseException | None = None

        def transient(error: BaseException) -> bool:
            nonlocal busy
            busy = error if is_busy(error) else busy
            if isinstance(error, CommitInterrupted):
                return repeatable
            return classify(error) is not Failure.REFUSED and not passes(error)

        until = self._loop.time() + self._policy.seconds

        async def attempt() -> T:
            if not is_short:
                return await self._sessions.run(work)
            with self._limit.until(until):
                return await self._sessions.run(work)

        try:
            return await run(self._policy, attempt, transient)
        except Exception as error:
            raise_named(error, busy)


def raise_named(error: Exception, busy: BaseException | None) -> NoReturn:
    """
    Raise what a failure of the last attempt means to the caller; what is none of the database's is raised as it is.

    Args:
        error: The failure.
        busy: The last time that somebody else held a lock, if that was so.
    """
    if isinstance(error, Exhausted):
        cause = _driver_error(error.__cause__, busy)
        raise _unavailable(error, cause) from cause
    if isinstance(error, CommitInterrupted):
        raise OutcomeUnknownError(
            "the connection broke while COMMIT was under way, and this call may not run twice: "
            "read the entry to learn whether it happened"
        ) from error.__cause__
    if not is_from_database(error):
        raise error
    raise refusal(error) from error


def in_transaction(conn: Connection, begin: str, work: Callable[[Connection], T]) -> T:
    """
    Run *work* between BEGIN and COMMIT on a connection in AUTOCOMMIT.

    Raises:
        CommitInterrupted: COMMIT was sent and the connection broke.

    Guarantees:
        However it ends, the connection has no open transaction, or is not used again.
    """
    conn.exec_driver_sql(begin)
    try:
        result = work(conn)
    except BaseException:
        _undo(conn)
        raise
    try:
        conn.exec_driver_sql("COMMIT")
    except BaseException as error:
        _undo(conn)
        if isinstance(error, asyncio.CancelledError) or classify(error) is Failure.CONNECTION_LOST:
            raise CommitInterrupted from error
        raise
    return result


def _undo(conn: Connection) -> None:
    if conn.invalidated:
        return
    try:
        conn.exec_driver_sql("ROLLBACK")
    except Exception:
        conn.invalidate()


def refusal(error: BaseException) -> StoreError:
    """Name what the database refused, without the parameters that SQLAlchemy would print."""
    original = getattr(error, "orig", None) or error
    message = f"the database refused the call: {_first_line(original)}."
    return StoreError(message + _remedy(error))


def _remedy(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).lower()
    if is_busy(error):
        return _WITHIN
    if "no such table" in text or "does not exist" in text or "doesn't exist" in text:
        return " Let the store create its table (create_models=True), or migrate with KVStore.metadata."
    if "max_allowed_packet" in text:
        return " Raise max_allowed_packet of the server, or store a smaller value."
    return ""


def _unavailable(exhausted: Exhausted, cause: BaseException | None) -> StoreUnavailableError:
    message = (
        f"the database is unavailable: {_first_line(getattr(cause, 'orig', None) or cause)}. "
        f"Gave up after {exhausted.attempts} attempts in {exhausted.elapsed:.2f} s; "
        f"RetryPolicy(attempts=..., total=...) allows more."
    )
    if cause is not None and is_busy(cause):
        message += _WITHIN
    return StoreUnavailableError(message, attempts=exhausted.attempts, elapsed=exhausted.elapsed)


def _driver_error(error: BaseException | None, busy: BaseException | None) -> BaseException | None:
    """What to tell the user: not that the limit was reached, where it ended yet another wait for a lock."""
    if isinstance(error, TimeoutError) and busy is not None:
        return busy
    return error.__cause__ if isinstance(error, CommitInterrupted) else error


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
