"""Workloads over many queues, over many rows, and while an old snapshot is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import actions
from .backends import Contender
from .load_generators import ClientReport, ClientRole, run_clients
from .measurement import Bench, Measurement, Table, at_work, observe
from .observer import Observer
from .operations import QUEUE
from .workloads import Common, Metric, Options, Variant, crowds


@dataclass(frozen=True)
class Queues(Common):
    """Many queues in one table."""

    name: str = "queues"
    title: str = "put one and get one, over many queues"

    def variants(self, options: Options) -> Sequence[Variant]:
        return [
            Variant(f"{number:,} queue{'s' if number > 1 else ''}", parameters={"queues": number})
            for number in options.scale.queues
        ]

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        number = variant.parameters["queues"]
        table.empty()
        filled = table.fill(max(number, bench.scale.backlog), queue=f"'{QUEUE}-' || n % {number}")
        part = ClientRole(actions.over_queues, {"seconds": bench.scale.seconds, "number": number})
        return observe(table, at_work(bench, contender, table.place, "one", 1, part), filled=filled)


@dataclass(frozen=True)
class Priorities(Common):
    """Jobs that are each wanted by a different time."""

    name: str = "priorities"
    title: str = "get one, of jobs that are each wanted by a time of their own"

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        filled = table.fill(bench.scale.backlog, "now() + random() * interval '1 day'", "expected_at")
        part = ClientRole(actions.get_in_order, {"seconds": bench.scale.seconds})
        return observe(table, at_work(bench, contender, table.place, "one", 1, part), filled=filled)


@dataclass(frozen=True)
class Amid(Common):
    """A queue among many rows that are not taken.

    Attributes:
        name, title: See `Workload`.
        rows: The name of the scale's attribute for their number.
        columns, values: The columns of these rows, and their values.
    """

    name: str
    title: str
    rows: str
    columns: str
    values: str

    def variants(self, options: Options) -> Sequence[Variant]:
        number = getattr(options.scale, self.rows)
        return [
            Variant(f"{number:,} rows{', ' if variant.label else ''}{variant.label}", variant.kind, variant.number)
            for variant in crowds(options)
        ]

    def prepare(self, bench: Bench, contender: Contender) -> Table:
        table = bench.table(contender)
        number = getattr(bench.scale, self.rows)
        for start in range(0, number, SLICE):
            table.fill(min(SLICE, number - start), self.values, self.columns)
        return table

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        due = "dequeued_at IS NULL AND schedule_at IS NULL"
        table.forget(due)
        filled = table.fill(bench.scale.backlog)
        part = ClientRole(actions.get, {"seconds": bench.scale.seconds})
        work = at_work(bench, contender, table.place, variant.kind, variant.number, part)
        return observe(table, work, filled=filled, which=f"AND {due}")


SLICE = 1_000_000
"""The number of rows in one statement of a put."""

LATER = Amid(
    "later",
    "get one, of a queue with many jobs scheduled for tomorrow",
    "later",
    "schedule_at",
    "now() + interval '1 day' + n * interval '1 ms'",
)
FINISHED = Amid(
    "finished",
    "get one, of a table with many finished rows",
    "finished",
    "dequeued_at, attempts",
    "now(), 1",
)


@dataclass(frozen=True)
class Horizon(Common):
    """Jobs that are taken one by one while a session holds an old snapshot, so that no dead row may be removed.

    The workload ends after a number of jobs or seconds: then ``taken`` is lower.
    """

    name: str = "horizon"
    title: str = "get one, while another session holds an old snapshot"
    metrics: tuple[Metric, ...] = (
        Metric("first", "/s"),
        Metric("last", "/s"),
        Metric("kept", "last / first"),
        Metric("taken", "jobs"),
    )
    rounds: int | None = 1

    def variants(self, options: Options) -> Sequence[Variant]:
        return [Variant(f"{options.scale.horizon:,} in a row")]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        # this depends on the server and the statement, not on the driver
        return options.scale.everywhere or contender == first

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        scale = bench.scale
        table.empty()
        filled = table.fill(scale.horizon + actions.WARM)
        every = max(scale.window // 5, 1)
        part = ClientRole(actions.get, {"seconds": scale.patience, "every": every})
        other = Observer(contender, bench.server)
        try:
            other.do("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.sql(f"SELECT count(*) FROM {table.name}")
            return observe(
                table,
                lambda: run_clients(contender, table.place, [part]),
                lambda reports: {**_ends(reports[0], scale.window), "taken": float(reports[0].count)},
                filled=filled,
                curve=lambda reports: _curve(reports[0]),
            )
        finally:
            other.close()


def _ends(done: ClientReport, window: int) -> dict[str, float]:
    """Return the speed of the first and the last takes."""
    marks = done.marks
    step = marks[1][1] if len(marks) > 1 else 1
    width = min(max(window // step, 1), max((len(marks) - 1) // 2, 1))
    if len(marks) < 3:  # too slow to distinguish the end from the beginning
        rate = done.count / (done.ended - done.began)
        return {"first": rate, "last": rate, "kept": 1.0}
    first = _speed(marks[0], marks[width])
    last = _speed(marks[-1 - width], marks[-1])
    return {"first": first, "last": last, "kept": last / first}


def _speed(one: tuple[float, int], other: tuple[float, int]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _curve(done: ClientReport) -> dict[str, list[float]]:
    pairs: list[tuple[Any, Any]] = list(zip(done.marks, done.marks[1:], strict=False))
    return {"taken": [float(after[1]) for _, after in pairs], "rate (/s)": [_speed(*pair) for pair in pairs]}
