"""The demo tells its story on every database, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
import redis
from sqlalchemy import inspect

from akv.cli import main
from akv.cli.neighbour import neighbour
from akv.cli.redis import Place, open_redis
from akv.errors import TokenError
from tests.backends import Backend
from tests.proxy import TCPProxy
from tests.servers import connect

DDL_OF_OTHERS = re.compile(
    r"Table '.+' was skipped since its definition is being modified by concurrent DDL statement\n"
)
"""What asyncmy logs when akv asks which tables have no transactions while other tests make theirs."""
TOKENS = re.compile(r"^ +(user 1|user 2|any User|any Order|anything) +(hit|miss) +(hit|miss) *$", re.MULTILINE)


STORY = [
    ("user 1", "hit", "miss"),
    ("user 2", "hit", "hit"),
    ("any User", "hit", "miss"),
    ("any Order", "hit", "hit"),
    ("anything", "hit", "miss"),
]


async def akv(*arguments: str) -> tuple[int, str, str]:
    return await python("-m", "akv", *arguments)


async def python(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def tables(url: str) -> list[str]:
    with connect(url) as connection:
        return inspect(connection).get_table_names()


def keys(url: str) -> list[object]:
    with redis.Redis.from_url(url) as client:
        return list(client.scan_iter(match="{akv_demo_*"))


async def test_the_demo_runs_on_a_file_of_its_own() -> None:
    status, out, err = await akv("demo", "--orders", "300")
    assert (status, err) == (0, "")
    assert "{'dark': True}" in out
    assert "computed 1 time" in out


async def test_a_commit_makes_exactly_the_right_keys_miss_and_a_rollback_none() -> None:
    _, out, _ = await akv("demo", "--orders", "30")
    assert TOKENS.findall(out) == STORY
    assert "'user 1' -> 'user 1' -> 'Ada'" in out


@pytest.mark.backends(exclude="sqlite-memory")
async def test_the_demo_runs_on_the_database_it_is_given_and_drops_its_tables(backend: Backend) -> None:
    url = backend.fresh_url()
    status, out, err = await akv("demo", "--orders", "30", "--database", url)
    assert (status, err) == (0, "")
    assert re.search(r"committed: last-order +31\n.*rolled back: last-order +31\n", out)
    assert not [name for name in await asyncio.to_thread(tables, url) if name.startswith("akv_demo_")]


async def test_a_database_that_is_none_is_told_in_one_line() -> None:
    status, out, err = await akv("demo", "--database", "nonsense")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"akv: .*not a database URL.*\n", err)


async def test_on_redis_another_process_misses_what_was_committed(redis_url: str) -> None:
    status, out, err = await akv("demo", "--orders", "30", "--redis", redis_url)
    assert (status, err) == (0, "")
    assert TOKENS.findall(out) == STORY
    assert "'user 1' -> 'user 1' -> 'Ada'" in out
    processes = re.search(r"who commits, and who looks +processes (\d+) and (\d+)\n", out)
    assert processes is not None
    assert len({*processes.groups(), str(os.getpid())}) == 3


@pytest.mark.backends(exclude="sqlite-memory")
@pytest.mark.parametrize("redis_url", ["valkey"], indirect=True)
async def test_on_redis_the_demo_runs_on_the_database_it_is_given_and_leaves_nothing(
    backend: Backend, redis_url: str
) -> None:
    url = backend.fresh_url()
    status, out, err = await akv("demo", "--orders", "30", "--redis", redis_url, "--database", url)
    assert (status, DDL_OF_OTHERS.sub("", err)) == (0, "")
    assert TOKENS.findall(out) == STORY
    assert not [name for name in await asyncio.to_thread(tables, url) if name.startswith("akv_demo_")]
    assert not await asyncio.to_thread(keys, redis_url)


@pytest.mark.backends("postgres", "mariadb")
async def test_without_redis_other_databases_have_no_tokens_and_say_what_helps(backend: Backend) -> None:
    status, out, err = await akv("demo", "--orders", "30", "--database", backend.fresh_url())
    assert (status, err) == (0, "")
    assert "run the demo with --redis" in out


async def test_a_redis_that_does_not_answer_is_told_in_one_line_without_its_password() -> None:
    status, out, err = await akv("demo", "--redis", "redis://:secret@127.0.0.1:1/0")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"akv: no Redis answers at redis://\*\*\*@127\.0\.0\.1:1/0 .*--redis URL.*\n", err)
    assert "secret" not in err


async def test_a_redis_url_that_is_none_is_told_in_one_line() -> None:
    status, out, err = await akv("demo", "--redis", "localhost")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"akv: no URL of a Redis: .*write redis://.*\n", err)


async def test_without_the_driver_of_redis_the_demo_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['redis'] = None; from akv.cli import main; sys.exit(main(['demo', '--redis']))"
    status, out, err = await python("-c", hidden)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"akv: RedisTokens need redis-py: install akv\[redis\].*\n", err)


def test_a_second_process_that_cannot_work_ends_the_demo(capfd: pytest.CaptureFixture[str]) -> None:
    async def look() -> None:
        async with neighbour("nonsense", Place("redis://127.0.0.1:1", "akv_demo")) as other:
            await other.look()

    with pytest.raises(TokenError, match="what it said is above"):
        asyncio.run(look())
    assert "akv, the second process: " in capfd.readouterr().err


async def test_keys_that_cannot_be_removed_are_named(redis_url: str) -> None:
    async with TCPProxy.before(redis_url) as proxy:
        with pytest.raises(TokenError, match=r"keys stay: \{akv_demo_[0-9a-f]{8}\}\*"):
            async with open_redis(proxy.url):
                proxy.refuse()
                proxy.cut()


def test_a_wrong_number_of_orders_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["demo", "--orders", "0"])
    assert left.value.code == 2
    assert "at least 1" in capsys.readouterr().err
