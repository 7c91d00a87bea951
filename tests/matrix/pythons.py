"""Interpreters to test with, each in an environment of its own that has pqcore and all that its suite needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from . import debian
from .cache import CACHE, run
from .servers import ROOT

LOWEST = ("psycopg[binary]==3.2.2", "psycopg_pool==3.2.0", "psycopg2-binary==2.9.9", "asyncpg==0.29.0")
"""The lowest versions of the drivers that are supported, as in pyproject.toml; of psycopg the first that has wheels."""
DRIVERS = ("psycopg2-binary", "psycopg", "asyncpg")
_VERSIONS = """
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, {})]))
"""


def python(version: str) -> str:
    """An interpreter of a version: pyenv's, the machine's, or Debian's newest. Free-threaded ones end with "t"."""
    here = Path.home() / ".pyenv" / "versions"
    folders = os.pathsep.join(map(str, here.glob(f"{version.removesuffix('t')}.*/bin")))
    found = shutil.which(f"python{version}", path=folders)
    found = found or shutil.which(f"python{version}")
    if found is not None:
        return _environment(CACHE / f"venv-python{version}", found)
    enter = str(debian.entry(ROOT, "/usr/bin/env"))
    _environment(debian.debian() / "opt" / "pqcore", debian.python(version), enter=enter)
    return str(debian.entry(ROOT, "/opt/pqcore/bin/python"))


def lowest() -> str:
    """The interpreter of this run, with the lowest drivers."""
    return _environment(CACHE / "venv-lowest", sys.executable, *LOWEST)


def newest() -> str:
    """The interpreter of this run, with the drivers that are the newest today."""
    return _environment(CACHE / "venv-newest", sys.executable, "--upgrade", *DRIVERS, "psycopg-binary", "psycopg_pool")


def versions(interpreter: str) -> list[str]:
    """Return the version of an interpreter, and the versions of its `DRIVERS`."""
    found: list[str] = json.loads(run(interpreter, "-c", _VERSIONS.format(DRIVERS), folder=ROOT))
    return found


def _environment(folder: Path, base: str, *more: str, enter: str = "") -> str:
    """The interpreter of an environment; what it has is looked after again when what is wanted has changed.

    Args:
        folder: Where the environment is.
        base: The interpreter that it is made of.
        *more: Requirements to install in addition to pqcore.
        enter: A program that runs other programs in the system of ``base``, if that is not this one.
    """
    before = (enter,) if enter else ()
    inside = f"/{folder.relative_to(debian.debian())}" if enter else str(folder)
    interpreter = f"{inside}/bin/python"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + repr((base, more)).encode()).hexdigest()
    mark = folder / "installed"
    if not mark.exists() or mark.read_text() != wanted or "--upgrade" in more:
        if not mark.exists():
            run(*before, base, "-m", "venv", "--clear", inside, folder=ROOT)
        pip = (*before, interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--editable", f"{ROOT}[all,testing]", *more, folder=ROOT)
        mark.write_text(wanted)
    return interpreter
