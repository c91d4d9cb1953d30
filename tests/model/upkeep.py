"""The steps of those who repair: the sweeper, the relay of the outbox, and who opens epochs (E1 to E3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from akv.tokens.rules import EpochStep, Rule, activate, current, epoch_step, open_epoch, resolve, valid_epoch
from tests.model.explorer import fault, work
from tests.model.scenario import Scenario
from tests.model.world import Initialiser, World, put, scripted
from tests.model.writers import Steps, can_still_commit, name, resolved


def steps(world: World, scenario: Scenario) -> Steps:
    """Yield what may be repaired next."""
    if world.redis_up:
        yield from _sweeper(world, scenario)
        yield from _relay(world, scenario)
        yield from _initialisers(world, scenario)


def _sweeper(world: World, scenario: Scenario) -> Steps:
    epoch = valid_epoch(world.redis, rules=scenario.rules)
    if epoch is None or not scenario.has(Rule.SWEEPER_SWEEPS):
        return
    for i, record in enumerate(world.redis.records):
        for who in current(record, epoch).marks:
            if _gate_has_ended(world, who) or not scenario.has(Rule.SWEEPER_ASKS_GATE):
                redis = scripted(world.redis, (i,), partial(resolve, who=who, rules=scenario.rules))
                yield work(world._replace(redis=redis), f"the sweeper RESOLVEs {who}")


def _gate_has_ended(world: World, who: str) -> bool:
    """``gate.ended``; what is nobody's mark belongs to a transaction long gone."""
    return not any(can_still_commit(world, me) for me, writer in enumerate(world.writers) if writer.id == who)


def _relay(world: World, scenario: Scenario) -> Steps:
    for me in range(scenario.writers):
        if world.outbox >> me & 1:
            deleted = world._replace(outbox=world.outbox & ~(1 << me), excused=world.excused & ~(1 << me))
            yield work(deleted._replace(redis=resolved(world, me, scenario)), "the relay delivers", name(me))
            if not scenario.has(Rule.RELAY_BUMPS_FIRST):
                yield fault(deleted, "the relay deletes the row of", name(me), "and CRASHES")


def _initialisers(world: World, scenario: Scenario) -> Steps:
    for me, (at, epoch, _) in enumerate(world.initialisers):
        yield from _STEPS[at](world, me, scenario)
        if at != "idle" and world.budget.desertion:
            budget = world.budget._replace(desertion=world.budget.desertion - 1)
            deserted = _moved(world, me, Initialiser())._replace(budget=budget)
            yield fault(deserted, _name(me), "CRASHES")
        if epoch and world.redis.epoch is None and not scenario.has(Rule.EPOCH_IDS_ARE_FRESH):
            again = open_epoch(world.redis, epoch, rules=scenario.rules)
            yield fault(world._replace(redis=again), _name(me), f"E1 is tried again: epoch {epoch}")


def _name(me: int) -> str:
    return f"initialiser {me}"


def _moved(world: World, me: int, initialiser: Initialiser) -> World:
    return world._replace(initialisers=put(world.initialisers, me, initialiser))


def _meet_epoch(world: World, me: int, scenario: Scenario) -> Steps:
    step = epoch_step(world.redis, rules=scenario.rules)
    if step is EpochStep.OPEN:
        first = _e1_open if scenario.has(Rule.LIST_AFTER_E1) else _e2_list
        yield from first(world, me, scenario)
    elif step is EpochStep.DRAIN and world.redis.epoch:
        id_ = world.redis.epoch.id
        yield work(_moved(world, me, Initialiser("opened", id_)), _name(me), f"meets epoch {id_}, draining")


def _e1_open(world: World, me: int, scenario: Scenario) -> Steps:
    if valid_epoch(world.redis, rules=scenario.rules):
        yield work(_moved(world, me, Initialiser()), _name(me), "E1: somebody else was faster")
        return
    id_, listed = str(world.epochs + 1), world.initialisers[me].listed
    at = "opened" if scenario.has(Rule.LIST_AFTER_E1) else "listed"
    after = _moved(world, me, Initialiser(at, id_, listed))
    after = after._replace(redis=open_epoch(world.redis, id_, rules=scenario.rules), epochs=world.epochs + 1)
    yield work(after, _name(me), f"E1: epoch {id_} is draining")


def _e2_list(world: World, me: int, scenario: Scenario) -> Steps:
    """The drain begins: whoever is inside the gate now will be waited for."""
    if scenario.outbox_check == "before" and world.outbox:
        return
    epoch = world.initialisers[me].epoch
    inside = tuple(i for i, txn in enumerate(world.txns) if txn == "entered")
    listed = inside if scenario.has(Rule.DRAIN) else ()
    after = _moved(world, me, Initialiser("listed" if epoch else "listed early", epoch, listed))
    yield work(after, _name(me), "E2: inside the gate:", ", ".join(map(name, listed)) or "nobody")


def _e3_activate(world: World, me: int, scenario: Scenario) -> Steps:
    _, epoch, listed = world.initialisers[me]
    if any(can_still_commit(world, writer) for writer in listed):
        return
    if scenario.outbox_check == "after" and world.outbox:
        return
    redis = activate(world.redis, epoch, rules=scenario.rules)
    after = _moved(world, me, Initialiser())._replace(redis=redis)
    if redis != world.redis:
        after = after._replace(excused=0)
    yield work(after, _name(me), f"E3: epoch {epoch} is active")


_STEPS: dict[str, Callable[[World, int, Scenario], Steps]] = {
    "idle": _meet_epoch,
    "opened": _e2_list,
    "listed early": _e1_open,  # only without LIST_AFTER_E1
    "listed": _e3_activate,
}
