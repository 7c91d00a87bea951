"""The harness that a scenario works with: queues over the tested backend, and a second, observing connection.

The queues and this connection use the tested backend, so that a backend can be tested without any other driver.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from pqcore import tasks
from pqcore.async_queue import AsyncPQ
from pqcore.backend import BackendSpec, Capability
from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.dsn import with_options
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.plugins import plugins
from pqcore.queue import PQ
from pqcore.sql.identifiers import TableName, fit, quote
from pqcore.testing.connections import Connection, Observer, statement
from pqcore.testing.databases import prepared
from pqcore.testing.pools import open_pool
from pqcore.testing.portal import Blocking, Portal, unwrapped
from pqcore.testing.schemas import Schemas, Tables
from pqcore.testing.server import partitions, with_isolation
from pqcore.worker import Worker

T = TypeVar("T")
_numbers = itertools.count(1)

SETTLED = 0.05
"""Seconds without a statement after which a waiter that cannot listen counts as waiting."""
PATIENCE = float(os.environ.get("PQCORE_TEST_PATIENCE", "20"))
"""Seconds after which a test stops waiting for an event, and fails. No test measures this time."""
SIDE_TABLES = (
    "_archive",
    "_slots",
    "_dead",
    "_results",
    "_batches",
    "_ticks",
    "_rates",
    "_dedup",
    "_keys",
    "_rules",
    "_workers",
    "_attempts",
    "_samples",
    "_schedules",
    "_blocked",
    "_dependencies",
)
"""The suffixes of the tables that belong to a queue's table."""
INDEXES = ("_pkey", "_ready", "_urgent", "_hidden", "_unfinished", "_groups", "_parked", "_waiting")
"""The suffixes of the indexes of a queue's table."""


def all_tables(*names: str) -> set[str]:
    """Return the names of all tables that a schema has if only these queues' tables were made in it."""
    found = {fit(name + suffix) for name in names for suffix in ("", *SIDE_TABLES)}
    assert len(found) == len(names) * (1 + len(SIDE_TABLES))
    return found | {"pqcore_migrations"}


def patiently(what: str) -> Iterator[None]:
    """Yield the rounds of a repeated check; after `PATIENCE` seconds the next round fails.

    Args:
        what: What the check waits for.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
    msg = f"{what}: this did not happen within {PATIENCE} seconds"
    raise AssertionError(msg)


class Harness:
    """A test's access to the tested backend, in a schema of its own.

    Attributes:
        spec: The backend.
        dsn: The DSN of the server; ``application_name`` marks the connections.
        mode: ``"blocking"`` or ``"async"``; the scenarios are the same in both modes.
        partitions: The number of partitions of new tables; None for none.
        left_out: A function that is told which ability is missing, if the scenario is skipped for it.
    """

    def __init__(
        self,
        spec: BackendSpec,
        dsn: str,
        left_out: Callable[[str], object] = str,
        schemas: Schemas | None = None,
    ) -> None:
        """Connect to the server.

        Args:
            spec: The backend.
            dsn: The DSN of the server.
            left_out: See the attribute.
            schemas: The schemas that earlier tests have left unchanged; None if each test makes its own schema.
        """
        self.spec = spec
        self._pid = os.getpid()
        self.partitions = partitions()
        self.left_out = left_out
        self.mode = spec.mode
        self.application = f"pqcore-test-{time.time_ns() % 10**9}-{next(_numbers)}"
        self.dsn = with_options(dsn, application_name=self.application)
        self._dsn = dsn
        self._names = TableName("queue", self.application.replace("-", "_"))
        self._made = False
        self._tables: Tables | None = None  # the test's tables, if another test may use them afterwards
        self._schemas = schemas
        self._stack = ExitStack()
        self._portal = Portal() if spec.mode == "async" else None
        sql = plugins.dialect()(self._names, spec.paramstyle)
        make = partial(plugins.make, spec)
        self.opener = BackendAdapter(make, sql, suspends=spec.mode == "async", prepared=prepared())
        self._observer = Observer(spec, dsn) if schemas is None else schemas.observer(spec, dsn)

    @property
    def schema(self) -> str:
        """Return the name of the test's schema, which exists from now on."""
        self._make_schema()
        return self._names.schema or ""

    def _make_schema(self, *, with_tables: bool = False) -> bool:
        """Make the test's schema, if there is none yet.

        Args:
            with_tables: Whether the schema may have the tables of the table ``queue`` already.

        Returns:
            Whether this call has made an empty schema.
        """
        if self._made:
            return False
        self._made = True
        if with_tables and self._schemas is not None:
            self._tables = self._schemas.take(self._observer.sql, self._names)
        if self._tables is None:
            self._observer.sql(f"CREATE SCHEMA {quote(self.schema)}", rows=False)
        return self._tables is None

    def wait_for(self, make: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine of the backend: step it, or run it in the portal."""
        if self._portal is None:
            return run_sync(make())  # type: ignore[arg-type]
        result: T = self._portal.call(make)
        return result

    def pq(self, target: Any = None, *, create: bool = True, **options: Any) -> Any:
        """Return a `PQ` over the backend; the test closes it at its end. An `AsyncPQ` gets blocking methods.

        Args:
            target: A DSN or connection; by default the test's DSN.
            create: Whether to make the table.
            **options: Options of `PQ`; the schema is the test's.
        """
        return self._pq(PQ, AsyncPQ, target, create, options)

    def tasks(self, target: Any = None, *, create: bool = True, **options: Any) -> Any:
        """Return a `pqcore.tasks.PQ`, as `pq` returns a `pqcore.PQ`.

        The tasks of its queues are called like tasks of a blocking queue.
        """
        return self._pq(tasks.PQ, tasks.AsyncPQ, target, create, options)

    def _pq(
        self, blocking: type[PQ], asynchronous: type[AsyncPQ], target: Any, create: bool, options: dict[str, Any]
    ) -> Any:
        of_the_test = create and not options.keys() & {"table", "schema"}
        new = self._make_schema(with_tables=of_the_test) and of_the_test
        options = {"schema": self.schema, "backend": self.spec.name, "prepared": prepared(), **options}
        if target is None and "pool" not in options:
            target = self.dsn
        pq: Any
        if self._portal is None:
            pq = blocking(target, **options)
        else:
            pq = Blocking(self._portal.call(lambda: _made(asynchronous, target, options)), self._portal)
        if isinstance(target, str):
            self._stack.callback(pq.close)
        if create:
            pq.create(partitions=self.partitions)
        if new and self._schemas is not None and isinstance(target, str):
            self._tables = Tables.look(self._observer.sql, self._names)
        return pq

    def queue(self, name: str = "q", **options: Any) -> Any:
        """Return a queue of a new `PQ`; see `pq`."""
        return self.pq(**options)[name]

    def task_queue(self, name: str = "q", **options: Any) -> Any:
        """Return a queue of a new `pqcore.tasks.PQ`; see `tasks`."""
        return self.tasks(**options)[name]

    def drain(self, *queues: Any, **options: Any) -> None:
        """Run all due jobs of some queues in a worker, and return. Several threads may call this concurrently.

        Args:
            *queues: The queues, made by `task_queue`.
            **options: Options of `Worker`.
        """

        async def work() -> None:
            await asyncio.wait_for(Worker(*map(unwrapped, queues), burst=True, **options).run(), PATIENCE)

        self.in_loop(work)

    @contextmanager
    def working(self, *queues: Any, **options: Any) -> Iterator[Worker]:
        """Run a worker, in a thread or the portal, for the length of a block; then stop it gracefully.

        Args:
            *queues: The queues, made by `task_queue`.
            **options: Options of `Worker`.
        """
        worker = Worker(*map(unwrapped, queues), **options)
        started = threading.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def work() -> None:
            loops.append(asyncio.get_running_loop())
            running = asyncio.ensure_future(worker.run())
            await asyncio.sleep(0)  # after this turn of the loop, the worker can be stopped
            started.set()
            await running

        with self.thread(lambda: self.in_loop(work)) as join:
            assert started.wait(PATIENCE)
            try:
                yield worker
            finally:
                with suppress(RuntimeError):  # the worker failed, and its loop is closed; join raises the cause
                    loops[0].call_soon_threadsafe(worker.stop)
                join()

    def listener(self, engine: Any) -> Any:
        """Return the listener of an engine for the portal's event loop, if there is a portal."""

        async def here() -> Any:
            return engine.listener

        return self.wait_for(here)

    def in_loop(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of asyncio in the portal, if there is one, or else in a new loop."""
        if self._portal is None:
            return asyncio.run(make())
        result: T = self._portal.call(make)
        return result

    def committed_dsn(self) -> str:
        """Return the test's DSN, with READ COMMITTED as the default isolation if the server's default is higher."""
        [[level]] = self.sql("SELECT current_setting('default_transaction_isolation')")
        if level == "read committed":
            return self.dsn
        return with_isolation(self.dsn, "read committed")

    def connect(self, dsn: str | None = None) -> Connection:
        """Return a connection of the driver, which is closed at the end."""
        connection = self._open(dsn or self.dsn)
        self._stack.callback(connection.close)
        return connection

    def pool(self, size: int = 4, dsn: str | None = None) -> Any:
        """Return a pool of the driver, which is closed at the end (capability POOL).

        If the driver refuses such small pools, the harness holds the additional connections until the end, so that the
        scenario gets only ``size`` connections.
        """
        pool, beyond = self.wait_for(lambda: open_pool(self.spec, dsn or self.dsn, size))
        self._stack.callback(lambda: self.wait_for(lambda: self.opener.call("close_pool", pool)))
        for _ in range(beyond):
            self._borrow(pool)
        return pool

    def _borrow(self, pool: Any) -> None:
        """Borrow a pool's connection until the test ends, under another name, so that no scenario counts or ends it."""

        async def borrow() -> Session:
            session = self.opener.session(await self.opener.call("acquire", pool))
            await session.enter()
            await session.execute(statement(f"SET application_name = '{self.application}-borrowed'", rows=False))
            return session

        async def give_back(session: Session) -> None:
            with suppress(PQError):  # the scenario closed the pool
                await session.leave()
                await self.opener.call("release", pool, session.driver)

        borrowed = self.wait_for(borrow)
        self._stack.callback(lambda: self.wait_for(lambda: give_back(borrowed)))

    def sql(self, text: str, *, rows: bool = True) -> list[tuple[Any, ...]]:
        """Read or change the database from another connection; `{table}` is the queue's table."""
        return self._observer.sql(text.replace("{table}", self.table) if "{table}" in text else text, rows=rows)

    def sql_within(self, queue: Any, text: str, *, rows: bool = True) -> list[tuple[Any, ...]]:
        """Run a statement in the transaction that ``with queue`` opened."""
        engine = queue.engine
        query = statement(text.replace("{table}", self.table), rows=rows)
        found = self.wait_for(lambda: engine.run(lambda session: session.execute(query), protect=False))
        return [tuple(row) for row in found]

    @property
    def table(self) -> str:
        """Return the quoted name of the test's table ``queue``, in a schema that exists from now on."""
        self._make_schema()
        return str(self._names)

    def bounded(self, queue: Any) -> bool:
        """Return whether the queue's next look begins at the position that an earlier look stored."""
        return bool(queue.bound.usable())

    def needs_sessions(self) -> None:
        """Skip a scenario that inspects or changes the server's sessions, if a pooler shares its connections.

        Behind such a pooler, a session belongs to no single client: a setting, or the end of a session, would affect
        other clients.
        """
        if not prepared():
            import pytest

            self.left_out("SESSIONS")
            pytest.skip("not offered: SESSIONS: a pooler in between shares the server's sessions")

    def needs_options(self, dsn: str, setting: str, value: str) -> None:
        """Skip a scenario whose connections need a setting of the DSN's options, if a pooler drops the setting.

        Only a pooler may drop a setting. ``PQCORE_TEST_PREPARED=yes`` says that there is a pooler, and that it gives
        each client a separate session.
        """
        if os.environ.get("PQCORE_TEST_PREPARED") != "yes":
            return
        connection = self._open(dsn)
        try:
            [[found]] = connection.sql(f"SELECT current_setting('{setting}')")
        finally:
            connection.close()
        if found != value:
            import pytest

            self.left_out("OPTIONS")
            pytest.skip(f"not offered: OPTIONS: a pooler in between drops {setting} from the options of a DSN")

    def needs_utf8(self) -> None:
        """Skip a scenario that stores text of several alphabets, if the database's encoding lacks some of them."""
        [[encoding]] = self.sql("SELECT current_setting('server_encoding')")
        if encoding != "UTF8":
            import pytest

            self.left_out("UTF8")
            pytest.skip(f"not offered: UTF8: the database's encoding is {encoding}")

    def needs_method(self, name: str) -> None:
        """Skip a scenario about a method that a session may leave out, if the session has left it out."""
        if not hasattr(self._observer.session.driver, name):
            import pytest

            self.left_out(f"{name}()")
            pytest.skip(f"not offered: {name}(): the session has no such method, which may be left out")

    def needs_put_function(self) -> None:
        """Skip a scenario about the function that puts jobs from SQL, if the dialect lacks this function."""
        self._needs_of_dialect("put function")

    def needs_end_and_take(self) -> None:
        """Skip a scenario about the statement that ends jobs and leases others, if the dialect lacks this statement."""
        self._needs_of_dialect("end and take")

    def _needs_of_dialect(self, feature: str) -> None:
        if reason := plugins.dialect().unsupported.get(feature):
            import pytest

            self.left_out(feature)
            pytest.skip(f"not offered: {feature}: {reason}")

    def connections(self) -> int:
        """Return how many connections the test's queues have open."""
        self.needs_sessions()
        [[number]] = self.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{self.application}'")
        return int(number)

    def cut_connections(self) -> int:
        """Make the server end all connections of the test's queues, as a restart would; return their number."""
        self.needs_sessions()
        return self._cut()

    def _cut(self) -> int:
        rows = self.sql(
            f"SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{self.application}'"
        )
        if rows:
            pids = ", ".join(str(pid) for pid, _ in rows)
            self.eventually(lambda: not self.sql(f"SELECT 1 FROM pg_stat_activity WHERE pid IN ({pids})"))
        return len(rows)

    def waiting(self) -> list[int]:
        """Return the server's process ids of the connections on which the test's queues wait, by their locks."""
        rows = self.sql(
            "SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid)"
            f" WHERE application_name = '{self.application}'"
            " AND locktype = 'advisory' AND pg_locks.mode = 'ShareLock' AND granted"
        )
        return [pid for [pid] in rows]

    @property
    def listeners(self) -> int:
        """Return how many connections a `PQ` over a DSN has for LISTEN: 1, or 0 if its waiters poll."""
        return int(Capability.LISTEN in self.spec.capabilities)

    def listening(self) -> bool:
        """Return whether a put wakes a waiter from now on: the waiter waits, or will look once more before it waits.

        If the backend cannot listen, return whether a waiter has looked, and now waits until it polls again.
        """
        if self.listeners:
            return bool(self.waiting())
        return bool(
            self.sql(
                f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{self.application}'"
                f" AND state LIKE 'idle%' AND clock_timestamp() - state_change > interval '{SETTLED} s'"
            )
        )

    def eventually(self, condition: Callable[[], Any]) -> Any:
        """Call a function repeatedly until it returns a true value, and return this value."""
        deadline = time.monotonic() + PATIENCE
        pause = threading.Event()
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"did not become true in {PATIENCE} seconds"
            pause.wait(0.01)
        return answer

    @contextmanager
    def thread(self, work: Callable[[], T]) -> Iterator[Callable[[], T]]:
        """Run ``work`` in a thread for the length of a block.

        Yield a function that joins the thread and returns the result.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=run, daemon=True)

        def join() -> T:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the thread did not end in {PATIENCE} seconds"
            if errors:
                raise errors[0]
            return results[0]

        thread.start()
        yield join
        join()

    def at_once(self, *works: Callable[[], T]) -> list[T]:
        """Run each function in a thread, all starting concurrently; return their results in order.

        If one of the functions raises an exception, this method raises it.
        """
        start = threading.Barrier(len(works))

        def begun(work: Callable[[], T]) -> Callable[[], T]:
            def run() -> T:
                start.wait(PATIENCE)
                return work()

            return run

        with ExitStack() as threads:
            joins = [threads.enter_context(self.thread(begun(work))) for work in works]
            return [join() for join in joins]

    def expire(self) -> None:
        """Make all leases run out, as time would."""
        self.sql(
            "UPDATE {table} SET leased_until = statement_timestamp() - interval '1 s'"
            " WHERE leased_until IS NOT NULL AND parked_on IS NULL",
            rows=False,
        )

    def close(self) -> None:
        """Close everything, and drop the schema or leave it to another test; a forked child does nothing."""
        if os.getpid() != self._pid:
            return
        try:
            self._stack.close()
        finally:
            self._cut()  # a failed test may have left a transaction open
            if self._made and not self._put_back():
                self._observer.sql(f"DROP SCHEMA {quote(self.schema)} CASCADE", rows=False)
            if self._schemas is None:
                self._observer.close()
            else:
                self._schemas.keep(self._observer)
            if self._portal is not None:
                self._portal.close()

    def _put_back(self) -> bool:
        """Restore the schema for another test; return False if the schema cannot be restored."""
        if self._schemas is None or self._tables is None:
            return False
        try:
            self._tables.restore(self._observer.sql, self._names)
        except PQError:  # the test has changed more than rows
            return False
        self._schemas.put_back(self._names, self._tables)
        return True

    def _open(self, dsn: str) -> Connection:
        async def connect() -> Session:
            session = self.opener.session(await self.opener.call("connect", dsn))
            await session.enter()
            return session

        return Connection(self.wait_for, self.wait_for(connect))


async def _made(factory: Callable[..., T], target: Any, options: dict[str, Any]) -> T:
    """Construct an object within the event loop."""
    return factory(target, **options)
