"""
How to break a rule, in a worker that has made nothing yet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from sqlalchemy import Connection, event

from akv.tokens import concern, rules, things
from akv.tokens.backend import Unreachable
from akv.tokens.gates.postgres import PostgresGate
from akv.tokens.listeners import BoundEngine
from akv.tokens.redis import budget, core, epochs, runtime, sweeper, wire
from akv.tokens.redis.tokens import RedisTokens
from akv.tokens.redis.wire import Script
from akv.tokens.rules import ALL, Rule, active_epoch
from akv.tokens.sessions import SessionRecord
from akv.tokens.transactions import transaction_of

Patch = Callable[[], None]


def nothing() -> None:
    """It is the readers, or Redis, that do not keep the rule."""


def without(rule: Rule) -> Patch:
    """Take a rule from what the pure functions go by."""

    def patch() -> None:
        left = ALL - {rule}
        for function in vars(rules).values():
            defaults = getattr(function, "__kwdefaults__", None)
            if defaults and "rules" in defaults:
                defaults["rules"] = left
        wrap(core.Core, "__init__", lambda original: _with_rules(original, left))

    return patch


def _with_rules(original: Any, left: rules.Rules) -> Any:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.rules = left

    return init


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def replaced(owner: Any, name: str, value: Any) -> Patch:
    return lambda: setattr(owner, name, value)


def script(name: str, *changes: tuple[str, str]) -> Patch:
    """Change the text of a script of Redis."""

    def patch() -> None:
        text = files("akv.tokens.redis").joinpath(f"{name.lower()}.lua").read_text()
        for old, new in changes:
            assert old in text, f"{name} has changed: {old!r} is not there"
            text = text.replace(old, new)
        for module in (runtime, wire):
            if hasattr(module, name):
                setattr(module, name, Script.of(text.encode()))

    return patch


async def do_nothing(*_: Any, **__: Any) -> None:
    """Take the place of something that is left out."""


def resolve_before_commit() -> None:
    def make(announce: Any) -> Any:
        async def announcing(self: RedisTokens, *args: Any) -> None:
            announcement = await announce(self, *args)
            if announcement is not None:
                await self.resolve(announcement)

        return announcing

    wrap(RedisTokens, "announce", make)


def bump_at_release() -> None:
    """Take the release of a savepoint for the commit: bump, and forget what changed."""

    def released(connection: Connection, _name: str, _context: object) -> None:
        transaction = transaction_of(connection)
        if transaction is not None:
            changed = sorted(transaction.take())
            transaction.driver.run(transaction.tokens.bump(changed))

    def make(init: Any) -> Any:
        def initialise(self: Any, engine: Any, *args: Any) -> None:
            init(self, engine, *args)
            event.listen(engine, "release_savepoint", released)

        return initialise

    wrap(BoundEngine, "__init__", make)


def mark_before_enter() -> None:
    """Take the id without the lock, mark, and take the lock afterwards."""
    entering: dict[int, tuple[Any, Any]] = {}

    def make_enter(enter: Any) -> Any:
        async def only_id(self: PostgresGate, driver: Any) -> str:
            ((xid,),) = await driver.fetch("SELECT CAST(pg_current_xact_id() AS text)")
            entering[id(driver)] = (self, enter)
            return f"{xid}:{id(driver):x}"

        return only_id

    def make_announce(announce: Any) -> Any:
        async def announcing(self: RedisTokens, driver: Any, *args: Any) -> Any:
            announcement = await announce(self, driver, *args)
            gate, enter = entering.pop(id(driver))
            await asyncio.sleep(0.2)
            await enter(gate, driver)
            return announcement

        return announcing

    wrap(PostgresGate, "enter", make_enter)
    wrap(RedisTokens, "announce", make_announce)


def mark_in_epoch_of_start() -> None:
    """Mark in the epoch that was known when the transaction began."""
    script("MARK", ("local prefix = id .. ' '", "local prefix = ARGV[#ARGV] .. ' '"))()
    started: dict[str, str] = {}

    def make_mark(mark: Any) -> Any:
        async def marking(self: Any, announcement: Any) -> None:
            await self._asking.for_a_commit(lambda link: _mark_in(link, self._core, announcement))

        return marking

    async def _mark_in(link: Any, core_: core.Core, announcement: Any) -> None:
        records = core_.keys.of_identifiers(announcement.records)
        epoch = started.get(announcement.mark) or "none"
        arguments = (str(core_.options.slots), core_.database, announcement.mark, *["1"] * len(records), epoch)
        await link.run_script(runtime.MARK, [core_.keys.epoch, *records], *arguments)

    def make_announce(announce: Any) -> Any:
        async def announcing(self: RedisTokens, driver: Any, engine: Any, changed: Any) -> Any:
            known = self.stamp.epoch if self.stamp is not None else ""
            gate = self._core.gate(engine)
            mark = await gate.enter(driver)
            started[mark] = known
            announcement = runtime.Announcement(mark, tuple(sorted(changed)))
            await asyncio.sleep(0.02)
            await self._here().mark(announcement)
            return announcement

        return announcing

    wrap(runtime.Runtime, "mark", make_mark)
    wrap(RedisTokens, "announce", make_announce)


def same_mark() -> None:
    """Give every transaction of all processes the same mark."""

    def make(enter: Any) -> Any:
        async def entering(self: Any, driver: Any) -> str:
            await enter(self, driver)
            return "1:same"

        return entering

    wrap(PostgresGate, "enter", make)


def share_sent_reads() -> None:
    """Let a read of tokens ride on one that is under way."""
    flying: dict[tuple[str, ...], asyncio.Future[Any]] = {}

    def make_look(look: Any) -> Any:
        async def looking(self: Any, identifiers: Any) -> Any:
            names = tuple(identifiers)
            if names not in flying or flying[names].done():
                flying[names] = asyncio.ensure_future(_slow(look(self, names)))
            return await asyncio.shield(flying[names])

        return looking

    wrap(runtime.Runtime, "look", make_look)


async def _slow(look: Any) -> Any:
    seen = await look
    await asyncio.sleep(0.01)  # the way back
    return seen


def without_bulk() -> None:
    """Leave "some rows of the table" out of what a row depends on."""

    def make(vector_of: Any) -> Any:
        return lambda identifier: tuple(name for name in vector_of(identifier) if not name.endswith("#~"))

    wrap(things, "vector_of", make)


def sweep_by_clock() -> None:
    """Take every mark for one of a dead writer after a while."""

    async def ended(self: Any, marks: Any) -> set[str]:
        return set(marks)

    setattr(sweeper, "PATIENCE", 0.02)  # noqa: B010 - it is Final
    setattr(PostgresGate, "ended", ended)  # noqa: B010


def list_before_opening() -> None:
    """List whom to wait for, and only then open the epoch that is drained."""

    def make(open_: Any) -> Any:
        async def opening(self: Any, link: Any) -> None:
            engine = self._core.any_bound()
            await self._core.gate(engine).drain()
            await asyncio.sleep(0.05)
            self._core.gate(engine).drain = do_nothing
            await open_(self, link)

        return opening

    drain = PostgresGate.drain

    def make_renew(renew: Any) -> Any:
        async def renewing(self: Any) -> None:
            try:
                await renew(self)
            finally:
                self._core.gate(self._core.any_bound()).drain = drain.__get__(self._core.gate(self._core.any_bound()))

        return renewing

    wrap(epochs.Epochs, "_open", make)
    wrap(epochs.Epochs, "_renew", make_renew)


def stamp_of_draining() -> None:
    """Take stamps in a draining epoch, which lasts a while here."""
    slow_drain()
    without(Rule.STAMP_IS_ACTIVE)()


def activate_whatever() -> None:
    """Activate the epoch that was drained, whatever has taken its place meanwhile."""
    slow_drain()
    script("SWAP", ("if epoch ~= ARGV[1] then return epoch end", ""))()


def slow_drain() -> None:
    def make(drain: Any) -> Any:
        async def draining(self: Any) -> None:
            await drain(self)
            await asyncio.sleep(0.3)

        return draining

    wrap(PostgresGate, "drain", make)


def no_drain() -> None:
    setattr(PostgresGate, "drain", do_nothing)  # noqa: B010


def no_mark() -> None:
    setattr(runtime.Runtime, "mark", do_nothing)  # noqa: B010


def mark_when_active() -> None:
    """Let a commit that has entered the gate wait for an active epoch, which waits for it."""

    def make(mark: Any) -> Any:
        async def marking(self: Any, announcement: Any) -> None:
            while not await _has_active_epoch(self):
                await asyncio.sleep(0.01)
            await mark(self, announcement)

        return marking

    wrap(runtime.Runtime, "mark", make)


async def _has_active_epoch(here: Any) -> bool:
    try:
        return active_epoch(await here.look(())) is not None
    except Unreachable:
        return False


def leave_draining() -> None:
    """Leave an epoch that drains to whoever has opened it, dead or alive."""
    slow_drain()
    without(Rule.TAKE_OVER_DRAINING)()


def never_sweep() -> None:
    setattr(sweeper.Sweeper, "met", lambda *_: None)  # noqa: B010


def trust_breaker() -> None:
    """Do not try to mark when Redis did not answer the last few times; some processes are slow to see that it does."""
    setattr(budget, "_PAUSE", random.choice((0.2, 3.0)))  # noqa: B010 - it is Final

    def make(mark: Any) -> Any:
        async def marking(self: Any, announcement: Any) -> None:
            if self._asking.breaker.is_open:
                raise Unreachable("not tried")
            await mark(self, announcement)

        return marking

    wrap(runtime.Runtime, "mark", make)


def never_dirty() -> None:
    concern.Concern.is_dirty = lambda self, transactions=None: False  # type: ignore[method-assign]


def never_void() -> None:
    SessionRecord.void = lambda self: None  # type: ignore[method-assign]
