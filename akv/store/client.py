"""
The store: its options, its life, and its verbs through lanes.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import warnings
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar
from weakref import WeakMethod, WeakSet

from sqlalchemy import URL, delete
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from akv.aio import PerLoop, join
from akv.errors import ClosedError, ConfigurationError
from akv.store.codec import Codec
from akv.store.engines import Engines, beside, check_borrowed, is_memory, own_engines, parse_url, translated
from akv.store.entry_verbs import check_flag
from akv.store.expiry import utc_now
from akv.store.keys import check_tag, is_encodable
from akv.store.models import Entries, model_for, table_of
from akv.store.operations import Operation
from akv.store.retry import RetryPolicy
from akv.store.runtime import Runtime
from akv.store.serializers import PickleSerializer, check_serializer
from akv.store.statements import Statements, statements_for
from akv.store.sweep import Bounds
from akv.store.verbs import Verbs
from akv.store.within import Within
from akv.typing import Clock, Serializer, Tokens

T = TypeVar("T")

_LOOK_AGAIN = 0.05
"""Seconds between two looks whether a loop still runs: one that ends answers nobody."""
_ENOUGH_LOOKS = 10
"""A loop that is ending stands still for a moment before it is closed; after so many looks it only stands still."""
_SHORTEST_PATIENCE, _LONGEST_PATIENCE = 0.1, 2.0


class Store(Verbs):
    """
    A key-value store in a SQL database.

    Concurrent tasks of an event loop, several loops and threads, and several processes may use it at once. A
    store made from a URL owns its engines, one set for each event loop; one made from an engine or a session
    factory belongs, like that engine, to one event loop, and keeps connections of its own beside its pool.

    Making a store does no I/O: the first await creates the table, unless told not to.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine | async_sessionmaker[AsyncSession],
        *,
        create_models: bool = True,
        table: str = "kvstore",
        schema: str | None = None,
        default_tag: str = "",
        serializer: Serializer | None = None,
        retry: RetryPolicy | None = None,
        tokens: Tokens | None = None,
        sweep_every: float | None = 60.0,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        clock: Clock = utc_now,
    ) -> None:
        """
        Args:
            database: A URL (the store owns what it makes of it), or an AsyncEngine or async_sessionmaker of yours.
            create_models: Create the table at first use if it is missing.
            table: Name of the table, at most 63 characters.
            schema: Its schema; None: the connection's default.
            default_tag: Tag of calls that name none; ``"__default__"`` opens what kvalchemy 0.2 wrote without one.
            serializer: Turns values into bytes; None: pickle, as the ancestor does.
            retry: Bounds of trying again; None: the defaults of RetryPolicy.
            tokens: What memoized calls with dependencies ask; None: none.
            sweep_every: Seconds between two deletions of expired rows in the background; None: never.
            max_entries: Most entries, held within 10 % while this process writes; None: no bound.
            max_bytes: Most bytes of keys, tags and values, estimated; None: no bound.
            clock: Returns the current time as an aware datetime; asked once per call.

        Raises:
            ConfigurationError: An option is wrong, or the engine cannot hold what the store promises.
        """
        self._source = _Source(database)
        self._model = model_for(_check_name("table", table), None if schema is None else _check_name("schema", schema))
        self._policy = _checked_policy(retry)
        self._create = _check_bool("create_models", create_models)
        self._bounds = Bounds(
            _check_seconds("sweep_every", sweep_every),
            _check_bound("max_entries", max_entries),
            _check_bound("max_bytes", max_bytes),
        )
        self.tokens = _check_tokens(tokens)
        make = WeakMethod(self._make_runtime)  # a store that is forgotten must end before what it owns
        self._runtimes: PerLoop[Runtime] = PerLoop(lambda: make()())  # type: ignore[misc]
        self._is_closed = False
        chosen = PickleSerializer() if serializer is None else check_serializer(serializer)
        _stores.add(self)
        super().__init__(Codec(check_tag(default_tag), chosen, _check_clock(clock)))

    def __repr__(self) -> str:
        table = table_of(self._model).fullname
        return f"{type(self).__name__}({self._source.shown}, table={table!r}{', closed' if self._is_closed else ''})"

    @property
    def model(self) -> type[Entries]:
        """The mapped class of the table, for :meth:`session`."""
        return self._model

    async def __aenter__(self) -> Self:
        await self._runtime().ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """
        Close the store; idempotent.

        Guarantees:
            Calls on their way are finished first. Connections of other event loops are closed on those loops; a
            loop that no longer runs loses them unclosed. Engines that were lent stay open.
        """
        self._is_closed = True
        closing = [_close(loop, runtime) for loop, runtime in self._runtimes.take_all()]
        await join(asyncio.gather(*closing))

    def __del__(self) -> None:
        if getattr(self, "_is_closed", True) or not len(self._runtimes):
            return
        warnings.warn(f"{self!r} was never closed: use async with, or aclose()", ResourceWarning, stacklevel=2)
        self._let_go()

    def _let_go(self) -> None:
        for loop, runtime in self._runtimes.take_all():
            if not loop.is_running():
                runtime.drop()

    @asynccontextmanager
    async def session(self, commit: bool = True, delete_expired: bool = True) -> AsyncIterator[AsyncSession]:
        """
        Open an AsyncSession on the store's table.

        Args:
            commit: Commit when the block ends without an exception.
            delete_expired: After that, delete expired rows in a second transaction.

        Guarantees:
            An exception, cancellation included, rolls back. The session is closed in any case.
        """
        check_flag("commit", commit)
        check_flag("delete_expired", delete_expired)
        runtime = self._runtime()
        await runtime.ready()
        async with runtime.session() as session:
            yield session
            if commit:
                await session.commit()
                if delete_expired:
                    await session.execute(delete(self._model).where(self._model.expire <= self._codec.now()))
                    await session.commit()

    def within(self, session: AsyncSession | AsyncConnection) -> Within:
        """
        Return the verbs inside the caller's own transaction; no I/O.

        Args:
            session: A session or connection of the store's database.

        Guarantees:
            What is written is visible to others when the caller commits, and gone when he rolls back, savepoints
            included. Nothing is joined with other calls, retried, committed or created.
        """
        self._check_open()
        return Within(self._codec, session, self._statements)

    async def _statements(self) -> Statements:
        return await self._runtime().ready()

    def _run(self, operation: Operation[Any]) -> Awaitable[Any]:
        return self._runtime().run(operation)

    def _spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task in the background that the store owns and cancels when it closes."""
        try:
            return self._runtime().spawn(coroutine, name=name)
        except BaseException:
            coroutine.close()
            raise

    def _runtime(self) -> Runtime:
        self._check_open()
        return self._runtimes.get()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self!r} was used after aclose(): make a new store")

    def _make_runtime(self) -> Runtime:
        # Before what ended loops have left is dropped: another loop may not take their engine or database over.
        if self._source.is_one_loop and len(self._runtimes):
            raise ConfigurationError(self._source.one_loop_remedy)
        for stale in self._runtimes.take_stale():
            stale.drop()
        engines = self._source.engines(patience=_patience(self._policy))
        table = table_of(self._source.real(self._model))
        return Runtime(engines, table, self._policy, self._bounds, self._codec.now, create=self._create)


async def _close(loop: asyncio.AbstractEventLoop, runtime: Runtime) -> None:
    """Close what belongs to a loop: on that loop, if it runs."""
    if loop is asyncio.get_running_loop():
        await runtime.aclose()
    elif not loop.is_running() or not await _close_over_there(loop, runtime):
        runtime.drop()


async def _close_over_there(loop: asyncio.AbstractEventLoop, runtime: Runtime) -> bool:
    """Return whether the loop did it, and did not end meanwhile."""
    try:
        answer = asyncio.wrap_future(runtime.close_from_elsewhere(loop))
    except RuntimeError:  # it has been closed this very moment
        return False
    looks = 0
    while looks < _ENOUGH_LOOKS and not loop.is_closed():
        await asyncio.wait([answer], timeout=_LOOK_AGAIN)
        if not answer.done():
            looks = 0 if loop.is_running() else looks + 1
        elif answer.cancelled():  # by a loop that ends, and is not at rest before it is closed
            await asyncio.sleep(_LOOK_AGAIN)
            looks += 1
        else:
            answer.result()
            return True
    return False


def _let_go_of_all() -> None:
    """Before the interpreter takes itself apart, with the connections of stores that nobody has closed."""
    for store in list(_stores):
        store._let_go()


_stores: WeakSet[Store] = WeakSet()
atexit.register(_let_go_of_all)


class _Source:
    """Where a store's connections come from."""

    def __init__(self, database: object) -> None:
        self._engine: AsyncEngine | None = None
        self._sessions: async_sessionmaker[AsyncSession] | None = None
        if isinstance(database, str | URL):
            self._url, dialect = parse_url(database)
        else:
            self._engine, self._sessions = _borrowed(database)
            check_borrowed(self._engine)
            self._url, dialect = self._engine.url, self._engine.dialect
        statements_for(dialect)

    @property
    def shown(self) -> str:
        return repr(self._url.render_as_string(hide_password=True))

    @property
    def is_one_loop(self) -> bool:
        """Whether the connections belong to one event loop."""
        return self._engine is not None or is_memory(self._url)

    @property
    def one_loop_remedy(self) -> str:
        if self._engine is not None:
            return (
                "this store works on an engine that was lent to it, and such an engine belongs to one event loop: "
                "make the store from a URL, or one store and one engine for each loop"
            )
        return "an in-memory database lives in one connection of one event loop: use a file, or one store for each loop"

    def real(self, model: type[Entries]) -> type[Entries]:
        """Return the model of the table that a borrowed engine really means."""
        table = table_of(model)
        schema = table.schema if self._engine is None else translated(self._engine, table.schema)
        return model_for(table.name, schema)

    def engines(self, *, patience: float) -> Engines:
        """Make the engines for the running event loop; no I/O."""
        if self._engine is not None:
            return beside(self._engine, self._sessions, patience=patience)
        return own_engines(self._url, patience=patience)


def _borrowed(database: object) -> tuple[AsyncEngine, async_sessionmaker[AsyncSession] | None]:
    if isinstance(database, AsyncEngine):
        return database, None
    if isinstance(database, async_sessionmaker):
        engine = database.kw.get("bind")
        if isinstance(engine, AsyncEngine):
            return engine, database
        raise ConfigurationError("this async_sessionmaker has no AsyncEngine as its bind: give the engine itself")
    raise ConfigurationError(
        f"give a database URL, an AsyncEngine or an async_sessionmaker, not {type(database).__name__}"
    )


def _patience(policy: RetryPolicy) -> float:
    """Seconds that one statement waits for a lock: short enough that the policy can try again."""
    return min(_LONGEST_PATIENCE, max(_SHORTEST_PATIENCE, policy.seconds / 4))


def _checked_policy(retry: object) -> RetryPolicy:
    if retry is None:
        return RetryPolicy()
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"retry must be a RetryPolicy, not {type(retry).__name__}")
    return retry


def _check_name(option: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 63 or "\x00" in value or not is_encodable(value):
        raise ConfigurationError(f"{option} must be a name of 1 to 63 characters, not {value!r}")
    return value


def _check_bool(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{option} must be True or False, not {value!r}")
    return value


def _check_seconds(option: str, value: object) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ConfigurationError(f"{option} must be a number of seconds above 0, or None, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _check_bound(option: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{option} must be an int of at least 1, or None, not {value!r}")
    return value


def _check_clock(clock: object) -> Clock:
    if not callable(clock):
        raise ConfigurationError(f"clock must be a callable that returns an aware datetime, not {clock!r}")
    return clock


def _check_tokens(tokens: object) -> Tokens | None:
    if tokens is not None and not isinstance(tokens, Tokens):
        raise ConfigurationError(f"tokens must be DatabaseTokens, or another Tokens, not {type(tokens).__name__}")
    return tokens
