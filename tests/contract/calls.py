"""
Random calls, of few keys and close expiries, so that they meet.

They are drawn from a pool that is made once: composed by hypothesis, each would cost more than the store takes for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.contract.model import FUNCTIONS, Call

_OF_EACH = 40
_chance = random.Random(20260101)
Draw = Callable[[], Any]


def one_of(*choices: Any) -> Draw:
    return lambda: _chance.choice(choices)


def some(items: Draw) -> Draw:
    return lambda: [items() for _ in range(_chance.randrange(5))]


key = one_of("a", "A", "a ", "ab", "a%", "", "ä", "\U0001f600")
tag = one_of("", "t", "T")
any_tag = one_of(None, "", "t", "T")
prefix = one_of(None, "", "a", "A", "a%", "ä", "b")
stem = one_of("", "a", "A", "a%", "ä", "b")
expire = one_of(None, None, 0, 1, 2, 5.5)
small = one_of(-3, -1, 0, 1, 2, 3)
value = one_of(None, -1, 0, 1, 2, "text", [1], 2**70, True)
function = one_of(*FUNCTIONS)


def calls(verb: str, *args: Draw, **options: Draw) -> list[Call]:
    """Calls of one verb: all of these arguments, some of these options."""
    return [
        Call(
            verb,
            tuple(draw() for draw in args),
            {name: draw() for name, draw in options.items() if _chance.random() < 0.5},
        )
        for _ in range(_OF_EACH)
    ]


def mappings() -> dict[str, Any]:
    return {name: value() for name in some(key)()}


WRITES = [
    *calls("set", key, value, tag=tag, expire=expire),
    *calls("set", key, small, tag=tag),
    *calls("delete", key, tag=tag),
    *calls("pop", key, default=value, tag=tag),
    *calls("add", key, value, tag=tag, expire=expire),
    *calls("incr", key, delta=small, default=small, tag=tag, expire=expire),
    *calls("update", key, function, default=value, tag=tag, expire=expire),
    *calls("touch", key, expire, tag=tag),
    *calls("set_many", mappings, tag=tag, expire=expire),
    *calls("delete_many", some(key), tag=tag),
    *(
        Call("get", call.args, {**call.options, "renew_for": _chance.choice([1, 3])})
        for call in calls("get", key, default=value, tag=tag, return_expiration=one_of(True))
    ),
]
SWEEPS = [*calls("delete_prefix", stem, tag=any_tag), *calls("delete_tag", tag=tag), Call("clear")]
READS = [
    *calls("get", key, default=value, tag=tag, return_expiration=one_of(True)),
    *calls("get_many", some(key), tag=tag),
    *calls("count", prefix=prefix, tag=any_tag),
    *calls("scan", prefix=prefix, tag=any_tag),
    *calls("tags", prefix=prefix),
]

ordered = st.sampled_from([*WRITES, *SWEEPS])
"""Calls whose order among each other is that in which they were made."""
anything = st.sampled_from([*WRITES, *SWEEPS, *READS])
