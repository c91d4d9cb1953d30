"""The store against a dict with expiry: random programs, one call after the other and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from akv import AsyncKVAlchemy
from akv.store.verbs import Verbs
from akv.testing import FakeClock
from tests.backends import Backend
from tests.conftest import MakeStore
from tests.contract import calls
from tests.contract.conftest import Report
from tests.contract.helpers import PATIENCE, dump, session_on, together
from tests.contract.model import Call, Model

T = TypeVar("T")

STEPS = 30
START = FakeClock()()
FACTOR = settings().max_examples // settings.get_profile("default").max_examples
"""1, or more where the profile asks for more."""


def examples(backend: Backend) -> int:
    return FACTOR * (200 if backend.dialect == "sqlite" else 50)


@pytest.fixture
async def store(make_store: MakeStore, clock: FakeClock, backend: Backend) -> AsyncKVAlchemy:
    """A store that does not wait for the disk."""
    return await make_store(backend.url + "?synchronous=OFF" * (backend.dialect == "sqlite"), clock=clock)


@pytest.mark.timeout(600)
async def test_the_store_behaves_as_a_dict_with_expiry(
    store: AsyncKVAlchemy, clock: FakeClock, backend: Backend, report: Report
) -> None:
    loop = asyncio.get_running_loop()
    ran = steps = 0

    def wait(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

    class Machine(RuleBasedStateMachine):
        @initialize()
        def empty(self) -> None:
            nonlocal ran
            ran += 1
            wait(store.clear())
            self.model = Model(clock)

        def count(self) -> None:
            nonlocal steps
            steps += 1

        @rule(call=calls.anything)
        def one(self, call: Call) -> None:
            self.count()
            assert wait(call.ask(store)) == call.ask_paper(self.model), call

        @rule(batch=st.lists(calls.ordered, min_size=2, max_size=8))
        def many_at_once(self, batch: list[Call]) -> None:
            self.count()
            answers = wait(together(call.ask(store) for call in batch))
            assert answers == [call.ask_paper(self.model) for call in batch], batch

        @rule(seconds=st.sampled_from([0.5, 1, 2]))
        def time_passes(self, seconds: float) -> None:
            self.count()
            clock.advance(seconds)

        @rule()
        def the_dead_go(self) -> None:
            self.count()
            assert wait(store.purge_expired()) >= 0

        def teardown(self) -> None:
            if hasattr(self, "model"):
                assert wait(dump(store)) == self.model.live

    chosen = settings(
        max_examples=examples(backend),
        stateful_step_count=STEPS,
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, Machine, settings=chosen)
    report(f"{backend.name}: {ran} programs, {steps} steps of the store against a dict with expiry")
    assert ran >= examples(backend)


async def test_a_transaction_of_the_callers_gives_the_answers_of_the_store(
    store: AsyncKVAlchemy, clock: FakeClock, backend: Backend, report: Report
) -> None:
    loop = asyncio.get_running_loop()
    ran = 0

    async def answers(kv: Verbs, program: list[Call | float]) -> list[Any]:
        clock.set(START)
        given: list[Any] = []
        for step in program:
            if isinstance(step, Call):
                given.append(await step.ask(kv))
            else:
                clock.advance(step)
        return [*given, await dump(kv), await kv.purge_expired()]

    async def compare(program: list[Call | float]) -> None:
        await store.clear()
        async with session_on(store, backend) as session:
            inside = await answers(store.within(session), program)
            await session.rollback()
        assert inside == await answers(store, program)

    @settings(max_examples=FACTOR * 20, suppress_health_check=list(HealthCheck))
    @given(program=st.lists(calls.anything | st.sampled_from([0.5, 1.0, 2.0]), min_size=STEPS, max_size=STEPS))
    def run(program: list[Call | float]) -> None:
        nonlocal ran
        ran += 1
        asyncio.run_coroutine_threadsafe(compare(program), loop).result(PATIENCE)

    await asyncio.to_thread(run)
    report(f"{backend.name}: {ran} programs of {STEPS} steps, within(session) against the store")
    assert ran >= FACTOR * 20
