"""
The warm parent: a process that has imported everything and opened nothing, and forks workers off in milliseconds.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

_BIGGEST = 2**16

Role = Callable[[Any], None]


class Zygote:
    """
    Forked off the process that makes it, which must not have begun anything: no loop, no thread.

    Its children end with it, and it ends with its maker, however that ends.
    """

    def __init__(self) -> None:
        assert threading.active_count() == 1, "threads do not survive a fork"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _be_zygote(theirs)
        theirs.close()
        self._socket = ours

    def fork(self, role: Role, argument: Any) -> int:
        """Start a process that calls *role* with *argument*, and return its number."""
        self._socket.send(pickle.dumps((role, argument)))
        return int(self._socket.recv(_BIGGEST))

    def close(self) -> None:
        """End every process that is left."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def _be_zygote(control: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: no zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    lifeline, end = os.pipe()
    while message := control.recv(_BIGGEST):
        pid = os.fork()
        if pid == 0:
            control.close()
            os.close(end)
            _live(lifeline, *pickle.loads(message))
        control.send(str(pid).encode())
    os._exit(0)


def _live(lifeline: int, role: Role, argument: Any) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=[lifeline], daemon=True).start()
    code = 0
    try:
        role(argument)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent(lifeline: int) -> None:
    select.select([lifeline], [], [])
    os._exit(2)
