"""What is explored: who takes part, what may go wrong, and which rules hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from akv.tokens.rules import ALL, Epoch, Rule, Rules, Seen
from tests.model.world import NO_FAULTS, NOT_BEGUN, OLD, Budget, Initialiser, Reader, Which, World, Writer


@dataclass(frozen=True)
class Kind:
    """
    What a reader is like.

    Attributes:
        name: As it stands in traces.
        holds: What its session holds that is older than the call.
        tracked: Its dependencies are known only after it ran.
        dirty: It reads inside the transaction of the first writer.
        attached: What it holds was loaded in another session, before.
        once: It calls once only.
    """

    name: str
    holds: Literal["", "snapshot", "instance"] = ""
    tracked: bool = False
    dirty: bool = False
    attached: bool = False
    once: bool = False

    @property
    def has_session(self) -> bool:
        """Does the call concern a session?"""
        return bool(self.holds) or self.dirty


RC = Kind("RC")
"""READ COMMITTED: tokens first, queries after."""
RC_ONCE = Kind("RC_ONCE", once=True)
RR = Kind("RR", holds="snapshot")
"""REPEATABLE READ."""
LOADED = Kind("LOADED", holds="instance")
"""Its instance was loaded before it asked for a key."""
TRACKED = Kind("TRACKED", tracked=True)
TRACKED_RR = Kind("TRACKED_RR", tracked=True, holds="snapshot")
TRACKED_LOADED = Kind("TRACKED_LOADED", tracked=True, holds="instance")
ATTACHED = Kind("ATTACHED", holds="instance", attached=True)
"""``add(detached)``, ``merge(load=False)``."""
DIRTY = Kind("DIRTY", dirty=True)


@dataclass(frozen=True)
class Scenario:
    """
    One arrangement, explored to exhaustion.

    Attributes:
        writers: How many there are; each changes the row once.
        readers: Who reads, again and again.
        crash: A writer may die at any step; also: its COMMIT is cancelled, or its reply is lost.
        budget: The other faults.
        initialisers: How many processes open epochs.
        empty: Redis holds nothing at the start; else there is an active epoch.
        flight: The readers are callers of one process, and look for a flight when they arrive, or when they
            have read their own tokens and missed.
        batched: They are callers of one process and share reads of tokens.
        bulk: The last writer changes "rows of the table, nobody knows which".
        source: Something outside the database changes, and ``cache_clear`` says so.
        cut_off: By the policy "outbox", a writer may fail to reach a Redis that is well.
        late: A MARK may be executed twice, or after its writer gave up; the second time at any time.
        exact: A REPEATABLE READ read must return nothing that is newer than its snapshot.
        without_epoch: What a writer does that finds none.
        early_s0: A tracked run goes by what the process knew before the call.
        outbox_check: When the outbox must be empty for a new epoch.
        in_database: Tokens are in the database, bumped by the writer's own transaction.
        only_at_rest: Look only for what stays wrong for ever.
        rules: Those that hold.
        name: Its name, if it has one.
    """

    writers: int = 1
    readers: tuple[Kind, ...] = (RC,)
    crash: bool = False
    budget: Budget = NO_FAULTS
    initialisers: int = 1
    empty: bool = False
    flight: Literal["", "on arrival", "on miss"] = ""
    batched: bool = False
    bulk: bool = False
    source: bool = False
    cut_off: bool = False
    late: bool = False
    exact: bool = False
    without_epoch: Literal["open", "skip"] = "open"
    early_s0: bool = False
    outbox_check: Literal["", "before", "after"] = ""
    in_database: bool = False
    only_at_rest: bool = False
    rules: Rules = ALL
    name: str = ""

    def has(self, rule: Rule) -> bool:
        """Does this rule hold?"""
        return rule in self.rules

    def without(self, rule: Rule) -> Scenario:
        """Return the same, less one rule."""
        return replace(self, rules=self.rules - {rule})

    @cached_property
    def title(self) -> str:
        """Its name, and all that is not as usual."""
        words = [f"{self.writers} writers"] * (self.writers > 1)
        words += [" ".join(kind.name for kind in self.readers)]
        words += ["crash"] * self.crash
        words += [fault if n == 1 else f"{fault} x {n}" for fault, n in self.budget._asdict().items() if n]
        words += [f"{self.initialisers} initialisers"] * (self.initialisers > 1)
        words += ["Redis empty"] * self.empty
        words += [f"flight {self.flight}"] * bool(self.flight)
        words += ["shared token reads"] * self.batched
        words += ["row and bulk"] * self.bulk
        words += ["cache_clear"] * self.source
        words += ["writers cut off"] * self.cut_off
        words += ["late marks"] * self.late
        words += ["exact"] * self.exact
        words += ["no mark without an epoch"] * (self.without_epoch == "skip")
        words += ["early S0"] * self.early_s0
        words += [f"outbox empty {self.outbox_check} the drain"] * bool(self.outbox_check)
        words += ["DatabaseTokens"] * self.in_database
        return (f"{self.name}: " if self.name else "") + ", ".join(words)

    @cached_property
    def which(self) -> Which:
        """The records that the readers depend on."""
        bulk = self.bulk and self.has(Rule.VECTOR_HAS_BULK)
        call = self.source and self.has(Rule.INVALIDATION_IS_BUMP)
        return (0, 1) if bulk or call else (0,)

    def changed_by(self, writer: int) -> Which:
        """Return the records that a writer changes."""
        return (1,) if self.bulk and writer == self.writers - 1 else (0,)

    def initial(self) -> World:
        """Return the world in which nothing has happened yet."""
        records = (OLD,) * (2 if self.bulk or self.source else 1)
        epoch = None if self.empty else Epoch("1", run="0", active=True)
        redis = Seen(run="0", epoch=epoch, seq=0, records=records)
        return World(
            writers=(Writer(),) * self.writers,
            txns=(NOT_BEGUN,) * self.writers,
            redis=redis,
            redis_up=True,
            backup=redis if self.budget.restart or self.budget.outage else None,
            store=None,
            readers=(Reader(),) * len(self.readers),
            leader=None,
            batch=None,
            initialisers=(Initialiser(),) * self.initialisers,
            epochs=1,
            outbox=0,
            excused=0,
            source="same",
            budget=self.budget,
        )
