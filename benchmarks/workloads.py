"""Workloads and their variants: the simple ones, and the common parts of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from . import actions
from .backends import Contender
from .load_generators import Act, ClientRole, Kind
from .measurement import Bench, Measurement, Table, at_work, observe
from .presets import Scale

Better: TypeAlias = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A figure of a workload.

    Attributes:
        name: The name in the report.
        unit: The unit.
        better: Whether higher or lower is better.
    """

    name: str
    unit: str
    better: Better = "higher"


RATE = Metric("rate", "/s")


@dataclass(frozen=True)
class Variant:
    """One way to run a workload.

    Attributes:
        label: The label; "" if there is only one variant.
        kind: The kind of clients.
        number: The number of clients.
        parameters: The workload's own parameters.
    """

    label: str = ""
    kind: Kind = "one"
    number: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)


class Workload(Protocol):
    """A workload that is measured.

    Attributes:
        name: The name for ``--scenario``.
        title: A description on one line.
        metrics: The figures of the workload.
        rounds: How often each contender has its turn; None for the scale's number.
        sql: The statement of `pgbench.SCRIPTS` with which pgbench does the same; "" if it cannot.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def rounds(self) -> int | None: ...
    @property
    def sql(self) -> str: ...

    def variants(self, options: Options) -> Sequence[Variant]:
        """Return the variants of the workload."""

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        """Return whether a contender is measured at a variant; ``first`` is the first of all."""

    def prepare(self, bench: Bench, contender: Contender) -> Table:
        """Yield the objects that all turns share."""

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        """Run one turn."""


@dataclass(frozen=True)
class Options:
    """The options of workloads on the command line.

    Attributes:
        scale: The amount of measurement.
        together: Numbers of threads or tasks, in addition to one.
        processes: Numbers of processes, in addition to one.
        soak: The length of the soak test in seconds, if it differs from the scale's.
    """

    scale: Scale
    together: tuple[int, ...] = ()
    processes: tuple[int, ...] = ()
    soak: float | None = None


def crowds(options: Options) -> list[Variant]:
    """Return variants with one consumer, and with the numbers on the command line."""
    found = [Variant()]
    found += [Variant(f"{number} threads or tasks", "together", number) for number in options.together]
    found += [Variant(f"{number} processes", "processes", number) for number in options.processes]
    return found


class Common:
    """The common parts of most workloads."""

    metrics: tuple[Metric, ...] = (RATE,)
    rounds: int | None = None
    sql: str = ""

    def variants(self, options: Options) -> Sequence[Variant]:
        return [Variant()]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return True

    def prepare(self, bench: Bench, contender: Contender) -> Table:
        return bench.table(contender)


@dataclass(frozen=True)
class Plain(Common):
    """A workload that repeats one operation.

    Attributes:
        name, title, sql: See `Workload`.
        act: The action.
        parameters: The parameters of the action, for a scale.
        backlog: How many jobs one call takes; 0 for a call that takes none.
        keep: Whether finished rows are kept, as by default; otherwise they are deleted.
    """

    name: str
    title: str
    act: Act
    parameters: Callable[[Scale], dict[str, Any]] = lambda scale: {}
    backlog: int = 0
    sql: str = ""
    keep: bool = False

    def variants(self, options: Options) -> Sequence[Variant]:
        return crowds(options)

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        scale = bench.scale
        table.empty()
        most = scale.backlog * (1 if self.backlog == 1 else 10)
        filled = table.fill(most) if self.backlog else []
        part = ClientRole(self.act, {"seconds": scale.seconds, **self.parameters(scale)})
        work = at_work(bench, contender, table.place, variant.kind, variant.number, part, **self.options())
        return observe(table, work, filled=filled)

    def options(self) -> dict[str, Any]:
        """Return the options of the `PQ`."""
        return {"retention": "keep"} if self.keep else {}


MANY = 100
"""The number of jobs that one statement takes or leases."""


def _many(scale: Scale) -> dict[str, Any]:
    return {"size": MANY}


PLAIN: tuple[Plain, ...] = (
    Plain("put", "put one", actions.put, sql="put"),
    Plain("put_many", "put many with one call", actions.put_many, lambda scale: {"size": scale.batch}),
    Plain("get", "get one", actions.get, backlog=1, sql="get"),
    Plain("get_keep", "get one, finished rows kept", actions.get, backlog=1, keep=True, sql="get_keep"),
    Plain(
        "transactional_get", "get one in a transaction", actions.get_in_transaction, backlog=1, sql="transactional_get"
    ),
    Plain("get_many", f"get {MANY} with one call", actions.get_many, _many, backlog=MANY, sql="get_many"),
    Plain("lease_ack", f"lease {MANY} and acknowledge them", actions.lease_many, _many, backlog=MANY, sql="lease_ack"),
)


@dataclass(frozen=True)
class Scaling(Common):
    """Increasing numbers of consumers, with one job in each commit."""

    name: str = "scaling"
    title: str = "get one, by more and more consumers"
    rounds: int | None = None

    def variants(self, options: Options) -> Sequence[Variant]:
        found = []
        for number in options.scale.consumers:
            label = "one thread or task" if number == 1 else f"{number} threads or tasks"
            found.append(Variant(label, "together", number))
            if number > 1:
                found.append(Variant(f"{number} processes", "processes", number))
        return found

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        filled = table.fill(bench.scale.backlog * (1 if variant.number == 1 else 3))
        part = ClientRole(actions.get, {"seconds": bench.scale.seconds})
        return observe(table, at_work(bench, contender, table.place, variant.kind, variant.number, part), filled=filled)
