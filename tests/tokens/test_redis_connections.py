"""Whose settings the connections have, and which servers are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis, RedisCluster, Sentinel

from akv.errors import CommitRefusedError, ConfigurationError
from akv.tokens import rules
from akv.tokens.backend import Unreachable
from akv.tokens.redis import RedisTokens
from akv.tokens.redis.epochs import BORN
from tests.conftest import absent
from tests.private import Absent, PrivateValkey
from tests.proxy import TCPProxy
from tests.report import stable_id
from tests.tokens.redis_fakes import behind_tls, info, program
from tests.tokens.redis_world import PATIENT, Bound, Inside, bound

ROW = "akv:users#1"
FINE = {"redis_version": "7.0.0", "run_id": "ab12", "maxmemory_policy": "noeviction"}


def of_client(client: Any, namespace: str, **options: Any) -> Bound:
    return Bound(RedisTokens(client, namespace=namespace, **{**PATIENT, **options}))


async def works(app: Bound) -> None:
    await app.active()
    await app.commit(ROW)
    seen = await app.tokens.look([ROW])
    assert rules.usable(seen)
    assert rules.vector_of(seen)[0].seq == 1
    await app.tokens.aclose()


# --- whose settings ---------------------------------------------------------------------------------------------------


async def test_a_client_lends_its_settings_and_no_connection(space: tuple[str, str]) -> None:
    client = Redis.from_url(space[0], decode_responses=True, client_name="lent", max_connections=3)
    app = of_client(client, space[1])
    await app.active()
    assert client.connection_pool._available_connections == []
    async with Inside(*space) as inside:
        names = [each["name"] for each in await inside.client.client_list()]
        assert "lent" in names
    assert app.tokens._here()._asking.pool._most == 3
    await app.tokens.aclose()
    assert client.connection_pool._available_connections == []


async def test_nothing_is_ever_tried_again_by_the_driver(space: tuple[str, str]) -> None:
    """redis-py does so by default, ten times: a MARK would run twice."""
    client = Redis.from_url(space[0], retry_on_timeout=True, socket_timeout=1, health_check_interval=1)
    app = of_client(client, space[1])
    connection: Any = app.tokens._settings.new_connection(None)
    assert connection.retry.get_retries() == 0
    assert (connection.socket_timeout, connection.health_check_interval) == (None, 0)
    await works(app)


async def test_a_user_with_a_password_and_few_rights(private_valkey: PrivateValkey) -> None:
    async with Inside(private_valkey.url(), "ns") as inside:
        granted = ["+evalsha", "+eval", "+mget", "+get", "+set", "+incr", "+info"]
        await inside.client.execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~{ns}*", "+hello|auth", *granted)
    url = f"redis://ann:secret@127.0.0.1:{private_valkey.port}/0"
    await works(Bound(RedisTokens.from_url(url, namespace="ns", **PATIENT)))


async def test_another_database_number(private_valkey: PrivateValkey) -> None:
    await works(Bound(RedisTokens.from_url(private_valkey.url("3"), namespace="ns", **PATIENT)))
    async with Inside(private_valkey.url("3"), "ns") as three, Inside(private_valkey.url("0"), "ns") as zero:
        assert await three.client.dbsize()
        assert not await zero.client.dbsize()


async def test_a_unix_socket(nursery: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server: PrivateValkey = nursery.valkey(unixsocket=str(path))
    await works(Bound(RedisTokens.from_url(f"unix://{path}", namespace="ns", **PATIENT)))
    await works(of_client(Redis(unix_socket_path=str(path)), "ns2"))
    nursery.end(server)


@pytest.mark.allow_blocking
async def test_tls(private_valkey: PrivateValkey, tmp_path: Path) -> None:
    """redis-py reads certificates whenever it connects; that is its own affair."""
    try:
        async with behind_tls(private_valkey.port, tmp_path) as (port, certificate):
            url = f"rediss://localhost:{port}/0"
            await works(Bound(RedisTokens.from_url(f"{url}?ssl_ca_certs={certificate}", namespace="ns", **PATIENT)))
            await works(of_client(Redis.from_url(url, ssl_ca_certs=str(certificate)), "ns2"))
            distrustful = Bound(RedisTokens.from_url(url, namespace="ns3", **PATIENT))
            with pytest.raises(CommitRefusedError, match="certificate"):
                await distrustful.announce(ROW)
            await distrustful.tokens.aclose()
    except Absent as reason:
        absent(str(reason))


async def test_a_sentinel_names_the_primary(nursery: Any, tmp_path: Path) -> None:
    server: PrivateValkey = nursery.valkey()

    def answer(command: list[bytes]) -> bytes | None:
        if command[:2] == [b"SENTINEL", b"MASTERS"]:
            fields = {
                "name": "main",
                "ip": "127.0.0.1",
                "port": str(server.port),
                "flags": "master",
                "num-other-sentinels": "2",
                "num-slaves": "0",
                "quorum": "1",
            }
            flat = [part.encode() for pair in fields.items() for part in pair]
            return b"*1\r\n*%d\r\n" % len(flat) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in flat)
        return None

    async with program(answer) as url:
        port = int(url.split(":")[2].split("/")[0])
        sentinel = Sentinel([("127.0.0.1", port)], sentinel_kwargs={"protocol": 2})
        await works(of_client(sentinel.master_for("main"), "ns"))
        for each in sentinel.sentinels:
            await each.aclose()
    nursery.end(server)


@pytest.mark.parametrize("client", ["redis://localhost", None, redis.Redis(), RedisCluster], ids=stable_id)
def test_what_is_no_client_of_redis_asyncio_is_refused(client: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"client of redis\.asyncio.*from_url"):
        RedisTokens(client)


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost", "redis://localhost?protocol=9", "redis://h?nonsense=1", "", None, 7]
)
def test_a_url_that_redis_py_cannot_read_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="no URL of a Redis"):
        RedisTokens.from_url(url)


# --- which servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_redis_that_evicts_any_key_is_refused_at_first_use(nursery: Any, policy: str) -> None:
    server: PrivateValkey = nursery.valkey(maxmemory_policy=policy)
    async with bound(server.url(), "ns") as app:
        for step in (app.prepare, lambda: app.tokens.look([ROW]), lambda: app.announce(ROW)):
            with pytest.raises(ConfigurationError, match=rf"{policy}.*set maxmemory-policy to noeviction"):
                await step()
    nursery.end(server)


async def test_a_redis_that_evicts_keys_with_an_end_is_welcome(nursery: Any) -> None:
    server: PrivateValkey = nursery.valkey(maxmemory_policy="volatile-lru")
    await works(Bound(RedisTokens.from_url(server.url(), namespace="ns", **PATIENT)))
    nursery.end(server)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({**FINE, "redis_version": "6.2.14"}, r"Redis 6\.2\.14.*Redis 7 or newer"),
        ({**FINE, "dragonfly_version": "df-1.20"}, "not Redis .dragonfly_version"),
        ({"server": "something"}, "no redis_version"),
    ],
)
async def test_an_old_redis_and_another_program_are_refused(fields: dict[str, str], why: str) -> None:
    async with program(lambda command: info(**fields) if command[0] == b"INFO" else None) as url:
        async with bound(url, "ns") as app:
            for step in (app.prepare, lambda: app.tokens.look([ROW]), lambda: app.announce(ROW)):
                with pytest.raises(ConfigurationError, match=why):
                    await step()


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (b"-MOVED 1 127.0.0.1:7\r\n", ConfigurationError, "is a cluster"),
        (b"-ERR Error compiling script (new function): user_script:1: '#'\r\n", ConfigurationError, "Redis 7 or newer"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", CommitRefusedError, "loading the dataset"),
        (b"-BUSY Redis is busy running a script.\r\n", CommitRefusedError, "BUSY"),
        (b"-READONLY You can't write against a read only replica.\r\n", CommitRefusedError, "read only replica"),
        (b"-NOPERM User ann has no permissions to run the 'evalsha' command\r\n", CommitRefusedError, "evalsha"),
        (b"-CLUSTERDOWN Hash slot not served\r\n", CommitRefusedError, "not served"),
    ],
)
async def test_what_redis_answers_instead_is_said(error: bytes, kind: type[Exception], why: str) -> None:
    def answer(command: list[bytes]) -> bytes | None:
        return {b"INFO": info(**FINE), b"EVALSHA": error}.get(command[0])

    async with program(answer) as url, bound(url, "ns") as app:
        with pytest.raises(kind, match=why):
            await app.announce(ROW)


async def test_what_speaks_another_language_is_unreachable() -> None:
    async with program(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as url, bound(url, "ns") as app:
        with pytest.raises(CommitRefusedError):
            await app.announce(ROW)


async def test_a_wrong_password_refuses_commits_and_lets_reads_do_without(private_valkey: PrivateValkey) -> None:
    async with Inside(private_valkey.url(), "ns") as inside:
        await inside.client.config_set("requirepass", "secret")
    async with bound(f"redis://:wrong@127.0.0.1:{private_valkey.port}/0", "ns") as app:
        with pytest.raises(CommitRefusedError, match="invalid username-password"):
            await app.announce(ROW)
        with pytest.raises(Unreachable):
            await app.tokens.look([ROW])


async def test_a_replica_serves_nobody(nursery: Any, private_valkey: PrivateValkey) -> None:
    """It may lag behind; and a primary that was demoted keeps its connections and its run_id."""
    async with bound(private_valkey.url(), "ns") as app, Inside(private_valkey.url(), "ns") as inside:
        await app.active()
        await app.commit(ROW)
        primary: PrivateValkey = nursery.valkey()
        await inside.client.replicaof("127.0.0.1", primary.port)
        with pytest.raises(Unreachable, match=r"read ?only replica"):
            await app.tokens.look([ROW])
        with pytest.raises(CommitRefusedError, match=r"read ?only replica"):
            await app.announce(ROW)
        nursery.end(primary)


async def test_a_commit_finds_the_new_primary_behind_the_address_of_a_demoted_one(
    nursery: Any, private_valkey: PrivateValkey
) -> None:
    """The connection that is open leads to the old one, which is well and refuses: that says nothing of the new one."""
    other: PrivateValkey = nursery.valkey()
    async with (
        TCPProxy.before(private_valkey.url()) as proxy,
        bound(proxy.url, "ns") as app,
        Inside(private_valkey.url(), "ns") as inside,
    ):
        before = rules.active_epoch(await app.active())
        await app.commit(ROW)
        await inside.client.replicaof("127.0.0.1", other.port)
        proxy.target = ("127.0.0.1", other.port)
        announcement = await app.announce(ROW)
        assert announcement is not None
        assert rules.active_epoch(await app.active()) != before
        await app.tokens.resolve(announcement)
        await app.commit(ROW)
        assert rules.usable(await app.tokens.look([ROW]))
    nursery.end(other)


# --- INFO is forbidden ------------------------------------------------------------------------------------------------


async def _without_info(server: PrivateValkey) -> str:
    async with Inside(server.url(), "ns") as inside:
        await inside.client.execute_command(
            "ACL", "SETUSER", "ann", "on", ">secret", "~{ns}*", "+@all", "-info", "-@dangerous"
        )
    return f"redis://ann:secret@127.0.0.1:{server.port}/0"


async def test_who_may_not_ask_info_must_say_that_nothing_is_evicted(private_valkey: PrivateValkey) -> None:
    async with bound(await _without_info(private_valkey), "ns") as app:
        with pytest.raises(ConfigurationError, match=r"\+info.*assume_noeviction=True"):
            await app.announce(ROW)


async def test_and_knows_the_process_by_a_script_that_was_loaded_when_the_epoch_was_born(
    private_valkey: PrivateValkey,
) -> None:
    url = await _without_info(private_valkey)
    async with bound(url, "ns", assume_noeviction=True) as app, bound(private_valkey.url(), "ns") as other:
        epoch = rules.active_epoch(await app.active())
        assert epoch is not None
        assert epoch.run.startswith(BORN)
        await app.commit(ROW)
        assert rules.usable(await app.tokens.look([ROW]))
        assert rules.vector_of(await other.tokens.look([ROW])) == rules.vector_of(await app.tokens.look([ROW]))
        await other.commit(ROW)  # who may ask INFO goes along with it
        assert (app.gate.drains, other.gate.drains) == (1, 0)


async def test_and_takes_over_from_those_who_may(private_valkey: PrivateValkey) -> None:
    url = await _without_info(private_valkey)
    async with bound(private_valkey.url(), "ns") as app, bound(url, "ns", assume_noeviction=True) as other:
        first = rules.active_epoch(await app.active())
        second = rules.active_epoch(await other.active())
        third = rules.active_epoch(await app.active())
        assert first != second == third
        assert (app.gate.drains, other.gate.drains) == (1, 1)


async def test_and_notices_a_restart(nursery: Any) -> None:
    server: PrivateValkey = nursery.valkey(appendonly="yes", appendfsync="always")
    await _without_info(server)
    async with Inside(server.url(), "ns") as inside:
        await inside.client.config_set("requirepass", "")
    url = f"redis://ann:secret@127.0.0.1:{server.port}/0"
    async with bound(url, "ns", assume_noeviction=True) as app:
        await app.active()
        await app.commit(ROW)
        before = await app.tokens.look([ROW])
        app.gate.may_end.clear()
        await asyncio.to_thread(server.restart, "kill")
        await _without_info(server)
        after = await app.tokens.look([ROW])
        assert after.epoch == before.epoch  # it has come back
        assert not rules.usable(after)
        app.gate.may_end.set()
        await app.active()
        assert rules.vector_of(await app.tokens.look([ROW])) != rules.vector_of(before)
    nursery.end(server)


async def test_a_process_without_an_id_is_known_by_a_script_too() -> None:
    from akv.tokens.redis.server import check_server

    for run in ("", "0" * 40, "a b"):
        assert check_server({**FINE, "run_id": run}, assume_noeviction=False) == ""
    assert check_server(FINE, assume_noeviction=False) == "ab12"
