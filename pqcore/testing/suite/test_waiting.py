"""Waiting for jobs, and being woken: by notifications, by time, and by polling if neither helps.

``poll_interval=3600`` means that only a notification, or a time known beforehand, can wake this waiter. A waiter that
misses its wake-up exceeds the harness's patience. So that nothing else wakes it, a new waiter does not repeat its look
(`channels.SETTLE`), except in tests about that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pqcore import lane_book
from pqcore.backend import Capability
from pqcore.db import channels, shared_connection_listener
from pqcore.db import listener as waiting
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConnectionLost
from pqcore.operations import read_rules
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName, channel
from pqcore.testing.connections import Connection, statement
from pqcore.testing.harness import PATIENCE, Harness, patiently
from pqcore.testing.portal import unwrapped

NEVER = 3600.0
MOMENT = 0.02
SHORT = timedelta(milliseconds=150)
INSERT = "INSERT INTO {table} (q_name, data) VALUES ('%s', '\"%s\"')"


@pytest.fixture(autouse=True)
def _no_other_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "SETTLE", NEVER)
    monkeypatch.setattr(channels, "LINGER", NEVER)
    monkeypatch.setattr(Engine, "line", lambda engine, *call: None)  # so that each look uses `Engine.run`


def listen(harness: Harness, *queues: Any) -> None:
    """Wait for each queue once, so that later waits are notified from their beginning."""
    for queue in queues:
        rounds = patiently(f"{queue!r} is listened to")
        while channel(queue.name) not in harness.listener(queue.engine)._channels:
            next(rounds)
            assert queue.get(timeout=0.02) is None


class Looks:
    """A counter of an engine's completed looks at the table and other operations."""

    def __init__(self) -> None:
        self.count = 0
        self._change = threading.Condition()

    def add(self) -> None:
        with self._change:
            self.count += 1
            self._change.notify_all()

    def reach(self, count: int) -> None:
        """Wait until this number of them have ended."""
        with self._change:
            assert self._change.wait_for(lambda: self.count >= count, PATIENCE), f"only {self.count} looks"


def reads_rules(operation: Callable[..., Any]) -> bool:
    """Return whether an engine's operation only reads the rules of a queue, before it looks for a job."""
    return operation.__module__ == read_rules.__name__


@contextmanager
def counted(queue: Any) -> Iterator[Looks]:
    """Count the operations of a queue's engine."""
    looks, engine = Looks(), queue.engine
    run = engine.run

    async def counting(operation: Any, **options: Any) -> Any:
        result = await run(operation, **options)
        if not reads_rules(operation):
            looks.add()
        return result

    engine.run = counting
    try:
        yield looks
    finally:
        engine.run = run


@contextmanager
def waiter(
    harness: Harness, queue: Any, wait: Callable[[], Any] | None = None, *, looks: int = 1
) -> Iterator[Callable[[], Any]]:
    """Make a thread wait for a job, and enter the block after it has looked in vain.

    Args:
        harness: The harness of the test.
        queue: The queue, for which LISTEN is already in force (see `listen`).
        wait: The function that waits; by default a get without a timeout.
        looks: How often the waiter looks before it sleeps.
    """
    with counted(queue) as looked, harness.thread(wait or partial(queue.get, timeout=NEVER)) as join:
        looked.reach(looks)
        yield join


def others(harness: Harness) -> list[int]:
    """Return the server's process ids of the test's connections on which nobody waits."""
    harness.needs_sessions()
    rows = harness.sql(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{harness.application}'")
    waiting = harness.waiting()
    return [pid for [pid] in rows if pid not in waiting]


def cut(harness: Harness, pids: list[int]) -> None:
    """Make the server end these connections, but not those that replace them."""
    assert pids
    numbers = ", ".join(map(str, pids))
    harness.sql(f"SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{numbers}]) AS pid")
    harness.eventually(lambda: not harness.sql(f"SELECT 1 FROM pg_stat_activity WHERE pid IN ({numbers})"))


def silent(harness: Harness) -> Connection:
    """Return a connection whose inserts notify nobody."""
    harness.needs_sessions()
    connection = harness.connect()
    connection.sql("SET pqcore.notify = 'off'", rows=False)
    return connection


def unpolled(harness: Harness, *, one: bool) -> Any:
    """Return a queue that does not poll, over its own connections or over a caller's connection."""
    return harness.pq(harness.connect().raw, poll_interval=NEVER)["q"] if one else harness.queue(poll_interval=NEVER)


each_way = pytest.mark.parametrize(
    "one",
    [
        pytest.param(False, id="own"),
        pytest.param(True, id="the caller's", marks=pytest.mark.requires(Capability.LISTEN, adopted=True)),
    ],
)


def insert(harness: Harness, connection: Connection, name: str, data: str) -> None:
    connection.sql((INSERT % (name, data)).replace("{table}", harness.table), rows=False)


# The length of a wait


def seconds(wait: Callable[[], Any]) -> float:
    """Return how long a call takes to find nothing."""
    began = time.monotonic()
    assert not wait()
    return time.monotonic() - began


def test_get_waits_until_its_timeout(harness: Harness) -> None:
    queue = harness.queue(timeout=NEVER)
    assert 0.1 <= seconds(lambda: queue.get(timeout=0.1)) < PATIENCE
    assert 0.05 <= seconds(lambda: queue.get(True, 0.05)) < PATIENCE
    assert 0.05 <= seconds(lambda: queue.get_many(5, timeout=0.05)) < PATIENCE
    assert 0.05 <= seconds(lambda: queue.lease(wait=0.05)) < PATIENCE
    assert 0.05 <= seconds(lambda: queue.lease_many(5, wait=0.05)) < PATIENCE


def test_get_without_a_wait_returns_immediately(harness: Harness) -> None:
    queue = harness.queue(timeout=NEVER)
    began = time.monotonic()
    assert queue.get(timeout=0) is None
    assert queue.get(False) is None
    assert queue.get(block=False, timeout=NEVER) is None
    assert queue.get_many(5, timeout=0) == []
    assert queue.get_many(5, block=False) == []
    assert queue.lease(wait=0) is None
    assert queue.lease(block=False) is None
    assert time.monotonic() - began < PATIENCE
    queue.put("a")
    assert queue.get(timeout=0).data == "a"


def test_get_timeout_applies_to_its_call_only(harness: Harness) -> None:
    queue = harness.queue(timeout=0.02)
    assert seconds(lambda: queue.get(timeout=0.1)) >= 0.1
    assert queue.timeout == 0.02
    queue.put("a")
    assert queue.get(timeout=NEVER).data == "a"
    assert queue.timeout == 0.02
    assert 0.02 <= seconds(lambda: queue.get()) < PATIENCE
    queue.timeout = 0.1
    assert seconds(lambda: queue.get()) >= 0.1


def test_queue_timeout_is_1_s_by_default(harness: Harness) -> None:
    assert harness.queue().timeout == 1


@pytest.mark.parametrize("timeout", [-1, -0.001, "x", "", float("nan"), float("inf"), True])
def test_timeout_of_a_bad_value_is_refused(harness: Harness, timeout: Any) -> None:
    queue = harness.queue()
    queue.put("a")
    with pytest.raises(ValueError):
        queue.get(timeout=timeout)
    with pytest.raises(ValueError):
        queue.get_many(1, timeout=timeout)
    with pytest.raises(ValueError):
        queue.lease(wait=timeout)
    queue.timeout = timeout
    with pytest.raises(ValueError):
        queue.get()
    assert queue.stats().ready == 1
    with pytest.raises(ValueError):
        harness.pq(timeout=-1)


# Woken by notifications

TAKES: dict[str, Callable[[Any], Any]] = {
    "get": lambda queue: queue.get(timeout=NEVER),
    "get_many": lambda queue: queue.get_many(5, timeout=NEVER)[0],
    "lease": lambda queue: queue.lease(wait=NEVER),
    "lease_many": lambda queue: queue.lease_many(5, wait=NEVER)[0],
    "iteration": lambda queue: next(iter(queue)),
}


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_put_wakes_a_waiter(harness: Harness, take: Callable[[Any], Any]) -> None:
    queue = harness.queue(poll_interval=NEVER, timeout=NEVER)
    listen(harness, queue)
    with waiter(harness, queue, partial(take, queue)) as join:
        job_id = harness.queue(create=False).put("a")
        assert join().id == job_id


@contextmanager
def one_statement(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the names of the statements that run in the block, after all caches were emptied."""
    monkeypatch.setattr(read_rules, "KEPT", 0.0)
    monkeypatch.setattr(lane_book, "FIND", 0.0)
    names: list[str] = []
    execute = Session.execute

    async def noted(session: Session, query: Any, parameters: Sequence[object] = ()) -> Any:
        names.append(query.name)
        return await execute(session, query, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "execute", noted)
        yield names


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("take", ["get", "lease"])
def test_waiter_takes_the_job_that_woke_it_with_one_statement(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, take: str
) -> None:
    with one_statement(monkeypatch) as names:
        queue = harness.queue(poll_interval=NEVER)
        listen(harness, queue)
        with waiter(harness, queue, partial(TAKES[take], queue)) as join:
            names.clear()
            harness.sql(INSERT % ("q", "a"), rows=False)
            assert join().data == "a"
    names.remove("test")  # the insert
    assert len(names) == 1
    assert names[0].endswith("_1_idle")


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("take", ["get", "lease"])
def test_waiter_that_is_woken_heeds_a_pause_that_nobody_was_notified_of(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, take: str
) -> None:
    with one_statement(monkeypatch):
        queue = harness.queue(poll_interval=NEVER)
        listen(harness, queue)
        with waiter(harness, queue, partial(TAKES[take], queue)) as join:
            rules = str(TableName("queue_rules", harness.schema))
            harness.sql(f"INSERT INTO {rules} (q_name, kind, name) VALUES ('q', 'pause', 'queue')", rows=False)
            harness.sql(INSERT % ("q", "a"), rows=False)
            time.sleep(10 * MOMENT)
            assert harness.sql("SELECT dequeued_at, leased_until FROM {table}") == [(None, None)]
            queue.resume()
            assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_that_is_woken_leases_the_job_of_the_highest_priority(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_statement(monkeypatch):
        queue = harness.queue(poll_interval=NEVER)
        listen(harness, queue)
        with waiter(harness, queue, partial(queue.lease, wait=NEVER)) as join:
            other = harness.queue(create=False)
            with other:
                other.put("plain")
                other.put("urgent", priority=1)
            assert join().data == "urgent"


@pytest.mark.requires(Capability.LISTEN)
def test_put_wakes_the_first_wait(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        harness.eventually(harness.listening)
        queue.put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_insert_by_another_client_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_put_many_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with waiter(harness, queue, partial(queue.get_many, 100, timeout=NEVER)) as join:
        harness.queue(create=False).put_many(range(50))
        assert [job.data for job in join()] == list(range(50))


@pytest.mark.requires(Capability.LISTEN)
def test_commit_wakes_a_waiter_and_an_open_transaction_does_not(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.queue(create=False)
    listen(harness, queue)
    with counted(queue) as looks, waiter(harness, queue, lambda: (queue.get(timeout=NEVER), time.monotonic())) as join:
        with other:
            other.put("a")
            harness.sql("NOTIFY q", rows=False)
            looks.reach(2)  # the job is not there yet
            before = time.monotonic()
        job, woken = join()
    assert (job.data, woken > before) == ("a", True)


@pytest.mark.requires(Capability.LISTEN)
def test_rollback_leaves_the_waiter_waiting(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.connect()
    listen(harness, queue)
    with waiter(harness, queue) as join:
        other.begin()
        insert(harness, other, "q", "undone")
        other.rollback()
        insert(harness, other, "q", "a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_nack_wakes_a_waiter(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.queue(create=False)
    other.put("a")
    held = other.lease(NEVER)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        held.nack()
        assert join().attempts == 2


@pytest.mark.requires(Capability.LISTEN)
def test_put_wakes_a_waiter_while_scheduled_jobs_exist(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("later", "1h")
    queue.put("later still", "1h", "2h")
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:  # in this case, pq did not listen
        harness.eventually(harness.listening)
        queue.put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize(
    "name",
    ["a b", 'quo"ted', "'; --", "é" * 31 + "x", "é" * 32, "x" * 63, "x" * 64, "X" * 200, "C:\\x", "日本", "SELECT"],
)
def test_queue_of_any_name_wakes_its_waiter(harness: Harness, name: str) -> None:
    queue = harness.queue(name, poll_interval=NEVER)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        harness.sql(INSERT % (name.replace("'", "''"), "a"), rows=False)
        assert join().data == "a"


@pytest.mark.read_committed
@pytest.mark.requires(Capability.LISTEN)
def test_waiter_in_a_transaction_is_woken(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)

    def wait() -> Any:
        with queue:
            return queue.get(timeout=PATIENCE)  # a bounded wait, because it holds a lock on the table

    with waiter(harness, queue, wait) as join:
        harness.queue(create=False).put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_notification_of_another_queue_returns_no_job(harness: Harness) -> None:
    pq = harness.pq(poll_interval=NEVER)
    listen(harness, pq["a"], pq["b"])
    with waiter(harness, pq["a"]) as join, harness.thread(lambda: pq["b"].get(timeout=NEVER)) as other:
        harness.sql(f"NOTIFY {channel('a')}", rows=False)  # a notification without a job
        pq["b"].put("b")
        assert other().data == "b"
        pq["b"].put("b again")
        pq["a"].put("a")
        assert join().data == "a"
    assert pq["b"].get(block=False).data == "b again"


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_continues_after_a_notification_without_a_job(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with counted(queue) as looks, waiter(harness, queue) as join:
        for number in range(2, 5):
            harness.sql("NOTIFY q", rows=False)
            looks.reach(number)
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiters_on_one_queue_get_one_job_each(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    got: list[int] = []
    change = threading.Condition()

    def wait() -> None:
        job = queue.get(timeout=NEVER)
        with change:
            got.append(job.id)
            change.notify_all()

    def has(count: int) -> bool:
        return len(got) >= count

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    put = []
    for number in range(1, 5):
        put.append(queue.put(number))
        with change:
            assert change.wait_for(partial(has, number), PATIENCE)
        assert got == put
        assert sum(thread.is_alive() for thread in threads) >= 4 - number
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def after_the_first_look(harness: Harness, queue: Any, *, heard: bool) -> Iterator[None]:
    """Put a job after a waiter has looked in vain, before it does anything else.

    Args:
        harness: The harness of the test.
        queue: The queue.
        heard: Whether the waiter continues only after the notification has arrived.
    """
    engine, topic = queue.engine, channel(queue.name)
    run = engine.run

    async def racing(operation: Any, **options: Any) -> Any:
        if reads_rules(operation):
            return await run(operation, **options)
        engine.run = run
        result = await run(operation, **options)
        before = engine.listener.snapshot(topic)
        assert (before is not None) == heard
        harness.sql(INSERT % ("q", "a"), rows=False)
        rounds = patiently("the notification is heard")
        while heard and engine.listener.snapshot(topic) == before:
            next(rounds)
            await engine.runtime.sleep(0.001)
        return result

    engine.run = racing
    yield
    assert engine.run == run


@pytest.mark.requires(Capability.LISTEN)
def test_notification_between_the_first_look_and_the_wait_wakes_the_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with after_the_first_look(harness, queue, heard=True), harness.thread(partial(queue.get, timeout=NEVER)) as join:
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_job_put_just_before_a_waiter_listens_is_found(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    with after_the_first_look(harness, queue, heard=False), harness.thread(partial(queue.get, timeout=NEVER)) as join:
        assert join().data == "a"


# Woken by time


SCHEDULED: dict[str, tuple[Any, ...]] = {"scheduled": (SHORT,), "and expected": (SHORT, "1h")}


def late_enough(harness: Harness, job_id: int) -> bool:
    [[due]] = harness.sql(f"SELECT dequeued_at >= schedule_at FROM {{table}} WHERE id = {job_id}")
    return bool(due)


@pytest.mark.parametrize("times", SCHEDULED.values(), ids=SCHEDULED)
def test_waiter_wakes_when_a_job_becomes_due(harness: Harness, times: tuple[Any, ...]) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("later", "1h")
    job_id = queue.put("a", *times)
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        assert join().id == job_id
    assert late_enough(harness, job_id)


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("times", SCHEDULED.values(), ids=SCHEDULED)
def test_waiter_wakes_when_a_job_put_during_the_wait_becomes_due(harness: Harness, times: tuple[Any, ...]) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("later", "1h")
    listen(harness, queue)
    with waiter(harness, queue) as join:
        job_id = harness.queue(create=False).put("a", *times)
        assert join().id == job_id
    assert late_enough(harness, job_id)


@pytest.mark.parametrize("times", [(), (None, "1h")], ids=["plain", "expected"])
def test_waiter_wakes_when_a_lease_expires(harness: Harness, times: tuple[Any, ...]) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("a", *times)
    queue.lease(SHORT)
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        job = join()
    assert (job.data, job.attempts) == ("a", 2)


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_wakes_when_a_lease_taken_during_the_wait_expires(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.queue(create=False)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        with other:
            other.put("a")
            assert other.lease(SHORT).data == "a"
        job = join()
    assert (job.data, job.attempts) == ("a", 2)


def test_get_timeout_may_end_before_a_job_is_due(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a", "1h")
    assert seconds(lambda: queue.get(timeout=0.1)) >= 0.1


def test_get_in_a_transaction_finds_a_job_that_becomes_due(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    queue.put("a", SHORT)
    with queue:  # in pq, now() stood still here
        assert queue.get(block=False) is None
        assert queue.get(timeout=PATIENCE).data == "a"


# Woken by polling


@pytest.mark.requires(Capability.LISTEN)
def test_polling_finds_a_job_put_without_notification(harness: Harness) -> None:
    queue = harness.queue(poll_interval=0.05)
    quiet = silent(harness)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        insert(harness, quiet, "q", "a")
        assert join().data == "a"


def test_waiter_without_a_listening_connection_polls(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)

    async def refused() -> None:
        raise ConnectionLost("no more connections")

    queue.engine.source.listener = refused
    with waiter(harness, queue) as join:
        harness.queue(create=False).put("a")
        assert join().data == "a"
    assert harness.waiting() == []


def test_waiter_over_a_backend_without_listen_polls(harness: Harness) -> None:
    key, spec = (harness.spec.name, harness.spec.mode), harness.spec
    deaf = replace(spec, capabilities=spec.capabilities - {Capability.LISTEN}, missing={Capability.LISTEN: "a test"})
    plugins._specs[key] = deaf
    try:
        queue = harness.queue(poll_interval=NEVER)
    finally:
        plugins._specs[key] = spec
    with waiter(harness, queue) as join:
        assert harness.waiting() == []  # its session need not have the method
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"
    assert harness.connections() == 1


def test_waiter_behind_a_pooler_polls_and_leaves_no_session_state(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER, prepared=False)
    with waiter(harness, queue) as join:
        assert harness.connections() == 1
        assert not harness.waiting()
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
@each_way
def test_waiter_polls_without_locks_where_listen_does_not_last(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, one: bool
) -> None:
    monkeypatch.setattr(shared_connection_listener, "BLIND_POLL", MOMENT)
    monkeypatch.setattr("pqcore.db.waiting.BLIND_POLL", MOMENT)
    monkeypatch.setattr("pqcore.db.shared_poll.BLIND_POLL", MOMENT)
    queue = unpolled(harness, one=one)
    source = queue.engine.source
    refused: list[str] = []
    open_listener = source.listener

    def forget(session: Any) -> None:
        """Make LISTEN reach another session of the server, as a pooler may."""

        async def elsewhere(channel: str) -> None:
            refused.append(channel)

        session.listen = elsewhere

    async def forgetful() -> Any:
        session = await open_listener()
        forget(session)
        return session

    if one:
        forget(source.session)
    else:
        source.listener = forgetful
    with waiter(harness, queue, looks=5) as join:
        assert refused == ["q"]  # and it is not tried again immediately
        assert not harness.waiting()
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


# A look that waiters share


class SharedLooks:
    """The shared looks of an engine, with the queues that each statement asked for."""

    def __init__(self, queue: Any) -> None:
        self.asked: list[list[str]] = []
        self._look = queue.engine._ready_queues

    async def __call__(self, names: Sequence[str]) -> Any:
        found = await self._look(names)
        self.asked.append(sorted(names))
        return found


@pytest.fixture(params=["a pooler", "too many channels"])
def unheard(harness: Harness, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a `PQ` whose waiters no notification can wake, and which do not look by themselves."""
    monkeypatch.setattr("pqcore.db.shared_poll.OWN_LOOK", NEVER)
    monkeypatch.setattr("pqcore.db.shared_poll.BLIND_POLL", 0.05)
    if request.param == "a pooler":
        return harness.pq(poll_interval=NEVER, prepared=False)
    pq = harness.pq(poll_interval=NEVER)
    harness.listener(pq["q"].engine)._most = 0
    return pq


def test_waiters_without_notifications_share_one_poll(harness: Harness, unheard: Any) -> None:
    names = [f"q{number}" for number in range(6)]
    engine = unheard["q"].engine
    looks = engine._ready_queues = SharedLooks(unheard["q"])
    with ExitStack() as stack:
        joins = {name: stack.enter_context(harness.thread(partial(unheard[name].get, timeout=NEVER))) for name in names}
        harness.eventually(lambda: names in looks.asked)
        with counted(unheard["q"]) as looked:
            asked = len(looks.asked)
            harness.eventually(lambda: len(looks.asked) >= asked + 4)
            # a separate look for each waiter would be six times as many
            assert looked.count <= len(looks.asked) - asked + 2
        for name in names:  # the waiter that looks is among them, and leaves
            harness.sql(INSERT % (name, name), rows=False)
            assert joins[name]().data == name
    assert not harness.waiting()
    assert not harness.listener(engine)._shared._sharers


def test_shared_poll_passes_from_a_leaving_waiter_to_another(harness: Harness, unheard: Any) -> None:
    looks = unheard["q"].engine._ready_queues = SharedLooks(unheard["q"])
    with harness.thread(partial(unheard["first"].get, timeout=1.0)) as leave:
        harness.eventually(lambda: ["first"] in looks.asked)
        with harness.thread(partial(unheard["second"].get, timeout=NEVER)) as join:
            assert leave() is None
            harness.sql(INSERT % ("second", "a"), rows=False)
            assert join().data == "a"


@pytest.mark.only("async")
def test_shared_poll_passes_from_a_cancelled_waiter_to_another(harness: Harness, unheard: Any) -> None:
    pq = unwrapped(unheard)
    looks = pq["q"].engine._ready_queues = SharedLooks(pq["q"])

    async def scenario() -> None:
        first = asyncio.ensure_future(pq["first"].get(timeout=NEVER))
        rounds = patiently("the first waiter looks for all")
        while ["first"] not in looks.asked:
            next(rounds)
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(pq["second"].get(timeout=NEVER))
        first.cancel()
        await pq["second"].put("a")
        assert (await asyncio.wait_for(second, PATIENCE)).data == "a"

    harness.in_loop(scenario)


def test_shared_poll_gives_each_waiter_of_one_queue_a_job(harness: Harness, unheard: Any) -> None:
    with ExitStack() as stack:
        joins = [stack.enter_context(harness.thread(partial(unheard["q"].get, timeout=NEVER))) for _ in range(2)]
        for data in range(2):
            harness.sql(INSERT % ("q", data), rows=False)
        assert sorted(join().data for join in joins) == ["0", "1"]


@pytest.mark.parametrize(
    "columns",
    [
        "expected_at) VALUES ('q', '1', now() + interval '1 h'",
        "schedule_at) VALUES ('q', '1', now() + interval '0.4 s'",
        "schedule_at, expected_at) VALUES ('q', '1', now() + interval '0.4 s', now() + interval '1 h'",
        "leased_until, attempts) VALUES ('q', '1', now() + interval '0.4 s', 1",
    ],
    ids=["expected", "scheduled", "scheduled and expected", "leased"],
)
def test_shared_poll_finds_jobs_of_every_kind_when_due(harness: Harness, unheard: Any, columns: str) -> None:
    looks = unheard["q"].engine._ready_queues = SharedLooks(unheard["q"])
    with harness.thread(partial(unheard["q"].get, timeout=NEVER)) as join:
        harness.eventually(lambda: looks.asked)
        harness.sql(f"INSERT INTO {{table}} (q_name, data, {columns})", rows=False)
        assert join().data == 1


def test_shared_poll_that_fails_makes_waiters_poll_separately(harness: Harness, unheard: Any) -> None:
    sql = unheard["q"].engine._opener(harness.spec).sql
    sql.ready_queues = replace(sql.ready_queues, sql=sql.ready_queues.sql.replace("unnest", "nonsense"))
    with counted(unheard["q"]) as looked, harness.thread(partial(unheard["q"].get, timeout=NEVER)) as join:
        looked.reach(2)
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


def test_waiter_woken_before_its_first_wait_does_not_wait(harness: Harness, unheard: Any) -> None:
    queue = unwrapped(unheard["q"])

    async def wait() -> None:
        queue.engine.wake(queue.channel)
        await queue.engine.wait_for_jobs(queue, None, NEVER, NEVER)

    with harness.thread(lambda: harness.wait_for(wait)) as join:
        join()


@pytest.mark.read_committed
def test_waiter_in_a_block_polls_within_the_block(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER, prepared=False, max_connections=1)

    def wait() -> Any:
        with queue:
            return queue.get(timeout=NEVER)

    with counted(queue) as looked, harness.thread(wait) as join:
        looked.reach(2)
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


# Notifications only if somebody waits

LONG = ("x" * 64, "x" * 65)


class Ear:
    """A connection that listens as any client may, without being known as a waiter.

    Args:
        harness: The harness of the test.
        *queues: The names of the queues whose channels it listens to.
    """

    def __init__(self, harness: Harness, *queues: str) -> None:
        self._harness = harness
        self._connection = harness.connect()
        for name in (*queues, "the end"):
            harness.wait_for(partial(self._connection.session.listen, channel(name)))

    def heard(self) -> list[str]:
        """Return the channels that were notified since the last call, sorted."""
        self._harness.sql('NOTIFY "the end"', rows=False)
        found: list[str] = []

        def all_there() -> bool:  # because they arrive in the order of commits
            self._connection.sql("SELECT 1")
            found.extend(self._harness.wait_for(lambda: self._connection.session.notifications()))
            return "the end" in found

        self._harness.eventually(all_there)
        return sorted(set(found) - {"the end"})


def putter(harness: Harness, setting: str | None) -> Connection:
    """Return a connection with a setting of ``pqcore.notify``, if one is given."""
    harness.needs_sessions()
    connection = harness.connect()
    if setting is not None:
        connection.sql(f"SET pqcore.notify = '{setting}'", rows=False)
    return connection


def insert_many(harness: Harness, connection: Connection, *names: str) -> None:
    """Put into several queues with one statement."""
    rows = ", ".join(f"('{name}', '1')" for name in names)
    connection.sql(f"INSERT INTO {harness.table} (q_name, data) VALUES {rows}", rows=False)


def advisory_locks(connection: Connection) -> int:
    """Return how many advisory locks a connection holds."""
    [[count]] = connection.sql(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
    )
    return int(count)


@pytest.mark.requires(Capability.LISTEN)
def test_put_without_waiters_sends_no_notification(harness: Harness) -> None:
    queue, ear = harness.queue(timeout=0), Ear(harness, "q", *LONG)
    queue.put(1)
    queue.put_many([2, 3])
    with queue:
        queue.put(4)
    assert [job.data for job in queue.get_many(9)] == [1, 2, 3, 4]
    assert queue.get() is None  # it does not wait
    harness.sql(INSERT % ("q", "a"), rows=False)
    insert_many(harness, harness.connect(), "q", *LONG)
    assert ear.heard() == []
    assert not harness.waiting()


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize(
    ("setting", "alone", "waited"),
    [
        pytest.param("off", [], [], id="off"),
        pytest.param("always", ["q"], ["q"], id="always"),
        pytest.param("", [], ["q"], id="reset"),
        pytest.param("on", [], ["q"], id="on"),
        pytest.param(None, [], ["q"], id="not set"),
    ],
)
def test_notify_setting_decides_when_a_put_notifies(
    harness: Harness, setting: str | None, alone: list[str], waited: list[str]
) -> None:
    queue, ear, connection = harness.queue(poll_interval=NEVER), Ear(harness, "q"), putter(harness, setting)
    insert(harness, connection, "q", "alone")
    assert ear.heard() == alone
    assert queue.get(block=False).data == "alone"
    listen(harness, queue)
    with waiter(harness, queue) as join:
        insert(harness, connection, "q", "a")
        assert ear.heard() == waited
        if not waited:
            harness.sql("NOTIFY q", rows=False)
        assert join().data == "a"
    assert advisory_locks(connection) == 0


@pytest.mark.requires(Capability.LISTEN)
def test_insert_into_several_queues_notifies_those_with_waiters(harness: Harness) -> None:
    pq, ear, connection = harness.pq(poll_interval=NEVER), Ear(harness, "a", "b", "c", *LONG), harness.connect()
    listen(harness, pq["a"], pq["b"], pq[LONG[1]])
    with waiter(harness, pq["a"]) as a, waiter(harness, pq["b"]) as b, waiter(harness, pq[LONG[1]]) as long:
        insert_many(harness, connection, "a", "c", "b", "a", *LONG)
        assert [job().data for job in (a, b, long)] == [1, 1, 1]
    assert ear.heard() == ["a", "b", channel(LONG[1])]
    assert advisory_locks(connection) == 0
    insert_many(harness, putter(harness, "always"), "a", "c", "b", "a", *LONG)
    assert ear.heard() == sorted(map(channel, ("a", "b", "c", *LONG)))


@pytest.mark.requires(Capability.LISTEN)
def test_concurrent_puts_leave_no_advisory_lock(harness: Harness) -> None:
    queue = harness.queue()
    connections = [harness.connect() for _ in range(4)]

    def put(connection: Connection) -> None:
        for _ in range(20):
            insert_many(harness, connection, "q", "r")

    harness.at_once(*(partial(put, connection) for connection in connections))
    assert [advisory_locks(connection) for connection in connections] == [0] * 4
    assert queue.count() == 80


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_that_remains_is_woken_after_another_leaves(harness: Harness) -> None:
    leaving, staying = harness.pq(), harness.queue(poll_interval=NEVER)
    listen(harness, leaving["q"], staying)
    assert len(harness.waiting()) == 2
    with waiter(harness, staying) as join:
        leaving.close()
        harness.eventually(lambda: len(harness.waiting()) == 1)
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@contextmanager
def hasty_listener(linger: float = MOMENT) -> Iterator[None]:
    """Let the listener check often whether a channel is waited on."""
    before = channels.SLICE, channels.LINGER
    channels.SLICE, channels.LINGER = MOMENT / 2, linger
    try:
        yield
    finally:
        channels.SLICE, channels.LINGER = before


@pytest.mark.requires(Capability.LISTEN)
def test_put_after_the_last_waiter_left_sends_no_notification(harness: Harness) -> None:
    with hasty_listener():
        queue, ear = harness.queue(poll_interval=NEVER), Ear(harness, "q")
        for number in range(2):
            with harness.thread(partial(queue.get, timeout=NEVER)) as join:
                harness.eventually(harness.listening)
                harness.sql(INSERT % ("q", number), rows=False)
                assert join().data == str(number)
            assert ear.heard() == ["q"]
            harness.eventually(lambda: not harness.waiting())
            harness.sql(INSERT % ("q", "unheard"), rows=False)
            assert ear.heard() == []
            assert queue.get(timeout=NEVER).data == "unheard"


@pytest.mark.requires(Capability.LISTEN)
def test_listener_keeps_its_lock_while_a_waiter_remains(harness: Harness) -> None:
    with hasty_listener():
        pq = harness.pq(poll_interval=NEVER)
        listener = harness.listener(pq["q"].engine)
        with harness.thread(partial(pq["q"].get, timeout=NEVER)) as join:
            harness.eventually(lambda: "q" in listener._channels)
            before = listener._counts["q"]
            assert pq["q"].get(timeout=MOMENT) is None  # another waiter on the same channel, which leaves
            for _ in range(2):
                assert pq["r"].get(timeout=MOMENT * 2) is None
                harness.eventually(lambda: "r" not in listener._channels)
            assert ("q" in listener._channels, listener._counts["q"]) == (True, before)
            harness.sql(INSERT % ("q", "a"), rows=False)
            assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_looks_again_when_the_lock_was_released_after_its_look(harness: Harness) -> None:
    with hasty_listener():
        queue = harness.queue(poll_interval=NEVER)
        engine = queue.engine
        run = engine.run
        looked: list[bool] = []

        async def slow(operation: Any, **options: Any) -> Any:
            result = await run(operation, **options)
            if not reads_rules(operation) and engine.listener.snapshot("q") is not None and not looked:
                looked.append(True)
                rounds = patiently("the channel is given up")
                while engine.listener.snapshot("q") is not None:
                    next(rounds)
                    await engine.runtime.sleep(0.001)
                harness.sql(INSERT % ("q", "a"), rows=False)  # this notifies nobody
            return result

        engine.run = slow
        with harness.thread(partial(queue.get, timeout=NEVER)) as join:
            assert join().data == "a"
        assert looked


@pytest.mark.requires(Capability.LISTEN)
@each_way
def test_put_that_did_not_see_the_waiter_is_found_soon(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, one: bool
) -> None:
    monkeypatch.setattr(channels, "SETTLE", MOMENT)
    queue = unpolled(harness, one=one)
    writer = harness.connect()
    writer.begin()
    insert(harness, writer, "q", "a")
    engine, looks = queue.engine, []
    run = engine.run

    async def racing(operation: Any, **options: Any) -> Any:
        result = await run(operation, **options)
        if reads_rules(operation):
            return result
        looks.append(engine.listener.snapshot("q"))
        if len(looks) == 2:  # it is registered, has looked in vain, and will wait
            await writer.session.commit()
        return result

    engine.run = racing
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        assert join().data == "a"
    assert looks[0] is None
    assert looks[1] is not None


@pytest.mark.requires(Capability.LISTEN)
@each_way
def test_new_waiter_looks_again_only_once(harness: Harness, monkeypatch: pytest.MonkeyPatch, one: bool) -> None:
    monkeypatch.setattr(channels, "SETTLE", MOMENT)
    queue = unpolled(harness, one=one)
    with counted(queue) as looks, harness.thread(partial(queue.get, timeout=NEVER)) as join:
        looks.reach(3)  # looks before the registration, after it, and after SETTLE
        for _ in range(200):
            harness.sql("SELECT 1")
        assert looks.count <= 5
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


def replaced(harness: Harness, before: list[int]) -> bool:
    """Return whether the waiters use another connection than before."""
    waiting = harness.waiting()
    return bool(waiting) and not set(waiting) & set(before)


@pytest.mark.requires(Capability.LISTEN)
def test_listener_lock_returns_with_the_listening_connection(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        for _ in range(2):
            before = harness.waiting()
            cut(harness, before)
            harness.eventually(partial(replaced, harness, before))
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_listening_connection_that_no_longer_listens_is_replaced(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RETRY", 0.0)
    with hasty_listener(NEVER):
        queue = harness.queue(poll_interval=NEVER)
        listen(harness, queue)
        before = harness.waiting()
        session = harness.listener(queue.engine)._session
        with waiter(harness, queue) as join:
            with monkeypatch.context() as patched:  # as if a driver opened another connection itself
                patched.setattr(session.sql, "listening", statement("SELECT 1 WHERE false"))
                patched.setattr(waiting, "PROBE", 0.0)
                harness.eventually(partial(replaced, harness, before))
            harness.sql(INSERT % ("q", "a"), rows=False)
            assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_that_cannot_lock_polls(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    sql = queue.engine._openers[harness.spec.name].sql
    sql.register = statement("SELECT 1 / (SELECT 0)")  # any error of the server
    with waiter(harness, queue) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


# The listening connection


@pytest.mark.requires(Capability.LISTEN)
def test_waiters_on_several_queues_share_a_connection(harness: Harness) -> None:
    pq = harness.pq(poll_interval=NEVER, max_connections=2)
    names = [f"q{number}" for number in range(8)]
    listen(harness, *(pq[name] for name in names))
    assert harness.connections() == 2  # one that looks, one that listens
    threads = []
    got: dict[str, Any] = {}

    def wait(name: str) -> None:
        got[name] = pq[name].get(timeout=NEVER).data

    for name in names:
        threads.append(threading.Thread(target=wait, args=(name,), daemon=True))
        threads[-1].start()
    for name in names:
        harness.sql(INSERT % (name, name), rows=False)
    for thread in threads:
        thread.join(PATIENCE)
    assert got == {name: name for name in names}
    assert harness.connections() <= 3


@contextmanager
def patient_listener() -> Iterator[None]:
    """Let the listener rely on being stirred, instead of looking each second."""
    slice_, channels.SLICE = channels.SLICE, NEVER
    try:
        yield
    finally:
        channels.SLICE = slice_


@pytest.mark.requires(Capability.LISTEN)
def test_listening_to_another_queue_keeps_other_waiters_listening(harness: Harness) -> None:
    pq, other = harness.pq(poll_interval=NEVER), harness.pq(create=False)
    with patient_listener():
        listen(harness, pq["a"])
        with waiter(harness, pq["a"]) as join:
            listen(harness, pq["b"])
            other["a"].put("a")
            assert join().data == "a"
        pq.close()


@pytest.mark.requires(Capability.LISTEN)
def test_notifications_do_not_accumulate(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.queue(create=False)
    listen(harness, queue)
    for number in range(50):
        other.put(number)
    assert [job.data for job in queue.get_many(100)] == list(range(50))
    with counted(queue) as looks:
        assert seconds(partial(queue.get, timeout=0.1)) >= 0.1
    # The first look, the last, and looks after notifications that were still in transit.
    assert 2 <= looks.count <= 10
    with waiter(harness, queue) as join:
        other.put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_lost_listening_connection_is_replaced(harness: Harness) -> None:
    queue, other = harness.queue(poll_interval=NEVER), harness.connect()
    for number in range(2):
        listen(harness, queue)
        with waiter(harness, queue) as join:
            cut(harness, harness.waiting())
            insert(harness, other, "q", str(number))
            assert join().data == str(number)
    with waiter(harness, queue) as join:
        insert(harness, other, "q", "a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_survives_the_loss_of_all_its_connections(harness: Harness) -> None:
    queue = harness.queue(poll_interval=NEVER)
    listen(harness, queue)
    with waiter(harness, queue) as join:
        # In this order, because a connection that is cut during a look would rightly raise ConnectionLost.
        cut(harness, others(harness))
        cut(harness, harness.waiting())
        harness.queue(create=False).put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_waiters_of_all_queues_survive_a_lost_listening_connection(harness: Harness) -> None:
    pq = harness.pq(poll_interval=NEVER)
    listen(harness, pq["a"], pq["b"])
    with waiter(harness, pq["a"]) as join, waiter(harness, pq["b"]) as other:
        cut(harness, harness.waiting())
        harness.sql(INSERT % ("b", "b"), rows=False)
        harness.sql(INSERT % ("a", "a"), rows=False)
        assert (join().data, other().data) == ("a", "b")


# A caller's pool or connection


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.requires(Capability.POOL)
def test_waiter_over_the_callers_pool_is_woken(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool(2), poll_interval=NEVER)
    listen(harness, pq["a"], pq["b"])
    with waiter(harness, pq["a"]) as join:
        harness.sql(INSERT % ("a", "a"), rows=False)
        assert join().data == "a"
    assert len(harness.waiting()) == 1
    assert harness.connections() <= 3
    pq.close()


@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_waiter_over_one_connection_is_woken(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, poll_interval=NEVER)["q"]
    listen(harness, queue)
    assert harness.connections() == 1
    for number in range(3):
        with waiter(harness, queue) as join:
            harness.sql(INSERT % ("q", number), rows=False)
            assert join().data == str(number)


@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_waiter_over_one_connection_is_woken_in_its_first_wait(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, poll_interval=NEVER)["q"]
    with waiter(harness, queue) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


def test_waiter_over_one_connection_wakes_when_a_job_becomes_due(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, poll_interval=NEVER)["q"]
    job_id = queue.put("a", SHORT)
    with harness.thread(partial(queue.get, timeout=NEVER)) as join:
        assert join().id == job_id
    assert late_enough(harness, job_id)


@pytest.mark.read_committed
def test_waiter_in_the_callers_transaction_polls(harness: Harness) -> None:
    caller = harness.connect()
    queue = harness.pq(caller.raw, poll_interval=NEVER)["q"]
    caller.begin()
    with waiter(harness, queue, partial(queue.get, timeout=PATIENCE)) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"
    caller.rollback()
    assert queue.get(block=False).data == "a"


@pytest.mark.read_committed
def test_waiter_in_a_block_over_one_connection_polls(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, poll_interval=NEVER)["q"]

    def wait() -> Any:
        with queue:
            return queue.get(timeout=PATIENCE)  # a bounded wait, because it holds a lock on the table

    with waiter(harness, queue, wait) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_notifications_over_one_connection_do_not_accumulate(harness: Harness) -> None:
    connection = harness.connect()
    queue, other = harness.pq(connection.raw, poll_interval=NEVER)["q"], harness.queue(create=False)
    listen(harness, queue)
    for number in range(50):
        other.put(number)
    assert queue.get().data == 0
    backlog = getattr(connection.raw, "notifies", None)
    if isinstance(backlog, list):  # psycopg2 keeps them in a visible place
        assert len(backlog) == 0
    assert len(queue.get_many(100)) == 49
    assert seconds(lambda: queue.get(timeout=0.1)) >= 0.1
    with waiter(harness, queue) as join:
        harness.sql(INSERT % ("q", "a"), rows=False)
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_listener_over_one_connection_releases_its_lock_without_waiters(harness: Harness) -> None:
    connection = harness.connect()
    queue, ear = harness.pq(connection.raw, poll_interval=NEVER)["q"], Ear(harness, "q")
    with hasty_listener():
        for _ in range(2):
            listen(harness, queue)
            queue.put("heard")  # its own notification
            assert ear.heard() == ["q"]
            assert queue.get(block=False).data == "heard"
            harness.eventually(lambda: queue.count() == 0 and not harness.waiting())
            assert connection.sql("SELECT current_setting('pqcore.notify')") == [("",)]
            queue.put("unheard")
            assert ear.heard() == []
            assert queue.get(block=False).data == "unheard"


@pytest.mark.requires(Capability.LISTEN, adopted=True)
@pytest.mark.parametrize("setting", ["off", "always"])
def test_listener_over_one_connection_keeps_the_callers_notify_setting(harness: Harness, setting: str) -> None:
    connection = putter(harness, setting)
    queue = harness.pq(connection.raw, poll_interval=NEVER)["q"]
    with hasty_listener():
        listen(harness, queue)
        assert connection.sql("SELECT current_setting('pqcore.notify')") == [(setting,)]
        harness.eventually(lambda: queue.count() == 0 and not harness.waiting())
        assert connection.sql("SELECT current_setting('pqcore.notify')") == [(setting,)]


@pytest.mark.only("async")
@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_waiter_over_one_connection_is_woken_by_a_put_of_another_task(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, poll_interval=NEVER)["q"]
    listen(harness, queue)
    with waiter(harness, queue) as join:
        queue.put("a")
        assert join().data == "a"
