"""
What a value may be computed with: the sessions and connections of one call, and what their tokens say.

Whoever makes a key, and whoever keeps the result of a call, asks here whether
what others stored may be believed, and whether others may believe what comes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import InstanceState, Session

from akv.errors import ConfigurationError
from akv.tokens.backend import Absent, Unreachable
from akv.tokens.listeners import bound_engine_of
from akv.tokens.rules import Holder, Private, Seen, one_view, stamp_of, why_private
from akv.tokens.sessions import has_unflushed, holds_loaded, record_of_session
from akv.tokens.targets import engines_of
from akv.tokens.transactions import Transaction, open_in_context, transaction_of

if TYPE_CHECKING:
    from akv.tokens.backend import Backend

Scope: TypeAlias = "AsyncSession | async_scoped_session[Any] | AsyncConnection"
"""A session or connection that a value will be computed with."""

PATIENCE: Final = 0.003
"""Seconds to wait for a commit under way to be resolved, once."""
_IS_CLOSED: Final = attrgetter("closed")
_IS_DIRTY: Final = attrgetter("is_dirty")
_NO_VIEWS: Final[Mapping[Transaction, Seen]] = {}


class Concern:
    """
    The sessions, connections and open transactions that one call concerns.

    Attributes:
        sessions: The sessions.
        detached: Instances that belong to none.
        reason: Why nothing may be shared, if an instance says so.
    """

    __slots__ = ("_connections", "_context", "_tokens", "detached", "reason", "sessions")

    def __init__(self, tokens: Backend) -> None:
        """
        Args:
            tokens: Those that the engines are bound to. Transactions that are open in this context concern the call.
        """
        self._tokens = tokens
        self._connections: list[AsyncConnection] = []
        self._context: list[Transaction] = []
        self.sessions: dict[Session, None] = {}
        self.detached: list[InstanceState[Any]] = []
        self.reason: Private | None = None
        self.look_around()

    def look_around(self) -> None:
        """Add the transactions that are open in this context by now."""
        for transaction in open_in_context(self._tokens):
            self._context.append(transaction)
            session = transaction.session() if transaction.session is not None else None
            if session is not None:
                self.sessions[session] = None

    def add_scope(self, scope: Scope) -> None:
        """
        Add what somebody will compute with.

        Raises:
            ConfigurationError: It works on no engine that is bound to the tokens.
        """
        bound = map(bound_engine_of, engines_of(scope))
        if not any(each is not None and each.tokens is self._tokens for each in bound):
            raise ConfigurationError("this session works on no engine that is bound to these tokens: bind it first")
        if isinstance(scope, AsyncConnection):
            self._connections.append(scope)
        else:
            session = scope() if isinstance(scope, async_scoped_session) else scope
            self.sessions[session.sync_session] = None

    def add_instance(self, state: InstanceState[Any]) -> None:
        """
        Add the session of a mapped instance, or note that its attributes may be of any age.

        Raises:
            ConfigurationError: The session works on no engine that is bound to the tokens.
        """
        session = state.session
        if session is not None:
            self.add_session(session, state)
        if state.pending:
            self.reason = Private.PENDING
        elif state.deleted or (session is not None and state.obj() in session.deleted):
            self.reason = Private.DELETED
        elif state.detached:
            self.reason = Private.DETACHED
            self.detached.append(state)

    def add_session(self, session: Session, state: InstanceState[Any]) -> None:
        """
        Add the session of an instance.

        Raises:
            ConfigurationError: It works on no engine that is bound to the tokens.
        """
        try:
            engine = session.get_bind(mapper=state.mapper).engine
        except sa_exc.UnboundExecutionError:
            engine = None
        bound = bound_engine_of(engine) if engine is not None else None
        if bound is None or bound.tokens is not self._tokens:
            raise ConfigurationError(
                f"the session of this {state.class_.__qualname__} works on no engine that is bound to these tokens, so "
                "nobody would announce its changes: call bind(engine, tokens) first"
            )
        self.sessions[session] = None

    def transactions(self) -> list[Transaction]:
        """Return the open transactions that the value may be computed in."""
        found = list(self._context)
        for session in self.sessions:
            found += record_of_session(session).transactions()
        for connection in self._connections:
            known = transaction_of(connection.sync_connection) if connection.sync_connection is not None else None
            found += [known] if known is not None else []
        return [each for each in dict.fromkeys(found) if each.tokens is self._tokens and each.is_open] if found else []

    def is_dirty(self, transactions: Iterable[Transaction] | None = None) -> bool:
        """
        Tell whether anything concerned has changes that others do not see.

        Args:
            transactions: Those of :meth:`transactions`, if they were asked for a moment ago.
        """
        if any(map(has_unflushed, self.sessions)):
            return True
        return any(map(_IS_DIRTY, self.transactions() if transactions is None else transactions))

    def holders(
        self, transactions: Iterable[Transaction] | None = None, views: Mapping[Transaction, Seen] = _NO_VIEWS
    ) -> list[Holder]:
        """
        Return what may be older than tokens that are read now: open snapshots, and instances that are loaded.

        Args:
            transactions: Those of :meth:`transactions`, if they were asked for a moment ago.
            views: What reads inside of open transactions showed just now.
        """
        transactions = self.transactions() if transactions is None else transactions
        stamps = [stamp_of(views[each]) if each in views else each.stamp for each in transactions]
        stamps += [record_of_session(each).stamp(self._tokens, views) for each in self.sessions if holds_loaded(each)]
        return list(map(Holder, stamps))

    @property
    def reads_in_snapshot(self) -> bool:
        """Whether the tokens that a read shows are those of a snapshot, and not the newest."""
        return self._tokens.in_snapshot and bool(self.transactions())

    async def read(self, vector: Sequence[str]) -> Seen | Private:
        """
        Read tokens; where a commit is under way, once more a few milliseconds later.

        Args:
            vector: Every identifier whose bump may concern the call.

        Returns:
            What was seen, or why nothing that depends on it may be shared. No I/O where that is known without.
        """
        if self.reason is not None:
            return self.reason
        found = await self.read_once(vector)
        if found is Private.MARKED:
            await asyncio.sleep(PATIENCE)
            found = await self.read_once(vector)
        return found

    async def read_once(self, vector: Sequence[str]) -> Seen | Private:
        """Read tokens in one round trip that is sent after the call began, and judge them; none in a dirty session."""
        if self.is_dirty():
            return Private.DIRTY
        transactions = self.transactions()
        if self.is_dirty(transactions):
            return Private.DIRTY
        try:
            views = await self._look_through(transactions, vector) if transactions else _NO_VIEWS
            found = next(iter(views.values())) if views else await self._tokens.look(vector)
        except Absent:
            return Private.ABSENT
        except Unreachable:
            return Private.UNREACHABLE
        if any(map(_IS_CLOSED, transactions)) or self.is_dirty():
            return Private.DIRTY  # it went on while we read: what we saw may be what its commit is about to write
        if views:
            if not one_view([(view.epoch, view.records) for view in views.values()]):
                return Private.SNAPSHOT
            self._learn(views)
        return why_private(found, self.holders(transactions, views)) or found

    async def _look_through(
        self, transactions: Iterable[Transaction], vector: Sequence[str]
    ) -> Mapping[Transaction, Seen]:
        """Read in the snapshot of each transaction, where tokens are in there."""
        if not self._tokens.in_snapshot:
            return _NO_VIEWS
        return {each: await self._tokens.look(vector, each.driver) for each in transactions}

    def _learn(self, views: Mapping[Transaction, Seen]) -> None:
        for transaction, view in views.items():
            self._tokens.learn(view)
            for session in self.sessions:
                record_of_session(session).learn(transaction, view)
