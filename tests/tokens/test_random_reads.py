"""
Random reads in a recording, random writes elsewhere: a write that makes the reads show something else is one of theirs.

Each round computes a value in a recording, lets somebody write, and computes it
again. If it became another, what the write announced must meet what the
recording says. The reverse - announced, and yet the same - is counted: it is the
price of not knowing better.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from akv.tokens.identifiers import canonical_vector
from akv.tokens.reads import Reads, recording
from tests.backends import Backend
from tests.tokens.read_kinds import READS, WRITES
from tests.tokens.reading import VIEWS
from tests.tokens.site import Site, site

pytestmark = [
    pytest.mark.backends(exclude=("sqlite-memory", "postgres18-asyncpg")),
    pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:SELECT statement has a cartesian product:sqlalchemy.exc.SAWarning"),
]

Step: TypeAlias = tuple[str, int, int]

OFTEN = ["rename user", "user", "move order", "change order", "order", "core user", "text", "tag user"]
"""Writes of the tables that most reads are about."""

WRITES_PER_VALUE = 12
"""What a value may live through; fewer if one changes it."""


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend, fresh=True) as app:
        await app.run(*VIEWS)
        yield app


@dataclass
class Tally:
    """How often what happened."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    changed: int = 0
    in_vain: int = 0

    def __str__(self) -> str:
        same = self.rounds - self.changed
        return (
            f"{self.rounds} writes, {self.changed} values changed, all of them invalidated; "
            f"of {same} that did not, {self.in_vain} were ({self.in_vain / max(same, 1):.0%}); "
            f"rarest read {min(self.reads.values())} times"
        )


class Program:
    """Rounds of one seed on one application."""

    def __init__(self, app: Site, seed: int) -> None:
        self.app = app
        self.random = random.Random(seed)
        self.tally = Tally()

    async def round(self, name: str) -> None:
        steps = [self._step(name), *(self._step() for _ in range(self.random.choice((0, 0, 1, 2))))]
        reads, value = await self._compute(steps)
        assert reads.unattributed is None, (steps, reads.unattributed)
        assert await self._value(steps) == value
        self.tally.reads.update(step[0] for step in steps)
        vector = set(canonical_vector(sorted(reads.identifiers)))
        for _ in range(WRITES_PER_VALUE):
            write, announced = await self._write(steps)
            again = await self._value(steps)
            met = not announced.isdisjoint(vector)
            assert met or again == value, (self.app.dialect, steps, write, vector, announced, value, again)
            self.tally.rounds += 1
            self.tally.in_vain += met and again == value
            if again != value:
                self.tally.changed += 1
                return

    def _step(self, name: str | None = None) -> Step:
        return name or self.random.choice(list(READS)), self.random.randint(1, 6), self.random.randint(1, 6)

    async def _compute(self, steps: list[Step]) -> tuple[Reads, list[Any]]:
        """Compute in a session of its own, or in one from outside that has loaded something before and keeps it."""
        async with AsyncSession(self.app.engine, expire_on_commit=False) as session:
            kept: list[Any] = []
            event.listen(session.sync_session, "loaded_as_persistent", lambda _, instance: kept.append(instance))
            if self.random.random() < 0.5:
                before = [self._step() for _ in range(3)] + [step for step in steps if self.random.random() < 0.7]
                await session.run_sync(lambda s: [READS[name](s, a, b) for name, a, b in before])
                if self.random.random() < 0.5:
                    await session.commit()
            with recording(self.app.tokens) as reads:
                value = await session.run_sync(lambda s: [READS[name](s, a, b) for name, a, b in steps])
            return reads, value

    async def _value(self, steps: list[Step]) -> list[Any]:
        async with AsyncSession(self.app.engine) as session:
            return await session.run_sync(lambda s: [READS[name](s, a, b) for name, a, b in steps])

    async def _write(self, reads: list[Step]) -> tuple[list[Step], set[str]]:
        """Write something, in one transaction; return what was announced."""
        self.app.tokens.changes()
        while True:
            steps = [self._write_step(reads) for _ in range(self.random.choice((1, 1, 2)))]
            async with AsyncSession(self.app.engine) as session:
                try:
                    await session.run_sync(lambda s, todo=steps: [WRITES[name](s, a, b) for name, a, b in todo])  # type: ignore[misc]
                    await session.commit()
                except (exc.IntegrityError, StaleDataError, exc.SAWarning):  # such a warning: two rows of one key
                    continue
            self.tally.writes.update(step[0] for step in steps)
            return steps, self.app.tokens.changes()

    def _write_step(self, reads: list[Step]) -> Step:
        """Choose a write, mostly with the numbers of a read, so that it is often about the same rows."""
        _, a, b = self.random.choice(reads)
        if self.random.random() < 0.5:
            a = self.random.randint(1, 6)
        if self.random.random() < 0.5:
            b = self.random.randint(1, 6)
        return self.random.choice([*WRITES, *OFTEN * 4]), a, b


async def drive(app: Site, seed: int, times: int) -> Tally:
    """Run rounds until every kind of read has begun *times* of them."""
    program = Program(app, seed)
    for _ in range(times):
        for name in READS:
            await program.round(name)
    return program.tally


@pytest.mark.parametrize("seed", range(2))
async def test_no_write_changes_a_value_unnoticed(app: Site, seed: int) -> None:
    tally = await drive(app, seed, 4)
    print(app.dialect, tally)
    assert tally.changed > 100
    assert set(tally.reads) == set(READS)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 103))
async def test_every_kind_of_read_a_hundred_times(app: Site, seed: int) -> None:
    tally = await drive(app, seed, 100)
    print(app.dialect, tally)
    assert min(tally.reads[name] for name in READS) >= 100
    assert min(tally.writes[name] for name in WRITES) >= 20
