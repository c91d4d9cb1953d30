"""
What SQLite, PostgreSQL and MariaDB each need from an engine of ours.

Lanes run on connections in AUTOCOMMIT, so that one statement is one round trip
and one transaction; what needs more says BEGIN itself. An engine that the
caller lends keeps its settings: the store takes connections of its own beside
its pool, so that handlers which hold all of the pool cannot starve it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import URL, Connection, Dialect, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection, StaticPool

from akv.errors import ConfigurationError
from akv.store.shielded import ShieldedSession

_ASYNC_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
}
_EXTRAS = {"asyncpg": "postgres", "psycopg": "psycopg", "asyncmy": "mariadb"}
_WAL_TUNING = (
    # A checkpoint writes each page once, however often it changed: with the default of 4 MiB, sets of random keys
    # of a table that is larger wait for the disk most of the time.
    "PRAGMA wal_autocheckpoint = 8192",
    "PRAGMA cache_size = -8192",
)
_OUR_OPTIONS = ("synchronous",)
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
_POOL_SIZE = 8
"""Opened as they are needed: two reads, a write, a scan, and writes that go past one which waits for a lock."""


@dataclass(frozen=True, slots=True)
class Engines:
    """
    The engines of a store on one event loop.

    Attributes:
        lanes: In AUTOCOMMIT, for everything that akv sends.
        sessions: Makes the sessions of ``kv.session()``.
        owned: What ``aclose()`` disposes of.
        keeps: Whether the connections of the lanes are for akv alone, so that it may hold on to them.
    """

    lanes: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    owned: tuple[AsyncEngine, ...]
    keeps: bool = True


def parse_url(url: str | URL) -> tuple[URL, Dialect]:
    """
    Check a database URL without connecting.

    Returns:
        The URL, and a dialect that has seen no server yet.

    Raises:
        ConfigurationError: It does not parse, its driver is not async or not installed, or an option is unknown.
    """
    try:
        parsed = make_url(url)
        _synchronous(parsed)
        return parsed, create_async_engine(parsed.difference_update_query(_OUR_OPTIONS)).dialect
    except ConfigurationError:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigurationError(f"not a database URL that SQLAlchemy knows: {error}") from error
    except InvalidRequestError as error:
        wanted = _ASYNC_DRIVERS.get(parsed.get_backend_name(), "one that is")
        raise ConfigurationError(
            f"{parsed.drivername!r} is not an async driver: write {wanted!r} in the URL"
        ) from error
    except ImportError as error:
        extra = _EXTRAS.get(parsed.get_driver_name())
        remedy = f"pip install 'akv[{extra}]'" if extra else f"write {_ASYNC_DRIVERS.get(parsed.get_backend_name())!r}"
        raise ConfigurationError(f"the driver of {parsed.drivername!r} is missing: {remedy}") from error


def is_memory(url: URL) -> bool:
    """Tell whether a URL names an SQLite database that lives in its one connection."""
    if url.get_backend_name() != "sqlite":
        return False
    database = url.database or ""
    return database in ("", ":memory:") or database.startswith("file::memory:") or url.query.get("mode") == "memory"


def own_engines(url: URL, *, patience: float) -> Engines:
    """
    Make the engines of a store that was given a URL; no I/O.

    Args:
        url: From :func:`parse_url`.
        patience: Seconds that a statement waits for a lock before it fails and is tried again.
    """
    if url.get_backend_name() == "sqlite":
        return _own_sqlite(url, patience)
    lanes = _lanes(url, patience, pool_size=_POOL_SIZE, max_overflow=0, pool_timeout=_pool_timeout(patience))
    plain = create_async_engine(url, pool_pre_ping=True)
    return Engines(lanes, _sessions(plain), (lanes, plain))


def beside(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession] | None, *, patience: float) -> Engines:
    """
    Make engines with connections of our own beside the pool of an engine that the caller lends; no I/O.

    Args:
        engine: The caller's; its pool and settings stay as they are.
        sessions: The caller's session factory, if that is what was lent.
        patience: Seconds that a statement waits for a lock before it fails and is tried again.
    """
    sessions = sessions or _sessions(engine)
    if is_memory(engine.url):
        return Engines(engine.execution_options(isolation_level="AUTOCOMMIT"), sessions, (), keeps=False)
    lanes = _lanes(engine.url, patience, pool=engine.sync_engine.pool.recreate())
    return Engines(lanes, sessions, (lanes,))


def translated(engine: AsyncEngine, schema: str | None) -> str | None:
    """Return the schema that a borrowed engine means by a name: our statements are text, which nothing translates."""
    mapped = engine.get_execution_options().get("schema_translate_map") or {}
    return cast("str | None", mapped.get(schema, schema))


def check_borrowed(engine: AsyncEngine) -> None:
    """
    Refuse an engine that cannot hold the store's promises.

    Raises:
        ConfigurationError: Its tasks would share one SQLite connection, and with it their transactions.
    """
    if isinstance(engine.sync_engine.pool, StaticPool):
        raise ConfigurationError(
            "a StaticPool gives all tasks one connection, so that a rollback of one takes the others' writes along: "
            "create the engine with poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0"
        )


def _sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


def _lanes(url: URL, patience: float, **options: Any) -> AsyncEngine:
    """Make an engine in AUTOCOMMIT whose connections never wait for a lock without end."""
    backend = url.get_backend_name()
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=backend != "postgresql",
        **options,
    )
    statements = {
        "sqlite": [f"PRAGMA busy_timeout = {int(patience * 1000)}"],
        "postgresql": [f"SET lock_timeout = {int(patience * 1000)}"],
        "mysql": [
            f"SET SESSION innodb_lock_wait_timeout = {max(1, round(patience))}",
            # Without it a SELECT ... FOR UPDATE of an absent key locks a gap, and two of them dead-lock.
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ],
    }
    _on_connect(engine, statements["mysql" if backend == "mariadb" else backend])
    return engine


def _on_connect(engine: AsyncEngine, statements: list[str]) -> None:
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)


def _pool_timeout(patience: float) -> float:
    return max(30.0, 2 * patience)


# SQLite


def _synchronous(url: URL) -> str:
    chosen = str(url.query.get("synchronous", "FULL")).upper()
    if url.get_backend_name() == "sqlite" and chosen not in _SYNCHRONOUS:
        raise ConfigurationError(f"synchronous={chosen!r} in the URL: choose one of {', '.join(_SYNCHRONOUS)}")
    return chosen


def _own_sqlite(url: URL, patience: float) -> Engines:
    synchronous = _synchronous(url)
    url = url.difference_update_query(_OUR_OPTIONS)
    if is_memory(url):
        lanes = _lanes(
            url, patience, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=_pool_timeout(0)
        )
        plain = lanes.execution_options(isolation_level="SERIALIZABLE")
        return Engines(lanes, _shielded_sessions(plain), (lanes,), keeps=False)
    lanes = _lanes(url, patience, pool_size=_POOL_SIZE, max_overflow=0, pool_timeout=_pool_timeout(patience))
    plain = create_async_engine(url)
    _on_connect(plain, [f"PRAGMA busy_timeout = {int(patience * 1000)}"])
    for engine in (lanes, plain):
        event.listen(engine.sync_engine, "connect", _write_ahead)
        _on_connect(engine, [f"PRAGMA synchronous = {synchronous}", *_WAL_TUNING])
    _begin_immediately(plain)
    return Engines(lanes, _shielded_sessions(plain), (lanes, plain))


def _shielded_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, class_=ShieldedSession, expire_on_commit=False)


def _write_ahead(connection: Any, _record: Any) -> None:
    """Switch the file to WAL once: the switch needs the file for itself, asking does not."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode")
    if cursor.fetchone()[0].lower() != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin_immediately(engine: AsyncEngine) -> None:
    """Begin transactions of users' sessions as writers, so that reading before writing is safe."""

    def manual(connection: PoolProxiedConnection, _record: Any) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine.sync_engine, "connect", manual)
    event.listen(engine.sync_engine, "begin", begin)
