"""
MariaDB's gate rows: can two reads, READ UNCOMMITTED and READ COMMITTED, be trusted if rows are deleted?

A small model of its own: one row of ``akv_gate``, somebody who asks whether its
transaction has ended, and a drain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from tests.model.explorer import Step, begin, work

Row: TypeAlias = Literal["none", "inserted", "own delete", "committed", "deleting", "gone", "rolled back"]
Isolation: TypeAlias = Literal["RU", "RC"]


class Gate(NamedTuple):
    """
    The state of everything.

    Attributes:
        row: What became of it.
        asker: What the first of the two reads of ``ended`` saw.
        drain: What that of ``drain`` saw.
        draining: A drain was called.
        owed: ... while the transaction was inside the gate.
    """

    row: Row = "none"
    asker: bool | None = None
    drain: bool | None = None
    draining: bool = False
    owed: bool = False


@dataclass(frozen=True)
class GateRows:
    """
    One way to use the rows.

    Attributes:
        title: What it is called.
        order: That of the two reads.
        deletes_own_row: The transaction deletes its row before its COMMIT.
        absent_is_ended: A row that READ COMMITTED does not see counts as ended.
    """

    title: str
    order: tuple[Isolation, Isolation] = ("RU", "RC")
    deletes_own_row: bool = False
    absent_is_ended: bool = False

    def initial(self) -> Gate:
        """Nothing has happened yet."""
        return Gate()

    def flaw(self, world: Gate, *, at_rest: bool) -> str:
        """No state is wrong in itself."""
        return ""

    def show(self, part: object) -> str:
        """Return a part of a sentence."""
        return str(part)

    def steps(self, world: Gate) -> Iterator[Step[Gate]]:
        """Yield what may happen next."""
        for row, label in self._fate(world.row):
            yield work(world._replace(row=row), label)
        yield self._ask(world) if world.row != "none" else begin(world, "no mark, nobody asks")
        yield self._drain(world)

    def _fate(self, row: Row) -> Iterator[tuple[Row, str]]:
        if row == "none":
            yield "inserted", "the writer enters the gate"
        if row == "inserted" and self.deletes_own_row:
            yield "own delete", "the writer deletes its own row"
        if _can_commit(row):
            yield "committed" if row == "inserted" else "gone", "the writer commits"
            yield "rolled back", "the writer rolls back"
        if row == "committed":
            yield "deleting", "a janitor deletes the row"
        if row == "deleting":
            yield "gone", "the janitor commits"
            yield "committed", "the janitor rolls back"

    def _ask(self, world: Gate) -> Step[Gate]:
        """``ended``: asked because of a mark, hence after the writer has entered."""
        first, second = self.order
        if world.asker is None:
            seen = _sees(first, world.row)
            return work(world._replace(asker=seen), f"ended? {first} sees it: {seen}")
        in_ru, in_rc = self._both(world.asker, world.row)
        ended = in_rc or not in_ru or self.absent_is_ended
        label = f"ended? {second} sees it: {_sees(second, world.row)}; {'yes' if ended else 'no'}"
        violation = "WRONG: said ended, can still commit" if ended and _can_commit(world.row) else ""
        return work(world._replace(asker=None), label, violation=violation)

    def _drain(self, world: Gate) -> Step[Gate]:
        """``drain``: what READ UNCOMMITTED shows and READ COMMITTED does not is open; ask again."""
        if not world.draining:
            return begin(world._replace(draining=True, owed=_can_commit(world.row)), "a drain is called")
        if world.drain is None:
            seen = _sees(self.order[0], world.row)
            return work(world._replace(drain=seen), f"drain: {self.order[0]} sees it: {seen}")
        in_ru, in_rc = self._both(world.drain, world.row)
        if in_ru and not in_rc:
            return work(world._replace(drain=None), "drain: still open")
        early = world.owed and _can_commit(world.row)
        done = world._replace(draining=False, drain=None, owed=False)
        return work(done, "drain returns", violation="WRONG: the drain returned too early" if early else "")

    def _both(self, first: bool, row: Row) -> tuple[bool, bool]:
        """Return what READ UNCOMMITTED and READ COMMITTED saw, of which one was read before."""
        second = _sees(self.order[1], row)
        return (first, second) if self.order == ("RU", "RC") else (second, first)


def _can_commit(row: Row) -> bool:
    return row in ("inserted", "own delete")


def _sees(isolation: Isolation, row: Row) -> bool:
    return row in (("inserted", "committed") if isolation == "RU" else ("committed", "deleting"))
