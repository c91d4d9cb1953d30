"""
What is stored in Redis, as text: the one place that knows it besides the scripts.

::

    {akv}:epoch      1 <id> <run> <active|draining> <slots> <database>
    {akv}:seq        <number>
    {akv}<record>    <id of the epoch> <seq> <mark> <mark> ...
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

from akv.errors import ConfigurationError
from akv.tokens.identifiers import record_of
from akv.tokens.rules import Epoch, Record

FORMAT: Final = "1"
_UNWRITTEN: Final = Record("", 0, ())
_KEPT_KEYS: Final = 2**14
_STATES: Final = {"active": True, "draining": False}


class Found(NamedTuple):
    """
    The epoch as it stands in Redis.

    Attributes:
        text: All of it; empty: there is none.
        epoch: Read from it.
        slots: Number of records that rows share.
        database: Fingerprint of the database whose epoch it is, quoted.
    """

    text: str
    epoch: Epoch | None
    slots: str
    database: str


_NOTHING: Final = Found("", None, "", "")


@lru_cache(maxsize=8)
def read_epoch(text: str) -> Found:
    """
    Read an epoch.

    Raises:
        ConfigurationError: It was written by another version of akv, or by something else.
    """
    if not text:
        return _NOTHING
    parts = text.split(" ")
    if len(parts) != 6 or parts[0] != FORMAT or parts[3] not in _STATES:
        raise ConfigurationError(
            f"Redis has an epoch of tokens that this version of akv cannot read ({text!r}): use a namespace of its own "
            "for each version, or upgrade the older programs"
        )
    _, id_, run, state, slots, database = parts
    return Found(text, Epoch(id_, run, _STATES[state]), slots, database)


def write_epoch(epoch: Epoch, slots: int, database: str) -> str:
    """Write an epoch; the inverse of :func:`read_epoch`."""
    state = "active" if epoch.active else "draining"
    return f"{FORMAT} {epoch.id} {epoch.run} {state} {slots} {database}"


def activated(found: Found) -> str:
    """Return the text of the same epoch, active."""
    return found.text.replace(" draining ", " active ", 1)


def new_id() -> str:
    """Return an id that no epoch ever had."""
    return secrets.token_hex(8)


def quoted(fingerprint: str) -> str:
    """Return a fingerprint as it stands in an epoch, without blanks."""
    return quote(fingerprint, safe="/:=,@")


@lru_cache(maxsize=_KEPT_KEYS)
def read_record(text: str) -> Record:
    """Read a record; empty: it was never written."""
    if not text:
        return _UNWRITTEN
    epoch, seq, *marks = text.split(" ")
    return Record(epoch, int(seq), tuple(marks))


def bulk(data: bytes) -> bytes:
    """Return one argument of a command as it is sent."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


class Keys:
    """
    The keys of one namespace, ready to be sent.

    Attributes:
        epoch, seq: Those of the epoch and of the counter.
    """

    def __init__(self, namespace: str, slots: int) -> None:
        prefix = f"{{{namespace}}}"
        self.epoch = bulk(f"{prefix}:epoch".encode())
        self.seq = bulk(f"{prefix}:seq".encode())

        @lru_cache(maxsize=_KEPT_KEYS)
        def of_identifier(identifier: str) -> bytes:
            return bulk(f"{prefix}{record_of(identifier, slots)}".encode())

        self.of_identifier = of_identifier

    def of_identifiers(self, identifiers: Sequence[str]) -> list[bytes]:
        """Return the keys of the records of identifiers, in their order."""
        return list(map(self.of_identifier, identifiers))
