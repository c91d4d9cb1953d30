"""
All verbs: those of one entry, and here those of many, by keys, by filter and as streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from akv.errors import InvalidArgumentError
from akv.store.codec import Entry
from akv.store.entry_verbs import EntryVerbs
from akv.store.keys import check_prefix, check_tag
from akv.store.operations import Count, Delete, DeleteWhere, Filter, Get, Page, Pair, Purge, Record, Set, Tags
from akv.store.proxy import Proxy
from akv.store.sweep import PURGE_BATCH
from akv.typing import DEFAULT, ENOVAL, Default, Expire

_FIRST_PAGE = 64
_LARGEST_PAGE = 1000
_PAGE_BYTES = 4 * 2**20
_MOST_TAGS = 1000


class Verbs(EntryVerbs):
    """What a store and a transaction of the caller's have in common."""

    async def get_many(self, keys: Iterable[str], tag: str | Default = DEFAULT) -> dict[str, Any]:
        """
        Return the values of those keys that are present.

        Raises:
            CorruptValueError: One of them cannot be decoded.

        Guarantees:
            One statement, so one moment.
        """
        pairs = self._pairs(keys, tag)
        now = self._codec.now()
        if not pairs:
            return {}
        rows = await self._run(Get(pairs))
        live = ((pair, rows[pair]) for pair in pairs if pair in rows and rows[pair].is_live(now))
        return {pair[0]: self._codec.decode(pair, row) for pair, row in live}

    async def set_many(self, mapping: Mapping[str, Any], tag: str | Default = DEFAULT, expire: Expire = None) -> None:
        """
        Store many values, whatever was there.

        Raises:
            SerializationError: One of them cannot be encoded; nothing is written.

        Guarantees:
            One transaction: all or none.
        """
        if not isinstance(mapping, Mapping):
            raise InvalidArgumentError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}")
        tag, end = self._codec.tag(tag), self._end(expire)
        values = {self._codec.pair(key, tag): value for key, value in mapping.items()}
        records = tuple(self._codec.record(pair, value, end) for pair, value in values.items())
        if records:
            await self._run(Set(tuple(values), records))

    async def delete_many(self, keys: Iterable[str], tag: str | Default = DEFAULT) -> int:
        """
        Delete many entries.

        Returns:
            How many live ones were there.

        Guarantees:
            One transaction: all or none.
        """
        pairs = self._pairs(keys, tag)
        now = self._codec.now()
        return int(await self._run(Delete(pairs, now))) if pairs else 0

    async def clear(self) -> None:
        """Delete every entry, of every tag."""
        await self._run(DeleteWhere(Filter(), self._codec.now()))

    async def delete_tag(self, tag: str | Default = DEFAULT) -> int:
        """
        Delete every entry of a tag.

        Returns:
            How many live ones were there.
        """
        return int(await self._run(DeleteWhere(Filter(tag=self._codec.tag(tag)), self._codec.now())))

    async def delete_prefix(self, prefix: str, tag: str | None = None) -> int:
        """
        Delete every entry whose key starts with *prefix*.

        Args:
            prefix: Literal; ``%`` and ``_`` mean themselves.
            tag: Only of this tag; None: of every tag.

        Returns:
            How many live ones were there.
        """
        if prefix is None:
            raise InvalidArgumentError("delete_prefix needs a prefix: clear() deletes everything")
        return int(await self._run(DeleteWhere(_filter(prefix, tag), self._codec.now())))

    async def count(self, prefix: str | None = None, tag: str | None = None) -> int:
        """
        Count live entries.

        Args:
            prefix: Only keys that start with it, literally; None: all.
            tag: Only of this tag; None: of every tag.
        """
        return int(await self._run(Count(_filter(prefix, tag), self._codec.now())))

    async def purge_expired(self) -> int:
        """
        Delete every expired entry now, in bounded transactions.

        Returns:
            How many were deleted.
        """
        total = 0
        while True:
            gone = int(await self._run(Purge(self._codec.now(), PURGE_BATCH)))
            total += gone
            if gone < PURGE_BATCH:
                return total

    async def scan(self, prefix: str | None = None, tag: str | None = None) -> AsyncIterator[Entry]:
        """
        Stream live entries in the order of key, then tag.

        Args:
            prefix: Only keys that start with it, literally; None: all.
            tag: Only of this tag; None: of every tag.

        Guarantees:
            Pages of bounded size, each of one moment; never the whole table in memory. An entry that cannot be
            decoded raises only when its value is asked for.
        """
        where = _filter(prefix, tag)
        after: Pair | None = None
        limit = _FIRST_PAGE
        while True:
            page: list[Record] = await self._run(Page(where, self._codec.now(), after, limit))
            for key, tag_, value, expire in page:
                yield Entry(key, tag_, expire, value, self._codec)
            if len(page) < limit:
                return
            after = page[-1][:2]
            limit = _next_limit(page)

    def __aiter__(self) -> AsyncIterator[Entry]:
        return self.scan()

    async def tags(self, prefix: str | None = None) -> AsyncIterator[str]:
        """
        Stream the distinct tags of live entries, in order.

        Args:
            prefix: Only of keys that start with it, literally; None: of all.
        """
        where = _filter(prefix, None)
        after: str | None = None
        while True:
            page: list[str] = await self._run(Tags(where, self._codec.now(), after, _MOST_TAGS))
            for tag in page:
                yield tag
            if len(page) < _MOST_TAGS:
                return
            after = page[-1]

    def get_proxy(self, key: str, default: Any = ENOVAL, tag: str | Default = DEFAULT) -> Proxy:
        """
        Return an object that stands for one entry; no I/O.

        Args:
            key: At most 256 characters.
            default: What its ``get`` returns when nothing live is stored.
            tag: At most 256 characters; left out: the store's default tag.
        """
        key, tag = self._codec.pair(key, tag)
        return Proxy(self, key, default, tag)

    def _pairs(self, keys: Iterable[str], tag: str | Default) -> tuple[Pair, ...]:
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgumentError(f"give an iterable of keys, not {type(keys).__name__}: [key] for a single one")
        tag = self._codec.tag(tag)
        return tuple(dict.fromkeys(self._codec.pair(key, tag) for key in keys))


def _filter(prefix: str | None, tag: str | None) -> Filter:
    return Filter(check_prefix(prefix), None if tag is None else check_tag(tag))


def _next_limit(page: list[Record]) -> int:
    average = sum(len(record.value or b"") for record in page) / len(page) + 128
    return max(1, min(_LARGEST_PAGE, int(_PAGE_BYTES / average)))
