"""
What the result of a call rests on: identifiers whose tokens it was computed under, and the sessions concerned.

Imported when a function with dependencies is decorated: who has none need not hold the invalidation half in memory.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import InstanceState

from akv.errors import ConfigurationError
from akv.memoize.flight import Boarding
from akv.memoize.freshness import Saved
from akv.memoize.guard import Nothing, Place
from akv.memoize.invalidation import call_identifier
from akv.tokens.backend import Backend, Unreachable
from akv.tokens.concern import Concern
from akv.tokens.identifiers import vector_of as members_of
from akv.tokens.rules import Arrival, Fill, Private, Seen, Token, confirms, flies_alone, may_join, s0_of, vector_of
from akv.tokens.rules import Vector as Tokens
from akv.tokens.things import identifier, state_of, vector_of_thing
from akv.typing import Vector

R = TypeVar("R")

_SCOPES: Final = (AsyncSession, AsyncConnection, async_scoped_session)
_CONTAINERS: Final = (list, tuple, set, frozenset)
_OPAQUE: Final = frozenset((type(None), bool, int, float, complex, str, bytes))
_OF_THE_CALLER: Final = frozenset(Private) - {Private.MARKED, Private.EPOCH, Private.UNREACHABLE}
"""What keeps a result from being shared with anybody; the others are nobody's fault, and the same for all callers."""


class Standing(NamedTuple):
    """
    What a read of tokens says about a call.

    Attributes:
        identifiers: What was asked for.
        tokens: Theirs; empty: not known.
        why: Why nothing that was stored may be believed, nor anything saved; None: both may.
        is_alone: The caller shares no computation: that is because of its own sessions, or it sees a snapshot.
        s0: The newest token there was.
    """

    identifiers: tuple[str, ...] = ()
    tokens: Tokens = ()
    why: Private | None = None
    is_alone: bool = False
    s0: Token | None = None

    @property
    def vector(self) -> Vector:
        """The tokens as they are saved."""
        return saved_form(self.tokens)

    def holds(self, saved: Saved, *, tracked: bool) -> bool:
        """Tell whether nothing that *saved* rests on has changed since it was computed."""
        return (
            self.why is None
            and bool(self.tokens)
            and saved.identifiers == self.identifiers
            and saved.vector == self.vector
            and saved.tracked is tracked
        )


def saved_form(tokens: Tokens) -> Vector:
    """Return tokens, which are all of one epoch, as they are saved."""
    return (tokens[0].epoch, *[str(token.seq) for token in tokens]) if tokens else ()


class Run(NamedTuple):
    """
    What a computation came to.

    Attributes:
        value: The result.
        identifiers: What it rests on; None: nobody knows.
        until: When something that it was made of is too old; None: never.
    """

    value: Any
    identifiers: tuple[str, ...] | None
    until: int | None = None


class Evidence(NamedTuple):
    """
    What a result rests on, for whoever was not the one to compute it.

    Attributes:
        identifiers: What it depends on; None: nobody knows.
        fill: The tokens that it may be believed under.
        is_settled: Tokens that were read after it was computed confirm those from before.
        is_shareable: It contains nothing that others must not see.
    """

    identifiers: tuple[str, ...] | None
    fill: Fill
    is_settled: bool = False
    is_shareable: bool = True


class Basis:
    """
    What the result of one call rests on, declared before it is computed.

    Attributes:
        identifiers: Every identifier whose bump concerns the result.
        concern: The sessions that it may be computed with.
    """

    tracked: bool = False

    def __init__(self, tokens: Backend, concern: Concern, identifiers: tuple[str, ...]) -> None:
        self.identifiers = identifiers
        self.concern = concern
        self._tokens = tokens

    def asks_for(self, saved: Saved | Nothing) -> tuple[str, ...]:
        """Return the identifiers whose tokens tell whether *saved* still holds."""
        return self.identifiers

    async def read(self, identifiers: tuple[str, ...]) -> Standing:
        """Read tokens in a round trip that is sent after the call began (R1), and judge them (R2)."""
        found = await self.concern.read(identifiers)
        is_alone = flies_alone(self.concern.reads_in_snapshot)
        if isinstance(found, Private):
            return Standing(identifiers, why=found, is_alone=is_alone or found in _OF_THE_CALLER)
        return Standing(identifiers, vector_of(found), None, is_alone, s0_of(found))

    def unread(self) -> Standing:
        """Say what is known without reading tokens."""
        why = self.concern.reason or (Private.DIRTY if self.concern.is_dirty() else None)
        return Standing(why=why, is_alone=why is not None or flies_alone(self.concern.reads_in_snapshot))

    async def run(self, compute: Callable[[], Awaitable[Any]]) -> Run:
        """Compute."""
        return Run(await compute(), self.identifiers)

    async def settle(self, first: Standing, run: Run) -> Evidence:
        """
        Read the tokens again, and say under which ones the result may be saved.

        Args:
            first: What was read before it was computed.
            run: The computation.
        """
        self.concern.look_around()
        if first.why is not None:
            return self.unsettled(first, run)
        again = await self.concern.read_once(run.identifiers or ())
        is_settled = isinstance(again, Seen) and self._confirms(again, first) and await self._shows_present(again, run)
        tokens = vector_of(again) if is_settled and isinstance(again, Seen) else None
        fill = Fill(tokens, usable=is_settled, fresh=self._is_fresh(first))
        return Evidence(run.identifiers, fill, is_settled, again is not Private.DIRTY)

    def unsettled(self, first: Standing, run: Run) -> Evidence:
        """Say what a computation is good for whose tokens are not read again, or cannot be."""
        fill = Fill(None, usable=False, fresh=self._is_fresh(first))
        return Evidence(run.identifiers, fill, is_shareable=self._is_shareable())

    def _is_shareable(self) -> bool:
        """Tell whether the result contains nothing that others must not see."""
        return not self.concern.is_dirty()

    def _is_fresh(self, first: Standing) -> bool:
        """Tell whether nothing that the result was made of can be older than the first read."""
        return not (first.is_alone or self.concern.holders())

    def _confirms(self, again: Seen, first: Standing) -> bool:
        return confirms(again, Fill(first.tokens, usable=True, fresh=True))

    async def _shows_present(self, again: Seen, run: Run) -> bool:
        """Tell whether the newest tokens are those of the snapshot that they were read in, if they were."""
        if not self.concern.reads_in_snapshot:
            return True
        try:
            newest = await self._tokens.look(run.identifiers or ())
        except Unreachable:
            return False
        return newest.epoch is not None and vector_of(newest) == vector_of(again)

    def takes_of_same_tokens(self, _boarding: Boarding, outcome: Any) -> bool:
        """Tell whether the call may take what a flight brings that began with the very tokens that it has read."""
        return outcome is None or self._takes(Arrival.CONFIRMED, outcome.evidence)

    def takes(self, boarding: Boarding, outcome: Any) -> bool:
        """Tell whether the call may take what another one's flight brings."""
        if outcome is None:
            return not boarding.began
        evidence: Evidence = outcome.evidence
        if not boarding.began:
            return self._takes(Arrival.ABOARD, evidence)
        is_confirmed = evidence.is_settled and not boarding.confirming
        return self._takes(Arrival.CONFIRMED if is_confirmed else Arrival.LATE, evidence)

    def _takes(self, arrival: Arrival, evidence: Evidence) -> bool:
        if not evidence.is_shareable or self.concern.is_dirty():
            return False
        return may_join(arrival, evidence.fill, self.concern.holders())


class Dependencies:
    """What the results of one function rest on."""

    def __init__(self, tokens: Any, depends_on: Any) -> None:
        """
        Args:
            tokens: Of the store.
            depends_on: Things, or a function of a call's arguments that returns them.

        Raises:
            ConfigurationError: The tokens cannot tell, or what is declared is no plain function.
            InvalidIdentifierError: Something that is declared names nothing that can change.
        """
        self._tokens = checked_backend(tokens)
        self._function = _function_in(depends_on)
        self._things = () if self._function is not None else tuple(_flat(depends_on))
        for thing in self._things:
            identifier(thing)
        self._warned: set[type] = set()

    def of_call(self, place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Basis:
        """
        Return what the result of one call rests on.

        Raises:
            ConfigurationError: A session among the arguments works on no engine that is bound to the tokens.
            InvalidIdentifierError: What the call depends on names nothing that can change.
        """
        concern, members = self._declared(place, args, kwargs)
        return Basis(self._tokens, concern, members)

    def _declared(
        self, place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Concern, tuple[str, ...]]:
        """Return the sessions that a call concerns, and the identifiers that are known before it is computed."""
        concern = concern_of(self._tokens, args, kwargs)
        things = self._things if self._function is None else _flat(self._function(*args, **kwargs))
        members = dict.fromkeys(memo_identifiers(place))
        for thing in things:
            state = state_of(thing)
            if state is not None:
                concern.add_instance(state)
            members.update(dict.fromkeys(vector_of_thing(thing)))
        warn_of_detached(concern, self._warned)
        return concern, tuple(members)


def checked_backend(tokens: Any) -> Backend:
    """
    Return the tokens, if they can tell how new a result is.

    Raises:
        ConfigurationError: They can only be read and bumped.
    """
    if not (hasattr(tokens, "look") and hasattr(tokens, "in_snapshot")):
        raise ConfigurationError(
            "depends_on and track need DatabaseTokens or RedisTokens, "
            f"for {type(tokens).__name__} cannot say how new its tokens are"
        )
    backend: Backend = tokens
    return backend


def all_members(identifiers: Iterable[str]) -> tuple[str, ...]:
    """Return every identifier whose bump concerns one of *identifiers*, each once, in their order."""
    return tuple(dict.fromkeys(member for name in identifiers for member in members_of(name)))


def memo_identifiers(place: Place) -> tuple[str, ...]:
    """Return every identifier whose bump invalidates what is kept at a place."""
    return members_of(call_identifier(place))


def concern_of(tokens: Backend, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Concern:
    """
    Return the sessions that a call concerns: those among its arguments, and in attributes of its arguments.

    Raises:
        ConfigurationError: One works on no engine that is bound to the tokens.
    """
    concern = Concern(tokens)
    for value in (*args, *kwargs.values()):
        if type(value) not in _OPAQUE:
            _add(concern, value)
    return concern


def _add(concern: Concern, value: Any) -> None:
    if isinstance(value, _SCOPES):
        concern.add_scope(value)
    elif isinstance(value, _CONTAINERS):
        for item in value:
            if type(item) not in _OPAQUE:
                _add(concern, item)
    elif isinstance(value, Mapping):
        _add(concern, list(value.values()))
    elif (state := state_of(value)) is not None:
        concern.add_instance(state)
    elif not isinstance(value, type):
        _add_attributes(concern, getattr(value, "__dict__", None))


def _add_attributes(concern: Concern, attributes: object) -> None:
    """Add the sessions that an argument holds, as a repository does; those of other databases are its own affair."""
    for value in list(attributes.values()) if isinstance(attributes, dict) else ():
        if isinstance(value, _SCOPES):
            with suppress(ConfigurationError):
                concern.add_scope(value)


def instances_among(values: Iterable[Any]) -> list[Any]:
    """Return the mapped instances among arguments, in containers too."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, _CONTAINERS):
            found += instances_among(value)
        elif isinstance(value, Mapping):
            found += instances_among(value.values())
        elif type(value) not in _OPAQUE and state_of(value) is not None:
            found.append(value)
    return found


def warn_of_detached(concern: Concern, warned: set[type]) -> None:
    """Warn once for each class whose detached instances keep results from being shared."""
    for state in concern.detached:
        if state.class_ not in warned:
            warned.add(state.class_)
            warnings.warn(
                f"the result of a call that was given a detached {state.class_.__qualname__} is not saved, for its "
                f"attributes may be of any age: pass its primary key, and depend on {_row_of(state)!r}",
                RuntimeWarning,
                stacklevel=6,  # whoever awaits the call
            )


def _row_of(state: InstanceState[Any]) -> str:
    return identifier(state.obj())


def _function_in(depends_on: Any) -> Callable[..., Any] | None:
    if not callable(depends_on) or isinstance(depends_on, type) or state_of(depends_on) is not None:
        return None
    if inspect.iscoroutinefunction(depends_on):
        raise ConfigurationError("depends_on must be things or a plain function of the call's arguments, not async")
    function: Callable[..., Any] = depends_on
    return function


def _flat(things: Any) -> Iterator[Any]:
    if isinstance(things, _CONTAINERS):
        for each in things:
            yield from _flat(each)
    elif things is not None:
        yield things
