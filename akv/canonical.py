"""
One canonical, typed, injective encoding of values, for whatever becomes part of a key.

Two values have one encoding iff nobody could tell them apart by type and
content: ``1``, ``True``, ``"1"`` and ``1.0`` differ, and so do ``[1]`` and
``(1,)``. Every part is framed as tag, length, colon, payload, so that nothing a
value contains can imitate a border. Nothing depends on hashing or on memory
addresses: another process finds the same bytes.
"""

from __future__ import annotations

import dataclasses
import struct
import sys
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from pathlib import PurePath
from typing import Any, Final, TypeAlias

from akv.errors import UncacheableArgumentError

Hook: TypeAlias = Callable[[Any], "bytes | str | None"]
"""Given a value that is no plain builtin, returns what identifies it, or None to leave it to :func:`encode`."""

_POINTER: Final = struct.calcsize("P")


def encode(value: Any, *, hook: Hook | None = None) -> bytes:
    """
    Return the canonical encoding of *value*.

    Args:
        value: None, a bool, int, float, complex, str, bytes, UUID, Decimal, date, time, timedelta, path, enum
            member or importable class; a list, tuple, set, frozenset or dict of those; a dataclass, pydantic model,
            attrs class or msgspec struct; or an instance of a class derived from one of them.
        hook: Asked first about every value that is no plain builtin, nested ones included; what it returns stands
            for the value.

    Returns:
        Bytes that grow with the value; hash them where length matters.

    Raises:
        UncacheableArgumentError: The value, or one inside it, has no canonical form.

    Guarantees:
        Injective and typed; equal in every process and under every ``PYTHONHASHSEED``. The order of a dict or set
        does not count, that of a list, tuple or OrderedDict does.
    """
    try:
        return _Encoder(hook).encode(value)
    except RecursionError:
        raise UncacheableArgumentError("a value nested this deeply has no canonical form: pass a flatter one") from None


def encode_list(members: Iterable[bytes]) -> bytes:
    """Return the encoding of the list whose members are encoded already."""
    return _frame(_CONTAINERS[list], b"".join(members))


def encode_hooked(identity: bytes | str) -> bytes:
    """Return the encoding of a value that a hook identifies by *identity*."""
    return _frame(b"H", identity if isinstance(identity, bytes) else _text(identity))


def _frame(tag: bytes, payload: bytes) -> bytes:
    return b"%b%d:%b" % (tag, len(payload), payload)


def _text(value: str) -> bytes:
    return str.encode(value, "utf-8", "surrogatepass")


def _bytes(value: bytes | bytearray) -> bytes:
    return b"".join((value,))


def _class_name(cls: type) -> bytes:
    return _text(f"{cls.__module__}.{cls.__qualname__}")


def _moment(value: datetime | time) -> bytes:
    shown = datetime.isoformat(value) if isinstance(value, datetime) else time.isoformat(value)
    zone = getattr(value.tzinfo, "key", None) or value.tzname() or ""
    return _text(f"{shown}/{value.fold}/{zone}")


def _duration(value: timedelta) -> bytes:
    return b"%d/%d/%d" % (value.days, value.seconds, value.microseconds)


# Methods are called on the builtin: a class of the user's that derives from it may override them.
_SCALARS: Final[dict[type, tuple[bytes, Callable[[Any], bytes]]]] = {
    type(None): (b"N", lambda _: b""),
    bool: (b"?", lambda value: b"1" if value else b"0"),
    int: (b"i", lambda value: b"%x" % value),
    float: (b"f", lambda value: _text(float.hex(value))),
    complex: (b"c", lambda value: _text(f"{float.hex(value.real)},{float.hex(value.imag)}")),
    str: (b"s", _text),
    bytes: (b"y", _bytes),
    bytearray: (b"Y", _bytes),
    Decimal: (b"d", lambda value: _text(Decimal.__str__(value))),
    date: (b"D", lambda value: _text(date.isoformat(value))),
    datetime: (b"T", _moment),
    time: (b"t", _moment),
    timedelta: (b"w", _duration),
}
_CONTAINERS: Final[dict[type, bytes]] = {
    list: b"l",
    tuple: b"L",
    set: b"e",
    frozenset: b"E",
    dict: b"m",
    OrderedDict: b"o",
}
_BASES: Final[tuple[Any, ...]] = (datetime, OrderedDict, *_SCALARS, *_CONTAINERS)  # a base after what derives from it


class _Encoder:
    """One call of :func:`encode`: remembers what it is inside of, so that a value holding itself is found."""

    def __init__(self, hook: Hook | None) -> None:
        self._hook = hook
        self._inside: set[int] = set()

    def encode(self, value: Any) -> bytes:
        scalar = _SCALARS.get(type(value))
        if scalar is not None:
            return _frame(scalar[0], scalar[1](value))
        if id(value) in self._inside:
            raise UncacheableArgumentError("a value that contains itself has no canonical form")
        self._inside.add(id(value))
        try:
            return self._compound(value)
        finally:
            self._inside.discard(id(value))

    def _compound(self, value: Any) -> bytes:
        if type(value) in _CONTAINERS:
            return self._as(type(value), value)
        identity = self._hook(value) if self._hook is not None else None
        if identity is not None:
            return encode_hooked(identity)
        return self._special(value)

    def _special(self, value: Any) -> bytes:
        if isinstance(value, uuid.UUID):
            return _frame(b"u", value.bytes)  # drivers return subclasses that are equal to the plain one
        if isinstance(value, Enum):
            member = self.encode(value.value if isinstance(value, Flag) else value.name)
            return _frame(b"M", _frame(b"n", _class_name(type(value))) + member)
        if isinstance(value, PurePath):
            return _frame(b"p", self.encode(type(value).__name__) + self.encode(str(value)))
        if isinstance(value, type):
            return _frame(b"C", _importable(value))
        return self._instance(value)

    def _instance(self, value: Any) -> bytes:
        """Encode what consists of fields, of the content of a builtin it derives from, or of both."""
        cls = type(value)
        fields = _fields(value)
        base = next((base for base in _BASES if isinstance(value, base)), None)
        if base is not None and not _only_adds_visible_state(cls):
            fields = base = None
        if fields is None and base is None:
            raise UncacheableArgumentError(
                f"a {cls.__module__}.{cls.__qualname__} has no canonical form: pass what identifies it instead"
            )
        content = self._as(base, value) if base is not None else b""
        content += self.encode(_state(value) if fields is None else fields)
        return _frame(b"O", _frame(b"n", _class_name(cls)) + content)

    def _as(self, base: Any, value: Any) -> bytes:
        """Encode of *value* what the builtin *base* sees."""
        if base in _SCALARS:
            tag, payload = _SCALARS[base]
            return _frame(tag, payload(value))
        if issubclass(base, dict):
            parts = [self.encode(key) + self.encode(item) for key, item in base.items(value)]
        else:
            parts = [self.encode(item) for item in base.__iter__(value)]
        if base in (dict, set, frozenset):
            parts.sort()
        return _frame(_CONTAINERS[base], b"".join(parts))


def _importable(cls: type) -> bytes:
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls:
        raise UncacheableArgumentError(f"the class {cls.__qualname__} cannot be imported, so it has no canonical form")
    return _class_name(cls)


def _fields(value: Any) -> dict[str, Any] | None:
    """Return what a dataclass, pydantic model, attrs class or msgspec struct consists of; None for other classes."""
    cls = type(value)
    if hasattr(cls, "__pydantic_private__"):
        return _pydantic_fields(value)
    names = _field_names(cls)
    if names is not None:
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__"):
        return _state(value)  # an undecorated subclass may hold more than the fields that it inherits
    return None


def _field_names(cls: Any) -> list[str] | None:
    own = vars(cls)
    if "__dataclass_fields__" in own:
        return [field.name for field in dataclasses.fields(cls)]
    if "__attrs_attrs__" in own:
        return [field.name for field in own["__attrs_attrs__"]]
    if hasattr(cls, "__struct_fields__"):
        return list(cls.__struct_fields__)
    return None


def _pydantic_fields(value: Any) -> dict[str, Any]:
    content = vars(value)  # also holds cached properties, which are no part of the value
    names = getattr(type(value), "__pydantic_fields__", None) or type(value).model_fields
    return {
        "fields": {name: content[name] for name in names if name in content},
        "extra": getattr(value, "__pydantic_extra__", None),
        "private": getattr(value, "__pydantic_private__", None),
    }


def _only_adds_visible_state(cls: type) -> bool:
    """Tell whether all that an instance holds beyond its builtin part stands in ``__dict__`` and ``__slots__``."""
    return all(base in _BASES or base is object or not _hides_state(base) for base in cls.__mro__)


def _hides_state(cls: type) -> bool:
    """Tell whether instances are larger than by the slots that the class declares: classes written in C may be."""
    own = vars(cls)
    declared = len(_slots_of(cls)) + sum(name in own for name in ("__dict__", "__weakref__"))
    grown = cls.__basicsize__ - (cls.__base__.__basicsize__ if cls.__base__ is not None else 0)
    return grown > declared * _POINTER


def _slots_of(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _state(value: Any) -> dict[str, Any]:
    state = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        for slot in _slots_of(cls):
            name = f"_{cls.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if hasattr(value, name):
                state[name] = getattr(value, name)
    return state
