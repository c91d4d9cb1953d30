"""
Rounds on one set of servers, and what became of each.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from akv.tokens.rules import Rule
from tests.history.ablations import TABLE, Ablation
from tests.history.akvsystem import REASONS
from tests.history.arena import Arena
from tests.history.coordinator import Round, Settings
from tests.history.results import RoundResult, code, commit
from tests.history.systems import MARIADB, POSTGRES, SQLITE
from tests.history.trace import last_lines, lines
from tests.history.worker import faults_for
from tests.history.zygote import Zygote

T = TypeVar("T")

_WARM = {
    POSTGRES: (
        *("asyncpg", "psycopg", "redis.asyncio"),
        *("sqlalchemy.dialects.postgresql.asyncpg", "sqlalchemy.dialects.postgresql.psycopg"),
    ),
    MARIADB: ("asyncmy", "pymysql", "sqlalchemy.dialects.mysql.asyncmy", "redis.asyncio"),
    SQLITE: ("aiosqlite", "sqlalchemy.dialects.sqlite.aiosqlite"),
}
_ROOMY = Path("/dev/shm")
_LONGEST_END = 240.0
"""Seconds that a round may take beyond its own: servers that come back, healing, processes that finish."""
_LAST_WORDS = 60.0


def run(database: str, work: Callable[[Trials], Coroutine[Any, Any, T]]) -> T:
    """Run *work* with servers of a kind, in a process that has begun nothing yet."""
    for name in _WARM[database]:
        importlib.import_module(name)
    zygote = Zygote()
    folder = Path(tempfile.mkdtemp(prefix="akv-history-", dir=_ROOMY if _ROOMY.is_dir() else None))

    async def work_on_servers() -> T:
        async with _arena(database, folder) as arena:
            return await work(Trials(arena, zygote, folder))

    try:
        return asyncio.run(work_on_servers())
    finally:
        zygote.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _arena(database: str, folder: Path) -> AsyncIterator[Arena]:
    arena = Arena(database, folder)
    try:
        await arena.start()
        yield arena
    finally:
        await arena.close()


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
    """Say where a round stays that does not end, and end it: by an exception, or else the whole process."""
    faulthandler.dump_traceback_later(seconds + _LAST_WORDS, exit=True)
    async with asyncio.timeout(seconds):
        yield
    faulthandler.cancel_dump_traceback_later()


class Trials:
    """Runs rounds, one after the other."""

    def __init__(self, arena: Arena, zygote: Zygote, folder: Path) -> None:
        self._arena = arena
        self._zygote = zygote
        self._folder = folder
        self._number = 0

    async def round(self, settings: Settings, seed: int) -> RoundResult:
        """Run a round, and print what led to its first violations."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        before = code()
        round_ = Round(self._arena, self._zygote, folder, settings, seed)
        async with _bounded(settings.seconds + _LONGEST_END):
            checker = await round_.run()
        shutil.rmtree(folder)
        if not settings.ablation:
            for example in checker.examples[:3]:
                print(*lines(example, round_.trace), sep="\n", flush=True)
            if round_.stuck:
                print(round_.stuck, *last_lines(round_.trace), sep="\n", flush=True)
        return RoundResult(
            commit=commit(),
            code=before,
            database=self._arena.database,
            servers=self._arena.servers,
            algorithm=settings.algorithm,
            seed=seed,
            seconds=round(round_.seconds, 1),
            reads=checker.reads,
            hits=checker.hits,
            fills=checker.fills,
            bypasses={_reason(number): times for number, times in checker.reasons.items()},
            faults=dict(checker.faults),
            ended=dict(round_.deaths),
            errors=dict(checker.counts),
            violations=dict(checker.violations),
        )

    async def ablation(self, rule: Rule, seconds: float, seed: int, *, control: bool = False) -> RoundResult:
        """Run without a rule until that is caught, or time is over; or, to compare, the same life with it."""
        ablation = TABLE[rule]
        assert isinstance(ablation, Ablation), f"{rule.name}: {ablation}"
        settings = Settings(
            seconds=min(seconds, ablation.seconds),
            algorithm=ablation.algorithm,
            processes=3,
            faults=ablation.faults if control else (*ablation.faults, *ablation.never),
            ablation="" if control else rule.name,
            stop_at_violation=True,
            calm=ablation.calm,
            pace=ablation.pace,
            options={**ablation.options, **({} if control else ablation.breaks)},
        )
        return await self.round(settings, seed)


def settings_for(database: str, algorithm: str, seconds: float, counts: Mapping[str, int], **changes: Any) -> Settings:
    """Return the settings of a round in which everything goes wrong."""
    return Settings(
        seconds=seconds, algorithm=algorithm, faults=faults_for(database, algorithm), counts=dict(counts), **changes
    )


def _reason(number: int) -> str:
    reason = REASONS[number]
    return reason.name.lower() if reason is not None else "unknown"
