"""
Writers in processes of their own, which enter the gate and end in every way there is.

``hang URL``: one enters, prints its mark, and waits to be killed.
``many URL SEED``: a warm process forks writers without end; each prints ``number mark session fate`` once it has
entered, and meets its fate.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from itertools import count

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.tokens.gates import mariadb
from tests.tokens.gatehouse import House

ENDED = "is ended"
FATES = ("commits", "rolls back", "dies", "dies in commit", "dies soon", "is slow")
"""What a writer does itself; :data:`ENDED` waits for the server."""
LONGEST = 30.0
AT_ONCE = 3
TRANSACTIONS_EACH = 4


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def hang(url: str) -> None:
    house = House(url)
    async with house.writer(1) as writer:
        say(await writer.enter())
        await asyncio.sleep(60)


async def live(url: str, numbers: range, seed: int) -> None:
    """Go through transactions, until one is the last."""
    house = House(url)
    chance = random.Random(seed)
    for n in numbers:
        try:
            async with house.writer(n) as writer:
                session = await writer.session()
                fate = chance.choice((*FATES, ENDED) if session else FATES)
                say(f"{n} {await writer.enter()} {session} {fate}")
                await asyncio.sleep(chance.random() / 100)
                await meet(fate, writer.connection, chance)
        except Exception as error:  # the backend was killed; a driver's own or SQLAlchemy's
            say(f"{n} - - {type(error).__name__}")
            return


async def meet(fate: str, connection: AsyncConnection, chance: random.Random) -> None:
    if fate == "dies":
        die()
    if fate == ENDED:
        async with asyncio.timeout(LONGEST):
            while True:
                await connection.execute(text("SELECT 1"))
                await asyncio.sleep(0.005)
    if fate == "rolls back":
        await connection.rollback()
        return
    if fate == "is slow":
        await asyncio.sleep(0.05)
    committing = asyncio.ensure_future(connection.commit())
    if fate == "dies in commit":
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        die()
    if fate == "dies soon":
        await asyncio.sleep(chance.random() / 500)
        die()
    await committing


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def many(url: str, seed: int) -> None:
    """Keep some writers alive until somebody kills us all."""
    mariadb._CLEAN_EVERY = 4
    for born in count():
        if born >= AT_ONCE:
            os.wait()
        if not os.fork():
            numbers = range(born * TRANSACTIONS_EACH, (born + 1) * TRANSACTIONS_EACH)
            asyncio.run(live(url, numbers, seed + born))
            os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "hang":
        asyncio.run(hang(sys.argv[2]))
    else:
        many(sys.argv[2], int(sys.argv[3]))
