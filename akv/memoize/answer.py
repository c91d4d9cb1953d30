"""How a call is answered: look, judge, compute, save. What memoized calls and get_or_create have in common."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from akv.memoize.flight import Flight, Loan
from akv.memoize.freshness import Freshness, Saved, Verdict, judge, micros
from akv.memoize.guard import Guard, Nothing, Place
from akv.memoize.lease import TURN_TAG, Lease, Name, pauses
from akv.memoize.near import Near
from akv.memoize.options import SkipIf, holds
from akv.memoize.shelf import Shelf
from akv.store.expiry import naive

if TYPE_CHECKING:
    from akv.memoize.invalidation import Invalidations

R = TypeVar("R")

_SHORTEST_PAUSE: Final = 0.001


class Found(NamedTuple, Generic[R]):
    """
    What a look has found.

    Attributes:
        saved: A result, or why there is none.
        verdict: What may be done with it.
        standing: What its dependencies are like; None: it has none.
    """

    saved: Saved | Nothing
    verdict: Verdict = Verdict.GONE
    standing: Any = None

    @property
    def value(self) -> R:
        """The result itself, if it may be handed out."""
        assert isinstance(self.saved, Saved)  # noqa: S101 -- or its verdict would be GONE
        value: R = self.saved.value
        return value

    @property
    def until(self) -> int | None:
        """When the result is too old; None: never."""
        return self.saved.until if isinstance(self.saved, Saved) else None


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """
    A call to be answered.

    Attributes:
        place: Where its result is kept.
        compute: Computes it; may be awaited after the call has returned.
        chance: Its draw from [0, 1).
        since: ``flights.landings`` as it was before anything was looked for.
        basis: What its result rests on; None: nothing that changes.
        loan: What *compute* has from the caller alone; None: nothing.
    """

    place: Place
    compute: Callable[[], Awaitable[R]]
    chance: float
    since: int
    basis: Any = None
    loan: Loan | None = None


class Outcome(NamedTuple, Generic[R]):
    """
    What a flight brings.

    Attributes:
        value: The result.
        evidence: What it rests on, and who may have it; None: nothing that changes, and anybody.
        until: When it is too old; None: never.
    """

    value: R
    evidence: Any = None
    until: int | None = None


class Answers(Generic[R]):
    """
    Answers calls of one function from the store, or by computing.

    Attributes:
        skip_if: Whether not to save a result.
        near: What is at hand in this process, if that is wanted.
        hits, misses, fills, bypasses: See :class:`~akv.memoize.options.CacheInfo`.
        reasons: Of bypasses.
    """

    def __init__(
        self,
        guard: Guard,
        shelf: Shelf,
        freshness: Freshness,
        *,
        skip_if: SkipIf = False,
        near: Near | None = None,
        lease: float | None = None,
        invalidations: Invalidations | None = None,
    ) -> None:
        """
        Args:
            guard: Of the store.
            shelf: How results lie in it.
            freshness: How old they may be.
            skip_if: Whether not to save a result.
            near: What is at hand in this process.
            lease: Seconds of the lease under which one process computes; None: each for itself.
            invalidations: Told by other processes; None: by none.
        """
        self.skip_if = skip_if
        self.near = near
        self.hits = self.misses = self.fills = self.bypasses = 0
        self.reasons: Counter[str] = Counter()
        self._guard = guard
        self._shelf = shelf
        self._freshness = freshness
        self._lease = lease
        self._invalidations = invalidations

    def draw(self) -> float:
        """Draw from [0, 1), once for each call, where chance has a say."""
        return self._guard.chance() if self._freshness.early else 0.0

    def at_hand(self, key: str, chance: float) -> R | Nothing:
        """Return a fresh result that this process has at hand; no I/O."""
        held = None if self.near is None else self.near.get(key)
        if held is None or self._judge(held.saved, chance) is not Verdict.FRESH:
            return Nothing.ABSENT
        try:
            value: R = held.value()
        except Exception:  # it could be pickled, but not unpickled: the store will say what is wrong
            return Nothing.ABSENT
        self.hits += 1
        return value

    async def answer(
        self,
        place: Place,
        compute: Callable[[], Awaitable[R]],
        chance: float = 0.0,
        *,
        forced: bool = False,
        waits: bool = False,
        basis: Any = None,
        loan: Loan | None = None,
    ) -> Outcome[R]:
        """
        Answer a call.

        Args:
            place: Where its result is kept.
            compute: Computes it; may be awaited after the call has returned.
            chance: Its draw.
            forced: Compute, whatever is kept.
            waits: *compute* works with what belongs to the caller, who waits for it.
            basis: What the result rests on; None: nothing that changes.
            loan: What *compute* has from the caller alone; None: nothing.
        """
        flights = self._guard.flights
        call = Call(place, compute, chance, flights.landings, basis, loan)
        found: Found[R] = Found(Nothing.UNASKED) if forced else await self._look(call)  # look
        is_served = _is_served(found, waits)
        self._count(found, is_served)
        if found.verdict is Verdict.FRESH:  # judge
            return self._brought(found)
        fill = partial(self._fill, call, found)
        if is_served:
            self._guard.go_on_behind(place, partial(flights.fly, place, fill))
            return self._brought(found)
        outcome: Outcome[R] | None = await flights.fly(place, fill, forced=forced, loan=loan)
        assert outcome is not None  # noqa: S101 -- anybody takes it
        return outcome

    async def _fill(self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]]) -> Outcome[R]:
        return await self._go_on(call, await self._look_again(call, found), flight)

    async def _go_on(self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]]) -> Outcome[R]:
        if found.verdict is Verdict.FRESH:
            return self._brought(found)
        # One that is outdated may be part of a computation that has the turn: it would wait for itself.
        if self._lease is None or flight.outdated or not self._has_asked(found):
            return await self._compute(call, found, flight)
        return await self._compute_in_turn(call, found, flight, self._lease)

    async def _compute(
        self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]], lease: Lease | None = None
    ) -> Outcome[R]:
        told = None if self._invalidations is None else await self._invalidations.told(call.place)
        began = self._guard.now()
        try:
            value = await call.compute()  # compute
        except Exception as error:
            if not self._stands_in(found):
                raise
            self._log_stand_in(error, call)
            return self._brought(found)
        saved = self._saved(value, began, lease)
        if found.saved is not Nothing.DOWN and not await holds(self.skip_if, value):
            save = partial(self._save, call, saved, found, lease)
            kept = await flight.save(
                save if told is None else partial(self._save_unless_told, call, told, save)
            )  # save
            saved = saved if kept is None else kept
        return Outcome(saved.value, until=saved.until)

    def _saved(self, value: R, began: int, lease: Lease | None) -> Saved:
        now = naive(self._guard.clock())
        made, until = micros(now), self._freshness.until(now, self._guard.chance())
        return Saved(value, made, max(0, made - began), until, 0 if lease is None else lease.fence)

    async def _save(self, call: Call[R], saved: Saved, found: Found[R], lease: Lease | None) -> Saved | None:
        if lease is not None and not lease.is_held:
            return None  # somebody else has computed by now
        kept = await self._shelf.keep(call.place, saved, self._freshness.end(saved.until), found.saved)
        if kept is saved:
            self.fills += 1
            if self.near is not None:
                self.near.put(call.place.key, saved)
        return kept

    async def _save_unless_told(
        self, call: Call[R], told: Hashable, save: Callable[[], Awaitable[Saved | None]]
    ) -> Saved | None:
        assert self._invalidations is not None  # noqa: S101 -- or nobody could have been told
        return await self._invalidations.save(call.place, told, save, partial(self._take_back, call.place))

    async def _take_back(self, place: Place) -> None:
        await self._guard.write(lambda: self._guard.store.delete(place.key, place.tag), place)
        if self.near is not None:
            self.near.forget(place.key)

    async def _compute_in_turn(
        self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]], seconds: float
    ) -> Outcome[R]:
        """Compute while no other process does; what another one has computed meanwhile is the answer."""
        locks, name = self._guard.locks, _turn(call.place)
        peek = False
        for pause in pauses():
            lease = await self._guard.read(partial(locks.attempt, name, seconds, peek=peek), call.place)
            if isinstance(lease, Nothing):
                return await self._compute(call, found, flight)
            if isinstance(lease, Lease):
                lease.patience = self._guard.patience
                async with lease:
                    found = await self._look(call)
                    is_fresh = found.verdict is Verdict.FRESH
                    return self._brought(found) if is_fresh else await self._compute(call, found, flight, lease)
            await locks.sleep(min(pause, max(lease, _SHORTEST_PAUSE)))
            found = await self._look(call)
            if found.verdict is Verdict.FRESH:
                break
            peek = True
        return self._brought(found)

    async def _look(self, call: Call[R]) -> Found[R]:
        ticket = 0 if self.near is None else self.near.ticket
        saved = await self._shelf.look(call.place)
        if isinstance(saved, Nothing):
            return Found(saved)
        found: Found[R] = Found(saved, self._judge(saved, call.chance))
        self._hold(call, found, ticket)
        return found

    async def _look_again(self, call: Call[R], found: Found[R]) -> Found[R]:
        """Look once more if what was computed since the first look may have been saved."""
        return await self._look(call) if self._may_have_changed(call, found) else found

    def _may_have_changed(self, call: Call[R], found: Found[R]) -> bool:
        return self._has_asked(found) and self._guard.flights.landings != call.since

    def _has_asked(self, found: Found[R]) -> bool:
        """Tell whether the store was asked, and has answered."""
        return found.saved is not Nothing.DOWN and found.saved is not Nothing.UNASKED

    def _hold(self, call: Call[R], found: Found[R], ticket: int) -> None:
        """Keep at hand what is fresh in the store."""
        if self.near is not None and found.verdict is Verdict.FRESH and isinstance(found.saved, Saved):
            self.near.put(call.place.key, found.saved, ticket)

    def _judge(self, saved: Saved, chance: float) -> Verdict:
        return judge(saved, (), self._freshness, self._guard.now(), chance)

    def _brought(self, found: Found[R]) -> Outcome[R]:
        """Return what was found as what a flight brings."""
        return Outcome(found.value, until=found.until)

    def _stands_in(self, found: Found[R]) -> bool:
        """Tell whether the last result may be handed out, now that computing has failed."""
        return isinstance(found.saved, Saved) and self._judge(found.saved, 0.0) is not Verdict.GONE

    def _log_stand_in(self, error: Exception, call: Call[R]) -> None:
        self._guard.log_rarely("a result could not be computed, the last one is returned: %r", error, call.place)

    def _count(self, found: Found[R], is_served: bool) -> None:
        if is_served:
            self.hits += 1
        elif found.saved is Nothing.UNASKED or found.saved is Nothing.DOWN:
            self._count_bypass("told" if found.saved is Nothing.UNASKED else "store")
        else:
            self.misses += 1

    def _count_bypass(self, reason: str) -> None:
        self.bypasses += 1
        self.reasons[reason] += 1


def _is_served(found: Found[R], waits: bool) -> bool:
    """Tell whether a call is answered at once by what was found."""
    return found.verdict is Verdict.FRESH or (found.verdict in (Verdict.DUE, Verdict.STALE) and not waits)


def _turn(place: Place) -> Name:
    """Name the lease of a place, which may be longer than a key."""
    tag, key = place
    return Name(hashlib.blake2b(f"{len(tag)}:{tag}{key}".encode(), digest_size=32).hexdigest(), TURN_TAG)
