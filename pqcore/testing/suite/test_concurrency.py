"""Many concurrent threads and processes that put and take, fail and die.

Their operations are recorded, and the history is searched for losses, doubles and disorder (`pqcore.testing.history`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from pqcore.errors import PQError
from pqcore.sql.identifiers import quote
from pqcore.testing.consumers import Place, Way, children, consume, consumer, holder, producer
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.history import History, check

JOBS = 1_200
WAYS: list[Way] = ["get", "get_many", "block", "lease", "lease_many"]


def at_once(*works: Callable[[], Any]) -> None:
    """Run each function in a thread, all starting together; raise what one raises."""
    start = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            start.wait(PATIENCE)
            work()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive(), "a thread did not end"
    if errors:
        raise errors[0]


def put(queue: Any, history: History, number: int = JOBS) -> list[int]:
    with history.record("put") as op:
        ids: list[int] = queue.put_many(range(number))
        op.jobs = [(job, None) for job in ids]
    return ids


def waiting(harness: Harness) -> list[int]:
    """Return the ids of the jobs that are not finished."""
    return [job for [job] in harness.sql("SELECT id FROM {table} WHERE dequeued_at IS NULL")]


def finished(harness: Harness) -> list[int]:
    return [job for [job] in harness.sql("SELECT id FROM {table} WHERE dequeued_at IS NOT NULL ORDER BY id")]


def expire(harness: Harness) -> None:
    harness.sql(
        "UPDATE {table} SET leased_until = statement_timestamp() - interval '1 s'"
        " WHERE leased_until IS NOT NULL AND dequeued_at IS NULL",
        rows=False,
    )


def taken(histories: Sequence[History]) -> list[int]:
    """Return the ids of all jobs that were taken for good, sorted."""
    return sorted(
        operation.job
        for history in histories
        for operation in history.operations
        if operation.kind in ("get", "ack") and operation.outcome == "ok" and operation.job is not None
    )


def place(harness: Harness) -> Place:
    return Place(harness.spec.name, harness.mode, harness.dsn, harness.schema)


@pytest.mark.read_committed
@pytest.mark.parametrize("way", ["get", "get_many", "block"])
def test_threads_that_share_a_queue_take_each_job_once(harness: Harness, way: Way) -> None:
    queue = harness.queue()
    made, histories = History(), [History() for _ in range(4)]
    ids = put(queue, made, JOBS // 2 if way == "block" else JOBS)
    at_once(*(partial(consume, queue, way, history, random.Random(seed)) for seed, history in enumerate(histories)))
    assert waiting(harness) == []
    assert taken(histories) == finished(harness) == ids
    assert check(History.merged([made, *histories])) == []
    assert sum(1 for history in histories if taken([history])) > 1
    undone = [o for history in histories for o in history.operations if o.outcome == "undone"]
    assert (len(undone) > JOBS / 50) == (way == "block")


@pytest.mark.parametrize("way", ["lease", "lease_many"])
def test_expired_leases_are_taken_once_by_concurrent_consumers(harness: Harness, way: Way) -> None:
    queue = harness.queue()
    made, histories = History(), [History() for _ in range(4)]
    number = JOBS // 2
    ids = put(queue, made, number)
    over = threading.Event()

    def work(seed: int) -> None:
        consume(queue, way, histories[seed], random.Random(seed))

    def time_passes() -> None:
        while not over.is_set():
            expire(harness)
            over.wait(0.02)

    with harness.thread(time_passes):
        try:
            at_once(*(partial(work, seed) for seed in range(4)))
        finally:
            over.set()
    assert check(History.merged([made, *histories]), waiting(harness)) == []
    expire(harness)
    consume(queue, way, histories[0], random.Random(0), 0)
    assert waiting(harness) == []
    assert taken(histories) == finished(harness) == ids
    assert check(History.merged([made, *histories])) == []
    assert max(o.token or 0 for history in histories for o in history.operations) > 1


def test_concurrent_producers_and_consumers_keep_each_producers_order(harness: Harness) -> None:
    queue = harness.queue()
    histories = [History() for _ in range(6)]
    number = JOBS // 5
    producing = threading.Semaphore(0)

    def produce(index: int) -> None:
        for item in range(number):
            with histories[index].record("put", key=index) as op:
                op.job = queue.put([index, item])
        producing.release()

    def take(index: int) -> None:
        while True:
            done = over.is_set()
            with histories[index].record("get") as op:
                job = queue.get(timeout=0.05)
                if job is not None:
                    op.job, op.token = job.id, job.token
            if job is None and done:
                return

    def watch() -> None:
        for _ in range(3):
            assert producing.acquire(timeout=2 * PATIENCE)
        over.set()

    over = threading.Event()
    at_once(*(partial(produce, n) for n in range(3)), *(partial(take, n) for n in range(3, 6)), watch)
    assert waiting(harness) == []
    assert taken(histories) == finished(harness)
    assert len(finished(harness)) == 3 * number
    assert check(History.merged(histories)) == []


@pytest.mark.read_committed
def test_processes_that_take_by_every_operation_take_each_job_once(harness: Harness) -> None:
    queue = harness.queue()
    made = History()
    ids = put(queue, made)
    works = [(consumer, place(harness), way, seed) for seed, way in enumerate(WAYS[:4])]
    works.append((producer, place(harness), "late", 100))  # type: ignore[arg-type]
    with children(*works) as spawned:
        for child in spawned:
            assert child.recv(3 * PATIENCE) == "ready"
        for child in spawned:
            child.pipe.send("go")
        histories = [child.recv(3 * PATIENCE) for child in spawned]
    assert check(History.merged([made, *histories]), waiting(harness)) == []
    expire(harness)
    rest = History()
    consume(queue, "get", rest, random.Random(0))
    assert waiting(harness) == []
    assert taken([*histories, rest]) == finished(harness)
    assert set(finished(harness)) >= set(ids)
    assert len(finished(harness)) == JOBS + 100
    assert check(History.merged([made, *histories, rest])) == []
    assert sum(1 for history in histories if taken([history])) > 1


def test_killed_process_loses_no_job(harness: Harness) -> None:
    queue = harness.queue(poll_interval=0.05)
    ids = queue.put_many(range(2))
    with children((holder, place(harness), "block"), (holder, place(harness), "lease")) as spawned:
        for child in spawned:
            assert child.recv(3 * PATIENCE) == "ready"
        held = []
        for child in spawned:
            child.pipe.send("go")
            held.append(child.recv(PATIENCE))
        assert held == ids
        assert queue.get(block=False) is None
        for child in spawned:
            child.kill()
        # The server notices that the owner of the transaction is gone; it does not know the owner of a lease.
        job = queue.get(timeout=PATIENCE)
        assert (job.id, job.attempts) == (ids[0], 1)
        assert queue.get(block=False) is None
        expire(harness)
        job = queue.get(timeout=PATIENCE)
        assert (job.id, job.attempts) == (ids[1], 2)


@pytest.mark.read_committed
def test_get_skips_locked_jobs(harness: Harness) -> None:
    pq, other = harness.pq(), harness.pq(create=False)
    pq["q"].put_many(range(5))
    with pq["q"], other["q"]:
        assert pq["q"].get().data == 0
        assert [job.data for job in other["q"].get_many(2)] == [1, 2]
        assert pq["q"].get().data == 3
    assert [job.data for job in pq["q"].get_many(10)] == [4]


def test_refused_commit_leaves_its_connection_usable(harness: Harness) -> None:
    pq = harness.pq()
    queue, schema = pq["q"], quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE serialization_failure; END $$",
        rows=False,
    )
    harness.sql(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW WHEN (NEW.q_name = 'refused') EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )

    def refused() -> None:
        with queue:
            pq["refused"].put("a")

    with pytest.raises(PQError):
        refused()
    for number in range(5):
        queue.put(number)
    assert harness.sql("SELECT data::text FROM {table} ORDER BY id") == [(str(number),) for number in range(5)]
