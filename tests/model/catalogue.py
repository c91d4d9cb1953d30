"""What is explored with every rule in force, and must be found sound."""

from __future__ import annotations

from typing import Final

from tests.model.gate_rows import GateRows
from tests.model.scenario import (
    ATTACHED,
    DIRTY,
    LOADED,
    RC,
    RR,
    TRACKED,
    TRACKED_LOADED,
    TRACKED_RR,
    Scenario,
)
from tests.model.world import Budget

FLUSH: Final = Budget(flush=1)
FLUSHES: Final = Budget(flush=2)
RESTART: Final = Budget(restart=1)
OUTAGE: Final = Budget(outage=1)
EVERYTHING: Final = Budget(flush=1, restart=1, desertion=1)

GATE_ROWS: Final = (
    GateRows("MariaDB's gate rows, RU then RC"),
    GateRows("MariaDB's gate rows, RC then RU", order=("RC", "RU")),
)

QUICK: Final = (
    Scenario(readers=(RC, RR), crash=True),
    Scenario(crash=True, budget=FLUSH, late=True),
    Scenario(crash=True, empty=True, budget=Budget(flush=1, desertion=1)),
    Scenario(crash=True, budget=RESTART),
    Scenario(readers=(LOADED,), crash=True, budget=FLUSH),
    Scenario(readers=(ATTACHED,), crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED,), crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED,), early_s0=True, budget=FLUSH),
    Scenario(readers=(TRACKED_RR,), crash=True, budget=FLUSH),
    Scenario(readers=(DIRTY, RC), crash=True, budget=FLUSH),
    Scenario(readers=(RC, RC), flight="on arrival", crash=True),
    Scenario(readers=(DIRTY, RC), flight="on arrival", budget=FLUSH),
    Scenario(without_epoch="skip", crash=True, budget=FLUSH),
    Scenario(crash=True, budget=OUTAGE, outbox_check="before"),
    Scenario(cut_off=True, crash=True, budget=FLUSH),
    Scenario(readers=(RC, RR), in_database=True, crash=True, exact=True),
    Scenario(readers=(LOADED, TRACKED), in_database=True, crash=True),
)
"""A few seconds each at most: the test run explores them, and whatever the ablations stand on."""

LONG: Final = (
    Scenario(writers=2, crash=True),
    Scenario(crash=True, budget=FLUSHES),
    Scenario(readers=(RR,), crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED,), early_s0=True, crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED_LOADED,), crash=True, budget=FLUSH),
    Scenario(readers=(RC, RC), flight="on miss", crash=True),
    Scenario(source=True, budget=FLUSH),
    Scenario(writers=2, bulk=True, crash=True),
    Scenario(crash=True, budget=OUTAGE),
    Scenario(crash=True, budget=OUTAGE, outbox_check="after"),
    Scenario(readers=(RC, RR), exact=True, crash=True),
    Scenario(writers=2, readers=(RC, RR), in_database=True, crash=True, exact=True),
    Scenario(readers=(RC, RC, RR), in_database=True, crash=True, flight="on arrival"),
    Scenario(writers=2, readers=(RC, RR), crash=True),
    Scenario(writers=2, crash=True, late=True),
    Scenario(readers=(RR,), late=True, crash=True, budget=RESTART),
    Scenario(late=True, crash=True, budget=FLUSHES),
    Scenario(late=True, cut_off=True, crash=True, budget=FLUSH),
    Scenario(late=True, crash=True, budget=OUTAGE),
    Scenario(writers=2, crash=True, budget=FLUSHES),
    Scenario(writers=2, readers=(RR,), crash=True, budget=FLUSH),
    Scenario(readers=(RC, RR), crash=True, budget=FLUSHES),
    Scenario(writers=2, crash=True, budget=RESTART),
    Scenario(writers=2, readers=(RR,), budget=RESTART),
    Scenario(readers=(RC, RR), crash=True, budget=RESTART),
    Scenario(readers=(RR,), crash=True, budget=Budget(restart=2)),
    Scenario(readers=(RR,), crash=True, budget=EVERYTHING),
    Scenario(readers=(RR,), crash=True, initialisers=2, budget=Budget(flush=2, desertion=1)),
    Scenario(initialisers=2, empty=True, crash=True, budget=Budget(flush=1, desertion=1)),
    Scenario(writers=2, readers=(TRACKED,), crash=True, budget=FLUSH),
    Scenario(writers=2, readers=(TRACKED_RR,), crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED_LOADED,), crash=True, budget=RESTART),
    Scenario(writers=2, readers=(DIRTY, RC), crash=True, budget=FLUSH),
    Scenario(writers=2, readers=(RC, RC), flight="on arrival", crash=True),
    Scenario(readers=(RC, RC, RC), flight="on arrival", crash=True, budget=FLUSH),
    Scenario(readers=(RC, RC), flight="on arrival", crash=True, budget=RESTART),
    Scenario(readers=(RC, RR), flight="on arrival", crash=True, budget=FLUSH, exact=True),
    Scenario(readers=(RC, RR, DIRTY), flight="on arrival"),
    Scenario(readers=(TRACKED, TRACKED), flight="on arrival", crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED, TRACKED_RR), flight="on arrival", budget=FLUSH),
    Scenario(readers=(RC, RC, RC), flight="on miss"),
    Scenario(readers=(RC, RC), flight="on miss", crash=True, budget=RESTART),
    Scenario(readers=(RC, RR), flight="on miss", crash=True, budget=FLUSH, exact=True),
    Scenario(readers=(RC, RR, DIRTY), flight="on miss"),
    Scenario(readers=(RC, RC), batched=True, crash=True, budget=FLUSH),
    Scenario(readers=(RC, RC), source=True, flight="on arrival", budget=FLUSH),
    Scenario(readers=(TRACKED,), source=True, budget=RESTART),
    Scenario(writers=2, readers=(RC, RR), bulk=True),
    Scenario(writers=2, bulk=True, crash=True, budget=FLUSH),
    Scenario(writers=2, without_epoch="skip", crash=True, budget=FLUSH),
    Scenario(readers=(RC, RR), without_epoch="skip", crash=True, budget=RESTART),
    Scenario(without_epoch="skip", crash=True, budget=Budget(outage=1, flush=1)),
    Scenario(writers=2, budget=OUTAGE),
    Scenario(writers=2, crash=True, cut_off=True),
    Scenario(readers=(RC, RR), crash=True, cut_off=True, budget=FLUSH),
    Scenario(readers=(RC, RR), exact=True, crash=True, budget=FLUSH),
    Scenario(readers=(TRACKED, RR), exact=True, budget=FLUSH),
    Scenario(writers=2, readers=(LOADED, RC), crash=True, in_database=True),
    Scenario(writers=2, readers=(RC, RR), crash=True, in_database=True, flight="on miss"),
)
"""Minutes, all together."""

HUGE: Final = (
    Scenario(writers=2, readers=(RC, RC), crash=True, budget=FLUSH),
    Scenario(writers=2, crash=True, budget=Budget(flush=2, desertion=1)),
    Scenario(writers=2, initialisers=2, budget=FLUSHES),
    Scenario(writers=2, readers=(RC, RC), flight="on arrival", crash=True, budget=FLUSH),
    Scenario(readers=(RC, RR), crash=True, budget=Budget(outage=1, flush=1)),
)
"""Ten minutes and 3 GiB."""
