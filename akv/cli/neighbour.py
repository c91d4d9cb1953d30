"""
The second process of the demo: it reads the shop through a cache of its own, and shares nothing but Redis.

It is told on standard input what to work on, then answers a look to every line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from akv.cli.reader import Look, Reader
from akv.cli.redis import Place, tokens_in
from akv.errors import AKVError, TokenError
from akv.store.engines import parse_url
from akv.tokens.binding import bind
from akv.tokens.keygen import CacheKeyGenerator

_PATIENCE = 30.0


class Neighbour:
    """
    The other end: the process as this one sees it.

    Attributes:
        pid: Its id.
    """

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._process = process

    async def tell(self, line: str) -> None:
        """Write a line to it."""
        assert self._process.stdin is not None  # noqa: S101 -- it is a pipe
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def look(self) -> dict[str, Look]:
        """
        Let it look at everything.

        Raises:
            TokenError: It has ended; it says itself why.
        """
        assert self._process.stdout is not None  # noqa: S101 -- it is a pipe
        try:
            await self.tell("look")
            async with asyncio.timeout(_PATIENCE):
                answer = await self._process.stdout.readline()
        except (ConnectionError, TimeoutError):
            answer = b""
        if not answer:
            raise TokenError("the second process of the demo does not answer; what it said is above")
        return {name: Look(*look) for name, look in json.loads(answer).items()}


@asynccontextmanager
async def neighbour(database: str, place: Place) -> AsyncIterator[Neighbour]:
    """
    Start the second process, and end it.

    Args:
        database: The URL of the shop.
        place: Where the tokens are.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *(f"-W{each}" for each in sys.warnoptions), "-m", __name__),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which ends that one
    )
    try:
        other = Neighbour(process)
        await other.tell(json.dumps([database, *place]))  # not as arguments, which everybody can see
        yield other
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    assert process.stdin is not None  # noqa: S101 -- it is a pipe
    process.stdin.close()
    try:
        async with asyncio.timeout(_PATIENCE):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def _work(database: str, *place: str) -> None:
    engine = create_async_engine(parse_url(database)[0])
    tokens = tokens_in(Place(*place))
    binding = bind(engine, tokens)
    reader = Reader(async_sessionmaker(engine), CacheKeyGenerator(tokens))
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await reader.look()), flush=True)
    finally:
        await binding.unbind()
        await tokens.aclose()
        await engine.dispose()


if __name__ == "__main__":
    try:
        asyncio.run(_work(*json.loads(sys.stdin.readline())))
    except AKVError as error:
        sys.exit(f"akv, the second process: {error}")
