"""
Caches on Redis: no transaction and no fsync, so the other end of the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import make_url

from benchmarks.contenders.contender import Absent, Contender, need

_PART = 2_000
_CONNECTIONS = 64


class _OnRedis(Contender):
    """What both have in common: keys of our own in a database of our own, gone at the end."""

    dialects: ClassVar[tuple[str, ...]] = ("postgresql",)
    setup: ClassVar[str] = f"{_CONNECTIONS} connections"

    @property
    def durability(self) -> str:
        """Redis as it runs here."""
        return "none (Redis, memory)"

    async def _answers(self) -> None:
        client = need("redis.asyncio", "redis").Redis.from_url(self.place.redis_url, socket_connect_timeout=3)
        try:
            await client.ping()
        except Exception as error:
            raise Absent(f"no Redis at {self.place.redis_url}: {error}") from error
        finally:
            await client.aclose()

    async def _forget(self) -> None:
        client = need("redis.asyncio", "redis").Redis.from_url(self.place.redis_url)
        keys = [key async for key in client.scan_iter(match=f"{self.place.namespace}*", count=5_000)]
        for start in range(0, len(keys), _PART):
            await client.unlink(*keys[start : start + _PART])
        await client.aclose()


class Cashews(_OnRedis):
    """cashews on Redis, with its own pool."""

    name: ClassVar[str] = "cashews"
    title: ClassVar[str] = "cashews (Redis)"
    serializer: ClassVar[str] = "pickle"
    distribution: ClassVar[str] = "cashews"

    async def open(self) -> None:
        cashews = need("cashews", "cashews")
        await self._answers()
        self._cache = cashews.Cache()
        self._cache.setup(self.place.redis_url, suppress=False, max_connections=_CONNECTIONS)
        await self._cache.init()
        self._prefix = f"{self.place.namespace}:cashews:"

    async def fill(self, entries: Mapping[str, bytes]) -> None:
        items = list(entries.items())
        for start in range(0, len(items), _PART):
            await self._cache.set_many({self._prefix + key: value for key, value in items[start : start + _PART]})

    async def close(self) -> None:
        await self._cache.close()
        await self._forget()

    async def get(self, key: str) -> Any:
        return await self._cache.get(self._prefix + key)

    async def set(self, key: str, value: Any) -> None:
        await self._cache.set(self._prefix + key, value)


class Aiocache(_OnRedis):
    """aiocache on Redis."""

    name: ClassVar[str] = "aiocache"
    title: ClassVar[str] = "aiocache (Redis)"
    serializer: ClassVar[str] = "pickle"
    distribution: ClassVar[str] = "aiocache"

    async def open(self) -> None:
        aiocache = need("aiocache", "aiocache")
        serializers = need("aiocache.serializers", "aiocache")
        pool = need("redis.asyncio", "redis").BlockingConnectionPool
        await self._answers()
        url = make_url(self.place.redis_url)
        self._cache = aiocache.Cache(
            aiocache.Cache.REDIS,
            endpoint=url.host,
            port=url.port or 6379,
            db=int(url.database or 0),
            password=url.password,
            serializer=serializers.PickleSerializer(),
            namespace=f"{self.place.namespace}:aiocache:",
            pool_max_size=_CONNECTIONS,
            connection_pool_class=pool,  # the default one refuses the call when it has too many connections
        )

    async def fill(self, entries: Mapping[str, bytes]) -> None:
        items = list(entries.items())
        for start in range(0, len(items), _PART):
            await self._cache.multi_set(items[start : start + _PART])

    async def close(self) -> None:
        await self._cache.close()
        await self._forget()

    async def get(self, key: str) -> Any:
        return await self._cache.get(key)

    async def set(self, key: str, value: Any) -> None:
        await self._cache.set(key, value)
