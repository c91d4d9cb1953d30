"""
What every test may ask for: a backend, a store on it, servers of its own, and the checks on all of them.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy.exc import OperationalError

from tests import backends, blocking
from tests.private import Absent, AnyServer, Nursery, PrivateMariaDB, PrivatePostgres, PrivateValkey
from tests.servers import Session, absent, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from akv import AsyncKVAlchemy
    from tests.backends import Backend

pytest_plugins = ["tests.report"]

# The machines that run this are shared and slow by turns: slowness of an example is no finding.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=2_000)
settings.load_profile("ci")


class MakeStore(Protocol):
    """Type of the fixture ``make_store``."""

    def __call__(self, target: Any = None, /, **options: Any) -> Awaitable[AsyncKVAlchemy]: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "backends(*prefixes, exclude=()): run on the backends whose names begin so")
    config.addinivalue_line("markers", "allow_blocking: calls that block the event loop are part of this test")
    # So that `timeout` and CI systems end the run as Ctrl-C does: with every server stopped and database dropped.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("backends")
    only = marker.args if marker else ()
    exclude = marker.kwargs.get("exclude", ()) if marker else ()
    names = backends.select(only, (exclude,) if isinstance(exclude, str) else exclude)
    metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Session]:
    """What this run has on the servers."""
    made = Session()
    atexit.register(made.close)
    yield made
    made.close()
    atexit.unregister(made.close)


@pytest.fixture
def backend(request: pytest.FixtureRequest, servers: Session, tmp_path: Path) -> Iterator[Backend]:
    """Each backend in turn, or those which the marker ``backends`` names."""
    try:
        made = backends.catalogue()[request.param](servers, tmp_path)
    except Absent as reason:
        absent(str(reason))
    yield made
    servers.drop_new_databases()


@pytest.fixture
def tables(backend: Backend) -> Iterator[set[str]]:
    """Names of tables of this test in the session's database; dropped when it ends."""
    names: set[str] = set()
    yield names
    if names and backend.dialect != "sqlite":
        _drop_tables(backend, names)


def _drop_tables(backend: Backend, names: set[str]) -> None:
    """Drop tables; a transaction that the test left open is an error, not a wait."""
    patience = {"postgresql": "SET lock_timeout = '5s'", "mariadb": "SET lock_wait_timeout = 5"}
    with connect(backend.url) as connection:
        connection.exec_driver_sql(patience[backend.dialect])
        for name in sorted(names):
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            try:
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {quoted}")
            except OperationalError as error:
                raise AssertionError(f"the test left a transaction open on {name}") from error


@pytest.fixture
def table(tables: set[str]) -> str:
    """Name of the table of this test's stores."""
    name = f"kv_{uuid4().hex[:12]}"
    tables.add(name)
    return name


@pytest.fixture
async def make_store(backend: Backend, tables: set[str], table: str) -> AsyncIterator[MakeStore]:
    """
    Return a factory of stores on the backend, without a sweep, all on the table of this test.

    ``await make_store(**options)``, or ``await make_store(engine_or_url, **options)``; closed when the test ends.
    In memory every store has a database of its own.
    """
    from akv import AsyncKVAlchemy

    stores: list[AsyncKVAlchemy] = []

    async def make(target: Any = None, /, **options: Any) -> AsyncKVAlchemy:
        chosen = {"table": table, "sweep_every": None, **options}
        tables.add(chosen["table"])
        stores.append(AsyncKVAlchemy(backend.url if target is None else target, **chosen))
        return stores[-1]

    yield make
    for store in reversed(stores):
        await store.aclose()


@pytest.fixture
def nursery(servers: Session) -> Nursery:
    """Starts private servers with settings of the test's own: end them with ``nursery.end(server)``."""
    return servers.nursery


@pytest.fixture
def private_postgres(nursery: Nursery) -> Iterator[PrivatePostgres]:
    """A PostgreSQL 18 that the test may stop, kill and restart."""
    with _lent(nursery, nursery.postgres) as server:
        yield server


@pytest.fixture
def private_mariadb(nursery: Nursery) -> Iterator[PrivateMariaDB]:
    """A MariaDB that the test may stop, kill and restart."""
    with _lent(nursery, nursery.mariadb) as server:
        yield server


@pytest.fixture
def private_valkey(nursery: Nursery) -> Iterator[PrivateValkey]:
    """A Valkey that the test may stop, kill and restart."""
    with _lent(nursery, nursery.valkey) as server:
        yield server


@contextmanager
def _lent(nursery: Nursery, start: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    try:
        server = start()
    except Absent as reason:
        absent(str(reason))
    try:
        yield server
    finally:
        nursery.end(server)


@pytest.fixture(params=["redis", "valkey"])
def redis_url(request: pytest.FixtureRequest, servers: Session) -> str:
    """URL of the standard Redis and of the Valkey of the wheel, in turn; keep to ``redis_namespace``."""
    try:
        return servers.valkey() if request.param == "valkey" else servers.redis()
    except Absent as reason:
        absent(str(reason))


@pytest.fixture
def redis_namespace(servers: Session) -> str:
    """A prefix for this test's keys in Redis; they are deleted when the session ends."""
    return f"{servers.name}:{uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that blocks the event loop, even if the error was caught on its way."""
    if not inspect.iscoroutinefunction(request.function) or request.node.get_closest_marker("allow_blocking"):
        yield
        return
    with blocking.forbidden() as calls:
        yield
    if calls:
        pytest.fail("the event loop was blocked:\n" + "\n".join(calls), pytrace=False)


@pytest.fixture(autouse=True)
def _checks_of_coroutines(request: pytest.FixtureRequest) -> None:
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_no_tasks_left")


@pytest.fixture
async def _no_tasks_left() -> AsyncIterator[None]:
    """Fail a test that leaves tasks running on its event loop."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"
