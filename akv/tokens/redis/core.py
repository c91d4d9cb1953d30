"""
What a RedisTokens object knows in every event loop: its options, its databases, the newest token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine

from akv.errors import ConfigurationError
from akv.tokens.gates import Gate, gate_for
from akv.tokens.outbox import Outbox
from akv.tokens.redis.formats import Found, Keys, quoted
from akv.tokens.rules import ALL, Rules, Seen, Token, stamp_of, valid_epoch

if TYPE_CHECKING:
    from akv.tokens.redis.options import Options

STAMP_SECONDS: Final = 0.05
"""The age from which on a stamp is fetched anew before a transaction begins."""


@dataclass(eq=False)
class Core:
    """
    Shared by the event loops of a process.

    Attributes:
        options: As given, and checked.
        clock: Monotonic, seconds; only ever compared with itself.
        keys: Those of the namespace.
        stamp: The newest token of an active epoch that was seen; None: none yet.
        looked_at: When the last read of tokens was sent that was answered.
        relayed_at: When an event loop last began to look into the outbox.
        database: Fingerprint of the bound engines' database as it stands in the epoch; empty: not known yet.
        gates, outboxes: Of each engine that was ever bound.
        bound: The engines that are bound now.
        rules: Those to go by; an experiment may leave one out.
    """

    options: Options
    clock: Callable[[], float]
    keys: Keys
    stamp: Token | None = None
    looked_at: float = float("-inf")
    relayed_at: float = float("-inf")
    database: str = ""
    gates: dict[Engine, Gate] = field(default_factory=dict)
    outboxes: dict[Engine, Outbox] = field(default_factory=dict)
    bound: set[Engine] = field(default_factory=set)
    rules: Rules = ALL

    def gate(self, engine: Engine) -> Gate:
        """
        Return the gate of an engine.

        Raises:
            ConfigurationError: Its database cannot be one.
        """
        if engine not in self.gates:
            options = self.options
            self.gates[engine] = gate_for(engine, namespace=options.namespace, create_tables=options.create_tables)
        return self.gates[engine]

    def outbox(self, engine: Engine) -> Outbox:
        """Return the outbox of the namespace in the database of an engine."""
        if engine not in self.outboxes:
            options = self.options
            self.outboxes[engine] = Outbox(engine, namespace=options.namespace, create_tables=options.create_tables)
        return self.outboxes[engine]

    def any_bound(self) -> Engine | None:
        """Return one of the engines that are bound now."""
        return next(iter(self.bound), None)

    def adopt(self, fingerprint: str) -> None:
        """
        Note what database the bound engines work on.

        Raises:
            ConfigurationError: Another bound engine works on another one.
        """
        database = quoted(fingerprint)
        if self.database not in ("", database):
            raise ConfigurationError(
                "two engines of different databases are bound to the same tokens, and a token belongs to one database: "
                "make a tokens object with a namespace of its own for each"
            )
        self.database = database

    def check(self, found: Found, seen: Seen) -> None:
        """
        Refuse an epoch that is not ours to use.

        Raises:
            ConfigurationError: It is of another database, or was written with other slots.
        """
        if valid_epoch(seen, rules=self.rules) is None:
            return
        if found.slots != str(self.options.slots):
            raise ConfigurationError(
                f"the tokens in the namespace {self.options.namespace!r} have slots={found.slots}: pass that, not "
                f"{self.options.slots}"
            )
        if self.database and found.database != self.database:
            raise ConfigurationError(
                f"the namespace {self.options.namespace!r} belongs to another database (it says {found.database}, this "
                f"one is {self.database}): give each database a namespace of its own; if that database is gone for "
                f"good, delete the key {{{self.options.namespace}}}:epoch"
            )

    def learn(self, seen: Seen, sent_at: float | None = None) -> None:
        """Note what a read showed."""
        stamp, known = stamp_of(seen, rules=self.rules), self.stamp
        if sent_at is not None:
            self.looked_at = max(self.looked_at, sent_at)
        if stamp is not None and (known is None or known.epoch != stamp.epoch or known.seq < stamp.seq):
            self.stamp = stamp

    @property
    def is_fresh(self) -> bool:
        """Whether the stamp is new enough to begin a transaction with."""
        return self.clock() - self.looked_at <= STAMP_SECONDS

    async def aclose(self) -> None:
        """Close the connections to the databases."""
        for gate in self.gates.values():
            await gate.aclose()
        for outbox in self.outboxes.values():
            await outbox.aclose()
