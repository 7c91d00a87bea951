"""Workloads of jobs under limits: when other jobs start, how fast limited jobs run, old snapshots, and shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from . import pgbouncer
from .admission_calls import (
    Backlog,
    called,
    declare,
    feed,
    held,
    limits_of,
    parts_of,
    put_held,
    put_in_turn,
    run_for,
    run_until,
    sample_starts,
    speed,
)
from .backends import Contender, Location, closed
from .load_generators import ClientReport
from .measurement import Bench, Measurement, Table, observe
from .observer import Observer
from .operations import QUEUE
from .summary import percentile
from .workloads import Common, Metric, Options, Variant

CONCURRENCY = 20
"""The default number of slots of a worker."""
PLACES = 2
"""The number of jobs that may run concurrently under a limit."""
HELD = 0.2
"""Seconds that a job of a tenant's backlog holds its slot."""
HELD_SHORTLY = 0.02
"""Seconds that a job holds its slot when a limit's own speed is measured."""
HELD_BY_SHARES = 0.01
"""Seconds that a job of a tenant with a weight holds its slot."""
WEIGHTS = {"light": 1, "middling": 2, "heavy": 5}
"""The tenants of `Shares`, and their weights."""
PATIENCE = 100.0
"""Seconds that the jobs of one turn may take when a limit's own speed is measured."""


class LimitNotKept(Exception):
    """More jobs ran concurrently than allowed, or jobs of a group ran out of order."""


@dataclass(frozen=True)
class OtherTenant(Common):
    """One tenant's jobs wait under a limit, and then a job of another tenant arrives.

    Its seconds count from the moment at which a slot is free, with a short and with a long backlog.
    """

    name: str = "other_tenant"
    title: str = "from put, or a free slot, to the start of another tenant's job, with a backlog under limits"
    metrics: tuple[Metric, ...] = (
        Metric("p50, few", "ms", "lower"),
        Metric("p99, few", "ms", "lower"),
        Metric("p50, many", "ms", "lower"),
        Metric("p99, many", "ms", "lower"),
        Metric("growth", "p99 many / p99 few", "lower"),
    )
    rounds: int | None = 1

    def variants(self, options: Options) -> Sequence[Variant]:
        scale = options.scale
        few, many = scale.crowds
        corners = [(1, 1, CONCURRENCY), (1, 1, 4)]
        corners += [
            (keys, workers, CONCURRENCY)
            for keys in (1, scale.keys)
            for workers in (1, scale.workers)
            if (keys, workers) != (1, 1)
        ]
        return [
            Variant(
                f"{few:,} and {many:,} jobs, {_some(keys, 'key')}, {_some(workers, 'worker')} of {slots}",
                parameters={"keys": keys, "workers": workers, "concurrency": slots},
            )
            for keys, workers, slots in corners
        ]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return contender == first or variant == self.variants(options)[0]

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        turns: list[Measurement] = []
        values: dict[str, float] = {}
        for size, number in zip(("few", "many"), bench.scale.crowds, strict=True):
            with _fresh(bench, contender) as own:
                turn = self._beside(bench, own, contender, variant, number)
            values |= {f"{name}, {size}": value for name, value in turn.values.items()}
            turns.append(turn)
        values["growth"] = values["p99, many"] / values["p99, few"]
        return _together(turns, values)

    def _beside(self, bench: Bench, table: Table, contender: Contender, variant: Variant, number: int) -> Measurement:
        scale = bench.scale
        keys, workers, slots = (variant.parameters[name] for name in ("keys", "workers", "concurrency"))
        limits, waiting = limits_of(PLACES, keys), 0

        async def fill(queues: Sequence[Any]) -> list[int]:
            task = declare(queues[0], held, "crowd", limits=limits)
            return await put_held(task, queues[0], number, HELD, keys)

        async def work(queues: Sequence[Any]) -> list[ClientReport]:
            nonlocal waiting
            tasks = [declare(queue, held, "crowd", limits=limits) for queue in queues]
            options = {"samples": scale.samples, "patience": scale.patience, "concurrency": slots}
            report, waiting = await sample_starts(queues, Backlog(tasks[0], number, HELD, keys), **options)
            return [report]

        filled = _over(contender, table.place, 1, fill)
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")
        turn = observe(table, lambda: _over(contender, table.place, workers, work), _latencies, filled=filled)
        if waiting:
            turn.notes[f"beside {number:,}, not started within {scale.patience:g} s"] = waiting
        return turn


def _latencies(reports: Sequence[ClientReport]) -> dict[str, float]:
    times = [1000 * time for done in reports for time in done.times]
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}


@dataclass(frozen=True)
class Limited(Common):
    """A limit or a group is the bottleneck.

    The rate is compared with the limit's own bound, and with the same jobs without a limit.
    """

    name: str = "limited"
    title: str = (
        "a worker's jobs under a limit, compared with the lower of places / duration and the speed without a limit"
    )
    metrics: tuple[Metric, ...] = (
        Metric("rate", "/s"),
        Metric("unlimited", "/s"),
        Metric("of bound", "rate / bound"),
        Metric("extra writes", "rows / job", "lower"),
        Metric("extra WAL", "B / job", "lower"),
    )

    def variants(self, options: Options) -> Sequence[Variant]:
        scale = options.scale
        rounds = max(round(scale.limited / 1_000 / HELD_SHORTLY), 5)
        short = f"{HELD_SHORTLY * 1000:g} ms jobs"
        found = [
            _limited(f"{short}, {PLACES} places", PLACES * rounds, PLACES, seconds=HELD_SHORTLY),
            _limited(f"{scale.limited:,} no-op jobs, {PLACES} places", scale.limited, PLACES),
            _limited(f"{scale.limited:,} no-op jobs, one group", scale.limited, 1, group=True),
            _limited(f"{2 * scale.worked:,} no-op jobs, 1,000 places", 2 * scale.worked, 1_000),
            _limited(
                f"{scale.limited:,} no-op jobs, {PLACES} places of 100 keys each", scale.limited, PLACES, keys=100
            ),
        ]
        if pgbouncer.find() is not None:
            found.append(
                _limited(f"{short}, 3 places, through PgBouncer", 3 * rounds, 3, seconds=HELD_SHORTLY, pooled=True)
            )
        return found

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return options.scale.everywhere or contender == first or variant.parameters["number"] == options.scale.limited

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        chosen = variant.parameters
        with _fresh(bench, contender) as own:
            free, free_writes = self._run(bench, own, contender, {**chosen, "places": 0, "group": False})
        with _fresh(bench, contender) as own:
            turn, writes = self._run(bench, own, contender, chosen)
        rate, unlimited = turn.values["rate"], free.values["rate"]
        bound = min(unlimited, chosen["places"] * chosen["keys"] / (chosen["seconds"] or 1e-9))
        values = {
            "rate": rate,
            "unlimited": unlimited,
            "of bound": rate / bound,
            "extra writes": writes - free_writes,
            "extra WAL": turn.wal - free.wal,
        }
        return _together([free, turn], values)

    def _run(
        self, bench: Bench, table: Table, contender: Contender, chosen: dict[str, Any]
    ) -> tuple[Measurement, float]:
        """Let a worker run jobs; return the results, and the rows written for each job."""
        number, places, keys = chosen["number"], chosen["places"], chosen["keys"]
        of_task: dict[str, Any] = {"group": "group"} if chosen["group"] else {"limits": limits_of(places, keys)}
        together = min(places * keys or CONCURRENCY, CONCURRENCY)

        async def fill(queues: Sequence[Any]) -> list[int]:
            return await put_held(declare(queues[0], held, **of_task), queues[0], number, chosen["seconds"], keys)

        async def work(queues: Sequence[Any]) -> list[ClientReport]:
            declare(queues[0], held, **of_task)
            report, load = await run_until(queues, number, PATIENCE)
            if chosen["group"] and report.taken != sorted(report.taken):
                raise LimitNotKept("jobs of a group ran out of order")
            if places and load.most > places * keys:
                raise LimitNotKept(f"{load.most:,} jobs ran together, though {places * keys:,} may")
            return [report]

        def through() -> list[ClientReport]:
            with ExitStack() as stack:
                place, options = table.place, {}
                if chosen["pooled"]:
                    place = replace(place, dsn=stack.enter_context(pgbouncer.pooled(place.dsn)))
                    options = {"prepared": False}
                reports: list[ClientReport] = _over(contender, place, 1, work, **options)
                return reports

        filled = _over(contender, table.place, 1, fill)
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")
        bench.server_observer.alone()
        before = table.writes()
        turn = observe(
            table,
            through,
            lambda reports: {"rate": speed(reports[0].times, together)},
            filled=filled,
        )
        return turn, (table.writes() - before) / number


def _limited(
    label: str,
    number: int,
    places: int,
    *,
    seconds: float = 0.0,
    keys: int = 1,
    group: bool = False,
    pooled: bool = False,
) -> Variant:
    parameters = {"number": number, "places": places, "seconds": seconds, "keys": keys, "group": group}
    return Variant(label, parameters={**parameters, "pooled": pooled})


@dataclass(frozen=True)
class LimitedHorizon(Common):
    """Empty jobs under a limit while a session holds an old snapshot, for which no dead row may be removed."""

    name: str = "limited_horizon"
    title: str = "a worker's no-op jobs under a limit, while another session holds an old snapshot"
    metrics: tuple[Metric, ...] = (
        Metric("first", "/s"),
        Metric("last", "/s"),
        Metric("kept", "last / first"),
        Metric("taken", "jobs"),
    )
    rounds: int | None = 1

    def variants(self, options: Options) -> Sequence[Variant]:
        seconds = options.scale.limited_horizon
        return [
            Variant(f"{label}, for {seconds:g} s", parameters={"places": places})
            for label, places in (("no limit", 0), (f"{PLACES} places", PLACES), ("100 places", 100))
        ]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return options.scale.everywhere or contender == first

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        with _fresh(bench, contender) as own:
            return self._beside_a_snapshot(bench, own, contender, variant)

    def _beside_a_snapshot(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        seconds = bench.scale.limited_horizon
        limits = limits_of(variant.parameters["places"])
        curve: dict[str, list[float]] = {}

        async def work(queues: Sequence[Any]) -> list[ClientReport]:
            worked, feeding = queues
            declare(worked, held, limits=limits)
            return [await feed([worked], [declare(feeding, held, limits=limits).call(0.0)], feeding, seconds)]

        def values(reports: Sequence[ClientReport]) -> dict[str, float]:
            curve.update(_rates(reports[0].times, seconds))
            first, last = curve["rate (/s)"][0], curve["rate (/s)"][-1]
            return {"first": first, "last": last, "kept": last / first, "taken": float(len(reports[0].taken))}

        other = Observer(contender, bench.server)
        try:
            other.do("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.sql(f"SELECT count(*) FROM {table.name}")
            turn = observe(table, lambda: _over(contender, table.place, 2, work), values)
        finally:
            other.close()
        turn.curve.update(curve)
        return turn


PARTS = 10
"""The number of parts into which a curve of rates over time is divided."""


def _rates(times: Sequence[float], seconds: float) -> dict[str, list[float]]:
    """Return the rate in each part of the time, from the first start on."""
    width = seconds / PARTS
    began = times[0]
    counts = [0] * PARTS
    for time in times:
        if time < began + seconds:
            counts[min(int((time - began) / width), PARTS - 1)] += 1
    return {
        "seconds": [width * (index + 1) for index in range(PARTS)],
        "rate (/s)": [count / width for count in counts],
    }


@dataclass(frozen=True)
class Shares(Common):
    """Weighted tenants, each with more jobs than can run, and the part of the runs that each gets."""

    name: str = "shares"
    title: str = "the parts of the runs that tenants get, compared with the parts of their weights"
    metrics: tuple[Metric, ...] = (
        *(Metric(tenant, "of the runs") for tenant in WEIGHTS),
        Metric("off", "% of a part, at most", "lower"),
        Metric("rate", "/s"),
    )

    def variants(self, options: Options) -> Sequence[Variant]:
        weights = ", ".join(map(str, WEIGHTS.values()))
        return [
            Variant(f"weights {weights}, {label}, for {options.scale.shares:g} s", parameters={"places": places})
            for label, places in (("no limits", 0), (f"{CONCURRENCY} places each", CONCURRENCY))
        ]

    def suits(self, contender: Contender, first: Contender, variant: Variant, options: Options) -> bool:
        return options.scale.everywhere or contender == first

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        with _fresh(bench, contender) as own:
            return self._shared(bench, own, contender, variant)

    def _shared(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        seconds, all_weights = bench.scale.shares, sum(WEIGHTS.values())
        most = 2 * CONCURRENCY * (seconds + 1) / HELD_BY_SHARES
        options: dict[str, Any] = {"tenant": lambda seconds, mark: mark}
        if variant.parameters["places"]:
            options["limits"] = lambda seconds, mark: {mark: variant.parameters["places"]}
        parts: dict[str, float] = {}

        async def fill(queues: Sequence[Any]) -> list[int]:
            task, ids = queues[0].task(**options)(held), []
            for tenant, weight in WEIGHTS.items():
                await called(queues[0].set_weight, tenant, weight)
                calls = [task.call(HELD_BY_SHARES, tenant)]
                ids += await put_in_turn(queues[0], calls, round(most * weight / all_weights))
            return ids

        async def work(queues: Sequence[Any]) -> list[ClientReport]:
            queues[0].task(**options)(held)
            report, load = await run_for(queues, seconds, bench.scale.patience)
            parts.update(parts_of(load, [*WEIGHTS], seconds))
            return [report]

        def values(reports: Sequence[ClientReport]) -> dict[str, float]:
            off = max(abs(parts[tenant] * all_weights / weight - 1) for tenant, weight in WEIGHTS.items())
            return {**parts, "off": 100 * off, "rate": len(reports[0].taken) / seconds}

        filled = _over(contender, table.place, 1, fill)
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")
        return observe(table, lambda: _over(contender, table.place, 1, work), values, filled=filled)


# Common functions


@contextmanager
def _fresh(bench: Bench, contender: Contender) -> Iterator[Table]:
    """Make a table, and drop it at the end: in a table that is emptied, keys would still list jobs that are gone."""
    table = bench.table(contender)
    try:
        yield table
    finally:
        table.drop()


def _over(
    contender: Contender, place: Location, number: int, work: Callable[[Sequence[Any]], Awaitable[Any]], **options: Any
) -> Any:
    """Run a function with a queue of each of some `PQ`, in a loop."""

    async def done() -> Any:
        made = [contender.open(place, **options) for _ in range(number)]
        try:
            return await work([pq[QUEUE] for pq in made])
        finally:
            for pq in made:
                await closed(contender, pq)

    return asyncio.run(done())


def _together(turns: Sequence[Measurement], values: dict[str, float]) -> Measurement:
    """Return one turn for several: with the given values, the losses of all, and all else from the last turn."""
    return replace(
        turns[-1],
        values=values,
        count=sum(turn.count for turn in turns),
        lost=sum(turn.lost for turn in turns),
        twice=sum(turn.twice for turn in turns),
        notes={name: note for turn in turns for name, note in turn.notes.items()},
    )


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number > 1 else ''}"
