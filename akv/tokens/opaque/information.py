"""
MariaDB's information_schema: in a transaction that has read something, it leaves out what is just being redefined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from akv.tokens.drivers import Driver
from akv.tokens.opaque.catalog import Relation

_SKIPPED: Final = 1684
_NAMES: Final = re.compile(r"'(.+?)'\.'(.+?)' ")
SOMETHING: Final = Relation("", "")
"""A table whose name was not told."""


class InformationSchema:
    """
    Reads the catalog for one purpose, and notes what it was not shown.

    Attributes:
        skipped: Tables and views of which nothing was said, for somebody was redefining them.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.skipped: set[Relation] = set()

    def is_whole(self, schemas: Iterable[str]) -> bool:
        """Tell whether everything of some schemas was shown so far."""
        wanted = {*map(str.lower, schemas), SOMETHING.schema}
        return wanted.isdisjoint(schema.lower() for schema, _ in self.skipped)

    async def fetch(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Run a query that opens tables; see :meth:`Driver.fetch`."""
        rows = await self._driver.fetch(sql, *args)
        for _, code, message in await self._driver.fetch("SHOW WARNINGS"):
            if int(code) == _SKIPPED:
                found = _NAMES.search(message)
                self.skipped.add(Relation(*found.groups()) if found else SOMETHING)
        return rows
