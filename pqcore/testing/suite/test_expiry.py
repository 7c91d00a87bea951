"""How long finished rows and dead letters are kept."""

from __future__ import annotations

from typing import Any

import pytest

from pqcore.errors import ConfigurationError, InvalidTimeSpec
from pqcore.operations.expiry import Sweep
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped

DAY = 86_400.0


def swept(harness: Harness, queue: Any) -> int:
    """Sweep once, as a worker does from time to time; return how many rows were deleted."""
    core = unwrapped(queue)
    return harness.wait_for(lambda: Sweep(core.name).run(core.engine))


def age(harness: Harness, interval: str, *ids: int) -> None:
    """Move the end or death of jobs into the past."""
    chosen = "{" + ",".join(map(str, map(int, ids))) + "}"
    for name, column in (("queue", "dequeued_at"), ("queue_archive", "dequeued_at"), ("queue_dead", "died_at")):
        harness.sql(
            f"UPDATE {TableName(name, harness.schema)} SET {column} = {column} - interval '{interval}'"
            f" WHERE id = ANY ('{chosen}'::bigint[])",
            rows=False,
        )


def kept(harness: Harness, name: str = "queue") -> list[int]:
    return [job for (job,) in harness.sql(f"SELECT id FROM {TableName(name, harness.schema)} ORDER BY id")]


def found(pq: Any) -> list[tuple[str | None, str, float | None, int]]:
    return [(one.queue, one.kind, one.seconds, one.deleted) for one in pq.expiry()]


def test_expiry_of_a_new_table_is_set_and_of_one_that_exists_left(harness: Harness) -> None:
    pq = harness.pq()
    assert found(pq) == [(None, "finished", 7 * DAY, 0), (None, "dead", 90 * DAY, 0)]
    pq.set_expiry(finished=None)
    pq.create(keep_finished="1d")
    assert found(pq)[0] == (None, "finished", None, 0)


def test_expiry_that_was_not_wanted_is_not_set(harness: Harness) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(InvalidTimeSpec):
        pq.create(keep_dead="soon")
    pq.create(keep_finished="1h", keep_dead=None)
    assert found(pq) == [(None, "finished", 3600.0, 0)]


@pytest.mark.parametrize("retention", ["keep", "archive"])
def test_finished_rows_are_deleted_once_they_are_older_than_they_are_kept(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    ids = queue.put_many(range(6))
    table = "queue" if retention == "keep" else "queue_archive"
    queue.get_many(4)
    assert swept(harness, queue) == 0
    age(harness, "8 days", *ids[:3])
    assert swept(harness, queue) == 3
    assert ids[3] in kept(harness, table)
    assert set(ids[4:]) <= set(kept(harness))
    assert len(queue) == 2
    assert found(harness.pq())[0] == (None, "finished", 7 * DAY, 3)
    assert swept(harness, queue) == 0


def test_rows_of_other_queues_and_rows_that_wait_stay(harness: Harness) -> None:
    queue, other = harness.queue("a"), harness.queue("b")
    mine, waits = queue.put(1), queue.put(2, schedule_at="1h")
    theirs = other.put(1)
    queue.get(), other.get()
    age(harness, "1 year", mine, theirs)
    assert swept(harness, queue) == 1
    assert kept(harness) == [waits, theirs]


def test_dead_letters_are_deleted_once_they_are_older_than_they_are_kept(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(range(3))
    for _ in ids:
        queue.get().bury("rotten")
    age(harness, "91 days", ids[0], ids[2])
    assert swept(harness, queue) == 2
    assert kept(harness, "queue_dead") == [ids[1]]
    assert found(harness.pq())[1] == (None, "dead", 90 * DAY, 2)


def test_expiry_of_a_queue_counts_before_that_of_all(harness: Harness) -> None:
    pq, queue, other = harness.pq(), harness.queue("a"), harness.queue("b")
    queue.set_expiry(finished="1m", dead=None)
    ids = [*queue.put_many([1, 2]), *other.put_many([1])]
    queue.get(), queue.get().bury("rotten"), other.get()
    age(harness, "100 days", ids[1])
    age(harness, "2 min", ids[0], ids[2])
    assert (swept(harness, queue), swept(harness, other)) == (1, 0)
    assert kept(harness, "queue_dead") == [ids[1]]
    assert found(pq)[2:] == [("a", "finished", 60.0, 1), ("a", "dead", None, 0)]


def test_rows_with_kept_results_and_of_open_batches_stay(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(keep_result="30d")
    def result(job_id: int) -> int:
        return 1

    @queue.task()
    def member(job_id: int) -> None: ...

    @queue.task()
    def over(job_id: int) -> None: ...

    handle = result()
    batch = queue.batch(member.call(), member.call(_schedule_at="1h"), then=over.call())
    harness.drain(queue)
    done = int(handle), int(batch.jobs[0])
    age(harness, "8 days", *done)
    assert swept(harness, queue) == 0
    assert set(done) <= set(kept(harness))
    results = TableName("queue_results", harness.schema)
    harness.sql(f"UPDATE {results} SET expires_at = statement_timestamp()", rows=False)
    harness.sql("UPDATE {table} SET schedule_at = statement_timestamp() WHERE dequeued_at IS NULL", rows=False)
    harness.drain(queue)
    assert swept(harness, queue) == 2


def test_rows_that_are_locked_are_skipped(harness: Harness) -> None:
    queue = harness.queue()
    first, second = queue.put_many([1, 2])
    queue.get_many(2)
    age(harness, "8 days", first, second)
    other = harness.connect()
    other.begin()
    other.sql(f"SELECT 1 FROM {harness.table} WHERE id = {int(first)} FOR UPDATE")
    assert swept(harness, queue) == 1
    other.rollback()
    assert swept(harness, queue) == 1


def test_sweep_goes_on_where_the_last_one_stopped(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = harness.queue()
    ids = queue.put_many(range(5_000))
    for _ in range(5):
        queue.get_many(1_000)
    age(harness, "8 days", *ids)
    core = unwrapped(queue)
    sweep = Sweep(core.name)
    monkeypatch.setattr("pqcore.operations.expiry.SWEEP", 1e-9)  # enough time for one statement
    numbers = [harness.wait_for(lambda: sweep.run(core.engine)) for _ in range(4)]
    assert numbers == [2_000, 2_000, 1_000, 0]


@pytest.mark.parametrize("times", [{}, {"finished": "soon"}, {"dead": -1}, {"finished": True}])
def test_expiry_of_a_bad_value_is_refused(harness: Harness, times: dict[str, Any]) -> None:
    pq = harness.pq()
    before = found(pq)
    with pytest.raises((ConfigurationError, InvalidTimeSpec)):
        pq.set_expiry(**times)
    assert found(pq) == before
