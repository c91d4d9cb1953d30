"""
What a chunk on the wire asks of the server, so that a proxy can fail exactly there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tests.proxy import TCPProxy, Verdict

Asks: TypeAlias = Callable[[bytes], bool]
"""Whether a chunk of a client makes the server do the thing."""

_COMMAND = re.compile(rb"(?<![A-Za-z_])COMMIT(?![A-Za-z_])")


def commits(dialect: str) -> Asks:
    """Recognise the execution of COMMIT; one for each proxy, made before the first connection."""
    return _PostgresCommits() if dialect == "postgresql" else lambda data: bool(_COMMAND.search(data))


class _PostgresCommits:
    """Follows prepared statements: drivers send COMMIT once, and afterwards only the name of it."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()

    def __call__(self, data: bytes) -> bool:
        executed = False
        for kind, body in _messages(data):
            if kind == b"P":
                name, query = body.split(b"\0")[:2]
                (self._names.add if query == b"COMMIT" else self._names.discard)(name)
            elif kind == b"B":
                executed |= body.split(b"\0")[1] in self._names
            elif kind == b"Q":
                executed |= body == b"COMMIT\0"
        return executed


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split a chunk of a PostgreSQL client; drivers end their chunks with whole messages, but for the start-up."""
    while len(data) >= 5 and data[:1].isalpha():
        end = 1 + int.from_bytes(data[1:5], "big")
        yield data[:1], data[5:end]
        data = data[end:]


class Mishap:
    """
    One failure of a proxy at the next chunk that *asks* for the thing; afterwards the proxy is itself again.

    Attributes:
        happened: How often the proxy has failed.
    """

    def __init__(self, proxy: TCPProxy, asks: Asks) -> None:
        self._proxy = proxy
        self._asks = asks
        self._armed: Callable[[], Verdict] | None = None
        self._cutting = False
        self.happened = 0
        proxy.on_client_data(self._client)
        proxy.on_server_data(self._server)

    def cut_before(self) -> None:
        """Cut the connection instead of forwarding the request."""
        self._armed = self._cut

    def lose_reply(self) -> None:
        """Forward the request, and cut the connection when the server answers."""
        self._armed = self._cut_at_answer

    def _client(self, data: bytes) -> Verdict:
        asked, armed = self._asks(data), self._armed
        if not asked or armed is None:
            return "pass"
        self._armed = None
        return armed()

    def _server(self, data: bytes) -> Verdict:
        if not self._cutting:
            return "pass"
        self._cutting = False
        return self._cut()

    def _cut(self) -> Verdict:
        self.happened += 1
        return "cut"

    def _cut_at_answer(self) -> Verdict:
        self._cutting = True
        return "pass"
