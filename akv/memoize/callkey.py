"""
A call becomes its key here: canonical, typed, injective, the same in every process.

What depends on the function alone is done once, at decoration; a call pays for
binding its arguments the way Python itself binds them, and for encoding them.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import InstanceState

from akv.canonical import encode
from akv.errors import ConfigurationError, UncacheableArgumentError

MAX_LENGTH: Final = 256
"""What the store takes as key or tag, in characters."""


class CallKey:
    """
    Turns the arguments of calls of one function into keys.

    Attributes:
        signature: What calls are bound to.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        ignore: Collection[str] = (),
        key: Callable[..., Any] | None = None,
    ) -> None:
        """
        Args:
            function: Whose calls.
            ignore: Parameters that are no part of the key.
            key: Called as the function is; what it returns is the key, instead of the arguments.

        Raises:
            ConfigurationError: *ignore* names no parameter, or an option is of the wrong type.
        """
        self.signature = _signature(function)
        self._name = function.__qualname__
        ignored = _checked_ignore(ignore, self.signature, self._name)
        self._names = tuple(name for name in self.signature.parameters if name not in ignored)
        self._key = _checked_key(key, ignored)
        self._bind = _compiled(self.signature, self._names, self._name)
        self._shown = "=" if key is not None else f"{','.join(self._names)}:"
        self._prefix = self._shown.encode()
        self._room = MAX_LENGTH - len(self._shown) if self._shown.isprintable() else 0

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """
        Return the key of a call.

        Raises:
            TypeError: The function takes no such arguments.
            UncacheableArgumentError: An argument has no canonical form.
        """
        part = (self._key or self._bind)(*args, **kwargs)
        plain = _plain(part) if self._key is None else None
        if plain is not None and len(plain) <= self._room and plain.isprintable():
            return self._shown + plain
        try:
            return _shortened(self._prefix + encode(part, hook=_identity))
        except UncacheableArgumentError as error:
            raise self._explained(error, args, kwargs) from error

    def _explained(
        self, error: UncacheableArgumentError, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> UncacheableArgumentError:
        if self._key is not None:
            return UncacheableArgumentError(f"what key= returned for a call of {self._name}(): {error}")
        for name, value in zip(self._names, self._bind(*args, **kwargs), strict=True):
            try:
                encode(value, hook=_identity)
            except UncacheableArgumentError as reason:
                return UncacheableArgumentError(
                    f"argument {name!r} of {self._name}(): {reason}. Leave it out of the key by ignore=({name!r},), "
                    "or say by key= what identifies the call"
                )
        return UncacheableArgumentError(f"the arguments of {self._name}() have no canonical form together: {error}")


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        from annotationlib import Format  # the names of annotations may be imported for type checkers alone

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def function_tag(function: Callable[..., Any], version: str = "") -> str:
    """
    Return the tag under which the results of a function are stored.

    Args:
        function: Known by its module and qualified name; two functions that have both in common share their results.
        version: Another version is another function.

    Raises:
        ConfigurationError: *version* is no str.
    """
    _check_version(version)
    name = f"{_quoted(_module(function))}:{_quoted(function.__qualname__)}"
    if version:
        name += f"@{_quoted(version)}"
    tag = f"akv:memo:{name}"
    return tag if len(tag) <= MAX_LENGTH else f"akv:memo:#{_digest(name.encode())}"


def _quoted(part: str) -> str:
    return quote(part, safe="<>()", errors="surrogatepass")


def _module(function: Callable[..., Any]) -> str:
    """Return the module of a function; a script's is told apart from other scripts, all of them ``__main__``."""
    if function.__module__ not in ("__main__", "__mp_main__"):
        return function.__module__
    script = getattr(inspect.unwrap(function), "__globals__", {})
    spec = script.get("__spec__")
    return spec.name if spec is not None else f"__main__({PurePath(script.get('__file__') or '').stem})"


def _plain(arguments: tuple[Any, ...]) -> str | None:
    """
    Encode what most calls consist of, ints and ASCII strings, exactly as :func:`akv.canonical.encode` does.

    Four times as quick, which is what a hit near is made of; None for any other argument.
    """
    parts = []
    for value in arguments:
        kind = type(value)
        if kind is int:
            digits = f"{value:x}"
            parts.append(f"i{len(digits)}:{digits}")
        elif kind is str and value.isascii():
            parts.append(f"s{len(value)}:{value}")
        elif value is None:
            parts.append("N0:")
        elif kind is bool:
            parts.append("?1:1" if value else "?1:0")
        else:
            return None
    body = "".join(parts)
    return f"L{len(body)}:{body}"


def _shortened(key: bytes) -> str:
    """Return *key* as text if it is readable and short, else its hash; no text begins like a hash."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = ""
    return text if 0 < len(text) <= MAX_LENGTH and text.isprintable() else f"#{_digest(key)}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


class _Source(str):
    """A piece of source that a signature shows as it is, where it would show the repr of a default."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _compiled(signature: inspect.Signature, names: Iterable[str], qualname: str) -> Callable[..., tuple[Any, ...]]:
    """Make a function of the same signature that returns the arguments called *names*, defaults applied."""
    parameters = list(signature.parameters.values())
    shown = signature.replace(
        parameters=[_with_default(parameter, f"defaults[{i}]") for i, parameter in enumerate(parameters)],
        return_annotation=signature.empty,
    )
    scope: dict[str, Any] = {"defaults": [parameter.default for parameter in parameters]}
    # Nothing but identifiers goes into it, which inspect has checked.
    exec(f"def bound{shown}: return ({''.join(f'{name}, ' for name in names)})", scope)  # noqa: S102
    bound: Callable[..., tuple[Any, ...]] = scope["bound"]
    bound.__qualname__ = qualname  # so that Python's own words about wrong arguments name the function
    return bound


def _with_default(parameter: inspect.Parameter, source: str) -> inspect.Parameter:
    default = parameter.empty if parameter.default is parameter.empty else _Source(source)
    return parameter.replace(annotation=parameter.empty, default=default)


def _identity(value: Any) -> bytes | None:
    """Identify a mapped instance by its row, whatever its attributes hold."""
    try:
        state = sqlalchemy.inspect(value, raiseerr=False)
    except NoInspectionAvailable:  # an AsyncEngine or AsyncConnection refuses all the same
        return None
    if not isinstance(state, InstanceState):
        return None
    if state.key is None:
        raise UncacheableArgumentError(
            f"a {type(value).__qualname__} that was never flushed has no identity yet: flush it, or pass a primary key"
        )
    cls, primary_key, shard = state.key
    return encode((f"{cls.__module__}.{cls.__qualname__}", tuple(primary_key), shard))


def _check_version(version: object) -> None:
    if not isinstance(version, str):
        raise ConfigurationError(f"version must be a str, not {version!r}: write version={str(version)!r}")


def _checked_ignore(ignore: object, signature: inspect.Signature, name: str) -> frozenset[str]:
    if isinstance(ignore, str) or not isinstance(ignore, Collection):
        raise ConfigurationError(f"ignore must be a tuple of names of parameters, not {ignore!r}: write ignore=(...,)")
    for unknown in ignore:
        if not isinstance(unknown, str) or unknown not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise ConfigurationError(f"ignore names {unknown!r}, but the parameters of {name}() are: {known}")
    return frozenset(ignore)


def _checked_key(key: object, ignored: frozenset[str]) -> Callable[..., Any] | None:
    if key is None:
        return None
    if not callable(key) or inspect.iscoroutinefunction(key):
        raise ConfigurationError(f"key must be a plain function of the call's arguments, not {key!r}")
    if ignored:
        raise ConfigurationError("give key= or ignore=, not both: key= alone already says what identifies a call")
    return key
