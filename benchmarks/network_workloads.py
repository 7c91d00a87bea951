"""Operations over a network: with a delay between the client and the server, compared with a bare loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pqcore.testing.proxy import Proxy
from pqcore.testing.traffic import Traffic

from .backends import Contender, closed
from .load_generators import ClientReport, clock
from .measurement import Bench, Measurement, Table, observe
from .operations import OPERATIONS, QUEUE, awaited, calls, stepped
from .presets import QUICK
from .targets import beside
from .verdicts import WORKER
from .workloads import Common, Metric, Options, Variant

DELAYS = (0.001, 0.005)
"""Seconds of a round trip: to the next data centre, and to one in the same country."""
WARM = 8
"""Calls before those that count, without the delay, so that all statements are prepared."""
COUNTED = 0.4
"""The approximate number of seconds for the calls of each side."""
FEWEST = 6
"""The smallest number of calls of each side."""


@dataclass(frozen=True)
class Network(Common):
    """Each operation over a proxy that delays traffic by half of a round trip each way."""

    name: str = "network"
    title: str = "over a network with a round trip of 1 ms and of 5 ms, compared with the driver in a bare loop"
    rounds: int | None = 1
    metrics: tuple[Metric, ...] = (
        Metric("p50", "ms", "lower"),
        Metric("bare_p50", "ms", "lower"),
        Metric("ratio", "of the bare loop"),
        Metric("round_trips", "per call", "lower"),
        Metric("bare_round_trips", "per call", "lower"),
    )

    def variants(self, options: Options) -> Sequence[Variant]:
        return [
            Variant(f"{operation}, {delay * 1e3:g} ms", parameters={"operation": operation, "delay": delay})
            for operation in OPERATIONS
            if operation != WORKER
            for delay in (DELAYS if options.scale.rounds > QUICK.rounds else DELAYS[:1])
        ]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return bool(contender.spec.bare_loop)

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        operation, delay = variant.parameters["operation"], variant.parameters["delay"]
        number = max(round(min(COUNTED, bench.scale.seconds) / (3 * delay)), FEWEST)
        table.empty()
        needed = 2 * (WARM + number) * OPERATIONS[operation].jobs
        filled = table.fill(needed) if OPERATIONS[operation].takes else []
        values: dict[str, float] = {}

        def work() -> Sequence[ClientReport]:
            run = DelayedRun(contender, table, operation)
            report, found = contender.run(lambda: run.measure(number, delay))
            values.update(found)
            return [report]

        return observe(table, work, lambda reports: values, filled=filled)


class DelayedRun:
    """One operation over one backend, and over a bare loop, in alternation, through one proxy.

    Args:
        contender: The backend.
        table: The table.
        operation: A key of `OPERATIONS`, except that of a worker.
    """

    def __init__(self, contender: Contender, table: Table, operation: str) -> None:
        self._contender = contender
        self._table = table
        self._operation = operation
        self._slice = stepped if contender.blocking else awaited

    async def measure(self, number: int, delay: float) -> tuple[ClientReport, dict[str, float]]:
        """Return the work, and the figures.

        Args:
            number: The number of calls of each side.
            delay: Seconds of a round trip.
        """
        taken: list[int] = []
        proxy = Proxy(self._table.place.dsn)
        pq = self._contender.open(replace(self._table.place, dsn=proxy.dsn))
        try:
            ours = calls(pq[QUEUE], taken, blocking=self._contender.blocking)[self._operation]
            bare = await beside(self._contender, self._table, pq)
            assert bare is not None, "only backends that have one are measured"
            bare.taken = taken
            sides = [(ours, None), (getattr(bare, self._operation), bare)]
            for call, loop in sides:
                await self._calls(call, loop, WARM)
            proxy.delay(delay)
            times: list[list[float]] = [[], []]
            passed: list[list[int]] = [[], []]
            began = clock()
            for index in range(number):
                for side in (0, 1) if index % 2 else (1, 0):
                    before: Traffic = proxy.traffic()
                    times[side].append(await self._calls(*sides[side], 1))
                    passed[side].append((proxy.traffic() - before).round_trips)
            report = ClientReport(began, clock(), 2 * number * OPERATIONS[self._operation].jobs, taken=taken)
        finally:
            await closed(self._contender, pq)
            proxy.close()
        p50, bare_p50 = (median(each) for each in times)
        figures = {
            "p50": p50 * 1e3,
            "bare_p50": bare_p50 * 1e3,
            "ratio": bare_p50 / p50,
            "round_trips": median(passed[0]),
            "bare_round_trips": median(passed[1]),
        }
        return report, figures

    async def _calls(self, call: Any, loop: Any, number: int) -> float:
        """Return the seconds of some calls; a bare loop sets the connection to its mode before, and back afterwards."""
        if loop is not None:
            await _made(loop.enter(self._operation))
        seconds = await self._slice(call, number)
        if loop is not None:
            await _made(loop.leave(self._operation))
        return seconds


async def _made(made: Any) -> None:
    if made is not None:
        await made
