"""A worker's target, compared with a bare loop that leases and acknowledges as many jobs."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.sources import lent
from pqcore.plugins import plugins
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.testing.proxy import Proxy
from pqcore.testing.traffic import Traffic

from .backends import Contender, closed
from .baseline import BareLoop, opened
from .measurement import Bench, Table
from .operations import MANY, PLACES, QUEUE, awaited, stepped
from .statements import Statements
from .summary import FEWEST
from .target_results import Cost, Target, Turns, Wire, least, target_of
from .worker_calls import drain, noop, per_job, put_calls

WORKED = 400
"""The number of a worker's jobs whose traffic is counted."""
RUNS = 5
"""The number of workers with this many jobs, of which the lowest traffic counts: on a busy machine, jobs end one by
one."""
WORKER_TARGET = 1.5
"""How many times a cell's seconds the worker's may take, because its turns are long."""


_waiting: list[asyncio.Event] = []
_met: list[int] = []


async def meet(job_id: int, data: str = "") -> None:
    """Do nothing, and end together with the worker's other jobs, even on a busy machine."""
    if not _waiting:
        _waiting.append(asyncio.Event())
    ended = _waiting[0]
    await noop(job_id, data)
    _met.append(job_id)
    if len(_met) % PLACES == 0:
        _waiting.clear()
        ended.set()
    await ended.wait()


async def compare_worker(bench: Bench, contender: Contender, table: Table) -> Target:
    """Compare a worker without prefetching with a bare loop that leases and acknowledges as many jobs.

    Each lease is a statement that the worker waits for. With prefetched jobs, slow statements would be hidden.
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

    async def worked() -> Cost:
        await filled()
        began = time.process_time()
        done = await drain(queue, concurrency=PLACES, prefetch=0)
        taken.extend(done.taken)
        return Cost(per_job(done, PLACES), (time.process_time() - began) / number)

    async def leased(bare: BareLoop) -> Cost:
        await filled()
        began = time.process_time()
        seconds = await (stepped if contender.blocking else awaited)(bare.lease_ack, number // PLACES)
        return Cost(seconds / number, (time.process_time() - began) / number)

    try:
        session = opener.session(await opener.call("connect", bench.dsn))
        await session.enter()
        bare = await opened(contender, statements, MANY, session.driver)
        await worked()  # the warm-up
        if bare is not None:
            await leased(bare)
        began = time.monotonic()
        while len(turns) < FEWEST or time.monotonic() - began < bench.scale.cell * WORKER_TARGET:
            first = await leased(bare) if bare is not None and len(turns) % 2 else None
            ours = await worked()
            theirs = await leased(bare) if bare is not None and first is None else first
            turns.append((ours, theirs))
        wires = await _count_worker(bench, contender, table, statements, put, taken)
    finally:
        if session is not None:
            await session.close()
        await closed(contender, pq)
    if bare is not None:
        taken += bare.taken
    distinct = len(set(taken))
    lost, twice = len(put) - distinct - table.count(), len(taken) - distinct
    made = target_of(contender, "worker", 1, turns, bare.how if bare is not None else "", lost, twice)
    return replace(made, wire=wires[0], bare_wire=wires[1])


async def _count_worker(
    bench: Bench, contender: Contender, table: Table, statements: Statements, put: list[int], taken: list[int]
) -> tuple[Wire | None, Wire | None]:
    """Return the traffic per job, of a worker without its start and its end, and of the bare loop.

    Args:
        bench: See `compare`.
        contender: See `compare`.
        table: See `compare`.
        statements: The statements of a bare loop that leases as many jobs as the worker runs concurrently.
        put: A list that receives the ids of the jobs that are put.
        taken: A list that receives the ids of the jobs that are taken.
    """
    proxy = Proxy(bench.dsn)
    pq = contender.open(replace(table.place, dsn=proxy.dsn))
    queue = pq[QUEUE]
    _met.clear()
    queue.task()(meet)

    async def passed(number: int) -> Traffic:
        put.extend(await put_calls(queue, meet, number))
        start = proxy.traffic()
        taken.extend((await drain(queue, concurrency=PLACES, prefetch=0)).taken)
        return proxy.traffic() - start

    async def leased(session: Any) -> Traffic | None:
        bare = await opened(contender, statements, MANY, session.driver)
        if bare is None:
            return None
        calls = WORKED // PLACES
        await (stepped if contender.blocking else awaited)(bare.lease_ack, 1)
        start = proxy.traffic()
        await (stepped if contender.blocking else awaited)(bare.lease_ack, calls)
        taken.extend(bare.taken)
        return proxy.traffic() - start

    try:
        short = least([await passed(PLACES) for _ in range(2)])
        long = least([await passed(WORKED + PLACES) for _ in range(RUNS)])
        put.extend(await put_calls(queue, meet, WORKED + PLACES))
        bare = await lent(pq.engine.source, leased)
        return Wire.of(long - short, WORKED), None if bare is None else Wire.of(bare, WORKED)
    finally:
        await closed(contender, pq)
        proxy.close()
