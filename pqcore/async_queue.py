"""The asynchronous face: `AsyncPQ` and `AsyncQueue`.

The methods have the names and arguments of `pqcore.queue`, which documents their meaning. A task that is cancelled
while it awaits a job does not lose the job: the statement finishes, and pqcore puts the taken jobs back. After such a
cancellation within a transaction block, the transaction can only be rolled back: later calls raise
`TransactionAborted`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pqcore import operations
from pqcore.argument_checks import check_jobs
from pqcore.base_pq import BasePQ
from pqcore.db.asyncio_runtime import AsyncioRuntime
from pqcore.db.blocks import Leaving
from pqcore.db.engine import Engine
from pqcore.dead_letters import AsyncDeadLetters
from pqcore.errors import InvalidCall
from pqcore.job import AsyncJob
from pqcore.operations import complete, dead_letters, fetch, lease, put, put_many
from pqcore.operations.lease import LEASE_DURATION
from pqcore.put_options import Dedup, Parents, given
from pqcore.serializers import Serializer
from pqcore.settings import AS_IT_IS, KEEP_DEAD, KEEP_FINISHED, REENCODE_STEP, REENCODE_WAIT
from pqcore.sql.identifiers import TableName
from pqcore.tasks.async_queue import AsyncTaskQueueMixin
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from typing_extensions import Self

    import pqcore.operations.attempts
    import pqcore.operations.expiry
    import pqcore.operations.explain
    import pqcore.operations.move
    import pqcore.operations.retry  # noqa: F401 - with these, the type checker knows their names in `operations`
    from pqcore.operations.admin import QueueStats
    from pqcore.operations.attempts import PastAttempt
    from pqcore.operations.encodings import Encoding
    from pqcore.operations.expiry import Expiry
    from pqcore.operations.explanation import Explanation
    from pqcore.operations.limits import LimitUsage
    from pqcore.operations.list_jobs import StoredJob
    from pqcore.operations.reencode import Reencoded
    from pqcore.operations.results import JobInfo
    from pqcore.operations.rules import Rate, Rule
    from pqcore.operations.worker_registry import WorkerInfo


async def _leave(engine: Engine, statement: object, kind: object, *_: object) -> None:
    await engine.leave(failed=kind is not None)


class AsyncQueueIterator:
    """An endless iterator that takes one job after the other, and yields None at each timeout.

    Attributes:
        timeout: Seconds to wait for each job; None for the queue's ``timeout``.
    """

    timeout: float | None = None

    def __init__(self, queue: AsyncQueue) -> None:
        self._queue = queue

    def __aiter__(self) -> AsyncQueueIterator:
        return self

    async def __anext__(self) -> AsyncJob | None:
        return await self._queue.get(timeout=self.timeout)


class AsyncQueue(AsyncTaskQueueMixin):
    """A transactional queue, awaited; see `pqcore.Queue`.

    ``async with queue as cursor:`` opens a transaction in the running task. Tasks that this task starts, and all queues
    of the same `AsyncPQ`, take part in the transaction.
    """

    def __init__(
        self,
        name: str,
        conn: Any = None,
        pool: Any = None,
        table: str = "queue",
        schema: str | None = None,
        *,
        engine: Engine | None = None,
        serializer: Serializer | str | None = None,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        names = TableName(table, schema) if engine is None else engine.names
        super().__init__(name, names, serializer, {**(options or {}), **more})
        self.engine = engine or Engine("async", AsyncioRuntime(), names, conn, pool)

    async def put(
        self,
        data: Any,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        *,
        connection: Any = None,
        dedup: Dedup | str | None = None,
        group: str | None = None,
        limits: Mapping[str, int] | None = None,
        headers: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        priority: int = 0,
        after: Parents = None,
    ) -> int:
        """Put a job; see `pqcore.Queue.put`. ``connection`` may also be a SQLAlchemy ``AsyncSession``."""
        options = given(dedup, group, limits, headers, tenant, priority, after)
        return await put.put(self.engine, self, data, schedule_at, expected_at, connection, options)

    async def put_many(
        self,
        items: Iterable[Any],
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        *,
        connection: Any = None,
        group: str | None = None,
        limits: Mapping[str, int] | None = None,
        headers: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        priority: int = 0,
    ) -> list[int]:
        """Put many jobs: all or none; see `pqcore.Queue.put_many`."""
        options = given(None, group, limits, headers, tenant, priority)
        return await put_many.put_many(self.engine, self, items, schedule_at, expected_at, connection, options)

    async def get(self, block: bool = True, timeout: float | None = None) -> AsyncJob | None:
        """Take the next job that is due; see `pqcore.Queue.get`."""
        rows = await fetch.get(self.engine, self, 1, block=block, timeout=timeout)
        return AsyncJob(self, rows[0]) if rows else None

    async def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[AsyncJob]:
        """Take up to ``n`` jobs; see `pqcore.Queue.get_many`."""
        rows = await fetch.get(self.engine, self, n, block=block, timeout=timeout)
        return [AsyncJob(self, row) for row in rows]

    async def lease(
        self,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> AsyncJob | None:
        """Lease a job; see `pqcore.Queue.lease`."""
        length, patience = lease.lease_terms(duration, timeout, wait)
        rows = await fetch.get(self.engine, self, 1, block=block, timeout=patience, lease=length)
        return AsyncJob(self, rows[0], leased=True) if rows else None

    async def lease_many(
        self,
        n: int,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> list[AsyncJob]:
        """Lease up to ``n`` jobs; see `pqcore.Queue.lease_many`."""
        length, patience = lease.lease_terms(duration, timeout, wait)
        rows = await fetch.get(self.engine, self, n, block=block, timeout=patience, lease=length)
        return [AsyncJob(self, row, leased=True) for row in rows]

    async def ack(self, job: AsyncJob, *, connection: Any = None) -> None:
        """Finish a leased job; see `pqcore.Queue.ack`."""
        if lost := await complete.acknowledge(self.engine, self, [job], connection):
            raise lease.lease_lost(self, lost)

    async def ack_many(self, jobs: Iterable[AsyncJob], *, connection: Any = None) -> list[AsyncJob]:
        """Finish leased jobs, and return the jobs whose leases were lost; see `pqcore.Queue.ack_many`."""
        return await complete.acknowledge(self.engine, self, check_jobs(jobs), connection)

    async def nack(self, job: AsyncJob, delay: TimeSpec = None) -> None:
        """Give a leased job back; see `pqcore.Queue.nack`."""
        await lease.nack(self.engine, self, job, delay)

    async def bury(self, job: AsyncJob, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job; see `pqcore.Queue.bury`."""
        await dead_letters.bury(self.engine, self, job, error, connection)

    async def extend(self, job: AsyncJob, duration: str | float | timedelta) -> None:
        """Set the end of a lease to ``duration`` from now; see `pqcore.Queue.extend`."""
        await lease.extend(self.engine, self, job, duration)

    async def update(self, job_id: int, data: Any) -> int:
        """Replace a job's data; see `pqcore.Queue.update`."""
        return await operations.admin.update(self.engine, self, job_id, data)

    async def cancel(self, job_id: int, *, running: bool = False) -> bool:
        """Delete a waiting job; see `pqcore.Queue.cancel`."""
        return await operations.admin.cancel(self.engine, self, job_id, running=running)

    async def peek(self, n: int = 1) -> list[AsyncJob]:
        """Return the next ``n`` jobs that are due; see `pqcore.Queue.peek`."""
        return [AsyncJob(self, row) for row in await fetch.peek(self.engine, self, n)]

    async def jobs(
        self,
        *states: str,
        n: int = 100,
        task: str | None = None,
        older_than: str | float | timedelta | None = None,
        failed: bool = False,
    ) -> list[StoredJob]:
        """Return up to ``n`` jobs in any state; see `pqcore.Queue.jobs`."""
        wanted = states or operations.list_jobs.UNFINISHED
        return await operations.list_jobs.list_by_state(
            self.engine, self, wanted, n, task=task, older_than=older_than, failed=failed
        )

    async def retry(self, job_id: int) -> bool:
        """Make a dead, done or scheduled job due now; see `pqcore.Queue.retry`."""
        return (await operations.retry.retry(self.engine, self, job_id)).done

    async def move(self, target: AsyncQueue | str, ids: Iterable[int] | None = None, most: int | None = None) -> int:
        """Move jobs to another queue of the table; see `pqcore.Queue.move`."""
        return await operations.move.move(self.engine, self, target, ids, most)

    async def reencode(
        self, *, step: int = REENCODE_STEP, every: bool = False, wait: str | float | timedelta = REENCODE_WAIT
    ) -> Reencoded:
        """Re-encode all data of this queue; see `pqcore.PQ.reencode`."""
        return await operations.reencode.reencode(self.engine, [self], step=step, every=every, wait=wait)

    async def inspect(self, job_id: int) -> JobInfo:
        """Return the stored state of a job; see `pqcore.Queue.inspect`."""
        return await operations.results.inspect(self.engine, self, job_id)

    async def explain(self, job_id: int) -> Explanation:
        """Return why a job does not run, and how to let it run; see `pqcore.Queue.explain`."""
        return await operations.explain.explain(self.engine, job_id, self)

    async def attempts(self, job_id: int) -> list[PastAttempt]:
        """Return the attempts of a job that failed, crashed or were snoozed; see `pqcore.Queue.attempts`."""
        return await operations.attempts.list_attempts(self.engine, self.name, job_id)

    async def status(self, job_id: int) -> str:
        """Return the ``state`` of a job, as `inspect` does."""
        return (await self.inspect(job_id)).state

    async def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any:
        """Wait for the result of a job's function; see `pqcore.Queue.result`."""
        return await operations.results.wait_for(self.engine, self, job_id, timeout)

    async def progress(self, job_id: int) -> Any:
        """Return the last progress that a running job reported; see `pqcore.Queue.progress`."""
        return (await self.inspect(job_id)).progress

    @property
    def dead(self) -> AsyncDeadLetters:
        """The queue's dead letters."""
        return AsyncDeadLetters(self.engine, self)

    async def count(self) -> int:
        """Return how many jobs are due; use this in place of `len`, which cannot be awaited."""
        return await operations.admin.count(self.engine, self)

    async def stats(self) -> QueueStats:
        """Return the number of jobs in the queue, by state."""
        found = await operations.admin.stats(self.engine, self.name)
        return found.get(self.name, operations.admin.QueueStats(0, 0, 0, None))

    async def workers(self) -> list[WorkerInfo]:
        """List the workers of the queue; see `pqcore.Queue.workers`."""
        return await operations.worker_registry.list_workers(self.engine, self)

    async def pause(
        self,
        until: TimeSpec = None,
        *,
        task: Any = None,
        limit: str | None = None,
        group: str | None = None,
        connection: Any = None,
    ) -> None:
        """Pause the queue; see `pqcore.Queue.pause`."""
        await operations.rules.pause(self.engine, self, until, connection, task=task, limit=limit, group=group)

    async def resume(
        self, *, task: Any = None, limit: str | None = None, group: str | None = None, connection: Any = None
    ) -> bool:
        """End a pause; see `pqcore.Queue.resume`."""
        return await operations.rules.resume(self.engine, self, connection, task=task, limit=limit, group=group)

    async def set_limit(self, name: str, places: int | None, *, connection: Any = None) -> None:
        """Set how many jobs of a limit may run concurrently; see `pqcore.Queue.set_limit`."""
        await operations.rules.set_limit(self.engine, self, name, places, connection)

    async def set_rate(self, name: str, rate: Rate | None, *, connection: Any = None) -> None:
        """Set how many jobs of a limit may begin in a period; see `pqcore.Queue.set_rate`."""
        await operations.rules.set_rate(self.engine, self, name, rate, connection)

    async def set_weight(self, share: str, weight: float | None, *, connection: Any = None) -> None:
        """Set the weight of a share; see `pqcore.Queue.set_weight`."""
        await operations.rules.set_weight(self.engine, self, share, weight, connection)

    async def set_expiry(
        self,
        *,
        finished: str | float | timedelta | None = AS_IT_IS,
        dead: str | float | timedelta | None = AS_IT_IS,
        connection: Any = None,
    ) -> None:
        """Set how long finished rows and dead letters are kept; see `pqcore.Queue.set_expiry`."""
        await operations.expiry.set_expiry(self.engine, self.name, finished=finished, dead=dead, connection=connection)

    async def rules(self) -> list[Rule]:
        """Return the limits, rates, weights and pauses that are in force."""
        return await operations.rules.list_rules(self.engine, self)

    async def limits(self) -> list[LimitUsage]:
        """Return the limits and groups in use; see `pqcore.Queue.limits`."""
        return await operations.limits.list_limits(self.engine, self)

    async def clear(self) -> None:
        """Delete all rows of the queue: waiting, leased and finished jobs."""
        await operations.admin.clear(self.engine, self)

    async def purge(self, older_than: str | float | timedelta) -> int:
        """Delete finished rows, kept or archived; see `pqcore.Queue.purge`."""
        return await operations.admin.purge(self.engine, self, older_than)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Open a transaction, or a savepoint within one; see `pqcore.Queue.transaction`."""
        async with self as cursor:
            yield cursor

    async def close(self) -> None:
        """Close the connections, as `AsyncPQ.close` does."""
        await self.engine.close()

    async def __aenter__(self) -> Any:
        return await self.engine.enter(self.cursor_kwargs)

    if not TYPE_CHECKING:  # type checkers find these attributes themselves

        def __enter__(self) -> None:
            msg = "this queue is asynchronous: write async with queue, or take the queue from a PQ"
            raise InvalidCall(msg)

        def __exit__(self, kind: object, value: object, traceback: object) -> None: ...

    if TYPE_CHECKING:

        async def __aexit__(self, kind: object, value: object, traceback: object) -> None: ...

    else:
        __aexit__ = Leaving(_leave, awaited=True)

    def __aiter__(self) -> AsyncQueueIterator:
        return AsyncQueueIterator(self)


class AsyncPQ(BasePQ[AsyncQueue]):
    """The queues of one table, awaited; `AsyncPQ` takes the arguments of `pqcore.PQ`.

    Connections are opened when first needed, in the event loop that needs them.
    """

    queue_class: type[AsyncQueue] = AsyncQueue
    _mode = "async"
    _runtime = AsyncioRuntime

    async def create(
        self,
        *,
        partitions: int | None = None,
        set_sequences: bool = False,
        keep_finished: str | float | timedelta | None = KEEP_FINISHED,
        keep_dead: str | float | timedelta | None = KEEP_DEAD,
    ) -> None:
        """Make the table, or migrate it in place; see `pqcore.PQ.create`."""
        await operations.admin.create(
            self.engine,
            partitions,
            set_sequences=set_sequences,
            keep_finished=keep_finished,
            keep_dead=keep_dead,
        )

    async def set_expiry(
        self,
        *,
        finished: str | float | timedelta | None = AS_IT_IS,
        dead: str | float | timedelta | None = AS_IT_IS,
        connection: Any = None,
    ) -> None:
        """Set how long finished rows and dead letters are kept; see `pqcore.PQ.set_expiry`."""
        await operations.expiry.set_expiry(self.engine, None, finished=finished, dead=dead, connection=connection)

    async def expiry(self) -> list[Expiry]:
        """List how long rows are kept; see `pqcore.PQ.expiry`."""
        return await operations.expiry.list_expiry(self.engine)

    async def stats(self) -> dict[str, QueueStats]:
        """Return the number of jobs in each queue, by state."""
        return await operations.admin.stats(self.engine, None)

    async def workers(self) -> list[WorkerInfo]:
        """List the workers of all queues; see `pqcore.Queue.workers`."""
        return await operations.worker_registry.list_workers(self.engine)

    async def quiet_worker(self, worker_id: str, *, quiet: bool = True) -> bool:
        """Tell a worker to take no more jobs; see `pqcore.PQ.quiet_worker`."""
        return await operations.worker_registry.set_quiet(self.engine, worker_id, quiet=quiet)

    async def encodings(self) -> list[Encoding]:
        """Count the stored data of all queues by table or state, serializer and key; see `pqcore.PQ.encodings`."""
        return await operations.encodings.count_all(self.engine)

    async def reencode(
        self,
        *queues: AsyncQueue | str,
        step: int = REENCODE_STEP,
        every: bool = False,
        wait: str | float | timedelta = REENCODE_WAIT,
    ) -> Reencoded:
        """Re-encode data with another key or serializer than its queue uses now; see `pqcore.PQ.reencode`."""
        named = [self[queue] if isinstance(queue, str) else queue for queue in queues]
        return await operations.reencode.reencode(self.engine, named, step=step, every=every, wait=wait)

    async def close(self) -> None:
        """Close the connection or pool, whether pqcore opened it or the caller gave it."""
        await self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    if not TYPE_CHECKING:

        def __enter__(self) -> None:
            msg = "an AsyncPQ is asynchronous: write async with pq, or open a PQ"
            raise InvalidCall(msg)

        def __exit__(self, kind: object, value: object, traceback: object) -> None: ...

    async def __aexit__(self, kind: object, value: object, traceback: object) -> None:
        await self.close()
