"""
Connections whose event loop has ended: nothing of theirs can be awaited, yet sockets, files and threads must go.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


class _Connection(Protocol):
    """What a driver keeps open."""

    @property
    def is_closed(self) -> bool: ...
    def let_go(self) -> None: ...


class OpenConnections:
    """The driver's connections that some engines have open, in use or not."""

    def __init__(self, *engines: AsyncEngine) -> None:
        self._open: list[_Connection] = []
        for engine in engines:
            # Before the listeners that prepare a connection: they may fail, or be cancelled.
            event.listen(engine.sync_engine, "connect", self._add, insert=True)

    def let_go(self) -> None:
        """
        Close all of them without awaiting anything; on a thread without an event loop.

        Guarantees:
            The server sees their end. Nothing is raised or logged, whatever state they are in.
        """
        while self._open:
            connection = self._open.pop()
            with suppress(Exception):
                if not connection.is_closed:
                    connection.let_go()

    def _add(self, connection: Any, _record: Any) -> None:
        # SQLAlchemy reports a connection closed before it is, and a cancellation in between leaves it open.
        self._open = [other for other in self._open if not other.is_closed]
        self._open.append(_examine(connection.driver_connection))


def _examine(driver: Any) -> _Connection:
    if hasattr(driver, "pgconn"):
        return _Psycopg(driver)
    if hasattr(driver, "stop"):
        return _Aiosqlite(driver)
    return _OnTransport(driver._transport)


class _Psycopg:
    """The socket is libpq's."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    @property
    def is_closed(self) -> bool:
        return bool(self._driver.closed)

    def let_go(self) -> None:
        self._driver.pgconn.finish()


class _Aiosqlite:
    """A thread has the file."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    @property
    def is_closed(self) -> bool:
        return self._driver._connection is None

    def let_go(self) -> None:
        self._driver.stop()


class _OnTransport:
    """A transport of asyncio has the socket (asyncpg, asyncmy); uvloop closes its own when it ends."""

    def __init__(self, transport: Any) -> None:
        self._tls = transport if hasattr(transport, "_ssl_protocol") else None
        self._transport = transport._ssl_protocol._transport if self._tls else transport

    @property
    def is_closed(self) -> bool:
        return getattr(self._transport, "_sock", None) is None

    def let_go(self) -> None:
        """Do at once what the transport would ask its event loop to do: close the socket, tell the protocol."""
        if self._transport.is_closing() and not self._transport._loop.is_closed():
            return  # the loop only stands still, and knows
        if self._tls is not None:
            self._tls._closed = True
        self._transport.pause_reading()
        self._transport._call_connection_lost(None)
