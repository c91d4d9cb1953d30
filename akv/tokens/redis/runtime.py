"""
RedisTokens on one event loop: its connections, its lanes, its tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from akv.aio import join_coroutine
from akv.tokens.backend import Announcement, Unreachable
from akv.tokens.redis.budget import Breaker, Budget
from akv.tokens.redis.core import Core
from akv.tokens.redis.epochs import Epochs, seen_on
from akv.tokens.redis.formats import Found, read_epoch, read_record
from akv.tokens.redis.lanes import Lane
from akv.tokens.redis.pool import Pool
from akv.tokens.redis.relay import Relay
from akv.tokens.redis.sweeper import Sweeper
from akv.tokens.redis.tasks import LoopTasks
from akv.tokens.redis.wire import LOOK, MARK, RESOLVE, BrokenError, Link, RefusedError, Script, Settings
from akv.tokens.rules import Record, Seen, valid_epoch

T = TypeVar("T")
logger = logging.getLogger("akv")

_MARKS_OF: Final = attrgetter("marks")
_AT_ONCE: Final = 2
_LARGEST: Final = 10_000
"""Records in one call: Redis does nothing else meanwhile."""
_SHARED_FROM: Final = 200
"""Records to be read that are worth two calls at once: Redis reads some while we look at the others."""
_PATIENCE: Final = 5.0
"""Seconds for what nobody waits for."""
_IN_A_HURRY: Final = 0.2
"""What is left of a commit's time when Redis did not answer the last few times; it is asked all the same."""


class Asking:
    """Asks Redis within a time, and keeps the breaker informed."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self.breaker = Breaker(core.clock)
        self.pool = Pool(settings, core.options.max_connections or min(settings.most, 8))
        self._options = core.options

    async def for_a_read(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Ask within the time that a reader has; raises Unreachable."""
        return await self._ask(work, self._options.read_timeout)

    async def for_a_commit(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Ask within the time that a commit has; raises Unreachable."""
        return await self._ask(work, self._options.commit_timeout * (_IN_A_HURRY if self.breaker.is_open else 1))

    async def patiently(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Ask for a task that nobody waits for; raises Unreachable."""
        return await self._ask(work, _PATIENCE)

    async def _ask(self, work: Callable[[Link], Awaitable[T]], seconds: float) -> T:
        try:
            with Budget(seconds):
                answer = await self.pool.ask(work)
        except (BrokenError, RefusedError, TimeoutError) as error:
            self.breaker.failed(error)
            raise Unreachable(str(error)) from error
        self.breaker.succeeded()
        return answer


class Shown(NamedTuple):
    """What a look showed: the epoch as it is written and as the rules want it, and records as they are written."""

    found: Found
    seen: Seen
    records: list[str]


class Ended(NamedTuple):
    """A transaction that has ended, or (without mark) anything else that changes tokens."""

    mark: str
    identifiers: Collection[str]


class Runtime:
    """Everything of RedisTokens that belongs to one event loop; made on it, and without I/O."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self._core = core
        self._calls = LoopTasks()
        self._background = LoopTasks()
        self._resolving: set[asyncio.Task[None]] = set()
        self._asking = Asking(core, settings)
        self._epochs = Epochs(core, self._asking, self._background)
        self.relay = Relay(core, self._background, self.bump)
        self._sweeper = Sweeper(core.clock, self._background, ended=self._ended, resolve=self.bump)
        self._looks: Lane[Sequence[str], Seen] = self._lane(self._send_looks, len, _SHARED_FROM)
        self._marks: Lane[Announcement, None] = self._lane(self._send_marks, lambda call: len(call.records))
        self._bumps: Lane[Ended, None] = self._lane(self._send_bumps, lambda call: len(call.identifiers))

    def _lane(self, send: Any, size: Callable[[Any], int], shared_from: int | None = None) -> Lane[Any, Any]:
        return Lane(send, self._calls, size=size, largest=_LARGEST, at_once=_AT_ONCE, shared_from=shared_from)

    # --- what is asked of it -------------------------------------------------------------------------------------

    async def look(self, identifiers: Sequence[str]) -> Seen:
        """
        Read the records of identifiers in one round trip, shared with whoever asks at the same moment.

        Raises:
            Unreachable: Redis does not answer in time.
            ConfigurationError: It is not ours to use.
        """
        if not self._asking.breaker.allows():
            raise Unreachable("Redis did not answer the last few times")
        return await self._looks.submit(identifiers)

    async def greet(self) -> None:
        """
        Look at Redis for the first time, and begin to mend what is to be mended; a connection takes a while.

        Raises:
            Unreachable: Redis does not answer in time.
            ConfigurationError: It is not ours to use.
        """
        keys, sent_at = [self._core.keys.epoch, self._core.keys.seq], self._core.clock()
        self._noted(await self._asking.for_a_commit(lambda link: _look_on(link, keys)), sent_at)

    async def mark(self, announcement: Announcement) -> None:
        """
        Put a mark into records, whether or not Redis has answered lately.

        Raises:
            Unreachable: Redis does not answer in time, or refuses; nobody knows whether the mark stands.
            ConfigurationError: It is not ours to use; there is no mark.
        """
        await self._marks.submit(announcement)

    async def bump(self, mark: str, identifiers: Collection[str]) -> None:
        """
        Give records fresh tokens and take a mark away from them; an empty one if there is none.

        Raises:
            Unreachable: Redis does not answer in time, or refuses.
            ConfigurationError: It is not ours to use.
        """
        await self._bumps.submit(Ended(mark, identifiers))

    def resolve(self, announcement: Announcement) -> asyncio.Task[None]:
        """Start to take a mark away, with a bump; if that fails, the sweeper will do it."""
        task = self._calls.spawn(self._resolve(announcement), name="akv resolves a mark")
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)
        return task

    async def _resolve(self, announcement: Announcement) -> None:
        try:
            await self.bump(announcement.mark, announcement.records)
        except Exception as error:
            logger.info("a mark stays until somebody sweeps it away: %s", error)

    async def drain(self) -> None:
        """Wait until every mark that was to be resolved by now is."""
        if self._resolving:
            await asyncio.wait(set(self._resolving))

    async def aclose(self) -> None:
        """Finish what is on its way, then close everything; done whole, even if the caller is cancelled."""
        await join_coroutine(self._close())

    async def _close(self) -> None:
        await self._background.cancel()
        await self._calls.drain()
        await self._background.cancel()  # what the last calls have begun
        await self._asking.pool.aclose()

    def drop(self) -> None:
        """Let go of what an event loop that has ended has left behind."""
        for lane in (self._looks, self._marks, self._bumps):
            lane.forget()
        self._asking.pool.let_go()  # first, so that what is taken apart now opens nothing
        self._background.abandon()
        self._calls.abandon()

    # --- batches -------------------------------------------------------------------------------------------------

    async def _send_looks(self, calls: Sequence[Sequence[str]]) -> list[Seen]:
        identifiers = list(dict.fromkeys(chain.from_iterable(calls)))
        keys = [self._core.keys.epoch, self._core.keys.seq, *self._core.keys.of_identifiers(identifiers)]
        sent_at = self._core.clock()
        try:
            shown = await self._asking.for_a_read(lambda link: _look_on(link, keys))
        except Unreachable as error:
            if self._asking.breaker.is_open:
                self._looks.fail(error)
            raise
        seen = self._noted(shown, sent_at)
        known = dict(zip(identifiers, map(read_record, shown.records), strict=True))
        self._sweep(seen, known)
        run, epoch, seq, _ = seen
        return [Seen(run, epoch, seq, tuple(map(known.__getitem__, call))) for call in calls]

    def _noted(self, shown: Shown, sent_at: float) -> Seen:
        self._core.check(shown.found, shown.seen)
        self._core.learn(shown.seen, sent_at)
        self._epochs.met(shown.seen)
        return shown.seen

    def _sweep(self, seen: Seen, known: dict[str, Record]) -> None:
        epoch = valid_epoch(seen, rules=self._core.rules)
        if epoch is None or self._core.any_bound() is None or not any(map(_MARKS_OF, known.values())):
            return
        for identifier, record in known.items():
            if record.marks and record.epoch == epoch.id:
                self._sweeper.met(identifier, record.marks)

    async def _ended(self, marks: Collection[str]) -> set[str]:
        engine = self._core.any_bound()
        return await self._core.gate(engine).ended(marks) if engine is not None else set()

    async def _send_marks(self, calls: Sequence[Announcement]) -> list[None]:
        core = self._core
        identifiers, marks, numbers = _numbered([Ended(call.mark, call.records) for call in calls])
        keys = [core.keys.epoch, *core.keys.of_identifiers(identifiers)]
        arguments = (str(core.options.slots), core.database, marks, *numbers)
        found, seen = await self._asking.for_a_commit(lambda link: _run_on(link, MARK, keys, arguments))
        core.check(found, seen)
        self._epochs.met(seen)
        return [None] * len(calls)

    async def _send_bumps(self, calls: Sequence[Ended]) -> list[None]:
        core = self._core
        identifiers, marks, numbers = _numbered(calls)
        keys = [core.keys.epoch, core.keys.seq, *core.keys.of_identifiers(identifiers)]
        arguments = (str(core.options.slots), core.database, marks, *numbers)
        found, seen = await self._asking.for_a_commit(lambda link: _run_on(link, RESOLVE, keys, arguments))
        core.check(found, seen)
        return [None] * len(calls)


async def _look_on(link: Link, keys: Sequence[bytes]) -> Shown:
    epoch, seq, *records = (await link.run_script(LOOK, keys)).split("\n")
    found = read_epoch(epoch)
    return Shown(found, (await seen_on(link, found))._replace(seq=int(seq or 0)), records)


async def _run_on(link: Link, script: Script, keys: Sequence[bytes], arguments: Sequence[str]) -> tuple[Found, Seen]:
    found = read_epoch(await link.run_script(script, keys, *arguments))
    return found, await seen_on(link, found)


def _numbered(calls: Sequence[Ended]) -> tuple[list[str], str, list[str]]:
    """Return what MARK and RESOLVE are told: each identifier once, the marks, and which of them it is about."""
    numbers: dict[str, list[str]] = {}
    marks = dict.fromkeys(call.mark for call in calls if call.mark)
    number_of = {mark: str(number) for number, mark in enumerate(marks, 1)}
    for call in calls:
        for identifier in call.identifiers:
            of_identifier = numbers.setdefault(identifier, [])
            if call.mark:
                of_identifier.append(number_of[call.mark])
    return list(numbers), " ".join(marks), [" ".join(each) for each in numbers.values()]
