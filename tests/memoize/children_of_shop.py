"""What other processes of an application do: ``python -m tests.memoize.children_of_shop JOB URL REDIS NAMESPACE``."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from tests.memoize.shop import App, Place, User

PATIENCE = 60.0


def say(word: object) -> None:
    print(word, flush=True)


async def told() -> str:
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


def held(app: App, **options: Any) -> Any:
    """A function that reads at once, says so, and returns what it has read when it is told to."""

    @app.kv.memoize(**options)
    async def value(number: int) -> int:
        found = await app.age(number)
        say("read")
        await told()
        return found

    return value


async def hold(app: App, **options: Any) -> None:
    """Compute and hold back; then say what came of it, and whether it was saved."""
    value = held(app, **options)
    say(await value(1))
    say(await app.saved(value))


async def change(app: App, **_: Any) -> None:
    """Commit a change whenever told to."""
    while await told() == "go":
        await app.birthday()
        say("changed")


async def invalidate(app: App, **options: Any) -> None:
    value = held(app, **options)
    await value.cache_invalidate(1)


async def clear(app: App, **options: Any) -> None:
    await held(app, **options).cache_clear()


async def stampede(app: App, **options: Any) -> None:
    """Call often and at once, when told to; say what came of it and how often it was computed."""
    runs = 0

    @app.kv.memoize(**options)
    async def value() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.2)
        return await app.age()

    await value.cache_invalidate()
    say("ready")
    await told()
    results = set(await asyncio.gather(*(value() for _ in range(50))))
    say(f"{sorted(results)} {runs}")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "near": {"near": 10},
    "depends": {"depends_on": User},
    "depends near": {"depends_on": User, "near": 10},
    "depends lock": {"depends_on": User, "lock": True},
    "tracked": {"track": True},
}


async def main(job: str, options: str, *place: str) -> None:
    async with asyncio.timeout(PATIENCE):
        app = App(Place(*place))
        await app.start()
        do = {"hold": hold, "change": change, "invalidate": invalidate, "clear": clear, "stampede": stampede}[job]
        await do(app, **OPTIONS[options])
        await app.close()
        say(f"done {os.getpid()}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
