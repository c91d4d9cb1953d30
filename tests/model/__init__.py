"""
The protocol of tokens, explored to exhaustion.

Writers, readers, faults, a sweeper and those who open epochs take their steps in
every possible order. Whatever the protocol decides, they ask the functions of
:mod:`akv.tokens.rules` that the program asks, too. All orders are tried, breadth
first, so that a counterexample is a shortest one. These are looked for:

=========  =========================================================================
STALE      a read returned, or a read of this instant would hit, a value that lacks
           a transaction which had committed when the read began (a REPEATABLE READ
           read: when its snapshot was taken)
DIRTY      ... or one with something that is neither committed nor the reader's own
OWN        a session with uncommitted changes was given a value without them
SNAPSHOT   a REPEATABLE READ read returned something newer than its snapshot (where
           the scenario is ``exact``)
POISONED   nothing is left to do, and a fresh read hits a wrong value: for ever
STUCK      nothing is left to do, yet a mark stays, no epoch is active, or somebody
           waits
ENDLESS    there are more states than anybody counts, so something goes on for ever
WRONG      the gate said that a transaction had ended which could still commit
=========  =========================================================================

"Nothing is left to do" means that only faults, rollbacks and new calls are possible.
All other steps lead forward, so where STUCK is not found, all heals once faults stop.

A *value* is the set of changes that its queries saw. The cache holds one entry, as
that of a memoized call does; to keep every entry ever saved would find nothing more,
for a violation needs one save and one later hit.

::

    python -m tests.model              everything: scenarios, ablations, the ancestor
    python -m tests.model quick        what the test run explores
    python -m tests.model huge         five larger scenarios, some ten minutes and 3 GiB
    python -m tests.model show NAME    what has NAME in its title, with the traces

Modules: :mod:`.explorer` knows no protocol; :mod:`.world` is the state, :mod:`.scenario`
who takes part; :mod:`.writers`, :mod:`.readers`, :mod:`.flights`, :mod:`.upkeep` and
:mod:`.faults` are the steps; :mod:`.properties` is what must hold; :mod:`.catalogue` and
:mod:`.ablations` are what is explored.
"""
