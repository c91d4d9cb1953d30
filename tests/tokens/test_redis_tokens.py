"""RedisTokens on Redis and Valkey: what a commit leaves there, what a reader sees, and how often Redis is asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from akv.errors import ClosedError, ConfigurationError, InvalidIdentifierError
from akv.tokens import rules
from akv.tokens.identifiers import Label, record_of
from akv.tokens.redis import RedisTokens
from akv.tokens.rules import Token
from tests.proxy import TCPProxy
from tests.tokens.redis_world import DRIVER, PATIENT, Bound, Clock, Inside, ScriptedGate, bound

USERS = "akv:users#*"
ROW = "akv:users#1"


async def test_a_mark_stands_from_before_commit_until_it_is_resolved(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        await app.active()
        before = await app.tokens.look([ROW, USERS])
        announcement = await app.announce(ROW, USERS)
        marked = await app.tokens.look([USERS, ROW])
        assert [record.marks for record in marked.records] == [("m1",), ("m1",)]
        assert rules.usable(before)
        assert not rules.usable(marked)
        await app.tokens.resolve(announcement)
        after = await app.tokens.look([ROW, USERS])
        assert rules.usable(after)
        assert [token.seq for token in rules.vector_of(after)] == [1, 1]
        assert (await inside.record(record_of(ROW, 2**20))).seq == 1


async def test_records_come_in_the_order_asked_for(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        await app.commit("akv:a#*")
        await app.commit("akv:b#*")
        seen = await app.tokens.look(["akv:b#*", "akv:c#*", "akv:a#*", "akv:b#*"])
        assert [token.seq for token in rules.vector_of(seen)] == [2, 0, 1, 2]
        assert seen.seq == 2


async def test_rows_share_slots_and_tables_do_not(space: tuple[str, str]) -> None:
    async with bound(*space, slots=1) as app:
        await app.active()
        await app.commit("akv:users#1")
        seen = await app.tokens.look(["akv:orders#7", "akv:label:x", "akv:users#*"])
        assert [token.seq for token in rules.vector_of(seen)] == [1, 1, 0]


async def test_another_process_sees_marks_and_bumps(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space) as other:
        await app.active()
        announcement = await app.announce(ROW)
        assert rules.is_marked(await other.tokens.look([ROW]))
        await app.tokens.resolve(announcement)
        assert not rules.is_marked(await other.tokens.look([ROW]))
        assert rules.vector_of(await other.tokens.look([ROW])) == rules.vector_of(await app.tokens.look([ROW]))


async def test_namespaces_share_nothing(space: tuple[str, str]) -> None:
    url, namespace = space
    async with (
        bound(url, namespace) as app,
        bound(url, f"{namespace}2") as other,
        Inside(url, f"{namespace}2") as inside,
    ):
        await app.active()
        await other.active()
        await app.commit(ROW)
        assert rules.vector_of(await other.tokens.look([ROW]))[0].seq == 0
        await inside.flush()


async def test_no_key_in_redis_has_an_end(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        await app.active()
        await app.commit(ROW, USERS)
        keys = [key async for key in inside.client.scan_iter(match=inside.key("*"))]
        assert len(keys) == 4
        assert {await inside.client.ttl(key) for key in keys} == {-1}


# --- tokens as strings ------------------------------------------------------------------------------------------------


async def test_read_returns_the_same_token_until_a_bump(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        first = await app.tokens.read([ROW, USERS])
        assert await app.tokens.read([ROW, USERS]) == first
        await app.tokens.bump([ROW])
        second = await app.tokens.read([ROW, USERS])
        assert second[ROW] != first[ROW]
        assert second[USERS] == first[USERS]


async def test_read_returns_no_token_twice_while_nobody_knows(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        app.gate.may_end.clear()
        assert await app.tokens.read([ROW]) != await app.tokens.read([ROW])
        app.gate.may_end.set()
        await app.active()
        await app.announce(ROW)
        assert await app.tokens.read([ROW]) != await app.tokens.read([ROW])


async def test_touch_changes_what_depends_on_the_thing(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        label = Label("home")
        names = [label.identifier, ROW, USERS]
        before = await app.tokens.read(names)
        await app.tokens.touch(label)
        after = await app.tokens.read(names)
        assert [before[name] != after[name] for name in names] == [True, False, False]
        await app.tokens.touch(USERS)
        last = await app.tokens.read(names)
        assert [after[name] != last[name] for name in names] == [False, True, True]


async def test_nothing_that_is_no_identifier_is_sent(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        with pytest.raises(InvalidIdentifierError):
            await app.tokens.read(["users"])
        with pytest.raises(InvalidIdentifierError):
            await app.tokens.touch(17)
        await app.tokens.bump([])
        assert app.tokens._here()._asking.pool._open == set()


async def test_who_binds_nothing_reads_and_touches_all_the_same(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        other = RedisTokens.from_url(space[0], namespace=space[1], **PATIENT)
        before = await other.read([ROW])
        await other.touch(ROW)
        assert await other.read([ROW]) != before
        assert await other.read([ROW]) == await app.tokens.read([ROW])
        await other.aclose()


# --- round trips ------------------------------------------------------------------------------------------------------


async def test_each_step_of_a_commit_is_one_round_trip(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        await app.commit(ROW)
        await app.tokens.look([ROW])  # now every script is known, and a connection open
        steps: list[Any] = [lambda: app.announce(ROW, USERS, "akv:*#*"), lambda: app.tokens.look([ROW, USERS])]
        for step in steps:
            before = proxy.requests
            await step()
            assert proxy.requests - before == 1
        before = proxy.requests
        await app.tokens.bump([ROW])
        assert proxy.requests - before == 1


async def test_looks_of_one_moment_are_one_round_trip(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        await app.commit("akv:t#3")
        before = proxy.requests
        seen = await asyncio.gather(*(app.tokens.look([f"akv:t#{number}", "akv:*#~"]) for number in range(64)))
        assert proxy.requests - before == 1
        assert [each.records[0].seq for each in seen[:5]] == [0, 0, 0, 1, 0]


async def test_commits_of_one_moment_share_their_calls(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        await app.active()
        await app.commit(ROW)
        before = proxy.requests
        announced = await asyncio.gather(*(app.announce(f"akv:t#{number}", "akv:t#*") for number in range(30)))
        assert proxy.requests - before == 1
        assert len(rules.active_epoch(await app.tokens.look(())) and announced) == 30
        marked = await app.tokens.look(["akv:t#*", "akv:t#7"])
        assert len(marked.records[0].marks) == 30
        assert marked.records[1].marks == (announced[7].mark,)
        before = proxy.requests
        await asyncio.gather(*map(app.tokens.resolve, announced))
        assert proxy.requests - before == 1
        assert not rules.is_marked(await app.tokens.look(["akv:t#*", "akv:t#7"]))


async def test_a_look_never_joins_a_batch_that_was_sent(space: tuple[str, str]) -> None:
    """What was bumped before a look began is in its answer, even if another look is under way."""
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app, bound(*space) as other:
        await app.active()
        held = asyncio.Event()
        sent = asyncio.Event()
        app.tokens._here()._asking.pool.ask = _holding(app, sent, held)  # type: ignore[method-assign]
        first = asyncio.create_task(app.tokens.look([ROW]))
        await sent.wait()  # its answer is here, and kept from it
        await other.tokens.bump([ROW])
        second = asyncio.create_task(app.tokens.look([ROW]))
        await asyncio.sleep(0)
        held.set()
        assert (await first).records[0].seq == 0
        assert (await second).records[0].seq == 1


def _holding(app: Bound, sent: asyncio.Event, held: asyncio.Event) -> Any:
    ask = app.tokens._here()._asking.pool.ask

    async def hold(work: Any) -> Any:
        answer = await ask(work)
        sent.set()
        await held.wait()
        return answer

    return hold


async def test_a_cancelled_look_leaves_the_others_whole(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        looks = [asyncio.create_task(app.tokens.look([ROW])) for _ in range(5)]
        await asyncio.sleep(0)
        looks[0].cancel()
        looks[3].cancel()
        done = await asyncio.gather(*looks, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in done] == [True, False, False, True, False]


async def test_a_call_that_is_cancelled_before_it_leaves_is_not_sent(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        sizes = _sizes_of_batches(app)
        looks = [asyncio.create_task(app.tokens.look([f"akv:t#{number}"])) for number in range(3)]
        await asyncio.sleep(0)  # on their way to the next batch
        looks[1].cancel()
        await asyncio.wait(looks)
        assert sizes == [2]


async def test_a_batch_keeps_redis_busy_for_a_moment_only(space: tuple[str, str]) -> None:
    """Whoever comes with many identifiers does not make one call of all that ask at that moment."""
    async with bound(*space) as app:
        await app.active()
        sizes = _sizes_of_batches(app)
        many = [[f"akv:t{number}#{row}" for row in range(4000)] for number in range(5)]
        seen = await asyncio.gather(*map(app.tokens.look, many))
        assert [len(each.records) for each in seen] == [4000] * 5
        assert sorted(sizes) == [4000, 8000, 8000]


def _sizes_of_batches(app: Bound) -> list[int]:
    lane, sizes = app.tokens._here()._looks, list[int]()
    send = lane._send

    async def count(calls: Any) -> Any:
        sizes.append(sum(map(len, calls)))
        return await send(calls)

    lane._send = count
    return sizes


async def test_connections_are_bounded(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1], max_connections=2) as app:
        await app.active()

        async def work(number: int) -> None:
            for _ in range(5):
                await app.commit(f"akv:t#{number}")
                await app.tokens.look([f"akv:t#{number}"])

        await asyncio.gather(*map(work, range(20)))
        assert proxy.connections <= 2


# --- stamps -----------------------------------------------------------------------------------------------------------


async def test_the_stamp_is_the_newest_token_of_an_active_epoch(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        app.gate.may_end.clear()
        assert not (await app.tokens.look(())).records
        assert app.tokens.stamp is None  # draining, or none
        app.gate.may_end.set()
        epoch = rules.active_epoch(await app.active())
        assert epoch is not None
        assert app.tokens.stamp == Token(epoch.id, 0)
        await app.commit(ROW)
        await app.tokens.look(())
        assert app.tokens.stamp == Token(epoch.id, 1)


async def test_a_stamp_that_is_old_is_fetched_and_a_fresh_one_is_not(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy, bound(proxy.url, space[1]) as app:
        clock = app.tokens._core.clock = Clock()
        await app.active()
        await app.commit(ROW)
        before = proxy.requests
        clock.now += 0.03
        await app.tokens.freshen()
        assert proxy.requests == before
        assert app.tokens.stamp is not None
        assert app.tokens.stamp.seq == 0
        clock.now += 0.03
        await app.tokens.freshen()
        assert proxy.requests == before + 1
        assert app.tokens.stamp.seq == 1


async def test_an_older_answer_does_not_turn_the_stamp_back(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        old = await app.tokens.look(())
        await app.commit(ROW)
        await app.tokens.look(())
        app.tokens.learn(old)
        assert app.tokens.stamp is not None
        assert app.tokens.stamp.seq == 1


# --- one namespace, one database --------------------------------------------------------------------------------------


async def test_another_database_is_refused_wherever_it_turns_up(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space, ScriptedGate("other/db")) as other, Inside(*space) as inside:
        await app.active()
        with pytest.raises(ConfigurationError, match="belongs to another database"):
            await other.prepare()
        with pytest.raises(ConfigurationError, match="delete the key"):
            await other.announce(ROW)
        with pytest.raises(ConfigurationError, match="a namespace of its own"):
            await other.tokens.look([ROW])
        assert (await inside.record(record_of(ROW, 2**20))).marks == ()
        await app.commit(ROW)  # who was first goes on


async def test_two_engines_of_different_databases_cannot_share_tokens(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.prepare()
        other = Bound(app.tokens, ScriptedGate("other/db"))
        with pytest.raises(ConfigurationError, match="two engines of different databases"):
            await other.prepare()


async def test_two_engines_of_one_database_share_tokens(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.prepare()
        other = Bound(app.tokens, ScriptedGate())
        await other.prepare()
        await app.active()
        await other.commit(ROW)
        assert rules.vector_of(await app.tokens.look([ROW]))[0].seq == 1


async def test_other_slots_are_refused_wherever_they_turn_up(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space, slots=7) as other:
        await app.active()
        for step in (other.prepare, lambda: other.announce(ROW), lambda: other.tokens.touch(ROW)):
            with pytest.raises(ConfigurationError, match=r"slots=1048576.*not 7"):
                await step()
        await app.commit(ROW)


async def test_an_epoch_of_another_version_is_refused(space: tuple[str, str]) -> None:
    async with bound(*space) as app, Inside(*space) as inside:
        await inside.client.set(inside.key(":epoch"), "2 something new")
        with pytest.raises(ConfigurationError, match="this version of akv cannot read"):
            await app.tokens.look(())
        with pytest.raises(ConfigurationError, match="this version of akv cannot read"):
            await app.announce(ROW)


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_is_to_be_resolved(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space) as other:
        await app.active()
        announcement = await app.announce(ROW)
        app.tokens.resolve(announcement)
        await app.tokens.aclose()
        assert not rules.is_marked(await other.tokens.look([ROW]))


async def test_drain_waits_for_what_is_to_be_resolved(space: tuple[str, str]) -> None:
    async with bound(*space) as app, bound(*space) as other:
        await app.active()
        task = app.tokens.resolve(await app.announce(ROW))
        await app.tokens.drain()
        assert task.done()
        assert not rules.is_marked(await other.tokens.look([ROW]))


async def test_closed_tokens_say_so(space: tuple[str, str]) -> None:
    async with bound(*space) as app:
        await app.active()
        await app.tokens.aclose()
        await app.tokens.aclose()
        for step in (app.tokens.look([ROW]), app.announce(ROW), app.tokens.touch(ROW), app.tokens.drain()):
            with pytest.raises(ClosedError):
                await step
        await app.tokens.freshen()  # which never raises


async def test_closing_ends_connections_that_are_lent(space: tuple[str, str]) -> None:
    async with TCPProxy.before(space[0]) as proxy:
        async with bound(proxy.url, space[1]) as app:
            await app.active()
            looks = [asyncio.create_task(app.tokens.look([f"akv:t#{number}"])) for number in range(10)]
            await asyncio.sleep(0)
            await app.tokens.aclose()
            await asyncio.gather(*looks, return_exceptions=True)
        async with asyncio.timeout(20):
            while proxy.open_connections:
                await asyncio.sleep(0.005)


async def test_an_aborted_transaction_is_not_announced(space: tuple[str, str]) -> None:
    from akv.tokens.gates import TransactionAborted

    async with bound(*space) as app:
        await app.active()
        app.gate.error = TransactionAborted()
        assert await app.tokens.announce(DRIVER, app.engine, [ROW]) is None
        assert not rules.is_marked(await app.tokens.look([ROW]))
