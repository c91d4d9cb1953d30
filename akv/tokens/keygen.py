"""
CacheKeyGenerator: keys that change when what they were made of changes.

Tokens first, queries after: a key says how new the value stored under it is at
least, so it is made before the value is computed.
"""

from __future__ import annotations

import secrets
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self, TypeAlias

from sqlalchemy import Table
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import InstanceState, Session

from akv.canonical import encode
from akv.errors import ConfigurationError
from akv.tokens.binding import bound_engine_of, engines_of
from akv.tokens.database import DatabaseTokens, Tokens
from akv.tokens.identifiers import Label
from akv.tokens.records import Absent
from akv.tokens.rules import Private, one_view
from akv.tokens.sessions import has_unflushed, holds_loaded, record_of_session
from akv.tokens.things import identifier, mapper_of, state_of, vector_of_thing
from akv.tokens.transactions import Transaction, open_in_context, transaction_of

Scope: TypeAlias = "AsyncSession | async_scoped_session[Any] | AsyncConnection | None"
"""A session or connection that the value of a key will be computed with."""


class CacheKey(str):
    """
    A key for any cache, at most 256 characters of ASCII.

    A private key never occurs twice: what is stored under it is never found again, so storing it is a waste.
    """

    __slots__ = ("shared",)

    shared: bool
    """Whether others may see what is stored under the key."""

    def __new__(cls, text: str, shared: bool = True) -> Self:  # noqa: D102 - the class says it
        key = super().__new__(cls, text)
        key.shared = shared
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.shared)


class CacheKeyGenerator:
    """
    Makes keys of things, and tokens of single ones.

    Attributes:
        private: How many keys were private, by reason.
    """

    def __init__(self, tokens: DatabaseTokens) -> None:
        """
        Args:
            tokens: Those that the engines of the instances are bound to.
        """
        self.private: Counter[Private] = Counter()
        self._tokens = tokens
        self._warned: set[type] = set()

    async def __call__(self, *things: Any, session: Scope = None) -> CacheKey:
        """
        Return a key that changes when one of *things* changes.

        Args:
            things: Mapped instances (their row), mapped classes and Tables (any row of them), Labels and ``akv:``
                strings, also nested in lists, tuples, sets and dicts (strings excepted); anything else counts by
                value.
            session: What the value will be computed with, if no instance tells: then the key knows of its
                uncommitted changes and of the age of its snapshot.

        Returns:
            The same key for the same things as long as nobody changed one; a private one where no key could be
            shared: for pending, deleted and detached instances, in a session with uncommitted changes, and for
            sessions that hold attributes of unknown age.

        Raises:
            ConfigurationError: An instance or session works on no engine that is bound to the tokens.
            InvalidIdentifierError: An ``akv:`` string is malformed.
            UncacheableArgumentError: A value has no canonical form.

        Guarantees:
            Loads no attribute. One round trip to the database, none for a private key that needs no reading.
        """
        asked = _Asked(self._tokens, session)
        parts = [asked.part(thing) for thing in things]
        found = await self._judge(asked)
        if isinstance(found, Private):
            return self._private(found)
        return _key(encode([found.database, parts, found.seqs]))

    async def token(self, thing: Any, *, session: Scope = None) -> CacheKey:
        """
        Return the token of one thing: an opaque string that changes when it changes.

        Args:
            thing: What names something that can change: no plain value.
            session: As for a key.

        Raises:
            InvalidIdentifierError: The thing names nothing that can change.
            ConfigurationError: An instance or session works on no engine that is bound to the tokens.
        """
        identifier(thing)
        return await self(thing, session=session)

    async def _judge(self, asked: _Asked) -> Tokens | Private:
        if asked.detached:
            self._warn(asked.detached)
        if asked.reason is not None:
            return asked.reason
        if any(map(has_unflushed, asked.sessions)) or any(each.is_dirty for each in asked.transactions()):
            return Private.DIRTY
        return await self._read(asked)

    async def _read(self, asked: _Asked) -> Tokens | Private:
        transactions = asked.transactions()
        try:
            views = [await self._tokens.look(asked.vector, each.driver) for each in transactions]
        except Absent:
            return Private.ABSENT
        if any(each.closed or each.is_dirty for each in transactions):
            return Private.DIRTY  # it went on while we read: what we saw may be what its commit is about to write
        if not one_view([(view.database, view.seqs) for view in views]):
            return Private.SNAPSHOT
        found = views[0] if views else await self._tokens.look(asked.vector)
        self._learn(asked, dict(zip(transactions, views, strict=True)))
        if not all(self._covers(session, found) for session in asked.sessions):
            return Private.RETAINED
        return found

    def _learn(self, asked: _Asked, views: Mapping[Transaction, Tokens]) -> None:
        for transaction, view in views.items():
            self._tokens.learn(view.newest)
            for session in asked.sessions:
                record_of_session(session).learn(transaction, view.newest)

    def _covers(self, session: Session, found: Tokens) -> bool:
        return not holds_loaded(session) or record_of_session(session).covers(self._tokens, found.seqs)

    def _private(self, reason: Private) -> CacheKey:
        self.private[reason] += 1
        return CacheKey(f"akv-private-{secrets.token_hex(16)}", shared=False)

    def _warn(self, detached: Sequence[InstanceState[Any]]) -> None:
        for state in detached:
            if state.class_ not in self._warned:
                self._warned.add(state.class_)
                warnings.warn(
                    f"a key made of a detached {state.class_.__qualname__} is private, for its attributes may be of "
                    f"any age; to depend on the row, pass identifier(obj): {identifier(state.obj())!r}",
                    RuntimeWarning,
                    stacklevel=4,
                )


class _Asked:
    """What one call asks for: the vector of its things, the sessions concerned, and what forbids sharing."""

    def __init__(self, tokens: DatabaseTokens, scope: Scope) -> None:
        self._tokens = tokens
        self._connection: AsyncConnection | None = None
        self._vector: dict[str, None] = {}
        self._context = list(open_in_context(tokens))
        self.sessions: dict[Session, None] = {}
        self.detached: list[InstanceState[Any]] = []
        self.reason: Private | None = None
        if scope is not None:
            self._add_scope(scope)
        for transaction in self._context:
            session = transaction.session() if transaction.session is not None else None
            if session is not None:
                self.sessions[session] = None

    @property
    def vector(self) -> list[str]:
        """Every identifier whose bump may concern the call."""
        return list(self._vector)

    def part(self, thing: Any) -> bytes:
        """Return what stands for *thing* in the key, and note what it depends on."""
        if isinstance(thing, str) and thing.startswith("akv:"):
            return b"I" + self._depend(thing)
        return b"V" + encode(thing, hook=self._identity)

    def transactions(self) -> list[Transaction]:
        """Return the open transactions that the value may be computed in."""
        found = dict.fromkeys(self._context)
        for session in self.sessions:
            found.update(dict.fromkeys(record_of_session(session).transactions()))
        if self._connection is not None and self._connection.sync_connection is not None:
            of_connection = transaction_of(self._connection.sync_connection)
            found.update({of_connection: None} if of_connection is not None else {})
        return [each for each in found if each.tokens is self._tokens and each.is_open]

    def _depend(self, thing: Any) -> bytes:
        name = identifier(thing)
        self._vector.update(dict.fromkeys(vector_of_thing(thing)))
        return name.encode()

    def _identity(self, thing: Any) -> bytes | None:
        state = state_of(thing)
        if state is not None:
            self._add_instance(state)
        elif not isinstance(thing, Label | Table) and mapper_of(thing) is None:
            return None
        return self._depend(thing)

    def _add_instance(self, state: InstanceState[Any]) -> None:
        session = state.session
        if session is not None:
            self._require_bound(session, state)
            self.sessions[session] = None
        if state.pending:
            self.reason = Private.PENDING
        elif state.deleted or (session is not None and state.obj() in session.deleted):
            self.reason = Private.DELETED
        elif state.detached:
            self.reason = Private.DETACHED
            self.detached.append(state)

    def _require_bound(self, session: Session, state: InstanceState[Any]) -> None:
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

    def _add_scope(self, scope: AsyncSession | async_scoped_session[Any] | AsyncConnection) -> None:
        bound = map(bound_engine_of, engines_of(scope))
        if not any(each is not None and each.tokens is self._tokens for each in bound):
            raise ConfigurationError("this session works on no engine that is bound to these tokens: bind it first")
        if isinstance(scope, AsyncConnection):
            self._connection = scope
        else:
            session = scope() if isinstance(scope, async_scoped_session) else scope
            self.sessions[session.sync_session] = None


def _key(content: bytes) -> CacheKey:
    return CacheKey(f"akv-{blake2b(content, digest_size=32).hexdigest()}")
