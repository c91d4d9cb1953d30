"""
What is read and written: items, of which each has one live note, and labels that stand for things outside.

Rows are numbered: items first, then the note of each item, then labels. The version of a note is its ``number``:
it is renewed by deleting it and inserting its successor, under the lock of its item.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, ForeignKey, insert, select, union_all
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tests.history.log import Value, pack

ITEMS: Final = 64
SHELVES: Final = 4
LABELS: Final = 8
ROWS: Final = 2 * ITEMS

ITEM_TABLE: Final = ITEMS
"""Subjects below are items with their notes; from here on they are whole tables, mixtures and labels."""
NOTE_TABLE: Final = ITEMS + 1
FIRST_MIXED: Final = ITEMS + 2
FIRST_LABEL: Final = FIRST_MIXED + LABELS
SUBJECTS: Final = FIRST_LABEL + LABELS


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "h_items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shelf: Mapped[int]
    version: Mapped[int] = mapped_column(BigInteger)
    tag: Mapped[int] = mapped_column(BigInteger)
    notes: Mapped[list[Note]] = relationship(back_populates="item", lazy="raise")


class Note(Base):
    __tablename__ = "h_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("h_items.id"), index=True)
    number: Mapped[int] = mapped_column(BigInteger)
    tag: Mapped[int] = mapped_column(BigInteger)
    item: Mapped[Item] = relationship(back_populates="notes", lazy="raise")


items: Any = Item.__table__
notes: Any = Note.__table__


def note_row(item: int) -> int:
    return ITEMS + item


def label_row(label: int) -> int:
    return ROWS + label


def label_of(subject: int) -> int | None:
    """Return the label that is part of a subject."""
    return (subject - FIRST_MIXED) % LABELS if subject >= FIRST_MIXED else None


def mixed_item(subject: int) -> int:
    """Return the item of a mixture, which is an item, the table of notes and a label."""
    return (subject - FIRST_MIXED) * 3 % ITEMS


def create(connection: Connection) -> None:
    """Make the tables and their rows, all of version 0."""
    Base.metadata.drop_all(connection)
    Base.metadata.create_all(connection)
    connection.execute(
        insert(items), [{"id": item, "shelf": item % SHELVES, "version": 0, "tag": 0} for item in range(ITEMS)]
    )
    connection.execute(insert(notes), [{"item_id": item, "number": 0, "tag": 0} for item in range(ITEMS)])


@cache
def statement(subject: int) -> Any:
    """Return the one statement, hence of one snapshot, that finds the rows of a subject."""
    item_rows = select(items.c.id, items.c.version, items.c.tag)
    note_rows = select(notes.c.item_id + ITEMS, notes.c.number, notes.c.tag)
    if subject == ITEM_TABLE:
        return item_rows
    if subject == NOTE_TABLE:
        return note_rows
    if subject >= FIRST_MIXED:
        return union_all(item_rows.where(items.c.id == mixed_item(subject)), note_rows)
    return union_all(item_rows.where(items.c.id == subject), note_rows.where(notes.c.item_id == subject))


def value_of(found: Iterable[Any]) -> Value:
    """Return the rows that :func:`statement` found, in an order that is always the same."""
    return pack(sorted(map(tuple, found)))


def value_of_instance(item: Item) -> Value:
    """Return what a loaded instance and its note say."""
    (note,) = item.notes
    return pack([(item.id, item.version, item.tag), (note_row(item.id), note.number, note.tag)])


def audit_statement(dialect: str) -> str:
    """Return SQL for all rows of the database as one text, "row:version:tag" with commas between."""
    listed = "(SELECT id AS r, version AS v, tag AS t FROM h_items"
    listed += f" UNION ALL SELECT item_id + {ITEMS}, number, tag FROM h_notes) AS x"
    if dialect == "postgresql":
        return f"SELECT string_agg(r || ':' || v || ':' || t, ',') FROM {listed}"
    if dialect == "sqlite":
        return f"SELECT group_concat(r || ':' || v || ':' || t, ',') FROM {listed}"
    return f"SELECT group_concat(concat(r, ':', v, ':', t) SEPARATOR ',') FROM {listed}"
