"""
Open transactions of bound engines: what each has changed, and who may be looking through it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from akv.errors import UntrackedWriteError
from akv.own import is_own_statement
from akv.tokens.capture import record
from akv.tokens.changes import ChangeSet, Frames
from akv.tokens.definitions import changes_no_row
from akv.tokens.drivers import Driver
from akv.tokens.opaque import Effect, Reading, Witness
from akv.tokens.plans import Plan, plans_of
from akv.tokens.things import touched_by_thing

if TYPE_CHECKING:
    import asyncio

    from sqlalchemy.orm import Session

    from akv.tokens.backend import Announcement, Backend

UNTRACKED: Final = "akv_untracked"
"""Execution option of a write outside any transaction whose author announces it with ``touch``."""


DECLARED: Final = "akv_changes"
"""Execution option of a statement: the things that it changes, where nobody can see it; then nothing else counts."""


class _Running(NamedTuple):
    """A statement that has begun and not reported back; without plans, SQLAlchemy did not build it."""

    context: Any
    reading: Reading
    plans: tuple[Plan, ...] | None
    in_flush: bool
    ignored: bool


class Transaction:
    """
    One transaction of one connection of a bound engine, from BEGIN to its end.

    Attributes:
        tokens: Where its changes are announced.
        engine: The bound engine.
        driver: The driver's connection.
        witness: What its database says about its writes.
        stamp: The newest token known before it began; what it loads is at least as new.
        frames: What it has changed.
        session: The session that runs it, if one does.
        closed: Whether its end was asked for. Listeners of others may still write before it comes.
        announcements: What is to be resolved once it has ended.
        resolving: What resolves them.
        may_be_prepared: Whether it may wait on the server for the second phase of its commit.
    """

    def __init__(
        self, connection: Connection, tokens: Backend, engine: Engine, witness: Witness, *, leftover: bool
    ) -> None:
        """
        Args:
            connection: About to begin.
            tokens: Of the bound engine.
            engine: The bound engine.
            witness: Of that engine.
            leftover: The database has a transaction open already, of unknown content.
        """
        self.tokens = tokens
        self.engine = engine
        self.driver = Driver(connection)
        self.witness = witness
        self.stamp = None if leftover else tokens.stamp
        self.frames = Frames(self.driver.dialect)
        self.frames.current.anything = leftover
        self.session: weakref.ref[Session] | None = None
        self.closed = False
        self.announcements: list[Announcement] = []
        self.resolving: list[asyncio.Task[None]] = []
        self.may_be_prepared = False
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
        wrote = any(changes or changes.calls for changes in self.frames)
        return wrote or self._running is not None or self.driver.rows_changed != self._rows

    def starting(self, context: Any, reading: Reading, sql: str) -> None:
        """
        A statement that writes is about to run.

        Args:
            context: Its execution context.
            reading: What it says.
            sql: Its text: of this batch, if there are several.

        Raises:
            UntrackedWriteError: No transaction of the database would carry it.
        """
        commits_alone = self.driver.commits_alone
        if commits_alone and not (context.execution_options.get(UNTRACKED) or changes_no_row(self.driver.dialect, sql)):
            raise UntrackedWriteError(
                "this write would commit by itself (AUTOCOMMIT), so its keys could not change with it: run it in a "
                f"transaction, or with execution_options({UNTRACKED}=True) and then await tokens.touch(...)"
            )
        if self._running is not None and self._running.context is context:
            self.witness.starting(self.driver, sql)
            return
        self.settle()
        if self.driver.rows_changed != self._rows:
            self.frames.current.anything = True  # somebody wrote through the driver
            self._rows = self.driver.rows_changed
        plans = plans_of(context.compiled) if context.compiled is not None else None
        ignored = is_own_statement() or commits_alone or self._declare(context)  # its author announces the second
        self._running = _Running(context, reading, plans, self._is_flushing(), ignored)
        self.witness.starting(self.driver, sql)

    def never_ran(self) -> None:
        """The statement that was about to run was refused."""
        self._running = None

    def ran(self, context: Any) -> None:
        """A statement that SQLAlchemy did not build has run."""
        running = self._running
        if running is not None and running.context is context and running.plans is None:
            if not running.ignored:
                self.witness.ran(self.driver, context, running.reading, self.frames.current, self._rows_since())
            self._finished()

    def called(self, context: Any, reading: Reading) -> None:
        """A statement has run that reads, and calls functions that may have written."""
        if not (is_own_statement() or self._declare(context)):
            self.witness.ran(self.driver, context, reading, self.frames.current, 0)

    def executed(self, context: Any, result: Any) -> None:
        """A statement that SQLAlchemy built has run."""
        running = self._running
        if running is None or running.context is not context or running.plans is None:
            return
        if not running.ignored:
            changes = self.frames.current
            changes.beside_flush |= not running.in_flush
            record(running.plans, context, result, changes, in_flush=running.in_flush)
            self.witness.executed(
                self.driver, running.reading, running.plans, context, result, changes, self._rows_since()
            )
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
            if not running.ignored:
                changes = self.frames.current
                changes.beside_flush |= not running.in_flush
                self.witness.interrupted(self.driver, running.plans, changes, self._rows_since())
            self._finished()

    def close(self) -> ChangeSet:
        """
        Note that the transaction is about to commit.

        Returns:
            What it changed, as far as it is known without asking the database.
        """
        self.settle()
        if self.driver.rows_changed != self._rows and self.driver.in_transaction:
            self.frames.current.anything = True
        self.closed = True
        return self.take()

    def abandon(self) -> None:
        """Note that the transaction is about to be rolled back."""
        self.closed = True
        self.take()

    def take(self) -> ChangeSet:
        """Return what changed since the last time, and start over."""
        changed = self.frames.merged()
        self.frames = Frames(self.driver.dialect)
        self._rows = self.driver.rows_changed
        return changed

    def announced(self) -> None:
        """Tokens in the same database were bumped: SQLite has counted rows that are nobody's change."""
        self._rows = self.driver.rows_changed

    def so_far(self) -> ChangeSet:
        """Return what it has changed until now, as far as it is known without asking the database."""
        return self.frames.merged()

    def restart(self) -> None:
        """The database has committed all that was changed by itself, DDL among it, and goes on with another one."""
        self.frames = Frames(self.driver.dialect)
        self.witness.redefined()

    @property
    def is_tracking(self) -> bool:
        """Whether a statement runs whose changes are counted."""
        return self._running is not None and not self._running.ignored

    def _declare(self, context: Any) -> bool:
        """Count what the author of a statement says that it changes; tell whether he said it."""
        things = context.execution_options.get(DECLARED)
        if things is not None:
            self.frames.current.extra |= {name for thing in things for name in touched_by_thing(thing)}
        return things is not None

    def _rows_since(self) -> int:
        return self.driver.rows_changed - self._rows

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


def open_in_context(tokens: Backend) -> Iterator[Transaction]:
    """Yield the transactions that this context has opened on engines bound to *tokens*, and not yet ended."""
    for ref in _in_context.get():
        transaction = ref()
        if transaction is not None and transaction.tokens is tokens and transaction.is_open:
            yield transaction
