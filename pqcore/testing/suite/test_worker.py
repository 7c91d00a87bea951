"""The life of a worker: supply, fairness, stopping in order, burst mode, cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, TableMissing
from pqcore.sql.statement import Query
from pqcore.tasks import current
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Latch, Notes
from pqcore.worker import Worker, heartbeat

IDLE_SECONDS = 3.0
"""Seconds for which an idle worker's statements are counted."""


def rows(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the unfinished jobs: id, whether leased, attempts, excused."""
    return harness.sql(
        "SELECT id, leased_until IS NOT NULL, attempts, coalesce(excused, 0) FROM {table}"
        " WHERE dequeued_at IS NULL ORDER BY id"
    )


def all_done(harness: Harness) -> bool:
    return not rows(harness)


# Running


def test_worker_runs_functions_of_all_kinds(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task()
    def plain(job_id: int, value: int) -> None:
        seen.add((job_id, value, current().id, current().attempt, threading.current_thread().name))

    @queue.task()
    async def coroutine(job_id: int, *, value: int) -> None:
        await asyncio.sleep(0)
        seen.add((job_id, value, current().id, current().attempt, ""))

    async def inner(job_id: int, value: int) -> None:
        seen.add((job_id, value, current().id, current().attempt, ""))

    @queue.task()
    def gives_a_coroutine(job_id: int, value: int) -> Any:
        return inner(job_id, value)

    a, b, c = plain(1), coroutine(value=2), gives_a_coroutine(3)
    harness.drain(queue)
    found = sorted(seen.items)
    assert [item[:4] for item in found] == [(a, 1, a, 1), (b, 2, b, 1), (c, 3, c, 1)]
    assert found[0][4] == "pqcore-job"
    assert all_done(harness)


def test_worker_runs_at_most_its_concurrency_of_jobs(harness: Harness) -> None:
    queue = harness.task_queue()
    lock, now, most = threading.Lock(), 0, 0

    def count(step: int) -> None:
        nonlocal now, most
        with lock:
            now += step
            most = max(most, now)

    @queue.task()
    def plain(job_id: int) -> None:
        count(1)
        current().wait(0.005)
        count(-1)

    @queue.task()
    async def coroutine(job_id: int) -> None:
        count(1)
        await asyncio.sleep(0.005)
        count(-1)

    queue.put_calls(*[call for _ in range(60) for call in (plain.call(), coroutine.call())])
    harness.drain(queue, concurrency=7)
    assert most == 7
    assert all_done(harness)


def test_worker_runs_several_queues_and_tables(harness: Harness) -> None:
    first, second = harness.tasks(), harness.tasks(table="other")
    seen = Notes()
    queues = [first["a"], first["b"], second["a"]]
    for number, queue in enumerate(queues):

        @queue.task()
        async def note(job_id: int, number: int = number) -> None:
            seen.add(number)

        for _ in range(number + 1):
            note(number)
    with harness.working(*queues):
        assert sorted(seen.wait(6)) == [0, 1, 1, 2, 2, 2]


def test_worker_serves_a_sparse_queue_beside_a_full_one(harness: Harness) -> None:
    pq = harness.tasks()
    full, sparse = pq["full"], pq["sparse"]
    seen = Notes()

    @full.task()
    async def busy(job_id: int) -> None:
        await asyncio.sleep(0.001)

    @sparse.task()
    async def rare(job_id: int, number: int) -> None:
        seen.add(number)

    full.put_calls(*[busy.call()] * 3_000)
    with harness.working(full, sparse, concurrency=2):
        harness.eventually(lambda: full.count() < 2_900)
        for number in range(5):
            rare(number)
            seen.wait(number + 1)
        assert full.count() > 0, "the full queue was empty before the other had its turn"


def test_worker_alternates_between_full_queues(harness: Harness) -> None:
    pq = harness.tasks()
    queues = [pq[name] for name in "abc"]
    seen = Notes()
    for queue in queues:

        @queue.task()
        async def slow(job_id: int, name: str) -> None:
            seen.add(name)
            await asyncio.sleep(0.02)

        queue.put_calls(*[slow.call(queue.name)] * 40)
    with harness.working(*queues, concurrency=1):
        some = seen.wait(35)[5:35]
    assert min(some.count(name) for name in "abc") >= 7, some


def test_worker_returns_prefetched_jobs_behind_a_slow_job(harness: Harness) -> None:
    queue = harness.task_queue()
    latch, seen = Latch(), Notes()

    @queue.task()
    async def quick(job_id: int) -> None:
        pass

    @queue.task()
    async def slow(job_id: int) -> None:
        seen.add(job_id)
        await latch.passed()

    queue.put_calls(*[quick.call()] * 400, slow.call(), *[quick.call()] * 400)
    with harness.working(queue, concurrency=1, lease="1h"):
        [job_id] = seen.wait(1)
        # It fetched ahead, and gives those jobs back without counting an attempt.
        harness.eventually(lambda: [row[0] for row in rows(harness) if row[1]] == [job_id])
        back = [row for row in rows(harness) if row[2]]
        assert len(back) > 1
        assert all(attempts == excused for id_, _, attempts, excused in back if id_ != job_id)
        harness.drain(queue)  # another worker
        assert [row[0] for row in rows(harness)] == [job_id]
        latch.open()
    assert all_done(harness)


# Stopping


@contextmanager
def running(harness: Harness, worker: Worker) -> Iterator[Any]:
    """Run a worker in a thread or the portal; return a function that waits for its end."""
    with harness.thread(lambda: harness.in_loop(worker.run)) as join:
        try:
            yield join
        finally:
            worker.stop()
            worker.stop()


def test_worker_told_to_stop_finishes_running_jobs_and_returns_the_rest(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "MAX_PREFETCH_AGE", 3600.0)  # not because they waited for long
    queue = harness.task_queue()
    latch, seen = Latch(), Notes()

    @queue.task()
    async def quick(job_id: int) -> None:
        pass

    @queue.task()
    async def slow(job_id: int) -> None:
        seen.add(job_id)
        await latch.passed()
        seen.add(job_id)

    @queue.task()
    def slow_too(job_id: int) -> None:
        seen.add(job_id)
        latch.wait()
        seen.add(job_id)

    handles = queue.put_calls(*[quick.call()] * 400, slow.call(), slow_too.call(), *[quick.call()] * 400)
    slows = [int(handle) for handle in handles[400:402]]
    worker = Worker(unwrapped(queue), concurrency=2, lease="1h")
    with running(harness, worker) as join:
        assert sorted(seen.wait(2)) == slows
        harness.eventually(lambda: len([row for row in rows(harness) if row[1]]) > 2)
        worker.stop()  # from this thread, which does not belong to the worker
        harness.eventually(lambda: [row[0] for row in rows(harness) if row[1]] == slows)
        late = quick()
        latch.open()
        join()
    assert sorted(seen.items[2:]) == slows
    left = rows(harness)
    assert slows[0] not in [row[0] for row in left]
    assert left[-1][0] == late
    assert all(attempts == excused for _, _, attempts, excused in left)
    assert queue.count() == len(left)


@pytest.mark.parametrize("way", ["grace", "again", "cancelled"])
def test_worker_returns_jobs_that_exceed_the_grace_period(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("pqcore.worker.worker.CANCEL_TIMEOUT", 3600.0)
    queue = harness.task_queue()
    seen = Notes()

    @queue.task()
    async def coroutine(job_id: int) -> None:
        seen.add("began")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.add("cancelled")
            raise

    @queue.task()
    def polite(job_id: int) -> None:
        seen.add("began")
        if current().wait(PATIENCE):
            seen.add("told")
            current().check()

    @queue.task()
    def deaf(job_id: int) -> None:
        seen.add("began")
        over.wait()

    over = Latch()
    coroutine(), polite(), deaf()
    worker = Worker(unwrapped(queue), lease="1h", grace=0.05 if way == "grace" else "1h")
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        tasks.append(asyncio.ensure_future(worker.run()))
        await asyncio.wait(tasks)

    with harness.thread(lambda: harness.in_loop(work)) as join:
        assert seen.wait(3) == ["began"] * 3
        if way == "cancelled":
            tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
        else:
            worker.stop()
        if way == "again":
            worker.stop()
        join()
        assert tasks[0].cancelled() == (way == "cancelled")
        assert sorted(seen.wait(5)[3:]) == ["cancelled", "told"]
        # The jobs are free immediately, although the lease is long, and no attempt is counted.
        assert [row[1:] for row in rows(harness)] == [(False, 1, 1)] * 3
        over.open()


def test_worker_returns_a_coroutine_that_ignores_cancellation(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.worker.worker.CANCEL_TIMEOUT", 0.1)
    queue = harness.task_queue()
    latch, seen = Latch(), Notes()

    @queue.task()
    async def stubborn(job_id: int) -> None:
        seen.add("began")
        while True:
            try:
                await latch.passed()
            except asyncio.CancelledError:
                seen.add("cancelled")
            else:
                return

    stubborn()
    worker = Worker(unwrapped(queue), lease="1h", grace=0)
    with running(harness, worker):
        seen.wait(1)
        worker.stop()
        seen.wait(2)
        harness.eventually(lambda: [row[1:] for row in rows(harness)] == [(False, 1, 1)])
        latch.open()


def test_worker_that_stopped_leaves_no_thread_and_no_connection(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task()
    def plain(job_id: int) -> None:
        seen.add(threading.current_thread())

    plain()
    before = set(threading.enumerate())
    connections = harness.connections()
    worker = Worker(unwrapped(queue))
    with running(harness, worker) as join:
        seen.wait(1)
        harness.eventually(lambda: all_done(harness))
        assert harness.connections() > connections
        worker.stop()
        join()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("pqcore")} <= before
    harness.eventually(lambda: harness.connections() == connections)
    with harness.working(queue):  # the same queue, and another worker
        plain()
        seen.wait(2)


@pytest.mark.requires(Capability.POOL)
def test_worker_shares_the_callers_pool_and_leaves_it_open(harness: Harness) -> None:
    pool = harness.pool()
    pq = harness.tasks(pool=pool)
    queue = pq["q"]
    seen = Notes()

    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    note()
    with harness.working(queue):
        seen.wait(1)
        note()
        seen.wait(2)
    assert all_done(harness)
    assert queue.put(1) is not None


def test_worker_refuses_bad_arguments(harness: Harness) -> None:
    queue = unwrapped(harness.task_queue())
    wrongs: list[Callable[[], Worker]] = [
        lambda: Worker(),
        lambda: Worker("q"),
        lambda: Worker(queue, concurrency=0),
        lambda: Worker(queue, prefetch=-1),
        lambda: Worker(queue, prefetch_bytes=-1),
        lambda: Worker(queue, lease=0),
        lambda: Worker(queue, run_in="fiber"),  # type: ignore[arg-type]
        lambda: Worker(queue, grace="soon"),
    ]
    for wrong in wrongs:
        with pytest.raises((ConfigurationError, ValueError)):
            wrong()
    sole = unwrapped(harness.tasks(harness.connect().raw)["q"])
    with pytest.raises(ConfigurationError, match="more than one connection"):
        harness.in_loop(Worker(sole).run)


def test_worker_without_its_table_raises_table_missing(harness: Harness) -> None:
    queue = harness.tasks(create=False, table="missing")["q"]
    with pytest.raises(TableMissing):
        harness.drain(queue)


# Burst mode


def test_worker_burst_runs_jobs_put_by_jobs_and_ends(harness: Harness) -> None:
    pq = harness.tasks()
    first, second = pq["first"], pq["second"]
    raw = [unwrapped(queue) for queue in (first, second)]
    seen = Notes()

    def put(queue: Any, depth: int) -> Any:
        return queue.put_call(call_of[queue.name].call(depth))

    async def run(job_id: int, depth: int) -> None:
        seen.add(depth)
        if depth < 30:  # into the other queue each time
            put_ = put(raw[depth % 2], depth + 1)
            if harness.mode == "async":
                await put_

    call_of = {queue.name: queue.task()(run) for queue in (first, second)}
    call_of = {name: unwrapped(task) for name, task in call_of.items()}
    second.put_calls(call_of["second"].call(0))
    first.put({"function": run._path, "args": [30], "kwargs": {}}, schedule_at="1h")  # type: ignore[attr-defined]
    harness.drain(first, second)
    assert seen.items == list(range(31))
    assert first.stats().scheduled == 1, "it was waited for"


# Cost


@pytest.mark.requires(Capability.LISTEN)
def test_idle_worker_runs_at_most_two_statements_per_second(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = harness.task_queue()
    execute = Session.execute
    names: list[str] = []

    async def counted(session: Session, query: Query, parameters: Any = ()) -> Any:
        if session is not harness._observer.session:
            names.append(query.name)
        return await execute(session, query, parameters)

    monkeypatch.setattr(Session, "execute", counted)
    with harness.working(queue):
        harness.eventually(lambda: len(names) >= 2)
        threading.Event().wait(0.5)  # it begins to listen
        del names[:]
        threading.Event().wait(IDLE_SECONDS)
        counts = list(names)
    assert 2 <= len(counts) <= 2 * IDLE_SECONDS, counts
