"""
track=True: what a result rests on is what was read while it was computed.

The tokens of that are known only afterwards. So the newest token of all is known before (S0), and the result may be
saved if nothing that was read has a newer one after it, and no session showed anything older.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from akv.memoize.dependencies import (
    Basis,
    Dependencies,
    Evidence,
    Run,
    Standing,
    all_members,
    instances_among,
    memo_identifiers,
)
from akv.memoize.flight import Boarding
from akv.memoize.freshness import Saved
from akv.memoize.guard import Nothing, Place
from akv.memoize.outer import outer
from akv.tokens.backend import Backend
from akv.tokens.concern import Concern
from akv.tokens.reads import ENTERED, UNCOMMITTED, Reads, recording
from akv.tokens.rules import Fill, Holder, Private, Seen, covers, may_save_tracked, vector_of

_UNKNOWN: Final = "a memoized call within it has a result of which nobody knows what it depends on"
_NOTHING: Final = (
    "it reads nothing through an engine that is bound to the store's tokens: bind the engine that it reads through, or "
    "leave track out"
)
_OWN_DOING: Final = (UNCOMMITTED, ENTERED)
"""Reasons that say nothing against the function, but of what its session was doing."""


class Tracked(Basis):
    """What the result of one call rests on, once it was computed."""

    tracked = True

    def __init__(
        self,
        tokens: Backend,
        concern: Concern,
        identifiers: tuple[str, ...],
        given: list[Any],
        warn: Callable[[str], None],
        *,
        is_declared: bool,
    ) -> None:
        """
        Args:
            tokens: Of the store.
            concern: The sessions that the result may be computed with.
            identifiers: Those that it depends on whatever is read.
            given: Mapped instances among the arguments.
            warn: Told why a result cannot be saved.
            is_declared: Something was declared beside what is read.
        """
        super().__init__(tokens, concern, identifiers)
        self._given = given
        self._warn = warn
        self._is_declared = is_declared
        self._reads: Reads | None = None
        self._until: int | None = None

    def asks_for(self, saved: Saved | Nothing) -> tuple[str, ...]:
        """Return what a saved result depends on; if there is none, what the next one will depend on in any case."""
        if isinstance(saved, Saved) and saved.tracked and set(self.identifiers) <= set(saved.identifiers):
            return saved.identifiers
        return self.identifiers

    def takes(self, boarding: Boarding, outcome: Any) -> bool:
        """Tell whether the call may take what another one's flight brings; within a computation, no failure of it."""
        if outcome is None and outer.get() is not None:
            return False  # what was read before it failed was not told to that one, which may catch the exception
        return super().takes(boarding, outcome)

    async def run(self, compute: Callable[[], Awaitable[Any]]) -> Run:
        """Compute, and record what is read."""
        with recording(self._tokens) as reads:
            told = _Told(reads)
            for instance in self._given:
                reads.hold(instance)
            before = outer.set(told)
            try:
                value = await compute()
            finally:
                outer.reset(before)
        self._reads = reads
        if reads.unattributed is not None:
            if reads.unattributed not in _OWN_DOING:
                self._warn(reads.unattributed)
            return Run(value, None, told.until)
        if not (reads.identifiers or self._is_declared):
            self._warn(_NOTHING)
        return Run(value, all_members([*sorted(reads.identifiers), *self.identifiers]), told.until)

    async def settle(self, first: Standing, run: Run) -> Evidence:
        """Read the tokens of what was read, and say whether the result may be saved under them."""
        concern, reads = self.concern, self._reads
        concern.look_around()
        if reads is not None:
            concern.sessions.update(dict.fromkeys(reads.sessions))
        if first.why is not None or run.identifiers is None or reads is None or first.s0 is None:
            return self.unsettled(first, run)
        if not (reads.identifiers or self._is_declared):  # or a forgotten bind() would make it last for ever
            return self.unsettled(first, run)
        again = await concern.read_once(run.identifiers)
        snapshots = [Holder(transaction.stamp) for transaction in reads.transactions if not self._is_seen(transaction)]
        is_settled = (
            isinstance(again, Seen)
            and may_save_tracked(first.s0, again, snapshots)
            and await self._shows_present(again, run)
        )
        tokens = vector_of(again) if is_settled and isinstance(again, Seen) else None
        fill = Fill(tokens, usable=is_settled, fresh=self._is_fresh(first))
        return Evidence(run.identifiers, fill, is_settled, again is not Private.DIRTY)

    def _is_shareable(self) -> bool:
        return not (self.concern.is_dirty() or (self._reads is not None and self._reads.dirty))

    def _is_seen(self, transaction: Any) -> bool:
        """Tell whether a transaction is still open, in whose snapshot tokens are read; then that says how old it is."""
        return self._tokens.in_snapshot and transaction in self.concern.transactions()

    def _is_fresh(self, first: Standing) -> bool:
        """Tell whether nothing that was read can be older than what was known before."""
        if first.is_alone or self.concern.holders() or self._reads is None or self._reads.unattributed in _OWN_DOING:
            return False
        s0 = first.s0
        return s0 is None or all(covers(transaction.stamp, (s0,)) for transaction in self._reads.transactions)


class _Told:
    """A computation that is told by memoized calls within."""

    def __init__(self, reads: Reads) -> None:
        self.until: int | None = None
        self._reads = reads

    def rests_on(self, tokens: Any, identifiers: tuple[str, ...] | None, until: int | None) -> None:
        if identifiers is None:
            self._reads.refuse(_UNKNOWN)
        elif identifiers:
            self._reads.see(tokens, identifiers)
        if until is not None:
            self.until = until if self.until is None else min(self.until, until)


class Tracking(Dependencies):
    """What the results of one tracked function rest on."""

    def __init__(self, tokens: Any, name: str, depends_on: Any = None) -> None:
        """
        Args:
            tokens: Of the store.
            name: Of the function, for warnings.
            depends_on: What they depend on besides what is read.

        Raises:
            ConfigurationError: The tokens cannot tell, or what is declared is no plain function.
            InvalidIdentifierError: Something that is declared names nothing that can change.
        """
        super().__init__(tokens, depends_on)
        self._name = name
        self._reasons: set[str] = set()

    def of_call(self, place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Basis:
        """Return what the result of one call rests on; see :meth:`Dependencies.of_call`."""
        concern, members = self._declared(place, args, kwargs)
        given = instances_among((*args, *kwargs.values()))
        is_declared = len(members) > len(memo_identifiers(place))
        return Tracked(self._tokens, concern, members, given, self._warn, is_declared=is_declared)

    def _warn(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            warnings.warn(f"results of {self._name}() are not saved, for {reason}", RuntimeWarning, stacklevel=2)
