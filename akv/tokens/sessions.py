"""
What sessions know that connections do not: how old loaded instances are, and where flushed rows point.

The listeners stand on SQLAlchemy's ``Session`` class and do nothing for
sessions that work on no bound engine. They never await and never load.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, event
from sqlalchemy.orm import InstanceState, Session, SessionTransaction

from akv.tokens.capture import record_soft_parents, resolve
from akv.tokens.changes import ChangeSet
from akv.tokens.rules import covered
from akv.tokens.schema import Key, attribute_of, soft_links_of, tables_of
from akv.tokens.transactions import Transaction, transaction_of

if TYPE_CHECKING:
    from akv.tokens.database import DatabaseTokens


@dataclass(slots=True)
class Stamp:
    """
    How new everything is that a session has loaded.

    Attributes:
        seq: The newest token known before the oldest load; None: nothing is known.
        transaction: The transaction whose snapshot all of it is of, if it is one.
        columns_of: The transaction whose snapshot at least the columns are of; collections may show undone changes.
    """

    seq: int | None = None
    transaction: Transaction | None = None
    columns_of: Transaction | None = None


class SessionRecord:
    """What is known about one session: a stamp for each tokens object, and its open transactions."""

    def __init__(self) -> None:
        self._stamps: dict[DatabaseTokens, Stamp] = {}
        self._transactions: list[weakref.ref[Transaction]] = []

    def transactions(self) -> list[Transaction]:
        """Return the transactions that the session has open on bound engines."""
        known = (ref() for ref in self._transactions)
        return [transaction for transaction in known if transaction is not None and not transaction.closed]

    def join(self, transaction: Transaction, *, loaded: bool) -> None:
        """The session works in *transaction* from now on; *loaded*: it holds attributes from before."""
        self._transactions = [*map(weakref.ref, self.transactions()), weakref.ref(transaction)]
        if loaded:
            self._stamps.setdefault(transaction.tokens, Stamp())
        else:
            self._stamps[transaction.tokens] = Stamp(transaction.stamp, transaction, transaction)

    def void(self) -> None:
        """Attributes of unknown age may have come in: no stamp holds until all are expired."""
        for tokens in self._stamps:
            self._stamps[tokens] = Stamp()

    def undone(self, transaction: Transaction, changes: ChangeSet) -> None:
        """Changes went with a savepoint: what was loaded of them stayed, except columns of flushed instances."""
        stamp = self._stamps.get(transaction.tokens, Stamp())
        self._stamps[transaction.tokens] = Stamp(columns_of=stamp.columns_of if changes.is_flushed else None)

    def knows_columns_in(self, transaction: Transaction) -> bool:
        """Tell whether every column that the session holds was loaded in *transaction* and is what it was then."""
        return self._stamps.get(transaction.tokens, Stamp()).columns_of is transaction

    def covers(self, tokens: DatabaseTokens, seqs: Iterable[int]) -> bool:
        """Tell whether everything that the session holds is as new as *seqs*."""
        stamp = self._stamps.get(tokens, Stamp())
        inside = stamp.transaction is not None and stamp.transaction.is_open
        return inside or covered(seqs, stamp.seq)

    def learn(self, transaction: Transaction, newest: int) -> None:
        """The snapshot of *transaction* holds the token *newest*, so what was loaded in it is as new as that."""
        stamp = self._stamps.get(transaction.tokens)
        if stamp is not None and stamp.transaction is transaction and stamp.seq is not None:
            stamp.seq = max(stamp.seq, newest)


_records: weakref.WeakKeyDictionary[Session, SessionRecord] = weakref.WeakKeyDictionary()
_NOTHING_KNOWN = SessionRecord()


def record_of_session(session: Session) -> SessionRecord:
    """Return what is known about *session*."""
    return _records.get(session, _NOTHING_KNOWN)


def holds_loaded(session: Session) -> bool:
    """Tell whether any instance in the session has an attribute that will not be loaded anew when it is read."""
    return any(not state.manager.keys().isdisjoint(state.dict) for state in session.identity_map.all_states())


def has_unflushed(session: Session) -> bool:
    """Tell whether the session has changes that it has not sent to the database."""
    return bool(session.new or session.deleted or session.dirty)


def undone(transaction: Transaction, changes: ChangeSet) -> None:
    """A savepoint of *transaction* was rolled back with *changes* in it."""
    session = transaction.session() if transaction.session is not None else None
    if session is not None:
        record_of_session(session).undone(transaction, changes)


_installing = threading.Lock()
_installed = False


def install() -> None:
    """
    Put the listeners on ``Session``, once per process.

    They stay: removing one while another thread runs through the list breaks that thread's commit.
    """
    global _installed
    with _installing:
        if not _installed:
            event.listen(Session, "after_begin", _after_begin)
            event.listen(Session, "after_flush", _after_flush)
            event.listen(Session, "detached_to_persistent", _detached_to_persistent)
            _installed = True


def _after_begin(session: Session, _: SessionTransaction, connection: Connection) -> None:
    transaction = transaction_of(connection)
    if transaction is None or (transaction.session is not None and transaction.session() is session):
        return
    transaction.session = weakref.ref(session)
    _records.setdefault(session, SessionRecord()).join(transaction, loaded=holds_loaded(session))


def _detached_to_persistent(session: Session, _: object) -> None:
    record_of_session(session).void()


def _after_flush(session: Session, context: Any) -> None:
    known = record_of_session(session)
    for transaction in known.transactions():
        believed = known.knows_columns_in(transaction)
        find = _finder(context.states if believed else ())
        for changes in transaction.frames:
            resolve(changes, find)
        if any(transaction.frames):
            for state, (_, only_listed) in context.states.items():
                if not only_listed:
                    record_soft_parents(state, soft_links_of(state.mapper), transaction.frames.current, believed)


def _finder(states: Iterable[InstanceState[Any]]) -> Callable[[Table, Key], Sequence[InstanceState[Any]]]:
    @cache
    def index() -> dict[tuple[Table, Key], list[InstanceState[Any]]]:
        found: dict[tuple[Table, Key], list[InstanceState[Any]]] = {}
        for state in states:
            for table in tables_of(state.mapper):
                for key in _keys_of(state, table):
                    found.setdefault((table, key), []).append(state)
        return found

    return lambda table, key: index().get((table, key), ())


def _keys_of(state: InstanceState[Any], table: Table) -> set[Key]:
    """Return the keys that an instance has, or had before this flush, in *table*; nothing is loaded."""
    possible: list[set[Any]] = []
    for column in table.primary_key.columns:
        name = attribute_of(state.mapper, column)
        if name is None:
            return set()
        history = state.attrs[name].history
        possible.append({*history.added, *history.unchanged, *history.deleted})
    return set(product(*possible))
