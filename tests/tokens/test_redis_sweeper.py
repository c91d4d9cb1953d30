"""The sweeper: marks that a dead writer left go away once its database says that it cannot commit any more."""

from __future__ import annotations

from typing import Any

from akv.aio import OwnedTasks
from akv.tokens import rules
from akv.tokens.redis import RedisTokens
from akv.tokens.redis.sweeper import PATIENCE, Sweeper
from tests.tokens.redis_world import PATIENT, Bound, Clock, bound, until

ROW, OTHER = "akv:users#1", "akv:users#2"


async def _left_behind(app: Bound, *identifiers: str) -> tuple[Clock, str]:
    """A mark of a writer that died; nobody has met it yet."""
    clock = app.tokens._core.clock = Clock()
    await app.active()
    announcement = await app.announce(*identifiers)
    return clock, announcement.mark


async def _swept(app: Bound) -> None:
    sweeper = app.tokens._here()._sweeper
    await until(lambda: not sweeper._is_running, "the sweep ends")


async def test_a_mark_met_twice_is_taken_away_with_a_bump_if_its_transaction_has_ended(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW)
        app.gate.over.add(mark)
        await app.tokens.look([ROW])
        clock.now += PATIENCE
        assert rules.is_marked(await app.tokens.look([ROW]))
        await _swept(app)
        seen = await app.tokens.look([ROW])
        assert rules.usable(seen)
        assert rules.vector_of(seen)[0].seq == 1
        assert app.gate.asked == [{mark}]


async def test_nobody_is_asked_about_a_mark_met_twice_within_a_second(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW)
        app.gate.over.add(mark)
        for _ in range(5):
            await app.tokens.look([ROW])
            clock.now += PATIENCE / 5.1
        await _swept(app)
        assert app.gate.asked == []


async def test_a_transaction_that_can_still_commit_keeps_its_mark_however_old(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW)
        for _ in range(5):
            await app.tokens.look([ROW])
            await _swept(app)
            clock.now += 1000 * PATIENCE
        assert rules.is_marked(await app.tokens.look([ROW]))
        await _swept(app)
        assert app.gate.asked == [{mark}] * 5


async def test_a_transaction_that_goes_on_is_asked_about_once_a_second(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, _ = await _left_behind(app, ROW)
        for _ in range(40):
            await app.tokens.look([ROW])
            await _swept(app)
            clock.now += PATIENCE / 8
        assert len(app.gate.asked) == 4


async def test_only_records_that_were_met_are_swept(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW, OTHER, "akv:users#*")
        app.gate.over.add(mark)
        await app.tokens.look([ROW])
        clock.now += PATIENCE
        await app.tokens.look([OTHER])
        await _swept(app)
        assert [record.marks for record in (await app.tokens.look([ROW, OTHER, "akv:users#*"])).records] == [
            (),
            (),
            (mark,),
        ]


async def test_marks_of_others_stay(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW)
        running = (await app.announce(ROW)).mark
        app.gate.over.add(mark)
        await app.tokens.look([ROW])
        clock.now += PATIENCE
        await app.tokens.look([ROW])
        await _swept(app)
        assert (await app.tokens.look([ROW])).records[0].marks == (running,)


async def test_any_process_with_an_engine_sweeps_and_no_other_does(space: tuple[str, str]) -> None:
    async with bound(*space) as dead:
        _, mark = await _left_behind(dead, ROW)
    reader = RedisTokens.from_url(space[0], namespace=space[1], **PATIENT)
    async with bound(*space) as app:
        app.gate.over.add(mark)
        clocks = [Clock(), Clock()]
        reader._core.clock, app.tokens._core.clock = clocks
        for _ in range(3):
            assert rules.is_marked(await reader.look([ROW]))
            clocks[0].now += PATIENCE
        await app.tokens.look([ROW])
        clocks[1].now += PATIENCE
        await app.tokens.look([ROW])
        await _swept(app)
        assert rules.usable(await reader.look([ROW]))
    await reader.aclose()


async def test_a_database_that_cannot_be_asked_is_asked_again(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock, mark = await _left_behind(app, ROW)
        answers: list[Any] = [OSError("down"), {mark}]

        async def ended(marks: Any) -> set[str]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return set(answer)

        app.gate.ended = ended  # type: ignore[method-assign]
        for _ in range(3):
            await app.tokens.look([ROW])
            await _swept(app)
            clock.now += PATIENCE
        assert rules.usable(await app.tokens.look([ROW]))


async def test_marks_that_are_never_met_again_are_forgotten() -> None:
    clock, tasks = Clock(), OwnedTasks()
    sweeper = Sweeper(clock, tasks, ended=_never, resolve=_never)
    for number in range(5000):
        sweeper.met(ROW, [f"m{number}"])
        clock.now += PATIENCE / 10
    assert len(sweeper._met) <= 1001


async def _never(*_: Any) -> Any:
    raise AssertionError
