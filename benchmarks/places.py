"""
Where contenders work: databases, folders and Redis keys of our own, gone at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from akv import AsyncKVAlchemy

BACKENDS = ("sqlite", "sqlite-normal", "postgres", "mariadb")
_SERVERS = {
    "postgres": ("AKV_TEST_POSTGRES_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/postgres"),
    "mariadb": ("AKV_TEST_MARIADB_URL", "mariadb+asyncmy://root@127.0.0.1:3306/"),
}
_PG_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "wal_sync_method",
    "full_page_writes",
    "shared_buffers",
)
_MARIADB_SETTINGS = (
    "version",
    "innodb_flush_log_at_trx_commit",
    "innodb_flush_method",
    "innodb_doublewrite",
    "log_bin",
    "sync_binlog",
    "innodb_buffer_pool_size",
)
_PART = 2_000


class NoServer(Exception):  # noqa: N818
    """A backend whose server does not answer; the message says why."""


@dataclass(frozen=True)
class Place:
    """
    One database of ours.

    Attributes:
        backend: One of :data:`BACKENDS`.
        url: The database, through the async driver.
        synchronous: SQLite's setting; elsewhere empty.
        folder: For contenders that keep files.
        redis_url: For contenders on Redis.
        namespace: What their keys begin with.
        settings: What the server says about itself.
    """

    backend: str
    url: URL
    synchronous: str
    folder: Path
    redis_url: str
    namespace: str
    settings: Mapping[str, str]

    @property
    def dialect(self) -> str:
        """As SQLAlchemy's URLs begin."""
        return self.url.get_backend_name()

    @property
    def akv_url(self) -> URL:
        """The URL for akv, which takes SQLite's setting in it."""
        return self.url.update_query_dict({"synchronous": self.synchronous}) if self.synchronous else self.url

    @property
    def plain_url(self) -> str:
        """The URL as drivers write it."""
        return self.url.set(drivername=self.dialect).render_as_string(hide_password=False)

    @property
    def durability(self) -> str:
        """What an acknowledged commit has survived."""
        if self.dialect == "sqlite":
            return f"WAL, synchronous={self.synchronous}"
        if self.dialect == "postgresql":
            return f"fsync={self.settings['fsync']}, synchronous_commit={self.settings['synchronous_commit']}"
        return f"innodb_flush_log_at_trx_commit={self.settings['innodb_flush_log_at_trx_commit']}"


@asynccontextmanager
async def place_for(backend: str) -> AsyncIterator[Place]:
    """
    Make a database, and remove it.

    Raises:
        NoServer: Nobody answers.
    """
    name = f"akv_bench_{uuid4().hex[:10]}"
    redis_url = os.environ.get("AKV_TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
    with _folder() as folder:
        if backend.startswith("sqlite"):
            synchronous = "NORMAL" if backend.endswith("normal") else "FULL"
            url = make_url(f"sqlite+aiosqlite:///{folder / 'bench.db'}")
            settings = await _sqlite_settings(url, synchronous)
            yield Place(backend, url, synchronous, folder, redis_url, name, settings)
        else:
            async with _database(backend, name) as (url, settings):
                yield Place(backend, url, "", folder, redis_url, name, settings)


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="akv-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def _sqlite_settings(url: URL, synchronous: str) -> dict[str, str]:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        version = (await connection.execute(text("SELECT sqlite_version()"))).scalar_one()
        mode = (await connection.execute(text("PRAGMA journal_mode = WAL"))).scalar_one()
    await engine.dispose()
    return {"version": version, "journal_mode": mode, "synchronous": synchronous}


@asynccontextmanager
async def _database(backend: str, name: str) -> AsyncIterator[tuple[URL, dict[str, str]]]:
    variable, standard = _SERVERS[backend]
    admin = make_url(os.environ.get(variable, standard)).set(drivername=make_url(standard).drivername)
    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT")
    try:
        try:
            async with engine.connect() as connection:
                settings = await _settings(connection)
                await connection.execute(text(f"CREATE DATABASE {name}"))
        except (DBAPIError, OSError) as error:
            raise NoServer(f"no {backend} at {admin.render_as_string()}: {error}; set {variable}") from error
        try:
            yield admin.set(database=name), settings
        finally:
            force = " WITH (FORCE)" if backend == "postgres" else ""
            async with engine.connect() as connection:
                await connection.execute(text(f"DROP DATABASE {name}{force}"))
    finally:
        await engine.dispose()


async def _settings(connection: AsyncConnection) -> dict[str, str]:
    if connection.dialect.name == "postgresql":
        found = await connection.execute(
            text("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(:names)"),
            {"names": list(_PG_SETTINGS)},
        )
    else:
        names = ", ".join(f"'{name}'" for name in _MARIADB_SETTINGS)
        found = await connection.execute(text(f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({names})"))
    return {name: str(value) for name, value in found.all()}


async def fill(place: Place, entries: Mapping[str, bytes], expire: Any = None) -> None:
    """Store entries in the shared table, which akv makes, and let the planner know them."""
    kv = AsyncKVAlchemy(place.akv_url, sweep_every=None)
    try:
        for part in _parts(entries):
            await kv.set_many(part, expire=expire)
        async with kv.session(delete_expired=False) as session:
            if place.dialect != "sqlite":
                table = "kvstore" if place.dialect == "postgresql" else "TABLE kvstore"
                await session.execute(text(f"ANALYZE {table}"))
    finally:
        await kv.aclose()


def _parts(entries: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    items = list(entries.items())
    bytes_each = len(items[0][1]) + 1 if items else 1
    step = max(1, min(_PART, 2**22 // bytes_each))
    for start in range(0, len(items), step):
        yield dict(items[start : start + step])
