"""The scripts inside Redis do what the rules say, whatever stands there before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain, count, permutations
from typing import Any, Self
from uuid import uuid4

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from akv.aio import OwnedTasks
from akv.tokens import rules
from akv.tokens.redis.formats import Keys, activated, read_epoch, read_record, write_epoch
from akv.tokens.redis.runtime import Ended, _numbered
from akv.tokens.redis.sweeper import PATIENCE, Sweeper
from akv.tokens.redis.wire import LOOK, MARK, RESOLVE, SWAP, Link, client_of_url, settings_of
from akv.tokens.rules import Epoch, EpochStep, Record, Seen
from tests.tokens.redis_world import Clock, forget

SLOTS, DATABASE, RUN = 16, "some/db", "run1"
NAMES = ("akv:a#*", "akv:b#*", "akv:*#*")
BLANK = Record("", 0, ())

# Marks that contain one another, look like numbers, like the counter, like the id of an epoch, or like a pattern.
ALIKE = ["1", "12", "112", "2", "1:ab", "12:ab", "e1", "%d", "-", ".", "0"]
MARKS = st.sampled_from(ALIKE)
WHICH = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
CALLS = st.lists(st.tuples(MARKS, WHICH), min_size=1, max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["mark", "mark", "resolve"]), CALLS),
        st.tuples(st.sampled_from(["bump", "look"]), WHICH),
        st.tuples(st.just("sweep"), st.sets(MARKS, min_size=3)),
        st.tuples(st.sampled_from(["open", "open late", "drain", "activate", "activate late"]), st.none()),
        st.tuples(st.sampled_from(["restart", "lose", "flush"]), st.booleans()),
    ),
    min_size=8,
    max_size=25,
)


class Place:
    """One namespace and one connection, on a loop of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runner = asyncio.Runner()
        self.link = Link(settings_of(client_of_url(url, {}), assume_noeviction=False))
        self.namespace = f"akv_test_{uuid4().hex[:12]}"
        self.keys = Keys(self.namespace, SLOTS)
        self.run_id = RUN

    def __enter__(self) -> Self:
        self.runner.run(self.link.open())
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.link.close())
        self.runner.close()
        forget(self.url, self.namespace)

    def start_over(self) -> None:
        forget(self.url, self.namespace)

    def run(self, script: Any, keys: list[bytes], *arguments: str) -> str:
        return self.runner.run(self.link.run_script(script, keys, *arguments))

    def seen(self, which: Sequence[str] = NAMES) -> Seen:
        keys = [self.keys.epoch, self.keys.seq, *self.keys.of_identifiers(which)]
        epoch, seq, *records = self.run(LOOK, keys).split("\n")
        return Seen(self.run_id, read_epoch(epoch).epoch, int(seq or 0), tuple(map(read_record, records)))

    def mark(self, calls: list[Ended], *, slots: int = SLOTS, database: str = DATABASE) -> str:
        names, marks, numbers = _numbered(calls)
        return self.run(
            MARK, [self.keys.epoch, *self.keys.of_identifiers(names)], str(slots), database, marks, *numbers
        )

    def resolve(self, calls: list[Ended], *, slots: int = SLOTS, database: str = DATABASE) -> str:
        names, marks, numbers = _numbered(calls)
        keys = [self.keys.epoch, self.keys.seq, *self.keys.of_identifiers(names)]
        return self.run(RESOLVE, keys, str(slots), database, marks, *numbers)

    def swap(self, was: str, to: str) -> str:
        return self.run(SWAP, [self.keys.epoch], was, to)

    def open(self, id_: str, was: str = "") -> str:
        return self.swap(was, write_epoch(Epoch(id_, self.run_id, active=False), SLOTS, DATABASE))

    @property
    def text(self) -> str:
        return self.run(LOOK, [self.keys.epoch])


@pytest.fixture
def place(redis_url: str) -> Any:
    with Place(redis_url) as place:
        yield place


class Model:
    """
    What the rules make of the steps.

    Attributes:
        seen: All there is.
        drained: The epoch that somebody has drained, and not activated yet.
    """

    def __init__(self) -> None:
        self.seen = Seen(RUN, None, 0, (BLANK,) * len(NAMES))
        self.drained = ""

    def look(self, which: Sequence[str]) -> Seen:
        return self.seen._replace(records=tuple(self.seen.records[NAMES.index(name)] for name in which))

    def mark(self, who: str, which: Sequence[str]) -> None:
        if self.seen.epoch is not None:
            self._put(which, rules.mark(self.look(which), who, self.seen.epoch))

    def resolve(self, calls: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Those of one call get one token."""
        before = self.seen.seq
        for who, which in calls:
            self.seen = self.seen._replace(seq=before)
            self._put(which, rules.resolve(self.look(which), who or None))

    def _put(self, which: Sequence[str], part: Seen) -> None:
        found = dict(zip(which, part.records, strict=True))
        records = (found.get(name, old) for name, old in zip(NAMES, self.seen.records, strict=True))
        self.seen = part._replace(records=tuple(records))


class Differential:
    """Does the same in Redis and by the rules; every answer of Redis has to be what the rules expect."""

    def __init__(self, place: Place) -> None:
        place.start_over()
        place.run_id = RUN
        self.place = place
        self.model = Model()
        self.ids = (f"e{'1' * number}" for number in chain(range(4, -1, -1), count(5)))  # each begins like another one
        self.before = self.drained = ""

    def step(self, kind: str, what: Any) -> None:
        getattr(self, kind.replace(" ", "_"))(what)
        assert canonical(self.place.seen()) == canonical(self.model.seen)

    def mark(self, calls: Any) -> None:
        assert self.place.mark([Ended(*call) for call in calls]) == self.place.text
        for who, which in calls:
            self.model.mark(who, which)

    def resolve(self, calls: Any) -> None:
        assert self.place.resolve([Ended(*call) for call in calls]) == self.place.text
        self.model.resolve(calls)

    def bump(self, which: Any) -> None:
        self.resolve([("", which)])

    def look(self, which: Any) -> None:
        shown, expected = self.place.seen(which), self.model.look(which)
        assert rules.why_private(shown) == rules.why_private(expected)
        assert rules.stamp_of(shown) == rules.stamp_of(expected)
        if shown.epoch is not None:
            assert rules.vector_of(shown) == rules.vector_of(expected)

    def sweep(self, over: Any) -> None:
        """Meet what is marked, twice, when the transactions *over* have ended."""
        clock, tasks = Clock(), OwnedTasks()

        async def ended(marks: Any) -> set[str]:
            return over & set(marks)

        async def resolve(mark: str, which: Any) -> None:
            swept.append((mark, sorted(which)))

        async def meet_all() -> None:
            sweeper = Sweeper(clock, tasks, ended=ended, resolve=resolve)
            for _ in range(2):
                for name, record in zip(NAMES, records, strict=True):
                    sweeper.met(name, record.marks)
                clock.now += PATIENCE
            await tasks.drain()

        swept: list[tuple[str, list[str]]] = []
        records = self.place.seen().records
        self.place.runner.run(meet_all())
        standing = {mark for record in self.model.seen.records for mark in record.marks}
        assert {mark for mark, _ in swept} == standing & over
        for call in swept:
            self.resolve([call])
            if self.model.seen.epoch is not None:
                assert all(call[0] not in record.marks for record in self.place.seen(call[1]).records)

    def open(self, _: None) -> None:
        """E1, by who has just looked."""
        if rules.epoch_step(self.place.seen()) is EpochStep.OPEN:
            self._open(was=self.place.text)
        assert rules.valid_epoch(self.place.seen()) is not None

    def open_late(self, _: None) -> None:
        """E1, by who has looked before the last one was opened."""
        self._open(was=self.before)

    def _open(self, was: str) -> None:
        id_, there = next(self.ids), self.place.text
        answer = self.place.open(id_, was=was)
        assert answer == self.place.text
        if was == there:
            self.model.seen = rules.open_epoch(self.model.seen._replace(epoch=None), id_)
        else:
            assert answer == there
        self.before = was

    def drain(self, _: None) -> None:
        if rules.epoch_step(self.place.seen()) is EpochStep.DRAIN:
            self.drained = self.place.text
            self.model.drained = self.model.seen.epoch.id if self.model.seen.epoch else ""

    def activate(self, _: None) -> None:
        """E3, of what was drained, whatever is there by now."""
        if self.drained:
            assert self.place.swap(self.drained, activated(read_epoch(self.drained))) == self.place.text
            self.model.seen = rules.activate(self.model.seen, self.model.drained)

    def activate_late(self, _: None) -> None:
        """E3, of what was lost while it was drained, and replaced."""
        self.drain(None)
        self.lose(True)
        self.activate(None)

    def restart(self, is_met: bool) -> None:
        """Another process answers, which has kept everything."""
        self.place.run_id += "x"
        self.model.seen = self.model.seen._replace(run=self.place.run_id)
        if is_met:
            self.open(None)

    def lose(self, is_met: bool) -> None:
        with redis.Redis.from_url(self.place.url) as client:
            client.delete(f"{{{self.place.namespace}}}:epoch")
        self.model.seen = self.model.seen._replace(epoch=None)
        if is_met:
            self.open(None)

    def flush(self, is_met: bool) -> None:
        self.place.start_over()
        self.model.seen = Seen(self.place.run_id, None, 0, (BLANK,) * len(NAMES))
        if is_met:
            self.open(None)


def canonical(seen: Seen) -> Seen:
    """Marks are a set, and a record that was never written is one of another epoch."""
    records = (
        Record(each.epoch, each.seq, tuple(sorted(each.marks))) if each.epoch else BLANK for each in seen.records
    )
    return seen._replace(records=tuple(records))


def test_the_scripts_do_what_the_rules_say(place: Place) -> None:
    @given(STEPS)
    @settings(max_examples=100)
    def compare(steps: list[tuple[str, Any]]) -> None:
        both = Differential(place)
        both.step("open", None)
        for kind, what in steps:
            both.step(kind, what)

    compare()


def test_a_mark_is_told_from_another_that_looks_like_it(place: Place) -> None:
    place.open("e1")
    for one, other in permutations(ALIKE, 2):
        place.mark([Ended(one, NAMES[:1])])
        place.mark([Ended(other, NAMES[:1])])
        assert place.seen().records[0].marks == (one, other)
        place.resolve([Ended(one, NAMES[:1])])
        assert place.seen().records[0].marks == (other,)
        place.resolve([Ended(other, NAMES[:1])])


@pytest.mark.parametrize("number", ["0", "1", "12"])
def test_a_mark_is_told_from_a_counter_that_looks_like_it(place: Place, number: str) -> None:
    place.open("e1")
    with redis.Redis.from_url(place.url) as client:
        client.set(f"{{{place.namespace}}}{NAMES[0]}", f"e1 {number}")
        place.mark([Ended(number, NAMES[:1])])
        assert place.seen().records[0].marks == (number,)
        client.set(f"{{{place.namespace}}}:seq", int(number) - 1)
        place.resolve([Ended("other", NAMES[:1])])
        assert place.seen().records[0] == Record("e1", int(number), (number,))


def test_many_commits_marked_in_one_call_stand_each_in_their_records(place: Place) -> None:
    place.open("e1")
    place.mark([Ended("7", NAMES[:2]), Ended("8", NAMES[1:]), Ended("9", ())])
    assert [record.marks for record in place.seen().records] == [("7",), ("7", "8"), ("8",)]
    place.resolve([Ended("8", NAMES[1:]), Ended("7", NAMES[:1])])
    seen = place.seen()
    assert [record.marks for record in seen.records] == [(), ("7",), ()]
    assert [record.seq for record in seen.records] == [seen.seq] * 3


def test_a_mark_set_twice_stands_once(place: Place) -> None:
    place.open("e1")
    for _ in range(2):
        place.mark([Ended("7", NAMES)])
    assert {record.marks for record in place.seen().records} == {("7",)}


@pytest.mark.parametrize("foreign", [{"slots": 17}, {"database": "other"}, {"database": ""}])
def test_nothing_is_marked_in_an_epoch_of_others(place: Place, foreign: Any) -> None:
    place.open("e1")
    assert place.mark([Ended("7", NAMES)], **foreign) == place.text
    assert {record.epoch for record in place.seen().records} == {""}


@pytest.mark.parametrize("foreign", [{"slots": 17}, {"database": "other"}, {"database": "some"}])
def test_nothing_is_bumped_in_an_epoch_of_others(place: Place, foreign: Any) -> None:
    place.open("e1")
    assert place.resolve([Ended("", NAMES)], **foreign) == place.text
    assert place.seen().seq == 0


def test_who_knows_no_database_may_bump(place: Place) -> None:
    place.open("e1")
    place.resolve([Ended("", NAMES)], database="")
    assert [record.seq for record in place.seen().records] == [1, 1, 1]


def test_only_who_has_seen_the_epoch_that_is_there_replaces_it(place: Place) -> None:
    first = place.open("e1")
    assert place.open("e2") == first  # somebody thinks there is none
    assert place.swap(first.replace("e1", "e0"), "x") == first
    assert place.open("e2", was=first) == place.text != first


def test_a_thousand_rows_are_one_call(place: Place) -> None:
    names = [f"akv:a#{number}" for number in range(9000)]
    wide = Keys(place.namespace, 2**20)
    place.keys = wide
    place.open("e1")
    place.mark([Ended("7", names)])
    keys = [wide.epoch, wide.seq, *wide.of_identifiers(names)]
    lines = place.run(LOOK, keys).split("\n")
    assert len(lines) == 9002
    assert {tuple(line.split(" ")[2:]) for line in lines[2:]} == {("7",)}
    place.resolve([Ended("7", names)])
    assert set(place.run(LOOK, keys).split("\n")[2:]) == {"e1 1"}


def test_scripts_that_redis_forgot_are_sent_again(place: Place) -> None:
    place.open("e1")
    with redis.Redis.from_url(place.url) as client:
        client.script_flush()
    place.mark([Ended("7", NAMES)])
    assert {record.marks for record in place.seen().records} == {("7",)}


def test_a_large_counter_is_written_in_full(place: Place) -> None:
    place.open("e1")
    with redis.Redis.from_url(place.url) as client:
        client.set(f"{{{place.namespace}}}:seq", 2**53 - 10)
    place.resolve([Ended("", NAMES)])
    assert place.seen().records[0].seq == 2**53 - 9
