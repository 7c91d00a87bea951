"""The list of workers: rows that each worker writes, renews, and deletes when it stops."""

from __future__ import annotations

import logging
import os

import pytest

import pqcore
from pqcore.operations import worker_registry
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.probes import Notes


def table(harness: Harness) -> str:
    """Return the quoted name of the table of workers."""
    return TableName("queue", harness.schema).related("_workers")


def test_worker_is_listed_for_each_of_its_queues_until_it_stops(harness: Harness) -> None:
    pq = harness.tasks()

    @pq["a"].task()
    def known(job_id: int) -> None: ...

    assert pq.workers() == pq["a"].workers() == []
    with harness.working(pq["a"], pq["b"], concurrency=7):
        [worker] = harness.eventually(pq.workers)
        assert (worker.queues, worker.pid, worker.concurrency) == (("a", "b"), os.getpid(), 7)
        assert (worker.version, worker.alive) == (pqcore.__version__, True)
        assert known.task.path in worker.tasks
        assert worker.started_at <= worker.seen_at
        assert [(each.id, each.queues) for each in pq["b"].workers()] == [(worker.id, ("b",))]
        assert pq["c"].workers() == []
        with harness.working(pq["b"]):
            assert harness.eventually(lambda: len(pq["b"].workers()) == 2)
            assert pq.workers()[0] == worker
            assert len({each.id for each in pq.workers()}) == 2
    assert pq.workers() == []


def test_worker_renews_its_rows(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    queue = harness.task_queue()
    with harness.working(queue):
        [first] = harness.eventually(queue.workers)

        @queue.task()
        def declared_later(job_id: int) -> None: ...

        assert harness.eventually(lambda: declared_later.task.path in queue.workers()[0].tasks)
        assert harness.eventually(lambda: queue.workers()[0].seen_at > first.seen_at)
        harness.sql(f"TRUNCATE {table(harness)}", rows=False)
        [third] = harness.eventually(queue.workers)
        assert third.id == first.id
        assert abs((third.started_at - first.started_at).total_seconds()) < PATIENCE


def test_quiet_worker_takes_no_jobs_until_that_ends(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    caplog.set_level(logging.INFO)
    pq = harness.tasks()
    queue = pq["q"]
    ran = Notes()

    @queue.task()
    def run(job_id: int) -> None:
        ran.add(job_id)

    with harness.working(queue, poll_interval=0.02):
        [worker] = harness.eventually(pq.workers)
        assert pq.quiet_worker(worker.id)
        assert harness.eventually(lambda: "an operator told this worker to take no more jobs" in caplog.text)
        job_id = run()
        [put] = pq.workers()
        assert harness.eventually(lambda: (pq.workers()[0].seen_at - put.seen_at).total_seconds() > 0.2)
        assert (pq.workers()[0].quiet, queue.status(job_id), ran.items) == (True, "ready", [])
        assert queue.explain(job_id).causes[0].code == "workers_quiet"
        assert pq.quiet_worker(worker.id, quiet=False)
        assert ran.wait(1) == [job_id]
        assert not pq.workers()[0].quiet
    assert not pq.quiet_worker(worker.id)


def test_worker_that_cannot_be_listed_runs_jobs_and_warns_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    queue = harness.task_queue()
    ran = Notes()

    @queue.task()
    def run(job_id: int) -> None:
        ran.add(job_id)

    harness.sql(f"ALTER TABLE {table(harness)} ADD CONSTRAINT refuses CHECK (false) NOT VALID", rows=False)
    job_id = run()
    with harness.working(queue):
        assert ran.wait(1) == [job_id]
        assert harness.eventually(lambda: caplog.text.count("cannot write to the list of workers") == 1)
        assert queue.workers() == []
        harness.sql(f"ALTER TABLE {table(harness)} DROP CONSTRAINT refuses", rows=False)
        assert harness.eventually(queue.workers)
    assert caplog.text.count("cannot write to the list of workers") == 1
