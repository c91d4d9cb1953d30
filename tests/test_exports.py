"""What `akv` exports, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import akv
from akv import errors

ROOT = Path(__file__).parents[1]
PROMISED = {
    "AsyncKVAlchemy",
    "KVStore",
    "Entry",
    "Proxy",
    "ENOVAL",
    "RetryPolicy",
    "DatabaseTokens",
    "RedisTokens",
    "bind",
    "CacheKeyGenerator",
    "CacheKey",
    "Label",
    "identifier",
    "GLOBAL_WRITE_TOKEN",
    "PickleSerializer",
    "SignedPickleSerializer",
    "JSONSerializer",
    "MsgpackSerializer",
    "CompressedSerializer",
}
ERRORS = {name for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, errors.AKVError)}
NOT_IMPORTED = [
    "aiosqlite",
    "asyncpg",
    "psycopg",
    "asyncmy",
    "aiomysql",
    "pymysql",
    "redis",
    "rich",
    "msgspec",
    "pytest",
]


@pytest.mark.parametrize("name", sorted(PROMISED | ERRORS))
def test_every_public_name_comes_from_akv(name):
    assert hasattr(akv, name)
    assert name in akv.__all__


def test_all_names_exactly_what_is_public():
    for name in akv.__all__:
        getattr(akv, name)
    public = {name for name, found in vars(akv).items() if not name.startswith("_") and not inspect.ismodule(found)}
    assert set(akv.__all__) == public - {"TYPE_CHECKING", "Any"}
    assert set(akv.__all__) <= set(dir(akv))


def test_a_name_that_is_not_there_says_so():
    with pytest.raises(AttributeError, match="module 'akv' has no attribute 'nothing'"):
        akv.nothing  # noqa: B018


def test_a_store_alone_does_not_load_the_invalidation_half():
    code = "import sys, akv; akv.AsyncKVAlchemy; print([m for m in sys.modules if m.startswith('akv.tokens')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_all_is_sorted_constants_then_classes_then_functions():
    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert akv.__all__ == sorted(akv.__all__, key=order)
    assert len(akv.__all__) == len(set(akv.__all__))


def test_a_star_import_brings_all_of_it():
    found: dict[str, object] = {}
    exec("from akv import *", found)
    assert set(akv.__all__) <= set(found)


def test_the_package_says_that_it_is_typed():
    assert (files("akv") / "py.typed").is_file()


def test_importing_akv_imports_neither_a_driver_nor_redis_nor_rich():
    program = f"import sys, akv, akv.testing; print([name for name in {NOT_IMPORTED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_importing_akv_starts_no_thread_and_needs_no_event_loop():
    program = (
        "import threading, akv\n"
        "kv = akv.AsyncKVAlchemy('sqlite+aiosqlite:////nowhere/at/all.db')\n"
        "kv.get_proxy('key')\n"
        "print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("1", "")
