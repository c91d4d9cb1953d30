"""
What a database is asked about the queries of a bound engine, while somebody records what they read.

SQLite's authorizer names every table, those beneath views included. PostgreSQL
and MariaDB have a catalog of what lies beneath the names in a text; it is read on
the connection that the query runs on, when it is older than
:data:`CATALOG_SECONDS` or does not know a name.
"""

from __future__ import annotations

import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Protocol

from akv.tokens.drivers import Dialect, Driver
from akv.tokens.opaque.catalog import Relation
from akv.tokens.opaque.functions import reading_more
from akv.tokens.opaque.information import InformationSchema
from akv.tokens.opaque.queries import is_of_system, shown
from akv.tokens.opaque.readcatalog import (
    MARIADB_FUNCTIONS,
    MARIADB_TABLES,
    MARIADB_VIEWS,
    POSTGRES,
    ReadCatalog,
    Verdict,
    catalog_of_mariadb,
    catalog_of_postgres,
    spellings,
)
from akv.tokens.opaque.sqlite import SqliteWitness
from akv.tokens.opaque.witness import CATALOG_SECONDS, OWN_TABLES, Witness
from akv.tokens.readplans import ReadPlan

_NO_TABLES: Final = OWN_TABLES | {"json_each", "json_tree", "generate_series"}
"""Tables of akv, and functions of SQLite that look like tables."""


class Reader(Protocol):
    """What a database says about a query, beside what SQLAlchemy knows of it."""

    def starting(self, driver: Driver, plan: ReadPlan, sql: str) -> None:
        """A query is about to run; called in a listener, and may await there."""

    def ran(self, driver: Driver, plan: ReadPlan, context: Any, sql: str) -> Verdict:
        """Return what a query that has run depends on, beside the Tables of its plan."""

    def redefined(self) -> None:
        """Views, functions or tables may be others now."""


def reader_for(dialect: str, witness: Witness) -> Reader:
    """Return what is asked about the queries of an engine."""
    if isinstance(witness, SqliteWitness):
        return SqliteReader(witness)
    return PostgresReader() if dialect == "postgresql" else MariaDBReader()


class SqliteReader:
    """The authorizer of each connection."""

    def __init__(self, witness: SqliteWitness) -> None:
        self._witness = witness
        self._names: Mapping[str, Collection[Relation]] = {}

    def starting(self, driver: Driver, plan: ReadPlan, sql: str) -> None:
        """Have it prepared anew, unless what it reads is known: a new authorizer makes SQLite do so."""
        watch = self._witness.watch_of(driver)
        if watch is not None and watch.ask(sql):
            driver.run(driver.connection.set_authorizer(watch.authorize))

    def ran(self, driver: Driver, plan: ReadPlan, context: Any, sql: str) -> Verdict:
        """Return the tables that no Table of the plan stands for."""
        watch = self._witness.watch_of(driver)
        reads = watch.answer(sql) if watch is not None else None
        if plan.query.refusal is not None:
            return Verdict(frozenset(), plan.query.refusal)
        if reads is None:
            return Verdict(frozenset(), f"nobody saw what is read by {shown(sql)}")
        function = reading_more("sqlite", reads.functions, ())
        if function is not None:
            return Verdict(frozenset(), _calls(function, sql))
        if any(is_of_system(Relation(*each)) for each in reads.tables):
            return Verdict(frozenset(), f"the database's own tables change without notice: {shown(sql)}")
        schemas = context.execution_options.get("schema_translate_map")
        others = [Relation(*each) for each in reads.tables if not plan.names(each[1]) and each[1] not in _NO_TABLES]
        real = [each for other in others for each in self._real(driver, other)]
        return Verdict(frozenset(name for each in real for name in spellings(each.name, {each.schema}, schemas)))

    def _real(self, driver: Driver, relation: Relation) -> list[Relation]:
        """Return the tables that a name may stand for: SQLite folds names, those of writers it gives as they are."""
        name = relation.name.lower()
        if name not in self._names:
            self._names = driver.run(_read_names(driver))
        found = [each for each in self._names.get(name, ()) if relation.schema in ("", each.schema)]
        return found or [Relation(relation.schema or "main", relation.name)]

    def redefined(self) -> None:
        """Nothing is to be done: SQLite prepares statements anew after that, and tells."""


async def _read_names(driver: Driver) -> Mapping[str, Collection[Relation]]:
    """Return the tables and views of every open database, by their names in lower case."""
    found: defaultdict[str, list[Relation]] = defaultdict(list)
    for _, schema, _ in await driver.fetch("PRAGMA database_list"):
        quoted = schema.replace('"', '""')
        for (name,) in await driver.fetch(f'SELECT name FROM "{quoted}".sqlite_master'):
            found[name.lower()].append(Relation(schema, name))
    return found


class CatalogReader:
    """What PostgreSQL and MariaDB have in common."""

    dialect: Dialect

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: For the age of the catalog.
        """
        self._clock = clock
        self._catalog: ReadCatalog | None = None
        self._good_until = float("-inf")
        self._distrusted_until = float("-inf")
        self._missed: weakref.WeakSet[ReadPlan] = weakref.WeakSet()
        self._verdicts: weakref.WeakKeyDictionary[ReadPlan, tuple[ReadCatalog, Verdict]] = weakref.WeakKeyDictionary()

    def starting(self, driver: Driver, plan: ReadPlan, sql: str) -> None:
        """Read the catalog if it is old, or does not know what the query names, which it is asked once about."""
        now = self._clock()
        is_new = self._catalog is not None and plan not in self._missed and not self._catalog.knows(plan.relations)
        if now < self._good_until and not is_new:
            return
        if is_new:
            self._missed.add(plan)
        self._good_until = float("-inf")
        try:
            self._catalog = driver.run(self._read_catalog(driver, plan))
        except Exception:
            self._catalog = None  # the query will fail as well, or is refused
        if self._catalog is not None and now >= self._distrusted_until:
            self._good_until = now + CATALOG_SECONDS

    def ran(self, driver: Driver, plan: ReadPlan, context: Any, sql: str) -> Verdict:
        """Return what the plan's text names beside its Tables, and what lies beneath all of them."""
        catalog = self._catalog
        if catalog is None:
            return Verdict(frozenset(), "the catalog of the database could not be read")
        schemas = context.execution_options.get("schema_translate_map")
        known = self._verdicts.get(plan) if not schemas else None
        if known is None or known[0] is not catalog:
            known = (catalog, self._judge(catalog, plan, schemas, sql))
            if not schemas:
                self._verdicts[plan] = known
        return known[1]

    def _judge(self, catalog: ReadCatalog, plan: ReadPlan, schemas: Any, sql: str) -> Verdict:
        function = reading_more(self.dialect, plan.query.calls, catalog.functions)
        if function is not None:
            return Verdict(frozenset(), _calls(function, sql))
        named = {each for relation in self._spelled(plan.named) for each in catalog.spellings(relation, schemas)}
        beyond = catalog.beyond(self._spelled(plan.relations))
        return Verdict(beyond.identifiers | named, plan.query.refusal or beyond.refusal)

    def redefined(self) -> None:
        """Believe no catalog for a while: others see what was defined once it is committed, which nobody tells us."""
        self._good_until = float("-inf")
        self._distrusted_until = self._clock() + CATALOG_SECONDS

    def _spelled(self, relations: Iterable[Relation]) -> Iterable[Relation]:
        """Return relations in every spelling that the catalog may have for them."""
        return relations

    async def _read_catalog(self, driver: Driver, plan: ReadPlan) -> ReadCatalog | None:
        """Return what the catalog says; None: somebody is redefining something, so that it does not say all."""
        raise NotImplementedError


class PostgresReader(CatalogReader):
    """The catalog of PostgreSQL."""

    dialect: Dialect = "postgresql"

    async def _read_catalog(self, driver: Driver, plan: ReadPlan) -> ReadCatalog:
        return catalog_of_postgres(await driver.fetch(POSTGRES))


class MariaDBReader(CatalogReader):
    """The catalog of MariaDB: of the connection's own database, and of others that queries name."""

    dialect: Dialect = "mysql"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._schemas: set[str] = set()

    async def _read_catalog(self, driver: Driver, plan: ReadPlan) -> ReadCatalog | None:
        ((current,),) = await driver.fetch("SELECT DATABASE()")
        self._schemas |= {each.schema for each in plan.relations if each.schema} | ({current} if current else set())
        while True:
            catalog = await self._read(driver, sorted(self._schemas))
            if catalog is None:
                return None
            further = {each.schema for below in catalog.beneath.values() for each in below} - self._schemas
            if not further:
                return catalog
            self._schemas |= further

    def _spelled(self, relations: Iterable[Relation]) -> Iterable[Relation]:
        return {spelled for each in relations for spelled in (each, each._replace(name=each.name.lower()))}

    async def _read(self, driver: Driver, schemas: Collection[str]) -> ReadCatalog | None:
        places = ", ".join(["%s"] * len(schemas)) or "NULL"
        information = InformationSchema(driver)
        catalog = catalog_of_mariadb(
            await driver.fetch(MARIADB_TABLES.format(places), *schemas),  # opens none
            await information.fetch(MARIADB_VIEWS.format(places), *schemas),
            await driver.fetch(MARIADB_FUNCTIONS),
        )
        return catalog if information.is_whole(schemas) else None


def _calls(function: str, sql: str) -> str:
    return f"the function {function!r} may read anything: {shown(sql)}"
