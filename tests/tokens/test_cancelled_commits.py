"""Commits that are cancelled, at every step: what landed was announced, and nothing is resolved before it has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import exc, insert

from akv.tokens.backend import Announcement
from tests.tokens.recording import Door, RecordingTokens
from tests.tokens.shop import Item, Shop, item

pytestmark = pytest.mark.backends(exclude="sqlite-memory")

BOUND = 30
TURNS = 60
"""Cancel after each of so many turns of the event loop; after that, by time."""


@pytest.fixture
def app(made: tuple[Shop, RecordingTokens]) -> Shop:
    return made[0]


async def commit(app: Shop, kind: str, number: int) -> None:
    if kind == "maker block":
        async with app.session.begin() as session:
            session.add(Item(id=number, name=str(number)))
        return
    async with app.session() if kind == "session" else app.engine.connect() as on:
        await on.execute(insert(Item).values(id=number, name=str(number)))
        await on.commit()


@pytest.mark.parametrize("door", ["at_gate", "at_mark", "marked", "at_resolve"])
@pytest.mark.parametrize("kind", ["session", "core", "maker block"])
async def test_cancelled_in_front_of_each_step(app: Shop, tokens: RecordingTokens, door: str, kind: str) -> None:
    step: Door = getattr(tokens, door)
    step.shut()
    committing = asyncio.create_task(commit(app, kind, 1))
    await asyncio.wait_for(step.arrived.wait(), BOUND)
    for _ in range(3):
        committing.cancel()
        await asyncio.sleep(0)
    step.open()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(committing, BOUND)
    await tokens.drain()
    # The exit of a maker's block runs in a task of its own, to its end.
    has_landed = door == "at_resolve" or (kind == "maker block" and await _landed(app, 1))
    assert await _landed(app, 1) == has_landed
    assert tokens.marks == set()
    assert len(tokens.resolved) == len(tokens.announced)
    await app.assert_usable()
    await _quiet()


@pytest.mark.parametrize("kind", ["session", "core"])
async def test_cancelled_anywhere(app: Shop, tokens: RecordingTokens, kind: str) -> None:
    ended_as: dict[int, bool] = {}
    _note_what_is_visible_when_resolved(app, tokens, ended_as)
    finished = False
    for number in range(1, TURNS + 200):
        tokens.announced.clear()
        task = asyncio.create_task(commit(app, kind, number))
        await _wait(number, task)
        finished = task.done()
        task.cancel()
        await asyncio.wait([task], timeout=BOUND)
        raised = task.cancelled() or task.exception() is not None  # asyncmy may swallow a cancellation
        assert task.cancelled() or isinstance(task.exception(), exc.SQLAlchemyError | None)
        await tokens.drain()
        await _assert_nothing_is_checked_out(app)
        landed = await _landed(app, number)
        assert landed or raised
        assert not landed or tokens.announced == [item(number)]
        assert ended_as.get(number, landed) == landed, "it was resolved before it had ended"
        if finished:
            break
    assert finished
    await app.assert_usable()
    await _quiet()


@pytest.mark.backends("sqlite-file")
async def test_commit_that_goes_on_after_it_was_cancelled_is_not_resolved(app: Shop, tokens: RecordingTokens) -> None:
    """SQLite's thread waits for a reader, and commits when nobody listens any more."""
    await app.engine.dispose()
    async with aiosqlite.connect(str(app.engine.url.database)) as alone:
        await alone.execute("PRAGMA journal_mode = DELETE")
    async with aiosqlite.connect(str(app.engine.url.database)) as reader, app.session() as session:
        await reader.execute("BEGIN")
        await reader.execute_fetchall("SELECT * FROM items")
        session.add(Item(id=1, name="1"))
        await session.flush()
        raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        committing = asyncio.create_task(session.commit())
        async with asyncio.timeout(BOUND):
            while raw.in_transaction:  # until it begins to commit
                await asyncio.sleep(0.001)
        committing.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert tokens.steps == ["mark"]
        await reader.rollback()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(committing, BOUND)
    assert await _landed(app, 1)
    assert tokens.steps == ["mark"]
    assert tokens.marks == {"mark 1"}


async def _wait(steps: int, task: asyncio.Task[None]) -> None:
    for _ in range(min(steps, TURNS)):
        await asyncio.sleep(0)
    if steps > TURNS:
        await asyncio.wait([task], timeout=0.0001 * 1.05 ** (steps - TURNS) * (steps - TURNS))


def _note_what_is_visible_when_resolved(app: Shop, tokens: RecordingTokens, ended_as: dict[int, bool]) -> None:
    real = tokens._resolve

    async def resolve(announcement: Announcement) -> None:
        (number,) = (int(name.partition("#")[2]) for name in announcement.records if name[-1].isdigit())
        ended_as[number] = await _landed(app, number)
        await real(announcement)

    tokens._resolve = resolve  # type: ignore[method-assign]


async def _landed(app: Shop, number: int) -> bool:
    return str(number) in await app.names()


async def _quiet() -> None:
    """Cancelled twice, SQLAlchemy closes a connection of aiosqlite in two ways at once, and one of them never ends."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        assert "_terminate_graceful_close" in repr(task)
        task.cancel()
        await asyncio.wait([task], timeout=BOUND)


async def _assert_nothing_is_checked_out(app: Shop) -> None:
    pool: Any = app.engine.pool
    async with asyncio.timeout(BOUND):
        while pool.checkedout():
            await asyncio.sleep(0.001)
