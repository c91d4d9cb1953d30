"""
A key-value store in the SQL database you already have, and caches that never go stale, for asyncio.

The names of the invalidation half are imported when they are first used: a store alone need not hold it in memory.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from akv.client import AsyncKVAlchemy
from akv.errors import (
    AKVError,
    ClosedError,
    CommitRefusedError,
    ConfigurationError,
    CorruptValueError,
    InvalidArgumentError,
    InvalidExpireError,
    InvalidIdentifierError,
    InvalidKeyError,
    MissingKeyError,
    OutcomeUnknownError,
    SerializationError,
    StoredTypeError,
    StoreError,
    StoreUnavailableError,
    TokenError,
    UncacheableArgumentError,
    UntrackedWriteError,
)
from akv.store.codec import Entry
from akv.store.models import KVStore
from akv.store.proxy import Proxy
from akv.store.retry import RetryPolicy
from akv.store.serializers import (
    CompressedSerializer,
    JSONSerializer,
    MsgpackSerializer,
    PickleSerializer,
    SignedPickleSerializer,
)
from akv.typing import ENOVAL

if TYPE_CHECKING:
    from akv.tokens.binding import bind
    from akv.tokens.database import DatabaseTokens
    from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN, Label
    from akv.tokens.keygen import CacheKey, CacheKeyGenerator
    from akv.tokens.redis import RedisTokens
    from akv.tokens.things import identifier

__all__ = [
    "ENOVAL",
    "GLOBAL_WRITE_TOKEN",
    "AKVError",
    "AsyncKVAlchemy",
    "CacheKey",
    "CacheKeyGenerator",
    "ClosedError",
    "CommitRefusedError",
    "CompressedSerializer",
    "ConfigurationError",
    "CorruptValueError",
    "DatabaseTokens",
    "Entry",
    "InvalidArgumentError",
    "InvalidExpireError",
    "InvalidIdentifierError",
    "InvalidKeyError",
    "JSONSerializer",
    "KVStore",
    "Label",
    "MissingKeyError",
    "MsgpackSerializer",
    "OutcomeUnknownError",
    "PickleSerializer",
    "Proxy",
    "RedisTokens",
    "RetryPolicy",
    "SerializationError",
    "SignedPickleSerializer",
    "StoreError",
    "StoreUnavailableError",
    "StoredTypeError",
    "TokenError",
    "UncacheableArgumentError",
    "UntrackedWriteError",
    "bind",
    "identifier",
]

_FIRST_USED = {
    "GLOBAL_WRITE_TOKEN": "akv.tokens.identifiers",
    "CacheKey": "akv.tokens.keygen",
    "CacheKeyGenerator": "akv.tokens.keygen",
    "DatabaseTokens": "akv.tokens.database",
    "Label": "akv.tokens.identifiers",
    "RedisTokens": "akv.tokens.redis",
    "bind": "akv.tokens.binding",
    "identifier": "akv.tokens.things",
}


def __getattr__(name: str) -> Any:
    module = _FIRST_USED.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
