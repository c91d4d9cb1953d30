"""
Every exception that akv raises on purpose.

::

    AKVError
    ├── ConfigurationError (ValueError)       wrong options; an engine or table that cannot hold the promise
    ├── ClosedError (RuntimeError)            used after aclose()
    ├── InvalidArgumentError (TypeError, ValueError)
    │   ├── InvalidKeyError                   a key or tag: too long, NUL, lone surrogate, not a str
    │   └── InvalidExpireError                an expire that names no instant
    ├── MissingKeyError (KeyError)            .key .tag
    ├── UncacheableArgumentError (TypeError)  an argument of a memoized call has no canonical form
    ├── StoredTypeError (TypeError)           the stored value is not what the verb works on: .key .tag
    ├── SerializationError                    a value cannot be encoded
    │   └── CorruptValueError                 a row cannot be decoded, or its signature does not hold: .key .tag
    ├── StoreError                            the database refused; __cause__ is the driver's exception
    │   ├── StoreUnavailableError             still transient after the last attempt: .attempts .elapsed
    │   └── OutcomeUnknownError               the reply to COMMIT was lost and the call may not run twice
    └── TokenError
        ├── InvalidIdentifierError (TypeError, ValueError)
        ├── CommitRefusedError                raised before COMMIT; nothing was written
        └── UntrackedWriteError               a write that no transaction carries (AUTOCOMMIT)

Callers' mistakes are raised before any I/O and double as the builtin exception
that a reader would expect. All of them survive pickling, so they cross process
pools whole.
"""

from __future__ import annotations

from typing import Any


class AKVError(Exception):
    """
    Base of everything that akv raises on purpose.

    Attributes that a subclass sets survive pickling.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[AKVError], args: tuple[Any, ...], state: dict[str, Any]) -> AKVError:
    """Make the exception again without running a constructor whose signature differs from its args."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(AKVError, ValueError):
    """An option is wrong, or an engine or a table cannot hold what akv promises."""


class ClosedError(AKVError, RuntimeError):
    """The store was used after ``aclose()``."""


class InvalidArgumentError(AKVError, TypeError, ValueError):
    """An argument of a verb has the wrong type or value; nothing was sent to the database."""


class InvalidKeyError(InvalidArgumentError):
    """A key or a tag is not a str, is too long, or holds what no database can store."""


class InvalidExpireError(InvalidArgumentError):
    """An expire is not None, a finite number of seconds, a timedelta or a datetime."""


class MissingKeyError(AKVError, KeyError):
    """
    Nothing live is stored under the key.

    Attributes:
        key: The key that was asked for.
        tag: The tag that was asked for.
    """

    def __init__(self, key: str, tag: str) -> None:
        super().__init__(f"no live entry for key {key!r}, tag {tag!r}: pass default= to get a value instead")
        self.key = key
        self.tag = tag

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr


class UncacheableArgumentError(AKVError, TypeError):
    """An argument of a memoized call has no canonical form."""


class StoredTypeError(AKVError, TypeError):
    """
    The stored value is of a type that the verb does not work on; it is left as it was.

    Attributes:
        key: The key of the entry.
        tag: The tag of the entry.
    """

    def __init__(self, message: str, *, key: str, tag: str) -> None:
        super().__init__(message)
        self.key = key
        self.tag = tag


class SerializationError(AKVError):
    """A value cannot be turned into bytes by the store's serializer."""


class CorruptValueError(SerializationError):
    """
    A stored row cannot be decoded, or its signature does not hold.

    Attributes:
        key: The key of the row.
        tag: The tag of the row.
    """

    def __init__(self, message: str, *, key: str, tag: str) -> None:
        super().__init__(message)
        self.key = key
        self.tag = tag


class StoreError(AKVError):
    """The database refused the call; ``__cause__`` is the driver's exception."""


class StoreUnavailableError(StoreError):
    """
    The database still failed in a way that passes after the last attempt.

    Attributes:
        attempts: How many times the call was tried.
        elapsed: Seconds from the first attempt to giving up.
    """

    def __init__(self, message: str, *, attempts: int, elapsed: float) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.elapsed = elapsed


class OutcomeUnknownError(StoreError):
    """The connection broke while COMMIT was under way, and the call may not run twice."""


class TokenError(AKVError):
    """Something about tokens, identifiers or bound engines."""


class InvalidIdentifierError(TokenError, TypeError, ValueError):
    """Something that is no identifier, and that none can be derived from."""


class CommitRefusedError(TokenError):
    """Raised before COMMIT because the change could not be announced; nothing was written."""


class UntrackedWriteError(TokenError):
    """A write that no transaction carries (AUTOCOMMIT), so that nothing could announce it in time."""
