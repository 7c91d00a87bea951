"""The samples of figures that workers keep for charts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pqcore.operations import samples
from pqcore.operations.samples import PastSample, QueueSample, Sampling
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped


def table(harness: Harness) -> str:
    """Return the quoted name of the table of samples."""
    return TableName("queue", harness.schema).related("_samples")


def sampled(harness: Harness, queue: Any) -> int:
    """Do what a worker does from time to time; return the number of queues in the sample."""
    return harness.wait_for(lambda: Sampling().run(unwrapped(queue).engine))


def past(harness: Harness, queue: Any, name: str | None = None) -> list[PastSample]:
    """Return the samples that are kept."""
    return harness.wait_for(lambda: samples.read_samples(unwrapped(queue).engine, name))


def let_pass(harness: Harness, seconds: int) -> None:
    """Make all samples older."""
    harness.sql(f"UPDATE {table(harness)} SET at = at - interval '{seconds} seconds'", rows=False)


def test_samples_have_the_figures_of_each_queue_and_their_sum(harness: Harness) -> None:
    queue, other = harness.queue("a"), harness.queue("b")
    queue.put_many([1, 2, 3])
    queue.put(4, schedule_at="1h")
    assert queue.lease(60, wait=0) is not None
    other.put(1)
    assert other.get(block=False) is not None
    assert sampled(harness, queue) == 2
    [found] = past(harness, queue)
    figures = found.queues["a"]
    assert replace(figures, oldest=None) == QueueSample(ready=2, scheduled=1, leased=1)
    assert figures.oldest is not None
    assert replace(found.queues["b"], median=None, slow=None) == QueueSample(finished=1)
    assert found.total is not None
    assert (found.total.ready, found.total.scheduled, found.total.leased, found.total.finished) == (2, 1, 1, 1)
    [one] = past(harness, queue, "b")
    assert set(one.queues) == {"b"}
    assert one.of("c") == QueueSample()


def test_samples_are_kept_once_a_minute_by_all_workers_together(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    assert sampled(harness, queue) == 1
    assert sampled(harness, queue) == 0
    let_pass(harness, 60)
    numbers = harness.at_once(*[lambda: sampled(harness, queue)] * 4)
    # The minute may end meanwhile.
    assert len(past(harness, queue)) == 1 + sum(numbers) <= 3


def test_sample_from_a_time_when_the_clock_was_ahead_delays_no_other(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    assert sampled(harness, queue) == 1
    let_pass(harness, -86_400)
    assert sampled(harness, queue) == 1
    [found] = past(harness, queue)
    assert found.age < 3600


def test_samples_are_rarer_if_reading_the_figures_takes_long(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    sampled(harness, queue)
    harness.sql(f"UPDATE {table(harness)} SET took = 3 WHERE q_name = ''", rows=False)
    let_pass(harness, 120)
    assert sampled(harness, queue) == 0
    let_pass(harness, 180)
    assert sampled(harness, queue) == 1


def test_samples_are_kept_for_a_day(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    sampled(harness, queue)
    let_pass(harness, 86_400 + 60)
    sampled(harness, queue)
    assert [each.age < 200 for each in past(harness, queue, None)] == [True]
    assert harness.sql(f"SELECT count(*) FROM {table(harness)}") == [(2,)]


def test_samples_have_the_queues_with_most_jobs(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_QUEUES", 2)
    queue = harness.queue("a")
    for name, number in (("a", 1), ("b", 3), ("c", 2)):
        harness.queue(name).put_many(range(number))
    assert sampled(harness, queue) == 2
    [found] = past(harness, queue)
    assert {name: each.ready for name, each in found.queues.items()} == {"b": 3, "c": 2}
    assert found.of("a") is None
    assert found.total is not None
    assert found.total.ready == 6


def test_sample_that_a_worker_did_not_finish_is_left_out(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    harness.sql(f"INSERT INTO {table(harness)} (at, q_name) VALUES (now() - interval '1 minute', '')", rows=False)
    assert past(harness, queue) == []
    assert sampled(harness, queue) == 1
    assert len(past(harness, queue)) == 1


def test_jobs_are_put_and_taken_while_a_sample_is_written(harness: Harness) -> None:
    queue = harness.queue()
    connection = harness.connect()
    connection.begin()
    connection.sql(f"LOCK TABLE {table(harness)} IN ACCESS EXCLUSIVE MODE", rows=False)
    queue.put(1)
    job = queue.lease(60, wait=0)
    assert job is not None
    queue.ack(job)
    assert queue.count() == 0
    connection.rollback()
