"""
Gates: what a database can say about transactions that are about to commit.

A transaction enters the gate before its changes are announced, and gets a mark.
From then on until it ends, the gate says that it *can still commit*; whether it
then has committed or not, nobody needs to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Engine

from akv.errors import ConfigurationError

if TYPE_CHECKING:
    from akv.tokens.drivers import Driver

logger = logging.getLogger("akv")

_FIRST_WAIT: Final = 0.002
_LONGEST_WAIT: Final = 0.25
_WAITS_BEFORE_WARNING: Final = 40
"""About eight seconds."""


class TransactionAborted(Exception):  # noqa: N818 - nothing went wrong here: there is nothing to announce
    """The database has given the transaction up: its COMMIT will be a rollback."""


class Gate(Protocol):
    """
    What one database knows about transactions that entered.

    Asks on connections of its own, whatever event loop runs.
    """

    async def enter(self, driver: Driver) -> str:
        """
        Note inside the transaction of *driver* that it is about to commit.

        Returns:
            The mark: an id without spaces, never used twice.

        Raises:
            TransactionAborted: Its COMMIT will be a rollback.
            Exception: The driver's own, untranslated; the transaction must not commit.
        """

    async def ended(self, marks: Collection[str]) -> set[str]:
        """
        Return those of *marks* whose transaction can no longer commit.

        Raises:
            ConfigurationError: The database cannot say so.
            sqlalchemy.exc.DBAPIError: It cannot be asked.

        Guarantees:
            What such a transaction committed is visible to every snapshot that is taken from now on.
        """

    async def drain(self) -> None:
        """
        Wait until every transaction has ended that had entered before this call.

        Raises:
            ConfigurationError: The database cannot say so.
            sqlalchemy.exc.DBAPIError: It cannot be asked.
        """

    async def fingerprint(self, driver: Driver | None = None) -> str:
        """
        Return the identity of the database, after its tables were made and its settings checked.

        Args:
            driver: A connection outside of any transaction, to ask which database that one is; None: the gate's own.

        Raises:
            ConfigurationError: The database cannot be a gate; says why, and the remedy.
        """

    async def aclose(self) -> None:
        """End what runs in the background; idempotent."""


def gate_for(engine: Engine, *, namespace: str = "akv", create_tables: bool = True) -> Gate:
    """
    Return the gate of the database of *engine*.

    Args:
        engine: Lends its settings; its pool is never used.
        namespace: Of the tokens, the same in every process that shares them.
        create_tables: Whether akv may create its tables.

    Raises:
        ConfigurationError: There is none for such a database; says the remedy.

    Guarantees:
        No I/O.
    """
    name = engine.dialect.name
    if not engine.dialect.is_async:
        raise ConfigurationError(f"the driver {engine.dialect.driver!r} is not asynchronous: use create_async_engine")
    if name == "postgresql":
        from akv.tokens.gates.postgres import PostgresGate

        return PostgresGate(engine, namespace)
    if name in ("mysql", "mariadb"):
        from akv.tokens.gates.mariadb import MariaDBGate

        return MariaDBGate(engine, create_tables=create_tables)
    if name == "sqlite":
        from akv.tokens.gates.sqlite import SQLiteGate

        return SQLiteGate(engine, create_tables=create_tables)
    raise ConfigurationError(f"akv cannot follow transactions of {name}: use PostgreSQL, MariaDB or SQLite")


async def fetch_outside(driver: Driver, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a connection that is in no transaction, and leave none: a snapshot would grow old in it."""
    was_in_transaction = driver.in_transaction
    rows = await driver.fetch(sql)
    if driver.in_transaction and not was_in_transaction:
        await driver.roll_back()
    return rows


async def wait_until_ended(gate: Gate, marks: set[str]) -> None:
    """
    Ask again and again until every transaction of *marks* has ended.

    Args:
        gate: Whom to ask.
        marks: Those that had not ended a moment ago.
    """
    pauses = Pauses("transactions that are about to commit, or were prepared and left behind")
    while marks:
        await pauses.take()
        marks = marks - await gate.ended(marks)


class Pauses:
    """Growing pauses between two questions, and one line in the log when they have become many."""

    def __init__(self, what: str) -> None:
        """
        Args:
            what: What is waited for.
        """
        self._what = what
        self._next = _FIRST_WAIT
        self._taken = 0

    async def take(self) -> None:
        """Wait a little."""
        self._taken += 1
        if self._taken == _WAITS_BEFORE_WARNING:
            logger.warning("keys are private until they have ended: %s", self._what)
        await asyncio.sleep(self._next)
        self._next = min(self._next * 2, _LONGEST_WAIT)
