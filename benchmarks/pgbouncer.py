"""PgBouncer in transaction mode, between the measured workers and the server, if it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pqcore.errors import ConfigurationError
from pqcore_backends.embedded_setup import free_port, unprivileged_user

PATIENCE = 10.0
"""Seconds within which PgBouncer must accept connections."""


def find() -> str | None:
    """Return the path of the program; None if it is not installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


@contextmanager
def pooled(dsn: str) -> Iterator[str]:
    """Start PgBouncer in front of a server.

    Args:
        dsn: The DSN of the server, as a URL with a host and a port.

    Yields:
        The DSN through PgBouncer.

    Raises:
        ConfigurationError: PgBouncer is not installed or does not start, or the server has no TCP port.
    """
    program, server = find(), urlsplit(dsn)
    if program is None or server.hostname is None:
        msg = f"PgBouncer cannot be put before {dsn}; install it, and give a server as postgresql://user@host:port/name"
        raise ConfigurationError(msg)
    port = free_port()
    login = f"user={unquote(server.username or 'postgres')}"
    if server.password:
        login += f" password={unquote(server.password)}"
    with tempfile.TemporaryDirectory(prefix="pqcore-bench-") as folder:
        Path(folder).chmod(0o755)
        settings = Path(folder, "pgbouncer.ini")
        settings.write_text(
            f"[databases]\n* = host={server.hostname} port={server.port or 5432} {login}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\nignore_startup_parameters = extra_float_digits, options\n"
            "default_pool_size = 20\nlog_connections = 0\nlog_disconnections = 0\n",
            encoding="utf-8",
        )
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-q", str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **_identity()
            )
        try:
            _await_start(process, port, Path(folder, "log"))
            user = server.netloc.rpartition("@")[0]
            yield urlunsplit(server._replace(netloc=f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"))
        finally:
            process.kill()
            process.wait()


def _identity() -> dict[str, Any]:
    """Return the user for PgBouncer, which refuses to run as root."""
    return unprivileged_user() if os.geteuid() == 0 else {}


def _await_start(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    msg = f"PgBouncer does not start: {said[-1] if said else 'it said nothing'}"
    raise ConfigurationError(msg)
