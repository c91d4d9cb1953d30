"""
Writes: every way in which an application may change a row, and what may happen to it on the way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from akv.tokens.identifiers import Label
from tests.history.board import Board, tag_of_label
from tests.history.log import Kind, LogWriter, pack
from tests.history.reads import Reader, load
from tests.history.rows import ITEMS, LABELS, SHELVES, Item, Note, items, label_row, note_row, notes
from tests.history.steps import PLAN, WRITING, Plan, Writing, reach
from tests.history.systems import MARIADB, SQLITE, Spec, System

Way = Callable[[Writing], Awaitable[None]]

PREPARED: Final = "prepared transaction left behind"
SAVEPOINT: Final = "savepoint rolled back"
SERIALIZATION: Final = "serialization failure"

_LIFE: Final = 2**40
"""Tags of one life of a process."""
_MEETING: Final = 2
_LONGEST_MEETING: Final = 0.05
_BUMP_ITEM: Final = {"version": items.c.version + 1}


class RolledBack(Exception):
    """A write that ends as it was meant to: not at all."""


class Writer:
    """Writes in one process."""

    def __init__(
        self,
        system: System,
        spec: Spec,
        reader: Reader,
        log: LogWriter,
        board: Board,
        random_: random.Random,
        *,
        alone: bool,
    ) -> None:
        self._system = system
        self._reader = reader
        self._log = log
        self._board = board
        self._random = random_
        self._labels = [label for label in range(LABELS) if label % spec.options["processes"] == spec.slot]
        self._tag = (spec.slot * 2**16 + spec.life + 1) * _LIFE
        self._hot: int = spec.options.get("hot", ITEMS)
        self._may_interfere = spec.database != MARIADB and not alone
        self._engine = system.engine
        serializable: AsyncEngine = self._engine
        if spec.database != SQLITE:
            serializable = self._engine.execution_options(isolation_level="SERIALIZABLE")
        self._session = async_sessionmaker(self._engine)
        self._serializable = async_sessionmaker(serializable)
        ways: dict[str, tuple[Way, float]] = {
            "flush": (self._flush, 6),
            "flush many": (self._flush_many, 1),
            "bulk": (self._bulk, 3),
            "shelf": (self._shelf, 0.3),
            "core": (self._core, 3),
            "sql": (self._sql, 0.3),
            "note": (self._note, 3),
            "note by core": (self._note_by_core, 0.3),
            "savepoint": (self._savepoint, 3),
            "serializable": (self._conflict, 1.5),
            "rolled back": (self._rolled_back, 1),
            "prepared": (self._leave_prepared, 0.6 if PREPARED in spec.faults else 0),
            "touch": (self._touch, 0.5),
            "label": (self._label, 1.5 if self._labels else 0),
        }
        chosen = [each for name, each in ways.items() if name in spec.options.get("writes", ways)]
        self._ways = [way for way, _ in chosen], [weight for _, weight in chosen]

    async def write(self, plan: Plan | None) -> None:
        """
        Write once, whatever happens to it, and log how it ended.

        Raises:
            Exception: The write failed.
        """
        (way,) = self._random.choices(*self._ways)
        writing = self._new()
        task = asyncio.get_running_loop().create_task(self._perform(way, writing, plan))
        if plan is not None:
            plan.task = task
        try:
            await task
        except asyncio.CancelledError:
            if plan is None or plan.action != "cancel":
                raise
        except RolledBack:
            pass
        finally:
            if not (writing.sent or writing.prepared):
                self._log.append(Kind.UNDONE, key=writing.tag)

    async def _perform(self, way: Way, writing: Writing, plan: Plan | None) -> None:
        PLAN.set(plan)
        WRITING.set(writing)
        await way(writing)
        if writing.sent:
            self._log.append(Kind.ACKED, key=writing.tag)
        await reach("W5")

    def _new(self) -> Writing:
        self._tag += 1
        return Writing(self._tag)

    # --- by sessions

    async def _flush(self, writing: Writing) -> None:
        async with self._session() as session:
            await self._change(session, self._item(), writing)
            if self._random.random() < 0.1:
                await self._reader.in_own(session, self._item_or(writing), writing.rows)
            await session.commit()

    async def _flush_many(self, writing: Writing) -> None:
        async with self._session.begin() as session:
            for item in self._items(3):
                await self._change(session, item, writing)

    async def _bulk(self, writing: Writing) -> None:
        item = self._item()
        async with self._session() as session:
            await session.execute(
                update(Item).where(Item.id == item).values(version=Item.version + 1, tag=writing.tag),
                execution_options={"synchronize_session": False},
            )
            await self._note_items(session, [item], writing)
            await session.commit()

    async def _shelf(self, writing: Writing) -> None:
        shelf = self._random.randrange(SHELVES)
        async with self._session() as session:
            of_shelf = list(await session.scalars(_lock([Item.shelf == shelf])))
            await session.execute(
                update(Item).where(Item.shelf == shelf).values(version=Item.version + 1, tag=writing.tag),
                execution_options={"synchronize_session": False},
            )
            await self._note_items(session, of_shelf, writing)
            await session.commit()

    async def _note(self, writing: Writing) -> None:
        async with self._session() as session:
            item = await self._locked(session, self._item())
            (old,) = item.notes
            new = Note(item_id=item.id, number=old.number + 1, tag=writing.tag)
            writing.rows.append((note_row(item.id), new.number, writing.tag))
            await session.delete(old)
            session.add(new)
            await session.commit()

    async def _savepoint(self, writing: Writing) -> None:
        dropped, kept = self._items(2)
        async with self._session() as session:
            savepoint = await session.begin_nested()
            await self._change(session, dropped, Writing(self._never(writing)))
            await savepoint.rollback()
            self._log.fault(SAVEPOINT)
            async with session.begin_nested():
                await self._change(session, kept, writing)
            await self._think()
            await session.commit()

    async def _rolled_back(self, writing: Writing) -> None:
        async with self._session() as session:
            await self._change(session, self._item(), writing)
            if self._random.random() < 0.3:
                await self._reader.in_own(session, self._item_or(writing), writing.rows)
            await session.rollback()
        raise RolledBack

    async def _conflict(self, writing: Writing) -> None:
        """
        Let another write come between the snapshot and the update, as often as not.

        On MariaDB a read of a serializable transaction locks, so two of these have to meet on few items.
        """
        item = self._item() if self._may_interfere else self._random.randrange(_MEETING)
        async with self._serializable() as session:
            (version,) = await session.scalars(select(Item.version).where(Item.id == item))
            if not self._may_interfere:
                await asyncio.sleep(self._random.random() * _LONGEST_MEETING)
            elif self._random.random() < 0.6:
                await self._interfere(item)
            try:
                await session.execute(
                    update(Item).where(Item.id == item).values(version=version + 1, tag=writing.tag),
                    execution_options={"synchronize_session": False},
                )
            except DBAPIError as error:
                if is_conflict(error):
                    self._log.fault(SERIALIZATION)
                raise RolledBack from error
            writing.rows.append((item, version + 1, writing.tag))
            await session.commit()

    async def _interfere(self, item: int) -> None:
        """Change an item in another transaction, with a plan of its own: none."""
        writing = self._new()
        plan, mine = PLAN.set(None), WRITING.set(writing)
        try:
            async with asyncio.timeout(1):
                async with self._session() as session:
                    await self._change(session, item, writing)
                    await session.commit()
                self._log.append(Kind.ACKED, key=writing.tag)
        finally:
            if not writing.sent:
                self._log.append(Kind.UNDONE, key=writing.tag)
            PLAN.reset(plan)
            WRITING.reset(mine)

    # --- by connections and SQL

    async def _core(self, writing: Writing) -> None:
        item = self._item()
        async with self._engine.connect() as connection:
            await connection.execute(update(items).where(items.c.id == item).values(**_BUMP_ITEM, tag=writing.tag))
            await self._note_items(connection, [item], writing)
            await connection.commit()

    async def _sql(self, writing: Writing) -> None:
        item = self._item()
        sql = text("UPDATE h_items SET version = version + 1, tag = :tag WHERE id = :id")
        async with self._session() as session:
            await session.execute(sql, {"tag": writing.tag, "id": item})
            await self._note_items(session, [item], writing)
            await session.commit()

    async def _note_by_core(self, writing: Writing) -> None:
        item = self._item()
        async with self._engine.begin() as connection:
            await connection.execute(_lock([items.c.id == item]))
            numbers = await connection.scalars(select(notes.c.number).where(notes.c.item_id == item))
            number = numbers.one() + 1
            await connection.execute(delete(notes).where(notes.c.item_id == item))
            await connection.execute(insert(notes), {"item_id": item, "number": number, "tag": writing.tag})
            writing.rows.append((note_row(item), number, writing.tag))

    async def _leave_prepared(self, writing: Writing) -> None:
        """Prepare a transaction and lose sight of it; the coordinator ends it."""
        item = self._item()

        def prepare(connection: Connection) -> None:
            transaction = connection.begin_twophase(f"history-{writing.tag}")
            connection.execute(update(items).where(items.c.id == item).values(**_BUMP_ITEM, tag=writing.tag))
            version = connection.execute(select(items.c.version).where(items.c.id == item)).scalar_one()
            writing.prepared = True
            self._log.append(Kind.PREPARED, pack([(item, version, writing.tag)]), key=writing.tag)
            transaction.prepare()
            self._log.fault(PREPARED)

        async with self._engine.connect() as connection:
            await connection.run_sync(prepare)
            await connection.invalidate()

    # --- without rows

    async def _touch(self, writing: Writing) -> None:
        item = f"akv:h_items#{self._item()}"
        if self._random.random() < 0.5:
            await self._system.touch(item)
            return
        async with self._session() as session:
            await self._system.touch_in(session, item)
            await session.commit()

    async def _label(self, writing: Writing) -> None:
        """Change something outside of the database, then announce it."""
        label = self._random.choice(self._labels)
        version = self._board.label(label) + 1
        tag = tag_of_label(label, version)
        self._log.append(Kind.SENT, pack([(label_row(label), version, tag)]), key=tag)
        self._board.set_label(label, version)
        await self._think()
        await self._system.touch(Label(f"source-{label}"))
        self._log.append(Kind.ACKED, key=tag)

    # --- parts

    def _item(self) -> int:
        return self._random.randrange(self._hot)

    def _items(self, number: int) -> list[int]:
        """Choose several, in the order in which they are to be locked."""
        return sorted(self._random.sample(range(max(self._hot, number)), number))

    def _item_or(self, writing: Writing) -> int:
        """Return what was written, or something else."""
        return writing.rows[0][0] if self._random.random() < 0.7 else self._item()

    def _never(self, writing: Writing) -> int:
        """Return a tag that is never committed."""
        self._tag += 1
        self._log.append(Kind.UNDONE, key=self._tag)
        return self._tag

    async def _locked(self, session: AsyncSession, item: int) -> Item:
        await session.execute(_lock([Item.id == item]))
        return await load(session, item)

    async def _change(self, session: AsyncSession, item: int, writing: Writing) -> None:
        found = await session.get_one(Item, item, with_for_update=True)
        found.version += 1
        found.tag = writing.tag
        writing.rows.append((item, found.version, writing.tag))
        await session.flush()

    async def _note_items(
        self, where: AsyncSession | AsyncConnection, changed: Sequence[int], writing: Writing
    ) -> None:
        """Note what an UPDATE of this transaction made of items."""
        found = await where.execute(select(items.c.id, items.c.version).where(items.c.id.in_(changed)))
        writing.rows += [(item, version, writing.tag) for item, version in found]

    async def _think(self) -> None:
        if self._random.random() < 0.3:
            await asyncio.sleep(self._random.random() * 0.01)


def _lock(where: Sequence[Any]) -> Any:
    return select(items.c.id).where(*where).order_by(items.c.id).with_for_update()


def is_conflict(error: DBAPIError) -> bool:
    """Tell whether a transaction was in another's way: serialization failure, deadlock, locked."""
    if getattr(error.orig, "sqlstate", None) in ("40001", "40P01"):
        return True
    return any(sign in str(error) for sign in ("is locked", "(1020,", "(1205,", "(1213,"))
