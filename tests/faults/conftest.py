"""
Databases of a test's own, and the counters that prove what happened on their servers.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.faults.arena import Arena
from tests.private import Absent
from tests.report import note_counter
from tests.servers import absent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.backends import Backend
    from tests.private import Nursery, PrivateMariaDB, PrivatePostgres

Proved = Callable[[str, int, int], None]


@pytest.fixture(scope="session")
def calm_mariadb(servers: Any) -> Iterator[PrivateMariaDB | Absent]:
    """A MariaDB for the tests of this folder alone, because its counters are those of the whole server."""
    nursery: Nursery = servers.nursery
    try:
        server = nursery.mariadb()
    except Absent as reason:
        yield reason
        return
    yield server
    nursery.end(server)


@pytest.fixture(scope="session")
def calm_postgres(servers: Any) -> Iterator[PrivatePostgres]:
    """A PostgreSQL for the tests of this folder alone, whose log is of them alone."""
    nursery: Nursery = servers.nursery
    try:
        server = nursery.postgres()
    except Absent as reason:
        absent(str(reason))
    yield server
    nursery.end(server)


@pytest.fixture
def arena(backend: Backend, request: pytest.FixtureRequest) -> Arena:
    """A database of this test's own on a server; restrict with ``backends("postgres", "mariadb")``."""
    if backend.dialect != "mariadb":
        arena = Arena(backend.name, backend.dialect, backend.fresh_url())
        arena.configure(deadlock_timeout="50ms")
        return arena
    server = request.getfixturevalue("calm_mariadb")
    if isinstance(server, Absent):
        absent(str(server))
    name = f"akv_{uuid4().hex[:10]}"
    server.create_database(name)
    return Arena(backend.name, backend.dialect, server.url(name))


@pytest.fixture
def proved(request: pytest.FixtureRequest) -> Proved:
    """Record what a server's counter said before and after: ``proved("deadlocks", before, after)``."""
    callspec = getattr(request.node, "callspec", None)
    backend = str(callspec.params.get("backend", "-")) if callspec else "-"

    def record(counter: str, before: int, after: int) -> None:
        assert after > before, f"{counter}: the server counted none"
        note_counter(backend, counter, after - before)

    return record


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop reports to its exception handler, exceptions never retrieved included: must stay empty."""
    loop = asyncio.get_running_loop()
    found: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not found, found
