"""
SQLite: its authorizer names the tables of every statement that it prepares, those of triggers and cascades included.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from akv.tokens.capture import accounts_for, record_widest
from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Driver
from akv.tokens.opaque.catalog import Relation, add_rows
from akv.tokens.opaque.reading import Reading, reading_of
from akv.tokens.opaque.witness import OWN_TABLES, Plans
from akv.tokens.plans import Plan

_WRITES: Final = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_DROP_TABLE}
_STATEMENTS: Final = 256
"""How many texts are kept for each connection: more than the driver keeps prepared (128, unless told otherwise)."""

_PREPARING_ITSELF: Final = ("sqlite_master", "ROWID")
"""What SQLite reads on its own while it makes a table-valued function known."""

_Written = frozenset[tuple[str, str, bool]]
"""Schema and name of tables that a statement writes, and whether the statement itself does not name them."""


class Reads(NamedTuple):
    """
    What a statement reads.

    Attributes:
        tables: Schema and name of each, those beneath views included; where no column of it is read, SQLite gives no
            schema, and the name as the statement spells it.
        functions: Names of the functions that it calls, in lower case.
    """

    tables: frozenset[tuple[str, str]]
    functions: frozenset[str]


class Watch:
    """
    The authorizer of one connection: SQL -> what it writes, and what it reads while somebody asks.

    A statement is prepared once and then kept by the driver, so what it writes is kept here as long. The callback
    runs in the connection's own thread, while a coroutine awaits the statement.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[tuple[str, str, bool]]] = {}
        self._running: str | None = None
        self._read: dict[str, tuple[set[tuple[str, str]], set[str]]] = {}
        self._asked: str | None = None
        self._missed = True

    def start(self, sql: str) -> None:
        """*sql* is about to be executed."""
        self._running = sql
        if sql in self._known:
            self._known[sql] = self._known.pop(sql)  # the least recently used goes first
        elif len(self._known) >= _STATEMENTS:
            del self._known[next(iter(self._known))]

    def finish(self) -> _Written | None:
        """
        Return what the text that was started last writes: all batches of a statement write the same.

        Returns:
            None if nobody knows.
        """
        sql, self._running = self._running, None
        return frozenset(self._known[sql]) if sql in self._known else None

    def authorize(self, action: int, first: str | None, second: str | None, schema: str | None, by: str | None) -> int:
        """Note what is being prepared; permit everything."""
        if action == sqlite3.SQLITE_READ or action == sqlite3.SQLITE_FUNCTION:
            self._note_read(action, first, second, schema)
        elif self._running is None:
            return sqlite3.SQLITE_OK
        elif action in _WRITES and first is not None:
            self._known.setdefault(self._running, set()).add((schema or "main", first, by is not None))
        elif action == sqlite3.SQLITE_ALTER_TABLE and second is not None:
            self._known.setdefault(self._running, set()).add((first or "main", second, False))
        return sqlite3.SQLITE_OK

    def ask(self, sql: str) -> bool:
        """
        Note what *sql* reads, which is about to be executed.

        Returns:
            Whether it must be prepared anew for that: it was not noted before, or others were prepared unnoted and
            it may have been among them.
        """
        self.begin()
        if self._missed:
            self._read.clear()
            self._missed = False
        self._asked = sql
        is_known = sql in self._read
        if is_known:
            self._read[sql] = self._read.pop(sql)
        elif len(self._read) >= _STATEMENTS:
            del self._read[next(iter(self._read))]
        self._read.setdefault(sql, (set(), set()))
        return not is_known

    def answer(self, sql: str) -> Reads | None:
        """Return what a text that was asked for reads; None if nobody knows."""
        asked, self._asked = self._asked, None
        found = self._read.get(sql) if asked == sql else None
        return Reads(frozenset(found[0]), frozenset(found[1])) if found is not None else None

    def begin(self) -> None:
        """Forget who asked and never got an answer, for the statement failed; and what was noted since."""
        self._missed = self._missed or self._asked is not None
        self._asked = None

    def _note_read(self, action: int, first: str | None, second: str | None, schema: str | None) -> None:
        if self._asked is None:
            self._missed = True
            return
        tables, functions = self._read.setdefault(self._asked, (set(), set()))
        if action == sqlite3.SQLITE_FUNCTION:
            functions.add((second or "").lower())
        elif first is not None and (first, second) != _PREPARING_ITSELF:
            tables.add((schema or "", first))


class SqliteWitness:
    """The authorizer of each connection, and SQLite's count of changed rows as a net below it."""

    def __init__(self, engine: Engine) -> None:
        self._watches: weakref.WeakKeyDictionary[Any, Watch] = weakref.WeakKeyDictionary()

    async def prepare(self, driver: Driver) -> None:
        """Nothing is to be learned beforehand."""

    def begin(self, connection: Connection, driver: Driver) -> None:
        """Watch a connection from its first transaction on; an authorizer that it had is replaced."""
        watch = self._watches.get(driver.connection)
        if watch is None:
            watch = self._watches[driver.connection] = Watch()
            driver.run(driver.connection.set_authorizer(watch.authorize))
        watch.begin()

    def watch_of(self, driver: Driver) -> Watch | None:
        """Return what watches a connection."""
        return self._watches.get(driver.connection)

    def read(self, sql: str, compiled: Any) -> Reading:
        """Return what a statement says."""
        return reading_of("sqlite", sql, compiled)

    def starting(self, driver: Driver, sql: str) -> None:
        """Attribute to *sql* what is prepared from now on."""
        watch = self._watches.get(driver.connection)
        if watch is not None:
            watch.start(sql)

    def ran(self, driver: Driver, context: Any, reading: Reading, changes: ChangeSet, rows: int) -> None:
        """Add the tables that a statement wrote."""
        changes.add_schemas(context.execution_options.get("schema_translate_map"))
        written = self._finish(driver)
        if not written:
            changes.anything |= written is None or rows > 0
        elif rows > 0 or any(name.startswith("sqlite_") for _, name, _ in written):
            self._add(written, changes)

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
        """Add the tables that triggers and foreign keys wrote, and see that the number of rows fits."""
        written = self._finish(driver)
        if rows <= 0:
            return
        if written is None:
            changes.anything = True
            return
        own = {plan.table.name.lower() for plan in plans}
        self._add(frozenset(each for each in written if each[2] or each[1].lower() not in own), changes)
        if not accounts_for(plans, context, result, rows):
            record_widest(plans, changes)
            changes.anything |= len(written) <= 1

    def interrupted(self, driver: Driver, plans: Plans, changes: ChangeSet, rows: int) -> None:
        """Count a statement that failed half-way, if rows of it stayed."""
        written = self._finish(driver)
        if rows <= 0:
            return
        if plans is not None:
            record_widest(plans, changes)
        if written is None:
            changes.anything = True
        else:
            self._add(written, changes)

    def must_settle(self, driver: Driver, changes: ChangeSet) -> bool:
        """Never: SQLite has told already."""
        return False

    async def settle(self, driver: Driver, changes: ChangeSet) -> None:
        """Nothing is to be done."""

    def redefined(self) -> None:
        """Nothing is kept about writes that could be wrong now."""

    def _finish(self, driver: Driver) -> _Written | None:
        watch = self._watches.get(driver.connection)
        return watch.finish() if watch is not None else None

    def _add(self, written: _Written, changes: ChangeSet) -> None:
        for schema, name, _ in written:
            if name not in OWN_TABLES and not name.startswith("sqlite_"):
                add_rows(changes, Relation(schema, name))
