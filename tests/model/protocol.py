"""The protocol as something that can be explored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model import faults, properties, readers, upkeep, world, writers
from tests.model.explorer import Step
from tests.model.scenario import Scenario
from tests.model.world import World

_ACTORS = (writers, readers, upkeep, faults)


@dataclass(frozen=True)
class Protocol:
    """One scenario of the protocol."""

    scenario: Scenario

    @property
    def title(self) -> str:
        """The scenario's."""
        return self.scenario.title

    def initial(self) -> World:
        """Nothing has happened yet."""
        return self.scenario.initial()

    def steps(self, world: World) -> Iterator[Step[World]]:
        """Yield what may happen next, by whomever."""
        for actor in _ACTORS:
            yield from actor.steps(world, self.scenario)

    def flaw(self, world: World, *, at_rest: bool) -> str:
        """Tell what is wrong with a state."""
        return properties.flaw(world, self.scenario, at_rest=at_rest)

    def show(self, part: object) -> str:
        """Return a part of a sentence."""
        return world.show(part)
