"""
How contenders are measured: the same calls, interleaved round by round in one process.

On a machine with noise of its own, absolute figures move several-fold from run
to run while ratios within a round hold; so ratios are taken round by round, and
their median is reported.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import cycle, repeat
from typing import Any, Self

from benchmarks.contenders import Absent, Contender
from benchmarks.places import Place, fill

_KEYS = 65_537
_VALUES = 509
"""Both prime, so that a key which comes again gets another value: MariaDB skips updates that change nothing."""
_VALUES_BYTES = 32 * 2**20
_OPEN_SECONDS = 30.0
_CLOSE_SECONDS = 30.0
_PATIENCE = 120.0
"""Seconds that calls on their way have after a round; who needs more has failed."""

Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """
    What is called.

    Attributes:
        tasks: How many tasks call at once, each as soon as its last call has returned.
        rows: How many entries there are.
        size: Bytes of a value.
        gets: Share of gets; the others are sets.
        hot: 90 % of the calls go to 1 % of the keys, instead of all keys alike.
    """

    tasks: int = 64
    rows: int = 100_000
    size: int = 100
    gets: float = 0.9
    hot: bool = False

    @property
    def title(self) -> str:
        """The case in a line."""
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        mix = {1.0: "only gets", 0.0: "only sets"}.get(self.gets, f"{self.gets:.0%} gets")
        keys = "hot" if self.hot else "uniform"
        return f"{tasks}, {mix}, {self.size:,} B, {self.rows:,} rows, {keys} keys"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured: *rounds* of *seconds* each, after a warm-up; *seed* decides keys and values."""

    rounds: int
    seconds: float
    seed: int

    @property
    def warm_up(self) -> float:
        """Seconds of the round that is thrown away."""
        return min(0.5, self.seconds)


@dataclass(frozen=True, slots=True)
class Round:
    """
    One contender in one round.

    Attributes:
        rate: Calls per second.
        cpu: Microseconds of this process's CPU time per call, all its threads included.
        latencies: p50, p90, p99 and the worst, in milliseconds.
        calls: How many returned.
        errors: How many raised.
        misses: How many gets found nothing.
    """

    rate: float
    cpu: float
    latencies: dict[str, float]
    calls: int
    errors: int
    misses: int


@dataclass(slots=True)
class Outcome:
    """All rounds of one contender, or why there are none."""

    name: str
    title: str
    durability: str = ""
    serializer: str = ""
    setup: str = ""
    absent: str = ""
    failed: str = ""
    first_error: str = ""
    rounds: list[Round] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether there are rounds."""
        return bool(self.rounds) and not self.failed

    def median(self, what: Callable[[Round], float]) -> float:
        """The median over the rounds."""
        return statistics.median(what(one) for one in self.rounds)

    def summary(self) -> dict[str, Any]:
        """What goes into results: the medians, and every round."""
        data: dict[str, Any] = {key: value for key, value in asdict(self).items() if value}
        if self.measured:
            data["rate"] = self.median(lambda one: one.rate)
            data["cpu"] = self.median(lambda one: one.cpu)
            data["latencies"] = {
                name: self.median(lambda one, name=name: one.latencies[name])  # type: ignore[misc]
                for name in self.rounds[0].latencies
            }
        return data


def entries(case: Case, seed: int) -> dict[str, bytes]:
    """Make the entries that a case starts with."""
    chance = random.Random(seed)
    return {key_of(number): chance.randbytes(case.size) for number in range(case.rows)}


def key_of(number: int) -> str:
    """A key as applications have them."""
    return f"user:{number:09d}:profile"


def calls(case: Case, seed: int, convert: Callable[[bytes], Any]) -> Iterator[tuple[str, Any]]:
    """
    Make an endless sequence of calls, the same for every contender.

    Returns:
        Keys, each with a value to set, or None to get.
    """
    chance = random.Random(seed + 1)
    keys = cycle(_keys(case.rows, case.hot, seed))
    if case.gets == 1:
        return zip(keys, repeat(None), strict=False)
    count = next(count for count in (_VALUES, 101, 31) if count * case.size <= _VALUES_BYTES)
    values = cycle([convert(chance.randbytes(case.size)) for _ in range(count)])
    if case.gets == 0:
        return zip(keys, values, strict=False)
    kinds = [number < 1000 * case.gets for number in range(1000)]
    chance.shuffle(kinds)
    return ((key, None if is_get else value) for key, is_get, value in zip(keys, cycle(kinds), values, strict=False))


@cache
def _keys(rows: int, hot: bool, seed: int) -> list[str]:
    chance = random.Random(seed + 2)
    few = max(1, rows // 100)
    return [key_of(chance.randrange(few if hot and chance.random() < 0.9 else rows)) for _ in range(_KEYS)]


async def closed_loop(
    contender: Contender,
    ops: Iterator[tuple[str, Any]],
    tasks: int,
    seconds: float,
    keep: list[float] | None = None,
) -> tuple[Round, str]:
    """
    Let tasks call for some seconds.

    Args:
        contender: Who is called.
        ops: The calls, from :func:`calls`; the tasks share them.
        tasks: How many call at once.
        seconds: After them no call begins; those on their way are waited for.
        keep: Gets the seconds of each call besides.

    Returns:
        What it took, and the first error.
    """
    latencies: list[float] = []
    errors: list[Exception] = []
    misses = 0
    get, set_, clock = contender.get, contender.set, time.perf_counter

    async def work(end: float) -> None:
        nonlocal misses
        start = 0.0
        while start < end:
            start = clock()
            key, value = next(ops)
            try:
                if value is None:
                    if await get(key) is None:
                        misses += 1
                else:
                    await set_(key, value)
            except Exception as error:
                errors.append(error)
            else:
                latencies.append(clock() - start)

    cpu, began = time.process_time(), clock()
    await asyncio.gather(*(work(began + seconds) for _ in range(tasks)))
    elapsed, cpu = clock() - began, time.process_time() - cpu
    if keep is not None:
        keep += latencies
    return _round(latencies, elapsed, cpu, len(errors), misses), _line(errors[0]) if errors else ""


def _round(latencies: list[float], elapsed: float, cpu: float, errors: int, misses: int) -> Round:
    calls = len(latencies)
    return Round(
        rate=calls / elapsed,
        cpu=cpu / calls * 1e6 if calls else 0.0,
        latencies=percentiles(latencies),
        calls=calls,
        errors=errors,
        misses=misses,
    )


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds below which half, 90 %, 99 % and all of the calls stayed."""
    if not seconds:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: ordered[round(part * last)] * 1000
        for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    }


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:300]


class Field:
    """The contenders of one place, open, with the entries of a case in their stores."""

    def __init__(self, place: Place, kinds: Sequence[type[Contender]], effort: Effort) -> None:
        self.place = place
        self._effort = effort
        self._contenders = [kind(place) for kind in kinds]
        self._open: list[Contender] = []
        self._absent: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def of(
        cls, place: Place, kinds: Sequence[type[Contender]], effort: Effort, case: Case
    ) -> AsyncIterator[Self]:
        """Make a field, and leave it in the end."""
        field = cls(place, kinds, effort)
        try:
            await field.open(case)
            yield field
        finally:
            await field.close()

    async def open(self, case: Case) -> None:
        """Fill the shared table, open everybody, and fill the stores of those who have one of their own."""
        start = entries(case, self._effort.seed)
        await fill(self.place, start)
        for contender in self._contenders:
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    await contender.open()
                self._open.append(contender)
                await contender.fill(start)
                await contender.check()
            except Absent as reason:
                self._absent[contender.name] = str(reason)
            except Exception as error:
                self._absent[contender.name] = f"it does not work here: {_line(error)}"

    async def close(self) -> None:
        """Close everybody."""
        for contender in self._open:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await contender.close()
        self._open.clear()

    async def measure(self, case: Case, tick: Tick) -> list[Outcome]:
        """Run a case, round by round, everybody in each round, each round beginning with somebody else."""
        outcomes = {one.name: self._outcome(one) for one in self._contenders}
        running = {
            one.name: (one, calls(case, self._effort.seed, one.value))
            for one in self._contenders
            if not outcomes[one.name].absent
        }
        for number in range(self._effort.rounds + 1):
            seconds = self._effort.seconds if number else self._effort.warm_up
            names = list(running)
            turn = number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                tick(f"{self.place.backend}: {case.title}: {name}")
                gc.collect()
                try:
                    async with asyncio.timeout(seconds + _PATIENCE):
                        result, error = await closed_loop(*running[name], case.tasks, seconds)
                except TimeoutError:
                    result, error = None, f"calls did not return within {_PATIENCE:.0f} s"
                outcomes[name].first_error = outcomes[name].first_error or error
                if result is None or not result.calls:
                    outcomes[name].failed = error or "no call returned"
                    del running[name]
                elif number:
                    outcomes[name].rounds.append(result)
        return list(outcomes.values())

    def _outcome(self, contender: Contender) -> Outcome:
        return Outcome(
            contender.name,
            contender.title,
            contender.durability,
            contender.serializer,
            contender.setup,
            absent=self._absent.get(contender.name, ""),
        )


def ratios(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """How many times more calls per second, and fewer CPU time per call: medians of the ratios round by round."""
    pairs = list(zip(ours.rounds, theirs.rounds, strict=False))
    return {
        "rate": statistics.median(mine.rate / other.rate for mine, other in pairs),
        "cpu": statistics.median(other.cpu / mine.cpu for mine, other in pairs),
    }
