"""What explores the protocol is tried on worlds that are small enough to count by hand."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.model.explorer import Step, begin, explore, fault, work


@dataclass(frozen=True)
class Counter:
    """Two counters that go up to a limit each; what is wrong is up to the test."""

    limit: int = 3
    bad_state: tuple[int, int] | None = None
    bad_step: tuple[int, int] | None = None
    bad_rest: bool = False

    title = "two counters"

    def initial(self) -> tuple[int, int]:
        return 0, 0

    def steps(self, world: tuple[int, int]) -> Iterator[Step[tuple[int, int]]]:
        for me in (0, 1):
            if world[me] < self.limit:
                after = (world[0] + (me == 0), world[1] + (me == 1))
                violation = "bad step" if after == self.bad_step else ""
                yield work(after, "counter", me, "moves", violation=violation)
        yield begin(world, "nothing new")
        yield fault((0, 0), "all is lost")

    def flaw(self, world: tuple[int, int], *, at_rest: bool) -> str:
        if world == self.bad_state:
            return "bad state"
        return "bad rest" if at_rest and self.bad_rest else ""

    def show(self, part: object) -> str:
        return f"<{part}>"


def test_all_states_are_visited_and_each_step_is_counted() -> None:
    result = explore(Counter())
    assert (result.states, result.transitions) == (16, 2 * 16 + 2 * 12)
    assert not result.violation
    assert not result.trace


def test_wrong_state_is_found_by_a_shortest_way() -> None:
    result = explore(Counter(bad_state=(1, 2)))
    assert result.violation == "bad state"
    assert sorted(result.trace) == ["counter <0> moves", "counter <1> moves", "counter <1> moves"]


def test_wrong_step_ends_the_trace() -> None:
    result = explore(Counter(bad_step=(0, 2)))
    assert result.violation == "bad step"
    assert result.trace == ("counter <1> moves", "counter <1> moves")


def test_world_is_at_rest_when_only_beginnings_and_faults_are_possible() -> None:
    result = explore(Counter(limit=1, bad_rest=True))
    assert result.violation == "bad rest"
    assert len(result.trace) == 2


def test_world_without_end_is_wrong() -> None:
    result = explore(Counter(limit=1_000), limit=20)
    assert result.violation == "ENDLESS: more than 20 states"
    assert len(result.trace) <= 6


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    try:
        if not enabled:
            gc.disable()
        explore(Counter())
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
