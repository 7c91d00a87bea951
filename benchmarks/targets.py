"""Targets: each operation of pqcore over a backend beside the driver in a bare loop, slice by slice.

The two take turns of some milliseconds on one table, and what counts is the median of the
ratios of neighbouring turns, as what disturbs the machine then disturbs both.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pqcore.backend import TARGETS
from pqcore.connections import lent
from pqcore.errors import ConfigurationError

from .acts import DATA
from .bare import opened
from .contenders import Contender, closed
from .figures import Figure
from .statements import MANY, Statements
from .turns import QUEUE, Bench, Table
from .working import drain, noop, put_calls

Call: TypeAlias = Callable[[], Any]
Slice: TypeAlias = Callable[[Call, int], Awaitable[float]]

SLICE = 0.008
"""Seconds of a turn, about."""
AHEAD = 3
"""Calls of a turn that are not timed, where they are short: after the other's turn nothing is warm."""
WARM = 12
"""Calls before those that count."""
FEWEST = 6
"""Pairs of turns that a verdict needs."""
CLOSE = 2.5
"""Times the seconds of a cell that it may take if the verdict is close."""


@dataclass(frozen=True)
class Operation:
    """What is compared.

    Attributes:
        title: What it is.
        jobs: That one call moves; 0 for as many as the scale says.
        takes: Whether jobs have to be there.
    """

    title: str
    jobs: int
    takes: bool


OPERATIONS: Mapping[str, Operation] = {
    "put": Operation("put one", 1, takes=False),
    "get": Operation("get one", 1, takes=True),
    "transactional_get": Operation("get one in a transaction", 1, takes=True),
    "put_many": Operation("put many at once", 0, takes=False),
    "get_many": Operation(f"get {MANY} at once", MANY, takes=True),
    "lease_ack": Operation(f"lease {MANY} and acknowledge them", MANY, takes=True),
    "worker": Operation(f"a worker's no-op jobs, beside leasing {MANY} and acknowledging them", 1, takes=True),
}


@dataclass(frozen=True)
class Target:
    """What came of a comparison.

    Attributes:
        backend: The contender's label.
        operation: By name.
        target: What the ratio is to be.
        ratio: How fast pqcore is, beside the bare loop.
        ours, bare: Jobs a second.
        how: What the bare loop is.
        lost, twice: Jobs.
    """

    backend: str
    operation: str
    target: float
    ratio: Figure
    ours: Figure
    bare: Figure
    how: str
    lost: int = 0
    twice: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "operation": self.operation,
            "title": OPERATIONS[self.operation].title,
            "target": self.target,
            "ratio": self.ratio.as_json(),
            "pqcore": self.ours.as_json(values=False),
            "bare": self.bare.as_json(values=False),
            "how": self.how,
            "lost": self.lost,
            "twice": self.twice,
        }


def targets_of(contender: Contender) -> dict[str, float]:
    """What a backend is held to.

    Raises:
        ConfigurationError: It names an operation that there is not.
    """
    given = contender.spec.targets
    if unknown := sorted(set(given) - set(OPERATIONS)):
        msg = f"backend {contender.name!r} has targets for {', '.join(unknown)}; there are {', '.join(OPERATIONS)}"
        raise ConfigurationError(msg)
    return {name: float({**TARGETS, **given}[name]) for name in OPERATIONS}


def compare(bench: Bench, contender: Contender, operation: str, table: Table) -> Target:
    """Compare pqcore with the bare loop."""
    if operation == "worker":
        return asyncio.run(_worker(bench, contender, table))
    return contender.run(lambda: _Duel(bench, contender, operation, table).fight())


# What pqcore does in a turn


def _blocking(queue: Any, taken: list[int], batch: int) -> dict[str, Call]:
    def keep(jobs: Any) -> None:
        for job in jobs:
            taken.append(job.id)
            _ = job.data

    def transactional_get() -> None:
        with queue:
            keep([queue.get()])

    def lease_ack() -> None:
        jobs = queue.lease_many(MANY)
        queue.ack_many(jobs)
        keep(jobs)

    return {
        "put": lambda: queue.put(DATA),
        "put_many": lambda: queue.put_many([DATA] * batch),
        "get": lambda: keep([queue.get()]),
        "transactional_get": transactional_get,
        "get_many": lambda: keep(queue.get_many(MANY)),
        "lease_ack": lease_ack,
    }


def _asynchronous(queue: Any, taken: list[int], batch: int) -> dict[str, Call]:
    def keep(jobs: Any) -> None:
        for job in jobs:
            taken.append(job.id)
            _ = job.data

    async def get() -> None:
        keep([await queue.get()])

    async def transactional_get() -> None:
        async with queue:
            keep([await queue.get()])

    async def get_many() -> None:
        keep(await queue.get_many(MANY))

    async def lease_ack() -> None:
        jobs = await queue.lease_many(MANY)
        await queue.ack_many(jobs)
        keep(jobs)

    return {
        "put": lambda: queue.put(DATA),
        "put_many": lambda: queue.put_many([DATA] * batch),
        "get": get,
        "transactional_get": transactional_get,
        "get_many": get_many,
        "lease_ack": lease_ack,
    }


async def _stepped(call: Call, number: int) -> float:
    began = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - began


async def _awaited(call: Call, number: int) -> float:
    began = time.perf_counter()
    for _ in range(number):
        await call()
    return time.perf_counter() - began


class _Duel:
    """Two sides, on one table."""

    def __init__(self, bench: Bench, contender: Contender, operation: str, table: Table) -> None:
        self._bench = bench
        self._contender = contender
        self._name = operation
        self._operation = OPERATIONS[operation]
        self._table = table
        self._slice: Slice = _stepped if contender.blocking else _awaited
        self._jobs = self._operation.jobs or bench.scale.batch
        self._ahead = AHEAD if self._jobs == 1 else 0
        self._target = targets_of(contender)[operation]
        self._taken: list[int] = []
        self._put = 0  # by us, or before us
        self._stock = 0
        self._bare: Any = None

    async def fight(self) -> Target:
        contender, batch = self._contender, self._bench.scale.batch
        self._table.empty()
        pq = contender.open(self._table.place)
        try:
            bare = self._bare = await self._beside(pq)
            make = _blocking if contender.blocking else _asynchronous
            ours = make(pq[QUEUE], self._taken, batch)[self._name]
            theirs = getattr(bare, self._name)
            if self._name == "put_many":
                await self._choose(bare, theirs)
            pairs = await self._pairs(ours, theirs, bare.replan)
        finally:
            await closed(contender, pq)
        how = bare.how if self._name != "put_many" else f"{bare.how.partition(',')[0]}, {bare.chosen}"
        lost, twice = self._losses([*self._taken, *bare.taken])
        return Target(
            contender.label,
            self._name,
            self._target,
            Figure.of([theirs / ours for ours, theirs in pairs]),
            Figure.of([self._jobs / ours for ours, _ in pairs]),
            Figure.of([self._jobs / theirs for _, theirs in pairs]),
            how,
            lost,
            twice,
        )

    async def _beside(self, pq: Any) -> Any:
        """The bare loop, over the connection that pqcore has by then, and uses in its own turns."""
        statements = Statements(self._table.place, self._contender.spec.paramstyle)
        return await lent(
            pq._engine.source,
            lambda session: opened(self._contender, statements, self._bench.scale.batch, session.driver),
        )

    async def _choose(self, bare: Any, put_many: Call) -> None:
        """Take the fastest of the driver's ways to put many."""
        times: dict[str, list[float]] = {way: [] for way in bare.bulk}
        for _ in range(6):
            for way, taken in times.items():
                bare.chosen = way
                taken.append(await self._turn(put_many, 1))
        bare.chosen = min(times, key=lambda way: min(times[way][1:]))

    async def _pairs(self, ours: Call, theirs: Call, replan: Call) -> list[tuple[float, float]]:
        """Turns of the two in pairs: seconds a call."""
        await self._restock((self._ahead + WARM) * 4, replan)
        warm = WARM if self._operation.jobs == 1 else 3
        times = [await self._turn(call, warm) / warm for _ in range(2) for call in (ours, theirs)]
        number = max(round(SLICE / min(times[2:])), 1)
        seconds = self._bench.scale.cell
        began = time.monotonic()
        pairs: list[tuple[float, float]] = []
        while True:
            await self._restock(2 * (self._ahead + number), replan)
            first, second = (ours, theirs) if len(pairs) % 2 else (theirs, ours)
            one, other = await self._turn(first, number) / number, await self._turn(second, number) / number
            pairs.append((one, other) if first is ours else (other, one))
            passed = time.monotonic() - began
            if len(pairs) >= FEWEST and passed >= seconds and (passed >= CLOSE * seconds or self._clear(pairs)):
                return pairs

    def _clear(self, pairs: list[tuple[float, float]]) -> bool:
        """Whether more turns would hardly change the verdict."""
        ratio = Figure.of([theirs / ours for ours, theirs in pairs])
        return not ratio.low < self._target <= ratio.high

    async def _turn(self, call: Call, number: int) -> float:
        jobs = (self._ahead + number) * self._jobs
        if self._operation.takes:
            self._stock -= jobs
        else:
            self._put += jobs
        bare: Any = self._bare if getattr(call, "__self__", None) is self._bare else None
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

    async def _restock(self, calls: int, replan: Call) -> None:
        """See that there are jobs for so many calls, or room."""
        jobs = calls * self._jobs
        if self._operation.takes and self._stock < jobs:
            more = max(jobs, self._bench.scale.backlog * (1 if self._jobs == 1 else 5))
            self._put += len(self._table.fill(more))
            self._stock += more
        elif not self._operation.takes and self._put > max(20_000, 10 * self._jobs):
            self._check()
            self._table.empty()
            self._put = 0
        else:
            return
        # Both begin from the table as it is by now; pqcore's own connections do so every ten seconds.
        await self._made(replan())

    def _check(self) -> None:
        """See that all that was put is there."""
        if (there := self._table.count()) != self._put:
            loss = f"{self._contender.label}, {self._name}: {self._put:,} jobs were put, {there:,} are there"
            self._bench.losses.append(loss)

    def _losses(self, taken: list[int]) -> tuple[int, int]:
        if not self._operation.takes:
            self._check()
            return 0, 0
        distinct = len(set(taken))
        return self._put - distinct - self._table.count(), len(taken) - distinct


# Workers


async def _worker(bench: Bench, contender: Contender, table: Table) -> Target:
    """A worker's speed beside that of leasing and acknowledging the same jobs in batches, over the same backend."""
    number = bench.scale.duel
    table.empty()
    pq = contender.open(table.place)
    queue = pq[QUEUE]
    queue.task()(noop)
    taken: list[int] = []
    make = _blocking if contender.blocking else _asynchronous
    lease_ack = make(queue, taken, 0)["lease_ack"]
    calls = math.ceil(number / MANY)
    put: list[int] = []

    async def worked() -> float:
        put.extend(await put_calls(queue, noop, number))
        bench.eyes.do(f"VACUUM ANALYZE {table.name}")
        done = await drain(queue)
        taken.extend(done.taken)
        return done.ended - done.began

    async def leased() -> float:
        put.extend(await put_calls(queue, noop, number))
        bench.eyes.do(f"VACUUM ANALYZE {table.name}")
        return await (_stepped if contender.blocking else _awaited)(lease_ack, calls)

    target = targets_of(contender)["worker"]
    pairs: list[tuple[float, float]] = []
    try:
        await leased()
        await worked()  # that was to warm up
        began = time.monotonic()
        while len(pairs) < 3 or time.monotonic() - began < bench.scale.cell * WORKERS:
            turns = (worked, leased) if len(pairs) % 2 else (leased, worked)
            one, other = await turns[0](), await turns[1]()
            pairs.append((one, other) if turns[0] is worked else (other, one))
    finally:
        await closed(contender, pq)
    distinct = len(set(taken))
    return Target(
        contender.label,
        "worker",
        target,
        Figure.of([leased / worked for worked, leased in pairs]),
        Figure.of([number / worked for worked, _ in pairs]),
        Figure.of([number / leased for _, leased in pairs]),
        f"its own lease_many({MANY}) and ack_many",
        len(put) - distinct - table.count(),
        len(taken) - distinct,
    )


WORKERS = 1.5
"""Times the seconds of a cell that the worker's takes, of which the turns are long."""
