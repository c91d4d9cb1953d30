"""
What INFO must say about a Redis that is to keep tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from akv.errors import ConfigurationError

_OLDEST: Final = 7
_KNOWN: Final = frozenset({"redis_version", "valkey_version", "gcc_version"})
_NEEDED: Final = "RedisTokens need Redis 7 or newer, or Valkey"


def check_server(info: Mapping[str, str] | None, *, assume_noeviction: bool) -> str:
    """
    Refuse a server that could not hold what tokens promise.

    Args:
        info: The sections "server" and "memory" of INFO; None: it is forbidden to us.
        assume_noeviction: What to believe in that case.

    Returns:
        The id of the process; empty: unknown.

    Raises:
        ConfigurationError: It is another program, is too old, or evicts keys.
    """
    if info is None:
        if not assume_noeviction:
            raise ConfigurationError(
                "Redis forbids us INFO, so nobody knows whether it evicts keys: grant +info to the user, or pass "
                "assume_noeviction=True if its maxmemory-policy is none of allkeys-*"
            )
        return ""
    _check_program(info)
    policy = info.get("maxmemory_policy", "")
    if policy.startswith("allkeys-"):
        raise ConfigurationError(
            f"this Redis evicts any key when it is full (maxmemory-policy {policy}), and a token that is evicted is a "
            "change that nobody hears of: set maxmemory-policy to noeviction (or volatile-*), or use another Redis"
        )
    run = info.get("run_id", "")
    return run if run.strip("0") and " " not in run else ""


def _check_program(info: Mapping[str, str]) -> None:
    others = [name for name in info if name.endswith("_version") and name not in _KNOWN]
    version = info.get("redis_version", "")
    if others or not version:
        raise ConfigurationError(f"what answers is not Redis ({', '.join(others) or 'no redis_version'}): {_NEEDED}")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST:
        raise ConfigurationError(f"this is Redis {version}: {_NEEDED}")
