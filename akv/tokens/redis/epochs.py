"""
Epochs: what to do when Redis has lost tokens, or may have.

E1 writes a new epoch, draining; E2 waits until every transaction that had entered the gate by then has
ended, for its mark may be among what was lost; E3 activates the epoch. Whoever meets a bad epoch
does that, in a task that no commit waits for.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from akv.aio import OwnedTasks
from akv.tokens.backend import Unreachable
from akv.tokens.redis.formats import Found, activated, new_id, read_epoch, write_epoch
from akv.tokens.rules import Epoch, EpochStep, Seen, epoch_step

if TYPE_CHECKING:
    from akv.tokens.redis.core import Core
    from akv.tokens.redis.runtime import Asking
    from akv.tokens.redis.wire import Link

logger = logging.getLogger("akv")

BORN: Final = "sha:"
"""Begins what stands for the process where INFO is forbidden: the SHA of a script that was loaded at the birth."""
_PAUSE: Final = 0.5


async def seen_on(link: Link, found: Found) -> Seen:
    """Say what a connection shows of an epoch, as the rules want it: with the process that answered."""
    epoch = found.epoch
    run = link.run
    if epoch is not None and epoch.run.startswith(BORN) and await link.knows_birth(epoch.run.removeprefix(BORN)):
        run = epoch.run
    return Seen(run, epoch, 0, ())


class Epochs:
    """The task of one event loop that brings about an active epoch."""

    def __init__(self, core: Core, asking: Asking, tasks: OwnedTasks) -> None:
        self._core = core
        self._asking = asking
        self._tasks = tasks
        self._is_running = False
        self._not_before = float("-inf")

    def met(self, seen: Seen) -> None:
        """Note what a read showed; begin to mend it if need be and if a bound engine allows to."""
        if epoch_step(seen, rules=self._core.rules) is None or self._is_running:
            return
        if self._core.any_bound() is not None and self._core.clock() >= self._not_before:
            self._is_running = True
            self._tasks.spawn(self._renew(), name="akv renews the epoch of tokens")

    async def _renew(self) -> None:
        try:
            await self._bring_about()
        except Unreachable as error:
            logger.debug("the epoch of tokens cannot be renewed now: %s", error)
        except Exception as error:
            logger.warning("the epoch of tokens cannot be renewed: %s", error, exc_info=error)
        finally:
            self._is_running = False
            self._not_before = self._core.clock() + _PAUSE

    async def _bring_about(self) -> None:
        engine = self._core.any_bound()
        if engine is None:
            return
        gate = self._core.gate(engine)
        self._core.adopt(await gate.fingerprint())
        while True:
            found, seen = await self._asking.patiently(self._look)
            step = epoch_step(seen, rules=self._core.rules)
            if step is EpochStep.OPEN:
                await self._asking.patiently(self._open)
            elif step is EpochStep.DRAIN:
                self._core.check(found, seen)
                await gate.drain()  # after E1: whoever enters from now on marks in the new epoch
                await self._asking.patiently(partial(self._swap, was=found, text=activated(found)))
            else:
                return

    async def _look(self, link: Link) -> tuple[Found, Seen]:
        from akv.tokens.redis.wire import LOOK

        found = read_epoch(await link.run_script(LOOK, [self._core.keys.epoch]))
        return found, await seen_on(link, found)

    async def _open(self, link: Link) -> None:
        """E1, on the connection to the process that the epoch is for; with a new id at every try."""
        found, seen = await self._look(link)
        if epoch_step(seen, rules=self._core.rules) is not EpochStep.OPEN:
            return
        id_ = new_id()
        epoch = Epoch(id_, link.run or BORN + await link.load_birth(id_), active=False)
        await self._swap(link, found, write_epoch(epoch, self._core.options.slots, self._core.database))

    async def _swap(self, link: Link, was: Found, text: str) -> None:
        from akv.tokens.redis.wire import SWAP

        await link.run_script(SWAP, [self._core.keys.epoch], was.text, text)
