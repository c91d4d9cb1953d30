"""The demo tells its story on every database, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect

from akv.cli import main
from tests.backends import Backend
from tests.servers import connect

TOKENS = re.compile(r"^ +(user 1|user 2|any User|any Order|anything) +(hit|miss) +(hit|miss) *$", re.MULTILINE)


async def akv(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "akv", *arguments,
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


async def test_the_demo_runs_on_a_file_of_its_own() -> None:
    status, out, err = await akv("demo", "--orders", "300")
    assert (status, err) == (0, "")
    assert "{'dark': True}" in out
    assert "computed 1 time" in out


async def test_a_commit_makes_exactly_the_right_keys_miss_and_a_rollback_none() -> None:
    _, out, _ = await akv("demo", "--orders", "30")
    assert TOKENS.findall(out) == [
        ("user 1", "hit", "miss"),
        ("user 2", "hit", "hit"),
        ("any User", "hit", "miss"),
        ("any Order", "hit", "hit"),
        ("anything", "hit", "miss"),
    ]


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


def test_a_wrong_number_of_orders_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["demo", "--orders", "0"])
    assert left.value.code == 2
    assert "at least 1" in capsys.readouterr().err
