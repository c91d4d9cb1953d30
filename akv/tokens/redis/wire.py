"""
Connections to Redis: whose settings they have, which process they lead to, and what may be asked of it.

Only this module knows the driver. Nothing is repeated silently, for a MARK that runs twice
may run after its RESOLVE; and every answer is attributed to the process that gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from akv.errors import ConfigurationError
from akv.tokens.redis.formats import bulk
from akv.tokens.redis.server import check_server

_CONNECT_SECONDS: Final = 2.0
_OURS: Final = ("maint_notifications", "maintenance_", "orig_", "oss_cluster", "himport_", "event_dispatcher")
"""Beginnings of what a pool of redis-py adds to the settings of its connections for itself."""
_CLUSTER: Final = (
    "this Redis is a cluster, and the node that was named does not have our keys: name one that has them all, or use "
    "a Redis without cluster"
)
_TOO_OLD: Final = "this Redis cannot run akv's scripts: RedisTokens need Redis 7 or newer, or Valkey"


class BrokenError(Exception):
    """The connection is of no use any more; another one may be."""


class RefusedError(Exception):
    """Redis has answered that it will not do it, now."""


@dataclass(frozen=True)
class Script:
    """A script and the name that Redis knows it by."""

    source: bytes
    sha: bytes

    @classmethod
    def of(cls, source: bytes) -> Script:
        """Make a script of its text."""
        return cls(bulk(source), bulk(sha1(source, usedforsecurity=False).hexdigest().encode()))

    @classmethod
    def load(cls, name: str) -> Script:
        """Read a script that lies beside this page."""
        return cls.of(files("akv.tokens.redis").joinpath(f"{name}.lua").read_bytes())


MARK: Final = Script.load("mark")
RESOLVE: Final = Script.load("resolve")
LOOK: Final = Script.load("look")
SWAP: Final = Script.load("swap")


@dataclass(frozen=True)
class Settings:
    """
    How to connect.

    Attributes:
        pool: Whose settings they are; kept, because a pool of Sentinel's finds out the address.
        assume_noeviction: What to believe where INFO is forbidden.
    """

    pool: ConnectionPool
    assume_noeviction: bool

    @property
    def most(self) -> int:
        """The number of connections that the pool may have."""
        return int(self.pool.max_connections)

    @property
    def connect_seconds(self) -> float:
        """The time that a connection may take to be made."""
        return self.pool.connection_kwargs.get("socket_connect_timeout") or _CONNECT_SECONDS

    def new_connection(self, on_connect: Any) -> AbstractConnection:
        """Make a connection that is not open yet, and never tries anything twice."""
        lent = {name: value for name, value in self.pool.connection_kwargs.items() if not name.startswith(_OURS)}
        ours: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "socket_timeout": None,
            "socket_connect_timeout": self.connect_seconds,
            "decode_responses": False,
            "encoding": "utf-8",
            "redis_connect_func": on_connect,
        }
        return self.pool.connection_class(**{**lent, **ours})


def settings_of(client: Any, *, assume_noeviction: bool) -> Settings:
    """
    Take over the settings of a client.

    Raises:
        ConfigurationError: It is no client of ``redis.asyncio`` for one server.
    """
    pool: Any = getattr(client, "connection_pool", None)
    class_ = getattr(pool, "connection_class", None)
    if not (isinstance(class_, type) and issubclass(class_, AbstractConnection)):
        raise ConfigurationError(
            f"RedisTokens take a client of redis.asyncio (Redis, not RedisCluster), not {type(client).__module__}."
            f"{type(client).__qualname__}; for a URL there is RedisTokens.from_url"
        )
    return Settings(pool, assume_noeviction)


def client_of_url(url: str, options: Mapping[str, Any]) -> Redis:
    """
    Make a client of a URL; it is never used itself.

    Raises:
        ConfigurationError: redis-py cannot read the URL.
    """
    try:
        client = Redis(connection_pool=ConnectionPool.from_url(url, **options))
        Settings(client.connection_pool, assume_noeviction=True).new_connection(None)
    except (ValueError, TypeError, AttributeError, exceptions.RedisError) as error:
        raise ConfigurationError(f"no URL of a Redis: {error} (write redis://, rediss:// or unix://)") from None
    return client


class Link:
    """
    One connection.

    Attributes:
        run: The Redis process that it leads to; empty where INFO is forbidden.
    """

    def __init__(self, settings: Settings) -> None:
        self.run = ""
        self._settings = settings
        self._births: set[str] = set()
        self._transport: Any = None
        self._connection = settings.new_connection(self._on_connect)

    async def open(self) -> None:
        """
        Connect, and look at who answers.

        Raises:
            ConfigurationError: No Redis that can hold the promise.
            BrokenError: It cannot be reached, or refuses us.
        """
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await self.close()
            if isinstance(error, exceptions.RedisError | OSError):
                raise _translated(error) from error
            raise

    async def _on_connect(self, connection: AbstractConnection) -> None:
        writer: Any = connection._writer
        self._transport = writer.transport
        lent = self._settings.pool.connection_kwargs.get("redis_connect_func")
        if lent is None:
            await connection.on_connect()
        else:
            answer = lent(connection)
            if asyncio.iscoroutine(answer):
                await answer
        self._births.clear()
        self.run = check_server(await self._info(connection), assume_noeviction=self._settings.assume_noeviction)

    async def _info(self, connection: AbstractConnection) -> dict[str, str] | None:
        sections = ("server", "memory")
        for section in sections:
            await connection.send_command("INFO", section, check_health=False)
        info: dict[str, str] | None = {}
        for _ in sections:
            try:
                text = (await connection.read_response()).decode()
            except exceptions.NoPermissionError:
                info = None
            else:
                pairs = (line.partition(":") for line in text.splitlines())
                info = None if info is None else {**info, **{name: value for name, colon, value in pairs if colon}}
        return info

    async def run_script(self, script: Script, keys: Sequence[bytes], *arguments: str) -> str:
        """
        Run a script, in one round trip once Redis knows it.

        Args:
            script: One of ours.
            keys: As :class:`~akv.tokens.redis.formats.Keys` makes them.
            arguments: The rest.

        Raises:
            BrokenError: The connection is lost; nobody knows whether the script has run.
            RefusedError: It has not run.
            ConfigurationError: It cannot run there.
        """
        rest = [b"$%d\r\n%d\r\n" % (len(str(len(keys))), len(keys)), *keys]
        rest += [bulk(argument.encode()) for argument in arguments]
        try:
            answer = await self._command(b"EVALSHA", script.sha, rest)
        except exceptions.NoScriptError:
            answer = await self._command(b"EVAL", script.source, rest)
        return str(answer.decode())

    async def knows_birth(self, sha: str) -> bool:
        """Tell whether the process has the script that was loaded into it when an epoch was born."""
        if sha not in self._births:
            found = await self._command(b"SCRIPT", bulk(b"EXISTS"), [bulk(sha.encode())])
            if not found[0]:
                return False
            self._births.add(sha)
        return True

    async def load_birth(self, id_: str) -> str:
        """Load the script of an epoch to be born; return its SHA."""
        answer = await self._command(b"SCRIPT", bulk(b"LOAD"), [bulk(f"return '{id_}'".encode())])
        sha = str(answer.decode())
        self._births.add(sha)
        return sha

    async def _command(self, name: bytes, first: bytes, rest: Sequence[bytes]) -> Any:
        command = b"".join([b"*%d\r\n" % (len(rest) + 2), bulk(name), first, *rest])
        try:
            await self._connection.send_packed_command(command, check_health=False)
            answer = await self._connection.read_response()
        except exceptions.NoScriptError:
            raise
        except (exceptions.RedisError, OSError, RuntimeError) as error:
            raise _translated(error) from error  # RuntimeError: uvloop's, of a transport that was closed a moment ago
        return answer

    async def close(self) -> None:
        """Close at once, without waiting for anybody."""
        await self._connection.disconnect(nowait=True)

    def let_go(self) -> None:
        """Close the socket of a connection whose event loop has ended or stands still; nothing of it is awaited."""
        if self._transport is not None:
            _close_socket(self._transport)
        self._connection._writer = self._connection._reader = None  # so that it does not complain


def _close_socket(transport: Any) -> None:
    """Do at once what a transport would ask its event loop to do."""
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is not None:
        transport._closed = True
        transport = tls._transport
    if getattr(transport, "_sock", None) is None or not hasattr(transport, "_call_connection_lost"):
        return  # it is closed; or it is one of uvloop's, which closes its own
    transport.pause_reading()
    transport._closing = True
    if transport._loop.is_closed():
        sock, transport._sock = transport._sock, None
        sock.close()
    else:
        transport._call_connection_lost(None)


def _translated(error: Exception) -> Exception:
    """Tell what an error of the driver means to us."""
    if isinstance(error, exceptions.MovedError | exceptions.AskError | exceptions.ClusterCrossSlotError):
        return ConfigurationError(_CLUSTER)
    if isinstance(error, exceptions.ReadOnlyError | exceptions.MasterDownError):
        return BrokenError(str(error))  # it is a replica by now; a new connection may lead to the primary
    if not isinstance(error, exceptions.ResponseError):
        return BrokenError(str(error) or type(error).__name__)
    if "compiling script" in str(error):
        return ConfigurationError(_TOO_OLD)
    return RefusedError(str(error))
