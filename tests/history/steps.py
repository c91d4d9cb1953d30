"""
The steps of a commit, W1 to W5 as the protocol numbers them, and what may be done to a writer when it reaches one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.history.log import Kind, LogWriter, pack

STEPS: Final = ("W1", "W2", "W3", "W4", "W5")
ACTIONS: Final = ("cancel", "kill", "stall")
AT_STEPS: Final = tuple(f"{action} {step}" for step in STEPS for action in ACTIONS)
"""Faults that hit one commit: before its step, or while the step is under way (W4, W5)."""

LONGEST_STALL: Final = 0.3
LONGEST_FLIGHT: Final = 0.001


@dataclass
class Plan:
    """
    What is to happen to one write.

    Attributes:
        task: Runs the write.
        writer: Whether it is over with the process, or with the task only.
    """

    action: str
    step: str
    log: LogWriter
    random: random.Random
    task: asyncio.Task[Any] | None = None
    done: bool = False

    def is_due(self, step: str) -> bool:
        return self.step == step and not self.done

    def strike(self) -> None:
        """Cancel or kill: at once, or in a moment, when what the step sends is under way."""
        self.done = True
        in_flight = self.step in ("W4", "W5") and self.random.random() < 0.6
        if in_flight:
            asyncio.get_running_loop().call_later(self.random.random() * LONGEST_FLIGHT, self._strike)
        else:
            self._strike()

    async def stall(self) -> None:
        self.done = True
        self.log.fault(f"stall {self.step}")
        await asyncio.sleep(self.random.random() * LONGEST_STALL)

    def _strike(self) -> None:
        assert self.task is not None
        if self.action == "kill":
            self.log.fault(f"kill {self.step}")
            os.kill(os.getpid(), signal.SIGKILL)
        elif not self.task.done():
            self.log.fault(f"cancel {self.step}")
            self.task.cancel()


@dataclass
class Writing:
    """
    One transaction that writes.

    Attributes:
        tag: Who writes, in the rows.
        rows: What will have been written when it commits.
        sent: Whether its COMMIT was about to be sent.
        prepared: Its COMMIT is somebody else's business.
    """

    tag: int
    rows: list[tuple[int, int, int]] = field(default_factory=list)
    sent: bool = False
    prepared: bool = False


@dataclass
class Jitter:
    """Besides any plan, at every step of every write: how likely it pauses, and for how long at most."""

    chance: float = 0.0
    longest: float = 0.0
    random: random.Random = field(default_factory=random.Random)

    def seconds(self) -> float:
        return self.random.random() * self.longest if self.random.random() < self.chance else 0.0


JITTER: Final = Jitter()
PLAN: Final[ContextVar[Plan | None]] = ContextVar("plan", default=None)
WRITING: Final[ContextVar[Writing | None]] = ContextVar("writing", default=None)


async def reach(step: str) -> None:
    """The write of this context is about to take a step; whoever calls is not in a listener."""
    if WRITING.get() is None:
        return
    if seconds := JITTER.seconds():
        await asyncio.sleep(seconds)
    plan = PLAN.get()
    if plan is not None and plan.is_due(step):
        if plan.action == "stall":
            await plan.stall()
        else:
            plan.strike()


def reach_in_listener(step: str, connection: Connection) -> None:
    """The same in a listener of SQLAlchemy, on the connection that it is given."""
    if WRITING.get() is not None:
        adapted: Any = connection.connection.dbapi_connection
        adapted.run_async(lambda _: reach(step))


def watch_commits(engine: AsyncEngine, log: LogWriter) -> None:
    """Take W1 and W4 on an engine that is bound already, and log each COMMIT before it is sent."""

    def first(connection: Connection) -> None:
        reach_in_listener("W1", connection)

    def last(connection: Connection) -> None:
        reach_in_listener("W4", connection)
        writing = WRITING.get()
        if writing is not None and writing.rows and not writing.sent:
            writing.sent = True
            log.append(Kind.SENT, pack(writing.rows), key=writing.tag)

    event.listen(engine.sync_engine, "commit", first, insert=True)
    event.listen(engine.sync_engine, "commit", last)


def before(owner: type, name: str, step: str) -> None:
    """Take *step* before every call of a coroutine method."""
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    async def stepping(*args: Any, **kwargs: Any) -> Any:
        await reach(step)
        return await original(*args, **kwargs)

    setattr(owner, name, stepping)


def after(owner: type, name: str, step: str) -> None:
    """Take *step* after every call of a coroutine method."""
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    async def stepping(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        await reach(step)
        return result

    setattr(owner, name, stepping)


def before_task(owner: type, name: str, step: str) -> None:
    """Take *step* before every call of a method that returns a task at once."""
    original: Callable[..., asyncio.Task[None]] = getattr(owner, name)

    @wraps(original)
    def stepping(*args: Any, **kwargs: Any) -> asyncio.Task[None]:
        plan = PLAN.get()
        if plan is not None and plan.is_due(step) and plan.action != "stall":
            plan.strike()
        if not JITTER.chance and (plan is None or not plan.is_due(step)):
            return original(*args, **kwargs)

        async def late() -> None:
            await reach(step)
            await original(*args, **kwargs)

        return asyncio.get_running_loop().create_task(late())

    setattr(owner, name, stepping)
