"""Explaining why a job does not run.

The operation looks at the job, and at everything that may keep the job from running; it changes and locks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import NamedTuple, cast

from pqcore.argument_checks import check_job_id
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied, SchemaOutdated, SchemaTooNew, TableMissing
from pqcore.headers import read_headers
from pqcore.lanes import GROUP, Lane, lane_of
from pqcore.operations import causes, worker_causes
from pqcore.operations.attempts import read_attempts
from pqcore.operations.error_details import read_error
from pqcore.operations.explanation import SHOWN, Cause, Explanation
from pqcore.operations.list_jobs import path_in
from pqcore.operations.results import put_time
from pqcore.operations.worker_registry import WorkerInfo, find_running, knows, list_workers_of
from pqcore.schema import security
from pqcore.settings import QueueSettings
from pqcore.sql.explain_statements import MOST_BEFORE
from pqcore.sql.statement import Query
from pqcore.times import UtcDatetime

OLD_SNAPSHOT = 300.0
"""The age in seconds from which an open transaction is reported."""


class _ExplainedRow(NamedTuple):
    """The columns of the statement ``explain_job``.

    Attributes:
        place: The table that has the row: ``table``, ``dead`` or ``archive``.
        queue: The name of the job's queue.
        state: One of `pqcore.operations.list_jobs.STATES`.
        serializer: The serializer that wrote the data; None for a row that pq wrote.
        attempts: How often the job was run.
        failures: How often the job failed with an exception.
        error: The last exception, or why the job was postponed, as JSON text.
        headers: The headers, as JSON text.
        head: The beginning of the data, if the data is JSON text.
        enqueued_at: The time of the job's put; like all times here, naive and in UTC.
        now: The server's time.
        schedule_at: The earliest time at which the job may be taken.
        parked_on: The lane that the job waits on.
        leased_until: When the lease ends, or ended.
        group: The group.
        reason: Why the job is dead.
        cancelling: Whether the job was asked to stop.
        xmax: The transaction that last locked or changed the row.
        priority: The job's priority.
    """

    place: str
    queue: str
    state: str
    serializer: str | None
    attempts: int
    failures: int
    error: str | None
    headers: str | None
    head: str | None
    enqueued_at: datetime
    now: datetime
    schedule_at: datetime | None
    parked_on: str | None
    leased_until: datetime | None
    group: str | None
    reason: str | None
    cancelling: bool
    xmax: str | None
    priority: int

    @property
    def due(self) -> UtcDatetime:
        """Return the time at which the job is due."""
        return cast(UtcDatetime, UtcDatetime.of(self.schedule_at or self.enqueued_at))


class _KeyRow(NamedTuple):
    """The columns of the statement ``explain_keys``.

    Attributes:
        key: The key.
        allowed: The places that an operator has set; None without a rule.
        put_places: The places that the newest put gave.
        alive: The jobs that hold the places.
        rate: Tokens per second; None without a rate.
        tokens: The number of tokens that are left.
        reserved: The job for which the key is reserved.
        reserved_for: The lane of the job for which the key is reserved.
    """

    key: str
    allowed: int | None
    put_places: int
    alive: Sequence[int]
    rate: float | None
    tokens: float | None
    reserved: int | None
    reserved_for: str | None


async def explain(engine: Engine, job_id: int, queue: QueueSettings | None = None) -> Explanation:
    """Return why a job does not run.

    Args:
        engine: The engine.
        job_id: The job.
        queue: The queue that must have the job; None for any queue.
    """
    number = check_job_id(job_id)
    name = None if queue is None else queue.name
    try:
        found = await engine.run(partial(_explain, engine, job_id, queue), protect=False)
        if found.queue is None or found.state == "none":
            return found
        return replace(found, past_attempts=tuple(await read_attempts(engine, found.queue, job_id)))
    except TableMissing as exc:
        cause = causes.no_table(str(exc))
    except SchemaOutdated as exc:
        cause = causes.outdated(str(exc))
    except SchemaTooNew as exc:
        cause = causes.too_new(str(exc))
    except AccessDenied as exc:
        if exc.sqlstate is not None:  # the server refused the query, because the role lacks a privilege
            raise
        cause = causes.hidden(str(exc))
    return Explanation(number, name, "none", (cause,))


async def _explain(engine: Engine, job_id: int, queue: QueueSettings | None, s: Session) -> Explanation:
    number = int(job_id)
    row = await _find(s, number, put_time(engine, job_id))
    if row is None:
        return await _explain_missing(engine, job_id, queue, s)
    if queue is not None and row.queue != queue.name:
        cause = causes.of_another_queue(number, row.queue, queue.name)
        return Explanation(number, row.queue, row.state, (cause,))
    error = read_error(row.error)
    if row.state == "done":
        found = (*await _find_locks(s, row), causes.done(number, row.place))
        return Explanation(number, row.queue, row.state, found)
    if row.state == "dead":
        return Explanation(number, row.queue, row.state, (causes.dead(number, row.reason, error),))
    return await _Examination(engine, s, number, row, queue).explain()


async def _find(s: Session, job_id: int, put_at: datetime | None = None) -> _ExplainedRow | None:
    rows = await _run(s, s.sql.explain.explain_job, id=job_id, put_at=put_at)
    return _ExplainedRow._make(rows[0]) if rows else None


async def _run(s: Session, query: Query, **values: object) -> Sequence[Row]:
    return await s.execute(query, query.bind(values))


async def _explain_missing(engine: Engine, job_id: int, queue: QueueSettings | None, s: Session) -> Explanation:
    """Explain a job for which no row is found: only its result may be kept, or row-level security may hide its row."""
    number, name = int(job_id), None if queue is None else queue.name
    if queue is not None:
        rows = await _run(s, s.sql.tasks.find_result, id=number, q_name=name, put_at=put_time(engine, job_id))
        for state, *_ in rows:
            if state != "running":
                return Explanation(number, name, "none", (causes.ended(number, state),))
    hides = await security.look(s, str(engine.names))
    if hides is not None:
        text = hides.message if hides.lacking else f"a policy of row-level security binds role {hides.role!r}"
        cause = causes.hidden(f"job {number} is not seen, and may be hidden: {text}")
        return Explanation(number, name, "none", (cause,))
    return Explanation(number, name, "none", (causes.not_found(number, name),))


async def _find_locks(s: Session, row: _ExplainedRow) -> list[Cause]:
    """Find the open transaction that has locked or changed a row."""
    if row.xmax is None or row.xmax == "0":
        return []
    rows = await _run(s, s.sql.explain.explain_lock, xmax=row.xmax)
    return [causes.locked(pid, seconds, application, own=bool(own)) for pid, own, seconds, application in rows]


class _Examination:
    """An examination of the causes that may keep one unfinished job from running.

    Args:
        engine: The engine.
        s: The session.
        job_id: The job.
        row: The job's row.
        queue: The job's queue, if its settings are known.
    """

    def __init__(
        self, engine: Engine, s: Session, job_id: int, row: _ExplainedRow, queue: QueueSettings | None
    ) -> None:
        self._engine = engine
        self._s = s
        self._id = job_id
        self._row = row
        self._queue = queue
        self._task = path_in(row.head)
        self._now = row.now.replace(tzinfo=timezone.utc)
        self._causes: list[Cause] = []
        self._waits = False

    async def explain(self) -> Explanation:
        """Look for causes, and return the explanation."""
        row = self._row
        workers = [worker for worker in await list_workers_of(self._s, row.queue) if worker.alive]
        before: list[int] | None = None
        self._causes += await _find_locks(self._s, row)
        if not self._causes and row.state == "leased":
            until = cast(UtcDatetime, UtcDatetime.of(row.leased_until))
            ids = tuple(worker.id for worker in workers)
            runs = find_running(workers, row.queue, self._id)
            where = None if runs is None else (f"{runs[0].host}:{runs[0].pid}", runs[1].since)
            self._causes.append(causes.running(self._id, until, stops=row.cancelling, workers=ids, where=where))
        state = row.state
        if row.state != "leased":
            lane = lane_of(row.headers)
            await self._look_at_pauses(lane)
            if not await self._look_at_parents():
                self._look_at_schedule()
            self._look_at_deadline()
            await self._look_at_group()
            if lane is not None:
                await self._look_at_keys(lane, [worker.id for worker in workers])
            if state == "parked" and not self._causes:
                state = "ready"
            await self._look_at_rate()
            await self._look_at_workers(workers)
            if row.state != "scheduled":
                before = await self._before()
                if before:
                    self._causes.append(causes.behind(before, MOST_BEFORE))
        return Explanation(
            self._id,
            row.queue,
            state,
            tuple(self._causes),
            None if before is None else len(before),
            row.due if row.state == "scheduled" and not self._waits else None,
            await self._notes(),
        )

    async def _look_at_parents(self) -> bool:
        """Look at the parents for which the job waits; return whether there are such parents."""
        if self._row.state == "scheduled":
            rows = await _run(self._s, self._s.sql.dependencies.open_parents, id=self._id, n=SHOWN)
            for _, number in rows[:1]:
                self._waits = True
                self._causes.append(causes.waits_for_jobs(self._id, [parent for parent, _ in rows], number))
        return self._waits

    def _look_at_schedule(self) -> None:
        row = self._row
        if row.state == "scheduled":
            error = read_error(row.error)
            self._causes.append(causes.scheduled(self._id, row.due, row.attempts, row.failures, error))

    def _look_at_deadline(self) -> None:
        deadline = read_headers(self._row.headers)[0].get("run", {}).get("deadline")
        if isinstance(deadline, (int, float)) and deadline < self._now.timestamp():
            moment = cast(UtcDatetime, UtcDatetime.of(datetime.fromtimestamp(deadline, timezone.utc)))
            self._causes.append(causes.expired(self._id, moment))

    async def _look_at_pauses(self, lane: Lane | None) -> None:
        names = ["queue", *((f"task:{self._task}",) if self._task else ())]
        names += [key for key, _ in lane.needs] if lane is not None else ()
        rows = await _run(self._s, self._s.sql.explain.explain_pauses, q_name=self._row.queue, names=names)
        for name, until in rows:
            self._causes.append(causes.paused(self._row.queue, name, UtcDatetime.of(until)))

    async def _look_at_keys(self, lane: Lane, workers: Sequence[str]) -> None:
        """Look at the limits and the group of the job, and at their rates."""
        needs = [{"place": 1, "key": key, "number": number, "newest": self._id} for key, number in lane.needs]
        if not needs:
            return
        asked = dict(lane.needs)
        query = self._s.sql.tasks.explain_keys
        for state in map(_KeyRow._make, await _run(self._s, query, q_name=self._row.queue, needs=json.dumps(needs))):
            places = state.allowed if state.allowed is not None else state.put_places
            if state.key.startswith(GROUP):
                self._look_at_running_group(state)
            elif len(state.alive) >= places:
                ruled = state.allowed is not None
                self._causes.append(
                    causes.limit_full(
                        state.key, places, asked[state.key], sorted(state.alive), tuple(workers), ruled=ruled
                    )
                )
            if state.tokens is not None and state.rate is not None and state.tokens < 1:
                until = self._now + timedelta(seconds=(1 - state.tokens) / state.rate)
                self._causes.append(causes.rate_of_key(state.key, cast(UtcDatetime, UtcDatetime.of(until))))
            if state.reserved is not None and state.reserved_for != lane.text:
                self._causes.append(causes.limit_reserved(state.key, state.reserved))
        values = {"q_name": self._row.queue, "table": str(self._engine.names), "keys": [*asked]}
        for key, pid, own, seconds, application in await _run(self._s, self._s.sql.explain.explain_key_locks, **values):
            self._causes.append(causes.key_locked(key, pid, seconds, application, own=bool(own)))

    def _look_at_running_group(self, state: _KeyRow) -> None:
        """Check whether a later job of the group is running; it may have started before this job was retried."""
        if state.alive and not any(cause.code.startswith("group_") for cause in self._causes):
            group = state.key.removeprefix(GROUP)
            self._causes.append(causes.behind_in_group(group, state.alive[0], "leased", None, failed=False))

    async def _look_at_group(self) -> None:
        group = self._row.group
        if group is None:
            return
        rows = await _run(self._s, self._s.sql.explain.explain_group, q_name=self._row.queue, group=group, id=self._id)
        ids = [job for (job,) in rows]
        head = await _find(self._s, ids[0]) if ids else None
        if head is None or head.place != "table" or head.state == "done":
            return
        until = UtcDatetime.of(head.leased_until) if head.state == "leased" else None
        if head.state == "scheduled":
            until = head.due
        self._causes.append(causes.behind_in_group(group, ids[0], head.state, until, failed=head.failures > 0))

    async def _look_at_rate(self) -> None:
        if self._queue is None or self._queue.rate is None:
            return
        capacity, rate = self._queue.bucket
        rows = await _run(self._s, self._s.sql.explain.explain_bucket, q_name=self._row.queue)
        for tokens, seconds in rows:
            missing = 1 - min(capacity, tokens + seconds * rate)
            if missing > 0:
                until = self._now + timedelta(seconds=missing / rate)
                self._causes.append(
                    causes.rate_of_queue(str(self._queue.rate), cast(UtcDatetime, UtcDatetime.of(until)))
                )

    async def _look_at_workers(self, workers: Sequence[WorkerInfo]) -> None:
        if not workers:
            self._causes.append(worker_causes.no_worker(self._row.queue))
            return
        able = [worker for worker in workers if self._task is None or knows(worker, self._task)]
        if not able:
            ids = tuple(worker.id for worker in workers)
            self._causes.append(worker_causes.no_worker_of_task(self._row.queue, str(self._task), ids))
            return
        taking = [worker for worker in able if not worker.quiet]
        if not taking:
            self._causes.append(
                worker_causes.workers_quiet(self._row.queue, tuple(sorted(worker.id for worker in able)))
            )
            return
        listed = await list_workers_of(self._s, None)
        ours = {worker.id for worker in taking}
        queues = sorted({name for worker in listed if worker.id in ours for name in worker.queues})
        slots = sum(
            worker.concurrency
            for worker in listed
            if worker.alive and not worker.quiet and {*queues} & {*worker.queues}
        )
        rows = await _run(self._s, self._s.sql.explain.explain_leased, names=queues, n=slots)
        if len(rows) >= slots:
            jobs = [job for (job,) in rows]
            self._causes.append(worker_causes.workers_busy(slots, jobs, tuple(sorted(ours))))

    async def _before(self) -> list[int]:
        sql, lane = self._s.sql.explain, self._row.parked_on
        query = sql.explain_before if lane is None else sql.explain_before_in_lane
        rows = await _run(self._s, query, q_name=self._row.queue, id=self._id, lane=lane)
        return [job for (job,) in rows]

    async def _notes(self) -> tuple[Cause, ...]:
        [[seconds]] = await _run(self._s, self._s.sql.explain.explain_snapshot)
        return () if seconds is None or seconds < OLD_SNAPSHOT else (causes.old_snapshot(seconds),)
