"""
What sessions know that connections do not: how old loaded instances are, and where flushed rows point.

The listeners stand on SQLAlchemy's ``Session`` class and do nothing for
sessions that work on no bound engine. They never await and never load. The one
that waits for announced commits to be resolved stands on the session itself:
anybody's change to the list of a class breaks the commit that is suspended in it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, event
from sqlalchemy.orm import InstanceState, Session, SessionTransaction

from akv.aio import join
from akv.tokens.capture import record_soft_parents, resolve
from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Driver
from akv.tokens.rules import Seen, Token, stamp_of
from akv.tokens.schema import Key, attribute_of, soft_links_of, tables_of
from akv.tokens.transactions import Transaction, transaction_of

if TYPE_CHECKING:
    from akv.tokens.backend import Backend


@dataclass(slots=True)
class Stamp:
    """
    How new everything is that a session has loaded.

    Attributes:
        token: The newest token known before the oldest load; None: nothing is known.
        transaction: The transaction whose snapshot all of it is of, if it is one.
        columns_of: The transaction whose snapshot at least the columns are of; collections may show undone changes.
    """

    token: Token | None = None
    transaction: Transaction | None = None
    columns_of: Transaction | None = None


_UNKNOWN = Stamp()


class SessionRecord:
    """What is known about one session: a stamp for each tokens object, and its open transactions."""

    def __init__(self) -> None:
        self._stamps: dict[Backend, Stamp] = {}
        self._transactions: list[weakref.ref[Transaction]] = []
        self._resolving: list[tuple[Driver, Collection[asyncio.Task[None]]]] = []
        self._listens = False

    def transactions(self) -> list[Transaction]:
        """Return the transactions that the session has open on bound engines."""
        return [known for ref in self._transactions if (known := ref()) is not None and not known.closed]

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
        stamp = self._stamps.get(transaction.tokens, _UNKNOWN)
        self._stamps[transaction.tokens] = Stamp(columns_of=stamp.columns_of if changes.is_flushed else None)

    def knows_columns_in(self, transaction: Transaction) -> bool:
        """Tell whether every column that the session holds was loaded in *transaction* and is what it was then."""
        return self._stamps.get(transaction.tokens, _UNKNOWN).columns_of is transaction

    def stamp(self, tokens: Backend, views: Mapping[Transaction, Seen]) -> Token | None:
        """
        Return the newest token that everything which the session holds is as new as.

        Args:
            tokens: Those that are meant.
            views: What reads inside of open transactions showed just now.
        """
        stamp = self._stamps.get(tokens, _UNKNOWN)
        inside = stamp.transaction
        return stamp_of(views[inside]) if inside is not None and inside in views and inside.is_open else stamp.token

    def learn(self, transaction: Transaction, seen: Seen) -> None:
        """The snapshot of *transaction* showed this, so what was loaded in it is as new."""
        stamp = self._stamps.get(transaction.tokens)
        if stamp is not None and stamp.transaction is transaction:
            stamp.token = stamp_of(seen)

    def join_at_end(self, session: Session, driver: Driver, tasks: Collection[asyncio.Task[None]]) -> None:
        """Let *session*, whose record this is, wait for *tasks* when it ends its transaction."""
        self._resolving.append((driver, tasks))
        if not self._listens:
            self._listens = True
            event.listen(session, "after_transaction_end", self._after_transaction_end)

    def _after_transaction_end(self, _: Session, ended: SessionTransaction) -> None:
        if ended.parent is None and self._resolving:
            resolving, self._resolving = self._resolving, []
            driver = resolving[0][0]  # any will do: nothing is sent through it
            driver.run(all_ended([task for _, tasks in resolving for task in tasks]))


async def all_ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait until *tasks* have ended, even if cancelled; what became of them is their owner's affair."""
    await join(asyncio.ensure_future(asyncio.wait(tasks)))


_records: weakref.WeakKeyDictionary[Session, SessionRecord] = weakref.WeakKeyDictionary()
_NOTHING_KNOWN = SessionRecord()


def record_of_session(session: Session) -> SessionRecord:
    """Return what is known about *session*."""
    return _records.get(session, _NOTHING_KNOWN)


def join_at_end(session: Session, driver: Driver, tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait for *tasks* when *session* ends the transaction that it is in, after it has given its connections back."""
    _records.setdefault(session, SessionRecord()).join_at_end(session, driver, tasks)


def holds_loaded(session: Session) -> bool:
    """Tell whether any instance in the session has an attribute that will not be loaded anew when it is read."""
    for state in session.identity_map.all_states():  # noqa: SIM110 - the first one tells, nearly always
        if not state.manager.keys().isdisjoint(state.dict):
            return True
    return False


def has_unflushed(session: Session) -> bool:
    """Tell whether the session has changes that it has not sent to the database."""
    return not session._is_clean()


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
