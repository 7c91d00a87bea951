"""What this machine's own distribution has not got yet: the newest Python and PgBouncer, from a Debian in a folder.

It takes root, ``debootstrap`` and a minute; the folder is kept. A program in it sees the project, the servers on this
machine, and nothing else of the machine that it does not need.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .cache import CACHE, Missing, kept, run

SUITE = "sid"
PACKAGES = "python3,python3-venv,pgbouncer,ca-certificates"
_SHARED = "/proc /dev /sys /tmp /etc/ssl/certs"
_ENTER = """#!/bin/sh
# Runs a command in the Debian next to this file, in the folder that it is called in.
DEBIAN={debian} ROOT={root} exec unshare --mount --propagation private sh -c '
for folder in {shared} "$ROOT"; do
  mkdir -p "$DEBIAN$folder" && mount --rbind "$folder" "$DEBIAN$folder" || exit 1
done
exec chroot "$DEBIAN" sh -c "cd \\"\\$0\\" && exec \\"\\$@\\"" "$PWD" "$@"' sh {command} "$@"
"""


def debian() -> Path:
    """The folder that a Debian is in; made once.

    Raises:
        Missing: We are not root, or ``debootstrap`` is not there.
    """

    def make(folder: Path) -> None:
        if os.geteuid() != 0:
            raise Missing("only root can unpack a Debian and enter it")
        if shutil.which("debootstrap") is None:
            raise Missing("debootstrap is not installed")
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(folder))

    return kept(f"debian-{SUITE}", make)


def entry(root: Path, *command: str) -> Path:
    """A program of this machine that runs one of the Debian's.

    Args:
        root: The project's folder, which is seen under the same name.
        *command: The program, and its first arguments.
    """
    folder = debian()
    program = CACHE / f"debian-{SUITE}-{Path(command[0]).name}"
    text = _ENTER.format(debian=folder, root=root, shared=_SHARED, command=" ".join(command))
    program.write_text(text)
    program.chmod(0o755)
    return program


def python(version: str) -> str:
    """The name of an interpreter there.

    Raises:
        Missing: It has another version.
    """
    name = f"/usr/bin/python{version}"
    if not (debian() / name[1:]).exists():
        raise Missing(f"neither this machine nor Debian {SUITE} has python{version}")
    return name
