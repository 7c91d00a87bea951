"""Concurrent calls of one process that share one statement and one commit."""

from __future__ import annotations

import asyncio
import ctypes
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.db import group_commit
from pqcore.errors import ConfigurationError, InvalidData, LeaseLost, NotStored, OutcomeUnknown
from pqcore.sql.identifiers import quote
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.proxy import Proxy
from pqcore.testing.suite.test_forks import in_child

CALLERS = 12


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make calls wait for a statement that is held up, until a test releases it."""
    monkeypatch.setattr(group_commit, "PATIENCE", PATIENCE)


def lines_of(queue: Any) -> list[Any]:
    return list(unwrapped(queue).lines)


def wait_for_waiting(harness: Harness, queue: Any, number: int) -> None:
    """Wait until this number of calls wait in the line."""
    harness.eventually(lambda: sum(len(line.waiting) for line in lines_of(queue)) == number)


def caught(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that returns what a call returns or raises."""

    def work() -> Any:
        try:
            return call()
        except Exception as exc:
            return exc

    return work


@contextmanager
def locked(harness: Harness, lock: str) -> Iterator[Callable[[], None]]:
    """Hold a lock in a transaction; yield a function that ends it."""
    holder = harness.connect()
    holder.begin()
    holder.sql(lock, rows=lock.startswith("SELECT"))
    try:
        yield holder.rollback
    finally:
        holder.rollback()


def slow_lock(harness: Harness, event: str = "INSERT") -> str:
    """Make a trigger that lets puts or takes of "slow" wait for a lock; return a function that takes the lock."""
    take = "pg_advisory_xact_lock(hashtext(TG_TABLE_SCHEMA))::text"
    make_trigger(harness, f"IF NEW.data::text = '\"slow\"' THEN PERFORM {take}; END IF; RETURN NEW;", event)
    return f"SELECT pg_advisory_xact_lock(hashtext('{harness.schema}'))::text"


def wait_for_blocked(harness: Harness, number: int) -> None:
    """Wait until this number of the queues' connections wait for a lock."""
    found = (
        f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{harness.application}' AND wait_event_type = 'Lock'"
    )
    harness.eventually(lambda: len(harness.sql(found)) == number)


def travel(
    harness: Harness, queue: Any, *calls: Callable[[], Any], first: Callable[[], Any] | None = None
) -> list[Any]:
    """Make calls share a statement, by holding up a first put until all of them wait.

    Return what each returns or raises.
    """
    with ExitStack() as stack:
        with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE"):
            stack.enter_context(harness.thread(first or (lambda: queue.put("first"))))
            wait_for_blocked(harness, 1)
            joins = []
            for number, call in enumerate(calls, 1):
                joins.append(stack.enter_context(harness.thread(caught(call))))
                wait_for_waiting(harness, queue, number)
        return [join() for join in joins]


def put_each(queue: Any, values: Any) -> list[Callable[[], Any]]:
    return [partial(queue.put, value) for value in values]


def commits(harness: Harness) -> int:
    """Return how many transactions put the jobs of the table."""
    [[number]] = harness.sql("SELECT count(DISTINCT xmin::text) FROM {table}")
    return int(number)


def stored(harness: Harness) -> dict[int, str]:
    return dict(harness.sql("SELECT id, data::text FROM {table}"))


def make_trigger(harness: Harness, body: str, event: str = "INSERT") -> None:
    """Make a trigger that sees each row before it is inserted or changed."""
    name = f"{quote(harness.schema)}.changes"
    harness.sql(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER changes BEFORE {event} ON {{table}} FOR EACH ROW EXECUTE FUNCTION {name}()", rows=False
    )


def test_concurrent_puts_take_one_commit_and_each_gets_its_own_id(harness: Harness) -> None:
    queue = harness.queue()
    ids = travel(harness, queue, *put_each(queue, range(CALLERS)))
    found = stored(harness)
    assert [found.pop(job) for job in ids] == [str(number) for number in range(CALLERS)]
    assert list(found.values()) == ['"first"']
    assert commits(harness) == 2
    assert [job.data for job in queue.peek(20)] == ["first", *range(CALLERS)]


@pytest.mark.parametrize("serializer", ["pickle", "own"])
def test_concurrent_puts_of_other_serializers_are_read_as_they_were_put(harness: Harness, serializer: str) -> None:
    options: dict[str, Any] = {"serializer": "pickle"}
    if serializer == "own":
        options = {"serializer": "json", "encode": lambda value: f'{{"value": "{value}"}}', "decode": str}
    queue = harness.pq().queue("q", **options)
    values = list(range(1, CALLERS))
    ids = travel(harness, queue, *put_each(queue, values))
    assert len(set(ids)) == len(values)
    assert commits(harness) == 2
    jobs = {job.id: job.data for job in queue.peek(CALLERS + 5)}
    expected = values if serializer == "pickle" else [f'{{"value": "{value}"}}' for value in values]
    assert [jobs[job] for job in ids] == expected


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_concurrent_puts_keep_their_own_headers(harness: Harness, serializer: str) -> None:
    queue = harness.pq().queue("q", serializer=serializer)
    calls = [partial(queue.put, [number], headers={"number": number}) for number in range(CALLERS)]
    ids = travel(harness, queue, *calls, first=partial(queue.put, ["first"], headers={"number": -1}))
    assert commits(harness) == 2
    jobs = {job.id: (job.data, job.headers) for job in queue.peek(20)}
    assert [jobs[job] for job in ids] == [([number], {"number": number}) for number in range(CALLERS)]


def test_concurrent_calls_of_a_task_get_handles_with_the_time_of_their_own_row(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task
    def work(job_id: int, number: int) -> int:
        return number

    handles = travel(harness, queue, *[partial(work, number) for number in range(CALLERS)], first=lambda: work(-1))
    handles = [unwrapped(handle) for handle in handles]
    assert commits(harness) == 2
    times = dict(harness.sql("SELECT id, enqueued_at AT TIME ZONE 'UTC' FROM {table}"))
    assert [handle.put_at.replace(tzinfo=None) for handle in handles] == [times[int(handle)] for handle in handles]


def test_puts_that_a_trigger_drops_raise_not_stored_and_others_get_their_own_ids(harness: Harness) -> None:
    queue = harness.queue()
    make_trigger(
        harness, "IF NEW.data::text ~ '^[0-9]+$' AND NEW.data::text::int % 3 = 0 THEN RETURN NULL; END IF; RETURN NEW;"
    )
    answers = travel(harness, queue, *put_each(queue, range(CALLERS)))
    found = stored(harness)
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, NotStored)
            assert "changes" in str(answer)
        else:
            assert found.pop(answer) == str(number)
    assert list(found.values()) == ['"first"']
    assert commits(harness) == 2


def test_puts_whose_ids_a_trigger_changes_get_their_own_ids(harness: Harness) -> None:
    queue = harness.queue()
    make_trigger(
        harness,
        "IF NEW.data::text ~ '^[0-9]+$' THEN"
        " NEW.id := CASE WHEN NEW.data::text::int % 2 = 0 THEN 1000 ELSE 5000 END - NEW.data::text::int; END IF;"
        " RETURN NEW;",
    )
    answers = travel(harness, queue, *put_each(queue, range(CALLERS)))
    assert answers == [(1000 if number % 2 == 0 else 5000) - number for number in range(CALLERS)]
    found = stored(harness)
    assert [found[job] for job in answers] == [str(number) for number in range(CALLERS)]
    assert commits(harness) == 2


@pytest.mark.parametrize(
    "time", ["'epoch'", "date_trunc('second', NEW.enqueued_at)", "NEW.enqueued_at + interval '1 microsecond'"]
)
def test_puts_whose_times_a_trigger_changes_get_their_own_ids(harness: Harness, time: str) -> None:
    queue = harness.queue()
    make_trigger(harness, f"NEW.enqueued_at := {time}; RETURN NEW;")
    answers = travel(harness, queue, *put_each(queue, range(CALLERS)))
    found = stored(harness)
    assert [found[job] for job in answers] == [str(number) for number in range(CALLERS)]
    assert len(found) == CALLERS + 1


def test_line_whose_groups_are_refused_rests(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "REFUSED", 1)
    queue = harness.queue()
    make_trigger(harness, "NEW.enqueued_at := 'epoch'; RETURN NEW;")
    travel(harness, queue, *put_each(queue, range(3)))
    with ExitStack() as stack, locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE"):
        for number in range(3):
            stack.enter_context(harness.thread(partial(queue.put, number)))
            wait_for_blocked(harness, number + 1)  # each call by itself
    assert len(stored(harness)) == 7


def test_put_that_is_refused_fails_alone(harness: Harness) -> None:
    queue = harness.queue()
    harness.sql("ALTER TABLE {table} ADD CHECK (data::text <> '3')", rows=False)
    answers = travel(harness, queue, *put_each(queue, range(CALLERS)))
    assert isinstance(answers.pop(3), InvalidData)
    found = stored(harness)
    assert [found[job] for job in answers] == [str(number) for number in range(CALLERS) if number != 3]
    assert len(found) == CALLERS


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_lost_connection_is_told_to_each_put_that_was_under_way(harness: Harness, answered: bool) -> None:
    proxy = Proxy(harness.dsn)
    try:
        queue = harness.pq(proxy.dsn)["q"]
        proxy.cut_at('"mark"', answered=answered)
        errors = travel(harness, queue, *put_each(queue, ["mark", *range(1, CALLERS)]))
        assert [type(error) for error in errors] == [OutcomeUnknown] * CALLERS
        assert len({id(error) for error in errors}) == CALLERS
        assert all(error.__cause__ is not None for error in errors)
        assert len(stored(harness)) == (CALLERS + 1 if answered else 1)
        assert queue.put("after") in stored(harness)
    finally:
        proxy.close()


def test_caller_that_is_held_up_delays_no_other(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    queue = harness.queue()
    with locked(harness, slow_lock(harness)) as release, harness.thread(lambda: queue.put("slow")) as slow:
        wait_for_blocked(harness, 1)
        ids = harness.at_once(*put_each(queue, range(CALLERS)))
        assert len(set(ids)) == CALLERS
        assert len(stored(harness)) == CALLERS  # the slow call is still held up
        release()
        assert slow() not in ids


def test_put_within_a_block_does_not_travel(harness: Harness) -> None:
    queue = harness.queue()

    def put_and_undo() -> None:
        with queue:
            queue.put("undone")
            raise ZeroDivisionError

    with ExitStack() as stack:
        with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE"):
            stack.enter_context(harness.thread(lambda: queue.put("first")))
            wait_for_blocked(harness, 1)
            join = stack.enter_context(harness.thread(caught(put_and_undo)))
            wait_for_blocked(harness, 2)
        assert isinstance(join(), ZeroDivisionError)
    assert list(stored(harness).values()) == ['"first"']


def test_large_put_goes_by_itself(harness: Harness) -> None:
    queue = harness.queue()
    large = "x" * group_commit.LARGE
    queue.put(1)
    with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE") as release, ExitStack() as stack:
        stack.enter_context(harness.thread(lambda: queue.put(large)))
        wait_for_blocked(harness, 1)
        stack.enter_context(harness.thread(lambda: queue.put(2)))  # does not wait for the large call
        wait_for_blocked(harness, 2)
        stack.enter_context(harness.thread(lambda: queue.put(large)))  # nor does the large call wait for it
        wait_for_blocked(harness, 3)
        release()
    assert commits(harness) == 4


def test_puts_that_are_many_go_in_several_groups(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pqcore.db.task_line" if harness.mode == "async" else "pqcore.db.thread_line"
    monkeypatch.setattr(f"{module}.MOST_CALLS", 5)
    queue = harness.queue()
    ids = travel(harness, queue, *put_each(queue, range(CALLERS)))
    found = stored(harness)
    assert [found[job] for job in ids] == [str(number) for number in range(CALLERS)]
    assert 3 <= commits(harness) <= 4


def test_switch_has_each_put_commit_by_itself(harness: Harness) -> None:
    queue = harness.queue(group_commit=False)
    assert lines_of(queue) == []
    harness.at_once(*put_each(queue, range(CALLERS)))
    assert lines_of(queue) == []
    assert commits(harness) == CALLERS


@pytest.mark.requires(Capability.POOL)
def test_puts_on_a_pool_of_the_callers_travel_only_if_asked_to(harness: Harness) -> None:
    queue = harness.pq(pool=harness.pool(size=2))["q"]
    queue.put(1)
    assert lines_of(queue) == []
    queue = harness.pq(pool=harness.pool(size=2), group_commit=True)["q"]
    ids = travel(harness, queue, *put_each(queue, range(CALLERS)))
    found = stored(harness)
    assert [found[job] for job in ids] == [str(number) for number in range(CALLERS)]
    assert commits(harness) == 3


def test_switch_is_refused_for_a_single_connection(harness: Harness) -> None:
    connection = harness.connect()
    with pytest.raises(ConfigurationError, match="group_commit=True"):
        harness.pq(connection.raw, create=False, group_commit=True)
    with pytest.raises(ConfigurationError, match="group_commit is 'yes'"):
        harness.pq(create=False, group_commit="yes")


def test_data_are_encoded_by_their_own_caller(harness: Harness) -> None:
    encoded: dict[str, object] = {}

    def encode(value: str) -> str:
        encoded[value] = asyncio.current_task() if harness.mode == "async" else threading.get_ident()
        return f'"{value}"'

    queue = harness.pq().queue("q", encode=encode)
    values = [f"value {number}" for number in range(CALLERS)]
    travel(harness, queue, *put_each(queue, values))
    assert len({encoded[value] for value in values}) == CALLERS
    assert sorted(job.data for job in queue.peek(20)) == sorted(["first", *values])


@pytest.mark.only("async")
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "under way"])
def test_cancelled_put_takes_no_other_along(harness: Harness, waits: bool) -> None:
    queue = unwrapped(harness.queue())
    tasks: list[asyncio.Task[int]] = []

    async def begin(*values: Any) -> None:
        tasks.extend([asyncio.get_running_loop().create_task(queue.put(value)) for value in values])

    async def cancel() -> None:
        cancelled = tasks.pop(2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    async def finish() -> list[Any]:
        return await asyncio.gather(*tasks)

    lock = slow_lock(harness)
    with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE") as release, locked(harness, lock) as go_on:
        harness.in_loop(lambda: begin("first"))
        wait_for_blocked(harness, 1)
        harness.in_loop(lambda: begin("slow", *range(CALLERS)))
        wait_for_waiting(harness, queue, CALLERS + 1)
        if waits:
            harness.in_loop(cancel)
        release()
        if not waits:
            wait_for_waiting(harness, queue, 0)
            wait_for_blocked(harness, 1)
            harness.in_loop(cancel)
        go_on()
        ids = harness.in_loop(finish)
    found = stored(harness)
    assert [found.pop(job) for job in ids] == ['"first"', '"slow"', *map(str, range(1, CALLERS))]
    assert list(found.values()) == ([] if waits else ["0"])


class Interrupted(Exception):
    """An interrupt, like that of a time limit."""


@pytest.mark.only("blocking")
def test_interrupted_leader_leaves_no_follower_waiting(harness: Harness) -> None:
    queue = harness.queue()
    leader: list[int] = []

    def lead() -> Any:
        leader.append(threading.get_ident())
        return queue.put("slow")

    with ExitStack() as stack:
        go_on = stack.enter_context(locked(harness, slow_lock(harness)))
        joins = []
        with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE"):
            stack.enter_context(harness.thread(lambda: queue.put("first")))
            wait_for_blocked(harness, 1)
            for number, call in enumerate([lead, *put_each(queue, range(1, CALLERS))], 1):
                joins.append(stack.enter_context(harness.thread(caught(call))))
                wait_for_waiting(harness, queue, number)
        wait_for_waiting(harness, queue, 0)
        wait_for_blocked(harness, 1)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(leader[0]), ctypes.py_object(Interrupted)) == 1
        go_on()
        answers = [join() for join in joins]
    assert isinstance(answers[0], (int, Interrupted))
    found = stored(harness)
    for number, answer in enumerate(answers[1:], 1):
        assert isinstance(answer, OutcomeUnknown) or found[answer] == str(number)
    assert queue.put("after") not in found
    assert [line.since for line in lines_of(queue)] == [0.0]


@pytest.mark.only("blocking")
def test_child_that_is_forked_while_puts_wait_puts_by_itself(harness: Harness) -> None:
    queue = harness.queue()

    with ExitStack() as stack:
        with locked(harness, slow_lock(harness)):
            joins = [stack.enter_context(harness.thread(lambda: queue.put("slow")))]
            wait_for_blocked(harness, 1)
            for number in range(1, 4):
                joins.append(stack.enter_context(harness.thread(partial(queue.put, number))))
                wait_for_waiting(harness, queue, number)
            in_child(lambda: queue.put("child"))
        ids = [join() for join in joins]
    found = stored(harness)
    assert [found.pop(job) for job in ids] == ['"slow"', "1", "2", "3"]
    assert list(found.values()) == ['"child"']


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "ack": lambda queue, job: queue.ack(job),
    "nack": lambda queue, job: queue.nack(job, "1h"),
    "extend": lambda queue, job: queue.extend(job, "1h"),
}
"""The operations on a leased job."""


def change_each(queue: Any, change: str, jobs: Any) -> list[Callable[[], Any]]:
    return [partial(CHANGES[change], queue, job) for job in jobs]


def changed(harness: Harness, change: str) -> list[int]:
    """Return the data of the jobs that were changed."""
    condition = {
        "ack": "dequeued_at IS NOT NULL",
        "nack": "schedule_at > statement_timestamp()",
        "extend": "leased_until > statement_timestamp() + interval '50 min'",
    }
    return [
        int(data) for [data] in harness.sql(f"SELECT data::text FROM {{table}} WHERE {condition[change]} ORDER BY id")
    ]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_concurrent_changes_of_leased_jobs_take_one_commit(harness: Harness, change: str, retention: str) -> None:
    if change != "ack" and retention != "keep":
        return
    queue = harness.queue(retention=retention)
    queue.put_many(range(CALLERS + 2))
    first, *jobs = queue.lease_many(CALLERS + 1, 60)
    answers = travel(harness, queue, *change_each(queue, change, jobs), first=partial(CHANGES[change], queue, first))
    assert answers == [None] * CALLERS
    if retention == "keep":
        assert changed(harness, change) == list(range(CALLERS + 1))
        assert commits(harness) == 3  # including that of the put of the job that was not leased
    else:
        assert [job.data for job in queue.peek(2)] == [CALLERS + 1]
        assert queue.jobs("leased") == []


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_a_locked_job_delays_no_other(harness: Harness, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.undo()
    queue = harness.queue()
    queue.put_many(range(CALLERS))
    jobs = queue.lease_many(CALLERS, 60)
    lock = f"SELECT id FROM {harness.table} WHERE id = {jobs[3].id} FOR UPDATE"
    with ExitStack() as stack:
        release = stack.enter_context(locked(harness, lock))
        calls = change_each(queue, change, jobs)
        slow = stack.enter_context(harness.thread(calls.pop(3)))
        harness.at_once(*calls)
        assert changed(harness, change) == [number for number in range(CALLERS) if number != 3]
        release()
        slow()
    assert changed(harness, change) == list(range(CALLERS))


@pytest.mark.parametrize("change", CHANGES)
def test_locked_job_of_a_group_is_changed_by_its_caller_alone(harness: Harness, change: str) -> None:
    queue = harness.queue()
    queue.put_many(range(CALLERS + 1))
    first, *jobs = queue.lease_many(CALLERS + 1, 60)
    lock = f"SELECT id FROM {harness.table} WHERE id = {jobs[3].id} FOR UPDATE"
    with ExitStack() as stack:
        with locked(harness, lock), locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE") as go_on:
            stack.enter_context(harness.thread(partial(CHANGES[change], queue, first)))
            wait_for_blocked(harness, 1)
            joins = []
            for number, call in enumerate(change_each(queue, change, jobs), 1):
                joins.append(stack.enter_context(harness.thread(call)))
                wait_for_waiting(harness, queue, number)
            go_on()
            slow = joins.pop(3)
            for join in joins:
                join()
            assert changed(harness, change) == [0, *[number + 1 for number in range(CALLERS) if number != 3]]
        slow()
    assert changed(harness, change) == list(range(CALLERS + 1))


def test_lost_leases_are_told_to_their_own_callers(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(5))
    first, *jobs = queue.lease_many(5, 60)
    queue.nack(jobs[0])
    answers = travel(harness, queue, *change_each(queue, "ack", [*jobs, jobs[2]]), first=partial(queue.ack, first))
    assert [type(answer) for answer in answers] == [LeaseLost, *[type(None)] * 3, LeaseLost]
    assert changed(harness, "ack") == [0, 2, 3, 4]


@pytest.mark.parametrize("leased", [False, True], ids=["get", "lease"])
@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_concurrent_takes_give_each_caller_jobs_of_its_own(harness: Harness, leased: bool, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put_many(range(20))
    unwrapped(queue).rule_cache.expires_at = float("inf")  # otherwise each caller would read the rules first

    def take(n: int = 1) -> list[Any]:
        jobs = queue.lease_many(n, 60, timeout=0) if leased else queue.get_many(n, timeout=0)
        return [job.data for job in jobs]

    answers = travel(harness, queue, *[partial(take, n) for n in (1, 3, 1, 2, 9, 5, 4)], first=take)
    assert answers == [[1], [2, 3, 4], [5], [6, 7], list(range(8, 17)), [17, 18, 19], []]
    assert queue.count() == 0
    if retention == "keep":
        assert commits(harness) == 2


def test_concurrent_takes_give_each_job_once(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(3 * CALLERS))
    found = harness.at_once(*[lambda: [queue.get(timeout=0).data for _ in range(3)]] * CALLERS)
    assert sorted(job for jobs in found for job in jobs) == list(range(3 * CALLERS))


def test_concurrent_gets_of_an_empty_queue_wait_for_their_timeouts(harness: Harness) -> None:
    queue = harness.queue()
    assert harness.at_once(*[lambda: queue.get(timeout=0.1)] * CALLERS) == [None] * CALLERS
    queue.put_many(range(3))
    found = harness.at_once(*[lambda: queue.get(timeout=0)] * CALLERS)
    assert sorted(job.data for job in found if job is not None) == [0, 1, 2]


def test_jobs_under_a_limit_are_given_to_concurrent_callers_one_by_one(harness: Harness) -> None:
    queue = harness.queue()
    for number in range(6):
        queue.put(number, limits={"key": 3})
    jobs = [job for job in harness.at_once(*[lambda: queue.lease(60, timeout=0)] * CALLERS) if job is not None]
    while (job := queue.lease(60, timeout=0)) is not None:  # a caller gets nothing if another has the key's row locked
        jobs.append(job)
    assert len({job.id for job in jobs}) == len(jobs) == 3


@pytest.mark.only("async")
@pytest.mark.parametrize("leased", [False, True], ids=["get", "lease"])
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "under way"])
def test_cancelled_take_loses_no_job(harness: Harness, waits: bool, leased: bool) -> None:
    queue = unwrapped(harness.queue())
    harness.wait_for(lambda: queue.put_many(["first", "slow", *range(CALLERS)]))
    queue.rule_cache.expires_at = float("inf")
    tasks: list[asyncio.Task[Any]] = []

    def take() -> Any:
        return queue.lease(60, timeout=0) if leased else queue.get(timeout=0)

    async def begin(number: int) -> None:
        tasks.extend([asyncio.get_running_loop().create_task(take()) for _ in range(number)])

    async def cancel() -> None:
        cancelled.append(tasks.pop(2))
        cancelled[0].cancel()

    async def finish() -> list[Any]:
        with pytest.raises(asyncio.CancelledError):
            await cancelled[0]
        return await asyncio.gather(*tasks)

    cancelled: list[asyncio.Task[Any]] = []
    lock = slow_lock(harness, "UPDATE")
    with locked(harness, f"LOCK TABLE {harness.table} IN SHARE MODE") as release, locked(harness, lock) as go_on:
        harness.in_loop(lambda: begin(1))
        wait_for_blocked(harness, 1)
        harness.in_loop(lambda: begin(5))
        wait_for_waiting(harness, queue, 5)
        if waits:
            harness.in_loop(cancel)
        release()
        if not waits:
            wait_for_waiting(harness, queue, 0)
            wait_for_blocked(harness, 1)
            harness.in_loop(cancel)
        go_on()
        jobs = harness.in_loop(finish)
    expected = ["first", "slow", 0, 1, 2] if waits else ["first", "slow", 1, 2, 3]
    assert [job.data for job in jobs] == expected
    job = harness.in_loop(take)
    assert job.data == (3 if waits else 0)
    assert job.attempts == 1


def test_locked_job_delays_no_lease_of_other_jobs_of_a_worker(harness: Harness) -> None:
    queue = harness.task_queue()
    over = threading.Event()

    @queue.task
    def work(job_id: int) -> None:
        over.wait(PATIENCE)

    ids = [int(work()) for _ in range(3)]
    lock = f"SELECT id FROM {harness.table} WHERE id = {ids[0]} FOR UPDATE"

    def leases() -> list[Any]:
        found = harness.sql("SELECT leased_until FROM {table} WHERE leased_until > statement_timestamp() ORDER BY id")
        return [until for [until] in found]

    with harness.working(queue, lease=3.0, concurrency=3):
        try:
            harness.eventually(lambda: len(leases()) == 3)
            with locked(harness, lock):
                before = leases()
                for _ in range(2):  # both other leases are extended, repeatedly
                    harness.eventually(lambda: all(map(operator.gt, leases()[-2:], before[-2:])))
                    before[-2:] = leases()[-2:]
            harness.eventually(lambda: len(leases()) == 3 and leases()[0] > before[0])
        finally:
            over.set()


@pytest.mark.parametrize("fails", [False, True], ids=["done", "dead"])
def test_locked_job_delays_no_end_of_other_jobs_of_a_worker(harness: Harness, fails: bool) -> None:
    queue = harness.task_queue()
    over = threading.Event()

    @queue.task
    def work(job_id: int, number: int) -> None:
        if number < 4:
            over.wait(PATIENCE)
        if fails:
            raise ArithmeticError

    def left() -> list[int]:
        return [job for [job] in harness.sql("SELECT id FROM {table} WHERE dequeued_at IS NULL")]

    ids = [int(work(number)) for number in range(4)]
    lock = f"SELECT id FROM {harness.table} WHERE id = {ids[1]} FOR UPDATE"
    taken = f"SELECT id FROM {harness.table} WHERE leased_until > statement_timestamp()"
    with harness.working(queue, lease="1h", concurrency=4):
        try:
            harness.eventually(lambda: len(harness.sql(taken)) == 4)
            with locked(harness, lock):
                over.set()
                harness.eventually(lambda: left() == [ids[1]])
                work(4)  # nor a job that comes later
                harness.eventually(lambda: left() == [ids[1]])
            harness.eventually(lambda: left() == [])
        finally:
            over.set()
