"""Attempts that failed, crashed or were snoozed: what is kept of them, and for how long."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest

from pqcore.operations import attempts, worker_registry
from pqcore.operations.attempts import AttemptSweep
from pqcore.sql.identifiers import TableName
from pqcore.tasks import Retry, Snooze
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Latch


def table(harness: Harness, suffix: str = "_attempts") -> str:
    return TableName("queue", harness.schema).related(suffix)


def stored(harness: Harness) -> int:
    """Return the number of attempts that are stored, of all jobs."""
    [[number]] = harness.sql(f"SELECT count(*) FROM {table(harness)}")
    return int(number)


def told(queue: Any, job_id: int) -> list[tuple[int, str, str]]:
    """Return the number, the outcome and the message of each attempt of a job."""
    return [(each.attempt, each.outcome, each.error.get("message", "")) for each in queue.attempts(job_id)]


def swept(harness: Harness, queue: Any) -> int:
    """Sweep once, as a worker does from time to time; return the number of deleted attempts."""
    core = unwrapped(queue)
    return harness.wait_for(lambda: AttemptSweep(core.name).run(core.engine))


def test_attempts_that_fail_or_are_snoozed_are_kept_as_long_as_the_job(harness: Harness) -> None:
    queue = harness.task_queue(retention="delete")
    ends: list[BaseException] = [Retry(0), Snooze(0), ValueError("bad"), Retry(0)]

    @queue.task(max_retries=3, retry_in=0)
    def end(job_id: int) -> None:
        if ends:
            raise ends.pop(0)

    @queue.task()
    def well(job_id: int) -> None: ...

    well()
    harness.drain(queue)
    assert stored(harness) == 0
    job_id = int(end())
    ends.append(KeyError("last"))
    harness.drain(queue)
    assert queue.status(job_id) == "dead"
    assert told(queue, job_id) == [
        (1, "failed", "retry in 0"),
        (2, "snoozed", ""),
        (2, "failed", "bad"),
        (3, "failed", "retry in 0"),
        (4, "failed", "'last'"),
    ]
    bad = queue.attempts(job_id)[2]
    assert (bad.error["type"], bad.worker is not None and bad.worker.endswith(f":{os.getpid()}")) == (
        "builtins.ValueError",
        True,
    )
    assert bad.error["traceback"].rstrip().endswith("ValueError: bad")
    assert swept(harness, queue) == 0
    assert queue.dead.retry(job_id) == 1
    assert len(queue.attempts(job_id)) == 5
    harness.drain(queue)  # done, and its row is deleted
    assert queue.attempts(job_id) == []
    assert (swept(harness, queue), stored(harness)) == (5, 0)


def test_attempts_are_kept_up_to_20_a_job(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(max_retries=23, retry_in=0)
    def fail(job_id: int) -> None:
        raise ValueError("\0" + "x" * 50_000)

    job_id = int(fail())
    harness.drain(queue)
    assert (queue.status(job_id), queue.inspect(job_id).attempts) == ("dead", 24)
    kept = queue.attempts(job_id)
    assert len(kept) == stored(harness) == 20
    assert [each.attempt for each in kept] == list(range(5, 25))
    assert all(len(each.error["message"]) == 2_000 and len(each.error["traceback"]) == 4_000 for each in kept)


@pytest.mark.parametrize("option", ["task", "worker"])
def test_errors_are_kept_as_the_task_or_the_worker_says(harness: Harness, option: str) -> None:
    queue = harness.task_queue()

    def fail(job_id: int) -> None:
        raise ValueError("secret")

    for keep in ("type", "none"):
        of_task = {"keep_errors": keep} if option == "task" else {}
        of_worker = {"keep_errors": keep} if option == "worker" else {}
        again = int(queue.task(max_retries=1, retry_in="1h", **of_task)(fail)())
        harness.drain(queue, **of_worker)
        dead = int(queue.task(max_retries=0, **of_task)(fail)())
        harness.drain(queue, **of_worker)
        expected = {"type": "builtins.ValueError", "message": "", "traceback": ""} if keep == "type" else {}
        assert [queue.inspect(each).error for each in (again, dead)] == [expected] * 2
        assert [[each.error for each in queue.attempts(job)] for job in (again, dead)] == [[expected]] * 2
        queue.clear()
        queue.dead.purge_all()
    for suffix in ("", "_dead", "_attempts"):
        assert harness.sql(f"SELECT 1 FROM {table(harness, suffix)} AS one WHERE one::text LIKE '%secret%'") == []


def test_result_that_cannot_be_stored_is_told_as_the_task_says(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(keep_result="1h", keep_errors="type")
    def run(job_id: int) -> object:
        return {"secret": {1}}

    job_id = int(run())
    harness.drain(queue)
    error = queue.inspect(job_id).error
    assert error == {"type": "pqcore.errors.SerializationError", "message": "", "traceback": ""}


def test_crash_is_kept_with_its_worker_before_the_job_runs_again(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = []

    @queue.task(max_retries=3, retry_in=0)
    def run(job_id: int) -> None:
        seen.append(stored(harness))
        if len(seen) == 1:
            raise ValueError("after a crash")

    job_id = int(run())
    running = [[job_id, queue.lease(60).token, 1.5]]
    harness.sql(
        f"INSERT INTO {table(harness, '_workers')} (q_name, id, host, pid, version, tasks, concurrency, started_at,"
        f" seen_at, running) VALUES ('q', 'w', 'lost', 7, '1', '[]', 1, now(), now(), '{running}')",
        rows=False,
    )
    harness.sql("UPDATE {table} SET leased_until = now() - interval '1 s'", rows=False)
    harness.drain(queue)
    assert (queue.status(job_id), seen) == ("done", [1, 2])
    crash, failure = queue.attempts(job_id)
    assert (crash.attempt, crash.outcome, crash.worker) == (1, "crashed", "lost:7")
    assert (failure.attempt, failure.outcome) == (2, "failed")


def test_crashes_are_kept_after_the_retry_of_a_dead_letter(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(max_crashes=3)
    def run(job_id: int) -> None: ...

    job_id = int(run())
    core = unwrapped(queue)

    def crash(times: int) -> None:
        for _ in range(times):
            job = unwrapped(queue.lease(60))
            harness.wait_for(lambda: attempts.keep_crash(core.engine, core, job))  # noqa: B023 - called here
            harness.expire()
        harness.drain(queue)

    def found() -> list[tuple[int, str]]:
        return [(each.attempt, each.outcome) for each in queue.attempts(job_id)]

    crash(3)
    assert (queue.status(job_id), found()) == ("dead", [(number, "crashed") for number in (1, 2, 3)])
    assert queue.dead.retry(job_id) == 1
    crash(1)
    assert (queue.status(job_id), found()[3:]) == ("done", [(1, "crashed")])


def test_worker_tells_which_jobs_it_runs(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    queue = harness.task_queue()
    over = Latch()

    @queue.task()
    def run(job_id: int) -> None:
        over.wait()

    job_id = int(run())
    with harness.working(queue):
        [worker] = harness.eventually(lambda: [each for each in queue.workers() if each.running])
        [job] = worker.running
        assert (job.id, job.queue, job.token) == (job_id, "q", 1)
        assert worker.started_at - timedelta(seconds=1) <= job.since <= worker.seen_at
        found = queue.explain(job_id)
        assert f"runs on {worker.host}:{worker.pid} since " in found.text
        over.open()
        harness.eventually(lambda: not queue.workers()[0].running)


def test_attempts_follow_a_moved_job_and_go_with_cleared_jobs(harness: Harness) -> None:
    pq = harness.tasks()
    queue = pq["q"]

    @queue.task(max_retries=1, retry_in="1h")
    def fail(job_id: int) -> None:
        raise ValueError("no")

    job_id = int(fail())
    harness.drain(queue)
    assert queue.move("other") == 1
    assert (told(queue, job_id), told(pq["other"], job_id)) == ([], [(1, "failed", "no")])
    pq["other"].clear()
    assert told(pq["other"], job_id) == []
    assert (swept(harness, queue), stored(harness)) == (1, 0)


def test_attempts_of_a_job_are_not_those_of_another_with_its_id(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(max_retries=1, retry_in="1h")
    def fail(job_id: int) -> None:
        raise ValueError("no")

    first = fail()
    harness.drain(queue)
    assert len(queue.attempts(first)) == 1
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    second = fail()
    assert int(second) == int(first)
    assert queue.attempts(second) == queue.attempts(first) == []
    harness.drain(queue)
    assert told(queue, second) == [(1, "failed", "no")]
    assert stored(harness) == 1
