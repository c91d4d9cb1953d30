"""
Around COMMIT: what changed is announced before it, and resolved once the transaction has ended.

SQLAlchemy tells before it sends COMMIT or ROLLBACK, and never afterwards; so
the methods of a bound engine's dialect that send them are followed.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from akv.aio import join_coroutine
from akv.own import own_statements
from akv.tokens import sessions
from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Driver
from akv.tokens.transactions import Transaction, transaction_of

logger = logging.getLogger("akv")

_ANNOUNCED: Final = "akv_announced"
_FOLLOWED: Final = "akv_is_followed"


def announce(transaction: Transaction, changes: ChangeSet) -> None:
    """
    Announce what a transaction is about to commit.

    Args:
        transaction: About to commit.
        changes: What it changed, as far as it is known without asking the database.

    Raises:
        CommitRefusedError: It cannot be announced.
        sqlalchemy.exc.DBAPIError: The database refused a statement of ours.

    Guarantees:
        Whatever is raised, cancellation included, the transaction is rolled back, or its connection used no more.
    """
    if not changes and not transaction.witness.must_settle(transaction.driver, changes):
        return
    transaction.driver.info[_ANNOUNCED] = weakref.ref(transaction)
    try:
        transaction.driver.run(join_coroutine(_announce(transaction, changes)))
    except BaseException:
        _roll_back(transaction)
        raise


def announce_late(transaction: Transaction) -> None:
    """
    Announce what somebody else's listener wrote between ours and COMMIT, once it has told what that was.

    Raises:
        As :func:`announce`.
    """
    if transaction.closed and not transaction.is_tracking:
        announce(transaction, transaction.take())


def note_late(transaction: Transaction) -> None:
    """Note that a statement runs between ours and COMMIT: if it never reports back, COMMIT will count the widest."""
    if transaction.closed:
        transaction.driver.info[_ANNOUNCED] = weakref.ref(transaction)


def announce_early(transaction: Transaction, changes: ChangeSet) -> None:
    """
    Announce what the next statement makes visible; the mark stays until the transaction has ended.

    Raises:
        CommitRefusedError: It cannot be announced.
        sqlalchemy.exc.DBAPIError: The database refused a statement of ours.

    Guarantees:
        The transaction is open as before.
    """
    if changes or transaction.witness.must_settle(transaction.driver, changes):
        transaction.driver.info[_ANNOUNCED] = weakref.ref(transaction)
        transaction.driver.run(join_coroutine(_announce(transaction, changes)))


async def _announce(transaction: Transaction, changes: ChangeSet) -> None:
    driver = transaction.driver
    with driver.raising_as_sqlalchemy():
        if transaction.witness.must_settle(driver, changes):
            await transaction.witness.settle(driver, changes)
        changed = changes.identifiers()
        announcement = await transaction.tokens.announce(driver, transaction.engine, changed) if changed else None
    transaction.announced()
    if announcement is not None:
        transaction.announcements.append(announcement)


def _roll_back(transaction: Transaction) -> None:
    """An exception in the commit event leaves the transaction open, for whoever uses the connection next."""
    driver = transaction.driver
    try:
        driver.run(join_coroutine(driver.roll_back()))
    except Exception as error:
        logger.debug("a connection is given up, for it could not be rolled back: %s", error)
    finally:
        if not driver.is_idle and not driver.is_always_in_transaction:
            driver.invalidate()
        settle(transaction)


def settle(transaction: Transaction, *, acknowledged: bool = False) -> None:
    """
    Start to resolve what a transaction announced, if it has ended for sure.

    However it ended: resolving does the same. Where nobody knows (a lost reply, a cancelled COMMIT), nothing is done,
    and whoever meets the marks asks the database.

    Args:
        transaction: Perhaps at its end.
        acknowledged: The database has said that it has ended; most drivers show that, too.
    """
    if transaction.announcements and not transaction.may_be_prepared and _has_ended(transaction.driver, acknowledged):
        resolve(transaction)


def _has_ended(driver: Driver, acknowledged: bool) -> bool:
    return driver.is_idle or (acknowledged and driver.is_always_in_transaction)


def resolve(transaction: Transaction) -> None:
    """Start to resolve what a transaction announced that has ended."""
    ended, transaction.announcements = transaction.announcements, []
    try:
        tasks = [transaction.tokens.resolve(each) for each in ended]
    except Exception:
        logger.warning("what a transaction changed is announced until somebody meets it", exc_info=True)
    else:
        transaction.resolving += tasks


def returned(info: dict[Any, Any]) -> Transaction | None:
    """A connection goes back to its pool: return the transaction that was announced last on it, if it is known."""
    announced = info.pop(_ANNOUNCED, None)
    return announced() if announced is not None else None


def was_announced(info: dict[Any, Any]) -> bool:
    """Tell whether anything was announced on a connection since it left its pool."""
    return _ANNOUNCED in info


def follow(dialect: Dialect) -> None:
    """See every transaction end that *dialect* ends, from now on."""
    if getattr(dialect, _FOLLOWED, False):
        return
    for name, following in _FOLLOWING.items():
        setattr(dialect, name, following(getattr(dialect, name)))
    setattr(dialect, _FOLLOWED, True)


def _following_commit(commit: Callable[[Any], None]) -> Callable[[Any], None]:
    end = _following_rollback(commit)

    def do_commit(pooled: Any) -> None:
        transaction = _announced_on(pooled)
        if transaction is not None and transaction.is_tracking:
            transaction.settle()
            announce_late(transaction)
        end(pooled)
        if transaction is not None:
            _join(transaction)

    return do_commit


def _following_rollback(end: Callable[[Any], None]) -> Callable[[Any], None]:
    def do_rollback(pooled: Any) -> None:
        transaction = _announced_on(pooled)
        try:
            end(pooled)
        except Exception:  # the database has answered; nobody knows what becomes of what was cancelled
            if transaction is not None:
                settle(transaction)
            raise
        if transaction is not None:
            settle(transaction, acknowledged=True)

    return do_rollback


def _announced_on(pooled: Any) -> Transaction | None:
    try:
        announced = pooled.info.get(_ANNOUNCED) if pooled.is_valid else None
    except NotImplementedError:
        return None  # SQLAlchemy's first connection, with which it learns about the database
    return announced() if announced is not None else None


def _following_begin_twophase(begin: Callable[..., None]) -> Callable[..., None]:
    def do_begin_twophase(connection: Connection, xid: Any) -> None:
        with own_statements():
            begin(connection, xid)

    return do_begin_twophase


def _following_prepare(prepare: Callable[..., None]) -> Callable[..., None]:
    def do_prepare_twophase(connection: Connection, xid: Any) -> None:
        transaction = transaction_of(connection)
        if transaction is not None:
            transaction.may_be_prepared = True  # for good: even if this fails, it may have been done
        with own_statements():
            prepare(connection, xid)

    return do_prepare_twophase


def _following_commit_twophase(commit: Callable[..., None]) -> Callable[..., None]:
    def do_commit_twophase(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        with own_statements():
            commit(connection, xid, is_prepared, recover)
        transaction = transaction_of(connection)
        if transaction is not None:
            transaction.may_be_prepared = False
            resolve(transaction)
            _join(transaction)

    return do_commit_twophase


def _following_rollback_twophase(rollback: Callable[..., None]) -> Callable[..., None]:
    def do_rollback_twophase(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        with own_statements():
            rollback(connection, xid, is_prepared, recover)
        transaction = transaction_of(connection)
        if transaction is not None and (is_prepared or not transaction.may_be_prepared):
            transaction.may_be_prepared = False
            resolve(transaction)

    return do_rollback_twophase


_FOLLOWING: Final[dict[str, Callable[[Any], Any]]] = {
    "do_commit": _following_commit,
    "do_rollback": _following_rollback,
    "do_begin_twophase": _following_begin_twophase,
    "do_prepare_twophase": _following_prepare,
    "do_commit_twophase": _following_commit_twophase,
    "do_rollback_twophase": _following_rollback_twophase,
}


def _join(transaction: Transaction) -> None:
    """
    Wait for what resolves a transaction, here or where its session ends the transaction.

    A session has given its connections back by then. Cancelled here, SQLAlchemy gives the connection up, as it does
    when COMMIT itself is cancelled.
    """
    tasks, transaction.resolving = transaction.resolving, []
    if not tasks:
        return
    session = transaction.session() if transaction.session is not None else None
    if session is not None and session.in_transaction():
        sessions.join_at_end(session, transaction.driver, tasks)
    else:
        transaction.driver.run(sessions.all_ended(tasks))
