"""
What lies beneath the names in a query, as the catalog says: views, partitions, policies, functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Dialect
from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN, table_identifier, table_name
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.functions import reading_more
from akv.tokens.opaque.queries import query_of
from akv.tokens.opaque.witness import OWN_TABLES

MAX_SCHEMAS: Final = 8
"""A table without schema of which there are more than this counts as any table of the database."""


class Verdict(NamedTuple):
    """
    What a query depends on.

    Attributes:
        identifiers: Rows and tables.
        refusal: Why that is not all; None: it is.
    """

    identifiers: frozenset[str]
    refusal: str | None = None


@dataclass(frozen=True)
class ReadCatalog:
    """
    One reading of a database's catalog, for readers.

    Relations are found by their bare name, whatever the schema: one too many does no harm.

    Attributes:
        schemas: In which schemas there are relations of a name.
        beneath: What is read as well where a relation is: below a view, by a policy, above a partition.
        refusals: Relations of which nobody can tell what they read, with the reason.
        calls: Functions that are called where a relation is read, in lower case.
        functions: Those that users have made, in lower case.
    """

    schemas: Mapping[str, Collection[str]] = field(default_factory=dict)
    beneath: Mapping[str, Collection[Relation]] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, Collection[str]] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()

    def knows(self, relations: Iterable[Relation]) -> bool:
        """Tell whether all of *relations* were there when the catalog was read."""
        return all(name in self.schemas for _, name in relations)

    def beyond(self, relations: Iterable[Relation]) -> Verdict:
        """Return what is read where *relations* are, beside themselves."""
        found: set[str] = set()
        waiting, seen = list(relations), set[str]()
        while waiting:
            name = waiting.pop().name
            if name in seen:
                continue
            seen.add(name)
            if name in self.refusals:
                return Verdict(frozenset(), f"{name!r} is {self.refusals[name]}")
            called = next((each for each in self.calls.get(name, ()) if each in self.functions), None)
            if called is not None:
                return Verdict(frozenset(), f"{name!r} calls the function {called!r}, which may read anything")
            below = self.beneath.get(name, ())
            found.update(each for relation in below for each in self.spellings(relation))
            waiting.extend(below)
        return Verdict(frozenset(found))

    def spellings(self, relation: Relation, schemas: Mapping[str | None, str | None] | None = None) -> set[str]:
        """
        Return the identifiers under which writers may announce changes of a relation.

        Args:
            relation: As a text names it.
            schemas: The ``schema_translate_map`` that it was executed with.
        """
        schema, name = relation
        if name in OWN_TABLES:
            return set()
        where = {schema} if schema else set(self.schemas.get(name, ()))
        if len(where) > MAX_SCHEMAS:
            return {GLOBAL_WRITE_TOKEN}
        return spellings(name, where, schemas)


def spellings(name: str, where: Iterable[str], schemas: Mapping[str | None, str | None] | None) -> set[str]:
    """Return the identifiers of a table that is in one of some schemas: Tables may name that, or leave it out."""
    changes = ChangeSet()
    changes.add_schemas(schemas)
    names = {each for schema in where for each in changes.spellings(schema, name)}
    return set(map(table_identifier, names | {table_name(name)}))


def refused_call(dialect: Dialect, calls: Collection[str], functions: Collection[str]) -> str | None:
    """Return why a query that calls functions cannot be attributed, if it cannot."""
    name = reading_more(dialect, calls, functions)
    return None if name is None else f"it calls the function {name!r}, which may read anything"


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

POSTGRES: Final = """
    WITH user_functions AS (
      SELECT p.oid, p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
      WHERE p.prorettype <> 'trigger'::regtype AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_extension'::regclass AND e.extname IN ('btree_gin', 'btree_gist', 'citext', 'cube',
              'earthdistance', 'fuzzystrmatch', 'hstore', 'intarray', 'isn', 'ltree', 'pg_trgm', 'pgcrypto', 'seg',
              'unaccent', 'uuid-ossp', 'vector'))
    ), relations AS (
      SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    ), reads AS (
      SELECT r.oid AS rule, r.ev_class AS relation, 'pg_rewrite'::regclass AS class
      FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE c.relkind = 'v' AND r.ev_type = '1'
      UNION ALL SELECT oid, polrelid, 'pg_policy'::regclass FROM pg_policy
    )
    SELECT 'relation', nspname::text, relname::text, relkind::text, NULL::text FROM relations
    UNION ALL SELECT 'function', '', proname::text, NULL, NULL FROM user_functions
    UNION ALL
    SELECT 'beneath', v.nspname, v.relname, b.nspname, b.relname
    FROM reads r JOIN pg_depend d ON d.classid = r.class AND d.objid = r.rule AND d.refclassid = 'pg_class'::regclass
    JOIN relations v ON v.oid = r.relation JOIN relations b ON b.oid = d.refobjid WHERE b.oid <> v.oid
    UNION ALL
    SELECT 'calls', v.nspname, v.relname, '', f.proname
    FROM reads r JOIN pg_depend d ON d.classid = r.class AND d.objid = r.rule AND d.refclassid = 'pg_proc'::regclass
    JOIN relations v ON v.oid = r.relation JOIN user_functions f ON f.oid = d.refobjid
    UNION ALL
    SELECT 'beneath', c.nspname, c.relname, p.nspname, p.relname
    FROM pg_inherits i JOIN relations c ON c.oid = i.inhrelid JOIN relations p ON p.oid = i.inhparent
"""


def catalog_of_postgres(rows: Iterable[tuple[Any, ...]]) -> ReadCatalog:
    """Return what the rows of :data:`POSTGRES` say."""
    made = _Making()
    for kind, schema, name, other_schema, other in rows:
        if kind == "relation":
            made.schemas[name].add(schema)
            if other_schema == "f":
                made.refusals[name] = "a foreign table, whose rows change elsewhere"
        elif kind == "function":
            made.functions.add(name.lower())
        elif kind == "calls":
            made.calls[name].add(other.lower())
        else:
            made.beneath[name].add(Relation(other_schema, other))
    return made.catalog()


# --- MariaDB ----------------------------------------------------------------------------------------------------------

MARIADB_FUNCTIONS: Final = (
    "SELECT ROUTINE_NAME FROM information_schema.ROUTINES "
    "WHERE ROUTINE_TYPE = 'FUNCTION' AND ROUTINE_SCHEMA NOT IN ('sys', 'mysql')"
)
MARIADB_TABLES: Final = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ({})"
MARIADB_VIEWS: Final = (
    "SELECT TABLE_SCHEMA, TABLE_NAME, VIEW_DEFINITION FROM information_schema.VIEWS WHERE TABLE_SCHEMA IN ({})"
)


def catalog_of_mariadb(
    tables: Iterable[tuple[Any, ...]], views: Iterable[tuple[Any, ...]], functions: Iterable[tuple[Any, ...]]
) -> ReadCatalog:
    """Return what the rows of the three queries say."""
    made = _Making()
    made.functions.update(str(name).lower() for (name,) in functions)
    for schema, name in tables:
        made.schemas[name].add(schema)
    for schema, name, definition in views:
        query = query_of("mysql", definition or "")
        made.calls[name].update(query.calls)
        if not definition or query.refusal is not None:
            made.refusals[name] = "a view whose definition cannot be read"
        made.beneath[name].update(Relation(each.schema or schema, each.name) for each in query.relations)
    return made.catalog()


class _Making:
    """A catalog that is being read."""

    def __init__(self) -> None:
        self.schemas: defaultdict[str, set[str]] = defaultdict(set)
        self.beneath: defaultdict[str, set[Relation]] = defaultdict(set)
        self.calls: defaultdict[str, set[str]] = defaultdict(set)
        self.refusals: dict[str, str] = {}
        self.functions: set[str] = set()

    def catalog(self) -> ReadCatalog:
        return ReadCatalog(
            dict(self.schemas), dict(self.beneath), self.refusals, dict(self.calls), frozenset(self.functions)
        )
