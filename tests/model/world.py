"""The state of everything, as plain tuples, and what can be read off it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from akv.tokens.rules import Fill, Holder, Record, Seen, Token, Vector, current, vector_of

T = TypeVar("T")

Value: TypeAlias = int
"""A set of changes, one bit each: what a query sees, what a cached value contains."""

Which: TypeAlias = tuple[int, ...]
"""The records that a read depends on, or that a write changes."""

SOURCE: Final[Value] = 1 << 7
"""The bit of something outside the database, which ``cache_clear`` announces."""

TRANSACTIONS: Final = ("12", "112")
"""The marks of the writers' transactions; the one as text is a part of the other."""

OLD: Final = Record("0", 0, ())
"""A record of an epoch of the past."""

Txn: TypeAlias = Literal["none", "open", "entered", "committed", "aborted"]
"""A transaction as the database knows it; entered: it went through the gate."""

NOT_BEGUN: Final[Txn] = "none"

Then: TypeAlias = Literal["resolve", "nothing", "outbox"]


class Writer(NamedTuple):
    """
    A process that commits one change.

    Attributes:
        at: What it does next.
        id: The mark of its transaction.
        then: What follows its COMMIT.
        known: The epoch that it knew at its start; only one that keeps a wrong rule needs it.
        late: A MARK of its transaction is still on its way to Redis.
    """

    at: str = "idle"
    id: str = ""
    then: Then = "resolve"
    known: str = ""
    late: bool = False


class Reader(NamedTuple):
    """
    A call that reads tokens and a value.

    Attributes:
        at: What it does next.
        need: What it must return at least.
        held: What its session holds from before: a snapshot, or loaded instances.
        holder: The same session, as the rules know it.
        tokens: Those that its snapshot shows, where they are in the database.
        vector: What its first read of tokens showed.
        usable: That read was usable.
        s0: What it knew before a tracked run.
        value: What it has computed.
    """

    at: str = "idle"
    need: Value = 0
    held: Value | None = None
    holder: Holder | None = None
    tokens: Seen | None = None
    vector: Vector | None = None
    usable: bool = False
    s0: Token | None = None
    value: Value = 0

    @property
    def holders(self) -> tuple[Holder, ...]:
        """The sessions concerned, as the rules want them."""
        return () if self.holder is None else (self.holder,)

    def fill(self, *, fresh: bool = True) -> Fill:
        """Return its computation, as the rules know it."""
        return Fill(self.vector, self.usable, fresh)


class Entry(NamedTuple):
    """What the cache holds."""

    vector: Vector
    value: Value


class Batch(NamedTuple):
    """A read of tokens that several callers share; no answer: it is not sent yet."""

    answer: Seen | None = None


class Initialiser(NamedTuple):
    """Who opens, drains and activates an epoch, and the writers that it waits for."""

    at: str = "idle"
    epoch: str = ""
    listed: tuple[int, ...] = ()


class Budget(NamedTuple):
    """How many of these faults may still happen; desertion: an initialiser dies in the middle of its work."""

    flush: int = 0
    restart: int = 0
    outage: int = 0
    eviction: int = 0
    desertion: int = 0


NO_FAULTS: Final = Budget()


class World(NamedTuple):
    """
    Everything.

    Attributes:
        txns: The database's view of each writer's transaction.
        redis: All its records, or those of a database; the name is that of the usual place.
        backup: What a restart of Redis loads.
        store: What the cache holds.
        leader: The reader that leads the flight.
        epochs: How many were ever opened.
        outbox: Change sets that lie in it.
        excused: What was committed past a Redis that readers still reach.
        source: What has become of something outside the database.
        budget: The faults that are left.
    """

    writers: tuple[Writer, ...]
    txns: tuple[Txn, ...]
    redis: Seen
    redis_up: bool
    backup: Seen | None
    store: Entry | None
    readers: tuple[Reader, ...]
    leader: int | None
    batch: Batch | None
    initialisers: tuple[Initialiser, ...]
    epochs: int
    outbox: Value
    excused: Value
    source: Literal["same", "changed", "announced"]
    budget: Budget


def put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """Return *items* with another item at *index*."""
    return (*items[:index], item, *items[index + 1 :])


def asked(seen: Seen, which: Which) -> Seen:
    """Return what a read of some of the records shows."""
    if len(which) == len(seen.records):
        return seen
    return seen._replace(records=tuple([seen.records[i] for i in which]))


def scripted(seen: Seen, which: Which, script: Callable[[Seen], Seen]) -> Seen:
    """Return what a script makes of all the records when it is given some of them."""
    after = script(asked(seen, which))
    records = list(seen.records)
    for i, record in zip(which, after.records, strict=True):
        records[i] = record
    return after._replace(records=tuple(records))


def committed(world: World) -> Value:
    """Return all that has committed."""
    return sum(1 << i for i, txn in enumerate(world.txns) if txn == "committed")


def visible(world: World) -> Value:
    """Return what a query would see that runs now."""
    return committed(world) | (SOURCE if world.source != "same" else 0)


def promised(world: World) -> Value:
    """
    Return what a read that begins now must return: all that has committed.

    With one excuse, the price of the policy "outbox": a writer was cut off from a Redis that readers
    still reach. It lasts until the relay has delivered the change set, or a new epoch is active.
    """
    return committed(world) & ~world.excused | (SOURCE if world.source == "announced" else 0)


def show(part: object) -> str:
    """Return a part of a sentence about a step: a value, a token, or what a read of tokens shows."""
    if part is None:
        return "none"
    if isinstance(part, int):
        names = [f"W{id_}" for me, id_ in enumerate(TRANSACTIONS) if part >> me & 1]
        return "{" + ", ".join(names + ["source"] * bool(part & SOURCE)) + "}"
    if isinstance(part, Token):
        return f"{part.epoch}.{part.seq}"
    assert isinstance(part, Seen)
    return _show_seen(part)


def _show_seen(seen: Seen) -> str:
    if seen.epoch is None:
        return "no epoch"
    words = [
        f"{seen.epoch.id}.{token.seq}" + "".join(f" mark {who}" for who in current(record, seen.epoch).marks)
        for token, record in zip(vector_of(seen), seen.records, strict=True)
    ]
    words += ["draining"] * (not seen.epoch.active) + ["of another run"] * (seen.epoch.run != seen.run)
    return ", ".join(words)
