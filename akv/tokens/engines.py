"""
Connections of our own to the database of the tokens, an engine for each event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from akv.aio import PerLoop, join


class OwnEngines:
    """
    One engine per event loop, made of a URL or with the settings of a borrowed engine.

    A borrowed engine's pool is copied, never used: its connections may all be held by those who wait for us.
    """

    def __init__(self, source: URL | AsyncEngine) -> None:
        self._source = source
        self._per_loop = PerLoop(self._make)

    async def get(self) -> AsyncEngine:
        """Return the engine of the running loop, and end those of loops that have ended without notice."""
        engine = self._per_loop.get().engine
        for left in self._per_loop.take_stale():
            await join(asyncio.ensure_future(left.stop()))
        return engine

    async def aclose(self) -> None:
        """Close every connection of every loop."""
        here = asyncio.get_running_loop()
        for loop, own in self._per_loop.take_all():
            ending = own.engine.dispose() if loop is here else own.stop()
            await join(asyncio.ensure_future(ending))

    def _make(self) -> OwnEngine:
        if isinstance(self._source, AsyncEngine):
            return OwnEngine(create_async_engine(self._source.url, pool=self._source.sync_engine.pool.recreate()))
        engine = create_async_engine(self._source)
        event.listen(engine.sync_engine, "connect", _prepare_for_many_processes)
        return OwnEngine(engine)


class OwnEngine:
    """
    An engine and the connections that it has open.

    Those of another loop cannot be awaited there: their threads are told to stop.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._connections: set[Any] = set()
        event.listen(engine.sync_engine, "connect", self._opened)
        event.listen(engine.sync_engine, "close", self._closed)

    async def stop(self) -> None:
        """End all connections without their loop; what they still do is finished first."""
        stopping = [dbapi.driver_connection.stop() for dbapi in self._connections]
        self._connections.clear()
        await asyncio.gather(*stopping)

    def _opened(self, dbapi: Any, _record: object) -> None:
        self._connections.add(dbapi)

    def _closed(self, dbapi: Any, _record: object) -> None:
        self._connections.discard(dbapi)


def _prepare_for_many_processes(dbapi: Any, _record: object) -> None:
    """
    Let readers and the writer work at once, and lose no commit with the power.

    Another connection may be in the way of changing the journal mode; then the next one tries.
    """
    cursor = dbapi.cursor()
    cursor.execute("PRAGMA busy_timeout")
    (patience,) = cursor.fetchone()
    try:
        cursor.execute("PRAGMA busy_timeout = 0")
        cursor.execute("PRAGMA journal_mode = WAL")
    except dbapi.dbapi.OperationalError:
        pass
    cursor.execute(f"PRAGMA busy_timeout = {patience}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
