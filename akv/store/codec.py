"""
Arguments to rows and back: what all verbs of a store share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from akv.errors import AKVError, CorruptValueError, SerializationError
from akv.store.expiry import naive
from akv.store.keys import check_key, check_tag
from akv.store.operations import Pair, Record, Row
from akv.typing import DEFAULT, ENOVAL, Clock, Default, Serializer


@dataclass(frozen=True, slots=True)
class Codec:
    """
    What turns arguments into rows, shared by a store and the transactions made from it.

    Attributes:
        default_tag: The tag of calls that name none.
        serializer: Turns values into bytes and back.
        clock: Asked once per call.
    """

    default_tag: str
    serializer: Serializer
    clock: Clock

    def pair(self, key: object, tag: str | Default) -> Pair:
        """Check a key and a tag."""
        return _plain(check_key(key)), self.tag(tag)

    def tag(self, tag: str | Default) -> str:
        """Check a tag."""
        return self.default_tag if tag is DEFAULT else _plain(check_tag(tag))

    def now(self) -> datetime:
        """The application's time, naive UTC."""
        return naive(self.clock())

    def record(self, pair: Pair, value: Any, expire: datetime | None) -> Record:
        """Encode a value."""
        return Record(*pair, self.encode(pair, value), expire)

    def encode(self, pair: Pair, value: Any) -> bytes | None:
        """
        Encode a value.

        Raises:
            SerializationError: The serializer cannot.
        """
        if value is ENOVAL:
            raise SerializationError("ENOVAL stands for no value and cannot be stored: store None, or delete the key")
        try:
            data = self.serializer.dumps(value, key=pair[0], tag=pair[1])
            return data if data is None or type(data) is bytes else _as_bytes(self.serializer, data)
        except AKVError:
            raise
        except Exception as error:
            raise SerializationError(
                f"{self.serializer!r} cannot encode the {type(value).__name__} for key {pair[0]!r}, tag {pair[1]!r}: "
                f"its dumps should raise SerializationError"
            ) from error

    def decode(self, pair: Pair, row: Row) -> Any:
        """
        Decode a value.

        Raises:
            CorruptValueError: The row is not a value of the serializer at this place.
        """
        try:
            return self.serializer.loads(row.value, key=pair[0], tag=pair[1])
        except AKVError:
            raise
        except Exception as error:
            raise CorruptValueError(
                f"{self.serializer!r} cannot decode key {pair[0]!r}, tag {pair[1]!r}: delete or replace the entry",
                key=pair[0],
                tag=pair[1],
            ) from error


def _as_bytes(serializer: Serializer, data: object) -> bytes:
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise SerializationError(f"dumps of {serializer!r} must return bytes, or None for NULL, not {type(data).__name__}")


def _plain(text: str) -> str:
    """Hand drivers a str itself: not all of them know what to do with a subclass."""
    return text if type(text) is str else str.__str__(text)


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A live entry, as a scan meets it.

    Attributes:
        key: Its key.
        tag: Its tag.
        expire: Naive UTC; None: no end.
    """

    key: str
    tag: str
    expire: datetime | None
    _data: bytes | None = field(repr=False)
    _codec: Codec = field(repr=False, compare=False)

    @property
    def value(self) -> Any:
        """
        Decode the value, when asked.

        Raises:
            CorruptValueError: It cannot be decoded; the scan goes on.
        """
        return self._codec.decode((self.key, self.tag), Row(self._data, self.expire))
