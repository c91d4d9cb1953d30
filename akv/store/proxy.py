"""
One entry as an object.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from akv.typing import ENOVAL, Expire

if TYPE_CHECKING:
    from akv.store.verbs import Verbs


class Proxy:
    """
    Stands for one entry of a store.

    Attributes:
        kva: The store.
        key: The key of the entry.
        default: What :meth:`get` returns when nothing live is stored; ENOVAL: it raises.
        tag: The tag of the entry.
    """

    def __init__(self, kva: Verbs, key: str, default: Any, tag: str) -> None:
        self.kva = kva
        self.key = key
        self.default = default
        self.tag = tag

    def __repr__(self) -> str:
        return f"Proxy(key={self.key!r}, default={self.default!r}, tag={self.tag!r})"

    async def get(self, default: Any = ENOVAL, return_expiration: bool = False) -> Any | tuple[Any, datetime | None]:
        """
        Return the value.

        Args:
            default: Wins over the default of the proxy.
            return_expiration: Return ``(value, expire)``.

        Raises:
            MissingKeyError: Nothing live is stored, and neither default was given.
        """
        chosen = self.default if default is ENOVAL else default
        return await self.kva.get(self.key, chosen, self.tag, return_expiration)

    async def set(self, value: Any, expire: Expire = None) -> None:
        """Store a value, whatever was there."""
        await self.kva.set(self.key, value, self.tag, expire)

    async def delete(self) -> bool:
        """Delete the entry and return whether a live one was there."""
        return await self.kva.delete(self.key, self.tag)
