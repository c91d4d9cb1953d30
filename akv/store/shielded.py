"""
Sessions for users on SQLite whose statements are not torn by a cancellation.

SQLite's thread goes on with a statement when its awaiter is cancelled, and
SQLAlchemy then throws the connection away: in the middle of a transaction it
keeps the file locked, and with a database in memory it is the database.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from akv.aio import join_coroutine

_SENDS = (
    "close",
    "commit",
    "connection",
    "delete",
    "execute",
    "flush",
    "get",
    "get_one",
    "invalidate",
    "merge",
    "refresh",
    "rollback",
    "run_sync",
    "scalar",
    "scalars",
    "stream",
    "stream_scalars",
)


class ShieldedSession(AsyncSession):
    """An AsyncSession that finishes the statement on its way before it lets a cancellation through."""


def _shield(name: str) -> None:
    plain = getattr(AsyncSession, name)

    @wraps(plain)
    async def whole(self: AsyncSession, *arguments: Any, **options: Any) -> Any:
        return await join_coroutine(plain(self, *arguments, **options))

    setattr(ShieldedSession, name, whole)


for _name in _SENDS:
    _shield(_name)
