"""The results of a comparison with a bare loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from pqcore.testing.traffic import Traffic

from .backends import Contender
from .bounds import CPU, WIRE, targets_of
from .machine import Probe
from .operations import OPERATIONS
from .summary import Figure, rounded


@dataclass(frozen=True)
class Cost:
    """The mean cost of a call in a turn.

    Attributes:
        seconds: The wall time in seconds.
        cpu: The CPU time of this process in seconds.
    """

    seconds: float
    cpu: float


Turns: TypeAlias = list[tuple[Cost, Cost | None]]
"""The cost of a call through pqcore, and of one of the bare loop, if there is one."""


def least(passed: Sequence[Traffic]) -> Traffic:
    """Return the lowest traffic of each kind.

    Some calls make one more statement: a look at the lanes, at most every 20 ms, or DISCARD PLANS, every ten seconds.
    How often this happens depends on the machine's speed.
    """
    return Traffic(*(min(getattr(each, field.name) for each in passed) for field in fields(Traffic)))


@dataclass(frozen=True)
class Wire:
    """The traffic between a client and the server per call; for a worker, per job."""

    round_trips: float
    statements: float
    commits: float

    @classmethod
    def of(cls, passed: Traffic, calls: int = 1) -> Wire | None:
        """Return the traffic per call; None if none was seen, because connections bypass the proxy or are encrypted."""
        if not passed.statements:
            return None
        return cls(passed.round_trips / calls, passed.statements / calls, passed.commits / calls)

    def as_json(self) -> dict[str, float]:
        return {name: rounded(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Target:
    """The result of a comparison.

    Attributes:
        backend: The contender's label.
        operation: The name of the operation.
        target: The lowest allowed ratio to the bare loop.
        ours: Jobs per second through pqcore.
        bare: Jobs per second through the bare loop; None if the backend has none.
        ratio: The speed of pqcore as a share of the bare loop's; None if there is no bare loop.
        how: A short description of the bare loop; "" if there is none.
        lost, twice: Numbers of jobs. cpu, bare_cpu: Microseconds of CPU time of this process per job, through pqcore
        and through the bare loop.
        cpu_ratio: The first as a multiple of the second; None if there is no bare loop.
        wire, bare_wire: The traffic per call; None if it could not be counted.
        machine: The noisier of the two probes of the machine, before and after.
        pgbench: Jobs per second through pgbench; None if it is not installed.
    """

    backend: str
    operation: str
    target: float
    ours: Figure
    bare: Figure | None = None
    ratio: Figure | None = None
    how: str = ""
    lost: int = 0
    twice: int = 0
    cpu: Figure | None = None
    bare_cpu: Figure | None = None
    cpu_ratio: Figure | None = None
    wire: Wire | None = None
    bare_wire: Wire | None = None
    machine: Probe | None = None
    pgbench: float | None = None

    def as_json(self) -> dict[str, Any]:
        operation = OPERATIONS[self.operation]
        row: dict[str, Any] = {
            "backend": self.backend,
            "operation": self.operation,
            "title": operation.title,
            "target": self.target,
            "floor": operation.floor,
            "pqcore": self.ours.as_json(values=False),
            "how": self.how,
            "lost": self.lost,
            "twice": self.twice,
        }
        if self.bare is not None and self.ratio is not None:
            row |= {"bare": self.bare.as_json(values=False), "ratio": self.ratio.as_json()}
        if self.cpu is not None:
            row["cpu"] = self.cpu.as_json(values=False)
        if self.bare_cpu is not None and self.cpu_ratio is not None:
            row |= {
                "bare_cpu": self.bare_cpu.as_json(values=False),
                "cpu_ratio": self.cpu_ratio.as_json(),
                "cpu_bound": CPU[self.operation],
            }
        if self.wire is not None and self.bare_wire is not None:
            row["wire_bound"] = WIRE[self.operation]
        for name, wire in (("wire", self.wire), ("bare_wire", self.bare_wire)):
            if wire is not None:
                row[name] = wire.as_json()
        if self.machine is not None:
            row["machine"] = self.machine.as_json()
        if self.pgbench is not None:
            row |= {"pgbench": rounded(self.pgbench), "of_pgbench": rounded(self.ours.median / self.pgbench)}
        return row


def target_of(contender: Contender, operation: str, jobs: int, turns: Turns, how: str, lost: int, twice: int) -> Target:
    """Return the result of some turns."""
    ours = [cost for cost, _ in turns]
    pairs = [(mine, theirs) for mine, theirs in turns if theirs is not None]
    cpus = [(mine.cpu, theirs.cpu) for mine, theirs in pairs if mine.cpu > 0 and theirs.cpu > 0]
    return Target(
        contender.label,
        operation,
        targets_of(contender)[operation],
        Figure.of([jobs / cost.seconds for cost in ours]),
        Figure.of([jobs / theirs.seconds for _, theirs in pairs]) if pairs else None,
        Figure.of([theirs.seconds / mine.seconds for mine, theirs in pairs]) if pairs else None,
        how,
        lost,
        twice,
        Figure.of([cost.cpu / jobs * 1e6 for cost in ours]),
        Figure.of([theirs / jobs * 1e6 for _, theirs in cpus]) if cpus else None,
        Figure.of([mine / theirs for mine, theirs in cpus]) if cpus else None,
    )
