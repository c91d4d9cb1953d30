"""
CacheKeyGenerator: keys that change when what they were made of changes.

Tokens first, queries after: a key says how new the value stored under it is at
least, so it is made before the value is computed.
"""

from __future__ import annotations

import secrets
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from sqlalchemy import Table
from sqlalchemy.orm import InstanceState

from akv.canonical import encode, encode_hooked, encode_list
from akv.tokens.concern import Concern, Scope
from akv.tokens.identifiers import Label
from akv.tokens.rows import Row, Rows, rows_of
from akv.tokens.rules import Private, Seen, seqs_of
from akv.tokens.sessions import has_unflushed
from akv.tokens.things import identifier, mapper_of, state_of, vector_of_thing

if TYPE_CHECKING:
    from akv.tokens.backend import Backend

_KEPT: Final = 2**13
"""Parts of keys that are kept encoded."""
_KEPT_CALLS: Final = 2**10
_FEW: Final = 32
"""Rows of a call that is remembered."""


class CacheKey(str):
    """
    A key for any cache, at most 256 characters of ASCII.

    A private key never occurs twice: what is stored under it is never found again, so storing it is a waste.
    """

    __slots__ = ("shared",)

    shared: bool
    """Whether others may see what is stored under the key."""

    def __new__(cls, text: str, shared: bool = True) -> Self:  # noqa: D102 - the class says it
        key = str.__new__(cls, text)
        key.shared = shared
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.shared)


class CacheKeyGenerator:
    """
    Makes keys of things, and tokens of single ones.

    Attributes:
        private: How many keys were private, by reason.
    """

    def __init__(self, tokens: Backend) -> None:
        """
        Args:
            tokens: Those that the engines of the instances are bound to.
        """
        self.private: Counter[Private] = Counter()
        self._tokens = tokens
        self._warned: set[type] = set()

    async def __call__(self, *things: Any, session: Scope | None = None) -> CacheKey:
        """
        Return a key that changes when one of *things* changes.

        Args:
            things: Mapped instances (their row), mapped classes and Tables (any row of them), Labels and ``akv:``
                strings, also nested in lists, tuples, sets and dicts (strings excepted); anything else counts by
                value.
            session: What the value will be computed with, if no instance tells: then the key knows of its
                uncommitted changes and of the age of its snapshot.

        Returns:
            The same key for the same things as long as nobody changed one; a private one where no key could be
            shared: for pending, deleted and detached instances, in a session with uncommitted changes, and for
            sessions that hold attributes of unknown age.

        Raises:
            ConfigurationError: An instance or session works on no engine that is bound to the tokens.
            InvalidIdentifierError: An ``akv:`` string is malformed.
            UncacheableArgumentError: A value has no canonical form.

        Guarantees:
            Loads no attribute. One round trip to the tokens, sent after the call began, none for a private key that
            needs no reading; one more, a few milliseconds later, where a commit is under way.
        """
        asked = _Asked(self._tokens, session)
        parts = asked.parts(things)
        if asked.detached:
            self._warn(asked.detached)
        found = await asked.read(asked.vector)
        if isinstance(found, Private):
            return self._private(found)
        return _key(found, parts)

    async def token(self, thing: Any, *, session: Scope | None = None) -> CacheKey:
        """
        Return the token of one thing: an opaque string that changes when it changes.

        Args:
            thing: What names something that can change: no plain value.
            session: As for a key.

        Raises:
            InvalidIdentifierError: The thing names nothing that can change.
            ConfigurationError: An instance or session works on no engine that is bound to the tokens.
        """
        identifier(thing)
        return await self(thing, session=session)

    def _private(self, reason: Private) -> CacheKey:
        self.private[reason] += 1
        return CacheKey(f"akv-private-{secrets.token_hex(16)}", shared=False)

    def _warn(self, detached: Sequence[InstanceState[Any]]) -> None:
        for state in detached:
            if state.class_ not in self._warned:
                self._warned.add(state.class_)
                warnings.warn(
                    f"a key made of a detached {state.class_.__qualname__} is private, for its attributes may be of "
                    f"any age; to depend on the row, pass identifier(obj): {identifier(state.obj())!r}",
                    RuntimeWarning,
                    stacklevel=3,
                )


class _Rows(NamedTuple):
    """What stands for some rows in a key, encoded, and every identifier whose bump may concern them."""

    parts: bytes
    vector: tuple[str, ...]


class _Asked(Concern):
    """What one call asks for: the vector of its things, beside the sessions concerned."""

    __slots__ = ("_rows", "_vectors")

    def __init__(self, tokens: Backend, scope: Scope | None) -> None:
        super().__init__(tokens)
        self._vectors: list[tuple[str, ...]] = []
        self._rows: dict[tuple[int | None, type], Rows | None] = {}
        if scope is not None:
            self.add_scope(scope)

    @property
    def vector(self) -> Sequence[str]:
        """Every identifier whose bump may concern the call, each once."""
        return self._vectors[0] if len(self._vectors) == 1 else list(dict.fromkeys(chain.from_iterable(self._vectors)))

    def parts(self, things: Sequence[Any]) -> bytes:
        """Return what stands for all things in the key, encoded, and note what they depend on."""
        rows = self._rows_of(things)
        if len(rows) <= _FEW and all(rows):
            found = _of_rows(*rows)
            self._vectors.append(found.vector)
            return found.parts
        return encode_list(
            [self._part_of_row(row) if row else self._part(thing) for row, thing in zip(rows, things, strict=True)]
        )

    def _part_of_row(self, row: Row) -> bytes:
        self._vectors.append(row.vector)
        return _part_of_name(row.identifier)

    def _part(self, thing: Any) -> bytes:
        if isinstance(thing, str) and thing.startswith("akv:"):
            return encode(b"I" + self._depend(thing).encode())
        return encode(b"V" + encode(thing, hook=self._identity))

    def _identity(self, thing: Any) -> str | None:
        (row,) = self._rows_of((thing,))
        if row is not None:
            self._vectors.append(row.vector)
            return row.identifier
        state = state_of(thing)
        if state is not None:
            self.add_instance(state)
        elif not isinstance(thing, Label | Table) and mapper_of(thing) is None:
            return None
        return self._depend(thing)

    def _depend(self, thing: Any) -> str:
        name = identifier(thing)
        self._vectors.append(vector_of_thing(thing))
        return name

    def _rows_of(self, things: Iterable[Any]) -> list[Row | None]:
        """Return the rows of instances with which all is well; None for whatever wants a closer look."""
        found: list[Row | None] = []
        session_id, class_, rows = None, None, None
        for thing in things:
            state = getattr(thing, "_sa_instance_state", None)
            if type(state) is not InstanceState or state.key is None or state._deleted:
                found.append(None)
                continue
            if state.session_id != session_id or state.class_ is not class_:
                session_id, class_ = state.session_id, state.class_
                rows = self._rows_beside(state)
            found.append(rows.row(state.key[1]) if rows is not None else None)
        return found

    def _rows_beside(self, state: InstanceState[Any]) -> Rows | None:
        """
        Look at the session that holds *state*, once for all instances of that class in there.

        Returns:
            What names their rows; None if each wants a closer look.
        """
        kind = state.session_id, state.class_
        if kind not in self._rows:
            session = state.session
            is_well = session is not None and not has_unflushed(session) and not issubclass(state.class_, str)
            if session is not None and is_well:
                self.add_session(session, state)
            self._rows[kind] = rows_of(state.mapper) if is_well else None
        return self._rows[kind]


def _key(seen: Seen, parts: bytes) -> CacheKey:
    database = seen.epoch.id if seen.epoch is not None else ""
    content = encode_list((_encode_again(database), parts, encode_list(map(_encode_again, seqs_of(seen)))))
    return CacheKey(f"akv-{blake2b(content, digest_size=32).hexdigest()}")


@lru_cache(maxsize=_KEPT)
def _encode_again(value: int | str) -> bytes:
    return encode(value)


@lru_cache(maxsize=_KEPT_CALLS)
def _of_rows(*rows: Row) -> _Rows:
    """Return what is needed of rows that are asked for together."""
    parts = encode_list([_part_of_name(row.identifier) for row in rows])
    return _Rows(parts, tuple(dict.fromkeys(chain.from_iterable([row.vector for row in rows]))))


@lru_cache(maxsize=_KEPT)
def _part_of_name(identifier: str) -> bytes:
    """Return what stands in a key for a thing of this name, encoded."""
    return encode(b"V" + encode_hooked(identifier))
