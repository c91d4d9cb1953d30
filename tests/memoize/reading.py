"""A small office whose rows are read in every way that tracking sees, and written in every way that tokens see."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from sqlalchemy import Column, ForeignKey, String, Table, delete, exists, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)

Read: TypeAlias = Callable[[AsyncSession, int], Awaitable[Any]]
Write: TypeAlias = Callable[[AsyncSession, random.Random], Awaitable[None]]

PEOPLE, TEAMS, PURCHASES = 4, 3, 8


class Base(AsyncAttrs, DeclarativeBase):
    type_annotation_map = {str: String(50)}


class Team(Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(default="")
    people: Mapped[list[Person]] = relationship(back_populates="team", order_by="Person.id")


wears = Table(
    "wears",
    Base.metadata,
    Column("person_id", ForeignKey("people.id"), primary_key=True),
    Column("badge_id", ForeignKey("badges.id"), primary_key=True),
)


class Badge(Base):
    __tablename__ = "badges"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(default="")


class Purchase(Base):
    __tablename__ = "purchases"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
    total: Mapped[int] = mapped_column(default=0)


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(default="person")
    name: Mapped[str] = mapped_column(default="")
    age: Mapped[int] = mapped_column(default=0)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
    team: Mapped[Team] = relationship(back_populates="people")
    purchases: Mapped[list[Purchase]] = relationship(order_by=Purchase.id)
    badges: Mapped[list[Badge]] = relationship(secondary=wears, order_by=Badge.id)
    spent = column_property(
        select(func.coalesce(func.sum(Purchase.total), 0)).where(Purchase.person_id == id).scalar_subquery()
    )
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Manager(Person):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    level: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "manager"}


def population() -> list[Any]:
    teams = [Team(id=number, name=f"team {number}") for number in range(1, TEAMS + 1)]
    people: list[Person] = [Person(id=n, name=f"p{n}", team_id=1 + n % TEAMS) for n in range(1, PEOPLE)]
    people.append(Manager(id=PEOPLE, name="boss", team_id=1, level=1))
    badges = [Badge(id=number, text=f"badge {number}") for number in (1, 2)]
    purchases = [Purchase(id=n, person_id=1 + n % PEOPLE, total=n) for n in range(1, PURCHASES + 1)]
    return [teams, people, badges, purchases]


# --- reads: each comes by plain values in a way of its own ------------------------------------------------------------


async def by_key(session: AsyncSession, number: int) -> Any:
    person = await session.get_one(Person, number)
    return person.name, person.age


async def out_of_the_identity_map(session: AsyncSession, number: int) -> Any:
    await session.get_one(Person, number)
    return (await session.get_one(Person, number)).age


async def lazily(session: AsyncSession, number: int) -> Any:
    person = await session.get_one(Person, number)
    return [purchase.total for purchase in await person.awaitable_attrs.purchases]


async def by_selectinload(session: AsyncSession, number: int) -> Any:
    query = select(Team).where(Team.id == 1 + number % TEAMS).options(selectinload(Team.people))
    return [person.name for person in (await session.scalars(query)).one().people]


async def by_joinedload(session: AsyncSession, number: int) -> Any:
    query = select(Person).where(Person.id == number).options(joinedload(Person.purchases))
    return [purchase.total for purchase in (await session.scalars(query)).unique().one().purchases]


async def by_subqueryload(session: AsyncSession, number: int) -> Any:
    query = select(Person).where(Person.id == number).options(subqueryload(Person.badges))
    return [badge.text for badge in (await session.scalars(query)).one().badges]


async def by_column_property(session: AsyncSession, number: int) -> Any:
    return int((await session.get_one(Person, number)).spent)


async def in_columns(session: AsyncSession, number: int) -> Any:
    return (await session.scalars(select(Person.age).where(Person.id == number))).one()


async def by_a_cte(session: AsyncSession, number: int) -> Any:
    dear = select(Purchase.person_id, Purchase.total).where(Purchase.total > number).cte("dear")
    return int(await session.scalar(select(func.coalesce(func.sum(dear.c.total), 0))) or 0)


async def by_a_join(session: AsyncSession, number: int) -> Any:
    query = select(Team.name, func.count(Person.id)).join(Person, Person.team_id == Team.id).group_by(Team.name)
    return sorted(tuple(row) for row in await session.execute(query.where(Team.id == 1 + number % TEAMS)))


async def in_text(session: AsyncSession, number: int) -> Any:
    query = text("SELECT p.name, t.name FROM people p JOIN teams t ON t.id = p.team_id WHERE p.id = :id")
    return tuple((await session.execute(query, {"id": number})).one())


async def streaming(session: AsyncSession, number: int) -> Any:
    query = select(Purchase.total).where(Purchase.person_id == number).order_by(Purchase.id)
    return [total async for total in await session.stream_scalars(query)]


async def by_exists(session: AsyncSession, number: int) -> Any:
    rich = exists().where(Purchase.person_id == Person.id, Purchase.total > 5)
    return list(await session.scalars(select(Person.id).where(rich).order_by(Person.id)))


async def many_to_many(session: AsyncSession, number: int) -> Any:
    person = await session.get_one(Person, number)
    return [badge.text for badge in await person.awaitable_attrs.badges]


async def many_to_one(session: AsyncSession, number: int) -> Any:
    person = await session.get_one(Person, number)
    return (await person.awaitable_attrs.team).name


async def by_inheritance(session: AsyncSession, number: int) -> Any:
    query = select(Manager.name, Manager.level, Manager.age).order_by(Manager.id)
    return [tuple(row) for row in await session.execute(query)]


async def on_a_connection(session: AsyncSession, number: int) -> Any:
    connection = await session.connection()
    people: Any = Person.__table__
    return tuple((await connection.execute(select(people.c.name, people.c.age).where(people.c.id == number))).one())


async def refreshed(session: AsyncSession, number: int) -> Any:
    person = await session.get_one(Person, number)
    await session.refresh(person, ["age"])
    return person.age


READS: dict[str, Read] = {
    read.__name__: read
    for read in (
        by_key,
        out_of_the_identity_map,
        lazily,
        by_selectinload,
        by_joinedload,
        by_subqueryload,
        by_column_property,
        in_columns,
        by_a_cte,
        by_a_join,
        in_text,
        streaming,
        by_exists,
        many_to_many,
        many_to_one,
        by_inheritance,
        on_a_connection,
        refreshed,
    )
}


# --- writes -----------------------------------------------------------------------------------------------------------


def someone(random_: random.Random) -> int:
    return random_.randint(1, PEOPLE)


async def a_birthday(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Person, someone(random_))).age += 1


async def a_name(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Person, someone(random_))).name = f"n{random_.random()}"


async def a_move(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Person, someone(random_))).team_id = random_.randint(1, TEAMS)


async def a_team(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Team, random_.randint(1, TEAMS))).name = f"t{random_.random()}"


async def a_purchase(session: AsyncSession, random_: random.Random) -> None:
    number = random_.randint(1, 3 * PURCHASES)
    known = await session.get(Purchase, number)
    if known is None:
        session.add(Purchase(id=number, person_id=someone(random_), total=random_.randint(0, 9)))
    elif random_.random() < 0.5:
        await session.delete(known)
    else:
        known.person_id, known.total = someone(random_), random_.randint(0, 9)


async def a_badge(session: AsyncSession, random_: random.Random) -> None:
    person = await session.get_one(Person, someone(random_), options=[selectinload(Person.badges)])
    badge = await session.get_one(Badge, random_.randint(1, 2))
    if badge in person.badges:
        person.badges.remove(badge)
    else:
        person.badges.append(badge)


async def a_badge_text(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Badge, random_.randint(1, 2))).text = f"b{random_.random()}"


async def a_level(session: AsyncSession, random_: random.Random) -> None:
    (await session.get_one(Manager, PEOPLE)).level += 1


async def in_bulk(session: AsyncSession, random_: random.Random) -> None:
    await session.execute(update(Person).where(Person.age < 3).values(age=Person.age + 1))


async def in_bulk_with_a_key(session: AsyncSession, random_: random.Random) -> None:
    await session.execute(update(Person).where(Person.id == someone(random_)).values(age=random_.randint(0, 9)))


async def in_core(session: AsyncSession, random_: random.Random) -> None:
    row = {"person_id": someone(random_), "badge_id": random_.randint(1, 2)}
    await session.execute(delete(wears).where(wears.c.person_id == row["person_id"]))
    await session.execute(insert(wears).values(**row))


async def in_raw_sql(session: AsyncSession, random_: random.Random) -> None:
    await session.execute(
        text("UPDATE purchases SET total = :total WHERE person_id = :id"),
        {"total": random_.randint(0, 9), "id": someone(random_)},
    )


async def then_undone(session: AsyncSession, random_: random.Random) -> None:
    await in_bulk_with_a_key(session, random_)
    await session.rollback()


WRITES: tuple[Write, ...] = (
    a_birthday,
    a_name,
    a_move,
    a_team,
    a_purchase,
    a_badge,
    a_badge_text,
    a_level,
    in_bulk,
    in_bulk_with_a_key,
    in_core,
    in_raw_sql,
    then_undone,
)


@asynccontextmanager
async def writing(app: Any) -> AsyncIterator[AsyncSession]:
    async with app.session() as session:
        yield session
        await session.commit()
