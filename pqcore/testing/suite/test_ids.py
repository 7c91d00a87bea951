"""Ids that repeat: after logical replication, a restore of rows alone, or TRUNCATE ... RESTART IDENTITY."""

from __future__ import annotations

from typing import Any

import pytest

from pqcore.errors import IdTaken, JobNotFound, ResultTimeout
from pqcore.operations import move, results
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped


def beside(harness: Harness, suffix: str) -> str:
    """Return the name of a table that belongs to the queue's."""
    return TableName("queue", harness.schema).related(suffix)


def begin_again(harness: Harness, at: int = 1, suffix: str = "") -> None:
    """Make ids repeat, from one on."""
    harness.sql(f"SELECT setval(pg_get_serial_sequence('{beside(harness, suffix)}', 'id'), {at}, false)")


def ids(harness: Harness, suffix: str = "") -> list[int]:
    """Return the ids in a table, in order."""
    return [row[0] for row in harness.sql(f"SELECT id FROM {beside(harness, suffix)} ORDER BY id")]


class Broken(Exception):
    """The exception that a task here raises."""


def task(queue: Any, **options: Any) -> Any:
    """Return a task that returns its argument."""

    def give(job_id: int, value: str) -> str:
        if value == "broken":
            raise Broken
        return value

    return queue.task(**options)(give)


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_result_is_not_that_of_an_older_job_with_the_same_id(harness: Harness, retention: str) -> None:
    queue = harness.tasks().queue("q", retention=retention)
    kept = task(queue, keep_result="1h")
    old = kept("of the old one")
    harness.drain(queue)
    assert old.result(1) == "of the old one"
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    harness.sql(f"TRUNCATE {beside(harness, '_archive')}", rows=False)
    new = kept("of the new one")
    assert int(new) == int(old)
    with pytest.raises(ResultTimeout, match="was still ready"):
        new.result(0)
    assert (new.status(), new.progress()) == ("ready", None)
    harness.drain(queue)
    assert new.result(1) == "of the new one"


def test_result_that_is_not_kept_is_not_that_of_an_older_job(harness: Harness) -> None:
    queue = harness.task_queue()
    task(queue, keep_result="1h")("of the old one")
    harness.drain(queue)
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    new = task(queue)("of the new one")
    for _ in range(2):
        with pytest.raises(JobNotFound, match="keep_result"):
            new.result(1)
        harness.drain(queue)
    assert new.status() == "done"


def test_progress_and_result_are_not_those_of_an_older_job(harness: Harness) -> None:
    queue = harness.task_queue()
    kept = task(queue, keep_result="1h")
    old = kept("of the old one")
    harness.drain(queue)
    harness.sql(f"UPDATE {beside(harness, '_results')} SET progress = '50'", rows=False)
    assert old.progress() == 50
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    new = kept("of the new one")
    assert new.progress() is None
    job = queue.lease(60)
    core = unwrapped(queue)
    harness.wait_for(lambda: results.report_progress(core.engine, core, unwrapped(job), "75"))
    assert new.progress() == 75
    with pytest.raises(ResultTimeout, match="was still leased"):
        new.result(0)


def test_result_is_found_after_the_servers_clock_was_set_back(harness: Harness) -> None:
    queue = harness.task_queue()
    job_id = int(task(queue, keep_result="1h")("mine"))
    harness.sql("UPDATE {table} SET enqueued_at = enqueued_at + interval '1 day', schedule_at = now()", rows=False)
    harness.drain(queue)
    assert queue.result(job_id, 1) == "mine"


def put_in_each_way(queue: Any, text: str) -> list[Any]:
    """Return a handle from each kind of put, for jobs that keep their results."""
    give = task(queue, keep_result="1h")
    call = give.call(text)
    return [
        give(text),
        give(text, _schedule_at="0s"),
        give(text, _headers={"a": "b"}),
        give(text, _dedup="key"),
        give(text, _dedup="key"),
        give(text, _dedup=Dedup("replaced", on_conflict="replace")),
        give(text, _dedup=Dedup("replaced", on_conflict="replace")),
        give(text, _dedup=Dedup("held", until="1h")),
        give(text, _dedup=Dedup("held", until="1h")),
        *queue.put_calls(call, call),
        queue.chain(call),
        *queue.batch(call, call).jobs,
    ]


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_handle_refuses_a_newer_job_with_its_id(harness: Harness, retention: str) -> None:
    queue = harness.tasks().queue("q", retention=retention)
    old = put_in_each_way(queue, "of the old one")
    assert len(set(map(int, old))) == len(old) - 3
    harness.drain(queue)
    assert {handle.result(1) for handle in old} == {"of the old one"}
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    for suffix in ("_archive", "_dedup"):
        harness.sql(f"TRUNCATE {beside(harness, suffix)}", rows=False)
    new = put_in_each_way(queue, "of the new one")
    assert list(map(int, new)) == list(map(int, old))
    assert {handle.result(1) for handle in old} == {"of the old one"}, "the results of the old ones are still there"
    assert [handle.cancel() or queue.retry(handle) for handle in old] == [False] * len(old)
    harness.drain(queue)
    for handle in old:
        for ask in (lambda handle=handle: handle.result(1), handle.status, handle.progress):
            with pytest.raises(JobNotFound, match="a newer job has its id"):
                ask()
    assert not any(queue.retry(handle) for handle in old)
    assert {handle.result(1) for handle in new} == {"of the new one"}
    assert {handle.status() for handle in new} == {"done"}
    assert queue.result(int(old[0]), 1) == "of the new one"


def test_handle_refuses_an_older_dead_letter_with_its_id(harness: Harness) -> None:
    queue = harness.tasks().queue("q", retention="delete")
    give = task(queue)
    old = give("broken")
    harness.drain(queue)
    begin_again(harness)
    new = give("well")
    assert (old.status(), new.status()) == ("dead", "ready")
    harness.drain(queue)
    with pytest.raises(JobNotFound, match="a newer job has its id"):
        new.status()
    with pytest.raises(JobNotFound, match="a newer job has its id"):
        new.result(1)
    assert old.status() == "dead"


def test_handle_finds_its_job_after_a_retry(harness: Harness) -> None:
    queue = harness.tasks().queue("q", retention="archive")
    gate: list[str] = []

    @queue.task(keep_result="1h")
    def give(job_id: int) -> int:
        if not gate:
            raise Broken
        return len(gate)

    handle = give()
    for number in range(1, 4):
        harness.drain(queue)
        assert handle.status() == ("dead" if number == 1 else "done")
        assert queue.dead.retry(handle) == 1 if number == 1 else queue.retry(handle)
        assert handle.status() == "ready"
        gate.append("open")
        harness.drain(queue)
        assert handle.result(1) == number


def test_handle_does_not_see_the_progress_of_a_newer_job(harness: Harness) -> None:
    queue = harness.task_queue()
    give = task(queue, keep_result="1h")
    old = give("old")
    harness.sql("TRUNCATE {table} RESTART IDENTITY", rows=False)
    new = give("new")
    job, core = queue.lease(60), unwrapped(queue)
    harness.wait_for(lambda: results.report_progress(core.engine, core, unwrapped(job), "75"))
    assert (new.progress(), new.status()) == (75, "leased")
    for ask in (old.progress, old.status):
        with pytest.raises(JobNotFound, match="a newer job has its id"):
            ask()
    assert not old.cancel(running=True)
    assert new.cancel(running=True)


@pytest.mark.parametrize("way", ["get", "get_many", "ack", "worker", "move"])
def test_archived_job_makes_way_for_a_new_job_with_its_id(harness: Harness, way: str) -> None:
    queue = harness.tasks().queue("q", retention="keep" if way == "move" else "archive")
    give = task(queue)

    def finish() -> None:
        if way in ("get", "get_many"):
            jobs = [queue.get(block=False)] if way == "get" else queue.get_many(5, block=False)
            assert [job.data["args"][0][:2] for job in jobs] == ["of"] * len(jobs)
        elif way == "ack":
            queue.ack_many(queue.lease_many(5, 60))
        else:
            harness.drain(queue)
        if way == "move":
            core = unwrapped(queue)
            harness.wait_for(lambda: move.archive(core.engine, core, 0))

    give("of the old one")
    finish()
    begin_again(harness)
    give("of the new one")
    finish()
    assert (ids(harness), queue.dead.count()) == ([], 0)
    stray, one = ids(harness, "_archive")
    assert stray < 0
    assert one == 1
    texts = harness.sql(f"SELECT data::text FROM {beside(harness, '_archive')} ORDER BY id")
    assert ["of the old one" in text for [text] in texts] == [True, False]
    assert queue.status(1) == "done"


def test_dead_letter_makes_way_for_a_new_job_with_its_id(harness: Harness) -> None:
    queue = harness.task_queue()
    give = task(queue, keep_result="1h")
    give("broken")
    harness.drain(queue)
    begin_again(harness)
    new = give("broken")
    other = give("well")
    harness.drain(queue)
    assert new.status() == "dead"
    assert other.result(1) == "well"
    latest, oldest = queue.dead.list()
    assert (latest.id, oldest.id < 0) == (1, True)
    assert queue.dead.retry(oldest.id) == 1
    assert queue.dead.count() == 1
    assert ids(harness) == [2, 3]


@pytest.mark.parametrize("way", ["some", "all"])
def test_dead_letter_whose_id_is_taken_is_retried_under_a_new_id(harness: Harness, way: str) -> None:
    queue = harness.task_queue()
    give = task(queue, keep_result="1h")
    give("broken")
    give("broken")
    harness.drain(queue)
    begin_again(harness)
    new = give("well")
    assert (queue.dead.retry(1, 2) if way == "some" else queue.dead.retry_all()) == 2
    assert len(ids(harness)) == 3
    assert {1, 2} < set(ids(harness))
    assert queue.dead.count() == 0
    harness.drain(queue)
    assert new.result(1) == "well"
    assert queue.dead.count() == 2


def test_archived_job_whose_id_is_taken_is_retried_under_a_new_id(harness: Harness) -> None:
    pq = harness.tasks()
    queue, other = pq.queue("q", retention="archive"), pq.queue("other")
    task(queue)("old")
    harness.drain(queue)
    begin_again(harness)
    new = task(other)("new")
    assert queue.retry(int(new))
    assert len(ids(harness)) == 2
    assert (ids(harness, "_archive"), new.status()) == ([], "ready")


@pytest.mark.parametrize("way", ["put", "put_many", "key", "batch", "calls"])
def test_put_of_a_taken_id_says_to_set_the_sequences(harness: Harness, way: str) -> None:
    pq = harness.tasks()
    queue = pq["q"]
    call = task(queue).call("x")
    batch = queue.batch(call, call)

    def attempt() -> Any:
        if way == "put":
            return queue.put(1)
        if way == "put_many":
            return queue.put_many([1, 2])
        if way == "key":
            return queue.put(1, dedup="key")
        if way == "batch":
            return queue.batch(call, call).id
        return queue.put_calls(call, call)

    begin_again(harness, suffix="_batches" if way == "batch" else "")
    before = ids(harness)
    with pytest.raises(IdTaken, match=r"id 1 is taken.*--set-sequences") as caught:
        attempt()
    assert caught.value.sqlstate == "23505"
    assert ids(harness) == before
    pq.create(set_sequences=True)
    attempt()
    pq.create(set_sequences=True)
    assert batch.id == 1


def test_follow_up_whose_id_is_taken_waits_for_a_free_id(harness: Harness) -> None:
    queue = harness.task_queue()
    give = task(queue)
    first = queue.chain(give.call("first"), give.call("second"))
    give("third", _schedule_at="1h")
    begin_again(harness)
    with harness.working(queue):
        done = "SELECT count(*) FROM {table} WHERE dequeued_at IS NOT NULL"
        harness.eventually(lambda: harness.sql(done) == [(2,)])
    assert first.status() == "done"
    assert (queue.dead.count(), len(ids(harness))) == (0, 3)
