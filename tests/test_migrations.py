"""Migrations: from each earlier version, while jobs run, together with older code, under locks, and when killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pq as pq_1_9_1
import psycopg
import psycopg2
import pytest
from click.testing import CliRunner
from migrations import starts
from migrations.processes import running
from migrations.shapes import kept, rows, shape
from migrations.watched import QUEUE, Watched, ask, pid, session
from psycopg.pq import TransactionStatus

from pqcore import PQ, schema, tasks
from pqcore.cli.app import app
from pqcore.db.dsn import with_database, with_options
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.errors import ConnectionLost, SchemaOutdated, TransientError
from pqcore.operations.samples import Sampling
from pqcore.operations.schema_info import ADMISSION
from pqcore.testing.commands import Command, eventually
from pqcore.testing.harness import PATIENCE
from pqcore.worker import Worker

LATEST = schema.latest()
VERSIONS = range(1, LATEST)


@pytest.fixture(scope="module")
def database(pqcore_server: str) -> Iterator[str]:
    """The DSN of an empty database for this module alone."""
    with psycopg.connect(pqcore_server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrations")
        yield with_database(pqcore_server, "migrations")
        connection.execute("DROP DATABASE migrations WITH (FORCE)")


@dataclass
class Place:
    """A schema that is the whole search path."""

    dsn: str
    name: str
    eyes: psycopg.Connection[Any]

    def shape(self, *, of_pq: bool = False) -> dict[str, Any]:
        return shape(self.eyes, self.name, of_pq=of_pq)

    def rows(self) -> dict[str, dict[str, Any]]:
        return rows(self.eyes)

    def version(self) -> int | None:
        with session(self.dsn) as looking:
            return run_sync(schema.version(looking, QUEUE))

    def pq(self, **options: Any) -> tasks.PQ:
        return tasks.PQ(self.dsn, backend="psycopg", **options)

    def create(self) -> None:
        with self.pq() as pq:
            pq.create()

    def kill(self, victim: int) -> None:
        """Let the server end a connection, and check that it has."""
        assert self.eyes.execute("SELECT pg_terminate_backend(%s)", [victim]).fetchone() == (True,)
        while self.eyes.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [victim]).rowcount:
            time.sleep(0.001)  # the end is not announced

    def recreate(self) -> None:
        """Have nothing in it."""
        self.eyes.execute(f"DROP SCHEMA IF EXISTS {self.name} CASCADE".encode())
        self.eyes.execute(f"CREATE SCHEMA {self.name}".encode())


@pytest.fixture
def place(database: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty schema."""
    dsn = with_options(database, options="-csearch_path=place")
    with psycopg.connect(dsn, autocommit=True) as eyes:
        made = Place(dsn, "place", eyes)
        made.recreate()
        yield made
        made.eyes.execute("DROP SCHEMA place CASCADE")


@pytest.fixture(scope="module")
def fresh(database: str) -> dict[str, Any]:
    """Return what `create` makes in an empty database."""
    with psycopg.connect(with_options(database, options="-csearch_path=fresh"), autocommit=True) as eyes:
        made = Place(with_options(database, options="-csearch_path=fresh"), "fresh", eyes)
        made.recreate()
        made.create()
        return made.shape()


@pytest.fixture
def old_snapshot(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that holds an old snapshot, has written nothing, and stays open until the test ends it."""
    with psycopg.connect(database) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        yield connection
        connection.rollback()


# From every version


def test_pq_table_is_migrated_with_its_jobs(place: Place, fresh: dict[str, Any]) -> None:
    starts.make_pqs(place.dsn)
    before = place.rows()
    assert len(before) == 6
    place.create()
    assert place.shape(of_pq=True) == fresh
    assert kept(before, place.rows())
    with place.pq() as pq:
        assert [job.data for job in pq["q"].get_many(9)] == starts.IN_ORDER_OF_PQS
        assert pq["q"].stats().scheduled == 1
        [job] = pq["objects/pickle"].get_many(9)
        assert job.data == {"an object"}


@pytest.mark.parametrize("version", VERSIONS)
def test_migration_keeps_jobs_in_progress(place: Place, fresh: dict[str, Any], version: int) -> None:
    starts.make(place.dsn, version)
    with place.pq() as older, place.pq() as pq:
        with starts.knowing(version):
            flight = starts.fly(older, version)
        before = place.rows()
        pq.create()
        assert place.shape() == fresh
        assert kept(before, place.rows())
        starts.land(pq, flight, older)


# Killed at any statement


STARTS: dict[str, Callable[[str], None]] = {
    "nothing": lambda dsn: None,
    "pq's": starts.make_pqs,
    **{f"version {version}": partial(starts.make_with_rows, version=version) for version in VERSIONS},
}


@pytest.mark.parametrize("start", STARTS)
def test_migration_killed_at_any_statement_is_completed(place: Place, fresh: dict[str, Any], start: str) -> None:
    """Before each statement, until the next version is there: what comes then is that version's start.

    Where all is as it was at the start, the next kill may begin from there; else the migration is completed.
    """
    begun: list[str] = []

    def kill_before(number: int, statement: str, session: Session) -> None:
        begun.append(statement)
        if len(begun) == number + 1:
            place.kill(pid(session))

    of_pq = start == "pq's"
    STARTS[start](place.dsn)
    version, tables, jobs = place.version(), place.shape(of_pq=of_pq), place.rows()
    completed: list[str] = []
    for number in range(1000):
        begun.clear()
        with session(place.dsn) as migrating, pytest.raises(ConnectionLost):
            Watched(migrating, partial(kill_before, number)).create()
        assert len(begun) == number + 1
        if (place.shape(of_pq=of_pq), place.rows()) == (tables, jobs):
            continue
        reached = place.version()
        place.create()
        assert place.shape(of_pq=of_pq) == fresh, f"killed before statement {number}: {begun[-1]}"
        assert kept(jobs, place.rows()), f"killed before statement {number}: {begun[-1]}"
        completed.append(begun[-1])
        if reached != version:
            break
        place.recreate()
        STARTS[start](place.dsn)
        jobs = place.rows()
    indexes = {"version 1": 6, "version 8": 1}.get(start)
    assert "COMMIT" in begun or indexes is not None
    # Everything except indexes is made in transactions. Indexes are made one by one, and recorded at the end.
    assert len(completed) == (1 if indexes is None else indexes + 2)


def stuck(place: Place) -> int | None:
    """Return the process id of the connection that builds an index, and waits for an older transaction."""
    found = place.eyes.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE 'CREATE % CONCURRENTLY%' AND wait_event = 'virtualxid'"
    ).fetchone()
    return found and int(found[0])


@pytest.mark.parametrize("killed", ["client", "server"])
def test_migration_killed_during_an_index_build_is_completed(
    place: Place, fresh: dict[str, Any], old_snapshot: psycopg.Connection[Any], tmp_path: Path, killed: str
) -> None:
    starts.make_pqs(place.dsn)
    with (
        Command("migrate", dsn=place.dsn, folder=tmp_path, variables={"PQCORE_BACKEND": "psycopg"}) as migrating,
        ThreadPoolExecutor() as threads,
    ):
        builder = eventually(lambda: stuck(place))
        if killed == "server":
            place.kill(builder)
            assert migrating.wait() == 1
            [index] = [index for index in place.shape(of_pq=True)["indexes"] if not index[2]]
            assert index[0].startswith("queue_")
        else:
            migrating.signal(signal.SIGKILL)
            assert migrating.wait() == -signal.SIGKILL
            assert stuck(place) == builder  # the server has not noticed
        second = threads.submit(place.create)
        old_snapshot.rollback()
        second.result(PATIENCE)
    assert place.shape(of_pq=True) == fresh


def test_migration_leaves_a_foreign_invalid_index_unchanged(place: Place) -> None:
    starts.make_pqs(place.dsn)
    with pytest.raises(psycopg.errors.UniqueViolation):
        place.eyes.execute("CREATE UNIQUE INDEX CONCURRENTLY theirs ON queue (q_name)")
    place.create()
    assert [(index[0], index[2]) for index in place.shape(of_pq=True)["indexes"] if index[0] == "theirs"] == [
        ("theirs", False)
    ]


# Many concurrently


@pytest.fixture
def ddl(place: Place) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """Let the server record everything that is created, changed or dropped; return which process did what."""
    place.eyes.execute(
        """CREATE TABLE public.ddl (number bigserial, pid integer, tag text);
        CREATE FUNCTION public.keep_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.ddl (pid, tag) VALUES (pg_backend_pid(), tg_tag); END $$;
        CREATE EVENT TRIGGER keep_ddl ON ddl_command_end EXECUTE FUNCTION public.keep_ddl()"""
    )

    def found() -> list[tuple[int, str]]:
        return place.eyes.execute("DELETE FROM public.ddl RETURNING pid, tag").fetchall()

    yield found
    place.eyes.execute("DROP EVENT TRIGGER keep_ddl; DROP FUNCTION public.keep_ddl(); DROP TABLE public.ddl")


def test_migration_is_made_by_one_of_eight_processes(
    place: Place, fresh: dict[str, Any], ddl: Callable[[], list[tuple[int, str]]]
) -> None:
    with running(*[("migrator.py",)] * 8) as processes:
        for process in processes:
            process.expect(1)
        for round_, start in enumerate(("nothing", "pq's", "version 4")):
            place.recreate()
            STARTS[start](place.dsn)
            ddl()
            for process in processes:
                process.tell(place.dsn)
            for process in processes:
                process.expect(1, than=1 + round_)
            assert place.shape(of_pq=start == "pq's") == fresh
            assert len({pid for pid, _ in ddl()}) == 1


def test_migration_creates_tables_of_one_schema_concurrently(place: Place, fresh: dict[str, Any]) -> None:
    start = threading.Barrier(4)

    def create(number: int) -> None:
        """Calls 0 and 3 run in transactions of the caller, and make the same table."""
        with psycopg.connect(place.dsn, autocommit=True) as connection:
            pq = PQ(connection, table=f"queue_{number % 3}")
            start.wait(PATIENCE)
            with connection.transaction() if number in (0, 3) else nullcontext():
                pq.create()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(create, range(4)))
    recorded = place.eyes.execute(
        "SELECT table_name, max(version), count(*) FROM pqcore_migrations GROUP BY 1 ORDER BY 1"
    )
    assert recorded.fetchall() == [(f"queue_{number}", LATEST, LATEST) for number in range(3)]


# Again


def test_migration_that_was_made_changes_and_locks_nothing_again(
    place: Place, fresh: dict[str, Any], ddl: Callable[[], list[tuple[int, str]]]
) -> None:
    starts.make_pqs(place.dsn)
    place.create()
    versions = "SELECT xmin::text, * FROM pqcore_migrations ORDER BY version"
    recorded = place.eyes.execute(versions).fetchall()
    assert len(ddl()) > 20
    place.create()
    with psycopg.connect(place.dsn) as connection, connection.transaction():
        PQ(connection).create()
        modes = connection.execute("SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid()").fetchall()
        assert set(modes) == {("AccessShareLock",), ("ExclusiveLock",)}  # the transaction's lock on its own id
        exclusive = "SELECT DISTINCT locktype FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'ExclusiveLock'"
        assert connection.execute(exclusive).fetchall() == [("virtualxid",)]
    assert ddl() == []
    assert place.eyes.execute(versions).fetchall() == recorded
    assert place.shape(of_pq=True) == fresh


# Locks


def test_migration_waits_only_briefly_for_strong_locks(place: Place) -> None:
    starts.make_pqs(place.dsn)
    queue = place.eyes.execute("SELECT 'queue'::regclass::oid").fetchone()
    strong: list[str] = []
    built: list[str] = []

    def look(statement: str, migrating: Session) -> None:
        held = place.eyes.execute(
            "SELECT mode FROM pg_locks WHERE pid = %s AND relation = %s", [pid(migrating), *(queue or ())]
        ).fetchall()
        if {mode for (mode,) in held} & {"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"}:
            assert ask(migrating, "SHOW lock_timeout") == [(f"{schema.LOCK_TIMEOUT:g}s",)]
            strong.append(statement)
        if "INDEX CONCURRENTLY" in statement:
            assert not migrating.in_transaction()
            built.append(statement)

    with session(place.dsn) as migrating:
        Watched(migrating, after=look).create()
    assert any("ADD COLUMN" in statement for statement in strong)
    assert any("CREATE TRIGGER" in statement for statement in strong)
    assert len(built) == 7
    assert not [statement for statement in strong if re.search(r'VALIDATE|INDEX .* ON "queue"', statement)]  # reads all


def test_migration_that_waits_delays_others_only_briefly(
    place: Place, fresh: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(schema, "ATTEMPTS", 3)
    starts.make_pqs(place.dsn)
    before = place.shape(of_pq=True)
    put = "INSERT INTO queue (q_name, data) VALUES ('q', '1')"
    waits = "SELECT FROM pg_locks WHERE relation = 'queue'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"
    with psycopg.connect(place.dsn) as reader, ThreadPoolExecutor() as threads:
        reader.execute("SELECT FROM queue")
        migrating = threads.submit(place.create)
        eventually(lambda: place.eyes.execute(waits.encode()).rowcount or migrating.done())
        assert not migrating.done()
        with psycopg.connect(place.dsn, autocommit=True) as putter:
            putter.execute(put)  # behind the reader; yet it succeeds before the reader ends
            assert reader.info.transaction_status == TransactionStatus.INTRANS
            with pytest.raises(TransientError, match=r"queue.* was not migrated, .*3 attempts of 0\.2 seconds"):
                migrating.result(PATIENCE)
            putter.execute("SET lock_timeout = '1ms'")
            putter.execute(put)  # nothing is left behind
        assert place.shape(of_pq=True) == before
    place.create()
    assert place.shape(of_pq=True) == fresh


def test_migration_continues_when_it_gets_the_lock(
    place: Place, fresh: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0.05)
    starts.make_pqs(place.dsn)
    slept: list[float] = []
    with psycopg.connect(place.dsn) as reader, session(place.dsn) as migrating:
        reader.execute("SELECT FROM queue")

        async def end_the_reader(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                reader.rollback()

        Watched(migrating).create(end_the_reader)
    assert slept == [0.05, 0.05]
    assert place.shape(of_pq=True) == fresh


def test_migration_builds_indexes_of_a_large_table_while_pq_works(
    place: Place, fresh: dict[str, Any], old_snapshot: psycopg.Connection[Any]
) -> None:
    """An index build waits for an old transaction without end; puts and takes go on meanwhile."""
    starts.make_pqs(place.dsn)
    place.eyes.execute(
        "INSERT INTO queue (q_name, data, dequeued_at) SELECT 'bulk', '1', CASE WHEN n % 2 = 0 THEN now() END"
        " FROM generate_series(1, 100000) AS n"
    )
    with running(("pqs.py", place.dsn, "put", "a"), ("pqs.py", place.dsn, "get")) as processes:
        for process in processes:
            process.expect(10)
        with ThreadPoolExecutor() as threads:
            migrating = threads.submit(place.create)
            eventually(lambda: stuck(place) or migrating.done())
            for process in processes:
                process.expect(100, than=len(process.lines))
            assert stuck(place)
            old_snapshot.rollback()
            migrating.result(PATIENCE)
        for process in processes:
            process.expect(10, than=len(process.lines))
        put, got = [process.end() for process in processes]
    assert sorted(got) == sorted([*put, "due", "expected", "{'waiting': 1}"])
    assert place.shape(of_pq=True) == fresh
    with place.pq() as pq:
        assert len(pq["bulk"].get_many(60_000)) == 50_000


# Side by side


async def compile_statements(session: Session) -> None:
    """Compile statements that `starts.knowing` changes, because it may end before the first use of some of them."""
    for each in (session.sql, session.sql.tasks, session.sql.attempts):
        list(each.queries())


class Crew:
    """Threads that put and take, and record what they did.

    Args:
        place: Where.
        name: What its jobs begin with.
        leases: Whether some are taken under a lease, and acknowledged.
    """

    def __init__(self, place: Place, name: str, *, leases: bool) -> None:
        self._place, self._name = place, name
        self.put: list[str] = []
        self.got: dict[str, list[str]] = {"get": [], "lease" if leases else "get_many": []}
        self._no_more_puts, self._no_more = threading.Event(), threading.Event()
        self._working: list[Future[None]] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the threads work in the block: it begins when each has done something, and they have ended after it."""
        with ThreadPoolExecutor() as threads:
            works: list[Callable[[Any], None]] = [self._produce, *(partial(self._consume, way) for way in self.got)]
            self._working = [threads.submit(self._work, work) for work in works]
            try:
                self.expect(1)
                yield
            finally:
                self._no_more_puts.set()
                self._no_more.set()
            for each in self._working:
                each.result(PATIENCE)

    def _work(self, work: Callable[[Any], None]) -> None:
        with self._place.pq() as pq:
            run_sync(pq["q"].engine.run(compile_statements))
            work(pq["q"])

    def _produce(self, queue: Any) -> None:
        for number in itertools.count():
            if self._no_more_puts.wait(0.002):
                return
            queue.put(f"{self._name}-{number}")
            self.put.append(f"{self._name}-{number}")

    def _consume(self, way: str, queue: Any) -> None:
        while True:
            last = self._no_more.is_set()  # read before the jobs, so that every job put until then is taken
            if way == "get_many":
                jobs = queue.get_many(3, block=False)
            else:
                job = queue.get(block=False) if way == "get" else queue.lease("1h", block=False)
                jobs = [] if job is None else [job]
            if way == "lease":
                for job in jobs:
                    job.ack()
            self.got[way] += [str(job.data) for job in jobs]
            if not jobs:
                if last:
                    return
                self._no_more.wait(0.005)

    def stop_putting(self) -> None:
        self._no_more_puts.set()
        self._working[0].result(PATIENCE)

    def expect(self, more: int) -> None:
        """Wait until each thread has put and taken a number of further jobs."""
        kept = [self.put, *self.got.values()]
        before = [len(jobs) for jobs in kept]

        def found() -> bool:
            for each in self._working:
                if each.done():
                    each.result()  # raises what ended the thread
            return all(len(jobs) >= than + more for jobs, than in zip(kept, before, strict=True))

        eventually(found)

    def taken(self) -> list[str]:
        return [job for jobs in self.got.values() for job in jobs]


def test_processes_of_pq_and_pqcore_work_on_one_table(place: Place, fresh: dict[str, Any]) -> None:
    starts.make_pqs(place.dsn)
    pqs = [("pqs.py", place.dsn, *what) for what in (("put", "a"), ("put", "b"), ("get",), ("get",))]
    crew = Crew(place, "c", leases=False)  # pq knows no leases
    with running(*pqs) as processes:
        for process in processes:
            process.expect(20)
        with place.pq() as pq:
            with pytest.raises(SchemaOutdated):
                pq["q"].put("too early")
            pq.create()
        with crew.working():
            for process in processes:
                process.expect(50, than=len(process.lines))
            crew.expect(50)
            crew.stop_putting()
            put = [job for process in processes[:2] for job in process.end()]
            with place.pq() as pq:
                eventually(lambda: pq["q"].count() == 0)
        got = [job for process in processes[2:] for job in process.end()]
    assert sorted(got + crew.taken()) == sorted([*put, *crew.put, "due", "expected", "{'waiting': 1}"])
    assert place.shape(of_pq=True) == fresh


def test_older_and_newer_versions_work_on_one_table(place: Place, fresh: dict[str, Any]) -> None:
    """Older code goes on while the table is migrated, and older code that starts afterwards is not refused."""
    version = LATEST - 1
    starts.make(place.dsn, version)
    older, new, late = (Crew(place, name, leases=True) for name in ("older", "new", "late"))
    with ExitStack() as stack:
        with starts.knowing(version):
            stack.enter_context(older.working())  # a session that has checked the version does not check it again
        older.expect(20)
        place.create()
        assert place.shape() == fresh
        stack.enter_context(new.working())
        with starts.knowing(version):
            stack.enter_context(late.working())
            place.create()
        crews = (older, new, late)
        for crew in crews:
            crew.expect(50)
        for crew in crews:
            crew.stop_putting()
        with place.pq() as pq:
            eventually(lambda: pq["q"].count() == 0)
    assert sorted(job for crew in crews for job in crew.taken()) == sorted(job for crew in crews for job in crew.put)
    assert place.shape() == fresh


OLDER = {
    "open_batch": "INSERT INTO queue_batches (q_name, total, pending, callback) VALUES ('q', 1, 1, %s) RETURNING id",
    "put": "INSERT INTO queue (q_name, data, serializer, headers) VALUES ('q', %s, 'json', %s)",
    "batch_progress": "UPDATE queue_batches SET pending = pending - 1, failed = failed + 0"
    " WHERE id = %s RETURNING pending",
    "tick": "INSERT INTO queue_ticks AS last (q_name, name, tick) VALUES ('q', 'n', now())"
    " ON CONFLICT (q_name, name) DO UPDATE SET tick = excluded.tick WHERE last.tick < excluded.tick RETURNING tick",
}
OLDER |= {
    "keep_result": "INSERT INTO queue_results AS kept (job_id, q_name, state, data, serializer, updated_at, expires_at)"
    " VALUES (%s, 'q', 'done', %s, 'json', now(), now() + interval '1 hour') ON CONFLICT (job_id) DO UPDATE"
    " SET state = excluded.state, data = excluded.data, serializer = excluded.serializer,"
    " updated_at = excluded.updated_at, expires_at = excluded.expires_at RETURNING state",
    "report_progress": "INSERT INTO queue_results AS kept (job_id, q_name, state, progress, expires_at)"
    " VALUES (%s, 'q', 'running', %s, now() + interval '1 hour') ON CONFLICT (job_id) DO UPDATE"
    " SET progress = excluded.progress, updated_at = now() RETURNING state",
    "find_result": "SELECT data FROM queue_results WHERE job_id = %s AND q_name = 'q' AND state = 'done'",
}
"""Statements of code of version 6, which knows neither the tokens of batches, the expressions of ticks, nor `put_at` of
results."""


OLDER_LIMITS = {
    "put": "INSERT INTO queue (q_name, data, serializer, headers, group_key) VALUES ('q', %s, 'json', %s, %s)"
    " RETURNING id",
    "lease": "UPDATE queue SET attempts = attempts + 1, leased_until = now() + interval '1 h' WHERE id = %s"
    " AND dequeued_at IS NULL AND leased_until IS NULL RETURNING attempts",
    "take_slots": "INSERT INTO queue_slots (q_name, key, job_id) VALUES ('q', %s, %s) RETURNING job_id",
    "park": "UPDATE queue SET leased_until = 'infinity', parked_on = %s, excused = coalesce(excused, 0) + 1"
    " WHERE id = %s AND leased_until IS NOT NULL AND num_nulls(dequeued_at, parked_on) = 2 RETURNING id",
    "acknowledge": "UPDATE queue SET dequeued_at = now(), leased_until = NULL WHERE id = %s AND attempts = %s"
    " AND leased_until IS NOT NULL AND num_nulls(dequeued_at, parked_on) = 2 RETURNING id",
    "get": "UPDATE queue SET dequeued_at = now(), attempts = attempts + 1, leased_until = NULL WHERE id ="
    " (SELECT id FROM queue WHERE q_name = 'q' AND dequeued_at IS NULL AND coalesce(leased_until <= now(), true)"
    " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
    "lease next": "UPDATE queue SET attempts = attempts + 1, leased_until = now() + interval '1 h' WHERE id ="
    " (SELECT id FROM queue WHERE q_name = 'q' AND dequeued_at IS NULL AND coalesce(leased_until <= now(), true)"
    " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
    "pq's get": "UPDATE queue SET dequeued_at = now() WHERE id = (SELECT id FROM queue WHERE q_name = 'q'"
    " AND dequeued_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
    "put in SQL": "INSERT INTO queue (q_name, data, headers) VALUES ('q', %s, %s) RETURNING id",
}
"""Statements of code of version 6, which leases jobs under a limit, and then parks those that have no place."""


def test_version_6_jobs_under_limits_and_in_groups_are_admitted_by_newer_code(place: Place) -> None:
    place.create()
    limit, group = json.dumps({"gate": {"limits": {"x": 1}}}), json.dumps({"gate": {"group": "g"}})

    def ask_older(name: str, *values: Any) -> Any:
        [found] = place.eyes.execute(OLDER_LIMITS[name], values).fetchone() or (None,)
        return found

    def lease() -> list[Any]:
        return list(queue.lease_many(10, 60, timeout=0.2))

    with place.pq() as pq:
        queue = pq["q"]
        running, parked = (ask_older("put", json.dumps(data), limit, None) for data in ("running", "parked"))
        token = ask_older("lease", running)
        assert ask_older("take_slots", "limit:x", running) == running
        assert ask_older("lease", parked) == 1
        assert ask_older("park", "limit:x", parked) == parked
        limited = ask_older("put", '"limited"', limit, None)
        in_sql = ask_older("put in SQL", '"in SQL"', limit)
        first, second = (ask_older("put", json.dumps(data), group, "g") for data in ("first", "second"))

        [job] = lease()  # the job that older code leased counts under its limit
        assert job.id == first
        assert queue.stats().parked == 4
        assert ask_older("acknowledge", running, token) == running
        order = []
        while jobs := lease():
            assert len(jobs) == 1
            order.append(jobs[0].id)
            queue.ack_many(jobs)
        assert order == [parked, limited, in_sql]
        job.ack()
        [job] = lease()
        assert job.id == second
        assert ask_older("acknowledge", job.id, job.token) == second
        assert queue.stats().parked == 0


@pytest.mark.parametrize("options", [{"limits": {"x": 1}}, {"group": "g"}, {"tenant": "a"}, {"priority": 1}])
def test_version_6_consumers_leave_waiting_jobs_to_newer_code(place: Place, options: dict[str, Any]) -> None:
    place.create()
    with place.pq() as pq:
        queue = pq["q"]
        waiting, plain = queue.put(1, **options), queue.put(2)
        assert place.eyes.execute(OLDER_LIMITS["lease next"]).fetchone() == (plain,)
        for take in ("lease next", "get"):
            assert place.eyes.execute(OLDER_LIMITS[take]).fetchone() is None
        assert (queue.count(), [job.data for job in queue.peek(2)]) == (1, [1])
        [job] = queue.lease_many(1, 60)
        assert (job.id, job.attempts) == (waiting, 1)
        for take in ("lease next", "get"):
            assert place.eyes.execute(OLDER_LIMITS[take]).fetchone() is None
        job.ack()


def test_pq_get_takes_waiting_jobs_and_does_not_hold_up_later_jobs(place: Place) -> None:
    place.create()
    with place.pq() as pq:
        queue = pq["q"]
        ids = queue.put_many(range(60), limits={"x": 1})
        assert [place.eyes.execute(OLDER_LIMITS["pq's get"]).fetchone() for _ in range(50)] == [
            (job,) for job in ids[:50]
        ]
        [job] = queue.lease_many(10, 60, timeout=0.2)
        assert job.data == 50
        assert queue.count() == 9
        assert [job.data for job in queue.get_many(1)] == [51]


def test_version_6_batches_and_ticks_continue_beside_newer_code(place: Place) -> None:
    place.create()
    with place.pq() as pq:
        queue, told = pq["q"], []

        @queue.task()
        def part(job_id: int) -> None: ...

        @queue.task()
        def after(job_id: int) -> None:
            told.append(tasks.current().previous)

        def ask_older(name: str, *values: Any) -> Any:
            return place.eyes.execute(OLDER[name], values).fetchone()

        callback = after.call().stored().to_json()
        (older,) = ask_older("open_batch", json.dumps(callback))
        place.eyes.execute(OLDER["put"], [json.dumps(part.call().data()), json.dumps({"batch": older})])
        newer = queue.batch(part.call(), then=after.call())
        assert ask_older("batch_progress", newer.id) == (0,)  # an older worker counts, and puts the callback itself
        queue.work(burst=True)
        assert told[0] == {"batch": older, "total": 1, "failed": 0}
        assert ask_older("tick") is not None


def test_version_6_results_are_found_by_newer_code_and_vice_versa(place: Place) -> None:
    place.create()
    with place.pq() as pq:
        queue = pq["q"]

        @queue.task(keep_result="1h")
        def give(job_id: int, number: int) -> int:
            return number

        def ask_older(name: str, *values: Any) -> Any:
            return place.eyes.execute(OLDER[name], values).fetchone()

        by_older, by_newer, by_both = give(1), give(2), give(3)
        ask_older("report_progress", by_older, "50")
        ask_older("report_progress", by_both, "50")
        assert (by_older.progress(), by_both.progress()) == (50, 50)
        ask_older("keep_result", by_older, "1")
        place.eyes.execute("DELETE FROM queue WHERE id = %s", [int(by_older)])
        queue.work(burst=True)
        assert [handle.result(0) for handle in (by_older, by_newer, by_both)] == [1, 2, 3]
        assert [ask_older("find_result", handle) for handle in (by_newer, by_both)] == [(2,), (3,)]
        ask_older("keep_result", by_both, "4")
        assert by_both.result(0) == 4
        place.eyes.execute("TRUNCATE queue RESTART IDENTITY")
        newest = give(5)
        assert newest == by_older
        place.eyes.execute("DELETE FROM queue")
        ask_older("keep_result", newest, "5")
        assert newest.result(0) == 5


def test_version_10_failures_count_beside_newer_code(place: Place) -> None:
    place.create()

    def fail(job_id: int) -> None:
        raise ValueError("no")

    with place.pq() as pq, place.pq() as older:
        for each in (pq, older):
            put = each["q"].task(max_retries=2, retry_in="1h")(fail)
        job_id = int(put())  # by older code

        def work(queue: Any) -> tuple[str, list[tuple[int, str]]]:
            asyncio.run(Worker(queue, burst=True).run())
            found = pq["q"].attempts(job_id)
            return pq["q"].status(job_id), [(each.attempt, each.outcome) for each in found]

        with starts.knowing(10):
            assert work(older["q"]) == ("scheduled", [])
        assert pq["q"].retry(job_id)
        assert work(pq["q"]) == ("scheduled", [(2, "failed")])
        with starts.knowing(10):
            assert older["q"].retry(job_id)
            assert work(older["q"]) == ("dead", [(2, "failed")])
            older["q"].put("taken")
            assert [job.data for job in older["q"].get_many(9)] == ["taken"]


@pytest.mark.parametrize(
    ("right", "of", "may"),
    [
        ("UPDATE", "clerk", True),
        ("UPDATE (failures)", "clerk", True),
        ("UPDATE", "PUBLIC", True),
        ("SELECT", "clerk", False),
    ],
)
def test_version_10_roles_that_store_failures_may_keep_attempts(place: Place, right: str, of: str, may: bool) -> None:
    starts.make(place.dsn, 10)
    place.eyes.execute("CREATE ROLE clerk")
    place.eyes.execute(f"GRANT {right} ON queue TO {of}".encode())
    try:
        place.create()
        asked = "SELECT has_table_privilege('clerk', 'queue_attempts', 'INSERT')"
        assert place.eyes.execute(asked.encode()).fetchone() == (may,)
    finally:
        place.eyes.execute("DROP OWNED BY clerk")
        place.eyes.execute("DROP ROLE clerk")


@pytest.mark.parametrize("of", ["clerk", "PUBLIC"])
def test_version_11_roles_have_the_rights_to_samples_that_they_have_to_workers(place: Place, of: str) -> None:
    starts.make(place.dsn, 11)
    place.eyes.execute("CREATE ROLE clerk")
    place.eyes.execute(f"GRANT SELECT, INSERT ON queue_workers TO {of}".encode())
    try:
        place.create()
        asked = "SELECT {}".format(
            ", ".join(
                f"has_table_privilege('clerk', 'queue_samples', '{what}')" for what in ("SELECT", "INSERT", "DELETE")
            )
        )
        assert place.eyes.execute(asked.encode()).fetchone() == (True, True, False)
    finally:
        place.eyes.execute("DROP OWNED BY clerk")
        place.eyes.execute("DROP ROLE clerk")


def test_version_11_jobs_are_put_taken_and_finished_beside_newer_code(place: Place) -> None:
    place.create()
    with place.pq() as pq, place.pq() as older:
        done = pq["q"].task()(lambda job_id: None)
        older["q"].task()(done.task.function)
        assert run_sync(Sampling().run(pq.engine)) == 0
        job_id = int(done())
        assert run_sync(Sampling().run(older.engine)) == 0  # the minute is taken
        with starts.knowing(11):
            asyncio.run(Worker(older["q"], burst=True).run())
            assert older["q"].status(job_id) == "done"
            older["q"].put("plain")
            taken = older["q"].lease(60, wait=0)
            assert taken is not None
            older["q"].ack(taken)
            assert run_sync(Sampling().run(older.engine)) == 0
        assert pq["q"].count() == 0


def test_version_12_workers_put_declared_ticks_beside_schedules_of_newer_code(place: Place) -> None:
    place.create()
    ran: list[str] = []

    async def note(job_id: int, word: str) -> None:
        ran.append(word)

    async def work(queue: Any, words: set[str]) -> None:
        """Run a worker until all words were noted since it started."""
        ran.clear()
        worker = Worker(queue)
        working = asyncio.ensure_future(worker.run())
        deadline = time.monotonic() + PATIENCE
        while not words <= {*ran}:
            assert time.monotonic() < deadline, ran
            await asyncio.sleep(0.05)
        worker.stop()
        await working

    with place.pq() as pq, place.pq() as older:
        for each in (pq, older):
            each["q"].periodic("* * * * * *", name="declared", args=("declared",))(each["q"].task(name="noted")(note))
        pq["q"].schedule("row", "noted", "* * * * * *", args=["row"])
        with starts.knowing(12):
            asyncio.run(work(older["q"], {"declared"}))
        assert "row" not in ran
        asyncio.run(work(pq["q"], {"declared", "row"}))
        rows = place.eyes.execute("SELECT schedule_at, data->'args'->>0, count(*) FROM queue GROUP BY 1, 2").fetchall()
        assert {number for _, _, number in rows} == {1}
        older["q"].put("taken")
        assert "taken" in [job.data for job in older["q"].get_many(99)]


@pytest.mark.parametrize("right", ["INSERT", "SELECT"])
def test_version_12_roles_that_put_ticks_may_use_schedules(place: Place, right: str) -> None:
    starts.make(place.dsn, 12)
    place.eyes.execute("CREATE ROLE clerk")
    place.eyes.execute(f"GRANT {right} ON queue_ticks TO clerk".encode())
    try:
        place.create()
        asked = "SELECT has_table_privilege('clerk', 'queue_schedules', 'SELECT, UPDATE')"
        assert place.eyes.execute(asked.encode()).fetchone() == (right == "INSERT",)
    finally:
        place.eyes.execute("DROP OWNED BY clerk")
        place.eyes.execute("DROP ROLE clerk")


def test_version_13_code_takes_what_the_put_function_puts(place: Place) -> None:
    starts.make(place.dsn, 13)
    with place.pq() as pq, place.pq() as older:
        noted: list[int] = []

        @older["calls"].task(name="put in SQL")
        def note(job_id: int, number: int) -> None:
            noted.append(number)

        with starts.knowing(13):
            older["q"].put("before")
        pq.create()
        place.eyes.execute("SELECT pqcore_put('q', '\"by SQL\"')")
        place.eyes.execute("SELECT pqcore_put('calls', task => 'put in SQL', args => '[7]', group_key => 'g')")
        with starts.knowing(13):
            older["q"].put("after")
            assert [job.data for job in older["q"].get_many(9)] == ["before", "by SQL", "after"]
            asyncio.run(Worker(older["calls"], burst=True).run())
        assert noted == [7]


@pytest.mark.parametrize(
    ("right", "of", "may"),
    [
        ("INSERT", "clerk", True),
        ("INSERT (q_name, data, group_key)", "clerk", True),
        ("INSERT", "PUBLIC", True),
        ("SELECT", "clerk", False),
    ],
)
def test_version_13_roles_that_put_jobs_may_put_them_from_sql(place: Place, right: str, of: str, may: bool) -> None:
    starts.make(place.dsn, 13)
    place.eyes.execute("CREATE ROLE clerk")
    place.eyes.execute(f"GRANT {right} ON queue TO {of}".encode())
    try:
        place.create()
        asked = "SELECT has_function_privilege('clerk', 'pqcore_put'::regproc, 'EXECUTE')"
        assert place.eyes.execute(asked.encode()).fetchone() == (may,)
    finally:
        place.eyes.execute("DROP OWNED BY clerk")
        place.eyes.execute("DROP ROLE clerk")


def test_version_14_code_ends_jobs_that_newer_jobs_wait_for(place: Place) -> None:
    starts.make(place.dsn, 14)
    with place.pq() as pq, place.pq() as older:
        with starts.knowing(14):
            number = older["q"].put("before")
        pq.create()
        pq["q"].put("child", after=[number, pq["q"].put("parent")])
        with starts.knowing(14):
            older["q"].put("after")
            assert [job.data for job in older["q"].get_many(2)] == ["before", "parent"]
            taken = older["q"].lease(60, wait=0)
            assert taken is not None
            assert taken.data == "after"
            older["q"].ack(taken)
            assert older["q"].get(block=False) is None
        found = pq["q"].get(block=False)
        assert found is not None
        assert found.data == "child"


@pytest.mark.parametrize(
    ("right", "rights"),
    [("DELETE", "SELECT, INSERT, UPDATE, DELETE"), ("INSERT", ""), ("SELECT", "")],
)
def test_version_14_roles_may_put_and_end_jobs_that_wait(place: Place, right: str, rights: str) -> None:
    starts.make(place.dsn, 14)
    place.eyes.execute("CREATE ROLE clerk")
    place.eyes.execute(f"GRANT {right} ON queue TO clerk".encode())
    try:
        place.create()
        for table in ("queue_dependencies", "queue_blocked"):
            asked = "SELECT string_agg(privilege_type, ', ' ORDER BY privilege_type) FROM pg_class,"
            asked += f" aclexplode(relacl) WHERE oid = '{table}'::regclass AND grantee = 'clerk'::regrole"
            [[found]] = place.eyes.execute(asked.encode()).fetchall()
            assert {*(found or "").split(", ")} == {*rights.split(", ")}
    finally:
        place.eyes.execute("DROP OWNED BY clerk")
        place.eyes.execute("DROP ROLE clerk")


def test_older_commands_accept_a_newer_table(place: Place) -> None:
    starts.make(place.dsn, LATEST)
    with starts.knowing(LATEST - 1):
        for command in ("create", "migrate", "migrate --check"):
            assert call(command, place.dsn, 0) == f'table "queue" is up to date: schema version {LATEST}\n'
        assert f"this version of pqcore knows {LATEST - 1}, but can use the table" in call(
            "doctor", place.dsn, 1
        )  # other things
    place.eyes.execute("UPDATE pqcore_migrations SET needs = %s WHERE version = %s", [LATEST, LATEST])
    with starts.knowing(LATEST - 1):
        for command in ("create", "migrate", "migrate --check", "doctor"):
            assert "upgrade pqcore" in call(command, place.dsn, 1)


def call(command: str, dsn: str, code: int) -> str:
    done = CliRunner().invoke(app, command.split(), env={"PQCORE_DSN": dsn, "PQCORE_BACKEND": "psycopg"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("command", ["create", "migrate"])
def test_migrate_command_says_when_older_workers_must_be_stopped(place: Place, command: str) -> None:
    told = "stop workers of older versions before the first of this version starts"
    before = ADMISSION - 1
    for version, put, stop in ((before, True, True), (before, False, False), (ADMISSION, True, False)):
        for as_json in (False, True):
            place.recreate()
            starts.make(place.dsn, version)
            if put:
                place.eyes.execute("INSERT INTO queue (q_name, data) VALUES ('q', '1')")
            if as_json:
                assert json.loads(call(f"{command} --json", place.dsn, 0))["stop_older_workers"] is stop
            else:
                lines = call(command, place.dsn, 0).splitlines()
                assert [line.startswith(told) for line in lines] == ([False, True] if stop else [False])
    assert "stop" not in call(command, place.dsn, 0)
    assert "stop_older_workers" not in call(f"{command} --json", place.dsn, 0)


CONTRACTS = re.compile(
    r"\b(DROP (COLUMN|TABLE|INDEX|FUNCTION|CONSTRAINT|VIEW|TYPE|SEQUENCE)|RENAME|SET NOT NULL|SET DATA TYPE"
    r"|ALTER COLUMN \w+ TYPE|ADD CONSTRAINT|CREATE UNIQUE INDEX"
    r"|ADD COLUMN (IF NOT EXISTS )?[\w ]+ NOT NULL(?! DEFAULT))\b"
)
"""Statements of a migration after which older code may no longer work."""


@pytest.mark.parametrize(
    ("statement", "contracts"),
    [
        ("ALTER TABLE {table} DROP COLUMN excused", True),
        ("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS tenant text NOT NULL", True),
        ("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT ''", False),
        ("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS tenant text", False),
        ("ALTER TABLE {table} ALTER COLUMN data TYPE jsonb", True),
        ("ALTER TABLE {table} RENAME COLUMN data TO body", True),
        ("CREATE UNIQUE INDEX {concurrently} IF NOT EXISTS {dedup_index} ON {table} (q_name)", True),
        ("CREATE INDEX {concurrently} IF NOT EXISTS {ready_index} ON {table} (q_name)", False),
    ],
)
def test_migration_statements_that_contract_are_recognised(statement: str, contracts: bool) -> None:
    assert bool(CONTRACTS.search(statement)) is contracts


def test_schema_versions_declare_the_code_they_need() -> None:
    before = 5  # the last version that is not checked
    for number, statements in enumerate(schema.migrations()[before:], start=before + 1):
        needs = schema.needs(number)
        assert needs is not None, f"version {number} does not begin with -- needs N"
        assert needs < number, f"version {number} is to leave the version before as it was, or to come a version later"
        if any(CONTRACTS.search(statement) for statement in statements):
            assert needs > before, f"version {number} takes something away, and needs no more than others before"
        before = max(before, needs)


# Back


def test_pq_continues_on_an_adopted_table(place: Place) -> None:
    """Programs of pq find their jobs and pqcore's, put jobs for both, and may call create() when they start."""
    starts.make_pqs(place.dsn)
    with place.pq() as pq:
        pq.create()
        pq["q"].put(["of pqcore"])
        connection = psycopg2.connect(place.dsn)
        queue = pq_1_9_1.PQ(connection)["q"]
        assert len(queue) == 4
        got = [queue.get(block=False).data for _ in range(4)]
        assert got == ["expected", {"waiting": 1}, ["of pqcore"], "due"]  # in its own order
        assert queue.get(block=False) is None
        number = queue.put("of pq")
        job = pq["q"].get()
        assert job is not None
        assert (job.id, job.data) == (number, "of pq")
        pq_1_9_1.PQ(connection).create()
        pq["q"].put("still")
        job = queue.get(block=False)
        job.data = "changed"
        assert pq["q"].get(block=False) is None
        lost = pq["q/msgpack"].put({"a": 1})
        assert queue.get(block=False) is None
        assert pq["q"].status(lost) == "done"  # as the documents say: put JSON only
        connection.close()


def test_pq_table_is_restored_by_the_documented_sql(place: Place) -> None:
    starts.make_pqs(place.dsn)
    before = place.shape(of_pq=True)
    place.create()
    document = (Path(__file__).parent.parent / "docs/how-to/upgrade-and-migrate.md").read_text("utf-8")
    [block] = re.findall(r"```sql\n(BEGIN;.*?COMMIT;)\n```", document, re.DOTALL)
    place.eyes.execute(block.encode())
    assert place.shape(of_pq=True) == before
