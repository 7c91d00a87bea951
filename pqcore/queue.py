"""The blocking face: `PQ` and `Queue`.  Each method is a line over `pqcore.operations`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pqcore import operations
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
from pqcore.put_options import Dedup, given
from pqcore.serializers import Serializer
from pqcore.settings import AS_IT_IS, KEEP_DEAD, KEEP_FINISHED, REENCODE_STEP, REENCODE_WAIT
from pqcore.sql.identifiers import TableName
from pqcore.tasks.fetched_jobs import claim_owed
from pqcore.tasks.queue import TaskQueueMixin
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from typing_extensions import Self

    import pqcore.operations.expiry
    import pqcore.operations.explain
    import pqcore.operations.move
    import pqcore.operations.retry  # noqa: F401 - with these, the type checker knows their names in `operations`
    from pqcore.operations.admin import QueueStats
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
    """Takes one job after the other, for ever; yields None at each timeout.

    Attributes:
        timeout: Seconds to wait for each; None for the queue's ``timeout``.
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

    Made by ``pq["name"]``, and safe to share between threads if the `PQ` has a
    pool or DSN.  ``with queue as cursor:`` is a transaction of the running
    thread, in which all queues of the same `PQ` take part.

    Args:
        name: The queue's name, maybe with ``/`` and a serializer's.
        conn: As for `PQ`; not with ``engine``.
        pool: As for `PQ`; not with ``engine``.
        table: As for `PQ`.
        schema: As for `PQ`.
        engine: The `PQ`'s own.
        serializer: Named apart, or given as an object; ``name`` is then taken as it is.
        options: Set as attributes; see `QueueSettings`.
        **more: Likewise.

    Attributes:
        engine: Runs operations on the table; for pqcore's own modules and integrations. Its methods may change.
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
    ) -> int:
        """Put a job.

        Args:
            data: Whatever the queue's serializer can encode; JSON-compatible by default.
            schedule_at: Not before this time: ``'5m'``, a timedelta or a datetime.
            expected_at: Wanted by this time; the earlier, the sooner it is taken.
            connection: Put it in the transaction of this connection: a driver's,
                a SQLAlchemy ``Connection`` or ``Session``, or a Django connection.
            dedup: A key that one job has at a time; see `Dedup`. A string is held until the job is finished.
            group: Leased jobs of one group are worked on in the order that they were put, one at a time.
            limits: How many leased jobs of a name may be worked on at once, by all workers: ``{"reports": 3}``.
            headers: What travels beside the data, as JSON: ``job.headers``.
            tenant: Whose share the job is counted to: leases serve the tenants of a queue in turn, by their weights.
            priority: A whole number, higher first. Code before this version, and pq, take no notice of it.

        Returns:
            The job's id; that of the job that has the dedup key, if it is taken.

        Raises:
            InvalidTimeSpec: A time is not one (a ValueError).
            SerializationError: The data cannot be encoded (a TypeError and ValueError).
            PayloadTooLarge: It is larger than ``max_size``.
            DuplicateJob: The dedup key is taken, and that was to be an error.
        """
        options = given(dedup, group, limits, headers, tenant, priority)
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
        """Put many jobs at once: all or none.

        Args:
            items: The data of each; a generator is consumed as it is sent.
            schedule_at: For all, as for `put`.
            expected_at: For all, as for `put`.
            connection: As for `put`.
            group: For all, as for `put`.
            limits: For all, as for `put`.
            headers: For all, as for `put`.
            tenant: For all, as for `put`.
            priority: For all, as for `put`.

        Returns:
            The ids, in the order of ``items``.
        """
        options = given(None, group, limits, headers, tenant, priority)
        return run_sync(put_many.put_many(self.engine, self, items, schedule_at, expected_at, connection, options))

    def get(self, block: bool = True, timeout: float | None = None) -> Job | None:
        """Take the next job that is due; it is finished before this returns.

        Outside of a transaction the job is delivered at most once; within ``with
        queue`` it comes back if that is rolled back.
        What follows from it, in a chain or batch, follows, as if its function had returned None. On a queue on which
        tasks are declared, that waits for `perform`, or until nobody has the job any more.

        Args:
            block: Whether to wait for one.
            timeout: Seconds to wait, at most; None for the queue's ``timeout``, 0
                to return at once.

        Returns:
            The job, or None if none was due in time.
        """
        if self.performs_taken:
            jobs = self._take_to_perform(1, block=block, timeout=timeout)
            return jobs[0] if jobs else None
        rows = run_sync(fetch.get(self.engine, self, 1, block=block, timeout=timeout))
        return Job(self, rows[0]) if rows else None

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[Job]:
        """Take up to ``n`` jobs in one statement, waiting for the first.

        Returns:
            The jobs, in the order of `get`; an empty list if none was due in time.
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
        """Take a job for a time: unless acknowledged by then, it is given to another.

        For work longer than a transaction should live.  Delivered at least once.

        Args:
            duration: The length of the lease: seconds, ``'5m'`` or a timedelta.
            block: Whether to wait for a job.
            timeout: Seconds to wait for a job, at most, as for `get`; None for the queue's ``timeout``. Only together
                with ``duration``.
            wait: Another name of ``timeout``, which may stand without ``duration``.

        Returns:
            The job, or None if none was due in time.

        Raises:
            InvalidTimeSpec: A time is not one (a ValueError).
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
        """Take up to ``n`` jobs for a time, with the arguments of `lease`."""
        length, patience = lease.lease_terms(duration, timeout, wait)
        rows = run_sync(fetch.get(self.engine, self, n, block=block, timeout=patience, lease=length))
        return [Job(self, row, leased=True) for row in rows]

    def ack(self, job: Job, *, connection: Any = None) -> None:
        """Finish a leased job; what follows from it, in a chain or batch, follows.

        Args:
            job: The job, as `lease` gave it.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            LeaseLost: The lease ran out, and the job was given to another.
        """
        if lost := run_sync(complete.acknowledge(self.engine, self, [job], connection)):
            raise lease.lease_lost(self, lost)

    def ack_many(self, jobs: Iterable[Job], *, connection: Any = None) -> list[Job]:
        """Finish leased jobs, and do what follows from them, as `ack` does; in one statement if nothing follows.

        Returns:
            Those whose lease was lost, which were not finished; see `LeaseLost`.
        """
        return run_sync(complete.acknowledge(self.engine, self, list(jobs), connection))

    def nack(self, job: Job, delay: TimeSpec = None) -> None:
        """Give a leased job back.

        Args:
            job: The job, as `lease` gave it.
            delay: Time until it may be taken again; None puts it back in its place.

        Raises:
            LeaseLost: As for `ack`.
        """
        run_sync(lease.nack(self.engine, self, job, delay))

    def bury(self, job: Job, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job that this consumer gives up, so that it holds up no others.

        A leased job, or one that `get` took: within ``with queue`` it is committed, or rolled back, with the block.
        `DeadLetters.retry` makes it a job again.

        Args:
            job: The job, as `get` or `lease` gave it.
            error: Why: an exception or a text. The reason is ``unreadable`` after `Unreadable`, ``invalid`` after
                another `DeserializationError`, and otherwise ``failed``.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            LeaseLost: The lease ran out, and the job was given to another.
            JobNotFound: The job was not taken, or its row has changed since.
        """
        owed = None if job.leased else claim_owed(job)
        run_sync(dead_letters.bury(self.engine, self, job, error, connection, owed=owed))

    def extend(self, job: Job, duration: str | float | timedelta) -> None:
        """Make a lease end ``duration`` from now.

        Args:
            job: The job, as `lease` gave it.
            duration: Seconds, ``'5m'`` or a timedelta.

        Raises:
            LeaseLost: As for `ack`.
            InvalidTimeSpec, ConfigurationError: ``duration`` is not a time (both a ValueError), or is 0.
        """
        run_sync(lease.extend(self.engine, self, job, duration))

    def update(self, job_id: int, data: Any) -> int:
        """Replace a job's data.

        Returns:
            The size of what is stored: characters of JSON text, or bytes.

        Raises:
            JobNotFound: There is no such row.
        """
        return run_sync(operations.admin.update(self.engine, self, job_id, data))

    def cancel(self, job_id: int, *, running: bool = False) -> bool:
        """Delete a job that is waiting.

        Args:
            job_id: The job.
            running: Whether, if it is leased, to ask who works on it to stop. A worker cancels a coroutine;
                a function in a thread is to look at ``current().cancelled``.

        Returns:
            Whether it was waiting, or was asked: False if it is taken, leased, finished, or not there.
        """
        return run_sync(operations.admin.cancel(self.engine, self, job_id, running=running))

    def peek(self, n: int = 1) -> list[Job]:
        """The next ``n`` jobs that are due, in order; they stay where they are."""
        return [Job(self, row) for row in run_sync(fetch.peek(self.engine, self, n))]

    def jobs(
        self,
        *states: str,
        n: int = 100,
        task: str | None = None,
        older_than: str | float | timedelta | None = None,
        failed: bool = False,
    ) -> list[StoredJob]:
        """The first ``n`` jobs, wherever they are; those of each state together, in the order of ``states``.

        Args:
            states: Of ``ready``, ``scheduled``, ``leased``, ``parked``, ``done`` and ``dead``; without any, all
                that are not finished.
            n: How many, at most 100,000.
            task: Only calls of the function of this path, as in ``app.emails.send``.
            older_than: Only those that were put so long ago: seconds, ``'5m'`` or a timedelta.
            failed: Only those that failed with an exception.

        Raises:
            ConfigurationError: A state is none, or ``n`` is out of its range.
        """
        wanted = states or operations.list_jobs.UNFINISHED
        return run_sync(
            operations.list_jobs.list_by_state(
                self.engine, self, wanted, n, task=task, older_than=older_than, failed=failed
            )
        )

    def retry(self, job_id: int) -> bool:
        """Make a job due now that is dead, done or scheduled for later; one that was dead or done begins anew.

        Returns:
            Whether it is due now: False if it waits already, is leased or parked, or is not there.
        """
        return run_sync(operations.retry.retry(self.engine, self, job_id)).done

    def move(self, target: Queue | str, ids: Iterable[int] | None = None, most: int | None = None) -> int:
        """Move jobs that wait, are scheduled or parked to another queue of the table, with their ids and times.

        Those that are leased stay, and those whose dedup key is taken there.

        Args:
            target: The other queue, or its name.
            ids: Only these; None for all.
            most: How many, at most, those first that are due first; None for all.

        Returns:
            How many were moved; without a transaction open, they are committed 500 at a time.

        Raises:
            ConfigurationError: It is the same queue, or one of another table.
        """
        return run_sync(operations.move.move(self.engine, self, target, ids, most))

    def reencode(
        self, *, step: int = REENCODE_STEP, every: bool = False, wait: str | float | timedelta = REENCODE_WAIT
    ) -> Reencoded:
        """Re-encode the data of this queue, wherever they lie; see `PQ.reencode`."""
        return run_sync(operations.reencode.reencode(self.engine, [self], step=step, every=every, wait=wait))

    def inspect(self, job_id: int) -> JobInfo:
        """What is known of a job: its state, attempts, last error, progress.

        Raises:
            JobNotFound: Nothing: it never was, or is finished and nothing of it was kept.
        """
        return run_sync(operations.results.inspect(self.engine, self, job_id))

    def explain(self, job_id: int) -> Explanation:
        """Tell why a job does not run, and what would free it. It changes nothing, and locks nothing.

        Args:
            job_id: The job.

        Returns:
            All causes that are found, the most important first; without one, the next free worker takes the job.
        """
        return run_sync(operations.explain.explain(self.engine, job_id, self))

    def status(self, job_id: int) -> str:
        """Where a job is: the ``state`` of `inspect`."""
        return self.inspect(job_id).state

    def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any:
        """What the function of a job returned, waited for.

        Args:
            job_id: A job that was put with ``keep_result``.
            timeout: How long to wait: seconds, ``'5m'`` or a timedelta; None for as long as it takes.

        Raises:
            JobFailed: It is a dead letter, or was dropped.
            JobNotFound: No result is kept of it.
            ResultNotStored: It was done, and its result could not be stored.
            ResultTimeout: It was not there in time.
        """
        return run_sync(operations.results.wait_for(self.engine, self, job_id, timeout))

    def progress(self, job_id: int) -> Any:
        """What a job that runs has reported last; None if nothing."""
        return self.inspect(job_id).progress

    @property
    def dead(self) -> DeadLetters:
        """The queue's dead letters."""
        return DeadLetters(self.engine, self)

    def count(self) -> int:
        """How many jobs are due."""
        return run_sync(operations.admin.count(self.engine, self))

    def stats(self) -> QueueStats:
        """What waits in the queue."""
        found = run_sync(operations.admin.stats(self.engine, self.name))
        return found.get(self.name, operations.admin.QueueStats(0, 0, 0, None))

    def workers(self) -> list[WorkerInfo]:
        """List the workers of the queue that run, or that ran within the last hour and did not stop in order.

        Each `pqcore.worker.Worker` is listed, those first that were started first; a consumer that calls `get`,
        `lease` or `work` is not.
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
        """Have none of the queue's jobs begin: neither `get` nor `lease` gives one, and no worker starts one.

        Jobs can be put meanwhile, and those that run go on. Consumers heed a pause within a second of its commit, or
        within the queue's ``poll_interval`` if that is shorter.

        Args:
            until: When the pause ends: ``'5m'``, a timedelta or a datetime; None to last until `resume`.
            task: Pause only calls of this task, for workers and `lease`: a path, as in ``"app.emails.send"``, or the
                declared function. `get` gives them.
            limit: Pause only jobs under this limit, for workers and `lease`.
            group: Pause only jobs of this group, for workers and `lease`.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            ConfigurationError: More than one of ``task``, ``limit`` and ``group`` is given.
            InvalidName: One of them cannot be a name.
            InvalidTimeSpec: ``until`` is no time, or has passed.
        """
        run_sync(operations.rules.pause(self.engine, self, until, connection, task=task, limit=limit, group=group))

    def resume(
        self, *, task: Any = None, limit: str | None = None, group: str | None = None, connection: Any = None
    ) -> bool:
        """End a pause; consumers that wait for a job look immediately.

        Args:
            task: As for `pause`.
            limit: As for `pause`.
            group: As for `pause`.
            connection: As for `pause`.

        Returns:
            Whether there was such a pause.
        """
        return run_sync(operations.rules.resume(self.engine, self, connection, task=task, limit=limit, group=group))

    def set_limit(self, name: str, places: int | None, *, connection: Any = None) -> None:
        """Set how many leased jobs of a limit may run concurrently, whatever number they were put with.

        Args:
            name: The limit, as in ``put(limits={name: 2})``.
            places: How many; None to remove the rule: then the number of the newest put counts.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            ConfigurationError: ``places`` is not a number of at least 1.
            InvalidName: ``name`` cannot be one.
        """
        run_sync(operations.rules.set_limit(self.engine, self, name, places, connection))

    def set_rate(self, name: str, rate: Rate | None, *, connection: Any = None) -> None:
        """Set how many jobs of a limit may begin in a time. After a pause that many may begin together.

        Args:
            name: The limit, as in ``put(limits={name: 2})``.
            rate: ``"10/s"``, ``"600/min"``, ``"5/h"`` or ``"100/5m"``, or a number and a time: ``(100, "5m")``; None
                to remove the rule.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            ConfigurationError: ``rate`` is none.
            InvalidName: ``name`` cannot be one.
        """
        run_sync(operations.rules.set_rate(self.engine, self, name, rate, connection))

    def set_weight(self, share: str, weight: float | None, *, connection: Any = None) -> None:
        """Set the weight of a share: while others have jobs too, it gets that many times the jobs of one of weight 1.

        Args:
            share: The share; ``""`` is that of jobs which name none.
            weight: A number above 0; None to remove the rule: then it is 1.
            connection: Do it in the transaction of this connection, as for `put`.

        Raises:
            ConfigurationError: ``weight`` is no such number.
            InvalidName: ``share`` cannot be a name.
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
        """The limits, rates, weights and pauses that are set, and in force."""
        return run_sync(operations.rules.list_rules(self.engine, self))

    def limits(self) -> list[LimitUsage]:
        """The limits and groups in use: the numbers of each, the jobs that run under it, and how many wait.

        All waiting jobs are counted, so it takes as long as `stats`.
        """
        return run_sync(operations.limits.list_limits(self.engine, self))

    def clear(self) -> None:
        """Delete all rows of the queue: waiting, leased and finished.

        Their batches count those that were not finished as failed, and put what follows a batch.
        """
        run_sync(operations.admin.clear(self.engine, self))

    def purge(self, older_than: str | float | timedelta) -> int:
        """Delete finished rows, kept or archived.

        Args:
            older_than: Only those finished so long ago: seconds, ``'14d'`` or a timedelta.

        Returns:
            The number of rows deleted.
        """
        return run_sync(operations.admin.purge(self.engine, self, older_than))

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A transaction, or a savepoint within one; gives a cursor of the driver's.

        Committed at the end, rolled back on an exception.
        """
        with self as cursor:
            yield cursor

    _transaction = transaction  # pq's name

    def close(self) -> None:
        """Close the connections, as `PQ.close` does."""
        run_sync(self.engine.close())

    def __enter__(self) -> Any:
        return run_sync(self.engine.enter(self.cursor_kwargs))

    if not TYPE_CHECKING:  # where a checker says so itself

        async def __aenter__(self) -> None:
            msg = "this queue blocks: write with queue, or take the queue from an AsyncPQ"
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
        conn: A DSN (``"postgresql://..."`` or ``"dbname=..."``), or a connection
            of yours.  A DSN has a pool of its own, and replaces lost connections.
        pool: A pool of yours, instead.
        table: The table's name.
        schema: The table's schema; None for the first of the search path.
        queue_class: The class of the queues; a subclass of `Queue`.
        backend: The backend's name; else chosen by ``conn`` or ``pool``, by the URL
            (``postgresql+psycopg2://``), by PQCORE_BACKEND, or what is installed.
        max_connections: With a DSN: connections at most, and one more to listen.
        pool_timeout: Seconds to wait for a free connection, or for one of yours that another thread or task uses.
        answer_timeout: Seconds that a statement of pqcore's may wait for the server's answer. After three
            quarters of that, the server is asked to cancel the statement; after all of it, the connection is
            broken off, and the call raises `ConnectionLost`. Statistics, moves and purges may take ten
            times as long, `create` as long as it needs. None for no limit.
        prepared: Whether statements may be prepared on the server, and waiters listen. By default it is
            looked whether a pooler, such as PgBouncer, is in between: then they are not, and waiters
            poll. True for one in session mode; False for one in transaction mode says so at once.
        dialect: What the server is, if it is like PostgreSQL and not the same: ``"citus"``, ``"cockroachdb"``.
            By default what PQCORE_DIALECT says, or PostgreSQL.
        group_commit: Whether concurrent calls of tasks or threads travel together, in one statement and one commit.
            None does so with a DSN. True does so on ``pool``, too: then the pool must give all borrowers the same
            role and settings. False has each call commit by itself.
        **options: Set as attributes of the queues; see `QueueSettings`.

    Attributes:
        options: The options of its queues, as they were given.
        engine: Runs operations on the table; for pqcore's own modules and integrations. Its methods may change.

    Raises:
        UnknownBackend: No backend has the name, or adopts the connection.
        BackendNotInstalled: Its driver is missing.
        ConfigurationError: An option has a value that it cannot have.
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
        """Make the table, or migrate it in place; does nothing if it is up to date.

        Args:
            partitions: Make it in so many partitions, in one of which each queue has all of its rows. None
                for a table without, and for one that is there.
            set_sequences: Also set the sequences of ids that are behind the ids that are there: after logical
                replication, a restore of rows alone, or ``TRUNCATE ... RESTART IDENTITY``.
            keep_finished: How long finished rows are kept, if the table is new: workers delete those that are older.
                Seconds, ``'7d'`` or a timedelta; None to keep all. Of a table that is there see `set_expiry`.
            keep_dead: How long dead letters are kept, likewise.

        Raises:
            InvalidTimeSpec: A time is none.
            ConfigurationError: It is there, and has another number of partitions.
            SchemaTooNew: A newer pqcore made it.
            TransientError: It was in use for too long; call it again.
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
        """Set how long finished rows and dead letters are kept, in all queues for which nothing else is set.

        Workers delete what is older, some thousand rows a minute and more. Rows whose result is kept, and those of a
        batch that is open, stay until then.

        Args:
            finished: How long finished rows are kept, those in the archive too: seconds, ``'7d'`` or a timedelta; None
                to keep all. As it is, if not given.
            dead: How long dead letters are kept, likewise.
            connection: In whose transaction, as for `Queue.put`.

        Raises:
            InvalidTimeSpec: A time is none.
            ConfigurationError: Neither time is given.
        """
        run_sync(operations.expiry.set_expiry(self.engine, None, finished=finished, dead=dead, connection=connection))

    def expiry(self) -> list[Expiry]:
        """List how long rows are kept, and how many were deleted for it; nothing if everything is kept."""
        return run_sync(operations.expiry.list_expiry(self.engine))

    def stats(self) -> dict[str, QueueStats]:
        """What waits, a queue."""
        return run_sync(operations.admin.stats(self.engine, None))

    def workers(self) -> list[WorkerInfo]:
        """List the workers of all queues; see `Queue.workers`."""
        return run_sync(operations.worker_registry.list_workers(self.engine))

    def encodings(self) -> list[Encoding]:
        """Count the data of all queues by place, serializer and key; no key is needed for that."""
        return run_sync(operations.encodings.count_all(self.engine))

    def reencode(
        self,
        *queues: Queue | str,
        step: int = REENCODE_STEP,
        every: bool = False,
        wait: str | float | timedelta = REENCODE_WAIT,
    ) -> Reencoded:
        """Re-encode data that are not as their queue writes them now, after a key or a serializer has changed.

        Wherever they lie: in jobs of every state, in chains and batches, in dead letters, in the archive and in
        results. Others may put and take meanwhile. It may be interrupted, and run again. If only the key is new,
        nothing is decoded.

        Args:
            *queues: The queues, or their names as in ``pq["cards/json+fernet"]``. Each reads its own serializer and
                those in its ``accept``, with all keys, and writes with its serializer, under the first key.
            step: Rows that are written in one transaction, from 1 to 1,000.
            every: Whether data are re-encoded that already are as the queue writes them.
            wait: How long, at most, rows that are locked, and chains under a lease, are waited for once all others
                are done: seconds, ``'5m'`` or a timedelta.

        Returns:
            What was there before and after, and what is left.

        Raises:
            ConfigurationError: No queue is named, one is named twice or is of another table, ``step`` is out of its
                range, or a transaction is open.
        """
        named = [self[queue] if isinstance(queue, str) else queue for queue in queues]
        return run_sync(operations.reencode.reencode(self.engine, named, step=step, every=every, wait=wait))

    def close(self) -> None:
        """Close the connection or pool: ours, or the one given."""
        run_sync(self.engine.close())

    def __enter__(self) -> Self:
        return self

    if not TYPE_CHECKING:

        async def __aenter__(self) -> None:
            msg = "a PQ blocks: write with pq, or open an AsyncPQ"
            raise InvalidCall(msg)

        async def __aexit__(self, kind: object, value: object, traceback: object) -> None: ...

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()
