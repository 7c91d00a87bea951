"""The run: all systems on one server, each in its own database, taking turns at each workload."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .environments import NotMeasured
from .runner import WORKLOADS, Workload
from .systems import Contender, Lost, Running, pythons

ONCE = {"horizon", "horizon_worker"}
"""Workloads that are measured once, while an old snapshot is held."""

SLICE = 0.02
"""Seconds after which the next system has its turn."""

SLOW = 4.0
"""Seconds; a slower workload is measured once."""

COMMITS = 40
"""Rows inserted one by one before each round, to measure how long a commit takes on this machine."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The amount of measurement.

    Attributes:
        rounds: The number of rounds.
        seconds: The approximate length of a measurement of a rate.
        samples: The number of samples of a latency.
        dead: How many jobs are put and taken under an old snapshot before the effect is measured.
        limit: The largest number of seconds, if limited; no round begins that would end later.
        workloads: The keys of the workloads.
    """

    rounds: int = 3
    seconds: float = 0.3
    samples: int = 20
    dead: int = 2_000
    limit: float | None = 270.0
    workloads: tuple[str, ...] = tuple(workload.key for workload in WORKLOADS)


@dataclass
class Cell:
    """The results of a system for a workload, round by round, or the reason why there are none."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None


Cells = dict[tuple[str, str], Cell]


async def run(dsn: str, contenders: Sequence[Contender], plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Measure, and return the report.

    Args:
        dsn: The DSN of the server, on which databases are made and dropped.
        contenders: The systems.
        plan: The amount of measurement.
        folder: The folder of the environments.
        say: A function that is called with messages about the progress.
    """
    say(f"environments are in {folder}")
    began = time.monotonic()
    found = await asyncio.to_thread(pythons, contenders, folder)
    with _databases(dsn, len(contenders) + 1) as (first, *others), tempfile.TemporaryDirectory() as logs:
        starting = [
            _start(contender, found[contender], database, Path(logs, f"{number}.log"))
            for number, (contender, database) in enumerate(zip(contenders, others, strict=True))
        ]
        started = await asyncio.gather(*starting)
        systems = [(system, database) for system, database in zip(started, others, strict=True)]
        running = [(system, database) for system, database in systems if isinstance(system, Running)]
        try:
            series = Series(running, plan, first, say, began)
            await series.run()
        finally:
            await asyncio.gather(*(system.stop() for system, _ in running))
        return {
            "environment": {**_environment(first), "commit_ms": statistics.median(series.commits)},
            "plan": {**asdict(plan), "rounds": series.rounds, "workloads": list(plan.workloads)},
            "seconds": time.monotonic() - began,
            "workloads": [asdict(workload) for workload in WORKLOADS if workload.key in plan.workloads],
            "systems": [_about(each, system) for each, system in zip(contenders, started, strict=True)],
            "figures": _figures(series),
        }


async def _start(contender: Contender, python: str | NotMeasured, dsn: str, log: Path) -> Running | NotMeasured:
    if isinstance(python, NotMeasured):
        return python
    try:
        return await Running.start(contender, python, dsn, log)
    except NotMeasured as reason:
        return reason
    except Lost as error:
        return NotMeasured(str(error))


@contextmanager
def _databases(dsn: str, number: int) -> Iterator[list[str]]:
    """Yield the addresses of new databases, in a form for all drivers; drop the databases afterwards."""
    names = [f"pqcore_peers_{os.getpid()}_{index}" for index in range(number)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        made = []
        try:
            for name in names:
                connection.execute(f"CREATE DATABASE {name}")
                made.append(name)
            yield [url(dsn, name) for name in names]
        finally:
            for name in made:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def url(dsn: str, database: str) -> str:
    """Return the address of another database on a server, as a URL that libpq, asyncpg and other drivers understand."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    user, password = parts.pop("user", ""), parts.pop("password", "")
    host, port = parts.pop("host", ""), parts.pop("port", "")
    parts.pop("dbname", None)
    if host.startswith("/"):  # the directory of a Unix socket
        parts["host"], host = host, ""
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    place = (f"{login}@" if login else "") + host + (f":{port}" if port else "")
    return f"postgresql://{place}/{quote(database, safe='')}" + (f"?{urlencode(parts)}" if parts else "")


@dataclass
class Turn:
    """One round of a system at a workload.

    Attributes:
        key: The workload.
        system: The system.
        cell: The results of the other rounds.
        found: The results of this round.
        wall: The seconds that the round took in all.
        goes_on: Whether there are more slices to measure.
        slices: Jobs per second, by slice.
        operations, spent: The sums over all slices; seconds.
    """

    key: str
    system: Running
    cell: Cell
    found: dict[str, Any] = field(default_factory=dict)
    wall: float = 0.0
    goes_on: bool = False
    slices: list[float] = field(default_factory=list)
    operations: int = 0
    spent: float = 0.0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record the time, and a failure, which then raises no error."""
        began = time.monotonic()
        try:
            yield
        except (NotMeasured, Lost) as reason:
            self.cell.failed = str(reason)
            self.goes_on = False
        self.wall += time.monotonic() - began

    async def measure(self, seconds: float, samples: int) -> None:
        """Measure the workload in one piece."""
        request = {"do": "measure", "workload": self.key, "seconds": seconds, "samples": samples}
        self.found = await self.system.ask(request)

    async def begin(self, seconds: float) -> None:
        """Begin a workload that is measured in slices; this is not timed."""
        try:
            await self.system.ask({"do": "begin", "workload": self.key, "seconds": seconds})
            self.goes_on = True
        except (NotMeasured, Lost) as reason:
            self.cell.failed = str(reason)

    async def slice(self) -> None:
        """Measure a slice."""
        found = await self.system.ask({"do": "slice", "seconds": SLICE})
        if found["operations"]:
            self.slices.append(found["operations"] / found["seconds"])
        self.operations += found["operations"]
        self.spent += max(found["seconds"], SLICE)

    async def end(self) -> None:
        """End a workload that is measured in slices; this is not timed."""
        if not self.goes_on:
            return
        try:
            ended = await self.system.ask({"do": "end"})
        except (NotMeasured, Lost) as reason:
            self.cell.failed = str(reason)
            return
        if not self.slices:
            self.cell.failed = "there was no job to take"
            return
        figure = statistics.median(self.slices)
        self.found = {"figure": figure, "operations": self.operations, "slices": self.slices, **ended}


async def _in_slices(turns: Sequence[Turn], seconds: float) -> None:
    await asyncio.gather(*(turn.begin(seconds) for turn in turns))
    for _ in range(math.ceil(seconds / SLICE)):
        for turn in turns:
            if turn.goes_on and turn.spent < seconds:
                with turn.noted():
                    await turn.slice()
    await asyncio.gather(*(turn.end() for turn in turns))


class Series:
    """The rounds.

    Attributes:
        cells: The results, by system and workload.
        commits: The milliseconds of a commit, by round.
        rounds: The number of rounds.
    """

    def __init__(
        self, systems: Sequence[tuple[Running, str]], plan: Plan, database: str, say: Say, began: float
    ) -> None:
        self.cells: Cells = {}
        self.commits: list[float] = []
        self.rounds = 0
        self._systems = systems
        self._plan = plan
        self._database = database
        self._say = say
        self._began = began

    async def run(self) -> None:
        """Warm up, and measure round after round while there is time."""
        self._say("warming up")
        every = [workload for workload in self._workloads() if workload.key not in ONCE]
        for workload in every:
            await self._take_turns(workload, self._systems, warm=True)
        if len(every) < len(self._workloads()):
            self._say("beside an old snapshot")
            await self._beside_an_old_snapshot()
        for number in range(self._plan.rounds):
            began = time.monotonic()
            self._say(f"round {number + 1} of {self._plan.rounds}")
            self.commits.append(self._commit())
            for workload in every:
                await self._take_turns(workload, _turned(self._systems, number), warm=False)
            self.rounds += 1
            now = time.monotonic()
            expected = now - self._began + (now - began)
            limit = self._plan.limit
            if limit is not None and expected > limit and number + 1 < self._plan.rounds:
                self._say("no time for more")
                return

    def _workloads(self) -> list[Workload]:
        return [workload for workload in WORKLOADS if workload.key in self._plan.workloads]

    async def _take_turns(self, workload: Workload, systems: Sequence[tuple[Running, str]], *, warm: bool) -> None:
        turns = [turn for system, _ in systems if (turn := self._turn(workload, system)) is not None]
        seconds = self._plan.seconds / 2 if warm else self._plan.seconds
        if workload.sliced:
            await _in_slices(turns, seconds)
        else:
            for turn in turns:
                with turn.noted():
                    await turn.measure(seconds, 3 if warm else self._plan.samples)
        for turn in turns:
            if turn.cell.failed is not None:
                self._say(f"{turn.system.contender.title}: {workload.title}: {turn.cell.failed}")
            elif turn.found and (not warm or turn.wall > SLOW):
                turn.cell.rounds.append({**turn.found, "wall": turn.wall})

    async def _beside_an_old_snapshot(self) -> None:
        """Let all systems make dead rows concurrently, untimed; then measure."""
        workloads = [workload for workload in self._workloads() if workload.key in ONCE]
        systems = [each for each in self._systems if ONCE & set(each[0].about["how"])]

        async def age(system: Running) -> None:
            try:
                await system.ask({"do": "age", "jobs": self._plan.dead})
            except (NotMeasured, Lost) as reason:
                for workload in workloads:
                    self.cells[system.contender.title, workload.key] = Cell(failed=str(reason))

        with ExitStack() as snapshots:
            for _, database in systems:
                snapshots.enter_context(_old_snapshot(database))
            await asyncio.gather(*(age(system) for system, _ in systems))
            for workload in workloads:
                await self._take_turns(workload, systems, warm=False)

    def _turn(self, workload: Workload, system: Running) -> Turn | None:
        """Return a turn of a system that has the workload; None if it has failed before, or takes too long."""
        if workload.key not in system.about["how"]:
            return None
        cell = self.cells.setdefault((system.contender.title, workload.key), Cell())
        if cell.failed is not None or any(found["wall"] > SLOW for found in cell.rounds):
            return None
        return Turn(workload.key, system, cell)

    def _commit(self) -> float:
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS commits (n integer)")
            took = []
            for number in range(COMMITS):
                began = time.perf_counter()
                connection.execute("INSERT INTO commits VALUES (%s)", [number])
                took.append(1_000 * (time.perf_counter() - began))
        return statistics.median(took)


def _turned(systems: Sequence[tuple[Running, str]], number: int) -> list[tuple[Running, str]]:
    """Yield the systems in a different order in each round: forwards, backwards, and from another start."""
    middle = (number // 2) * len(systems) // 3 % max(1, len(systems))
    order = [*systems[middle:], *systems[:middle]]
    return order[::-1] if number % 2 else order


@contextmanager
def _old_snapshot(database: str) -> Iterator[None]:
    """Hold a session that stays idle in a transaction."""
    with psycopg.connect(database) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT FROM pg_class LIMIT 1")
        yield


# The report


def _environment(database: str) -> dict[str, Any]:
    with psycopg.connect(database) as connection:
        settings = {}
        for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers"):
            [settings[name]] = connection.execute(f"SHOW {name}").fetchone() or [""]
    return {
        "server": settings,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _about(contender: Contender, system: Running | NotMeasured) -> dict[str, Any]:
    about: dict[str, Any] = {"title": contender.title, "ours": contender.ours, "not_measured": None}
    if isinstance(system, NotMeasured):
        return {**about, "not_measured": str(system)}
    return {**about, **system.about}


def _figures(series: Series) -> dict[str, dict[str, Any]]:
    """Return, by workload and system, the median of all slices or rounds, with the lowest and the highest round."""
    units = {workload.key: workload.unit for workload in WORKLOADS}
    figures: dict[str, dict[str, Any]] = {}
    for (title, key), cell in series.cells.items():
        figures.setdefault(key, {})[title] = _summary(cell, units[key])
    return figures


def _summary(cell: Cell, unit: str) -> dict[str, Any]:
    found: dict[str, Any] = {"failed": cell.failed, "rounds": cell.rounds}
    if not cell.rounds:
        return found
    each = [one["figure"] for one in cell.rounds]
    parts = [part for one in cell.rounds for part in one.get("slices", [one["figure"]])]
    found |= {"figure": statistics.median(parts), "least": min(each), "most": max(each)}
    found |= {name: sum(one[name] for one in cell.rounds) for name in ("operations", "lost", "repeated")}
    if unit == "ms":
        samples = sorted(sample for one in cell.rounds for sample in one["latencies"])
        found |= {"figure": statistics.median(samples), "p95": samples[int(0.95 * len(samples))]}
    return found


def trouble(report: Mapping[str, Any]) -> list[str]:
    """Return the jobs that were lost, or taken twice, in words."""
    return [
        f"{title}, {key}: {found[what]} jobs {what}"
        for key, systems in report["figures"].items()
        for title, found in systems.items()
        for what in ("lost", "repeated")
        if found.get(what)
    ]
