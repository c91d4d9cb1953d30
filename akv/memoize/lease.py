"""
One holder among all tasks and processes: a lease in a row of the store, renewed while it is held.

Each step compares and replaces the row in one transaction, and may be repeated; whoever is cancelled in the middle
of one takes it back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

from akv.aio import PerLoop
from akv.errors import AKVError, ClosedError, InvalidArgumentError, OutcomeUnknownError
from akv.memoize.freshness import SECOND
from akv.memoize.leaserow import Row, Taken, released, renewed, taken
from akv.typing import Default, Expire, NoValue

log = logging.getLogger("akv")

T = TypeVar("T")

LOCK_TAG: Final = "akv:lock"
"""The tag of the rows of ``kv.lock``."""
TURN_TAG: Final = "akv:lock:memo"
"""The tag of the rows of memoized calls with ``lock=True``."""

_REMEMBERED: Final = 600.0  # seconds for which a free row keeps its fence; afterwards the clock has moved past it
_RENEWALS: Final = 3  # in the time of one lease
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
_REPEATS: Final = 3


class Spawn(Protocol):
    """Starts tasks that the store owns and ends when it closes."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task; ClosedError if the store was closed."""


class LeaseStore(Protocol):
    """What leases use of a store."""

    async def get(self, key: str, default: Any = ..., tag: str | Default = ...) -> Any:
        """Return the live value, or *default*."""

    async def update(
        self,
        key: str,
        function: Callable[[Any], Any],
        *,
        default: Any = ...,
        tag: str | Default = ...,
        expire: Expire | NoValue = ...,
    ) -> Any:
        """Replace a value by a function of it, in one transaction."""


class Name(NamedTuple):
    """Where a lease has its row."""

    key: str
    tag: str


class Locks:
    """The leases of one store."""

    def __init__(
        self,
        store: LeaseStore,
        now: Callable[[], int],
        spawn: Spawn,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            store: Its rows hold the leases.
            now: Microseconds since 1970.
            spawn: Starts tasks of the store.
            sleep: Waits for some seconds, between looks and between renewals.
        """
        self.store = store
        self.now = now
        self.spawn = spawn
        self.sleep = sleep
        self._queues: PerLoop[dict[Name, _Queue]] = PerLoop(self._new_queues)

    async def attempt(self, name: Name, seconds: float, *, peek: bool = False) -> Lease | float:
        """
        Take a lease if it is free.

        Args:
            name: Of its row.
            seconds: How long it lasts unless it is renewed.
            peek: Read first, because it will hardly be free.

        Returns:
            The lease, or the seconds that its holder still has.

        Raises:
            StoreError: The database refused.

        Guarantees:
            Cancelled: it is not held, or given back at once.
        """
        now, holder = self.now(), secrets.token_hex(8)
        if peek:
            row = Row.of(await self.store.get(name.key, None, name.tag))
            if not row.is_free(now):
                return (row.until - now) / SECOND
        until = now + round(seconds * SECOND)
        try:
            row = Row.of(await self._stepped(name, partial(taken, holder, now, until)))
        except Taken as other:
            return (other.row.until - now) / SECOND
        except asyncio.CancelledError:
            with suppress(ClosedError):
                self.spawn(self.give_back(name, holder), name="akv lock release")
            raise
        return Lease(self, name, seconds, row)

    @asynccontextmanager
    async def holding(self, name: Name, seconds: float, timeout: float | None) -> AsyncIterator[Lease]:
        """
        Wait for a lease, and hold it for the length of the block.

        Raises:
            TimeoutError: It was not free in time.
        """
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with self._queued(name, deadline), await self._awaited(name, seconds, deadline) as lease:
            yield lease

    async def _awaited(self, name: Name, seconds: float, deadline: float | None) -> Lease:
        loop = asyncio.get_running_loop()
        found = await self.attempt(name, seconds)
        for pause in pauses():
            if isinstance(found, Lease):
                return found
            left = float("inf") if deadline is None else deadline - loop.time()
            if left <= 0:
                raise _out_of_time(name)
            await self.sleep(min(pause, left, max(found, 0.001)))
            found = await self.attempt(name, seconds, peek=True)
        raise AssertionError("pauses never end")

    @asynccontextmanager
    async def _queued(self, name: Name, deadline: float | None) -> AsyncIterator[None]:
        """Let one task of this event loop at a time ask the database, in the order of their calls."""
        queues = self._queues.get()
        queue = queues.setdefault(name, _Queue())
        queue.users += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await queue.turn.acquire()
            except TimeoutError:
                raise _out_of_time(name) from None
            try:
                yield
            finally:
                queue.turn.release()
        finally:
            queue.users -= 1
            if not queue.users:
                del queues[name]

    def _new_queues(self) -> dict[Name, _Queue]:
        self._queues.take_stale()
        return {}

    async def _stepped(self, name: Name, step: Callable[[object], dict[str, Any]], expire: Expire = None) -> Any:
        """Take a step; one whose outcome is unknown is taken again, for it knows what it has done."""
        for _ in range(_REPEATS):
            try:
                return await self.store.update(name.key, step, default=None, tag=name.tag, expire=expire)
            except OutcomeUnknownError as error:
                unknown = error
        raise unknown

    async def renew(self, name: Name, holder: str, fence: int, until: int) -> None:
        """
        Hold on to a lease.

        Raises:
            Taken: Somebody else has it.
        """
        await self._stepped(name, partial(renewed, holder, fence, until))

    async def give_back(self, name: Name, holder: str) -> None:
        """Let the next one have it; never raises what the store says, for a lease ends by itself."""
        try:
            await self._stepped(name, partial(released, holder), expire=_REMEMBERED)
        except Taken:
            pass
        except AKVError as error:
            log.warning("a lock could not be given back, its lease ends by itself: %s", error, extra=_extra(name))


class Lease:
    """
    A lease that is held by an ``async with`` block.

    Attributes:
        fence: Greater than that of every earlier holder.
        patience: Seconds to wait at the end until it has been given back; None: as long as that takes.
    """

    def __init__(self, locks: Locks, name: Name, seconds: float, row: Row) -> None:
        self.fence = row.fence
        self.patience: float | None = None
        self._locks = locks
        self._name = name
        self._seconds = seconds
        self._holder = row.holder
        self._until = row.until
        self._is_lost = False
        self._renewing: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether the lease holds, as far as is known here: nobody has taken it, and it has not ended."""
        return not self._is_lost and self._locks.now() < self._until

    async def __aenter__(self) -> Self:
        self._renewing = self._locks.spawn(self._renew(), name="akv lock renewal")
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ClosedError):  # then it ends by itself
            # A task of the store: it is done even if the holder is cancelled meanwhile, or does not wait any longer.
            task = self._locks.spawn(self._end(), name="akv lock release")
            await asyncio.wait((task,), timeout=self.patience)

    async def _end(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))
        if not self._is_lost:
            await self._locks.give_back(self._name, self._holder)

    async def _renew(self) -> None:
        while True:
            await self._locks.sleep(self._seconds / _RENEWALS)
            until = self._locks.now() + round(self._seconds * SECOND)
            try:
                await self._locks.renew(self._name, self._holder, self.fence, until)
            except (Taken, ClosedError) as error:
                self._is_lost = True
                log.warning("a lock was lost while it was held: %s", error, extra=_extra(self._name))
                return
            except AKVError as error:
                log.warning("a lock could not be renewed, it is tried again: %s", error, extra=_extra(self._name))
            else:
                self._until = until


class Lock:
    """
    Mutual exclusion among tasks and processes: an async context manager, to be entered by one task at a time.

    Attributes:
        fence: Greater than that of every earlier holder of the name; 0 until it is held. What is written under the
            lock is safe from a holder who has slept through his lease if it is refused for a smaller fence.
    """

    def __init__(self, locks: Locks, name: Name, seconds: float, timeout: float | None) -> None:
        self.fence = 0
        self._locks = locks
        self._name = name
        self._seconds = seconds
        self._timeout = timeout
        self._is_entered = False
        self._lease: Lease | None = None

    def __repr__(self) -> str:
        return f"<lock {self._name.key!r}{', held' if self.is_held else ''}>"

    @property
    def is_held(self) -> bool:
        """Whether it is held, as far as is known here; False once the lease has ended or somebody has taken it."""
        return self._lease is not None and self._lease.is_held

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise InvalidArgumentError(f"{self!r} is in use: make one by kv.lock() for each async with")
        self._is_entered = True
        try:
            self._holding = self._locks.holding(self._name, self._seconds, self._timeout)
            self._lease = await self._holding.__aenter__()
        except BaseException:
            self._is_entered = False
            raise
        self.fence = self._lease.fence
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease = None
        try:
            await self._holding.__aexit__(kind, error, trace)
        finally:
            self._is_entered = False


class _Queue:
    """Tasks of one event loop that want one lease."""

    __slots__ = ("turn", "users")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.users = 0


def pauses() -> Iterator[float]:
    """Seconds between looks at a lease that somebody else holds; never ends."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.75, 1.25)  # noqa: S311 -- nothing secret
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _out_of_time(name: Name) -> TimeoutError:
    return TimeoutError(f"lock {name.key!r} was not free in time: give it a longer timeout, or none")


def _extra(name: Name) -> dict[str, str]:
    return {"akv_key": name.key, "akv_tag": name.tag}
