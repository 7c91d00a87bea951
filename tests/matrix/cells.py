"""The cells of the matrix: what is run, with which Python, against which server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

from .servers import CACHE, Missing, embedded, pgbouncer, run

ROOT = Path(__file__).resolve().parents[2]
NEWEST = 18
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
LOWEST = ("psycopg[binary]==3.2.*", "psycopg_pool==3.2.*", "psycopg2-binary==2.9.9", "asyncpg==0.29.0")
"""The lowest versions of the drivers that are supported; the lowest of psycopg 3.2 for which there are binaries."""
QUICK = ("basics", "order", "transactions", "bulk", "leases", "dedup", "serializers", "schema", "names", "prepared")
"""Modules of the suite that are run if it is to be quick: every statement that a queue has is in them."""


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        passed, failed, skipped: Tests.
        seconds: How long it took.
        failures: Names of the tests that failed.
        missing: Why it was not run.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Cell:
    """One run of the suite.

    Attributes:
        name: As in ``postgres 13``.
        server: Makes the DSN.
        python: Makes the interpreter to run it with.
        environment: Further variables.
    """

    name: str
    server: Callable[[], AbstractContextManager[str]] = embedded
    python: Callable[[], str] = lambda: sys.executable
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *, quick: bool, options: tuple[str, ...]) -> Outcome:
        """Run the suite."""
        began = time.monotonic()
        report = ROOT / "reports" / f"matrix-{self.name.replace(' ', '-')}.xml"
        report.parent.mkdir(exist_ok=True)
        report.unlink(missing_ok=True)
        suite = ROOT / "pqcore" / "testing" / "suite"
        where = [str(suite / f"test_{name}.py") for name in QUICK] if quick else [str(suite)]
        try:
            python = self.python()
            with self.server() as dsn:
                subprocess.run(
                    [python, "-m", "pytest", "-q", f"--junitxml={report}", *where, *options],
                    cwd=ROOT,
                    env={**os.environ, "PQCORE_TEST_DSN": dsn, **self.environment},
                    stdout=subprocess.DEVNULL,
                    check=False,
                )
        except Missing as exc:
            return Outcome(missing=str(exc))
        return _read(report, time.monotonic() - began)


def _read(report: Path, seconds: float) -> Outcome:
    if not report.exists():
        return Outcome(failed=1, seconds=seconds, failures=("pytest itself",))
    suite = next(ET.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    names = tuple(
        f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    )
    return Outcome(count["tests"] - failed - count["skipped"], failed, count["skipped"], seconds, names)


def _venv(name: str, python: str, *more: str) -> str:
    """The interpreter of an environment with pqcore and all that its suite needs; made once."""
    folder = CACHE / f"venv-{name}"
    interpreter = folder / "bin" / "python"
    if not (folder / "ready").exists():
        run(python, "-m", "venv", "--clear", str(folder))
        pip = (str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--editable", f"{ROOT}[all,testing]", *more)
        (folder / "ready").touch()
    return str(interpreter)


def _python(version: str) -> str:
    here = Path.home() / ".pyenv" / "versions"
    found = shutil.which(f"python{version}", path=os.pathsep.join(map(str, here.glob(f"{version}.*/bin"))))
    found = found or shutil.which(f"python{version}")
    if found is None:
        raise Missing(f"python{version} is not installed")
    return _venv(f"python{version}", found)


@contextmanager
def _container() -> Iterator[str]:
    from pqcore.testing.server import server

    image = os.environ.get("PQCORE_TEST_CONTAINER", f"postgres:{NEWEST}")
    run("docker", "info")
    os.environ["PQCORE_TEST_CONTAINER"] = image
    with server() as (dsn, _):
        yield dsn


CELLS = (
    *(Cell(f"postgres {major}", partial(embedded, major)) for major in range(13, NEWEST + 1)),
    Cell("pgbouncer session", partial(pgbouncer, "session")),
    Cell("pgbouncer transaction", partial(pgbouncer, "transaction"), environment={"PQCORE_TEST_PREPARED": "no"}),
    *(Cell(f"python {version}", python=partial(_python, version)) for version in PYTHONS),
    Cell("drivers lowest", python=lambda: _venv("lowest", sys.executable, *LOWEST)),
    Cell("container", _container),
)
