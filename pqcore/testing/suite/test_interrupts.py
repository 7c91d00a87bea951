"""Events that end programs: Ctrl-C, an exit, a job's exception that is no Exception.

And failures that `Queue.work` survives.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import Closed, ConnectionLost, TableMissing
from pqcore.testing import workers
from pqcore.testing.consumers import Child
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.probes import Notes
from pqcore.testing.worker_pool import WorkerPool
from pqcore.testing.workers import INTERRUPTS
from pqcore.worker import Worker

ENDING = ("KeyboardInterrupt", "SystemExit")
OTHERS = tuple(kind for kind in INTERRUPTS if kind not in ENDING)


def state(harness: Harness, job: int) -> tuple[Any, ...]:
    """Return whether a job is finished and leased, and how often it was taken, failed, and was excused."""
    [found] = harness.sql(
        "SELECT dequeued_at IS NOT NULL, leased_until IS NOT NULL, attempts, coalesce(failures, 0),"
        f" coalesce(excused, 0) FROM {{table}} WHERE id = {int(job)}"
    )
    return tuple(found)


def expect_uncounted(harness: Harness, *jobs: int) -> None:
    """Check that jobs wait without any attempt counted, however often they were taken."""
    for finished, leased, attempts, failures, excused in (state(harness, job) for job in jobs):
        assert (finished, leased, failures) == (False, False, 0)
        assert attempts == excused


def expect_failed(queue: Any, jobs: Sequence[int]) -> None:
    """Check that jobs are dead letters for the exception of their function."""
    assert sorted((letter.id, letter.reason) for letter in queue.dead.list()) == [(job, "failed") for job in jobs]


GIVEN_BACK = (False, False, 1, 0, 1)
DONE = (True, False, 1, 0, 0)


# Exceptions of a job in a worker


@pytest.mark.parametrize("way", ["thread", "coroutine", "process"])
def test_interrupt_raised_by_a_job_is_its_failure(harness: Harness, way: str) -> None:
    queue = harness.task_queue()
    seen = Notes()
    if way == "coroutine":
        task, kinds = queue.task()(workers.interrupt_async), OTHERS
    else:
        task, kinds = queue.task(run_in=way)(workers.interrupt), tuple(INTERRUPTS)
    ids = [int(task(kind)) for kind in kinds]
    queue.task()(lambda job_id: seen.add("run"))()
    harness.drain(queue)
    assert seen.items == ["run"]
    expect_failed(queue, ids)


def test_worker_with_signal_handlers_survives_interrupts_raised_by_jobs(harness: Harness) -> None:
    with WorkerPool(harness, lease="1h") as worker_pool:
        poison = worker_pool.queue.task()(workers.interrupt_async)
        neighbour = worker_pool.tasks["hold"]()
        child = worker_pool.at_work(worker_pool.hire())
        pid = worker_pool.begun(neighbour)
        ids = [int(poison(kind)) for kind in ENDING]
        harness.eventually(lambda: worker_pool.queue.dead.count() == len(ids))
        worker_pool.release(neighbour)
        harness.eventually(lambda: worker_pool.row(neighbour) == (True, False, 1, 0))
        os.kill(pid, signal.SIGTERM)
        assert child.recv(PATIENCE) == "stopped"
        expect_failed(worker_pool.queue, ids)


@pytest.mark.only("blocking")
def test_worker_without_signal_handlers_returns_its_jobs_when_interrupted(harness: Harness) -> None:
    queue = harness.task_queue()
    begun = asyncio.Event()

    @queue.task()
    async def neighbour(job_id: int) -> None:
        begun.set()
        await asyncio.sleep(3600)

    @queue.task()
    async def interrupt(job_id: int) -> None:
        await begun.wait()
        raise KeyboardInterrupt

    jobs = [neighbour(), interrupt()]
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(Worker(queue, lease="1h").run())
    expect_uncounted(harness, *jobs)


@pytest.mark.only("blocking")
@pytest.mark.parametrize("kind", ENDING)
def test_worker_whose_event_loop_ends_returns_its_jobs(harness: Harness, kind: str) -> None:
    queue = harness.task_queue()
    begun = asyncio.Event()

    @queue.task()
    async def neighbour(job_id: int) -> None:
        begun.set()
        await asyncio.sleep(3600)

    @queue.task()
    async def interrupt(job_id: int) -> None:
        def from_a_callback() -> None:
            raise INTERRUPTS[kind]

        await begun.wait()
        asyncio.get_running_loop().call_soon(from_a_callback)
        await asyncio.sleep(3600)

    jobs = [neighbour(), interrupt()]
    with pytest.raises(INTERRUPTS[kind]):
        asyncio.run(Worker(queue, lease="1h").run())
    expect_uncounted(harness, *jobs)


# Exceptions of a job in `Queue.work`


@pytest.mark.only("blocking")
@pytest.mark.parametrize("function", [workers.interrupt, workers.interrupt_async])
@pytest.mark.parametrize("kind", ENDING)
def test_work_ends_at_an_interrupt_and_returns_the_job(
    harness: Harness, kind: str, function: Callable[..., Any]
) -> None:
    queue = harness.task_queue()
    job = queue.task()(function)(kind)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    with pytest.raises(INTERRUPTS[kind]):
        queue.work()
    assert state(harness, job) == GIVEN_BACK
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers


@pytest.mark.only("blocking")
@pytest.mark.parametrize("way", ["get", "lease"])
def test_perform_returns_an_interrupted_job(harness: Harness, way: str) -> None:
    queue = harness.task_queue()
    job = queue.task(max_retries=3)(workers.interrupt)("KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        queue.perform(getattr(queue, way)())
    [(again, data)] = harness.sql("SELECT id, data->>'retried' FROM {table} WHERE dequeued_at IS NULL")
    assert data == "0"
    if way == "lease":
        assert again == job
        assert state(harness, job) == GIVEN_BACK


@pytest.mark.only("blocking")
@pytest.mark.parametrize("function", [workers.interrupt, workers.interrupt_async])
def test_work_continues_after_other_exceptions_of_a_job(harness: Harness, function: Callable[..., Any]) -> None:
    queue = harness.task_queue(timeout=0.01)
    task = queue.task()(function)
    ids = [int(task(kind)) for kind in OTHERS]
    queue.work(burst=True)
    expect_failed(queue, ids)


@pytest.mark.only("blocking")
def test_work_in_another_thread_continues_after_any_exception_of_a_job(harness: Harness) -> None:
    queue = harness.task_queue(timeout=0.01)
    task = queue.task()(workers.interrupt)
    ids = [int(task(kind)) for kind in INTERRUPTS]
    with harness.thread(lambda: queue.work(burst=True)) as join:
        join()
    expect_failed(queue, ids)


# Ctrl-C in `Queue.work`


@pytest.fixture
def worker_pool(harness: Harness) -> Iterator[WorkerPool]:
    with WorkerPool(harness) as worker_pool:
        yield worker_pool


def interrupt(child: Child) -> None:
    """Press Ctrl-C."""
    os.kill(child.process.pid or 0, signal.SIGINT)


def waits(harness: Harness) -> bool:
    """Return whether a statement of the test's queues waits for a lock."""
    return bool(
        harness.sql(
            f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{harness.application}'"
            " AND wait_event_type = 'Lock' AND query NOT LIKE 'LOCK TABLE%'"
        )
    )


@pytest.mark.only("blocking")
def test_interrupt_while_a_job_runs_returns_the_job(harness: Harness, worker_pool: WorkerPool) -> None:
    child = worker_pool.at_work(worker_pool.hire_one())
    job = worker_pool.tasks["hold"]()
    worker_pool.begun(job)
    interrupt(child)
    assert child.recv(PATIENCE) == "KeyboardInterrupt"
    assert state(harness, job) == GIVEN_BACK


@pytest.mark.only("blocking")
def test_interrupt_while_work_waits_ends_work(harness: Harness, worker_pool: WorkerPool) -> None:
    child = worker_pool.at_work(worker_pool.hire_one())
    harness.eventually(harness.listening)
    interrupt(child)
    assert child.recv(PATIENCE) == "KeyboardInterrupt"


@pytest.mark.only("blocking")
def test_interrupt_while_a_job_is_fetched_returns_the_job(harness: Harness, worker_pool: WorkerPool) -> None:
    harness.needs_sessions()
    job = worker_pool.tasks["run"]()
    blocker = harness.connect()
    blocker.begin()
    blocker.sql(f"LOCK TABLE {harness.table} IN EXCLUSIVE MODE", rows=False)
    child = worker_pool.at_work(worker_pool.hire_one())
    harness.eventually(lambda: waits(harness))
    interrupt(child)
    blocker.commit()
    assert child.recv(PATIENCE) == "KeyboardInterrupt"
    assert (state(harness, job), worker_pool.count()) == (GIVEN_BACK, 0)


@pytest.mark.only("blocking")
def test_second_interrupt_ends_a_hanging_statement(harness: Harness, worker_pool: WorkerPool) -> None:
    harness.needs_sessions()
    worker_pool.tasks["run"]()
    blocker = harness.connect()
    blocker.begin()
    blocker.sql(f"LOCK TABLE {harness.table} IN EXCLUSIVE MODE", rows=False)
    child = worker_pool.at_work(worker_pool.hire_one())
    harness.eventually(lambda: waits(harness))
    interrupt(child)
    assert not child.pipe.poll(0.3)
    interrupt(child)
    # A driver that waits in C runs no handler before the statement ends; psycopg does not.
    if harness.spec.name != "psycopg" and not child.pipe.poll(1.0):
        blocker.commit()
    assert child.recv(PATIENCE) == "KeyboardInterrupt"


@pytest.mark.only("blocking")
def test_interrupt_while_a_job_is_completed_keeps_the_completion(harness: Harness, worker_pool: WorkerPool) -> None:
    harness.needs_sessions()
    child = worker_pool.at_work(worker_pool.hire_one())
    first = worker_pool.tasks["hold"]()
    worker_pool.begun(first)
    blocker = harness.connect()
    blocker.begin()
    blocker.sql(f"SELECT id FROM {harness.table} FOR UPDATE")
    second = worker_pool.tasks["run"]()
    worker_pool.release(first)
    harness.eventually(lambda: waits(harness))
    interrupt(child)
    blocker.commit()
    assert child.recv(PATIENCE) == "KeyboardInterrupt"
    assert [state(harness, job) for job in (first, second)] == [DONE, (False, False, 0, 0, 0)]


# `Queue.work` and a server that fails


def expect_end(queue: Any, error: type[BaseException]) -> None:
    """Perform jobs until this exception is raised."""
    with pytest.raises(error):
        queue.work()


FAILS = """
CREATE FUNCTION {schema}.fails() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('{schema}.faults') % 2 = 1 THEN
        RAISE EXCEPTION 'a fault' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NEW;
END $$"""


@pytest.mark.only("blocking")
@pytest.mark.parametrize("sqlstate", ["40P01", "57014", "53200"])
def test_work_continues_after_a_transient_error(harness: Harness, sqlstate: str) -> None:
    queue = harness.task_queue(timeout=0.01)
    seen = Notes()
    job = queue.task()(lambda job_id: seen.add("run"))()
    harness.sql(f"CREATE SEQUENCE {harness.schema}.faults", rows=False)
    harness.sql(FAILS.format(schema=harness.schema, sqlstate=sqlstate), rows=False)
    harness.sql(
        "CREATE TRIGGER fails BEFORE UPDATE ON {table} FOR EACH ROW"
        " WHEN (NEW.leased_until IS NOT NULL OR NEW.dequeued_at IS NOT NULL)"
        f" EXECUTE FUNCTION {harness.schema}.fails()",
        rows=False,
    )
    queue.work(burst=True)
    assert seen.items == ["run"]
    assert state(harness, job) == DONE


@pytest.mark.only("blocking")
def test_work_survives_lost_connections_and_ends_when_the_pq_is_closed(harness: Harness) -> None:
    queue = harness.task_queue(timeout=60)
    seen = Notes()
    task = queue.task()(lambda job_id: seen.add("run"))
    with harness.thread(lambda: expect_end(queue, Closed)):
        harness.eventually(harness.listening)
        harness.cut_connections()
        job = task()
        harness.eventually(lambda: state(harness, job) == DONE)
        queue.close()
    assert seen.items == ["run"]


@pytest.mark.only("blocking")
@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_work_ends_when_its_only_connection_is_lost(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.tasks(connection.raw)["q"]
    with harness.thread(lambda: expect_end(queue, ConnectionLost)):
        harness.eventually(harness.listening)
        harness.cut_connections()


@pytest.mark.only("blocking")
def test_work_ends_when_the_table_is_missing(harness: Harness) -> None:
    queue = harness.tasks(create=False)["q"]
    expect_end(queue, TableMissing)
