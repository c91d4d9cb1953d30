"""
Rules switched off, one at a time, on real servers: the checker must catch each.

Where no real system can break a rule in a way that reads show, the table says why; the model shows those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from akv.tokens.redis import epochs
from akv.tokens.rules import Rule
from tests.history.breaking import (
    Patch,
    activate_whatever,
    bump_at_release,
    leave_draining,
    list_before_opening,
    mark_before_enter,
    mark_in_epoch_of_start,
    mark_when_active,
    never_dirty,
    never_sweep,
    never_void,
    no_drain,
    no_mark,
    nothing,
    replaced,
    resolve_before_commit,
    same_mark,
    script,
    share_sent_reads,
    stamp_of_draining,
    sweep_by_clock,
    trust_breaker,
    without,
    without_bulk,
)
from tests.history.faults import EVICTED, FLUSH, OLD_DATA
from tests.history.reads import Way
from tests.history.systems import AKV, OUTBOX


@dataclass(frozen=True)
class Ablation:
    """
    How to break a rule, and the life in which it shows soon.

    Attributes:
        patch: Breaks it, in a worker that has made nothing yet.
        faults: What has to go wrong as well.
        options: For the workers.
        breaks: More of those, where the rule is the application's to keep.
        never: Faults that the rule forbids.
        algorithm: What is on trial.
        pace: Hits from one fault to the next.
        calm: It shows when nothing goes wrong any more.
        seconds: How long things go wrong at most.
    """

    patch: Patch
    faults: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    breaks: Mapping[str, Any] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    algorithm: str = AKV
    pace: int = 200
    calm: bool = False
    seconds: float = 3600.0


def apply(name: str) -> None:
    """Break the rule of that name in this process."""
    ablation = TABLE[Rule[name]]
    assert isinstance(ablation, Ablation), ablation
    epochs._PAUSE = 0.02  # type: ignore[misc]  # so that more is lost in the same time
    ablation.patch()


JITTER: Final = (0.4, 0.05)
"""At each step of each write: pauses that let others come between."""

_BUSY: Final = {"jitter": JITTER, "hot": 8, "reads_per_write": 6, "reads_per_plan": 40}
_SESSIONS: Final = {Way.IDENTIFIER: 2, Way.LOADED: 1, Way.RETAINED: 1}
_STALLS: Final = tuple(f"stall W{number}" for number in range(1, 6))
_UNUSABLE: Final = "where the first read was not usable, or the epoch is not active, memoized functions do not ask"
_STAMPED: Final = "each transaction that a tracked computation reads in has a stamp of its own, no older than S0"
_STUCK: Final[dict[str, Any]] = {"pace": 60, "calm": True, "seconds": 15.0}

TABLE: Final[Mapping[Rule, Ablation | str]] = {
    Rule.MARK_BEFORE_COMMIT: Ablation(no_mark, ("stall W5",), _BUSY),
    Rule.RESOLVE_AFTER_COMMIT: Ablation(resolve_before_commit, ("stall W4",), _BUSY),
    Rule.RESOLVE_BUMPS: Ablation(
        script("RESOLVE", ("redis.call('INCR', KEYS[2])", "0")), (), {**_BUSY, "writes": ("flush", "bulk", "core")}
    ),
    Rule.BUMP_AT_REAL_COMMIT: Ablation(bump_at_release, ("stall W4",), {**_BUSY, "writes": ("savepoint",)}),
    Rule.ENTER_BEFORE_MARK: Ablation(mark_before_enter, (FLUSH, *_STALLS), {**_BUSY, "hot": 3}, pace=30),
    Rule.MARK_IN_CURRENT_EPOCH: Ablation(mark_in_epoch_of_start, (FLUSH, *_STALLS), _BUSY),
    Rule.MARK_RESETS_RECORD: Ablation(
        script("MARK", ("or string.sub(record, 1, #prefix) ~= prefix ", "")), (OLD_DATA, *_STALLS), _BUSY
    ),
    Rule.BUMP_RESETS_RECORD: Ablation(
        script(
            "RESOLVE",
            (
                "  redis.call('SET', KEYS[i], left)",
                (
                    "  if record and string.sub(record, 1, #prefix) ~= prefix then left = record end\n"
                    "  redis.call('SET', KEYS[i], left)"
                ),
            ),
        ),
        (OLD_DATA,),
        _BUSY,
    ),
    Rule.MARKS_ARE_EXACT: Ablation(
        script("RESOLVE", ("if not ended[mark] then", "if not next(ended) then")),
        ("stall W4", "stall W5"),
        {**_BUSY, "tables": 0.5},
    ),
    Rule.MARKS_ARE_UNIQUE: Ablation(same_mark, ("stall W4", "stall W5"), {**_BUSY, "tables": 0.5}),
    Rule.MARK_IN_DRAINING: Ablation(mark_when_active, (FLUSH,), _BUSY, **_STUCK),
    Rule.MARKS_BLOCK: Ablation(without(Rule.MARKS_BLOCK), ("stall W5",), _BUSY),
    Rule.EPOCH_IS_ACTIVE: Ablation(without(Rule.EPOCH_IS_ACTIVE), (FLUSH, *_STALLS), _BUSY),
    Rule.EPOCH_HAS_RUN_ID: Ablation(without(Rule.EPOCH_HAS_RUN_ID), (OLD_DATA,), _BUSY),
    Rule.TOKENS_FIRST: Ablation(nothing, (), {**_BUSY, "ways": {Way.PLAIN: 1}}, {"queries_first": True}),
    Rule.STAMP: Ablation(without(Rule.STAMP), (), {**_BUSY, "ways": _SESSIONS}),
    Rule.STAMP_NAMES_EPOCH: Ablation(
        without(Rule.STAMP_NAMES_EPOCH), (FLUSH,), {**_BUSY, "ways": _SESSIONS, "pause": 1.0}
    ),
    Rule.STAMP_IS_ACTIVE: Ablation(
        stamp_of_draining,
        (FLUSH, "cancel W4"),
        {
            "jitter": (0.6, 0.3),
            "hot": 2,
            "reads_per_write": 3,
            "reads_per_plan": 3,
            "writes": ("flush", "bulk"),
            "ways": {Way.IDENTIFIER: 1, Way.LOADED: 2, Way.RETAINED: 2},
            "pause": 1.5,
            "tables": 0,
        },
        pace=10,
    ),
    Rule.ATTACH_VOIDS_STAMP: Ablation(
        never_void, (), {**_BUSY, "ways": {Way.IDENTIFIER: 2, Way.ATTACHED: 1}, "pause": 0.1}
    ),
    Rule.DIRTY_IS_PRIVATE: Ablation(never_dirty, ("stall W4",), {**_BUSY, "writes": ("flush", "rolled back")}),
    Rule.S0: _STAMPED,
    Rule.S0_IS_ACTIVE: _STAMPED,
    Rule.TRACKED_HAS_SESSION: "the read after a tracked computation is judged by the stamps of all its sessions anyway",
    Rule.BATCH_IS_CLOSED: Ablation(share_sent_reads, (), _BUSY),
    Rule.VECTOR_HAS_BULK: Ablation(without_bulk, (), {**_BUSY, "writes": ("shelf", "flush")}),
    Rule.INVALIDATION_IS_BUMP: "tests/memoize/test_dependencies_across_processes.py does it; nothing here invalidates",
    Rule.CONFIRM_BEFORE_SAVE: Ablation(
        nothing,
        (),
        {
            "hot": 1,
            "reads_per_write": 8,
            "ways": {Way.IDENTIFIER: 1, Way.SNAPSHOT: 1},
            "tables": 0,
            "stalled_reads": 0.8,
            "writes": ("flush", "bulk", "core"),
        },
        {"confirms": False},
    ),
    Rule.JOIN_NEEDS_CONFIRM: Ablation(
        without(Rule.JOIN_NEEDS_CONFIRM), (), {**_BUSY, "hot": 2, "ways": {Way.TRACKED: 1}, "tables": 0}
    ),
    Rule.JOIN_NEEDS_USABLE: _UNUSABLE,
    Rule.CONFIRM_NEEDS_USABLE: _UNUSABLE,
    Rule.ABOARD_NEEDS_FRESH: Ablation(
        without(Rule.ABOARD_NEEDS_FRESH),
        (),
        {**_BUSY, "hot": 2, "ways": {Way.GIVEN: 4, Way.GIVEN_SNAPSHOT: 4}, "tables": 0},
    ),
    Rule.JOIN_FITS_CALLER: Ablation(
        without(Rule.JOIN_FITS_CALLER),
        (),
        {**_BUSY, "hot": 2, "ways": {Way.TRACKED: 2, Way.GIVEN: 2, Way.GIVEN_SNAPSHOT: 4}, "tables": 0},
    ),
    Rule.SNAPSHOT_FLIES_ALONE: "only tokens in a database are read in snapshots, and these lives are on PostgreSQL",
    Rule.DRAIN: Ablation(no_drain, (FLUSH, *_STALLS), _BUSY),
    Rule.LIST_AFTER_E1: Ablation(list_before_opening, (FLUSH, *_STALLS), _BUSY),
    Rule.ACTIVATE_BY_CAS: Ablation(activate_whatever, (FLUSH, *_STALLS), {**_BUSY, "hot": 3}, pace=5),
    Rule.EPOCH_IDS_ARE_FRESH: Ablation(replaced(epochs, "new_id", lambda: "always"), (FLUSH,), _BUSY),
    Rule.TAKE_OVER_DRAINING: Ablation(
        leave_draining,
        (FLUSH, *(f"kill W{number}" for number in range(1, 6))),
        {**_BUSY, "reads_per_plan": 10},
        **_STUCK,
    ),
    Rule.SWEEPER_SWEEPS: Ablation(never_sweep, ("kill W4", "cancel W4"), {**_BUSY, "reads_per_plan": 10}, **_STUCK),
    Rule.SWEEPER_ASKS_GATE: Ablation(sweep_by_clock, ("stall W4", "stall W5"), _BUSY),
    Rule.OUTBOX_TRIES_REDIS: Ablation(
        trust_breaker, (OLD_DATA,), {**_BUSY, "tokens": {"outbox_every": 60.0}}, algorithm=OUTBOX
    ),
    Rule.RELAY_BUMPS_FIRST: "what is lost in the relay was committed past a Redis that readers reach: not promised",
    Rule.NO_EVICTION: Ablation(nothing, ("stall W5",), _BUSY, never=(EVICTED,)),
}
