"""The causes for which a job does not run: each is named, and after it is removed, the job runs."""

from __future__ import annotations

from typing import Any

import pytest

from pqcore.testing.harness import Harness


def codes(queue: Any, job_id: int) -> list[str]:
    """Return the causes that are found, without those about workers, because none runs here."""
    return [cause.code for cause in queue.explain(job_id).causes if cause.code != "no_worker"]


def test_explanation_of_a_job_behind_a_limit_names_the_jobs_that_hold_it(harness: Harness) -> None:
    queue = harness.queue()
    first, second = (queue.put(number, limits={"x": 1}) for number in range(2))
    held = queue.lease(60, block=False)
    found = queue.explain(second)
    assert (found.id, found.queue, found.state, found.position) == (second, "q", "parked", 0)
    assert (found.causes[0].code, found.causes[0].key, found.causes[0].jobs) == ("limit_full", "limit:x", (first,))
    assert found.text == f"{found.causes[0].text} {found.causes[0].action}"
    assert queue.lease(60, block=False) is None
    queue.ack(held)
    assert codes(queue, second) == []
    assert queue.explain(second).state == "ready"
    assert queue.lease(60, block=False).id == second


def test_explanation_of_a_job_behind_its_group_names_the_head(harness: Harness) -> None:
    queue = harness.queue()
    head, second = queue.put(1, "1h", group="g"), queue.put(2, group="g")
    assert [cause.jobs for cause in queue.explain(second).causes if cause.code == "group_scheduled"] == [(head,)]
    assert queue.lease(60, block=False) is None
    assert queue.cancel(head)
    assert codes(queue, second) == []
    assert queue.lease(60, block=False).id == second


def test_explanation_of_a_job_that_is_not_due_says_when_it_is(harness: Harness) -> None:
    queue = harness.queue()
    job_id = queue.put(1, "1h")
    found = queue.explain(job_id)
    assert codes(queue, job_id) == ["scheduled"]
    assert found.next_at == found.causes[0].until == queue.inspect(job_id).schedule_at
    assert queue.lease(60, block=False) is None
    assert queue.retry(job_id)
    assert codes(queue, job_id) == []
    assert queue.explain(job_id).next_at is None
    assert queue.lease(60, block=False).id == job_id


def test_explanation_of_a_job_that_is_gone_dead_or_of_another_queue_says_so(harness: Harness) -> None:
    pq = harness.pq()
    queue, other = pq["q"], pq["other"]
    assert codes(queue, 4711) == ["unknown_id"]
    job_id = queue.put(1)
    assert codes(other, job_id) == ["other_queue"]
    queue.bury(queue.lease(60, block=False), "worm")
    found = queue.explain(job_id)
    assert (found.state, found.causes[0].code) == ("dead", "dead_failed")
    assert "worm" in found.text
    assert queue.dead.retry(job_id)
    assert codes(queue, job_id) == []


@pytest.mark.read_committed
@pytest.mark.parametrize("what", ["job", "key"])
def test_explanation_names_a_transaction_that_is_open(harness: Harness, what: str) -> None:
    harness.needs_sessions()
    queue, other = harness.queue(), harness.pq(create=False)["q"]
    options = {"limits": {"x": 2}} if what == "key" else {}
    ids = [queue.put(number, **options) for number in range(2)]
    with other:
        taken = other.lease(60, block=False)
        [left] = {*ids} - {taken.id}
        job_id = left if what == "key" else taken.id
        assert codes(queue, job_id)[0] == ("key_locked" if what == "key" else "locked")
        assert job_id not in {job.id for job in queue.lease_many(9, 60, block=False)}
    expected = [] if what == "key" else ["leased_without_worker"]
    assert codes(queue, job_id) == expected
