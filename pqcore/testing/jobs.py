"""Helpers for users' tests: a queue for each test, methods that show its jobs, and a method that runs them.

    from pqcore.testing.jobs import isolated

    with isolated() as jobs:
        jobs.use(app.pq)
        app.sign_up("ann@example.com")
        jobs.assert_enqueued(app.welcome, args=["ann@example.com"])
        jobs.drain(app.queue)

In pytest, the fixture ``pqcore_jobs`` is such a `Jobs`. See docs/testing.md.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from pqcore import async_queue
from pqcore import queue as core
from pqcore.db.dsn import scheme_of, with_options
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.dead_letters import DeadLetter
from pqcore.errors import ConfigurationError
from pqcore.operations import admin, dead_letters
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.periodic import begin as begin_ticks
from pqcore.operations.periodic import last_tick
from pqcore.operations.periodic import put as put_tick
from pqcore.operations.schedules import ScheduledCall, find_calls, find_timetables
from pqcore.sql.identifiers import TableName
from pqcore.tasks import PQ, AsyncPQ, AsyncQueue, Queue
from pqcore.tasks.declaring import Call, Task
from pqcore.tasks.periodic import Timetable, timetable_of
from pqcore.tasks.registry import TaskDeclarations
from pqcore.testing.databases import OURS, Connection, Database, Databases
from pqcore.testing.inline import MOST_RUN, Ran, drain, in_loop
from pqcore.testing.matching import ENQUEUED, NAMES, Enqueued, Wanted, read
from pqcore.testing.server import server
from pqcore.testing.time_travel import Ticks, compiled, due, set_back
from pqcore.times import TimeSpec, parse, seconds

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.db.session import Session

T = TypeVar("T")

MOST_DEAD = 100_000
"""The largest number of dead letters of a queue that are listed."""


class Jobs:
    """The jobs of one test, with methods to check and control them.

    All methods except `adrain` block, and may also be called in an event loop. If no queues are given, a method uses
    all queues that this object knows.

    Args:
        dsn: The test's own database. Missing tables are created in it, and nothing is deleted.

    Attributes:
        dsn: The test's own database, for other connections of the test.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._own_dsn = with_options(dsn, application_name=OURS) if scheme_of(dsn) else dsn
        self._connections: dict[str, Connection] = {}
        self._engines: list[Engine] = []
        self._swapped: list[tuple[Engine, dict[str, Any]]] = []
        self._faces: list[Any] = []
        self._travelled = timedelta()
        self._down_until = datetime.min.replace(tzinfo=timezone.utc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_here()
        self.close()

    # Queues

    def pq(self, **options: Any) -> PQ:
        """Return a `pqcore.tasks.PQ` bound to the test's database, whose table exists.

        Args:
            **options: Options of `PQ`.
        """
        made = PQ(self._own_dsn, **options)
        self._take(made.engine)
        self._faces.append(made)
        return made

    def async_pq(self, **options: Any) -> AsyncPQ:
        """Return an asynchronous PQ like `pq`.

        Connections are opened when first needed, in the event loop that needs them.
        """
        made = AsyncPQ(self._own_dsn, **options)
        self._take(made.engine)
        self._faces.append(made)
        return made

    def use(self, *targets: Any) -> None:
        """Bind a `PQ` or `AsyncPQ` of the application to the test's database, until the test ends.

        This also binds all queues of the `PQ`, and the tasks that are declared on them. A missing table is created.

        Args:
            *targets: The objects to bind; a queue or a task stands for its `PQ`. If the options of a
                queue made by ``pq.queue(...)`` matter for the checks, give the queue itself.
        """
        for given in targets:
            target = given.queue if _is_task(given) else given
            engine = getattr(target, "engine", None)
            if not isinstance(engine, Engine):
                msg = f"{given!r} cannot be pointed at another database; give a PQ, an AsyncPQ or a queue"
                raise ConfigurationError(msg)
            if not self._has(engine):
                # Queues, handles and similar objects refer to the engine. So the engine object stays, and gets the
                # attributes of another engine.
                inside = Engine(
                    engine._mode,
                    type(engine.runtime)(),
                    engine.names,
                    self._own_dsn,
                    None,
                    backend=engine.spec.name,
                    pool_timeout=engine._pool_timeout,
                    prepared=engine._prepared,
                )
                self._take(inside)
                self._swapped.append((engine, vars(engine)))
                engine.__dict__ = vars(inside)
            if all(target is not face for face in self._faces):
                self._faces.append(target)

    def close(self) -> None:
        """Undo all bindings, and close the connections."""
        for engine, inside in reversed(self._swapped):
            engine.__dict__ = inside
        with ExitStack() as stack:
            for connection in self._connections.values():
                stack.callback(connection.close)
            for engine in self._engines:
                stack.callback(_shut, engine)
        self._connections, self._engines, self._swapped, self._faces = {}, [], [], []

    async def close_here(self) -> None:
        """Close the connections that were opened in the running event loop; call `close` afterwards."""
        for engine in self._engines:
            if engine.runtime.suspends and asyncio.get_running_loop() in engine.loops():
                await engine.close()

    # Checking jobs

    def enqueued(self, *queues: Any, connection: Any = None) -> list[Enqueued]:
        """Return the waiting jobs, including scheduled and parked ones, in the order of their puts.

        Jobs that are taken, leased or finished are not included.

        Args:
            *queues: Only jobs of these queues.
            connection: A connection whose transaction is used to look; see `pqcore.Queue.put`. This works only for
                blocking queues.
        """
        found = [job for queue in self._queues(queues) for job in self._enqueued(queue, connection)]
        return sorted(found, key=lambda job: (job.enqueued_at, job.id))

    def assert_enqueued(
        self,
        what: Any = ...,
        *,
        queue: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        times: int | None = 1,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        within: str | float | timedelta | None = None,
        headers: Mapping[str, Any] | None = None,
        connection: Any = None,
    ) -> list[Enqueued]:
        """Fail the test unless a waiting job meets the criteria.

        Args:
            what: A task, the path of a task, a call (``send.call("ann")``), or the data that was put; if not given, any
                job.
            queue: The queue of the job; if not given, the task's own queue, or any queue.
            args: The expected positional arguments of the call, without the job's id.
            kwargs: The expected keyword arguments of the call.
            times: The expected number of such jobs; None for at least one.
            schedule_at: The expected time of the schedule: a datetime, or a distance from the put, or from now.
            expected_at: The expected time by which the job is wanted, in the same form.
            within: The tolerance for the times, one second if not given; without times, the time within which the job
                is due.
            headers: Headers that the job must have, among others.
            connection: See `enqueued`.

        Returns:
            The jobs.
        """
        __tracebackhide__ = True
        if isinstance(what, Call):
            args, kwargs = what.args if args is None else args, what.kwargs if kwargs is None else kwargs
        wanted = Wanted(what, args, kwargs, schedule_at, expected_at, within, headers)
        home = what.queue if queue is None and _is_task(what) else queue
        now = self.now()
        there: list[Enqueued] = []
        found: list[Enqueued] = []
        for one in self._queues(() if home is None else (home,)):
            waiting = self._enqueued(one, connection)
            there += waiting
            found += [job for job in waiting if wanted.meets(job, one, now)]
        if len(found) == times or (times is None and found):
            return found
        number = "a job" if times is None else "1 job" if times == 1 else f"{times} jobs"
        where = "" if home is None else f" in {getattr(home, 'name', home)!r}"
        lines = "".join(f"\n  {job}" for job in there)
        msg = f"{number}{wanted} wanted{where}, {len(found)} found. Enqueued there: {lines or 'nothing'}"
        raise AssertionError(msg)

    def assert_not_enqueued(self, what: Any = ..., **criteria: Any) -> None:
        """Fail the test if a waiting job meets the criteria.

        Args:
            what: See `assert_enqueued`.
            **criteria: See `assert_enqueued`; ``times`` is not allowed.
        """
        __tracebackhide__ = True
        self.assert_enqueued(what, **criteria, times=0)

    def dead(self, *queues: Any) -> list[DeadLetter]:
        """Return the dead letters, in the order in which they died."""
        found: list[DeadLetter] = []
        for queue in self._queues(queues):
            rows = self._ask(queue, dead_letters.list_latest, queue, MOST_DEAD)
            found += [DeadLetter(queue, row) for row in reversed(rows)]
        return found

    # Running jobs

    def drain(self, *queues: Any, raise_errors: bool = True, at_most: int = MOST_RUN) -> list[Ran]:
        """Run the due jobs, and jobs that become due meanwhile, inside the test, one at a time, in a worker's order.

        Coroutine functions run, too, each in a new event loop. Groups and limits apply; rates and timeouts do not.

        Args:
            *queues: The queues; each job comes from the first queue that has a due job.
            raise_errors: Whether to raise the first exception of a function, after the job's outcome is stored.
                Exceptions that are meant to be raised do not count: `Snooze`, `Discard`, `Retry` with retries left, and
                those in ``discard_on``.
            at_most: The largest number of jobs to run.

        Returns:
            The jobs that were run.

        Raises:
            UnknownTask: A job names a function that is unknown here.
            PQError: There were more jobs than ``at_most``.
        """
        chosen = self._queues(queues)
        suspends = any(queue.engine.runtime.suspends for queue in chosen)
        if suspends and in_loop():
            msg = "within an event loop, drain an asynchronous queue with await jobs.adrain(queue)"
            raise ConfigurationError(msg)
        work = drain(chosen, raise_errors=raise_errors, at_most=at_most, suspends=suspends)
        return asyncio.run(work) if suspends else run_sync(work)

    async def adrain(self, *queues: Any, raise_errors: bool = True, at_most: int = MOST_RUN) -> list[Ran]:
        """Run jobs like `drain`, but awaited: coroutine functions run in this event loop.

        Blocking queues are supported, too.
        """
        return await drain(self._queues(queues), raise_errors=raise_errors, at_most=at_most, suspends=True)

    # Time

    def now(self) -> datetime:
        """Return the time in the test: the server's time, plus the time travelled."""
        [[now]] = self._any_connection().sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        moment: datetime = now
        return moment.replace(tzinfo=timezone.utc) + self._travelled

    def travel(
        self, by: str | float | timedelta | None = None, *, to: datetime | None = None, down: bool = False
    ) -> datetime:
        """Let time pass: scheduled jobs become due, leases and results run out, periodic tasks tick.

        The server's clock decides which jobs are due, and a test cannot change this clock. So the rows are changed: all
        times in the queues' tables are set back by the same distance. Python's clock does not change either.

        Args:
            by: The distance: seconds, ``'1h'`` or a timedelta.
            to: A point in time instead; naive means UTC.
            down: Whether no worker ran meanwhile, so that the periodic task decides about missed ticks (``missed``).
                Otherwise every tick is put.

        Returns:
            The new time in the test.

        Raises:
            ConfigurationError: The time lies in the past, or a task ticks more often than can be put.
            TransientError: A transaction has locked rows that must be moved.
        """
        if (by is None) == (to is None):
            msg = "travel takes either a time to pass, or to=; give one of them"
            raise ConfigurationError(msg)
        start = self.now()
        arrival = parse(to) if by is None else start + timedelta(seconds=seconds(by))
        if not isinstance(arrival, datetime) or arrival < start:
            msg = f"to is {to!r}, and it is {start} in the test; give a later time"
            raise ConfigurationError(msg)
        distance = arrival - start
        ticks = self._ticks(start, arrival, down=down)
        for engine in {str(engine.names): engine for engine in self._engines}.values():
            self._run(engine.names, lambda session, names: set_back(session, names, distance))
        for engine in self._engines:
            engine.set_back.append((start - self._travelled, distance))
        self._travelled += distance
        if down:
            self._down_until = arrival
        for each in ticks:
            self._ask(each.queue, begin_ticks, each.queue, each.timetable.line, each.last - self._travelled)
        put = sorted((tick, number) for number, each in enumerate(ticks) for tick in each.due)
        for tick, number in put:
            each = ticks[number]
            row = each.job().values()
            self._ask(each.queue, put_tick, each.queue, each.timetable.name, tick - self._travelled, row)
        return arrival

    # Internal methods

    def _has(self, engine: Engine) -> bool:
        return any(vars(engine) is vars(ours) for ours in self._engines)

    def _take(self, engine: Engine) -> None:
        self._make(engine.names)
        self._engines.append(engine)

    def _make(self, names: TableName) -> None:
        self._connection(names).call(admin.create)

    def _connection(self, names: TableName) -> Connection:
        key = str(names)
        if key not in self._connections:
            self._connections[key] = Connection(self._own_dsn, names)
        return self._connections[key]

    def _any_connection(self) -> Connection:
        return next(iter(self._connections.values()), None) or self._connection(TableName("queue"))

    def _ask(self, queue: Any, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run an operation for a queue; use a blocking queue's transaction, if one is open in this thread."""
        engine: Engine = queue.engine
        if engine.runtime.suspends:
            return self._connection(engine.names).call(operation, *arguments)
        return run_sync(operation(engine, *arguments))  # type: ignore[arg-type]

    def _run(self, names: TableName, work: Callable[[Session, TableName], Awaitable[T]]) -> T:
        """Call a function with a session that knows a table.

        Use the open transaction of this thread, if there is one.
        """

        async def run(engine: Engine) -> T:
            return await engine.run(lambda session: work(session, names), protect=False)

        for engine in self._engines:
            if not engine.runtime.suspends and str(engine.names) == str(names) and engine._current() is not None:
                return run_sync(run(engine))
        return self._connection(names).call(run)

    def _queues(self, chosen: Iterable[Any]) -> list[Any]:
        """Return queues without duplicates, including those of a given `PQ`; without arguments, all queues."""
        given = list(chosen)
        found: dict[tuple[str, str], Any] = {}
        for one in given:
            if not isinstance(getattr(one, "engine", None), Engine):
                msg = f"{one!r} is neither a queue nor a PQ; give one of them"
                raise ConfigurationError(msg)
            if not self._has(one.engine):
                msg = f"{one!r} is not in the test's database: give it, or its PQ, to jobs.use() first"
                raise ConfigurationError(msg)
        # Given queues come before the queues of a given `PQ`, because a given queue may have its own options.
        for one in sorted(given or self._faces, key=_is_pq):
            for queue in self._of(one) if _is_pq(one) else [one]:
                found.setdefault((str(queue.table), queue.name), queue)
        if given:
            return list(found.values())
        for engine in self._engines:
            for name in self._names(engine.names):
                if (str(engine.names), name) not in found:
                    kind = AsyncQueue if engine.runtime.suspends else Queue
                    found[str(engine.names), name] = kind(name.replace("/", "\\/"), engine=engine)
        return [found[key] for key in sorted(found)]

    def _of(self, pq: Any) -> list[Any]:
        known = {queue.name: queue for queue in list(pq._queues.values())}
        for name in self._names(pq.engine.names):
            if name not in known:
                known[name] = pq[name.replace("/", "\\/")]
        return list(known.values())

    def _names(self, names: TableName) -> list[str]:
        async def work(session: Session, names: TableName) -> list[str]:
            return [str(name) for (name,) in await session.execute(compiled(session, "names", NAMES))]

        return self._run(names, work)

    def _enqueued(self, queue: Any, connection: Any) -> list[Enqueued]:
        if connection is not None and queue.engine.runtime.suspends:
            msg = "connection= needs a blocking queue; give a queue of a PQ"
            raise ConfigurationError(msg)

        async def work(session: Session) -> Sequence[Any]:
            query = compiled(session, "enqueued", ENQUEUED)
            return await session.execute(query, query.bind({"q_name": queue.name}))

        async def run(engine: Engine) -> Sequence[Any]:
            return await engine.run(work, protect=False, connection=connection)

        return [read(queue, row, self._travelled) for row in self._ask(queue, run)]

    def _ticks(self, start: datetime, arrival: datetime, *, down: bool) -> list[Ticks]:
        """Return the ticks of periodic tasks and schedules for which jobs must be put, by the test's clock."""
        found = []
        for queue in self._declaring():
            for timetable, job in self._timetables(queue):
                kept = self._ask(queue, last_tick, queue, timetable.name)
                begins = kept.line is not None and kept.line != timetable.line
                last = start if kept.tick is None or begins else kept.tick + self._travelled
                if not down:  # a worker ran until now, and has put the jobs of earlier ticks
                    last = max(last, self._down_until)
                found.append(Ticks(queue, timetable, job, last, due(timetable, last, arrival, down=down)))
        return found

    def _timetables(self, queue: Any) -> Iterator[tuple[Timetable, Callable[[], StoredPut]]]:
        """Return the timetables of a queue's periodic tasks and schedules, each with a function that makes its job."""
        for periodic in queue.periodics:
            yield periodic, periodic.call.stored
        schedules = self._ask(queue, find_timetables, queue)
        calls = self._ask(queue, find_calls, queue, [each.name for each in schedules]) if schedules else {}
        for each in schedules:
            if isinstance(call := calls.get(each.name), ScheduledCall):
                yield timetable_of(each), call.job

    def _declaring(self) -> Iterator[Any]:
        """Return the queues that may have declared tasks."""
        seen: set[int] = set()
        for face in self._faces:
            for queue in list(face._queues.values()) if _is_pq(face) else [face]:
                if id(queue) not in seen and isinstance(queue, TaskDeclarations):
                    seen.add(id(queue))
                    yield queue


def _is_pq(one: Any) -> bool:
    return isinstance(one, (core.PQ, async_queue.AsyncPQ))


def _is_task(what: Any) -> bool:
    return isinstance(getattr(what, "task", None), Task) and hasattr(what, "queue")


def _shut(engine: Engine) -> None:
    """Close an engine permanently, in every event loop that used it."""
    if not engine.runtime.suspends:
        run_sync(engine.close())
        return
    source: Any = engine.source
    source._closed = True
    for loop in engine.loops():
        if not loop.is_closed() and not loop.is_running() and not in_loop():
            loop.run_until_complete(engine.close())
            return  # the call above also closes the connections of other event loops.
    # If no call could close the connections, they end with their event loop, or the server ends them.


class Isolated:
    """The result of `isolated`: a context manager for ``with`` and ``async with``.

    Args:
        databases: A function that returns the databases to choose from.
    """

    def __init__(self, databases: Callable[[], Databases]) -> None:
        self._choose = databases

    def __enter__(self) -> Jobs:
        self._databases = self._choose()
        self._database = self._databases.lend()
        self._jobs = _IsolatedJobs(self._databases, self._database)
        return self._jobs

    def __exit__(self, *exc: object) -> None:
        try:
            self._jobs.close()
        finally:
            self._databases.give_back(self._database)

    async def __aenter__(self) -> Jobs:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._jobs.close_here()
        finally:
            self.__exit__(*exc)


class _IsolatedJobs(Jobs):
    """The jobs of a test whose database belongs to a `Databases`."""

    def __init__(self, databases: Databases, database: Database) -> None:
        super().__init__(database.dsn)
        self._databases = databases
        self._database = database

    def _make(self, names: TableName) -> None:
        self._databases.make(self._database, names)

    def _connection(self, names: TableName) -> Connection:
        if str(names) == str(self._database.connection.engine.names):
            return self._database.connection
        return super()._connection(names)

    def _any_connection(self) -> Connection:
        return self._database.connection


@dataclass
class _Shared:
    """The server and the databases of this process, if pytest does not hold them."""

    pid: int = 0
    dsn: str = ""
    stack: ExitStack = field(default_factory=ExitStack)
    databases: dict[Any, Databases] = field(default_factory=dict)

    def of(self, prepare: Callable[[str], object] | None) -> Databases:
        # Objects are made on the first call, and also after a fork, because the parent's objects belong to the parent.
        if self.pid != os.getpid():
            self.pid, self.databases, self.stack = os.getpid(), {}, ExitStack()
            self.dsn, _ = self.stack.enter_context(server())
            atexit.register(self._end, self.pid)
        if prepare not in self.databases:
            self.databases[prepare] = self.stack.enter_context(Databases(self.dsn, prepare))
        return self.databases[prepare]

    def _end(self, pid: int) -> None:
        if pid == os.getpid():
            self.stack.close()


_shared = _Shared()


def isolated(*, prepare: Callable[[str], object] | None = None) -> Isolated:
    """Return a context manager for a test's own database and its `Jobs`; it works with and without pytest.

    The server is the one in ``PQCORE_TEST_DSN``, a container (``PQCORE_TEST_CONTAINER``), or an embedded server, which
    is started once in each process.

    Args:
        prepare: A function that makes the application's own tables; it is called once in each process, with a DSN. Each
            test finds the database as this function left it.
    """
    return Isolated(lambda: _shared.of(prepare))


__all__ = ["Enqueued", "Isolated", "Jobs", "Ran", "isolated"]
