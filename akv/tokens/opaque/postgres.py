"""
PostgreSQL: the locks that a transaction holds name every table that it wrote, by whatever means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from akv.tokens.capture import record_widest
from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Dialect, Driver
from akv.tokens.identifiers import table_name
from akv.tokens.opaque.catalog import Catalog, ForeignKey, Relation, add_rows
from akv.tokens.opaque.reading import Reading
from akv.tokens.opaque.witness import OWN_TABLES, CatalogWitness, Plans

_FAILED: Final = "25P02"
_FIRE_NOW: Final = "SET CONSTRAINTS ALL IMMEDIATE"
_LOCKED: Final = """
    SELECT n.nspname::text, c.relname::text, c.relkind::text
    FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE pg_current_xact_id_if_assigned() IS NOT NULL AND l.pid = pg_backend_pid() AND l.granted
      AND l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation >= 16384 AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
        'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
"""What this transaction has locked as writers do; nothing if it wrote nothing. Rolling a savepoint back unlocks."""

_WITH_ROWS: Final = ("r", "p", "f", "v", "m")
_CATALOG: Final = """
    WITH written_by_users AS (
      SELECT p.oid, p.proname, l.lanname FROM pg_proc p
      JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
      WHERE p.provolatile = 'v' AND p.prokind IN ('f', 'w') AND p.prorettype <> 'trigger'::regtype
        AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_extension'::regclass AND e.extname IN ('uuid-ossp', 'pgcrypto', 'pg_trgm'))
    ), calling AS (
      SELECT d.classid, d.objid FROM pg_depend d JOIN written_by_users f ON f.oid = d.refobjid
      WHERE d.refclassid = 'pg_proc'::regclass AND f.lanname <> 'c'
    ), found AS (
      SELECT 'trigger' AS kind, tgrelid AS relation FROM pg_trigger WHERE NOT tgisinternal
      UNION ALL SELECT 'deferrable', tgrelid FROM pg_trigger WHERE NOT tgisinternal AND tgdeferrable
      UNION ALL SELECT 'trigger', ev_class FROM pg_rewrite WHERE ev_type <> '1' AND ev_class >= 16384
      UNION ALL SELECT 'trigger', oid FROM pg_class WHERE relkind = 'v' AND oid >= 16384
      UNION ALL SELECT 'trigger', a.adrelid FROM calling JOIN pg_attrdef a ON a.oid = objid
        WHERE classid = 'pg_attrdef'::regclass
      UNION ALL SELECT 'trigger', c.conrelid FROM calling JOIN pg_constraint c ON c.oid = objid
        WHERE classid = 'pg_constraint'::regclass AND c.conrelid <> 0
      UNION ALL SELECT 'view', r.ev_class FROM calling JOIN pg_rewrite r ON r.oid = objid
        WHERE classid = 'pg_rewrite'::regclass
      UNION ALL SELECT 'view', p.polrelid FROM calling JOIN pg_policy p ON p.oid = objid
        WHERE classid = 'pg_policy'::regclass
      UNION ALL SELECT 'trigger', p.polrelid FROM calling JOIN pg_policy p ON p.oid = objid
        WHERE classid = 'pg_policy'::regclass
    )
    SELECT f.kind, n.nspname::text, c.relname::text, NULL::text, NULL::text, NULL::text[], NULL::text[], NULL::text
    FROM found f JOIN pg_class c ON c.oid = f.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL
    SELECT 'function', '', proname::text, NULL, NULL, NULL, NULL, NULL FROM written_by_users
    UNION ALL
    SELECT 'part', pn.nspname, p.relname, cn.nspname, c.relname, NULL, NULL, NULL
    FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
    JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f')
    UNION ALL
    SELECT 'key', pn.nspname, p.relname, cn.nspname, c.relname,
      ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = k.confrelid AND attnum = ANY (k.confkey)),
      ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = k.conrelid AND attnum = ANY (k.conkey)),
      k.confdeltype::text || k.confupdtype::text
    FROM pg_constraint k JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
    JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
    WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
"""


class PostgresWitness(CatalogWitness):
    """
    The lock audit.

    It runs before COMMIT of a transaction in which something ran that nobody described (text, functions, the
    driver's own connection), or that wrote a table where triggers, rules or defaults may write others. Locks do not
    tell rows, nor which of several triggers wrote: whatever is locked counts as "rows of this table". They do not tell
    either that a trigger wrote other rows of its own table, so tables with triggers always count so.
    """

    dialect: Dialect = "postgresql"

    def interrupted(self, driver: Driver, plans: Plans, changes: ChangeSet, rows: int) -> None:
        """Count a statement of unknown end: mostly it has failed, and with it what it did."""
        if plans is None:
            changes.opaque = True
        else:
            record_widest(plans, changes)

    async def settle(self, driver: Driver, changes: ChangeSet) -> None:
        """Ask for the locks where that is needed, and follow foreign keys and partitions."""
        try:
            await self._settle(driver, changes)
        except Exception as error:
            if getattr(error, "sqlstate", None) != _FAILED:
                raise  # else its COMMIT will be a rollback

    async def _settle(self, driver: Driver, changes: ChangeSet) -> None:
        catalog = await self._fresh_catalog(driver, changes)
        opaque = changes.opaque or not changes.calls.isdisjoint(catalog.functions) or driver.connection in self._lent
        catalog.follow(changes)
        if opaque or catalog.may_fire(changes.tables):
            await self._audit(driver, changes, catalog)
            catalog.follow(changes)
        changes.opaque = changes.redefined = False
        changes.calls.clear()

    async def _audit(self, driver: Driver, changes: ChangeSet, catalog: Catalog) -> None:
        if catalog.deferrable:
            await driver.fetch(_FIRE_NOW)
        for schema, name, kind in await driver.fetch(_LOCKED):
            if name is None:
                changes.anything = True  # dropped
            elif kind in _WITH_ROWS and name not in OWN_TABLES:
                add_rows(changes, Relation(schema, name), lost=False, columns=frozenset())  # cascades lock, too

    async def _read_catalog(self, driver: Driver, changes: ChangeSet) -> Catalog:
        return catalog_of(await driver.fetch(_CATALOG))

    def _count_call(self, changes: ChangeSet) -> None:
        changes.opaque = True

    def _count_statement(self, context: Any, reading: Reading, changes: ChangeSet) -> None:
        changes.opaque = True


def catalog_of(rows: Iterable[tuple[Any, ...]]) -> Catalog:
    """Return what the rows of the catalog query say."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    keys: defaultdict[str, list[ForeignKey]] = defaultdict(list)
    wholes: defaultdict[str, set[Relation]] = defaultdict(set)
    parts: defaultdict[str, set[Relation]] = defaultdict(set)
    for kind, schema, name, other_schema, other_name, columns, local, actions in rows:
        if kind == "part":
            wholes[table_name(other_name)].add(Relation(schema, name))
            parts[table_name(name)].add(Relation(other_schema, other_name))
        elif kind == "key":
            on_delete, on_update = actions
            child = Relation(other_schema, other_name)
            keys[table_name(name)].append(
                ForeignKey(
                    child, frozenset(local), frozenset(columns), on_delete == "c", on_delete in "nd", on_update in "cnd"
                )
            )
        else:
            names[kind].add(name)
    return Catalog(
        functions=frozenset(map(str.lower, names["function"])),
        views=frozenset(map(str.lower, names["view"])),
        triggers=_with_ancestors(map(table_name, names["trigger"]), wholes),
        keys=keys,
        wholes=wholes,
        parts=parts,
        deferrable=bool(names["deferrable"]),
    )


def _with_ancestors(tables: Iterable[str], wholes: defaultdict[str, set[Relation]]) -> frozenset[str]:
    """Add the tables whose rows may go to partitions of these."""
    found: set[str] = set()
    waiting = list(tables)
    while waiting:
        table = waiting.pop()
        if table not in found:
            found.add(table)
            waiting.extend(table_name(parent.name) for parent in wholes.get(table, ()))
    return frozenset(found)
