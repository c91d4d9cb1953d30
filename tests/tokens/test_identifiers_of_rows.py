"""One row, one identifier: as given, stored and loaded, whatever state its instance is in; nothing is loaded for it."""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    CHAR,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
    create_engine,
    delete,
    event,
    inspect,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import StaticPool

from akv.tokens.things import identifier, touched_by_thing, vector_of_thing
from tests.backends import Backend
from tests.tokens.site import Site, site


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "red"


class Thing(Base):
    """A key of every type there is."""

    __tablename__ = "th ings"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    raw: Mapped[bytes] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(30, 4, asdecimal=True), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    flag: Mapped[bool] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(default="")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine, tables=[Base.metadata.tables[Thing.__tablename__]])
    yield engine
    engine.dispose()


@contextmanager
def no_statements(engine: Any) -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("something was loaded")

    event.listen(engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", refuse)


composite = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.uuids(),
    st.binary(max_size=20),
    st.integers(-10_000, 10_000).map(Decimal),
    st.dates(),
    st.booleans(),
)
NAMES = ("number", "text", "code", "raw", "amount", "day", "flag")


@pytest.mark.filterwarnings("ignore:Dialect sqlite.pysqlite does:sqlalchemy.exc.SAWarning")
@given(composite)
def test_instance_has_one_identifier_in_every_state_and_nothing_is_loaded(engine: Any, key: tuple[Any, ...]) -> None:
    seen: list[str] = []

    def note(thing: Thing) -> None:
        with no_statements(engine):
            seen.append(identifier(thing))
            assert identifier(thing) in {*vector_of_thing(thing), identifier(thing)}
            assert touched_by_thing(Thing) >= {"akv:th%20ings#~", "akv:*#*"}

    with Session(engine) as session:
        thing = Thing(**dict(zip(NAMES, key, strict=True)))
        assert identifier(thing) == "akv:th%20ings#*"  # transient
        session.add(thing)
        assert identifier(thing) == "akv:th%20ings#*"  # pending
        session.flush()
        note(thing)  # persistent
        session.commit()
        note(thing)  # expired
        session.refresh(thing)
        thing.number = 0 if key[0] else 1
        note(thing)  # about to have another key
        session.rollback()
        note(thing)
        session.expunge(thing)
        note(thing)  # detached, and expired
        session.add(thing)
        session.delete(thing)
        session.flush()
        note(thing)  # deleted
        session.commit()
        note(thing)
        assert inspect(thing).detached
    assert len(set(seen)) == 1


# --- what is announced is what others will load -----------------------------------------------------------------------

KEYS: dict[str, tuple[Any, list[Any]]] = {
    "integer": (Integer, [0, -1, 2**31 - 1]),
    "string": (String(50), ["", "1", "a b", " a ", "BOB", "é", "e\u0301", "%_,#'\"\\", "ß", "😀"]),
    "char": (CHAR(5), ["ab", "abcde"]),
    "uuid": (Uuid, [uuid.UUID(int=0), uuid.UUID("ABCDEF00-0000-4000-8000-000000000001")]),
    "uuid as text": (Uuid(as_uuid=False), ["ABCDEF0000004000800000000000000A"]),
    "bytes": (LargeBinary(50), [b"", b"\0\xff", b"a"]),
    "decimal": (Numeric(10, 4), [Decimal("1.5"), Decimal("3"), Decimal("-0.0001")]),
    "float": (Float, [1.5, 2.0, 0.1]),
    "date": (Date, [date(2024, 1, 2)]),
    "time": (Time, [time(1, 2, 3), time(1, 2, 3, 500_000)]),
    "datetime": (DateTime, [datetime(2024, 1, 2, 3), datetime(2024, 1, 2, 3, 4, 5, 600_000)]),
    "boolean": (Boolean, [True, False]),
    "enum": (Enum(Colour), [Colour.RED]),
}


def keyed(name: str, type_: Any) -> Any:
    class KeyedBase(DeclarativeBase):
        pass

    class Keyed(KeyedBase):
        __tablename__ = f"keyed_by_{name.replace(' ', '_')}"
        key: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        body: Mapped[int] = mapped_column(default=0)

    return Keyed


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[Site]:
    async with site(backend, fresh=True) as app:
        yield app


@pytest.mark.backends(exclude="sqlite-memory")
@pytest.mark.filterwarnings("ignore:Dialect sqlite.aiosqlite does:sqlalchemy.exc.SAWarning")
async def test_every_write_of_a_row_changes_the_key_of_whoever_loads_it(app: Site) -> None:
    for name, (type_, values) in KEYS.items():
        if name == "bytes" and app.dialect == "mariadb":
            continue  # no key there
        model = keyed(name, type_)
        async with app.eyes.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for value in values:
            vector = await announced_and_vector(app, model, value)
            for changed in vector[0]:
                assert changed & vector[1], (name, value, changed, vector[1])


async def announced_and_vector(app: Site, model: Any, value: Any) -> tuple[list[set[str]], set[str]]:
    """Write a row in every way by the key as it was given; return what was announced, and what its reader looks at."""
    changes: list[set[str]] = []

    async def run(write: Callable[[Any], Any]) -> None:
        try:
            async with app.session.begin() as session:
                await write(session)
        except StaleDataError:  # the database does not find the key that it has given itself
            assert app.tokens.announced == []
        else:
            changes.append(app.tokens.changes())

    async def add(session: Any) -> None:
        session.add(model(key=value))

    async def change_instance(session: Any) -> None:
        (await session.scalars(select(model))).one().body += 1

    async def change(session: Any) -> None:
        await session.execute(update(model).where(model.key == value).values(body=7))

    async def remove(session: Any) -> None:
        await session.execute(delete(model).where(model.key == value))

    await run(add)
    async with app.session() as session:
        vector = set(vector_of_thing((await session.scalars(select(model))).one()))
    await run(change_instance)
    await run(change)
    await run(remove)
    async with app.eyes.connect() as connection:
        left = (await connection.execute(select(model))).all()
    if left:  # the key as given does not find it, so neither of the last two changed anything
        changes = changes[:-2]
        async with app.eyes.begin() as connection:
            await connection.execute(delete(model))
    return changes, vector
