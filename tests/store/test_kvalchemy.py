"""kvalchemy's databases open with akv and akv's with kvalchemy, without a tag on either side."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from akv.errors import ConfigurationError, MissingKeyError
from akv.testing import FakeClock
from tests.private import Absent
from tests.servers import absent, look

pytestmark = pytest.mark.backends(exclude=("sqlite-memory", "postgres18-psycopg"))

PROGRAM = Path(__file__).with_name("ancestor.py")
OLD, NEW = "0.0.8", "0.2.3"
PATIENCE = 60
NESTED = {"list": [1, 2.5, "ä😀"], "tuple": (None, True), "deep": {"set": {1, 2}, "at": datetime(2030, 1, 2, 3)}}
EXACT = datetime(2030, 1, 2, 3, 4, 5, 678901)
WHOLE = EXACT.replace(microsecond=0)


class Ancestor:
    """
    One version of kvalchemy, in a process of its own that lives as long as the test session.

    Attributes:
        version: As it says itself.
        default_tag: What it writes without a tag.
    """

    def __init__(self, version: str, default_tag: str, folder: Path | None) -> None:
        """
        Args:
            folder: Where it lies; None: where it is installed.
        """
        self.version = version
        self.default_tag = default_tag
        environment = os.environ | ({"PYTHONPATH": str(folder)} if folder else {})
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __repr__(self) -> str:
        return f"Ancestor({self.version})"

    async def run(self, url: str, *calls: tuple[str, tuple[Any, ...], dict[str, Any]]) -> list[Any]:
        """Run calls and return their results, KeyError for a KeyError."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._run, url, calls), PATIENCE)
        except TimeoutError:
            self._process.kill()
            raise

    def _run(self, url: str, calls: tuple[Any, ...]) -> list[Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump((url, calls), stdin)
        stdin.flush()
        results = pickle.load(stdout)
        if isinstance(results, Exception):
            raise results
        return list(results)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=PATIENCE)


def call(name: str, *args: Any, **kwargs: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return name, args, kwargs


@pytest.fixture(scope="session")
def newer() -> Iterator[Ancestor]:
    """The kvalchemy that is installed."""
    found = Ancestor(NEW, "__default__", None)
    yield found
    found.close()


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ancestor | Absent]:
    """The kvalchemy of before, in a folder of its own."""
    folder = tmp_path_factory.mktemp("kvalchemy")
    reason = _install(f"kvalchemy=={OLD}", folder)
    if reason:
        yield Absent(reason)
        return
    found = Ancestor(OLD, "", folder)
    yield found
    found.close()


def _install(requirement: str, folder: Path) -> str:
    """Install a package and return why that failed, if it did."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, "--target", str(folder), requirement], capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"pip did not install {requirement} within {PATIENCE} s"
    return f"pip cannot install {requirement}: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(params=["older", "newer"])
def ancestor(request: pytest.FixtureRequest) -> Ancestor:
    found: Ancestor | Absent = request.getfixturevalue(request.param)
    if isinstance(found, Absent):
        absent(str(found))
    return found


@pytest.fixture
def url(backend):
    """A database in which neither has made a table yet."""
    return backend.fresh_url()


@pytest.fixture
def open_store(make_store, url, ancestor):
    """Open the store that sees what the ancestor writes without a tag."""

    async def open_one(target=None, **options):
        return await make_store(target or url, **{"table": "kvstore", "default_tag": ancestor.default_tag, **options})

    return open_one


def values_for(backend) -> dict[str, Any]:
    """Values that kvalchemy's own table holds: its BLOB ends at 64 kB on MariaDB."""
    size = 60_000 if backend.dialect == "mariadb" else 100_000
    return {"none": None, "large": b"\xff\x00" * (size // 2), "nested": NESTED, "": "empty key", "ä😀": 7}


def expiry_for(backend) -> datetime:
    return WHOLE if backend.dialect == "mariadb" else EXACT


async def test_the_ancestors_are_the_versions_that_they_should_be(ancestor, backend, url):
    assert await ancestor.run(backend.sync_url(url), call("version")) == [ancestor.version]


# kvalchemy made the database


@pytest.fixture
async def theirs(ancestor, backend, url):
    """A database that kvalchemy made and filled; its URL for kvalchemy."""
    sync_url = backend.sync_url(url)
    sets = [call("set", key, value) for key, value in values_for(backend).items()]
    end = expiry_for(backend)
    await ancestor.run(sync_url, *sets, call("set", "ends", 1, expire=end), call("memoized", 3, 4))
    return sync_url


async def test_akv_reads_what_kvalchemy_wrote(theirs, open_store, backend):
    values, kv = values_for(backend), await open_store()
    for key, value in values.items():
        assert await kv.get(key) == value
    assert await kv.get("ends", return_expiration=True) == (1, expiry_for(backend))
    assert await kv.get_many([*values, "absent"]) == values
    with pytest.raises(MissingKeyError):
        await kv.get("absent")


async def test_akv_scans_what_kvalchemy_wrote_in_the_order_of_code_points(theirs, open_store, ancestor, backend):
    await ancestor.run(theirs, *(call("set", key, 0, tag="order") for key in ["b", "B2", "ä", "z", "-x", "_y"]))
    kv = await open_store()
    assert [entry.key async for entry in kv.scan(tag="order")] == sorted(["b", "B2", "ä", "z", "-x", "_y"])
    seen = {(entry.key, entry.tag): entry.value async for entry in kv.scan(tag=ancestor.default_tag)}
    assert seen == {(key, ancestor.default_tag): value for key, value in [*values_for(backend).items(), ("ends", 1)]}
    assert [entry.key async for entry in kv.scan(prefix="n")] == ["nested", "none"]
    assert await kv.count(prefix="B", tag="order") == 1


async def test_akv_reads_the_memoize_rows_of_kvalchemy(theirs, open_store):
    kv = await open_store()
    (memoized,) = [entry async for entry in kv if entry.tag.startswith("memoize.")]
    assert (memoized.key, memoized.value) == ("(3, 4)_{}", 7)
    assert memoized.tag in [tag async for tag in kv.tags()]


async def test_akv_writes_the_table_of_kvalchemy_and_kvalchemy_reads_it(theirs, open_store, ancestor, backend):
    kv = await open_store()
    end = expiry_for(backend)
    await kv.set("none", NESTED)
    await kv.set("new", None, expire=end)
    assert await kv.incr("counter", 5) == 5
    assert await kv.add("nested", 1) is False
    await kv.set_many({"many1": 1, "many2": 2})
    results = await ancestor.run(
        theirs,
        call("get", "none"),
        call("get", "new", return_expiration=True),
        call("get", "counter"),
        call("get", "nested"),
        call("get", "many2"),
    )
    assert results == [NESTED, (None, end), 5, NESTED, 2]


async def test_akv_pops_and_deletes_in_the_table_of_kvalchemy(theirs, open_store, ancestor):
    kv = await open_store()
    assert await kv.pop("nested") == NESTED
    assert await kv.delete("none") is True
    assert await kv.delete_many(["large", "absent"]) == 1
    assert await ancestor.run(theirs, *(call("get", key) for key in ["nested", "none", "large"])) == [KeyError] * 3


async def test_akv_sweeps_the_table_of_kvalchemy(theirs, open_store, backend, url):
    kv = await open_store(clock=FakeClock(datetime.fromisoformat("2031-01-01T00:00:00+00:00")))
    with pytest.raises(MissingKeyError):
        await kv.get("ends")
    assert await kv.purge_expired() == 2  # the memoized row too
    assert look(url, "SELECT COUNT(*) FROM kvstore") == [(len(values_for(backend)),)]


async def test_both_take_turns_on_one_entry(theirs, open_store, ancestor):
    kv = await open_store()
    await kv.set("turn", 1)
    assert await ancestor.run(theirs, call("get", "turn"), call("set", "turn", 2)) == [1, None]
    assert await kv.incr("turn") == 3
    assert await kv.update("turn", lambda value: value * 10) == 30
    assert await ancestor.run(theirs, call("pop", "turn")) == [30]
    assert await kv.get("turn", None) is None


async def test_akv_works_inside_a_transaction_on_the_table_of_kvalchemy(theirs, open_store, url, ancestor):
    kv = await open_store()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        txn = kv.within(connection)
        await txn.set("mine", 1)
        assert await txn.incr("mine") == 2
        assert await txn.pop("nested") == NESTED
    await engine.dispose()
    assert await ancestor.run(theirs, call("get", "mine"), call("get", "nested")) == [2, KeyError]


# akv made the database


@pytest.fixture
async def ours(open_store, url, backend):
    """A store that made the table; kvalchemy finds 100 kB and fractions of seconds in it, on MariaDB too."""
    kv = await open_store()
    await kv.set_many(OURS)
    await kv.set("ends", 1, expire=EXACT)
    return kv


OURS: dict[str, Any] = {"none": None, "large": b"\xff\x00" * 50_000, "nested": NESTED, "": "empty key", "ä😀": 7}


async def test_kvalchemy_reads_and_iterates_what_akv_wrote(ours, ancestor, backend, url):
    keys = list(OURS)
    *values, ending, entries, length, proxied, absent_one = await ancestor.run(
        backend.sync_url(url),
        *(call("get", key) for key in keys),
        call("get", "ends", return_expiration=True),
        call("iterate"),
        call("__len__"),
        call("get_proxy", "nested"),
        call("get", "absent"),
    )
    assert dict(zip(keys, values, strict=True)) == OURS
    assert ending == (1, EXACT)
    tag = ancestor.default_tag
    assert sorted(entries, key=lambda entry: entry[0]) == sorted(
        [*((key, tag, value, None) for key, value in OURS.items()), ("ends", tag, 1, EXACT)], key=lambda entry: entry[0]
    )
    assert (length, proxied, absent_one) == (len(OURS) + 1, NESTED, KeyError)


async def test_kvalchemy_writes_the_table_of_akv(ours, ancestor, backend, url):
    results = await ancestor.run(
        backend.sync_url(url),
        call("set", "large", b"\x01" * 100_000, expire=EXACT),
        call("pop", "nested"),
        call("delete", "none"),
        call("memoized", 1, 2),
        call("memoized", 1, 2),
    )
    assert results == [None, NESTED, None, (3, 1), (3, 1)]
    assert await ours.get("large", return_expiration=True) == (b"\x01" * 100_000, EXACT)
    assert await ours.get_many(["nested", "none"]) == {}
    assert [entry.value async for entry in ours.scan(prefix="(1, 2)")] == [3]


async def test_kvalchemy_iterates_past_the_memoized_results_of_akv(ours, ancestor, backend, url):
    @ours.memoize(expire=1000)
    async def double(number: int) -> int:
        return number * 2

    assert await double(21) == 42
    (entries,) = await ancestor.run(backend.sync_url(url), call("iterate"))
    assert len(entries) == len(OURS) + 2


async def test_kvalchemy_clears_the_table_of_akv(ours, ancestor, backend, url):
    await ancestor.run(backend.sync_url(url), call("delete_tag", ancestor.default_tag), call("clear"))
    assert await ours.count() == 0


# What kvalchemy's own table cannot hold on MariaDB


MARIADB = pytest.mark.backends("mariadb")
ALTER = "ALTER TABLE kvstore MODIFY `key` VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"


@MARIADB
async def test_a_folding_table_is_read_code_point_by_code_point(theirs, open_store, ancestor):
    await ancestor.run(theirs, call("set", "Key", 1), call("set", "key", 2, tag="T"), call("set", "q", 3, tag="t"))
    kv = await open_store()
    assert await kv.get_many(["Key", "key", "KEY", "Key "]) == {"Key": 1}
    assert [await kv.get(key, None) for key in ("Key", "key", "Key ")] == [1, None, None]
    assert await kv.delete("key") is False
    assert await kv.delete_many(["KEY", "key "]) == 0
    assert await kv.pop("key", None) is None
    assert await kv.touch("KEY", None) is False
    assert [tag async for tag in kv.tags()][-2:] == ["memoize.__main___Ancestor.memoized.<locals>.total_1000", "t"]
    assert {"T", "t"} <= {tag async for tag in kv.tags()}
    assert await kv.count(tag="T") == 1
    assert await kv.delete_tag("t") == 1
    assert await kv.delete_prefix("KE") == 0
    assert await kv.get("Key") == 1


@MARIADB
@pytest.mark.parametrize("verb", ["set", "add", "incr", "update", "set_many", "set_many_new"])
async def test_a_key_that_the_table_takes_for_another_is_refused_with_the_alter(theirs, open_store, ancestor, verb):
    await ancestor.run(theirs, call("set", "Key", 1))
    kv = await open_store()
    calls = {
        "set": lambda kv: kv.set("key", 2),
        "add": lambda kv: kv.add("key", 2),
        "incr": lambda kv: kv.incr("key"),
        "update": lambda kv: kv.update("key", lambda value: value, default=2),
        "set_many": lambda kv: kv.set_many({"other": 1, "key": 2}),
        "set_many_new": lambda kv: kv.set_many({"other": 1, "OTHER": 2}),
    }
    with pytest.raises(ConfigurationError, match="collation") as refused:
        await calls[verb](kv)
    assert ALTER in str(refused.value)
    assert await kv.get_many(["Key", "key", "other", "OTHER"]) == {"Key": 1}
    assert await kv.incr("Key") == 2


@MARIADB
async def test_a_refusal_in_the_callers_transaction_leaves_the_other_key_as_it_was(theirs, open_store, ancestor, url):
    await ancestor.run(theirs, call("set", "Key", 1))
    kv = await open_store()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        with pytest.raises(ConfigurationError, match="collation"):
            await kv.within(connection).set("key", 2)
        await kv.within(connection).set("mine", 3)
    await engine.dispose()
    assert await kv.get_many(["Key", "key", "mine"]) == {"Key": 1, "mine": 3}


@MARIADB
async def test_a_value_beyond_the_blob_is_refused_with_the_alter(theirs, open_store):
    kv = await open_store()
    with pytest.raises(ConfigurationError, match="MODIFY `value` LONGBLOB"):
        await kv.set("nested", b"x" * 70_000)
    with pytest.raises(ConfigurationError, match="MODIFY `value` LONGBLOB"):
        await kv.update("nested", lambda _: b"x" * 70_000)
    assert await kv.get("nested") == NESTED


@MARIADB
async def test_an_expiry_with_fractions_is_refused_with_the_alter(theirs, open_store):
    kv = await open_store(clock=FakeClock())
    for expire in (0.5, EXACT, timedelta(microseconds=1)):
        with pytest.raises(ConfigurationError, match=r"MODIFY `expire` DATETIME\(6\)"):
            await kv.set("nested", 1, expire=expire)
        with pytest.raises(ConfigurationError, match=r"MODIFY `expire` DATETIME\(6\)"):
            await kv.touch("nested", expire)
    assert await kv.get("nested", return_expiration=True) == (NESTED, None)
    assert await kv.touch("nested", WHOLE) is True


@MARIADB
async def test_what_the_table_cannot_hold_is_warned_of_once_at_first_use(theirs, open_store, caplog):
    caplog.set_level(logging.WARNING, "akv")
    kv = await open_store()
    assert not caplog.records
    await asyncio.gather(*(kv.get("nested") for _ in range(5)))
    await kv.set("nested", 1)
    (record,) = caplog.records
    assert record.name == "akv"
    assert ALTER in record.getMessage()


@MARIADB
async def test_after_the_alter_that_akv_names_everything_works(theirs, open_store, ancestor, url, caplog):
    await ancestor.run(theirs, call("set", "Key", 1))
    before = await open_store()
    with pytest.raises(ConfigurationError) as refused:
        await before.set("key", 2)
    await before.aclose()
    alter = str(refused.value).partition("run ")[2].rpartition(", and open")[0]
    look(url, alter)
    caplog.clear()
    kv = await open_store()
    await kv.set_many({"key": 2, "KEY": 3, "Key ": 4, "large": b"\x02" * 100_000})
    await kv.set("ends", 5, expire=EXACT)
    assert await kv.get_many(["Key", "key", "KEY", "Key "]) == {"Key": 1, "key": 2, "KEY": 3, "Key ": 4}
    assert await kv.get("ends", return_expiration=True) == (5, EXACT)
    assert not caplog.records
    assert await ancestor.run(theirs, *(call("get", key) for key in ["Key", "key", "large", "nested"])) == [
        1,
        2,
        b"\x02" * 100_000,
        NESTED,
    ]


@MARIADB
async def test_a_table_that_the_newer_kvalchemy_made_as_mysql_holds_large_values(url, make_store, backend, newer):
    await newer.run(backend.sync_url(url).replace("mariadb+", "mysql+"), call("set", "large", b"\x03" * 100_000))
    kv = await make_store(url, table="kvstore", default_tag="__default__")
    await kv.set("larger", b"\x04" * 200_000)
    assert await kv.get_many(["large", "larger"]) == {"large": b"\x03" * 100_000, "larger": b"\x04" * 200_000}
