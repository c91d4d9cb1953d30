"""What may become of the row of a lease: pure functions, so that every order of steps can be tried."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.memoize.lease import pauses
from akv.memoize.leaserow import Row, Taken, released, renewed, taken

LEASE = 10
holders = st.sampled_from(["one", "two", "three"])
steps = st.lists(
    st.tuples(st.sampled_from(["take", "renew", "release", "forget", "wait"]), holders, st.integers(0, 15)),
    max_size=40,
)


class World:
    """A row, a clock, and what each holder believes."""

    def __init__(self) -> None:
        self.row: dict[str, Any] | None = None
        self.now = 1000
        self.beliefs: dict[str, tuple[int, int]] = {}
        self.fences: list[int] = []

    def step(self, what: str, who: str, seconds: int) -> None:
        with suppress(Taken):
            getattr(self, what)(who, seconds)

    def take(self, who: str, _: int) -> None:
        name = f"{who}{len(self.fences)}"
        self.row = taken(name, self.now, self.now + LEASE, self.row)
        self.fences.append(self.row["fence"])
        self.beliefs[name] = (self.row["fence"], self.row["until"])

    def renew(self, who: str, _: int) -> None:
        for name, (fence, _until) in list(self.beliefs.items()):
            if name.startswith(who):
                del self.beliefs[name]
                self.row = renewed(name, fence, self.now + LEASE, self.row)
                self.beliefs[name] = (fence, self.row["until"])

    def release(self, who: str, _: int) -> None:
        for name in [name for name in self.beliefs if name.startswith(who)]:
            del self.beliefs[name]
            self.row = released(name, self.row)

    def forget(self, _: str, seconds: int) -> None:
        """The row is swept: only when nobody holds it, and some time has passed since."""
        if self.row is not None and Row.of(self.row).is_free(self.now):
            self.now += 1 + len(self.fences) + seconds
            self.row = None

    def wait(self, _: str, seconds: int) -> None:
        self.now += seconds

    @property
    def held(self) -> list[str]:
        return [name for name, (_, until) in self.beliefs.items() if self.now < until]


@given(steps)
def test_at_most_one_believes_that_he_holds_it(done: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, who, seconds in done:
        world.step(what, who, seconds)
        assert len(world.held) <= 1


@given(steps)
def test_the_fence_grows_with_every_holder(done: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, who, seconds in done:
        world.step(what, who, seconds)
    assert all(earlier < later for earlier, later in pairwise(world.fences))


@given(steps)
def test_a_step_that_happened_twice_is_as_one_that_happened_once(done: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, who, seconds in done:
        world.step(what, who, seconds)
    for step in (
        lambda row: taken("me", world.now, world.now + LEASE, row),
        lambda row: renewed("me", 7, world.now + LEASE, row),
    ):
        with suppress(Taken):
            once = step(world.row)
            assert step(once) == once


def test_a_lease_ends_at_its_instant() -> None:
    row = taken("one", 0, 10, None)
    with pytest.raises(Taken):
        taken("two", 9, 19, row)
    assert taken("two", 10, 20, row)["holder"] == "two"


def test_a_lease_that_ended_is_renewed_if_nobody_has_taken_it() -> None:
    row = taken("one", 0, 10, None)
    assert renewed("one", row["fence"], 60, row)["until"] == 60
    with pytest.raises(Taken):
        renewed("one", row["fence"], 60, taken("two", 20, 30, row))
    with pytest.raises(Taken):
        renewed("one", row["fence"], 60, released("one", row))


def test_a_holder_whose_row_was_deleted_writes_it_again() -> None:
    assert renewed("one", 7, 20, None) == {"holder": "one", "fence": 7, "until": 20}


def test_nobody_gives_back_what_another_one_holds() -> None:
    row = taken("two", 20, 30, taken("one", 0, 10, None))
    for stored in (row, released("two", row), None):
        with pytest.raises(Taken):
            released("one", stored)


@pytest.mark.parametrize("stored", [None, 1, "text", [], {}, {"holder": "x"}], ids=repr)
def test_what_is_no_row_of_ours_is_free(stored: Any) -> None:
    assert taken("one", 5, 10, stored) == {"holder": "one", "fence": 5, "until": 10}


def test_looks_at_a_lease_become_rarer_and_never_rare() -> None:
    looks = pauses()
    first = [next(looks) for _ in range(30)]
    assert first[0] <= 0.0125
    assert all(pause <= 0.3125 for pause in first)
    assert min(first[15:]) >= 0.1875
