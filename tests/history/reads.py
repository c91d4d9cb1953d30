"""
Reads: every way in which an application may come by a value that depends on rows.

All of them go through the cache as an application would: key, look, compute if it is not there, and keep it if the
key has not changed meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from enum import IntEnum
from itertools import accumulate
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload

from tests.history.board import Board, tag_of_label
from tests.history.cache import Cache, number_of
from tests.history.log import Kind, LogWriter, Outcome, Value, now, pack
from tests.history.rows import (
    FIRST_LABEL,
    FIRST_MIXED,
    ITEM_TABLE,
    ITEMS,
    NOTE_TABLE,
    Item,
    label_of,
    label_row,
    statement,
    value_of,
    value_of_instance,
)
from tests.history.systems import SQLITE, Spec, System, things_of


class Way(IntEnum):
    """How a read comes by its value."""

    IDENTIFIER = 0
    """The key of an identifier, no session; compute on a connection."""
    PLAIN = 1
    """The same without looking a second time before the value is kept."""
    SESSION = 2
    """READ COMMITTED, the key before the first statement."""
    LOADED = 3
    """The instance was loaded before the key was asked for."""
    RETAINED = 4
    """``expire_on_commit=False``: it was loaded in an earlier transaction."""
    SNAPSHOT = 5
    """REPEATABLE READ, the snapshot is older than the key."""
    ATTACHED = 6
    """It was loaded in another session, detached, and added."""
    DETACHED = 7
    """It belongs to no session."""
    OWN = 8
    """In a transaction that has written."""
    DECLARED = 9
    """A memoized function that depends on what is read."""
    TRACKED = 10
    """A memoized function that finds out what it reads."""
    NESTED = 11
    """One that calls it."""
    GIVEN = 12
    """One that is given a session, READ COMMITTED."""
    GIVEN_SNAPSHOT = 13
    """One that is given a session, REPEATABLE READ, whose snapshot is older than the call."""


WEIGHTS: Final = {
    Way.IDENTIFIER: 140,
    Way.PLAIN: 12,
    Way.SESSION: 5,
    Way.LOADED: 4,
    Way.RETAINED: 2,
    Way.SNAPSHOT: 4,
    Way.ATTACHED: 1,
    Way.DETACHED: 0.3,
}
MEMOIZED: Final = {
    Way.DECLARED: 6,
    Way.TRACKED: 6,
    Way.NESTED: 1,
    Way.GIVEN: 1,
    Way.GIVEN_SNAPSHOT: 1,
}
"""What only akv has."""
_OF_TABLES: Final = {Way.IDENTIFIER, Way.PLAIN, Way.SESSION, Way.SNAPSHOT, *MEMOIZED}
_MEMOIZED_ITEMS: Final = 16
"""Each memoized function keeps results of its own: of more items, most would have changed when they are asked for."""
_LINGERING: Final = 0.3
"""How often a memoized function takes longer than its reads."""
STALLED_READS: Final = 0.004
LONGEST_STALL: Final = 0.1
LONGEST_PAUSE: Final = 0.03

Compute = Callable[[], Awaitable[Value]]
MakeKey = Callable[[], Awaitable[Any]]


class Reader:
    """Reads in one process."""

    def __init__(
        self, system: System, spec: Spec, log: LogWriter, cache: Cache, board: Board, random_: random.Random
    ) -> None:
        options = spec.options
        self._system = system
        self._log = log
        self._cache = cache
        self._board = board
        self._random = random_
        self._engine = system.engine
        self._tokens_in_snapshot = spec.database == SQLITE
        snapshots: AsyncEngine = self._engine
        if spec.database != SQLITE:
            snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._session = async_sessionmaker(self._engine)
        self._retaining = async_sessionmaker(self._engine, expire_on_commit=False)
        self._snapshots = async_sessionmaker(snapshots)
        self._ways = {
            Way.IDENTIFIER: self._identifier,
            Way.PLAIN: self._plain,
            Way.SESSION: self._in_session,
            Way.LOADED: self._loaded,
            Way.RETAINED: self._retained,
            Way.SNAPSHOT: self._in_snapshot,
            Way.ATTACHED: self._attached,
            Way.DETACHED: self._detached,
            Way.DECLARED: self._declared,
            Way.TRACKED: self._tracked,
            Way.NESTED: self._nested,
            Way.GIVEN: self._given,
            Way.GIVEN_SNAPSHOT: self._given_snapshot,
        }
        self._memoized: Any = getattr(system, "memoized", None)
        weights: dict[Way, float] = options.get("ways", {**WEIGHTS, **(MEMOIZED if self._memoized else {})})
        self._choices = list(weights), list(accumulate(weights.values()))
        self._longest_pause: float = options.get("pause", LONGEST_PAUSE)
        self._stalled: float = options.get("stalled_reads", STALLED_READS)
        self._queries_first: bool = options.get("queries_first", False)
        self._confirms: bool = options.get("confirms", True)
        self._tables: float = options.get("tables", 0.02)
        self._hot: int = options.get("hot", ITEMS)

    async def read(self) -> None:
        (way,) = self._random.choices(self._choices[0], cum_weights=self._choices[1])
        await self._ways[way](self._subject(way))

    def _subject(self, way: Way) -> int:
        """Choose what to read: few reads are of whole tables, for every write changes those."""
        dice = self._random.random()
        if way in (Way.IDENTIFIER, Way.PLAIN, Way.SESSION, Way.DECLARED):
            if dice < 0.04:
                return FIRST_LABEL + self._random.randrange(FIRST_LABEL - FIRST_MIXED)
            if dice < 0.05:
                return FIRST_MIXED + self._random.randrange(FIRST_LABEL - FIRST_MIXED)
        if dice > 1 - self._tables and way in _OF_TABLES:
            return self._random.choice((ITEM_TABLE, NOTE_TABLE))
        return self._random.randrange(min(self._hot, _MEMOIZED_ITEMS) if way in MEMOIZED else self._hot)

    # --- ways

    async def _identifier(self, subject: int) -> None:
        start = now()
        things = things_of(subject)
        got = await self._through(lambda: self._system.key(*things), lambda: self._compute(subject))
        self._done(Way.IDENTIFIER, subject, start, *got)

    async def _plain(self, subject: int) -> None:
        start = now()
        things = things_of(subject)
        got = await self._through(lambda: self._system.key(*things), lambda: self._compute(subject), sure=False)
        self._done(Way.PLAIN, subject, start, *got)

    async def _in_session(self, subject: int) -> None:
        things = things_of(subject)
        async with self._session() as session:
            start = now()
            got = await self._through(
                lambda: self._system.key(*things, session=session), lambda: self._query(session, subject)
            )
        self._done(Way.SESSION, subject, start, *got)

    async def _loaded(self, subject: int) -> None:
        async with self._session() as session:
            before = now()
            item = await load(session, subject)
            await self._pause(0.3)
            await self._of_instance(Way.LOADED, item, before, session)

    async def _retained(self, subject: int) -> None:
        async with self._retaining() as session:
            before = now()
            item = await load(session, subject)
            await session.commit()
            await self._pause(0.5)
            if self._random.random() < 0.5:
                await load(session, subject)  # refreshes nothing of what is loaded
                await self._pause(0.2)
            await self._of_instance(Way.RETAINED, item, before, session)

    async def _attached(self, subject: int) -> None:
        before = now()
        async with self._session() as first:
            item = await load(first, subject)
        await self._pause(0.5)
        async with self._session() as session:
            if self._random.random() < 0.5:
                await session.connection()
            session.add(item)
            await self._of_instance(Way.ATTACHED, item, before, session)

    async def _detached(self, subject: int) -> None:
        before = now()
        async with self._session() as session:
            item = await load(session, subject)
        await self._pause(0.2)
        await self._of_instance(Way.DETACHED, item, before, None)

    async def _in_snapshot(self, subject: int) -> None:
        things = things_of(subject)
        async with self._snapshots() as session:
            beside = await self._query(session, subject)
            await self._pause(0.5)
            start = now()
            got = await self._through(
                lambda: self._system.key(*things, session=session), lambda: self._query(session, subject)
            )
        self._done(Way.SNAPSHOT, subject, start, *got, kind=Kind.SNAPSHOT, beside=beside)

    async def _declared(self, subject: int) -> None:
        start = now()
        await self._called(Way.DECLARED, subject, start, self._memoized.declared(subject, self._slowly))

    async def _tracked(self, subject: int) -> None:
        start = now()
        call = self._memoized.tracked(subject, self._session, self._linger)
        await self._called(Way.TRACKED, subject, start, call)

    async def _nested(self, subject: int) -> None:
        start = now()
        await self._called(Way.NESTED, subject, start, self._memoized.nested(subject, self._session, self._linger))

    async def _given(self, subject: int) -> None:
        async with self._session() as session:
            start = now()
            await self._called(Way.GIVEN, subject, start, self._memoized.given(subject, session, self._linger))

    async def _given_snapshot(self, subject: int) -> None:
        async with self._snapshots() as session:
            beside = await self._query(session, subject)
            await self._pause(0.5)
            start = now()
            value, is_hit = await self._memoized.call(self._memoized.given(subject, session, self._linger))
        outcome = Outcome.HIT if is_hit else Outcome.FILL
        self._done(Way.GIVEN_SNAPSHOT, subject, start, value, outcome, 0, 0, kind=Kind.SNAPSHOT, beside=beside)

    async def _called(self, way: Way, subject: int, start: int, call: Awaitable[Value]) -> None:
        value, is_hit = await self._memoized.call(call)
        self._done(way, subject, start, value, Outcome.HIT if is_hit else Outcome.FILL, 0, 0)

    async def in_own(self, session: Any, subject: int, written: list[tuple[int, int, int]]) -> None:
        """Read in a transaction that has written: what it wrote must be there."""
        start = now()
        things = things_of(subject)
        got = await self._through(
            lambda: self._system.key(*things, session=session), lambda: self._query(session, subject)
        )
        self._done(Way.OWN, subject, start, *got, kind=Kind.OWN, beside=pack(written))

    # --- the cache

    async def _through(self, make_key: MakeKey, compute: Compute, *, sure: bool = True) -> tuple[Value, int, int, int]:
        """Return the value, what the cache had to do with it, why not, and a number for the key."""
        early = await compute() if self._queries_first else b""
        key = await make_key()
        reason = 0 if key.shared else self._system.reason
        name = key if sure else f"plain {key}"
        await self._stall()
        found = self._cache.get(name) if key.shared else None
        if found is not None:
            return found, Outcome.HIT, 0, number_of(key)
        value = early or await compute()
        if not key.shared:
            return value, Outcome.BYPASS, reason, 0
        await self._stall()
        if not (sure and self._confirms) or await make_key() == key:
            self._cache.set(name, value)
        return value, Outcome.FILL, 0, number_of(key)

    async def _of_instance(self, way: Way, item: Item, before: int, session: AsyncSession | None) -> None:
        async def compute() -> Value:
            return value_of_instance(item)

        start = now()
        if self._tokens_in_snapshot and session is not None and session.in_transaction():
            start = before  # tokens are read in the snapshot that the instance was loaded in, or in a later one
        got = await self._through(lambda: self._system.key(item), compute)
        # What is loaded already is as new as the load; the cache owes more only to whom it let in.
        self._done(way, item.id, before if got[1] == Outcome.BYPASS else start, *got)

    async def _compute(self, subject: int) -> Value:
        """Ask the database on a connection, and whatever a label stands for."""
        rows: list[Any] = []
        if subject < FIRST_LABEL:
            async with self._engine.connect() as connection:
                rows = list(await connection.execute(statement(subject)))
        return self._with_label(subject, rows)

    async def _query(self, session: AsyncSession, subject: int) -> Value:
        rows = list(await session.execute(statement(subject))) if subject < FIRST_LABEL else []
        return self._with_label(subject, rows)

    async def _slowly(self, subject: int) -> Value:
        """Compute; what one has read may change before one has done."""
        value = await self._compute(subject)
        await self._pause(_LINGERING)
        return value

    async def _linger(self, session: AsyncSession, subject: int) -> Value:
        value = await self._query(session, subject)
        await self._pause(_LINGERING)
        return value

    def _with_label(self, subject: int, rows: list[Any]) -> Value:
        value = value_of(rows)
        label = label_of(subject)
        if label is None:
            return value
        version = self._board.label(label)
        return value + pack([(label_row(label), version, tag_of_label(label, version))])

    # --- the rest

    async def _pause(self, chance: float) -> None:
        """Let others write."""
        if self._random.random() < chance:
            await asyncio.sleep(self._random.random() ** 2 * self._longest_pause)

    async def _stall(self) -> None:
        if self._random.random() < self._stalled:
            self._log.fault("stall reader")
            await asyncio.sleep(self._random.random() * LONGEST_STALL)

    def _done(
        self,
        way: Way,
        subject: int,
        start: int,
        value: Value,
        outcome: int,
        reason: int,
        key: int,
        *,
        kind: int = Kind.READ,
        beside: bytes = b"",
    ) -> None:
        self._log.append(
            kind, value, beside, start=start, key=key, outcome=outcome, reason=reason, way=way, subject=subject
        )


async def load(session: AsyncSession, item: int) -> Item:
    """Load an item and its note in one statement; what is loaded already stays as it is."""
    found = await session.scalars(select(Item).where(Item.id == item).options(joinedload(Item.notes)))
    return found.unique().one()
