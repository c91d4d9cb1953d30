"""
The reader of the demo: a cache in front of the shop, as any process of an application has one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from akv.cli.shop import Order, User
from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN
from akv.tokens.keygen import CacheKeyGenerator

_WATCHED: dict[str, tuple[Any, Select[Any]]] = {
    "user 1": ("akv:akv_demo_users#1", select(User.name).where(User.id == 1)),
    "user 2": ("akv:akv_demo_users#2", select(User.name).where(User.id == 2)),
    "any User": (User, select(func.count()).select_from(User)),
    "any Order": (Order, select(func.count()).select_from(Order)),
    "anything": (GLOBAL_WRITE_TOKEN, select(func.max(Order.id))),
}
"""What is looked at: what its key depends on, and how it is computed."""


class Look(NamedTuple):
    """What one look through the cache found, and whether it was there."""

    hit: bool
    value: Any


class Reader:
    """Looks at the shop through a cache, and computes what is not in there."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], keys: CacheKeyGenerator) -> None:
        self._sessions = sessions
        self._keys = keys
        self._cache: dict[str, Any] = {}

    async def look(self) -> dict[str, Look]:
        """Look at everything that is watched."""
        return {name: await self._one(name, *watched) for name, watched in _WATCHED.items()}

    async def _one(self, name: str, thing: Any, query: Select[Any]) -> Look:
        key = await self._keys(thing, name)  # before the query: tokens first
        if key in self._cache:
            return Look(True, self._cache[key])
        async with self._sessions() as session:
            value = await session.scalar(query)
        if key.shared:
            self._cache[key] = value
        return Look(False, value)
