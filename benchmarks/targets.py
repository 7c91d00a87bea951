"""Targets: each operation of pqcore over a backend beside the driver in a bare loop, slice by slice.

The two take turns of some milliseconds on one table, and what counts is the median of the
ratios of neighbouring turns, as what disturbs the machine then disturbs both.

pgbench runs the same statements before and after. It knows nothing of the backend, so a backend that is slow cannot
make this reference slow.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Any, TypeAlias

from pqcore.db.backend_adapter import BackendAdapter
from pqcore.errors import ConfigurationError
from pqcore.plugins import plugins
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName

from . import pgbench
from .backends import Contender, closed
from .baseline import BareLoop, loop_class, opened
from .measurement import Bench, Table
from .operations import MANY, OPERATIONS, PLACES, QUEUE, Call, awaited, calls, stepped
from .statements import Statements
from .stock import Stock
from .summary import FEWEST, Figure, rounded
from .worker_calls import drain, noop, per_job, put_calls

Slice: TypeAlias = Callable[[Call, int], Awaitable[float]]
Turns: TypeAlias = list[tuple[float, float | None]]
"""Seconds of a call through pqcore, and of one of the bare loop where there is one."""

TARGETS: Mapping[str, float] = {
    "put": 0.85,
    "get": 0.85,
    "transactional_get": 0.85,
    "put_many": 0.85,
    "get_many": 0.85,
    "lease_ack": 0.85,
    "worker": 0.25,
}
"""The least speed of an operation, as a share of a bare loop over the driver; see docs/benchmarks.md."""
SLICE = 0.008
"""Seconds of a turn, about."""
AHEAD = 3
"""Calls of a turn that are not timed, where they are short: after the other's turn nothing is warm."""
WARM = 12
"""Calls before those that count."""
CLOSE = 2.5
"""Times the seconds of a cell that it may take if the verdict is close."""


@dataclass(frozen=True)
class Target:
    """What came of a comparison.

    Attributes:
        backend: The contender's label.
        operation: By name.
        target: The least ratio to the bare loop.
        ours: Jobs per second through pqcore.
        bare: Jobs per second through the bare loop; None if the backend has none.
        ratio: How fast pqcore is, as a share of the bare loop; None likewise.
        how: What the bare loop is, in a few words; "" if there is none.
        lost, twice: Jobs.
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
        if self.pgbench is not None:
            row |= {"pgbench": rounded(self.pgbench), "of_pgbench": rounded(self.ours.median / self.pgbench)}
        return row


def _target(contender: Contender, operation: str, jobs: int, turns: Turns, how: str, lost: int, twice: int) -> Target:
    """Return what came of turns."""
    ours = [seconds for seconds, _ in turns]
    pairs = [(mine, theirs) for mine, theirs in turns if theirs is not None]
    return Target(
        contender.label,
        operation,
        targets_of(contender)[operation],
        Figure.of([jobs / seconds for seconds in ours]),
        Figure.of([jobs / theirs for _, theirs in pairs]) if pairs else None,
        Figure.of([theirs / mine for mine, theirs in pairs]) if pairs else None,
        how,
        lost,
        twice,
    )


def targets_of(contender: Contender) -> dict[str, float]:
    """Return what a backend is held to: `TARGETS`, and what its bare loop says instead (`BareLoop.targets`).

    Raises:
        ConfigurationError: The bare loop cannot be imported, or its targets are none.
    """
    kind = loop_class(contender)
    own = {} if kind is None else kind.targets
    if not isinstance(own, Mapping) or not all(_is_target(*each) for each in own.items()):
        msg = (
            f"backend {contender.name!r}: the targets of its bare loop are {own!r};"
            f" give numbers above 0 for {', '.join(TARGETS)}, as in {{'put': 0.8}}"
        )
        raise ConfigurationError(msg)
    return {name: float({**TARGETS, **own}[name]) for name in OPERATIONS}


def _is_target(operation: object, share: object) -> bool:
    return operation in TARGETS and isinstance(share, (int, float)) and share > 0


def compare(bench: Bench, contender: Contender, operation: str, table: Table, program: str | None) -> Target:
    """Compare pqcore with the bare loop and with pgbench.

    Args:
        bench: What turns have in common.
        contender: The backend.
        operation: A key of `OPERATIONS`.
        table: A table of the contender's own.
        program: Where pgbench is, if it is installed.
    """

    def yardstick() -> list[float]:
        if program is None:
            return []
        return [pgbench.turn(program, bench, table, OPERATIONS[operation].script).values["rate"]]

    rates = yardstick()
    if operation == "worker":
        target = asyncio.run(_worker(bench, contender, table))
    else:
        target = contender.run(lambda: PairedRun(bench, contender, operation, table).measure())
    rates += yardstick()
    return replace(target, pgbench=mean(rates) if rates else None)


class PairedRun:
    """Two sides, on one table.

    Attributes:
        taken: Ids of the jobs that pqcore took.
    """

    def __init__(self, bench: Bench, contender: Contender, operation: str, table: Table) -> None:
        self._bench = bench
        self._contender = contender
        self._name = operation
        self._operation = OPERATIONS[operation]
        self._table = table
        self._slice: Slice = stepped if contender.blocking else awaited
        self._jobs = self._operation.jobs
        self._ahead = AHEAD if self._jobs == 1 else 0
        self._target = targets_of(contender)[operation]
        self.taken: list[int] = []
        self._stock = Stock(table, operation, bench.scale.backlog)
        self._bare: BareLoop | None = None

    async def measure(self) -> Target:
        contender = self._contender
        self._table.empty()
        pq = contender.open(self._table.place)
        try:
            ours = calls(pq[QUEUE], self.taken, blocking=contender.blocking)[self._name]
            bare = self._bare = await self._beside(pq)
            if bare is not None and self._name == "put_many":
                await self._choose(bare)
            turns = await self._turns(ours, bare)
        finally:
            await closed(contender, pq)
        taken, how = self.taken, ""
        if bare is not None:
            taken = [*taken, *bare.taken]
            how = bare.how if self._name != "put_many" else f"{bare.how.partition(',')[0]}, {bare.chosen}"
        return _target(contender, self._name, self._jobs, turns, how, *self._losses(taken))

    async def _beside(self, pq: Any) -> BareLoop | None:
        """Return the bare loop, over the connection that pqcore has by then, and uses in its own turns."""
        from pqcore.db.sources import lent  # not in every build that `compare_builds` measures

        statements = Statements(self._table.place, self._contender.spec.paramstyle)
        made: BareLoop | None = await lent(
            pq.engine.source,
            lambda session: opened(self._contender, statements, MANY, session.driver),
        )
        return made

    async def _choose(self, bare: BareLoop) -> None:
        """Take the fastest of the driver's ways to put many."""
        times: dict[str, list[float]] = {way: [] for way in bare.bulk}
        for _ in range(6):
            for way, taken in times.items():
                bare.chosen = way
                taken.append(await self._turn(bare.put_many, 1))
        bare.chosen = min(times, key=lambda way: min(times[way][1:]))

    async def _turns(self, ours: Call, bare: BareLoop | None) -> Turns:
        """Return the seconds of a call in turns of the two, side by side; without a bare loop, of pqcore alone."""
        theirs: Call | None = None if bare is None else getattr(bare, self._name)
        sides = [call for call in (ours, theirs) if call is not None]
        await self._restock((self._ahead + WARM) * 4)
        warm = WARM if self._operation.jobs == 1 else 3
        times = [await self._turn(call, warm) / warm for _ in range(2) for call in sides]
        number = max(round(SLICE / min(times[len(sides) :])), 1)
        seconds = self._bench.scale.cell
        began = time.monotonic()
        turns: Turns = []
        while True:
            await self._restock(2 * (self._ahead + number))
            taken = {call: await self._turn(call, number) / number for call in sides[:: (-1) ** len(turns)]}
            turns.append((taken[ours], None if theirs is None else taken[theirs]))
            passed = time.monotonic() - began
            if len(turns) >= FEWEST and passed >= seconds and (passed >= CLOSE * seconds or self._clear(turns)):
                return turns

    def _clear(self, turns: Turns) -> bool:
        """Whether more turns would hardly change the verdict."""
        ratios = [theirs / ours for ours, theirs in turns if theirs is not None]
        if not ratios:
            return True
        ratio = Figure.of(ratios)
        return not ratio.low < self._target <= ratio.high

    async def _turn(self, call: Call, number: int) -> float:
        self._stock.use(self._ahead + number)
        bare = self._bare if getattr(call, "__self__", None) is self._bare else None
        if bare is not None:
            await self._made(bare.enter(self._name))
        await self._slice(call, self._ahead)
        seconds = await self._slice(call, number)
        if bare is not None:
            await self._made(bare.leave(self._name))
        return seconds

    async def _made(self, made: Any) -> None:
        if made is not None:
            await made

    async def _restock(self, calls: int) -> None:
        """See that there are jobs for so many calls, or room."""
        changed = self._stock.prepare(calls)
        self._bench.losses += [f"{self._contender.label}, {each}" for each in self._stock.take_missing()]
        # Both begin from the table as it is by now; pqcore's own connections do so every ten seconds.
        if changed and self._bare is not None:
            await self._made(self._bare.replan())

    def _losses(self, taken: list[int]) -> tuple[int, int]:
        lost, twice = self._stock.losses(taken)
        self._bench.losses += [f"{self._contender.label}, {each}" for each in self._stock.take_missing()]
        return lost, twice


# Workers


async def _worker(bench: Bench, contender: Contender, table: Table) -> Target:
    """Compare a worker that fetches nothing ahead with a bare loop that leases and acknowledges as many jobs.

    Each lease is a statement that the worker waits for. With jobs fetched ahead, slow statements would hide.
    """
    number = math.ceil(bench.scale.paired_run / PLACES) * PLACES
    table.empty()
    pq = contender.open(table.place)
    queue = pq[QUEUE]
    queue.task()(noop)
    taken: list[int] = []
    put: list[int] = []
    statements = Statements(table.place, contender.spec.paramstyle, PLACES)
    opener = BackendAdapter(
        partial(plugins.make, contender.spec),
        Dialect(TableName("queue"), contender.spec.paramstyle),
        suspends=not contender.blocking,
        prepared=True,
    )
    session: Any = None
    turns: Turns = []
    bare: BareLoop | None = None

    async def filled() -> None:
        put.extend(await put_calls(queue, noop, number))
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")

    async def worked() -> float:
        await filled()
        done = await drain(queue, concurrency=PLACES, prefetch=0)
        taken.extend(done.taken)
        return per_job(done, PLACES)

    async def leased(bare: BareLoop) -> float:
        await filled()
        seconds = await (stepped if contender.blocking else awaited)(bare.lease_ack, number // PLACES)
        return seconds / number

    try:
        session = opener.session(await opener.call("connect", bench.dsn))
        await session.enter()
        bare = await opened(contender, statements, MANY, session.driver)
        await worked()  # that was to warm up
        if bare is not None:
            await leased(bare)
        began = time.monotonic()
        while len(turns) < FEWEST or time.monotonic() - began < bench.scale.cell * WORKER_TARGET:
            first = await leased(bare) if bare is not None and len(turns) % 2 else None
            ours = await worked()
            theirs = await leased(bare) if bare is not None and first is None else first
            turns.append((ours, theirs))
    finally:
        if session is not None:
            await session.close()
        await closed(contender, pq)
    if bare is not None:
        taken += bare.taken
    distinct = len(set(taken))
    lost, twice = len(put) - distinct - table.count(), len(taken) - distinct
    return _target(contender, "worker", 1, turns, bare.how if bare is not None else "", lost, twice)


WORKER_TARGET = 1.5
"""Times the seconds of a cell that the worker's takes, of which the turns are long."""
