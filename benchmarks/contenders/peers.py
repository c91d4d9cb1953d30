"""
Other asyncio stores in a SQL database, each on a table of its own making.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, ClassVar

from sqlalchemy import insert

from benchmarks.contenders.contender import Contender, need
from benchmarks.contenders.hand import CONNECTIONS, engine_for

_PART = 2_000
_LIFETIME = 7 * 24 * 3600
"""Seconds: the table of advanced-alchemy wants an end of each entry."""


class PyKeyValue(Contender):
    """py-key-value's PostgreSQL store: a pool of asyncpg, JSONB."""

    name: ClassVar[str] = "py-key-value"
    title: ClassVar[str] = "py-key-value (PostgreSQL)"
    dialects: ClassVar[tuple[str, ...]] = ("postgresql",)
    serializer: ClassVar[str] = "JSON"
    setup: ClassVar[str] = "10 connections, its default"
    distribution: ClassVar[str] = "py-key-value-aio"

    async def open(self) -> None:
        stores = need("key_value.aio.stores.postgresql", "py-key-value-aio[postgresql]")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it may change
            self._store = stores.PostgreSQLStore(url=self.place.plain_url, table_name="py_key_value")
        await self._store.setup()

    async def fill(self, entries: Mapping[str, bytes]) -> None:
        items = list(entries.items())
        for start in range(0, len(items), _PART):
            part = items[start : start + _PART]
            await self._store.put_many([key for key, _ in part], [self.value(value) for _, value in part])

    async def close(self) -> None:
        await self._store.close()

    def value(self, data: bytes) -> Any:
        """JSON holds text; half as many bytes in hexadecimal are as long."""
        return {"value": data[: len(data) // 2].hex()}

    async def get(self, key: str) -> Any:
        return await self._store.get(key)

    async def set(self, key: str, value: Any) -> None:
        await self._store.put(key, value)


class AdvancedAlchemy(Contender):
    """The Litestar store of advanced-alchemy."""

    name: ClassVar[str] = "advanced-alchemy"
    title: ClassVar[str] = "advanced-alchemy store"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite", "postgresql", "mariadb")
    serializer: ClassVar[str] = "none: bytes"
    setup: ClassVar[str] = f"{CONNECTIONS} connections"
    distribution: ClassVar[str] = "advanced_alchemy"

    async def open(self) -> None:
        litestar = need("advanced_alchemy.extensions.litestar", "advanced-alchemy with litestar")
        store = need("advanced_alchemy.extensions.litestar.store", "advanced-alchemy with litestar")
        self._engine = engine_for(self.place)
        self._model = _model(store.StoreModelMixin)
        async with self._engine.begin() as connection:
            await connection.run_sync(self._model.__table__.create, checkfirst=True)
        config = litestar.SQLAlchemyAsyncConfig(engine_instance=self._engine)
        self._store = store.SQLAlchemyStore(config, model=self._model, namespace="bench")

    async def fill(self, entries: Mapping[str, bytes]) -> None:
        end = datetime.now(UTC) + timedelta(seconds=_LIFETIME)
        rows = [{"key": key, "namespace": "bench", "value": data, "expires_at": end} for key, data in entries.items()]
        async with self._engine.begin() as connection:
            for start in range(0, len(rows), _PART):
                await connection.execute(insert(self._model.__table__), rows[start : start + _PART])

    async def close(self) -> None:
        await self._engine.dispose()

    async def get(self, key: str) -> Any:
        return await self._store.get(key)

    async def set(self, key: str, value: Any) -> None:
        await self._store.set(key, value, expires_in=_LIFETIME)


@cache
def _model(mixin: Any) -> Any:
    return type("BenchStore", (mixin,), {"__tablename__": "bench_store", "__module__": __name__})
