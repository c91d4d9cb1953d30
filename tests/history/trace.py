"""
What led to a violation, in lines that can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.history.check import Violation
from tests.history.log import Kind, Outcome, Record, unpack
from tests.history.reads import Way

BEFORE = 2 * 10**9
AFTER = 2 * 10**8
LAST = 200
_READS = (Kind.READ, Kind.SNAPSHOT, Kind.OWN)


def lines(violation: Violation, records: Iterable[Record]) -> Iterator[str]:
    """Yield the records about the row, and all faults and notes, around the read that is to blame."""
    read, row = violation.record, violation.seen.row
    yield f"{violation.kind}: row {row} in version {violation.seen.version}, tag {violation.seen.tag:x}"
    yield f"  allowed: {violation.floor}; shown by {_by(violation.shown_by)}"
    yield f"  the read: {_line(read, row)}"
    for record in records:
        near = read.start - BEFORE < record.end < read.end + AFTER
        if near and (record.kind in (Kind.FAULT, Kind.NOTE, Kind.COUNT) or _concerns(record, row)):
            yield f"{(record.end - read.start) / 1e6:+10.2f} ms  {_line(record, row)}"


def last_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield the last records that are not hits."""
    last = [record for record in records if record.kind not in _READS or record.outcome == Outcome.BYPASS][-LAST:]
    for record in last:
        yield f"{(record.end - last[-1].end) / 1e6:+10.2f} ms  {_line(record, -1)}"


def _by(record: Record | None) -> str:
    return "nobody" if record is None else f"slot {record.slot}, {Kind(record.kind).name}"


def _concerns(record: Record, row: int) -> bool:
    return record.kind in (Kind.ACKED, Kind.UNDONE) or any(number == row for number, _, _ in unpack(record.value))


def _line(record: Record, row: int) -> str:
    kind = Kind(record.kind)
    who = f"slot {record.slot:2} {kind.name:8}"
    if kind in (Kind.FAULT, Kind.COUNT, Kind.NOTE):
        return f"{who} {record.beside.decode()}"
    seen = ", ".join(f"version {version} of {tag:x}" for number, version, tag in unpack(record.value) if number == row)
    if kind in _READS:
        lasted = (record.end - record.start) / 1e6
        outcome = Outcome(record.outcome).name
        return (
            f"{who} {Way(record.way).name} {outcome} subject {record.subject} {seen} key {record.key:x} {lasted:.2f} ms"
        )
    return f"{who} {seen} {record.key:x}"
