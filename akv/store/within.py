"""
The verbs inside the caller's own transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from akv.errors import ConfigurationError, InvalidArgumentError
from akv.own import own_statements
from akv.store.codec import Codec
from akv.store.operations import Count, Get, Operation, Page, Tags
from akv.store.perform import Failed, perform
from akv.store.statements import Statements
from akv.store.transact import refusal
from akv.store.verbs import Verbs


class Within(Verbs):
    """
    The verbs on one session or connection: visible to others when the caller commits, gone when he rolls back.

    Executed at once. Nothing is joined with other calls, retried, committed or created. As the session it works
    in, it is not for concurrent tasks.
    """

    def __init__(
        self,
        codec: Codec,
        target: AsyncSession | AsyncConnection,
        statements: Callable[[], Awaitable[Statements]],
    ) -> None:
        super().__init__(codec)
        if not isinstance(target, AsyncSession | AsyncConnection):
            raise InvalidArgumentError(
                f"within takes an AsyncSession or an AsyncConnection, not {type(target).__name__}"
            )
        self._target = target
        self._statements = statements

    async def _run(self, operation: Operation[Any]) -> Any:
        sql = await self._statements()

        def work(conn: Connection) -> Any:
            _refuse_elsewhere(conn, sql)
            writes = not isinstance(operation, Get | Count | Page | Tags)
            if not sql.is_in_transaction(conn, writes=writes):
                raise ConfigurationError(
                    "within works inside a transaction, and this connection is in AUTOCOMMIT: "
                    "begin one on a connection without isolation_level='AUTOCOMMIT', or use the store itself"
                )
            return perform(conn, sql, [operation])[0]

        def unannounced(conn: Connection) -> Any:
            with own_statements():  # where the session is bound to tokens, the store's table is none of its business
                return work(conn)

        try:
            outcome = await (await self._connection()).run_sync(unannounced)
        except SQLAlchemyError as error:
            raise refusal(error) from error
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    async def _connection(self) -> AsyncConnection:
        if isinstance(self._target, AsyncSession):
            return await self._target.connection()
        return self._target


def _refuse_elsewhere(conn: Connection, sql: Statements) -> None:
    if conn.dialect.name != sql.dialect:
        raise ConfigurationError(
            f"within works in the store's own database, a {sql.dialect} one, and this connection is of "
            f"{conn.dialect.name}: give a session of the same database"
        )
