"""
What is worth remembering, or not: a row, three rows, an aggregate of a thousand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ForeignKey, String, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.bound import Row
from benchmarks.places import Place

_CUSTOMERS: Final = 20
_ORDERS: Final = 1_000
"""Of each customer."""
_STATES: Final = ("new", "paid", "sent", "back")


class Base(DeclarativeBase):
    """The tables of the heavier query."""


class Customer(Base):
    """Somebody who orders."""

    __tablename__ = "bench_customers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(100))


class Order(Base):
    """One of a customer's orders."""

    __tablename__ = "bench_orders"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(ForeignKey("bench_customers.id"), index=True)
    state: Mapped[str] = mapped_column(String(10))
    total: Mapped[int]


@dataclass(frozen=True)
class Work:
    """
    What a function finds, and how its memory is told of changes.

    Attributes:
        name: In results.
        title: In tables.
        rests_on: Options of memoize.
        find: Finds it.
    """

    name: str
    title: str
    rests_on: Mapping[str, Any]
    find: Callable[[AsyncSession, int], Awaitable[Any]]


async def fill_orders(place: Place) -> None:
    """Make customers and their orders, and let the planner know them."""
    engine = create_async_engine(place.url)
    orders = [
        {"id": number, "customer_id": 1 + number % _CUSTOMERS, "state": _STATES[number // 7 % 4], "total": number % 100}
        for number in range(_CUSTOMERS * _ORDERS)
    ]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            insert(Customer), [{"id": number, "name": f"customer {number}"} for number in range(1, _CUSTOMERS + 1)]
        )
        for start in range(0, len(orders), 2_000):
            await connection.execute(insert(Order), orders[start : start + 2_000])
        analyze = "ANALYZE" if place.dialect == "postgresql" else "ANALYZE TABLE"
        for table in (*Base.metadata.tables, Row.__tablename__):
            await connection.execute(text(f"{analyze} {table}"))
    await engine.dispose()


async def _row(session: AsyncSession, number: int) -> Any:
    return await session.scalar(select(Row.value).where(Row.id == number))


async def _three(session: AsyncSession, number: int) -> Any:
    return [(await session.get_one(Row, each)).value for each in range(number, number + 3)]


async def _aggregate(session: AsyncSession, number: int) -> Any:
    found = await session.execute(
        select(Customer.name, Order.state, func.count(), func.sum(Order.total))
        .join(Order, Order.customer_id == Customer.id)
        .where(Customer.id == number)
        .group_by(Customer.name, Order.state)
        .order_by(Order.state)
    )
    return [(name, state, count, int(total)) for name, state, count, total in found]


def _row_of(number: int) -> str:
    return f"akv:{Row.__tablename__}#{number}"


def _customer_and_orders(number: int) -> list[Any]:
    return [f"akv:{Customer.__tablename__}#{number}", Order]


WORKS: Final = (
    Work("row", "one row by primary key, depends_on it", {"depends_on": _row_of}, _row),
    Work("three rows", "three rows by primary key, track=True", {"track": True}, _three),
    Work(
        "aggregate, declared",
        f"join and aggregate of {_ORDERS:,} rows, depends_on a row and a table",
        {"depends_on": _customer_and_orders},
        _aggregate,
    ),
    Work("aggregate, tracked", f"join and aggregate of {_ORDERS:,} rows, track=True", {"track": True}, _aggregate),
)
