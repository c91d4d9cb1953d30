"""
Which rows and tables a coroutine reads through bound engines while it runs.

::

    with recording(tokens) as reads:
        value = await coroutine()
    reads.identifiers      # what the value depends on, unless reads.unattributed says why that is unknown

Listeners report to the recordings of the context in which a statement runs, so
tasks that the coroutine starts count, and nobody else's do. What is seen: every
statement on a bound engine, every instance that a session gives out of its
identity map when it is asked for a key, and all that such a session has loaded
before and may give out beside. What is not:

- statements on engines that are not bound, and results that were executed before and are read now;
- attributes of instances that the coroutine holds, or finds by walking through a session: whoever gives it some says
  so with :meth:`Reads.hold`;
- criteria of its own that an earlier query loaded a relationship by;
- tables that operators and casts of the database's users read, and functions of theirs behind the names of others;
- for :data:`~akv.tokens.opaque.witness.CATALOG_SECONDS`, that another process has made a view or policy anew under the
  same name (SQLite tells at once).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import InstanceState, Session

from akv.tokens.retained import dependencies_of, loaded_in
from akv.tokens.sessions import has_unflushed
from akv.tokens.things import state_of

if TYPE_CHECKING:
    from akv.tokens.backend import Backend
    from akv.tokens.transactions import Transaction

MAX_ROWS: Final = 500
"""More rows of one table than this count as any row of it."""

OTHER_TOKENS: Final = "it reads through an engine that is bound to other tokens, or to none"
UNCOMMITTED: Final = "it reads in a transaction or session with changes that are not committed"
ENTERED: Final = "an instance entered a session from outside, with attributes of unknown age"


class Reads:
    """
    What a coroutine has read through bound engines while it ran.

    Attributes:
        unattributed: Why a read could not be attributed, the first reason of several; None: all could.
        dirty: Whether it may have seen changes that were not committed, and that nobody else may see then.
        sessions: Those that it read through.
        transactions: Those that it read in; one that began before shows what was there then.
    """

    def __init__(self, tokens: Backend, outer: Reads | None = None) -> None:
        """
        Args:
            tokens: Those that its engines are bound to.
            outer: The recording around this one, which learns what this one is told.
        """
        self.tokens = tokens
        self.unattributed: str | None = None
        self.dirty = False
        self.sessions: set[Session] = set()
        self.transactions: set[Transaction] = set()
        self.closed = False
        self._outer = outer
        self._named: set[str] = set()
        self._retained: dict[Session, list[InstanceState[Any]]] = {}

    @property
    def identifiers(self) -> set[str]:
        """The rows and tables to depend on, in their canonical form: no row beside its whole table."""
        rows: defaultdict[str, set[str]] = defaultdict(set)
        found: set[str] = set()
        for name in self._named:
            table, mark, row = name.partition("#")
            if not mark or row == "*" or table.startswith("akv:memo:"):
                found.add(name)
            else:
                rows[table].add(name)
        for table, names in rows.items():
            whole = f"{table}#*"
            if whole not in found:
                found.update(names if len(names) <= MAX_ROWS else (whole,))
        return found

    def add(self, identifiers: Iterable[str]) -> None:
        """Count *identifiers* as read, here and in the recordings around."""
        self.see(self.tokens, identifiers)

    def refuse(self, reason: str) -> None:
        """Note that something was read of which nobody knows what it depends on, here and in the recordings around."""
        for reads in self._chain():
            reads.unattributed = reads.unattributed or reason

    def hold(self, thing: Any) -> None:
        """
        Count what the coroutine was given as read.

        Args:
            thing: A mapped instance: what is loaded of it, and of those that hang on it; anything else is ignored.
        """
        state = state_of(thing)
        if state is None:
            return
        if state.session is not None:
            self.meet(state.session)
        self.add(dependencies_of([state]))

    def see(self, tokens: Backend | None, identifiers: Iterable[str], reason: str | None = None) -> None:
        """
        Something was read.

        Args:
            tokens: Those that its engine is bound to, if it is.
            identifiers: What it depends on.
            reason: Why that may not be all.
        """
        names = set(identifiers)
        for reads in self._chain():
            if reads.tokens is tokens:
                reads._named |= names
                reads.unattributed = reads.unattributed or reason
            else:
                reads.unattributed = reads.unattributed or OTHER_TOKENS

    def meet(self, session: Session) -> None:
        """A session is about to be read through: what it has loaded until now comes from outside."""
        for reads in self._chain():
            if session not in reads.sessions:
                reads.sessions.add(session)
                reads._retained[session] = loaded_in(session)
            if has_unflushed(session):
                reads._soil(UNCOMMITTED)

    def give_out(self, session: Session, is_given: Callable[[InstanceState[Any]], bool]) -> None:
        """A session may return instances that it had loaded before, with what hangs on them."""
        for reads in self._chain():
            retained = reads._retained.get(session)
            if retained:
                given = [state for state in retained if is_given(state)]
                reads._retained[session] = [state for state in retained if not is_given(state)]
                reads._named |= dependencies_of(given)

    def read_in(self, transaction: Transaction) -> None:
        """A statement is about to read in a transaction."""
        is_dirty = transaction.is_dirty
        for reads in self._chain():
            reads.transactions.add(transaction)
            if is_dirty:
                reads._soil(UNCOMMITTED)

    def change(self, what: str) -> None:
        """A statement may have changed something, and nobody knows yet whether that stays."""
        for reads in self._chain():
            reads._soil(f"it changes data: {what}")

    def _soil(self, reason: str) -> None:
        self.dirty = True
        self.unattributed = self.unattributed or reason

    def _chain(self) -> Iterator[Reads]:
        reads: Reads | None = self
        while reads is not None:
            if not reads.closed:
                yield reads
            reads = reads._outer


_recordings: ContextVar[Reads | None] = ContextVar("akv_reads", default=None)


@contextmanager
def recording(tokens: Backend) -> Iterator[Reads]:
    """
    Record what the block, and whatever it starts, reads through engines that are bound to *tokens*.

    Guarantees:
        Nothing is recorded any more once the block has ended, by tasks that outlive it neither.
    """
    reads = Reads(tokens, current())
    before = _recordings.set(reads)
    try:
        yield reads
    finally:
        _recordings.reset(before)
        reads.closed = True


def current() -> Reads | None:
    """Return the innermost recording of this context that has not ended."""
    reads = _recordings.get()
    while reads is not None and reads.closed:
        reads = reads._outer
    return reads
