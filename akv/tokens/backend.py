"""
What binding and key making need of a tokens object: the face that DatabaseTokens and RedisTokens share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from akv.tokens.drivers import Driver

if TYPE_CHECKING:
    from akv.tokens.rules import Seen, Token


class Absent(LookupError):  # noqa: N818 - nothing went wrong: whoever reads first creates it
    """The snapshot that was to be read is older than the tokens themselves."""


class Unreachable(Exception):  # noqa: N818 - readers do without
    """The tokens cannot be read, or not in time."""


@dataclass(frozen=True)
class Announcement:
    """
    A transaction whose changes were announced before its COMMIT, and are to be resolved once it has ended.

    Whoever keeps tokens may derive from it what else it wants to remember.

    Attributes:
        mark: The id that stands for the transaction.
        records: The records that it stands in.
    """

    mark: str
    records: tuple[str, ...]


class Backend(Protocol):
    """
    Where identifiers have tokens.

    Attributes:
        stamp: The newest token of an active epoch that this process has seen; None: none yet.
        in_snapshot: Whether :meth:`look` reads in the snapshot of a transaction that it is given.
    """

    @property
    def stamp(self) -> Token | None: ...  # noqa: D102 - the class says it
    @property
    def in_snapshot(self) -> bool: ...  # noqa: D102

    def check_engine(self, engine: Engine) -> None:
        """
        Refuse an engine whose writes these tokens cannot follow; no I/O.

        Raises:
            ConfigurationError: With the remedy.
        """

    def attach(self, engine: Engine) -> None:
        """Note that *engine* is bound from now on; no I/O."""

    def detach(self, engine: Engine) -> None:
        """Note that *engine* has no binding left; its open transactions are still announced."""

    async def prepare(self, driver: Driver, engine: Engine) -> None:
        """
        Make tables and compare databases, before the first transaction of a bound engine.

        Args:
            driver: The user's connection, not in a transaction.
            engine: The bound engine.

        Raises:
            ConfigurationError: The engine is of another database than the tokens.
        """

    async def freshen(self) -> None:
        """
        Make the stamp no older than 50 ms, or leave it as it is.

        Guarantees:
            Bounded by the time budget for reads; raises nothing but CancelledError.
        """

    async def announce(self, driver: Driver, engine: Engine, changed: Collection[str]) -> Announcement | None:
        """
        Announce that a transaction is about to commit changes.

        Args:
            driver: The connection, its transaction open.
            engine: The bound engine.
            changed: Identifiers.

        Returns:
            What to resolve when the transaction has ended; None: nothing.

        Raises:
            CommitRefusedError: The changes cannot be announced.
        """

    def resolve(self, announcement: Announcement) -> asyncio.Task[None]:
        """Start to resolve a transaction that ended, by commit or by rollback, in a task of the tokens' own."""

    async def look(self, identifiers: Sequence[str], driver: Driver | None = None) -> Seen:
        """
        Read tokens in one round trip, sent after the call began.

        Args:
            identifiers: What to read, exactly these.
            driver: A connection with a transaction open, for tokens that can be read in its snapshot; else the newest.

        Returns:
            What it showed, records in the order of *identifiers*.

        Raises:
            Absent: The snapshot is older than the tokens.
            Unreachable: Nothing was shown.
        """

    def learn(self, seen: Seen) -> None:
        """Note what a read showed, for the stamp."""

    async def read(self, identifiers: Sequence[str]) -> Mapping[str, str]:
        """Read the tokens of identifiers in one round trip, sent after the call began."""

    async def bump(self, identifiers: Sequence[str]) -> None:
        """Replace the token of each identifier."""

    async def touch(self, *things: Any) -> None:
        """Make everything that depends on *things* change."""

    async def drain(self) -> None:
        """Wait until everything that was to be resolved is."""

    async def aclose(self) -> None:
        """Close what the tokens own; idempotent."""
