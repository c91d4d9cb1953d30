"""akv itself, with its default options."""

from __future__ import annotations

from typing import Any, ClassVar

from akv import AsyncKVAlchemy
from benchmarks.contenders.contender import Contender


class Akv(Contender):
    """The store on the shared table."""

    name: ClassVar[str] = "akv"
    title: ClassVar[str] = "akv"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite", "postgresql", "mariadb")
    serializer: ClassVar[str] = "pickle"

    async def open(self) -> None:
        self.store = AsyncKVAlchemy(self.place.akv_url, sweep_every=None)
        await self.store.get("", default=None)

    async def close(self) -> None:
        await self.store.aclose()

    async def get(self, key: str) -> Any:
        return await self.store.get(key)

    async def set(self, key: str, value: Any) -> None:
        await self.store.set(key, value)
