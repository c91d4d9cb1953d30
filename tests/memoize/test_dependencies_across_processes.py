"""Several processes: what one commits or invalidates, no other returns or saves from before."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from akv.errors import TokenError
from akv.memoize.invalidation import Invalidations
from tests.memoize import children_of_shop
from tests.memoize.shop import App, Place, User, opened
from tests.memoize.waiting import Work, bounded, started, until

pytestmark = pytest.mark.backends("sqlite-file", "postgres", "mariadb")

ROOT = Path(__file__).parents[2]
BOUND = 60


class Child:
    """Another process, spoken to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), BOUND)).decode().strip()

    def tell(self, word: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    async def ends(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert await asyncio.wait_for(self.process.wait(), BOUND) == 0


@asynccontextmanager
async def child(place: Place, job: str, options: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.memoize.children_of_shop", job, options, *place.arguments()),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def same(app: App, options: str) -> Any:
    """The function that the children hold, in this process."""
    return children_of_shop.held(app, **children_of_shop.OPTIONS[options])


async def test_a_commit_elsewhere_ends_a_result(app: App, place: Place) -> None:
    @app.kv.memoize(depends_on=User, near=10)
    async def age() -> int:
        return await app.age()

    async with child(place, "change", "plain") as other:
        for expected in range(4):
            assert await age() == expected
            assert await age() == expected
            other.tell()
            assert await other.says() == "changed"
        other.tell("stop")
        await other.ends()
    assert age.cache_info().hits == 4


@pytest.mark.parametrize("options", ["depends", "tracked"])
async def test_a_computation_is_not_saved_if_another_process_changes_what_it_reads(
    app: App, place: Place, options: str
) -> None:
    async with child(place, "hold", options) as other:
        assert await other.says() == "read"
        await app.birthday()
        other.tell()
        assert [await other.says(), await other.says()] == ["0", "0"]
        await other.ends()


@pytest.mark.parametrize("options", ["plain", "near", "depends", "tracked"])
@pytest.mark.parametrize("job", ["invalidate", "clear"])
async def test_an_invalidation_beats_a_computation_of_another_process(
    app: App, place: Place, options: str, job: str
) -> None:
    async with child(place, "hold", options) as holder:
        assert await holder.says() == "read"
        async with child(place, job, options) as other:
            assert (await other.says()).startswith("done")
            await other.ends()
        holder.tell()
        assert [await holder.says(), await holder.says()] == ["0", "0"]
        await holder.ends()
    assert await app.kv.count(tag=None) == 0


@pytest.mark.parametrize("options", ["plain", "tracked"])
async def test_without_an_invalidation_it_is_saved(app: App, place: Place, options: str) -> None:
    async with child(place, "hold", options) as holder:
        assert await holder.says() == "read"
        holder.tell()
        assert [await holder.says(), await holder.says()] == ["0", "1"]
        await holder.ends()


@pytest.mark.parametrize("options", ["plain", "depends"])
async def test_an_invalidation_beats_a_save_that_is_on_its_way(app: App, place: Place, options: str) -> None:
    """The other process has looked at the tokens for the last time when it comes."""
    work = Work(1)
    given = children_of_shop.OPTIONS[options]

    @app.kv.memoize(**given)
    async def value() -> Any:
        return await work()

    async with opened(place) as other:

        @other.kv.memoize(**given)
        async def theirs() -> int:
            return 2

        theirs._recipe.tag = value.cache_tag
        app.kv.write.clear()
        (task,) = await started(value())
        await bounded(work.running.wait())
        work.release.set()
        await until(lambda: app.kv.writing == 1)
        await theirs.cache_invalidate()
        app.kv.write.set()
        assert await bounded(task) == 1
        assert await theirs() == 2


@pytest.mark.parametrize("options", ["plain", "depends"])
@pytest.mark.parametrize("how", ["cache_invalidate", "cache_clear", "refresh"])
async def test_an_invalidation_beats_a_computation_of_this_process(app: App, options: str, how: str) -> None:
    results = iter([1, 2, 3])
    works: list[Work] = []

    @app.kv.memoize(**children_of_shop.OPTIONS[options])
    async def value() -> Any:
        works.append(Work(next(results)))
        return await works[-1]()

    (old,) = await started(value())
    await until(lambda: len(works) == 1 and works[0].runs == 1)
    if how == "refresh":
        (new,) = await started(value.refresh())
    else:
        await getattr(value, how)()
        (new,) = await started(value())
    await until(lambda: len(works) == 2 and works[1].runs == 1)
    works[1].release.set()
    assert await bounded(new) == 2
    works[0].release.set()
    assert await bounded(old) == 1
    assert await bounded(value()) == 2


async def test_refresh_tells_other_processes(app: App, place: Place) -> None:
    numbers = iter(range(10))

    @app.kv.memoize(depends_on=User, near=10)
    async def value() -> int:
        return next(numbers)

    async with opened(place) as other:

        @other.kv.memoize(depends_on=User, near=10)
        async def theirs() -> int:
            return -1

        theirs._recipe.tag = value.cache_tag
        assert [await value(), await theirs()] == [0, 0]
        assert await value.refresh() == 1
        assert await theirs() == 1


async def test_a_touch_of_everything_ends_a_result(app: App) -> None:
    numbers = iter(range(10))

    @app.kv.memoize(depends_on="akv:users#1")
    async def value() -> int:
        return next(numbers)

    assert [await value(), await value()] == [0, 0]
    await app.tokens.touch("akv:*#*")
    assert await value() == 1


async def test_an_invalidation_that_nobody_may_know_of_is_an_error(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    @app.kv.memoize
    async def value() -> int:
        return 1

    async def broken(*_: Any) -> None:
        raise OperationalError("UPDATE", None, Exception("database is locked"))

    await value()
    with monkeypatch.context() as patch:
        patch.setattr(app.tokens, "bump", broken)
        with pytest.raises(TokenError, match="do it again"):
            await value.cache_invalidate()
        assert await app.saved(value) == 0
        await value()
        with pytest.raises(TokenError, match="do it again"):
            await value.cache_clear()
        assert await app.saved(value) == 0
        assert await value.refresh() == 1  # it runs all the same


async def test_tokens_that_are_down_do_not_keep_what_has_no_dependencies_from_being_saved(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    from akv.tokens.backend import Unreachable

    async def broken(*_: Any) -> Any:
        raise Unreachable("no")

    @app.kv.memoize
    async def value() -> int:
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(app.tokens, "look", broken)
        assert [await value(), await value()] == [1, 1]
    assert value.cache_info().hits == 1


async def test_without_the_tokens_of_calls_a_computation_elsewhere_is_saved(
    app: App, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: an invalidation is no bump."""

    async def nothing(self: Any, name: str) -> None: ...

    monkeypatch.setattr(Invalidations, "_bump", nothing)
    value = same(app, "plain")
    async with child(place, "hold", "plain") as holder:
        assert await holder.says() == "read"
        await value.cache_invalidate(1)
        holder.tell()
        assert [await holder.says(), await holder.says()] == ["0", "1"]  # what was invalidated is back
        await holder.ends()


async def test_processes_with_a_lease_compute_once_for_all(app: App, place: Place) -> None:
    children = [child(place, "stampede", "depends lock") for _ in range(3)]
    entered = [await each.__aenter__() for each in children]
    try:
        for each in entered:
            assert await each.says() == "ready"
        for round_ in range(1):
            for each in entered:
                each.tell()
            said = [(await each.says()).split("] ") for each in entered]
            assert {values for values, _ in said} == {f"[{round_}"}
            assert sum(int(runs) for _, runs in said) == 1
        for each in entered:
            await each.ends()
    finally:
        for one in children:
            await one.__aexit__(None, None, None)
