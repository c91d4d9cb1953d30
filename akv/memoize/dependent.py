"""
How calls are answered whose results have dependencies: by what still holds, or by computing.

The rules are those of the protocol: tokens are read after the call began, beside the look into the store (R1); what is
found is believed iff it was computed under the very same ones (R2, R3); what is computed is saved iff tokens that are
read after it confirm those from before (R4). Who may share whose computation is said in
:mod:`akv.memoize.dependencies`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from akv.aio import join
from akv.memoize.answer import Answers, Call, Found, Outcome
from akv.memoize.dependencies import Basis, Evidence, Run, Standing, saved_form
from akv.memoize.flight import Flight, Loan
from akv.memoize.freshness import Saved, Verdict, judge
from akv.memoize.guard import Nothing, Place
from akv.memoize.lease import Lease
from akv.memoize.options import holds
from akv.tokens.rules import Fill, Private

R = TypeVar("R")

_FLIGHTS: Final = 2
"""Flights of others that a call waits for, though their results may turn out not to be for its session."""
_NO_ANSWER: Final = TimeoutError("they do not answer in time")


class DependentAnswers(Answers[R]):
    """Answers calls of one function whose results have dependencies."""

    async def answer(
        self,
        place: Place,
        compute: Callable[[], Awaitable[R]],
        chance: float = 0.0,
        *,
        forced: bool = False,
        waits: bool = False,
        basis: Basis | None = None,
        loan: Loan | None = None,
    ) -> Outcome[R]:
        """Answer a call, which has a *basis*; see :meth:`Answers.answer`."""
        call = Call(place, compute, chance, self._guard.flights.landings, basis, loan)
        found = await self._first_look(call, forced)  # look
        is_alone = found.standing.is_alone
        is_served = _is_served(found.verdict, waits, is_alone)
        self._count(found, is_served)
        if is_served:  # judge
            if found.verdict is not Verdict.FRESH and not is_alone:
                self._guard.go_on_behind(place, partial(self._fly, call, found, forced))
            return self._brought(found)
        return await (self._compute_alone(call, found) if is_alone else self._share(call, found, forced))

    # --- look --------------------------------------------------------------------------------------------------------

    async def _first_look(self, call: Call[R], forced: bool) -> Found[R]:
        if forced:
            return Found(Nothing.UNASKED, standing=call.basis.unread())
        held = None if self.near is None else self.near.get(call.place.key)
        if held is not None:
            standing = await self._read(call, held.saved)
            if self._verdict(call, held.saved, standing) is not Verdict.FRESH:
                return await self._look(call, standing)
            try:
                return Found(held.saved._replace(value=held.value()), Verdict.FRESH, standing)
            except Exception:  # it could be pickled, but not unpickled: the store will say what is wrong
                return await self._look(call, standing)
        if not call.basis.tracked:
            return await self._look(call)
        saved = await self._shelf.look(call.place)
        return (
            Found(saved, standing=call.basis.unread()) if isinstance(saved, Nothing) else await self._found(call, saved)
        )

    async def _look(self, call: Call[R], standing: Standing | None = None) -> Found[R]:
        """Look into the store, and read the tokens beside it where it is known which, unless that was done."""
        ticket = 0 if self.near is None else self.near.ticket
        if standing is None and not call.basis.tracked:
            saved, standing = await self._look_and_read(call)
        else:
            saved = await self._shelf.look(call.place)
        found = await self._found(call, saved, standing)
        self._hold(call, found, ticket)
        return found

    async def _look_and_read(self, call: Call[R]) -> tuple[Saved | Nothing, Standing]:
        reading = asyncio.ensure_future(self._read(call, Nothing.UNASKED))
        try:
            saved = await self._shelf.look(call.place)
        except BaseException:
            reading.cancel()
            await join(asyncio.gather(reading, return_exceptions=True))
            raise
        return saved, await reading

    async def _look_again(self, call: Call[R], found: Found[R]) -> Found[R]:
        """Look once more if what was computed since the first look may have been saved."""
        return await self._look(call, found.standing) if self._may_have_changed(call, found) else found

    async def _found(self, call: Call[R], saved: Saved | Nothing, standing: Standing | None = None) -> Found[R]:
        """Judge what was found; by tokens that were read, or are read now."""
        if standing is None or standing.identifiers != call.basis.asks_for(saved):
            standing = await self._read(call, saved)
        verdict = self._verdict(call, saved, standing) if isinstance(saved, Saved) else Verdict.GONE
        return Found(saved, verdict, standing)

    async def _read(self, call: Call[R], saved: Saved | Nothing) -> Standing:
        identifiers = call.basis.asks_for(saved)
        read = await self._guard.ask(partial(call.basis.read, identifiers), call.place)
        if isinstance(read, Nothing):
            return Standing(identifiers, why=Private.UNREACHABLE)
        standing: Standing = read
        if standing.why is Private.UNREACHABLE:
            self._guard.log_unreachable(_NO_ANSWER, call.place)
        return standing

    def _verdict(self, call: Call[R], saved: Saved, standing: Standing) -> Verdict:
        if not standing.holds(saved, tracked=call.basis.tracked):
            return Verdict.GONE
        return judge(saved, standing.vector, self._freshness, self._guard.now(), call.chance)

    # --- compute -----------------------------------------------------------------------------------------------------

    async def _share(self, call: Call[R], found: Found[R], forced: bool) -> Outcome[R]:
        """Compute for all callers at once, or take what another one's computation brings, if it is for this one."""
        for _ in range(_FLIGHTS):
            outcome = await self._fly(call, found, forced)
            if outcome is not None:
                return outcome
        return await self._compute_alone(call, found)

    async def _fly(self, call: Call[R], found: Found[R], forced: bool) -> Outcome[R] | None:
        flights, basis, standing = self._guard.flights, call.basis, found.standing
        if basis.tracked or forced or standing.why is not None:
            fill = partial(self._fill_anew, call, found)
            return await flights.fly(call.place, fill, forced=forced, takes=basis.takes, loan=call.loan)
        variant = (standing.identifiers, standing.tokens)
        fill = partial(self._fill, call, found)
        takes = basis.takes_of_same_tokens
        return await flights.fly(call.place, fill, variant=variant, takes=takes, loan=call.loan)

    async def _fill_anew(self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]]) -> Outcome[R]:
        """Fill for callers who came before tokens were read; so they are read now."""
        if self._may_have_changed(call, found):
            found = await self._look(call)
        else:
            found = await self._found(call, found.saved)
        return await self._go_on(call, found, flight)

    async def _go_on(self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]]) -> Outcome[R]:
        if found.standing.why is not None:  # no other process would find the result
            return await self._compute(call, found, flight)
        return await super()._go_on(call, found, flight)

    async def _compute_alone(self, call: Call[R], found: Found[R]) -> Outcome[R]:
        if not found.standing.tokens and found.standing.why is None:
            found = await self._found(call, found.saved)
        return await self._compute(call, found, Flight(call.place))

    async def _compute(
        self, call: Call[R], found: Found[R], flight: Flight[Outcome[R]], lease: Lease | None = None
    ) -> Outcome[R]:
        began = self._guard.now()
        try:
            run: Run = await call.basis.run(call.compute)  # compute
        except Exception as error:
            last = await self._stand_in(call, found)
            if last is None:
                raise
            self._log_stand_in(error, call)
            return self._brought(last)
        flight.confirming = True
        evidence = await self._settle(call, found, run)
        saved = _no_longer(self._saved(run.value, began, lease), run.until)
        if evidence.is_settled and found.saved is not Nothing.DOWN and not await holds(self.skip_if, run.value):
            saved = saved._replace(
                identifiers=evidence.identifiers or (),
                vector=saved_form(evidence.fill.vector or ()),
                tracked=call.basis.tracked,
            )
            await flight.save(lambda: self._save(call, saved, found, lease))  # save
        return Outcome(run.value, evidence, saved.until)

    async def _settle(self, call: Call[R], found: Found[R], run: Run) -> Evidence:
        basis: Basis = call.basis
        evidence = await self._guard.ask(partial(basis.settle, found.standing, run), call.place)
        return basis.unsettled(found.standing, run) if isinstance(evidence, Nothing) else evidence

    async def _stand_in(self, call: Call[R], found: Found[R]) -> Found[R] | None:
        """Return the last result if it may be handed out, now that computing has failed."""
        if not isinstance(found.saved, Saved) or found.verdict is Verdict.GONE:
            return None
        again = await self._found(call, found.saved)  # its dependencies may have changed meanwhile
        return None if again.verdict is Verdict.GONE else again

    def _brought(self, found: Found[R]) -> Outcome[R]:
        standing = found.standing
        evidence = Evidence(standing.identifiers, Fill(standing.tokens, usable=True, fresh=True))
        return Outcome(found.value, evidence, found.until)

    def _count(self, found: Found[R], is_served: bool) -> None:
        why = found.standing.why
        if why is None or is_served or not self._has_asked(found):
            super()._count(found, is_served)
        else:
            self._count_bypass(why.name.lower())


def _no_longer(saved: Saved, until: int | None) -> Saved:
    """Let a result be too old when something that it was made of is."""
    return saved if until is None else saved._replace(until=until if saved.until is None else min(saved.until, until))


def _is_served(verdict: Verdict, waits: bool, is_alone: bool) -> bool:
    """Tell whether a call is answered at once; who shares nothing leaves it to others to compute the next result."""
    if verdict is Verdict.DUE:
        return is_alone or not waits
    return verdict is Verdict.FRESH or (verdict is Verdict.STALE and not (is_alone or waits))
