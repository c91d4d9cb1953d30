"""
The demo: a small shop that shows what akv does, on a real database.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import joinedload

from akv.cli.neighbour import neighbour
from akv.cli.reader import Look, Reader
from akv.cli.redis import Place, open_redis, until_shared
from akv.cli.shop import USERS, Order, User, open_shop
from akv.client import AsyncKVAlchemy
from akv.store.engines import parse_url
from akv.store.models import table_of
from akv.tokens.binding import bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.keygen import CacheKeyGenerator

if TYPE_CHECKING:
    from akv.tokens.redis import RedisTokens

Sessions = async_sessionmaker[AsyncSession]
Looking = Callable[[], Awaitable[dict[str, Look]]]
_CALLERS = 64


async def demo(database: str | None, *, redis: str | None = None, orders: int, console: Console | None = None) -> None:
    """
    Run the demo.

    Args:
        database: URL of a database; None: a new SQLite file, deleted at the end.
        redis: URL of a Redis to keep tokens in; None: they live in the database, if it is SQLite.
        orders: How many orders the shop has, at least 1.
        console: Where to print; None: standard output.

    Raises:
        AKVError: The database or Redis cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="akv-demo-") as folder:
        url = database or f"sqlite+aiosqlite:///{Path(folder) / 'shop.db'}"
        await _Demo(url, redis, orders, console or Console()).run()


class _Demo:
    def __init__(self, url: str, redis: str | None, orders: int, console: Console) -> None:
        self._url = url
        self._redis = redis
        self._orders = orders
        self._console = console
        self._engine: AsyncEngine = create_async_engine(parse_url(url)[0])
        self._sessions: Sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def run(self) -> None:
        """Run the chapters on one open shop."""
        try:
            async with AsyncExitStack() as open_:
                on_redis = await open_.enter_async_context(open_redis(self._redis)) if self._redis else None
                await open_.enter_async_context(open_shop(self._engine, self._orders))
                kv = await open_.enter_async_context(AsyncKVAlchemy(self._url, table="akv_demo_kv"))
                self._title(f"akv demo: {USERS} users, {self._orders} orders on {self._engine.dialect.name}")
                await kv.clear()
                await self._values(kv)
                await self._within(kv)
                await self._memoize(kv)
                await (self._tokens() if on_redis is None else self._tokens_on_redis(*on_redis))
                await self._drop(kv)
        finally:
            await self._engine.dispose()

    async def _values(self, kv: AsyncKVAlchemy) -> None:
        self._title("1. Values: set, get, expire, tags")
        await kv.set("theme", {"dark": True}, tag="user 1")
        await kv.set("code", 4711, tag="user 1", expire=0.2)
        self._row('get("theme", tag="user 1")', await kv.get("theme", tag="user 1"))
        self._row('get("code", tag="user 1")', await kv.get("code", tag="user 1"))
        await asyncio.sleep(0.25)
        self._row("  the same, 0.25 s later", await kv.get("code", "expired", tag="user 1"))
        self._row(
            'incr("visits") by 100 tasks at once', (await asyncio.gather(*[kv.incr("visits") for _ in range(100)]))[-1]
        )
        self._row("tags()", [tag async for tag in kv.tags()])
        self._row('delete_tag("user 1")', await kv.delete_tag("user 1"))

    async def _within(self, kv: AsyncKVAlchemy) -> None:
        self._title("2. One transaction: an order, and the entry about it")
        async with self._sessions.begin() as session:
            order = Order(id=self._orders + 1, user_id=1, total=Decimal("9.90"))
            session.add(order)
            await kv.within(session).set("last-order", order.id)
        self._row("committed: last-order", await kv.get("last-order"))
        try:
            async with self._sessions.begin() as session:
                session.add(Order(id=self._orders + 2, user_id=1, total=Decimal("5.00")))
                await kv.within(session).set("last-order", self._orders + 2)
                raise _ChangedMind
        except _ChangedMind:
            self._row("rolled back: last-order", await kv.get("last-order"))

    async def _memoize(self, kv: AsyncKVAlchemy) -> None:
        self._title("3. A memoized coroutine")

        @kv.memoize(expire=60)
        async def ranking(top: int) -> list[tuple[str, Decimal]]:
            spent: Counter[str] = Counter()
            async with self._sessions() as session:
                orders = select(Order).options(joinedload(Order.user))
                async for order in await session.stream_scalars(orders):
                    spent[order.user.name] += order.total  # type: ignore[assignment]  # a Decimal counts as well
            return [(name, Decimal(total)) for name, total in spent.most_common(top)]

        await ranking.cache_clear()
        cold = await self._timed(lambda: asyncio.gather(*[ranking(3) for _ in range(_CALLERS)]))
        warm = await self._timed(lambda: ranking(3))
        fills = ranking.cache_info().fills
        self._row(f"{_CALLERS} callers at once, nothing kept yet", f"{cold * 1000:.1f} ms, computed {fills} time")
        self._row("the next call", f"{warm * 1000:.1f} ms: {(cold - warm) * 1000:.1f} ms saved")

    async def _tokens(self) -> None:
        self._title("4. A commit makes exactly the right keys miss, a rollback none")
        if self._engine.dialect.name != "sqlite":
            self._console.print("   here tokens live in Redis: run the demo with --redis to see them")
            return
        tokens = DatabaseTokens(self._url)
        binding = bind(self._sessions, tokens)
        try:
            await self._watch(Reader(self._sessions, CacheKeyGenerator(tokens)).look)
        finally:
            await binding.unbind()
            await tokens.aclose()

    async def _tokens_on_redis(self, place: Place, tokens: RedisTokens) -> None:
        self._title("4. In another process: a commit makes the right keys miss, a rollback none")
        binding = bind(self._sessions, tokens)
        try:
            await until_shared(self._sessions, tokens)
            async with neighbour(self._url, place) as other:
                await self._watch(other.look)
                self._row("who commits, and who looks", f"processes {os.getpid()} and {other.pid}")
        finally:
            await binding.unbind()

    async def _watch(self, look: Looking) -> None:
        before = await look()
        async with self._sessions() as session:
            await self._rename(session, "never seen")
            await session.rollback()
        rolled_back = await look()
        async with self._sessions.begin() as session:
            await self._rename(session, "Ada")
        returned = time.perf_counter()
        committed = await look()
        took = time.perf_counter() - returned

        table = Table(
            "the key of", "user 1 renamed, rolled back", "user 1 renamed, committed", box=None, padding=(0, 3)
        )
        for name in before:
            table.add_row(name, _verdict(rolled_back[name]), _verdict(committed[name]))
        self._console.print(table)
        names = " -> ".join(repr(each["user 1"].value) for each in (before, rolled_back, committed))
        self._row("user 1, through the cache", names)
        self._row("all that, after commit() had returned", f"{took * 1000:.1f} ms")

    async def _rename(self, session: AsyncSession, name: str) -> None:
        user = await session.get_one(User, 1)
        user.name = name
        await session.flush()

    async def _drop(self, kv: AsyncKVAlchemy) -> None:
        async with self._engine.begin() as connection:
            await connection.run_sync(table_of(kv.model).metadata.drop_all)

    async def _timed(self, call: Callable[[], Awaitable[Any]]) -> float:
        started = time.perf_counter()
        await call()
        return time.perf_counter() - started

    def _title(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    def _row(self, what: str, value: object) -> None:
        self._console.print(f"   {what:<42}", repr(value) if not isinstance(value, str) else value, highlight=False)


class _ChangedMind(Exception):  # noqa: N818 -- a customer, not an error
    pass


def _verdict(look: Look) -> str:
    return "[green]hit[/green]" if look.hit else "[red]miss[/red]"
