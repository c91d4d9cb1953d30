"""
Tasks that an event loop may leave behind when it ends without notice.
"""

from __future__ import annotations

from contextlib import suppress
from inspect import iscoroutine

from akv.aio import OwnedTasks


class LoopTasks(OwnedTasks):
    """Tasks of one event loop."""

    def abandon(self) -> None:
        """
        Take apart what is left of an event loop that has ended.

        Whatever code of ours or of the driver's then wants of the loop fails, which is nobody's concern any more; left
        to the garbage collector, it would be reported.
        """
        for task in self._tasks:
            coroutine = task.get_coro()
            if iscoroutine(coroutine):
                with suppress(Exception):
                    coroutine.close()
        super().abandon()
