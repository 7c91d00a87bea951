"""Queues for code on trio, or on anyio with any event loop: a blocking `PQ` in threads.

    pq = ThreadedPQ(PQ("postgresql://localhost/app"))
    await pq["emails"].put({"to": "ann@example.com"})
    job = await pq["emails"].get()

The asynchronous connections of psycopg and asyncpg need asyncio, and so does `pqcore.AsyncPQ`. Each method of this
module calls the blocking `PQ` in a worker thread of anyio. A call that writes finishes even if its task is cancelled.
If a task is cancelled while its call waits for a job, the call is aborted. If the call had just taken a job, the job
returns to the queue.
"""

# ruff: noqa: ASYNC109 - the arguments are those of the blocking face

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

try:
    from anyio import CancelScope, CapacityLimiter
    from anyio.to_thread import run_sync
except ImportError as exc:
    msg = f"pqcore.integrations.anyio needs {exc.name}: pip install 'pqcore[trio]'"
    raise ImportError(msg) from exc

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.runtime import AFTER_CANCEL
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.job import AsyncJob
from pqcore.operations import fetch
from pqcore.operations.encodings import Encoding
from pqcore.operations.expiry import Expiry
from pqcore.operations.lease import LEASE_DURATION, lease_terms
from pqcore.operations.reencode import Reencoded
from pqcore.operations.worker_registry import WorkerInfo
from pqcore.queue import PQ, Queue
from pqcore.runner import call_sync
from pqcore.settings import KEPT_QUEUES
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("pqcore")

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    method: Callable[Concatenate[Queue, P], T],
) -> Callable[Concatenate[ThreadedQueue, P], Coroutine[Any, Any, T]]:
    """Return a method of `Queue` that is called in a thread."""

    @functools.wraps(method)
    async def call(self: ThreadedQueue, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_sync(functools.partial(method, self.blocking, *args, **kwargs))

    return cast("Callable[Concatenate[ThreadedQueue, P], Coroutine[Any, Any, T]]", call)


class ThreadedJob(AsyncJob):
    """A job taken from a `ThreadedQueue`."""

    __slots__ = ("_threaded",)

    def __init__(self, queue: ThreadedQueue, row: Row, *, leased: bool = False) -> None:
        super().__init__(queue.blocking, row, leased=leased)
        self._threaded = queue

    @property
    def _face(self) -> ThreadedQueue:
        return self._threaded


class ThreadedQueue:
    """A `pqcore.Queue` whose methods are awaited; `pqcore.Queue` documents them.

    Args:
        blocking: The queue.

    Attributes:
        blocking: The queue, for calls in your own threads.
        name: The name of the queue.
    """

    def __init__(self, blocking: Queue) -> None:
        self.blocking = blocking
        self.name = blocking.name

    put = _awaited(Queue.put)
    put_many = _awaited(Queue.put_many)
    update = _awaited(Queue.update)
    cancel = _awaited(Queue.cancel)
    jobs = _awaited(Queue.jobs)
    retry = _awaited(Queue.retry)
    reencode = _awaited(Queue.reencode)
    inspect = _awaited(Queue.inspect)
    attempts = _awaited(Queue.attempts)
    explain = _awaited(Queue.explain)
    status = _awaited(Queue.status)
    progress = _awaited(Queue.progress)
    count = _awaited(Queue.count)
    stats = _awaited(Queue.stats)
    workers = _awaited(Queue.workers)
    pause = _awaited(Queue.pause)
    resume = _awaited(Queue.resume)
    set_limit = _awaited(Queue.set_limit)
    set_rate = _awaited(Queue.set_rate)
    set_weight = _awaited(Queue.set_weight)
    set_expiry = _awaited(Queue.set_expiry)
    rules = _awaited(Queue.rules)
    schedule = _awaited(Queue.schedule)
    unschedule = _awaited(Queue.unschedule)
    schedules = _awaited(Queue.schedules)
    pause_schedule = _awaited(Queue.pause_schedule)
    resume_schedule = _awaited(Queue.resume_schedule)
    trigger = _awaited(Queue.trigger)
    limits = _awaited(Queue.limits)
    clear = _awaited(Queue.clear)
    purge = _awaited(Queue.purge)

    async def get(self, block: bool = True, timeout: float | None = None) -> ThreadedJob | None:
        """Take the next job that is due; see `Queue.get`."""
        rows = await self._take(1, block=block, timeout=timeout)
        return ThreadedJob(self, rows[0]) if rows else None

    async def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[ThreadedJob]:
        """Take up to ``n`` jobs; see `Queue.get_many`."""
        return [ThreadedJob(self, row) for row in await self._take(n, block=block, timeout=timeout)]

    async def lease(
        self,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> ThreadedJob | None:
        """Lease a job; see `Queue.lease`."""
        length, patience = lease_terms(duration, timeout, wait)
        rows = await self._take(1, block=block, timeout=patience, lease=length)
        return ThreadedJob(self, rows[0], leased=True) if rows else None

    async def lease_many(
        self,
        n: int,
        duration: str | float | timedelta = LEASE_DURATION,
        block: bool = True,
        *,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> list[ThreadedJob]:
        """Lease up to ``n`` jobs; see `Queue.lease_many`."""
        length, patience = lease_terms(duration, timeout, wait)
        rows = await self._take(n, block=block, timeout=patience, lease=length)
        return [ThreadedJob(self, row, leased=True) for row in rows]

    async def peek(self, n: int = 1) -> list[ThreadedJob]:
        """Return the next ``n`` due jobs without taking them; see `Queue.peek`."""
        rows = await run_sync(call_sync, fetch.peek, self.blocking.engine, self.blocking, n)
        return [ThreadedJob(self, row) for row in rows]

    async def ack(self, job: ThreadedJob, *, connection: Any = None) -> None:
        """Finish a leased job; see `Queue.ack`."""
        await run_sync(functools.partial(self.blocking.ack, cast("Any", job), connection=connection))

    async def ack_many(self, jobs: Iterable[ThreadedJob], *, connection: Any = None) -> list[ThreadedJob]:
        """Finish leased jobs in one statement; see `Queue.ack_many`."""
        lost = await run_sync(functools.partial(self.blocking.ack_many, cast("Any", jobs), connection=connection))
        return cast("list[ThreadedJob]", lost)

    async def nack(self, job: ThreadedJob, delay: TimeSpec = None) -> None:
        """Give a leased job back; see `Queue.nack`."""
        await run_sync(self.blocking.nack, cast("Any", job), delay)

    async def bury(self, job: ThreadedJob, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job; see `Queue.bury`."""
        await run_sync(functools.partial(self.blocking.bury, cast("Any", job), error, connection=connection))

    async def extend(self, job: ThreadedJob, duration: str | float | timedelta) -> None:
        """Set the end of a lease to ``duration`` from now; see `Queue.extend`."""
        await run_sync(self.blocking.extend, cast("Any", job), duration)

    async def move(
        self, target: ThreadedQueue | Queue | str, ids: Iterable[int] | None = None, most: int | None = None
    ) -> int:
        """Move jobs to another queue of the table; see `Queue.move`."""
        other = target.blocking if isinstance(target, ThreadedQueue) else target
        return await run_sync(self.blocking.move, other, ids, most)

    async def in_transaction(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread within ``with queue as cursor``, so that all its changes are committed or none.

        The function must use ``queue.blocking``, and other blocking queues of the same `PQ`, because a transaction
        belongs to its thread.

        Args:
            function: The function, which gets the cursor as its first argument; it must not be a coroutine function.
            *args: More arguments for the function.
        """

        def work() -> T:
            with self.blocking as cursor:
                return function(cursor, *args)

        return await run_sync(work)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ThreadedJob | None:
        return await self.get()

    async def _take(self, n: int, *, block: bool, timeout: float | None, lease: float | None = None) -> Sequence[Row]:
        return await _Attempt(self.blocking, n, block=block, timeout=timeout, lease=lease).made()


class ThreadedPQ:
    """A `pqcore.PQ` whose methods are awaited.

    Args:
        pq: The blocking `PQ`, which may also be one of `pqcore.tasks`. It stays usable in your own threads.

    Attributes:
        blocking: The blocking `PQ`.
    """

    def __init__(self, pq: PQ) -> None:
        self.blocking = pq
        self._queues: dict[str, ThreadedQueue] = {}

    async def create(self, **options: Any) -> None:
        """Make the table, or migrate it in place; see `PQ.create`."""
        await run_sync(functools.partial(self.blocking.create, **options))

    async def set_expiry(self, **options: Any) -> None:
        """Set how long finished rows and dead letters are kept; see `PQ.set_expiry`."""
        await run_sync(functools.partial(self.blocking.set_expiry, **options))

    async def expiry(self) -> list[Expiry]:
        """List how long rows are kept; see `PQ.expiry`."""
        return await run_sync(self.blocking.expiry)

    def queue(self, name: str, **options: Any) -> ThreadedQueue:
        """Return a queue with its own options; see `PQ.queue`."""
        return ThreadedQueue(self.blocking.queue(name, **options))

    async def stats(self) -> Any:
        """Return the number of jobs in each queue, by state; see `PQ.stats`."""
        return await run_sync(self.blocking.stats)

    async def workers(self) -> list[WorkerInfo]:
        """List the workers of all queues; see `PQ.workers`."""
        return await run_sync(self.blocking.workers)

    async def quiet_worker(self, worker_id: str, *, quiet: bool = True) -> bool:
        """Tell a worker to take no more jobs; see `PQ.quiet_worker`."""
        return await run_sync(functools.partial(self.blocking.quiet_worker, worker_id, quiet=quiet))

    async def encodings(self) -> list[Encoding]:
        """Count the stored data of all queues by place, serializer and key; see `PQ.encodings`."""
        return await run_sync(self.blocking.encodings)

    async def reencode(self, *queues: ThreadedQueue | str, **options: Any) -> Reencoded:
        """Re-encode data with another key or serializer than its queue uses now; see `PQ.reencode`."""
        named = [queue if isinstance(queue, str) else queue.blocking for queue in queues]
        return await run_sync(functools.partial(self.blocking.reencode, *named, **options))

    async def close(self) -> None:
        """Close the connections; see `PQ.close`."""
        with CancelScope(shield=True):
            await run_sync(self.blocking.close)

    def __getitem__(self, name: str) -> ThreadedQueue:
        if name not in self._queues:
            if len(self._queues) >= KEPT_QUEUES:
                self._queues.pop(next(iter(self._queues)))
            self._queues[name] = ThreadedQueue(self.blocking[name])
        return self._queues[name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, value: object, traceback: object) -> None:
        await self.close()


class _BrokenOffError(Exception):
    """The error that ends the wait of an aborted `get`."""


class _Attempt:
    """A `get` that can be aborted. The `get` uses this object in place of its engine, so that its wait can be ended."""

    def __init__(self, queue: Queue, n: int, **options: Any) -> None:
        self._engine: Engine = queue.engine
        self._queue = queue
        self._n = n
        self._options = options
        self._lock = threading.Lock()
        self._begun = self._over = False
        self._ended = threading.Event()
        self._undo: Callable[[], Awaitable[None]] | None = None
        self._session: Session | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def run(
        self,
        operation: Callable[..., Awaitable[T]],
        *,
        undo: Callable[[T], Awaitable[None]] | None = None,
        **options: Any,
    ) -> T:
        """See `Engine.run`; this also remembers how to put taken jobs back."""

        async def noted(session: Session) -> T:
            self._session = session
            return await operation(session)

        try:
            result: T = await self._engine.run(noted, **options)
        finally:
            self._session = None
        if undo is not None and cast("Any", result)[0]:
            self._undo = functools.partial(undo, result)
        return result

    def line(self, *call: object) -> None:
        """Return None: a `get` that can be aborted must not share a statement with other calls of `get`."""

    async def wait_for_jobs(self, queue: Queue, ticket: int | None, seconds: float, poll_interval: float) -> None:
        """See `Engine.wait_for_jobs`."""
        if not self._over:  # if `_over` is set after this check, `wake` ends the wait
            await self._engine.wait_for_jobs(queue, ticket, seconds, poll_interval)
        if self._over:
            raise _BrokenOffError

    async def made(self) -> Sequence[Row]:
        """Take rows in a thread; if the task is cancelled, put them back.

        Waiting threads do not count towards anyio's limit of threads, so that a put always finds a thread.
        """
        try:
            return await run_sync(self._work, abandon_on_cancel=True, limiter=CapacityLimiter(1))
        except Exception:
            raise
        except BaseException:  # a cancellation, by anyio or by asyncio itself
            if self._break_off():
                with CancelScope(shield=True):
                    await run_sync(self._put_back, limiter=CapacityLimiter(1))
            raise

    def _work(self) -> Sequence[Row]:
        with self._lock:
            if self._over:
                return ()
            self._begun = True
        try:
            return call_sync(fetch.get, self, self._queue, self._n, **self._options)
        except _BrokenOffError:
            return ()
        finally:
            self._ended.set()

    def _break_off(self) -> bool:
        """Make the `get` stop waiting; return whether the `get` had begun."""
        with self._lock:
            self._over = True
        self._engine.wake(self._queue.channel)
        return self._begun

    def _put_back(self) -> None:
        if not self._ended.wait(AFTER_CANCEL):
            if (session := self._session) is not None:
                session.abort()
            self._ended.wait(AFTER_CANCEL)
        if self._undo is not None:
            try:
                call_sync(self._undo)
            except PQError:  # the error must not hide the cancellation
                logger.exception(
                    "a cancelled task had taken a job from %r, and the job cannot be put back: it is lost",
                    self._queue.name,
                )
