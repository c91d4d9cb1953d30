"""
The store on one event loop: its engines, its lanes, its tasks.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncSession

from akv.aio import OwnedTasks, join, retrieve, shielded
from akv.store.abandoned import OpenConnections
from akv.store.engines import Engines
from akv.store.lanes import ReadLane, WriteLane
from akv.store.operations import Count, Get, Operation, Page, Purge, Tags
from akv.store.perform import complete
from akv.store.retry import RetryPolicy
from akv.store.schema import prepare
from akv.store.sessions import Sessions
from akv.store.statements import Statements, direct_statements_for, statements_for
from akv.store.sweep import Bounds, Sweeper
from akv.store.transact import Transactor

T = TypeVar("T")

_PARALLEL_SCANS = 2


class Runtime:
    """Everything of a store that belongs to one event loop; made on it, and without I/O."""

    def __init__(
        self,
        engines: Engines,
        table: Table,
        policy: RetryPolicy,
        bounds: Bounds,
        now: Callable[[], datetime],
        *,
        create: bool,
    ) -> None:
        self._engines = engines
        self._open = OpenConnections(*engines.owned)
        self._table = table
        self._create = create
        self._bounds = bounds
        self._sessions = Sessions(engines.lanes, keeps=engines.keeps)
        self._transactor = Transactor(self._sessions, policy)
        self._scans = asyncio.Semaphore(_PARALLEL_SCANS)
        self._sweeper = Sweeper(self.run, bounds, now)
        self._calls = OwnedTasks()
        self._reads = ReadLane(self._transactor, self._calls)
        self._writes = WriteLane(self._transactor, self._calls)
        self._sql: Statements | None = None
        self._preparing: asyncio.Task[Statements] | None = None
        self._beside: tuple[type[Operation[Any]], ...] = (Count, Page, Tags)
        self._background = OwnedTasks()
        self._closing = OwnedTasks()
        self._lent = 0
        self._is_closing = False

    def run(self, operation: Operation[Any]) -> Awaitable[Any]:
        """
        Run one operation.

        Guarantees:
            A cancelled caller leaves no trace: what is on its way goes on in a task of the store.
        """
        if self._sql is None:
            self._prepared()  # The lanes are closed meanwhile: the first calls wait there, in their order.
        if isinstance(operation, Get):
            return self._reads.submit(operation)
        if isinstance(operation, self._beside):
            return shielded(self._calls.spawn(self._run_beside(operation), name="akv scan"))
        future = self._writes.submit(self._sweeper.weighing(operation))
        if self._sweeper.wrote(operation):
            # Submitted here, so that no write of another task gets before it.
            self._background.spawn(self._sweeper.evict(self._writes.submit(self._sweeper.eviction())), name="akv evict")
        return future

    async def ready(self) -> Statements:
        """Prepare the table once; callers that come meanwhile wait for the same preparation."""
        while self._sql is None:
            preparing = self._prepared()
            await asyncio.wait([preparing])
            if not preparing.cancelled():  # by asyncio.run() at its end: whoever still calls prepares it
                preparing.result()
        return self._sql

    def _prepared(self) -> asyncio.Task[Statements]:
        if self._preparing is None or self._preparing.done():
            # A task of ours, so that aclose() waits for it and for the calls that it lets go.
            self._preparing = self._calls.spawn(self._prepare(), name="akv prepare")
            self._preparing.add_done_callback(self._has_prepared)
        return self._preparing

    def _has_prepared(self, task: asyncio.Task[Statements]) -> None:
        retrieve(task)  # those who wait in the lanes are told otherwise
        if task.cancelled() and task is self._preparing and (self._reads.is_awaited or self._writes.is_awaited):
            self._prepared()  # asyncio.run() cancels every task at its end, and some still use the store

    async def _prepare(self) -> Statements:
        try:
            return await self._open_lanes()
        except Exception as error:
            self._reads.fail(error)
            self._writes.fail(error)
            raise

    async def _open_lanes(self) -> Statements:
        """Learn what table there is, and open the lanes."""
        table, create = self._table, self._create
        traits = await self._transactor.run(lambda conn: prepare(conn, table, create=create), is_short=True)
        # Only a connection knows whether the server is MariaDB or MySQL, so the statements come after it.
        dialect = self._engines.lanes.dialect
        sql = statements_for(dialect)(table, dialect, traits)
        direct = direct_statements_for(dialect)(table, dialect, traits)
        self._sql = sql  # from here on nothing fails: without it, the next call prepares again
        self._reads.open(direct)
        self._writes.open(direct)
        if sql.locks_rows:
            self._beside = (*self._beside, Purge)  # which passes over what others have locked
        if self._bounds.every is not None:
            self._background.spawn(self._sweeper.forever(), name="akv sweep")
        return sql

    async def _run_beside(self, operation: Operation[Any]) -> Any:
        """Run an operation that neither waits for the lanes nor holds them up."""
        sql = await self.ready()
        async with self._scans:
            return (await self._transactor.run(lambda conn: complete(conn, sql, [operation])))[0]

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task in the background, which :meth:`aclose` cancels."""
        return self._background.spawn(coroutine, name=name)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Open a session for the user; the last one to end after aclose() closes the connections."""
        self._lent += 1
        try:
            async with self._engines.sessions() as session:
                yield session
        finally:
            self._lent -= 1
            if self._is_closing:
                await join(asyncio.ensure_future(self._dispose()))

    async def aclose(self) -> None:
        """
        Finish what is on its way, then close the connections that are ours.

        Guarantees:
            Done whole, even if the caller is cancelled meanwhile.
        """
        await join(self._closing.spawn(self._close(may_end=False), name="akv close"))

    def close_from_elsewhere(self, loop: asyncio.AbstractEventLoop) -> Future[None]:
        """
        Do the same from another thread.

        Args:
            loop: That of this runtime; it may end before it gets to it.

        Returns:
            A future that a loop which ends leaves cancelled or pending.

        Raises:
            RuntimeError: The loop has been closed.
        """
        answer: Future[None] = Future()

        def start() -> None:
            self._closing.spawn(self._close(may_end=True), name="akv close").add_done_callback(report)

        def report(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                answer.cancel()
            elif error := task.exception():
                answer.set_exception(error)
            else:
                answer.set_result(None)

        loop.call_soon_threadsafe(start)
        return answer

    async def _close(self, *, may_end: bool) -> None:
        await self._background.cancel()
        await self._calls.drain()
        await self._background.cancel()  # a first use that was on its way has started the sweep
        await self._sessions.aclose()
        self._is_closing = True
        if may_end and not self._lent and self._engines.lanes.dialect.name == "sqlite":
            self.drop()  # a thread of aiosqlite that answers to a closed loop dies with a traceback
        else:
            await self._dispose()

    async def _dispose(self) -> None:
        """Close the pools: a connection that is lent at that time would go back to one that is no more."""
        if not self._lent:
            for engine in self._engines.owned:
                await engine.dispose()

    def drop(self) -> None:
        """Let go of tasks and connections whose event loop has ended: nothing of theirs can be awaited any more."""
        self._reads.forget()
        self._writes.forget()
        for tasks in (self._background, self._calls, self._closing):
            tasks.abandon()
        if sys.is_finalizing():
            return  # the process ends, and with it everything
        try:
            # On a thread without an event loop: drivers would tie what they still do to the one that runs here.
            threading.Thread(target=self._let_go, name="akv lets go").start()
        except RuntimeError:  # the interpreter has begun to end
            self._let_go()

    def _let_go(self) -> None:
        self._sessions.drop()
        self._open.let_go()
