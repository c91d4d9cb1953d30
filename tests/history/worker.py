"""
One process that reads and writes until it is told to stop, or killed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable

import uvloop
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from akv.errors import TokenError
from tests.history import akvsystem, ancestor, steps
from tests.history.board import Board
from tests.history.cache import Cache
from tests.history.faults import STRICT_WITH_OUTBOX, names_for
from tests.history.log import LogWriter
from tests.history.reads import Reader
from tests.history.steps import Plan
from tests.history.systems import AKV, ANCESTOR, OUTBOX, SQLITE, Spec, System
from tests.history.writes import SAVEPOINT, SERIALIZATION, Writer

POOL_OF_ONE = "pool of one"
STALLED_READER = "stall reader"
WITHIN = (*steps.AT_STEPS, POOL_OF_ONE, SAVEPOINT, SERIALIZATION, STALLED_READER)
"""Faults that workers make themselves."""


def faults_for(database: str, algorithm: str = AKV) -> tuple[str, ...]:
    """Return everything that can go wrong, or that must not matter to what is on trial."""
    if database == SQLITE:
        return tuple(fault for fault in WITHIN if not fault.endswith("W2"))  # no gate
    if algorithm == OUTBOX:
        return (*WITHIN, *STRICT_WITH_OUTBOX)
    return (*WITHIN, *names_for(database))


EXPECTED = (DBAPIError, PoolTimeoutError, OSError, TimeoutError, TokenError)
"""What a user must reckon with while servers fail; anything else is counted as unexpected and printed."""
_DRIVERS = ("asyncpg", "psycopg", "asyncmy", "aiosqlite", "sqlite3", "uvloop")
"""Their own errors come through SQLAlchemy as they are while it connects, or while a connection breaks."""

READERS = 16
WRITERS = 3
POOL = 12
READS_PER_WRITE = 180
READS_PER_PLAN = 400
"""In one process, in the mean: how often it writes, and how often something happens to a write."""
LONGEST_THOUGHT = 1.0
_PRINTED = 3


def main(spec: Spec) -> None:
    """Live one life."""
    warnings.simplefilter("ignore")
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    runner = uvloop.run if spec.slot % 2 else asyncio.run
    runner(Worker(spec).run())


class Worker:
    """
    Attributes:
        alone: Whether its engine has one connection only.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.random = spec.random
        self.log = LogWriter(spec.log)
        self.board = Board(spec.folder / "board")
        self.alone = POOL_OF_ONE in spec.faults and self.random.random() < 0.3
        self._printed: Counter[str] = Counter()
        self._reads = 0
        self._due = 0
        self._next_plan = self._reads_until_plan()
        steps.JITTER.chance, steps.JITTER.longest = spec.options.get("jitter", (0.0, 0.0))
        self._plans = [fault for fault in spec.faults if fault in steps.AT_STEPS]

    async def run(self) -> None:
        readers, writers, pool = (3, 2, 1) if self.alone else (READERS, WRITERS, POOL)
        system = await self._system(pool)
        try:
            reader, writer = self._roles(system)
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat())
                loops = [group.create_task(self._read(reader.read)) for _ in range(readers)]
                loops += [group.create_task(self._write(writer)) for _ in range(writers)]
                await asyncio.wait(loops)
                beating.cancel()
        finally:
            await system.close()

    async def _system(self, pool: int) -> System:
        make: Callable[..., Awaitable[System]] = (
            ancestor.create if self.spec.algorithm == ANCESTOR else akvsystem.create
        )
        system = await make(self.spec, pool, self.log)
        steps.watch_commits(system.engine, self.log)
        return system

    def _roles(self, system: System) -> tuple[Reader, Writer]:
        spec = self.spec
        cache = Cache(spec.folder / "cache")
        reader = Reader(system, spec, self.log, cache, self.board, self.random)
        writer = Writer(system, spec, reader, self.log, self.board, self.random, alone=self.alone)
        return reader, writer

    async def _read(self, read: Callable[[], Awaitable[None]]) -> None:
        while not self.board.stopping:
            self._reads += 1
            if not await self._tried("read", read):
                await asyncio.sleep(0.02)
            # A hit may not have waited for anything; others have their turn.
            await asyncio.sleep(0)

    async def _write(self, writer: Writer) -> None:
        while not self.board.stopping:
            await self._think()
            if self.board.is_calm:
                continue
            plan = self._plan()
            if await self._tried("write", lambda plan=plan: writer.write(plan)) and self.alone:  # type: ignore[misc]
                self.log.fault(POOL_OF_ONE)

    async def _think(self) -> None:
        """Wait for some reads, for writes and faults come with reads: a slow machine must not see nothing else."""
        self._due += self.random.randrange(2 * self.spec.options.get("reads_per_write", READS_PER_WRITE))
        mine, until = self._due, time.monotonic() + LONGEST_THOUGHT
        while self._reads < mine and time.monotonic() < until:
            await asyncio.sleep(0.005)
        self._due = max(self._due, self._reads)

    def _reads_until_plan(self) -> int:
        return self._reads + self.random.randrange(2 * self.spec.options.get("reads_per_plan", READS_PER_PLAN))

    def _plan(self) -> Plan | None:
        if not self._plans or self._reads < self._next_plan:
            return None
        self._next_plan = self._reads_until_plan()
        action, step = self.random.choice(self._plans).split()
        return Plan(action, step, self.log, random.Random(self.random.random()))

    async def _tried(self, what: str, operation: Callable[[], Awaitable[None]]) -> bool:
        try:
            await operation()
        except Exception as error:
            if _is_expected(error):
                self.log.count(f"{what}: {self._words_for(error)}")
            else:
                self._report(what, error)
            return False
        return True

    def _words_for(self, error: Exception) -> str:
        """Return the kind of an error, and what it says if somebody looks for causes."""
        name = type(error).__name__
        return f"{name}: {str(error).splitlines()[0][:120]}" if self.spec.options.get("notes") and str(error) else name

    def _report(self, what: str, error: Exception) -> None:
        name = f"unexpected in {what}: {type(error).__name__}"
        self.log.count(name)
        self._printed[name] += 1
        if self._printed[name] <= _PRINTED:
            print(f"slot {self.spec.slot}, life {self.spec.life}: {name}", file=sys.stderr)
            traceback.print_exception(error)
            sys.stderr.flush()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.log.beat()


def _is_expected(error: Exception) -> bool:
    return isinstance(error, EXPECTED) or _raised_by(error) in _DRIVERS


def _raised_by(error: Exception) -> str:
    """Return the package that an error began in."""
    *_, innermost = traceback.walk_tb(error.__traceback__)
    name = type(error).__module__.partition(".")[0]
    return name if name in _DRIVERS else str(innermost[0].f_globals.get("__name__", "")).partition(".")[0]
