"""
The listeners of a bound engine: from BEGIN to COMMIT, whatever goes through it.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, event

from akv.aio import join_coroutine
from akv.errors import ConfigurationError, UntrackedWriteError
from akv.own import is_own_statement
from akv.tokens import commits, opaque, reads, sessions, transactions, watching
from akv.tokens.drivers import Driver, is_in_transaction
from akv.tokens.implicit import Implicit
from akv.tokens.opaque import Effect, Reading
from akv.tokens.opaque.readers import reader_for
from akv.tokens.targets import root_of
from akv.tokens.transactions import Transaction

if TYPE_CHECKING:
    from akv.tokens.backend import Backend

logger = logging.getLogger("akv")

_BEGIN_REMEDY: Final = (
    "the driver of this SQLite engine is in its default mode, in which it commits on its own when a SAVEPOINT is "
    "released, so changes could not be announced with the commit that makes them visible: leave install_begin=True, "
    "or add SQLAlchemy's documented handling (isolation_level=None at connect, BEGIN in the 'begin' event)"
)
_WRITING: Final = (Effect.WRITES, Effect.COMMITS)


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

    def __init__(self, engine: Engine, tokens: Backend, install_begin: bool) -> None:
        self.bindings = 0
        self.serve(tokens, install_begin)
        self._engine = weakref.ref(engine)
        self._driver = engine.dialect.driver
        self._logged = False
        self._witness = opaque.witness_for(engine)
        self._reader = reader_for(engine.dialect.name, self._witness)
        self._implicit = Implicit() if engine.dialect.name in ("mysql", "mariadb") else None
        commits.follow(engine.dialect)
        _listen_first(engine, "begin", self._before_begin)
        event.listen(engine, "begin", self._after_begin)
        _listen_first(engine, "begin_twophase", self._before_begin)
        event.listen(engine, "before_cursor_execute", self._before_cursor_execute)
        event.listen(engine, "after_cursor_execute", self._after_cursor_execute)
        event.listen(engine, "after_execute", self._after_execute)
        event.listen(engine, "commit", self._commit)
        event.listen(engine, "prepare_twophase", self._commit)
        event.listen(engine, "commit_twophase", self._commit_twophase)
        event.listen(engine, "rollback", self._rollback)
        event.listen(engine, "rollback_twophase", self._rollback)
        event.listen(engine, "checkin", self._checkin)

    def serve(self, tokens: Backend, install_begin: bool) -> None:
        """Announce to *tokens* from now on."""
        self.tokens = tokens
        self.install_begin = install_begin
        self._prepared = False

    @property
    def engine(self) -> Engine | None:
        """The engine, as long as somebody else holds it."""
        return self._engine()

    def _before_begin(self, connection: Connection, _xid: object = None) -> None:
        """First of all listeners: the database must not be in a transaction yet."""
        transactions.end(connection)
        if self.bindings:
            driver = Driver(connection)
            leftover = driver.in_transaction and not driver.is_always_in_transaction
            engine = root_of(connection.engine)
            if not self._prepared:
                driver.run(join_coroutine(self._prepare(driver, engine, leftover)))
            driver.run(self.tokens.freshen())
            self._witness.begin(connection, driver)
            transactions.begin(
                connection, Transaction(connection, self.tokens, engine, self._witness, leftover=leftover)
            )

    async def _prepare(self, driver: Driver, engine: Engine, leftover: bool) -> None:
        with driver.raising_as_sqlalchemy():
            await self.tokens.prepare(driver, engine)
            await self._witness.prepare(driver)
        if driver.in_transaction and not (leftover or driver.is_always_in_transaction):
            # Some drivers begin with any statement, and no snapshot may be older than its stamp.
            await driver.roll_back()
        self._prepared = True

    def _after_begin(self, connection: Connection) -> None:
        """Last of all listeners: whoever handles BEGIN of SQLite has done so."""
        transaction = transactions.transaction_of(connection)
        if transaction is None or transaction.driver.dialect != "sqlite":
            return
        if connection._is_autocommit_isolation() or transaction.driver.in_transaction:
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
        recording = reads.current()
        if recording is not None:
            watching.starting(recording, self._reader, connection, context, sql)
        reading = self._witness.read(sql, context.compiled)
        effect = reading.effect
        if effect is Effect.ENDS and self.bindings and not is_own_statement():
            raise UntrackedWriteError(
                f"{sql.strip()!r} would end the transaction behind SQLAlchemy's back, and its changes would not be "
                "announced: use commit() or rollback() of the session or connection"
            )
        transaction = transactions.transaction_of(connection)
        if effect in _WRITING and transaction is not None:
            if reading.redefines:
                self._reader.redefined()
            transaction.starting(context, reading, sql)
            commits.note_late(transaction)
            if self._implicit is not None:
                self._start_implicitly(self._implicit, transaction, context, reading, sql)

    def _start_implicitly(
        self, implicit: Implicit, transaction: Transaction, context: Any, reading: Reading, sql: str
    ) -> None:
        try:
            implicit.starting(transaction, context, reading, sql)
        except BaseException:
            transaction.never_ran()
            raise

    def _after_cursor_execute(
        self, connection: Connection, _cursor: Any, sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        reading = self._witness.read(sql, context.compiled)
        recording = reads.current()
        if recording is not None:
            tokens = self.tokens if self.bindings else None
            writes = reading.effect in _WRITING
            watching.ran(recording, self._reader, tokens, connection, context, sql, writes=writes)
        if reading.is_harmless:
            return
        transaction = transactions.transaction_of(connection)
        if transaction is None:
            return
        if reading.effect is Effect.CALLS:
            transaction.called(context, reading)
        if reading.effect in _WRITING:
            transaction.ran(context)
            if self._implicit is not None:
                self._implicit.ran(transaction, reading, sql)
        if reading.effect is Effect.CALLS or reading.effect in _WRITING:
            commits.announce_late(transaction)
            return
        undone = transaction.savepoint(reading)
        if undone is not None:
            sessions.undone(transaction, undone)

    def _after_execute(self, connection: Connection, _s: Any, _m: Any, _p: Any, _o: Any, result: Any) -> None:
        transaction = transactions.transaction_of(connection)
        if transaction is not None:
            transaction.executed(getattr(result, "context", None), result)
            commits.announce_late(transaction)

    def _commit(self, connection: Connection, _xid: object = None) -> None:
        transaction = transactions.transaction_of(connection)
        if transaction is None and self.bindings and Driver(connection).in_transaction:  # it began before bind
            transaction = Transaction(connection, self.tokens, root_of(connection.engine), self._witness, leftover=True)
            transactions.begin(connection, transaction)
        if transaction is not None:
            commits.announce(transaction, transaction.close())

    def _commit_twophase(self, connection: Connection, _xid: object, is_prepared: bool) -> None:
        if not is_prepared:
            self._commit(connection)

    def _rollback(self, connection: Connection, _xid: object = None, _is_prepared: bool = False) -> None:
        transaction = transactions.transaction_of(connection)
        if transaction is not None:
            transaction.abandon()

    def _checkin(self, dbapi: Any, record: Any) -> None:
        """A COMMIT that failed may leave its transaction open: without this, the next user would commit it."""
        if dbapi is None or not commits.was_announced(record.info):
            return
        if is_in_transaction(self._driver, dbapi.driver_connection):
            dbapi.rollback()
        transaction = commits.returned(record.info)
        if transaction is not None:
            commits.settle(transaction)


def _listen_first(engine: Engine, name: str, listener: Callable[..., None]) -> None:
    """Put a listener in front of those that are there: for an engine, SQLAlchemy ignores ``insert=True``."""
    event.listen(engine, name, listener)
    getattr(engine.dispatch, name).listeners.rotate(1)


_lock = threading.Lock()
_bound: weakref.WeakKeyDictionary[Engine, BoundEngine] = weakref.WeakKeyDictionary()


def bound_engine_of(engine: Engine) -> BoundEngine | None:
    """Return the listeners of an engine that is bound, or that was made by ``execution_options`` of a bound one."""
    known = _bound.get(root_of(engine))
    return known if known is not None and known.bindings else None


def add_bindings(engines: list[Engine], tokens: Backend, install_begin: bool) -> list[BoundEngine]:
    """
    Count one binding more on each engine.

    Raises:
        ConfigurationError: One is bound to other tokens, or cannot hold the promise; then none is counted.
    """
    with _lock:
        bound = [_bound_engine(engine, tokens, install_begin) for engine in engines]
        for engine, each in zip(engines, bound, strict=True):
            each.bindings += 1
            if each.bindings == 1:
                tokens.attach(engine)
    return bound


def remove_bindings(bound: list[BoundEngine]) -> None:
    """Count one binding less on each engine; what has begun is still announced."""
    with _lock:
        for each in bound:
            each.bindings -= 1
            engine = each.engine
            if not each.bindings and engine is not None:
                each.tokens.detach(engine)


def _bound_engine(engine: Engine, tokens: Backend, install_begin: bool) -> BoundEngine:
    known = _bound.get(engine)
    if known is not None and known.bindings and known.tokens is not tokens:
        raise ConfigurationError("this engine is bound to other tokens: unbind those first")
    if known is not None and known.bindings:
        return known
    if not install_begin and _commits_on_its_own(engine):
        raise ConfigurationError(_BEGIN_REMEDY)
    if known is None:
        known = _bound[engine] = BoundEngine(engine, tokens, install_begin)
    known.serve(tokens, install_begin)
    return known


def _commits_on_its_own(engine: Engine) -> bool:
    """Tell whether SQLite's driver is in its default mode for sure."""
    return engine.dialect.name == "sqlite" and sys.version_info < (3, 12) and not engine.dispatch.begin
