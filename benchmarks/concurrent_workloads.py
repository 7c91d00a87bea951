"""Workloads of concurrent callers of one operation, over a `PQ`'s default number of connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import actions
from .backends import Contender
from .concurrent_calls import CALLERS
from .latency_workloads import LATENCY, latencies
from .load_generators import ClientReport, ClientRole
from .measurement import Bench, Measurement, Table, at_work, observe
from .workloads import RATE, Common, Metric, Options, Variant

CONNECTIONS = 10
"""The default of `PQ`."""


@dataclass(frozen=True)
class Concurrent(Common):
    """One operation with increasing numbers of callers in one process.

    Attributes:
        operation: One of `concurrent_calls.CALLS`.
        title, metrics: See `Workload`.
    """

    operation: str
    title: str
    metrics: tuple[Metric, ...] = (RATE, *LATENCY)

    @property
    def name(self) -> str:
        return f"concurrent_{self.operation}"

    def variants(self, options: Options) -> Sequence[Variant]:
        return [Variant("1 caller" if n == 1 else f"{n} callers", "together", n) for n in CALLERS]

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        seconds, callers = bench.scale.seconds, variant.number
        jobs = bench.scale.backlog * (1 if callers == 1 else 4)
        filled = [] if self.operation == "put" else table.fill(jobs)
        part = ClientRole(actions.one_by_one, {"seconds": seconds, "operation": self.operation})
        work = at_work(
            bench, contender, table.place, "together", callers, part, max_connections=min(CONNECTIONS, callers)
        )
        return observe(table, work, _figures, filled=filled)


def _figures(reports: Sequence[ClientReport]) -> dict[str, float]:
    took = max(done.ended for done in reports) - min(done.began for done in reports)
    return {"rate": sum(done.count for done in reports) / took, **latencies(reports)}


CONCURRENT = (
    Concurrent("put", "put one, by concurrent threads or tasks"),
    Concurrent("get", "get one, by concurrent threads or tasks"),
    Concurrent("lease", "lease one and acknowledge it, by concurrent threads or tasks"),
)
