"""Dead letters: jobs that failed for good are kept with the reason, and can be retried."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pqcore.dead_letters import DeadLetter
from pqcore.errors import ConfigurationError, JobFailed, JobNotFound, PQError
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import TableName
from pqcore.tasks import current
from pqcore.testing.harness import Harness
from pqcore.testing.undo import Undo
from pqcore.times import UtcDatetime


class Broken(Exception):
    """The exception that tasks here raise."""


def age(harness: Harness, time: str) -> None:
    """Move the time at which the dead letters died into the past."""
    harness.sql(f"UPDATE {dead(harness)} SET died_at = died_at - interval '{time}'", rows=False)


def dead(harness: Harness) -> str:
    return TableName("queue", harness.schema).related("_dead")


@pytest.fixture
def queue(harness: Harness) -> Any:
    """Return a queue with a task, ``queue.fails``, which raises its argument while ``queue.broken`` is true."""
    made = harness.task_queue()
    state = {"broken": True, "done": []}

    def fails(job_id: int, text: str = "") -> None:
        if state["broken"]:
            raise Broken(text)
        state["done"].append((job_id, text))  # type: ignore[attr-defined]

    made.fails, made.state = made.task()(fails), state
    return made


@pytest.mark.utf8
def test_job_that_fails_for_good_becomes_a_dead_letter(harness: Harness, queue: Any) -> None:
    job = queue.task(max_retries=2, retry_in=None, headers={"a": 1}, expected_at="1h")(queue.fails)("why…")
    before = harness.sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")[0][0]
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert isinstance(letter, DeadLetter)
    assert (letter.id, letter.reason, letter.failures, letter.attempts, letter.crashes) == (job, "failed", 3, 3, 0)
    assert letter.error["type"] == f"{__name__}.Broken"
    assert letter.error["message"] == "why…"
    assert "in fails" in letter.error["traceback"]
    assert "Broken: why…" in letter.error["traceback"]
    assert letter.data["args"] == ["why…"]
    assert letter.data["function"].endswith("fails")
    assert letter.headers == {"a": 1}
    assert letter.expected_at is not None
    assert UtcDatetime.of(before) <= letter.died_at >= letter.enqueued_at
    assert (queue.count(), queue.get(block=False), harness.sql("SELECT 1 FROM {table}")) == (0, None, [])
    assert queue.status(job) == "dead"
    info = queue.inspect(job)
    assert (info.failures, info.attempts, info.error) == (3, 3, letter.error)
    assert letter.id == queue.dead.get(job).id


def test_dead_letter_operations_ignore_jobs_that_are_none(harness: Harness, queue: Any) -> None:
    waiting = queue.fails()
    assert queue.dead.list() == []
    assert queue.dead.count() == 0
    assert queue.dead.retry_all() == queue.dead.purge_all() == 0
    assert queue.dead.retry(int(waiting)) == queue.dead.purge(int(waiting)) == 0
    for job in (waiting, 999):
        with pytest.raises(JobNotFound, match=str(int(job))):
            queue.dead.get(int(job))
    assert queue.count() == 1


def test_dead_letters_are_listed_latest_first(harness: Harness, queue: Any) -> None:
    ids = []
    for number in range(5):
        ids.append(int(queue.fails(str(number))))
        harness.drain(queue)
    assert [letter.id for letter in queue.dead.list()] == ids[::-1]
    assert [letter.id for letter in queue.dead.list(2)] == ids[:2:-1]
    assert queue.dead.count() == 5
    age(harness, "1 day")
    ids.append(int(queue.fails()))
    harness.drain(queue)
    assert [letter.id for letter in queue.dead.list()] == ids[::-1]


def test_dead_letters_belong_to_their_queue(harness: Harness) -> None:
    pq = harness.tasks()

    def fails(job_id: int) -> None:
        raise Broken

    ids = {name: int(pq[name].task()(fails)()) for name in ("a", "b")}
    harness.drain(pq["a"], pq["b"])
    assert [letter.id for letter in pq["a"].dead.list()] == [ids["a"]]
    with pytest.raises(JobNotFound):
        pq["a"].dead.get(ids["b"])
    assert pq["a"].dead.retry(ids["b"]) == pq["a"].dead.purge(ids["b"]) == 0
    assert pq["a"].dead.purge_all() == 1
    assert (pq["a"].dead.count(), pq["b"].dead.count()) == (0, 1)


# Retrying dead letters


def test_retried_dead_letter_is_the_same_job_with_cleared_counts(harness: Harness, queue: Any) -> None:
    seen = []

    @queue.task(max_retries=1, retry_in=None)
    def fails(job_id: int) -> None:
        seen.append((job_id, current().attempt))
        raise Broken

    job = fails()
    harness.drain(queue)
    assert seen == [(job, 1), (job, 2)]
    assert queue.dead.retry(int(job)) == 1
    assert (queue.dead.count(), queue.count()) == (0, 1)
    info = queue.inspect(job)
    assert (info.state, info.failures, info.error) == ("ready", 0, {})
    harness.drain(queue)  # with the original number of retries, and no crashes counted
    assert seen == [(job, 1), (job, 2)] * 2
    [letter] = queue.dead.list()
    assert (letter.id, letter.failures, letter.reason) == (job, 2, "failed")


def test_retried_dead_letter_is_due_immediately_behind_due_jobs(harness: Harness, queue: Any) -> None:
    later = queue.fails("first", _schedule_at="0s")
    harness.drain(queue)
    queue.state["broken"] = False
    queue.fails("second")
    queue.dead.retry(int(later))
    harness.drain(queue, concurrency=1)
    assert [text for _, text in queue.state["done"]] == ["second", "first"]


def test_retried_dead_letter_keeps_the_options_of_its_job(harness: Harness, queue: Any) -> None:
    task = queue.task(
        max_retries=0,
        timeout=77,
        keep_result="1h",
        headers={"a": 1},
        group="g",
        limits={"l": 2},
        expected_at="1h",
    )(queue.fails)
    job = task("x")
    before = queue.peek()[0]
    harness.drain(queue)
    queue.dead.retry_all()
    again = queue.peek()[0]
    assert (again.id, again.data, again.headers) == (job, before.data, before.headers)
    assert (again.enqueued_at, again.expected_at) == (before.enqueued_at, before.expected_at)
    assert harness.sql("SELECT group_key FROM {table}") == [("g",)]


@pytest.mark.parametrize("which", ["all", "some"])
def test_dead_letters_are_retried_together(harness: Harness, queue: Any, which: str) -> None:
    ids = [int(queue.fails(str(number))) for number in range(10)]
    harness.drain(queue)
    queue.state["broken"] = False
    if which == "all":
        assert queue.dead.retry_all() == 10
    else:
        assert queue.dead.retry(*ids[:3], ids[0], 999) == 3
    assert queue.dead.count() == (0 if which == "all" else 7)
    harness.drain(queue)
    assert sorted(job for job, _ in queue.state["done"]) == (ids if which == "all" else ids[:3])


def test_dead_letters_beyond_one_statement_are_retried_and_purged(harness: Harness) -> None:
    queue = harness.queue()
    number = 2_345
    harness.sql(
        f"INSERT INTO {dead(harness)} (id, q_name, enqueued_at, data, attempts, reason)"
        f" SELECT n, CASE WHEN n % 2 = 0 THEN 'q' ELSE 'other' END, now(), '1', 1, 'failed'"
        f" FROM generate_series(1, {2 * number}) AS n",
        rows=False,
    )
    assert queue.dead.count() == number
    assert queue.dead.retry_all() == number
    assert (queue.dead.count(), queue.count()) == (0, number)
    assert harness.pq(create=False)["other"].dead.purge_all() == number
    assert harness.sql(f"SELECT count(*) FROM {dead(harness)}") == [(0,)]


def test_retried_dead_letter_wakes_a_worker(harness: Harness, queue: Any) -> None:
    job = queue.fails("x")
    harness.drain(queue)
    queue.state["broken"] = False
    with harness.working(queue, poll_interval=3600):
        harness.eventually(harness.listening)
        assert queue.dead.retry_all() == 1
        harness.eventually(lambda: queue.state["done"])
    assert queue.state["done"] == [(job, "x")]


def test_dead_letter_retry_and_purge_are_undone_with_their_transaction(harness: Harness, queue: Any) -> None:
    job = int(queue.fails())
    harness.drain(queue)

    def undone(change: Callable[[], int]) -> None:
        assert change() == 1
        assert queue.dead.count() == 0
        raise Undo

    for change in (queue.dead.retry_all, queue.dead.purge_all):
        with pytest.raises(Undo), queue:
            undone(change)
        assert [letter.id for letter in queue.dead.list()] == [job]
        assert queue.count() == 0


def test_dead_letter_retry_and_purge_without_ids_change_nothing(harness: Harness, queue: Any) -> None:
    queue.fails()
    harness.drain(queue)
    assert queue.dead.retry() == queue.dead.purge() == 0
    assert queue.dead.count() == 1


def test_dead_letters_retried_concurrently_are_retried_once_each(harness: Harness, queue: Any) -> None:
    ids = [int(queue.fails()) for _ in range(30)]
    harness.drain(queue)
    numbers = harness.at_once(*[lambda: queue.dead.retry_all()] * 5)
    assert sum(numbers) == 30
    assert [job for [job] in harness.sql("SELECT id FROM {table} ORDER BY id")] == ids


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        ('{"type": "Broken"}', {"type": "Broken", "message": "", "traceback": ""}),
        ('{"message": 1, "more": [2]}', {"type": "", "message": "1", "traceback": ""}),
        ('"text"', {"type": "", "message": "text", "traceback": ""}),
        ("null", {}),
        ("{}", {}),
    ],
)
def test_dead_letter_has_an_error_that_was_written_in_sql(
    harness: Harness, queue: Any, stored: str, error: dict[str, str]
) -> None:
    job = queue.task(keep_result="1h")(queue.fails)("x")
    harness.drain(queue)
    for suffix in ("_dead", "_results"):
        table = TableName("queue", harness.schema).related(suffix)
        harness.sql(f"UPDATE {table} SET error = '{stored}'", rows=False)
    [letter] = queue.dead.list()
    assert letter.error == error
    assert queue.explain(job).causes
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=1)
    assert caught.value.error == error


def test_retried_dead_letter_replaces_its_result(harness: Harness, queue: Any) -> None:
    job = queue.task(keep_result="1h")(queue.fails)("x")
    harness.drain(queue)
    with pytest.raises(JobFailed, match="Broken: x") as caught:
        job.result(timeout=1)
    assert caught.value.error == queue.dead.list()[0].error
    queue.state["broken"] = False
    queue.dead.retry_all()
    assert job.status() == "ready"
    with pytest.raises(TimeoutError):
        job.result(timeout=0.01)
    harness.drain(queue)
    assert job.result(timeout=1) is None
    assert job.status() == "done"


# Keys, limits, groups


def test_dead_letter_gives_up_its_dedup_key_and_does_not_retake_it(harness: Harness, queue: Any) -> None:
    task = queue.task(dedup="key")(queue.fails)
    first = task("a")
    harness.drain(queue)
    second = task("b")
    assert second != first
    assert queue.dead.retry_all() == 1
    assert task("c") == second
    with pytest.raises(PQError):
        queue.put(1, dedup=Dedup("key", on_conflict="error"))
    assert queue.count() == 2


def test_dead_letter_lets_its_group_continue_and_goes_first_when_retried(harness: Harness, queue: Any) -> None:
    task = queue.task(group="g", limit=1)(queue.fails)
    first = task("a")
    harness.drain(queue)
    queue.state["broken"] = False
    assert queue.dead.count() == 1
    task("b")
    running = queue.lease(block=False)
    assert running.id > first
    queue.dead.retry_all()
    task("c")
    assert queue.lease(block=False) is None
    assert queue.stats().parked == 2
    running.ack()
    harness.drain(queue)
    assert [text for _, text in queue.state["done"]] == ["a", "c"]


def test_dead_letters_free_their_slots(harness: Harness, queue: Any) -> None:
    task = queue.task(limit=1)(queue.fails)
    for _ in range(4):
        task()
    harness.drain(queue)
    assert queue.dead.count() == 4
    assert harness.sql(f"SELECT 1 FROM {TableName('queue', harness.schema).related('_slots')}") == []


# Reasons


def test_poison_job_becomes_a_dead_letter(harness: Harness, queue: Any) -> None:
    queue.state["broken"] = False
    task = queue.task(max_crashes=3, max_retries=5, keep_result="1h")(queue.fails)
    job, other = task("poison"), task("good")
    for attempt in (1, 2, 3):
        [leased, _] = queue.lease_many(5, block=False)
        assert (leased.id, leased.attempts, leased.crashes) == (job, attempt, attempt - 1)
        harness.sql(f"UPDATE {{table}} SET leased_until = now() WHERE id = {int(job)}", rows=False)
        harness.sql(f"UPDATE {{table}} SET leased_until = NULL, attempts = 0 WHERE id = {int(other)}", rows=False)
    harness.drain(queue)
    assert queue.state["done"] == [(other, "good")]
    [letter] = queue.dead.list()
    assert (letter.id, letter.reason, letter.failures) == (job, "crashed", 0)
    assert (letter.attempts, letter.crashes) == (3, 3)  # the lease that found too many crashes is not an attempt
    assert letter.error["type"] == "crash"
    assert "3 times" in letter.error["message"]
    with pytest.raises(JobFailed):
        job.result(1)
    queue.dead.retry_all()
    harness.drain(queue)
    assert queue.state["done"] == [(other, "good"), (job, "poison")]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_crashes_are_counted_separately_from_failures_and_parkings(harness: Harness, queue: Any, most: int) -> None:
    task = queue.task(max_crashes=most, max_retries=10, retry_in=None)(queue.fails)
    job = task()
    for _ in range(3):  # given back without a run, as by a worker that stops, or by hand
        queue.lease(block=False)
        harness.sql("UPDATE {table} SET leased_until = NULL, excused = coalesce(excused, 0) + 1", rows=False)
    for _ in range(max(most, 1)):
        assert queue.dead.count() == 0
        queue.lease(block=False)
        harness.expire()
    harness.drain(queue)
    assert [(letter.id, letter.reason) for letter in queue.dead.list()] == [(job, "crashed")]


def test_failures_do_not_count_as_crashes(harness: Harness, queue: Any) -> None:
    task = queue.task(max_crashes=1, max_retries=4, retry_in=None)(queue.fails)
    task()
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.reason, letter.failures) == ("failed", 5)


def test_job_past_its_deadline_becomes_a_dead_letter_without_a_run(harness: Harness, queue: Any) -> None:
    queue.state["broken"] = False
    late = queue.task(deadline=timedelta(seconds=-1))(queue.fails)("late")
    in_time = queue.fails("in time", _deadline="1h")
    harness.drain(queue)
    assert queue.state["done"] == [(in_time, "in time")]
    [letter] = queue.dead.list()
    assert (letter.id, letter.reason, letter.error["type"]) == (late, "expired", "deadline")


INVALID: dict[str, Any] = {
    "no object": "text",
    "null": None,
    "a list": [1, 2],
    "no function": {"args": [], "kwargs": {}},
    "no arguments": {"function": "f"},
    "retries that are no number": {"function": "f", "args": [], "kwargs": {}, "max_retries": "x", "retried": 0},
}


@pytest.mark.parametrize("name", INVALID)
def test_row_that_is_no_call_becomes_a_dead_letter(harness: Harness, queue: Any, name: str) -> None:
    queue.state["broken"] = False
    job = queue.put(INVALID[name])
    good = queue.fails("good")
    harness.drain(queue)
    assert queue.state["done"] == [(good, "good")]
    [letter] = queue.dead.list()
    assert (letter.id, letter.reason, letter.data) == (job, "invalid", INVALID[name])


def test_row_that_cannot_be_decoded_becomes_a_dead_letter(harness: Harness, queue: Any) -> None:
    queue.accept = ("pickle",)
    harness.sql("INSERT INTO {table} (q_name, payload, serializer) VALUES ('q', '\\x00ff', 'pickle')", rows=False)
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.reason, letter.serializer, letter.raw) == ("invalid", "pickle", b"\x00\xff")
    with pytest.raises(PQError):
        letter.data  # noqa: B018


def test_job_with_invalid_reserved_headers_becomes_a_dead_letter(harness: Harness, queue: Any) -> None:
    queue.state["broken"] = False
    job, good = queue.fails("bad"), queue.fails("good")
    harness.sql(f'UPDATE {{table}} SET headers = \'{{"run": {{"retry": 5}}}}\' WHERE id = {int(job)}', rows=False)
    harness.drain(queue)
    assert queue.state["done"] == [(good, "good")]
    assert [(letter.id, letter.reason) for letter in queue.dead.list()] == [(job, "invalid")]


class Unspeakable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ZeroDivisionError


ODD: dict[str, BaseException] = {
    "a NUL": ValueError("a\0b"),
    "a lone surrogate": ValueError("a\ud800b"),
    "long": ValueError("x" * 1_000_000),
    "nothing": ValueError(),
    "unspeakable": Unspeakable(),
    "an exit": SystemExit(3),
}


@pytest.mark.parametrize("name", ODD)
def test_dead_letter_keeps_any_exception_that_a_job_raises(harness: Harness, queue: Any, name: str) -> None:
    @queue.task(keep_result="1h", max_retries=1, retry_in=None, retry_on=BaseException)
    def odd(job_id: int) -> None:
        raise ODD[name]

    job = odd()
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.id, letter.failures) == (job, 2)
    assert type(ODD[name]).__name__ in letter.error["type"]
    assert len(letter.error["traceback"]) <= 20_000
    with pytest.raises(JobFailed):
        job.result(1)


# Purging


def test_dead_letter_purge_deletes_permanently(harness: Harness, queue: Any) -> None:
    ids = [int(queue.fails()) for _ in range(5)]
    harness.drain(queue)
    assert queue.dead.purge(*ids[:2]) == 2
    assert queue.dead.count() == 3
    assert queue.dead.purge_all() == 3
    assert (queue.dead.count(), queue.dead.retry_all(), queue.count()) == (0, 0, 0)
    with pytest.raises(JobNotFound):
        queue.status(ids[0])


@pytest.mark.parametrize("older_than", ["2h", timedelta(hours=2), 7200])
def test_dead_letter_purge_deletes_only_letters_older_than_asked(harness: Harness, queue: Any, older_than: Any) -> None:
    for _ in range(2):
        queue.fails()
    harness.drain(queue)
    age(harness, "3 h")
    new = int(queue.fails())
    harness.drain(queue)
    assert queue.dead.purge_all(older_than=older_than) == 2
    assert [letter.id for letter in queue.dead.list()] == [new]


@pytest.mark.parametrize("older_than", [-1, "x", None])
def test_dead_letter_purge_refuses_an_invalid_age(harness: Harness, queue: Any, older_than: Any) -> None:
    queue.fails()
    harness.drain(queue)
    with pytest.raises(ValueError):
        queue.dead.purge_all(older_than=older_than)
    assert queue.dead.count() == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, "x", None, True])
def test_dead_letter_list_refuses_an_invalid_number(queue: Any, n: Any) -> None:
    with pytest.raises(ConfigurationError):
        queue.dead.list(n)


def test_clear_and_purge_leave_dead_letters(harness: Harness, queue: Any) -> None:
    queue.fails()
    harness.drain(queue)
    queue.clear()
    queue.purge(0)
    assert queue.dead.count() == 1
