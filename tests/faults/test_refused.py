"""What the database refuses for good is not tried again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from akv.errors import StoreError, StoreUnavailableError
from akv.store.retry import RetryPolicy
from tests.faults.arena import BOUND, settled, sqlite_threads
from tests.private import wait_until

if TYPE_CHECKING:
    from tests.backends import Backend
    from tests.conftest import MakeStore

# So many attempts that trying again would be a hang.
ENDLESS = RetryPolicy(attempts=10**6, total=10 * BOUND)


@pytest.mark.backends("postgres", "mariadb")
@pytest.mark.parametrize("change", [{"database": "akv_no_such_database"}, {"username": "akv_nobody"}])
async def test_a_connection_that_the_server_refuses(
    change: dict[str, str], backend: Backend, make_store: MakeStore
) -> None:
    url = make_url(backend.url).set(**change)  # type: ignore[arg-type]
    kv = await make_store(url, retry=ENDLESS)
    error = await settled(kv.get("a"))
    assert isinstance(error, StoreError), error
    assert not isinstance(error, StoreUnavailableError)
    assert all(name in str(error) for name in change.values())
    assert error.__cause__ is not None


@pytest.mark.backends(exclude="sqlite-memory")
async def test_a_table_that_is_missing_and_not_to_be_made(backend: Backend, make_store: MakeStore) -> None:
    kv = await make_store(create_models=False, retry=ENDLESS)
    error = await settled(kv.set("a", 1))
    assert isinstance(error, StoreError), error
    assert not isinstance(error, StoreUnavailableError)
    assert "create_models=True" in str(error)


@pytest.mark.backends("sqlite-file")
async def test_a_file_that_cannot_be_opened(make_store: MakeStore) -> None:
    before = sqlite_threads()
    kv = await make_store("sqlite+aiosqlite:////no/such/folder/app.db", retry=ENDLESS)
    error = await settled(kv.get("a"))
    # aiosqlite's thread ends behind the error, and could not answer to a loop that has been closed.
    await asyncio.to_thread(wait_until, lambda: sqlite_threads() <= before, "the thread has ended")
    assert isinstance(error, StoreError), error
    assert "unable to open database file" in str(error)
