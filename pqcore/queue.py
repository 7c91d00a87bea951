"""The blocking face: `PQ` and `Queue`. Each method runs one operation of `pqcore.operations`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pqcore import operations
from pqcore.argument_checks import check_jobs
from pqcore.base_pq import BasePQ
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.blocks import Leaving
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.dead_letters import DeadLetters
from pqcore.errors import InvalidCall
from pqcore.job import Job
from pqcore.operations import complete, dead_letters, fetch, lease, put, put_many
from pqcore.operations.lease import LEASE_DURATION
from pqcore.put_options import Dedup, Parents, given
from pqcore.serializers import Serializer
from pqcore.settings import AS_IT_IS, KEEP_DEAD, KEEP_FINISHED, REENCODE_STEP, REENCODE_WAIT
from pqcore.sql.identifiers import TableName
from pqcore.tasks.fetched_jobs import claim_owed
from pqcore.tasks.queue import TaskQueueMixin
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from typing_extensions import Self

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


def _leave(engine: Engine, statement: object, kind: object, *_: object) -> None:
    run_sync(engine.leave(failed=kind is not None))


class QueueIterator:
    """An endless iterator that takes one job after the other, and yields None at each timeout.

    Attributes:
        timeout: Seconds to wait for each job; None for the queue's ``timeout``.
    """

    timeout: float | None = None

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __iter__(self) -> QueueIterator:
        return self

    def __next__(self) -> Job | None:
        return self._queue.get(timeout=self.timeout)


class Queue(TaskQueueMixin):
    """A transactional queue.

    ``pq["name"]`` makes a queue. Threads may share the queue if the `PQ` has a pool or a DSN. ``with queue as cursor:``
    opens a transaction in the running thread; all queues of the same `PQ` take part in the transaction.

    Args:
        name: The queue's name; ``/`` and the name of a serializer may follow.
        conn: See `PQ`; cannot be combined with ``engine``.
        pool: See `PQ`; cannot be combined with ``engine``.
        table: See `PQ`.
        schema: See `PQ`.
        engine: The engine of the `PQ` that makes the queue.
        serializer: A serializer, or the name of one; ``name`` is then used unchanged, even if it has a slash.
        options: Settings of the queue; see `QueueSettings`.
        **more: More settings of the queue, as keywords.

    Attributes:
        engine: The engine that runs operations on the table, for pqcore's own modules and integrations. The engine's
            methods may change.
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
        self.engine = engine or Engine("blocking", BlockingRuntime(), names, conn, pool)

    def put(
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
        """Put a job.

        Args:
            data: Any value that the queue's serializer can encode; by default, any value that JSON can hold.
            schedule_at: The earliest time at which the job may run: ``'5m'``, a timedelta or a datetime.
            expected_at: The time by which the job is wanted; jobs with earlier times are taken first.
            connection: A connection whose open transaction writes the job: a driver's, a SQLAlchemy ``Connection`` or
                ``Session``, or Django's.
            dedup: A key that only one job can have at a time; see `Dedup`. The job keeps a key given as a string until
                the job is finished.
            group: Workers run the leased jobs of one group one at a time, in the order in which they were put.
            limits: How many leased jobs of a name all workers together may run concurrently: ``{"reports": 3}``.
            headers: JSON values that are stored with the job's data: ``job.headers``.
            tenant: The share that the job belongs to; leases serve the tenants of a queue in turn, by their weights.
            priority: A whole number; jobs with higher numbers are taken first. Older versions of pqcore, and pq, ignore
                the priority.
            after: Jobs that this job waits for: an id, or a list of ids and `After`. If one of those jobs fails, this
                job becomes a dead letter, unless an `After` says otherwise.

        Returns:
            The job's id; if another job has the dedup key, the id of that job.

        Raises:
            InvalidTimeSpec: A time cannot be read (a ValueError).
            SerializationError: The serializer cannot encode the data (a TypeError and ValueError).
            PayloadTooLarge: The encoded data is larger than ``max_size``.
            DuplicateJob: Another job has the dedup key, and ``on_conflict`` is ``"error"``.
            JobNotFound: The table has no job with an id in ``after``.
        """
        options = given(dedup, group, limits, headers, tenant, priority, after)
        return run_sync(put.put(self.engine, self, data, schedule_at, expected_at, connection, options))

    def put_many(
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
        """Put many jobs: either all of them, or none.

        Args:
            items: The data of each job; or a `NewJob` for each job, with options of its own. A generator is consumed
                while the jobs are sent.
            schedule_at: The earliest time for all jobs; see `put`.
            expected_at: The expected time of all jobs; see `put`.
            connection: A connection whose open transaction writes the jobs; see `put`.
            group: The group of all jobs; see `put`.
            limits: The limits of all jobs; see `put`.
            headers: The headers of all jobs; see `put`.
            tenant: The tenant of all jobs; see `put`.
            priority: The priority of all jobs; see `put`.

        Returns:
            The ids, in the order of ``items``. If another job has the dedup key of a `NewJob`, the id of that job.

        Raises:
            InvalidCall: Some items are `NewJob` objects, and others are data.
            DuplicateJob: Another job, or an earlier item, has the dedup key of a `NewJob`, and ``on_conflict`` is
                ``"error"``; nothing was put.
            JobNotFound: The table has no job with an id in the ``after`` of a `NewJob`; nothing was put.
            TransientError: A deadlock with another put of the same keys happened in your own transaction. Outside of a
                transaction, pqcore puts the jobs again, and raises this error only after several deadlocks.
        """
        options = given(None, group, limits, headers, tenant, priority)
        return run_sync(put_many.put_many(self.engine, self, items, schedule_at, expected_at, connection, options))

    def get(self, block: bool = True, timeout: float | None = None) -> Job | None:
        """Take the next job that is due, and mark the job as finished before returning it.

        Outside a transaction, the job is delivered at most once. Within ``with queue``, the job returns to the queue if
        the block is rolled back. Jobs that follow in a chain or batch are put as if the job's function had returned
        None. On a queue that has declared tasks, the following jobs are put later: when `perform` has run the job, or
        when the program has dropped the job object.

        Args:
            block: Whether to wait for a job.
            timeout: Seconds to wait, at most; None for the queue's ``timeout``, 0 to return immediately.

        Returns:
            The job, or None if no job was due in time.
        """
        if self.performs_taken:
            jobs = self._take_to_perform(1, block=block, timeout=timeout)
            return jobs[0] if jobs else None
        rows = run_sync(fetch.get(self.engine, self, 1, block=block, timeout=timeout))
        return Job(self, rows[0]) if rows else None

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[Job]:
        """Take up to ``n`` jobs in one statement, waiting for the first.

        Returns:
            The jobs, in the order of `get`; an empty list if no job was due in time.
        """
        if self.performs_taken:
            return self._take_to_perform(n, block=block, timeout=timeout)
        rows = run_sync(fetch.get(self.engine, self, n, block=block, timeout=timeout))
        return [Job(self, row) for row in rows]

    def lease(
        self,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> Job | None:
        """Lease a job: another consumer gets the job if it is not acknowledged before the lease ends.

        Leases suit work that takes longer than a transaction should stay open. Each job is delivered at least once.

        Args:
            duration: The length of the lease: seconds, ``'5m'`` or a timedelta.
            block: Whether to wait for a job.
            timeout: Seconds to wait for a job, at most; None for the queue's ``timeout``. ``timeout`` needs
                ``duration``.
            wait: Another name of ``timeout``, which does not need ``duration``.

        Returns:
            The job, or None if no job was due in time.

        Raises:
            InvalidTimeSpec: A time cannot be read (a ValueError).
            ConfigurationError: ``timeout`` is given without ``duration``, or together with ``wait``; or ``duration``
                is 0.
        """
        length, patience = lease.lease_terms(duration, timeout, wait)
        rows = run_sync(fetch.get(self.engine, self, 1, block=block, timeout=patience, lease=length))
        return Job(self, rows[0], leased=True) if rows else None

    def lease_many(
        self,
        n: int,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> list[Job]:
        """Lease up to ``n`` jobs, with the arguments of `lease`."""
        length, patience = lease.lease_terms(duration, timeout, wait)
        rows = run_sync(fetch.get(self.engine, self, n, block=block, timeout=patience, lease=length))
        return [Job(self, row, leased=True) for row in rows]

    def ack(self, job: Job, *, connection: Any = None) -> None:
        """Finish a leased job, and put the jobs that follow it in a chain or batch.

        Args:
            job: A job that `lease` returned.
            connection: A connection whose open transaction finishes the job; see `put`.

        Raises:
            LeaseLost: The lease ran out, and another consumer got the job.
        """
        if lost := run_sync(complete.acknowledge(self.engine, self, [job], connection)):
            raise lease.lease_lost(self, lost)

    def ack_many(self, jobs: Iterable[Job], *, connection: Any = None) -> list[Job]:
        """Finish leased jobs as `ack` does, in one statement if none of them has a follow-up.

        Returns:
            The jobs that were not finished because their leases were lost; see `LeaseLost`.
        """
        return run_sync(complete.acknowledge(self.engine, self, check_jobs(jobs), connection))

    def nack(self, job: Job, delay: TimeSpec = None) -> None:
        """Give a leased job back to the queue.

        Args:
            job: A job that `lease` returned.
            delay: Time until the job may be taken again; None puts the job back in its place.

        Raises:
            LeaseLost: The lease ran out, and another consumer got the job.
        """
        run_sync(lease.nack(self.engine, self, job, delay))

    def bury(self, job: Job, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job that this consumer gives up, so that the job does not hold up other jobs.

        The job may be leased, or taken with `get`. Within ``with queue``, the change is committed or rolled back with
        the block. `DeadLetters.retry` turns the dead letter into a job again.

        Args:
            job: A job that `get` or `lease` returned.
            error: The cause: an exception or a text. The reason becomes ``unreadable`` after `Unreadable`, ``invalid``
                after another `DeserializationError`, and otherwise ``failed``.
            connection: A connection whose open transaction writes the dead letter; see `put`.

        Raises:
            LeaseLost: The lease ran out, and another consumer got the job.
            JobNotFound: The job was not taken, or its row has changed since.
        """
        owed = None if job.leased else claim_owed(job)
        run_sync(dead_letters.bury(self.engine, self, job, error, connection, owed=owed))

    def extend(self, job: Job, duration: str | float | timedelta) -> None:
        """Set the end of a lease to ``duration`` from now.

        Args:
            job: A job that `lease` returned.
            duration: Seconds, ``'5m'`` or a timedelta.

        Raises:
            LeaseLost: The lease ran out, and another consumer got the job.
            InvalidTimeSpec, ConfigurationError: ``duration`` cannot be read (both a ValueError), or is 0.
        """
        run_sync(lease.extend(self.engine, self, job, duration))

    def update(self, job_id: int, data: Any) -> int:
        """Replace a job's data.

        Returns:
            The size of the stored data: characters of JSON text, or bytes.

        Raises:
            JobNotFound: The table has no row of this job.
        """
        return run_sync(operations.admin.update(self.engine, self, job_id, data))

    def cancel(self, job_id: int, *, running: bool = False) -> bool:
        """Delete a waiting job.

        Args:
            job_id: The job's id.
            running: Whether to ask the worker to stop the job, if the job is leased. A worker cancels coroutines; a
                function that runs in a thread should check ``current().cancelled``.

        Returns:
            True if the job was waiting and is now cancelled, or if its worker was asked to stop the job; False if the
            job is taken, leased, finished, or not there.
        """
        return run_sync(operations.admin.cancel(self.engine, self, job_id, running=running))

    def peek(self, n: int = 1) -> list[Job]:
        """Return the next ``n`` jobs that are due, in order, without taking them."""
        return [Job(self, row) for row in run_sync(fetch.peek(self.engine, self, n))]

    def jobs(
        self,
        *states: str,
        n: int = 100,
        task: str | None = None,
        older_than: str | float | timedelta | None = None,
        failed: bool = False,
    ) -> list[StoredJob]:
        """Return up to ``n`` jobs in any state, grouped by state in the order of ``states``.

        Args:
            states: Any of ``ready``, ``scheduled``, ``leased``, ``parked``, ``done`` and ``dead``; if none is given,
                all unfinished jobs.
            n: The largest number of jobs, up to 100,000.
            task: Return only calls of the function with this path, such as ``app.emails.send``.
            older_than: Return only jobs that were put at least this long ago: seconds, ``'5m'`` or a timedelta.
            failed: Return only jobs that failed with an exception.

        Raises:
            ConfigurationError: A state is unknown, or ``n`` is out of range.
        """
        wanted = states or operations.list_jobs.UNFINISHED
        return run_sync(
            operations.list_jobs.list_by_state(
                self.engine, self, wanted, n, task=task, older_than=older_than, failed=failed
            )
        )

    def retry(self, job_id: int) -> bool:
        """Make a dead, done or scheduled job due now; a dead or done job starts again with no failures.

        A job that waits for other jobs (``after``) no longer waits for them.

        Returns:
            True if the job is due now; False if it was ready already, is leased or parked, or does not exist.
        """
        return run_sync(operations.retry.retry(self.engine, self, job_id)).done

    def move(self, target: Queue | str, ids: Iterable[int] | None = None, most: int | None = None) -> int:
        """Move waiting, scheduled and parked jobs to another queue of the table; they keep their ids and times.

        Leased jobs stay, and so do jobs whose dedup key is in use in the target queue.

        Args:
            target: The target queue, or its name.
            ids: Move only jobs with these ids; None for all.
            most: The largest number of jobs to move, earliest due first; None for all.

        Returns:
            The number of jobs moved. Unless a transaction is open, pqcore commits after every 500 jobs.

        Raises:
            ConfigurationError: The target is the same queue, or a queue of another table.
        """
        return run_sync(operations.move.move(self.engine, self, target, ids, most))

    def reencode(
        self, *, step: int = REENCODE_STEP, every: bool = False, wait: str | float | timedelta = REENCODE_WAIT
    ) -> Reencoded:
        """Re-encode all data of this queue, wherever it is stored; see `PQ.reencode`."""
        return run_sync(operations.reencode.reencode(self.engine, [self], step=step, every=every, wait=wait))

    def inspect(self, job_id: int) -> JobInfo:
        """Return the stored state of a job, with its attempts, last error and progress.

        Raises:
            JobNotFound: No job has this id, or the job is finished and its row was deleted.
        """
        return run_sync(operations.results.inspect(self.engine, self, job_id))

    def explain(self, job_id: int) -> Explanation:
        """Return why a job does not run, and how to let it run. The call changes nothing and locks nothing.

        Args:
            job_id: The job's id.

        Returns:
            All causes, the most important first; an empty list means that the next free worker takes the job.
        """
        return run_sync(operations.explain.explain(self.engine, job_id, self))

    def attempts(self, job_id: int) -> list[PastAttempt]:
        """Return the attempts of a job that failed, crashed or were snoozed, the first one first.

        The last 20 are kept while the job is in the table, the archive or the dead letters.

        Args:
            job_id: The job.
        """
        return run_sync(operations.attempts.list_attempts(self.engine, self.name, job_id))

    def status(self, job_id: int) -> str:
        """Return the ``state`` of a job, as `inspect` does."""
        return self.inspect(job_id).state

    def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any:
        """Wait for the result of a job's function, and return the result.

        Args:
            job_id: The id of a job that was put with ``keep_result``.
            timeout: How long to wait: seconds, ``'5m'`` or a timedelta; None to wait without a limit.

        Raises:
            JobFailed: The job is a dead letter, or was dropped.
            JobNotFound: No result of the job is kept.
            ResultNotStored: The job is done, but its result could not be stored.
            ResultTimeout: The result did not arrive in time.
        """
        return run_sync(operations.results.wait_for(self.engine, self, job_id, timeout))

    def progress(self, job_id: int) -> Any:
        """Return the last progress that a running job reported; None if it reported nothing."""
        return self.inspect(job_id).progress

    @property
    def dead(self) -> DeadLetters:
        """The queue's dead letters."""
        return DeadLetters(self.engine, self)

    def count(self) -> int:
        """Return how many jobs are due."""
        return run_sync(operations.admin.count(self.engine, self))

    def stats(self) -> QueueStats:
        """Return the number of jobs in the queue, by state."""
        found = run_sync(operations.admin.stats(self.engine, self.name))
        return found.get(self.name, operations.admin.QueueStats(0, 0, 0, None))

    def workers(self) -> list[WorkerInfo]:
        """List workers of the queue that run, and workers that stopped without notice within the last hour.

        Only instances of `pqcore.worker.Worker` are listed, in the order of their start. Consumers that call `get`,
        `lease` or `work` are not listed.
        """
        return run_sync(operations.worker_registry.list_workers(self.engine, self))

    def pause(
        self,
        until: TimeSpec = None,
        *,
        task: Any = None,
        limit: str | None = None,
        group: str | None = None,
        connection: Any = None,
    ) -> None:
        """Pause the queue: `get` and `lease` return no job, and workers start no job.

        Jobs can still be put, and running jobs continue. Consumers obey a pause within one second after its commit, or
        within the queue's ``poll_interval`` if that is shorter.

        Args:
            until: When the pause ends: ``'5m'``, a timedelta or a datetime; None to pause until `resume`.
            task: Pause only calls of this task: a path, such as ``"app.emails.send"``, or the declared function.
                Workers and `lease` obey the pause; `get` does not.
            limit: Pause only jobs under this limit; only workers and `lease` obey the pause.
            group: Pause only jobs of this group; only workers and `lease` obey the pause.
            connection: A connection whose open transaction writes the pause; see `put`.

        Raises:
            ConfigurationError: More than one of ``task``, ``limit`` and ``group`` is given.
            InvalidName: A task, limit or group cannot have this name.
            InvalidTimeSpec: ``until`` cannot be read, or has passed.
        """
        run_sync(operations.rules.pause(self.engine, self, until, connection, task=task, limit=limit, group=group))

    def resume(
        self, *, task: Any = None, limit: str | None = None, group: str | None = None, connection: Any = None
    ) -> bool:
        """End a pause; consumers that wait for a job look again immediately.

        Args:
            task: The task that was paused; see `pause`.
            limit: The limit that was paused; see `pause`.
            group: The group that was paused; see `pause`.
            connection: A connection whose open transaction ends the pause; see `put`.

        Returns:
            Whether the pause was in force before the call.
        """
        return run_sync(operations.rules.resume(self.engine, self, connection, task=task, limit=limit, group=group))

    def set_limit(self, name: str, places: int | None, *, connection: Any = None) -> None:
        """Set how many leased jobs of a limit may run concurrently, overriding the numbers given with puts.

        Args:
            name: The name of the limit, as in ``put(limits={name: 2})``.
            places: The number of jobs; None removes the rule, so that the number given with the newest put counts.
            connection: A connection whose open transaction sets the rule; see `put`.

        Raises:
            ConfigurationError: ``places`` is not a number of at least 1.
            InvalidName: A limit cannot have this name.
        """
        run_sync(operations.rules.set_limit(self.engine, self, name, places, connection))

    def set_rate(self, name: str, rate: Rate | None, *, connection: Any = None) -> None:
        """Set how many jobs of a limit may begin in a period.

        After a period without jobs, as after a pause, all jobs that the rate allows per period may begin together.

        Args:
            name: The name of the limit, as in ``put(limits={name: 2})``.
            rate: ``"10/s"``, ``"600/min"``, ``"5/h"`` or ``"100/5m"``, or a number and a time: ``(100, "5m")``; None
                removes the rule.
            connection: A connection whose open transaction sets the rule; see `put`.

        Raises:
            ConfigurationError: ``rate`` cannot be read.
            InvalidName: A limit cannot have this name.
        """
        run_sync(operations.rules.set_rate(self.engine, self, name, rate, connection))

    def set_weight(self, share: str, weight: float | None, *, connection: Any = None) -> None:
        """Set the weight of a share: how many jobs it gets for each job of a share with weight 1.

        Args:
            share: The share; ``""`` means the jobs that name no tenant.
            weight: A number above 0; None removes the rule, so that the weight is 1.
            connection: A connection whose open transaction sets the rule; see `put`.

        Raises:
            ConfigurationError: ``weight`` is not a number above 0.
            InvalidName: A share cannot have this name.
        """
        run_sync(operations.rules.set_weight(self.engine, self, share, weight, connection))

    def set_expiry(
        self,
        *,
        finished: str | float | timedelta | None = AS_IT_IS,
        dead: str | float | timedelta | None = AS_IT_IS,
        connection: Any = None,
    ) -> None:
        """Set how long finished rows and dead letters of this queue are kept; see `PQ.set_expiry`."""
        run_sync(
            operations.expiry.set_expiry(self.engine, self.name, finished=finished, dead=dead, connection=connection)
        )

    def rules(self) -> list[Rule]:
        """Return the limits, rates, weights and pauses that are in force."""
        return run_sync(operations.rules.list_rules(self.engine, self))

    def limits(self) -> list[LimitUsage]:
        """Return the limits and groups in use: how many jobs each allows, and how many run and wait under it.

        The call counts all waiting jobs, so it takes as long as `stats`.
        """
        return run_sync(operations.limits.list_limits(self.engine, self))

    def clear(self) -> None:
        """Delete all rows of the queue: waiting, leased and finished jobs.

        Batches count deleted unfinished jobs as failed, and put the jobs that follow a batch.
        """
        run_sync(operations.admin.clear(self.engine, self))

    def purge(self, older_than: str | float | timedelta) -> int:
        """Delete finished rows, both kept and archived ones.

        Args:
            older_than: Delete only jobs that finished at least this long ago: seconds, ``'14d'`` or a timedelta.

        Returns:
            The number of rows deleted.
        """
        return run_sync(operations.admin.purge(self.engine, self, older_than))

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Open a transaction, or a savepoint within one, and yield a cursor of the driver.

        The end of the block commits; an exception rolls back.
        """
        with self as cursor:
            yield cursor

    _transaction = transaction  # the name that pq uses

    def close(self) -> None:
        """Close the connections, as `PQ.close` does."""
        run_sync(self.engine.close())

    def __enter__(self) -> Any:
        return run_sync(self.engine.enter(self.cursor_kwargs))

    if not TYPE_CHECKING:  # type checkers find these attributes themselves

        async def __aenter__(self) -> None:
            msg = "this queue is blocking: write with queue, or take the queue from an AsyncPQ"
            raise InvalidCall(msg)

        async def __aexit__(self, kind: object, value: object, traceback: object) -> None: ...

    if TYPE_CHECKING:

        def __exit__(self, kind: object, value: object, traceback: object) -> None: ...

    else:
        __exit__ = Leaving(_leave)

    def __iter__(self) -> QueueIterator:
        return QueueIterator(self)

    def __len__(self) -> int:
        return self.count()


class PQ(BasePQ[Queue]):
    """The queues of one table.

    Args:
        conn: A DSN (``"postgresql://..."`` or ``"dbname=..."``), or a connection that you opened. A `PQ` with a DSN has
            its own pool, and replaces lost connections.
        pool: A pool that you made; give it instead of ``conn``.
        table: The table's name.
        schema: The table's schema; None for the first schema of the search path.
        queue_class: The class of the queues; a subclass of `Queue`.
        backend: The backend's name. Otherwise ``conn`` or ``pool``, the URL (``postgresql+psycopg2://``),
            PQCORE_BACKEND, or the installed drivers decide.
        max_connections: The largest number of connections that a `PQ` with a DSN opens; one more connection listens.
        pool_timeout: Seconds to wait for a free connection, or for your connection while another thread or task uses
            it.
        answer_timeout: Seconds that a statement of pqcore may wait for the server's answer; None for no limit. After
            three quarters of this time, pqcore asks the server to cancel the statement. At the end of this time, pqcore
            closes the connection, and the call raises `ConnectionLost`. Statistics, moves and purges may take ten times
            as long, and `create` has no limit.
        prepared: Whether pqcore may prepare statements on the server, and waiters may LISTEN. By default, pqcore checks
            whether a pooler such as PgBouncer answers. Behind a pooler, statements are not prepared, and waiters poll.
            Give True for a pooler in session mode, and False for one in transaction mode; True skips the check. With
            False, pqcore checks only the first connection, because the server may be PGlite.
        dialect: The server's kind, if the server resembles PostgreSQL but differs from it: ``"citus"``,
            ``"cockroachdb"``. The default is the value of PQCORE_DIALECT, or else PostgreSQL.
        group_commit: Whether concurrent calls of tasks or threads share one statement and one commit. None groups calls
            if ``conn`` is a DSN. True groups calls on a ``pool``, too; that pool must give all borrowers the same role
            and settings. False commits each call by itself.
        **options: Settings of all queues; see `QueueSettings`.

    Attributes:
        options: The settings of the queues, as the caller gave them.
        engine: The engine that runs operations on the table, for pqcore's own modules and integrations. The engine's
            methods may change.

    Raises:
        UnknownBackend: No backend has the name, or no backend accepts the connection.
        BackendNotInstalled: The backend's driver is missing.
        ConfigurationError: An option has an invalid value.
    """

    queue_class: type[Queue] = Queue
    _mode = "blocking"
    _runtime = BlockingRuntime

    def create(
        self,
        *,
        partitions: int | None = None,
        set_sequences: bool = False,
        keep_finished: str | float | timedelta | None = KEEP_FINISHED,
        keep_dead: str | float | timedelta | None = KEEP_DEAD,
    ) -> None:
        """Make the table, or migrate it in place; do nothing if the table is up to date.

        Args:
            partitions: The number of partitions of a new table; each queue has all its rows in one partition. None
                makes a table without partitions, or leaves an existing table as it is.
            set_sequences: Also raise id sequences that are behind the existing ids, as after logical replication, a
                restore of rows alone, or ``TRUNCATE ... RESTART IDENTITY``.
            keep_finished: How long a new table keeps finished rows: seconds, ``'7d'`` or a timedelta; None to keep all.
                Workers delete older rows. For an existing table, see `set_expiry`.
            keep_dead: How long a new table keeps dead letters: seconds, ``'90d'`` or a timedelta; None to keep all.

        Raises:
            InvalidTimeSpec: A time cannot be read.
            ConfigurationError: The table exists and has another number of partitions.
            SchemaTooNew: A newer pqcore made the table.
            TransientError: The table was in use for too long; call `create` again.
        """
        run_sync(
            operations.admin.create(
                self.engine,
                partitions,
                set_sequences=set_sequences,
                keep_finished=keep_finished,
                keep_dead=keep_dead,
            )
        )

    def set_expiry(
        self,
        *,
        finished: str | float | timedelta | None = AS_IT_IS,
        dead: str | float | timedelta | None = AS_IT_IS,
        connection: Any = None,
    ) -> None:
        """Set how long finished rows and dead letters are kept, in all queues that have no other setting.

        Workers delete older rows, at least a few thousand per minute. Rows with a kept result stay until the result
        expires, and rows of an open batch stay until the batch ends.

        Args:
            finished: How long finished rows are kept, archived ones included: seconds, ``'7d'`` or a timedelta; None to
                keep all. If not given, this time does not change.
            dead: How long dead letters are kept: seconds, ``'90d'`` or a timedelta; None to keep all.
            connection: A connection whose open transaction sets the times; see `Queue.put`.

        Raises:
            InvalidTimeSpec: A time cannot be read.
            ConfigurationError: Neither time is given.
        """
        run_sync(operations.expiry.set_expiry(self.engine, None, finished=finished, dead=dead, connection=connection))

    def expiry(self) -> list[Expiry]:
        """List how long rows are kept, and how many expired rows were deleted; empty if all rows are kept."""
        return run_sync(operations.expiry.list_expiry(self.engine))

    def stats(self) -> dict[str, QueueStats]:
        """Return the number of jobs in each queue, by state."""
        return run_sync(operations.admin.stats(self.engine, None))

    def workers(self) -> list[WorkerInfo]:
        """List the workers of all queues; see `Queue.workers`."""
        return run_sync(operations.worker_registry.list_workers(self.engine))

    def quiet_worker(self, worker_id: str, *, quiet: bool = True) -> bool:
        """Tell a worker to take no more jobs; return whether the worker is listed.

        The worker reads this request at its next renewal, within 10 s. The worker finishes the jobs that it runs, and
        gives back jobs that it has not started. The worker process does not stop. The request does not apply to workers
        that are started later, because they have other ids.

        Args:
            worker_id: The id of the worker, from `workers`.
            quiet: Whether the worker takes no more jobs; False lets it take jobs again.
        """
        return run_sync(operations.worker_registry.set_quiet(self.engine, worker_id, quiet=quiet))

    def encodings(self) -> list[Encoding]:
        """Count the stored data of all queues by table or state, serializer and key; counting needs no key."""
        return run_sync(operations.encodings.count_all(self.engine))

    def reencode(
        self,
        *queues: Queue | str,
        step: int = REENCODE_STEP,
        every: bool = False,
        wait: str | float | timedelta = REENCODE_WAIT,
    ) -> Reencoded:
        """Re-encode data that differs from what its queue writes now, after a key or a serializer has changed.

        The call covers jobs of every state, chains, batches, dead letters, the archive and results. Other programs may
        put and take jobs meanwhile. An interrupted call can be repeated. If only the key is new, no data is decoded.

        Args:
            *queues: The queues, or their names as in ``pq["cards/json+fernet"]``. Each queue reads data of its own
                serializer and of those in its ``accept``, with all keys. It writes with its own serializer, under the
                first key.
            step: Rows to write in one transaction, from 1 to 1,000.
            every: Whether to re-encode data that is already as the queue writes it.
            wait: How long the call may wait, at its end, for locked rows and for leased jobs in chains: seconds,
                ``'5m'`` or a timedelta.

        Returns:
            The encodings before and after the call, and data that is still in another encoding than its queue writes.

        Raises:
            ConfigurationError: No queue is named, one is named twice or is of another table, ``step`` is out of range,
                or a transaction is open.
        """
        named = [self[queue] if isinstance(queue, str) else queue for queue in queues]
        return run_sync(operations.reencode.reencode(self.engine, named, step=step, every=every, wait=wait))

    def close(self) -> None:
        """Close the connection or pool, whether pqcore opened it or the caller gave it."""
        run_sync(self.engine.close())

    def __enter__(self) -> Self:
        return self

    if not TYPE_CHECKING:

        async def __aenter__(self) -> None:
            msg = "a PQ is blocking: write with pq, or open an AsyncPQ"
            raise InvalidCall(msg)

        async def __aexit__(self, kind: object, value: object, traceback: object) -> None: ...

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()
