"""The comparison of two builds of pqcore in one run, by `pqcore bench --against`.

Two runs minutes apart find the machine in different states. Here each build has its own process on one server, and both
run an operation in turns of some milliseconds. The order changes from turn to turn. In each round both connect again,
because the core on which a connection's server process runs matters. After every second round, both get new processes,
because the places of code and objects in a process's memory can make a build up to 6 % slower or faster. A round gives
one ratio: the median over its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import environment
from .backends import Contender, contenders
from .builds import Build, BuildFailed, Interpreter, builds_of, interpreters, own_tables, started
from .compare import Change, Comparison
from .measurement import Table
from .memory_workloads import Need, fill, lost, need_of, needs
from .operations import LIMITED, MEMORY, OF_BUILDS
from .presets import SCALES
from .run import Listener
from .stock import Stock
from .summary import Figure
from .targets import AHEAD
from .verdicts import Failure

ROUNDS = 20
"""The default number of rounds."""
TURNS = 12
"""Turns of each build in a round."""
SLICE = 0.02
"""The approximate length of a turn, in seconds."""
WORKER_TURNS = 4
"""Turns of each build in a round of a worker; they are long, because the worker must start."""
WORKER_CALLS = 25
"""The smallest number of calls in a worker's turn."""
LIMITED_TURNS = 2
"""Turns of each build in a round of jobs under a limit."""
LIMITED_JOBS = {"quick": 200, "default": 2_000, "full": 2_000}
"""The number of jobs in a turn of jobs under a limit, by scale."""
ROUNDS_OF_PROCESS = 2
"""The number of rounds after which both builds get new processes."""
MEMORY_ROUNDS = 3
"""The largest number of rounds for figures in MB, which hardly vary."""


@dataclass(frozen=True)
class Request:
    """The request for a comparison.

    Attributes:
        other: The path of the other build: a Python interpreter, a virtual environment, or a checkout.
        backends: The names of backends; if empty, all that both builds have.
        operations: Keys of `OF_BUILDS`, and `MEMORY`.
        scale: The name of the scale.
        rounds: How often each operation is measured.
        dsn: The DSN of a server; None for an embedded one.
    """

    other: Path
    backends: Sequence[str]
    operations: Sequence[str]
    scale: str
    rounds: int = ROUNDS
    dsn: str | None = None


@dataclass
class Cell:
    """The results of one operation over one backend.

    Attributes:
        backend, operation: The backend and the operation.
        unit: The unit of the figures: jobs per second, or MB of memory.
        rounds: The figures of the other build and of this one, and how many times better this one is.
        error: The reason why there are no more rounds.
        lost: The number of jobs that this build lost, or gave twice.
    """

    backend: str
    operation: str
    unit: str = "/s"
    rounds: list[tuple[float, float, float]] = field(default_factory=list)
    error: str = ""
    lost: int = 0


def compare(request: Request, listener: Listener) -> Comparison:
    """Measure two builds in one run.

    Raises:
        ConfigurationError: The path of the other build has no build.
        BuildFailed: A build's process ended.
    """
    pythons = interpreters(request.other)
    with builds_of(pythons) as builds:
        both = [build.ask("backends", names=list(request.backends))["backends"] for build in builds]
        before, after = (build.about["file"] for build in builds)
    with environment.server(request.dsn) as (dsn, _):
        broken = [Failure(label, f"{label} is missing in this build") for label in both[0] if label not in both[1]]
        cells = []
        for backend in (label for label in both[0] if label in both[1]):
            cells += _backend(request, pythons, backend, dsn, listener)
            if MEMORY in request.operations:
                cells += _memory(request, pythons, backend, dsn, listener)
    for cell in cells:
        name = f"{cell.backend}, {cell.operation}"
        if cell.error:
            broken.append(Failure(name, f"{name} failed: {cell.error}"))
        if cell.lost:
            broken.append(Failure(name, f"{name} LOST: {cell.lost:,} jobs were lost, or taken twice"))
    return Comparison(
        [_change(cell) for cell in cells if cell.rounds], [], [f"before: {before}", f"after: {after}"], broken
    )


@dataclass(frozen=True)
class _Side:
    """A build, and the table that it uses."""

    build: Build
    table: Table


def _backend(
    request: Request, pythons: Sequence[Interpreter], backend: str, dsn: str, listener: Listener
) -> list[Cell]:
    """Measure all operations over one backend."""
    cells = [Cell(backend, operation) for operation in request.operations if operation != MEMORY]
    if not cells:
        return []
    listener.begin(f"{backend}: two builds side by side", request.rounds * len(cells))
    [contender] = [each for each in contenders() if each.label == backend]
    with own_tables(contender, dsn, len(pythons)) as tables, ExitStack() as stack:
        sides: list[_Side] = []
        try:
            for number in range(request.rounds):
                if number % ROUNDS_OF_PROCESS == 0:
                    stack.close()
                    # The process that is started first can be faster, so the order changes.
                    order = 1 if number // ROUNDS_OF_PROCESS % 2 else -1
                    builds = stack.enter_context(builds_of(pythons[::order]))[::order]
                    sides = [_Side(build, table) for build, table in zip(builds, tables, strict=True)]
                    for side in sides:
                        side.build.open(backend, side.table.place)
                for cell in cells:
                    listener.step(f"round {number + 1} of {request.rounds}: {cell.operation}")
                    if not cell.error:
                        _round(sides, cell, number, request.scale)
        except BuildFailed as exc:
            for cell in cells:
                cell.error = cell.error or str(exc)
    return cells


def _memory(request: Request, pythons: Sequence[Interpreter], backend: str, dsn: str, listener: Listener) -> list[Cell]:
    """Measure the memory of both builds over one backend: a fresh process for each figure."""
    [contender] = [each for each in contenders() if each.label == backend]
    chosen = [need for need in needs(SCALES[request.scale]) if need.blocking or not contender.blocking]
    cells = [Cell(backend, f"{MEMORY}: {need.label}", "MB") for need in chosen]
    rounds = min(request.rounds, MEMORY_ROUNDS)
    listener.begin(f"{backend}: the memory of two builds", rounds * len(cells))
    with own_tables(contender, dsn, len(pythons)) as tables:
        for python, table in zip(pythons, tables, strict=True):
            with started(python) as build:
                build.open(backend, table.place)
        for number in range(rounds):
            for need, cell in zip(chosen, cells, strict=True):
                listener.step(f"round {number + 1} of {rounds}: {need.label}")
                with suppress(BuildFailed):
                    before, after = [
                        _over(python, contender, table, need, cell)
                        for python, table in zip(pythons, tables, strict=True)
                    ]
                    cell.rounds.append((before, after, before / after))
    return cells


def _over(python: Interpreter, contender: Contender, table: Table, need: Need, cell: Cell) -> float:
    """Return the largest memory, in MB, that a new process had above its initial memory."""
    try:
        fill(python, contender, table, need)
        with started(python) as build:
            found = need_of(build, contender, table, need)
    except BuildFailed as exc:
        cell.error = str(exc)
        raise
    cell.lost += lost(table, need, found["done"])
    return max(float(found["peak"] - found["base"]), 0.1)


class _Part:
    """The work of one build in a round."""

    def __init__(self, side: _Side, operation: str, backlog: int) -> None:
        self._build = side.build
        self._table = side.table
        jobs = OF_BUILDS[operation].jobs
        self._ahead = AHEAD if jobs == 1 else 0
        self._stock = None if operation in ("worker", LIMITED) else Stock(side.table, operation, backlog)
        side.table.empty()
        side.build.ask("begin", operation=operation)
        number = max(20 // jobs, 3)
        self.seconds = [self.slice(number) / number for _ in range(2)][1]

    def slice(self, number: int) -> float:
        """Return the seconds of some calls, for which there are enough jobs or room."""
        if self._stock is not None:
            self._stock.prepare(self._ahead + number)
            self._stock.use(self._ahead + number)
        return float(self._build.ask("slice", ahead=self._ahead, number=number)["seconds"])

    def end(self) -> int:
        """Disconnect the build; return how many jobs were lost, or given twice."""
        done = self._build.ask("end")
        if self._stock is not None:
            return sum(self._stock.losses(done["taken"])) + len(self._stock.take_missing())
        distinct = len(set(done["taken"]))
        return len(done["put"]) - distinct - self._table.count() + len(done["taken"]) - distinct


def _round(sides: Sequence[_Side], cell: Cell, number: int, scale: str) -> None:
    """Let both builds connect, run an operation in turns, and disconnect."""
    try:
        order = 1 if number % 2 else -1
        parts = [_Part(side, cell.operation, SCALES[scale].backlog) for side in sides[::order]][::order]
        turns, calls = _sizes(cell.operation, scale, max(part.seconds for part in parts))
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(turns):
            for side in (0, 1) if (turn + number) % 2 else (1, 0):
                times[side].append(parts[side].slice(calls) / calls)
        _, lost = (part.end() for part in parts)
    except BuildFailed as exc:
        cell.error = str(exc)
        return
    jobs = OF_BUILDS[cell.operation].jobs
    ratio = median(old / new for old, new in zip(*times, strict=True))
    cell.rounds.append((jobs / median(times[0]), jobs / median(times[1]), ratio))
    cell.lost += lost


def _sizes(operation: str, scale: str, seconds: float) -> tuple[int, int]:
    """Return the number of turns and the number of calls in each, for a given time of a call."""
    if operation == LIMITED:
        return LIMITED_TURNS, LIMITED_JOBS[scale] // OF_BUILDS[LIMITED].jobs
    turns, least = (WORKER_TURNS, WORKER_CALLS) if operation == "worker" else (TURNS, 1)
    return turns, max(round(SLICE / seconds), least)


def _change(cell: Cell) -> Change:
    old, new, ratios = zip(*cell.rounds, strict=True)
    ratio = Figure.of(ratios)
    return Change(
        "",
        cell.operation,
        cell.backend,
        "rate" if cell.unit == "/s" else "over",
        cell.unit,
        median(old),
        median(new),
        ratio.median,
        ratio.low,
        ratio.high,
        len(ratios),
        "the other build",
    )
