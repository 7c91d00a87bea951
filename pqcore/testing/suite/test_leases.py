"""Leases: for work that takes longer than a transaction; delivered at least once, finished at most once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pqcore.errors import ConfigurationError, LeaseLost
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.undo import Undo


def undo(*results: object) -> None:
    raise Undo(results)


def expire(harness: Harness) -> None:
    """Make all leases run out, as time would."""
    harness.sql(
        "UPDATE {table} SET leased_until = statement_timestamp() - interval '1 s' WHERE leased_until IS NOT NULL",
        rows=False,
    )


def rows(harness: Harness, suffix: str = "") -> list[tuple[Any, ...]]:
    """Return all rows of the table, or of another table of the queue."""
    table = TableName("queue", harness.schema).related(suffix)
    return harness.sql(f"SELECT to_jsonb(queue)::text FROM {table} AS queue ORDER BY id")


def left(harness: Harness) -> float:
    """Return the seconds until the only lease runs out, by the server's clock."""
    [[seconds]] = harness.sql(
        "SELECT extract(epoch FROM leased_until - clock_timestamp())::float8 FROM {table}"
        " WHERE leased_until IS NOT NULL"
    )
    return float(seconds)


def drain(queue: Any) -> list[Any]:
    """Take all due jobs, and return their data."""
    taken = []
    while (job := queue.get(block=False)) is not None:
        taken.append(job.data)
    return taken


def test_leased_job_is_hidden_from_others(harness: Harness) -> None:
    queue = harness.queue()
    job_id = queue.put("a")
    job = queue.lease()
    assert (job.id, job.data, job.attempts) == (job_id, "a", 1)
    other = harness.queue(create=False)
    assert other.get(block=False) is None
    assert other.get_many(10, block=False) == []
    assert other.lease(block=False) is None
    assert other.lease_many(10, block=False) == []
    assert (len(other), other.stats().ready, other.stats().leased) == (0, 0, 1)


def test_lease_of_an_empty_queue_returns_none_after_its_wait(harness: Harness) -> None:
    queue = harness.queue(timeout=3600)
    began = time.monotonic()
    assert queue.lease(wait=0.05) is None
    assert time.monotonic() - began >= 0.05
    assert queue.lease_many(3, wait=0.05) == []
    assert queue.lease(block=False) is None
    assert queue.lease(wait=0) is None
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_ack_finishes_the_row_by_its_retention(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    acked, waiting = queue.put("a", "0s", "1h"), queue.put("b", "1h")
    assert queue.ack(queue.lease()) is None
    kept = harness.sql("SELECT id, dequeued_at IS NOT NULL, leased_until, attempts FROM {table} ORDER BY id")
    finished = [(acked, True, None, 1)] if retention == "keep" else []
    assert kept == [*finished, (waiting, False, None, 0)]
    archive = TableName("queue", harness.schema).related("_archive")
    archived = harness.sql(
        "SELECT id, q_name, data::text, attempts, dequeued_at >= schedule_at AND expected_at > dequeued_at,"
        f" serializer, payload FROM {archive}"
    )
    assert archived == ([(acked, "q", '"a"', 1, True, "json", None)] if retention == "archive" else [])
    expire(harness)
    assert queue.get(block=False) is None


@pytest.mark.parametrize("length", [300, 300.0, "5m", timedelta(minutes=5)])
def test_lease_and_extend_last_as_long_as_asked(harness: Harness, length: Any) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease(length)
    assert 300 - PATIENCE < left(harness) <= 300
    harness.sql("UPDATE {table} SET leased_until = statement_timestamp() + interval '1 h'", rows=False)
    job.extend(length)
    assert 300 - PATIENCE < left(harness) <= 300


def test_lease_lasts_60_s_by_default(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    queue.lease()
    assert 60 - PATIENCE < left(harness) <= 60
    queue.put("b")
    harness.sql("UPDATE {table} SET leased_until = NULL WHERE id = 1", rows=False)
    assert len(queue.lease_many(1)) == 1
    assert 60 - PATIENCE < left(harness) <= 60


def test_lease_timeout_is_the_time_to_wait(harness: Harness) -> None:
    queue = harness.queue(timeout=3600)
    began = time.monotonic()
    assert queue.lease(60, timeout=0.05) is None
    assert time.monotonic() - began >= 0.05
    assert queue.lease_many(3, 60, timeout=0.05) == []
    assert queue.lease("5m", timeout=0) is None
    assert queue.lease_many(3, duration=60, wait=0) == []
    assert time.monotonic() - began < PATIENCE
    queue.put("a")
    assert queue.lease("5m", timeout=0).data == "a"
    assert 300 - PATIENCE < left(harness) <= 300


def test_lease_timeout_without_a_duration_is_refused(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    for lease in (queue.lease, lambda **times: queue.lease_many(1, **times)):
        with pytest.raises(ConfigurationError, match="timeout is the time to wait for a job, duration the length"):
            lease(timeout=300)
        with pytest.raises(ConfigurationError, match="give one of them"):
            lease(duration=60, timeout=1, wait=1)
    assert queue.stats().ready == 1
    assert queue.lease(timeout=None, wait=0).data == "a"


def test_lease_without_a_length_is_refused(harness: Harness) -> None:
    lengths: list[Any] = [0, 0.0, -1, "0s", "x", "-5s", "", float("nan"), float("inf"), None, timedelta(0)]
    queue = harness.queue()
    queue.put("a")
    for length in lengths:
        with pytest.raises(ValueError):
            queue.lease(length)
        with pytest.raises(ValueError):
            queue.lease_many(1, length)
    assert queue.stats().ready == 1
    job = queue.lease(60)
    before = rows(harness)
    for length in lengths:
        with pytest.raises(ValueError):
            queue.extend(job, length)
    assert rows(harness) == before


@pytest.mark.parametrize("times", [(), (None, "1h")], ids=["plain", "expected"])
def test_expired_lease_returns_its_job_to_its_old_position(harness: Harness, times: tuple[Any, ...]) -> None:
    queue = harness.queue()
    for name in "abc":
        queue.put(name, *times)
    assert queue.lease().data == "a"
    expire(harness)
    assert (len(queue), queue.stats().ready, queue.stats().leased) == (3, 3, 0)
    again = queue.lease()
    assert (again.data, again.attempts) == ("a", 2)
    expire(harness)
    popped = queue.get()
    assert (popped.data, popped.attempts) == ("a", 3)
    assert drain(queue) == ["b", "c"]


def test_expired_leases_are_taken_in_the_queues_order(harness: Harness) -> None:
    queue = harness.queue()
    for name in "bdf":
        queue.put(name, expected_at="1h")
    queue.put("z")
    for name in "ace":
        queue.put(name, expected_at="30m")
    leased = queue.lease_many(4)
    assert [job.data for job in leased] == ["a", "c", "e", "b"]
    expire(harness)
    assert [job.data for job in queue.lease_many(2)] == ["a", "c"]
    assert [job.data for job in queue.get_many(10)] == ["e", "b", "d", "f", "z"]


def test_token_increments_with_every_lease(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    for attempt in range(1, 8):
        job = queue.lease()
        assert job.attempts == attempt
        if attempt % 2:
            expire(harness)
        else:
            job.nack()
    assert queue.get().attempts == 8


LATE: dict[str, Callable[[Any, Any], object]] = {
    "ack": lambda queue, job: queue.ack(job),
    "nack": lambda queue, job: queue.nack(job),
    "nack with a delay": lambda queue, job: queue.nack(job, "1h"),
    "extend": lambda queue, job: queue.extend(job, 3600),
    "job.ack": lambda queue, job: job.ack(),
    "job.nack": lambda queue, job: job.nack("1h"),
    "job.extend": lambda queue, job: job.extend("1h"),
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_overtaken_lease_raises_lease_lost_for_every_operation(
    harness: Harness, late: Callable[[Any, Any], object]
) -> None:
    queue = harness.queue()
    queue.put("a")
    old = queue.lease()
    expire(harness)
    new = harness.queue(create=False).lease(timedelta(minutes=5))
    before = rows(harness)
    with pytest.raises(LeaseLost) as caught:
        late(queue, old)
    assert str(old.id) in str(caught.value)
    assert rows(harness) == before
    new.ack()
    before = rows(harness)
    with pytest.raises(LeaseLost):
        late(queue, old)
    with pytest.raises(LeaseLost):
        late(queue, new)
    assert rows(harness) == before


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_overtaken_lease_cannot_ack_under_any_retention(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put("a")
    old = queue.lease()
    expire(harness)
    new = queue.lease()
    before = rows(harness)
    with pytest.raises(LeaseLost):
        old.ack()
    assert queue.ack_many([old]) == [old]
    assert (rows(harness), rows(harness, "_archive")) == (before, [])
    assert queue.ack_many([new]) == []
    with pytest.raises(LeaseLost):
        new.ack()
    assert len(rows(harness) + rows(harness, "_archive")) == (0 if retention == "delete" else 1)


def test_expired_lease_can_be_acked_until_the_job_is_leased_again(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    expire(harness)
    job.ack()
    assert harness.sql("SELECT dequeued_at IS NOT NULL, attempts FROM {table}") == [(True, 1)]
    assert queue.get(block=False) is None


def test_expired_lease_can_be_extended_until_the_job_is_leased_again(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    expire(harness)
    job.extend("5m")
    assert queue.lease(block=False) is None
    job.ack()


def test_extend_moves_the_end_of_the_lease(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease(60)
    queue.extend(job, "1h")
    assert 3600 - PATIENCE < left(harness) <= 3600
    job.extend(60)
    assert 60 - PATIENCE < left(harness) <= 60
    job.ack()


def test_nack_returns_the_job_to_its_old_position(harness: Harness) -> None:
    queue = harness.queue()
    for name in "abc":
        queue.put(name)
    queue.put("soon", expected_at="1h")
    queue.put("due", timedelta(days=-1))
    leased = queue.lease_many(4)
    assert [job.data for job in leased] == ["soon", "due", "a", "b"]
    before = harness.sql("SELECT id, schedule_at, expected_at, enqueued_at FROM {table} ORDER BY id")
    for job in reversed(leased):
        assert queue.nack(job) is None
    assert harness.sql("SELECT id, schedule_at, expected_at, enqueued_at FROM {table} ORDER BY id") == before
    assert drain(queue) == ["soon", "due", "a", "b", "c"]


@pytest.mark.parametrize("expected", [None, "2h"])
def test_nack_with_a_delay_schedules_the_job(harness: Harness, expected: str | None) -> None:
    queue = harness.queue()
    queue.put("a", expected_at=expected)
    queue.lease().nack("1h")
    [[ahead, leased]] = harness.sql(
        "SELECT extract(epoch FROM schedule_at - clock_timestamp())::float8, leased_until FROM {table}"
    )
    assert leased is None
    assert 3600 - PATIENCE < ahead <= 3600
    assert queue.get(block=False) is None
    assert queue.lease(block=False) is None
    assert (queue.stats().scheduled, queue.stats().ready) == (1, 0)
    harness.sql("UPDATE {table} SET schedule_at = schedule_at - interval '1 h 1 s'", rows=False)
    job = queue.get()
    assert (job.data, job.attempts) == ("a", 2)


@pytest.mark.parametrize("delay", [-1, "x", timedelta(seconds=-1), float("nan")])
def test_nack_refuses_an_invalid_delay(harness: Harness, delay: Any) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    before = rows(harness)
    with pytest.raises(ValueError):
        job.nack(delay)
    assert rows(harness) == before
    job.ack()


def test_nack_makes_the_token_invalid(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    job.nack()
    before = rows(harness)
    for late in LATE.values():
        with pytest.raises(LeaseLost):
            late(queue, job)
    assert rows(harness) == before


def test_popped_job_has_no_lease(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.get()
    before = rows(harness)
    for late in LATE.values():
        with pytest.raises(LeaseLost):
            late(queue, job)
    assert rows(harness) == before


def test_ack_succeeds_only_once(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    job.ack()
    with pytest.raises(LeaseLost):
        job.ack()
    assert queue.ack_many([job]) == [job]


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_ack_many_finishes_jobs_and_returns_lost_leases(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put_many(range(20))
    jobs = queue.lease_many(20)
    expire(harness)
    overtaken = [job.id for job in queue.lease_many(5)]
    queue.cancel(jobs[9].id)
    jobs[10].ack()
    lost = [job for job in jobs if job.id in overtaken or job in (jobs[9], jobs[10])]
    assert len(lost) == 7
    assert queue.ack_many(jobs) == lost
    assert queue.stats().leased == 5
    finished = rows(harness) if retention == "keep" else rows(harness, "_archive")
    assert len(finished) == {"keep": 19, "delete": 0, "archive": 14}[retention]
    assert queue.ack_many([]) == []


def test_ack_many_distinguishes_an_old_lease_from_a_new_one(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    old = queue.lease()
    expire(harness)
    new = queue.lease()
    assert queue.ack_many([old, new]) == [old]


def test_cancel_refuses_a_leased_job(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    assert queue.cancel(job.id) is False
    job.ack()
    assert queue.cancel(job.id) is False


def test_cancel_deletes_a_job_whose_lease_expired(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    expire(harness)
    assert queue.cancel(job.id) is True
    with pytest.raises(LeaseLost):
        job.ack()
    assert rows(harness) == []


def test_lease_in_a_transaction_is_undone_with_it(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    with pytest.raises(Undo), queue:
        undo(queue.lease())
    assert harness.sql("SELECT attempts, leased_until FROM {table}") == [(0, None)]
    with queue:
        job = queue.lease()
        assert job.attempts == 1
    assert queue.get(block=False) is None
    job.ack()


def test_ack_in_a_transaction_is_undone_with_it(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    before = rows(harness)
    with pytest.raises(Undo), queue:
        undo(queue.ack(job))
    assert rows(harness) == before
    with queue:
        job.ack()
    assert harness.sql("SELECT dequeued_at IS NOT NULL FROM {table}") == [(True,)]


def test_ack_on_the_callers_connection_commits_with_the_callers_transaction(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease()
    before = rows(harness)
    caller = harness.connect()
    caller.begin()
    queue.ack(job, connection=caller.raw)
    caller.rollback()
    assert rows(harness) == before
    caller.begin()
    assert queue.ack_many([job], connection=caller.raw) == []
    assert rows(harness) == before
    caller.commit()
    assert harness.sql("SELECT dequeued_at IS NOT NULL FROM {table}") == [(True,)]


def test_dead_consumer_loses_no_job(harness: Harness) -> None:
    consumer, other = harness.queue(), harness.queue(create=False)
    ids = consumer.put_many(range(5))
    consumer.lease_many(3)
    assert harness.cut_connections() >= 1
    assert [job.data for job in other.lease_many(5)] == [3, 4]
    expire(harness)
    again = other.lease_many(10)
    assert [(job.id, job.attempts) for job in again] == [(job_id, 2) for job_id in ids]
    assert other.ack_many(again) == []


def test_expired_lease_is_given_to_one_of_many_consumers(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(range(40))
    assert len(queue.lease_many(40)) == 40
    expire(harness)
    taken: Counter[tuple[int, int]] = Counter()
    start = threading.Barrier(20)

    def compete() -> None:
        start.wait(PATIENCE)
        while (job := queue.lease("1h", block=False)) is not None:
            taken[job.id, job.attempts] += 1

    threads = [threading.Thread(target=compete, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    left_over = {(job.id, job.attempts): 1 for job in queue.lease_many(40, "1h", block=False)}
    assert taken + Counter(left_over) == {(job, 2): 1 for job in ids}


def test_ack_in_a_block_starts_no_subtransaction(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(90))
    jobs = queue.lease_many(90, block=False)
    drawn = "SELECT pg_current_xact_id()::text::bigint"
    with queue:
        [[before]] = harness.sql_within(queue, drawn)
        for job in jobs[:30]:
            queue.ack(job)
        for job in jobs[30:60]:
            queue.extend(job, 60)
        for job in jobs[60:]:
            queue.nack(job)
    [[after]] = harness.sql(drawn)
    # each writing subtransaction draws an id, and other sessions of the server may draw some, too
    assert after - before < 45
