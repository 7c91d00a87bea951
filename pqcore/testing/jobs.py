"""For the tests of those who use pqcore: a queue of the test's own, what is in it, and running it.

    from pqcore.testing.jobs import isolated

    with isolated() as jobs:
        jobs.use(app.pq)
        app.sign_up("ann@example.com")
        jobs.assert_enqueued(app.welcome, args=["ann@example.com"])
        jobs.drain(app.queue)

In pytest, the fixture ``pqcore_jobs`` is that `Jobs`.  See docs/testing.md.
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
from pqcore.operations.periodic import begin as begin_ticks
from pqcore.operations.periodic import last_tick
from pqcore.operations.periodic import put as put_tick
from pqcore.sql.identifiers import TableName
from pqcore.tasks import PQ, AsyncPQ, AsyncQueue, Queue
from pqcore.tasks.declaring import Call, Task
from pqcore.tasks.periodic import Periodic
from pqcore.tasks.registry import TaskDeclarations
from pqcore.testing.databases import OURS, Connection, Database, Databases
from pqcore.testing.inline import MOST_RUN, Ran, drain, in_loop
from pqcore.testing.matching import ENQUEUED, NAMES, Enqueued, Wanted, read
from pqcore.testing.server import server
from pqcore.testing.time_travel import compiled, due, set_back
from pqcore.times import TimeSpec, parse, seconds

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.db.session import Session

T = TypeVar("T")

MOST_DEAD = 100_000
"""Dead letters of a queue that are listed, at most."""


class Jobs:
    """The jobs of one test: assertions, and control.

    All but `adrain` blocks, and may be called in an event loop too.  Where queues may be left out, all
    that this knows of are meant.

    Args:
        dsn: The test's own database.  Missing tables are made in it, and nothing is deleted.

    Attributes:
        dsn: The test's own database, for what else is to be connected to it.
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
        """A `pqcore.tasks.PQ` bound to the test's database; its table is there.

        Args:
            **options: As for `PQ`.
        """
        made = PQ(self._own_dsn, **options)
        self._take(made.engine)
        self._faces.append(made)
        return made

    def async_pq(self, **options: Any) -> AsyncPQ:
        """The same, to be awaited: connections are opened when first needed, in the event loop that needs them."""
        made = AsyncPQ(self._own_dsn, **options)
        self._take(made.engine)
        self._faces.append(made)
        return made

    def use(self, *targets: Any) -> None:
        """Point a `PQ` or `AsyncPQ` of the application's at the test's database, until the test ends.

        With it all of its queues, and what they have declared; a missing table is made.

        Args:
            *targets: Which; a queue or a task stands for the `PQ` that it is of.  A queue that was made by
                ``pq.queue(...)`` is to be given itself if its options matter to what is asked of it here.
        """
        for given in targets:
            target = given.queue if _is_task(given) else given
            engine = getattr(target, "engine", None)
            if not isinstance(engine, Engine):
                msg = f"{given!r} cannot be pointed at another database; give a PQ, an AsyncPQ or a queue"
                raise ConfigurationError(msg)
            if not self._has(engine):
                # Queues, handles and the like hold on to the engine: so it stays, and gets another's inside.
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
        """Point all back to where it was, and close the connections."""
        for engine, inside in reversed(self._swapped):
            engine.__dict__ = inside
        with ExitStack() as stack:
            for connection in self._connections.values():
                stack.callback(connection.close)
            for engine in self._engines:
                stack.callback(_shut, engine)
        self._connections, self._engines, self._swapped, self._faces = {}, [], [], []

    async def close_here(self) -> None:
        """Close the connections that were opened in the running event loop; `close` is to follow."""
        for engine in self._engines:
            if engine.runtime.suspends and asyncio.get_running_loop() in engine.loops():
                await engine.close()

    # What is there

    def enqueued(self, *queues: Any, connection: Any = None) -> list[Enqueued]:
        """The jobs that wait, scheduled and parked ones too, in the order that they were put.

        Not those that are taken, leased or finished.

        Args:
            *queues: Of these queues.
            connection: As this connection sees them, in its transaction; as for `pqcore.Queue.put`. For
                blocking queues only.
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
        """Have the test fail unless there is such a job.

        Args:
            what: A task, the path of one, a call (``send.call("ann")``), or the data that was put; any job if it
                is not given.
            queue: Where it is to be; the task's own queue if it is not given, or any.
            args: What the function is to be called with, after the job's id.
            kwargs: Likewise.
            times: How many such jobs there are to be; None for at least one.
            schedule_at: For when it is to be scheduled: a datetime, or a distance from when it was put, or from now.
            expected_at: Likewise.
            within: By how much the times may be off, a second if it is not given; without them: in what time the
                job is to be due.
            headers: Which it is to have, among others.
            connection: As for `enqueued`.

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
        """Have the test fail if there is such a job.

        Args:
            what: As for `assert_enqueued`.
            **criteria: Likewise, but for ``times``.
        """
        __tracebackhide__ = True
        self.assert_enqueued(what, **criteria, times=0)

    def dead(self, *queues: Any) -> list[DeadLetter]:
        """The dead letters, the one that died first first."""
        found: list[DeadLetter] = []
        for queue in self._queues(queues):
            rows = self._ask(queue, dead_letters.list_latest, queue, MOST_DEAD)
            found += [DeadLetter(queue, row) for row in reversed(rows)]
        return found

    # Running

    def drain(self, *queues: Any, raise_errors: bool = True, at_most: int = MOST_RUN) -> list[Ran]:
        """Run what is due, and what becomes due by that: here and now, one job at a time, in the order of a worker.

        Coroutine functions too, each in an event loop of its own.  Groups and limits hold; rates and timeouts do not.

        Args:
            *queues: Of these: always of the first that has a job.
            raise_errors: Raise the first exception of a function, once what becomes of its job is stored. Not what
                is meant to be raised: `Snooze`, `Discard`, `Retry` with retries left, what is in ``discard_on``.
            at_most: So many jobs.

        Returns:
            What was run.

        Raises:
            UnknownTask: A job names no function that is known here.
            PQError: There were more jobs than ``at_most``.
        """
        chosen = self._queues(queues)
        suspends = any(queue.engine.runtime.suspends for queue in chosen)
        if suspends and in_loop():
            msg = "within an event loop an asynchronous queue is drained with await jobs.adrain(queue)"
            raise ConfigurationError(msg)
        work = drain(chosen, raise_errors=raise_errors, at_most=at_most, suspends=suspends)
        return asyncio.run(work) if suspends else run_sync(work)

    async def adrain(self, *queues: Any, raise_errors: bool = True, at_most: int = MOST_RUN) -> list[Ran]:
        """As `drain`, awaited: coroutine functions run in this event loop.  Blocking queues, too."""
        return await drain(self._queues(queues), raise_errors=raise_errors, at_most=at_most, suspends=True)

    # Time

    def now(self) -> datetime:
        """What time it is in the test: the server's, and what was travelled."""
        [[now]] = self._any_connection().sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        moment: datetime = now
        return moment.replace(tzinfo=timezone.utc) + self._travelled

    def travel(
        self, by: str | float | timedelta | None = None, *, to: datetime | None = None, down: bool = False
    ) -> datetime:
        """Let time pass: what was scheduled until then is due, leases and results run out, periodic tasks tick.

        The server's clock decides what is due, and cannot be moved. So the rows are: all times in the tables of the
        queues are set back by as much. Python's clock stays as it is, too.

        Args:
            by: How long: seconds, ``'1h'`` or a timedelta.
            to: Or until when; naive means UTC.
            down: Whether no worker was there meanwhile: then what becomes of missed ticks is the periodic
                task's affair (``missed``). Else each is put.

        Returns:
            What time it is then.

        Raises:
            ConfigurationError: Time does not go backwards; or a task ticks more often than can be put.
            TransientError: A transaction holds rows that are to be moved.
        """
        if (by is None) == (to is None):
            msg = "travel by a time, or to a time: one of them"
            raise ConfigurationError(msg)
        start = self.now()
        arrival = parse(to) if by is None else start + timedelta(seconds=seconds(by))
        if not isinstance(arrival, datetime) or arrival < start:
            msg = f"it is {start} in the test, and one travels to a later time, not to {to!r}"
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
        for queue, periodic, last, _ in ticks:
            self._ask(queue, begin_ticks, queue, periodic.line, last - self._travelled)
        put = sorted((tick, number) for number, (*_, ones) in enumerate(ticks) for tick in ones)
        for tick, number in put:
            queue, periodic, _, _ = ticks[number]
            row = periodic.call.stored().values()
            self._ask(queue, put_tick, queue, periodic.name, tick - self._travelled, row)
        return arrival

    # Within

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
        """Run an operation for a queue; in its transaction, if it is a blocking one and one is open in this thread."""
        engine: Engine = queue.engine
        if engine.runtime.suspends:
            return self._connection(engine.names).call(operation, *arguments)
        return run_sync(operation(engine, *arguments))  # type: ignore[arg-type]

    def _run(self, names: TableName, work: Callable[[Session, TableName], Awaitable[T]]) -> T:
        """Do something with a session that knows a table; in the transaction that is open in this thread, if one is."""

        async def run(engine: Engine) -> T:
            return await engine.run(lambda session: work(session, names), protect=False)

        for engine in self._engines:
            if not engine.runtime.suspends and str(engine.names) == str(names) and engine._current() is not None:
                return run_sync(run(engine))
        return self._connection(names).call(run)

    def _queues(self, chosen: Iterable[Any]) -> list[Any]:
        """Queues, each once; those of a `PQ` that is among them, and all without any."""
        given = list(chosen)
        found: dict[tuple[str, str], Any] = {}
        for one in given:
            if not isinstance(getattr(one, "engine", None), Engine):
                msg = f"{one!r} is no queue, nor a PQ"
                raise ConfigurationError(msg)
            if not self._has(one.engine):
                msg = f"{one!r} is not in the test's database: give it, or its PQ, to jobs.use() first"
                raise ConfigurationError(msg)
        # Queues that were named one by one first: they may have options of their own.
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
            msg = "what a connection of yours sees can be looked at through a blocking queue only"
            raise ConfigurationError(msg)

        async def work(session: Session) -> Sequence[Any]:
            query = compiled(session, "enqueued", ENQUEUED)
            return await session.execute(query, query.bind({"q_name": queue.name}))

        async def run(engine: Engine) -> Sequence[Any]:
            return await engine.run(work, protect=False, connection=connection)

        return [read(queue, row, self._travelled) for row in self._ask(queue, run)]

    def _ticks(
        self, start: datetime, arrival: datetime, *, down: bool
    ) -> list[tuple[Any, Periodic, datetime, list[datetime]]]:
        """The periodic tasks, the last tick of each, and the ticks that are to be put: by the test's clock."""
        found = []
        for queue in self._declaring():
            for periodic in queue.periodics:
                kept = self._ask(queue, last_tick, queue, periodic.name)
                begins = kept.line is not None and kept.line != periodic.line
                last = start if kept.tick is None or begins else kept.tick + self._travelled
                if not down:  # what was missed before is settled
                    last = max(last, self._down_until)
                found.append((queue, periodic, last, due(periodic, last, arrival, down=down)))
        return found

    def _declaring(self) -> Iterator[Any]:
        """The queues that may have declared something."""
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
    """Close an engine for good, wherever it was used."""
    if not engine.runtime.suspends:
        run_sync(engine.close())
        return
    source: Any = engine.source
    source._closed = True
    for loop in engine.loops():
        if not loop.is_closed() and not loop.is_running() and not in_loop():
            loop.run_until_complete(engine.close())
            return  # which closes those of other loops, too
    # Else its connections end with the loop, or are ended by the server.


class Isolated:
    """What `isolated` gives: a context manager, for ``with`` and ``async with``.

    Args:
        databases: Gives those to choose one from.
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
    """The jobs of a test whose database is one of `Databases`."""

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
    """The server and the databases of this process, where there is no pytest to have them."""

    pid: int = 0
    dsn: str = ""
    stack: ExitStack = field(default_factory=ExitStack)
    databases: dict[Any, Databases] = field(default_factory=dict)

    def of(self, prepare: Callable[[str], object] | None) -> Databases:
        if self.pid != os.getpid():  # the first time, or after a fork: what the parent has is the parent's
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
    """A database of the test's own, and its `Jobs`, for the length of a block; with pytest or without.

    The server is the one that ``PQCORE_TEST_DSN`` names, or a container (``PQCORE_TEST_CONTAINER``), or an embedded
    one, which is started once a process.

    Args:
        prepare: Makes tables of the application's own: called once a process, with a DSN. Each test finds the
            database as it left it.
    """
    return Isolated(lambda: _shared.of(prepare))


__all__ = ["Enqueued", "Isolated", "Jobs", "Ran", "isolated"]
