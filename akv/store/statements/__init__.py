"""
Operations as SQL, by dialect: nothing else in akv writes SQL about the table of entries.

Every method takes a connection of SQLAlchemy's sync side and runs at once, so
that the same statements serve a lane, a retried transaction and the caller's
own transaction.
"""

from __future__ import annotations

from sqlalchemy import Dialect, Table

from akv.errors import ConfigurationError
from akv.store.statements.base import Statements, Traits
from akv.store.statements.mariadb import MariaDBStatements
from akv.store.statements.postgres import PostgresStatements
from akv.store.statements.sqlite import SQLiteStatements

__all__ = ["Statements", "Traits", "statements_for"]

_BY_DIALECT: dict[str, type[Statements]] = {
    "sqlite": SQLiteStatements,
    "postgresql": PostgresStatements,
    "mysql": MariaDBStatements,
    "mariadb": MariaDBStatements,
}


def statements_for(dialect: Dialect) -> type[Statements]:
    """
    Choose the statements of a dialect.

    Raises:
        ConfigurationError: akv does not know the database.
    """
    try:
        return _BY_DIALECT[dialect.name]
    except KeyError:
        raise ConfigurationError(
            f"akv does not support {dialect.name}: use a URL or an engine of SQLite, PostgreSQL, MariaDB or MySQL"
        ) from None
