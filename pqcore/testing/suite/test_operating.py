"""The work of an operator: looking at jobs by state, running one again, moving them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest

from pqcore import StoredJob
from pqcore.errors import ConfigurationError, InvalidTimeSpec
from pqcore.testing.harness import Harness


def test_jobs_are_listed_by_state(harness: Harness) -> None:
    queue = harness.queue()
    done, leased = queue.put("done"), queue.put("leased")
    assert queue.get().id == done
    assert queue.lease(60).id == leased
    later, second, first = queue.put(1, "1h"), queue.put(2), queue.put(3, expected_at="1s")
    assert [job.id for job in queue.jobs("ready")] == [first, second]
    assert [job.id for job in queue.jobs("scheduled", "ready")] == [later, first, second]
    assert {job.id for job in queue.jobs()} == {leased, later, first, second}
    assert [job.id for job in queue.jobs("ready", n=1)] == [first]
    [found] = queue.jobs("done")
    assert isinstance(found, StoredJob)
    assert (found.id, found.state, found.attempts, found.queue) == (done, "done", 1, "q")


def test_job_that_waits_under_a_limit_has_no_attempts_and_no_tokens(harness: Harness) -> None:
    queue = harness.queue()
    first, second = queue.put_many([1, 2], limits={"one": 1})
    leased = queue.lease()
    for _ in range(2):
        assert queue.lease(block=False) is None
    assert (queue.inspect(second).attempts, [job.attempts for job in queue.jobs("parked")]) == (0, [0])
    leased.ack()
    job = queue.lease()
    assert (job.id, job.attempts, job.token) == (second, 1, 1)
    assert (queue.inspect(second).attempts, [job.attempts for job in queue.jobs("leased")]) == (1, [1])
    job.nack()
    again = queue.lease()
    assert (again.attempts, queue.inspect(second).attempts) == (2, 2)
    again.bury("it is of no use")
    [letter] = queue.dead.list()
    assert (letter.attempts, queue.inspect(second).attempts, queue.jobs("dead")[0].attempts) == (2, 2, 2)
    assert (queue.inspect(first).attempts, queue.jobs("done")[0].attempts) == (1, 1)
    queue.dead.retry(second)
    assert (queue.inspect(second).attempts, queue.lease().attempts) == (0, 1)


def test_attempts_of_a_job_that_expired_unrun_are_none(harness: Harness) -> None:
    queue = harness.task_queue()
    queue.task(deadline=timedelta(seconds=-1))(lambda job_id: None)()
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.reason, letter.attempts, letter.crashes, queue.jobs("dead")[0].attempts) == ("expired", 0, 0, 0)


def test_job_list_refuses_bad_arguments(harness: Harness) -> None:
    queue = harness.queue()
    with pytest.raises(ConfigurationError, match="'lost' is not a state"):
        queue.jobs("lost")
    with pytest.raises(ConfigurationError, match="n is 0"):
        queue.jobs(n=0)
    with pytest.raises(InvalidTimeSpec):
        queue.jobs(older_than="soon")


def test_retry_runs_finished_and_scheduled_jobs_again(harness: Harness) -> None:
    queue = harness.queue()
    done, later, waits = queue.put("done"), queue.put("later", "1h"), None
    assert queue.get().id == done
    assert queue.retry(done) is True
    assert queue.retry(later) is True
    assert queue.retry(later + 1_000) is False
    assert [job.data for job in queue.get_many(5)] == ["done", "later"]
    waits = queue.put("waits")
    assert queue.retry(waits) is False
    leased = queue.lease(60)
    assert queue.retry(leased.id) is False


def test_jobs_are_moved_to_another_queue(harness: Harness) -> None:
    pq = harness.pq()
    queue, other = pq["q"], pq["other"]
    ids = queue.put_many(range(4))
    later = queue.put("later", "1h")
    leased = queue.lease(60).id
    assert queue.move("other", [ids[3], leased]) == 1
    assert queue.move(other, most=1) == 1
    assert [job.id for job in other.jobs()] == [ids[1], ids[3]]
    assert queue.move(other) == 2
    assert [job.id for job in other.jobs("scheduled")] == [later]
    assert [job.id for job in queue.jobs()] == [leased]


def test_move_in_a_transaction_is_undone_with_it(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    job_id = queue.put(1)
    with suppress(ZeroDivisionError), queue:
        assert queue.move("other") == 1
        raise ZeroDivisionError
    assert queue.get().id == job_id


def test_move_needs_another_queue_of_the_same_table(harness: Harness) -> None:
    queue = harness.queue()
    with pytest.raises(ConfigurationError, match="name another"):
        queue.move("q")
    with pytest.raises(ConfigurationError, match="is in"):
        queue.move(harness.pq(table="elsewhere")["q"])
    with pytest.raises(ConfigurationError, match="most is 0"):
        queue.move("other", most=0)
