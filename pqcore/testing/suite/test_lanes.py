"""Shares, priorities and several keys: which job is leased next, whatever waits."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from pqcore import NewJob, lane_book
from pqcore.errors import ConfigurationError, InvalidName
from pqcore.operations import fetch
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.statement_names import noted_statements
from pqcore.worker import newcomers
from pqcore.worker.state import QueueState

# Priorities


def test_jobs_of_a_higher_priority_are_leased_first(harness: Harness) -> None:
    queue = harness.queue()
    for data, priority in (("plain", 0), ("low", -1), ("high", 7), ("higher", 8), ("high, too", 7), ("plain, too", 0)):
        queue.put(data, priority=priority)
    order = [queue.lease(60, wait=0).data for _ in range(6)]
    assert order == ["higher", "high", "high, too", "plain", "plain, too", "low"]


def test_get_and_peek_give_jobs_by_priority(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("plain")
    queue.put_many(["a", "b"], priority=2)
    queue.put("urgent", None, "0s", priority=1)
    queue.put("low", priority=-2)
    order = ["a", "b", "urgent", "plain", "low"]
    assert [job.data for job in queue.peek(9)] == order
    assert queue.count() == 5
    assert [queue.get(block=False).data for _ in range(5)] == order


def test_get_many_gives_jobs_by_priority(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("urgent", None, "0s")
    queue.put("first", None, "0s", priority=2)
    queue.put_many(["second", "third"], priority=2)
    assert [job.data for job in queue.get_many(9, block=False)] == ["first", "second", "third", "urgent"]


def test_priority_comes_before_the_expected_time_within_a_limit(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("soon", None, "0s", limits={"one": 1})
    queue.put("important", priority=1, limits={"one": 1})
    for data in ("important", "soon"):
        job = queue.lease(60, wait=0)
        assert job.data == data
        assert queue.lease(60, wait=0) is None
        job.ack()


def test_priority_holds_for_a_job_that_comes_due(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("later", "1h", priority=5)
    queue.put("plain")
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE schedule_at IS NOT NULL", rows=False)
    assert [queue.lease(60, wait=0).data for _ in range(2)] == ["later", "plain"]


def test_job_that_comes_due_has_its_turn_before_a_backlog_of_others(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("urgent", "1h", priority=5)
    queue.put("of a tenant", "1h", tenant="small")
    queue.put_many(["plain"] * 3_000)
    harness.sql("UPDATE {table} SET schedule_at = clock_timestamp() WHERE schedule_at IS NOT NULL", rows=False)
    assert {queue.lease(60, wait=0).data for _ in range(3)} == {"urgent", "of a tenant", "plain"}


def test_lease_of_many_gives_all_that_came_due(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["later"] * 3_000, "1h", priority=5)
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE schedule_at IS NOT NULL", rows=False)
    queue.put_many(["plain"] * 5)
    jobs = queue.lease_many(4_000, 60, block=False)
    assert [job.data for job in jobs] == ["later"] * 3_000 + ["plain"] * 5


def test_lease_gives_jobs_where_another_cannot_be_made_to_wait_on_its_lane(harness: Harness) -> None:
    queue, schema = harness.queue(), harness.schema
    queue.put("plain")
    queue.put("limited", "1h", limits={"one": 1})
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE schedule_at IS NOT NULL", rows=False)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '40P01'; END $$",
        rows=False,
    )
    harness.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW"
        f" WHEN (NEW.parked_on LIKE '[%') EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )
    assert [job.data for job in queue.lease_many(5, 60, block=False)] == ["plain"]
    harness.sql("DROP TRIGGER refuse ON {table}", rows=False)
    assert queue.lease(60, timeout=PATIENCE).data == "limited"


@pytest.mark.parametrize("priority", [1.5, "1", True, 10**7, -(10**7)])
def test_priority_of_a_bad_value_is_refused(harness: Harness, priority: Any) -> None:
    queue = harness.queue()
    for attempt in (partial(queue.put, 1), partial(queue.put_many, [1])):
        with pytest.raises(ConfigurationError, match="priority"):
            attempt(priority=priority)
    assert queue.count() == 0


def test_task_computes_its_tenant_and_priority_from_arguments(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(tenant=lambda user: f"tenant-{user}", priority=lambda user: user)
    def work(job_id: int, user: int) -> None:
        pass

    for user in (1, 3, 2):
        work(user)
    taken = [queue.lease(60, wait=0) for _ in range(3)]
    assert sorted(job.headers["gate"]["share"] for job in taken) == ["tenant-1", "tenant-2", "tenant-3"]
    assert sorted(job.headers["gate"]["priority"] for job in taken) == [1, 2, 3]


# Shares


def test_tenants_are_served_in_turn(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(50), tenant="large")
    for tenant in ("a", "b"):
        queue.put_many(range(2), tenant=tenant)
    queue.put_many(range(3))
    turns = [queue.lease(60, wait=0).headers.get("gate", {}).get("share") for _ in range(8)]
    assert Counter(turns[:4]) == {"large": 1, "a": 1, "b": 1, None: 1}
    assert Counter(turns[4:]) == {"large": 1, "a": 1, "b": 1, None: 1}


def test_tenant_alone_has_all_turns(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(9), tenant="only")
    assert [job.data for job in queue.lease_many(20, 60, wait=0)] == list(range(9))


def test_tenant_that_comes_later_waits_for_one_round_and_has_saved_up_no_turns(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(100), tenant="large")
    assert len(queue.lease_many(40, 60, wait=0)) == 40
    queue.put_many(range(10), tenant="late")
    harness.eventually(lambda: unwrapped(queue).lanes.must_find(float("inf")))
    queue = harness.queue(create=False)
    turns = Counter(queue.lease(60, wait=0).headers["gate"]["share"] for _ in range(8))
    assert turns == {"large": 4, "late": 4}


def test_job_of_another_tenant_is_leased_next_although_many_keys_are_new(harness: Harness) -> None:
    queue, consumer = harness.queue(), harness.queue(create=False)
    queue.put_many([NewJob("large", limits={f"key {n}": 1}, tenant="large") for n in range(400)])
    book = unwrapped(consumer).lanes
    while len(book.lanes) < 400:
        assert consumer.lease(60, wait=0).data == "large"
    queue.put("small", limits={"other": 1}, tenant="small")
    book.hurry()  # so that the next lease looks for lanes
    assert "small" in [job.data for job in consumer.lease_many(20, 60, block=False)]


def test_tenants_divide_a_take_of_many_jobs(harness: Harness) -> None:
    queue = harness.queue()
    for tenant in "abcd":
        queue.put_many(range(30), tenant=tenant)
    jobs = queue.lease_many(20, 60, wait=0)
    assert Counter(job.headers["gate"]["share"] for job in jobs) == dict.fromkeys("abcd", 5)


@pytest.mark.parametrize("tenant", ["", 5, b"t", "\0", "t" * 501])
def test_tenant_of_a_bad_value_is_refused(harness: Harness, tenant: Any) -> None:
    queue = harness.queue()
    for attempt in (partial(queue.put, 1), partial(queue.put_many, [1])):
        with pytest.raises((ConfigurationError, InvalidName)):
            attempt(tenant=tenant)
    assert queue.count() == 0


def test_job_behind_a_large_backlog_of_another_key_is_leased_next(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(5_000), limits={"large": 2})
    assert len(queue.lease_many(20, 60, wait=0)) == 2
    queue.put("other", limits={"other": 2})
    assert queue.lease(60, wait=PATIENCE).data == "other"


def show_hidden(harness: Harness, queue: Any) -> None:
    """Show the jobs that the test has hidden, as if they were put now."""
    harness.sql(f"UPDATE {{table}} SET q_name = '{queue.name}' WHERE q_name = 'hidden'", rows=False)


def order_with_a_late_job(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, jobs: Sequence[str], late: str, during: str
) -> list[str]:
    """Return the order in which a worker with one slot runs jobs; the last one becomes visible during a take.

    Args:
        harness: The harness.
        monkeypatch: The fixture.
        jobs: The jobs; the first word of each is its tenant.
        late: The job that no take sees before.
        during: The job that the take leases.
    """
    queue = harness.task_queue()
    seen: list[str] = []

    @queue.task(tenant=lambda job: job.split()[0])
    async def note(job_id: int, job: str) -> None:
        seen.append(job)

    queue.put_calls(*[note.call(job) for job in (*jobs, late)])
    harness.sql(f"UPDATE {{table}} SET q_name = 'hidden' WHERE data::text LIKE '%{late}%'", rows=False)

    def show(name: str, rows: Any) -> None:
        if "take" in name and f'"{during}"' in str([row[1] for row in rows]):
            show_hidden(harness, queue)

    noted_statements(monkeypatch, then=show)
    monkeypatch.setattr(newcomers, "LONGEST_AHEAD", -1.0)
    harness.drain(queue, concurrency=1)
    assert {attempts for (attempts,) in harness.sql("SELECT attempts - coalesce(excused, 0) FROM {table}")} == {1}
    return seen


def test_job_of_another_tenant_that_comes_during_a_take_gets_the_slot(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ["large 1", "large 2", "large 3"]
    assert order_with_a_late_job(harness, monkeypatch, jobs, "small 1", "large 1") == ["small 1", *jobs]


def test_late_job_of_a_tenant_takes_no_slot_from_a_tenant_that_was_served_less(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ["large 1", "small 1", "large 2"]
    assert order_with_a_late_job(harness, monkeypatch, jobs, "large 3", "small 1") == [*jobs, "large 3"]


# Keys without a row


def test_keys_of_all_waiting_jobs_get_their_rows_together(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = harness.task_queue()
    seen: list[int] = []

    @queue.task(limits=lambda number: {f"key {number}": 1})
    async def note(job_id: int, number: int) -> None:
        seen.append(number)

    queue.put_calls(*[note.call(number) for number in range(20)])
    names = noted_statements(monkeypatch)
    harness.drain(queue, concurrency=1)
    assert sorted(seen) == list(range(20))
    assert names.count("create_keys") == 1


def test_statement_that_ends_a_job_leases_a_job_under_a_new_key(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_book, "FIND", 0.0)
    queue = harness.queue()
    queue.put(1, limits={"first": 1})
    job = queue.lease(60, wait=0)
    second = queue.put(2, limits={"second": 1})
    ending = partial(fetch.end_and_take, queue.engine, unwrapped(queue), [unwrapped(job)], 1, 60.0)
    lost, taken = harness.wait_for(ending)
    assert (lost, [row.id for row in taken.rows]) == ([], [second])


def test_slow_statement_does_not_hold_back_the_ends_of_later_jobs(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueState, "note_turnaround", lambda state, _: setattr(state, "turnaround", math.inf))
    monkeypatch.setattr(QueueState, "note_run", lambda state, _: setattr(state, "longest", 10 * PATIENCE))
    queue = harness.task_queue()

    @queue.task(limits={"one": 1})
    async def work(job_id: int) -> None:
        pass

    queue.put_calls(*[work.call()] * 3)
    harness.drain(queue, concurrency=1)
    assert queue.count() == 0


# Several keys


def test_job_under_two_limits_has_its_turn_though_each_is_always_in_use(harness: Harness) -> None:
    queue = harness.queue()
    for key in ("x", "y"):
        queue.put_many([key] * 20_000, limits={key: 1})
    queue.put("both", limits={"x": 1, "y": 1})
    running = queue.lease_many(2, 600, wait=0)
    assert sorted(job.data for job in running) == ["x", "y"]
    seen: list[str] = []
    until = time.monotonic() + PATIENCE
    while "both" not in seen:
        queue.ack(running.pop(0))  # never both at the same time
        job = queue.lease(600, wait=0.05)
        if job is not None:
            seen.append(job.data)
            running.append(job)
        elif not running:
            job = queue.lease(600, wait=PATIENCE)
            seen.append(job.data)
            running.append(job)
        assert time.monotonic() < until
    queue.ack_many(running)
    assert queue.lease(60, wait=PATIENCE) is not None
