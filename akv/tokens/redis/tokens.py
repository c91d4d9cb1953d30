"""
RedisTokens: tokens in Redis or Valkey, for any database that has a gate.

A transaction puts its mark into the records of what it changed before COMMIT, and takes it away with
a fresh token once it has ended; a record with a mark is not believed. Tokens that Redis lost are not
believed either, until every transaction of that time has ended. No clock decides anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sqlalchemy import Engine, MetaData

from akv.aio import PerLoop
from akv.errors import ClosedError, CommitRefusedError, ConfigurationError, TokenError
from akv.tokens import tables
from akv.tokens.backend import Announcement, Unreachable
from akv.tokens.gates import TransactionAborted
from akv.tokens.identifiers import check_identifier, vector_of
from akv.tokens.redis.closing import close_at_exit, close_everywhere
from akv.tokens.redis.core import Core
from akv.tokens.redis.formats import Keys
from akv.tokens.redis.options import Options, WhenUnreachable, settings_in
from akv.tokens.rules import Seen, Token, active_epoch, current
from akv.tokens.things import touched_by_thing

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from akv.tokens.drivers import Driver
    from akv.tokens.redis.runtime import Runtime
    from akv.tokens.redis.wire import Settings

logger = logging.getLogger("akv")

_REMEDY = (
    "nothing was written: try again when it can, or commit without Redis, with RedisTokens(when_unreachable='outbox')"
)


class RedisTokens:
    """
    Tokens in Redis 7 or newer, or Valkey.

    Attributes:
        metadata: The tables ``akv_gate`` and ``akv_outbox`` in the application's database, for Alembic and for
            ``create_tables=False``.
    """

    metadata: ClassVar[MetaData] = tables.metadata
    in_snapshot: ClassVar[bool] = False

    def __init__(
        self,
        client: Redis,
        *,
        namespace: str = "akv",
        when_unreachable: WhenUnreachable = "refuse",
        slots: int = 2**20,
        create_tables: bool = True,
        assume_noeviction: bool = False,
        commit_timeout: float = 0.25,
        read_timeout: float = 0.05,
        max_connections: int | None = None,
        outbox_every: float = 1.0,
    ) -> None:
        """
        Args:
            client: A client of ``redis.asyncio``. It lends its settings (address, TLS, user, Sentinel); connections
                are our own, and stay open until :meth:`aclose`.
            namespace: Begins every key in Redis, in braces. It belongs to one database, the same in every process.
                Applications that write different tables of one database may each have one: a write is announced in
                that of its engine, and in no other.
            when_unreachable: What happens to a commit while Redis cannot be reached. "refuse": it raises
                CommitRefusedError, nothing is written. "outbox": it goes on, and writes what it changed into the table
                ``akv_outbox`` in the same transaction; a bound process that reaches both passes that on.
            slots: Number of records that rows share, 1 to 2**40. The same in every process.
            create_tables: Create the tables that are needed at first use; False: they are there.
            assume_noeviction: Where the user of Redis may not ask INFO: believe that it evicts nothing.
            commit_timeout: Seconds that a commit waits for Redis.
            read_timeout: Seconds that a reader waits; then it does without.
            max_connections: For each event loop; None: 8, or fewer if the client has fewer.
            outbox_every: Seconds between two looks into the outbox while something is known to be there. Else a
                process looks every tenth time, for what another one left that has died: it opens a connection to the
                database for that, and closes it.

        Raises:
            ConfigurationError: An option is out of bounds, or *client* is none of ``redis.asyncio``.

        Guarantees:
            No I/O.
        """
        options = Options(
            namespace=namespace,
            when_unreachable=when_unreachable,
            slots=slots,
            create_tables=create_tables,
            assume_noeviction=assume_noeviction,
            commit_timeout=commit_timeout,
            read_timeout=read_timeout,
            max_connections=max_connections,
            outbox_every=outbox_every,
        )
        settings_of = _wire().settings_of
        self._settings: Settings = settings_of(client, assume_noeviction=assume_noeviction)
        self._core = Core(options, time.monotonic, Keys(namespace, slots))
        self._runtimes: PerLoop[Runtime] = PerLoop(self._make_runtime)
        self._is_closed = False
        close_at_exit(self._runtimes)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """
        Make tokens in the Redis that *url* names.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
            options: Those of the class.

        Raises:
            ConfigurationError: redis-py cannot read the URL, or an option is wrong.
        """
        return cls(_wire().client_of_url(url, {}), **options)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ, **options: Any) -> Self:
        """
        Make tokens in the Redis of ``REDIS_URL`` (default ``redis://localhost:6379``).

        ``REDIS_DB`` and ``REDIS_MAX_CONNECTIONS`` apply to what the URL does not say.

        Args:
            environment: Where to look.
            options: Those of the class.

        Raises:
            ConfigurationError: A variable or an option is wrong.
        """
        url, found = settings_in(environment)
        return cls(_wire().client_of_url(url, found), **options)

    @property
    def stamp(self) -> Token | None:
        """The newest token of an active epoch that this process has seen; None: none yet."""
        return self._core.stamp

    async def read(self, identifiers: Sequence[str]) -> Mapping[str, str]:
        """
        Read the tokens of identifiers in one round trip, sent after the call began.

        Args:
            identifiers: ``akv:`` strings.

        Returns:
            A token for each. Two reads return the same token iff neither the identifier nor what contains it was
            bumped between; where nobody can say that now, a token that never occurs again.

        Raises:
            InvalidIdentifierError: One is malformed.
            ConfigurationError: Redis, or what is in the namespace, is not ours to use.
            TokenError: Redis does not answer in time.
        """
        vectors = {name: vector_of(check_identifier(name)) for name in identifiers}
        wanted = list(dict.fromkeys(member for vector in vectors.values() for member in vector))
        try:
            seen = await self.look(wanted)
        except Unreachable as error:
            raise TokenError(f"tokens cannot be read from Redis: {error}") from error
        shown = dict(zip(wanted, _shown(seen), strict=True))
        return {name: ".".join(shown[member] for member in vector) for name, vector in vectors.items()}

    async def bump(self, identifiers: Sequence[str]) -> None:
        """
        Replace the token of each identifier.

        Args:
            identifiers: ``akv:`` strings, akv's own (``#~``) included.

        Raises:
            ConfigurationError: Redis, or what is in the namespace, is not ours to use.
            TokenError: Redis does not answer; nobody knows whether the tokens have changed.
        """
        if not identifiers:
            return
        try:
            await self._here().bump("", identifiers)
        except Unreachable as error:
            raise TokenError(f"tokens may not have changed in Redis, so do it again: {error}") from error

    async def touch(self, *things: Any) -> None:
        """
        Make everything that depends on *things* change, as if they had been written.

        Args:
            things: Mapped instances (their row), mapped classes and Tables (all their rows), Labels, ``akv:`` strings.

        Raises:
            InvalidIdentifierError: Something names nothing that can change.
            TokenError: Redis does not answer; nobody knows whether the tokens have changed.
        """
        await self.bump(sorted({name for thing in things for name in touched_by_thing(thing)}))

    async def drain(self) -> None:
        """Wait until every transaction of this event loop that has ended has changed its tokens."""
        await self._here().drain()

    async def aclose(self) -> None:
        """
        Finish what is on its way, and close the connections that this object made; idempotent.

        Guarantees:
            Those of other event loops too.
        """
        self._is_closed = True
        await close_everywhere(self._runtimes.take_all())
        await self._core.aclose()

    # --- for the rooms beside this one ---------------------------------------------------------------------------

    def check_engine(self, engine: Engine) -> None:
        """
        Refuse an engine whose transactions nobody could ask about.

        Raises:
            ConfigurationError: With the remedy.
        """
        self._core.gate(engine)

    def attach(self, engine: Engine) -> None:
        """Note that *engine* is bound from now on; no I/O."""
        self._core.gate(engine)
        self._core.bound.add(engine)

    def detach(self, engine: Engine) -> None:
        """Note that *engine* has no binding left; its open transactions are still announced."""
        self._core.bound.discard(engine)

    async def prepare(self, driver: Driver, engine: Engine) -> None:
        """
        Make tables, compare databases and look at Redis, before the first transaction of a bound engine.

        Raises:
            ConfigurationError: The database cannot be a gate or is another one than that of the namespace; Redis
                cannot hold what tokens promise.
        """
        self._core.adopt(await self._core.gate(engine).fingerprint(driver))
        if self._core.options.when_unreachable == "outbox":
            await self._core.outbox(engine).prepare()
            self._here().relay.start()
        try:
            await self._here().greet()
        except Unreachable as error:
            logger.warning("Redis does not answer, so keys are private until it does: %s", error)

    async def freshen(self) -> None:
        """Make the stamp no older than 50 ms, or leave it as it is; raises nothing but CancelledError."""
        if self._core.is_fresh:
            return
        try:
            await self.look(())
        except Exception as error:
            logger.debug("the stamp stays as old as it is: %s", error)

    async def announce(self, driver: Driver, engine: Engine, changed: Collection[str]) -> Announcement | None:
        """
        Enter the gate, and put the mark that it gives into the records of what changed.

        Raises:
            CommitRefusedError: Redis does not answer, and it is to be refused then.
            ConfigurationError: Redis, or what is in the namespace, is not ours to use.
            Exception: The driver's own.
        """
        here, gate = self._here(), self._core.gate(engine)
        here.relay.start()
        try:
            mark = await gate.enter(driver)
        except TransactionAborted:
            return None
        announcement = Announcement(mark, tuple(changed))
        try:
            await here.mark(announcement)  # whatever the breaker says: whoever marks nothing may be stale
        except Unreachable as error:
            if self._core.options.when_unreachable == "refuse":
                raise CommitRefusedError(f"the change cannot be announced to Redis ({error}), so {_REMEDY}") from error
            await self._core.outbox(engine).put(driver, changed)
            here.relay.soon()
            return None
        return announcement

    def resolve(self, announcement: Announcement) -> asyncio.Task[None]:
        """Start to resolve a transaction that has ended, in a task of our own; if it fails, it is swept."""
        return self._here().resolve(announcement)

    async def look(self, identifiers: Sequence[str], driver: Driver | None = None) -> Seen:
        """
        Read tokens in one round trip, sent after the call began.

        Args:
            identifiers: What to read, exactly these.
            driver: Of no interest: Redis knows no snapshots.

        Raises:
            Unreachable: Redis does not answer in time.
            ConfigurationError: Redis, or what is in the namespace, is not ours to use.
        """
        return await self._here().look(identifiers)

    def learn(self, seen: Seen) -> None:
        """Note what a read showed, for the stamp."""
        self._core.learn(seen)

    # --- inside --------------------------------------------------------------------------------------------------

    def _here(self) -> Runtime:
        if self._is_closed:
            raise ClosedError("these RedisTokens are closed: make new ones")
        return self._runtimes.get()

    def _make_runtime(self) -> Runtime:
        from akv.tokens.redis.runtime import Runtime

        for left in self._runtimes.take_stale():
            left.drop()
        return Runtime(self._core, self._settings)


def _shown(seen: Seen) -> list[str]:
    """Return what stands for each record: its token, or something new where that cannot be believed."""
    epoch = active_epoch(seen)
    if epoch is None:
        return [secrets.token_hex(8) for _ in seen.records]
    records = (current(record, epoch) for record in seen.records)
    return [secrets.token_hex(8) if record.marks else f"{epoch.id}:{record.seq}" for record in records]


def _wire() -> Any:
    """Import the driver only now: who uses other tokens need not have it."""
    try:
        from akv.tokens.redis import wire
    except ImportError as error:
        raise ConfigurationError(f"RedisTokens need redis-py: install akv[redis] ({error})") from error
    return wire
