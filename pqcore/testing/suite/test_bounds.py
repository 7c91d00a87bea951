"""Consumers that take many jobs in succession begin at their last position, and miss no job."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from pqcore import scan_position
from pqcore.testing.harness import Harness
from pqcore.testing.undo import Undo

SUPPLY = 4_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let twenty jobs count as a succession, and a full look happen every tenth of a second."""
    monkeypatch.setattr(scan_position, "SUCCESSION", 20)
    monkeypatch.setattr(scan_position, "FULL_LOOK", 0.1)


def in_succession(harness: Harness, **options: Any) -> Any:
    """Return a queue with many jobs, of which enough were taken that the position is in use."""
    queue = harness.queue(retention="delete", **options)
    queue.put_many(["plain"] * SUPPLY)
    while not harness.bounded(queue):
        assert queue.get(block=False).data == "plain"
    return queue


def takes_until(queue: Any, data: str) -> int:
    """Return how many others are taken before the job with this data, which must come while others are left."""
    for number in range(SUPPLY):
        job = queue.get(block=False)
        if job is not None and job.data == data:
            assert len(queue) > 0
            return number
    raise AssertionError(data)


def test_scan_position_finds_a_job_put_before_it(harness: Harness) -> None:
    queue = in_succession(harness)
    queue.put("early", schedule_at="0s")
    harness.sql("UPDATE {table} SET schedule_at = now() - interval '1 day' WHERE schedule_at IS NOT NULL", rows=False)
    takes_until(queue, "early")


def test_scan_position_takes_jobs_before_it_in_order(harness: Harness) -> None:
    queue = in_succession(harness)
    queue.put_many([f"early {number}" for number in range(50)], schedule_at="0s")
    harness.sql("UPDATE {table} SET schedule_at = now() - interval '1 day' WHERE schedule_at IS NOT NULL", rows=False)
    takes_until(queue, "early 0")
    assert [queue.get(block=False).data for _ in range(49)] == [f"early {number}" for number in range(1, 50)]


def test_scan_position_finds_a_job_rolled_back_behind_it(harness: Harness) -> None:
    queue = in_succession(harness)
    other = harness.queue(retention="delete", create=False)
    with suppress(Undo), other:
        undone = other.get(block=False)
        for _ in range(5):
            queue.get(block=False)
        raise Undo
    assert harness.sql(f"SELECT id FROM {{table}} WHERE id = {undone.id}") == [(undone.id,)]
    for _ in range(SUPPLY):
        job = queue.get(block=False)
        assert job is not None
        if job.id == undone.id:
            break
    assert job.id == undone.id
    assert len(queue) > 0


def test_scan_position_takes_a_prioritised_job_soon(harness: Harness) -> None:
    queue = in_succession(harness)
    queue.put("later", expected_at="2h")
    takes_until(queue, "later")
    queue.put_many(["urgent"] * 30, expected_at="1h")
    queue.put("sooner", expected_at="0s")
    takes_until(queue, "sooner")


def test_scan_position_at_the_end_finds_jobs_before_it_immediately(harness: Harness) -> None:
    queue = in_succession(harness)
    queue.put("early", schedule_at="0s")
    harness.sql("UPDATE {table} SET schedule_at = now() - interval '1 day' WHERE schedule_at IS NOT NULL", rows=False)
    harness.sql("DELETE FROM {table} WHERE schedule_at IS NULL", rows=False)
    assert queue.get(block=False).data == "early"
    assert queue.get(block=False) is None


def test_scan_position_finds_an_expired_lease_behind_it(harness: Harness) -> None:
    queue = in_succession(harness)
    lost = queue.lease("1h", block=False)
    for _ in range(5):
        queue.get(block=False)
    harness.sql(
        "UPDATE {table} SET leased_until = clock_timestamp() - interval '1 s' WHERE leased_until IS NOT NULL",
        rows=False,
    )
    for _ in range(SUPPLY):
        job = queue.get(block=False)
        assert job is not None
        if job.id == lost.id:
            break
    assert (job.id, job.attempts) == (lost.id, 2)


def test_scan_position_is_dropped_after_a_pause(harness: Harness) -> None:
    queue = in_succession(harness)
    harness.eventually(lambda: not harness.bounded(queue))
    queue.put("early", schedule_at="0s")
    harness.sql("UPDATE {table} SET schedule_at = now() - interval '1 day' WHERE schedule_at IS NOT NULL", rows=False)
    assert queue.get(block=False).data == "early"


def test_scan_positions_of_several_consumers_take_each_job_once(harness: Harness) -> None:
    queue = in_succession(harness)
    others = [harness.queue(retention="delete", create=False) for _ in range(3)]
    left = len(queue)

    def drain(one: Any) -> list[int]:
        taken = []
        while (job := one.get(block=False)) is not None:
            taken.append(job.id)
        return taken

    with harness.thread(lambda: drain(others[0])) as first, harness.thread(lambda: drain(others[1])) as second:
        taken = drain(others[2]) + first() + second()
    assert len(taken) == len(set(taken)) == left
    assert len(queue) == 0
