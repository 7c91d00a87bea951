"""The systems to measure: pqcore over each backend, and its peers, each in its own process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .environments import Environment, NotMeasured, prepare

PATIENCE = 90.0
"""Seconds that an answer may take."""


@dataclass(frozen=True)
class Contender:
    """A system over a driver.

    Attributes:
        title: The title in tables; a peer's version is added to it.
        module: The module in this package that runs it: a Python module, or a file for Node.
        arguments: The arguments of the module.
        environment: The requirements of a peer; None for pqcore, which uses this environment.
        slow: Whether the system is left out of short runs.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    environment: Environment | None = None
    slow: bool = False

    @property
    def ours(self) -> bool:
        return self.environment is None


_PSYCOPG = ("psycopg[binary]", "psycopg_pool")
_PQ = Environment("pq", ("pq==1.9.1",), ("psycopg2-binary",))
_PROCRASTINATE = Environment("procrastinate", ("procrastinate==3.10.0",), _PSYCOPG)
_PGQUEUER = Environment("pgqueuer", ("pgqueuer==1.6.0",), ("asyncpg", *_PSYCOPG))
_OBAN = Environment("oban", ("oban==0.7.0",), _PSYCOPG, python=(3, 12))
_CHANCY = Environment("chancy", ("chancy==0.26.0",), _PSYCOPG, python=(3, 11))
_PGMQ = Environment("pgmq", ("pgmq==1.1.4",), ("asyncpg", *_PSYCOPG))
_AWA = Environment("awa", ("awa-pg==0.6.9",))
_AKADZE = Environment("akadze", ("akadze==0.5.0",), ("asyncpg",), python=(3, 13))
_DBOS = Environment("dbos", ("dbos==3.4.0",), ("psycopg[binary]",))
_NODE = "node@22.23.3"
_PGBOSS = Environment("pg-boss", ("pg-boss@12.38.0", _NODE), node=True)
_GRAPHILE = Environment("graphile-worker", ("graphile-worker@0.18.0", _NODE), node=True)

OURS = tuple(
    Contender(f"pqcore, {driver}", "run_pqcore", (driver,))
    for driver in ("psycopg2", "psycopg", "psycopg-async", "asyncpg")
)
PEERS = (
    Contender("pq, psycopg2", "run_pq", (), _PQ),
    Contender("Procrastinate, psycopg", "run_procrastinate", (), _PROCRASTINATE),
    Contender("PgQueuer, asyncpg", "run_pgqueuer", ("asyncpg",), _PGQUEUER),
    Contender("PgQueuer, psycopg", "run_pgqueuer", ("psycopg",), _PGQUEUER, slow=True),
    Contender("Oban, psycopg", "run_oban", (), _OBAN),
    Contender("chancy, psycopg", "run_chancy", (), _CHANCY),
    Contender("PGMQ, asyncpg", "run_pgmq", ("asyncpg",), _PGMQ),
    Contender("PGMQ, psycopg", "run_pgmq", ("psycopg",), _PGMQ),
    Contender("awa, Rust", "run_awa", (), _AWA),
    Contender("akadze, asyncpg", "run_akadze", (), _AKADZE),
    Contender("DBOS, psycopg", "run_dbos", (), _DBOS),
    Contender("pg-boss, Node", "run_pgboss.mjs", (), _PGBOSS),
    Contender("Graphile Worker, Node", "run_graphile.mjs", (), _GRAPHILE),
)


class Lost(Exception):
    """A process ended, or does not answer."""


class Running:
    """The process of a system.

    Attributes:
        contender: The system.
        about: Its answer to the setup request.
    """

    def __init__(self, contender: Contender, process: asyncio.subprocess.Process, log: Path) -> None:
        self.contender = contender
        self.about: Mapping[str, Any] = {}
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, contender: Contender, python: str, dsn: str, log: Path) -> Running:
        """Start a system on a new, empty database.

        Raises:
            NotMeasured: The system does not start.
        """
        with log.open("wb") as errors:
            process = await _process(contender, python, errors)
        running = cls(contender, process, log)
        try:
            running.about = await running.ask({"do": "setup", "dsn": dsn})
        except Exception:
            await running.stop()
            raise
        return running

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to a request.

        Raises:
            NotMeasured: The system answered that it failed.
            Lost: The system did not answer.
        """
        if self._process.stdin is None or self._process.stdout is None or self._process.returncode is not None:
            raise Lost(f"its process ended: {self._last_words()}")
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        except asyncio.TimeoutError as error:
            await self.stop(at_once=True)
            raise Lost(f"no answer within {PATIENCE:.0f} s") from error
        except ConnectionError:  # it ended before the request
            line = b""
        if not line:
            await self.stop(at_once=True)
            raise Lost(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotMeasured(answer["error"])
        return answer

    async def stop(self, *, at_once: bool = False) -> None:
        """End the process."""
        process = self._process
        if process.returncode is None and not at_once and process.stdin is not None:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except asyncio.TimeoutError:
                at_once = True
        if process.returncode is None and at_once:
            process.kill()
        await process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


def _home() -> tuple[Path, str]:
    """Return the folder from which this package can be imported without being installed, and its name there."""
    folder, names = Path(__file__).parent, []
    while (folder / "__init__.py").exists():
        names.append(folder.name)
        folder = folder.parent
    return folder, ".".join(reversed(names))


async def _process(contender: Contender, python: str, errors: IO[bytes]) -> asyncio.subprocess.Process:
    root, package = _home()
    if contender.module.endswith(".mjs"):
        program = [str(Path(__file__).with_name(contender.module))]
    else:
        program = ["-m", f"{package}.{contender.module}"]
    return await asyncio.create_subprocess_exec(
        python,
        *program,
        *contender.arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        cwd=root,
        limit=2**24,
    )


def pythons(contenders: Sequence[Contender], folder: Path) -> dict[Contender, str | NotMeasured]:
    """Return the Python of each system, or why there is none; make environments, two concurrently."""
    environments = list({contender.environment for contender in contenders if contender.environment is not None})

    def made(environment: Environment) -> str | NotMeasured:
        try:
            return str(prepare(environment, folder))
        except NotMeasured as reason:
            return reason

    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(environments, threads.map(made, environments), strict=True))
    return {each: sys.executable if each.environment is None else found[each.environment] for each in contenders}
