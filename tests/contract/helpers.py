"""What contract tests say in one word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from akv import AsyncKVAlchemy
from akv.store.models import Entries
from akv.store.verbs import Verbs
from tests.backends import Backend

T = TypeVar("T")

NOON = datetime(2026, 1, 1, 12)
"""What the clock of the suite shows at first, naive UTC."""
MICROSECOND = timedelta(microseconds=1)
PATIENCE = 60
"""Seconds after which a wait is a failure."""
JUNK = b"\x00 no serializer wrote this"

SEVEN = ["a", "A", "a ", "ä", "a\u0308", "\U0001f600", ""]
"""Seven keys that a careless comparison takes for fewer."""
HARMLESS_LOOKING = ["'", '"', "`", "%s", "%(key)s", "%", "_", ":k", ":key", "?", "$1", "\\", "\\'", "\\n", "\n", "\r\n"]
AWKWARD = [
    *SEVEN, *HARMLESS_LOOKING, "\t", " ", "  ", "--", ";", "/*", "{}", "[1]", "$[0]", "null", "0", "0.0", "1e3", "\x01",
    "\x7f", "\u2028", "\ufeff", "\ufffd", "\uffff", "\U00010000", "\U0010ffff", "ß", "ss",
    "\u0131", "I", "\u0130", "\ufb01", "\uff41", "a\u200b",
]  # fmt: skip
"""Keys that mean something to SQL, to a driver, to JSON or to a collation."""


@asynccontextmanager
async def engine_on(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine as a user makes one."""
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def session_on(store: AsyncKVAlchemy, backend: Backend) -> AsyncIterator[AsyncSession]:
    """A session of an engine of the caller's; in memory, where no other engine sees the data, one of the store's."""
    await store.count()
    if backend.name == "sqlite-memory":
        async with store.session(commit=False) as session:
            yield session
        return
    async with engine_on(backend.url) as engine:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            yield session


async def collected(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def dump(kv: Verbs) -> dict[tuple[str, str], tuple[Any, datetime | None]]:
    """Everything that is live."""
    return {(entry.key, entry.tag): (entry.value, entry.expire) async for entry in kv.scan()}


async def expiry(kv: Verbs, key: str, tag: str = "") -> datetime | None:
    """When an entry that is there ends."""
    end: datetime | None = (await kv.get(key, tag=tag, return_expiration=True))[1]
    return end


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of them at once, but not for ever."""
    async with asyncio.timeout(PATIENCE):
        return list(await asyncio.gather(*calls))


async def plant(store: AsyncKVAlchemy, key: str, tag: str = "", *, value: bytes = JUNK) -> None:
    """Put bytes of our own into the table."""
    async with store.session() as session:
        await session.execute(insert(store.model), [{"key": key, "tag": tag, "value": value, "expire": None}])


def row(store: AsyncKVAlchemy, key: str, expire: datetime | None = None) -> Entries:
    """A mapped instance of the store's model, whose value is None."""
    made = store.model()
    made.key, made.tag, made.value, made.expire = key, "", None, expire
    return made


async def rows_of(store: AsyncKVAlchemy, table: str) -> int:
    """How many rows the table has, dead ones too."""
    async with store.session(commit=False) as session:
        found = await session.execute(text(f"SELECT count(*) FROM {table}"))
        return int(found.scalar_one())


async def forbid(store: AsyncKVAlchemy, backend: Backend, table: str, key: str) -> None:
    """Make the database refuse to insert or to delete rows of one key."""
    async with store.session() as session:
        for event, row in (("INSERT", "NEW"), ("DELETE", "OLD")):
            for statement in _GUARDS[backend.dialect]:
                await session.execute(text(statement.format(table=table, key=key, event=event, row=row)))


_FUNCTION = "CREATE OR REPLACE FUNCTION akv_says_no() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
_BEFORE = "CREATE TRIGGER {table}_{event} BEFORE {event} ON {table} "
_GUARDS = {
    "sqlite": [_BEFORE + "WHEN {row}.key = '{key}' BEGIN SELECT RAISE(ABORT, 'no'); END"],
    "postgresql": [
        _FUNCTION.format(body="BEGIN RAISE EXCEPTION 'no'; END"),
        _BEFORE + "FOR EACH ROW WHEN ({row}.key = '{key}') EXECUTE FUNCTION akv_says_no()",
    ],
    "mariadb": [
        _BEFORE + "FOR EACH ROW IF {row}.`key` = '{key}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF"
    ],
}
