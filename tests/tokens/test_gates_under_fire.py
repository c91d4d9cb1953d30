"""Gates while writers commit, roll back, and are killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.tokens.gate_stress import KeptConnection, Stress, keep_connection
from tests.tokens.gatehouse import ON_POSTGRES, House, open_house, soon, url_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.private import PrivatePostgres
    from tests.servers import Session

TRANSACTIONS = 150
"""`python -m tests.tokens.gate_stress` takes any number."""
PREPARED_EACH = 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [ON_POSTGRES[0], "mariadb", "sqlite-file"])
async def test_of_no_transaction_is_it_said_that_it_has_ended_before_it_commits(
    name: str, servers: Session, tmp_path: Path
) -> None:
    async with open_house(url_of(name, servers, tmp_path)) as house:
        keep_connection(house)
        stress = Stress(house, TRANSACTIONS, seed=1)
        await stress.run()
    assert stress.wrong == [], stress.counts
    assert stress.counts["said ended"] >= TRANSACTIONS
    assert stress.counts["said can still commit"] > 5
    assert stress.counts["drained"] > 5
    assert 0 < stress.counts["committed"] < TRANSACTIONS
    assert all(stress.counts[fate] for fate in ("dies", "dies soon", "dies in commit", "rolls back", "commits"))
    assert name == "sqlite-file" or (stress.counts["is ended"] and stress.counts["connections killed"])


async def test_a_transaction_is_never_missing_from_the_list_while_it_is_being_prepared(
    private_postgres: PrivatePostgres,
) -> None:
    """It leaves the process that began it, and has none until it ends."""
    house = House(private_postgres.url())
    await house.create()
    gate: Any = house.gate
    inside: dict[int, str] = {}
    counts: Counter[str] = Counter()

    async def prepare(first: int) -> None:
        for n in range(first, first + PREPARED_EACH):
            async with house.writer(n) as writer:
                inside[n] = (await writer.enter()).partition(":")[0]
                await writer.connection.exec_driver_sql(f"PREPARE TRANSACTION 'p{n}'")
                await asyncio.sleep(0.01)  # so that who asked before has an answer
                del inside[n]
                await writer.connection.exec_driver_sql(f"ROLLBACK PREPARED 'p{n}'")

    async def look_at_the_list() -> None:
        own = KeptConnection(house.engine)
        while not preparing.done():
            before = set(inside.values())
            listed = await own.run(gate._inside)
            counts["cannot be told" if listed is None else "listed"] += 1
            assert listed is None or before & set(inside.values()) <= listed
        await own.aclose()

    preparing = asyncio.gather(*(prepare(1000 * number) for number in range(3)))
    await soon(asyncio.gather(preparing, look_at_the_list(), look_at_the_list()))
    assert counts["listed"] > 20
    await soon(gate.drain())
    await house.close()
