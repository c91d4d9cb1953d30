"""The wire breaks around COMMIT: before the server got it, or before its answer came back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

import pytest

from akv.errors import OutcomeUnknownError
from tests.faults.arena import soon
from tests.faults.wire import Mishap, commits
from tests.proxy import TCPProxy

if TYPE_CHECKING:
    from akv.store.client import Store
    from tests.conftest import MakeStore
    from tests.faults.arena import Arena
    from tests.faults.conftest import Proved

pytestmark = pytest.mark.backends("postgres", "mariadb")

Call = Callable[["Store"], Awaitable[object]]

ONCE: dict[str, tuple[Call, object]] = {
    "incr": (lambda kv: kv.incr("a"), 11),
    "pop": (lambda kv: kv.pop("a"), None),
    "add": (lambda kv: kv.add("new", 5), 5),
    "update": (lambda kv: kv.update("a", lambda n: n + 1), 11),
}
"""Calls that may not run twice, and what they leave."""

AGAIN: dict[str, tuple[Call, object]] = {
    "set": (lambda kv: kv.set("a", 11), 11),
    "set_many": (lambda kv: kv.set_many({"a": 11, "b": 1}), 11),
    "delete": (lambda kv: kv.delete("a"), None),
    "delete_many": (lambda kv: kv.delete_many(["a", "b"]), None),
    "touch": (lambda kv: kv.touch("a", 60), 10),
    "get": (lambda kv: kv.get("a", renew_for=60), 10),
    "clear": (lambda kv: kv.clear(), None),
}
"""Calls that may."""


class Scene(NamedTuple):
    """A store behind a proxy, one of the same table beside it, and what the proxy will do."""

    kv: Store
    beside: Store
    mishap: Mishap
    any_request: Mishap
    proxy: TCPProxy


@pytest.fixture
async def scene(arena: Arena, make_store: MakeStore) -> AsyncIterator[Scene]:
    async with TCPProxy.before(arena.url) as proxy:
        of_anything = Mishap(proxy, bool)
        of_commit = Mishap(proxy, commits(arena.dialect))
        kv, beside = await make_store(proxy.url), await make_store(arena.url)
        for call, _ in (ONCE | AGAIN).values():  # so that every statement is prepared
            await kv.set_many({"a": 10, "b": 10, "new": 0}, expire=1000)
            await kv.delete("new")
            await call(kv)
        yield Scene(kv, beside, of_commit, of_anything, proxy)
        await kv.aclose()


async def reset(scene: Scene) -> None:
    await scene.kv.set_many({"a": 10, "b": 10, "new": 0}, expire=1000)
    await scene.kv.delete("new")


async def left_by(scene: Scene, name: str) -> object:
    return await scene.beside.get("new" if name == "add" else "a", None)


async def test_what_may_not_run_twice_says_that_nobody_knows_and_has_happened_once(
    scene: Scene, proved: Proved
) -> None:
    for name, (call, left) in ONCE.items():
        await reset(scene)
        scene.mishap.lose_reply()
        with pytest.raises(OutcomeUnknownError, match="COMMIT was under way") as caught:
            await soon(call(scene.kv))
        assert caught.value.__cause__ is not None, name
        assert await left_by(scene, name) == left, name
    proved("COMMITs whose reply was lost (proxy)", 0, scene.mishap.happened)
    assert scene.mishap.happened == len(ONCE)


async def test_a_commit_that_never_arrived_looks_the_same_and_has_not_happened(scene: Scene, proved: Proved) -> None:
    for name, (call, _) in ONCE.items():
        await reset(scene)
        before = await left_by(scene, name)
        scene.mishap.cut_before()
        with pytest.raises(OutcomeUnknownError):
            await soon(call(scene.kv))
        assert await left_by(scene, name) == before, name
    proved("COMMITs cut on their way (proxy)", 0, scene.mishap.happened)


async def test_a_connection_lost_before_commit_is_no_secret_and_the_call_runs_again_once(
    scene: Scene, arena: Arena, proved: Proved
) -> None:
    for name, (call, left) in (ONCE | AGAIN).items():
        await reset(scene)
        mishap = Mishap(scene.proxy, bool)
        mishap.cut_before()
        await soon(call(scene.kv))
        assert mishap.happened == 1, name
        assert await left_by(scene, name) == left, name
    proved("requests cut on their way (proxy)", 0, len(ONCE | AGAIN))


async def test_an_answer_lost_in_the_middle_of_a_transaction_is_no_secret_either(scene: Scene, proved: Proved) -> None:
    for name, (call, left) in ONCE.items():
        await reset(scene)
        mishap = Mishap(scene.proxy, bool)
        mishap.lose_reply()
        await soon(call(scene.kv))
        assert mishap.happened == 1, name
        assert await left_by(scene, name) == left, name
    proved("answers before COMMIT lost (proxy)", 0, len(ONCE))


async def test_what_may_run_twice_is_repeated(scene: Scene, proved: Proved) -> None:
    lost = 0
    for name, (call, left) in AGAIN.items():
        await reset(scene)
        mishap = Mishap(scene.proxy, bool)  # single statements are their own transaction: nothing says COMMIT
        mishap.lose_reply()
        await soon(call(scene.kv))
        lost += mishap.happened
        assert await left_by(scene, name) == left, name
    proved("answers lost of calls that may run twice (proxy)", 0, lost)
    assert lost == len(AGAIN)


async def test_a_touch_whose_commit_got_lost_is_repeated(scene: Scene) -> None:
    for name in ("touch", "get", "clear"):
        await reset(scene)
        mishap = Mishap(scene.proxy, scene.mishap._asks)
        mishap.lose_reply()
        call, left = AGAIN[name]
        await soon(call(scene.kv))
        assert mishap.happened == 1, name
        assert await left_by(scene, name) == left, name


async def test_of_a_batch_every_caller_learns_it_and_none_is_counted_twice(scene: Scene) -> None:
    for turn in range(5):
        await scene.kv.set_many({str(n): 0 for n in range(20)})
        scene.mishap.lose_reply()
        calls = [scene.kv.incr(str(n)) for n in range(20)]
        outcomes = await soon(asyncio.gather(*calls, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes} == {OutcomeUnknownError}, turn
        assert len({id(outcome) for outcome in outcomes}) == 20
        assert set((await scene.beside.get_many(map(str, range(20)))).values()) == {1}


async def test_under_fire_no_increment_is_lost_or_counted_twice(scene: Scene, proved: Proved) -> None:
    acknowledged = unknown = 0

    async def count() -> None:
        nonlocal acknowledged, unknown
        for _ in range(10):
            try:
                await scene.kv.incr("n")
                acknowledged += 1
            except OutcomeUnknownError:
                unknown += 1

    async def disturb() -> None:
        while True:
            before = scene.mishap.happened
            scene.mishap.lose_reply()
            while scene.mishap.happened == before:
                await asyncio.sleep(0.001)

    disturbing = asyncio.ensure_future(disturb())
    await soon(asyncio.gather(*(count() for _ in range(10))))
    disturbing.cancel()
    assert acknowledged + unknown == 100
    assert unknown
    assert acknowledged <= await scene.beside.get("n") <= acknowledged + unknown
    proved("COMMITs whose reply was lost (proxy)", 0, scene.mishap.happened)
