"""Epochs: tokens that Redis lost, or may have lost, are not believed until every writer of that time has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from akv.errors import ConfigurationError
from akv.tokens import rules
from akv.tokens.redis import RedisTokens, epochs
from akv.tokens.redis.formats import write_epoch
from akv.tokens.redis.wire import SWAP
from akv.tokens.rules import Epoch
from tests.private import PrivateValkey
from tests.proxy import TCPProxy
from tests.tokens.redis_world import PATIENT, Clock, Inside, ScriptedGate, bound, until

ROW = "akv:users#1"


async def test_the_first_epoch_is_drained_before_it_counts(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        app.gate.may_end.clear()
        await app.tokens.look(())
        await until(lambda: app.gate.drains, "the drain begins")
        found = await inside.epoch()
        assert not found.epoch.active
        assert (found.slots, found.database) == (str(2**20), "some/database")
        seen = await app.tokens.look([ROW])
        assert not rules.usable(seen)
        assert rules.stamp_of(seen) is None
        app.gate.may_end.set()
        assert rules.active_epoch(await app.active()) == Epoch(found.epoch.id, found.epoch.run, active=True)
        assert app.gate.drains == 1


async def test_a_draining_epoch_takes_marks_and_no_commit_waits_for_it(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        app.gate.may_end.clear()
        await app.tokens.look(())
        await until(lambda: app.gate.drains, "the drain begins")
        announcement = await app.announce(ROW)
        assert rules.is_marked(await app.tokens.look([ROW]))
        app.gate.may_end.set()
        await app.active()
        assert rules.is_marked(await app.tokens.look([ROW]))
        await app.tokens.resolve(announcement)
        assert rules.usable(await app.tokens.look([ROW]))


async def test_without_an_epoch_a_commit_goes_on_without_mark(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        app.gate.may_end.clear()
        announcement = await app.announce(ROW)
        assert announcement is not None
        await until(inside.epoch, "somebody opens one because of that")
        assert not rules.is_marked(await app.tokens.look([ROW]))
        app.gate.may_end.set()
        await app.tokens.resolve(announcement)


async def test_an_epoch_that_was_flushed_is_replaced_and_no_token_comes_back(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        await app.active()
        tokens = set()
        for _ in range(4):
            await app.commit(ROW)
            tokens.add(rules.vector_of(await app.tokens.look([ROW])))
            await inside.flush()
            await app.active()
            tokens.add(rules.vector_of(await app.tokens.look([ROW])))
        assert len(tokens) == 8
        assert app.gate.drains == 5


async def test_records_of_a_lost_epoch_count_as_never_written(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        await app.active()
        await app.announce(ROW)
        await inside.client.delete(inside.key(":epoch"))
        await app.active()
        seen = await app.tokens.look([ROW])
        assert rules.usable(seen)
        assert rules.vector_of(seen)[0].seq == 0
        await app.tokens.resolve(await app.announce(ROW))
        assert (await app.tokens.look([ROW])).records[0].marks == ()


async def test_what_is_drained_is_listed_after_the_epoch_was_opened(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        there: list[bool] = []

        async def drain() -> None:
            there.append((await inside.epoch()).epoch is not None)

        app.gate.drain = drain  # type: ignore[method-assign]
        await app.active()
        assert there == [True]


async def test_an_epoch_lost_during_its_drain_is_not_activated(space: tuple[str, str]) -> None:
    """Who had entered before the second loss may have lost its mark with the first epoch, or with the second."""
    async with bound(*space) as app, Inside(*space) as inside:
        app.gate.may_end.clear()
        await app.tokens.look(())
        await until(lambda: app.gate.drains == 1, "the drain begins")
        first = (await inside.epoch()).epoch
        await inside.flush()
        app.gate.may_end.set()
        second = rules.active_epoch(await app.active())
        assert second is not None
        assert second.id != first.id
        assert app.gate.drains == 2


async def test_a_drain_activates_only_the_epoch_that_was_drained(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        app.gate.may_end.clear()
        await app.tokens.look(())
        await until(lambda: app.gate.drains == 1, "the drain begins")
        run = (await inside.epoch()).epoch.run
        await inside.client.set(
            inside.key(":epoch"), write_epoch(Epoch("someone-else", run, active=False), 2**20, "some/database")
        )
        drains: list[bool] = []

        async def drain() -> None:
            drains.append((await inside.epoch()).epoch.active)

        app.gate.drain = drain  # type: ignore[method-assign]
        app.gate.may_end.set()
        epoch = rules.active_epoch(await app.active())
        assert epoch is not None
        assert epoch.id == "someone-else"
        assert drains == [False]  # drained once more, for it was another one


async def test_whoever_meets_a_draining_epoch_drains_it(space: tuple[str, str]) -> None:
    """Its initialiser may be dead."""
    async with bound(*space) as dead:
        dead.gate.may_end.clear()
        await dead.tokens.look(())
        await until(lambda: dead.gate.drains, "the drain begins")
    async with bound(*space) as app:
        await app.active()
        assert app.gate.drains == 1


async def test_processes_that_open_an_epoch_at_once_agree(space: tuple[str, str]) -> None:
    async with bound(*space) as one, bound(*space) as two, bound(*space) as three:
        seen = await asyncio.gather(one.active(), two.active(), three.active())
        assert len({each.epoch for each in seen}) == 1


async def test_an_epoch_that_another_process_opened_meanwhile_stays(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space) as other:
        asking = app.tokens._here()._asking
        patiently = asking.patiently
        opened: list[Any] = []

        async def late(work: Any) -> Any:
            answer = await patiently(work)
            if not opened:
                opened.append(rules.active_epoch(await other.active()))
            return answer

        asking.patiently = late  # type: ignore[method-assign]
        await app.tokens.look(())
        await until(lambda: opened and not app.tokens._here()._epochs._is_running, "the task ends")
        assert rules.active_epoch(await app.active()) == opened[0]


async def test_who_binds_nothing_opens_no_epoch(space: tuple[str, str]) -> None:
    tokens = RedisTokens.from_url(space[0], namespace=space[1], **PATIENT)
    async with Inside(*space) as inside:
        for _ in range(3):
            assert not rules.usable(await tokens.look([ROW]))
        await tokens.touch(ROW)  # of which nobody needs to hear
        assert await inside.client.keys(inside.key("*")) == []
    await tokens.aclose()


async def test_who_is_unbound_opens_no_epoch_any_more(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        app.tokens.detach(app.engine)
        await app.tokens.look(())
        await app.tokens.drain()
        assert app.gate.drains == 0


async def test_a_drain_that_fails_is_tried_again_after_a_while(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        clock = app.tokens._core.clock = Clock()
        app.gate.error = OSError("the database is down")
        await app.tokens.look(())
        runtime = app.tokens._here()
        await until(lambda: not runtime._epochs._is_running, "the task ends")
        assert app.gate.drains == 1
        await app.tokens.look(())
        assert not runtime._epochs._is_running  # not in a hurry
        app.gate.error = None
        clock.now += 1
        await app.active()
        assert app.gate.drains == 2


async def test_an_epoch_of_another_database_is_never_replaced(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space, ScriptedGate("other/db")) as other:
        app.gate.may_end.clear()
        await app.tokens.look(())
        await until(lambda: app.gate.drains, "the drain begins")
        other.tokens._core.adopt("other/db")
        with pytest.raises(ConfigurationError):
            await other.tokens.look(())
        other.tokens._core.database = ""  # who does not know yet, either
        await other.tokens.look(())
        runtime = other.tokens._here()
        await until(lambda: not runtime._epochs._is_running, "the task ends")
        assert other.gate.drains == 0
        app.gate.may_end.set()
        await app.active()


async def test_every_try_to_open_an_epoch_has_an_id_of_its_own(
    space: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether one that was cut off came to be."""
    ids: list[str] = []
    monkeypatch.setattr(epochs, "new_id", lambda: ids.append(f"id{len(ids)}") or ids[-1])
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app, Inside(*space) as inside:
        await app.tokens.touch(ROW)  # a connection that has proven itself
        sha = SWAP.sha.split(b"\r\n")[1]
        proxy.on_client_data(lambda data: "cut" if sha in data and len(ids) == 1 else "pass")
        await app.active()
        assert ids == ["id0", "id1"]
        assert (await inside.epoch()).epoch.id == "id1"


async def test_an_epoch_whose_opening_was_not_confirmed_is_drained_all_the_same(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app, Inside(*space) as inside:
        await app.active()  # so that Redis knows the scripts
        await inside.flush()
        proxy.cut_reply_to(SWAP.sha.split(b"\r\n")[1])
        await app.active()
        assert app.gate.drains == 2


# --- another process --------------------------------------------------------------------------------------------------


@pytest.fixture
def persistent(nursery: Any) -> Any:
    """A Valkey that keeps what it has when it is restarted."""
    server: PrivateValkey = nursery.valkey(appendonly="yes", appendfsync="always")
    yield server
    nursery.end(server)


async def test_tokens_that_a_restart_brings_back_are_not_believed(persistent: PrivateValkey) -> None:
    async with bound(persistent.url(), "ns") as app:
        await app.active()
        await app.commit(ROW)
        before = await app.tokens.look([ROW])
        app.gate.may_end.clear()
        await asyncio.to_thread(persistent.restart, "kill")
        async with Inside(persistent.url(), "ns") as inside:
            assert (await inside.epoch()).epoch == before.epoch  # it has come back
        after = await app.tokens.look([ROW])
        assert after.run != before.run
        assert not rules.usable(after)
        app.gate.may_end.set()
        await app.active()
        last = await app.tokens.look([ROW])
        assert rules.usable(last)
        assert rules.vector_of(last) != rules.vector_of(before)


async def test_a_commit_after_a_restart_is_marked_in_the_next_epoch(persistent: PrivateValkey) -> None:
    async with bound(persistent.url(), "ns") as app:
        await app.active()
        await asyncio.to_thread(persistent.restart, "kill")
        first = await app.announce(ROW)  # in the epoch that came back: worth nothing, and no reason to refuse
        assert first is not None
        await app.active()
        await app.tokens.resolve(first)
        second = await app.announce(ROW)
        assert (await app.tokens.look([ROW])).records[0].marks == (second.mark,)


async def test_an_epoch_of_another_process_may_be_of_another_database(persistent: PrivateValkey) -> None:
    """It is none any more: whoever comes first may have the namespace."""
    async with bound(persistent.url(), "ns") as app:
        await app.active()
    await asyncio.to_thread(persistent.restart, "kill")
    async with bound(persistent.url(), "ns", ScriptedGate("other/db"), slots=7) as other:
        await other.prepare()
        await other.active()
        await other.commit(ROW)
