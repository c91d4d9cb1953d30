"""
Synchronous stores called through asyncio.to_thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.contenders.contender import Contender, need

SYNC_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}


class KVAlchemyInThread(Contender):
    """The ancestor, on the shared table."""

    name: ClassVar[str] = "kvalchemy"
    title: ClassVar[str] = "kvalchemy in a thread"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite", "postgresql", "mariadb")
    serializer: ClassVar[str] = "pickle"
    setup: ClassVar[str] = "asyncio's default executor"
    distribution: ClassVar[str] = "kvalchemy"

    @property
    def durability(self) -> str:
        """Its SQLite engine has no option for it."""
        return "WAL, synchronous=FULL" if self.place.dialect == "sqlite" else self.place.durability

    async def open(self) -> None:
        kvalchemy = need("kvalchemy", "kvalchemy")
        driver = SYNC_DRIVERS[self.place.dialect]
        need({"postgresql": "psycopg", "mariadb": "pymysql"}.get(self.place.dialect, "sqlite3"), driver)
        url = self.place.url.set(drivername=driver).render_as_string(hide_password=False)
        self._kv = await asyncio.to_thread(kvalchemy.KVAlchemy, url, create_models=False)

    async def close(self) -> None:
        await asyncio.to_thread(self._kv._engine.dispose)  # it has no close()

    async def get(self, key: str) -> Any:
        return await asyncio.to_thread(self._kv.get, key, None, "")

    async def set(self, key: str, value: Any) -> None:
        await asyncio.to_thread(self._kv.set, key, value, "")


class DiskCache(Contender):
    """diskcache, in a folder of its own."""

    name: ClassVar[str] = "diskcache"
    title: ClassVar[str] = "diskcache in a thread"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite",)
    serializer: ClassVar[str] = "pickle, bytes as they are"
    setup: ClassVar[str] = "asyncio's default executor"
    distribution: ClassVar[str] = "diskcache"

    async def open(self) -> None:
        diskcache = need("diskcache", "diskcache")
        level = {"NORMAL": 1, "FULL": 2}[self.place.synchronous]
        folder = str(self.place.folder / "diskcache")
        self._cache = await asyncio.to_thread(diskcache.Cache, folder, sqlite_synchronous=level)

    async def fill(self, entries: Mapping[str, bytes]) -> None:
        def store() -> None:
            with self._cache.transact():
                for key, value in entries.items():
                    self._cache.set(key, value)
            self._cache.close()

        await asyncio.to_thread(store)

    async def close(self) -> None:
        await asyncio.to_thread(self._cache.close)

    async def get(self, key: str) -> Any:
        return await asyncio.to_thread(self._cache.get, key)

    async def set(self, key: str, value: Any) -> None:
        await asyncio.to_thread(self._cache.set, key, value)
