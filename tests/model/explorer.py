"""Every state that steps can lead to, breadth first; knows nothing about any protocol."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

W = TypeVar("W")


class Kind(Enum):
    """Whether a step will happen."""

    BEGIN = "something new; it need not happen"
    WORK = "something begun goes on; sooner or later it happens"
    FAULT = "a fault or a rollback; it need not happen"


class Step(NamedTuple, Generic[W]):
    """One step, the world after it, and what was wrong with it."""

    kind: Kind
    after: W
    label: tuple[object, ...]
    violation: str = ""


def begin(after: W, *label: object) -> Step[W]:
    """Return a step that begins something."""
    return Step(Kind.BEGIN, after, label)


def work(after: W, *label: object, violation: str = "") -> Step[W]:
    """Return a step of something under way."""
    return Step(Kind.WORK, after, label, violation)


def fault(after: W, *label: object) -> Step[W]:
    """Return a step that goes wrong."""
    return Step(Kind.FAULT, after, label)


class Explorable(Protocol[W]):
    """What can be explored: a first world, the steps out of each, and what is wrong with it."""

    @property
    def title(self) -> str: ...
    def initial(self) -> W: ...
    def steps(self, world: W, /) -> Iterator[Step[W]]: ...
    def flaw(self, world: W, /, *, at_rest: bool) -> str: ...
    def show(self, part: object, /) -> str: ...


class Result(NamedTuple):
    """What an exploration found; without a violation it was exhaustive."""

    states: int
    transitions: int
    seconds: float
    violation: str = ""
    trace: tuple[str, ...] = ()


def explore(model: Explorable[W], limit: int = 20_000_000) -> Result:
    """
    Explore level by level until something is wrong; what is found is one of the nearest.

    More states than *limit* are wrong, too: something goes on for ever.
    """
    with _no_garbage():
        return _Exploration(model, limit).run()


class _Exploration(Generic[W]):
    def __init__(self, model: Explorable[W], limit: int) -> None:
        self._model = model
        self._limit = limit
        self._began = time.perf_counter()
        self._transitions = 0
        self._parents: dict[W, W | None] = {}

    def run(self) -> Result:
        level = [self._model.initial()]
        self._parents[level[0]] = None
        while level:
            following: list[W] = []
            wrong: tuple[W, Step[W]] | None = None
            for world in level:
                steps = list(self._model.steps(world))
                at_rest = all(step.kind is not Kind.WORK for step in steps)
                if flaw := self._model.flaw(world, at_rest=at_rest):
                    return self._result(flaw, self._path(world))
                wrong = wrong or next(((world, step) for step in steps if step.violation), None)
                following += self._new(world, steps)
                if len(self._parents) > self._limit:
                    return self._result(f"ENDLESS: more than {self._limit:,} states", self._path(world))
            if wrong is not None:
                world, step = wrong
                return self._result(step.violation, (*self._path(world), self._sentence(step)))
            level = following
        return self._result("", ())

    def _new(self, world: W, steps: list[Step[W]]) -> Iterator[W]:
        self._transitions += len(steps)
        for step in steps:
            if step.after not in self._parents:
                self._parents[step.after] = world
                yield step.after

    def _result(self, violation: str, trace: tuple[str, ...]) -> Result:
        seconds = time.perf_counter() - self._began
        return Result(len(self._parents), self._transitions, seconds, violation, trace)

    def _path(self, world: W) -> tuple[str, ...]:
        sentences: list[str] = []
        while (parent := self._parents[world]) is not None:
            sentences.append(next(self._sentence(step) for step in self._model.steps(parent) if step.after == world))
            world = parent
        return tuple(reversed(sentences))

    def _sentence(self, step: Step[W]) -> str:
        return " ".join(part if isinstance(part, str) else self._model.show(part) for part in step.label)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Look for no cycles meanwhile: all states are kept, and none is part of one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
