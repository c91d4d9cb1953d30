"""
Operations as SQL, by dialect: nothing else in akv writes SQL about the table of entries.

Every method takes a connection of SQLAlchemy's sync side and runs at once, so
that the same statements serve a lane, a retried transaction and the caller's
own transaction.
"""

from __future__ import annotations

from sqlalchemy import Dialect

from akv.errors import ConfigurationError
from akv.store.statements.base import Statements, Traits
from akv.store.statements.direct import DirectPostgres, DirectSQLite
from akv.store.statements.mariadb import MariaDBStatements
from akv.store.statements.postgres import PostgresStatements
from akv.store.statements.sqlite import SQLiteStatements

__all__ = ["Statements", "Traits", "direct_statements_for", "statements_for"]

_BY_DIALECT: dict[str, type[Statements]] = {
    "sqlite": SQLiteStatements,
    "postgresql": PostgresStatements,
    "mysql": MariaDBStatements,
    "mariadb": MariaDBStatements,
}
_BY_DRIVER: dict[str, type[Statements]] = {"asyncpg": DirectPostgres, "aiosqlite": DirectSQLite}


def statements_for(dialect: Dialect) -> type[Statements]:
    """
    Choose the statements of a dialect, for any connection of it.

    Raises:
        ConfigurationError: akv does not know the database.
    """
    try:
        return _BY_DIALECT[dialect.name]
    except KeyError:
        raise ConfigurationError(
            f"akv does not support {dialect.name}: use a URL or an engine of SQLite, PostgreSQL, MariaDB or MySQL"
        ) from None


def direct_statements_for(dialect: Dialect) -> type[Statements]:
    """Choose the statements for connections of ours in AUTOCOMMIT: the driver's own calls where they are quicker."""
    return _BY_DRIVER.get(dialect.driver) or statements_for(dialect)
