"""The cells of the matrix: each has a part of the suite, a Python and a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psycopg

from . import pythons
from .cache import Missing, run
from .outcomes import FOLDER, Outcome, now, revision
from .proxies import BEHIND, haproxy, pgpool
from .servers import (
    NEWEST,
    PATIENCE,
    PGLITE,
    ROOT,
    citus,
    container,
    embedded,
    installed,
    installed_pgbouncer,
    newest_pgbouncer,
    pgbouncer,
    pglite,
)

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t")
QUICK = ("basics", "order", "transactions", "bulk", "leases", "dedup", "serializers", "schema", "names", "prepared")
"""Modules of the suite for a quick run: every statement that a queue has is in them."""
SHORT = ("basics", "isolation", "leases", "schema", "transactions", "worker")
"""Modules of the suite for a short run: those in which other servers and drivers made most tests fail."""
MODULES = {"queues": QUICK, "short": SHORT}
SHORT_CELLS = {
    "postgres 13": "psycopg2",
    "pgbouncer transaction": "asyncpg",
    "settings serializable": "psycopg",
    "partitions": "psycopg",
    "drivers lowest": "asyncpg",
}
"""The cells of the short matrix, each with its backend."""
_PREPARED = {"PQCORE_TEST_PREPARED": "yes"}


@dataclass(frozen=True)
class Cell:
    """One run of the suite.

    Attributes:
        name: The name, as in ``postgres 13``.
        server: A function that makes the DSN.
        python: A function that makes the interpreter to run the suite with.
        environment: Further variables.
        between: A function that names the pooler between the suite and the server, with its version.
        module: The module of this folder whose tests run instead of the suite.
    """

    name: str
    server: Callable[[], AbstractContextManager[str]] = embedded
    python: Callable[[], str] = lambda: sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    between: Callable[[], str] = lambda: ""
    module: str = ""

    def run(self, part: str, backends: tuple[str, ...]) -> Outcome:
        """Run a part of the suite; keep its output with the outcome."""
        outcome = Outcome(self.name, part, backends, now(), revision())
        base = FOLDER / outcome.key
        base.parent.mkdir(parents=True, exist_ok=True)
        report = base.with_name(f"{base.name}.xml")
        report.unlink(missing_ok=True)
        suite = ROOT / "pqcore" / "testing" / "suite"
        if self.module:
            where = [str(ROOT / "tests" / "matrix" / f"{self.module}.py")]
        else:
            where = [str(suite / f"test_{name}.py") for name in MODULES[part]] if part in MODULES else [str(suite)]
        options = [
            f"--junitxml={report}",
            f"--pqcore-report={base}.report",
            *(f"--pqcore-backend={b}" for b in backends),
        ]
        began = time.monotonic()
        try:
            interpreter = self.python()
            outcome.python, *outcome.drivers = pythons.versions(interpreter)
            with self.server() as dsn, base.with_name(f"{base.name}.log").open("wb") as log:
                outcome.server = " behind ".join(filter(None, (_version(dsn), self.between())))
                subprocess.run(
                    [interpreter, "-m", "pytest", "-v", "--tb=short", *options, *where],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "PQCORE_TEST_DSN": dsn, **self.environment},
                    stdout=log,
                    stderr=log,
                    check=False,
                )
        except Missing as exc:
            outcome.missing = str(exc)
        else:
            _read(report, outcome)
        outcome.seconds = round(time.monotonic() - began)
        return outcome


def _version(dsn: str) -> str:
    with _connected(dsn) as connection:
        [number] = connection.execute("SELECT split_part(current_setting('server_version'), ' ', 1)").fetchone() or [""]
    return f"PostgreSQL {number}"


def _connected(dsn: str) -> psycopg.Connection[Any]:
    """Connect as soon as the server has room: it may still count the connection that found it started."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return psycopg.connect(dsn, prepare_threshold=None)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _read(report: Path, outcome: Outcome) -> None:
    if not report.exists():
        outcome.failed, outcome.failures = 1, ["pytest itself: see its log"]
        return
    suite = next(ET.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    outcome.failed, outcome.skipped = count["failures"] + count["errors"], count["skipped"]
    outcome.passed = count["tests"] - outcome.failed - outcome.skipped
    reasons: Counter[str] = Counter()
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failures.append(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}")
        for skipped in case.iter("skipped"):
            reasons[skipped.get("message", "")] += 1
    outcome.reasons = dict(reasons.most_common())


def _pooler(program: Callable[[], Path], mode: str) -> str:
    return f"{run(str(program()), '--version').splitlines()[0]}, {mode} mode"


def _behind(mode: str, *, newest: bool) -> Cell:
    # Its mode is session, so the suite need not take it for one that shares its connections.
    environment = _PREPARED if mode == "session" else {}
    program = newest_pgbouncer if newest else installed_pgbouncer
    return Cell(
        f"pgbouncer{' newest' if newest else ''} {mode}",
        partial(pgbouncer, mode, newest=newest),
        environment=environment,
        between=partial(_pooler, program, mode),
    )


def _pglite() -> str:
    engine, socket_server = PGLITE.values()
    return f"the socket server {socket_server} of PGlite {engine}"


def _pgpool() -> str:
    told = subprocess.run([str(installed("pgpool")), "--version"], check=True, capture_output=True, text=True)
    return f"Pgpool-II {(told.stdout + told.stderr).split()[-2]}, a standby {BEHIND} behind"


def _haproxy() -> str:
    return f"HAProxy {run(str(installed('haproxy')), '-v').split()[2]}"


CELLS = (
    *(Cell(f"postgres {major}", partial(embedded, major)) for major in range(13, NEWEST + 1)),
    *(_behind(mode, newest=newest) for newest in (False, True) for mode in ("session", "transaction")),
    *(Cell(f"python {version}", python=partial(pythons.python, version)) for version in PYTHONS),
    Cell("drivers lowest", python=pythons.lowest),
    Cell("drivers newest", python=pythons.newest),
    # The suite looks at the server from a second connection, for which PGlite has no room.
    Cell("pglite", pglite, between=_pglite, module="one_client"),
    Cell("pgpool", pgpool, between=_pgpool, module="behind_proxy"),
    Cell("pgpool prepared", pgpool, environment=_PREPARED, between=_pgpool, module="behind_proxy"),
    Cell("haproxy", haproxy, between=_haproxy, module="behind_proxy"),
    Cell("haproxy promotion", haproxy, between=_haproxy, module="promotion"),
    Cell("citus", citus, environment={"PQCORE_DIALECT": "citus"}, between=lambda: "Citus, with two workers"),
    Cell("container", container, between=lambda: "testcontainers"),
)
