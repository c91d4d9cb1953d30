"""What ``memoize`` is told, checked at decoration."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from akv.errors import ConfigurationError
from akv.memoize.freshness import Freshness, seconds_of
from akv.typing import Tokens

ExpireIf: TypeAlias = bool | Callable[[], bool | Awaitable[bool]]
"""Whether to ignore the cache and compute; a callable is asked at each call."""

SkipIf: TypeAlias = bool | Callable[[Any], bool | Awaitable[bool]]
"""Whether not to save; a callable is asked about each result."""

LEASE: Final = 10.0
"""Seconds of a lease, if no other number is given."""
NEAR_BYTES: Final = 64 * 2**20
"""Most bytes of a near cache, if no other number is given."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """
    What has happened so far in this process; each call is a hit, a miss or a bypass.

    Attributes:
        hits: Calls answered by what was kept, in the store or near.
        misses: Calls that found nothing, or nothing young enough.
        fills: Results that were saved, in the background too.
        bypasses: Calls that did not ask the store, told so by ``expire_if`` or ``refresh``, or got no answer, or could
            share nothing.
        reasons: How many bypasses there were for each reason. ``told``; ``store``: it did not answer; with
            dependencies, ``unreachable``: the tokens did not answer; ``marked``: a commit that changes something was
            under way; ``epoch``: tokens were lost a moment ago; ``dirty``, ``retained``, ``snapshot``, ``absent``,
            ``detached``, ``pending``, ``deleted``: a session or instance that the call concerns has uncommitted
            changes, or is too old.
    """

    hits: int
    misses: int
    fills: int
    bypasses: int
    reasons: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What ``memoize`` was told.

    Attributes:
        lock: Seconds of the lease under which one process computes; None: each for itself.
        tokens: Those of the store.

    Raises:
        ConfigurationError: An option is of the wrong type, or out of bounds; dependencies are wanted, and there are no
            tokens.
    """

    freshness: Freshness = field(default_factory=Freshness)
    expire_if: ExpireIf = False
    skip_saving_to_cache_if: SkipIf = False
    key: Callable[..., Any] | None = None
    ignore: Collection[str] = ()
    version: str = ""
    near: int | None = None
    near_bytes: int = NEAR_BYTES
    near_shared: bool = False
    lock: float | None = None
    tokens: Tokens | None = None
    depends_on: Any = None
    track: bool = False

    def __post_init__(self) -> None:
        check_condition("expire_if", self.expire_if)
        check_condition("skip_saving_to_cache_if", self.skip_saving_to_cache_if)
        if self.near is not None:
            _check_count("near", self.near)
        _check_count("near_bytes", self.near_bytes)
        if not isinstance(self.near_shared, bool):
            raise ConfigurationError(f"near_shared must be True or False, not {self.near_shared!r}")
        _check_dependencies(self.tokens, self.depends_on, self.track)


def lease_of(lock: object) -> float | None:
    """
    Convert what was given as ``lock=``: True, False, or the seconds of a lease.

    Raises:
        ConfigurationError: It is something else.
    """
    if lock is False or lock is None:
        return None
    return LEASE if lock is True else seconds_of("lock", lock)


def check_condition(name: str, condition: object) -> None:
    """
    Check what decides about a call or a result.

    Raises:
        ConfigurationError: It is no bool and no callable.
    """
    if not isinstance(condition, bool) and not callable(condition):
        raise ConfigurationError(
            f"{name} must be a bool or a callable, not {condition!r}: write {name}=lambda ...: ..."
        )


async def holds(condition: bool | Callable[..., bool | Awaitable[bool]], *args: Any) -> bool:
    """Ask a condition."""
    answer = condition(*args) if callable(condition) else condition
    return bool(await answer if inspect.isawaitable(answer) else answer)


def _check_dependencies(tokens: object, depends_on: object, track: object) -> None:
    if not isinstance(track, bool):
        raise ConfigurationError(f"track must be True or False, not {track!r}")
    if tokens is None and (depends_on is not None or track):
        raise ConfigurationError(
            "depends_on and track need tokens: give tokens=DatabaseTokens(...) or RedisTokens to the store, "
            "and bind your engine to them"
        )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} must be an int of at least 1, not {value!r}")
