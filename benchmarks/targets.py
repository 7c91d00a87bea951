"""Targets: each operation of pqcore over a backend, compared with the driver in a bare loop, slice by slice.

The two take turns of some milliseconds on one table. The median of the ratios of neighbouring turns counts, because a
disturbance of the machine affects both. The wall time and the CPU time of this process are measured for each turn. The
traffic on the wire is counted afterwards, through a proxy.

pgbench runs the same statements before and after. It does not depend on the backend, so a slow backend cannot slow this
reference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from statistics import mean
from typing import Any, TypeAlias

from pqcore.db.sources import lent
from pqcore.testing.proxy import Proxy

from . import pgbench
from .backends import Contender, closed
from .baseline import BareLoop, opened
from .bounds import targets_of
from .machine import probe, worse
from .measurement import Bench, Table
from .operations import MANY, OPERATIONS, QUEUE, Call, awaited, calls, stepped
from .statements import Statements
from .stock import Stock
from .summary import FEWEST, Figure
from .target_results import Cost, Target, Turns, Wire, least, target_of
from .worker_target import compare_worker

Slice: TypeAlias = Callable[[Call, int], Awaitable[float]]


COUNTED = {1: 30, MANY: 20}
"""The number of calls whose traffic is counted, by the jobs of a call."""
SLICE = 0.008
"""The approximate length of a turn, in seconds."""
AHEAD = 3
"""Untimed calls at the beginning of a turn of short calls, because the caches are cold after the other's turn."""
WARM = 12
"""The number of calls before those that count."""
CLOSE = 2.5
"""How many times a cell's seconds a comparison may take if the verdict is close."""


def compare(bench: Bench, contender: Contender, operation: str, table: Table, program: str | None) -> Target:
    """Compare pqcore with the bare loop and with pgbench.

    Args:
        bench: The common objects of all turns.
        contender: The backend.
        operation: A key of `OPERATIONS`.
        table: A table of the contender.
        program: The path of pgbench, if it is installed.
    """

    def yardstick() -> list[float]:
        if program is None:
            return []
        return [pgbench.turn(program, bench, table, OPERATIONS[operation].script).values["rate"]]

    before = probe(bench.server_observer)
    rates = yardstick()
    if operation == "worker":
        target = asyncio.run(compare_worker(bench, contender, table))
    else:
        target = contender.run(lambda: PairedRun(bench, contender, operation, table).measure())
    rates += yardstick()
    found = worse(before, probe(bench.server_observer))
    return replace(target, pgbench=mean(rates) if rates else None, machine=found)


async def beside(contender: Contender, table: Table, pq: Any) -> BareLoop | None:
    """Return the bare loop of a backend, over the connection that pqcore now has and uses in its own turns."""
    statements = Statements(table.place, contender.spec.paramstyle)
    made: BareLoop | None = await lent(
        pq.engine.source, lambda session: opened(contender, statements, MANY, session.driver)
    )
    return made


class PairedRun:
    """The two sides of a comparison, on one table.

    Attributes:
        taken: The ids of the jobs that pqcore took.
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
            bare = self._bare = await beside(self._contender, self._table, pq)
            if bare is not None and self._name == "put_many":
                await self._choose(bare)
            turns = await self._turns(ours, bare)
        finally:
            await closed(contender, pq)
        wires = await self._count(bare)
        taken, how = self.taken, ""
        if bare is not None:
            taken = [*taken, *bare.taken]
            how = bare.how if self._name != "put_many" else f"{bare.how.partition(',')[0]}, {bare.chosen}"
        made = target_of(contender, self._name, self._jobs, turns, how, *self._losses(taken))
        return replace(made, wire=wires[0], bare_wire=wires[1])

    async def _count(self, before: BareLoop | None) -> list[Wire | None]:
        """Return the traffic per call, of pqcore and of the bare loop, on connections through a proxy."""
        proxy = Proxy(self._bench.dsn)
        pq = self._contender.open(replace(self._table.place, dsn=proxy.dsn))
        try:
            ours = calls(pq[QUEUE], self.taken, blocking=self._contender.blocking)[self._name]
            bare = self._bare = None if before is None else await beside(self._contender, self._table, pq)
            if bare is not None and before is not None:
                bare.taken, bare.chosen = before.taken, before.chosen
            number = COUNTED[self._jobs]
            await self._restock(2 * (WARM + number + 2 * self._ahead))
            found: list[Wire | None] = []
            for call in (ours, None if bare is None else getattr(bare, self._name)):
                if call is None:
                    found.append(None)
                    continue
                await self._turn(call, WARM)
                self._stock.use(number)
                entered = bare if call is not ours else None
                if entered is not None:
                    await self._made(entered.enter(self._name))
                passed = []
                for _ in range(number):
                    start = proxy.traffic()
                    await self._slice(call, 1)
                    passed.append(proxy.traffic() - start)
                found.append(Wire.of(least(passed)))
                if entered is not None:
                    await self._made(entered.leave(self._name))
            return found
        finally:
            await closed(self._contender, pq)
            proxy.close()

    async def _choose(self, bare: BareLoop) -> None:
        """Choose the fastest of the driver's ways to put many jobs."""
        times: dict[str, list[float]] = {way: [] for way in bare.bulk}
        for _ in range(6):
            for way, taken in times.items():
                bare.chosen = way
                taken.append((await self._turn(bare.put_many, 1)).seconds)
        bare.chosen = min(times, key=lambda way: min(times[way][1:]))

    async def _turns(self, ours: Call, bare: BareLoop | None) -> Turns:
        """Return the seconds of a call in turns of both sides; without a bare loop, of pqcore alone."""
        theirs: Call | None = None if bare is None else getattr(bare, self._name)
        sides = [call for call in (ours, theirs) if call is not None]
        await self._restock((self._ahead + WARM) * 4)
        warm = WARM if self._operation.jobs == 1 else 3
        times = [(await self._turn(call, warm)).seconds for _ in range(2) for call in sides]
        number = max(round(SLICE / min(times[len(sides) :])), 1)
        seconds = self._bench.scale.cell
        began = time.monotonic()
        turns: Turns = []
        while True:
            await self._restock(2 * (self._ahead + number))
            taken = {call: await self._turn(call, number) for call in sides[:: (-1) ** len(turns)]}
            turns.append((taken[ours], None if theirs is None else taken[theirs]))
            passed = time.monotonic() - began
            if len(turns) >= FEWEST and passed >= seconds and (passed >= CLOSE * seconds or self._clear(turns)):
                return turns

    def _clear(self, turns: Turns) -> bool:
        """Return whether more turns would hardly change the verdict."""
        ratios = [theirs.seconds / ours.seconds for ours, theirs in turns if theirs is not None]
        if not ratios:
            return True
        ratio = Figure.of(ratios)
        return not ratio.low < self._target <= ratio.high

    async def _turn(self, call: Call, number: int) -> Cost:
        self._stock.use(self._ahead + number)
        bare = self._bare if getattr(call, "__self__", None) is self._bare else None
        if bare is not None:
            await self._made(bare.enter(self._name))
        await self._slice(call, self._ahead)
        began = time.process_time()
        seconds = await self._slice(call, number)
        cost = Cost(seconds / number, (time.process_time() - began) / number)
        if bare is not None:
            await self._made(bare.leave(self._name))
        return cost

    async def _made(self, made: Any) -> None:
        if made is not None:
            await made

    async def _restock(self, calls: int) -> None:
        """Make sure that there are jobs, or room, for this number of calls."""
        changed = self._stock.prepare(calls)
        self._bench.losses += [f"{self._contender.label}, {each}" for each in self._stock.take_missing()]
        # Both plan again for the present table; pqcore's own connections do so every ten seconds.
        if changed and self._bare is not None:
            await self._made(self._bare.replan())

    def _losses(self, taken: list[int]) -> tuple[int, int]:
        lost, twice = self._stock.losses(taken)
        self._bench.losses += [f"{self._contender.label}, {each}" for each in self._stock.take_missing()]
        return lost, twice
