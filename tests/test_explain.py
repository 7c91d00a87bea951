"""Why a job does not run: each cause is named, its action frees the job, and nothing else was in the way.

Whether a job runs is never read from its row: a consumer takes it, or does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from pqcore import PQ, Cause, tasks
from pqcore.errors import AccessDenied
from pqcore.operations import explain
from pqcore.tasks import Discard
from pqcore.testing import probes
from pqcore.testing.harness import PATIENCE, patiently
from pqcore.worker import Worker

SOFT = ("no_worker", "behind")
"""Causes that do not keep a consumer without a worker from the job, or that it ends itself by taking all jobs."""
STATES = int(os.environ.get("PQCORE_TEST_EXPLAINED_STATES", "60"))
"""The number of random states that are explained."""


def nothing(job_id: int) -> None: ...


def discarded(job_id: int) -> None:
    raise Discard


class Notes(probes.Notes):
    """Return the notes in order."""

    def of(self, item: Any) -> Callable[[int], None]:
        """Return a task's function that writes a note."""

        def note(job_id: int) -> None:
            self.add(item)

        return note


def failing(job_id: int) -> None:
    raise LookupError("worm")


@dataclass
class Site:
    """A queue, other programs that use it, and functions that bring its jobs into a state.

    Attributes:
        dsn: Where it is.
        pq: Its queues.
    """

    dsn: str
    pq: tasks.PQ
    stack: ExitStack = field(default_factory=ExitStack)
    free: Callable[[], Any] = lambda: None

    def __post_init__(self) -> None:
        self.queue: Any = self.pq.queue("q", retention="keep")
        self.call = self.queue.task()(nothing)

    def sql(self, *statements: str) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def other(self) -> Any:
        """Return the queue as another program opens it."""
        pq = tasks.PQ(self.dsn, backend="psycopg")
        self.stack.callback(pq.close)
        return pq["q"]

    def transaction(self) -> psycopg.Connection[Any]:
        """Return a transaction that another program has left open."""
        return self.stack.enter_context(psycopg.connect(self.dsn))

    def list_worker(self, *paths: str, concurrency: int = 20) -> None:
        """List a worker of another program that knows the functions with some paths."""
        tasks = json.dumps(paths)
        self.sql(
            "INSERT INTO queue_workers (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at)"
            f" VALUES ('q', 'w' || random(), 'h', 1, '1', '{tasks}', {concurrency}, now(), now())"
        )

    def codes(self, job_id: int) -> list[str]:
        """Return the causes that were found, except those in `SOFT`."""
        return [cause.code for cause in self.queue.explain(job_id).causes if cause.code not in SOFT]

    def taken(self) -> set[int]:
        """Return the jobs that a consumer gets now; the consumer gives them back."""
        with tasks.PQ(self.dsn, backend="psycopg") as pq:
            found = pq["q"].lease_many(100, 60, block=False)
            for job in found:
                pq["q"].nack(job)
        return {job.id for job in found}

    def starts(self, job_id: int) -> bool:
        """Return whether a consumer gets a job."""
        return job_id in self.taken()

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def site(dsn: str) -> Iterator[Site]:
    with tasks.PQ(dsn, backend="psycopg") as pq:
        pq.create()
        made = Site(dsn, pq)
        yield made
        made.close()


Case = Callable[[Site], tuple[int, Callable[[], Any]]]
CASES: dict[str, Case] = {}
"""By the code of a cause: a function that makes a job with this cause, and returns the action that frees the job."""


def case(code: str) -> Callable[[Case], Case]:
    def named(function: Case) -> Case:
        CASES[code] = function
        return function

    return named


# Finished


@case("done")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1)
    site.other().get(block=False)
    return job_id, lambda: site.queue.retry(job_id)


@case("archived")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1)
    site.pq.queue("q", retention="archive").get(block=False)
    return job_id, lambda: site.queue.retry(job_id)


def died(reason: str) -> Case:
    def make(site: Site) -> tuple[int, Callable[[], Any]]:
        job_id = site.queue.put(1)
        queue = site.other()
        queue.bury(queue.lease(60, block=False), "worm")
        site.sql(f"UPDATE queue_dead SET reason = '{reason}'")
        return job_id, lambda: site.queue.retry(job_id)

    return make


for each in ("failed", "crashed", "expired", "invalid", "unreadable", "unknown"):
    CASES[f"dead_{each}"] = died(each)
CASES["dead"] = died("rotten")


# Taken


@case("leased")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id, queue = site.queue.put(1), site.other()
    job = queue.lease(60, block=False)
    site.list_worker()
    return job_id, lambda: queue.nack(job)


@case("leased_without_worker")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id, queue = site.queue.put(1), site.other()
    assert queue.lease(0.5, block=False)

    def wait() -> None:
        until = site.queue.explain(job_id).causes[0].until
        assert 0 < (until.timestamp() - time.time()) < 0.5 + PATIENCE
        time.sleep(max(until.timestamp() - time.time(), 0) + 0.01)

    return job_id, wait


@case("stopping")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id, queue = site.queue.put(1), site.other()
    job = queue.lease(60, block=False)
    assert queue.cancel(job_id, running=True)
    return job_id, lambda: queue.nack(job)


@case("locked")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id, transaction = site.queue.put(1), site.transaction()
    transaction.execute("SELECT FROM queue FOR UPDATE")
    return job_id, transaction.rollback


# Later


@case("scheduled")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1, "1h")
    return job_id, lambda: site.queue.retry(job_id)


@case("put_off")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id, queue = site.queue.put(1), site.other()
    queue.nack(queue.lease(60, block=False), "1h")
    return job_id, lambda: site.queue.retry(job_id)


@case("retry")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.task(max_retries=1, retry_in="1h")(failing)()
    drain(site.queue)
    assert "worm" in site.queue.explain(job_id).causes[0].text
    return job_id, lambda: site.queue.retry(job_id)


@case("unknown_task")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put({"function": "elsewhere.sell", "args": [], "kwargs": {}})
    drain(site.queue)
    assert "elsewhere.sell" in site.queue.explain(job_id).causes[0].text
    return job_id, lambda: site.queue.retry(job_id)


@case("unreadable")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.pq.queue("q", serializer="pickle").task()(nothing)()
    drain(site.queue)
    return job_id, lambda: site.queue.retry(job_id)


# Groups


@case("group_running")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    site.queue.put(1, group="g")
    job_id, queue = site.queue.put(2, group="g"), site.other()
    head = queue.lease(60, block=False)
    return job_id, lambda: queue.ack(head)


@case("group_scheduled")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    head, job_id = site.queue.put(1, "1h", group="g"), site.queue.put(2, group="g")
    return job_id, lambda: site.queue.cancel(head)


@case("group_retry")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    head = site.queue.task(max_retries=1, retry_in="1h", group="g")(failing)()
    job_id = site.queue.put(2, group="g")
    drain(site.queue)
    return job_id, lambda: site.queue.cancel(head)


@case("group_waiting")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    head = site.queue.put(1, group="g", limits={"x": 1})
    job_id = site.queue.put(2, group="g")
    site.sql("INSERT INTO queue_rules (q_name, kind, name, number) VALUES ('q', 'limit', 'limit:x', 0)")
    assert site.codes(head) == ["limit_zero"]
    return job_id, lambda: site.queue.cancel(head)


# Limits


@case("limit_full")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    first, job_id = (site.queue.put(number, limits={"x": 1}) for number in range(2))
    queue = site.other()
    held = queue.lease(60, block=False)
    [cause, *_] = site.queue.explain(job_id).causes
    assert (held.id, cause.key, cause.jobs) == (first, "limit:x", (first,))
    return job_id, lambda: queue.ack(held)


@case("limit_zero")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1, limits={"x": 1})
    site.sql("INSERT INTO queue_rules (q_name, kind, name, number) VALUES ('q', 'limit', 'limit:x', 0)")
    return job_id, lambda: site.sql("DELETE FROM queue_rules")


@case("limit_reserved")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    for limits in ({"x": 1}, {"y": 1}):
        site.queue.put(0, limits=limits)
    queue = site.other()
    held = dict(zip("xy", queue.lease_many(2, 60, block=False), strict=True))
    both = site.queue.put(1, limits={"x": 1, "y": 1})
    assert not queue.lease_many(2, 60, block=False)
    for _ in patiently("the keys are reserved"):
        queue.lease_many(2, 60, block=False)
        if site.sql(f"SELECT 1 FROM queue_keys WHERE reserved = {both}"):
            break
    job_id = site.queue.put(2, limits={"x": 1})
    queue.ack(held["x"])
    assert site.queue.explain(job_id).causes[0].jobs == (both,)
    return job_id, lambda: site.queue.cancel(both)


@case("rate_of_key")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    site.sql("INSERT INTO queue_rules (q_name, kind, name, number, period) VALUES ('q', 'rate', 'limit:x', 1, 1)")
    _, job_id = (site.queue.put(number, limits={"x": 5}) for number in range(2))
    queue = site.other()
    queue.ack(queue.lease(60, block=False))

    def wait() -> None:
        until = site.queue.explain(job_id).causes[0].until
        time.sleep(max(until.timestamp() - time.time(), 0) + 0.05)

    return job_id, wait


@case("key_paused")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1, limits={"x": 1})
    site.queue.pause(limit="x")
    return job_id, lambda: site.queue.resume(limit="x")


@case("queue_paused")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.queue.put(1)
    site.queue.pause(until="1h")
    return job_id, site.queue.resume


@case("task_paused")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.call()
    site.queue.pause(task=site.call)
    return job_id, lambda: site.queue.resume(task=site.call)


@case("key_locked")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    _, job_id = (site.queue.put(number, limits={"x": 2}) for number in range(2))
    pq = tasks.PQ(site.dsn, backend="psycopg")
    site.stack.callback(pq.close)
    block = site.stack.enter_context(ExitStack())
    block.enter_context(pq["q"])
    assert pq["q"].lease(60, block=False)
    return job_id, block.close


# Not there


@case("unknown_id")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    transaction = site.transaction()
    job_id = site.queue.put(1, connection=transaction)
    return job_id, transaction.commit


@case("other_queue")
def _(site: Site) -> tuple[int, Callable[[], Any]]:
    job_id = site.pq["another"].put(1)
    return job_id, lambda: site.pq["another"].move("q", [job_id])


@pytest.mark.parametrize("code", CASES)
def test_cause_is_named_and_its_action_frees_the_job(site: Site, code: str) -> None:
    job_id, act = CASES[code](site)
    found = site.queue.explain(job_id)
    assert found.causes[0].code == code, found
    assert found.causes[0].text.endswith(".")
    assert found.causes[0].action.endswith(".")
    assert not site.starts(job_id)
    act()
    for _ in patiently(f"no cause is left after the action for {code}"):
        if site.codes(job_id) == []:
            break
    assert site.starts(job_id)


# Workers


class OtherQueue(tasks.Queue):
    """A queue of a program that declares other functions."""

    handler_registry: ClassVar[dict[str, Any]] = {}
    _tasks: ClassVar[dict[str, Any]] = {}


def test_worker_that_is_missing_is_named_and_runs_the_job_once_it_is_started(site: Site) -> None:
    ran = Notes()
    job_id = site.queue.task()(ran.of("run"))()
    assert [cause.code for cause in site.queue.explain(job_id).causes] == ["no_worker"]
    assert ran.items == []
    with working(site.queue):
        assert ran.wait(1) == ["run"]


def test_workers_that_lack_the_function_are_named(site: Site) -> None:
    ran = Notes()
    job_id = site.queue.task()(ran.of("run"))()
    with tasks.PQ(site.dsn, backend="psycopg", queue_class=OtherQueue) as theirs, working(theirs["q"]):
        for _ in patiently("the worker puts the job off"):
            found = site.queue.explain(job_id)
            if [cause.code for cause in found.causes] == ["unknown_task", "no_worker_of_task"]:
                break
        assert found.causes[1].workers == tuple(worker.id for worker in site.queue.workers())
        assert ran.items == []
        with working(site.queue, number=2):
            for _ in patiently("the job runs"):  # until the worker that knows the function gets the job
                site.queue.retry(job_id)
                if ran.items:
                    break


def test_worker_without_a_free_slot_is_named(site: Site) -> None:
    ran, goes_on = Notes(), threading.Event()

    def hold(job_id: int) -> None:
        ran.add("holds")
        assert goes_on.wait(PATIENCE)

    holder = site.queue.task()(hold)()
    with working(site.queue, concurrency=1, prefetch=0):
        ran.wait(1)
        job_id = site.queue.task()(ran.of("run"))()
        found = site.queue.explain(job_id)
        assert [cause.code for cause in found.causes] == ["workers_busy"]
        assert found.causes[0].jobs == (holder,)
        assert ran.items == ["holds"]
        goes_on.set()
        assert ran.wait(2) == ["holds", "run"]


def test_job_past_its_deadline_is_not_run_and_one_with_a_later_deadline_is(site: Site) -> None:
    ran = Notes()
    task = site.queue.task()(ran.of("run"))
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    job_id = task(_deadline=past)
    assert site.codes(job_id) == ["expired"]
    drain(site.queue)
    assert site.codes(job_id) == ["dead_expired"]
    again = task(_deadline="1h")
    assert site.codes(again) == []
    drain(site.queue)
    assert ran.items == ["run"]


# Positions


@pytest.mark.parametrize("options", [{}, {"limits": {"x": 30}}, {"priority": 1}])
@pytest.mark.parametrize("expected", [None, "1h"])
def test_jobs_before_a_job_are_counted(site: Site, options: dict[str, Any], expected: str | None) -> None:
    first = [site.queue.put(number, None, "1m", **options) for number in range(3)]
    other = [site.queue.put(number, None, None, **options) for number in range(3)]
    job_id = site.queue.put(3, None, expected, **options)
    before = first if expected else [*first, *other]
    found = site.queue.explain(job_id)
    assert found.position == len(before)
    [cause] = [each for each in found.causes if each.code == "behind"]
    assert list(cause.jobs) == before
    queue = site.other()
    taken = [queue.lease(60, block=False) for _ in before]
    assert {job.id for job in taken} == {*before}
    assert job_id not in {job.id for job in taken}
    for job in taken:
        queue.ack(job)
    assert site.queue.explain(job_id).position == 0
    assert queue.lease(60, block=False).id == job_id


# Remains of a job, and rows that are hidden


def test_job_of_which_only_the_result_is_kept_says_how_it_ended(site: Site) -> None:
    queue = site.pq.queue("q", retention="delete")
    cancelled, done = (queue.task(keep_result="1h")(nothing)() for _ in range(2))
    assert queue.cancel(cancelled)
    dropped = queue.task(keep_result="1h")(discarded)()
    failed = queue.task(keep_result="1h")(failing)()
    drain(queue)
    queue.dead.purge_all()
    codes = [site.codes(job_id) for job_id in (cancelled, done, dropped, failed)]
    assert codes == [["ended_cancelled"], ["ended_done"], ["ended_discarded"], ["ended_failed"]]
    assert site.taken() == set()


def test_job_that_this_transaction_took_is_named_so(site: Site) -> None:
    job_id = site.queue.put(1)
    with site.queue:
        assert site.queue.get(block=False)
        assert site.codes(job_id) == ["locked_here", "done"]
    job_id = site.queue.put(1)
    with suppress(RuntimeError), site.queue:
        assert site.queue.lease(60, block=False)
        assert site.codes(job_id) == ["locked_here"]
        raise RuntimeError
    assert site.codes(job_id) == []
    assert site.starts(job_id)


def test_table_that_is_missing_old_or_new_is_the_cause(site: Site) -> None:
    def codes() -> list[str]:
        with PQ(site.dsn, backend="psycopg") as pq:
            return [cause.code for cause in pq["q"].explain(1).causes]

    site.queue.put(1)
    assert codes() == ["no_worker"]
    site.sql("INSERT INTO pqcore_migrations (table_name, version, needs) VALUES ('queue', 999, 999)")
    assert codes() == ["schema_too_new"]
    site.sql("DELETE FROM pqcore_migrations WHERE version > 3")
    assert codes() == ["schema_outdated"]
    site.pq.create()
    assert codes() == ["no_worker"]
    assert site.starts(1)
    site.sql("ALTER TABLE queue RENAME TO elsewhere")
    assert codes() == ["table_missing"]


def test_row_security_that_hides_a_job_is_the_cause(site: Site) -> None:
    role, job_id = f"app_{time.time_ns()}", site.queue.put(1)
    site.sql(
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        "ALTER TABLE queue ENABLE ROW LEVEL SECURITY",
    )
    parts = urlsplit(site.dsn)
    theirs = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    try:
        with PQ(theirs, backend="psycopg") as pq:
            [cause] = pq["q"].explain(job_id).causes
            assert (cause.code, role in cause.text) == ("hidden", True)
            with pytest.raises(AccessDenied):
                pq["q"].lease(60, block=False)
            site.sql(f"CREATE POLICY all_of_it ON queue TO {role} USING (true)")
            assert [cause.code for cause in pq["q"].explain(job_id).causes] == ["no_worker"]
            assert [job.id for job in pq["q"].lease_many(9, 60, block=False)] == [job_id]
    finally:
        site.sql(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_rate_of_a_queue_that_is_used_up_is_the_cause(site: Site) -> None:
    queue = site.pq.queue("q", rate="2/1s")
    for number in range(2):
        queue.put(number)
    job_id = queue.put(3)
    queue.ack_many(queue.lease_many(2, 60, block=False))
    [cause, _] = queue.explain(job_id).causes
    assert cause.code == "rate_of_queue"
    assert queue.lease(60, block=False) is None
    assert cause.until is not None
    time.sleep(max(cause.until.timestamp() - time.time(), 0) + 0.05)
    assert [job.id for job in queue.lease_many(9, 60, block=False)] == [job_id]


def test_transaction_that_is_open_for_long_is_a_note(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.queue.put(1)
    assert site.queue.explain(job_id).notes == ()
    site.transaction().execute("SELECT txid_current()")
    monkeypatch.setattr(explain, "OLD_SNAPSHOT", 0.0)
    [note] = site.queue.explain(job_id).notes
    assert note.code == "old_snapshot"
    assert site.codes(job_id) == []
    assert site.starts(job_id)


# Random states


class Random:
    """A random state of a job, with the action that ends each of its causes.

    Args:
        site: The queue.
        choices: The source of randomness.
    """

    def __init__(self, site: Site, choices: random.Random) -> None:
        self._site = site
        self._random = choices
        self._pq = tasks.PQ(site.dsn, backend="psycopg")
        self._queue: Any = self._pq["q"]
        self._held: dict[int, Any] = {}
        self._transactions: list[psycopg.Connection[Any]] = []
        self._blocks: list[ExitStack] = []

    def make(self) -> int:
        """Make a state; return the job to explain."""
        pick, queue = self._random, self._queue
        x = pick.randint(1, 2)  # if puts give two numbers, the newest one counts for all jobs, after the next take
        limits = [{"x": x}, {"x": x, "y": 1}]
        keys: list[dict[str, Any]] = [{}, *({"limits": each} for each in limits), {"group": "g"}]
        options: dict[str, Any] = {**pick.choice(keys), **pick.choice([{}, {}, {"group": "g"}])}
        if pick.random() < 0.2:
            options["priority"] = pick.randint(-2, 2)
        if pick.random() < 0.2:
            options["tenant"] = pick.choice("ab")
        for _ in range(pick.choice([0, 0, 1, 2, 3])):
            others = pick.choice([options, {"limits": {"x": x}}, {"limits": {"y": 1}}, {"group": "g"}, {}])
            when = pick.choice([None, None, "1h"])
            queue.put("other", when, **others)
            if pick.random() < 0.6 and (job := queue.lease(600, block=False)):
                self._held[job.id] = job
        job_id: int = queue.put("job", pick.choice([None, None, None, "1h"]), **options)
        if pick.random() < 0.5:
            self._take(job_id)
        for kind, name in (("limit", "x"), ("group", "g")):
            if pick.random() < 0.07:
                queue.pause(**{kind: name})
        if pick.random() < 0.05:
            queue.pause()
        if pick.random() < 0.05:
            self._site.sql("INSERT INTO queue_rules (q_name, kind, name, number) VALUES ('q', 'limit', 'limit:x', 0)")
        if pick.random() < 0.1:
            transaction = psycopg.connect(self._site.dsn)
            transaction.execute(f"SELECT FROM queue WHERE id = {job_id} FOR UPDATE".encode())
            self._transactions.append(transaction)
        elif pick.random() < 0.2:
            queue.put("other", **options)
            block = ExitStack()
            pq = block.enter_context(tasks.PQ(self._site.dsn, backend="psycopg"))
            block.enter_context(pq["q"])
            pq["q"].lease(600, block=False)
            self._blocks.append(block)
        return job_id

    def _take(self, job_id: int) -> None:
        """Take a job, if a consumer gets it, and do something with it."""
        for job in self._queue.lease_many(20, 600, block=False):
            if job.id != job_id or self._random.random() < 0.2:
                self._held[job.id] = job
                continue
            what = self._random.choice(["nack", "later", "later", "ack", "bury", "stop"])
            if what == "stop":
                self._held[job.id] = job
                self._queue.cancel(job.id, running=True)
            elif what in ("nack", "later"):
                self._queue.nack(job, "1h" if what == "later" else None)
            else:
                getattr(self._queue, what)(job)

    def causes(self, job_id: int) -> list[Cause]:
        """Return the causes that a consumer cannot end by taking and finishing jobs."""
        return [cause for cause in self._queue.explain(job_id).causes if cause.code not in SOFT]

    def runs(self, job_id: int) -> bool:
        """Return whether a consumer that finishes all jobs that it gets also gets and finishes this job."""
        for _ in range(20):
            taken = self._queue.lease_many(100, 600, block=False)
            for job in taken:
                self._queue.ack(job)
            if not taken or job_id in {job.id for job in taken}:
                return bool(taken)
        return False

    def act(self, job_id: int, cause: Cause) -> None:
        """Follow the advice of a cause."""
        queue = self._queue
        if cause.code in ("leased", "leased_without_worker", "stopping"):
            queue.nack(self._held.pop(job_id))
        elif cause.code in ("scheduled", "put_off", "done") or cause.code.startswith("dead"):
            assert queue.retry(job_id)
        elif cause.code == "group_waiting":
            self._free(cause.jobs[0])
        elif cause.code in ("limit_full", "group_running"):
            queue.ack(self._held.pop(cause.jobs[0]))
        elif cause.code == "group_scheduled":
            assert queue.cancel(cause.jobs[0])
        elif cause.code == "queue_paused":
            assert queue.resume()
        elif cause.code == "key_paused":
            kind, _, name = str(cause.key).partition(":")
            assert queue.resume(**{kind: name})
        elif cause.code == "limit_zero":
            queue.set_limit(str(cause.key).removeprefix("limit:"), None)
        elif cause.code in ("locked", "key_locked"):
            self.end_transactions()
        elif cause.code == "limit_reserved":
            assert queue.cancel(cause.jobs[0])
        else:
            raise AssertionError(cause)

    def _free(self, job_id: int) -> None:
        """Free a job, and finish it."""
        while causes := self.causes(job_id):
            self.act(job_id, causes[0])
        assert self.runs(job_id)

    def close(self) -> None:
        """End all open transactions and workers."""
        self.end_transactions()
        self._pq.close()

    def end_transactions(self) -> None:
        """End the transactions that hold rows."""
        while self._transactions:
            transaction = self._transactions.pop()
            transaction.rollback()
            transaction.close()
        while self._blocks:
            block = self._blocks.pop()
            with suppress(RuntimeError), block:
                raise RuntimeError  # rolls the block back


def test_causes_of_random_states_are_all_that_keeps_a_job_from_running(site: Site) -> None:
    seen: set[str] = set()
    for number in range(STATES):
        state = Random(site, random.Random(number))
        job_id = state.make()
        done: list[str] = []
        for _ in range(12):
            causes = state.causes(job_id)
            if not causes:
                assert state.runs(job_id), (number, done, site.queue.explain(job_id))
                break
            assert not site.starts(job_id), (number, done, causes)
            done.append(causes[0].code)
            state.act(job_id, causes[0])
        else:
            raise AssertionError((number, done))
        seen.update(done)
        state.close()
        site.sql("TRUNCATE queue, queue_keys, queue_rules, queue_dead, queue_archive")
    assert len(seen) >= 9, seen


def drain(queue: Any, **options: Any) -> None:
    """Run all due jobs in a worker, which then ends."""
    asyncio.run(asyncio.wait_for(Worker(queue, burst=True, **options).run(), PATIENCE))


@contextmanager
def working(queue: Any, number: int = 1, **options: Any) -> Iterator[None]:
    """A worker that runs and is listed until the block ends."""
    worker = Worker(queue, **options)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()))
    thread.start()
    try:
        for _ in patiently("the worker is listed"):
            if len(queue.workers()) >= number:
                break
        yield
    finally:
        worker.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
