"""Consumers that take many jobs in succession begin at their last position, and miss no job."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import pytest

from pqcore import scan_position
from pqcore.testing.harness import Harness
from pqcore.testing.statement_names import noted_statements
from pqcore.testing.undo import Undo

SUPPLY = 4_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let twenty jobs count as a succession, and a full look happen every tenth of a second, even if looks are slow."""
    monkeypatch.setattr(scan_position, "SUCCESSION", 20)
    monkeypatch.setattr(scan_position, "FULL_LOOK", 0.1)
    monkeypatch.setattr(scan_position, "SPARING", 1)


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


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look from the head count as costly, and let no other follow for a minute."""
    for name, value in {"SUCCESSION": 10**9, "COSTLY": 0.0, "QUICK": -1.0, "FULL_LOOK": 30.0}.items():
        monkeypatch.setattr(scan_position, name, value)
    monkeypatch.setattr(scan_position, "SPARING", 10**9)
    monkeypatch.setattr(scan_position, "LONGEST_PAUSE", 60.0)


def hide(harness: Harness, data: str) -> None:
    """Hide the job with this data from all looks."""
    harness.sql(f"UPDATE {{table}} SET q_name = 'hidden' WHERE data::text LIKE '%{data}%'", rows=False)


def show_before_the_position(harness: Harness, queue: Any) -> None:
    """Show the hidden job, with a time that looks from the queue's position do not find."""
    earlier = f"UPDATE {{table}} SET q_name = '{queue.name}', enqueued_at = enqueued_at - interval '1 day'"
    harness.sql(f"{earlier} WHERE q_name = 'hidden'", rows=False)


@pytest.mark.usefixtures("costly")
def test_costly_looks_are_spared_before_many_jobs_were_taken(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["first", "early", "second", "third"])
    hide(harness, "early")
    assert queue.get(block=False).data == "first"
    assert harness.bounded(queue)
    show_before_the_position(harness, queue)
    assert [queue.get(block=False).data for _ in range(3)] == ["second", "third", "early"]
    assert queue.get(block=False) is None


@pytest.mark.usefixtures("costly")
@pytest.mark.parametrize("limits", [None, {"many": 1}])
def test_burst_worker_stops_only_after_a_look_from_the_head(harness: Harness, limits: dict[str, int] | None) -> None:
    queue = harness.task_queue()
    seen: list[str] = []

    @queue.task(limits=limits)
    async def note(job_id: int, text: str) -> None:
        seen.append(text)
        if text == "first":
            show_before_the_position(harness, queue)

    queue.put_calls(note.call("first"), note.call("early"))
    hide(harness, "early")
    harness.drain(queue, concurrency=1)
    assert seen == ["first", "early"]


def limited_in_succession(harness: Harness) -> tuple[Any, Any]:
    """Return a queue of which enough limited jobs were taken in succession, and a leased job without limits."""
    queue = harness.queue(retention="delete")
    queue.put("plain")
    plain = queue.lease(block=False)
    queue.put_many(["limited"] * SUPPLY, limits={"many": SUPPLY})
    while queue.lanes.out_within(monotonic()) is None:
        queue.lease(block=False).ack()
    harness.expire()
    return queue, plain


def test_expired_lease_is_found_by_a_consumer_of_limited_jobs_in_succession(harness: Harness) -> None:
    queue, plain = limited_in_succession(harness)
    for _ in range(SUPPLY):
        job = queue.lease(block=False)
        if job.id == plain.id:
            break
        job.ack()
    assert (job.id, job.attempts) == (plain.id, 2)
    assert len(queue) > 0


def test_expired_lease_is_found_immediately_when_no_limited_job_is_left(harness: Harness) -> None:
    queue, plain = limited_in_succession(harness)
    harness.sql("DELETE FROM {table} WHERE parked_on IS NOT NULL", rows=False)
    assert queue.lease(block=False).id == plain.id


def test_slow_look_for_expired_leases_is_not_repeated_soon_by_a_take_that_finds_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, plain = limited_in_succession(harness)
    monkeypatch.setattr(scan_position, "SPARING", 1_000)
    queue.pause(limit="many")
    now = monotonic()
    queue.lanes.looked_for_hidden(None, now - 0.01, now, found=False)
    assert queue.lease(block=False) is None
    assert 0.0 < queue.lanes.hidden_look_in(monotonic()) < scan_position.LONGEST_PAUSE
    queue.lanes.looked_for_hidden(None, now, now, found=False)
    assert queue.lease(block=False).id == plain.id


def test_slow_question_for_the_next_job_is_not_repeated_soon(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    names = noted_statements(monkeypatch)
    queue = harness.queue(retention="delete")
    queue.put_many([1, 2], limits={"one": 1})
    job = queue.lease(block=False)
    queue.lanes.probes.note(monotonic(), 60.0)
    names.clear()
    assert queue.lease(block=False) is None
    assert "next_due_probe" not in names
    queue.lanes.probes.note(monotonic(), 0.001)
    assert queue.lease(block=False) is None
    assert "next_due_probe" in names
    job.ack()
    assert queue.lease(block=False).data == 2


def test_slow_look_from_the_head_is_not_repeated_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_position, "SPARING", 20)
    looks = scan_position.FullLooks()
    due = partial(looks.is_due, taken=scan_position.SUCCESSION, last=float("inf"))
    assert due(0.0)
    looks.note(10.0, 0.001)
    assert [due(10.0 + wait) for wait in (0.05, 0.11)] == [False, True]
    looks.note(10.0, 0.2)
    assert [due(10.0 + wait) for wait in (3.9, 4.1)] == [False, True]
    looks.note(10.0, 100.0)
    assert [due(10.0 + wait) for wait in (29.9, 30.1)] == [False, True]


def test_look_from_the_head_after_one_that_missed_waits_only_if_the_last_was_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan_position, "SPARING", 20)
    looks = scan_position.FullLooks()
    assert looks.due_in(0.0, missed=True) == 0.0
    looks.note(10.0, 0.001)
    assert looks.due_in(10.0, missed=True) == 0.0
    looks.note(10.0, 0.2)
    assert looks.due_in(11.0, missed=True) == pytest.approx(3.0)
