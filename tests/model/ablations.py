"""What each rule is good for: a scenario that is sound with it, and what goes wrong there without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from akv.tokens.rules import ALL, Rule
from tests.model.catalogue import FLUSH, OUTAGE, RESTART
from tests.model.gate_rows import GateRows
from tests.model.scenario import (
    ATTACHED,
    DIRTY,
    LOADED,
    RC,
    RC_ONCE,
    RR,
    TRACKED,
    TRACKED_LOADED,
    TRACKED_RR,
    Scenario,
)
from tests.model.world import Budget


@dataclass(frozen=True)
class Ablation:
    """
    A rule left out.

    Attributes:
        rule: Which.
        sound: The scenario, with all rules.
        violation: The first word of what is found without it.
    """

    rule: Rule
    sound: Scenario
    violation: str

    @property
    def unsound(self) -> Scenario:
        """The scenario without the rule."""
        return replace(self.sound.without(self.rule), name=f"without {self.rule.name}")


def _left_out(rule: Rule, violation: str, **scenario: Any) -> Ablation:
    return Ablation(rule, Scenario(**scenario), violation)


ABLATIONS: Final = (
    _left_out(Rule.MARK_BEFORE_COMMIT, "STALE"),
    _left_out(Rule.RESOLVE_AFTER_COMMIT, "STALE"),
    _left_out(Rule.RESOLVE_BUMPS, "STALE"),
    _left_out(Rule.BUMP_AT_REAL_COMMIT, "STALE"),
    _left_out(Rule.ENTER_BEFORE_MARK, "STALE", budget=FLUSH),
    _left_out(Rule.MARK_IN_CURRENT_EPOCH, "STALE", budget=FLUSH),
    _left_out(Rule.MARK_RESETS_RECORD, "STALE"),
    _left_out(Rule.BUMP_RESETS_RECORD, "STALE", source=True),
    _left_out(Rule.BUMP_RESETS_RECORD, "STALE", cut_off=True),
    _left_out(Rule.MARKS_ARE_EXACT, "STALE", readers=(RC_ONCE,), writers=2),
    _left_out(Rule.MARKS_ARE_UNIQUE, "STALE", readers=(RC_ONCE,), writers=2),
    _left_out(Rule.MARK_IN_DRAINING, "STUCK", budget=FLUSH),
    _left_out(Rule.MARKS_BLOCK, "STALE"),
    _left_out(Rule.EPOCH_IS_ACTIVE, "STALE", budget=FLUSH),
    _left_out(Rule.EPOCH_HAS_RUN_ID, "STALE", budget=RESTART),
    _left_out(Rule.TOKENS_FIRST, "STALE"),
    _left_out(Rule.STAMP, "STALE", readers=(RR,)),
    _left_out(Rule.STAMP, "STALE", readers=(LOADED,)),
    _left_out(Rule.STAMP, "STALE", readers=(LOADED,), in_database=True),
    _left_out(Rule.STAMP_NAMES_EPOCH, "STALE", readers=(RR,), budget=FLUSH),
    _left_out(Rule.STAMP_IS_ACTIVE, "STALE", readers=(RR,), budget=FLUSH),
    _left_out(Rule.ATTACH_VOIDS_STAMP, "STALE", readers=(ATTACHED,)),
    _left_out(Rule.DIRTY_IS_PRIVATE, "DIRTY", readers=(DIRTY,)),
    _left_out(Rule.S0, "STALE", readers=(TRACKED,)),
    _left_out(Rule.S0, "STALE", readers=(TRACKED,), in_database=True),
    _left_out(Rule.S0_IS_ACTIVE, "STALE", readers=(TRACKED,), budget=FLUSH),
    _left_out(Rule.TRACKED_HAS_SESSION, "STALE", readers=(TRACKED_RR,)),
    _left_out(Rule.TRACKED_HAS_SESSION, "STALE", readers=(TRACKED_LOADED,)),
    _left_out(Rule.BATCH_IS_CLOSED, "STALE", readers=(RC, RC), batched=True),
    _left_out(Rule.VECTOR_HAS_BULK, "STALE", readers=(RC_ONCE,), writers=2, bulk=True),
    _left_out(Rule.INVALIDATION_IS_BUMP, "STALE", source=True),
    _left_out(Rule.CONFIRM_BEFORE_SAVE, "SNAPSHOT", readers=(RC, RR), exact=True),
    _left_out(Rule.JOIN_NEEDS_CONFIRM, "STALE", readers=(RC, RC), flight="on arrival"),
    _left_out(Rule.JOIN_NEEDS_CONFIRM, "STALE", readers=(RC, RC), flight="on miss"),
    _left_out(Rule.JOIN_NEEDS_CONFIRM, "STALE", readers=(RC, RC), flight="on arrival", in_database=True),
    _left_out(Rule.JOIN_NEEDS_USABLE, "STALE", readers=(RC_ONCE, RC_ONCE), flight="on arrival", budget=FLUSH),
    _left_out(Rule.JOIN_NEEDS_USABLE, "STALE", readers=(RR, RC), flight="on arrival"),
    _left_out(Rule.JOIN_NEEDS_USABLE, "DIRTY", readers=(DIRTY, RC), flight="on arrival"),
    _left_out(Rule.CONFIRM_NEEDS_USABLE, "STALE", readers=(RC_ONCE, RC_ONCE), flight="on arrival", budget=RESTART),
    _left_out(Rule.ABOARD_NEEDS_FRESH, "STALE", readers=(RR, RC), flight="on arrival"),
    _left_out(Rule.ABOARD_NEEDS_FRESH, "DIRTY", readers=(DIRTY, RC), flight="on arrival"),
    _left_out(Rule.JOIN_FITS_CALLER, "OWN", readers=(RC, DIRTY), flight="on arrival"),
    _left_out(Rule.JOIN_FITS_CALLER, "SNAPSHOT", readers=(RC, RR), flight="on arrival", exact=True),
    _left_out(Rule.SNAPSHOT_FLIES_ALONE, "STALE", readers=(RC, RR), flight="on arrival", in_database=True),
    _left_out(Rule.DRAIN, "STALE", budget=FLUSH),
    _left_out(Rule.LIST_AFTER_E1, "STALE", empty=True, budget=FLUSH),
    _left_out(Rule.LIST_AFTER_E1, "STALE", budget=FLUSH, without_epoch="skip"),
    _left_out(Rule.ACTIVATE_BY_CAS, "STALE", readers=(RC_ONCE,), initialisers=2, empty=True, budget=FLUSH),
    _left_out(Rule.EPOCH_IDS_ARE_FRESH, "STALE", empty=True, budget=FLUSH),
    _left_out(Rule.TAKE_OVER_DRAINING, "STUCK", empty=True, budget=Budget(desertion=1)),
    _left_out(Rule.SWEEPER_SWEEPS, "STUCK", crash=True),
    _left_out(Rule.SWEEPER_ASKS_GATE, "STALE"),
    _left_out(Rule.OUTBOX_TRIES_REDIS, "STALE", budget=OUTAGE),
    _left_out(Rule.OUTBOX_TRIES_REDIS, "STALE", budget=OUTAGE, outbox_check="after"),
    _left_out(Rule.RELAY_BUMPS_FIRST, "STALE", cut_off=True),
    _left_out(Rule.NO_EVICTION, "STALE", budget=Budget(eviction=1)),
)

SOUND: Final = tuple(dict.fromkeys(ablation.sound for ablation in ABLATIONS))
"""What the ablations stand on, each once."""

GATE_ABLATIONS: Final = (
    GateRows("without keeping one's own gate row until after COMMIT", deletes_own_row=True),
    GateRows("without READ UNCOMMITTED in gate.ended", absent_is_ended=True),
)

_ALKEY: Final = ALL - {Rule.MARK_BEFORE_COMMIT, Rule.STAMP, Rule.DIRTY_IS_PRIVATE, Rule.EPOCH_HAS_RUN_ID}


def _alkey(defect: str, **scenario: Any) -> Scenario:
    """Return the ancestor's algorithm; look only for what stays wrong for ever."""
    return replace(Scenario(rules=_ALKEY, only_at_rest=True, name=f"alkey: {defect}"), **scenario)


ANCESTOR: Final = (
    _alkey("between commit and bump", only_at_rest=False),
    _alkey("a crash there, a cancelled COMMIT, a lost reply", crash=True),
    _alkey("a savepoint is released", rules=_ALKEY - {Rule.BUMP_AT_REAL_COMMIT}),
    _alkey("a Redis error at the bump", budget=OUTAGE),
    _alkey("key asked for after the load", readers=(LOADED,)),
    _alkey("REPEATABLE READ", readers=(RR,)),
    _alkey("a read inside a dirty transaction", readers=(DIRTY,)),
    _alkey("Redis restarts with older data", budget=RESTART),
)
"""What the library does that akv descends from, and must be found unsound."""
