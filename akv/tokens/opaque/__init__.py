"""
Writes that nobody described: SQL that SQLAlchemy did not build, functions, triggers, cascades.

What such a statement wrote, the database itself is asked: SQLite by its
authorizer, PostgreSQL by the locks that a transaction holds, MariaDB by its
catalog and the names in the statement.
"""

from __future__ import annotations

from sqlalchemy import Engine

from akv.tokens.opaque.reading import NOTHING, Effect, Reading
from akv.tokens.opaque.witness import Witness

__all__ = ["NOTHING", "Effect", "Reading", "Witness", "witness_for"]


def witness_for(engine: Engine) -> Witness:
    """Return what asks the database of *engine* about its writes; no I/O."""
    if engine.dialect.name == "postgresql":
        from akv.tokens.opaque.postgres import PostgresWitness

        return PostgresWitness(engine)
    if engine.dialect.name == "sqlite":
        from akv.tokens.opaque.sqlite import SqliteWitness

        return SqliteWitness(engine)
    from akv.tokens.opaque.mariadb import MariaDBWitness

    return MariaDBWitness(engine)
