"""Another process of the application: does one thing and prints a word."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.tokens.world import User, World


async def main(path: str, action: str) -> str:
    app = World(Path(path))
    app.bind()
    said = ""
    async with app.session() as session:
        if action == "key":
            said = await app.keys(await session.get_one(User, 1))
        elif action == "typed key":
            said = await app.keys("akv:users#1", 1, {"a": "b"})
        else:
            user = await session.get_one(User, 1)
            user.name += "+"
            await session.flush()
            if action == "commit":
                await session.commit()
            elif action == "hang":
                print("flushed", flush=True)
                await asyncio.sleep(60)
            elif action == "commit and hang":
                await session.commit()
                print("committed", flush=True)
                await asyncio.sleep(60)
            else:
                await session.rollback()
    await app.close()
    return said


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
