"""
MariaDB: the tables that a statement names before its WHERE or SET, and what the catalog says of them.

No parser is needed: a statement names whatever it writes in its head, whose end
is a keyword. What else is written then - beneath a view, by a trigger, a
foreign key or a function - the catalog tells. What is not read for sure counts
as anything.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from akv.tokens.capture import record_widest
from akv.tokens.changes import ChangeSet
from akv.tokens.drivers import Dialect, Driver
from akv.tokens.identifiers import plain_part, table_name
from akv.tokens.opaque.catalog import Catalog, ForeignKey, Relation, add_rows
from akv.tokens.opaque.information import InformationSchema
from akv.tokens.opaque.lexer import Token, lex, statements_of
from akv.tokens.opaque.reading import Effect, Reading
from akv.tokens.opaque.witness import CatalogWitness, Plans

logger = logging.getLogger("akv")

_MODIFIERS: Final = frozenset(("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO"))
_ENDS_OF_HEAD: Final = {
    "UPDATE": frozenset(("SET",)),
    "DELETE": frozenset(("WHERE", "ORDER", "LIMIT", "RETURNING")),
}
_NO_NAMES: Final = frozenset(
    (
        "ALL", "AND", "AS", "BETWEEN", "BY", "CASE", "CROSS", "DELETE", "DISTINCT", "ELSE", "EXISTS", "FOR", "FORCE",
        "FROM", "GROUP", "HAVING", "IGNORE", "IN", "INDEX", "INNER", "IS", "JOIN", "KEY", "LEFT", "LIKE", "LIMIT",
        "LOW_PRIORITY", "NATURAL", "NOT", "NULL", "ON", "OR", "ORDER", "OUTER", "PARTITION", "RIGHT", "SELECT",
        "STRAIGHT_JOIN", "THEN", "UNION", "UPDATE", "USE", "USING", "WHEN", "WHERE", "WITH",
    )
)  # fmt: skip
"""Reserved words: without quotes they are no names."""


@lru_cache(maxsize=1024)
def targets(sql: str) -> frozenset[Relation] | None:
    """
    Return the tables and views that a statement may write itself; the schema is "" where it names none.

    Returns:
        None if that cannot be told. One too many, such as an alias, does no harm.
    """
    lexed = lex("mysql", sql)
    statements = statements_of(lexed.tokens)
    if lexed.unclear or len(statements) != 1:
        return None
    tokens: Sequence[Token] = statements[0]
    if tokens[0].text == "WITH":
        tokens = _main_statement(tokens)
    first = tokens[0].text if tokens else ""
    if first in ("INSERT", "REPLACE"):
        place = 1
        while place < len(tokens) and tokens[place].text in _MODIFIERS:
            place += 1
        return frozenset(_relations(_path(tokens, place))) or None
    if first in _ENDS_OF_HEAD:
        return _named(_head(tokens[1:], _ENDS_OF_HEAD[first])) or None
    return None


def _main_statement(tokens: Sequence[Token]) -> Sequence[Token]:
    """Return what follows the common table expressions."""
    for place, token in _at_top(tokens):
        if token.kind == "word" and token.text in _ENDS_OF_HEAD:
            return tokens[place:]
    return ()


def _head(tokens: Sequence[Token], ends: frozenset[str]) -> Sequence[Token]:
    for place, token in _at_top(tokens):
        if token.kind == "word" and token.text in ends:
            return tokens[:place]
    return tokens


def _at_top(tokens: Sequence[Token]) -> Iterable[tuple[int, Token]]:
    """Yield the tokens that stand in no parentheses."""
    depth = 0
    for place, token in enumerate(tokens):
        if token.kind == "sign":
            depth += {"(": 1, ")": -1}.get(token.text, 0)
        elif depth == 0:
            yield place, token


def _named(tokens: Sequence[Token]) -> frozenset[Relation]:
    found: set[Relation] = set()
    place = 0
    while place < len(tokens):
        path = _path(tokens, place)
        found.update(_relations(path))
        place += max(2 * len(path) - 1, 1)
    return frozenset(found)


def _path(tokens: Sequence[Token], place: int) -> list[str]:
    """Return the names, joined by dots, that begin at a place; text in double quotes may be one."""
    path: list[str] = []
    while place < len(tokens):
        token = tokens[place]
        if not path and token.kind == "word" and token.text in _NO_NAMES:
            break
        if token.kind == "sign" or not token.plain:
            break
        path.append(token.plain)
        if place + 1 >= len(tokens) or tokens[place + 1].text != "." or tokens[place + 1].kind != "sign":
            break
        place += 2
    return path


def _relations(path: list[str]) -> Iterable[Relation]:
    """Yield what a path may name: a table, a table of a schema, or a column of either."""
    for place, name in enumerate(path):
        yield Relation(path[place - 1] if place else "", name)


# --- the catalog ------------------------------------------------------------------------------------------------------

_SCHEMA: Final = "SELECT DATABASE()"
_FUNCTIONS: Final = (
    "SELECT ROUTINE_NAME FROM information_schema.ROUTINES "
    "WHERE ROUTINE_TYPE = 'FUNCTION' AND ROUTINE_SCHEMA NOT IN ('sys', 'mysql')"
)
_GRANTS: Final = "SHOW GRANTS"
_TRIGGERS: Final = "SELECT EVENT_OBJECT_TABLE FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA IN ({})"
_VIEWS: Final = "SELECT TABLE_NAME, VIEW_DEFINITION FROM information_schema.VIEWS WHERE TABLE_SCHEMA IN ({})"
_ACTIONS: Final = (
    "SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME, TABLE_NAME, DELETE_RULE, UPDATE_RULE "
    "FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA IN ({})"
)
_COLUMNS: Final = (
    "SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME, TABLE_NAME, COLUMN_NAME, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME "
    "FROM information_schema.KEY_COLUMN_USAGE WHERE TABLE_SCHEMA IN ({}) AND REFERENCED_TABLE_NAME IS NOT NULL"
)
_MAY_SEE_TRIGGERS: Final = re.compile(r"^GRANT (.*) ON (?:TABLE )?(\S+)\.\* TO ")
_BLIND: Final = (
    "akv may not see the triggers of %s, so each write counts as one of anything: GRANT TRIGGER ON %s.* to the user "
    "that the application connects as"
)
_ACTS: Final = ("CASCADE", "SET NULL", "SET DEFAULT")
_TABLE_OF_VIEW: Final = re.compile(r"`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`")
_CALL_IN_VIEW: Final = re.compile(r"`?([\w$]+)`?\s*\(")


class MariaDBWitness(CatalogWitness):
    """The names in statements, and the catalog: read for the connection's own database and others that come up."""

    dialect: Dialect = "mysql"

    def __init__(self, engine: Any, **options: Any) -> None:
        super().__init__(engine, **options)
        self._schemas: set[str] = set()
        self._current = ""

    def interrupted(self, driver: Driver, plans: Plans, changes: ChangeSet, rows: int) -> None:
        """Count a statement that failed: the rows of earlier parameters stayed, and nobody says how many."""
        if plans is None:
            changes.anything = True
        else:
            record_widest(plans, changes)

    async def settle(self, driver: Driver, changes: ChangeSet) -> None:
        """Follow views and foreign keys; triggers and functions may have written anything."""
        catalog = await self._fresh_catalog(driver, changes)
        catalog.follow(changes)
        if (
            driver.connection in self._lent
            or catalog.may_fire(changes.tables)
            or not changes.calls.isdisjoint(catalog.functions)
        ):
            changes.anything = True
        changes.redefined = False
        changes.calls.clear()

    def _count_call(self, changes: ChangeSet) -> None:
        changes.anything = True

    def _count_statement(self, context: Any, reading: Reading, changes: ChangeSet) -> None:
        found = targets(context.statement) if reading.effect is Effect.WRITES else None
        if found is None:
            changes.anything = True
            return
        for schema, name in found:
            for spelling in {name, name.lower()}:
                add_rows(changes, Relation(schema or self._current, spelling))

    def _covers(self, changes: ChangeSet) -> bool:
        return self._wanted(changes) <= self._schemas

    def _wanted(self, changes: ChangeSet) -> set[str]:
        named = {plain_part(name.partition(".")[0]) for name in changes.tables if "." in name}
        return named | changes.schemas

    async def _read_catalog(self, driver: Driver, changes: ChangeSet) -> Catalog:
        ((current,),) = await driver.fetch(_SCHEMA)
        self._current = current or ""
        self._schemas |= self._wanted(changes) | {self._current}
        schemas, information = sorted(self._schemas), InformationSchema(driver)

        async def fetch(sql: str) -> list[tuple[Any, ...]]:
            return await information.fetch(sql.format(", ".join(["%s"] * len(schemas))), *schemas)

        functions = [str(name).lower() for (name,) in await driver.fetch(_FUNCTIONS)]
        is_blind = self._is_blind([str(grant) for (grant,) in await driver.fetch(_GRANTS)])
        views = await fetch(_VIEWS)
        catalog = Catalog(
            functions=frozenset(functions),
            views=frozenset(str(name).lower() for name, definition in views if _calls_any(definition or "", functions)),
            triggers=frozenset(
                (
                    *(table_name(table) for (table,) in await fetch(_TRIGGERS)),
                    *(table_name(view) for view, definition in views if not definition),
                )
            ),
            keys=_keys(await fetch(_ACTIONS), await fetch(_COLUMNS)),
            beneath={table_name(view): _tables_of_view(definition or "") for view, definition in views},
            is_blind=is_blind,
        )
        return catalog if information.is_whole(schemas) else replace(catalog, is_blind=True, is_whole=False)

    def _is_blind(self, grants: list[str]) -> bool:
        if not self._current or _sees_triggers(grants, self._current):
            return False
        if not self._catalog.is_blind:
            logger.warning(_BLIND, self._current, self._current)
        return True


def _sees_triggers(grants: Iterable[str], schema: str) -> bool:
    for grant in grants:
        match = _MAY_SEE_TRIGGERS.match(grant)
        if match is None or not re.search(r"\b(?:ALL PRIVILEGES|TRIGGER)\b", match[1]):
            continue
        pattern = re.escape(match[2].strip("`").replace("\\_", "\0").replace("\\%", "\1"))
        pattern = pattern.replace("_", ".").replace("%", ".*").replace("\0", "_").replace("\1", "%")
        if match[2] == "*" or re.fullmatch(pattern, schema):
            return True
    return False


def _calls_any(definition: str, functions: Iterable[str]) -> bool:
    called = {name.lower() for name in _CALL_IN_VIEW.findall(definition)}
    return not called.isdisjoint(functions)


def _tables_of_view(definition: str) -> set[Relation]:
    """Return the tables that a view names: MariaDB keeps it with every name quoted and qualified."""
    return {
        Relation(schema.replace("``", "`"), table.replace("``", "`"))
        for schema, table in _TABLE_OF_VIEW.findall(definition)
    }


def _keys(actions: Iterable[tuple[Any, ...]], columns: Iterable[tuple[Any, ...]]) -> dict[str, list[ForeignKey]]:
    rules = {(schema, name, child): (on_delete, on_update) for schema, name, child, on_delete, on_update in actions}
    members: defaultdict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for schema, name, child, local, parent, column in columns:
        members[schema, name, child, parent].append((local, column))
    keys: defaultdict[str, list[ForeignKey]] = defaultdict(list)
    for (schema, name, child, parent), pairs in members.items():
        on_delete, on_update = rules.get((schema, name, child), ("CASCADE", "CASCADE"))
        if on_delete in _ACTS or on_update in _ACTS:
            local, referred = (frozenset(side) for side in zip(*pairs, strict=True))
            keys[table_name(parent)].append(
                ForeignKey(
                    Relation(schema, child),
                    local,
                    referred,
                    on_delete == "CASCADE",
                    on_delete in _ACTS,
                    on_update in _ACTS,
                )
            )
    return dict(keys)
