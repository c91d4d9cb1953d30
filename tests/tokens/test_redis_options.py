"""Options are checked before any I/O, and the environment is read as the ancestor reads it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import create_engine

from akv.errors import ConfigurationError
from akv.tokens.redis import RedisTokens
from tests.tokens.redis_world import new_engine

ROOT = Path(__file__).parents[2]
URL = "redis://127.0.0.1:1/0"

WRONG: list[tuple[str, Any]] = [
    *[("namespace", value) for value in ("", "a{b", "a}b", "a b", "ä", "x" * 101, None, b"a", 7, "a\n")],
    *[("when_unreachable", value) for value in ("ignore", None, True, "")],
    *[("slots", value) for value in (0, -1, 2**40 + 1, 1.0, "7", True, None)],
    *[("create_tables", value) for value in (1, None, "yes")],
    *[("assume_noeviction", value) for value in (1, None, "yes")],
    *[("commit_timeout", value) for value in (0, -1, math.inf, math.nan, None, "1", True)],
    *[("read_timeout", value) for value in (0, -1, math.inf, math.nan, None, "1", True)],
    *[("outbox_every", value) for value in (0, -1, math.inf, None)],
    *[("max_connections", value) for value in (0, -1, 1.5, "8", True)],
]


@pytest.mark.parametrize(("option", "value"), WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        RedisTokens.from_url(URL, **{option: value})


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="prefix"):
        RedisTokens.from_url(URL, prefix="akv")


def test_options_are_named() -> None:
    with pytest.raises(TypeError):
        RedisTokens(Redis(), "akv")  # type: ignore[misc]


@pytest.mark.parametrize("slots", [1, 2**40])
def test_slots_may_be_few_or_many(slots: int) -> None:
    assert RedisTokens.from_url(URL, slots=slots)._core.options.slots == slots


def _lent(tokens: RedisTokens) -> dict[str, Any]:
    return dict(tokens._settings.pool.connection_kwargs)


def test_the_environment_names_the_redis() -> None:
    lent = _lent(RedisTokens.from_env({"REDIS_URL": "redis://example.org:7/2"}))
    assert (lent["host"], lent["port"], lent["db"]) == ("example.org", 7, 2)
    lent = _lent(RedisTokens.from_env({}))
    assert lent["host"] == "localhost"
    tokens = RedisTokens.from_env({"REDIS_DB": "3", "REDIS_MAX_CONNECTIONS": "5", "REDIS_URL": ""})
    assert (_lent(tokens)["db"], tokens._settings.most) == (3, 5)


def test_what_the_url_says_wins() -> None:
    tokens = RedisTokens.from_env({"REDIS_URL": "redis://localhost/2?max_connections=4", "REDIS_DB": "3"})
    assert (_lent(tokens)["db"], tokens._settings.most) == (2, 4)


def test_the_environment_of_the_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://example.org")
    assert _lent(RedisTokens.from_env(namespace="ns"))["host"] == "example.org"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_DB", "x"),
        ("REDIS_DB", "-1"),
        ("REDIS_DB", "²"),
        ("REDIS_MAX_CONNECTIONS", "0"),
        ("REDIS_MAX_CONNECTIONS", "1.5"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RedisTokens.from_env({name: value})


def test_engines_without_gate_are_refused() -> None:
    tokens = RedisTokens.from_url(URL)
    with pytest.raises(ConfigurationError, match="create_async_engine"):
        tokens.check_engine(create_engine("sqlite://"))
    tokens.check_engine(new_engine())


def test_its_tables_are_public() -> None:
    assert set(RedisTokens.metadata.tables) == {"akv_gate", "akv_outbox"}


def test_without_redis_py_the_remedy_is_said() -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "import akv\n"
        "try:\n"
        "    akv.RedisTokens.from_url('redis://localhost')\n"
        "except akv.ConfigurationError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert "install akv[redis]" in done.stdout, done.stderr
