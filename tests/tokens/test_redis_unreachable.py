"""Redis that is down, hangs, is full or loses answers: no commit goes unannounced, no read waits for long."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from typing import Any

import pytest

from akv.errors import CommitRefusedError, TokenError
from akv.tokens import rules
from akv.tokens.backend import Unreachable
from akv.tokens.redis.budget import Budget
from akv.tokens.redis.wire import LOOK, MARK, RESOLVE
from tests.private import PrivateValkey
from tests.proxy import TCPProxy
from tests.tokens.redis_world import Bound, Clock, Inside, bound, until

ROW = "akv:users#1"
NOBODY = "redis://127.0.0.1:1/0"


def sha(script: Any) -> bytes:
    return bytes(script.sha.split(b"\r\n")[1])


# --- what becomes of commits ------------------------------------------------------------------------------------------


async def test_a_commit_is_refused_with_the_remedy() -> None:
    async with bound(NOBODY, "ns") as app:
        with pytest.raises(CommitRefusedError, match=r"nothing was written.*when_unreachable='outbox'") as caught:
            await app.announce(ROW)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again)) == (CommitRefusedError, str(caught.value))
        assert isinstance(caught.value.__cause__, Unreachable)
        assert app.gate.entered == 1


async def test_or_goes_on_with_what_changed_in_the_outbox() -> None:
    async with bound(NOBODY, "ns", when_unreachable="outbox") as app:
        assert await app.announce(ROW, "akv:users#*") is None
        assert [parcel.identifiers for parcel in app.outbox.parcels.values()] == [(ROW, "akv:users#*")]


async def test_a_commit_is_refused_while_redis_hangs(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        app.tokens._core.options.__dict__["commit_timeout"] = 0.05
        proxy.blackhole()
        with pytest.raises(CommitRefusedError, match=r"no answer within 0\.05 s"):
            await app.announce(ROW)
        app.tokens._core.options.__dict__["commit_timeout"] = 10
        proxy.resume()
        assert await app.announce(ROW) is not None


async def test_every_commit_asks_redis_whatever_happened_before(space: tuple[str, str]) -> None:
    """The gate protects a commit that goes on without mark only if Redis was asked after it was entered."""
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        proxy.refuse()
        proxy.cut()
        for _ in range(10):
            with pytest.raises(CommitRefusedError):
                await app.announce(ROW)
        assert app.tokens._here()._asking.breaker.is_open
        with pytest.raises(Unreachable):
            await app.tokens.look([ROW])
        await proxy.accept()
        assert await app.announce(ROW) is not None  # at once
        assert rules.is_marked(await app.tokens.look([ROW]))  # and readers are let through again


async def test_an_open_breaker_shortens_the_wait_of_a_commit() -> None:
    async with bound(NOBODY, "ns", commit_timeout=5) as app:
        waits: list[float] = []
        asking = app.tokens._here()._asking
        ask = asking._ask

        async def note(work: Any, seconds: float) -> Any:
            waits.append(seconds)
            return await ask(work, seconds)

        asking._ask = note  # type: ignore[method-assign]
        for _ in range(4):
            with pytest.raises(CommitRefusedError):
                await app.announce(ROW)
        assert waits == [5, 5, 5, 1]


async def test_a_full_redis_takes_no_marks_but_gives_them_back(nursery: Any) -> None:
    server: PrivateValkey = nursery.valkey(maxmemory_policy="noeviction")
    async with bound(server.url(), "ns") as app, Inside(server.url(), "ns") as inside:
        await app.active()
        announcement = await app.announce(ROW)
        await inside.client.config_set("maxmemory", "1mb")
        with pytest.raises(CommitRefusedError, match="maxmemory"):
            await app.announce(ROW)
        assert rules.is_marked(await app.tokens.look([ROW]))
        await app.tokens.resolve(announcement)
        seen = await app.tokens.look([ROW])
        assert rules.usable(seen)
        assert rules.vector_of(seen)[0].seq == 1
    nursery.end(server)


async def test_a_resolve_that_fails_leaves_the_mark_to_the_sweeper(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        clock = app.tokens._core.clock = Clock()
        await app.active()
        announcement = await app.announce(ROW)
        proxy.refuse()
        proxy.cut()
        await app.tokens.resolve(announcement)  # raises nothing
        await proxy.accept()
        app.gate.over.add(announcement.mark)
        await app.tokens.look([ROW])
        clock.now += 2
        await app.tokens.look([ROW])
        await until(lambda: not app.tokens._here()._sweeper._is_running, "the sweep ends")
        assert rules.usable(await app.tokens.look([ROW]))


async def test_touch_says_that_it_may_not_have_worked() -> None:
    async with bound(NOBODY, "ns") as app:
        with pytest.raises(TokenError, match="do it again"):
            await app.tokens.touch(ROW)
        with pytest.raises(TokenError, match="cannot be read"):
            await app.tokens.read([ROW])


# --- connections that break -------------------------------------------------------------------------------------------


async def test_a_connection_that_has_grown_old_is_replaced_once(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        for step in (lambda: app.tokens.look([ROW]), lambda: app.announce(ROW), lambda: app.tokens.touch(ROW)):
            proxy.cut()
            before = proxy.connections
            await step()
            assert proxy.connections - before == 1
            assert not len(app.tokens._here()._asking.pool._connecting)


async def test_a_new_connection_that_breaks_is_not_replaced(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        proxy.cut_reply_to(sha(LOOK), times=100)
        with pytest.raises(Unreachable):
            await app.tokens.look([ROW])
        assert proxy.connections == 1


async def test_a_mark_whose_answer_was_lost_stands_once_and_is_resolved(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        await app.commit(ROW)
        proxy.cut_reply_to(sha(MARK))
        announcement = await app.announce(ROW)
        assert (await app.tokens.look([ROW])).records[0].marks == (announcement.mark,)
        await app.tokens.resolve(announcement)
        assert rules.usable(await app.tokens.look([ROW]))


async def test_a_resolve_whose_answer_was_lost_is_done(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        await app.commit(ROW)
        announcement = await app.announce(ROW)
        proxy.cut_reply_to(sha(RESOLVE))
        await app.tokens.resolve(announcement)
        seen = await app.tokens.look([ROW])
        assert rules.usable(seen)
        assert rules.vector_of(seen)[0].seq == 3  # once too often: a miss more


async def test_an_answer_that_comes_too_late_is_not_taken_for_that_to_the_next_question(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1], max_connections=1) as app:
        await app.active()
        await app.commit(ROW)
        options = app.tokens._core.options.__dict__
        proxy.delay, options["read_timeout"] = 0.1, 0.05
        with pytest.raises(Unreachable, match="no answer within"):
            await app.tokens.look([ROW])
        proxy.delay, options["read_timeout"] = 0, 10
        seen = await app.tokens.look(["akv:users#2"])
        assert rules.vector_of(seen)[0].seq == 0
        assert rules.vector_of(await app.tokens.look([ROW]))[0].seq == 1


async def test_who_is_cancelled_when_a_connection_becomes_free_gives_it_on(space: tuple[str, str]) -> None:
    async with bound(*space, max_connections=1) as app:
        await app.active()
        pool, may_end = app.tokens._here()._asking.pool, asyncio.Event()

        async def hold(_: Any) -> None:
            await may_end.wait()

        first, second = [asyncio.create_task(pool.ask(hold)) for _ in range(2)]
        await until(lambda: len(pool._waiting) == 1, "one waits for the other")
        may_end.set()
        while pool._waiting:
            await asyncio.sleep(0)
        second.cancel()
        await first
        await asyncio.wait([second])
        assert second.cancelled()
        assert rules.usable(await app.tokens.look([ROW]))


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_an_attempt_to_connect_that_asyncio_run_cancels_is_made_again(space: tuple[str, str], steps: int) -> None:
    async with bound(*space, max_connections=1) as app:
        looking = asyncio.ensure_future(app.tokens.look([ROW]))
        connecting = app.tokens._here()._asking.pool._connecting
        while not connecting:
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in connecting._tasks:
            task.cancel()
        await asyncio.wait_for(looking, 5)
        assert len(app.tokens._here()._asking.pool._open) == 1


async def test_a_restart_of_redis_is_noticed_by_nobody_but_the_epoch(private_valkey: PrivateValkey) -> None:
    async with bound(private_valkey.url(), "ns") as app:
        await app.active()
        await asyncio.gather(*(app.commit(f"akv:t#{number}") for number in range(50)))
        await asyncio.to_thread(private_valkey.restart, "kill")
        await app.tokens.look([ROW])
        await app.active()
        await app.commit(ROW)


# --- readers ----------------------------------------------------------------------------------------------------------


async def test_a_read_of_a_redis_that_hangs_ends(private_valkey: PrivateValkey) -> None:
    async with bound(private_valkey.url(), "ns", read_timeout=0.05) as app:
        app.tokens._core.options.__dict__["read_timeout"] = 10
        await app.active()
        app.tokens._core.options.__dict__["read_timeout"] = 0.05
        os.kill(private_valkey.pid, signal.SIGSTOP)
        with pytest.raises(Unreachable, match="no answer within"):
            await app.tokens.look([ROW])
        await app.tokens.freshen()  # raises nothing
        os.kill(private_valkey.pid, signal.SIGCONT)
        app.tokens._core.options.__dict__["read_timeout"] = 10
        assert rules.usable(await app.tokens.look([ROW]))


async def test_after_some_failures_readers_do_not_wait_any_more_and_one_asks_now_and_then() -> None:
    async with bound(NOBODY, "ns") as app:
        clock = app.tokens._core.clock = Clock()
        asked: list[Any] = []
        asking = app.tokens._here()._asking
        ask = asking.pool.ask
        asking.pool.ask = lambda work: asked.append(work) or ask(work)  # type: ignore[method-assign, func-returns-value]
        for _ in range(10):
            with pytest.raises(Unreachable):
                await app.tokens.look([ROW])
        assert len(asked) == 3
        for _ in range(3):
            clock.now += 1.01
            for _ in range(5):
                with pytest.raises(Unreachable):
                    await app.tokens.look([ROW])
        assert len(asked) == 6


async def test_while_one_reader_asks_the_others_do_without_at_once(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        clock = app.tokens._core.clock = app.tokens._here()._asking.breaker._clock = Clock()
        proxy.blackhole()
        app.tokens._core.options.__dict__["read_timeout"] = 0.5
        for _ in range(3):
            app.tokens._here()._asking.breaker.failed("test")
        clock.now += 1.01
        probe = asyncio.create_task(app.tokens.look([ROW]))
        await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(Unreachable, match="the last few times"):
                await app.tokens.look([ROW])
        assert not probe.done()
        with pytest.raises(Unreachable, match="no answer"):
            await probe


async def test_what_waits_behind_a_read_that_opens_the_breaker_is_given_up_with_it(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        app.tokens._core.options.__dict__["read_timeout"] = 0.05
        breaker = app.tokens._here()._asking.breaker
        for _ in range(2):
            breaker.failed("test")
        proxy.blackhole()
        looks = []
        for _ in range(12):
            looks.append(asyncio.create_task(app.tokens.look([ROW])))
            await asyncio.sleep(0.002)  # so that the batches under way leave no room
        done = await asyncio.gather(*looks, return_exceptions=True)
        assert {type(each) for each in done} == {Unreachable}
        assert breaker._failures == 4  # two batches were under way, and no third one was sent


async def test_a_connection_may_take_longer_than_a_read_has_time(space: tuple[str, str]) -> None:
    """It is opened all the same, for whoever comes next."""
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1], read_timeout=0.05) as app:
        proxy.delay = 0.03
        with pytest.raises(Unreachable):
            await app.tokens.look([ROW])
        await until(lambda: app.tokens._here()._asking.pool._idle, "the connection is there")
        assert proxy.connections == 1
        proxy.delay = 0
        app.tokens._core.options.__dict__["read_timeout"] = 10
        await app.tokens.look([ROW])
        assert proxy.connections == 1


async def test_what_a_cancelled_task_still_asks_has_a_budget_too() -> None:
    ended = []

    async def cancelled() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            with pytest.raises(TimeoutError, match="no answer within"), Budget(0.005):
                await asyncio.sleep(30)
            ended.append("in time")

    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["in time"]


@pytest.mark.allow_blocking
async def test_an_event_loop_that_stood_still_says_nothing_about_redis(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        await app.commit(ROW)  # Redis knows the scripts: one round trip each
        app.tokens._core.options.__dict__["read_timeout"] = 0.05
        app.tokens._core.options.__dict__["commit_timeout"] = 0.05
        for step in (app.tokens.look([ROW]), app.announce(ROW)):
            task = asyncio.create_task(step)
            for _ in range(10):
                await asyncio.sleep(0)
            time.sleep(0.2)
            await task


# --- the outbox -------------------------------------------------------------------------------------------------------


async def test_the_outbox_is_emptied_once_redis_answers(space: tuple[str, str]) -> None:
    async with (
        TCPProxy.before(space[0]) as proxy,
        bound(proxy.url, space[1], when_unreachable="outbox", outbox_every=0.01) as app,
        bound(*space) as reader,
    ):
        await app.active()
        proxy.refuse()
        proxy.cut()
        await app.announce(ROW)
        await app.announce("akv:users#2")
        before = await reader.tokens.look([ROW, "akv:users#2", "akv:users#3"])
        await proxy.accept()
        await until(lambda: not app.outbox.parcels, "the outbox is empty")
        after = await reader.tokens.look([ROW, "akv:users#2", "akv:users#3"])
        changed = [old != new for old, new in zip(before.records, after.records, strict=True)]
        assert changed == [True, True, False]


async def test_nothing_leaves_the_outbox_before_its_bump(space: tuple[str, str]) -> None:
    async with bound(*space, when_unreachable="outbox") as app:
        await app.active()
        await app.outbox.put(None, [ROW])
        there: list[int] = []
        delete = app.outbox.delete

        async def look_first(ids: Any) -> None:
            there.append((await app.tokens.look([ROW])).records[0].seq)
            await delete(ids)

        app.outbox.delete = look_first  # type: ignore[method-assign]
        await app.tokens._here().relay.pass_on()
        assert there == [1]
        assert app.outbox.parcels == {}


async def test_what_cannot_be_bumped_stays_in_the_outbox() -> None:
    async with bound(NOBODY, "ns", when_unreachable="outbox") as app:
        await app.outbox.put(None, [ROW])
        with pytest.raises(Unreachable):
            await app.tokens._here().relay.pass_on()
        assert len(app.outbox.parcels) == 1


async def test_any_bound_process_passes_on_what_a_dead_one_left(space: tuple[str, str]) -> None:
    async with bound(*space, when_unreachable="outbox") as app:
        for _ in range(250):
            await app.outbox.put(None, [ROW])
        await app.prepare()
        await until(lambda: not app.outbox.parcels, "the outbox is empty")


async def test_a_relay_survives_errors_of_the_database(space: tuple[str, str]) -> None:
    async with bound(*space, when_unreachable="outbox", outbox_every=0.001) as app:
        app.outbox.error = OSError("the database is down")
        await app.outbox.put(None, [ROW])
        app.tokens._here().relay.soon()
        await until(lambda: app.outbox.taken > 2, "it has tried again")
        app.outbox.error = None
        await until(lambda: not app.outbox.parcels, "the outbox is empty")


async def test_what_cannot_be_passed_on_is_tried_again_before_the_next_quiet_look() -> None:
    async with bound(NOBODY, "ns", when_unreachable="outbox", outbox_every=0.01) as app:
        app.tokens._core.clock = Clock()  # it stands still: no quiet look is ever due again
        await app.outbox.put(None, [ROW])  # another process did that, and died
        await app.prepare()
        await until(lambda: app.outbox.taken > 2, "it has tried again")


async def test_who_puts_something_into_the_outbox_looks_at_once_and_once_more(space: tuple[str, str]) -> None:
    """The first look may come before the transaction has committed."""
    async with (
        TCPProxy.before(space[0]) as proxy,
        bound(proxy.url, space[1], when_unreachable="outbox", outbox_every=0.2) as app,
    ):
        await app.active()
        app.tokens._core.clock = Clock()
        await app.prepare()
        await until(lambda: app.outbox.taken == 1, "the first look is over")
        proxy.refuse()
        proxy.cut()
        await app.announce(ROW)
        ((id_, parcel),) = app.outbox.parcels.items()
        app.outbox.parcels.clear()  # not committed yet
        await proxy.accept()
        await until(lambda: app.outbox.taken == 2, "it looks")
        app.outbox.parcels[id_] = parcel
        await until(lambda: not app.outbox.parcels, "it looks again")


async def test_who_refuses_commits_has_no_outbox(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.prepare()
        await app.active()
        await app.commit(ROW)
        assert app.outbox.taken == 0


async def test_late_marks_of_a_redis_that_hung_cost_misses_only(private_valkey: PrivateValkey) -> None:
    async with bound(private_valkey.url(), "ns") as app:
        clock = app.tokens._core.clock = Clock()
        await app.active()
        await app.commit(ROW)
        app.tokens._core.options.__dict__["commit_timeout"] = 0.05
        os.kill(private_valkey.pid, signal.SIGSTOP)
        with pytest.raises(CommitRefusedError):
            await app.announce(ROW)
        os.kill(private_valkey.pid, signal.SIGCONT)
        app.tokens._core.options.__dict__["commit_timeout"] = 10
        await until(lambda: _is_marked(app), "the mark arrives")
        app.gate.over.add("m2")
        await app.tokens.look([ROW])
        clock.now += 2
        await app.tokens.look([ROW])
        await until(lambda: not app.tokens._here()._sweeper._is_running, "the sweep ends")
        assert rules.usable(await app.tokens.look([ROW]))


async def _is_marked(app: Bound) -> bool:
    return rules.is_marked(await app.tokens.look([ROW]))
