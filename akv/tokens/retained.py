"""
What instances that are loaded already depend on: their rows, and what hangs on them.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Alias, Column, Select, Table
from sqlalchemy.orm import InstanceState, Mapper, RelationshipDirection, Session
from sqlalchemy.sql import visitors

from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN, table_identifier
from akv.tokens.plans import original_of
from akv.tokens.schema import hierarchy_tables_of, is_own, name_of, tables_of
from akv.tokens.things import vector_of_thing

_attributes: weakref.WeakKeyDictionary[Mapper[Any], Mapping[str, frozenset[str]]] = weakref.WeakKeyDictionary()


def loaded_in(session: Session) -> list[InstanceState[Any]]:
    """Return the instances of which a session holds attributes that it will not load anew."""
    return [state for state in session.identity_map.all_states() if not state.manager.keys().isdisjoint(state.dict)]


def tables_of_state(state: InstanceState[Any]) -> set[str]:
    """Return the tables that an instance consists of, as identifiers of any row."""
    return {table_identifier(name_of(table)) for table in tables_of(state.mapper)}


def dependencies_of(states: Iterable[InstanceState[Any]]) -> set[str]:
    """
    Return what the loaded attributes of instances depend on, and of those that they lead to; nothing is loaded.

    A collection depends on any row of the tables that it is made from.
    """
    found: set[str] = set()
    waiting, seen = list(states), set[int]()
    while waiting:
        state = waiting.pop()
        if id(state) in seen:
            continue
        seen.add(id(state))
        found |= _rows_of(state)
        for name, tables in _derived_attributes(state.mapper).items():
            if name in state.dict:
                related = list(_states_in(state.dict[name]))
                waiting.extend(related)
                if not (related and _is_reference(state.mapper, name)):
                    found |= tables
    return found


def _rows_of(state: InstanceState[Any]) -> set[str]:
    instance = state.obj()
    tables = tables_of(state.mapper)
    if instance is None or not tables or any(map(is_own, tables)):
        return set()
    return {name for name in vector_of_thing(instance) if not name.endswith("#~")}


def _states_in(value: Any) -> Iterator[InstanceState[Any]]:
    members = value.values() if isinstance(value, Mapping) else value
    for member in members if isinstance(members, Collection) and not isinstance(members, str | bytes) else [value]:
        state = getattr(member, "_sa_instance_state", None)
        if isinstance(state, InstanceState):
            yield state


def _is_reference(mapper: Mapper[Any], name: str) -> bool:
    """Tell whether an attribute leads to the one row whose primary key stands in its own row."""
    relationship = mapper.relationships.get(name)
    if relationship is None or relationship.direction is not RelationshipDirection.MANYTOONE:
        return False
    return relationship.secondary is None and set(relationship.remote_side) == set(relationship.mapper.primary_key)


def _derived_attributes(mapper: Mapper[Any]) -> Mapping[str, frozenset[str]]:
    """Return the attributes that are more than columns of the row, with the tables that they are made from."""
    found = _attributes.get(mapper)
    if found is None:
        found = _attributes[mapper] = dict(_find_derived(mapper))
    return found


def _find_derived(mapper: Mapper[Any]) -> Iterator[tuple[str, frozenset[str]]]:
    own = set(tables_of(mapper))
    for relationship in mapper.relationships:
        parts = (relationship.secondary, relationship.primaryjoin, relationship.secondaryjoin)
        beside = {table for part in parts if part is not None for table in _tables_in(part, own)}
        yield relationship.key, _named(beside | set(hierarchy_tables_of(relationship.mapper)))
    for attribute in mapper.column_attrs:
        expressions = [column for column in attribute.columns if not isinstance(column, Column)]
        if ("query_expression", True) in (attribute.strategy_key or ()):
            yield attribute.key, frozenset((GLOBAL_WRITE_TOKEN,))  # each query gives it an expression of its own
        elif expressions:
            yield attribute.key, _named(table for each in expressions for table in _tables_in(each, own))


def _tables_in(expression: Any, own: set[Table]) -> set[Table]:
    """Return the tables that an expression names: *own*, those of its own row, only if it reads other rows of them."""
    elements = list(visitors.iterate(expression))
    owners = (each for element in elements for each in (element, getattr(element, "table", None)))
    found = {original_of(each) for each in owners if isinstance(each, Table)}
    return found if any(_reads_anew(element, own) for element in elements) else found - own


def _reads_anew(element: Any, own: set[Table]) -> bool:
    """Tell whether an element reads tables of the row that it belongs to once more, instead of being about that row."""
    if isinstance(element, Alias):
        return isinstance(element.element, Table) and original_of(element.element) in own
    if not isinstance(element, Select):
        return False
    froms = {original_of(each) if isinstance(each, Table) else each for each in element.get_final_froms()}
    is_told = element._correlate_except is not None or not (element._auto_correlate or element._correlate)
    return is_told or froms <= own


def _named(tables: Iterable[Table]) -> frozenset[str]:
    return frozenset(table_identifier(name_of(table)) for table in tables if not is_own(table))
