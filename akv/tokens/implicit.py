"""
MariaDB: what becomes visible before COMMIT is announced before the statement that makes it so.

DDL and its kin commit what is open; a procedure may; and tables without
transactions show a change at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from akv.aio import join_coroutine
from akv.errors import UntrackedWriteError
from akv.tokens import commits
from akv.tokens.capture import record_widest
from akv.tokens.changes import ChangeSet
from akv.tokens.definitions import changes_no_row, first_words
from akv.tokens.drivers import Driver
from akv.tokens.opaque import Effect, Reading
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.information import SOMETHING, InformationSchema
from akv.tokens.opaque.mariadb import targets
from akv.tokens.plans import plans_of
from akv.tokens.transactions import DECLARED, Transaction

TABLES_SECONDS: Final = 60
"""What is known of tables without transactions is believed so long."""

_RUNS_ANYTHING: Final = frozenset(("CALL", "EXECUTE"))
_Named: TypeAlias = "tuple[str, str]"
"""Schema ("" for the default one) and name, in lower case."""

_DATABASE: Final = "SELECT LOWER(DATABASE())"
_OWN_SCHEMAS: Final = "('mysql', 'information_schema', 'performance_schema', 'sys')"
_WITHOUT_TRANSACTIONS: Final = (
    "SELECT LOWER(t.TABLE_SCHEMA), LOWER(t.TABLE_NAME) FROM information_schema.TABLES t "
    "LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE "
    f"WHERE t.TABLE_TYPE = 'BASE TABLE' AND NOT e.TRANSACTIONS <=> 'YES' AND t.TABLE_SCHEMA NOT IN {_OWN_SCHEMAS}"
)
_DEFINITIONS: Final = (
    "SELECT LOWER(TABLE_SCHEMA), LOWER(TABLE_NAME), LOWER(VIEW_DEFINITION) FROM information_schema.VIEWS "
    f"WHERE TABLE_SCHEMA NOT IN {_OWN_SCHEMAS} "
    "UNION ALL SELECT LOWER(EVENT_OBJECT_SCHEMA), LOWER(EVENT_OBJECT_TABLE), LOWER(ACTION_STATEMENT) "
    f"FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA NOT IN {_OWN_SCHEMAS} "
    "UNION ALL SELECT LOWER(ROUTINE_SCHEMA), LOWER(ROUTINE_NAME), LOWER(ROUTINE_DEFINITION) "
    f"FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA NOT IN {_OWN_SCHEMAS}"
)
"""What a write may go through: views, the tables of triggers, functions."""


class Implicit:
    """What MariaDB commits on its own, for one bound engine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: For the age of what is known of tables.
        """
        self._clock = clock
        self._good_until = float("-inf")
        self._tables: frozenset[_Named] = frozenset()

    def starting(self, transaction: Transaction, context: Any, reading: Reading, sql: str) -> None:
        """
        Announce what a statement makes visible that is about to run; called in a listener.

        Raises:
            UntrackedWriteError: It runs what may commit by itself, and nobody declared what that changes.
            CommitRefusedError: The changes cannot be announced; the transaction is open as before.
        """
        if reading.effect is Effect.COMMITS:
            self._before_commit(transaction, context, sql)
        elif transaction.is_tracking and self._shows_at_once(transaction.driver, context, reading, sql):
            commits.announce_early(transaction, _widest(context))

    def ran(self, transaction: Transaction, reading: Reading, sql: str) -> None:
        """A statement has run: if it commits, all that was announced is over."""
        if reading.effect is Effect.COMMITS and _RUNS_ANYTHING.isdisjoint(first_words(sql)):
            self._good_until = float("-inf")
            transaction.restart()
            commits.resolve(transaction)

    def _before_commit(self, transaction: Transaction, context: Any, sql: str) -> None:
        is_declared = DECLARED in context.execution_options
        if not is_declared and not _RUNS_ANYTHING.isdisjoint(first_words(sql)):
            raise UntrackedWriteError(
                f"{sql.strip()!r} may commit on its own, and then its changes would not be announced: if it does "
                f"not, say what it changes: execution_options({DECLARED}=[User, 'akv:orders#*'])"
            )
        if not transaction.driver.commits_alone:
            changes = transaction.so_far()
            changes.anything |= not is_declared and not changes_no_row("mysql", sql)
            commits.announce_early(transaction, changes)

    def _shows_at_once(self, driver: Driver, context: Any, reading: Reading, sql: str) -> bool:
        if self._clock() >= self._good_until:
            driver.run(join_coroutine(self._read(driver)))
        if not self._tables:
            return False
        written = _written(context, sql)
        return (
            written is None
            or SOMETHING in self._tables
            or not self._tables.isdisjoint((*written, *(("", name) for name in reading.calls)))
        )

    async def _read(self, driver: Driver) -> None:
        with driver.raising_as_sqlalchemy():
            found = await _without_transactions(InformationSchema(driver))
            ((default,),) = await driver.fetch(_DATABASE) if found else [("",)]
        self._tables = frozenset((*found, *(("", name) for schema, name in found if schema == default)))
        self._good_until = self._clock() + TABLES_SECONDS


async def _without_transactions(information: InformationSchema) -> set[_Named]:
    """Return tables without transactions, what leads to one, and what may: whatever is being redefined."""
    tables = {(schema, name) for schema, name in await information.fetch(_WITHOUT_TRANSACTIONS)}
    tables |= _lower(information.skipped)
    definitions = await information.fetch(_DEFINITIONS) if tables else []
    return _leading_to(tables, definitions) | _lower(information.skipped)


def _lower(relations: Iterable[Relation]) -> set[_Named]:
    return {(schema.lower(), name.lower()) for schema, name in relations}


def _leading_to(tables: set[_Named], definitions: Iterable[tuple[str, str, str | None]]) -> set[_Named]:
    """Return *tables* and all whose definition mentions one of them, or one that does; unreadable ones may."""
    found, left = tables, list(definitions)
    while True:
        more = {(schema, name) for schema, name, definition in left if _mentions(definition, schema, found)} - found
        if not more:
            return found
        found = found | more


def _mentions(definition: str | None, schema: str, wanted: Iterable[_Named]) -> bool:
    return not definition or any(name in definition and (home == schema or home in definition) for home, name in wanted)


def _written(context: Any, sql: str) -> set[_Named] | None:
    """Return what a statement names that it writes; None: nobody knows."""
    plans = plans_of(context.compiled) if context.compiled is not None else None
    if plans is not None:
        schemas = context.execution_options.get("schema_translate_map") or {}
        tables = {table for plan in plans for table in (plan.table, *plan.beside)}
        return {((schemas.get(each.schema, each.schema) or "").lower(), each.name.lower()) for each in tables}
    found = targets(sql)
    return {(relation.schema.lower(), relation.name.lower()) for relation in found} if found is not None else None


def _widest(context: Any) -> ChangeSet:
    changes = ChangeSet("mysql")
    plans = plans_of(context.compiled) if context.compiled is not None else None
    if plans is None:
        changes.anything = True
    else:
        record_widest(plans, changes)
    return changes
