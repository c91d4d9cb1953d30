"""
The judge: one pass over the records of all processes, in the order in which they ended.

*Stale*: a read returned a row below the greatest version that an acknowledged
write, the database itself or any finished read had shown before the read began.
*Dirty*: a version whose COMMIT had not been sent, or that was rolled back.
*Snapshot break*: a REPEATABLE READ read returned a row newer than its snapshot.
*Stuck*: something keeps readers from the cache for good, although nothing goes wrong any more.

Versions of a row grow by one under its lock, so a number and a tag name one state of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.history.log import Kind, Outcome, Record, Seen, Value, unpack

KEPT_VIOLATIONS = 20


@dataclass(frozen=True)
class Violation:
    """
    A read that must not have happened.

    Attributes:
        kind: "stale", "dirty" or "snapshot break".
        record: The read.
        seen: The row that is wrong.
        floor: The version that had to be shown at least, or at most for a snapshot break.
        shown_by: Who had shown that before.
    """

    kind: str
    record: Record
    seen: Seen
    floor: int
    shown_by: Record | None = None


class Row:
    """
    What is known of one row: which version had been shown when, and who has written which.

    Attributes:
        outside: It is no row of a database: only what was announced counts as shown.
    """

    __slots__ = ("_by", "_times", "_tops", "outside", "sent", "top", "truth")

    def __init__(self, outside: bool) -> None:
        self.outside = outside
        self.top = 0
        self._times = [0]
        self._tops = [0]
        self._by: list[Record | None] = [None]
        self.sent: dict[int, dict[int, int]] = {0: {0: 0}}
        self.truth: dict[int, int] = {0: 0}

    def show(self, version: int, by: Record) -> None:
        if version > self.top:
            self.top = version
            self._times.append(by.end)
            self._tops.append(version)
            self._by.append(by)

    def floor(self, at: int) -> tuple[int, Record | None]:
        """Return the version that had been shown before a moment, and by whom."""
        index = bisect_left(self._times, at, lo=1) - 1
        return self._tops[index], self._by[index]


@dataclass
class Checker:
    """
    Attributes:
        rows: How many rows there are.
        outside: How many labels.
        blocking: Reasons that must not last.
        reads: How many reads were judged.
        hits: How many of them were answered by the cache.
        faults, counts: What happened how often.
        reasons: Why reads went past the cache, by number.
        violations: How many of each kind.
        examples: The first of them.
        unblocked: How many reads there were since the last one that something stood in the way of.
        prepared: What transactions wrote that were prepared and left behind.
    """

    rows: int
    outside: int = 0
    blocking: frozenset[int] = frozenset()
    reads: int = 0
    hits: int = 0
    fills: int = 0
    ways: Counter[tuple[int, int]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[int] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[Violation] = field(default_factory=list)
    unblocked: int = 0
    prepared: dict[int, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = [Row(number >= self.rows) for number in range(self.rows + self.outside)]
        self._sent: dict[int, Record] = {}
        self._undone: set[int] = set()
        self._doubtful: dict[tuple[int, int, int], list[Record]] = {}

    def take(self, records: Iterable[Record]) -> None:
        """Judge records; none that ended before the last of an earlier call may follow."""
        for record in sorted(records, key=_end):
            kind = record.kind
            if kind == Kind.READ:
                self._count(record)
                self._read(record)
            elif kind == Kind.AUDIT:
                self._audit(record)
            else:
                self._other(record)

    def finish(self) -> None:
        """Judge the reads of versions of which nobody could say yet whether they were committed."""
        for (row, version, tag), records in self._doubtful.items():
            truth = self._rows[row].truth.get(version, tag)
            rivals = len(self._rows[row].sent[version]) > 1 and version not in self._rows[row].truth
            if tag in self._undone or truth != tag or (rivals and self._has_rival(row, version, tag)):
                for record in records:
                    self._blame("dirty", record, Seen(row, version, tag), 0)

    def _has_rival(self, row: int, version: int, tag: int) -> bool:
        """Nobody knows which of several was committed: if two of them were read, one was not."""
        return any((row, version, other) in self._doubtful for other in self._rows[row].sent[version] if other > tag)

    def _other(self, record: Record) -> None:
        kind = record.kind
        if kind == Kind.SENT:
            self._send(record)
        elif kind == Kind.ACKED:
            self._acknowledge(record)
        elif kind == Kind.UNDONE:
            self._undone.add(record.key)
        elif kind == Kind.PREPARED:
            self.prepared[record.key] = record.value
        elif kind == Kind.SNAPSHOT:
            self._count(record)
            self._snapshot(record)
        elif kind == Kind.OWN:
            self._count(record)
            self._own(record)
        elif kind == Kind.FAULT:
            self.faults[record.beside.decode()] += 1
        elif kind == Kind.COUNT:
            self.counts[record.beside.decode()] += 1

    def _count(self, record: Record) -> None:
        self.reads += 1
        self.ways[record.way, record.outcome] += 1
        if record.outcome == Outcome.HIT:
            self.hits += 1
        elif record.outcome == Outcome.FILL:
            self.fills += 1
        else:
            self.reasons[record.reason] += 1
        self.unblocked = 0 if record.reason in self.blocking else self.unblocked + 1

    # --- writes

    def _send(self, record: Record) -> None:
        self._sent[record.key] = record
        for row, version, tag in unpack(record.value):
            self._rows[row].sent.setdefault(version, {}).setdefault(tag, record.end)

    def _acknowledge(self, record: Record) -> None:
        for row, version, tag in unpack(self._sent[record.key].value):
            self._believe(row, version, tag)
            self._rows[row].show(version, record)

    def _audit(self, record: Record) -> None:
        for row, version, tag in unpack(record.value):
            if self._was_sent(row, version, tag, record):
                self._believe(row, version, tag)
                self._rows[row].show(version, record)

    def _believe(self, row: int, version: int, tag: int) -> None:
        """This is what was committed."""
        self._rows[row].truth[version] = tag
        self._doubtful.pop((row, version, tag), None)

    # --- reads

    def _read(self, record: Record) -> None:
        start = record.start
        for row, version, tag in unpack(record.value):
            known = self._rows[row]
            if version < known.top:
                floor, by = known.floor(start)
                if version < floor:
                    self._blame("stale", record, Seen(row, version, tag), floor, by)
            self._committed(row, version, tag, record)

    def _snapshot(self, record: Record) -> None:
        pairs = zip(unpack(record.value), unpack(record.beside), strict=True)
        for (row, version, tag), (same, at_start, its_tag) in pairs:
            assert row == same
            if version != at_start:
                kind = "stale" if version < at_start else "snapshot break"
                self._blame(kind, record, Seen(row, version, tag), at_start, record)
            elif tag != its_tag:
                self._blame("dirty", record, Seen(row, version, tag), at_start, record)
            self._committed(row, at_start, its_tag, record)

    def _own(self, record: Record) -> None:
        own = {row: (version, tag) for row, version, tag in unpack(record.beside)}
        for row, version, tag in unpack(record.value):
            if row not in own:
                floor, by = self._rows[row].floor(record.start)
                if version < floor:
                    self._blame("stale", record, Seen(row, version, tag), floor, by)
                self._committed(row, version, tag, record)
            elif own[row] != (version, tag):
                self._blame("stale", record, Seen(row, version, tag), own[row][0], record)

    def _committed(self, row: int, version: int, tag: int, record: Record) -> None:
        known = self._rows[row]
        if known.truth.get(version) == tag:
            if not known.outside:
                known.show(version, record)
        elif self._was_sent(row, version, tag, record):
            self._doubtful.setdefault((row, version, tag), []).append(record)
            if not known.outside:
                known.show(version, record)

    def _was_sent(self, row: int, version: int, tag: int, record: Record) -> bool:
        known = self._rows[row]
        rolled_back = tag in self._undone or known.truth.get(version, tag) != tag
        if rolled_back or known.sent.get(version, {}).get(tag, record.end + 1) > record.end:
            self._blame("dirty", record, Seen(row, version, tag), known.top)
            return False
        return True

    def _blame(self, kind: str, record: Record, seen: Seen, floor: int, by: Record | None = None) -> None:
        self.violations[kind] += 1
        if len(self.examples) < KEPT_VIOLATIONS:
            self.examples.append(Violation(kind, record, seen, floor, by))


def _end(record: Record) -> int:
    return record.end
