"""The comparison of two builds with concurrent callers: ``pqcore bench --against BUILD --scenario concurrent``.

The other build has turns with several numbers of connections, and is judged at the best of them. This build uses the
default number of `PQ`. Each round gives one ratio: the median over its turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import environment
from .backends import Contender, contenders
from .builds import Build, BuildFailed, builds_of, interpreters, own_tables
from .concurrent_calls import CALLERS, CALLS
from .measurement import Table
from .presets import SCALES
from .run import Listener
from .summary import FEWEST, Figure
from .text_tables import Grid, number
from .verdicts import Failure, Verdict

CONCURRENT = "concurrent"
"""The scenario's name on the command line; ``concurrent:put`` is one operation of it."""
NAMES = (CONCURRENT, *(f"{CONCURRENT}:{name}" for name in CALLS))
CONNECTIONS = (1, 10, 20, 64)
"""Numbers of connections of the other build, which is judged at the best of them."""
ROUNDS = FEWEST
"""The default number of rounds."""
TURNS = 6
"""Turns of each side in a round."""
SECONDS = {"quick": 0.05, "default": 0.2, "full": 0.5}
"""The length of a turn of several callers in seconds, by scale."""
ALONE = 0.02
"""Seconds of a turn of one caller."""
COMMITS = 40
"""Rows that are inserted one by one in each round, to measure how long a commit takes."""
PUT, TAKEN = {"async": 10.0, "blocking": 5.0}, {"async": 5.0, "blocking": 3.0}
FEW = {"async": 2.0, "blocking": 1.3}


def target_of(operation: str, mode: str, callers: int) -> float:
    """Return how many times as fast as the other build this one must be.

    Args:
        operation: One of `CALLS`.
        mode: The backend's mode.
        callers: The number of callers.
    """
    if callers == 1:
        return 0.98
    if callers <= 8:
        return FEW[mode]
    return (PUT if operation == "put" else TAKEN)[mode]


@dataclass(frozen=True)
class Request:
    """The request for a comparison.

    Attributes:
        other: The path of the other build; see `compare_builds.Request`.
        backends: The names of backends; if empty, all that both builds have.
        operations: Some of `CALLS`.
        scale: The name of the scale.
        rounds: The number of rounds.
        dsn: The DSN of a server; None for an embedded one.
        callers: The numbers of callers.
    """

    other: Path
    backends: Sequence[str]
    operations: Sequence[str]
    scale: str
    rounds: int = ROUNDS
    dsn: str | None = None
    callers: Sequence[int] = CALLERS


@dataclass(frozen=True)
class Round:
    """The results of a round.

    Attributes:
        before, after: Jobs per second of the other build at its best, and of this one.
        ratio: How many times as fast this build was: the median over the turns.
        connections: The number of connections at which the other build was best.
        p50, p99: Seconds of a call, of the other build at its best and of this one.
    """

    before: float
    after: float
    ratio: float
    connections: int
    p50: tuple[float, float]
    p99: tuple[float, float]


@dataclass
class Cell:
    """The results of one operation over one backend with one number of callers.

    Attributes:
        backend, mode, operation, callers: The identity of the results.
        rounds: The results of the rounds.
        error: The reason why there are no more rounds.
        lost: The number of jobs that this build lost, or gave twice.
    """

    backend: str
    mode: str
    operation: str
    callers: int
    rounds: list[Round] = field(default_factory=list)
    error: str = ""
    lost: int = 0

    @property
    def name(self) -> str:
        return f"{self.backend}, {CONCURRENT} {self.operation} by {self.callers}"

    @property
    def target(self) -> float:
        return target_of(self.operation, self.mode, self.callers)

    def verdict(self) -> Verdict:
        """Return the verdict on the rate."""
        if self.error or not self.rounds:
            return "failed"
        return _verdict([found.ratio for found in self.rounds], self.target)

    def verdict_on_p99(self) -> Verdict:
        """Return the verdict on the slowest hundredth of calls, which is judged for large numbers of callers."""
        if self.error or not self.rounds:
            return "failed"
        if self.callers < max(CALLERS):
            return "not judged"
        return _verdict([found.p99[0] / found.p99[1] for found in self.rounds], 1.0)


def _verdict(ratios: Sequence[float], least: float) -> Verdict:
    ratio = Figure.of(ratios)
    if len(ratios) < FEWEST:
        return "undecided"
    if ratio.median >= least:
        return "pass"
    return "FALLS SHORT" if ratio.high < least else "undecided"


@dataclass
class Found:
    """The results of a comparison.

    Attributes:
        cells: All measurements.
        builds: The paths of the other build and of this one.
        commits: The seconds of a commit of one row, in each round.
        broken: What this build lacks.
    """

    cells: list[Cell]
    builds: list[str]
    commits: list[float]
    broken: list[Failure] = field(default_factory=list)

    def failures(self, *, judged: bool) -> list[Failure]:
        """Return what failed; with ``judged``, also what misses its target."""
        found = [*self.broken]
        for cell in self.cells:
            if cell.error:
                found.append(Failure(cell.name, f"{cell.name} failed: {cell.error}"))
            if cell.lost:
                found.append(Failure(cell.name, f"{cell.name} LOST: {cell.lost:,} jobs were lost, or came twice"))
            if judged and cell.verdict() == "FALLS SHORT":
                ratio = Figure.of([each.ratio for each in cell.rounds])
                said = f"{ratio.median:.2f} times the other build's rate (95 % interval up to {ratio.high:.2f})"
                found.append(Failure(cell.name, f"{cell.name} FALLS SHORT: {said}, target {cell.target:g}"))
            if judged and cell.verdict_on_p99() == "FALLS SHORT":
                found.append(Failure(cell.name, f"{cell.name} FALLS SHORT: its p99 is longer than the other build's"))
        return found


def compare(request: Request, listener: Listener) -> Found:
    """Measure two builds in one run.

    Raises:
        ConfigurationError: The path of the other build has no build.
        BuildFailed: A build's process ended.
    """
    commits: list[float] = []
    with environment.server(request.dsn) as (dsn, _), builds_of(interpreters(request.other)) as builds:
        both = [build.ask("backends", names=list(request.backends))["backends"] for build in builds]
        broken = [Failure(label, f"{label} is missing in this build") for label in both[0] if label not in both[1]]
        cells = []
        for label in (label for label in both[0] if label in both[1]):
            [contender] = [each for each in contenders() if each.label == label]
            cells += _backend(request, builds, contender, dsn, listener, commits)
        return Found(cells, [build.about["file"] for build in builds], commits, broken)


def _backend(
    request: Request, builds: Sequence[Build], contender: Contender, dsn: str, listener: Listener, commits: list[float]
) -> list[Cell]:
    """Measure everything over one backend."""
    cells = [
        Cell(contender.label, contender.mode, operation, callers)
        for operation in request.operations
        for callers in request.callers
    ]
    listener.begin(f"{contender.label}: two builds side by side, concurrent callers", request.rounds * len(cells))
    with own_tables(contender, dsn, len(builds)) as tables:
        for build, table in zip(builds, tables, strict=True):
            build.open(contender.label, table.place)
        for round_number in range(request.rounds):
            commits.append(commit_time(tables[0]))
            for cell in cells:
                listener.step(f"round {round_number + 1} of {request.rounds}: {cell.operation}, {cell.callers} callers")
                if not cell.error:
                    _round(builds, tables, cell, request.scale, round_number)
    return cells


def commit_time(table: Table) -> float:
    """Return the median seconds of a commit of one row, on the observer's connection."""
    server_observer, name = table.server_observer, f'"{table.place.schema}".commits'
    server_observer.do(f"CREATE TABLE IF NOT EXISTS {name} (n integer)")
    took = []
    for n in range(COMMITS):
        began = time.perf_counter()
        server_observer.do(f"INSERT INTO {name} VALUES ({n})")
        took.append(time.perf_counter() - began)
    return median(took)


class _Side:
    """The callers of one build, over one number of connections.

    Attributes:
        connections: The number of connections; None for the default.
        rates: Jobs per second, turn by turn.
    """

    def __init__(self, build: Build, crowd: int, connections: int | None, stock: _Jobs) -> None:
        self.connections = connections
        self.rates: list[float] = []
        self._build = build
        self._crowd = crowd
        self._stock = stock

    def turn(self, seconds: float, *, timed: bool = True) -> None:
        """Run a turn."""
        self._stock.prepare()
        done = self._build.ask("turn", crowd=self._crowd, seconds=seconds, timed=timed)
        self._stock.use(done["jobs"])
        if timed:
            self.rates.append(done["in_time"] / seconds)


class _Jobs:
    """The jobs of a table that concurrent callers put or take."""

    def __init__(self, table: Table, operation: str, backlog: int) -> None:
        self._table = table
        self._takes = operation != "put"
        self._backlog = backlog
        self._most = 0
        self._left = 0
        self._filled = 0
        table.empty()

    def prepare(self) -> None:
        """Make sure that there are more jobs than a turn takes."""
        if self._takes and self._left < 3 * self._most + self._backlog:
            more = max(self._backlog, 6 * self._most) * 2
            self._table.fill(more)
            self._left += more
            self._filled += more

    def use(self, number: int) -> None:
        """Record how many jobs a turn took."""
        self._most = max(self._most, number)
        self._left -= number

    def lost(self, jobs: Sequence[int]) -> int:
        """Return how many jobs were lost, or given twice, from the ids of all that were put or taken."""
        distinct, there = len(set(jobs)), self._table.count()
        wanted = self._filled - distinct if self._takes else distinct
        return abs(wanted - there) + len(jobs) - distinct


def _round(builds: Sequence[Build], tables: Sequence[Table], cell: Cell, scale: str, round_number: int) -> None:
    """Let both builds connect, their callers call in turns, and disconnect."""
    seconds = ALONE if cell.callers == 1 else SECONDS[scale]
    counts = [n for n in CONNECTIONS if n <= cell.callers]
    if counts[-1] < cell.callers:
        counts.append(next(n for n in CONNECTIONS if n > cell.callers))  # as many as can be used
    try:
        stocks = [_Jobs(table, cell.operation, SCALES[scale].backlog // 4) for table in tables]
        sides: list[_Side] = []
        for index, connections in [*((0, count) for count in counts), (1, None)]:
            builds[index].ask("gather", operation=cell.operation, callers=cell.callers, connections=connections)
            crowd = len(sides) if index == 0 else 0
            sides.append(_Side(builds[index], crowd, connections, stocks[index]))
        for side in sides:
            side.turn(max(seconds, 0.1), timed=False)  # this connects, and warms up
        for turn in range(TURNS):
            for side in sides if (turn + round_number) % 2 else sides[::-1]:
                side.turn(seconds)
        answers = [build.ask("disperse") for build in builds]
        lost = [stock.lost(answer["jobs"]) for stock, answer in zip(stocks, answers, strict=True)]
    except BuildFailed as exc:
        cell.error = str(exc)
        for build in builds:
            with suppress(BuildFailed):
                build.ask("disperse")
        return
    *others, ours = sides
    best = max(others, key=lambda side: median(side.rates))
    times = answers[0]["times"][others.index(best)], answers[1]["times"][0]
    cell.rounds.append(
        Round(
            median(best.rates),
            median(ours.rates),
            median(mine / max(theirs, 1e-9) for mine, theirs in zip(ours.rates, best.rates, strict=True)),
            best.connections or 0,
            (times[0][0], times[1][0]),
            (times[0][1], times[1][1]),
        )
    )
    cell.lost += lost[1]


def grid(found: Found, *, judged: bool) -> Grid:
    """Return the results of a comparison as a table of text."""
    took = 1000 * median(found.commits) if found.commits else 0.0
    made = Grid(
        f"concurrent callers; a commit of one row takes {took:.2f} ms",
        (
            *("operation", "callers", "backend", ">before", ">connections", ">p50, p99 ms", ">after", ">p50, p99 ms"),
            *(">ratio", ">95 %", ">target", "verdict", "p99"),
        ),
        [],
        spare=(">p50, p99 ms", ">95 %"),
    )
    for cell in found.cells:
        said, slowest = (cell.verdict(), cell.verdict_on_p99()) if judged else ("not judged", "not judged")
        bad = {"failed", "FALLS SHORT"} & {said, slowest}
        if bad or cell.lost:
            made.bad.add(len(made.rows))
        elif said == "pass":
            made.good.add(len(made.rows))
        made.rows.append((cell.operation, str(cell.callers), cell.backend, *_figures(cell), said, slowest))
    return made


def _figures(cell: Cell) -> tuple[str, ...]:
    if not cell.rounds:
        return ("", "", "", "", "", cell.error.partition("\n")[0], "", f"{cell.target:g}")
    rounds = cell.rounds
    ratio = Figure.of([found.ratio for found in rounds])
    numbers: Mapping[int, int] = {n: sum(found.connections == n for found in rounds) for n in CONNECTIONS}
    p50, p99 = (
        [1000 * median(getattr(found, name)[index] for found in rounds) for index in (0, 1)] for name in ("p50", "p99")
    )
    return (
        f"{number(median(found.before for found in rounds))}/s",
        str(max(numbers, key=lambda n: numbers[n])),
        f"{number(p50[0])}, {number(p99[0])}",
        f"{number(median(found.after for found in rounds))}/s",
        f"{number(p50[1])}, {number(p99[1])}",
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        f"{cell.target:g}",
    )
