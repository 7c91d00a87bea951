"""Rules: limits, rates and weights that operators set, and pauses. They apply to all consumers, within a short time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import ConfigurationError, InvalidName, InvalidTimeSpec, PQError
from pqcore.sql import rule_statements
from pqcore.sql.identifiers import MAX_KEY, TableName
from pqcore.sql.rule_statements import UNWRITTEN
from pqcore.tasks import current
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Latch, Notes
from pqcore.testing.undo import Undo
from pqcore.worker import heartbeat

NEVER = 3600.0
SOON = 1.5
"""Seconds within which each consumer heeds a rule, with a margin for a slow machine."""


def rule_rows(harness: Harness) -> list[tuple[Any, ...]]:
    table = TableName("queue", harness.schema).related("_rules")
    return harness.sql(f"SELECT q_name, kind, name FROM {table} WHERE kind <> 'expiry' ORDER BY 1, 2, 3")


def unfinished(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the unfinished jobs: whether they are leased, and how many attempts count."""
    return harness.sql(
        "SELECT leased_until > now() AND parked_on IS NULL, attempts - coalesce(excused, 0) FROM {table}"
        " WHERE dequeued_at IS NULL ORDER BY id"
    )


# Setting rules


def test_rules_are_listed_as_they_were_set(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    queue.set_limit("reports", 5)
    queue.set_rate("api", "10/s")
    queue.set_weight("tenant-42", 3)
    queue.set_weight("", 0.5)
    queue.pause(task="app.send")
    queue.pause("1h", group="g")
    pq["other"].set_limit("reports", 1)
    found = {(rule.kind, rule.name): rule for rule in queue.rules()}
    assert {key: (rule.number, rule.period) for key, rule in found.items()} == {
        ("limit", "reports"): (5, None),
        ("rate", "api"): (10, 1),
        ("weight", "tenant-42"): (3, None),
        ("weight", ""): (0.5, None),
        ("pause", "task:app.send"): (None, None),
        ("pause", "group:g"): (None, None),
    }
    assert found["pause", "task:app.send"].until is None
    held = found["pause", "group:g"].until - found["pause", "group:g"].changed_at
    assert held == timedelta(hours=1)
    queue.set_limit("reports", 7)
    queue.set_rate("api", (600, "2m"))
    queue.set_weight("", None)
    assert queue.resume(group="g") is True
    assert queue.resume(group="g") is False
    assert {(rule.kind, rule.name, rule.number, rule.period) for rule in queue.rules()} == {
        ("limit", "reports", 7, None),
        ("rate", "api", 600, 120),
        ("weight", "tenant-42", 3, None),
        ("pause", "task:app.send", None, None),
    }
    queue.set_limit("reports", None)
    queue.set_limit("never set", None)
    queue.set_rate("api", None)
    queue.set_weight("tenant-42", None)
    assert queue.resume(task="app.send") is True
    assert queue.rules() == []
    assert [rule.number for rule in pq["other"].rules()] == [1]


def test_rate_is_a_text_or_a_number_and_a_time(harness: Harness) -> None:
    queue = harness.queue()
    for rate, number, period in (
        ("10/s", 10, 1),
        ("600/min", 600, 60),
        ("5/h", 5, 3600),
        ("1/day", 1, 86_400),
        ("100/5m", 100, 300),
        ((7, 2.5), 7, 2.5),
        ((7, timedelta(hours=1)), 7, 3600),
    ):
        queue.set_rate("api", rate)
        [rule] = queue.rules()
        assert (rule.number, rule.period) == (number, period)


def test_bad_rules_are_refused_before_anything_is_written(harness: Harness) -> None:
    queue = harness.queue()
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    refused: list[tuple[type[PQError], Any]] = [
        *[(ConfigurationError, partial(queue.set_limit, "x", bad)) for bad in (0, -1, 1.5, "5", True, 2**31)],
        *[(InvalidName, partial(queue.set_limit, bad, 1)) for bad in ("", "a\0b", "x" * (MAX_KEY + 1), 7, None)],
        *[
            (ConfigurationError, partial(queue.set_rate, "x", bad))
            for bad in ("", "10", "10/", "/s", "0/s", "10/0", "1.5/s", "10/fortnight", 10, (10,), (10, 0), ("10", 1))
        ],
        *[(ConfigurationError, partial(queue.set_rate, "x", bad)) for bad in ("5/s/s", (5, None), (True, 1), "-5/s")],
        *[
            (ConfigurationError, partial(queue.set_weight, "x", bad))
            for bad in (0, -1, float("nan"), float("inf"), "3", True)
        ],
        (InvalidName, partial(queue.set_weight, None, 1)),
        *[(InvalidTimeSpec, partial(queue.pause, bad)) for bad in ("0s", "soon", timedelta(seconds=-1), past, 5)],
        (ConfigurationError, partial(queue.pause, task="app.send", limit="x")),
        (ConfigurationError, partial(queue.resume, limit="x", group="y")),
        *[(InvalidName, partial(queue.pause, task=bad)) for bad in ("", 7)],
        (InvalidName, partial(queue.resume, group="")),
    ]
    for error, call in refused:
        with pytest.raises(error) as caught:
            call()
        assert isinstance(caught.value, ValueError), call
    assert rule_rows(harness) == []


def test_rule_belongs_to_the_transaction_that_sets_it(harness: Harness) -> None:
    queue = harness.queue(timeout=0)
    other = harness.queue(timeout=0)
    queue.put("job")
    with suppress(Undo), queue:
        queue.pause()
        queue.set_limit("x", 2)
        assert queue.get() is None, "the transaction sees what it did"
        assert other.rules() == []
        raise Undo
    assert rule_rows(harness) == []
    with queue:
        queue.pause()
    assert queue.get() is None
    with suppress(Undo), queue:
        assert queue.resume() is True
        raise Undo
    assert queue.get() is None
    assert queue.resume() is True
    assert queue.get().data == "job"


def test_pause_that_was_rolled_back_holds_up_nobody(harness: Harness) -> None:
    queue = harness.queue(timeout=0)
    queue.put_many(["first", "second"])
    assert queue.get().data == "first"
    with suppress(Undo), queue:
        queue.pause()
        assert queue.get() is None
        raise Undo
    assert queue.get().data == "second"


def test_rule_is_set_in_the_transaction_of_a_connection(harness: Harness) -> None:
    queue = harness.queue()
    connection = harness.connect()
    calls: list[Callable[[], Any]] = [
        lambda: queue.pause(connection=connection.raw),
        lambda: queue.set_limit("x", 2, connection=connection.raw),
        lambda: queue.set_rate("x", "2/s", connection=connection.raw),
        lambda: queue.set_weight("x", 2, connection=connection.raw),
    ]
    for end, number in ((connection.rollback, 0), (connection.commit, 4)):
        connection.begin()
        for call in calls:
            call()
        assert queue.rules() == []
        end()
        assert len(queue.rules()) == number
    connection.begin()
    assert queue.resume(connection=connection.raw) is True
    assert len(queue.rules()) == 4
    connection.commit()
    assert len(queue.rules()) == 3


# Pauses of a queue


def test_paused_queue_gives_no_job_and_takes_puts(harness: Harness) -> None:
    pq = harness.pq(timeout=0)
    queue = pq["q"]
    queue.put("first")
    pq["other"].put("other")
    queue.pause()
    queue.put("second")
    assert queue.get() is None
    assert queue.get_many(10) == []
    assert queue.lease("1m") is None
    assert queue.lease_many(10, "1m") == []
    assert (queue.count(), [job.data for job in queue.peek(10)]) == (2, ["first", "second"])
    assert pq["other"].get().data == "other"
    assert harness.queue(timeout=0).get() is None, "a consumer that begins during the pause heeds it"
    queue.resume()
    assert [job.data for job in queue.get_many(10)] == ["first", "second"]


def test_consumers_heed_a_pause_within_a_second(harness: Harness) -> None:
    operator, consumer = harness.queue(), harness.queue(timeout=0)
    consumer.put_many(range(20_000))
    assert consumer.get() is not None
    operator.pause()
    heeded = threading.Event()
    with harness.thread(lambda: heeded.wait(SOON)):
        harness.eventually(lambda: consumer.get() is None)
        assert not heeded.is_set()
        heeded.set()
    assert consumer.lease("1m") is None
    operator.resume()
    assert consumer.get() is not None


def test_pause_is_heeded_within_a_shorter_poll_interval(harness: Harness) -> None:
    operator, consumer = harness.queue(), harness.queue(timeout=0, poll_interval=0.05)
    consumer.put_many(range(100))
    assert consumer.get() is not None
    operator.pause()
    threading.Event().wait(0.05)
    assert consumer.get() is None


def test_pause_is_heeded_beside_a_long_transaction(harness: Harness) -> None:
    operator, queue = harness.queue(), harness.pq(timeout=0, poll_interval=0.1)["q"]
    queue.put_many(range(1_000))
    begun, over = threading.Event(), threading.Event()

    def go_on() -> None:
        with queue:
            harness.sql_within(queue, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", rows=False)
            queue.count()  # from here on, it sees the present state
            begun.set()
            while not over.is_set():
                queue.get()

    with harness.thread(go_on):
        assert begun.wait(PATIENCE)
        operator.pause()
        threading.Event().wait(0.1)
        try:
            assert queue.lease("1m") is None
        finally:
            over.set()


@pytest.mark.requires(Capability.LISTEN)
def test_resume_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.pause()
    queue.put("job")
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        harness.eventually(harness.listening)
        queue.resume()
        assert join().data == "job"


def test_pause_ends_at_its_time(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("job")
    queue.pause(timedelta(milliseconds=300))
    assert queue.get(block=False) is None
    assert queue.get(timeout=NEVER).data == "job"
    assert queue.rules() == []
    assert queue.resume() is False


def test_pause_until_a_point_in_time_is_replaced_by_a_later_one(harness: Harness) -> None:
    queue = harness.queue(timeout=0)
    queue.put("job")
    end = datetime.now(timezone.utc) + timedelta(hours=1)
    queue.pause("1h")
    queue.pause(end)
    [rule] = queue.rules()
    assert (rule.kind, rule.name, rule.until) == ("pause", "queue", end)
    assert queue.get() is None
    queue.pause()
    [rule] = queue.rules()
    assert rule.until is None


def test_worker_starts_no_job_of_a_paused_queue(harness: Harness) -> None:
    queue = harness.task_queue(poll_interval=0.1)
    seen = Notes()

    @queue.task()
    async def note(job_id: int, number: int) -> None:
        seen.add(number)

    with harness.working(queue, poll_interval=0.1):
        note(1)
        seen.wait(1)
        queue.pause()
        threading.Event().wait(0.1)
        note(2)
        harness.drain(harness.task_queue())  # as another worker finds it
        assert seen.items == [1]
        assert unfinished(harness) == [(None, 0)]
        queue.resume()
        assert seen.wait(2) == [1, 2]


@pytest.mark.parametrize("heard", [pytest.param(True, marks=pytest.mark.requires(Capability.LISTEN)), False])
def test_worker_gives_back_what_it_prefetched_when_its_queue_is_paused(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    monkeypatch.setattr(heartbeat, "MAX_PREFETCH_AGE", NEVER)
    if not heard:  # it is noticed at a heartbeat
        monkeypatch.setattr(heartbeat.Heartbeat, "listen", lambda self: asyncio.sleep(NEVER))
    queue, operator = harness.task_queue(poll_interval=0.1), harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    async def quick(job_id: int) -> None:
        seen.add("quick")

    @queue.task()
    def slow(job_id: int) -> None:
        seen.add("slow")
        over.wait()

    queue.put_calls(*[quick.call()] * 400, slow.call(), *[quick.call()] * 400)
    with harness.working(queue, concurrency=1):
        harness.eventually(lambda: "slow" in seen.items)
        harness.eventually(lambda: sum(leased is True for leased, _ in unfinished(harness)) > 1)
        operator.pause()
        harness.eventually(lambda: sum(leased is True for leased, _ in unfinished(harness)) == 1)
        over.open()  # the running job continues
        harness.eventually(lambda: queue.stats().leased == 0)
        assert seen.items.index("slow") == len(seen.items) - 1
        assert set(unfinished(harness)) == {(None, 0)}, "an attempt counts though no job was begun"
        operator.resume()
        harness.eventually(lambda: len(seen.items) == 801)


def test_paused_queue_ends_a_burst_worker(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task()
    async def never(job_id: int) -> None:
        raise AssertionError

    never()
    queue.pause()
    harness.drain(queue)
    assert unfinished(harness) == [(None, 0)]


# Pauses of a task


def marked(queue: Any, seen: Notes, **options: Any) -> tuple[Any, Any]:
    """Declare two tasks that note the number with which they are called."""

    @queue.task(**options)
    async def first(job_id: int, number: int) -> None:
        seen.add(("first", number, current().attempt))

    @queue.task(**options)
    async def second(job_id: int, number: int) -> None:
        seen.add(("second", number, current().attempt))

    return first, second


@pytest.mark.parametrize(
    ("serializer", "options"),
    [
        ("json", {}),
        ("pickle", {}),
        ("json", {"limits": {"a": 1, "b": 5}}),
        ("json", {"group": "g"}),
    ],
    ids=["plain", "pickled", "limited", "in a group"],
)
def test_worker_starts_no_job_of_a_paused_task(harness: Harness, serializer: str, options: dict[str, Any]) -> None:
    queue = harness.task_queue(f"q/{serializer}")
    seen = Notes()
    first, second = marked(queue, seen, **options)
    queue.pause(task=unwrapped(first))
    queue.put_calls(*[first.call(n) for n in range(3)])
    if "group" not in options:  # otherwise the job waits for those before it
        queue.put_calls(*[second.call(n) for n in range(3)])
        harness.drain(queue)
        assert sorted(seen.items) == [("second", n, 1) for n in range(3)]
    harness.drain(harness.task_queue(f"q/{serializer}"))
    seen.items.clear()
    assert (queue.stats().ready, queue.stats().leased, queue.stats().parked) == (0, 0, 3)
    assert queue.resume(task=unwrapped(first)._path)
    harness.drain(queue)
    assert sorted(seen.items) == [("first", n, 1) for n in range(3)]


def test_job_of_a_paused_task_whose_lane_is_too_long_is_looked_at_again_later(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()
    first, _ = marked(queue, seen, limits={"x" * 490: 1})
    queue.pause(task=unwrapped(first))
    first(1)
    harness.drain(queue)
    assert (seen.items, queue.stats().scheduled) == ([], 1)
    queue.resume(task=unwrapped(first))
    [[wait]] = harness.sql("SELECT extract(epoch FROM schedule_at - now())::float8 FROM {table}")
    assert wait <= UNWRITTEN
    harness.sql("UPDATE {table} SET schedule_at = now()", rows=False)
    harness.drain(queue)
    assert seen.items == [("first", 1, 1)]


def test_job_behind_many_of_a_paused_task_starts_soon(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_statements, "SET_ASIDE", 500)  # so that fewer jobs take more than one statement
    queue = harness.task_queue()
    seen, many = Notes(), rule_statements.SET_ASIDE + 10
    first, second = marked(queue, seen)
    queue.put_calls(*[first.call(n) for n in range(many)], second.call(0))
    queue.pause("1h", task=unwrapped(first))
    leases = partial(harness.sql, "SELECT sum(attempts) FROM {table}")
    harness.drain(queue, concurrency=1)
    assert seen.items == [("second", 0, 1)]
    [[before]] = leases()
    assert before < 20, "each of them was leased"
    first(many), second(1)
    harness.drain(queue)
    assert seen.items == [("second", 0, 1), ("second", 1, 1)]
    assert [rule.name for rule in queue.rules()] == [f"task:{unwrapped(first)._path}"]
    assert queue.stats().parked == many + 1
    assert queue.resume(task=unwrapped(first))
    harness.drain(queue)
    assert sorted(seen.items[2:]) == [("first", n, 1) for n in range(many + 1)]


def test_lease_heeds_a_paused_task_and_get_does_not(harness: Harness) -> None:
    queue = harness.queue(timeout=0)
    queue.put_many([{"function": path, "args": [], "kwargs": {}} for path in ("a.b", "a.c", "a.b")])
    queue.pause(task="a.b")
    assert [job.data["function"] for job in queue.lease_many(10, "1m")] == ["a.c"]
    assert queue.lease("1m") is None
    assert queue.get().data["function"] == "a.b"
    queue.resume(task="a.b")
    job = queue.lease("1m")
    assert (job.data["function"], job.attempts) == ("a.b", 1)
    queue.ack(job)


def test_worker_gives_back_what_it_prefetched_of_a_paused_task(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "MAX_PREFETCH_AGE", NEVER)
    queue, operator = harness.task_queue(poll_interval=0.1), harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    async def quick(job_id: int) -> None:
        seen.add("quick")

    @queue.task()
    def slow(job_id: int) -> None:
        seen.add("slow")
        over.wait()
        seen.add("over")

    queue.put_calls(*[quick.call()] * 400, slow.call(), *[quick.call()] * 400)
    with harness.working(queue, concurrency=1):
        harness.eventually(lambda: "slow" in seen.items)
        harness.eventually(lambda: sum(leased is True for leased, _ in unfinished(harness)) > 1)
        operator.pause(task=unwrapped(quick))
        harness.eventually(lambda: sum(leased is True for leased, _ in unfinished(harness)) == 1)
        over.open()
        harness.eventually(lambda: queue.stats().leased == 0)
        assert seen.items[-2:] == ["slow", "over"]
        # Takes find the jobs, and set them aside.
        harness.eventually(lambda: {attempts for _, attempts in unfinished(harness)} == {0})
        operator.resume(task=unwrapped(quick))
        harness.eventually(lambda: len(seen.items) == 802)


# Rules of keys, set while jobs run


def test_limit_of_an_operator_wins_over_what_puts_say(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(6), limits={"x": 1})
    jobs = list(queue.lease_many(10, "1h", block=False))
    assert len(jobs) == 1
    queue.set_limit("x", 4)
    jobs += queue.lease_many(10, "1h", block=False)
    assert len(jobs) == 4
    queue.set_limit("x", 2)
    queue.ack_many(jobs[:2])
    assert queue.lease_many(10, "1h", block=False) == []
    queue.set_limit("x", None)
    assert queue.lease_many(10, "1h", block=False) == []
    queue.ack_many(jobs[2:])
    assert len(queue.lease_many(10, "1h", block=False)) == 1


@pytest.mark.parametrize("key", ["limit", "group"])
def test_jobs_of_a_paused_key_wait_and_others_go_on(harness: Harness, key: str) -> None:
    queue = harness.queue()
    named = {"limits": {"x": 2}} if key == "limit" else {"group": "x"}
    other = {"limits": {"y": 2}} if key == "limit" else {"group": "y"}
    first = queue.put("runs", **named)
    job = queue.lease("1h", block=False)
    assert job.id == first
    queue.pause(**{key: "x"})
    queue.put("waits", **named)
    queue.put("other", **other)
    queue.put("plain")
    found: set[str] = set()

    def has_all() -> bool:  # a lane is found some milliseconds after the put
        found.update(job.data for job in queue.lease_many(10, "1h", block=False))
        return len(found) > 1

    harness.eventually(has_all)
    assert found == {"other", "plain"}
    queue.ack(job)
    assert queue.lease("1h", block=False) is None
    queue.resume(**{key: "x"})
    assert queue.lease("1h", block=False).data == "waits"


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("change", ["limit", "pause"])
def test_change_of_a_key_wakes_workers(harness: Harness, change: str) -> None:
    queue = harness.task_queue(poll_interval=NEVER)
    seen, over = Notes(), Latch()

    @queue.task(limits={"x": 1})
    def hold(job_id: int, number: int) -> None:
        seen.add(number)
        over.wait()

    if change == "pause":
        queue.pause(limit="x")
    with harness.working(queue, poll_interval=NEVER, concurrency=5):
        for number in range(3):
            hold(number)
        if change == "pause":
            harness.eventually(harness.listening)
            assert seen.items == []
            queue.resume(limit="x")
        assert len(seen.wait(1)) == 1
        queue.set_limit("x", 3)
        assert sorted(seen.wait(3)) == [0, 1, 2]
        over.open()


def test_rate_of_a_key_holds_over_all_consumers(harness: Harness) -> None:
    first, second = harness.queue(), harness.queue()
    first.put_many(range(20), limits={"x": 100})
    first.set_rate("x", (4, "1h"))
    taken = [*first.lease_many(3, "1h", block=False), *second.lease_many(10, "1h", block=False)]
    assert len(taken) == 4
    assert first.ack_many(taken) == []
    assert first.lease("1h", block=False) is None
    second.set_rate("x", None)
    assert len(second.lease_many(100, "1h", block=False)) == 16


def test_limits_in_use_are_listed_with_their_numbers(harness: Harness) -> None:
    queue = harness.queue()
    assert queue.limits() == []
    queue.put_many(range(3), limits={"x": 1})
    queue.put("grouped", group="g", limits={"y" * 490: 5})  # on a lane whose text is a digest
    queue.put_many(["a", "b"], limits={"x": 2, "z": 1})
    queue.set_limit("x", 2)
    queue.set_limit("unused", 7)
    queue.set_rate("x", "100/s")
    jobs: list[Any] = []

    def has_three() -> bool:
        jobs.extend(queue.lease_many(10, "1h", block=False))
        return len(jobs) == 3

    harness.eventually(has_three)
    queue.pause(limit="z")
    found = {(usage.kind, usage.name): usage for usage in queue.limits()}
    x = found["limit", "x"]
    assert (x.places, x.rule, x.rate, x.paused, x.waiting) == (2, 2, "100/1s", False, 3)
    assert x.newest in (1, 2)
    assert x.running == tuple(sorted(job.id for job in jobs if job.data != "grouped"))
    [grouped] = [job.id for job in jobs if job.data == "grouped"]
    assert (found["group", "g"].running, found["limit", "y" * 490].running) == ((grouped,), (grouped,))
    assert (found["limit", "y" * 490].places, found["limit", "unused"].places) == (5, 7)
    assert found["limit", "z"].paused
    assert len(found) == 5
    queue.ack_many(jobs)
    assert {usage.running for usage in queue.limits()} == {()}
