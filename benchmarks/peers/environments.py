"""Environments for peers, of Python or Node, because their dependencies conflict with one another and with pqcore's.

pip makes each environment once, in a cache folder, with a pinned version of the peer and the same drivers' versions as
pqcore. Another version, or another Python, has another folder. An unfinished environment is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "PQCORE_PEERS_CACHE"
"""The environment variable with the cache folder."""

PATIENCE = 300
"""Seconds that pip may take for one environment."""

_MADE = "made.json"
_OLDEST, _NEWEST = 10, 20  # minor versions of Python 3


class NotMeasured(Exception):
    """A system, or one of its workloads, cannot be measured here; the message gives the reason."""


@dataclass(frozen=True)
class Environment:
    """The requirements of a peer.

    Attributes:
        name: The name of its folder.
        requirements: The requirements for pip.
        drivers: Distributions that pqcore also uses, and of which the peer gets the same version.
        python: The oldest Python that the peer supports.
        node: Whether the peer runs on Node, so that its requirements are for npm. One requirement is ``node``, so that
            its version does not depend on the machine.
    """

    name: str
    requirements: tuple[str, ...]
    drivers: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 10)
    node: bool = False

    def wanted(self) -> list[str]:
        """Return all requirements, with versions."""
        return [*self.requirements, *(_as_ours(driver) for driver in self.drivers)]


def _as_ours(driver: str) -> str:
    try:
        return f"{driver}=={importlib.metadata.version(driver.partition('[')[0])}"
    except importlib.metadata.PackageNotFoundError:
        return driver


def cache_folder() -> Path:
    """Return the default folder of environments."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqcore-bench" / "peers"


def prepare(environment: Environment, folder: Path) -> Path:
    """Make an environment, unless it exists; return its Python, or its Node.

    Raises:
        NotMeasured: No suitable Python or npm exists, or an installation failed.
    """
    installer = _npm() if environment.node else find_python(environment.python)
    wanted = environment.wanted()
    digest = hashlib.sha256("\0".join([*wanted, installer]).encode()).hexdigest()[:12]
    place = folder / f"{environment.name}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{place.name}.lock"):
            if not (place / _MADE).exists():
                shutil.rmtree(place, ignore_errors=True)
                (_install_node if environment.node else _install_python)(installer, place, wanted)
                made = json.dumps({"requirements": wanted, "installer": installer})
                (place / _MADE).write_text(made, encoding="utf-8")
    except OSError as error:
        raise NotMeasured(f"its environment could not be made: {error}") from error
    return place / ("node_modules/node/bin/node" if environment.node else "bin/python")


def _install_python(python: str, place: Path, wanted: Sequence[str]) -> None:
    _run([python, "-m", "venv", *([] if wanted else ["--without-pip"]), str(place)], "venv")
    if wanted:
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=1", "--timeout=15"]
        _run([str(place / "bin" / "python"), "-m", "pip", "install", *options, *wanted], "pip")


def _install_node(npm: str, place: Path, wanted: Sequence[str]) -> None:
    place.mkdir()
    options = ["--silent", "--no-audit", "--no-fund", "--no-save", "--fetch-retries=1"]
    _run([npm, "install", "--prefix", str(place), *options, *wanted], "npm")


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise NotMeasured("needs npm, and none was found on PATH")
    return npm


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], what: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"{what} did not end within {PATIENCE} s") from None
    except subprocess.CalledProcessError as error:
        raise NotMeasured(f"{what}: {_reason(error.stderr + error.stdout)}") from None


def _reason(output: str) -> str:
    """Return the most informative line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return re.sub(r"^ERROR:\s*", "", (errors or lines or ["failed, and said nothing"])[-1])


def find_python(oldest: tuple[int, int]) -> str:
    """Return a suitable Python that can make environments: the running one, or else the oldest that is found.

    The function searches PATH and pyenv.

    Raises:
        NotMeasured: There is no suitable Python.
    """
    for program in _pythons():
        version = _version(program)
        if version is not None and version >= oldest:
            return program
    raise NotMeasured("needs Python {}.{} or newer, and none was found on PATH or among pyenv's".format(*oldest))


def _pythons() -> Iterator[str]:
    yield sys.executable
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for minor in range(_OLDEST, _NEWEST):
        found = [*sorted(str(path) for path in root.glob(f"3.{minor}.*/bin/python")), shutil.which(f"python3.{minor}")]
        yield from filter(None, found)


@cache
def _version(program: str) -> tuple[int, int] | None:
    """Return the version of a Python that works, and can make environments."""
    code = "import ensurepip, venv, sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        major, minor = map(int, done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return major, minor
