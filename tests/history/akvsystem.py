"""
akv on trial, with steps in its commits.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from akv.tokens.binding import Binding, bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.keygen import CacheKey, CacheKeyGenerator
from akv.tokens.redis.tokens import RedisTokens
from akv.tokens.rules import Private
from tests.history import ablations, steps
from tests.history.log import LogWriter
from tests.history.memoized import Memoized
from tests.history.systems import OUTBOX, Spec, engine_of

_OUTBOX: Final[dict[str, Any]] = {"when_unreachable": "outbox", "commit_timeout": 5.0, "outbox_every": 0.2}
"""Patient, for this policy is strict only where a Redis that does not answer is dead."""
REASONS = [None, *Private]
"""Why a key is private, by the numbers in the log."""


class Keys(CacheKeyGenerator):
    """Remembers why the last key was private."""

    reason = 0

    def _private(self, reason: Private) -> CacheKey:
        self.reason = REASONS.index(reason)
        return super()._private(reason)


class Akv:
    def __init__(self, engine: AsyncEngine, tokens: Any, memoized: Memoized) -> None:
        self.engine = engine
        self.memoized = memoized
        self._tokens = tokens
        self._binding: Binding = bind(engine, tokens)
        self._keys = Keys(tokens)

    @property
    def reason(self) -> int:
        return self._keys.reason

    async def key(self, *things: Any, session: Any = None) -> CacheKey:
        return await self._keys(*things, session=session)

    async def touch(self, *things: Any) -> None:
        await self._tokens.touch(*things)

    async def touch_in(self, session: Any, *things: Any) -> None:
        await self._binding.touch(session, *things)

    async def close(self) -> None:
        await self.memoized.close()
        await self._binding.unbind()
        await self._tokens.aclose()
        await self.engine.dispose()


class _Notes(logging.Handler):
    """What akv logs stands in the history, too."""

    def __init__(self, log: LogWriter) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.note(self.format(record).partition("\n")[0])


async def create(spec: Spec, pool: int, log: LogWriter) -> Akv:
    """Make it as an application does."""
    if spec.ablation:
        ablations.apply(spec.ablation)
    logger = logging.getLogger("akv")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    if spec.options.get("notes"):
        logger.setLevel(logging.DEBUG)
        logger.addHandler(_Notes(log))
    engine = engine_of(spec, pool)
    tokens: Any
    if spec.redis:
        options = {**(_OUTBOX if spec.algorithm == OUTBOX else {}), **spec.options.get("tokens", {})}
        tokens = RedisTokens.from_url(spec.redis, namespace=spec.options["namespace"], **options)
        _take_steps_with_redis(type(tokens._core.gate(engine.sync_engine)))
    else:
        tokens = DatabaseTokens(spec.url)
        steps.before(DatabaseTokens, "_bump", "W3")
    return Akv(engine, tokens, Memoized(spec.folder, tokens, near=bool(spec.slot % 2)))


def _take_steps_with_redis(gate: type) -> None:
    """W3 is the MARK, which comes when the gate has been entered."""
    steps.before(gate, "enter", "W2")
    steps.after(gate, "enter", "W3")
    steps.before_task(RedisTokens, "resolve", "W5")
