"""
Measurements that need a process of their own: ``python -m benchmarks.children``, one JSON line of answers.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_ROOT = Path(__file__).resolve().parent.parent


async def ask(what: str, *arguments: str, seconds: float = 900.0) -> dict[str, Any]:
    """
    Measure something in a fresh process.

    Raises:
        RuntimeError: It failed; the message ends with what it wrote.
    """
    command = [sys.executable, "-m", "benchmarks.children", what, *arguments]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=_ROOT
    )
    try:
        out, errors = await asyncio.wait_for(child.communicate(), seconds)
    except BaseException:
        if child.returncode is None:
            child.kill()
            await child.wait()
        raise
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode().strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return found


def resident() -> int:
    """Bytes of this process in memory now."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * PAGE
    return _most()


def _most() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Let :func:`peak` speak of what comes after, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak() -> int:
    """Most bytes of this process in memory since :func:`forget_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return _most()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def idle_akv(url: str) -> dict[str, Any]:
    """Measure what a store adds to SQLAlchemy and its driver."""
    start = _with_sqlalchemy(url)
    akv = importlib.import_module("akv")
    kv = akv.AsyncKVAlchemy(url)
    await kv.get("user:000000001:profile", default=None)
    end = resident()
    await kv.aclose()
    return {"bytes": end - start, "start": start}


async def idle_session(url: str) -> dict[str, Any]:
    """Measure what an engine and a first select through AsyncSession add to SQLAlchemy and its driver."""
    start = _with_sqlalchemy(url)
    hand = importlib.import_module("sqlalchemy.ext.asyncio")
    sqlalchemy = importlib.import_module("sqlalchemy")
    engine = hand.create_async_engine(sqlalchemy.make_url(url).difference_update_query(["synchronous"]))
    async with hand.AsyncSession(engine) as session:
        await session.execute(sqlalchemy.text("SELECT value FROM kvstore WHERE tag = ''").columns())
    end = resident()
    await engine.dispose()
    return {"bytes": end - start, "start": start}


def _with_sqlalchemy(url: str) -> int:
    for module in ("sqlalchemy", "sqlalchemy.orm", "sqlalchemy.ext.asyncio"):
        importlib.import_module(module)
    dialect = importlib.import_module("sqlalchemy").make_url(url).get_dialect()
    dialect.import_dbapi()
    return resident()


async def scan_akv(url: str) -> dict[str, Any]:
    """Scan the whole table, decoding every value."""
    akv = importlib.import_module("akv")
    async with akv.AsyncKVAlchemy(url, sweep_every=None) as kv:
        await kv.get("", default=None)
        start = _begin()
        count = size = 0
        async for entry in kv:
            count += 1
            size += len(entry.value)
        return {"bytes": peak() - start, "start": start, "entries": count, "value_bytes": size}


async def scan_kvalchemy(url: str) -> dict[str, Any]:
    """Iterate over the ancestor."""
    kvalchemy = importlib.import_module("kvalchemy")
    kv = kvalchemy.KVAlchemy(url, create_models=False)
    kv.get("", None, "")
    start = _begin()
    count = size = 0
    for entry in kv:
        count += 1
        size += len(entry.value)
    found = {"bytes": peak() - start, "start": start, "entries": count, "value_bytes": size}
    kv._engine.dispose()
    return found


def _begin() -> int:
    forget_peak()
    return resident()


MEASUREMENTS: dict[str, Callable[[str], Coroutine[Any, Any, dict[str, Any]]]] = {
    "idle-akv": idle_akv,
    "idle-session": idle_session,
    "scan-akv": scan_akv,
    "scan-kvalchemy": scan_kvalchemy,
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(MEASUREMENTS[sys.argv[1]](sys.argv[2]))))
