"""Single flight, without a store."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import traceback
from contextvars import ContextVar
from typing import Any

import pytest

from akv.memoize.flight import Flight, Flights
from tests.memoize.waiting import BOUND, Work, bounded, started, until

who: ContextVar[str] = ContextVar("who", default="nobody")


@pytest.fixture
def flights() -> Flights:
    return Flights()


async def test_concurrent_callers_compute_once_and_get_the_same_object(flights: Flights) -> None:
    work = Work(result=[1])
    tasks = await started(*(flights.fly("place", work) for _ in range(50)))
    work.release.set()
    results = await bounded(asyncio.gather(*tasks))
    assert work.runs == 1
    assert all(result is work.result for result in results)


async def test_places_do_not_wait_for_each_other(flights: Flights) -> None:
    slow, quick = Work("slow"), Work("quick")
    quick.release.set()
    (task,) = await started(flights.fly("slow", slow))
    assert await bounded(flights.fly("quick", quick)) == "quick"
    assert not task.done()
    slow.release.set()
    assert await bounded(task) == "slow"


async def test_a_caller_who_comes_after_the_end_computes_anew(flights: Flights) -> None:
    work = Work()
    work.release.set()
    await bounded(flights.fly("place", work))
    await bounded(flights.fly("place", work))
    assert work.runs == 2
    assert flights.landings == 2


async def test_a_flight_has_landed_in_the_step_in_which_its_computation_ends(flights: Flights) -> None:
    """Not one step later, or a caller in between would join what is over."""
    landings: list[int] = []

    async def compute(_: Flight[Any]) -> None:
        asyncio.get_running_loop().call_soon(lambda: landings.append(flights.landings))

    await bounded(flights.fly("place", compute))
    assert landings == [1]


@pytest.mark.parametrize("cancelled", [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
async def test_cancelling_some_callers_disturbs_no_other(flights: Flights, cancelled: list[int]) -> None:
    work = Work()
    tasks = await started(*(flights.fly("place", work) for _ in range(3)))
    await bounded(work.running.wait())
    for index in cancelled:
        tasks[index].cancel()
    await bounded(asyncio.wait([tasks[index] for index in cancelled]))
    work.release.set()
    results = await bounded(asyncio.gather(*tasks, return_exceptions=True))
    assert work.runs == 1
    assert work.cancelled == 0
    for index, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) if index in cancelled else result == "result"


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
async def test_the_last_caller_who_is_cancelled_returns_when_the_computation_has_ended(
    flights: Flights, order: list[int]
) -> None:
    work = Work()
    tasks = await started(*(flights.fly("place", work) for _ in range(3)))
    await bounded(work.running.wait())
    for index in order:
        assert work.cancelled == 0
        tasks[index].cancel()
        await bounded(asyncio.wait([tasks[index]]))
        assert tasks[index].cancelled()
    assert work.cancelled == 1


async def test_a_second_cancellation_does_not_shorten_the_wait_for_the_end(flights: Flights) -> None:
    unwound = asyncio.Event()
    may_unwind = asyncio.Event()

    async def stubborn(_: Flight[Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_unwind.wait()
            unwound.set()

    (task,) = await started(flights.fly("place", stubborn))
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    may_unwind.set()
    await bounded(asyncio.wait([task]))
    assert task.cancelled()
    assert unwound.is_set()


async def test_an_abandoned_computation_is_neither_waited_for_nor_saved(flights: Flights) -> None:
    """Not even if it takes its time, or does not care for having been cancelled."""
    saving, fresh = Saving(), Work("fresh")

    async def stubborn(flight: Flight[str]) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await saving(flight)
        return "never"

    (task,) = await started(flights.fly("place", stubborn))
    task.cancel()
    await bounded(saving.running.wait())
    fresh.release.set()
    assert await bounded(flights.fly("place", fresh)) == "fresh"
    saving.let_save()
    await bounded(asyncio.wait([task]))
    assert saving.saved == []


async def test_a_callers_own_timeout_is_his_alone(flights: Flights) -> None:
    work = Work()
    (patient,) = await started(flights.fly("place", work))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await flights.fly("place", work)
    work.release.set()
    assert await bounded(patient) == "result"


async def test_an_exception_reaches_all_who_wait_and_nobody_after(flights: Flights) -> None:
    work = Work(result=LookupError("gone"))
    tasks = await started(*(flights.fly("place", work) for _ in range(3)))
    work.release.set()
    results = await bounded(asyncio.gather(*tasks, return_exceptions=True))
    assert results == [work.result] * 3
    work.result = "there"
    assert await bounded(flights.fly("place", work)) == "there"


async def test_an_exception_that_many_raise_keeps_a_short_traceback(flights: Flights) -> None:
    work = Work(result=LookupError("gone"))
    lengths = []

    async def caller() -> None:
        try:
            await flights.fly("place", work)
        except LookupError as error:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))

    tasks = await started(*(caller() for _ in range(20)))
    work.release.set()
    await bounded(asyncio.gather(*tasks))
    assert len(set(lengths)) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_no_complaint_of_the_loop(flights: Flights) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def leave_and_fail(_: Flight[Any]) -> None:
        waiters[0].cancel()
        raise LookupError("gone")

    waiters = await started(flights.fly("place", leave_and_fail))
    await bounded(asyncio.wait(waiters))
    assert waiters.pop().cancelled()
    gc.collect()
    assert complaints == []


async def test_a_failure_after_the_leader_left_is_not_for_the_others(flights: Flights) -> None:
    """What failed may have been his: a session that closed behind him."""
    his, mine = Work(result=RuntimeError("this session is closed")), Work("mine")
    leader, waiter = await started(flights.fly("place", his), flights.fly("place", mine))
    await bounded(his.running.wait())
    leader.cancel()
    await bounded(asyncio.wait([leader]))
    his.release.set()
    mine.release.set()
    assert await bounded(waiter) == "mine"
    assert (his.runs, mine.runs) == (1, 1)


async def test_a_computation_that_cancels_itself_ends_its_leader_alone(flights: Flights) -> None:
    his, mine = Work(result=asyncio.CancelledError()), Work("mine")
    leader, waiter = await started(flights.fly("place", his), flights.fly("place", mine))
    his.release.set()
    mine.release.set()
    assert await bounded(waiter) == "mine"
    with pytest.raises(asyncio.CancelledError):
        await leader


async def test_a_task_that_is_cancelled_before_its_first_step_leaves_nothing_behind(flights: Flights) -> None:
    work = Work()

    async def cancelled_at_once() -> None:
        await asyncio.gather(flights.fly("place", work), _cancel_flight("place"))

    with pytest.raises(asyncio.CancelledError):
        await bounded(cancelled_at_once())
    assert flights.landings == 1
    work.release.set()
    assert await bounded(flights.fly("place", work)) == "result"
    assert work.runs == 1


async def _cancel_flight(place: str) -> None:
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == f"akv-flight-{place}"]
    task.cancel()


async def test_the_computation_sees_the_context_of_its_leader(flights: Flights) -> None:
    async def read(_: Flight[Any]) -> str:
        await asyncio.sleep(0)
        found = who.get()
        who.set("the computation")
        return found

    async def call(name: str) -> tuple[str, str]:
        who.set(name)
        return await flights.fly("place", read), who.get()

    first, second = await bounded(asyncio.gather(call("leader"), call("waiter")))
    assert first == ("leader", "leader")
    assert second == ("leader", "waiter")


async def test_a_computation_that_asks_for_its_own_place_computes_it_alone(flights: Flights) -> None:
    async def countdown(n: int) -> int:
        async def compute(_: Flight[Any]) -> int:
            return 0 if n == 0 else 1 + await countdown(n - 1)

        return await flights.fly("place", compute)

    assert await bounded(countdown(5)) == 5


async def test_computations_that_ask_for_each_other_do_not_wait_for_ever(flights: Flights) -> None:
    both = asyncio.Barrier(2)

    async def ask(place: str, other: str, depth: int) -> str:
        async def compute(_: Flight[Any]) -> str:
            if depth == 0:
                await both.wait()  # both fly before either asks
                return f"{place}<{await ask(other, place, 1)}>"
            return place

        return await flights.fly(place, compute)

    answers = list(await bounded(asyncio.gather(ask("a", "b", 0), ask("b", "a", 0))))
    assert answers in (["a<b<a>>", "b<a>"], ["a<b>", "b<a<b>>"])  # whoever asks last computes the other alone


async def test_a_long_computation_does_not_collect_what_it_waited_for(flights: Flights) -> None:
    async def compute(flight: Flight[Any]) -> int:
        for place in range(10):
            await flights.fly(place, _at_once)
        return len(flight._awaits)

    assert await bounded(flights.fly("outer", compute)) == 0


async def test_a_caller_after_outdate_joins_no_flight_from_before(flights: Flights) -> None:
    before, after = Work("before"), Work("after")
    (old,) = await started(flights.fly("place", before))
    await bounded(flights.outdate(lambda place: place == "place"))
    (new,) = await started(flights.fly("place", after))
    before.release.set()
    assert await bounded(old) == "before"
    (joined,) = await started(flights.fly("place", before))  # the old flight's end must not forget the new one
    after.release.set()
    assert list(await bounded(asyncio.gather(new, joined))) == ["after", "after"]


async def test_outdate_leaves_other_places_alone(flights: Flights) -> None:
    work = Work()
    (task,) = await started(flights.fly("mine", work))
    await bounded(flights.outdate(lambda place: place == "yours"))
    (joined,) = await started(flights.fly("mine", work))
    work.release.set()
    await bounded(asyncio.gather(task, joined))
    assert work.runs == 1


class Saving:
    """A computation that saves its result when told to, and stays in the save until told so."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.may_save = asyncio.Event()
        self.writing = asyncio.Event()
        self.may_end = asyncio.Event()
        self.saved: list[str] = []

    def let_save(self) -> None:
        self.may_save.set()
        self.may_end.set()

    async def __call__(self, flight: Flight[str]) -> str:
        self.running.set()
        await self.may_save.wait()
        return "saved" if await flight.save(self._write) else "not saved"

    async def _write(self) -> bool:
        self.writing.set()
        await self.may_end.wait()
        self.saved.append("value")
        return True


async def test_a_flight_that_was_outdated_does_not_save(flights: Flights) -> None:
    saving = Saving()
    (task,) = await started(flights.fly("place", saving))
    await bounded(saving.running.wait())
    await bounded(flights.outdate(lambda _: True))
    saving.let_save()
    assert await bounded(task) == "not saved"
    assert saving.saved == []


async def test_outdate_waits_for_a_save_that_is_under_way(flights: Flights) -> None:
    saving = Saving()
    saving.may_save.set()
    (task,) = await started(flights.fly("place", saving))
    await bounded(saving.writing.wait())
    (outdating,) = await started(flights.outdate(lambda _: True))
    await asyncio.sleep(0)
    assert not outdating.done()
    saving.may_end.set()
    await bounded(outdating)
    assert saving.saved == ["value"]
    assert await bounded(task) == "saved"


async def test_outdate_reaches_the_flights_of_other_loops(flights: Flights) -> None:
    saving: dict[str, Any] = {}
    flying, finished = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        work = saving["work"] = Saving()
        saving["loop"] = asyncio.get_running_loop()
        task = asyncio.create_task(flights.fly("place", work))
        await bounded(work.running.wait())
        flying.set()
        saving["result"] = await bounded(task)

    def run() -> None:
        asyncio.run(elsewhere())
        finished.set()

    thread = threading.Thread(target=run)
    thread.start()
    await until(flying.is_set)
    await bounded(flights.outdate(lambda _: True))
    saving["loop"].call_soon_threadsafe(saving["work"].let_save)
    await until(finished.is_set)
    thread.join(BOUND)
    assert saving["result"] == "not saved"


async def test_outdate_waits_for_a_save_of_another_loop(flights: Flights) -> None:
    elsewhere: dict[str, Any] = {}
    writing, finished = threading.Event(), threading.Event()

    async def save() -> None:
        work = elsewhere["work"] = Saving()
        elsewhere["loop"] = asyncio.get_running_loop()
        work.may_save.set()
        task = asyncio.create_task(flights.fly("place", work))
        await bounded(work.writing.wait())
        writing.set()
        await bounded(task)

    def run() -> None:
        asyncio.run(save())
        finished.set()

    thread = threading.Thread(target=run)
    thread.start()
    await until(writing.is_set)
    (outdating,) = await started(flights.outdate(lambda _: True))
    assert not outdating.done()
    elsewhere["loop"].call_soon_threadsafe(elsewhere["work"].may_end.set)
    await bounded(outdating)
    assert elsewhere["work"].saved == ["value"]
    await until(finished.is_set)
    thread.join(BOUND)


async def test_a_forced_call_joins_nothing_that_has_begun_and_keeps_it_from_saving(flights: Flights) -> None:
    old, new = Saving(), Work("new")
    (task,) = await started(flights.fly("place", old))
    await bounded(old.running.wait())
    new.release.set()
    assert await bounded(flights.fly("place", new, forced=True)) == "new"
    old.may_save.set()
    assert await bounded(task) == "not saved"


async def test_a_forced_call_does_not_join_a_forced_one_that_has_begun(flights: Flights) -> None:
    old, new = Work("old"), Work("new")
    (older,) = await started(flights.fly("place", old, forced=True))
    await bounded(old.running.wait())
    (newer,) = await started(flights.fly("place", new, forced=True))
    for work in (old, new):
        work.release.set()
    assert list(await bounded(asyncio.gather(older, newer))) == ["old", "new"]


async def test_forced_calls_of_one_moment_compute_once(flights: Flights) -> None:
    work = Work()
    tasks = await started(*(flights.fly("place", work, forced=True) for _ in range(10)))
    work.release.set()
    await bounded(asyncio.gather(*tasks))
    assert work.runs == 1


async def test_a_forced_call_does_not_join_an_ordinary_one_that_may_find_a_stored_value(flights: Flights) -> None:
    ordinary, forced = Work("stored"), Work("computed")
    tasks = await started(flights.fly("place", ordinary), flights.fly("place", forced, forced=True))
    ordinary.release.set()
    forced.release.set()
    assert await bounded(asyncio.gather(*tasks)) == ["stored", "computed"]


async def test_an_ordinary_call_joins_a_forced_one(flights: Flights) -> None:
    work = Work()
    tasks = await started(flights.fly("place", work, forced=True), flights.fly("place", work))
    work.release.set()
    await bounded(asyncio.gather(*tasks))
    assert work.runs == 1


async def test_a_forced_computation_waits_for_an_older_save(flights: Flights) -> None:
    old, new = Saving(), Work("new")
    old.may_save.set()
    new.release.set()
    (older,) = await started(flights.fly("place", old))
    await bounded(old.writing.wait())
    (newer,) = await started(flights.fly("place", new, forced=True))
    await asyncio.sleep(0)
    assert new.runs == 0
    old.may_end.set()
    assert list(await bounded(asyncio.gather(older, newer))) == ["saved", "new"]


async def test_flights_are_forgotten_when_they_have_ended(flights: Flights) -> None:
    work = Work()
    work.release.set()
    for place in range(10):
        await bounded(flights.fly(place, work))
    (loop,) = list(flights._loops)
    assert not loop.joinable
    assert not loop.running


def test_each_event_loop_has_its_own_flights(flights: Flights) -> None:
    async def fly() -> Any:
        work = Work()
        work.release.set()
        return await bounded(flights.fly("place", work))

    assert [asyncio.run(fly()) for _ in range(3)] == ["result"] * 3


def test_a_loop_that_ended_in_the_middle_is_no_hindrance(flights: Flights) -> None:
    async def leave() -> None:
        await started(flights.fly("place", Work()))

    async def fly() -> Any:
        work = Work()
        work.release.set()
        await bounded(flights.outdate(lambda _: True))
        return await bounded(flights.fly("place", work))

    asyncio.run(leave())
    assert asyncio.run(fly()) == "result"
    assert len(flights._loops) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_works_with_eager_tasks(flights: Flights) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        work = Work()
        tasks = [asyncio.create_task(flights.fly("place", work)) for _ in range(5)]
        work.release.set()
        assert await bounded(asyncio.gather(*tasks)) == ["result"] * 5
        assert work.runs == 1
        assert await bounded(flights.fly("at once", _at_once)) == "at once"
        (state,) = list(flights._loops)
        assert not state.joinable
    finally:
        loop.set_task_factory(None)


async def _at_once(_: Flight[Any]) -> str:
    return "at once"
