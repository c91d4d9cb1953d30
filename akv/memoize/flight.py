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
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from akv.aio import PerLoop, join, retrieve

R = TypeVar("R")
T = TypeVar("T")

_PATIENCE: Final = 60.0  # seconds that anybody waits for a save: its loop may have stopped without notice


class Boarding(NamedTuple):
    """
    When a caller came to a flight.

    Attributes:
        began: It had begun, so that its result may be older than the caller.
        confirming: It had begun to look whether that what it began with still holds.
    """

    began: bool
    confirming: bool


class Loan(Protocol):
    """What a computation has from its leader alone, as a session is."""

    def is_given(self) -> bool:
        """Tell whether there is anything, so that the computation cannot go on without the leader."""

    def explains(self, error: BaseException) -> bool:
        """Tell whether the computation has failed by that, so that another one may not."""


class Flight(Generic[R]):
    """
    One computation that is under way, and who waits for it.

    Attributes:
        place: What is computed.
        variant: What it is computed from; flights of one place that differ in it are not joined with each other.
        forced: It was asked for by a caller who wants nothing that exists already.
        began: The computation has begun, so that its result may be older than a caller who comes now.
        confirming: It has begun to look whether that what it began with still holds.
        outdated: Nobody joins any more, and nothing is saved any more.
        task: What computes; set once it has been started.
        saving: Set while a result is being saved, and resolved afterwards.
    """

    __slots__ = (
        "_awaits",
        "_leader_left",
        "_loan",
        "_traceback",
        "_waiters",
        "began",
        "confirming",
        "forced",
        "outdated",
        "place",
        "saving",
        "task",
        "variant",
    )
    task: asyncio.Task[R]

    def __init__(
        self,
        place: Hashable,
        *,
        variant: Hashable = None,
        forced: bool = False,
        outdated: bool = False,
        loan: Loan | None = None,
    ) -> None:
        self.place = place
        self.variant = variant
        self.forced = forced
        self.outdated = outdated
        self.began = False
        self.confirming = False
        self.saving: Future[None] | None = None
        self._loan = loan
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
            Whether what it ended with is for this caller. False: it was cancelled, or failed by what its leader
            alone has lent it, or after he had gone and perhaps taken that along.

        Raises:
            asyncio.CancelledError: The caller was cancelled. If it was the last one who waited, or the
                computation works with what it will close now, that has been cancelled too, and has ended.
        """
        task = self.task
        self._waiters += 1
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            self._leader_left = self._leader_left or leading
            if not task.done() and (self._waiters == 1 or (leading and self._has_loan())):
                await self._abandon()
            raise
        finally:
            self._waiters -= 1
        if leading:
            return True
        return not task.cancelled() and not self._is_failure_of_leader(task.exception())

    @property
    def landed(self) -> R | None:
        """What the computation has returned; None if it has failed."""
        return None if self.task.cancelled() or self.task.exception() else self.task.result()

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

    def _has_loan(self) -> bool:
        return self._loan is not None and self._loan.is_given()

    def _is_failure_of_leader(self, error: BaseException | None) -> bool:
        if error is None:
            return False
        return self._leader_left or (self._loan is not None and self._loan.explains(error))

    async def _abandon(self) -> None:
        self.outdated = True
        self.task.cancel()
        await join(asyncio.gather(self.task, return_exceptions=True))


Computation: TypeAlias = Callable[[Flight[R]], Awaitable[R]]
Takes: TypeAlias = Callable[[Boarding, R | None], bool]
"""Told when a caller came to a flight of somebody else's, and its result (None: it failed): is that for the caller?"""

_inside: ContextVar[Flight[Any] | None] = ContextVar("akv_flight", default=None)


def step_out() -> None:
    """Let the task that runs be no part of the computation that started it, which does not wait for it."""
    _inside.set(None)


class _Loop:
    """Flights of one event loop."""

    __slots__ = ("joinable", "landings", "running")

    def __init__(self) -> None:
        self.joinable: dict[tuple[Hashable, Hashable], Flight[Any]] = {}
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

    async def fly(
        self,
        place: Hashable,
        compute: Computation[R],
        *,
        forced: bool = False,
        variant: Hashable = None,
        takes: Takes[R] | None = None,
        loan: Loan | None = None,
    ) -> R | None:
        """
        Join the computation of *place* that is under way, or lead one.

        Args:
            place: What is computed; who joins gets what another's *compute* returned for it.
            compute: Called in a task of its own, with a copy of the leader's context.
            forced: Join nothing that has begun, and keep it from saving.
            variant: Of what; nobody joins a flight of another variant.
            takes: Whether the result of somebody else's flight is for this caller; None: always.
            loan: What *compute* has from the caller alone; None: nothing.

        Returns:
            The result; None if it was that of a flight of somebody else's, and is not for this caller.

        Raises:
            Exception: What the computation raised, the same object to everybody; but what its leader's loan explains
                is his alone, and the next one computes.

        Guarantees:
            Cancelling a caller cancels nobody else; cancelling the last one cancels the computation and waits until
            it has ended, and so does cancelling the one whose own it works with: the next one computes then. A
            computation never waits for itself: one that asks for its own place computes it alone.
        """
        while True:
            flight = self._joinable(place, variant, forced)
            leading = flight is None
            if flight is None:
                flight = self._start(place, variant, compute, forced, loan)
            elif _waits_for_caller(flight):
                return await compute(Flight(place, outdated=True))
            boarding = Boarding(flight.began, flight.confirming)
            if not await _awaited(flight, leading):
                continue
            if leading or takes is None or takes(boarding, flight.landed):
                result: R = flight.result()
                return result
            return None

    async def outdate(self, matches: Callable[[Any], bool]) -> None:
        """
        Let nobody join the matching flights of any loop, and keep them from saving.

        Args:
            matches: Told a place.

        Guarantees:
            Done at the first step, before anything is awaited; afterwards, saves that were under way have ended.
        """
        await _all_ended(self._outdate(matches))

    def _joinable(self, place: Hashable, variant: Hashable, forced: bool) -> Flight[Any] | None:
        flight = self._loops.get().joinable.get((place, variant))
        if flight is None or flight.outdated or (forced and (flight.began or not flight.forced)):
            return None
        return flight

    def _start(
        self,
        place: Hashable,
        variant: Hashable,
        compute: Computation[R],
        forced: bool,
        loan: Loan | None,
    ) -> Flight[R]:
        self._loops.take_stale()
        earlier = self._outdate(lambda other: other == place) if forced else []
        flight = Flight[R](place, variant=variant, forced=forced, loan=loan)
        loop = self._loops.get()
        loop.joinable[place, variant] = flight
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
        if loop.joinable.get((flight.place, flight.variant)) is flight:
            del loop.joinable[flight.place, flight.variant]

    @staticmethod
    def _ended(loop: _Loop, flight: Flight[Any]) -> None:
        Flights._land(loop, flight)  # once more: a task that is cancelled before its first step runs no finally
        retrieve(flight.task)  # in case everybody has left

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
