"""The environment of the measurements: the machine, the versions, the server and its settings, and its durability."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pqcore
from pqcore.errors import ConfigurationError, EmbeddedServerError

from .backends import Contender
from .observer import Observer

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
"""The settings of a server that loses nothing it reported as committed."""
SETTINGS = (
    *DURABLE,
    "shared_buffers",
    "max_connections",
    "wal_level",
    "wal_sync_method",
    "max_wal_size",
    "autovacuum",
)
_FAITHFUL = {*DURABLE.values(), "local", "remote_write", "remote_apply"}


@contextmanager
def server(dsn: str | None) -> Iterator[tuple[str, str]]:
    """Yield a server: the given one, or a durable embedded one.

    Yields:
        The server's DSN, and its origin.

    Raises:
        ConfigurationError: No server was given, and the programs for an embedded one are missing.
    """
    if dsn is not None:
        yield dsn, "given"
        return
    from pqcore_backends.embedded import EmbeddedServer

    try:
        embedded = EmbeddedServer(settings={**DURABLE, "max_wal_size": "4GB"}).start()
    except EmbeddedServerError as exc:
        msg = f"{exc}; or give a server of yours: --dsn postgresql://user@host/database"
        raise ConfigurationError(msg) from exc
    try:
        yield embedded.dsn(), f"embedded, in {embedded.data_dir}"
    finally:
        embedded.stop("immediate")


def programs() -> list[Path]:
    """Return folders that may contain PostgreSQL's programs."""
    found = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return found


def describe(server_observer: Observer, origin: str, chosen: Sequence[Contender]) -> dict[str, Any]:
    """Return the environment, in the form for the report."""
    return {
        "pqcore": pqcore.__version__,
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "drivers": {name: version for contender in chosen for name, version in _versions(contender)},
        "server": {
            "origin": origin,
            "version": str(server_observer.one("SHOW server_version")),
            "settings": {name: value for name in SETTINGS if (value := _setting(server_observer, name)) is not None},
            "file_system": _file_system(origin),
        },
    }


def doubts(environment: dict[str, Any]) -> list[str]:
    """Return what makes the figures less reliable: a server that may lose committed data."""
    settings = environment["server"]["settings"]
    found = [
        f"{name} is {settings.get(name)}: the server may lose what it said was committed, and is faster for it"
        for name in DURABLE
        if settings.get(name) not in _FAITHFUL
    ]
    if environment["server"]["file_system"] in ("tmpfs", "ramfs"):
        found.append("the server's data lie in memory (tmpfs): a flush to disk costs nothing there; set TMPDIR")
    return found


def _setting(server_observer: Observer, name: str) -> str | None:
    value = server_observer.one(f"SELECT current_setting('{name}', true)")
    return None if value is None else str(value)


def _versions(contender: Contender) -> Iterator[tuple[str, str]]:
    distributions = importlib.metadata.packages_distributions()
    for module in contender.spec.requires:
        for distribution in distributions.get(module.partition(".")[0], []):
            yield distribution, importlib.metadata.version(distribution)
    implementation = getattr(sys.modules.get("psycopg.pq"), "__impl__", None)
    if "psycopg" in contender.spec.requires and implementation:
        yield "psycopg's implementation", str(implementation)


def _commit() -> str | None:
    """Return the commit of the repository that pqcore is imported from, if there is one."""
    root = Path(pqcore.__file__).parents[1]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _file_system(origin: str) -> str | None:
    """Return the kind of file system that holds an embedded server's data."""
    folder = Path(origin.partition(" in ")[2])
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    if not origin.startswith("embedded"):
        return None
    mounts = {Path(fields[1]): fields[2] for line in lines if len(fields := line.split()) > 2}
    return next((mounts[place] for place in (folder, *folder.parents) if place in mounts), None)
