"""The judge itself: what it calls stale, dirty or a snapshot break, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.history.cache import Cache
from tests.history.cache import create as create_cache
from tests.history.check import Checker
from tests.history.log import Kind, LogFullError, LogReader, LogWriter, Outcome, Record, now, pack

ROW, OTHER, LABEL = 0, 1, 2
A, B = 100, 200


def record(
    kind: Kind,
    end: int,
    rows: list[tuple[int, int, int]] | None = None,
    *,
    start: int = 0,
    key: int = 0,
    beside: list[tuple[int, int, int]] | None = None,
) -> Record:
    return Record(end, kind, Outcome.HIT, 0, 0, 0, start, key, pack(rows or []), pack(beside or []), 1)


def sent(end: int, version: int, tag: int, row: int = ROW) -> Record:
    return record(Kind.SENT, end, [(row, version, tag)], key=tag)


def acked(end: int, tag: int) -> Record:
    return record(Kind.ACKED, end, key=tag)


def read(start: int, end: int, version: int, tag: int, row: int = ROW) -> Record:
    return record(Kind.READ, end, [(row, version, tag)], start=start)


def verdict(*records: Record) -> dict[str, int]:
    checker = Checker(2, outside=1)
    checker.take(records)
    checker.finish()
    return dict(checker.violations)


def test_read_of_what_an_acknowledged_write_replaced_is_stale() -> None:
    assert verdict(sent(10, 1, A), acked(20, A), read(21, 30, 0, 0)) == {"stale": 1}


def test_read_that_began_before_the_write_was_acknowledged_may_return_either() -> None:
    assert verdict(sent(10, 1, A), read(19, 30, 0, 0), acked(20, A), read(15, 31, 1, A)) == {}


def test_read_below_what_the_database_showed_is_stale() -> None:
    audit = record(Kind.AUDIT, 15, [(ROW, 1, A)], start=14)
    assert verdict(sent(10, 1, A), audit, read(16, 20, 0, 0)) == {"stale": 1}


def test_read_below_what_another_read_returned_is_stale() -> None:
    assert verdict(sent(10, 1, A), read(11, 12, 1, A), read(13, 14, 0, 0)) == {"stale": 1}
    assert verdict(sent(10, 1, A), read(11, 12, 1, A), read(11, 14, 0, 0)) == {}


def test_records_are_judged_in_the_order_in_which_they_ended() -> None:
    checker = Checker(2)
    checker.take([read(21, 30, 0, 0), acked(20, A), sent(10, 1, A)])
    assert checker.violations == {"stale": 1}
    assert checker.examples[0].floor == 1


def test_version_whose_commit_had_not_been_sent_is_dirty() -> None:
    assert verdict(read(5, 9, 1, A), sent(10, 1, A), acked(20, A)) == {"dirty": 1}
    assert verdict(read(5, 9, 1, A)) == {"dirty": 1}


def test_version_whose_commit_was_sent_before_the_read_ended_is_not_dirty() -> None:
    assert verdict(sent(10, 1, A), read(5, 11, 1, A)) == {}


@pytest.mark.parametrize("undone_at", [11, 30])
def test_version_that_was_rolled_back_is_dirty_whenever_that_becomes_known(undone_at: int) -> None:
    undone = record(Kind.UNDONE, undone_at, key=A)
    assert verdict(sent(10, 1, A), read(12, 20, 1, A), undone) == {"dirty": 1}


def test_of_two_writers_of_one_version_the_one_that_the_database_shows_was_not_rolled_back() -> None:
    audit = record(Kind.AUDIT, 40, [(ROW, 1, B)], start=39)
    both = sent(10, 1, A), sent(11, 1, B)
    assert verdict(*both, read(12, 20, 1, A), audit) == {"dirty": 1}
    assert verdict(*both, read(12, 20, 1, B), audit) == {}
    assert verdict(*both, audit, read(41, 42, 1, A)) == {"dirty": 1}


def test_of_two_writers_of_one_version_nobody_may_read_both() -> None:
    both = sent(10, 1, A), sent(11, 1, B)
    assert verdict(*both, read(12, 20, 1, A)) == {}
    assert verdict(*both, read(12, 20, 1, A), read(12, 21, 1, B)) == {"dirty": 1}


def test_snapshot_must_be_met_exactly() -> None:
    history = sent(10, 1, A), acked(11, A), sent(12, 2, B), acked(13, B)

    def in_snapshot(version: int, tag: int) -> Record:
        return record(Kind.SNAPSHOT, 30, [(ROW, version, tag)], start=20, beside=[(ROW, 1, A)])

    assert verdict(*history, in_snapshot(1, A)) == {}
    assert verdict(*history, in_snapshot(2, B)) == {"snapshot break": 1}
    assert verdict(*history, in_snapshot(0, 0)) == {"stale": 1}
    assert verdict(*history, in_snapshot(1, B)) == {"dirty": 1}


def test_transaction_sees_what_it_has_written_itself() -> None:
    def inside(version: int, tag: int) -> Record:
        return record(Kind.OWN, 20, [(ROW, version, tag), (OTHER, 0, 0)], start=15, beside=[(ROW, 1, A)])

    assert verdict(inside(1, A)) == {}
    assert verdict(inside(0, 0)) == {"stale": 1}
    assert verdict(sent(10, 1, B, OTHER), acked(11, B), inside(1, A)) == {"stale": 1}


def test_what_a_transaction_has_written_was_not_shown_to_others() -> None:
    inside = record(Kind.OWN, 20, [(ROW, 1, A)], start=15, beside=[(ROW, 1, A)])
    assert verdict(inside, read(21, 22, 0, 0)) == {}


def test_label_counts_as_shown_only_when_it_was_announced() -> None:
    changed = sent(10, 1, A, LABEL)
    assert verdict(changed, read(11, 12, 1, A, LABEL), read(13, 14, 0, 0, LABEL)) == {}
    assert verdict(changed, acked(20, A), read(21, 22, 0, 0, LABEL)) == {"stale": 1}


def test_every_row_of_a_read_is_judged() -> None:
    both = record(Kind.READ, 30, [(ROW, 0, 0), (OTHER, 0, 0)], start=21)
    assert verdict(sent(10, 1, A), sent(11, 1, B, OTHER), acked(20, A), acked(20, B), both) == {"stale": 2}


def test_log_gives_back_what_was_written(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log", 3)
    writer = LogWriter(tmp_path / "log")
    assert reader.read() == []
    start = now()
    end = writer.append(
        Kind.SNAPSHOT, pack([(1, 2, 3)]), pack([(4, 5, 6)]), start=start, key=7, outcome=1, reason=2, way=3, subject=4
    )
    (found,) = reader.read()
    assert found == Record(end, Kind.SNAPSHOT, 1, 2, 3, 4, start, 7, pack([(1, 2, 3)]), pack([(4, 5, 6)]), 3)
    assert reader.read() == []
    writer.fault("kill W3")
    assert reader.read()[0].beside == b"kill W3"


def test_log_knows_until_when_it_is_complete(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log", 3)
    writer = LogWriter(tmp_path / "log")
    before = now()
    writer.beat()
    assert reader.read() == []
    assert before <= reader.until <= now()


def test_full_log_is_an_error(tmp_path: Path) -> None:
    LogReader(tmp_path / "log", 3)
    writer = LogWriter(tmp_path / "log")
    with pytest.raises(LogFullError):
        while True:
            writer.append(Kind.NOTE, beside=b"x" * 2**20)


def test_cache_is_shared_and_refuses_torn_values(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache")
    one, other = Cache(tmp_path / "cache"), Cache(tmp_path / "cache")
    one.set("key", b"value")
    assert other.get("key") == b"value"
    assert other.get("another") is None
    place = bytes(other._map).index(b"value")
    other._map[place : place + 5] = b"VALUE"
    assert one.get("key") is None
