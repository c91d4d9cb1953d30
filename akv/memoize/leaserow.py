"""
What stands in the row of a lease, and what may become of it: pure functions, asked under the row's lock.

A step knows by the holder's random name whether it has happened already, so it may be repeated.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """
    What stands in the row of a lease.

    Attributes:
        holder: Random name of who holds it; empty: nobody.
        fence: Greater for each holder.
        until: When the lease ends, microseconds since 1970.
    """

    holder: str = ""
    fence: int = 0
    until: int = 0

    @classmethod
    def of(cls, stored: object) -> Row:
        """Read a stored value; whatever is none of ours is a free row."""
        try:
            return cls(stored["holder"], stored["fence"], stored["until"])  # type: ignore[index]
        except (KeyError, TypeError):
            return cls()

    def is_free(self, now: int) -> bool:
        """Tell whether anybody may take it."""
        return not self.holder or self.until <= now


class Taken(Exception):  # noqa: N818 -- never reaches a user
    """Somebody else holds the lease."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.row = row


def taken(holder: str, now: int, until: int, stored: object) -> dict[str, Any]:
    """
    Decide about a wish to hold.

    Args:
        holder: Who wishes; if he holds it already, his step has happened, and is repeated.
        now: Microseconds since 1970; the fence is never below it, so that it grows even if the row has gone.
        until: When his lease ends.
        stored: The row.

    Raises:
        Taken: Somebody else holds it.
    """
    row = Row.of(stored)
    if row.holder == holder:
        return row._asdict()
    if not row.is_free(now):
        raise Taken(row)
    return Row(holder, max(row.fence + 1, now), until)._asdict()


def renewed(holder: str, fence: int, until: int, stored: object) -> dict[str, Any]:
    """
    Decide about a wish to hold on; a lease that has ended is renewed if nobody has taken it.

    Raises:
        Taken: Somebody has.
    """
    row = Row.of(stored)
    if stored is not None and row.holder != holder:
        raise Taken(row)
    return Row(holder, fence, until)._asdict()


def released(holder: str, stored: object) -> dict[str, Any]:
    """
    Decide about giving back; the fence stays.

    Raises:
        Taken: It is held by somebody else, or by nobody.
    """
    row = Row.of(stored)
    if row.holder != holder:
        raise Taken(row)
    return Row("", row.fence, 0)._asdict()
