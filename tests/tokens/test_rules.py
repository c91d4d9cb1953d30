"""The protocol's decisions, each for itself; tests/model explores what they are good for together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import FunctionType
from typing import TypeAlias

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from akv.tokens import rules
from akv.tokens.rules import (
    ALL,
    Arrival,
    Epoch,
    EpochStep,
    Fill,
    Holder,
    Private,
    Record,
    Rule,
    Rules,
    Seen,
    Token,
    activate,
    active_epoch,
    confirms,
    covers,
    current,
    epoch_step,
    fits,
    flies_alone,
    is_marked,
    mark,
    may_join,
    may_join_batch,
    may_save_tracked,
    open_epoch,
    resolve,
    s0_of,
    stamp_of,
    usable,
    valid_epoch,
    vector_of,
    why_private,
)

ids = st.sampled_from(["a", "b"])
runs = st.sampled_from(["r", "s"])
marks = st.sampled_from(["2", "12", "112", "12:f"])
seqs = st.integers(0, 4)
tokens = st.builds(Token, ids, seqs)
vectors = st.lists(tokens, max_size=3).map(tuple)
holders = st.lists(st.builds(Holder, st.none() | tokens, st.booleans()), max_size=2).map(tuple)
records = st.builds(Record, ids, seqs, st.sets(marks, max_size=2).map(lambda found: tuple(sorted(found))))
epochs = st.builds(Epoch, ids, runs, st.booleans())


def reads(epochs: st.SearchStrategy[Epoch | None], min_size: int = 0) -> st.SearchStrategy[Seen]:
    """Reads as a server shows them: the counter is never behind a record."""
    some = st.lists(records, min_size=min_size, max_size=3).map(tuple)
    return st.builds(Seen, runs, epochs, st.just(4), some)


anything = reads(st.none() | epochs)
good = reads(st.just(Epoch("a", "r", active=True)), 1).map(
    lambda seen: seen._replace(run="r", records=tuple(record._replace(marks=()) for record in seen.records))
)


@given(anything, holders)
def test_read_is_usable_unless_there_is_a_reason(seen: Seen, sessions: tuple[Holder, ...]) -> None:
    assert usable(seen, sessions) == (why_private(seen, sessions) is None)


@given(anything, holders)
def test_session_concerned_never_permits_what_is_forbidden_without_it(seen: Seen, sessions: tuple[Holder, ...]) -> None:
    one_by_one = [usable(seen, (session,)) for session in sessions]
    assert usable(seen, sessions) == all([usable(seen), *one_by_one])


def test_session_concerned_must_fit_every_token_that_was_read() -> None:
    written = [Record(*each, ()) for each in product("ab", range(3))]
    stamps = [None, *(Token(*each) for each in product("ab", range(3)))]
    for size, left_out in product(range(3), ({Rule.STAMP}, {Rule.STAMP_NAMES_EPOCH}, set())):
        for found, stamp in product(product(written, repeat=size), stamps):
            seen, rules = Seen("r", Epoch("a", "r", active=True), 4, found), ALL - left_out
            fitting = fits(Holder(stamp), vector_of(seen), rules=rules)
            assert usable(seen, (Holder(Token("a", 4)), Holder(stamp)), rules=rules) == fitting, (seen, stamp)


@given(good)
def test_reasons_come_in_the_order_of_what_is_wrong(seen: Seen) -> None:
    epoch = Epoch("a", "r", active=True)
    old, dirty, fine = Holder(None), Holder(stamp_of(seen), dirty=True), Holder(stamp_of(seen))
    marked = mark(seen, "12", epoch)
    assert why_private(seen) is None
    assert why_private(seen, (fine, fine)) is None
    assert why_private(seen, (fine, old)) is Private.RETAINED
    assert why_private(seen, (fine, dirty)) is Private.DIRTY
    assert why_private(marked, (dirty,)) is Private.MARKED
    assert why_private(marked._replace(epoch=None)) is Private.EPOCH
    assert why_private(marked._replace(epoch=epoch._replace(active=False))) is Private.EPOCH
    assert why_private(marked._replace(run="s")) is Private.EPOCH


@given(anything, records)
def test_record_of_another_epoch_counts_as_never_written(seen: Seen, record: Record) -> None:
    assume(seen.epoch is not None and record.epoch != seen.epoch.id)
    assert seen.epoch is not None
    foreign, unwritten = (
        seen._replace(records=(*seen.records, each)) for each in (record, Record(seen.epoch.id, 0, ()))
    )
    assert vector_of(foreign) == vector_of(unwritten)
    assert is_marked(foreign) == is_marked(unwritten)
    assert current(record, seen.epoch) == Record(seen.epoch.id, 0, ())


def test_without_an_epoch_there_are_no_tokens() -> None:
    nothing = Seen("r", None, 0, (Record("a", 1, ("12",)),))
    assert not is_marked(nothing)
    assert stamp_of(nothing) is None
    assert s0_of(nothing) is None
    assert resolve(nothing, "12") == nothing
    with pytest.raises(ValueError, match="epoch"):
        vector_of(nothing)


@given(anything)
def test_epoch_of_another_process_is_none(seen: Seen) -> None:
    assume(seen.epoch is not None and seen.epoch.run != seen.run)
    assert valid_epoch(seen) is None
    assert active_epoch(seen) is None
    assert stamp_of(seen) is None
    assert s0_of(seen) is None
    assert epoch_step(seen) is EpochStep.OPEN


@given(st.none() | tokens, vectors, vectors)
def test_stamp_covers_a_vector_if_it_covers_each_part(
    stamp: Token | None, one: tuple[Token, ...], other: tuple[Token, ...]
) -> None:
    assert covers(stamp, one + other) == (covers(stamp, one) and covers(stamp, other))


@given(tokens, tokens)
def test_stamp_covers_what_is_no_newer_and_of_its_epoch(stamp: Token, token: Token) -> None:
    assert covers(stamp, (token,)) == (token.epoch == stamp.epoch and token.seq <= stamp.seq)
    assert not covers(None, (token,))
    assert not covers(None, ())


@given(st.builds(Holder, st.none() | tokens, st.booleans()), vectors)
def test_session_fits_if_it_is_clean_and_its_stamp_covers(holder: Holder, vector: tuple[Token, ...]) -> None:
    assert fits(holder, vector) == (covers(holder.stamp, vector) and not holder.dirty)


@given(good)
def test_what_is_loaded_after_a_read_is_as_new_as_what_it_showed(seen: Seen) -> None:
    assert covers(stamp_of(seen), vector_of(seen))
    assert covers(s0_of(seen), vector_of(seen))
    assert usable(seen, (Holder(stamp_of(seen)),))


@given(good)
def test_bump_is_newer_than_all_that_was_known_before(seen: Seen) -> None:
    after = resolve(seen)
    assert not covers(stamp_of(seen), vector_of(after))
    assert not may_save_tracked(s0_of(seen), after)
    assert not usable(after, (Holder(stamp_of(seen)),))
    assert set(vector_of(after)).isdisjoint(vector_of(seen))
    assert set(vector_of(resolve(after))).isdisjoint(vector_of(after))


@given(good)
def test_fill_is_settled_only_if_nothing_happened_meanwhile(seen: Seen) -> None:
    fill = Fill(vector_of(seen), usable=True, fresh=True)
    assert confirms(seen, fill)
    assert not confirms(resolve(seen), fill)
    assert not confirms(mark(seen, "12", Epoch("a", "r", active=True)), fill)
    assert not confirms(seen._replace(run="s"), fill)
    assert not confirms(seen._replace(epoch=Epoch("a", "r", active=False)), fill)
    assert not confirms(seen._replace(epoch=Epoch("b", "r", active=True)), fill)
    assert not confirms(seen._replace(epoch=None), fill)
    assert not confirms(seen, fill._replace(usable=False))
    assert not confirms(seen, fill._replace(vector=None))


@given(good)
def test_tracked_fill_is_settled_only_for_sessions_that_are_as_new_as_the_tokens(seen: Seen) -> None:
    s0 = s0_of(seen)
    assert may_save_tracked(s0, seen)
    assert may_save_tracked(s0, seen, (Holder(s0),))
    assert not may_save_tracked(s0, seen, (Holder(None),))
    assert not may_save_tracked(s0, seen, (Holder(s0, dirty=True),))
    assert not may_save_tracked(None, seen)
    assert not may_save_tracked(s0, mark(seen, "12", Epoch("a", "r", active=True)))


FRESH = (Token("a", 1),)
STAMPED = (Holder(Token("a", 1)),)
TOO_OLD = (Holder(Token("a", 0)),)


@pytest.mark.parametrize(
    ("arrival", "usable", "fresh", "takes"),
    [
        (Arrival.ABOARD, True, True, True),
        (Arrival.ABOARD, True, False, True),
        (Arrival.ABOARD, False, True, True),
        (Arrival.ABOARD, False, False, False),
        *((Arrival.CONFIRMED, *each, True) for each in product((True, False), repeat=2)),
        *((Arrival.LATE, *each, False) for each in product((True, False), repeat=2)),
    ],
)
def test_caller_takes_the_result_of_a_flight(arrival: Arrival, usable: bool, fresh: bool, takes: bool) -> None:
    fill = Fill(FRESH, usable, fresh)
    assert may_join(arrival, fill) is takes
    assert may_join(arrival, fill, STAMPED) is (takes and usable)
    assert not may_join(arrival, fill, TOO_OLD)
    assert not may_join(arrival, fill, (Holder(Token("a", 1), dirty=True),))
    assert not may_join(arrival, fill, (*STAMPED, *TOO_OLD))
    assert not may_join(arrival, fill._replace(vector=None), STAMPED)


def test_nobody_joins_what_was_sent_or_flies_from_a_snapshot() -> None:
    assert may_join_batch(False)
    assert not may_join_batch(True)
    assert flies_alone(True)
    assert not flies_alone(False)


@given(anything, st.lists(marks, unique=True, min_size=2, max_size=3))
def test_only_the_mark_that_is_resolved_goes(seen: Seen, who: list[str]) -> None:
    assume(seen.epoch is not None)
    assert seen.epoch is not None
    clean = seen._replace(records=tuple(current(record, seen.epoch)._replace(marks=()) for record in seen.records))
    marked = clean
    for each in who:
        marked = mark(marked, each, seen.epoch)
    after = resolve(marked, who[0])
    assert all(set(record.marks) == set(who[1:]) for record in after.records)
    assert all(record.marks == marked.records[0].marks for record in resolve(marked).records)
    assert vector_of(marked) == vector_of(clean)


@given(anything)
def test_mark_is_found_in_records_of_any_epoch(seen: Seen) -> None:
    assume(seen.epoch is not None and seen.records)
    assert seen.epoch is not None
    marked = mark(seen, "9", seen.epoch)
    assert is_marked(marked)
    assert not usable(marked)
    assert mark(marked, "9", seen.epoch) == marked
    assert all(record.epoch == seen.epoch.id for record in (*marked.records, *resolve(seen).records))


@given(anything)
def test_epoch_is_usable_only_after_it_was_opened_and_activated(seen: Seen) -> None:
    opened = open_epoch(seen, "c")
    assert valid_epoch(opened) is not None
    if valid_epoch(seen) is not None:
        assert opened == seen
        return
    assert epoch_step(seen) is EpochStep.OPEN
    assert epoch_step(opened) is EpochStep.DRAIN
    assert not usable(opened)
    assert stamp_of(opened) is None
    assert open_epoch(opened, "d") == opened
    assert activate(opened, "d") == opened
    assert usable(activate(opened, "c"))
    assert epoch_step(activate(opened, "c")) is None


Permission: TypeAlias = Callable[[Rules], bool]


@given(anything, holders, st.none() | tokens, vectors, st.booleans(), st.booleans(), st.sampled_from(Arrival))
def test_rule_only_ever_forbids(
    seen: Seen,
    sessions: tuple[Holder, ...],
    stamp: Token | None,
    vector: tuple[Token, ...],
    is_usable: bool,
    is_fresh: bool,
    arrival: Arrival,
) -> None:
    fill = Fill(vector, is_usable, is_fresh)
    permissions: list[Permission] = [
        lambda by: covers(stamp, vector, rules=by),
        lambda by: usable(seen, sessions, rules=by),
        lambda by: confirms(seen, fill, rules=by),
        lambda by: may_save_tracked(stamp, seen, sessions, rules=by),
        lambda by: may_join(arrival, fill, sessions, rules=by),
        lambda by: stamp_of(seen, rules=by) is not None,
        lambda by: s0_of(seen, rules=by) is not None,
        lambda by: not flies_alone(is_usable, rules=by),
        lambda by: may_join_batch(is_usable, rules=by),
    ]
    for permits in permissions:
        if permits(ALL):
            assert all(permits(ALL - {rule}) for rule in Rule)


def test_rules_say_each_something_else() -> None:
    assert len({rule.value for rule in Rule}) == len(Rule) == len(ALL)


def test_every_decision_goes_by_all_rules_unless_it_is_told_otherwise() -> None:
    functions = [each for each in vars(rules).values() if isinstance(each, FunctionType)]
    keywords = [each.__kwdefaults__ or {} for each in functions]
    defaults = [each["rules"] for each in keywords if "rules" in each]
    assert len(defaults) >= 18
    assert set(defaults) == {ALL}
