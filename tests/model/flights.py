"""Single flight: who waits for whose computation, and who may take its result."""

from __future__ import annotations

from typing import Any

from akv.tokens.rules import Arrival, flies_alone, may_join
from tests.model.properties import wrong
from tests.model.scenario import Scenario
from tests.model.world import Reader, Value, World, put

_WAITS_AS = {Arrival.ABOARD: "aboard", Arrival.CONFIRMED: "confirmed", Arrival.LATE: "waiting"}
_ARRIVED = {at: arrival for arrival, at in _WAITS_AS.items()}


def changed(world: World, me: int, **change: Any) -> World:
    """Return the world after a change of one reader."""
    return world._replace(readers=put(world.readers, me, world.readers[me]._replace(**change)))


def arrive(world: World, me: int, scenario: Scenario) -> tuple[World, str]:
    """A call begins; it may look for a flight at once."""
    if scenario.flight != "on arrival" or _flies_alone(world, me, scenario):
        return world, "calls"
    if world.leader is None:
        return world._replace(leader=me), "calls, leads a flight"
    return changed(world, me, at="waiting"), "calls, finds a flight under way"


def board(world: World, me: int, scenario: Scenario, at: str) -> World:
    """There is something to compute; who looks for a flight only now may share one of its own vector."""
    if scenario.flight != "on miss" or world.leader == me or _flies_alone(world, me, scenario):
        return changed(world, me, at=at)
    if world.leader is None:
        return changed(world, me, at=at)._replace(leader=me)
    mine, theirs = world.readers[me], world.readers[world.leader]
    same = mine.usable and theirs.usable and mine.vector == theirs.vector
    return changed(world, me, at="confirmed" if same else "waiting")


def waiting_are(world: World, arrival: Arrival) -> World:
    """The leader sends a read of tokens: those who wait came before that."""
    at = _WAITS_AS[arrival]
    readers = [reader._replace(at=at) if reader.at == "waiting" else reader for reader in world.readers]
    return world._replace(readers=tuple(readers))


def hand_over(world: World, me: int, scenario: Scenario, value: Value) -> tuple[World, str]:
    """A call returns. Of its flight, those who may take the result return, too; the others form the next one."""
    after = _gone(world, me, scenario)
    if world.leader != me:
        return after, ""
    fill = world.readers[me].fill(fresh=not scenario.readers[me].has_session)
    violation, left = "", []
    for other, caller in enumerate(world.readers):
        if caller.at not in _ARRIVED:
            continue
        if may_join(_ARRIVED[caller.at], fill, caller.holders, rules=scenario.rules):
            violation = violation or wrong(world, other, scenario, value)
            after = _gone(after, other, scenario)
        else:
            left.append(other)
    return _next_flight(after, left), violation


def _next_flight(world: World, left: list[int]) -> World:
    for other in left:
        at = "called" if other == left[0] else "waiting"
        world = changed(world, other, at=at, vector=None, usable=False)
    return world._replace(leader=left[0] if left else None)


def _flies_alone(world: World, me: int, scenario: Scenario) -> bool:
    return flies_alone(world.readers[me].tokens is not None, rules=scenario.rules)


def _gone(world: World, me: int, scenario: Scenario) -> World:
    at = "over" if scenario.readers[me].once else "idle"
    return world._replace(readers=put(world.readers, me, Reader(at)))
