"""
Does a gate ever say "ended" of a transaction that commits later?

Writers in processes of their own enter and commit, roll back, are killed in
mid-commit, or have their connection ended by the server. For each mark the gate
is asked again and again; once it says "ended", the database is read: whether the
row is there then is whether it is there at the end, or the gate was wrong. And
whoever had entered before a drain was called has ended when it returns.

``python -m tests.tokens.gate_stress URL --transactions 3000 --seed 1``: the URL
of an empty database through an asynchronous driver. Prints counts as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc as sa_exc

from tests.tokens.gate_writers import ENDED
from tests.tokens.gatehouse import House, process

if TYPE_CHECKING:
    from asyncio import StreamReader
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

KILL_EVERY = 0.1


class Stress:
    """
    Attributes:
        counts: What happened.
        wrong: Numbers of transactions of which the gate said "ended" too early.
    """

    def __init__(self, house: House, transactions: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[int] = []
        self._house = house
        self._transactions = transactions
        self._seed = seed
        self._chance = random.Random(seed)
        self._open: dict[str, int] = {}
        self._sessions: list[int] = []
        self._waiting: list[int] = []
        self._said: list[tuple[int, bool]] = []
        self._entered = 0
        self._enough = asyncio.Event()
        self._are_writing = True

    async def run(self) -> None:
        """Let the writers live and die, ask all the time, and compare at the end."""
        async with process("tests.tokens.gate_writers", "many", self._house.url, str(self._seed)) as writers:
            assert writers.stdout is not None
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(writers.stdout))
                group.create_task(self._ask())
                group.create_task(self._drain())
                if self._house.dialect != "sqlite":
                    group.create_task(self._kill_connections())
                await self._enough.wait()
                os.killpg(writers.pid, signal.SIGKILL)
        await self._house.gate.drain()
        there = await self._house.numbers()
        self.wrong = [n for n, was_there in self._said if was_there != (n in there)]
        self.counts["committed"] = len(there)
        self.counts["wrong"] = len(self.wrong)

    async def _listen(self, output: StreamReader) -> None:
        async for line in output:
            n, mark, session, fate = line.decode().rstrip().split(maxsplit=3)
            self.counts[fate] += 1
            if mark != "-":
                self._open[mark] = int(n)
                (self._waiting if fate == ENDED else self._sessions).append(int(session))
                self._entered += 1
            if self._entered == self._transactions:
                self._enough.set()
        self._are_writing = False

    async def _ask(self) -> None:
        while self._are_writing or self._open:
            await self._ask_once()
            await asyncio.sleep(0.001)

    async def _ask_once(self) -> None:
        asked = dict(self._open)
        ended = await self._house.gate.ended(asked)
        await self._note({asked[mark] for mark in ended})
        for mark in ended:
            del self._open[mark]
        self.counts["said ended"] += len(ended)
        self.counts["said can still commit"] += len(asked) - len(ended)

    async def _drain(self) -> None:
        while self._are_writing:
            before = set(self._open.values())
            await self._house.gate.drain()
            await self._note(before)
            self.counts["drained"] += 1
            await asyncio.sleep(0.02)

    async def _note(self, ended: set[int]) -> None:
        """Note what the database shows of transactions of which it was said that they have ended."""
        if ended:
            there = await self._house.numbers()
            self._said += [(n, n in there) for n in ended]

    async def _kill_connections(self) -> None:
        """End connections whose transactions have just entered: those that wait for it, and others that are there."""
        while self._are_writing:
            await asyncio.sleep(self._chance.random() * 2 * KILL_EVERY)
            for session in (*self._waiting, *self._sessions[-1:]):
                with suppress(sa_exc.DBAPIError):  # it has gone by itself
                    self._house.kill(session)
                    self.counts["connections killed"] += 1
            self._waiting.clear()


class KeptConnection:
    """Asks on one connection, so that many more questions meet a transaction on its way."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        async with self._turn:
            if self._connection is None:
                self._connection = await self._engine.connect()
            return await work(self._connection)

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def keep_connection(house: House) -> None:
    gate: Any = house.gate
    gate._own = KeptConnection(house.engine)


async def main(url: str, transactions: int, seed: int) -> Counter[str]:
    house = House(url)
    await house.create()
    keep_connection(house)
    stress = Stress(house, transactions, seed)
    await stress.run()
    await house.close()
    return stress.counts


def _arguments() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--transactions", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    return vars(parser.parse_args())


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(**_arguments()))))
