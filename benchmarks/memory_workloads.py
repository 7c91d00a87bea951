"""The memory that a process needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .backends import Contender
from .builds import Build, Interpreter, own_interpreter, started
from .measurement import Bench, Measurement, Table
from .memory_calls import SIZE
from .operations import MEMORY
from .presets import Scale
from .workloads import Common, Metric, Options, Variant


@dataclass(frozen=True)
class Need:
    """The work of one process.

    Attributes:
        operation: A key of `memory_calls.WORKS`.
        label: A description of the work.
        number: The number of jobs or queues.
        blocking: Whether blocking backends do it, too.
    """

    operation: str
    label: str
    number: int
    blocking: bool = True


def needs(scale: Scale) -> list[Need]:
    """Return the works to measure."""
    return [
        Need("put_many", f"put_many of {scale.held:,} from a generator", scale.held),
        Need("get_many", f"get_many of {scale.held:,}, 10,000 at a time", scale.held),
        Need("worker", f"a worker, {scale.large:,} jobs of {SIZE // 1_000} KB", scale.large),
        Need("wait", f"{scale.waited:,} queues waited on", scale.waited, blocking=False),
    ]


def need_of(build: Build, contender: Contender, table: Table, need: Need) -> dict[str, Any]:
    """Let the new process of a build run an operation once; return the result of `memory_calls.measured`."""
    place = table.place
    where = {"backend": contender.label, "dsn": place.dsn, "schema": place.schema, "table": place.table}
    return build.ask("memory", **where, operation=need.operation, number=need.number)


def fill(python: Interpreter, contender: Contender, table: Table, need: Need) -> None:
    """Empty the table, and fill it with the jobs to take; a separate process puts calls."""
    table.empty()
    if need.operation == "get_many":
        table.fill(need.number)
    elif need.operation == "worker":
        with started(python) as build:
            need_of(build, contender, table, Need("fill", "", need.number))


def lost(table: Table, need: Need, done: float) -> int:
    """Return the number of jobs that were lost."""
    left = 0 if need.operation == "wait" else table.count()
    return round(abs(need.number - done) + abs(left - (need.number if need.operation == "put_many" else 0)))


@dataclass(frozen=True)
class Memory(Common):
    """The largest memory of a new process above its initial memory."""

    name: str = MEMORY
    title: str = "the most memory of a process, over what it had when it was connected"
    metrics: tuple[Metric, ...] = (Metric("over", "MB", "lower"), Metric("peak", "MB", "lower"))
    rounds: int | None = 1

    def variants(self, options: Options) -> Sequence[Variant]:
        return [Variant(need.label, parameters={"need": need}) for need in needs(options.scale)]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return variant.parameters["need"].blocking or not contender.blocking

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        need: Need = variant.parameters["need"]
        python = own_interpreter()
        fill(python, contender, table, need)
        with started(python) as build:
            began = time.monotonic()
            found = need_of(build, contender, table, need)
            seconds = time.monotonic() - began
        missing = lost(table, need, found["done"])
        table.empty()
        values = {"over": found["peak"] - found["base"], "peak": found["peak"]}
        return Measurement(values, need.number, seconds, lost=missing)
