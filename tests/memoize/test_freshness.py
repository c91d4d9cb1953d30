"""What age does to a result: pure functions of times, options and a draw."""

from __future__ import annotations

import math
import pickle
import pickletools
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.errors import ConfigurationError, InvalidExpireError
from akv.memoize.freshness import SECOND, Freshness, Saved, Verdict, instant, is_due, judge, micros, moment, unpacked
from akv.store.expiry import LATEST

NOON = datetime(2026, 1, 1, 12)
NOW = micros(NOON)
FRESH, DUE, STALE, KEPT, GONE = Verdict

instants = st.integers(-(10**9), 10**9).map(lambda seconds: NOW + seconds)
options = st.builds(
    Freshness,
    expire=st.one_of(st.none(), st.integers(1, 1000)),
    jitter=st.sampled_from([0.0, 0.1, 0.9]),
    stale_for=st.one_of(st.none(), st.integers(1, 1000)),
    early=st.booleans(),
    on_error=st.sampled_from(["raise", "stale"]),
)
kept = st.builds(
    Saved,
    value=st.just("value"),
    made=instants,
    took=st.integers(0, 10**8),
    until=st.one_of(st.none(), instants),
    identifiers=st.just(("akv:users#1",)),
    vector=st.sampled_from([(), ("1",), ("2",)]),
)
chances = st.floats(0, 1, exclude_max=True)


def verdict(seconds: float, *, chance: float = 0.0, took: float = 0.0, **told: Any) -> Verdict:
    """What becomes of a result so many seconds after its lifetime of 60 has begun."""
    saved = Saved("value", NOW, round(took * SECOND), NOW + 60 * SECOND)
    return judge(saved, (), Freshness(expire=60, **told), NOW + round(seconds * SECOND), chance)


# Age


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, [(0, FRESH), (59.999999, FRESH), (60, GONE), (1e6, GONE)]),
        ({"stale_for": 30}, [(59.999999, FRESH), (60, STALE), (89.999999, STALE), (90, GONE)]),
        ({"on_error": "stale"}, [(59.999999, FRESH), (60, KEPT), (1e9, KEPT)]),
        ({"on_error": "stale", "stale_for": timedelta(seconds=30)}, [(60, STALE), (89.999999, STALE), (90, GONE)]),
        ({"early": True}, [(59.999999, FRESH), (60, GONE)]),
        ({"early": True, "chance": 0.5, "took": 10}, [(53.06, FRESH), (53.07, DUE), (59.999999, DUE), (60, GONE)]),
        ({"early": True, "chance": 0.5, "took": 10, "stale_for": 30}, [(53.07, DUE), (60, STALE)]),
    ],
    ids=["expire", "stale_for", "on_error", "bounded on_error", "early without luck", "early", "early and stale"],
)
def test_a_result_grows_old_in_steps(told: dict[str, Any], expected: list[tuple[float, Verdict]]) -> None:
    assert [(seconds, verdict(seconds, **told)) for seconds, _ in expected] == expected


@given(kept, options, instants, chances)
def test_without_an_end_a_result_is_fresh_for_ever(saved: Saved, told: Freshness, now: int, chance: float) -> None:
    assert judge(saved._replace(until=None), saved.vector, told, now, chance) is FRESH


@given(kept, options, instants, chances)
def test_a_result_whose_dependencies_changed_is_gone_whatever_its_age(
    saved: Saved, told: Freshness, now: int, chance: float
) -> None:
    for vector in ((), ("1",), ("3",), ("1", "2")):
        if vector != saved.vector:
            assert judge(saved, vector, told, now, chance) is GONE


@given(kept, options, instants, instants, chances)
def test_a_result_never_grows_younger(saved: Saved, told: Freshness, one: int, other: int, chance: float) -> None:
    order = list(Verdict)
    earlier, later = sorted((one, other))
    verdicts = [judge(saved, saved.vector, told, now, chance) for now in (earlier, later)]
    assert order.index(verdicts[0]) <= order.index(verdicts[1])


# Early


@given(st.integers(0, 10**7), chances)
def test_early_follows_the_papers_formula(left: int, chance: float) -> None:
    """now - delta * beta * log(rand()) >= expiry, rand being uniform on (0, 1] and beta 1."""
    saved = Saved("value", NOW, 2 * SECOND, NOW + left)
    assert is_due(saved, NOW, chance) is (NOW - 2 * SECOND * math.log(1 - chance) >= NOW + left)


def test_what_took_no_time_is_never_due_early() -> None:
    assert not is_due(Saved("value", NOW, 0, NOW + 1), NOW, 0.999999)


def test_the_longer_it_takes_the_earlier_it_is_due() -> None:
    """Of a thousand draws, e**-(left / took) are due."""

    def due(took: float) -> int:
        saved = Saved("value", NOW, round(took * SECOND), NOW + 10 * SECOND)
        return sum(is_due(saved, NOW, draw / 1000) for draw in range(1000))

    assert [due(took) for took in (1, 5, 10, 100)] == [0, 135, 367, 904]


# What is kept, and for how long


@given(options, chances)
def test_the_lifetime_varies_by_the_jitter_and_no_more(told: Freshness, chance: float) -> None:
    until = told.until(NOON, chance)
    if told.expire is None:
        assert until is None
        return
    seconds = float(told.expire)  # type: ignore[arg-type]
    assert until is not None
    assert seconds * (1 - told.jitter) - 1e-5 <= (until - NOW) / SECOND <= seconds * (1 + told.jitter) + 1e-5


def test_jitter_reaches_both_ends() -> None:
    told = Freshness(expire=timedelta(seconds=100), jitter=0.1)
    assert told.until(NOON, 0.0) == NOW + 90 * SECOND
    assert told.until(NOON, 0.5) == NOW + 100 * SECOND
    assert told.until(NOON, 0.75) == NOW + 105 * SECOND


@pytest.mark.parametrize(
    ("told", "seconds"),
    [({}, 60), ({"stale_for": 30}, 90), ({"stale_for": 0.5, "on_error": "stale"}, 60.5), ({"early": True}, 60)],
)
def test_a_row_lives_as_long_as_the_result_may_be_handed_out(told: dict[str, Any], seconds: float) -> None:
    freshness = Freshness(expire=60, **told)
    assert freshness.end(freshness.until(NOON, 0.0)) == NOON + timedelta(seconds=seconds)


def test_what_may_stand_in_for_a_failure_is_kept_without_limit() -> None:
    freshness = Freshness(expire=60, on_error="stale")
    assert freshness.end(freshness.until(NOON, 0.0)) is None


def test_an_instant_is_an_end_as_it_is() -> None:
    end = datetime(2026, 1, 1, 14, tzinfo=UTC)
    assert Freshness(expire=end).until(NOON, 0.7) == NOW + 7200 * SECOND


def test_the_end_of_the_calendar_is_an_end() -> None:
    freshness = Freshness(expire=LATEST, stale_for=1e9)
    assert freshness.end(freshness.until(NOON, 0.0)) == LATEST
    assert moment(10**30) == LATEST


@given(st.datetimes(datetime(1000, 1, 1), LATEST))
def test_instants_are_exact(when: datetime) -> None:
    assert moment(micros(when)) == when


@pytest.mark.parametrize("offset", [0, 2, -11.5])
def test_a_clock_of_any_zone_shows_the_same_instant(offset: float) -> None:
    zone = timezone(timedelta(hours=offset)) if offset else UTC
    assert instant((NOON.replace(tzinfo=UTC) + timedelta(microseconds=7)).astimezone(zone)) == NOW + 7


# Options


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"expire": "60"}, InvalidExpireError),
        ({"expire": True}, InvalidExpireError),
        *(({"jitter": bad}, ConfigurationError) for bad in (-0.1, 1, 2, "0.1", None, True, math.nan)),
        *(({"stale_for": bad}, ConfigurationError) for bad in (0, -1, "30", True, math.nan, math.inf, timedelta(0))),
        *(({"early": bad}, ConfigurationError) for bad in (1, 0.5, None, "yes")),
        *(({"on_error": bad}, ConfigurationError) for bad in ("ignore", True, None)),
        ({"jitter": 0.1, "expire": NOON}, ConfigurationError),
    ],
    ids=str,
)
def test_options_out_of_bounds_are_refused(told: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Freshness(**{"expire": 60, **told})


def test_options_about_age_say_nothing_where_there_is_no_lifetime() -> None:
    freshness = Freshness(jitter=0.1, stale_for=30, early=True, on_error="stale")
    assert freshness.until(NOON, 0.3) is None
    assert freshness.end(None) is None


# The form of what is kept


@given(kept)
def test_what_is_kept_comes_back(saved: Saved) -> None:
    assert unpacked(pickle.loads(pickle.dumps(saved.packed(), 4))) == (
        saved if saved.identifiers else saved._replace(vector=())
    )


def test_what_is_kept_is_a_pickle_of_builtins() -> None:
    saved = Saved({"any": [1, "value"]}, NOW, 5, NOW, 7, ("akv:users#1",), ("1",))
    names = {opcode.name for opcode, _, _ in pickletools.genops(pickle.dumps(saved.packed(), 4))}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "INST", "OBJ"}


@pytest.mark.parametrize(
    "stored",
    [None, 1, "text", [], {}, {"akv": 2}, {"akv": 1}, {"value": 1}, {"akv": 1, "value": 1, "made": 1}, {1: 2}],
    ids=repr,
)
def test_what_was_stored_by_others_is_nothing(stored: Any) -> None:
    assert unpacked(stored) is None


def test_names_that_a_later_version_adds_do_not_matter() -> None:
    saved = Saved("value", NOW, 1, None)
    assert unpacked({**saved.packed(), "added": 1}) == saved


def test_options_are_values() -> None:
    assert replace(Freshness(expire=60), stale_for=30) == Freshness(expire=60, stale_for=30.0)
