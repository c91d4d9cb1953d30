"""What the other tests stand on: servers that answer, die and return; a proxy that fails as told; checks that bite."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis.asyncio as redis
from blockbuster import BlockingError
from sqlalchemy import NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests import blocking
from tests.backends import catalogue, select
from tests.private import alive, wait_until
from tests.proxy import TCPProxy
from tests.report import Result, count, render, suite_of
from tests.servers import Session, absent, connect, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.backends import Backend
    from tests.private import Nursery, PrivateMariaDB, PrivatePostgres, PrivateValkey

ROOT = Path(__file__).parent.parent
SERVERS = pytest.mark.backends("postgres", "mariadb")


async def one(url: str) -> object:
    """Connect, SELECT 1, leave."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar_one()


# Backends and sessions


async def test_every_backend_answers_in_its_own_and_in_a_fresh_database(backend: Backend) -> None:
    assert await one(backend.url) == 1
    assert await one(backend.fresh_url()) == 1


@pytest.mark.backends(exclude="sqlite-memory")
async def test_the_sync_url_leads_to_the_same_database_and_a_fresh_one_to_another(backend: Backend, table: str) -> None:
    engine = create_async_engine(backend.url)
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE TABLE {table} (a INTEGER)"))
        await connection.execute(text(f"INSERT INTO {table} VALUES (7)"))
    await engine.dispose()
    assert look(backend.sync_url(), f"SELECT a FROM {table}") == [(7,)]
    with pytest.raises(DBAPIError):
        look(backend.fresh_url(), f"SELECT a FROM {table}")


def test_the_version_in_a_name_is_the_servers_own(servers: Session) -> None:
    server = servers.embedded_postgres()
    ((version,),) = look(server.url, "SHOW server_version")
    assert version.partition(".")[0] == server.version
    assert f"postgres{server.version}" in {name.split("-")[0] for name in catalogue()}


def test_backends_are_selected_by_prefix_and_a_typo_is_refused() -> None:
    assert select(["sqlite"]) == ["sqlite-file", "sqlite-memory"]
    assert select(["sqlite", "mariadb"], ["sqlite-m"]) == ["sqlite-file", "mariadb"]
    assert select() == list(catalogue())
    with pytest.raises(ValueError, match="no backend begins with 'sqlight'"):
        select(["sqlight"])
    with pytest.raises(ValueError, match="no backend is left"):
        select(["mariadb"], ["maria"])


@SERVERS
def test_a_session_drops_its_databases_although_someone_is_connected(backend: Backend) -> None:
    mine = Session()
    server = mine.postgres() if backend.dialect == "postgresql" else mine.mariadb()
    url = mine.new_database(server)
    left = connect(url)
    mine.close()
    with pytest.raises(DBAPIError):
        connect(url)
    left.invalidate()
    left.close()


def test_what_is_absent_skips_or_fails_where_everything_is_required() -> None:
    with pytest.raises(pytest.skip.Exception, match="no server"):
        absent("no server", {})
    with pytest.raises(pytest.fail.Exception, match="no server"):
        absent("no server", {"AKV_TEST_REQUIRE": "all"})


# Private servers


async def test_a_private_postgres_returns_on_its_port_with_its_data(private_postgres: PrivatePostgres) -> None:
    await survives_kill_and_restart(private_postgres)


async def test_a_private_mariadb_returns_on_its_port_with_its_data(private_mariadb: PrivateMariaDB) -> None:
    await survives_kill_and_restart(private_mariadb)


async def survives_kill_and_restart(server: PrivatePostgres | PrivateMariaDB) -> None:
    engine = create_async_engine(server.url(), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE kept (a INTEGER)"))
    family = server.pids
    server.kill()
    assert not any(map(alive, family))
    with pytest.raises((DBAPIError, OSError)):
        await one(server.url())
    for revive in (server.start, server.restart):
        await asyncio.to_thread(revive)
        async with engine.begin() as connection:
            await connection.execute(text("SELECT a FROM kept"))
    server.create_database("another")
    assert await one(server.url("another")) == 1


async def test_a_private_valkey_returns_on_its_port(private_valkey: PrivateValkey) -> None:
    async with redis.Redis.from_url(private_valkey.url()) as client:
        assert await client.ping()
    private_valkey.kill()
    async with redis.Redis.from_url(private_valkey.url()) as client:
        with pytest.raises(redis.ConnectionError):
            await client.ping()
    private_valkey.start()
    async with redis.Redis.from_url(private_valkey.url()) as client:
        assert await client.ping()


def test_settings_reach_private_servers(nursery: Nursery) -> None:
    server = nursery.postgres(deadlock_timeout="123ms")
    assert look(server.url(), "SHOW deadlock_timeout") == [("123ms",)]
    nursery.end(server)
    assert not server.running
    assert not server.folder.exists()


@pytest.mark.parametrize("kind", ["valkey", "postgres"])
def test_private_servers_end_with_a_test_run_that_is_killed(kind: str) -> None:
    program = f"""
        import time
        from tests.private import Nursery
        server = Nursery().{kind}()
        print(server.pid, server.folder.parent, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(int(pid)) and not Path(folder).exists(), "the server and its folder are gone")


# The proxy


@pytest.fixture
async def proxy(backend: Backend) -> AsyncIterator[TCPProxy]:
    async with TCPProxy.before(backend.url) as proxy:
        yield proxy


@pytest.fixture
async def engine(proxy: TCPProxy) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection through the proxy."""
    engine = create_async_engine(proxy.url, pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


@SERVERS
async def test_the_proxy_forwards_and_counts(proxy: TCPProxy, engine: AsyncEngine) -> None:
    big = "x" * 1_000_000
    async with engine.connect() as connection:
        before = proxy.requests
        assert (await connection.execute(text("SELECT :a"), {"a": big})).scalar_one() == big
        assert proxy.requests > before
    assert proxy.connections == proxy.open_connections == 1
    assert proxy.client_bytes > len(big)
    assert proxy.server_bytes > len(big)


@SERVERS
async def test_a_cut_ends_the_connection_and_the_next_one_works(proxy: TCPProxy, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        proxy.cut()
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(text("SELECT 1"))
        assert caught.value.connection_invalidated
    assert await one(proxy.url) == 1


@pytest.mark.parametrize("steps", range(8))
async def test_a_client_cut_at_any_step_of_its_connecting_does_not_keep_the_proxy_open(steps: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setblocking(False)
        async with asyncio.timeout(10):
            async with TCPProxy(*server.getsockname()) as proxy:
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", proxy.port))
                for _ in range(steps):
                    await asyncio.sleep(0)
                proxy.cut()
        assert proxy.open_connections == 0


@SERVERS
async def test_a_lost_reply_to_commit_leaves_the_commit_done(
    backend: Backend, proxy: TCPProxy, engine: AsyncEngine, table: str
) -> None:
    look(backend.url, f"CREATE TABLE {table} (a INTEGER)")
    proxy.cut_reply_to(b"COMMIT")
    with pytest.raises((DBAPIError, OSError)):
        async with engine.begin() as connection:
            await connection.execute(text(f"INSERT INTO {table} VALUES (7)"))
    async with engine.begin() as connection:
        await connection.execute(text(f"INSERT INTO {table} VALUES (8)"))
    assert look(backend.url, f"SELECT a FROM {table} ORDER BY a") == [(7,), (8,)]


@SERVERS
async def test_callbacks_see_the_data_and_decide(proxy: TCPProxy) -> None:
    seen: list[bytes] = []

    def refuse_marked(data: bytes) -> str:
        seen.append(data)
        return "cut" if b"cut-me" in data else "pass"

    proxy.on_client_data(refuse_marked)  # type: ignore[arg-type]
    assert await one(proxy.url) == 1
    assert any(b"SELECT 1" in data for data in seen)
    engine = create_async_engine(proxy.url, poolclass=NullPool)
    with pytest.raises((DBAPIError, OSError)):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 'cut-me'"))


@SERVERS
async def test_refused_connections_are_accepted_again_on_the_same_port(proxy: TCPProxy) -> None:
    port = proxy.port
    proxy.refuse()
    with pytest.raises((DBAPIError, OSError)):
        await one(proxy.url)
    await proxy.accept()
    assert proxy.port == port
    assert await one(proxy.url) == 1


@pytest.mark.backends("postgres", "mariadb", exclude="postgres18-psycopg")  # which gives up after ten seconds only
async def test_a_black_hole_keeps_connections_open_and_answers_nothing(proxy: TCPProxy, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.execute(text("SELECT 2"))
        assert proxy.connections >= 1
        proxy.cut()
        await connection.invalidate()
    proxy.resume()
    assert await one(proxy.url) == 1


@SERVERS
async def test_a_delay_holds_back_each_way(proxy: TCPProxy, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        proxy.delay = 0.1
        began = time.monotonic()
        await connection.execute(text("SELECT 2"))
        assert time.monotonic() - began >= 0.2
        proxy.delay = 0


async def test_the_proxy_serves_redis(redis_url: str, redis_namespace: str) -> None:
    async with TCPProxy.before(redis_url) as proxy, redis.Redis.from_url(proxy.url) as client:
        await client.set(redis_namespace, "x")
        assert await client.get(redis_namespace) == b"x"
        proxy.refuse()
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            await client.get(redis_namespace)
        await proxy.accept()
        assert await client.get(redis_namespace) == b"x"


async def test_a_server_that_is_down_is_a_reset_to_clients_of_the_proxy() -> None:
    async with TCPProxy("127.0.0.1", 1) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert proxy.connections == 1


# Checks that bite


@pytest.mark.allow_blocking
async def test_a_blocking_call_raises_and_is_remembered_although_it_is_caught() -> None:
    with blocking.forbidden() as calls:
        with pytest.raises(BlockingError):
            time.sleep(0)
        await asyncio.to_thread(time.sleep, 0)
    assert len(calls) == 1
    assert "test_infrastructure.py" in calls[0]


INNER = """
import asyncio, time, warnings
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

tasks = []

async def test_leaves_a_task():
    tasks.append(asyncio.create_task(asyncio.sleep(60)))

async def test_swallows_a_blocking_call():
    try:
        time.sleep(0)
    except Exception:
        pass

@pytest.mark.allow_blocking
async def test_may_block():
    time.sleep(0)

@pytest.mark.backends("sqlite-file", "postgres-", "mariadb")
async def test_on_a_backend(backend):
    pass
"""


@pytest.mark.parametrize(("require", "postgres"), [("", "SKIPPED"), ("all", "ERROR")])
def test_the_checks_fail_tests_that_deserve_it(tmp_path: Path, require: str, postgres: str) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)
    nowhere = {"AKV_TEST_POSTGRES_URL": "postgresql://nobody:secret@127.0.0.1:1/none", "AKV_TEST_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-vv", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    run = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    outcomes = re.findall(r"test_inner\.py::(\S+) ([A-Z]+)", run.stdout)
    assert ("test_leaves_a_task", "ERROR") in outcomes, run.stdout
    assert ("test_swallows_a_blocking_call", "ERROR") in outcomes, run.stdout
    assert ("test_may_block", "PASSED") in outcomes, run.stdout
    assert ("test_on_a_backend[sqlite-file]", "PASSED") in outcomes, run.stdout
    assert ("test_on_a_backend[postgres-asyncpg]", postgres) in outcomes, run.stdout
    assert f"postgres-asyncpg  {'0/0/1' if postgres == 'SKIPPED' else '0/1/0'}" in run.stdout
    assert "secret" not in run.stdout


# The report


def test_the_report_counts_every_test_once_by_backend_and_suite() -> None:
    assert suite_of("tests/contract/test_get.py::test_x[mariadb]") == "contract"
    assert suite_of("tests/test_infrastructure.py::test_x") == "infrastructure"
    results = [
        *[Result("mariadb", "contract", "passed")] * 3,
        Result("mariadb", "contract", "failed"),
        *[Result("-", "store", "skipped")] * 2,
    ]
    assert [line.split() for line in render(count(results))] == [
        ["backend", "contract", "store", "total"],
        ["mariadb", "3/1/0", "3/1/0"],
        ["-", "0/0/2", "0/0/2"],
        ["total", "3/1/0", "0/0/2", "3/1/2"],
    ]
