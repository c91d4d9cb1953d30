"""What happens to Redis, and to something outside the database that ``cache_clear`` announces."""

from __future__ import annotations

from functools import partial

from akv.tokens.rules import Rule, Seen, resolve
from tests.model.explorer import begin, fault, work
from tests.model.scenario import Scenario
from tests.model.world import OLD, World, scripted
from tests.model.writers import Steps


def steps(world: World, scenario: Scenario) -> Steps:
    """Yield what may happen next."""
    yield from _source(world, scenario)
    if world.redis_up:
        yield from _losses(world, scenario)
    yield from _restarts(world)


def _source(world: World, scenario: Scenario) -> Steps:
    if not scenario.source or not world.redis_up:
        return
    if world.source == "same":
        yield begin(world._replace(source="changed"), "a source outside the database changes")
    elif world.source == "changed":
        if scenario.has(Rule.INVALIDATION_IS_BUMP):
            bumped = scripted(world.redis, (1,), partial(resolve, rules=scenario.rules))
            after = world._replace(redis=bumped)
        else:
            after = world._replace(store=None)
        yield work(after._replace(source="announced"), "cache_clear returns")


def _losses(world: World, scenario: Scenario) -> Steps:
    budget, redis = world.budget, world.redis
    nothing = (OLD,) * len(redis.records)
    if budget.flush:
        left = budget._replace(flush=budget.flush - 1)
        yield fault(world._replace(redis=Seen(redis.run, None, 0, nothing), budget=left), "FLUSHALL")
    if budget.eviction and not scenario.has(Rule.NO_EVICTION):
        left = budget._replace(eviction=budget.eviction - 1)
        yield fault(world._replace(redis=redis._replace(records=nothing), budget=left), "Redis evicts the record")


def _restarts(world: World) -> Steps:
    budget, redis = world.budget, world.redis
    if world.backup is not None and (budget.restart or budget.outage) and world.redis_up and world.backup != redis:
        yield fault(world._replace(backup=redis), "Redis writes its data to disk")
    if budget.restart:
        left = budget._replace(restart=budget.restart - 1)
        yield fault(_restarted(world)._replace(budget=left), "Redis restarts with older data")
    if budget.outage and world.redis_up:
        left = budget._replace(outage=budget.outage - 1)
        yield fault(world._replace(redis_up=False, budget=left), "Redis dies")
    if not world.redis_up:
        yield work(_restarted(world)._replace(redis_up=True), "Redis comes back with older data")


def _restarted(world: World) -> World:
    assert world.backup is not None
    run = str(int(world.redis.run) + 1)
    return world._replace(redis=world.backup._replace(run=run))
