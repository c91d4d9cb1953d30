"""
bind(): whose writes are seen.

Listeners stand on engines, so that it does not matter which session, maker or
connection a write goes through; binding the same engine again only counts.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)

from akv.errors import ConfigurationError, UntrackedWriteError
from akv.tokens import opaque, sessions, transactions
from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN
from akv.tokens.opaque import Driver, Effect
from akv.tokens.things import touched_by_thing

if TYPE_CHECKING:
    from akv.tokens.database import DatabaseTokens

logger = logging.getLogger("akv")

Bindable: TypeAlias = (
    "AsyncEngine | AsyncConnection | async_sessionmaker[Any] | AsyncSession | async_scoped_session[Any]"
)
"""What leads to one or more engines."""

_CHECK_AT_RETURN: Final = "akv_committed"
_BEGIN_REMEDY: Final = (
    "the driver of this SQLite engine is in its default mode, in which it commits on its own when a SAVEPOINT is "
    "released, so changes could not be announced with the commit that makes them visible: leave install_begin=True, "
    "or add SQLAlchemy's documented handling (isolation_level=None at connect, BEGIN in the 'begin' event)"
)


def bind(target: Bindable, tokens: DatabaseTokens, *, install_begin: bool = True) -> Binding:
    """
    Announce to *tokens* whatever is written through the engines of *target*.

    Args:
        target: An AsyncEngine, async_sessionmaker, AsyncSession, async_scoped_session or AsyncConnection. Its engines
            are bound, and with them everything else that works on those.
        tokens: Where identifiers change; an engine has one at a time.
        install_begin: Give an SQLite engine that lacks it the BEGIN handling that SQLAlchemy documents; False:
            refuse such an engine.

    Returns:
        A handle that counts once, however many engines it stands for.

    Raises:
        ConfigurationError: The target leads to no engine, an engine is bound to other tokens, is of another database
            than *tokens*, or cannot hold the promise.

    Guarantees:
        No I/O. A transaction that is open already counts as having changed anything when it commits.
    """
    engines = engines_of(target)
    for engine in engines:
        tokens.check_engine(engine)
    sessions.install()
    with _lock:
        bound = [_bound_engine(engine, tokens, install_begin) for engine in engines]
        for each in bound:
            each.bindings += 1
    return Binding(tokens, bound)


class Binding:
    """What :func:`bind` returns: ends what it began, and names changes that no listener sees."""

    def __init__(self, tokens: DatabaseTokens, engines: list[BoundEngine]) -> None:
        self._tokens = tokens
        self._engines = engines

    async def touch(self, session: AsyncSession | async_scoped_session[Any] | AsyncConnection, *things: Any) -> None:
        """
        Count *things* as changed by the transaction of *session*.

        Args:
            session: A session or connection on a bound engine; a transaction is begun if it has none.
            things: What :meth:`DatabaseTokens.touch` takes.

        Raises:
            InvalidIdentifierError: Something names nothing that can change.
            ConfigurationError: The session works on no bound engine.

        Guarantees:
            Their keys change when the transaction commits, and do not if it rolls back, savepoints included.
        """
        touched = {name for thing in things for name in touched_by_thing(thing)}
        connection = await self._connection_of(session)
        transaction = transactions.transaction_of(_sync_connection(connection))
        if transaction is None or transaction.tokens is not self._tokens:
            raise ConfigurationError("this session works on no engine that is bound to these tokens: bind its engine")
        if transaction.driver.in_transaction:
            transaction.frames.current.extra |= touched
        else:
            await self._tokens.bump(sorted(touched))

    async def _connection_of(
        self, session: AsyncSession | async_scoped_session[Any] | AsyncConnection
    ) -> AsyncConnection:
        if isinstance(session, AsyncConnection):
            if not session.in_transaction():
                await session.begin()
            return session
        try:
            return await session.connection()
        except sa_exc.UnboundExecutionError:  # several engines: ours is meant
            engine = self._engines[0].engine if self._engines else None
            return await session.connection(bind_arguments={"bind": engine})

    async def drain(self) -> None:
        """
        Wait until every commit that has returned has changed its keys.

        With :class:`DatabaseTokens` that is always so: token and data become visible together.
        """

    async def unbind(self) -> None:
        """
        End this binding; idempotent.

        Guarantees:
            Transactions that have begun are still announced. Later ones are not, once every other binding of the
            engine has ended too.
        """
        await self.drain()
        with _lock:
            for engine in self._engines:
                engine.bindings -= 1
            self._engines = []


class BoundEngine:
    """
    The listeners of one engine.

    They stay in place once put: those of an engine without binding do nothing, and removing them would break a
    commit that runs through the list in another thread.

    Attributes:
        bindings: How many bindings stand on the engine.
        tokens: Where its changes are announced.
        install_begin: Whether to send BEGIN where nobody else does.
    """

    def __init__(self, engine: Engine, tokens: DatabaseTokens, install_begin: bool) -> None:
        self.bindings = 0
        self.serve(tokens, install_begin)
        self._engine = weakref.ref(engine)
        self._logged = False
        event.listen(engine, "begin", self._before_begin, insert=True)
        event.listen(engine, "begin", self._after_begin)
        event.listen(engine, "before_cursor_execute", self._before_cursor_execute)
        event.listen(engine, "after_cursor_execute", self._after_cursor_execute)
        event.listen(engine, "after_execute", self._after_execute)
        event.listen(engine, "commit", self._commit)
        event.listen(engine, "rollback", self._rollback)
        event.listen(engine, "checkin", self._checkin)

    def serve(self, tokens: DatabaseTokens, install_begin: bool) -> None:
        """Announce to *tokens* from now on."""
        self.tokens = tokens
        self.install_begin = install_begin
        self._prepared = False

    @property
    def engine(self) -> Engine | None:
        """The engine, as long as somebody else holds it."""
        return self._engine()

    def _before_begin(self, connection: Connection) -> None:
        """First of all listeners: the database must not be in a transaction yet."""
        transactions.end(connection)
        if self.bindings:
            driver = Driver(connection)
            leftover = driver.in_transaction and not driver.is_always_in_transaction
            if not self._prepared:
                self.tokens.prepare(driver)
                self._prepared = True
            begun = transactions.Transaction(connection, self.tokens, leftover=leftover)
            transactions.begin(connection, begun)

    def _after_begin(self, connection: Connection) -> None:
        """Last of all listeners: whoever handles BEGIN has done so."""
        transaction = transactions.transaction_of(connection)
        if transaction is None or connection._is_autocommit_isolation() or transaction.driver.in_transaction:
            return
        if not self.install_begin:
            transactions.end(connection)
            raise ConfigurationError(_BEGIN_REMEDY)
        if not self._logged:
            self._logged = True
            logger.info(
                "akv sends BEGIN on %r: the driver would not, and would commit SAVEPOINTs on its own", self.engine
            )
        transaction.driver.dbapi.isolation_level = None
        connection.exec_driver_sql("BEGIN")

    def _before_cursor_execute(
        self, connection: Connection, _cursor: Any, sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        effect = opaque.read(sql).effect
        if effect is Effect.ENDS and self.bindings:
            raise UntrackedWriteError(
                f"{sql.strip()!r} would end the transaction behind SQLAlchemy's back, and its changes would not be "
                "announced: use commit() or rollback() of the session or connection"
            )
        transaction = transactions.transaction_of(connection)
        if effect is Effect.WRITES and transaction is not None:
            transaction.starting(context)

    def _after_cursor_execute(
        self, connection: Connection, _cursor: Any, sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        reading = opaque.read(sql)
        transaction = transactions.transaction_of(connection)
        if transaction is None or reading.effect is Effect.NOTHING:
            return
        if reading.effect is Effect.WRITES:
            transaction.ran(context)
            self._announce_late(connection, transaction)
            return
        undone = transaction.savepoint(reading)
        if undone is not None:
            sessions.undone(transaction, undone)

    def _after_execute(self, connection: Connection, _s: Any, _m: Any, _p: Any, _o: Any, result: Any) -> None:
        transaction = transactions.transaction_of(connection)
        if transaction is not None:
            transaction.executed(getattr(result, "context", None), result)
            self._announce_late(connection, transaction)

    def _commit(self, connection: Connection) -> None:
        transaction = transactions.transaction_of(connection)
        if transaction is not None:
            self._announce(connection, transaction.tokens, transaction.close())
        elif self.bindings and Driver(connection).in_transaction:
            self._announce(connection, self.tokens, touched_by_thing(GLOBAL_WRITE_TOKEN))  # it began before bind

    def _announce_late(self, connection: Connection, transaction: transactions.Transaction) -> None:
        """Announce what another listener writes between ours and COMMIT."""
        if transaction.closed:
            self._announce(connection, transaction.tokens, transaction.take())

    def _announce(self, connection: Connection, tokens: DatabaseTokens, changed: set[str]) -> None:
        if changed:
            connection.info[_CHECK_AT_RETURN] = True
            tokens.announce(connection, changed)

    def _rollback(self, connection: Connection) -> None:
        transaction = transactions.end(connection)
        if transaction is not None:
            transaction.closed = True

    def _checkin(self, dbapi: Any, record: Any) -> None:
        """A COMMIT that failed leaves its transaction open: without this, the next user would commit it."""
        if dbapi is not None and record.info.pop(_CHECK_AT_RETURN, False) and dbapi.driver_connection.in_transaction:
            dbapi.rollback()


_lock = threading.Lock()
_bound: weakref.WeakKeyDictionary[Engine, BoundEngine] = weakref.WeakKeyDictionary()


def bound_engine_of(engine: Engine) -> BoundEngine | None:
    """Return the listeners of an engine that is bound, or that was made by ``execution_options`` of a bound one."""
    known = _bound.get(_root(engine))
    return known if known is not None and known.bindings else None


def _root(engine: Engine) -> Engine:
    """Return the engine that others with execution options of their own were made of; its listeners serve them all."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine


def engines_of(target: Any) -> list[Engine]:
    """
    Return the engines that *target* works on.

    Raises:
        ConfigurationError: It is nothing that can be bound, or leads to no engine.
    """
    engines = list(dict.fromkeys(map(_root, _engines(target))))
    if not engines:
        raise ConfigurationError(
            f"this {type(target).__name__} names no engine (a get_bind() of its own?): bind the AsyncEngine itself"
        )
    return engines


def _engines(target: Any) -> list[Engine]:
    if isinstance(target, AsyncEngine):
        return [target.sync_engine]
    if isinstance(target, AsyncConnection):
        return [_sync_connection(target).engine]
    if isinstance(target, async_scoped_session):
        return _engines(target.session_factory)
    if isinstance(target, async_sessionmaker):
        binds = [target.kw.get("bind"), *(target.kw.get("binds") or {}).values()]
    elif isinstance(target, AsyncSession):
        binds = [getattr(target, "bind", None), *(getattr(target, "binds", None) or {}).values()]
    else:
        raise ConfigurationError(
            f"cannot bind {target!r}: give an AsyncEngine, async_sessionmaker, AsyncSession, async_scoped_session "
            "or AsyncConnection"
        )
    return [engine for each in binds if each is not None for engine in _engines(each)]


def _sync_connection(connection: AsyncConnection) -> Connection:
    if connection.sync_connection is None:
        raise ConfigurationError("this AsyncConnection is not started: await it, or bind its engine")
    return connection.sync_connection


def _bound_engine(engine: Engine, tokens: DatabaseTokens, install_begin: bool) -> BoundEngine:
    known = _bound.get(engine)
    if known is not None and known.bindings and known.tokens is not tokens:
        raise ConfigurationError("this engine is bound to other tokens: unbind those first")
    if known is not None and known.bindings:
        return known
    if not install_begin and sys.version_info < (3, 12) and not engine.dispatch.begin:
        raise ConfigurationError(_BEGIN_REMEDY)
    if known is None:
        known = _bound[engine] = BoundEngine(engine, tokens, install_begin)
    known.serve(tokens, install_begin)
    return known
