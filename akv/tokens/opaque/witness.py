"""
The face of a database as a witness of its own writes, and what those that keep a catalog have in common.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine, event

from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Dialect, Driver
from akv.tokens.opaque.catalog import Catalog
from akv.tokens.opaque.reading import NOTHING, Effect, Reading, reading_of
from akv.tokens.plans import Plan

OWN_TABLES: Final = frozenset(("akv_token", "akv_gate", "akv_outbox"))
CATALOG_SECONDS: Final = 60
"""A catalog older than this is read again before it is believed: others may have added triggers."""
_NAMES: Final = 10_000
"""How many names are remembered as harmless."""
Plans = Sequence[Plan] | None


class Witness(Protocol):
    """
    What a database itself says about writes, for one bound engine.

    All but :meth:`prepare` and :meth:`settle` answer from memory.
    """

    async def prepare(self, driver: Driver) -> None:
        """Learn what there is to know before the first transaction; *driver* is not in one."""

    def begin(self, connection: Connection, driver: Driver) -> None:
        """A transaction begins; called in a listener, and may await there."""

    def read(self, sql: str, compiled: Any) -> Reading:
        """
        Return what a statement says that is about to run.

        Returns:
            NOTHING also where it could call functions, but calls none that writes.
        """

    def starting(self, driver: Driver, sql: str) -> None:
        """A statement that writes is about to be executed, or a further batch of it."""

    def ran(self, driver: Driver, context: Any, reading: Reading, changes: ChangeSet, rows: int) -> None:
        """
        Add what a statement changed that no plan describes.

        Args:
            driver: Ran it.
            context: Its execution context.
            reading: What it says.
            changes: Where to add.
            rows: By how much :attr:`Driver.rows_changed` grew.
        """

    def executed(
        self,
        driver: Driver,
        reading: Reading,
        plans: Sequence[Plan],
        context: Any,
        result: Any,
        changes: ChangeSet,
        rows: int,
    ) -> None:
        """Add what a statement changed beside what its plans say, which is recorded already; as for :meth:`ran`."""

    def interrupted(self, driver: Driver, plans: Plans, changes: ChangeSet, rows: int) -> None:
        """Add all that a statement may have changed that began and never reported back."""

    def must_settle(self, driver: Driver, changes: ChangeSet) -> bool:
        """Tell whether *changes* of a transaction about to commit are not all that it changed, as far as we know."""

    async def settle(self, driver: Driver, changes: ChangeSet) -> None:
        """
        Add what the database alone knows of a transaction that is about to commit.

        Raises:
            Exception: The driver's own, where the COMMIT would fail as well.

        Guarantees:
            A transaction that PostgreSQL has given up is left as it is.
        """

    def redefined(self) -> None:
        """Triggers, views or functions may be others now, for everybody."""


class CatalogWitness:
    """
    What PostgreSQL and MariaDB have in common: no counter of rows, and a catalog of what happens on its own.

    A catalog is read when the engine's first transaction begins, and again by whoever commits changes with one that
    is older than :data:`CATALOG_SECONDS`, or after DDL of this process.
    """

    dialect: Dialect

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            engine: The bound engine.
            clock: For the age of the catalog.
        """
        self._clock = clock
        self._catalog = Catalog()
        self._good_until = float("-inf")
        self._distrusted_until = float("-inf")
        self._harmless: set[str] = set()
        self._lent: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watch_driver_connections(engine)

    async def prepare(self, driver: Driver) -> None:
        """Read the catalog."""
        await self._fresh_catalog(driver, ChangeSet())

    def begin(self, connection: Connection, driver: Driver) -> None:
        """Nothing is to be done."""

    def read(self, sql: str, compiled: Any) -> Reading:
        """Return what a statement says; NOTHING where it calls no function that may write."""
        reading = reading_of(self.dialect, sql, compiled)
        if reading.effect is not Effect.CALLS or self._calls_writer(reading):
            return reading
        if self._clock() < self._good_until:
            if len(self._harmless) > _NAMES:
                self._harmless.clear()
            self._harmless |= reading.calls
            return NOTHING
        return NOTHING if reading.calls <= self._harmless else reading

    def starting(self, driver: Driver, sql: str) -> None:
        """Nothing is to be done."""

    def executed(
        self,
        driver: Driver,
        reading: Reading,
        plans: Sequence[Plan],
        context: Any,
        result: Any,
        changes: ChangeSet,
        rows: int,
    ) -> None:
        """Note the functions that a statement called."""
        if self._calls_writer(reading):
            self._count_call(changes)
        elif self._clock() >= self._good_until and not reading.calls <= self._harmless:
            changes.calls |= reading.calls

    def ran(self, driver: Driver, context: Any, reading: Reading, changes: ChangeSet, rows: int) -> None:
        """Note a statement that no plan describes."""
        changes.add_schemas(context.execution_options.get("schema_translate_map"))
        changes.redefined |= reading.redefines
        if self._calls_writer(reading):
            self._count_call(changes)
        else:
            changes.calls |= reading.calls - self._harmless
        if reading.effect is not Effect.CALLS:
            self._count_statement(context, reading, changes)

    def must_settle(self, driver: Driver, changes: ChangeSet) -> bool:
        """Tell whether something happened that only catalog or database can tell."""
        if changes.opaque or changes.redefined or changes.calls or driver.connection in self._lent:
            return True
        return bool(changes.tables) and (self._clock() >= self._good_until or self._catalog.concerns(changes.tables))

    def redefined(self) -> None:
        """Believe the catalog no more."""
        self._good_until = float("-inf")

    def _calls_writer(self, reading: Reading) -> bool:
        catalog = self._catalog
        return not (reading.calls.isdisjoint(catalog.functions) and reading.names.isdisjoint(catalog.views))

    async def _fresh_catalog(self, driver: Driver, changes: ChangeSet) -> Catalog:
        """
        Return a catalog that holds for the transaction of *driver*.

        One that was read in a transaction with DDL is for that alone. Until others see that DDL too, which nobody
        tells us, no catalog is kept.
        """
        now = self._clock()
        if now < self._good_until and not changes.redefined and self._covers(changes):
            return self._catalog
        catalog = await self._read_catalog(driver, changes)
        self._good_until = float("-inf")
        if changes.redefined:
            self._distrusted_until = now + CATALOG_SECONDS
            return catalog
        self._catalog = catalog
        if now >= self._distrusted_until and catalog.is_whole:
            self._good_until = now + CATALOG_SECONDS
        return catalog

    def _covers(self, changes: ChangeSet) -> bool:
        return True

    async def _read_catalog(self, driver: Driver, changes: ChangeSet) -> Catalog:
        raise NotImplementedError

    def _count_call(self, changes: ChangeSet) -> None:
        raise NotImplementedError

    def _count_statement(self, context: Any, reading: Reading, changes: ChangeSet) -> None:
        raise NotImplementedError

    def _watch_driver_connections(self, engine: Engine) -> None:
        """Learn who takes the driver's connection itself: what runs there, no listener sees."""
        dialect = engine.dialect
        give = dialect.get_driver_connection
        lent = self._lent

        def lend(dbapi: Any) -> Any:
            driver_connection = give(dbapi)
            lent.add(driver_connection)
            return driver_connection

        dialect.get_driver_connection = lend  # type: ignore[method-assign, assignment]
        # Whoever had it before must not use it any more, nor whoever prepared it when it was connected.
        event.listen(engine, "checkout", lambda dbapi, _record, _proxy: lent.discard(dbapi.driver_connection))
