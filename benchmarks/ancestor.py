"""
How alkey makes keys, written anew for asyncio: one GET for each token, one after the other.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.contenders.contender import Absent, need

_HAS_TOKEN: Final = re.compile(r"alkey:([a-z_]+#[0-9]+|([a-z_]+|[*])#[*])")
_CONNECTIONS: Final = 64
_DAY: Final = 86_400


class Ancestor:
    """Its CacheKeyGenerator, with a connection for each of 64 tasks."""

    def __init__(self, url: str, prefix: str) -> None:
        pool = need("redis.asyncio", "redis").BlockingConnectionPool
        self._client = need("redis.asyncio", "redis").Redis(
            connection_pool=pool.from_url(url, max_connections=_CONNECTIONS, decode_responses=True)
        )
        self._prefix = prefix

    async def answers(self) -> None:
        """
        Ask Redis for a sign of life.

        Raises:
            Absent: There is none.
        """
        try:
            await self._client.ping()
        except Exception as error:
            raise Absent(f"no Redis answers, set AKV_TEST_REDIS_URL: {error}") from error

    async def key(self, *things: Any) -> str:
        """Return a key that changes when the token of one of *things* is replaced."""
        segments = []
        for thing in things:
            name = _identifier(thing)
            if _HAS_TOKEN.fullmatch(name):
                segments.append(await self._token(name))
            segments.append(name)
        return "/".join(segments)

    async def _token(self, name: str) -> str:
        key = f"{self._prefix}:{name}"
        token: str | None = await self._client.get(key)
        if token is None:
            token = str(datetime.now(UTC))
            await self._client.set(key, token, ex=_DAY)
        return token

    async def forget(self, part: str) -> None:
        """Delete every key of Redis that contains *part*, and let go of Redis."""
        try:
            keys = [key async for key in self._client.scan_iter(match=f"*{part}*", count=5_000)]
            for start in range(0, len(keys), 2_000):
                await self._client.unlink(*keys[start : start + 2_000])
        finally:
            await self._client.aclose(close_connection_pool=True)


def _identifier(thing: Any) -> str:
    if hasattr(thing, "__tablename__"):
        id_ = getattr(thing, "id", None)
        return f"alkey:{thing.__tablename__}#{id_ if isinstance(id_, int) else '*'}"
    return str(thing)
