"""
The shop of the demo: its tables, its data.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, String, insert
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

USERS = 200


class Base(DeclarativeBase):
    """The shop's tables."""


class User(Base):
    """A customer."""

    __tablename__ = "akv_demo_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


class Order(Base):
    """What a customer bought."""

    __tablename__ = "akv_demo_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    user: Mapped[User] = relationship()


@asynccontextmanager
async def open_shop(engine: AsyncEngine, orders: int) -> AsyncIterator[None]:
    """
    Make the tables, fill them, and drop them again at the end.

    Args:
        engine: Where.
        orders: How many orders.
    """
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), [{"id": i, "name": f"user {i}"} for i in range(1, USERS + 1)])
        await connection.execute(insert(Order), list(_orders(orders)))
    try:
        yield
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)


def _orders(count: int) -> list[dict[str, object]]:
    chance = random.Random(7)  # noqa: S311 -- the same shop at each run
    return [
        {"id": i, "user_id": chance.randint(1, USERS), "total": Decimal(chance.randint(100, 99_999)) / 100}
        for i in range(1, count + 1)
    ]
