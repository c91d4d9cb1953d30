"""
What RedisTokens may be told, checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from akv.errors import ConfigurationError

WhenUnreachable: TypeAlias = Literal["refuse", "outbox"]
_LONGEST_NAMESPACE: Final = 100


@dataclass(frozen=True)
class Options:
    """
    The options of RedisTokens, which documents them.

    Raises:
        ConfigurationError: One is out of bounds.
    """

    namespace: str = "akv"
    when_unreachable: WhenUnreachable = "refuse"
    slots: int = 2**20
    create_tables: bool = True
    assume_noeviction: bool = False
    commit_timeout: float = 0.25
    read_timeout: float = 0.05
    max_connections: int | None = None
    outbox_every: float = 1.0

    def __post_init__(self) -> None:
        _check_namespace(self.namespace)
        if self.when_unreachable not in ("refuse", "outbox"):
            raise ConfigurationError(f"when_unreachable must be 'refuse' or 'outbox', not {self.when_unreachable!r}")
        _check_int("slots", self.slots, 2**40)
        if self.max_connections is not None:
            _check_int("max_connections", self.max_connections, 10_000)
        for name in ("commit_timeout", "read_timeout", "outbox_every"):
            _check_seconds(name, getattr(self, name))
        for name in ("create_tables", "assume_noeviction"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, not {getattr(self, name)!r}")


def settings_in(environment: Mapping[str, str] = os.environ) -> tuple[str, dict[str, Any]]:
    """
    Read ``REDIS_URL``, ``REDIS_DB`` and ``REDIS_MAX_CONNECTIONS``.

    Returns:
        The URL, and what redis-py is to be told besides.

    Raises:
        ConfigurationError: A number is none.
    """
    names = {"db": ("REDIS_DB", 0), "max_connections": ("REDIS_MAX_CONNECTIONS", 1)}
    found = {}
    for option, (name, least) in names.items():
        text = environment.get(name, "")
        if text and not (text.isdecimal() and text.isascii() and int(text) >= least):
            raise ConfigurationError(f"{name} must be a number of at least {least}, not {text!r}")
        if text:
            found[option] = int(text)
    return environment.get("REDIS_URL") or "redis://localhost:6379", found


def _check_namespace(name: object) -> None:
    if not (isinstance(name, str) and 0 < len(name) <= _LONGEST_NAMESPACE and name.isascii() and name.isprintable()):
        raise ConfigurationError(f"namespace must be 1 to {_LONGEST_NAMESPACE} characters of ASCII, not {name!r}")
    if not {"{", "}", " "}.isdisjoint(name):
        raise ConfigurationError(f"namespace must contain neither braces nor blanks: {name!r}")


def _check_int(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigurationError(f"{name} must be an int from 1 to {most}, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
