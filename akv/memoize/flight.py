"""
One computation for many waiters of a process: single flight.

Knows neither stores nor functions: a place is anything hashable, a computation
any coroutine function. Flights belong to an event loop; outdating reaches those
of every loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from akv.aio import PerLoop, join

R = TypeVar("R")
T = TypeVar("T")

_PATIENCE: Final = 60.0  # seconds that anybody waits for a save: its loop may have stopped without notice


class Flight(Generic[R]):
    """
    One computation that is under way, and who waits for it.

    Attributes:
        place: What is computed.
        forced: It was asked for by a caller who wants nothing that exists already.
        began: The computation has begun, so that its result may be older than a caller who comes now.
        outdated: Nobody joins any more, and nothing is saved any more.
        task: What computes; set once it has been started.
        saving: Set while a result is being saved, and resolved afterwards.
    """

    __slots__ = (
        "_awaits",
        "_leader_left",
        "_traceback",
        "_waiters",
        "began",
        "forced",
        "outdated",
        "place",
        "saving",
        "task",
    )
    task: asyncio.Task[R]

    def __init__(self, place: Hashable, *, forced: bool = False, outdated: bool = False) -> None:
        self.place = place
        self.forced = forced
        self.outdated = outdated
        self.began = False
        self.saving: Future[None] | None = None
        self._waiters = 0
        self._leader_left = False
        self._traceback: TracebackType | None = None
        self._awaits: list[Flight[Any]] = []

    def leads_to(self, other: Flight[Any]) -> bool:
        """Tell whether this flight ends only after *other* has."""
        return self is other or any(flight.leads_to(other) for flight in self._awaits)

    async def save(self, write: Callable[[], Awaitable[T]]) -> T | None:
        """
        Await ``write()``, unless the flight is outdated.

        Returns:
            What *write* returned; None if it was not called.

        Guarantees:
            Whoever outdates the flight meanwhile waits until *write* has ended.
        """
        saving: Future[None] = Future()
        self.saving = saving  # visible before outdated is read: one of the two sides sees the other
        try:
            return None if self.outdated else await write()
        finally:
            saving.set_result(None)

    async def wait(self, *, leading: bool) -> bool:
        """
        Wait until the computation has ended.

        Args:
            leading: The computation was made by this caller, with its arguments.

        Returns:
            Whether what it ended with is for this caller. False: it was cancelled, or failed after its
            leader had gone and perhaps taken along what it was working with.

        Raises:
            asyncio.CancelledError: The caller was cancelled. If it was the last one who waited, the
                computation has been cancelled too, and has ended.
        """
        task = self.task
        self._waiters += 1
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            self._leader_left = self._leader_left or leading
            if self._waiters == 1 and not task.done():
                await self._abandon()
            raise
        finally:
            self._waiters -= 1
        if leading:
            return True
        return not task.cancelled() and not (self._leader_left and task.exception())

    def result(self) -> R:
        """
        Return what the computation returned.

        Raises:
            Exception: What it raised; every caller's traceback shows where, and his own way to it alone.
        """
        error = None if self.task.cancelled() else self.task.exception()
        if error is None:
            return self.task.result()
        self._traceback = self._traceback or error.__traceback__
        raise error.with_traceback(self._traceback)

    async def _abandon(self) -> None:
        self.outdated = True
        self.task.cancel()
        await join(asyncio.gather(self.task, return_exceptions=True))


Computation: TypeAlias = Callable[[Flight[R]], Awaitable[R]]

_inside: ContextVar[Flight[Any] | None] = ContextVar("akv_flight", default=None)


class _Loop:
    """Flights of one event loop."""

    __slots__ = ("joinable", "landings", "running")

    def __init__(self) -> None:
        self.joinable: dict[Hashable, Flight[Any]] = {}
        self.running: set[Flight[Any]] = set()
        self.landings = 0


class Flights:
    """All that is being computed for one store."""

    def __init__(self) -> None:
        self._loops = PerLoop(_Loop)

    @property
    def landings(self) -> int:
        """How many flights of the running loop have ended; what changes it may have been saved."""
        return self._loops.get().landings

    async def fly(self, place: Hashable, compute: Computation[R], *, forced: bool = False) -> R:
        """
        Join the computation of *place* that is under way, or lead one.

        Args:
            place: What is computed; who joins gets what another's *compute* returned for it.
            compute: Called in a task of its own, with a copy of the leader's context.
            forced: Join nothing that has begun, and keep it from saving.

        Raises:
            Exception: What the computation raised, the same object to everybody.

        Guarantees:
            Cancelling a caller cancels nobody else; cancelling the last one cancels the computation and waits until
            it has ended. A computation never waits for itself: one that asks for its own place computes it alone.
        """
        while True:
            flight = self._joinable(place, forced)
            leading = flight is None
            if flight is None:
                flight = self._start(place, compute, forced)
            elif _waits_for_caller(flight):
                return await compute(Flight(place, outdated=True))
            if await _awaited(flight, leading):
                result: R = flight.result()
                return result

    async def outdate(self, matches: Callable[[Any], bool]) -> None:
        """
        Let nobody join the matching flights of any loop, and keep them from saving.

        Args:
            matches: Told a place.

        Guarantees:
            Done at the first step, before anything is awaited; afterwards, saves that were under way have ended.
        """
        await _all_ended(self._outdate(matches))

    def _joinable(self, place: Hashable, forced: bool) -> Flight[Any] | None:
        flight = self._loops.get().joinable.get(place)
        if flight is None or flight.outdated or (forced and (flight.began or not flight.forced)):
            return None
        return flight

    def _start(self, place: Hashable, compute: Computation[R], forced: bool) -> Flight[R]:
        self._loops.take_stale()
        earlier = self._outdate(lambda other: other == place) if forced else []
        flight = Flight[R](place, forced=forced)
        loop = self._loops.get()
        loop.joinable[place] = flight
        loop.running.add(flight)
        flight.task = asyncio.get_running_loop().create_task(
            self._run(loop, flight, compute, earlier), name=f"akv-flight-{place}"
        )
        flight.task.add_done_callback(lambda _: self._ended(loop, flight))
        return flight

    async def _run(self, loop: _Loop, flight: Flight[R], compute: Computation[R], earlier: Sequence[Future[None]]) -> R:
        _inside.set(flight)
        try:
            await _all_ended(earlier)
            flight.began = True
            return await compute(flight)
        finally:
            self._land(loop, flight)

    @staticmethod
    def _land(loop: _Loop, flight: Flight[Any]) -> None:
        if flight in loop.running:
            loop.running.discard(flight)
            loop.landings += 1
        if loop.joinable.get(flight.place) is flight:
            del loop.joinable[flight.place]

    @staticmethod
    def _ended(loop: _Loop, flight: Flight[Any]) -> None:
        Flights._land(loop, flight)  # once more: a task that is cancelled before its first step runs no finally
        if not flight.task.cancelled():
            flight.task.exception()  # retrieved, in case everybody has left

    def _outdate(self, matches: Callable[[Any], bool]) -> list[Future[None]]:
        saves = []
        for loop in self._loops:
            for flight in list(loop.running):
                if matches(flight.place):
                    flight.outdated = True
                    if flight.saving is not None:
                        saves.append(flight.saving)
        return saves


def _waits_for_caller(flight: Flight[Any]) -> bool:
    caller = _inside.get()
    return caller is not None and flight.leads_to(caller)


async def _awaited(flight: Flight[Any], leading: bool) -> bool:
    """Wait for *flight*, and let the flight that the caller is part of show it."""
    caller = _inside.get()
    if caller is None:
        return await flight.wait(leading=leading)
    caller._awaits.append(flight)
    try:
        return await flight.wait(leading=leading)
    finally:
        caller._awaits.remove(flight)


async def _all_ended(saves: Sequence[Future[None]]) -> None:
    if saves:
        await asyncio.wait([asyncio.wrap_future(save) for save in saves], timeout=_PATIENCE)
