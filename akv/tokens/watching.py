"""
A statement of a bound engine runs while somebody records what it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from akv.own import is_own_statement
from akv.tokens.drivers import Driver
from akv.tokens.opaque.queries import shown
from akv.tokens.readplans import read_plan_of
from akv.tokens.retained import tables_of_state
from akv.tokens.transactions import transaction_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from akv.tokens.backend import Backend
    from akv.tokens.opaque.readers import Reader
    from akv.tokens.reads import Reads

_UNSTAMPED: Final = "it reads in a transaction that began before its engine was bound"


def starting(reads: Reads, reader: Reader, connection: Connection, context: Any, sql: str) -> None:
    """
    A statement is about to run.

    Args:
        reads: The recording of this context.
        reader: Of the engine.
        connection: Runs it.
        context: Its execution context.
        sql: Its text.
    """
    driver = Driver(connection)
    plan = read_plan_of(driver.dialect, sql, context.compiled)
    if plan.is_silent or is_own_statement():
        return
    transaction = transaction_of(connection)
    if transaction is None:
        reads.refuse(_UNSTAMPED)
        return
    reads.read_in(transaction)
    session = transaction.session() if transaction.session is not None else None
    if session is not None:
        reads.meet(session)
    reader.starting(driver, plan, sql)


def ran(
    reads: Reads,
    reader: Reader,
    tokens: Backend | None,
    connection: Connection,
    context: Any,
    sql: str,
    *,
    writes: bool,
) -> None:
    """
    A statement has run.

    Args:
        reads: The recording of this context.
        reader: Of the engine.
        tokens: Those that the engine is bound to now.
        connection: Ran it.
        context: Its execution context.
        sql: Its text.
        writes: Whether it may have changed something: then nobody knows yet whether that stays.
    """
    driver = Driver(connection)
    plan = read_plan_of(driver.dialect, sql, context.compiled)
    if plan.is_silent or is_own_statement():
        return
    verdict = reader.ran(driver, plan, context, sql)
    found = plan.identifiers(driver.dialect, context.compiled_parameters if plan.rows else ())
    found |= verdict.identifiers
    if writes:
        reads.change(shown(sql))
    reads.see(tokens, found, verdict.refusal)
    transaction = transaction_of(connection)
    session = transaction.session() if transaction is not None and transaction.session is not None else None
    if session is not None:
        tables = {f"{name.partition('#')[0]}#*" for name in found}
        reads.give_out(session, lambda state: not tables.isdisjoint(tables_of_state(state)))
