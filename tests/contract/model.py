"""A store as one would write it on paper: a dict with expiry. And calls, as values, that both can answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from akv.errors import AKVError, MissingKeyError, StoredTypeError
from akv.store.verbs import Verbs
from akv.testing import FakeClock

Pair = tuple[str, str]
NOTHING: Any = object()


@dataclass(frozen=True)
class Call:
    """One call of a verb."""

    verb: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"{self.verb}({', '.join(shown)})"

    async def ask(self, kv: Verbs) -> Any:
        """The answer of a store, or the type of its error."""
        try:
            if self.verb in ("scan", "tags"):
                found = [item async for item in getattr(kv, self.verb)(*self.args, **self.options)]
                return [(e.key, e.tag, e.value, e.expire) for e in found] if self.verb == "scan" else found
            return await getattr(kv, self.verb)(*self.args, **self.options)
        except (AKVError, ZeroDivisionError) as error:
            return type(error)

    def ask_paper(self, model: Model) -> Any:
        """The answer of the model, or the type of its error."""
        try:
            return getattr(model, self.verb)(*self.args, **self.options)
        except (AKVError, ZeroDivisionError) as error:
            return type(error)


class Model:
    """What the contract says, for one caller after the other."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._rows: dict[Pair, tuple[Any, datetime | None]] = {}

    @property
    def now(self) -> datetime:
        return self._clock().replace(tzinfo=None)

    @property
    def live(self) -> dict[Pair, tuple[Any, datetime | None]]:
        return {pair: row for pair, row in self._rows.items() if row[1] is None or row[1] > self.now}

    def _end(self, expire: float | None) -> datetime | None:
        return None if expire is None else self.now + timedelta(seconds=expire)

    def _row(self, pair: Pair, default: Any) -> tuple[Any, datetime | None]:
        row = self.live.get(pair, (default, None))
        if row[0] is NOTHING:
            raise MissingKeyError(*pair)
        return row

    def get(
        self,
        key: str,
        default: Any = NOTHING,
        tag: str = "",
        return_expiration: bool = False,
        renew_for: float | None = None,
    ) -> Any:
        value, end = self._row((key, tag), default)
        if renew_for is not None and end is not None:
            end = self._end(renew_for)
            self._rows[key, tag] = value, end
        return (value, end) if return_expiration else value

    def set(self, key: str, value: Any, tag: str = "", expire: float | None = None) -> None:
        self._rows[key, tag] = value, self._end(expire)

    def delete(self, key: str, tag: str = "") -> bool:
        was_live = (key, tag) in self.live
        self._rows.pop((key, tag), None)
        return was_live

    def pop(self, key: str, default: Any = NOTHING, tag: str = "") -> Any:
        value, _ = self._row((key, tag), default)
        self.delete(key, tag)
        return value

    def add(self, key: str, value: Any, tag: str = "", expire: float | None = None) -> bool:
        if (key, tag) in self.live:
            return False
        self.set(key, value, tag, expire)
        return True

    def incr(self, key: str, delta: int = 1, default: int = 0, tag: str = "", expire: float | None = None) -> int:
        if self.add(key, default + delta, tag, expire):
            return default + delta
        value, end = self.live[key, tag]
        if type(value) is not int:
            raise StoredTypeError("not an int", key=key, tag=tag)
        self._rows[key, tag] = value + delta, end
        return value + delta

    def update(
        self,
        key: str,
        function: Callable[[Any], Any],
        default: Any = NOTHING,
        tag: str = "",
        expire: Any = NOTHING,
    ) -> Any:
        value, end = self._row((key, tag), default)
        new = function(value)
        self._rows[key, tag] = new, end if expire is NOTHING else self._end(expire)
        return new

    def touch(self, key: str, expire: float | None, tag: str = "") -> bool:
        if (key, tag) not in self.live:
            return False
        self._rows[key, tag] = self._rows[key, tag][0], self._end(expire)
        return True

    def get_many(self, keys: Iterable[str], tag: str = "") -> dict[str, Any]:
        return {key: self.live[key, tag][0] for key in keys if (key, tag) in self.live}

    def set_many(self, mapping: Mapping[str, Any], tag: str = "", expire: float | None = None) -> None:
        for key, value in mapping.items():
            self.set(key, value, tag, expire)

    def delete_many(self, keys: Iterable[str], tag: str = "") -> int:
        return sum([self.delete(key, tag) for key in set(keys)])

    def _matching(self, prefix: str | None, tag: str | None) -> list[Pair]:
        return sorted(
            pair for pair in self._rows if pair[0].startswith(prefix or "") and tag in (None, pair[1])
        )  # fmt: skip

    def clear(self) -> None:
        self._rows.clear()

    def delete_tag(self, tag: str = "") -> int:
        return self.delete_prefix("", tag)

    def delete_prefix(self, prefix: str, tag: str | None = None) -> int:
        return sum([self.delete(*pair) for pair in self._matching(prefix, tag)])

    def count(self, prefix: str | None = None, tag: str | None = None) -> int:
        return len(self.scan(prefix, tag))

    def scan(self, prefix: str | None = None, tag: str | None = None) -> list[tuple[str, str, Any, datetime | None]]:
        return [(*pair, *self.live[pair]) for pair in self._matching(prefix, tag) if pair in self.live]

    def tags(self, prefix: str | None = None) -> list[str]:
        return sorted({tag for _, tag, _, _ in self.scan(prefix)})


def doubled(value: Any) -> Any:
    return [value, value]


def raising(value: Any) -> Any:
    return 1 // 0


def wrapped(value: Any) -> Any:
    return (value,)


FUNCTIONS: list[Callable[[Any], Any]] = [doubled, raising, wrapped, repr]
