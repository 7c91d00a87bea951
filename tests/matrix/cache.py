"""A cache of things that are fetched or made once: each is kept completely, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pqcore-matrix"
_WHOLE = ".whole"


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
        raise Missing(f"{' '.join(command)}: {(exc.stderr or exc.stdout).strip()[-500:]}") from exc


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; filled next to its place, and moved there when it is whole.

    Args:
        name: The name in the cache.
        make: A function that fills an empty folder.
    """
    folder = CACHE / name
    if not (folder / _WHOLE).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}-") as beside:
            fresh = Path(beside) / "folder"
            fresh.mkdir(mode=0o755)
            make(fresh)
            (fresh / _WHOLE).touch()
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    return folder


def whole(pattern: str) -> list[Path]:
    """The folders whose names match that are whole."""
    return [folder for folder in CACHE.glob(pattern) if (folder / _WHOLE).exists()]
