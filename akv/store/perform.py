"""
Operations on a connection: what one attempt does, whoever owns the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection

from akv.store.operations import (
    Count,
    Decision,
    Delete,
    DeleteWhere,
    Effect,
    Evict,
    Evicted,
    Get,
    Modify,
    Operation,
    Page,
    Pair,
    Purge,
    Record,
    Row,
    Set,
    Tags,
)
from akv.store.statements import Statements
from akv.store.statements.base import DEAD, STATEMENT_BYTES
from akv.store.transact import in_transaction

T = TypeVar("T")

_SPARE = 64
"""Entries that an eviction by bytes looks at beyond its estimate."""


class Failed:
    """The outcome of one operation of a batch that raised while the others went on."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def needs_transaction(operations: Sequence[Operation[Any]], sql: Statements) -> bool:
    """Tell whether operations of one kind are more than one statement, so that AUTOCOMMIT would tear them."""
    first = operations[0]
    if isinstance(first, Set):
        return not sql.traits.exact_keys or _is_cut([op for op in operations if isinstance(op, Set)], sql)
    if isinstance(first, Delete):
        return (
            not sql.deletes_at_once or sum(len(op.touched) for op in operations if isinstance(op, Delete)) > sql.chunk
        )
    return isinstance(first, Modify | DeleteWhere | Purge | Evict)


def _is_cut(sets: Sequence[Set], sql: Statements) -> bool:
    return sum(len(one.records) for one in sets) > sql.chunk or sum(one.size for one in sets) > STATEMENT_BYTES


def complete(conn: Connection, sql: Statements, operations: Sequence[Operation[Any]]) -> list[Any]:
    """
    Run operations of one kind on a connection in AUTOCOMMIT, in a transaction if they need one.

    Returns:
        As :func:`perform`.
    """
    if not needs_transaction(operations, sql):
        return perform(conn, sql, operations)
    return in_transaction(conn, sql.begin, lambda c: perform(c, sql, operations))


def perform(conn: Connection, sql: Statements, operations: Sequence[Operation[Any]]) -> list[Any]:
    """
    Run operations of one kind.

    Args:
        conn: In AUTOCOMMIT or in a transaction; see :func:`needs_transaction`.
        sql: The statements of the store's table.
        operations: In the order of their calls; at least one.

    Returns:
        The result of each, or a :class:`Failed`.
    """
    return _BY_KIND[type(operations[0])](conn, sql, operations)


def _get(conn: Connection, sql: Statements, gets: Sequence[Get]) -> list[Any]:
    if len(gets) == 1:
        return [sql.read(conn, gets[0].pairs)]
    rows = sql.read(conn, list(dict.fromkeys(pair for get in gets for pair in get.pairs)))
    return [_found(rows, get.pairs) for get in gets]


def _found(rows: dict[Pair, Row], pairs: Sequence[Pair]) -> dict[Pair, Row]:
    if len(pairs) > 1:
        return {pair: rows[pair] for pair in pairs if pair in rows}
    row = rows.get(pairs[0]) if pairs else None
    return {} if row is None else {pairs[0]: row}


def _set(conn: Connection, sql: Statements, sets: Sequence[Set]) -> list[Any]:
    last = {pair: record for one in sets for pair, record in zip(one.touched, one.records, strict=True)}
    # In the order of the pairs, so that two processes never wait for each other's rows.
    sql.upsert(conn, [last[pair] for pair in sorted(last)])
    return [None] * len(sets)


def _delete(conn: Connection, sql: Statements, deletes: Sequence[Delete]) -> list[Any]:
    gone = sql.delete(conn, sorted({pair for one in deletes for pair in one.touched}))
    return [
        sum(1 for pair in dict.fromkeys(one.touched) if pair in gone and gone[pair].is_live(one.now)) for one in deletes
    ]


def _modify(conn: Connection, sql: Statements, modifies: Sequence[Modify]) -> list[Any]:
    rows, reserved = _locked(conn, sql, modifies)
    outcomes: list[Any] = []
    changed: dict[Pair, Decision] = {}
    for one in modifies:
        try:
            decision = one.step(rows.get(one.pair))
        except Exception as error:
            outcomes.append(Failed(error))
            continue
        outcomes.append(decision.result)
        if decision.effect is not Effect.KEEP:
            changed[one.pair] = _merged(changed.get(one.pair), decision)
            rows = _after(rows, one.pair, decision)
    _write(conn, sql, changed, reserved)
    return outcomes


def _locked(conn: Connection, sql: Statements, modifies: Sequence[Modify]) -> tuple[dict[Pair, Row], set[Pair]]:
    """Lock all rows, absent ones by a placeholder, and tell which placeholders that needed."""
    pairs = sorted({one.pair for one in modifies})
    values = any(one.reads_value for one in modifies)
    rows = sql.lock(conn, pairs, values=values)
    absent = [pair for pair in pairs if pair not in rows]
    if not absent or not sql.leaves_placeholders():
        return rows, set()
    rows.update(sql.reserve(conn, absent, values=values))
    # What somebody else has put meanwhile is his row, and no placeholder of ours.
    return rows, {pair for pair in absent if pair not in rows or rows[pair].expire == DEAD}


def _merged(earlier: Decision | None, later: Decision) -> Decision:
    """Join two decisions about one row: a renewal of what is only about to be put is a put."""
    if later.effect is Effect.RENEW and earlier is not None and earlier.effect is Effect.PUT:
        return Decision.put(earlier.row.value, later.row.expire, None)
    return later


def _after(rows: dict[Pair, Row], pair: Pair, decision: Decision) -> dict[Pair, Row]:
    """What the next decision about the row will see."""
    if decision.effect is Effect.DROP:
        rows.pop(pair, None)
    elif decision.effect is Effect.PUT:
        rows[pair] = decision.row
    else:
        rows[pair] = Row(rows[pair].value, decision.row.expire)
    return rows


def _write(conn: Connection, sql: Statements, changed: dict[Pair, Decision], reserved: set[Pair]) -> None:
    puts = [Record(*pair, *d.row) for pair, d in sorted(changed.items()) if d.effect is Effect.PUT]
    renewals = [(pair, d.row.expire) for pair, d in sorted(changed.items()) if d.effect is Effect.RENEW]
    drops = {pair for pair, d in changed.items() if d.effect is Effect.DROP}
    drops |= {pair for pair in reserved if pair not in changed}
    if puts:
        sql.upsert(conn, puts)
    if renewals:
        sql.renew(conn, renewals)
    if drops:
        sql.delete(conn, sorted(drops))


def _one_by_one(run: Callable[[Connection, Statements, Any], Any]) -> Callable[..., list[Any]]:
    """Operations that no batch joins."""

    def several(conn: Connection, sql: Statements, operations: Sequence[Any]) -> list[Any]:
        return [run(conn, sql, operation) for operation in operations]

    return several


def _evict(conn: Connection, sql: Statements, evict: Evict) -> Evicted:
    entries, size = sql.usage(conn, sizes=evict.max_bytes is not None)
    rows = 0 if evict.max_entries is None else max(0, entries - evict.max_entries)
    excess = 0 if evict.max_bytes is None else max(0, size - evict.max_bytes)
    if not rows and not excess:
        return Evicted(0, entries, size, is_over=False)
    # Twice what the average entry asks for: what is as different as that is met by the next eviction.
    looked_at = min(evict.limit, max(rows, _SPARE + 2 * excess * entries // max(size, 1)))
    gone: list[Pair] = []
    for pair, weight in sql.soonest(conn, looked_at):
        if len(gone) >= rows and excess <= 0:
            break
        gone.append(pair)
        excess -= weight
    sql.delete(conn, sorted(gone))
    return Evicted(len(gone), entries, size, is_over=len(gone) == looked_at and (looked_at < rows or excess > 0))


_BY_KIND: dict[type, Callable[..., list[Any]]] = {
    Get: _get,
    Set: _set,
    Delete: _delete,
    Modify: _modify,
    DeleteWhere: _one_by_one(lambda conn, sql, op: sql.delete_where(conn, op.where, op.now)),
    Purge: _one_by_one(lambda conn, sql, op: sql.purge(conn, op.now, op.limit)),
    Evict: _one_by_one(_evict),
    Count: _one_by_one(lambda conn, sql, op: sql.count(conn, op.where, op.now)),
    Page: _one_by_one(lambda conn, sql, op: sql.page(conn, op.where, op.now, op.after, op.limit)),
    Tags: _one_by_one(lambda conn, sql, op: sql.tags(conn, op.where, op.now, op.after, op.limit)),
}
