"""Putting and getting, as pq 1.9.1 documents it."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

import pytest

from pqcore.backend_registry import class_names
from pqcore.errors import DatabaseError
from pqcore.testing.harness import Harness


def test_spec_names_the_class_of_the_drivers_connections(harness: Harness) -> None:
    kind = type(harness.connect().raw)
    name = f"{kind.__module__}.{kind.__qualname__}"
    named = class_names(kind) & set(harness.spec.connections)
    assert named, f"BackendSpec.connections has no class of the driver's connection: add {name!r}"


def test_error_of_the_server_has_its_sqlstate(harness: Harness) -> None:
    with pytest.raises(DatabaseError) as caught:
        harness.sql("SELECT 1 / 0")
    advice = "the driver's exceptions must have an attribute sqlstate or pgcode: see docs/reference/backend-contract.md"
    assert caught.value.sqlstate == "22012", advice


def test_put_data_are_returned_by_get(harness: Harness) -> None:
    queue = harness.queue()
    job_id = queue.put({"kind": "Cox"})
    assert isinstance(job_id, int)
    job = queue.get()
    assert job.id == job_id
    assert job.data == {"kind": "Cox"}
    assert queue.get(block=False) is None


@pytest.mark.parametrize(
    "data", [None, 0, "", [], "…æøå!", 'quote " and \\', "nul \x00 inside", {"a": [1, {"b": None}]}, 2**70, True]
)
def test_json_values_come_back_equal(harness: Harness, data: Any) -> None:
    queue = harness.queue()
    queue.put(data)
    assert queue.get().data == data


def test_tuples_come_back_as_lists(harness: Harness) -> None:
    queue = harness.queue()
    queue.put((1, (2,)))
    assert queue.get().data == [1, [2]]


def test_queues_of_different_names_are_separate(harness: Harness) -> None:
    pq = harness.pq()
    pq["apples"].put(1)
    assert pq["pears"].get(block=False) is None
    assert pq["apples"].get().data == 1


def test_pq_returns_the_same_queue_for_the_same_name(harness: Harness) -> None:
    pq = harness.pq()
    assert pq["apples"] == pq["apples"]
    pq["apples"].timeout = 0.5
    assert pq["apples"].timeout == 0.5


def test_length_counts_what_is_due(harness: Harness) -> None:
    queue = harness.queue()
    assert len(queue) == 0
    queue.put(1)
    queue.put(2, schedule_at="1h")
    queue.put(3, expected_at="1h")
    queue.put(4, "1h", "2h")
    assert len(queue) == queue.count() == 2
    harness.sql("UPDATE {table} SET schedule_at = now() - interval '1 s' WHERE schedule_at IS NOT NULL", rows=False)
    assert len(queue) == 4
    queue.get()
    assert len(queue) == 3


def test_clear_deletes_every_row_of_its_queue_only(harness: Harness) -> None:
    pq = harness.pq()
    pq["a"].put(1)
    pq["a"].get()
    pq["a"].put(2, "1h")
    pq["a"].put(3)
    pq["a"].lease()
    pq["b"].put(4)
    assert pq["a"].clear() is None
    assert harness.sql("SELECT q_name FROM {table}") == [("b",)]


def test_iteration_yields_jobs_then_none(harness: Harness) -> None:
    queue = harness.queue(timeout=0.05)
    queue.put(1)
    queue.put(2)
    iterator = iter(queue)
    assert [next(iterator).data, next(iterator).data] == [1, 2]
    assert next(iterator) is None
    queue.put(3)
    assert next(iterator).data == 3


def test_iterator_has_its_own_timeout(harness: Harness) -> None:
    queue = harness.queue(timeout=3600)
    iterator = iter(queue)
    iterator.timeout = 0.05
    assert next(iterator) is None


def test_options_become_attributes_of_the_queues(harness: Harness) -> None:
    pq = harness.pq(timeout=0.25, retention="delete")
    assert pq["a"].timeout == 0.25
    assert pq["a"].retention == "delete"


def test_job_attributes_and_repr_show_its_row(harness: Harness) -> None:
    queue = harness.queue()
    before = datetime.now(timezone.utc)
    queue.put({"kind": "Cox"}, schedule_at="0s", expected_at=datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc))
    job = queue.get()
    assert job.size == len('{"kind": "Cox"}')
    assert job.attempts == 1
    assert job.expected_at == datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
    assert abs((job.enqueued_at - before).total_seconds()) < 3600  # by the server's clock, and aware
    assert job.schedule_at.tzinfo is timezone.utc
    pattern = (
        r'<pqcore\.\w*Job id=\d+ size=15 enqueued_at="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z" '
        r'schedule_at="[^"]+Z" expected_at="2030-01-02T03:04:05\.000678Z">'
    )
    assert re.fullmatch(pattern, repr(job)), repr(job)


def test_job_times_that_were_not_given_are_none(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    job = queue.get()
    assert job.schedule_at is None
    assert job.expected_at is None
    assert "schedule_at=None expected_at=None" in repr(job)


def test_setting_data_writes_the_row(harness: Harness) -> None:
    queue = harness.queue()
    queue.put({"foo": "bar"})
    job = queue.get()
    job.data = {"foo": "boo", "more": True}
    assert job.data == {"foo": "boo", "more": True}
    [[text]] = harness.sql(f"SELECT data::text FROM {{table}} WHERE id = {job.id}")
    assert text == '{"foo": "boo", "more": true}'
    assert job.size == len(text)


def test_update_replaces_data_and_returns_its_size(harness: Harness) -> None:
    queue = harness.queue()
    job_id = queue.put("old")
    assert queue.update(job_id, "new and longer") == len('"new and longer"')
    assert queue.get().data == "new and longer"


def test_peek_shows_the_next_jobs_and_leaves_them(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("third")
    queue.put("first", expected_at="1s")
    queue.put("second", expected_at="2s")
    queue.put("later", "1h")
    assert [job.data for job in queue.peek(10)] == ["first", "second", "third"]
    assert [job.data for job in queue.peek()] == ["first"]
    assert queue.get().data == "first"


def test_stats_count_jobs_by_state(harness: Harness) -> None:
    pq = harness.pq()
    assert pq.stats() == {}
    queue = pq["q"]
    assert (queue.stats().ready, queue.stats().oldest) == (0, None)
    for _ in range(3):
        queue.put(1)
    queue.put(1, "1h")
    queue.lease(60)
    queue.get()
    pq["other"].put(1)
    stats = pq.stats()
    assert set(stats) == {"q", "other"}
    assert (stats["q"].ready, stats["q"].scheduled, stats["q"].leased) == (1, 1, 1)
    assert stats["q"].oldest >= 0
    assert stats["q"].ready == queue.stats().ready


def test_cancel_deletes_a_waiting_job(harness: Harness) -> None:
    queue = harness.queue()
    waiting, scheduled, taken = queue.put(1), queue.put(2, "1h"), queue.put(3, expected_at="1s")
    assert queue.get().id == taken
    assert queue.cancel(waiting) is True
    assert queue.cancel(scheduled) is True
    assert queue.cancel(waiting) is False
    assert queue.cancel(taken) is False
    assert queue.get(block=False) is None


def test_cancel_leaves_jobs_of_other_queues(harness: Harness) -> None:
    pq = harness.pq()
    job_id = pq["a"].put(1)
    assert pq["b"].cancel(job_id) is False
    assert pq["a"].get().id == job_id
