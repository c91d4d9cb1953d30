"""
Somebody else's DDL on MariaDB that has a table to itself, and waits for another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import look
from tests.tokens.redis_world import until

_WAITING = (
    "SELECT COUNT(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND state = 'Waiting for table metadata lock'"
)


def waiting(url: str) -> int:
    """Return how many statements wait for a definition."""
    ((number,),) = look(url, _WAITING)
    return int(number)


@asynccontextmanager
async def redefining(url: str, name: str) -> AsyncIterator[None]:
    """Lock the definition of a table or view exclusively, and change nothing in the end."""
    assert name < "zz_held", "names are locked in their order"
    look(url, "CREATE TABLE IF NOT EXISTS zz_held (id INTEGER)")
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as holder, engine.connect() as renamer:
        await holder.execute(text("SELECT * FROM zz_held"))
        number = await renamer.scalar(text("SELECT CONNECTION_ID()"))
        renaming = asyncio.ensure_future(
            renamer.execute(text(f"RENAME TABLE {name} TO {name}_2, zz_held TO zz_held_2"))
        )
        await until(lambda: waiting(url), "it has the first, and waits for the second")
        try:
            yield
        finally:
            look(url, f"KILL QUERY {number}")
            with suppress(DBAPIError):
                await renaming
    await engine.dispose()
    look(url, "DROP TABLE zz_held")
