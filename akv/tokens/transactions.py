"""
Open transactions of bound engines: what each has changed, and who may be looking through it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection

from akv.errors import UntrackedWriteError
from akv.own import is_own_statement
from akv.tokens.capture import accounts_for, record, record_widest
from akv.tokens.changes import ChangeSet, Frames
from akv.tokens.opaque import Driver, Effect, Reading
from akv.tokens.plans import Plan, plans_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from akv.tokens.database import DatabaseTokens

UNTRACKED: Final = "akv_untracked"
"""Execution option of a write outside any transaction whose author announces it with ``touch``."""


class _Running(NamedTuple):
    """A statement that has begun and not reported back; without plans, SQLAlchemy did not build it."""

    context: Any
    plans: tuple[Plan, ...] | None
    in_flush: bool
    ignored: bool


class Transaction:
    """
    One transaction of one connection of a bound engine, from BEGIN to its end.

    Attributes:
        tokens: Where its changes are announced.
        driver: The driver's connection.
        stamp: The newest token known before it began; what it loads is at least as new.
        frames: What it has changed.
        session: The session that runs it, if one does.
        closed: Whether its end was asked for. Listeners of others may still write before it comes.
    """

    def __init__(self, connection: Connection, tokens: DatabaseTokens, *, leftover: bool) -> None:
        """
        Args:
            connection: About to begin.
            tokens: Of the bound engine.
            leftover: The database still has an earlier transaction open, of unknown content.
        """
        self.tokens = tokens
        self.driver = Driver(connection)
        self.stamp = tokens.newest
        self.frames = Frames()
        self.frames.current.anything = leftover
        self.session: weakref.ref[Session] | None = None
        self.closed = False
        self._connection = weakref.ref(connection)
        self._running: _Running | None = None
        self._rows = self.driver.rows_changed

    @property
    def is_open(self) -> bool:
        """Whether the database has it open, so that reading through its connection sees its snapshot."""
        connection = self._connection()
        alive = connection is not None and not (connection.closed or connection.invalidated)
        return alive and not self.closed and self.driver.in_transaction

    @property
    def is_dirty(self) -> bool:
        """Whether it holds changes that others do not see yet."""
        return self._running is not None or any(self.frames) or self.driver.rows_changed != self._rows

    def starting(self, context: Any) -> None:
        """
        A statement that writes is about to run.

        Raises:
            UntrackedWriteError: No transaction of the database would carry it.
        """
        if not self.driver.in_transaction and not context.execution_options.get(UNTRACKED):
            raise UntrackedWriteError(
                "this write would commit by itself (AUTOCOMMIT), so its keys could not change with it: run it in a "
                f"transaction, or with execution_options({UNTRACKED}=True) and then await tokens.touch(...)"
            )
        if self._running is not None and self._running.context is context:
            return  # a further batch of the same statement
        self.settle()
        if self.driver.rows_changed != self._rows:
            self.frames.current.anything = True  # somebody wrote through the driver
            self._rows = self.driver.rows_changed
        plans = plans_of(context.compiled) if context.compiled is not None else None
        ignored = is_own_statement() or not self.driver.in_transaction  # the latter is announced by its author
        self._running = _Running(context, plans, self._is_flushing(), ignored)

    def ran(self, context: Any) -> None:
        """A statement that SQLAlchemy did not build has run."""
        running = self._running
        if running is not None and running.context is context and running.plans is None:
            self.frames.current.anything |= not running.ignored
            self._finished()

    def executed(self, context: Any, result: Any) -> None:
        """A statement that SQLAlchemy built has run."""
        running = self._running
        if running is None or running.context is not context or running.plans is None:
            return
        if not running.ignored:
            changes = self.frames.current
            changes.beside_flush |= not running.in_flush
            record(running.plans, context, result, changes, in_flush=running.in_flush)
            if not accounts_for(running.plans, context, result, self.driver.rows_changed - self._rows):
                changes.anything = True
        self._finished()

    def savepoint(self, reading: Reading) -> ChangeSet | None:
        """
        A statement about a savepoint has run.

        Returns:
            The changes that it undid.
        """
        self.settle()
        if reading.effect is Effect.SAVEPOINT:
            self.frames.open(reading.savepoint)
        elif reading.effect is Effect.RELEASE:
            self.frames.release(reading.savepoint)
        elif reading.effect is Effect.ROLLBACK_TO:
            return self.frames.roll_back_to(reading.savepoint) or None
        return None

    def settle(self) -> None:
        """Count a statement that began and never reported back as having changed all that it could."""
        running = self._running
        if running is not None:
            if self.driver.rows_changed != self._rows and not running.ignored:
                self._count_widest(running)
            self._finished()

    def _count_widest(self, running: _Running) -> None:
        changes = self.frames.current
        changes.beside_flush |= not running.in_flush
        if running.plans is None:
            changes.anything = True
        else:
            record_widest(running.plans, changes)

    def close(self) -> set[str]:
        """
        Note that the transaction is about to commit.

        Returns:
            The identifiers that it changed.
        """
        self.settle()
        if self.driver.rows_changed != self._rows and self.driver.in_transaction:
            self.frames.current.anything = True
        self.closed = True
        return self.take()

    def take(self) -> set[str]:
        """Return the identifiers that changed since the last time, and start over."""
        changed = self.frames.merged().identifiers()
        self.frames = Frames()
        self._rows = self.driver.rows_changed
        return changed

    def _finished(self) -> None:
        self._running = None
        self._rows = self.driver.rows_changed

    def _is_flushing(self) -> bool:
        session = self.session() if self.session is not None else None
        return bool(getattr(session, "_flushing", False))


_of_connection: weakref.WeakKeyDictionary[Connection, Transaction] = weakref.WeakKeyDictionary()
_in_context: ContextVar[tuple[weakref.ref[Transaction], ...]] = ContextVar("akv_transactions", default=())


def begin(connection: Connection, transaction: Transaction) -> None:
    """Remember the transaction that *connection* begins, for its listeners and for this context."""
    _of_connection[connection] = transaction
    alive = (ref for ref in _in_context.get() if (known := ref()) is not None and not known.closed)
    _in_context.set((*alive, weakref.ref(transaction)))


def transaction_of(connection: Connection) -> Transaction | None:
    """Return the transaction that *connection* has begun since its engine was bound."""
    return _of_connection.get(connection)


def end(connection: Connection) -> Transaction | None:
    """Forget the transaction of *connection* and return it."""
    return _of_connection.pop(connection, None)


def open_in_context(tokens: DatabaseTokens) -> Iterator[Transaction]:
    """Yield the transactions that this context has opened on engines bound to *tokens*, and not yet ended."""
    for ref in _in_context.get():
        transaction = ref()
        if transaction is not None and transaction.tokens is tokens and transaction.is_open:
            yield transaction
