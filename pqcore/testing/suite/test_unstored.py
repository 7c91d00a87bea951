"""Rows that a trigger drops, and numbers at their maximum: errors report them, and no queue stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pqcore.errors import LeaseLost, NotStored
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import TableName, quote
from pqcore.testing.harness import Harness

MOST = 2**31 - 1


def beside(harness: Harness, suffix: str) -> str:
    """Return the name of a table that belongs to the queue's."""
    return TableName("queue", harness.schema).related(suffix)


def leave_out(harness: Harness, suffix: str = "", condition: str = "true") -> Callable[[], Any]:
    """Make a trigger that drops rows of a table; yield a function that removes it."""
    schema = quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        rows=False,
    )
    table = beside(harness, suffix)
    harness.sql(
        f"CREATE TRIGGER leaves_out BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition})"
        f" EXECUTE FUNCTION {schema}.leave_out()",
        rows=False,
    )
    return lambda: harness.sql(f"DROP TRIGGER leaves_out ON {table}", rows=False)


def count(harness: Harness, suffix: str = "") -> int:
    [[number]] = harness.sql(f"SELECT count(*) FROM {beside(harness, suffix)}")
    return int(number)


def task(queue: Any, **options: Any) -> Any:
    """Return a task that returns its argument, or fails."""

    def give(job_id: int, value: int) -> int:
        if value < 0:
            raise ArithmeticError
        return value

    return queue.task(**options)(give)


PUTS: dict[str, Callable[[Any], Any]] = {
    "put": lambda queue: queue.put(2),
    "timed": lambda queue: queue.put(2, "1h"),
    "group": lambda queue: queue.put(2, group="g"),
    "key": lambda queue: queue.put(2, dedup="key"),
    "key for a time": lambda queue: queue.put(2, dedup=Dedup("key", until="1h")),
    "many": lambda queue: queue.put_many([1, 2, 3]),
    "many encoded": lambda queue: queue.put_many([b"1", b"2"]),
    "calls": lambda queue: queue.put_calls(task(queue).call(1), task(queue).call(2)),
    "calls with options": lambda queue: queue.put_calls(
        task(queue).options(dedup="key").call(1), task(queue).options(dedup=Dedup("key", "1h"), priority=1).call(2)
    ),
    "batch": lambda queue: queue.batch(task(queue).call(2), then=task(queue).call(3)),
}


@pytest.mark.parametrize("way", PUTS)
def test_put_that_a_trigger_drops_raises_not_stored(harness: Harness, way: str) -> None:
    pq = harness.tasks()
    queue = pq.queue("q", serializer="pickle", accept=["json"]) if way == "many encoded" else pq["q"]
    end = leave_out(harness)
    put = PUTS[way]
    with pytest.raises(NotStored, match=r"stored nothing|no job was put") as caught:
        put(queue)
    assert "leaves_out" in str(caught.value)
    assert (count(harness), count(harness, "_batches"), count(harness, "_dedup")) == (0, 0, 0)
    with queue:
        queue_error: type[Exception] | None = None
        try:
            put(queue)
        except NotStored as exc:
            queue_error = type(exc)
        assert queue_error is NotStored
        assert queue.count() == 0, "the transaction goes on"
    end()
    put(queue)
    assert count(harness) >= 1


def test_put_many_of_which_a_trigger_drops_one_puts_none(harness: Harness) -> None:
    queue = harness.queue()
    end = leave_out(harness, condition="NEW.data::text = '2'")
    with pytest.raises(NotStored):
        queue.put_many([1, 2, 3])
    assert count(harness) == 0
    end()
    assert len(queue.put_many([1, 2, 3])) == 3


def change_rows(harness: Harness, change: str) -> Callable[[], Any]:
    """Make a trigger that changes each row that is put; yield a function that removes it."""
    schema, table = quote(harness.schema), beside(harness, "")
    harness.sql(
        f"CREATE FUNCTION {schema}.change_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change};"
        " RETURN NEW; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER changes_row BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}.change_row()",
        rows=False,
    )
    return lambda: harness.sql(f"DROP TRIGGER changes_row ON {table}", rows=False)


CHANGED_IDS = {
    "reversed": "1000000 - NEW.id",
    "swapped": "NEW.id # 1",
    "scattered": "NEW.id * 3000000019 % 999999937",
    "far apart": "NEW.id + 3000000000 * (NEW.id % 2)",
    "above a thousand million": "NEW.id + 999999990",
    "below nothing": "NEW.id - 10",
    "very large": "9000000000000000000 - NEW.id",
    "of both signs": "(9000000000000000000 - NEW.id) * (1 - 2 * (NEW.id % 2))",
}


@pytest.mark.parametrize("ids", CHANGED_IDS)
def test_put_many_returns_each_rows_own_id_when_a_trigger_changes_ids(harness: Harness, ids: str) -> None:
    queue = harness.queue()
    change_rows(harness, f"NEW.id := {CHANGED_IDS[ids]}")
    put = queue.put_many(range(25))
    stored = harness.sql(f"SELECT id, data::text::int FROM {beside(harness, '')}")
    assert dict(zip(put, range(25), strict=True)) == {int(job_id): number for job_id, number in stored}
    assert [job.data for job in queue.get_many(25)] == [*range(25)], "in the order of the items, whatever the ids"
    assert [queue.put(1) for _ in range(3)] == [job.id for job in queue.get_many(3)]


@pytest.mark.parametrize("step", [-1, -3, 2])
def test_put_many_returns_ids_in_the_order_of_the_items_whatever_the_sequence(harness: Harness, step: int) -> None:
    queue = harness.queue()
    [[sequence]] = harness.sql(f"SELECT pg_get_serial_sequence('{beside(harness, '')}', 'id')")
    harness.sql(f"ALTER SEQUENCE {sequence} INCREMENT BY {step} MINVALUE 1 START 5000 RESTART 5000", rows=False)
    assert queue.put_many(range(10)) == [*range(5000, 5000 + 10 * step, step)]
    assert [job.data for job in queue.get_many(10)] == [*range(10)]


@pytest.mark.parametrize("ids", ["reversed", "swapped", "scattered"])
def test_handles_of_calls_that_are_put_together_are_each_of_their_own_job(harness: Harness, ids: str) -> None:
    queue = harness.tasks()["q"]
    double = task(queue, keep_result="1h")
    change_rows(harness, f"NEW.id := {CHANGED_IDS[ids]}")
    handles = queue.put_calls(*(double.call(number) for number in range(12)))
    stored = harness.sql(f"SELECT id, enqueued_at FROM {beside(harness, '')}")
    assert {(int(handle), handle.put_at) for handle in handles} == {(int(job_id), put_at) for job_id, put_at in stored}
    assert [handle.status() for handle in handles] == ["ready"] * 12
    harness.drain(queue)
    assert [handle.result(timeout=5) for handle in handles] == [*range(12)]


@pytest.mark.parametrize("condition", ["NEW.id % 3 = 0", "NEW.data::text::int % 3 = 0"])
def test_put_many_of_which_a_trigger_drops_every_third_row_puts_none(harness: Harness, condition: str) -> None:
    queue = harness.queue()
    end = leave_out(harness, condition=condition)
    with pytest.raises(NotStored, match="leaves_out"):
        queue.put_many(range(9))
    with queue:
        with pytest.raises(NotStored, match="leaves_out"):
            queue.put_many(range(9))
        queue.put(1)
    assert count(harness) == 1
    end()
    assert len(queue.put_many(range(9))) == 9


@pytest.mark.parametrize("times", ["now()", "NEW.enqueued_at + NEW.data::text::int * interval '1 second'"])
def test_put_many_whose_times_a_trigger_changes_puts_none(harness: Harness, times: str) -> None:
    queue = harness.queue()
    end = change_rows(harness, f"NEW.enqueued_at := {times}")
    with pytest.raises(NotStored, match="changes enqueued_at"):
        queue.put_many([1, 2, 3])
    with queue, pytest.raises(NotStored, match="changes enqueued_at"):
        queue.put_many([1, 2, 3])
    assert count(harness) == 0
    queue.put(1)
    end()
    assert len(queue.put_many([1, 2, 3])) == 3


def test_put_many_whose_times_a_trigger_moves_together_returns_the_ids(harness: Harness) -> None:
    queue = harness.queue()
    change_rows(harness, "NEW.enqueued_at := NEW.enqueued_at - interval '1 hour'")
    put = queue.put_many([1, 2, 3])
    assert [(job.id, job.data) for job in queue.get_many(3)] == [*zip(put, [1, 2, 3], strict=True)]


@pytest.mark.parametrize("way", ["get", "ack", "worker"])
def test_job_that_a_trigger_keeps_out_of_the_archive_is_delivered(harness: Harness, way: str) -> None:
    queue = harness.tasks().queue("q", retention="archive")
    leave_out(harness, "_archive")
    kept = task(queue, keep_result="1h")(7)
    if way == "get":
        assert queue.get(block=False).id == kept
    elif way == "ack":
        queue.ack(queue.lease(60))
    else:
        harness.drain(queue)
        assert kept.result(1) == 7
    assert (count(harness), count(harness, "_archive"), queue.dead.count()) == (0, 0, 0)


def test_dead_letter_that_a_trigger_drops_delays_no_other_job(harness: Harness) -> None:
    queue = harness.task_queue()
    leave_out(harness, "_dead")
    give = task(queue, keep_result="1h")
    give(-1)
    other = give(1)
    harness.drain(queue)
    assert other.result(1) == 1
    assert (queue.count(), queue.dead.count()) == (0, 0)


def test_dead_letters_stay_when_a_trigger_drops_their_retry(harness: Harness) -> None:
    queue = harness.task_queue()
    give = task(queue)
    first = give(-1)
    give(-2)
    harness.drain(queue)
    end = leave_out(harness, condition="NEW.data::text LIKE '%[-1]%'")
    for attempt in (queue.dead.retry_all, lambda: queue.dead.retry(int(first))):
        with pytest.raises(NotStored, match="leaves_out"):
            attempt()
        assert (queue.dead.count(), count(harness)) == (2, 0)
    end()
    assert queue.dead.retry_all() == 2


def at_most(harness: Harness, job: int, *columns: str) -> None:
    """Set numbers of a job to their maximum."""
    changes = ", ".join(f"{column} = {MOST}" for column in columns)
    harness.sql(f"UPDATE {{table}} SET {changes} WHERE id = {int(job)}", rows=False)


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_job_with_maximum_attempts_is_taken(harness: Harness, retention: str) -> None:
    queue = harness.pq().queue("q", retention=retention)
    first, second, third = queue.put_many([1, 2, 3])
    at_most(harness, first, "attempts")
    at_most(harness, second, "attempts")
    assert [queue.get(block=False).data, queue.lease(60).data, queue.get(block=False).data] == [1, 2, 3]
    assert third == second + 1


def test_leases_at_maximum_attempts_have_distinct_tokens(harness: Harness) -> None:
    queue = harness.queue()
    job = queue.put(1)
    harness.sql(f"UPDATE {{table}} SET attempts = {MOST - 1}, failures = {MOST}, excused = {MOST}", rows=False)
    leases = []
    for _ in range(3):
        leases.append(queue.lease(60))
        harness.expire()
    assert [lease.id for lease in leases] == [job] * 3
    assert [lease.token for lease in leases] == [MOST, 1, 2]
    for late in leases[:2]:
        with pytest.raises(LeaseLost):
            late.ack()
    leases[2].ack()


@pytest.mark.parametrize("columns", [("attempts",), ("failures",), ("excused",), ("attempts", "failures", "excused")])
@pytest.mark.parametrize("way", ["done", "fails", "limit"])
def test_worker_completes_other_jobs_beside_one_with_maximum_counts(
    harness: Harness, columns: tuple[str, ...], way: str
) -> None:
    queue = harness.task_queue()
    give = task(queue, keep_result="1h", max_retries=1, retry_in=0, **({"limits": {"k": 1}} if way == "limit" else {}))
    odd = give(-1 if way == "fails" else 1)
    at_most(harness, odd, *columns)
    others = [give(number) for number in range(3)]
    harness.drain(queue)
    assert [other.result(1) for other in others] == [0, 1, 2]
    [[waiting]] = harness.sql("SELECT count(*) FROM {table} WHERE dequeued_at IS NULL")
    assert waiting == 0
