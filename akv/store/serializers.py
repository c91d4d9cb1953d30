"""
Values to bytes and back.

Every form but plain pickle begins with bytes of its own, the first of which is
no pickle opcode, so a row tells which serializer wrote it. None is SQL NULL in
all of them except the signed one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import traceback
import zlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from akv.errors import ConfigurationError, CorruptValueError, SerializationError
from akv.typing import Serializer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PICKLE_PROTOCOL: Final = 4  # not Python's default, which moves: stored bytes outlive a Python
_FAMILY: Final = b"\xffakv"
_SIGNED: Final = _FAMILY + b"S"
_JSON: Final = _FAMILY + b"J"
_MSGPACK: Final = _FAMILY + b"M"
_COMPRESSED: Final = _FAMILY + b"Z"
_WRITERS: Final = {
    _SIGNED: "SignedPickleSerializer",
    _JSON: "JSONSerializer",
    _MSGPACK: "MsgpackSerializer",
    _COMPRESSED: "CompressedSerializer",
}
_MAGIC_LENGTH: Final = len(_SIGNED)
_MAC_LENGTH: Final = hashlib.sha256().digest_size
_SHORTEST_SECRET: Final = 16
_HOW_TO_MAKE_ONE: Final = "give one, or a list of them newest first, each made with secrets.token_bytes(32)"


def check_serializer(serializer: object) -> Serializer:
    """
    Return *serializer* itself if it has the methods of one.

    Raises:
        ConfigurationError: It has not, or it is a class or a module.
    """
    if isinstance(serializer, type | ModuleType) or not isinstance(serializer, Serializer):
        raise ConfigurationError(
            "serializer must be an object with dumps(value, *, key, tag) and loads(data, *, key, tag), "
            f"for example PickleSerializer(), not {serializer!r}"
        )
    return serializer


class PickleSerializer:
    """
    Plain pickle, as kvalchemy writes and reads it; the default.

    Whoever may write to the table may run code in the processes that read it:
    use :class:`SignedPickleSerializer` where that is not the same people.
    """

    def __repr__(self) -> str:
        return "PickleSerializer()"

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes | None:
        """
        Pickle a value; None becomes NULL.

        Raises:
            SerializationError: The value cannot be pickled.
        """
        return None if value is None else _pickled(value, key, tag)

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        """
        Unpickle a value; NULL becomes None.

        Raises:
            CorruptValueError: The bytes are no pickle, or one that cannot be loaded here.
        """
        if data is None:
            return None
        if data.startswith(_FAMILY):
            raise _foreign(self, data, key, tag)
        return _unpickled(data, key, tag)


class SignedPickleSerializer:
    """
    Pickle under an HMAC-SHA256 over key, tag and value; nothing unsigned is ever unpickled.

    An altered row, one moved to another key or tag, an unsigned one and NULL
    are refused. An older signed value of the same key and tag is not told from
    the newest. None is stored signed.
    """

    def __init__(self, secrets: str | bytes | Sequence[str | bytes]) -> None:
        """
        Args:
            secrets: One secret, or several, newest first, each of at least 16 bytes. The first signs, all verify.

        Raises:
            ConfigurationError: No secret, or one that is too short or neither str nor bytes.
        """
        self._secrets = _checked_secrets(secrets)

    def __repr__(self) -> str:
        return f"SignedPickleSerializer(<{len(self._secrets)} secrets>)"

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes:
        """
        Pickle a value and sign it for its place.

        Raises:
            SerializationError: The value cannot be pickled.
        """
        payload = _pickled(value, key, tag)
        return b"".join((_SIGNED, _mac(self._secrets[0], payload, key, tag), payload))

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        """
        Check the signature, then unpickle.

        Raises:
            CorruptValueError: The signature is missing or does not hold here, or the pickle cannot be loaded.
        """
        body = memoryview(_stripped(self, _SIGNED, data, key, tag))
        mac, payload = body[:_MAC_LENGTH], body[_MAC_LENGTH:]
        if not any(hmac.compare_digest(mac, _mac(secret, payload, key, tag)) for secret in self._secrets):
            raise _corrupt(
                "its signature does not hold: it was altered, moved from another key or tag, or signed with a secret "
                "that is no longer listed; list that secret after the newest, or delete the entry",
                key,
                tag,
            )
        return _unpickled(payload, key, tag)


class _Framed:
    """A form with a name, magic bytes, and None as NULL; subclasses give the coding between."""

    _form: ClassVar[str]
    _magic: ClassVar[bytes]
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes | None:
        """
        Encode a value; None becomes NULL.

        Raises:
            SerializationError: The value has no such form.
        """
        if value is None:
            return None
        try:
            return self._magic + self._encode(value)
        except Exception as error:
            raise _unencodable(self._form, value, error, key, tag) from error

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        """
        Decode a value; NULL becomes None.

        Raises:
            CorruptValueError: The bytes were not written by this serializer, or are damaged.
        """
        if data is None:
            return None
        body = _stripped(self, self._magic, data, key, tag)
        try:
            return self._decode(body)
        except Exception as error:
            raise _undecodable(self._form, error, key, tag) from error


class JSONSerializer(_Framed):
    """
    JSON text, readable by any language; needs nothing but Python.

    None, bool, int of any size, finite float, str, list and dict with str keys
    come back as they were. Tuples come back as lists, other dict keys as str,
    members of enums and other subclasses of these types as the plain type.
    Anything else (datetime, bytes, set, UUID, Decimal, dataclasses, NaN) is
    refused when it is written.
    """

    _form = "JSON"
    _magic = _JSON

    def _encode(self, value: Any) -> bytes:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    def _decode(self, data: bytes) -> Any:
        return json.loads(data.decode("utf-8", "surrogatepass"))


class MsgpackSerializer(_Framed):
    """
    MessagePack by msgspec, the most compact form; needs ``pip install akv[msgpack]``.

    None, bool, int of 64 bits, float, str, bytes, list, dict with keys of these
    types, and aware datetimes (as UTC) come back as they were. Tuples and sets
    come back as lists; naive datetimes, dates, UUID and Decimal as str;
    dataclasses, attrs and msgspec structs as dicts; members of enums as their
    values. Larger ints and anything else are refused when they are written.
    """

    _form = "MessagePack"
    _magic = _MSGPACK

    def __init__(self) -> None:
        """
        Raises:
            ConfigurationError: msgspec is not installed.
        """
        try:
            from msgspec import msgpack
        except ImportError as error:
            raise ConfigurationError("MsgpackSerializer needs msgspec: pip install akv[msgpack]") from error
        self._encode = msgpack.encode
        self._decode = msgpack.decode


class CompressedSerializer:
    """
    zlib around another serializer, for values that are worth it.

    What is short or does not shrink is stored as the inner serializer wrote it,
    and such rows are read too, so compression can be turned on for a table in use.
    """

    def __init__(
        self, inner: Serializer, *, level: int = 6, threshold: int = 1024, max_size: int = 256 * 2**20
    ) -> None:
        """
        Args:
            inner: Makes the bytes that are compressed.
            level: From 1 (fast) to 9 (small).
            threshold: Shortest encoding in bytes that is compressed.
            max_size: Longest encoding in bytes that is written, and that a row may expand to.

        Raises:
            ConfigurationError: *inner* is no serializer, or a number is out of bounds.
        """
        self._inner = check_serializer(inner)
        self._level = _checked_int("level", level, 1, 9)
        self._threshold = _checked_int("threshold", threshold, 0)
        self._max_size = _checked_int("max_size", max_size, 1, 2**40)

    def __repr__(self) -> str:
        return f"CompressedSerializer({self._inner!r})"

    def dumps(self, value: Any, *, key: str, tag: str) -> bytes | None:
        """
        Encode a value with the inner serializer, and compress the bytes if that helps.

        Raises:
            SerializationError: The inner serializer refuses the value, or its bytes exceed ``max_size``.
        """
        data = self._inner.dumps(value, key=key, tag=tag)
        if data is None:
            return None
        if len(data) > self._max_size:
            raise SerializationError(
                f"value of key {key!r}, tag {tag!r} encodes to {len(data)} bytes, more than max_size="
                f"{self._max_size}: store it in parts, or raise max_size of every store that reads it"
            )
        is_ambiguous = data.startswith(_COMPRESSED)
        if len(data) < self._threshold and not is_ambiguous:
            return data
        compressed = _COMPRESSED + zlib.compress(data, self._level)
        return compressed if is_ambiguous or len(compressed) < len(data) else data

    def loads(self, data: bytes | None, *, key: str, tag: str) -> Any:
        """
        Expand the bytes if they are compressed, and decode them with the inner serializer.

        Raises:
            CorruptValueError: Damaged, longer than ``max_size``, or refused by the inner serializer.
        """
        if data is not None and data.startswith(_COMPRESSED):
            data = self._expanded(data, key, tag)
        return self._inner.loads(data, key=key, tag=tag)

    def _expanded(self, data: bytes, key: str, tag: str) -> bytes:
        stream = zlib.decompressobj()
        try:
            expanded = stream.decompress(memoryview(data)[_MAGIC_LENGTH:], self._max_size + 1)
        except Exception as error:
            raise _undecodable("zlib", error, key, tag) from error
        if len(expanded) > self._max_size:
            reason = f"it expands to more than max_size={self._max_size} bytes; raise max_size, or delete the entry"
            raise _corrupt(reason, key, tag)
        if not stream.eof or stream.unused_data:
            raise _corrupt("its compressed bytes are cut off or followed by others; delete the entry", key, tag)
        return expanded


def _pickled(value: Any, key: str, tag: str) -> bytes:
    try:
        return pickle.dumps(value, _PICKLE_PROTOCOL)
    except Exception as error:
        raise _unencodable("pickle", value, error, key, tag) from error


def _unpickled(data: bytes | memoryview, key: str, tag: str) -> Any:
    try:
        return pickle.loads(data)  # noqa: S301 -- the documented default; the signed form checks first
    except Exception as error:
        raise _undecodable("pickle", error, key, tag) from error


def _mac(secret: bytes, payload: bytes | memoryview, key: str, tag: str) -> bytes:
    mac = hmac.new(secret, _SIGNED, "sha256")
    for part in (key.encode("utf-8", "surrogatepass"), tag.encode("utf-8", "surrogatepass"), payload):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()


def _stripped(serializer: Serializer, magic: bytes, data: bytes | None, key: str, tag: str) -> bytes:
    if data is None or not data.startswith(magic):
        raise _foreign(serializer, data, key, tag)
    return data[_MAGIC_LENGTH:]


def _foreign(serializer: Serializer, data: bytes | None, key: str, tag: str) -> CorruptValueError:
    reader, writer = type(serializer).__name__, _writer(data)
    remedy = f"open it with the serializer that wrote it, or write the entry again with {reader}"
    return _corrupt(f"it was written by {writer}, and this store reads with {reader}; {remedy}", key, tag)


def _writer(data: bytes | None) -> str:
    if data is None:
        return "a serializer that stores None as an unsigned NULL"
    if data.startswith(b"\x80"):
        return "PickleSerializer or kvalchemy"
    return _WRITERS.get(bytes(data[:_MAGIC_LENGTH]), "a serializer that akv does not know")


def _corrupt(reason: str, key: str, tag: str) -> CorruptValueError:
    return CorruptValueError(f"stored value of key {key!r}, tag {tag!r} cannot be read: {reason}", key=key, tag=tag)


def _undecodable(form: str, error: Exception, key: str, tag: str) -> CorruptValueError:
    remedy = "delete or overwrite the entry, or make what it needs importable"
    return _corrupt(f"{form} says {_said(error)}; {remedy}", key, tag)


def _unencodable(form: str, value: Any, error: Exception, key: str, tag: str) -> SerializationError:
    return SerializationError(
        f"value of type {type(value).__qualname__} for key {key!r}, tag {tag!r} has no {form} form ({_said(error)}): "
        "store a plainer value, or choose another serializer for the store"
    )


def _said(error: Exception) -> str:
    """Describe an exception, even one whose own ``__str__`` fails."""
    return traceback.format_exception_only(error)[-1].strip()


def _checked_int(name: str, value: object, least: int, most: int | None = None) -> int:
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise ConfigurationError(f"{name} must be an int {bounds}, not {value!r}")
    return value


def _checked_secrets(secrets: object) -> tuple[bytes, ...]:
    listed = secrets if isinstance(secrets, list | tuple) else [secrets]
    if not listed:
        raise ConfigurationError(f"secrets is empty: {_HOW_TO_MAKE_ONE}")
    return tuple(_checked_secret(secret) for secret in listed)


def _checked_secret(secret: object) -> bytes:
    encoded = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    if not isinstance(encoded, bytes):
        raise ConfigurationError(f"a secret is a {type(secret).__name__}, not str or bytes: {_HOW_TO_MAKE_ONE}")
    if len(encoded) < _SHORTEST_SECRET:
        raise ConfigurationError(
            f"a secret has {len(encoded)} bytes, fewer than {_SHORTEST_SECRET}: {_HOW_TO_MAKE_ONE}"
        )
    return encoded
