"""
A key-value store in the SQL database you already have, and caches that never go stale, for asyncio.
"""

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
from akv.tokens.binding import bind
from akv.tokens.database import DatabaseTokens
from akv.tokens.identifiers import GLOBAL_WRITE_TOKEN, Label
from akv.tokens.keygen import CacheKey, CacheKeyGenerator
from akv.tokens.things import identifier
from akv.typing import ENOVAL

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
