"""
The gate of PostgreSQL: transaction ids and one shared advisory lock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from akv.errors import ConfigurationError
from akv.tokens.connections import OwnConnections
from akv.tokens.gates import Pauses, TransactionAborted, fetch_outside, wait_until_ended

if TYPE_CHECKING:
    from akv.tokens.drivers import Driver

_ABORTED: Final = "25P02"
_NOT_ALLOWED: Final = "42501"
_OLDEST: Final = 130_000
_PREPARED: Final = "-1/"
"""How pg_locks begins the name of a transaction that was prepared before the server started; its id follows."""

_HERE: Final = (
    # Asked in each statement, because something between us and the server may send two to different ones.
    "WITH here AS MATERIALIZED (SELECT pg_is_in_recovery() AS is_standby,"
    " CAST(current_setting('server_version_num') AS integer) AS version,"
    " (SELECT CAST(system_identifier AS text) FROM pg_control_system()) || '/' ||"
    " (SELECT CAST(oid AS text) FROM pg_database WHERE datname = current_database()) AS identity)"
)
_IDENTITY: Final = f"{_HERE} SELECT here.* FROM here"
_ENDED: Final = text(
    # A snapshot shows an id that is below all that run, or has ended. An id that no snapshot can know yet either runs,
    # or is of a future that a crash has undone: then the next id to be given away is not above it. The CASE sees to it
    # that an id is spent on that question only where there is one.
    f"{_HERE} SELECT here.*, asked.id, CASE WHEN here.is_standby THEN false"
    " WHEN CAST(asked.id AS xid8) < pg_snapshot_xmax(pg_current_snapshot())"
    " THEN pg_visible_in_snapshot(CAST(asked.id AS xid8), pg_current_snapshot())"
    " ELSE CAST(asked.id AS xid8) >= pg_current_xact_id() END "
    "FROM here, unnest(string_to_array(:ids, ',')) AS asked (id)"
)
_HOLDERS: Final = (
    # By transaction id and not by process: a prepared transaction has none. The lock table is read once, so that both
    # of a transaction's locks are of one instant.
    f"{_HERE}, locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted) "
    "SELECT here.*, CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text),"
    " gate.virtualtransaction, CAST(own.transactionid AS text) "
    "FROM here LEFT JOIN locks AS gate ON gate.locktype = 'advisory' AND gate.objsubid = 1"
    " AND gate.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND gate.classid = CAST('{high}' AS oid) AND gate.objid = CAST('{low}' AS oid) "
    "LEFT JOIN locks AS own ON own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock'"
    " AND own.virtualtransaction = gate.virtualtransaction"
)
_STANDBY: Final = (
    "this PostgreSQL is a standby (in recovery), which does not know what runs on its primary: bind an engine that is "
    "connected to the primary (target_session_attrs=read-write)"
)
_ANOTHER: Final = (
    "this PostgreSQL database is {}, another one than before ({}): what a transaction may still do, only its own "
    "server knows; bind an engine that always reaches the same one"
)
_CONTROL_DATA: Final = (
    "akv tells databases apart by pg_control_system(): GRANT EXECUTE ON FUNCTION pg_control_system() to the database "
    "user"
)


class PostgresGate:
    """
    A transaction that entered has an id of its own, and holds the lock of its namespace until it ends.

    The lock finds those that entered, the id says whether they have ended. A
    transaction that was prepared and left behind keeps both.
    """

    def __init__(self, engine: Engine, namespace: str) -> None:
        """
        Args:
            engine: Lends its settings.
            namespace: Names the lock.
        """
        key = _lock_of(namespace)
        self._own = OwnConnections(engine)
        self._identity: str | None = None
        self._enter = f"SELECT CAST(pg_current_xact_id() AS text), pg_try_advisory_xact_lock_shared({key})"
        self._holders = text(_HOLDERS.format(high=key >> 32, low=key & 0xFFFFFFFF))
        self._key = key

    async def enter(self, driver: Driver) -> str:
        """Take an id and the lock in one statement; see :class:`Gate`."""
        try:
            ((xid, is_locked),) = await driver.fetch(self._enter)
        except Exception as error:
            if getattr(error, "sqlstate", None) == _ABORTED:
                raise TransactionAborted from error
            raise
        if not is_locked:
            raise ConfigurationError(
                f"somebody else holds the advisory lock {self._key} of akv exclusively: see pg_locks"
            )
        return f"{xid}:{token_hex(8)}"

    async def ended(self, marks: Collection[str]) -> set[str]:
        """See :class:`Gate`; a mark that is none of this gate's has not ended."""
        ids = {mark: xid for mark in marks if (xid := mark.partition(":")[0]).isdecimal()}
        if not ids:
            return set()
        over = await self._own.run(lambda connection: self._ended(connection, set(ids.values())))
        return {mark for mark, xid in ids.items() if xid in over}

    async def drain(self) -> None:
        """See :class:`Gate`."""
        pauses = Pauses("somebody who holds the lock of the gate and has no transaction id")
        while (inside := await self._own.run(self._inside)) is None:
            await pauses.take()
        await wait_until_ended(self, inside)

    async def fingerprint(self, driver: Driver | None = None) -> str:
        """See :class:`Gate`: the cluster's identifier and the database's number."""
        try:
            if driver is None:
                (row,) = await self._own.run(lambda connection: _fetch(connection, text(_IDENTITY)))
            else:
                (row,) = await fetch_outside(driver, _IDENTITY)
        except Exception as error:
            if getattr(getattr(error, "orig", error), "sqlstate", None) == _NOT_ALLOWED:
                raise ConfigurationError(_CONTROL_DATA) from error
            raise
        identity = _checked(*row)
        if driver is None and self._identity is None:
            self._identity = identity
        return identity

    async def aclose(self) -> None:
        """See :class:`Gate`."""
        await self._own.aclose()

    async def _ended(self, connection: AsyncConnection, ids: set[str]) -> set[str]:
        rows = await self._ask(connection, _ENDED, ids=",".join(sorted(ids)))
        return {xid for xid, has_ended in rows if has_ended}

    async def _inside(self, connection: AsyncConnection) -> set[str] | None:
        """Return all who hold the lock and can still commit; None: it cannot be told just now."""
        ids = _ids_of(await self._ask(connection, self._holders))
        return ids and ids - await self._ended(connection, ids)

    async def _ask(self, connection: AsyncConnection, statement: TextClause, **parameters: Any) -> list[Any]:
        """Run a statement that begins with ``_HERE``, and return its rows without that."""
        rows = await _fetch(connection, statement, **parameters)
        identity = _checked(*rows[0][:3])
        if self._identity is None:
            self._identity = identity
        if identity != self._identity:
            raise ConfigurationError(_ANOTHER.format(identity, self._identity))
        return [row[3:] for row in rows]


def _checked(is_standby: bool, version: int, identity: str) -> str:
    if is_standby:
        raise ConfigurationError(_STANDBY)
    if version < _OLDEST:
        raise ConfigurationError(f"tokens need PostgreSQL 13 or newer, this is {version // 10_000}")
    return identity


def _ids_of(rows: Sequence[tuple[str, str | None, str | None]]) -> set[str] | None:
    """Return the ids of holders; None if one showed none, for instance because it has just ended."""
    ids = set()
    for newest, holder, xid in rows:
        if holder is None:
            continue
        if xid is None and holder.startswith(_PREPARED):
            xid = holder.removeprefix(_PREPARED)
        if xid is None:
            return None
        ids.add(str(_in_full(int(xid), int(newest))))
    return ids


def _in_full(xid: int, newest: int) -> int:
    """Return the 64 bits of an id of which the lock table keeps 32: those next to *newest*."""
    distance = (xid - newest + 2**31) % 2**32 - 2**31
    return newest + distance


def _lock_of(namespace: str) -> int:
    """Return the number of a namespace's lock: 63 bits, so that it has no sign."""
    return int.from_bytes(blake2b(f"akv gate {namespace}".encode(), digest_size=8).digest()) >> 1


async def _fetch(connection: AsyncConnection, statement: TextClause, **parameters: Any) -> Sequence[Any]:
    return (await connection.execute(statement, parameters)).all()
