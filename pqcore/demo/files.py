"""The files that jobs name, and their hashes."""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
from pathlib import Path

from pqcore.demo.messages import DemoError


def choose_files(directory: Path | None, number: int, seed: int) -> tuple[Path, list[str]]:
    """Choose files at random, some more than once.

    Args:
        directory: The directory that is searched, with its subfolders; None for the Python sources of the standard
            library.
        number: The number of files.
        seed: The seed of the random choice; an equal seed chooses the same files.

    Returns:
        The directory, and paths relative to it.

    Raises:
        DemoError: The directory has no readable file.
    """
    if directory is None:
        directory = Path(sysconfig.get_path("stdlib"))
        found = [path for path in directory.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts}]
    else:
        directory = directory.resolve()
        found = list(directory.rglob("*"))
    names = sorted(str(path.relative_to(directory)) for path in found if path.is_file() and os.access(path, os.R_OK))
    names = [name for name in names if name.isprintable()]  # also leaves out names that are not UTF-8
    if not names:
        raise DemoError(f"no readable files in {directory}; give another directory")
    return directory, random.Random(seed).choices(names, k=number)


def sha256(path: Path) -> str:
    """Return the hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
