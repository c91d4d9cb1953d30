"""
An executed statement -> what it changed.

What its parameters do not tell exactly is widened: to "rows of this table",
never to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, time
from itertools import product
from typing import Any, TypeAlias

from sqlalchemy import Column, Table
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import InstanceState

from akv.tokens.changes import ChangeSet, Unresolved
from akv.tokens.plans import Kind, Parameters, Pins, Plan, Unknown
from akv.tokens.schema import (
    Action,
    Key,
    Link,
    attribute_of,
    is_own,
    name_of,
    relations_of,
    replaces_on_conflict,
    row_of,
)

_Row: TypeAlias = tuple[Key, dict[Link, "list[Key] | None"]]
"""A row that a statement wrote, and the parents that it pointed and points at where the statement tells."""


def record(plans: Iterable[Plan], context: Any, result: Any, changes: ChangeSet, *, in_flush: bool) -> None:
    """
    Add what an execution changed.

    Args:
        plans: Of its compiled statement.
        context: Its execution context.
        result: Its cursor result.
        changes: Where to add.
        in_flush: Whether parents that the statement does not tell may still be told by the flush it belongs to.
    """
    for plan in plans:
        if is_own(plan.table):
            continue
        changes.add_context(plan.table.metadata, context.execution_options.get("schema_translate_map"))
        recorder = _Recorder(changes, in_flush)
        try:
            for row in list(_rows(plan, context, result)):
                recorder.row(plan.table, *row, kind=plan.kind)
        except (Unknown, sa_exc.InvalidRequestError):
            recorder.rows(plan.table)
        for table in plan.beside:
            recorder.rows(table)
        recorder.actions(plan)


def record_widest(plans: Iterable[Plan], changes: ChangeSet) -> None:
    """Add all that a statement may have changed of which nobody knows how far it came."""
    for plan in plans:
        if not is_own(plan.table):
            recorder = _Recorder(changes, in_flush=False)
            recorder.rows(plan.table)
            for table in plan.beside:
                recorder.rows(table)
            recorder.actions(plan)


def resolve(changes: ChangeSet, find: Callable[[Table, Key], Sequence[InstanceState[Any]]]) -> None:
    """
    Name the parents of rows that a flush wrote.

    Args:
        changes: Its unresolved rows are resolved; those that *find* does not know become "some row of the parent".
        find: Returns the instances of a row whose loaded attributes can be believed; two where one replaced another.
    """
    unresolved, changes.unresolved = changes.unresolved, []
    recorder = _Recorder(changes, in_flush=False)
    for missing in unresolved:
        states = find(missing.table, missing.key)
        told = any(missing.new or state.key is not None for state in states)
        for keys in [referring_values(state, missing.link) for state in states] if told else [None]:
            recorder.parents(missing.link, keys)


def referring_values(state: InstanceState[Any], link: Link) -> list[Key] | None:
    """
    Return the parent keys that an instance points and pointed at since it was loaded, without loading anything.

    Returns:
        Every combination, members being None where it points at nothing; None if that cannot be told.
    """
    possible = []
    for column in link.local:
        name = attribute_of(state.mapper, column)
        values = None if name is None else _values_of(state, name, column)
        if values is None:
            return None
        possible.append(values)
    return list(product(*possible))


def _values_of(state: InstanceState[Any], name: str, column: Column[Any]) -> set[Any] | None:
    history = state.attrs[name].history
    values = {*history.added, *history.unchanged, *history.deleted}
    if state.key is None:
        return None if not values and column.server_default is not None else values or {None}
    overwritten_unseen = bool(history.added) and not history.deleted
    return None if not values or overwritten_unseen or column.server_onupdate is not None else values


def record_soft_parents(state: InstanceState[Any], links: Iterable[Link], changes: ChangeSet, believed: bool) -> None:
    """Add the parents that a written instance points at by relationships without foreign key."""
    recorder = _Recorder(changes, in_flush=False)
    for link in links:
        recorder.parents(link, referring_values(state, link) if believed else None)


class _Recorder:
    """Turns rows into identifiers: their own, those of the rows they continue, and those of their parents."""

    def __init__(self, changes: ChangeSet, in_flush: bool) -> None:
        self._changes = changes
        self._in_flush = in_flush

    def row(self, table: Table, key: Key, parents: Mapping[Link, list[Key] | None], *, kind: Kind) -> None:
        row = row_of(table, key)
        if row is None or not self._is_kept(key, given=kind == "insert"):
            self._changes.add_unknown(name_of(table))
        else:
            self._changes.add_row(name_of(table), row)
        for link in relations_of(table).parents:
            known = parents.get(link)
            if link.extends:
                self.row(link.parent, key_of(link, table, key), {}, kind=kind)
            elif known is None and self._in_flush:
                self._changes.unresolved.append(Unresolved(table, key, link, kind == "insert"))
            else:
                self.parents(link, known)

    def rows(self, table: Table, *, but: Link | None = None) -> None:
        """Some rows of *table* changed; *but* leads to parents that are known to have changed anyway."""
        self._changes.add_unknown(name_of(table))
        for link in relations_of(table).parents:
            if link is not but and link.parent is not table:
                self.rows(link.parent) if link.extends else self.parents(link, None)

    def parents(self, link: Link, keys: Iterable[Key] | None) -> None:
        name = name_of(link.parent)
        if keys is None:
            self._changes.add_unknown(name)
            return
        for key in keys:
            if None in key:
                continue
            row = row_of(link.parent, key) if link.exact else None
            if row is None or not self._is_kept(key, given=False):
                self._changes.add_unknown(name)
            else:
                self._changes.add_row(name, row, touches_table=False)

    def _is_kept(self, key: Key, *, given: bool) -> bool:
        """
        Tell whether a row that a key finds is spelled as the key is.

        To MariaDB 'BOB ' is 'bob' in most collations, unless the row is *given* just now; and it rounds times.
        """
        if self._changes.dialect != "mysql":
            return True
        return not any(
            value.microsecond if isinstance(value, datetime | time) else isinstance(value, str) and not given
            for value in key
        )

    def actions(self, plan: Plan) -> None:
        """Add what the database does on its own when rows go, or when columns change that others refer to."""
        relations = relations_of(plan.table)
        lost = plan.kind == "delete" or plan.widened or replaces_on_conflict(plan.table)
        self._changes.add_effect(plan.table.name, lost=lost, columns=plan.columns)
        if lost:
            self._follow(relations.deleted, {plan.table})
        if plan.widened or plan.kind == "update":
            self._follow([action for action in relations.rekeyed if _may_rekey(plan, action.link)], {plan.table})

    def _follow(self, actions: Iterable[Action], seen: set[Table]) -> None:
        for action in actions:
            self._changes.beside_flush = True
            self.rows(action.child, but=action.link)
            if action.cascades and action.child not in seen:
                seen.add(action.child)
                relations = relations_of(action.child)
                self._follow((*relations.deleted, *relations.rekeyed), seen)


def _may_rekey(plan: Plan, link: Link) -> bool:
    keys = {column.key for column in plan.table.primary_key.columns}
    return plan.widened or not link.exact or bool(keys & plan.assigned)


def key_of(link: Link, table: Table, key: Key) -> Key:
    """Return the parent's key of a row that continues the parent's."""
    places = {column: place for place, column in enumerate(table.primary_key.columns)}
    return tuple(key[places[column]] for column in link.local)


def _rows(plan: Plan, context: Any, result: Any) -> Iterator[_Row]:
    if plan.widened:
        raise Unknown
    if plan.kind == "insert":
        return _inserted(plan, context.compiled_parameters, result)
    return (
        row
        for parameters in context.compiled_parameters
        for pins in plan.alternatives
        for row in _hit(plan, pins, parameters)
    )


def _inserted(plan: Plan, sets: Sequence[Parameters], result: Any) -> Iterator[_Row]:
    columns = list(plan.table.primary_key.columns)
    if any(f"{column.key}_m0" in sets[0] for column in plan.table.columns):
        raise Unknown  # VALUES (...), (...)
    keys: Sequence[Any]
    if all(parameters.get(column.key) is not None for parameters in sets for column in columns):
        keys = [tuple(parameters[column.key] for column in columns) for parameters in sets]
    else:
        keys = [tuple(key) for key in result.inserted_primary_key_rows]
    if len(keys) != len(sets) or any(value is None for key in keys for value in key):
        raise Unknown
    for key, parameters in zip(keys, sets, strict=True):
        yield key, {link: _given(link, parameters) for link in relations_of(plan.table).parents}


def _given(link: Link, parameters: Parameters) -> list[Key] | None:
    if all(column.key in parameters for column in link.local):
        return [tuple(parameters[column.key] for column in link.local)]
    return None


def _hit(plan: Plan, pins: Pins, parameters: Parameters) -> Iterator[_Row]:
    """Return the rows that agree with one alternative: as they were, and as they became where their key was set."""
    columns = list(plan.table.primary_key.columns)
    links = {link: _pointed_at(plan, link, pins, parameters) for link in relations_of(plan.table).parents}
    for key in possible_keys(pins, columns, parameters):
        yield key, links
        if any(column.key in plan.assigned for column in columns):
            yield (
                tuple(_after(plan, column, value, parameters) for column, value in zip(columns, key, strict=True)),
                links,
            )


def possible_keys(pins: Pins, columns: Sequence[Column[Any]], parameters: Parameters) -> Iterable[Key]:
    """
    Return every combination of values that *columns* may have.

    Raises:
        Unknown: One of them may have any.
    """
    if all(column.key in pins for column in columns):
        return product(*(pins[column.key](parameters) for column in columns))
    found: list[dict[str, Any]] = [{}]
    for names, read in pins.items():
        group = (names,) if isinstance(names, str) else names
        rows = [(value,) for value in read(parameters)] if isinstance(names, str) else read(parameters)
        if any(column.key in group for column in columns):
            found = [{**each, **dict(zip(group, row, strict=True))} for each in found for row in rows]
    try:
        return dict.fromkeys(tuple(each[column.key] for column in columns) for each in found)
    except KeyError:
        raise Unknown from None


def _pointed_at(plan: Plan, link: Link, pins: Pins, parameters: Parameters) -> list[Key] | None:
    """Return the parents before and after, if the statement alone tells both."""
    try:
        before = [*possible_keys(pins, link.local, parameters)]
    except Unknown:
        return None
    after = [
        tuple(_after(plan, column, value, parameters) for column, value in zip(link.local, key, strict=True))
        for key in before
    ]
    return [*before, *after]


def _after(plan: Plan, column: Column[Any], before: Any, parameters: Parameters) -> Any:
    if column.key not in plan.assigned:
        return before
    if column.key not in parameters:
        raise Unknown  # set by an expression
    return parameters[column.key]


def accounts_for(plans: Sequence[Plan], context: Any, result: Any, changed: int) -> bool:
    """
    Tell whether a statement's plans explain how many rows SQLite says it changed.

    Args:
        plans: Of its compiled statement.
        context: Its execution context.
        result: Its cursor result.
        changed: Rows changed, those of triggers and foreign key actions included.
    """
    if len(plans) != 1 or relations_of(plans[0].table).deleted or relations_of(plans[0].table).rekeyed:
        return True  # declared actions of the database, which are recorded
    if plans[0].kind == "insert" and not plans[0].widened and len(context.compiled_parameters) >= changed:
        return True
    return bool(result.returns_rows or result.rowcount < 0 or changed <= result.rowcount)
