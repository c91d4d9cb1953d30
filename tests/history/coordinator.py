"""
One round: processes are kept alive, things go wrong, and every record is judged as soon as none before it can come.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from akv.tokens.rules import Private
from tests.history import auditor, board, cache, worker
from tests.history.akvsystem import REASONS
from tests.history.arena import Arena
from tests.history.auditor import AuditSpec
from tests.history.check import Checker
from tests.history.faults import Faults
from tests.history.log import LogReader, LogWriter, Record, now
from tests.history.rows import LABELS, ROWS
from tests.history.systems import AKV, Spec
from tests.history.worker import WITHIN
from tests.history.zygote import Zygote

POLL = 0.05
LONGEST_END = 20.0
HEALED = 400
"""So many reads without anything in their way are proof enough, for each subject is among them."""
LONGEST_HEALING = 40 * 10**9
BLOCKING = frozenset(map(REASONS.index, (Private.MARKED, Private.EPOCH)))


@dataclass(frozen=True)
class Settings:
    """
    What a round is like.

    Attributes:
        seconds: How long it lasts.
        processes: How many workers.
        algorithm: What is on trial.
        faults: What may go wrong, by name.
        ablation: A rule that is switched off.
        calm: Watch in the end whether everything heals.
        stop_at_violation: End the round when there is nothing left to prove.
        pace: Mean number of hits from one fault outside of the workers to the next of a group of five.
        counts: How often each fault happened before.
        options: For the workers.
    """

    seconds: float
    processes: int = 4
    algorithm: str = AKV
    faults: tuple[str, ...] = ()
    ablation: str = ""
    stop_at_violation: bool = False
    calm: bool = True
    pace: int = 700
    counts: Mapping[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Life:
    """A process that runs, and its log."""

    pid: int
    log: LogReader
    role: Any
    spec: Any
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Round:
    """
    Attributes:
        checker: What was found.
        seconds: How long it took in the end.
        deaths: Processes that ended before their time, by role.
        stuck: What stood in the way of readers for good.
        trace: The records of the last seconds, for whoever looks for a cause.
    """

    def __init__(self, arena: Arena, zygote: Zygote, folder: Path, settings: Settings, seed: int) -> None:
        self.arena = arena
        self.settings = settings
        self.checker = Checker(ROWS, LABELS, BLOCKING)
        self.random = random.Random(seed)
        self.lives: dict[int, Life] = {}
        self.deaths: Counter[str] = Counter()
        self.seconds = 0.0
        self.stuck = ""
        self.trace: list[Record] = []
        self._zygote = zygote
        self._folder = folder
        self._seed = seed
        self._finished: list[Life] = []
        self._held: list[Record] = []
        board.create(folder / "board")
        cache.create(folder / "cache")
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        self.board = board.Board(folder / "board")
        self._own_log = LogReader(folder / "coordinator.log", 99)
        self.log = LogWriter(folder / "coordinator.log")
        outside = {name: settings.counts.get(name, 0) for name in settings.faults if name not in WITHIN}
        self.faults = Faults(arena, self.log, self.random, outside, self.checker, settings.pace)

    async def run(self) -> Checker:
        """Let it happen, and return the verdict."""
        began = now()
        await self.arena.prepare(self.settings.processes)
        for slot in range(self.settings.processes):
            self._start_worker(slot)
        self._start(98, auditor.main, AuditSpec(self._folder, self.arena.direct_url, self._folder / "auditor.log"))
        failing = asyncio.get_running_loop().create_task(self.faults.run())
        try:
            await self._watch(failing)
            await self._stop(failing)
            if self.settings.calm and not self._is_proven:
                await self._watch_healing()
        finally:
            failing.cancel()
            await self._end()
            await self.faults.heal()
            await self.arena.finish()
        self.checker.finish()
        self.seconds = (now() - began) / 1e9
        return self.checker

    async def _watch(self, failing: asyncio.Task[None]) -> None:
        until = now() + int(self.settings.seconds * 1e9)
        while now() < until and not (self._is_proven or _has_failed(failing)):
            await asyncio.sleep(POLL)
            self._judge()

    async def _stop(self, failing: asyncio.Task[None]) -> None:
        """Let nothing go wrong any more."""
        failing.cancel()
        with suppress(asyncio.CancelledError):
            await failing
        await self.faults.heal()

    async def _watch_healing(self) -> None:
        """Let readers go on alone until nothing is in their way."""
        self.board.calm_down()
        until = now() + LONGEST_HEALING
        self.checker.unblocked = 0
        while self.checker.unblocked < HEALED:
            if now() > until:
                self.checker.violations["stuck"] += 1
                self.stuck = await self.arena.describe()
                return
            await self.faults.heal()  # whoever was about to prepare a transaction has done so
            await asyncio.sleep(POLL)
            self._judge()

    @property
    def _is_proven(self) -> bool:
        return self.settings.stop_at_violation and bool(self.checker.violations)

    # --- processes

    def _start_worker(self, slot: int) -> None:
        edges = self.arena.edges(slot)
        options = {"processes": self.settings.processes, "namespace": f"h{self._seed}", **self.settings.options}
        spec = Spec(
            slot=slot,
            life=0,
            seed=self._seed,
            folder=self._folder,
            database=self.arena.database,
            url=edges.database,
            redis=edges.redis,
            algorithm=self.settings.algorithm,
            faults=self.settings.faults,
            ablation=self.settings.ablation,
            options=options,
        )
        self._start(slot, worker.main, spec)

    def _start(self, slot: int, role: Any, spec: Any) -> None:
        log = LogReader(spec.log, slot)
        pid = self._zygote.fork(role, spec)
        life = self.lives[slot] = Life(pid, log, role, spec)
        loop = asyncio.get_running_loop()
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:  # nothing is left of who has ended already
            loop.call_soon(self._ended, slot, life)
        else:
            loop.add_reader(watched, self._ended, slot, life, watched)

    def _ended(self, slot: int, life: Life, watched: int | None = None) -> None:
        """Take note of the end of a process, and start the next in its slot."""
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)
        life.ended.set()
        self._finished.append(life)
        if not self.board.stopping:
            self.deaths[life.role.__module__.rpartition(".")[2]] += 1
            self._start(slot, life.role, replace(life.spec, life=life.spec.life + 1))

    async def _end(self) -> None:
        """Let everybody finish, and kill who does not."""
        self.board.stop()
        lives = list(self.lives.values())
        waiting = [asyncio.ensure_future(life.ended.wait()) for life in lives]
        _, late = await asyncio.wait(waiting, timeout=LONGEST_END)
        for life in lives:
            if not life.ended.is_set():
                self.deaths["late"] += 1
                with suppress(ProcessLookupError):
                    os.kill(life.pid, signal.SIGKILL)
        if late:
            await asyncio.wait(late)
        self._judge(last=True)

    # --- records

    def _judge(self, *, last: bool = False) -> None:
        """Give the checker what is complete: nothing that ended earlier may come later."""
        self.log.beat()
        finished, self._finished = self._finished, []
        logs = [life.log for life in self.lives.values() if life not in finished]
        self._held += self._own_log.read()
        for log in logs:
            self._held += log.read()
        for life in finished:
            self._held += life.log.read()
            life.log.close()
        until = min((log.until for log in (*logs, self._own_log)), default=0)
        ready = self._held if last else [record for record in self._held if record.end <= until]
        self._held = [] if last else [record for record in self._held if record.end > until]
        self.checker.take(ready)
        self._keep(ready)

    def _keep(self, records: list[Record]) -> None:
        """Keep what led to the first violation, and what followed at once."""
        examples = self.checker.examples
        if not examples or examples[0].record.end + 10**9 > now():
            self.trace += records
            del self.trace[: max(0, len(self.trace) - 100_000)]


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and task.exception() is not None
