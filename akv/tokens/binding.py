"""
bind(): whose writes are seen.

Listeners stand on engines, so that it does not matter which session, maker or
connection a write goes through; binding the same engine again only counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from akv.errors import ConfigurationError
from akv.tokens import listeners, lookups, sessions, transactions
from akv.tokens.targets import Bindable, engines_of, sync_connection_of
from akv.tokens.things import touched_by_thing

if TYPE_CHECKING:
    from akv.tokens.backend import Backend
    from akv.tokens.listeners import BoundEngine


def bind(target: Bindable, tokens: Backend, *, install_begin: bool = True) -> Binding:
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
    lookups.install()
    return Binding(tokens, listeners.add_bindings(engines, tokens, install_begin))


class Binding:
    """What :func:`bind` returns: ends what it began, and names changes that no listener sees."""

    def __init__(self, tokens: Backend, engines: list[BoundEngine]) -> None:
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
        transaction = transactions.transaction_of(sync_connection_of(connection))
        if transaction is None or transaction.tokens is not self._tokens:
            raise ConfigurationError("this session works on no engine that is bound to these tokens: bind its engine")
        if transaction.driver.commits_alone:
            await self._tokens.bump(sorted(touched))
        else:
            transaction.frames.current.extra |= touched

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
        await self._tokens.drain()

    async def unbind(self) -> None:
        """
        End this binding; idempotent.

        Guarantees:
            Transactions that have begun are still announced. Later ones are not, once every other binding of the
            engine has ended too.
        """
        await self.drain()
        engines, self._engines = self._engines, []
        listeners.remove_bindings(engines)
