"""
Tokens in this process: announcements and what resolves them, with a door at every step where a test may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

from sqlalchemy import Engine

from akv.tokens.backend import Announcement, Unreachable
from akv.tokens.drivers import Driver
from akv.tokens.rules import Epoch, Record, Seen, Token, mark, resolve, stamp_of
from akv.tokens.things import touched_by_thing

EPOCH = Epoch("epoch", "run", active=True)


class Door:
    """Open unless it is shut; tells when somebody has arrived."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self._is_open = asyncio.Event()
        self._is_open.set()

    def shut(self) -> None:
        self.arrived.clear()
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    async def __call__(self) -> None:
        self.arrived.set()
        await self._is_open.wait()


class RecordingTokens:
    """
    What RedisTokens do, without Redis: a backend for what surrounds it.

    Attributes:
        announced: The change sets that were announced, in order.
        resolved: The marks that were resolved, in order.
        refusal: Raised instead of announcing.
        unreachable: Whether reads fail.
        at_gate: In front of W2.
        at_mark: In front of W3.
        marked: Behind W3.
        at_resolve: In front of W5.
        freshened: How often the stamp was asked to be fresh.
        steps: What happened, word by word.
    """

    in_snapshot = False

    def __init__(self) -> None:
        self.stamp: Token | None = Token(EPOCH.id, 0)
        self.announced: list[set[str]] = []
        self.resolved: list[str] = []
        self.bumped: list[set[str]] = []
        self.refusal: BaseException | None = None
        self.unreachable = False
        self.at_gate, self.at_mark, self.marked, self.at_resolve = Door(), Door(), Door(), Door()
        self.freshened = 0
        self.looks = 0
        self.attached: list[Engine] = []
        self.prepared: list[Engine] = []
        self.steps: list[str] = []
        self.epoch: Epoch | None = EPOCH
        self._seq = 0
        self._records: dict[str, Record] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._marks = count(1)

    # --- the face of a backend

    def check_engine(self, engine: Engine) -> None: ...

    def attach(self, engine: Engine) -> None:
        self.attached.append(engine)

    def detach(self, engine: Engine) -> None:
        self.attached.remove(engine)

    async def prepare(self, driver: Driver, engine: Engine) -> None:
        self.prepared.append(engine)
        await driver.fetch("SELECT 1")

    async def freshen(self) -> None:
        self.freshened += 1
        self.learn(self._seen(()))

    async def announce(self, driver: Driver, engine: Engine, changed: Collection[str]) -> Announcement | None:
        assert engine in self.attached or engine in self.prepared
        await self.at_gate()
        await driver.fetch("SELECT 1")  # whatever a gate does, it does in the transaction
        await self.at_mark()
        if self.refusal is not None:
            raise self.refusal
        name = f"mark {next(self._marks)}"
        self._put(mark(self._seen(changed), name, EPOCH), changed)
        self.announced.append(set(changed))
        self.steps.append("mark")
        await self.marked()
        return Announcement(name, tuple(sorted(changed)))

    def resolve(self, announcement: Announcement) -> asyncio.Task[None]:
        self.steps.append("resolve begins")
        task = asyncio.get_running_loop().create_task(self._resolve(announcement))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def look(self, identifiers: Sequence[str], driver: Driver | None = None) -> Seen:
        self.looks += 1
        await asyncio.sleep(0)
        if self.unreachable:
            raise Unreachable("as the test wants it")
        seen = self._seen(identifiers)
        self.learn(seen)
        return seen

    def learn(self, seen: Seen) -> None:
        self.stamp = stamp_of(seen) or self.stamp

    async def read(self, identifiers: Sequence[str]) -> Mapping[str, str]:
        return {name: str(self._records.get(name)) for name in identifiers}

    async def bump(self, identifiers: Sequence[str]) -> None:
        self.bumped.append(set(identifiers))
        self._put(resolve(self._seen(identifiers)), identifiers)

    async def touch(self, *things: Any) -> None:
        await self.bump(sorted({name for thing in things for name in touched_by_thing(thing)}))

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def aclose(self) -> None:
        self.open_doors()
        await self.drain()

    # --- for tests

    def open_doors(self) -> None:
        """Let everybody through who waits, so that a test that fails does not hang."""
        for door in (self.at_gate, self.at_mark, self.marked, self.at_resolve):
            door.open()

    @property
    def marks(self) -> set[str]:
        """Every mark that stands somewhere."""
        return {each for record in self._records.values() for each in record.marks}

    def changes(self) -> set[str]:
        """Return everything that was announced, and start over."""
        changed = {name for names in self.announced for name in names}
        self.announced.clear()
        return changed

    async def _resolve(self, announcement: Announcement) -> None:
        await self.at_resolve()
        self._put(resolve(self._seen(announcement.records), announcement.mark), announcement.records)
        self.resolved.append(announcement.mark)
        self.steps.append("resolved")

    def _seen(self, identifiers: Collection[str]) -> Seen:
        records = tuple(self._records.get(name, Record(EPOCH.id, 0, ())) for name in identifiers)
        return Seen("run", self.epoch, self._seq, records)

    def _put(self, seen: Seen, identifiers: Collection[str]) -> None:
        self._seq = seen.seq
        self._records.update(zip(identifiers, seen.records, strict=True))
