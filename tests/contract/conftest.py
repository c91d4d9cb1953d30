"""What the contract suite shares: a frozen clock, the two doors to the verbs, and how many examples ran."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import pytest

from akv import AsyncKVAlchemy
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract.helpers import session_on

Report: TypeAlias = Callable[[str], None]

_lines: list[str] = []


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands at noon of 2026-01-01, UTC."""
    return FakeClock()


@pytest.fixture
async def store(make_store: MakeStore, clock: FakeClock) -> AsyncKVAlchemy:
    """A store on the backend."""
    return await make_store(clock=clock)


@pytest.fixture(params=["store", "within"])
async def kv(request: pytest.FixtureRequest, store: AsyncKVAlchemy, backend: Backend) -> AsyncIterator[Verbs]:
    """The verbs of a store, and the same verbs inside a transaction of the caller's."""
    if request.param == "store":
        yield store
        return
    async with session_on(store, backend) as session:
        yield store.within(session)


@pytest.fixture
def report() -> Report:
    """Say something in the summary of the run."""
    return _lines.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _lines:
        terminalreporter.section("examples of the contract suite")
        for line in _lines:
            terminalreporter.write_line(line)
