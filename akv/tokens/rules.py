"""
The protocol's decisions about tokens, as pure functions: no I/O, no SQLAlchemy, no clock.

Whoever wants to know whether tokens can go stale reads this page, and whoever
models the protocol imports it. Each function takes its rules as a keyword, so
that a model, or an experiment on real servers, can leave one out and see what
it is good for; the program never does.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, NamedTuple, TypeAlias


class Token(NamedTuple):
    """A version of one identifier: the epoch, and what the counter showed at the last bump."""

    epoch: str
    seq: int


Vector: TypeAlias = tuple[Token, ...]
"""The tokens of all the records that something depends on, in the order in which they were asked for."""


class Epoch(NamedTuple):
    """
    A time in which no mark and no bump was lost.

    Attributes:
        id: Never used twice.
        run: The Redis process that it was written for; empty for a database.
        active: Every transaction that may have lost its mark has ended; else the epoch is draining.
    """

    id: str
    run: str
    active: bool


class Record(NamedTuple):
    """What is stored for one identifier: its token, and who is about to commit a change of it."""

    epoch: str
    seq: int
    marks: tuple[str, ...]


class Seen(NamedTuple):
    """
    What one read of tokens showed, all of one instant.

    Attributes:
        run: The process that answered; empty for a database.
        epoch: The epoch that it has, of whatever process; None: there is none.
        seq: The counter, hence the newest token there is.
        records: Those that were asked for, in that order.
    """

    run: str
    epoch: Epoch | None
    seq: int
    records: tuple[Record, ...]


class Holder(NamedTuple):
    """
    A session or connection that a call concerns: what it holds may be older than the call, or nobody else's.

    Attributes:
        stamp: The newest token known before the snapshot or the oldest load; None: nothing is known.
        dirty: It has changed something and has not committed.
    """

    stamp: Token | None
    dirty: bool = False


class Fill(NamedTuple):
    """
    One computation of a value, which several callers may share (single flight).

    Attributes:
        vector: What its first read of tokens showed; None: nothing.
        usable: That read was usable for the holders that the computation concerns.
        fresh: The computation uses nothing that is older than its first read.
    """

    vector: Vector | None
    usable: bool
    fresh: bool


class Arrival(Enum):
    """When a caller came to a flight under way."""

    ABOARD = "before the flight's first read of tokens was sent"
    CONFIRMED = "later, but before a read of tokens was sent that confirms the first"
    LATE = "later still"


class EpochStep(Enum):
    """What whoever meets a bad epoch does about it."""

    OPEN = "E1: write a new one, draining"
    DRAIN = "E2, E3: wait until all who had entered the gate have ended, then activate it"


class Private(Enum):
    """Why a key is private: nobody else may see what is stored under it."""

    PENDING = "the instance is not in the database yet"
    DELETED = "the instance is deleted and the deletion not committed"
    DETACHED = "the instance belongs to no session, so nobody knows how old it is"
    DIRTY = "a session or transaction concerned has uncommitted changes"
    RETAINED = "a session concerned holds attributes that may be older than the tokens"
    SNAPSHOT = "the transactions concerned do not see the same tokens"
    ABSENT = "the transaction is older than the table of tokens"
    MARKED = "a transaction that changed it is about to commit"
    EPOCH = "tokens were lost, and the new ones do not count yet"
    UNREACHABLE = "the tokens cannot be read"


class Rule(Enum):
    """Every rule of the protocol; without any one of them something goes stale, leaks or stays stuck."""

    # Writers
    MARK_BEFORE_COMMIT = "the mark is set before COMMIT is sent"
    RESOLVE_AFTER_COMMIT = "the mark is taken away after the transaction has ended"
    RESOLVE_BUMPS = "who takes a mark away gives the record a fresh token"
    BUMP_AT_REAL_COMMIT = "the release of a savepoint is no commit"
    ENTER_BEFORE_MARK = "the gate is entered before the mark is set"
    MARK_IN_CURRENT_EPOCH = "a mark stands in the epoch that there is when it is set"
    MARK_RESETS_RECORD = "a mark on a record of another epoch starts the record anew"
    BUMP_RESETS_RECORD = "a bump of a record of another epoch starts the record anew"
    MARKS_ARE_EXACT = "who takes a mark away takes that one, not what looks like a part of it"
    MARKS_ARE_UNIQUE = "no two transactions ever have the same mark"
    MARK_IN_DRAINING = "a draining epoch takes marks, so that no commit waits for the drain that waits for it"
    # Readers
    MARKS_BLOCK = "a marked record is not usable"
    EPOCH_IS_ACTIVE = "a draining epoch is not usable"
    EPOCH_HAS_RUN_ID = "the epoch of another Redis process is none"
    TOKENS_FIRST = "tokens are read before the queries run"
    STAMP = "what was loaded is not older than the tokens that it is stored under"
    STAMP_NAMES_EPOCH = "a stamp covers only tokens of its own epoch"
    STAMP_IS_ACTIVE = "a draining epoch gives no stamp"
    ATTACH_VOIDS_STAMP = "a session that an instance entered from outside has no stamp"
    DIRTY_IS_PRIVATE = "a session with uncommitted changes shares nothing"
    S0 = "tracked: no record is newer than what was known before the run"
    S0_IS_ACTIVE = "tracked: what a draining epoch showed before the run does not count"
    TRACKED_HAS_SESSION = "tracked: the stamps of sessions from outside count, too"
    BATCH_IS_CLOSED = "nobody joins a batch of token reads that was sent"
    VECTOR_HAS_BULK = "a row depends on bulk changes of its table as well"
    INVALIDATION_IS_BUMP = "an explicit invalidation is a bump, so that it beats computations under way"
    CONFIRM_BEFORE_SAVE = "tokens are read again before a value is saved, so that it is not newer than they"
    # Single flight
    JOIN_NEEDS_CONFIRM = "who comes after the first read needs a later one that confirms it"
    JOIN_NEEDS_USABLE = "nothing confirms a first read that was not usable"
    CONFIRM_NEEDS_USABLE = "a read confirms only under an active epoch"
    ABOARD_NEEDS_FRESH = "who came before the first read takes no result made of older state"
    JOIN_FITS_CALLER = "a caller takes only what its own session could use"
    SNAPSHOT_FLIES_ALONE = "who reads tokens inside a snapshot shares no flight"
    # Epochs, sweeper, outbox, Redis
    DRAIN = "an epoch becomes active after all who had entered the gate have ended"
    LIST_AFTER_E1 = "they are listed after the epoch was opened"
    ACTIVATE_BY_CAS = "only the epoch that was drained becomes active"
    EPOCH_IDS_ARE_FRESH = "every attempt to open an epoch has an id of its own"
    TAKE_OVER_DRAINING = "whoever meets a draining epoch drains and activates it"
    SWEEPER_SWEEPS = "somebody takes away the marks that a dead writer left"
    SWEEPER_ASKS_GATE = "only the database says that a marked transaction has ended, no clock does"
    OUTBOX_TRIES_REDIS = "a commit that uses the outbox has tried to set its mark"
    RELAY_BUMPS_FIRST = "a row leaves the outbox after its bump"
    NO_EVICTION = "Redis evicts no records"


Rules: TypeAlias = frozenset[Rule]
ALL: Final[Rules] = frozenset(Rule)
"""Each is asked for only where it forbids something: whoever may pays nothing for it."""


def valid_epoch(seen: Seen, *, rules: Rules = ALL) -> Epoch | None:
    """Return the epoch, if there is one and it was written for the process that answered."""
    epoch = seen.epoch
    if epoch is not None and epoch.run != seen.run and Rule.EPOCH_HAS_RUN_ID in rules:
        return None
    return epoch


def active_epoch(seen: Seen, *, rules: Rules = ALL) -> Epoch | None:
    """Return the epoch, if there is a valid one that is not draining."""
    epoch = valid_epoch(seen, rules=rules)
    return epoch if epoch is not None and epoch.active else None


def current(record: Record, epoch: Epoch) -> Record:
    """Return the record as it is in *epoch*: one of another epoch counts as never written."""
    return record if record.epoch == epoch.id else Record(epoch.id, 0, ())


def vector_of(seen: Seen) -> Vector:
    """
    Return the tokens of the records that were read.

    Raises:
        ValueError: There is no epoch, hence there are no tokens; *seen* is not usable.
    """
    seqs = seqs_of(seen)
    return tuple([Token(seen.epoch.id, seq) for seq in seqs]) if seen.epoch is not None else ()


def seqs_of(seen: Seen) -> list[int]:
    """
    Return what the counter showed at the last bump of each record that was read: their tokens without the epoch.

    Raises:
        ValueError: As :func:`vector_of`.
    """
    if seen.epoch is None:
        raise ValueError("without an epoch there are no tokens")
    id_ = seen.epoch.id
    return [record.seq if record.epoch == id_ else 0 for record in seen.records]


def is_marked(seen: Seen) -> bool:
    """Tell whether anybody is about to commit a change of what was read."""
    marked = [record.epoch for record in seen.records if record.marks]
    return seen.epoch is not None and seen.epoch.id in marked


def stamp_of(seen: Seen, *, rules: Rules = ALL) -> Token | None:
    """Return the newest token there is, a stamp for what is loaded from now on; None: nothing is known."""
    return _newest(seen, Rule.STAMP_IS_ACTIVE, rules)


def s0_of(seen: Seen, *, rules: Rules = ALL) -> Token | None:
    """Return the newest token there is, for a tracked computation that starts now; None: nothing is known."""
    return _newest(seen, Rule.S0_IS_ACTIVE, rules)


def _newest(seen: Seen, needs_active: Rule, rules: Rules) -> Token | None:
    epoch = valid_epoch(seen, rules=rules)
    if epoch is None or (not epoch.active and needs_active in rules):
        return None
    return Token(epoch.id, seen.seq)


def covers(stamp: Token | None, vector: Vector, *, rules: Rules = ALL) -> bool:
    """Tell whether what was loaded at *stamp* is as new as the tokens of *vector*."""
    if stamp is None:
        return False
    for epoch, seq in vector:
        if seq > stamp.seq or (epoch != stamp.epoch and Rule.STAMP_NAMES_EPOCH in rules):
            return False
    return True


def fits(holder: Holder, vector: Vector, *, rules: Rules = ALL) -> bool:
    """Tell whether a session may meet values that others stored under *vector*, and they its own."""
    return _misfit(holder, vector, rules) is None


def _misfit(holder: Holder, vector: Vector, rules: Rules) -> Private | None:
    if holder.dirty and Rule.DIRTY_IS_PRIVATE in rules:
        return Private.DIRTY
    if not covers(holder.stamp, vector, rules=rules) and Rule.STAMP in rules:
        return Private.RETAINED
    return None


def why_private(seen: Seen, sessions: Collection[Holder] = (), *, rules: Rules = ALL) -> Private | None:
    """
    Tell why a hit may not be believed, and no value saved, under what was read; None: both may (R2).

    Args:
        seen: A read of tokens that was sent after the call began.
        sessions: Those concerned.
        rules: Those to go by.
    """
    epoch = valid_epoch(seen, rules=rules)
    if epoch is None or (not epoch.active and Rule.EPOCH_IS_ACTIVE in rules):
        return Private.EPOCH
    if is_marked(seen) and Rule.MARKS_BLOCK in rules:
        return Private.MARKED
    if not sessions:
        return None
    newest = _newest_in(seen)
    for holder in sessions:
        if (reason := _misfit(holder, newest, rules)) is not None:
            return reason
    return None


def _newest_in(seen: Seen) -> Vector:
    """Return the one token whose stamp covers every other that was read, for they are of one epoch."""
    seqs = seqs_of(seen)
    return (Token(seen.epoch.id, max(seqs)),) if seen.epoch is not None and seqs else ()


def usable(seen: Seen, sessions: Collection[Holder] = (), *, rules: Rules = ALL) -> bool:
    """Tell whether a hit may be believed, and a value saved, under what was read (R2); see :func:`why_private`."""
    return why_private(seen, sessions, rules=rules) is None


def confirms(again: Seen, fill: Fill, *, rules: Rules = ALL) -> bool:
    """
    Tell whether a computation is settled: what was read again shows the state of its first read (R4).

    Args:
        again: A read of the same records, sent after the queries ran.
        fill: The computation; nobody need share it.
        rules: Those to go by.
    """
    if not fill.usable and Rule.JOIN_NEEDS_USABLE in rules:
        return False
    if again.epoch is None or (active_epoch(again, rules=rules) is None and Rule.CONFIRM_NEEDS_USABLE in rules):
        return False
    return vector_of(again) == fill.vector and not is_marked(again)


def may_save_tracked(s0: Token | None, again: Seen, sessions: Collection[Holder] = (), *, rules: Rules = ALL) -> bool:
    """
    Tell whether a tracked computation is settled, so that its value may be saved under what was read after it.

    Args:
        s0: The newest token of an active epoch known before it ran.
        again: A read of the records of everything that it read, sent after that.
        sessions: Those that the coroutine was given.
        rules: Those to go by.
    """
    if not usable(again, sessions if Rule.TRACKED_HAS_SESSION in rules else (), rules=rules):
        return False
    return covers(s0, vector_of(again), rules=rules) or Rule.S0 not in rules


def may_join(arrival: Arrival, fill: Fill, sessions: Collection[Holder] = (), *, rules: Rules = ALL) -> bool:
    """Tell whether a caller, with sessions of its own, may take the result of a flight that has come to its end."""
    if not _fits_all(fill, sessions, rules) and Rule.JOIN_FITS_CALLER in rules:
        return False
    if arrival is Arrival.ABOARD:
        return fill.usable or fill.fresh or Rule.ABOARD_NEEDS_FRESH not in rules
    return arrival is Arrival.CONFIRMED or Rule.JOIN_NEEDS_CONFIRM not in rules


def _fits_all(fill: Fill, sessions: Collection[Holder], rules: Rules) -> bool:
    vector = fill.vector if fill.usable else None
    return all(vector is not None and fits(holder, vector, rules=rules) for holder in sessions)


def flies_alone(reads_in_snapshot: bool, *, rules: Rules = ALL) -> bool:
    """Tell whether a caller neither leads nor joins a flight: its reads of tokens do not show the present."""
    return reads_in_snapshot and Rule.SNAPSHOT_FLIES_ALONE in rules


def may_join_batch(is_sent: bool, *, rules: Rules = ALL) -> bool:
    """Tell whether a read of tokens may ride on a batch of such reads (R1)."""
    return not is_sent or Rule.BATCH_IS_CLOSED not in rules


def epoch_step(seen: Seen, *, rules: Rules = ALL) -> EpochStep | None:
    """Tell what to do about the epoch; None: it is active, nothing."""
    epoch = valid_epoch(seen, rules=rules)
    if epoch is None:
        return EpochStep.OPEN
    return EpochStep.DRAIN if not epoch.active and Rule.TAKE_OVER_DRAINING in rules else None


def open_epoch(seen: Seen, id_: str, *, rules: Rules = ALL) -> Seen:
    """Return what E1 makes of *seen*: a draining epoch in the place of one that is missing or of another process."""
    if valid_epoch(seen, rules=rules) is not None:
        return seen
    return seen._replace(epoch=Epoch(id_, seen.run, active=False))


def activate(seen: Seen, id_: str, *, rules: Rules = ALL) -> Seen:
    """Return what E3 makes of *seen*: the epoch is active, if it is still the one that was drained."""
    if seen.epoch is None or (seen.epoch.id != id_ and Rule.ACTIVATE_BY_CAS in rules):
        return seen
    return seen._replace(epoch=seen.epoch._replace(active=True))


def mark(seen: Seen, who: str, epoch: Epoch, *, rules: Rules = ALL) -> Seen:
    """Return what MARK makes of *seen*: *who* stands in each record."""
    records = seen.records
    if Rule.MARK_RESETS_RECORD in rules:
        records = tuple([current(record, epoch) for record in records])
    marked = [record._replace(marks=tuple(sorted({*record.marks, who}))) for record in records]
    return seen._replace(records=tuple(marked))


def resolve(seen: Seen, who: str | None = None, *, rules: Rules = ALL) -> Seen:
    """
    Return what RESOLVE makes of *seen*, and every other bump: fresh tokens, and the mark of *who* is gone.

    Without an epoch there is nothing to do: the next one starts from nothing.
    """
    if seen.epoch is None:
        return seen
    seq, records = seen.seq + 1, seen.records
    if Rule.BUMP_RESETS_RECORD in rules:
        records = tuple([current(record, seen.epoch) for record in records])
    return seen._replace(seq=seq, records=tuple([_bumped(record, seq, who, rules) for record in records]))


def _bumped(record: Record, seq: int, who: str | None, rules: Rules) -> Record:
    marks = record.marks
    if who is not None and Rule.MARKS_ARE_EXACT in rules:
        marks = tuple([each for each in marks if each != who])
    elif who is not None:
        marks = tuple([left for each in marks if (left := each.replace(who, ""))])
    return record._replace(seq=seq if Rule.RESOLVE_BUMPS in rules else record.seq, marks=marks)


def one_view(vectors: Collection[object]) -> bool:
    """Tell whether vectors read through different transactions are one, so that a key may stand for all of them."""
    return len(set(vectors)) <= 1
