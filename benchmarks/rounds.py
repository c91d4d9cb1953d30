"""
Calls of any kind, in turns: what happens in the same noise can be compared.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.harness import Effort, Tick, percentiles

Call: TypeAlias = Callable[[], Awaitable[float | None]]
"""Does something once; returns the seconds of the part that is of interest, or None if all of it is."""


@dataclass(slots=True)
class Measured:
    """
    All rounds of one way of doing things.

    Attributes:
        rates: Calls per second, round by round.
        cpus: Microseconds of this process's CPU time per call, round by round.
        medians: Seconds of the part that is of interest, the median of each round.
        whole: Seconds of each call.
        parts: Seconds of the part of each call that is of interest, if the calls told it.
        errors: What was raised.
    """

    rates: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, whole: list[float], parts: list[float], errors: list[Exception], elapsed: float, cpu: float) -> None:
        """Add a round."""
        self.errors += [f"{type(error).__name__}: {error}" for error in errors]
        if whole:
            self.rates.append(len(whole) / elapsed)
            self.cpus.append(cpu / len(whole) * 1e6)
            self.medians.append(statistics.median(parts or whole))
            self.whole += whole
            self.parts += parts

    def summary(self) -> dict[str, Any]:
        """What goes into results."""
        if not self.rates:
            return {"failed": self.errors[0] if self.errors else "no call returned"}
        found: dict[str, Any] = {
            "rate": statistics.median(self.rates),
            "cpu": statistics.median(self.cpus),
            "latencies": percentiles(self.whole),
            "calls": len(self.whole),
            "errors": len(self.errors),
            "rounds": {"rate": self.rates, "cpu": self.cpus},
        }
        if self.parts:
            found["part"] = percentiles(self.parts)
        if self.errors:
            found["first_error"] = self.errors[0]
        return found


async def in_turns(ways: Mapping[str, Sequence[Call]], effort: Effort, tick: Tick, title: str) -> dict[str, Measured]:
    """
    Measure each way in each round, each round beginning with another one, after a round that is thrown away.

    Args:
        ways: For each, the calls that tasks repeat at once.
        effort: How long.
        tick: Is told what begins.
        title: What it is about.
    """
    measured = {name: Measured() for name in ways}
    names = list(ways)
    for number in range(effort.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            tick(f"{title}: {name}")
            gc.collect()
            is_warm = number > 0
            await _round(ways[name], effort.seconds if is_warm else effort.warm_up, measured[name] if is_warm else None)
    return measured


async def _round(calls: Sequence[Call], seconds: float, measured: Measured | None) -> None:
    whole: list[float] = []
    parts: list[float] = []
    errors: list[Exception] = []
    clock = time.perf_counter

    async def repeat(call: Call, end: float) -> None:
        start = 0.0
        while start < end:
            start = clock()
            try:
                part = await call()
            except Exception as error:
                errors.append(error)
            else:
                whole.append(clock() - start)
                if part is not None:
                    parts.append(part)

    cpu, began = time.process_time(), clock()
    await asyncio.gather(*(repeat(call, began + seconds) for call in calls))
    elapsed, cpu = clock() - began, time.process_time() - cpu
    if measured is not None:
        measured.add(whole, parts, errors, elapsed, cpu)


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of ratios taken round by round; 0 if there are none."""
    pairs = list(zip(above, below, strict=False))
    return statistics.median(one / other for one, other in pairs) if pairs else 0.0
