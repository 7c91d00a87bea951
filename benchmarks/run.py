"""A run: targets and workloads, over all contenders in alternation, and the resulting report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from statistics import median
from typing import Any, Protocol, TypeAlias

from pqcore.errors import ConfigurationError, PQError

from . import environment, load_generators, operations, pgbench, targets
from .admission_workloads import Limited, LimitedHorizon, OtherTenant, Shares
from .backends import Contender
from .concurrent_workloads import CONCURRENT
from .latency_workloads import Pickup, Soak
from .measurement import Bench, Measurement, Table, dropped, schema_name
from .memory_workloads import Memory
from .network_workloads import Network
from .observer import Observer, named
from .scale_workloads import FINISHED, LATER, Horizon, Priorities, Queues
from .summary import Figure, rounded
from .worker_workloads import Drain
from .workloads import PLAIN, Options, Scaling, Variant, Workload

FORMAT = 2
"""The version of the report's format."""
Broken: TypeAlias = dict[Contender, Exception]
"""Backends that could not connect or create a table, with their errors."""
TARGETS = "targets"
"""The name of the comparison with bare loops for ``--scenario``."""


def workloads() -> list[Workload]:
    """All workloads, in the order in which they are measured."""
    return [
        *PLAIN,
        Drain(),
        Pickup(),
        Queues(),
        Priorities(),
        LATER,
        FINISHED,
        Network(),
        Scaling(),
        *CONCURRENT,
        Horizon(),
        OtherTenant(),
        Limited(),
        LimitedHorizon(),
        Shares(),
        Memory(),
        Soak(),
    ]


def scenarios() -> dict[str, str]:
    """The values of ``--scenario``, with descriptions."""
    return {
        TARGETS: f"each operation compared with its driver in a bare loop; or one of them, as in {TARGETS}:put",
        **{workload.name: workload.title for workload in workloads()},
    }


class Listener(Protocol):
    """An observer of the progress."""

    def begin(self, title: str, steps: int) -> None:
        """A part with this number of steps begins."""

    def step(self, what: str) -> None:
        """The next step begins."""

    def end(self, part: str, rows: list[dict[str, Any]]) -> None:
        """The part has ended; its rows are in the report, under ``part``."""


@dataclass
class Cell:
    """The results of a contender for one variant of a workload.

    Attributes:
        label: The label of the contender, or pgbench.
        variant: The variant.
        contender: None for pgbench.
        turns: The results of the turns.
        error: The reason why there are no more turns.
    """

    label: str
    variant: Variant
    contender: Contender | None
    turns: list[Measurement] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Request:
    """The request for a run.

    Attributes:
        contenders: The backends.
        options: The options of the run.
        chosen: The names of scenarios; all, if empty.
        rounds: The number of rounds, if it differs from the scale's.
        dsn: The DSN of a server; None for an embedded one.
    """

    contenders: Sequence[Contender]
    options: Options
    chosen: Sequence[str] = ()
    rounds: int | None = None
    dsn: str | None = None

    def wants(self, name: str) -> bool:
        return not self.chosen or name in self.chosen

    def operations(self) -> list[str]:
        """Return the contenders that are compared with bare loops."""
        return [name for name in operations.OPERATIONS if self.wants(TARGETS) or f"{TARGETS}:{name}" in self.chosen]


def run(request: Request, listener: Listener) -> dict[str, Any]:
    """Run the benchmarks, and return the report.

    Raises:
        ConfigurationError: There is nothing to run, or no server.
    """
    single = {f"{TARGETS}:{name}" for name in operations.OPERATIONS}
    if unknown := sorted(set(request.chosen) - set(scenarios()) - single):
        msg = f"unknown scenario {', '.join(unknown)}; there are {', '.join(scenarios())}"
        raise ConfigurationError(msg)
    if not request.contenders:
        msg = "no backend has its driver installed: pip install 'pqcore[psycopg]'"
        raise ConfigurationError(msg)
    began = time.monotonic()
    started = datetime.now(timezone.utc)
    with environment.server(request.dsn) as (dsn, origin), _bench(request, dsn) as (bench, broken):
        tables = _tables(request, bench, broken)
        backends = [_about(contender, broken.get(contender)) for contender in request.contenders]
        request = replace(request, contenders=list(tables))
        report: dict[str, Any] = {
            "format": FORMAT,
            "scale": request.options.scale.name,
            "started": started.isoformat(timespec="seconds"),
            "environment": environment.describe(bench.server_observer, origin, request.contenders),
            "backends": backends,
        }
        report["doubts"] = environment.doubts(report["environment"])
        listener.end("environment", [report])
        report["targets"] = _targets(request, bench, tables, listener) if request.operations() else []
        report["workloads"] = []
        for workload in workloads():
            if request.wants(workload.name):
                report["workloads"] += _workload(request, bench, workload, listener)
    report["losses"] = bench.losses
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


@contextmanager
def _bench(request: Request, dsn: str) -> Iterator[tuple[Bench, Broken]]:
    """Yield a new schema, the objects to use it, and the backends that could not connect."""
    measured = named(dsn)
    load_generators.DRIVERS[:] = sorted({contender.spec.load.partition(":")[0] for contender in request.contenders})
    schema = schema_name(f"{os.getpid()}_{time.time_ns() % 10**9}")
    server_observer, broken = _observer(request.contenders, dsn)
    members = load_generators.ClientProcesses()
    try:
        yield Bench(dsn, measured, schema, server_observer, request.options.scale, members), broken
    finally:
        members.close()
        # this error would hide the one that is propagating, or an embedded server is ending now
        with suppress(PQError):
            dropped(server_observer, schema)
        with suppress(PQError):
            server_observer.close()


def _observer(contenders: Sequence[Contender], dsn: str) -> tuple[Observer, Broken]:
    """Open a connection that is not measured, over the first backend that can connect.

    Returns:
        The connection, and the backends that could not connect, with their errors.
    """
    broken: Broken = {}
    for contender in sorted(contenders, key=lambda each: not each.blocking):
        try:
            return Observer(contender, dsn), broken
        except Exception as exc:  # noqa: BLE001 - whatever one backend raises, the others are measured
            broken[contender] = exc
    raise _unusable(broken)


def _unusable(broken: Broken) -> PQError:
    """Return the error of a run in which no backend can be measured."""
    contender, error = next(iter(broken.items()))
    if isinstance(error, PQError):
        return error
    made = ConfigurationError(f"no backend can be measured: {contender.label}: {_reason(error)}")
    made.__cause__ = error
    return made


def _tables(request: Request, bench: Bench, broken: Broken) -> dict[Contender, Table]:
    """Let each backend create a table; a backend that cannot is counted as broken, and not measured."""
    made: dict[Contender, Table] = {}
    for contender in request.contenders:
        if contender in broken:
            continue
        try:
            made[contender] = bench.table(contender)
        except Exception as exc:  # noqa: BLE001 - whatever one backend raises, the others are measured
            broken[contender] = exc
    if not made:
        raise _unusable(broken)
    return made


def _about(contender: Contender, error: Exception | None) -> dict[str, Any]:
    spec = contender.spec
    about = {"label": contender.label, "name": spec.name, "mode": spec.mode, "class": spec.load}
    return about if error is None else {**about, "error": _reason(error)}


# Targets


def _targets(
    request: Request, bench: Bench, tables: Mapping[Contender, Table], listener: Listener
) -> list[dict[str, Any]]:
    chosen, found = request.contenders, []
    listener.begin("targets: pqcore compared with bare loops", len(chosen) * len(request.operations()))
    program = pgbench.find()
    for operation in request.operations():
        for contender in chosen:
            listener.step(f"{operations.OPERATIONS[operation].title}, {contender.label}")
            row: dict[str, Any]
            try:
                target = targets.compare(bench, contender, operation, tables[contender], program)
            except Exception as exc:  # noqa: BLE001 - whatever one backend raises, the others are measured
                row = {"backend": contender.label, "operation": operation, "error": _reason(exc)}
            else:
                row = target.as_json()
                _note_losses(bench, f"{contender.label}, {operation}", target.lost, target.twice)
            found.append(row)
    for table in tables.values():
        table.drop()
    listener.end(TARGETS, found)
    return found


# Workloads


def _workload(request: Request, bench: Bench, workload: Workload, listener: Listener) -> list[dict[str, Any]]:
    options, first = request.options, request.contenders[0]
    program = pgbench.find() if workload.sql else None
    cells = []
    for variant in workload.variants(options):
        fit = [each for each in request.contenders if workload.suits(each, first, variant, options)]
        if program and variant.kind == "one":
            cells.append(Cell(pgbench.LABEL, variant, None))
        cells += [Cell(each.label, variant, each) for each in fit]
    rounds = request.rounds or workload.rounds or options.scale.rounds
    listener.begin(f"{workload.name}: {workload.title}", rounds * len(cells) + 1)
    listener.step("preparing")
    table = workload.prepare(bench, first)
    for number in range(rounds):
        for cell in cells if number % 2 == 0 else cells[::-1]:  # so that no contender always follows the same one
            listener.step(f"round {number + 1} of {rounds}: {' '.join(filter(None, (cell.label, cell.variant.label)))}")
            if not cell.error:
                _turn(bench, workload, table, cell, program)
    table.drop()
    found = [_row(workload, cell, _reference(cells, cell)) for cell in cells]
    listener.end(workload.name, found)
    return found


def _turn(bench: Bench, workload: Workload, table: Table, cell: Cell, program: str | None) -> None:
    try:
        if cell.contender is not None:
            turn = workload.turn(bench, table, cell.contender, cell.variant)
        else:
            assert program is not None
            turn = pgbench.turn(program, bench, table, workload.sql)
    except Exception as exc:  # noqa: BLE001 - whatever one backend raises, the others are measured
        cell.error = _reason(exc)
        return
    cell.turns.append(turn)
    _note_losses(bench, f"{cell.label}, {workload.name} {cell.variant.label}".strip(), turn.lost, turn.twice)


def _note_losses(bench: Bench, where: str, lost: int, twice: int) -> None:
    if lost:
        bench.losses.append(f"{where}: {lost:,} jobs lost")
    if twice:
        bench.losses.append(f"{where}: {twice:,} jobs taken twice")


def _reference(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """Run pgbench with the same variant."""
    same = (other for other in cells if other.contender is None and other.variant == cell.variant and other.turns)
    return None if cell.contender is None else next(same, None)


def _row(workload: Workload, cell: Cell, reference: Cell | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scenario": workload.name,
        "title": workload.title,
        "backend": cell.label,
        "variant": cell.variant.label,
        "consumers": cell.variant.number,
        "kind": cell.variant.kind,
    }
    if cell.error:
        row["error"] = cell.error
    if not cell.turns:
        return row
    row["metrics"] = {
        metric.name: {
            "unit": metric.unit,
            "better": metric.better,
            **Figure.of([turn.values[metric.name] for turn in cell.turns]).as_json(),
        }
        for metric in workload.metrics
    }
    if reference is not None:
        pairs = zip(cell.turns, reference.turns, strict=False)
        shares = [turn.values["rate"] / other.values["rate"] for turn, other in pairs]
        row["of_pgbench"] = Figure.of(shares).as_json()
    counted: dict[str, Callable[[Measurement], float]] = {
        "wal_bytes": lambda turn: turn.wal,
        "commits": lambda turn: turn.commits,
        "dead_rows": lambda turn: turn.dead,
    }
    row["per_operation"] = {name: rounded(median(map(read, cell.turns))) for name, read in counted.items()}
    row["dead_rows_left"] = cell.turns[-1].left
    row["operations"] = sum(turn.count for turn in cell.turns)
    row["lost"] = sum(turn.lost for turn in cell.turns)
    row["taken_twice"] = sum(turn.twice for turn in cell.turns)
    if cell.turns[-1].curve:
        row["curve"] = {name: [rounded(each) for each in points] for name, points in cell.turns[-1].curve.items()}
    if cell.turns[-1].notes:
        row["notes"] = cell.turns[-1].notes
    return row


def _reason(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {str(exc).strip()}" if str(exc).strip() else type(exc).__name__
