"""Workloads: what is measured, in which variants; the simple ones, and what all have in common."""

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
    """One number of a workload.

    Attributes:
        name: As the report has it.
        unit: Of what.
        better: Which way.
    """

    name: str
    unit: str
    better: Better = "higher"


RATE = Metric("rate", "/s")


@dataclass(frozen=True)
class Variant:
    """One way to run a workload.

    Attributes:
        label: What it is called; "" where there is one only.
        kind: Who is at work.
        number: How many of them.
        parameters: Of the workload's own.
    """

    label: str = ""
    kind: Kind = "one"
    number: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)


class Workload(Protocol):
    """Something that is measured.

    Attributes:
        name: As ``--scenario`` names it.
        title: What it is, on one line.
        metrics: What comes of it.
        rounds: How often each contender has its turn; None for as often as the scale says.
        sql: For pgbench, which runs the same: the statement of `pgbench.SCRIPTS`; "" if it cannot.
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
        """Its variants."""

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        """Whether a contender is measured at a variant; ``first`` is the first of all."""

    def prepare(self, bench: Bench, contender: Contender) -> Table:
        """What all turns share."""

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        """Have one turn."""


@dataclass(frozen=True)
class Options:
    """What the command line says of workloads.

    Attributes:
        scale: How much.
        together: Numbers of threads or tasks, beside one.
        processes: Numbers of processes, beside one.
        soak: Seconds of the soak, if not the scale's.
    """

    scale: Scale
    together: tuple[int, ...] = ()
    processes: tuple[int, ...] = ()
    soak: float | None = None


def crowds(options: Options) -> list[Variant]:
    """One consumer, and as many as the command line says."""
    found = [Variant()]
    found += [Variant(f"{number} threads or tasks", "together", number) for number in options.together]
    found += [Variant(f"{number} processes", "processes", number) for number in options.processes]
    return found


class Common:
    """What most workloads do."""

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
    """The same operation, again and again.

    Attributes:
        name, title, sql: As for `Workload`.
        act: What is done.
        parameters: Of the act, for a scale.
        backlog: How many jobs one call takes; 0 for one that takes none.
        keep: Whether finished rows are kept, as is the default; else they are deleted.
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
        """Of the `PQ`."""
        return {"retention": "keep"} if self.keep else {}


MANY = 100
"""Jobs that one statement takes, or leases."""


def _many(scale: Scale) -> dict[str, Any]:
    return {"size": MANY}


PLAIN: tuple[Plain, ...] = (
    Plain("put", "put one", actions.put, sql="put"),
    Plain("put_many", "put many at once", actions.put_many, lambda scale: {"size": scale.batch}),
    Plain("get", "get one", actions.get, backlog=1, sql="get"),
    Plain("get_keep", "get one, finished rows kept", actions.get, backlog=1, keep=True, sql="get_keep"),
    Plain(
        "transactional_get", "get one in a transaction", actions.get_in_transaction, backlog=1, sql="transactional_get"
    ),
    Plain("get_many", f"get {MANY} at once", actions.get_many, _many, backlog=MANY, sql="get_many"),
    Plain("lease_ack", f"lease {MANY} and acknowledge them", actions.lease_many, _many, backlog=MANY, sql="lease_ack"),
)


@dataclass(frozen=True)
class Scaling(Common):
    """More and more consumers, one job a commit."""

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
