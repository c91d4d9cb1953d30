"""
What is on trial: akv, or the algorithm of its ancestor, behind one face.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from akv.tokens.identifiers import Label, table_identifier
from tests.history.rows import FIRST_LABEL, ITEM_TABLE, NOTE_TABLE, Item, Note, label_of, mixed_item

POSTGRES: Final = "postgres"
"""The databases by the names of the command line."""
MARIADB: Final = "mariadb"
SQLITE: Final = "sqlite"

AKV: Final = "akv"
"""What may be on trial: akv as it is by default, ..."""
OUTBOX: Final = "outbox"
"""... with ``when_unreachable="outbox"``, ..."""
ANCESTOR: Final = "ancestor"
"""... or the ancestor's algorithm."""


@dataclass(frozen=True)
class Spec:
    """
    One life of a worker.

    Attributes:
        slot: Its number among the processes that run at once.
        life: How many were born in this slot before.
        folder: Of the round: log, cache and board.
        database: Which kind of database.
        url: Where it is, through the edge that this worker has to it.
        redis: The same of Redis; "" for tokens in the database.
        algorithm: What is on trial.
        faults: What may happen inside of the worker.
        ablation: A rule that is switched off.
    """

    slot: int
    life: int
    seed: int
    folder: Path
    database: str
    url: str
    redis: str = ""
    algorithm: str = AKV
    faults: tuple[str, ...] = ()
    ablation: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def reborn(self) -> Spec:
        return replace(self, life=self.life + 1)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.slot}-{self.life}.log"

    @property
    def random(self) -> random.Random:
        return random.Random(f"{self.seed} {self.slot} {self.life}")


class Key(Protocol):
    """A key that a user of the library gets; a str."""

    shared: bool

    def __str__(self) -> str: ...


class System(Protocol):
    """
    Attributes:
        engine: Its writes are announced.
        reason: Why the key that was returned last is private; 0: it is not.
    """

    engine: AsyncEngine
    reason: int

    async def key(self, *things: Any, session: Any = None) -> Any: ...

    async def touch(self, *things: Any) -> None: ...

    async def touch_in(self, session: Any, *things: Any) -> None: ...

    async def close(self) -> None: ...


def things_of(subject: int) -> Sequence[Any]:
    """Return what a key of a subject is made of."""
    if subject < ITEM_TABLE:
        return (f"akv:h_items#{subject}",)
    if subject == ITEM_TABLE:
        return (Item,)
    if subject == NOTE_TABLE:
        return (table_identifier("h_notes"),)
    label = Label(f"source-{label_of(subject)}")
    return (label,) if subject >= FIRST_LABEL else (f"akv:h_items#{mixed_item(subject)}", [Note, label])


def engine_of(spec: Spec, pool: int) -> AsyncEngine:
    """Make the application's own engine."""
    options: dict[str, Any] = {
        "pool_size": pool,
        "max_overflow": 0,
        "pool_timeout": 10,
        "pool_reset_on_return": "rollback",
    }
    if "+asyncpg" in spec.url:
        options["connect_args"] = {"timeout": 5, "command_timeout": 20}
    elif "+psycopg" in spec.url:
        options["connect_args"] = {"connect_timeout": 5}
    engine = create_async_engine(spec.url, **options)
    if spec.database == SQLITE:
        event.listen(engine.sync_engine, "connect", _hurry)
    return engine


def _hurry(dbapi: Any, _: object) -> None:
    cursor = dbapi.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.execute("PRAGMA busy_timeout = 1000")
    cursor.close()


def sessions_of(engine: AsyncEngine, **options: Any) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, **options)
