"""
The protocol's decisions about tokens, as pure functions: no I/O, no SQLAlchemy, no clock.

Whoever wants to know whether tokens can go stale reads this page, and whoever
models the protocol imports it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum


class Private(Enum):
    """Why a key is private: nobody else may see what is stored under it."""

    PENDING = "the instance is not in the database yet"
    DELETED = "the instance is deleted and the deletion not committed"
    DETACHED = "the instance belongs to no session, so nobody knows how old it is"
    DIRTY = "a session or transaction concerned has uncommitted changes"
    RETAINED = "a session concerned holds attributes that may be older than the tokens"
    SNAPSHOT = "the transactions concerned do not see the same tokens"
    ABSENT = "the transaction is older than the table of tokens"


def covered(seqs: Iterable[int], stamp: int | None) -> bool:
    """
    Tell whether what was loaded at a stamp is as new as tokens read later.

    Args:
        seqs: The tokens that were read.
        stamp: The newest token known before the load; None: nothing is known about when it was.
    """
    return stamp is not None and all(seq <= stamp for seq in seqs)


def one_view(vectors: Collection[object]) -> bool:
    """Tell whether vectors read through different transactions are one, so that a key may stand for all of them."""
    return len(set(vectors)) <= 1
