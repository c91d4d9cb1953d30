"""
What can be bound, and which engines it leads to.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)

from akv.errors import ConfigurationError

Bindable: TypeAlias = (
    "AsyncEngine | AsyncConnection | async_sessionmaker[Any] | AsyncSession | async_scoped_session[Any]"
)
"""What leads to one or more engines."""


def engines_of(target: Any) -> list[Engine]:
    """
    Return the engines that *target* works on.

    Raises:
        ConfigurationError: It is nothing that can be bound, or leads to no engine.
    """
    engines = list(dict.fromkeys(map(root_of, _engines(target))))
    if not engines:
        raise ConfigurationError(
            f"this {type(target).__name__} names no engine (a get_bind() of its own?): bind the AsyncEngine itself"
        )
    return engines


def root_of(engine: Engine) -> Engine:
    """Return the engine that others with execution options of their own were made of; its listeners serve them all."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine


def sync_connection_of(connection: AsyncConnection) -> Connection:
    """
    Return the connection beneath.

    Raises:
        ConfigurationError: There is none yet.
    """
    if connection.sync_connection is None:
        raise ConfigurationError("this AsyncConnection is not started: await it, or bind its engine")
    return connection.sync_connection


def _engines(target: Any) -> list[Engine]:
    if isinstance(target, AsyncEngine):
        return [target.sync_engine]
    if isinstance(target, AsyncConnection):
        return [sync_connection_of(target).engine]
    if isinstance(target, async_scoped_session):
        return _engines(target.session_factory)
    if isinstance(target, async_sessionmaker):
        binds = [target.kw.get("bind"), *(target.kw.get("binds") or {}).values()]
    elif isinstance(target, AsyncSession):
        binds = [getattr(target, "bind", None), *(getattr(target, "binds", None) or {}).values()]
    else:
        raise ConfigurationError(
            f"cannot bind {target!r}: give an AsyncEngine, async_sessionmaker, AsyncSession, async_scoped_session "
            "or AsyncConnection"
        )
    return [engine for each in binds if each is not None for engine in _engines(each)]
