"""The steps of a writer: W0 to W5 of the protocol, and what the database does with its COMMIT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from akv.tokens.rules import Epoch, Rule, Seen, mark, open_epoch, resolve, valid_epoch
from tests.model.explorer import Step, begin, fault, work
from tests.model.scenario import Scenario
from tests.model.world import TRANSACTIONS, Txn, World, put, scripted

Steps: TypeAlias = Iterator[Step[World]]


def steps(world: World, scenario: Scenario) -> Steps:
    """Yield what writers may do next."""
    for me, writer in enumerate(world.writers):
        if writer.late:
            yield from _late_mark(world, me, scenario)
        if _is_read_in(world, me, scenario):
            continue
        if writer.at in _STEPS:
            yield from _STEPS[writer.at](world, me, scenario)
        if scenario.crash and writer.at in _CRASHES_TO:
            yield fault(_moved(world, me, at=_CRASHES_TO[writer.at]), name(me), "CRASHES")


def name(me: int) -> str:
    """Return a writer's name in traces."""
    return f"W{TRANSACTIONS[me]}"


def can_still_commit(world: World, me: int) -> bool:
    """Tell whether a writer's transaction has begun and not ended."""
    return world.txns[me] in ("open", "entered")


def resolved(world: World, me: int, scenario: Scenario) -> Seen:
    """Return what Redis is after RESOLVE for a writer."""
    script = partial(resolve, who=world.writers[me].id, rules=scenario.rules)
    return scripted(world.redis, scenario.changed_by(me), script)


def _is_read_in(world: World, me: int, scenario: Scenario) -> bool:
    """Is a read under way inside this writer's transaction? Then the transaction has to wait."""
    pairs = zip(scenario.readers, world.readers, strict=True)
    return me == 0 and any(kind.dirty and reader.at != "idle" for kind, reader in pairs)


def _moved(world: World, me: int, txn: Txn | None = None, redis: Seen | None = None, **change: Any) -> World:
    return world._replace(
        writers=put(world.writers, me, world.writers[me]._replace(**change)),
        txns=put(world.txns, me, txn) if txn else world.txns,
        redis=redis or world.redis,
    )


def _marked(world: World, me: int, epoch: Epoch, scenario: Scenario) -> Seen:
    script = partial(mark, who=world.writers[me].id, epoch=epoch, rules=scenario.rules)
    return scripted(world.redis, scenario.changed_by(me), script)


def _w0_change(world: World, me: int, scenario: Scenario) -> Steps:
    epoch = world.redis.epoch
    known = epoch.id if epoch and not scenario.has(Rule.MARK_IN_CURRENT_EPOCH) else ""
    again = world.txns[0] == "aborted" and not scenario.has(Rule.MARKS_ARE_UNIQUE)
    id_ = TRANSACTIONS[0 if again else me]
    after = _moved(world, me, txn="open", at="changed", id=id_, known=known)
    yield begin(after, name(me), f"changes a row as transaction {id_}" if again else "changes a row")


def _w2_enter(world: World, me: int, scenario: Scenario) -> Steps:
    yield fault(_moved(world, me, txn="aborted", at="done"), name(me), "rolls back")
    if scenario.in_database:
        yield work(_moved(world, me, at="ready", then="nothing"), name(me), "upserts its tokens")
    elif not scenario.has(Rule.MARK_BEFORE_COMMIT):
        yield work(_moved(world, me, at="committing"), name(me), "sends COMMIT")
    elif not scenario.has(Rule.ENTER_BEFORE_MARK):
        yield from _w3_mark(world, me, scenario)
    else:
        yield work(_moved(world, me, txn="entered", at="entered"), name(me), "enters the gate")
    yield from _wrong_ways_to_enter(world, me, scenario)


def _wrong_ways_to_enter(world: World, me: int, scenario: Scenario) -> Steps:
    if not scenario.has(Rule.BUMP_AT_REAL_COMMIT):
        early = _moved(world, me, redis=resolved(world, me, scenario), at="ready", then="nothing")
        yield work(early, name(me), "releases a savepoint, bumps, and forgets what it changed")
    if not scenario.has(Rule.OUTBOX_TRIES_REDIS) and not world.redis_up:
        yield work(_moved(world, me, at="breaker open"), name(me), "does not reach Redis, opens its breaker")


def _enter_without_mark(world: World, me: int, scenario: Scenario) -> Steps:
    after = _moved(world, me, txn="entered", at="ready", then="outbox")
    yield work(after, name(me), "enters the gate, tries no MARK, inserts into the outbox")


def _w3_mark(world: World, me: int, scenario: Scenario) -> Steps:
    if world.writers[me].at == "entered":
        yield fault(_moved(world, me, txn="aborted", at="done"), name(me), "rolls back")
    if not world.redis_up or scenario.cut_off:
        after = _moved(world, me, at="ready", then="outbox")
        yield work(after, name(me), "does not reach Redis, inserts into the outbox")
    if not world.redis_up:
        return
    epoch = valid_epoch(world.redis, rules=scenario.rules)
    if epoch is None:
        yield from _w3_without_epoch(world, me, scenario)
    elif epoch.active or scenario.has(Rule.MARK_IN_DRAINING):
        if not scenario.has(Rule.MARK_IN_CURRENT_EPOCH):
            epoch = epoch._replace(id=world.writers[me].known)
        yield from _w3_in_epoch(world, me, scenario, epoch)


def _w3_in_epoch(world: World, me: int, scenario: Scenario, epoch: Epoch) -> Steps:
    at = "ready" if scenario.has(Rule.ENTER_BEFORE_MARK) else "marked"
    marked = _moved(world, me, redis=_marked(world, me, epoch, scenario), at=at)
    yield work(marked, name(me), "MARKs")
    if scenario.cut_off:
        yield work(_moved(marked, me, then="outbox"), name(me), "MARKs, gets no reply, inserts into the outbox")
    if scenario.late:
        yield fault(_moved(marked, me, late=True), name(me), "MARKs on a new connection, its first MARK is late")
        given_up = _moved(world, me, txn="aborted", at="done", late=True)
        yield fault(given_up, name(me), "gets no reply to MARK and rolls back, its MARK is late")


def _late_mark(world: World, me: int, scenario: Scenario) -> Steps:
    """A request that nobody waits for any more reaches Redis, or is lost."""
    epoch = valid_epoch(world.redis, rules=scenario.rules)
    if world.redis_up and epoch is not None:
        after = _moved(world, me, redis=_marked(world, me, epoch, scenario), late=False)
        yield fault(after, "the late MARK of", name(me), "arrives")


def _w3_without_epoch(world: World, me: int, scenario: Scenario) -> Steps:
    if scenario.without_epoch == "skip":
        yield work(_moved(world, me, at="ready"), name(me), "finds no epoch, goes on without a mark")
    else:
        opened = open_epoch(world.redis, str(world.epochs + 1), rules=scenario.rules)
        after = world._replace(redis=opened, epochs=world.epochs + 1)
        yield work(after, name(me), f"finds no epoch; E1: epoch {after.epochs} is draining")


def _enter_after_mark(world: World, me: int, scenario: Scenario) -> Steps:
    yield work(_moved(world, me, txn="entered", at="ready"), name(me), "enters the gate")


def _w4_commit(world: World, me: int, scenario: Scenario) -> Steps:
    then = world.writers[me].then
    rolled_back = _moved(world, me, txn="aborted", at="ended" if then == "resolve" else "done")
    yield fault(rolled_back, name(me), "rolls back")
    if then == "resolve" and not scenario.has(Rule.RESOLVE_AFTER_COMMIT):
        early = _moved(world, me, redis=resolved(world, me, scenario), then="nothing")
        yield work(early, name(me), "RESOLVEs before COMMIT")
    else:
        yield work(_moved(world, me, at="committing"), name(me), "sends COMMIT")


def _database_decides(world: World, me: int, scenario: Scenario) -> Steps:
    """COMMIT is under way; the writer waits for the reply, or is lost."""
    writer = world.writers[me]
    at = "dead" if writer.at == "lost" else "ended" if writer.then == "resolve" else "done"
    after = _moved(world, me, txn="committed", at=at)
    if writer.then == "outbox":
        excused = world.excused | (1 << me if scenario.cut_off else 0)
        after = after._replace(outbox=world.outbox | 1 << me, excused=excused)
    if scenario.in_database:
        after = after._replace(redis=resolved(world, me, scenario))
    yield work(after, "the database commits", name(me))
    yield work(_moved(world, me, txn="aborted", at=at), "the database aborts", name(me))


def _w5_resolve(world: World, me: int, scenario: Scenario) -> Steps:
    if world.redis_up:
        yield work(_moved(world, me, redis=resolved(world, me, scenario), at="done"), name(me), "RESOLVEs")
    else:
        yield work(_moved(world, me, at="done"), name(me), "cannot RESOLVE")


def _database_aborts(world: World, me: int, scenario: Scenario) -> Steps:
    yield work(_moved(world, me, txn="aborted", at="dead"), "the database aborts", name(me))


_STEPS: dict[str, Callable[[World, int, Scenario], Steps]] = {
    "idle": _w0_change,
    "changed": _w2_enter,
    "breaker open": _enter_without_mark,  # only without OUTBOX_TRIES_REDIS
    "entered": _w3_mark,
    "marked": _enter_after_mark,  # only without ENTER_BEFORE_MARK
    "ready": _w4_commit,
    "committing": _database_decides,
    "ended": _w5_resolve,
    "crashed": _database_aborts,
    "lost": _database_decides,
}
_CRASHES_TO = {
    "changed": "crashed",
    "entered": "crashed",
    "marked": "crashed",
    "ready": "crashed",
    "committing": "lost",
    "ended": "dead",
}
