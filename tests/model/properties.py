"""What must hold: of a value that is returned, and of every state of the world."""

from __future__ import annotations

from akv.tokens.rules import active_epoch, current, usable, vector_of
from tests.model.scenario import Scenario
from tests.model.world import Value, World, asked, promised, show, visible


def wrong(world: World, me: int, scenario: Scenario, value: Value) -> str:
    """Tell what is wrong with returning *value* to a reader; empty: nothing."""
    kind, reader = scenario.readers[me], world.readers[me]
    own = 1 if kind.dirty else 0
    if scenario.only_at_rest:
        return ""
    if own & reader.need & ~value:
        return f"OWN: {show(value)} lacks its own change"
    if missing := reader.need & ~value:
        return f"STALE: {show(value)} lacks {show(missing)}"
    if excess := value & ~visible(world) & ~own:
        return f"DIRTY: {show(excess)} is not committed"
    if scenario.exact and kind.holds == "snapshot" and (newer := value & ~(reader.held or 0)):
        return f"SNAPSHOT: {show(newer)} is newer than its snapshot"
    return ""


def flaw(world: World, scenario: Scenario, *, at_rest: bool) -> str:
    """Tell what is wrong with a state; empty: nothing."""
    if (at_rest or not scenario.only_at_rest) and (found := _audit(world, scenario)):
        return f"POISONED: {found}" if at_rest else found
    return _stuck(world, scenario) if at_rest else ""


def _audit(world: World, scenario: Scenario) -> str:
    """Would a read of this instant hit something that it should not return?"""
    store = world.store
    if store is None or not world.redis_up:
        return ""
    seen = asked(world.redis, scenario.which)
    if not usable(seen, rules=scenario.rules) or vector_of(seen) != store.vector:
        return ""
    if missing := promised(world) & ~store.value:
        return f"STALE: a read now hits {show(store.value)}, which lacks {show(missing)}"
    if excess := store.value & ~visible(world):
        return f"DIRTY: a read now hits {show(excess)}, which is not committed"
    return ""


def _stuck(world: World, scenario: Scenario) -> str:
    epoch = active_epoch(world.redis, rules=scenario.rules)
    if epoch is None:
        return "STUCK: no epoch is active"
    if any(current(record, epoch).marks for record in world.redis.records):
        return "STUCK: a mark stays"
    if world.outbox:
        return "STUCK: the outbox is not empty"
    if any(reader.at not in ("idle", "over") for reader in world.readers):
        return "STUCK: a reader waits"
    if any(writer.at not in ("idle", "done", "dead") for writer in world.writers):
        return "STUCK: a writer waits"
    return ""
