"""
The demo's tokens in Redis: a namespace of their own, gone at the end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from akv.errors import TokenError
from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN
from akv.tokens.keygen import CacheKeyGenerator
from akv.tokens.redis import RedisTokens

_PATIENCE = 2.0
"""Seconds for what an application gives milliseconds: on a busy machine the story would be another one."""
_UNTIL_SHARED = 30.0


class Place(NamedTuple):
    """Where tokens of the demo are kept."""

    url: str
    namespace: str


def tokens_in(place: Place) -> RedisTokens:
    """
    Make the tokens of one process.

    Raises:
        ConfigurationError: The URL is none, or redis-py is not installed.
    """
    return RedisTokens.from_url(place.url, namespace=place.namespace, read_timeout=_PATIENCE, commit_timeout=_PATIENCE)


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator[tuple[Place, RedisTokens]]:
    """
    Make tokens in a new namespace; close them in the end, and remove what is in there.

    Raises:
        ConfigurationError: The URL is none, redis-py is not installed, or this Redis cannot hold tokens.
        TokenError: Redis does not answer.
    """
    place = Place(url, f"akv_demo_{token_hex(4)}")
    tokens = tokens_in(place)
    try:
        await _ask(tokens, url)
        try:
            yield place, tokens
        finally:
            await tokens.drain()
            await _forget(place)
    finally:
        await tokens.aclose()


async def until_shared(sessions: async_sessionmaker[AsyncSession], tokens: RedisTokens) -> None:
    """
    Wait until keys can be shared: the first transaction of a bound engine makes a new namespace ready for that.

    Raises:
        TokenError: That takes too long.
    """
    async with sessions() as session:
        await session.connection()
    keys = CacheKeyGenerator(tokens)
    try:
        async with asyncio.timeout(_UNTIL_SHARED):
            await _meet_shared(keys)
    except TimeoutError:
        raise TokenError(f"tokens could not be used within {_UNTIL_SHARED:.0f} s: {dict(keys.private)}") from None


async def _meet_shared(keys: CacheKeyGenerator) -> None:
    while True:
        key = await keys(GLOBAL_WRITE_TOKEN)
        if key.shared:
            return
        await asyncio.sleep(0.01)


async def _ask(tokens: RedisTokens, url: str) -> None:
    try:
        await tokens.read([GLOBAL_WRITE_TOKEN])
    except TokenError as error:
        shown = re.sub(r"//[^@/]*@", "//***@", url)
        raise TokenError(
            f"no Redis answers at {shown} ({error.__cause__ or error}): start one (redis-server, or docker run -p "
            "6379:6379 redis), name yours with --redis URL, or run the demo without --redis"
        ) from error


async def _forget(place: Place) -> None:
    from akv.tokens.redis.wire import client_of_url

    client = client_of_url(place.url, {})
    try:
        keys = [key async for key in client.scan_iter(match=f"{{{place.namespace}}}*", count=1000)]
        if keys:
            await client.unlink(*keys)
    except Exception as error:
        raise TokenError(f"Redis does not answer any more ({error}), so keys stay: {{{place.namespace}}}*") from error
    finally:
        await client.aclose(close_connection_pool=True)
