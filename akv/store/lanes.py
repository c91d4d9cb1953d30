"""
Concurrent calls made cheap: reads of one moment become one statement, writes one commit.

A call joins only a batch that is not yet sent, so that a get sees every write
acknowledged before it was called. A lone call is sent at once, without a timer.
Batches run in tasks of the lane: cancelling a caller never touches the driver.
"""

from __future__ import annotations

import asyncio
import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from akv.aio import OwnedTasks
from akv.errors import AKVError, OutcomeUnknownError, StoreUnavailableError
from akv.store.failures import is_busy
from akv.store.operations import Delete, Get, Operation, Pair, Row, Write
from akv.store.perform import Failed, complete
from akv.store.statements import Statements
from akv.store.transact import Transactor

T = TypeVar("T")
Op = TypeVar("Op", bound=Operation[Any])

SLOW = 0.05
"""Seconds after which a write in flight, waiting for somebody's lock, lets others go past it."""
_BATCH_BYTES = 4 * 2**20
_PAST_A_SLOW_ONE = 3


@dataclass(slots=True, eq=False)
class Waiting(Generic[Op]):
    """One call that waits for its batch."""

    operation: Op
    future: asyncio.Future[Any]
    alone: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether the caller was cancelled before the batch was sent."""
        return self.future.cancelled()

    def resolve(self, outcome: Any) -> None:
        """Hand the outcome to the caller, if there still is one."""
        if self.future.done():
            return
        if isinstance(outcome, Failed):
            self.future.set_exception(outcome.error)
        else:
            self.future.set_result(outcome)


class Lane(Generic[Op]):
    """Operations of one event loop on their way into batches; closed until its statements are known."""

    _sql: Statements

    def __init__(self, transactor: Transactor, tasks: OwnedTasks) -> None:
        self._transactor = transactor
        self._tasks = tasks
        self._is_open = False
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Waiting[Op]] = []
        self._flying = 0
        self._boarding: object | None = None

    def submit(self, operation: Op) -> asyncio.Future[Any]:
        """
        Queue an operation.

        Returns:
            A future of its result; cancelling it leaves the rest of the batch whole.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(Waiting(operation, future))
        self._wake()
        return future

    def open(self, sql: Statements) -> None:
        """Let batches leave, in the order in which their calls came."""
        self._sql = sql
        self._is_open = True
        self._wake()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a batch that has not left."""
        return not all(one.is_gone for one in self._waiting)

    def fail(self, error: Exception) -> None:
        """Tell those who wait for the lane to open why it does not; it may be opened later."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.resolve(Failed(own_copy(error)))

    def forget(self) -> None:
        """Let nobody wait any more, for their event loop has ended: no batch may leave on another one."""
        self._waiting.clear()

    def _wake(self) -> None:
        """
        Let the next batch leave in the loop's next turn.

        What is called until then joins it. After a batch has landed, that turn comes behind the wake-ups of its
        callers, so that what they call next is on board.
        """
        if self._waiting and self._is_open and self._boarding is None and self._has_room():
            boarding = self._boarding = object()
            self._flying += 1
            self._tasks.spawn(self._fly(), name="akv batch").add_done_callback(lambda _: self._stayed(boarding))

    def _stayed(self, boarding: object) -> None:
        """Let another batch leave for one whose task was cancelled before its first step, as asyncio.run() does."""
        if self._boarding is boarding:
            self._boarding = None
            self._flying -= 1
            self._waiting = [one for one in self._waiting if not one.is_gone]
            self._wake()

    async def _fly(self) -> None:
        self._boarding = None
        batch = self._take()
        self._wake()
        try:
            if batch:
                await self._carry(batch)
        finally:
            self._flying -= 1
            if batch:
                self._wake()

    async def _carry(self, batch: list[Waiting[Op]]) -> None:
        """Send a batch, and hand the outcomes to its callers."""
        try:
            outcomes = await self._send([one.operation for one in batch])
        except Exception as error:
            self._fail(batch, error)
        except BaseException:
            for one in batch:
                one.future.cancel()
            raise
        else:
            for one, outcome in zip(batch, outcomes, strict=True):
                one.resolve(outcome)

    def _fail(self, batch: list[Waiting[Op]], error: Exception) -> None:
        """Run the calls of a failed batch alone, so that only the guilty one raises."""
        if len(batch) == 1 or not self._is_worth_splitting(error):
            for one in batch:
                one.resolve(Failed(own_copy(error)))
            return
        for one in batch:
            one.alone = True
        self._waiting[:0] = batch

    def _is_worth_splitting(self, error: Exception) -> bool:
        return not isinstance(error, OutcomeUnknownError | StoreUnavailableError)

    async def _send(self, operations: list[Op]) -> list[Any]:
        return await self._transactor.run(
            lambda conn: complete(conn, self._sql, operations),
            repeatable=all(operation.repeatable for operation in operations),
            is_short=all(operation.is_short for operation in operations),
            passes=self._passes if len(operations) > 1 else lambda _: False,
        )

    def _passes(self, error: BaseException) -> bool:
        """A batch that meets a lock is split rather than tried again: one blocked row must not block the others."""
        return False

    @abstractmethod
    def _has_room(self) -> bool:
        """Whether another batch may be in flight."""

    @abstractmethod
    def _take(self) -> list[Waiting[Op]]:
        """Remove the next batch from what waits."""


class ReadLane(Lane[Get]):
    """Reads by pairs: whatever waits becomes one statement."""

    _typical = 256.0
    """Moving average of the bytes of a row, so that a batch of large values stays bounded."""

    def _has_room(self) -> bool:
        return self._flying < self._sql.parallel_reads

    def _take(self) -> list[Waiting[Get]]:
        most = max(1, min(self._sql.batch_reads, int(_BATCH_BYTES / self._typical)))
        batch: list[Waiting[Get]] = []
        rest: list[Waiting[Get]] = []
        pairs = 0
        waiting = iter(self._waiting)
        for one in waiting:
            if one.is_gone:
                continue
            if batch and (pairs >= most or one.alone or batch[0].alone):
                rest.append(one)
                break
            batch.append(one)
            pairs += len(one.operation.pairs)
        self._waiting = rest + list(waiting)
        return batch

    async def _send(self, operations: list[Get]) -> list[dict[Pair, Row]]:
        outcomes = await super()._send(operations)
        rows = [row for found in outcomes for row in found.values()]
        if rows:
            average = sum(len(row.value or b"") for row in rows) / len(rows)
            self._typical += (average + 64 - self._typical) / 2
        return outcomes


class WriteLane(Lane[Operation[Any]]):
    """
    Writes: group commit, one batch in flight.

    A batch holds calls of one kind, each row once unless the last write wins.
    What touches rows that are in flight, or that an earlier call still waits
    for, is held back; so the writes of a row happen in the order of their calls.
    """

    def __init__(self, transactor: Transactor, tasks: OwnedTasks) -> None:
        super().__init__(transactor, tasks)
        self._held: set[Pair] = set()
        self._whole_table = False
        self._slow = 0

    def _has_room(self) -> bool:
        past = min(self._slow, _PAST_A_SLOW_ONE) if self._sql.locks_rows else 0
        return self._flying <= past and not self._whole_table

    def _take(self) -> list[Waiting[Operation[Any]]]:
        batch = _Batch(self._held, self._sql.batch_writes)
        passed: list[Waiting[Operation[Any]]] = []
        waiting = iter(self._waiting)
        for one in waiting:
            if one.is_gone:
                continue
            if not isinstance(one.operation, Write):
                if passed or batch.calls or self._flying > 1:
                    passed.append(one)
                else:
                    batch.calls.append(one)
                break
            if not batch.admit(one, one.operation):
                passed.append(one)
            if batch.is_full:
                break
        self._waiting = passed + list(waiting)
        return batch.calls

    async def _carry(self, batch: list[Waiting[Operation[Any]]]) -> None:
        touched = [pair for one in batch if isinstance(one.operation, Write) for pair in one.operation.touched]
        self._held.update(touched)
        self._whole_table = not touched
        is_slow = False

        def let_others_pass() -> None:
            nonlocal is_slow
            is_slow = True
            self._slow += 1
            self._wake()

        timer = self._loop.call_later(SLOW, let_others_pass)
        try:
            await super()._carry(batch)
        finally:
            timer.cancel()
            self._slow -= is_slow
            self._held.difference_update(touched)
            self._whole_table = False

    def _passes(self, error: BaseException) -> bool:
        return self._sql.locks_rows and is_busy(error)


class _Batch:
    """Calls of one kind that may be sent together."""

    def __init__(self, held: set[Pair], rows: int) -> None:
        self.calls: list[Waiting[Operation[Any]]] = []
        self.is_full = False
        self._held = set(held)
        self._rows = rows
        self._bytes = _BATCH_BYTES

    def admit(self, one: Waiting[Operation[Any]], operation: Write) -> bool:
        """Take a call in, or hold back its rows from those behind it."""
        if self._is_joined_by(one, operation):
            self.calls.append(one)
            self.is_full = one.alone
            if isinstance(operation, Delete):
                self._held.update(operation.touched)
            return True
        self._held.update(operation.touched)
        return False

    def _is_joined_by(self, one: Waiting[Operation[Any]], operation: Write) -> bool:
        if not self._held.isdisjoint(operation.touched):
            return False
        if self.calls and (one.alone or type(operation) is not type(self.calls[0].operation)):
            return False
        self._rows -= len(operation.touched)
        self._bytes -= operation.size
        self.is_full = bool(self.calls) and (self._rows < 0 or self._bytes < 0)
        return not self.is_full


def own_copy(error: Exception) -> Exception:
    """Give each caller an exception of its own: a shared one would collect all their tracebacks."""
    if not isinstance(error, AKVError):
        return error
    mine = copy.copy(error)
    mine.__cause__ = error.__cause__
    return mine
