"""
A TCP proxy that misbehaves on request: between a driver and its server, seeing and deciding about every chunk.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, cast

from sqlalchemy import make_url

if TYPE_CHECKING:
    from types import TracebackType

Verdict: TypeAlias = Literal["pass", "drop", "cut"]
Callback: TypeAlias = Callable[[bytes], Verdict]

_DEFAULT_PORTS = {"postgresql": 5432, "mariadb": 3306, "mysql": 3306, "redis": 6379}
# The proxy must be able to read what it forwards: no TLS.
_PLAIN = {"asyncpg": {"ssl": "disable"}, "psycopg": {"sslmode": "disable"}}

_STEPS_OF_ACCEPT = 3
"""Turns of the loop after which a client that was being accepted is a link."""


def _pass(data: bytes) -> Verdict:
    return "pass"


class TCPProxy:
    """
    Forward connections to *host*:*port*, and fail as told.

    Attributes:
        port: Where the proxy listens on 127.0.0.1; kept while it refuses.
        delay: Seconds that every chunk is held back, each way, without holding back the chunks behind it longer.
        connections: How many clients have connected.
        client_bytes, server_bytes: How many bytes clients and servers have sent.
        requests: How often a client has spoken after the server had, or first: round trips.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.port = 0
        self.delay = 0.0
        self.connections = self.client_bytes = self.server_bytes = self.requests = 0
        self._url: str | None = None
        self._callbacks: dict[str, Callback] = {"client": _pass, "server": _pass}
        self._swallowing = False
        self._listening: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._speaking: _Link | None = None

    @classmethod
    def before(cls, url: str) -> Self:
        """Make a proxy to the server of *url* (SQLAlchemy's or Redis's); :attr:`url` leads through it."""
        parsed = make_url(url)
        proxy = cls(parsed.host or "127.0.0.1", parsed.port or _DEFAULT_PORTS[parsed.get_backend_name()])
        proxy._url = url
        return proxy

    @property
    def url(self) -> str:
        """The URL that was given to :meth:`before`, through this proxy and without TLS."""
        assert self._url is not None, "made without a URL: use TCPProxy.before(url)"
        parsed = make_url(self._url)
        plain = _PLAIN.get(parsed.drivername.partition("+")[2], {})
        changed = parsed.set(host="127.0.0.1", port=self.port).update_query_dict(plain)
        return changed.render_as_string(hide_password=False)

    @property
    def open_connections(self) -> int:
        return len(self._links)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        for _ in range(_STEPS_OF_ACCEPT):
            await asyncio.sleep(0)
        while self._links:
            self.cut()  # again: one that was being connected was not there the first time
            await asyncio.sleep(0.001)

    async def accept(self) -> None:
        """Listen (again), on the same port as before."""
        if self._listening is None:
            loop = asyncio.get_running_loop()
            self._listening = await loop.create_server(self._new_client, "127.0.0.1", self.port)
            self.port = self._listening.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def cut(self) -> None:
        """Reset every connection, on both sides, without sending what is on its way."""
        for link in list(self._links):
            link.cut()

    def blackhole(self) -> None:
        """Swallow everything from now on, both ways, and keep the connections open; new ones get no answer."""
        self._swallowing = True

    def resume(self) -> None:
        """Forward again; what was swallowed is lost."""
        self._swallowing = False

    def on_client_data(self, callback: Callback = _pass) -> None:
        """Ask *callback* about every chunk that a client sends: "pass", "drop" it, or "cut" its connection."""
        self._callbacks["client"] = callback

    def on_server_data(self, callback: Callback = _pass) -> None:
        """Ask *callback* about every chunk that the server sends."""
        self._callbacks["server"] = callback

    def cut_reply_to(self, needle: bytes, times: int = 1) -> None:
        """
        Cut connections on which the server answers to something that contains the word *needle*.

        The request has been carried out by then: the answer itself is what is lost. Replaces both callbacks.

        Args:
            needle: A whole word as on the wire: ``b"COMMIT"`` does not mean ``SET AUTOCOMMIT``.
            times: How many answers are lost before the proxy is itself again.
        """
        word = re.compile(rb"(?<![A-Za-z_])" + re.escape(needle) + rb"(?![A-Za-z_])")
        left = times
        asked: set[_Link | None] = set()

        def note_request(data: bytes) -> Verdict:
            if left and word.search(data):
                asked.add(self._speaking)
            return "pass"

        def lose_answer(data: bytes) -> Verdict:
            nonlocal left
            if self._speaking not in asked:
                return "pass"
            asked.discard(self._speaking)
            left -= 1
            return "cut"

        self.on_client_data(note_request)
        self.on_server_data(lose_answer)

    def _new_client(self) -> asyncio.Protocol:
        self.connections += 1
        return _Link(self).client

    def _judge(self, link: _Link, side: str, data: bytes) -> Verdict:
        self._speaking = link
        if side == "client":
            self.client_bytes += len(data)
            self.requests += link.last_speaker != "client"
        else:
            self.server_bytes += len(data)
        link.last_speaker = side
        verdict = self._callbacks[side](data)
        return "drop" if verdict == "pass" and self._swallowing else verdict


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: TCPProxy) -> None:
        self.proxy = proxy
        self.client = _Side(self, "client")
        self.server = _Side(self, "server")
        self.client.other, self.server.other = self.server, self.client
        self.last_speaker = ""
        self._connecting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Connect to the server; the client is not listened to before."""
        self.proxy._links.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="proxy-connect")
        self._connecting.add_done_callback(self._no_longer_connecting)  # a task cancelled at once does not even begin

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            self.cut()
        else:
            self._connected()

    def _no_longer_connecting(self, _task: asyncio.Task[None]) -> None:
        self._connecting = None
        self.closed()

    def _connected(self) -> None:
        client = self.client.transport
        if client is None or client.is_closing():
            self.cut()
        else:
            client.resume_reading()

    def cut(self) -> None:
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        self.client.reset()
        self.server.reset()

    def closed(self) -> None:
        """Forget the link once nothing of it is left."""
        if self._connecting is None and self.client.transport is None and self.server.transport is None:
            self.proxy._links.discard(self)


class _Side(asyncio.Protocol):
    """One end of a link: what it receives goes to the other."""

    other: _Side

    def __init__(self, link: _Link, name: str) -> None:
        self.link = link
        self.name = name
        self.transport: asyncio.Transport | None = None
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.name == "client":
            self.transport.pause_reading()  # until there is a server to forward to
            self.link.open()

    def data_received(self, data: bytes) -> None:
        verdict = self.link.proxy._judge(self.link, self.name, data)
        if verdict == "cut":
            self.link.cut()
        elif verdict == "pass":
            self._later(lambda: self.other.write(data))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._later(self.other.close)
        self.link.closed()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset, not an orderly end."""
        if self.transport is None:
            return
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self.transport.is_closing():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _later(self, action: Callable[[], None]) -> None:
        """Do it after the delay, in order: no two things are due at the same time."""
        loop = asyncio.get_running_loop()
        self._due = max(math.nextafter(self._due, math.inf), loop.time() + self.link.proxy.delay)
        if self._due > loop.time():
            loop.call_at(self._due, action)
        else:
            action()
