"""The steps of a reader: R1 to R4 of the protocol, what its session held before, and shared reads of tokens."""

from __future__ import annotations

from collections.abc import Callable

from akv.tokens.rules import (
    Arrival,
    Holder,
    Rule,
    Seen,
    confirms,
    may_join_batch,
    may_save_tracked,
    s0_of,
    stamp_of,
    usable,
    valid_epoch,
    vector_of,
)
from tests.model.explorer import Step, begin, work
from tests.model.flights import arrive, board, changed, hand_over, waiting_are
from tests.model.properties import wrong
from tests.model.scenario import Scenario
from tests.model.world import Batch, Entry, Reader, Value, World, asked, promised, visible
from tests.model.writers import Steps


def steps(world: World, scenario: Scenario) -> Steps:
    """Yield what readers may do next, and the batch of token reads that they share."""
    for me, reader in enumerate(world.readers):
        if reader.at in _STEPS:
            yield from _STEPS[reader.at](world, me, scenario)
    if world.batch is not None:
        yield _batch(world, world.batch, scenario)


def _name(me: int, scenario: Scenario) -> str:
    return f"{scenario.readers[me].name}{me}"


def _start(world: World, me: int, scenario: Scenario) -> Steps:
    """A session takes its stamp before anything else; who has none just calls."""
    kind, who = scenario.readers[me], _name(me, scenario)
    if kind.attached:
        held = visible(world)
        yield begin(changed(world, me, at="detached", held=held), who, "is loaded and detached:", held)
    elif kind.has_session:
        if world.writers[0].at == "changed" or not kind.dirty:
            yield begin(_stamped(world, me, scenario), who, "takes the stamp of", world.redis)
    elif kind.tracked and scenario.early_s0:
        s0 = s0_of(world.redis, rules=scenario.rules) if world.redis_up else None
        yield begin(changed(world, me, at="loaded", s0=s0), who, "knows", s0)
    elif not scenario.has(Rule.TOKENS_FIRST):
        held, need = visible(world), promised(world)
        yield begin(changed(world, me, at="loaded", held=held, need=need), who, "queries first:", held)
    else:
        yield from _call(world, me, scenario)


def _stamped(world: World, me: int, scenario: Scenario) -> World:
    stamp = stamp_of(world.redis, rules=scenario.rules) if world.redis_up else None
    return changed(world, me, at="stamped", holder=Holder(stamp, scenario.readers[me].dirty))


def _attach(world: World, me: int, scenario: Scenario) -> Steps:
    """A new session takes its stamp; then an instance comes in that was loaded before."""
    after = changed(_stamped(world, me, scenario), me, at="loaded")
    if scenario.has(Rule.ATTACH_VOIDS_STAMP):
        after = changed(after, me, holder=Holder(None))
    yield work(after, _name(me, scenario), "is added to a session with the stamp of", world.redis)


def _load(world: World, me: int, scenario: Scenario) -> Steps:
    """The snapshot is taken, or the instance loaded."""
    holds = scenario.readers[me].holds
    if not holds:
        yield from _call(world, me, scenario)
        return
    held = visible(world)
    after = changed(world, me, at="loaded", held=held, need=promised(world))
    if scenario.in_database and holds == "snapshot":
        holder = Holder(stamp_of(world.redis, rules=scenario.rules))
        after = changed(after, me, tokens=world.redis, holder=holder)
    yield work(after, _name(me, scenario), f"takes its {holds}:", held)


def _call(world: World, me: int, scenario: Scenario) -> Steps:
    """The call begins; what it must return is known now, for a snapshot since that was taken."""
    kind, reader, who = scenario.readers[me], world.readers[me], _name(me, scenario)
    step = begin if reader.at == "idle" else work
    earlier = kind.holds == "snapshot" or not scenario.has(Rule.TOKENS_FIRST)
    need = reader.need if earlier else promised(world)
    called = changed(world, me, at="called", need=need | (1 if kind.dirty else 0))
    after, how = arrive(called, me, scenario)
    yield step(after, who, how)


def _r1_read_tokens(world: World, me: int, scenario: Scenario) -> Steps:
    who = _name(me, scenario)
    if scenario.batched:
        yield from _join_batch(world, me, scenario)
        return
    seen = world.readers[me].tokens or world.redis
    if world.leader == me:
        world = waiting_are(world, Arrival.ABOARD)
    if world.redis_up:
        yield work(_judged(world, me, scenario, seen), who, "R1:", seen)
    else:
        yield work(board(world, me, scenario, "bypass"), who, "R1: Redis is down")


def _judged(world: World, me: int, scenario: Scenario, seen: Seen) -> World:
    """R2, with the reply to R1 at hand."""
    reader, rules, mine = world.readers[me], scenario.rules, asked(seen, scenario.which)
    ok = usable(mine, reader.holders, rules=rules)
    s0 = reader.s0
    if not scenario.early_s0:
        s0 = s0_of(seen, rules=rules) if scenario.readers[me].tracked else None
    is_named = valid_epoch(seen, rules=rules) is not None and (ok or bool(scenario.flight))
    vector = vector_of(mine) if is_named else None
    after = changed(world, me, at="looking", vector=vector, usable=ok, s0=s0)
    return after if ok else board(after, me, scenario, "bypass")


def _r3_look_up(world: World, me: int, scenario: Scenario) -> Steps:
    if world.store and world.store.vector == world.readers[me].vector:
        yield _returned(world, me, scenario, world.store.value, "hits")
    else:
        yield work(board(world, me, scenario, "missed"), _name(me, scenario), "misses")


def _r4_compute(world: World, me: int, scenario: Scenario) -> Steps:
    """The queries run, unless the session holds older state; the cache does not answer for that of an instance."""
    kind, reader = scenario.readers[me], world.readers[me]
    value = visible(world) if reader.held is None else reader.held
    value |= 1 if kind.dirty else 0
    need = 0 if kind.holds == "instance" else reader.need
    yield work(changed(world, me, at="computed", value=value, need=need), _name(me, scenario), "computes", value)


def _read_again(world: World, me: int, scenario: Scenario) -> Steps:
    """Is the fill settled? Asked where it is tracked, in a flight, or exact: only there it makes a difference."""
    kind, reader = scenario.readers[me], world.readers[me]
    exact = scenario.exact and scenario.has(Rule.CONFIRM_BEFORE_SAVE)
    if not (kind.tracked or scenario.flight or exact):
        yield from _save(world, me, scenario)
    elif not world.redis_up:
        yield from _save(changed(world, me, usable=False), me, scenario)
    else:
        seen = reader.tokens or world.redis
        settled = _settled_tracked if kind.tracked else _settled
        ok, after = settled(world, me, scenario, seen)
        if ok and world.leader == me:
            after = waiting_are(after, Arrival.CONFIRMED)
        yield work(after, _name(me, scenario), "reads the tokens again:", seen)


def _settled(world: World, me: int, scenario: Scenario, seen: Seen) -> tuple[bool, World]:
    reader = world.readers[me]
    exact = scenario.exact and scenario.has(Rule.CONFIRM_BEFORE_SAVE)
    ok = confirms(asked(seen, scenario.which), reader.fill(), rules=scenario.rules)
    return ok, changed(world, me, at="read again", usable=reader.usable and (ok or not exact))


def _settled_tracked(world: World, me: int, scenario: Scenario, seen: Seen) -> tuple[bool, World]:
    reader, mine = world.readers[me], asked(seen, scenario.which)
    ok = may_save_tracked(reader.s0, mine, reader.holders, rules=scenario.rules)
    return ok, changed(world, me, at="read again", usable=ok, vector=vector_of(mine) if ok else None)


def _save(world: World, me: int, scenario: Scenario) -> Steps:
    reader: Reader = world.readers[me]
    if reader.usable and reader.vector:
        saved = world._replace(store=Entry(reader.vector, reader.value))
        yield _returned(saved, me, scenario, reader.value, "saves and returns")
    else:
        yield _returned(world, me, scenario, reader.value, "returns without saving")


def _returned(world: World, me: int, scenario: Scenario, value: Value, how: str) -> Step[World]:
    """The call returns; if it led a flight, others may take the result."""
    violation = wrong(world, me, scenario, value)
    after, of_others = hand_over(world, me, scenario, value)
    return work(after, _name(me, scenario), how, value, violation=violation or of_others)


def _join_batch(world: World, me: int, scenario: Scenario) -> Steps:
    batch = world.batch
    if batch is None or may_join_batch(batch.answer is not None, rules=scenario.rules):
        joined = changed(world, me, at="in batch")._replace(batch=batch or Batch())
        yield work(joined, _name(me, scenario), "joins the batch" if batch else "opens a batch")


def _batch(world: World, batch: Batch, scenario: Scenario) -> Step[World]:
    if batch.answer is None:
        return work(world._replace(batch=Batch(world.redis)), "the batch is answered:", world.redis)
    after = world._replace(batch=None)
    for me, reader in enumerate(world.readers):
        if reader.at == "in batch":
            after = _judged(after, me, scenario, batch.answer)
    return work(after, "the batch is delivered")


_STEPS: dict[str, Callable[[World, int, Scenario], Steps]] = {
    "idle": _start,
    "detached": _attach,
    "stamped": _load,
    "loaded": _call,
    "called": _r1_read_tokens,
    "looking": _r3_look_up,
    "missed": _r4_compute,
    "bypass": _r4_compute,
    "computed": _read_again,
    "read again": _save,
}
