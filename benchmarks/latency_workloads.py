"""Workloads that wait for jobs: how soon jobs are picked up, and how this develops in a long run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import actions
from .backends import Contender
from .load_generators import ClientReport, ClientRole, clock
from .measurement import Bench, Measurement, Table, observe
from .summary import percentile
from .workloads import Common, Metric, Options, Variant

IDLE = 50.0
"""The number of jobs per second that leaves a queue idle."""
PATIENCE = 30.0
"""Seconds without a job after which a consumer that expects one gives up."""
LATENCY = (Metric("p50", "ms", "lower"), Metric("p99", "ms", "lower"))


def latencies(reports: Sequence[ClientReport]) -> dict[str, float]:
    """Return p50 and p99 of the clients' times, in milliseconds."""
    times = [1000 * time for done in reports for time in done.times]
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}


def _pair(seconds: float, rate: float) -> list[ClientRole]:
    return [
        ClientRole(actions.consume, {"patience": PATIENCE}),
        ClientRole(actions.produce, {"seconds": seconds, "rate": rate}),
    ]


@dataclass(frozen=True)
class Pickup(Common):
    """The time from the call of put in one process to the return of get in another.

    Attributes:
        name: See `Workload`.
        title: See `Workload`.
        metrics: See `Workload`.
        capacity: The measured jobs per second through both processes, for each contender.
    """

    name: str = "pickup"
    title: str = "from put in one process to get in another, that waits"
    metrics: tuple[Metric, ...] = LATENCY
    capacity: dict[str, float] = field(default_factory=dict)

    def variants(self, options: Options) -> Sequence[Variant]:
        return [Variant("idle", parameters={"idle": True}), Variant("at half load", parameters={"idle": False})]

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        seconds = 4 * bench.scale.seconds
        rate = IDLE if variant.parameters["idle"] else 0.5 * self._capacity(bench, table, contender)
        parts = _pair(seconds, rate)
        turn = observe(table, lambda: bench.clients.work(contender, table.place, parts), latencies)
        turn.notes["rate (/s)"] = round(rate)
        return turn

    def _capacity(self, bench: Bench, table: Table, contender: Contender) -> float:
        if contender.label not in self.capacity:
            consumer, producer = bench.clients.work(contender, table.place, _pair(2 * bench.scale.seconds, 0.0))
            through = consumer.count / (consumer.ended - consumer.began)
            self.capacity[contender.label] = min(through, producer.count / (producer.ended - producer.began))
            table.empty()
        return self.capacity[contender.label]


@dataclass(frozen=True)
class Soak(Common):
    """A fixed rate for a long time: whether the table or an index grows, and whether jobs wait longer."""

    name: str = "soak"
    title: str = "put and get at a fixed rate, finished rows deleted"
    metrics: tuple[Metric, ...] = (
        *LATENCY,
        Metric("table", "MB at the end", "lower"),
        Metric("indexes", "MB at the end", "lower"),
    )
    rounds: int | None = 1

    def variants(self, options: Options) -> Sequence[Variant]:
        seconds = options.scale.soak if options.soak is None else options.soak
        return [Variant(f"{options.scale.pace:,.0f}/s for {seconds:g} s", parameters={"seconds": seconds})]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return options.scale.everywhere or contender == first

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        seconds = variant.parameters["seconds"]
        parts = _pair(seconds, bench.scale.pace)
        curve: dict[str, list[float]] = {name: [] for name in CURVE}

        def work() -> list[ClientReport]:
            bench.clients.begin(contender, table.place, parts)
            began = clock()
            while not bench.clients.over(len(parts), max(seconds / 600, 0.5)):
                _note(curve, clock() - began, table)
            _note(curve, clock() - began, table)
            return bench.clients.end(len(parts))

        def values(reports: Sequence[ClientReport]) -> dict[str, float]:
            return {**latencies(reports), "table": curve["table (MB)"][-1], "indexes": curve["indexes (MB)"][-1]}

        turn = observe(table, work, values)
        turn.curve.update(curve)
        return turn


CURVE = ("seconds", "table (MB)", "indexes (MB)", "dead rows")


def _note(curve: dict[str, list[float]], seconds: float, table: Table) -> None:
    size, indexes, dead = table.sizes()
    for name, value in zip(CURVE, (seconds, size / 1e6, indexes / 1e6, float(dead)), strict=True):
        curve[name].append(value)
