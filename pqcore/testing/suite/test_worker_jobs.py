"""Jobs that run for long, for too long, or must stop: held leases, timeouts, cancellation, processes."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

import pytest

from pqcore import lane_book
from pqcore.backend import Capability
from pqcore.db import channels
from pqcore.operations import read_rules
from pqcore.tasks import JobCancelled, current, run_job
from pqcore.testing import workers
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.probes import Latch, Notes
from pqcore.testing.statement_names import noted_statements
from pqcore.worker import Worker, heartbeat

LEASE = 0.9
"""Seconds; short, so that a lease runs out while a job runs, unless it is extended."""


def row(harness: Harness, job_id: int) -> tuple[Any, ...]:
    """Return the attempts, the failures, and whether an unfinished job is leased."""
    found = harness.sql(
        "SELECT attempts, coalesce(failures, 0), leased_until IS NOT NULL FROM {table}"
        f" WHERE id = {job_id} AND dequeued_at IS NULL"
    )
    return tuple(found[0]) if found else ()


def lease_of(harness: Harness, job_id: int) -> str:
    [[until]] = harness.sql(f"SELECT leased_until::text FROM {{table}} WHERE id = {job_id}")
    return str(until)


def lengthened(harness: Harness, job_id: int, times: int) -> None:
    """Wait until a lease has changed this number of times."""
    seen = {lease_of(harness, job_id)}

    def often() -> bool:
        seen.add(lease_of(harness, job_id))
        return len(seen) > times

    harness.eventually(often)


def take_away(harness: Harness, job_id: int) -> None:
    """Act as if the lease had run out and another consumer had the job."""
    harness.sql(
        f"UPDATE {{table}} SET attempts = attempts + 1, leased_until = now() + interval '1 h' WHERE id = {job_id}",
        rows=False,
    )


# Leases


def test_worker_keeps_the_lease_of_a_running_job(harness: Harness) -> None:
    queue = harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    def plain(job_id: int) -> None:
        seen.add(job_id)
        over.wait()

    @queue.task()
    async def coroutine(job_id: int) -> None:
        seen.add(job_id)
        await over.passed()

    handles = [plain(), coroutine()]
    with harness.working(queue, lease=LEASE), harness.working(queue, lease=LEASE):
        seen.wait(2)
        [[ends]] = harness.sql("SELECT max(leased_until)::text FROM {table}")
        harness.eventually(lambda: harness.sql(f"SELECT 1 FROM {{table}} WHERE now() > '{ends}' LIMIT 1"))
        lengthened(harness, int(handles[0]), 3)
        assert [row(harness, int(handle)) for handle in handles] == [(1, 0, True)] * 2
        over.open()
        harness.eventually(lambda: queue.stats().leased == 0)
    assert len(seen.items) == 2


def test_lost_lease_cancels_the_job_and_refuses_its_end(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    queue = harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    async def coroutine(job_id: int) -> None:
        seen.add("began")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.add(current().stop_reason)
            raise

    @queue.task()
    def polite(job_id: int) -> None:
        seen.add("began")
        if current().wait(PATIENCE):
            seen.add(current().stop_reason)
            current().check()

    @queue.task()
    def deaf(job_id: int) -> None:
        seen.add("began")
        over.wait()

    ids = [int(handle) for handle in (coroutine(), polite(), deaf())]
    with harness.working(queue, lease=LEASE):
        seen.wait(3)
        for job_id in ids:
            take_away(harness, job_id)
        assert sorted(seen.wait(5)[3:]) == ["lost", "lost"]
        over.open()
        harness.eventually(lambda: "this worker has lost the lease" in caplog.text)
    assert [row(harness, job_id) for job_id in ids] == [(2, 0, True)] * 3


def test_worker_that_leases_its_lost_job_again_keeps_it(harness: Harness) -> None:
    queue = harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    def deaf(job_id: int) -> None:
        attempt = current().job.attempts
        seen.add(attempt)
        if attempt == 1:
            current().wait(PATIENCE)  # until the lease is lost; then it ends late
            harness.eventually(lambda: len(seen.items) >= 2)
            seen.add("first ended")
        else:
            over.wait()

    job_id = int(deaf())
    with harness.working(queue, lease=LEASE):
        seen.wait(1)
        harness.sql("UPDATE {table} SET leased_until = NULL", rows=False)  # as if it had run out
        seen.wait(3)
        lengthened(harness, job_id, 3)
        assert row(harness, job_id) == (2, 0, True)
        over.open()
        harness.eventually(lambda: row(harness, job_id) == ())
    assert seen.items == [1, 2, "first ended"]


# Timeouts


def test_job_past_its_timeout_is_stopped_and_retried(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task(timeout=0.1, max_retries=1, retry_in=None)
    async def coroutine(job_id: int) -> None:
        if current().attempt == 1:
            await asyncio.sleep(3600)
        seen.add("coroutine")

    @queue.task(timeout=0.1, max_retries=1, retry_in=None)
    def polite(job_id: int) -> None:
        if current().attempt == 1:
            assert current().wait(PATIENCE)
            current().check()
        seen.add("polite")

    @queue.task(timeout=3600)
    async def in_time(job_id: int) -> None:
        await asyncio.sleep(0)
        seen.add("in time")

    @queue.task(max_retries=0)
    async def by_itself(job_id: int) -> None:
        await asyncio.sleep(3600)

    @queue.task(max_retries=1, retry_in=None)
    async def from_within(job_id: int) -> None:
        if current().attempt == 1:
            raise asyncio.CancelledError
        seen.add("from within")

    coroutine(), polite(), in_time(), from_within()
    dead = by_itself(_timeout=0.05)
    harness.drain(queue)
    assert sorted(seen.items) == ["coroutine", "from within", "in time", "polite"]
    letter = queue.dead.get(dead)
    assert (letter.reason, letter.error["type"]) == ("failed", "pqcore.tasks.context.JobTimeout")
    assert "0.05 seconds" in letter.error["message"]


# Cancellation


@pytest.mark.parametrize("heard", [pytest.param(True, marks=pytest.mark.requires(Capability.LISTEN)), False])
def test_running_job_can_be_cancelled(harness: Harness, monkeypatch: pytest.MonkeyPatch, heard: bool) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task(keep_result="1h")
    async def coroutine(job_id: int) -> None:
        seen.add("began")
        try:
            await asyncio.sleep(3600)
        finally:
            seen.add(current().stop_reason)

    @queue.task(max_retries=5)
    def polite(job_id: int) -> None:
        seen.add("began")
        with suppress(JobCancelled):
            assert current().wait(PATIENCE)
            current().check()
        seen.add(current().stop_reason)
        current().check()

    @queue.task()
    async def other(job_id: int) -> None:
        seen.add("began")
        await asyncio.sleep(0.3)

    if not heard:  # it is noticed when the lease is extended
        monkeypatch.setattr(heartbeat.Heartbeat, "_stop_cancelled", lambda self: asyncio.sleep(0))
    with harness.working(queue, lease="1h" if heard else LEASE) as worker:
        first, second, _ = coroutine(), polite(), other()
        seen.wait(3)
        if heard:
            listens(harness, worker)
        assert first.cancel() is False
        assert first.cancel(running=True) is True
        assert second.cancel(running=True) is True
        assert sorted(seen.wait(5)[3:]) == ["cancelled", "cancelled"]
        harness.eventually(lambda: (row(harness, first), row(harness, second)) == ((), ()))
        harness.eventually(lambda: queue.count() == 0 and queue.stats().leased == 0)
        assert first.status() == "cancelled"
        assert first.cancel(running=True) is False
    assert harness.sql("SELECT count(*) FROM {table} WHERE dequeued_at IS NOT NULL") == [(1,)]
    assert queue.dead.count() == 0


def listens(harness: Harness, worker: Worker) -> None:
    """Wait until a worker hears which jobs to cancel, if it can."""
    if Capability.LISTEN in harness.spec.capabilities:
        [queue_state] = worker._worker_state.queue_states
        harness.eventually(lambda: queue_state.control in harness.listener(queue_state.bridge.engine)._channels)


@pytest.mark.requires(Capability.LISTEN)
def test_cancellation_during_the_heartbeats_look_is_noticed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = harness.task_queue()
    looked, go_on, seen = threading.Event(), Latch(), Notes()
    look = heartbeat.Heartbeat._stop_cancelled

    async def slowly(tends: heartbeat.Heartbeat) -> None:
        await look(tends)
        if any(held.context is not None and held.context.cancelled for held in tends._queue_state.active_jobs.values()):
            looked.set()
            await go_on.passed()

    monkeypatch.setattr(heartbeat.Heartbeat, "_stop_cancelled", slowly)

    @queue.task()
    async def coroutine(job_id: int) -> None:
        seen.add("began")
        try:
            await asyncio.sleep(3600)
        finally:
            seen.add(current().stop_reason)

    with harness.working(queue, lease="1h") as worker:
        first, second = coroutine(), coroutine()
        seen.wait(2)
        listens(harness, worker)
        [queue_state] = worker._worker_state.queue_states
        counts = harness.listener(queue_state.bridge.engine)._counts
        first.cancel(running=True)
        seen.wait(3)
        assert looked.wait(PATIENCE)
        before = counts[queue_state.control]
        second.cancel(running=True)
        harness.eventually(lambda: counts[queue_state.control] > before)
        go_on.open()
        seen.wait(4)


def test_waiting_job_is_deleted_by_cancel_running(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task()
    def never(job_id: int) -> None:
        seen.add(job_id)

    handle = never()
    assert handle.cancel(running=True) is True
    harness.drain(queue)
    assert seen.items == []


def test_prefetched_job_can_be_cancelled(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "MAX_PREFETCH_AGE", 3600.0)
    queue = harness.task_queue()
    over, seen = Latch(), Notes()

    @queue.task()
    async def quick(job_id: int) -> None:
        pass

    @queue.task()
    def slow(job_id: int) -> None:
        seen.add(job_id)
        over.wait()

    queue.put_calls(*[quick.call()] * 400, slow.call(), *[quick.call()] * 400)
    with harness.working(queue, concurrency=1, lease=LEASE):
        [job_id] = seen.wait(1)
        held = f"SELECT id FROM {{table}} WHERE leased_until > now() AND id > {job_id} ORDER BY id LIMIT 1"
        [[ahead]] = harness.eventually(lambda: harness.sql(held))
        assert queue.cancel(ahead, running=True) is True
        harness.eventually(lambda: not harness.sql(f"SELECT 1 FROM {{table}} WHERE id = {ahead}"))
        over.open()
        harness.eventually(lambda: queue.count() == 0 and queue.stats().leased == 0)
    assert harness.sql("SELECT count(*) FROM {table} WHERE dequeued_at IS NOT NULL") == [(800,)]


# Processes


def test_functions_in_processes_return_their_results(harness: Harness) -> None:
    queue = harness.task_queue()
    add = queue.task(run_in="process", keep_result="1h")(workers.add)
    tell = queue.task(run_in="process", keep_result="1h")(workers.tell)
    fail = queue.task(run_in="process")(workers.fail)
    with harness.working(queue):
        number, pid = add(1, 2).result(PATIENCE)
        assert (number, pid != os.getpid()) == (3, True)
        handle = tell()
        assert handle.result(PATIENCE) == {"id": handle, "attempt": 1, "previous": None}
        broken = fail("on purpose")
        harness.eventually(lambda: queue.dead.count() == 1)
    letter = queue.dead.get(broken)
    assert "Unreadable: on purpose" in letter.error["message"]
    assert "workers.py" in letter.error["traceback"]


def test_dead_process_crashes_only_its_own_job(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_job, "CRASH_PAUSE", 0.01)
    queue = harness.task_queue()
    add = queue.task(keep_result="1h")(workers.add)
    exit_at_once = queue.task(max_crashes=2)(workers.exit_at_once)
    poison = exit_at_once()
    others = [add(number, 1) for number in range(10)]
    with harness.working(queue, run_in="process"):
        assert [handle.result(PATIENCE)[0] for handle in others] == list(range(1, 11))
        harness.eventually(lambda: queue.dead.count() == 1)
    letter = queue.dead.get(poison)
    assert (letter.reason, letter.attempts, letter.failures) == ("crashed", 2, 0)
    assert {handle.status() for handle in others} == {"done"}


@pytest.mark.parametrize("why", ["cancelled", "timeout", "stopped"])
def test_process_is_killed_when_its_job_must_end(harness: Harness, why: str) -> None:
    queue = harness.task_queue()
    sleep = queue.task(run_in="process")(workers.sleep_long)
    add = queue.task(run_in="process", keep_result="1h")(workers.add)
    with harness.working(queue, concurrency=1, lease=LEASE, grace=0) as worker:
        _, pid = add(0, 0).result(PATIENCE)
        handle = sleep(_timeout=0.1) if why == "timeout" else sleep()
        harness.eventually(lambda: row(harness, handle) == (1, 0, True) or why == "timeout")
        if why == "cancelled":
            listens(harness, worker)
            assert handle.cancel(running=True)
            harness.eventually(lambda: row(harness, handle) == ())
        elif why == "timeout":
            harness.eventually(lambda: queue.dead.count() == 1)
        if why != "stopped":
            gone(harness, pid)
            assert add(2, 3).result(PATIENCE)[0] == 5  # in another process
    gone(harness, pid)
    assert row(harness, handle) == ((1, 0, False) if why == "stopped" else ())


def gone(harness: Harness, pid: int) -> None:
    """Wait until there is no such process."""

    def absent() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    harness.eventually(absent)


# An idle worker


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("is_coroutine", [False, True], ids=["function", "coroutine"])
def test_idle_worker_takes_a_job_with_one_statement(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, is_coroutine: bool
) -> None:
    monkeypatch.setattr(read_rules, "KEPT", 0.0)
    monkeypatch.setattr(lane_book, "FIND", 0.0)
    monkeypatch.setattr(channels, "SETTLE", 3600.0)
    looks = ("lease_", "find_lanes", "current_rules", "next_due")
    names = noted_statements(monkeypatch, chosen=lambda name: name.startswith(looks))
    queue = harness.task_queue()
    seen = Notes()

    def function(job_id: int) -> None:
        seen.add(names.copy())

    async def coroutine(job_id: int) -> None:
        seen.add(names.copy())

    task = queue.task()(coroutine if is_coroutine else function)
    with harness.working(queue, poll_interval=3600):
        for number in range(4):  # the first ones find a worker that is starting
            harness.eventually(lambda: names[-1:] == ["next_due_probe"])
            harness.eventually(lambda: queue.stats().leased == 0)
            names.clear()
            task()
            first = seen.wait(number + 1)[-1][0]
    assert first.startswith("lease_")
    assert first.endswith("_idle")
