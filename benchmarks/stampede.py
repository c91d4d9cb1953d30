"""
Many callers at once of what has just become too old, or was changed: how often it is computed, and how long they wait.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import signal
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from benchmarks.bound import filled
from benchmarks.harness import Tick, percentiles
from benchmarks.options import effort_of
from benchmarks.places import NoServer, Place
from benchmarks.report import Report
from benchmarks.storms import STORMS, Crew, Setting, Storm

EVENTS: Final = ("expiry", "token change")
_PATIENCE: Final = 120.0
_NOTICE: Final = 0.1
"""Seconds between the word and the storm: it reaches every process before."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.set_defaults(backends=["postgres"])
    parser.add_argument("--parts", nargs="+", choices=EVENTS, default=list(EVENTS), help="what happens (all)")
    parser.add_argument("--callers", type=int, default=1_000, help="callers, of all processes (%(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4], help="processes (1 4)")
    parser.add_argument("--computation", type=float, default=0.2, help="seconds of a computation (%(default)s)")
    parser.add_argument("--lifetime", type=float, default=1.5, help="seconds until a result expires (%(default)s)")


async def run(options: argparse.Namespace, report: Report) -> None:
    """Measure where the database and Redis are servers."""
    rounds = effort_of(options).rounds + 1
    total = rounds * len(options.processes) * sum(len(_who(event)) for event in options.parts)
    with report.progress(len(options.backends) * total) as tick:
        for backend in options.backends:
            try:
                async with filled(backend) as (place, _):
                    report.server(backend, place.settings)
                    await _measure(place, options, report, tick)
            except NoServer as reason:
                report.no_server(backend, str(reason))


def _who(event: str) -> list[type[Storm]]:
    return [kind for kind in STORMS if kind.is_dependent == (event == "token change")]


async def _measure(place: Place, options: argparse.Namespace, report: Report, tick: Tick) -> None:
    setting = Setting(place, options.computation, options.lifetime)
    async with _crews(setting, max(options.processes)) as (crews, absent):
        for event in options.parts:
            for processes in options.processes:
                names = [kind.name for kind in _who(event) if kind.name not in absent]
                one = _Stampede(crews[:processes], options, event, names)
                found = await one.run(tick, f"{place.backend}: {event}, {processes} processes")
                _tell(report, place.backend, event, processes, options, found, absent)


class _Stampede:
    """One event, again and again, in some processes."""

    def __init__(
        self, crews: Sequence[_Process], options: argparse.Namespace, event: str, names: Sequence[str]
    ) -> None:
        self._crews = crews
        self._options = options
        self._event = event
        self._names = names

    async def run(self, tick: Tick, title: str) -> dict[str, list[dict[str, Any]]]:
        """Let everybody have their turn in each round, each round beginning with another one."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self._names}
        for number in range(self._options.rounds + 1):
            before = await self._crews[0].ask("fill", list(self._names))
            await self._happen()
            turn = number % len(self._names)
            for name in [*self._names[turn:], *self._names[:turn]]:
                tick(f"{title}: {name}")
                told = await self._storm(name, before[name])
                if number:
                    found[name].append(told)
        return found

    async def _happen(self) -> None:
        if self._event == "expiry":
            await asyncio.sleep(self._options.lifetime + 0.05)
        else:
            await self._crews[0].ask("change")

    async def _storm(self, name: str, before: str) -> dict[str, Any]:
        at = time.time() + _NOTICE
        callers = self._options.callers // len(self._crews)
        told = await asyncio.gather(*(crew.ask("storm", name, callers, at, before) for crew in self._crews))
        whole: dict[str, Any] = {key: sum(each[key] for each in told) for key in ("computations", "old", "errors")}
        whole["waits"] = [wait for each in told for wait in each["waits"]]
        whole["first_error"] = next((each["first_error"] for each in told if each["first_error"]), "")
        return whole


def _tell(
    report: Report,
    backend: str,
    event: str,
    processes: int,
    options: argparse.Namespace,
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    absent: Mapping[str, str],
) -> None:
    callers = options.callers // processes
    title = f"{backend}: {event}: {processes} x {callers:,} callers of {options.computation * 1000:.0f} ms"
    table = Table(title=title, title_justify="left")
    for column in ("", "computations", "p50 ms", "p90 ms", "p99 ms", "max ms", "old values", "errors"):
        table.add_column(column, justify="right" if column else "left")
    common = {"backend": backend, "part": event, "processes": processes, "callers": callers}
    for kind in STORMS:
        reason = absent.get(kind.name) or (kind.cannot if event == "token change" else "")
        if kind.name in found:
            told = _summary(found[kind.name])
            report.add(**common, who=kind.name, **told)
            table.add_row(kind.name, *_cells(told))
        elif reason and (event == "token change" or not kind.is_dependent):
            report.add(**common, who=kind.name, absent=reason)
            table.add_row(kind.name, "", "", "", "", "", "", f"[yellow]{escape(reason)}")
    report.console.print(table)


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the rounds of one together: the medians of counts, the waits of all callers."""
    counts = {name: [each[name] for each in rounds] for name in ("computations", "old", "errors")}
    found: dict[str, Any] = {name: statistics.median(each) for name, each in counts.items() if name != "errors"}
    return found | {
        "errors": sum(counts["errors"]),
        "first_error": next((each["first_error"] for each in rounds if each["first_error"]), ""),
        "waits": percentiles([wait for each in rounds for wait in each["waits"]]),
        "rounds": counts | {"waits": [percentiles(each["waits"]) for each in rounds]},
    }


def _cells(told: Mapping[str, Any]) -> list[str]:
    counts = told["rounds"]["computations"]
    spread = f" ({min(counts)} to {max(counts)})" if min(counts) != max(counts) else ""
    errors = f"[red]{told['errors']}: {escape(told['first_error'])}" if told["errors"] else "0"
    times = [f"{told['waits'][name]:.0f}" for name in ("p50", "p90", "p99", "max")]
    return [f"{told['computations']:g}{spread}", *times, f"{told['old']:g}", errors]


# --- processes --------------------------------------------------------------------------------------------------------


class _Process:
    """A process with everybody in it, which does as it is told."""

    def __init__(self, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(setting, theirs), daemon=True)
        self._process.start()
        theirs.close()

    async def ask(self, what: str, *arguments: Any) -> Any:
        """
        Call a method of the crew.

        Raises:
            RuntimeError: It raised, or did not answer in time.
        """
        self._ours.send((what, arguments))
        answer, error = await asyncio.to_thread(self._answer, what)
        if error:
            raise RuntimeError(f"{what} failed in a process: {error}")
        return answer

    def _answer(self, what: str) -> tuple[Any, str]:
        if not self._ours.poll(_PATIENCE):
            return None, f"no answer within {_PATIENCE:.0f} s"
        try:
            answer: tuple[Any, str] = self._ours.recv()
        except EOFError:
            return None, "it has ended"
        return answer

    def end(self) -> None:
        """Let it close everything, and end."""
        with suppress(OSError):
            self._ours.send(None)
        self._process.join(10)
        self._process.kill()
        self._process.join()
        self._ours.close()


@asynccontextmanager
async def _crews(setting: Setting, processes: int) -> AsyncIterator[tuple[list[_Process], dict[str, str]]]:
    crews = [_Process(setting) for _ in range(processes)]
    try:
        absent: dict[str, str] = {}
        for each in await asyncio.gather(*(crew.ask("open") for crew in crews)):
            absent |= each
        yield crews, absent
    finally:
        await asyncio.to_thread(lambda: [crew.end() for crew in crews])


def _work(setting: Setting, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to end
    asyncio.run(_obey(Crew(setting), pipe))


async def _obey(crew: Crew, pipe: Connection) -> None:
    try:
        while True:
            command = await asyncio.to_thread(pipe.recv)
            if command is None:
                return
            what, arguments = command
            try:
                answer = await getattr(crew, what)(*arguments), ""
            except Exception as error:
                answer = None, f"{type(error).__name__}: {error}"
            pipe.send(answer)
    except EOFError:  # the parent is gone
        return
    finally:
        await crew.close()
