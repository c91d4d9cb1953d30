"""
DatabaseTokens: tokens in the same SQLite file as the data, bumped by the transaction that changes the data.

SQLite has one writer, so the counter is in commit order, and token and data
become visible together, to every process, or not at all. No marks, no epochs,
nothing to sweep.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar
from uuid import uuid4

from sqlalchemy import Engine, MetaData
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from akv.aio import join
from akv.errors import ClosedError, ConfigurationError
from akv.tokens import records
from akv.tokens.backend import Absent, Announcement
from akv.tokens.drivers import Driver
from akv.tokens.engines import OwnEngines
from akv.tokens.identifiers import (
    check_identifier,
    record_of,
    vector_of,
)
from akv.tokens.rules import Epoch, Record, Seen, Token, stamp_of
from akv.tokens.things import touched_by_thing

T = TypeVar("T")
logger = logging.getLogger("akv")

_OLDEST_SQLITE: Final = (3, 38)
_TWO_DATABASES: Final = (
    "a bound engine writes to another database than the tokens are read from: both must be the same file"
)


class DatabaseTokens:
    """
    Tokens in the SQLite file that holds the data: no server, any number of processes.

    Attributes:
        metadata: The table ``akv_token``, for Alembic and for ``create_tables=False``.
        stamp: The newest token that this process has seen committed.
        in_snapshot: Tokens are read in the snapshot of an open transaction.
    """

    metadata: ClassVar[MetaData] = records.metadata
    in_snapshot: bool = True

    def __init__(self, target: str | URL | AsyncEngine, *, slots: int = 2**20, create_tables: bool = True) -> None:
        """
        Args:
            target: URL of the database file (``sqlite+aiosqlite:///app.db``), or an AsyncEngine of it. The engine
                stays the caller's and lends its settings only: tokens are read through connections of our own.
            slots: Number of records that rows share, 1 to 2**40. The same in every process on one file.
            create_tables: Create the table ``akv_token`` at first use; False: it is there.

        Raises:
            ConfigurationError: The database is not SQLite, or has no file; an option is out of bounds.

        Guarantees:
            No I/O.
        """
        url = target.url if isinstance(target, AsyncEngine) else _url(target)
        _check_database(url)
        if type(slots) is not int or not 1 <= slots <= 2**40:
            raise ConfigurationError(f"slots must be an int from 1 to 2**40, not {slots!r}")
        self.stamp: Token | None = None
        self._slots = slots
        self._create_tables = create_tables
        self._url = url
        self._engines = OwnEngines(target if isinstance(target, AsyncEngine) else url)
        self._database: str | None = None
        self._closed = False

    async def read(self, identifiers: Sequence[str]) -> Mapping[str, str]:
        """
        Read the tokens of identifiers in one round trip, sent after the call began.

        Args:
            identifiers: ``akv:`` strings.

        Returns:
            A token for each. Two reads return the same token iff neither the identifier nor what contains it was
            bumped between.

        Raises:
            InvalidIdentifierError: One is malformed.
            ConfigurationError: The table is missing, or of other slots.
        """
        vectors = {name: vector_of(check_identifier(name)) for name in identifiers}
        wanted = list(dict.fromkeys(member for vector in vectors.values() for member in vector))
        found = dict(zip(wanted, (await self.look(wanted)).records, strict=True))
        return {name: ".".join(str(found[member].seq) for member in vector) for name, vector in vectors.items()}

    async def bump(self, identifiers: Sequence[str]) -> None:
        """
        Replace the token of each identifier, in a transaction of its own.

        Args:
            identifiers: ``akv:`` strings, akv's own (``#~``) included.

        Raises:
            sqlalchemy.exc.OperationalError: Somebody else holds the write lock: in a transaction that writes, use
                ``binding.touch``.
        """
        if identifiers:
            await self._on_own_connection(lambda own: _in_a_task(self._bump_alone(own, set(identifiers))))

    async def touch(self, *things: Any) -> None:
        """
        Make everything that depends on *things* change, as if they had been written.

        Args:
            things: Mapped instances (their row), mapped classes and Tables (all their rows), Labels, ``akv:`` strings.

        Raises:
            InvalidIdentifierError: Something names nothing that can change.
        """
        await self.bump(sorted({name for thing in things for name in touched_by_thing(thing)}))

    async def aclose(self) -> None:
        """Close the connections that this object made; idempotent."""
        self._closed = True
        await self._engines.aclose()

    # --- for the rooms beside this one ---------------------------------------------------------------------------

    async def look(self, identifiers: Sequence[str], driver: Driver | None = None) -> Seen:
        """
        Read tokens in one snapshot.

        Args:
            identifiers: What to read, exactly these.
            driver: A connection with a transaction open, to read in its snapshot; None: the newest.

        Returns:
            What it showed; the database is one epoch for ever, without marks.

        Raises:
            Absent: The snapshot of the transaction is older than the table.
            ConfigurationError: The table is missing, or of other slots, or of another database.
        """
        names = [record_of(name, self._slots) for name in identifiers]
        if driver is None:
            read = await self._on_own_connection(lambda own: records.read_records(own, names))
        else:
            await self._identify_for_others()
            with records.raised_as_by_sqlalchemy():
                read = await records.read_records(driver.connection, names)
        self._check_origin(read.origin)
        found = tuple([Record(read.origin, read.seqs.get(name, 0), ()) for name in names])
        seen = Seen("", Epoch(read.origin, "", active=True), read.newest, found)
        if driver is None:
            self.learn(seen)
        return seen

    def learn(self, seen: Seen) -> None:
        """Note tokens that were committed for sure: what begins from now on sees them."""
        newest, stamp = stamp_of(seen), self.stamp
        if newest is not None and (stamp is None or stamp.epoch != newest.epoch or stamp.seq < newest.seq):
            self.stamp = newest

    def check_engine(self, engine: Engine) -> None:
        """
        Refuse an engine whose writes these tokens cannot follow.

        Raises:
            ConfigurationError: It is not an asynchronous SQLite engine on a file.
        """
        _check_database(engine.url)

    def attach(self, engine: Engine) -> None:
        """Nothing is kept for an engine."""

    def detach(self, engine: Engine) -> None:
        """Nothing is kept for an engine."""

    async def prepare(self, driver: Driver, engine: Engine) -> None:
        """
        Create the table and compare databases, before the first transaction of a bound engine.

        Raises:
            ConfigurationError: The connection is to another database than that of the tokens.
        """
        for _ in range(2):  # what was known of our database may be of a file that is gone
            try:
                await self._identify_for_others()
            except (Absent, records.TableMissingError) as error:
                logger.debug("there is no akv_token yet: %s", error)
                return
            try:
                self._check_origin((await records.read_records(driver.connection, ())).origin)
            except Absent:
                self._database = None
            else:
                return
        raise ConfigurationError(_TWO_DATABASES)

    async def freshen(self) -> None:
        """Leave the stamp as it is: a transaction reads tokens in its own snapshot."""

    async def announce(self, driver: Driver, engine: Engine, changed: Collection[str]) -> None:
        """
        Bump identifiers inside the transaction that is about to commit; nothing is left to resolve.

        Raises:
            sqlalchemy.exc.OperationalError: The database refused, for instance because it is locked.
            ConfigurationError: The connection is to another database than that of the tokens.
        """
        with records.raised_as_by_sqlalchemy():
            await self._bump(driver.connection, set(changed))

    def resolve(self, announcement: Announcement) -> asyncio.Task[None]:
        """Announcements are never made."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Token and data become visible together: there is nothing to wait for."""

    # --- inside --------------------------------------------------------------------------------------------------

    async def _on_own_connection(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do *work* on a driver's connection of our own; twice, if the first time there was no table."""
        if self._closed:
            raise ClosedError("these DatabaseTokens are closed: make new ones")
        engine = await self._engines.get()
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            with records.raised_as_by_sqlalchemy():
                try:
                    return await work(driver)
                except Absent:
                    await _in_a_task(self._create_alone(driver))
                return await work(driver)

    async def _identify_for_others(self) -> None:
        """
        Learn which database ours is, before another connection is compared with it.

        Raises:
            Absent: It has no tokens yet, and somebody, perhaps that connection, keeps us from creating them.
        """
        if self._database is None:
            try:
                await self._on_own_connection(self._identify)
            except sa_exc.OperationalError as error:
                raise Absent from error

    async def _identify(self, driver: Any) -> None:
        self._check_origin((await records.read_records(driver, ())).origin)

    async def _create_alone(self, driver: Any) -> None:
        async with records.write_transaction(driver):
            await self._create(driver)

    async def _create(self, driver: Any) -> None:
        """Create table and counter; what was known of another database is void."""
        self._database = self.stamp = None
        await records.create(driver, f"{uuid4().hex}/{self._slots}", table_too=self._create_tables)

    async def _bump_alone(self, driver: Any, changed: set[str]) -> None:
        async with records.write_transaction(driver):
            await self._bump(driver, changed)

    async def _bump(self, driver: Any, changed: set[str]) -> None:
        """Give the records of *changed* the next token, in the transaction that is open."""
        try:
            counted = await records.count(driver)
            self._check_origin(counted.origin)
        except Absent:
            await self._create(driver)
            counted = await records.count(driver)
        await records.bump_records(driver, {record_of(name, self._slots) for name in changed}, counted.seq)

    def _check_origin(self, origin: str) -> None:
        slots = origin.partition("/")[2]
        if slots != str(self._slots):
            raise ConfigurationError(f"the tokens in this file have slots={slots}: pass that, not {self._slots}")
        if self._database is None:
            self._database = origin
        if origin != self._database:
            raise ConfigurationError(_TWO_DATABASES)


async def _in_a_task(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end whatever happens to the caller: half of it would leave the connection in mid-air."""
    return await join(asyncio.get_running_loop().create_task(work))


def _url(target: Any) -> URL:
    try:
        return make_url(target)
    except sa_exc.ArgumentError as error:
        raise ConfigurationError(
            f"DatabaseTokens takes a URL such as 'sqlite+aiosqlite:///app.db' or an AsyncEngine, not {target!r}"
        ) from error


def _check_database(url: URL) -> None:
    if url.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"DatabaseTokens work on SQLite, not on {url.get_backend_name()}: counter rows would serialise the commits "
            "of PostgreSQL and MariaDB; use RedisTokens there"
        )
    if url.get_driver_name() != "aiosqlite":
        raise ConfigurationError(
            f"the driver {url.get_driver_name()} is not asynchronous: write sqlite+aiosqlite:///..."
        )
    if _is_in_memory(url):
        raise ConfigurationError(
            "DatabaseTokens need a database file: in memory, everybody would see what others have not committed"
        )
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigurationError(f"DatabaseTokens need SQLite 3.38 or newer, this is {sqlite3.sqlite_version}")


def _is_in_memory(url: URL) -> bool:
    database = url.database or ""
    return database in ("", ":memory:") or ":memory:" in database or "mode=memory" in str(url)
