"""
The algorithm of the ancestor (alkey 0.7.1), made anew: events of the session, a bump after the commit, no marks.

Small, and right where the ancestor is: what it writes down at a flush, it announces after a commit; tokens are
timestamps; trouble with Redis is swallowed. On the schedule that akv is held to, it is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Table, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from akv.tokens.identifiers import Label
from tests.history.log import LogWriter
from tests.history.systems import Spec, engine_of

_DAY: Final = 86_400
_HOUR: Final = 3_600


class Key(str):
    __slots__ = ()
    shared: Final = True


class Ancestor:
    reason = 0

    def __init__(self, engine: AsyncEngine, url: str, prefix: str) -> None:
        self.engine = engine
        self._prefix = prefix
        self._redis: Any = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=0.25, retry=Retry(NoBackoff(), 0)
        )
        event.listen(Session, "after_commit", self._committed)
        event.listen(Session, "before_flush", self._flushing)
        event.listen(Session, "after_soft_rollback", self._rolled_back)

    async def key(self, *things: Any, session: Any = None) -> Key:
        names = [_name(thing) for thing in _flat(things)]
        return Key("/".join(f"{self._token(name)}/{name}" for name in names))

    async def touch(self, *things: Any) -> None:
        for thing in things:
            self._redis.setex(self._key_of(_name(thing)), _DAY, _timestamp())

    async def touch_in(self, session: Any, *things: Any) -> None:
        await self.touch(*things)

    async def close(self) -> None:
        self._redis.close()
        await self.engine.dispose()

    # --- tokens

    def _key_of(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _token(self, name: str) -> str:
        """Return the token; one that is missing gets the time of day."""
        try:
            found: str | None = self._redis.get(self._key_of(name))
        except redis.RedisError:
            return _timestamp()
        if found is None:
            found = _timestamp()
            self._resiliently(lambda: self._redis.setex(self._key_of(name), _DAY, found))
        return found

    # --- events of the session

    def _changed(self, session: Session) -> str:
        return f"{self._prefix}:changed:{session.hash_key}"

    def _flushing(self, session: Session, _context: Any, _instances: Any) -> None:
        instances = {*session.new, *session.dirty, *session.deleted}
        names = {name for instance in instances for name in (_name(instance), *_parents(instance))}
        if names:
            self._resiliently(lambda: self._redis.sadd(self._changed(session), *names))
            self._resiliently(lambda: self._redis.expire(self._changed(session), _HOUR))

    def _committed(self, session: Session) -> None:
        self._resiliently(lambda: self._invalidate(self._changed(session)))

    def _rolled_back(self, session: Session, transaction: Any) -> None:
        if transaction.parent is not None:
            self._resiliently(lambda: self._redis.delete(self._changed(session)))

    def _invalidate(self, changed: str) -> None:
        names = self._redis.smembers(changed)
        if not names:
            return
        tables = {f"{name.partition('#')[0]}#*" for name in names}
        value = _timestamp()
        pipeline = self._redis.pipeline(transaction=False)
        for name in (*names, *tables, "*#*"):
            pipeline.setex(self._key_of(name), _DAY, value)
        pipeline.srem(changed, *names)
        pipeline.execute()

    def _resiliently(self, call: Callable[[], Any]) -> None:
        for _ in range(2):
            with suppress(redis.RedisError):
                call()
                return


def _timestamp() -> str:
    return str(datetime.now(UTC))


def _flat(things: Any) -> Iterator[Any]:
    for thing in things:
        if isinstance(thing, tuple | list):
            yield from _flat(thing)
        else:
            yield thing


def _name(thing: Any) -> str:
    """Return ``table#id`` or ``table#*``."""
    if isinstance(thing, str):
        return thing.removeprefix("akv:")
    if isinstance(thing, Label):
        return f"label#{thing.name}"
    if isinstance(thing, Table):
        return f"{thing.name}#*"
    id_ = getattr(thing, "__dict__", {}).get("id")
    return f"{thing.__tablename__}#{id_ if isinstance(id_, int) else '*'}"


def _parents(instance: Any) -> Iterator[str]:
    """Yield the row that a many-to-one points at."""
    item = vars(instance).get("item_id")
    if item is not None:
        yield f"h_items#{item}"


async def create(spec: Spec, pool: int, log: LogWriter) -> Ancestor:
    return Ancestor(engine_of(spec, pool), spec.redis, cast("str", spec.options["namespace"]))
