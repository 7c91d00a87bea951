"""Outcomes of jobs and their follow-ups: results, progress, chains, batches; and the hooks around a put and a run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pqcore import hookimpl
from pqcore.backend import Capability
from pqcore.errors import (
    ConfigurationError,
    DatabaseError,
    InvalidData,
    JobFailed,
    JobNotFound,
    ResultTimeout,
    UnsafeSerializer,
)
from pqcore.events import JobEvent, PutEvent
from pqcore.operations import batch_counts, complete, results
from pqcore.operations.job_outcome import Outcome
from pqcore.plugins import plugins
from pqcore.put_options import NewJob
from pqcore.sql.identifiers import TableName
from pqcore.tasks import Discard, Snooze, current
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.undo import Undo


class Broken(Exception):
    """The exception that tasks here raise."""


ALONE = {"concurrency": 1, "prefetch": 0}
"""The options of a worker that holds one job at a time."""
TIMES = 5
"""How often two jobs end at the same moment."""


def beside(harness: Harness, suffix: str) -> str:
    """Return the name of a table that belongs to the queue's."""
    return TableName("queue", harness.schema).related(suffix)


def count(harness: Harness, suffix: str = "") -> int:
    """Return the number of rows of a table: the queue's unfinished ones, or all of another table."""
    where = "" if suffix else " WHERE dequeued_at IS NULL"
    [[number]] = harness.sql(f"SELECT count(*) FROM {beside(harness, suffix)}{where}")
    return int(number)


class Tasks:
    """Some tasks of a queue, and the values that they saw."""

    def __init__(self, queue: Any, **options: Any) -> None:
        self.previous: list[Any] = []
        self.ids: list[int] = []

        def add(job_id: int, a: int, b: int) -> int:
            return a + b

        def more(job_id: int, number: int) -> int:
            return int(current().previous) + number

        def fail(job_id: int, text: str = "") -> None:
            raise Broken(text)

        def discard(job_id: int) -> None:
            raise Discard("not wanted")

        def note(job_id: int, *_: object) -> Any:
            self.ids.append(job_id)
            self.previous.append(current().previous)
            return current().previous

        for function in (add, more, fail, discard, note):
            setattr(self, function.__name__, queue.task(**options)(function))

    add: Any
    more: Any
    fail: Any
    discard: Any
    note: Any


@pytest.fixture
def queue(harness: Harness) -> Any:
    return harness.task_queue()


@pytest.fixture
def tasks(queue: Any) -> Tasks:
    return Tasks(queue)


@pytest.fixture
def kept(queue: Any) -> Tasks:
    """Return the same tasks, with their results kept."""
    return Tasks(queue, keep_result="1h")


# Results


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_result_is_the_returned_value(harness: Harness, retention: str) -> None:
    queue = harness.task_queue(retention=retention)
    values: list[Any] = [None, 0, "…", [1, {"a": None}], 1.5, True, {"b": [[]]}]

    @queue.task(keep_result="1h")
    def plain(job_id: int, value: Any) -> Any:
        return value

    @queue.task(keep_result="1h")
    async def coroutine(job_id: int, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    jobs = [task(value) for task in (plain, coroutine) for value in values]
    harness.drain(queue)
    assert [job.result(1) for job in jobs] == values * 2
    assert [queue.result(int(job)) for job in jobs] == values * 2
    assert {job.status() for job in jobs} == {"done"}


def test_result_is_encoded_by_the_queues_serializer(harness: Harness) -> None:
    pq = harness.tasks()
    moment = datetime(2020, 2, 29, tzinfo=timezone.utc)
    job = pq["q/pickle"].task(keep_result="1h")(lambda job_id: {moment})()
    harness.drain(pq["q/pickle"])
    assert job.result(1) == {moment}
    with pytest.raises(UnsafeSerializer):
        pq["q"].result(int(job))


def test_result_waits_until_the_job_ends(harness: Harness, queue: Any, kept: Tasks) -> None:
    job = kept.add(1, 2)
    with harness.thread(lambda: job.result(PATIENCE)) as result:
        if Capability.LISTEN in harness.spec.capabilities:
            harness.eventually(harness.listening)
        harness.drain(queue)
        assert result() == 3


@pytest.mark.requires(Capability.LISTEN)
def test_result_waiter_is_woken_by_a_notification(
    harness: Harness, queue: Any, kept: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "POLL", 3600)
    for task, arguments in ((kept.add, (1, 2)), (kept.fail, ()), (kept.discard, ())):
        job = task(*arguments)

        def wait(job: Any = job) -> Any:
            try:
                return job.result()
            except JobFailed as exc:
                return str(exc)

        with harness.thread(wait) as result:
            harness.eventually(harness.listening)
            harness.drain(queue)
            assert result() == 3 or "was not done" in result()


def test_result_raises_result_timeout_when_late(harness: Harness, queue: Any, kept: Tasks) -> None:
    job = kept.add(1, 2)
    for timeout in (0, 0.01, timedelta(milliseconds=10)):
        with pytest.raises(ResultTimeout, match="ready") as caught:
            job.result(timeout)
        assert isinstance(caught.value, TimeoutError)
    queue.lease()
    with pytest.raises(ResultTimeout, match="leased"):
        job.result(0)
    for wrong in (-1, "soon", float("nan")):
        with pytest.raises(ValueError):
            job.result(wrong)


@pytest.mark.utf8
def test_result_of_a_failed_job_raises_job_failed_with_the_reason(harness: Harness, queue: Any, kept: Tasks) -> None:
    job = kept.fail("why…")
    harness.drain(queue)
    with pytest.raises(JobFailed, match=r"Broken: why…") as caught:
        job.result(1)
    error = caught.value.error
    assert (error["type"], error["message"]) == (f"{__name__}.Broken", "why…")
    assert "in fail" in error["traceback"]
    assert job.status() == "dead"
    queue.dead.purge_all()
    assert job.status() == "failed"
    assert queue.inspect(job).error == error


def test_result_of_a_discarded_job_raises_job_failed(harness: Harness, queue: Any, kept: Tasks) -> None:
    job = kept.discard()
    harness.drain(queue)
    with pytest.raises(JobFailed, match=r"discarded.*not wanted"):
        job.result(1)
    assert job.status() == "discarded"


@pytest.mark.parametrize("state", ["ready", "scheduled", "parked", "a lease that ran out"])
def test_result_of_a_cancelled_job_raises_job_failed(harness: Harness, queue: Any, kept: Tasks, state: str) -> None:
    task = queue.task(keep_result="1h", limits={"l": 1})(kept.add)
    if state == "parked":
        task(1, 2)
    job = task(1, 2, _schedule_at="1h" if state == "scheduled" else None)
    if state in ("parked", "a lease that ran out"):
        queue.lease_many(5, block=False)
    if state == "a lease that ran out":
        harness.expire()

    def wait() -> JobFailed:
        with pytest.raises(JobFailed, match="cancelled") as caught:
            job.result(PATIENCE)
        return caught.value

    with harness.thread(wait) as waited:
        assert job.cancel() is True
        assert waited().error == {}
    assert job.status() == "cancelled"
    assert job.cancel() is False


def test_rolled_back_cancellation_stores_no_result(harness: Harness, queue: Any, kept: Tasks) -> None:
    job = kept.add(1, 2)

    def undone() -> None:
        assert job.cancel()
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert job.status() == "ready"
    harness.drain(queue)
    assert job.result(1) == 3


def test_result_that_is_not_kept_raises_job_not_found(harness: Harness, queue: Any, tasks: Tasks) -> None:
    waiting, done, failed = tasks.note(_schedule_at="1h"), tasks.add(1, 2), tasks.fail("x")
    with pytest.raises(JobNotFound, match="keep_result"):
        done.result(PATIENCE)  # it need not wait to know that
    harness.drain(queue)
    for job in (waiting, done):
        with pytest.raises(JobNotFound, match="keep_result"):
            job.result(PATIENCE)
    with pytest.raises(JobFailed, match="Broken: x"):
        failed.result(PATIENCE)
    for job in (999, 2**60):
        with pytest.raises(JobNotFound):
            queue.result(job)
        with pytest.raises(JobNotFound):
            queue.status(job)
    assert count(harness, "_results") == 0


@pytest.mark.parametrize("way", ["ack", "get", "clear"])
def test_result_of_a_job_finished_without_perform_raises_job_not_found(
    harness: Harness, queue: Any, kept: Tasks, way: str
) -> None:
    job = kept.add(1, 2)
    if way == "ack":
        queue.lease().ack()
    elif way == "get":
        queue.get()
    else:
        queue.clear()
    with pytest.raises(JobNotFound):
        job.result(PATIENCE)


def test_result_is_kept_for_the_time_asked(harness: Harness, queue: Any, kept: Tasks) -> None:
    jobs = {length: kept.add(1, length, _keep_result=length) for length in (60, 7200)}
    harness.drain(queue)
    found = harness.sql(
        "SELECT job_id, extract(epoch FROM expires_at - clock_timestamp())::float8"
        f" FROM {beside(harness, '_results')} ORDER BY job_id"
    )
    for (job, left), (length, expected) in zip(found, jobs.items(), strict=True):
        assert job == expected
        assert length - PATIENCE < left <= length
    harness.sql(f"UPDATE {beside(harness, '_results')} SET expires_at = expires_at - interval '1 h'", rows=False)
    core = unwrapped(queue)
    harness.wait_for(lambda: core.engine.run(lambda s: s.execute(s.sql.tasks.sweep_results)))
    with pytest.raises(JobNotFound):
        jobs[60].result(1)
    assert jobs[7200].result(1) == 7201


def test_result_is_stored_only_by_the_run_that_finishes_the_job(harness: Harness, queue: Any, kept: Tasks) -> None:
    """A job that is lost while it runs stores no result; its next holder does."""
    begun, go_on = threading.Event(), threading.Event()

    @queue.task(keep_result="1h")
    def slow(job_id: int) -> str:
        if current().attempt > 1:
            return "second"
        begun.set()
        assert go_on.wait(PATIENCE)
        return "first"

    job = slow()
    with harness.thread(lambda: harness.drain(queue, **ALONE)) as drained:
        assert begun.wait(PATIENCE)
        harness.expire()
        second = queue.lease(block=False)
        go_on.set()
        drained()
    with pytest.raises(ResultTimeout):
        job.result(0)
    harness.expire()
    assert second.id == job
    harness.drain(queue)
    assert job.result(1) == "second"


# Progress


def test_progress_is_visible_while_a_job_runs(harness: Harness, queue: Any) -> None:
    go_on = threading.Event()

    @queue.task(keep_result="1h")
    def slow(job_id: int) -> str:
        current().progress({"done": 1, "of": [2, "…"]})
        assert go_on.wait(PATIENCE)
        current().progress("all")
        return "result"

    job = slow()
    assert job.progress() is None
    with harness.working(queue):
        harness.eventually(lambda: job.progress() == {"done": 1, "of": [2, "…"]})
        assert queue.inspect(job).progress == {"done": 1, "of": [2, "…"]}
        assert (job.status(), queue.progress(int(job))) == ("leased", {"done": 1, "of": [2, "…"]})
        with pytest.raises(ResultTimeout):
            job.result(0)
        go_on.set()
        assert job.result(PATIENCE) == "result"


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_progress_works_without_a_kept_result(harness: Harness, retention: str) -> None:
    queue = harness.task_queue(retention=retention)
    go_on = threading.Event()

    @queue.task()
    def slow(job_id: int) -> None:
        current().progress(1)
        assert go_on.wait(PATIENCE)

    job = slow()
    with harness.working(queue):
        harness.eventually(lambda: job.progress() == 1)
        go_on.set()
        harness.eventually(lambda: not count(harness))
    with pytest.raises(JobNotFound):
        job.result(1)
    if retention == "delete":
        with pytest.raises(JobNotFound):
            job.status()
    else:
        assert (job.status(), job.progress()) == ("done", 1)


def test_progress_of_an_unknown_job_raises_job_not_found(queue: Any) -> None:
    with pytest.raises(JobNotFound):
        queue.progress(999)


# Chains


def test_chain_passes_each_result_to_the_next_job(harness: Harness, queue: Any, kept: Tasks) -> None:
    first = queue.chain(kept.add.call(1, 2), kept.more.call(10), kept.more.call(100), kept.note.call())
    assert count(harness) == 1
    harness.drain(queue)
    assert kept.previous == [113]
    assert first.result(1) == 3
    assert kept.ids == [first + 3]
    assert (count(harness), queue.result(kept.ids[0])) == (0, 113)


def test_chain_members_keep_their_own_options(harness: Harness) -> None:
    pq = harness.tasks()
    note = pq["b/pickle"].task(headers={"own": 1}, group="g", max_retries=3)(lambda job_id: current().previous)
    add = Tasks(pq["a"]).add
    pq["a"].chain(add.call(1, 2), note.call(_schedule_at="1h", _headers={"call": 2}), add.call(1, 1, _timeout=5))
    harness.drain(pq["a"], pq["b/pickle"])
    [(name, serializer, group, headers, seconds)] = harness.sql(
        "SELECT q_name, serializer, group_key, headers::text,"
        " extract(epoch FROM schedule_at - clock_timestamp())::float8 FROM {table} WHERE dequeued_at IS NULL"
    )
    assert (name, serializer, group) == ("b", "pickle", "g")
    assert json.loads(headers)["call"] == 2
    assert "own" not in json.loads(headers)
    assert 3600 - PATIENCE < seconds <= 3600
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE dequeued_at IS NULL", rows=False)
    harness.drain(pq["b/pickle"])
    [(name, headers)] = harness.sql("SELECT q_name, headers::text FROM {table} WHERE dequeued_at IS NULL")
    assert (name, json.loads(headers)["run"]) == ("a", {"timeout": 5.0})


def test_chain_waits_with_its_dead_letter_and_continues_after_retry(harness: Harness, queue: Any, tasks: Tasks) -> None:
    broken = [True]

    @queue.task()
    def fragile(job_id: int) -> str:
        if broken.pop():
            raise Broken
        return "mended"

    queue.chain(tasks.add.call(1, 2), fragile.call(), tasks.note.call())
    harness.drain(queue)
    assert (tasks.previous, count(harness)) == ([], 0)
    [letter] = queue.dead.list()
    broken.append(False)
    queue.dead.retry(letter.id)
    harness.drain(queue)
    assert tasks.previous == ["mended"]


def test_chain_continues_once_after_retries_and_snoozes(harness: Harness, queue: Any, tasks: Tasks) -> None:
    ends: list[BaseException] = [Broken(), Snooze(None)]

    @queue.task(max_retries=1, retry_in=None)
    def fragile(job_id: int) -> str:
        if ends:
            raise ends.pop()
        return "done"

    queue.chain(fragile.call(), tasks.note.call())
    harness.drain(queue)
    assert tasks.previous == ["done"]


def test_chain_ends_with_a_discarded_or_cancelled_job(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.chain(tasks.discard.call(), tasks.note.call())
    cancelled = queue.chain(tasks.note.call(), tasks.note.call())
    assert cancelled.cancel()
    harness.drain(queue)
    assert (tasks.ids, count(harness), queue.dead.count()) == ([], 0, 0)


def test_chain_of_one_job_runs_and_of_none_is_refused(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.chain(tasks.note.call())
    with pytest.raises(ConfigurationError):
        queue.chain()
    harness.drain(queue)
    assert tasks.previous == [None]


def test_chain_member_whose_result_cannot_be_encoded_fails(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.chain(queue.task()(lambda job_id: object()).call(), tasks.note.call())
    harness.drain(queue)
    assert (tasks.ids, queue.dead.count()) == ([], 1)


@pytest.mark.parametrize("way", ["chain", "batch"])
def test_chain_and_batch_join_the_callers_transaction(harness: Harness, queue: Any, tasks: Tasks, way: str) -> None:
    caller = harness.connect()

    def put(**options: Any) -> None:
        if way == "chain":
            queue.chain(tasks.add.call(1, 2), tasks.note.call(), **options)
        else:
            queue.batch(tasks.add.call(1, 2), tasks.fail.call(), then=tasks.note.call(), **options)

    def undone() -> None:
        put()
        raise Undo

    caller.begin()
    put(connection=caller.raw)
    assert (count(harness), count(harness, "_batches")) == (0, 0)
    caller.rollback()
    with pytest.raises(Undo), queue:
        undone()
    assert (count(harness), count(harness, "_batches")) == (0, 0)
    caller.begin()
    put(connection=caller.raw)
    caller.commit()
    with queue:
        put()
    idle = harness.connect()
    put(connection=idle.raw)
    if idle.session.in_transaction():  # its driver began a transaction itself, which is the caller's
        idle.commit()
    harness.drain(queue)
    assert len(tasks.previous) == 3
    assert (count(harness), count(harness, "_batches")) == (0, 0)


def test_chain_and_batch_with_bad_arguments_put_nothing(harness: Harness, queue: Any, tasks: Tasks) -> None:
    for attempt in (queue.chain, queue.batch, queue.put_calls):
        with pytest.raises(TypeError):
            attempt(tasks.add.call(1, 2), tasks.add.call(object(), 2))
    with pytest.raises(TypeError):
        queue.batch(tasks.add.call(1, 2), then=tasks.add.call(object(), 2))
    assert (count(harness), count(harness, "_batches")) == (0, 0)


@pytest.mark.parametrize("way", ["put_calls", "batch"])
def test_calls_with_one_refused_by_the_server_leave_nothing(
    harness: Harness, queue: Any, tasks: Tasks, way: str
) -> None:
    forbid(harness, "")
    calls = [tasks.add.call(1, 2), tasks.add.call(1, "forbidden", _schedule_at="1h"), tasks.note.call()]
    with pytest.raises(InvalidData):
        getattr(queue, way)(*calls)
    assert (count(harness), count(harness, "_batches")) == (0, 0)


def forbid(harness: Harness, suffix: str) -> None:
    """Make the server refuse rows of a table that contain the word ``forbidden``."""
    harness.sql(f"ALTER TABLE {beside(harness, suffix)} ADD CHECK (data::text NOT LIKE '%forbidden%')", rows=False)


@pytest.mark.parametrize("suffix", ["", "_results"])
def test_job_whose_follow_up_the_server_refuses_becomes_a_dead_letter(
    harness: Harness, queue: Any, kept: Tasks, suffix: str
) -> None:
    def word(job_id: int) -> str:
        return "for" + "bidden"

    task = queue.task(keep_result="1h")(word)
    first = queue.chain(task.call(), kept.more.call(0, _headers={"a": "b"}))
    others = [kept.add(number, 1) for number in range(5)]
    forbid(harness, suffix)
    if not suffix:
        harness.sql(
            "ALTER TABLE {table} ADD CHECK (headers IS NULL OR headers::text NOT LIKE '%forbidden%')", rows=False
        )
    harness.drain(queue)
    assert [job.result(1) for job in others] == [1, 2, 3, 4, 5]
    [letter] = queue.dead.list()
    assert (letter.id, letter.reason) == (first, "failed")
    assert "cannot be stored" in letter.error["message"]
    assert count(harness) == 0
    with pytest.raises(JobFailed, match="cannot be stored"):
        first.result(1)


def test_job_and_its_follow_up_are_stored_together_or_not_at_all(harness: Harness, queue: Any, kept: Tasks) -> None:
    first = queue.chain(kept.add.call(1, 2), kept.note.call())
    batch = queue.batch(kept.add.call(3, 4), then=kept.note.call())
    jobs = queue.lease_many(5)
    function = f"{TableName('refuse', harness.schema)}()"
    harness.sql(
        f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$", rows=False
    )
    harness.sql(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {{table}} FOR EACH ROW EXECUTE FUNCTION {function}", rows=False
    )
    core = unwrapped(queue)

    def finish(job: Any) -> list[Any]:
        outcome = Outcome(unwrapped(job), "done", 3)
        return harness.wait_for(lambda: complete.finish(core.engine, core, [outcome]))

    for job in jobs:
        with pytest.raises(DatabaseError, match="no"):
            finish(job)
    assert [first.status(), batch.jobs[0].status()] == ["leased"] * 2
    assert (count(harness, "_results"), count(harness, "_batches"), queue.dead.count()) == (0, 1, 0)
    harness.sql("DROP TRIGGER refuse ON {table}", rows=False)
    for job in jobs:
        assert finish(job) == []
    assert (first.result(1), batch.jobs[0].result(1), count(harness)) == (3, 3, 2)


@pytest.mark.parametrize("way", ["ack", "finish"])
def test_refused_follow_up_raises_for_the_caller_and_keeps_the_job(
    harness: Harness, queue: Any, kept: Tasks, way: str
) -> None:
    """The job is unchanged: no dead letter replaces an outcome that the caller wanted to store."""
    queue.chain(kept.add.call(1, 2), kept.more.call(0, _headers={"a": "forbidden"}))
    job = queue.lease(60)
    harness.sql("ALTER TABLE {table} ADD CHECK (headers::jsonb -> 'a' IS NULL)", rows=False)
    core = unwrapped(queue)
    outcome = Outcome(unwrapped(job), "done", 3)
    with pytest.raises(InvalidData):
        job.ack() if way == "ack" else harness.wait_for(lambda: complete.finish(core.engine, core, [outcome]))
    assert harness.sql("SELECT leased_until IS NULL, dequeued_at IS NULL FROM {table}") == [(False, True)]
    assert queue.dead.count() == 0


# Batches


def ending_together(queue: Any) -> Any:
    """Return a task of which two calls, run by two workers, end at the same moment."""
    together = threading.Barrier(2)

    @queue.task()
    def last(job_id: int) -> None:
        together.wait(PATIENCE)

    return last


def test_batch_ends_with_its_callback(harness: Harness, queue: Any, kept: Tasks) -> None:
    batch = queue.batch(*[kept.add.call(number, 1) for number in range(5)], then=kept.note.call())
    assert (len(batch.jobs), count(harness), count(harness, "_batches")) == (5, 5, 1)
    assert [job.status() for job in batch.jobs] == ["ready"] * 5
    harness.drain(queue)
    assert kept.previous == [{"batch": batch.id, "total": 5, "failed": 0}]
    assert [job.result(1) for job in batch.jobs] == [1, 2, 3, 4, 5]
    assert (count(harness), count(harness, "_batches")) == (0, 0)
    assert queue.result(kept.ids[0]) == kept.previous[0]


def test_batch_counts_failed_discarded_expired_and_cancelled_jobs(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(
        tasks.add.call(1, 2),
        tasks.fail.call(),
        tasks.discard.call(),
        tasks.add.call(1, 1, _deadline=timedelta(seconds=-1)),
        tasks.add.call(3, 4),
        then=tasks.note.call(),
    )
    assert batch.jobs[4].cancel()
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 5, "failed": 4}]


def test_batch_ends_when_its_last_job_is_cancelled(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(tasks.add.call(1, 2), tasks.add.call(1, 2, _schedule_at="1h"), then=tasks.note.call())
    harness.drain(queue)
    assert (tasks.previous, count(harness, "_batches")) == ([], 1)

    def undone() -> None:
        assert batch.jobs[1].cancel()
        assert count(harness) == 1
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert batch.jobs[1].cancel()
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]


def test_batch_waits_for_retried_and_snoozed_jobs(harness: Harness, queue: Any, tasks: Tasks) -> None:
    seen = []

    @queue.task(max_retries=2, retry_in=None)
    def fragile(job_id: int) -> None:
        seen.append(len(tasks.previous))
        if len(seen) == 1:
            raise Broken
        if len(seen) == 2:
            raise Snooze(None)

    batch = queue.batch(fragile.call(), tasks.add.call(1, 2), then=tasks.note.call())
    harness.drain(queue)
    assert seen == [0, 0, 0]
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 0}]


def test_batch_counts_each_chain_once(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(
        (tasks.add.call(1, 2), tasks.more.call(3), tasks.add.call(0, 0)),
        tasks.add.call(1, 1),
        (tasks.add.call(1, 2), tasks.fail.call(), tasks.add.call(5, 6)),
        (tasks.add.call(1, 2), tasks.discard.call(), tasks.add.call(5, 6)),
        then=tasks.note.call(),
    )
    assert len(batch.jobs) == 4
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 4, "failed": 2}]
    assert count(harness, "_batches") == 0


def test_batch_counts_a_retried_dead_letter_only_once(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch((tasks.fail.call(), tasks.fail.call()), tasks.add.call(1, 2), then=tasks.note.call())
    harness.drain(queue)
    for _ in range(2):
        assert queue.dead.retry_all() == 1
        harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]


def test_batch_is_not_ended_early_by_a_retried_dead_letter(harness: Harness, queue: Any, tasks: Tasks) -> None:
    broken = [True]

    @queue.task()
    def fragile(job_id: int) -> None:
        if broken.pop():
            raise Broken

    batch = queue.batch(fragile.call(), tasks.add.call(1, 2, _schedule_at="1h"), then=tasks.note.call())
    harness.drain(queue)
    broken.append(False)
    queue.dead.retry_all()
    harness.drain(queue)
    assert (tasks.previous, broken, count(harness, "_batches")) == ([], [], 1)
    harness.sql("UPDATE {table} SET schedule_at = now()", rows=False)
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]


def test_batch_ignores_a_row_without_its_token(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(tasks.add.call(1, 2, _schedule_at="1h"), then=tasks.note.call())
    for headers in ({"batch": batch.id}, {"batch": batch.id, "batch_token": "guessed"}):
        forged = tasks.add(1, 2)
        harness.sql(f"UPDATE {{table}} SET headers = '{json.dumps(headers)}' WHERE id = {int(forged)}", rows=False)
    harness.drain(queue)
    assert (tasks.previous, count(harness), count(harness, "_batches")) == ([], 1, 1)
    harness.sql("UPDATE {table} SET schedule_at = now()", rows=False)
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 1, "failed": 0}]


def test_batch_of_older_code_without_token_is_counted(harness: Harness, queue: Any, tasks: Tasks) -> None:
    """Older code gives no token to a batch or its jobs, not even in a chain."""
    batch = queue.batch(tasks.add.call(1, 2), (tasks.add.call(1, 2), tasks.fail.call()), then=tasks.note.call())
    harness.sql(f"UPDATE {beside(harness, '_batches')} SET token = NULL", rows=False)
    harness.sql(
        'UPDATE {table} SET headers = regexp_replace(headers::text, \'"batch_token": *"[0-9a-f]+"\','
        " '\"x\": 1', 'g')::json",
        rows=False,
    )
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]
    assert count(harness, "_batches") == 0


# Jobs that end without a worker


def _ack_many(queue: Any) -> None:
    assert queue.ack_many(queue.lease_many(9)) == []


BY_HAND: dict[str, Callable[[Any], Any]] = {
    "ack": lambda queue: queue.lease().ack(),
    "ack_many": _ack_many,
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many(9),
}


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_batch_counts_jobs_finished_by_hand(harness: Harness, retention: str) -> None:
    pq = harness.tasks()
    queues = {way: pq.queue(way, retention=retention) for way in BY_HAND}
    tasks = {way: Tasks(queue) for way, queue in queues.items()}
    batches = {
        way: queue.batch(*[tasks[way].add.call(number, 1) for number in range(3)], then=tasks[way].note.call())
        for way, queue in queues.items()
    }
    for way, queue in queues.items():
        BY_HAND[way](queue)
    harness.drain(*queues.values())
    expected = {way: {"batch": batch.id, "total": 3, "failed": 0} for way, batch in batches.items()}
    found = [summary for each in tasks.values() for summary in each.previous]  # by any function of that name
    left = [way for way, summary in expected.items() if summary not in found]
    assert (left, len(found), count(harness, "_batches")) == ([], len(BY_HAND), 0)


@pytest.mark.parametrize("way", BY_HAND)
def test_chain_continues_behind_a_job_finished_by_hand(harness: Harness, queue: Any, tasks: Tasks, way: str) -> None:
    batch = queue.batch((tasks.fail.call(), tasks.note.call()), then=tasks.note.call())
    BY_HAND[way](queue)
    harness.drain(queue)
    assert tasks.previous == [None, {"batch": batch.id, "total": 1, "failed": 0}]


@pytest.mark.parametrize("data", ["{", "NaN", "", '"\x01"', "1 2"])
@pytest.mark.parametrize("way", BY_HAND)
def test_forged_chain_that_cannot_be_stored_is_skipped_when_its_job_is_acked(
    harness: Harness, queue: Any, caplog: pytest.LogCaptureFixture, way: str, data: str
) -> None:
    link: dict[str, Any] = {"queue": "q", "serializer": "json", "data": data, "payload": None, "headers": {}}
    headers = json.dumps({"then": [link]}).replace("'", "''")
    harness.sql(f"INSERT INTO {{table}} (q_name, data, headers) VALUES ('{queue.name}', '1', '{headers}')", rows=False)
    BY_HAND[way](queue)
    queue.count()  # the follow-ups of a job taken with get run when the queue is used again
    assert (count(harness), queue.stats().leased) == (0, 0)
    harness.drain(queue)
    assert "its follow-ups were not put, because its headers are invalid: header 'then'" in caplog.text


@pytest.mark.read_committed
def test_follow_up_of_an_acked_job_belongs_to_the_acks_transaction(harness: Harness, queue: Any, kept: Tasks) -> None:
    first = queue.chain(kept.add.call(1, 2), kept.note.call())
    caller = harness.connect()
    caller.begin()
    job = queue.lease()
    queue.ack(job, connection=caller.raw)
    assert (first.status(), count(harness)) == ("leased", 1)
    caller.rollback()
    with queue:
        job.ack()
    harness.drain(queue)
    assert (kept.previous, first.status(), count(harness)) == ([None], "done", 0)
    with pytest.raises(JobNotFound):
        first.result(1)


def test_follow_up_is_not_put_for_a_lost_lease(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(*[tasks.add.call(number, 1) for number in range(2)], then=tasks.note.call())
    stale = queue.lease()
    harness.expire()
    others = queue.lease_many(9)
    assert [job.id for job in queue.ack_many([stale, others[-1]])] == [stale.id]
    assert (count(harness, "_batches"), count(harness)) == (1, 1)
    others[0].ack()
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 0}]


def test_batch_counts_jobs_taken_in_a_block_when_it_commits(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(tasks.add.call(1, 2), (tasks.add.call(1, 2), tasks.note.call()), then=tasks.note.call())

    def undone() -> None:
        assert len(queue.get_many(2)) == 2
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert (count(harness), count(harness, "_batches")) == (2, 1)
    with queue:
        assert len(queue.get_many(2)) == 2
    assert count(harness) == 1
    harness.drain(queue)
    assert tasks.previous == [None, {"batch": batch.id, "total": 2, "failed": 0}]


def test_batch_counts_cleared_jobs_as_failed(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(
        tasks.add.call(1, 2),
        tasks.add.call(1, 2, _schedule_at="1h"),
        (tasks.add.call(1, 2), tasks.note.call()),
        tasks.add.call(1, 2),
        then=tasks.note.call(),
    )
    queue.lease().ack()
    queue.lease()
    queue.put(1)
    queue.clear()
    assert count(harness) == 1
    harness.drain(queue)
    assert (tasks.previous, count(harness)) == ([{"batch": batch.id, "total": 4, "failed": 3}], 0)


def test_clear_deletes_a_queue_with_its_batches_or_not_at_all(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.batch(tasks.add.call(1, 2), then=tasks.note.call())

    def undone() -> None:
        queue.clear()
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert (count(harness), count(harness, "_batches")) == (1, 1)


def delete_first(harness: Harness) -> None:
    harness.sql("DELETE FROM {table} WHERE id = (SELECT min(id) FROM {table} WHERE dequeued_at IS NULL)", rows=False)


def test_batch_whose_jobs_were_deleted_is_ended_by_a_stopping_worker(
    harness: Harness, queue: Any, tasks: Tasks
) -> None:
    batch = queue.batch(tasks.add.call(1, 2), tasks.add.call(1, 2), then=tasks.note.call())
    alive = queue.batch(tasks.add.call(1, 2), tasks.add.call(1, 2, _schedule_at="1h"), then=tasks.note.call())
    delete_first(harness)
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]
    assert harness.sql(f"SELECT id FROM {beside(harness, '_batches')}") == [(alive.id,)]


def test_batch_whose_jobs_were_deleted_is_ended_by_a_running_worker(
    harness: Harness, queue: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.worker.maintenance.SWEEP_INTERVAL", 0.02)
    batch = queue.batch(tasks.add.call(1, 2, _schedule_at="1h"), then=tasks.note.call())
    with harness.working(queue):
        delete_first(harness)
        harness.eventually(lambda: tasks.previous)
    assert tasks.previous == [{"batch": batch.id, "total": 1, "failed": 1}]


@pytest.mark.only("blocking")
def test_batch_whose_jobs_were_deleted_is_ended_by_work(harness: Harness, tasks: Tasks) -> None:
    queue = harness.task_queue(timeout=0.01)
    batch = queue.batch(tasks.add.call(1, 2), tasks.add.call(1, 2), then=tasks.note.call())
    delete_first(harness)
    queue.work(burst=True)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]


def test_batch_is_kept_while_its_jobs_exist_in_any_table(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.batch(tasks.add.call(1, 2), then=tasks.note.call())
    core = unwrapped(queue)
    watch = batch_counts.Watch()

    def look() -> int:
        return harness.wait_for(lambda: watch.look(core.engine, core))

    for state in (
        "schedule_at = now() + interval '1 h'",
        "schedule_at = now() + interval '1 h', expected_at = now()",
        "schedule_at = NULL, expected_at = now()",
        "leased_until = now() + interval '1 h'",
        "leased_until = 'infinity', parked_on = 'limit:x'",
        "q_name = 'elsewhere'",
    ):
        harness.sql(f"UPDATE {{table}} SET {state}", rows=False)
        assert sum(look() for _ in range(40)) == 0
    harness.sql("DELETE FROM {table}", rows=False)
    assert sum(look() for _ in range(40)) == 1
    assert (count(harness), count(harness, "_batches")) == (1, 0)


@pytest.mark.only("blocking")
def test_batch_waits_for_a_popped_job_that_is_being_performed(harness: Harness, queue: Any, tasks: Tasks) -> None:
    """A worker of another process finds no job of the batch, but does not end it."""
    batch = queue.batch(tasks.add.call(1, 2), tasks.fail.call(), then=tasks.note.call())
    popped = queue.get_many(2)
    others = harness.tasks(create=False)["q"]
    harness.drain(others)
    assert count(harness, "_batches") == 1
    assert [queue.perform(job) for job in popped] == [True, False]
    harness.drain(others)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 1}]
    queue.batch(tasks.add.call(1, 2), then=tasks.note.call())
    popped = queue.get_many(1)
    harness.sql(f"UPDATE {beside(harness, '_batches')} SET held_until = now()", rows=False)
    harness.drain(others)
    assert tasks.previous[1]["failed"] == 1
    assert popped


@pytest.mark.only("blocking")
def test_popped_job_that_is_retried_is_followed_once(harness: Harness, queue: Any, tasks: Tasks) -> None:
    broken = [True, False]

    @queue.task(max_retries=1, retry_in=None)
    def fragile(job_id: int) -> str:
        if broken.pop(0):
            raise Broken
        return "mended"

    batch = queue.batch((fragile.call(), tasks.note.call()), then=tasks.note.call())
    with queue:
        assert not queue.perform(queue.get())
    while (job := queue.get(block=False)) is not None:
        queue.perform(job)
    assert tasks.previous == ["mended", {"batch": batch.id, "total": 1, "failed": 0}]
    assert count(harness) == 0


@pytest.mark.only("blocking")
def test_popped_job_that_is_never_performed_counts_as_done(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.chain(tasks.add.call(1, 2), tasks.note.call())
    job = queue.get()
    assert queue.get(block=False) is None, "it may still be performed"
    del job
    second = queue.get(block=False)
    assert second.headers["previous"]["data"] == "null"
    assert queue.perform(second)


@pytest.mark.only("blocking")
def test_popped_job_performed_after_its_block_is_followed_once(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batch = queue.batch(tasks.fail.call(), tasks.add.call(1, 2), then=tasks.note.call())
    with queue:
        job = queue.get()
    assert not queue.perform(job)
    assert count(harness, "_batches") == 1
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 0}]


@pytest.mark.only("async")
@pytest.mark.parametrize("n", [1, 2])
def test_cancelled_get_during_its_batch_update_puts_the_jobs_back(
    harness: Harness, queue: Any, tasks: Tasks, n: int
) -> None:
    batch = queue.batch(tasks.add.call(1, 2), tasks.add.call(1, 2), then=tasks.note.call())
    core = unwrapped(queue)
    caller = harness.connect()
    caller.begin()
    caller.sql(f"UPDATE {beside(harness, '_batches')} SET pending = pending RETURNING id")
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        f" AND application_name = '{harness.application}' AND query LIKE '%pending - %'"
    )

    async def cancel() -> None:
        task = asyncio.ensure_future(core.get_many(n))
        while not await asyncio.to_thread(harness.sql, waiting):
            assert not task.done()
        task.cancel()
        await asyncio.to_thread(caller.commit)
        with pytest.raises(asyncio.CancelledError):
            await task

    harness.wait_for(cancel)
    assert count(harness) == 2 + (n == 2), "the callback is put with the last"
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 0}]


def test_popped_job_whose_follow_up_is_refused_is_returned_nonetheless(
    harness: Harness, queue: Any, tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    batch = queue.batch((tasks.add.call(1, 2), tasks.note.call("forbidden")), tasks.add.call(1, 2))
    forbid(harness, "")
    assert len(harness.pq(create=False)["q"].get_many(2)) == 2
    assert "cannot run the follow-ups of job" in caplog.text
    assert harness.sql(f"SELECT id, pending FROM {beside(harness, '_batches')}") == [(batch.id, 1)]


def test_batch_without_a_callback_leaves_no_row(harness: Harness, queue: Any, tasks: Tasks) -> None:
    queue.batch(tasks.add.call(1, 2), tasks.fail.call())
    with pytest.raises(ConfigurationError):
        queue.batch()
    harness.drain(queue)
    assert (count(harness), count(harness, "_batches")) == (0, 0)


def test_batch_callback_may_put_another_batch(harness: Harness) -> None:
    pq = harness.tasks()
    first, second = Tasks(pq["a"]), Tasks(pq["b"])
    put = threading.Event()

    @pq["c"].task()
    def begin(job_id: int) -> None:
        put.set()

    batch = pq["a"].batch(first.add.call(1, 2), second.add.call(3, 4), then=begin.call())
    harness.drain(pq["a"], pq["b"], pq["c"])
    assert put.is_set()
    assert batch.id == 1
    nested = pq["b"].batch(first.add.call(1, 2), then=second.note.call())
    harness.drain(pq["a"], pq["b"])
    assert second.previous == [{"batch": nested.id, "total": 1, "failed": 0}]


def test_batch_whose_last_jobs_end_concurrently_puts_one_callback(harness: Harness, queue: Any, tasks: Tasks) -> None:
    for _ in range(TIMES):
        last = ending_together(queue)
        queue.batch(last.call(), last.call(), then=tasks.note.call())
        harness.at_once(*[lambda: harness.drain(queue, **ALONE)] * 2)
        harness.drain(queue)
    assert [summary["failed"] for summary in tasks.previous] == [0] * TIMES
    assert len({summary["batch"] for summary in tasks.previous}) == TIMES
    assert count(harness, "_batches") == 0


def test_batch_whose_last_job_waits_for_a_transaction_puts_one_callback(
    harness: Harness, queue: Any, tasks: Tasks
) -> None:
    last = ending_together(queue)
    batch = queue.batch(last.call(), last.call(), then=tasks.note.call())
    caller = harness.connect()
    caller.begin()
    caller.sql(f"UPDATE {beside(harness, '_batches')} SET pending = pending RETURNING id")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        f" AND application_name = '{harness.application}'"
    )
    with ExitStack() as stack:
        drained = [stack.enter_context(harness.thread(lambda: harness.drain(queue, **ALONE))) for _ in range(2)]
        harness.eventually(lambda: harness.sql(waiting) == [(2,)])
        caller.commit()
        for join in drained:
            join()
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 2, "failed": 0}]


def test_batches_under_several_workers_count_every_job(harness: Harness, queue: Any, tasks: Tasks) -> None:
    batches = [
        queue.batch(
            *[tasks.add.call(number, 1) for number in range(20)],
            *[tasks.fail.call()] * 3,
            (tasks.add.call(1, 2), tasks.more.call(3)),
            then=tasks.note.call(),
        )
        for _ in range(5)
    ]
    with ExitStack() as workers:
        for _ in range(3):
            workers.enter_context(harness.working(queue, concurrency=4))
        harness.eventually(lambda: len(tasks.previous) >= len(batches))
        harness.eventually(lambda: not count(harness))
    expected = [{"batch": batch.id, "total": 24, "failed": 3} for batch in batches]
    assert sorted(tasks.previous, key=lambda summary: int(summary["batch"])) == expected


@pytest.mark.parametrize("way", ["lost", "given back"])
def test_lost_lease_decrements_no_batch(harness: Harness, queue: Any, tasks: Tasks, way: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @queue.task()
    def slow(job_id: int) -> None:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(PATIENCE)

    batch = queue.batch(slow.call(), then=tasks.note.call())
    with harness.thread(lambda: harness.drain(queue, **ALONE)) as drained:
        assert begun.wait(PATIENCE)
        harness.expire()
        other = queue.lease(block=False)
        if way == "given back":
            other.nack("1h")
        go_on.set()
        drained()
    assert (tasks.previous, count(harness, "_batches")) == ([], 1)
    harness.sql("UPDATE {table} SET schedule_at = NULL", rows=False)
    harness.expire()
    harness.drain(queue)
    assert tasks.previous == [{"batch": batch.id, "total": 1, "failed": 0}]


# Hooks around a put and a run


class Watcher:
    """A plugin that marks jobs that are put, and notes the events that it receives."""

    def __init__(self) -> None:
        self.puts: list[PutEvent] = []
        self.told: list[tuple[str, Any]] = []
        self.runs: list[tuple[str, int, Any]] = []
        self.headers: dict[str, Any] = {"mark": "M"}

    @hookimpl
    @contextmanager
    def pqcore_around_put(self, event: PutEvent) -> Iterator[None]:
        event.headers.update(self.headers)
        self.puts.append(event)
        try:
            yield
        except Exception as exc:
            self.told.append(("put failed", type(exc).__name__))
            raise
        self.told.append(("put", event.ids))

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        mark = event.job.headers.get("mark")
        self.runs.append(("begin", event.job.id, mark))
        try:
            yield
        finally:
            self.runs.append(("end", event.job.id, mark))


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    plugins.load_others()
    plugins.manager.register(made)
    yield made
    plugins.manager.unregister(made)


def marks(harness: Harness) -> list[Any]:
    """Return the mark of each waiting job."""
    found = harness.sql("SELECT headers::text FROM {table} WHERE dequeued_at IS NULL ORDER BY id")
    return [None if text is None else json.loads(text).get("mark") for [text] in found]


PUTS: dict[str, tuple[Callable[[Any, Tasks], Any], int]] = {
    "put": (lambda queue, tasks: [queue.put(1)], 1),
    "put with all": (lambda queue, tasks: [queue.put(1, "1h", dedup="key", group="g", limits={"l": 1})], 1),
    "put_many": (lambda queue, tasks: queue.put_many([1, 2, 3]), 3),
    "put_many with all": (
        lambda queue, tasks: queue.put_many([NewJob(1), NewJob(2, "1h", dedup="key", headers={"a": 1})]),
        2,
    ),
    "a call": (lambda queue, tasks: [tasks.add(1, 2)], 1),
    "put_calls": (lambda queue, tasks: queue.put_calls(tasks.add.call(1, 2), tasks.note.call()), 2),
    "chain": (lambda queue, tasks: [queue.chain(tasks.add.call(1, 2), tasks.note.call())], 1),
    "batch": (
        lambda queue, tasks: queue.batch(tasks.add.call(1, 2), tasks.fail.call(), then=tasks.note.call()).jobs,
        2,
    ),
}


@pytest.mark.parametrize("name", PUTS)
def test_plugin_headers_are_stored_with_every_put(
    harness: Harness, queue: Any, tasks: Tasks, watcher: Watcher, name: str
) -> None:
    put, number = PUTS[name]
    ids = [int(job) for job in put(queue, tasks)]
    assert marks(harness) == ["M"] * number
    assert sorted(job for event in watcher.puts for job in event.ids) == ids
    assert all(event.queue == "q" for event in watcher.puts)


def test_plugin_headers_are_passed_along_chains_and_callbacks(
    harness: Harness, queue: Any, tasks: Tasks, watcher: Watcher
) -> None:
    queue.chain(tasks.add.call(1, 2), tasks.more.call(3), tasks.note.call(_headers={"mark": "own"}))
    queue.batch((tasks.add.call(1, 2), tasks.more.call(3)), then=tasks.note.call())
    harness.drain(queue)
    assert sorted(mark for what, _, mark in watcher.runs if what == "begin") == ["M"] * 5 + ["own"]
    assert tasks.previous[0] == 6 or tasks.previous[1] == 6


def test_plugin_around_run_hooks_enclose_each_run(harness: Harness, queue: Any, tasks: Tasks, watcher: Watcher) -> None:
    inside = []

    @queue.task()
    async def coroutine(job_id: int) -> None:
        await asyncio.sleep(0)
        inside.append((job_id, watcher.runs[-1][:2]))

    @queue.task()
    def plain(job_id: int) -> None:
        inside.append((job_id, watcher.runs[-1][:2]))

    ids = [int(task()) for task in (coroutine, plain, tasks.fail)]
    harness.drain(queue, concurrency=1)
    assert inside == [(job, ("begin", job)) for job in ids[:2]]
    assert watcher.runs == [(what, job, "M") for job in ids for what in ("begin", "end")]


def test_plugin_is_called_for_a_failed_put(harness: Harness, queue: Any, tasks: Tasks, watcher: Watcher) -> None:
    with pytest.raises(TypeError):
        queue.put(object())
    with pytest.raises(TypeError):
        queue.put_many([1, object()])
    assert watcher.told == [("put failed", "SerializationError")] * 2
    assert count(harness) == 0


def test_plugin_cannot_set_reserved_headers(harness: Harness, queue: Any, tasks: Tasks, watcher: Watcher) -> None:
    watcher.headers = {"batch": 5}
    with pytest.raises(ConfigurationError, match="batch"):
        queue.put(1)
    assert count(harness) == 0


def test_plugin_that_raises_does_not_stop_puts_and_runs(
    harness: Harness, queue: Any, tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        @hookimpl
        def pqcore_around_put(self, event: PutEvent) -> Any:
            raise ZeroDivisionError

        @hookimpl
        def pqcore_around_run(self, event: JobEvent) -> Any:
            raise ZeroDivisionError

        @hookimpl
        def pqcore_job_put(self, event: PutEvent) -> None:
            raise ZeroDivisionError

    failing = Failing()
    plugins.load_others()
    plugins.manager.register(failing)
    try:
        queue.batch(tasks.add.call(1, 2), then=tasks.note.call())
        tasks.note()
        harness.drain(queue)
    finally:
        plugins.manager.unregister(failing)
    assert len(tasks.previous) == 2
    assert "plugin" in caplog.text
