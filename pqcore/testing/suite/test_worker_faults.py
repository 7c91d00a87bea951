"""Workers that are killed, stopped, held up, or cut off: no job is lost, and every second run is accounted for."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pqcore import hookimpl
from pqcore.backend import Capability
from pqcore.db import listener as waiting
from pqcore.errors import ConnectionLost
from pqcore.events import JobEvent
from pqcore.operations import follow_ups, job_outcome
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName, quote
from pqcore.tasks import current
from pqcore.testing import workers
from pqcore.testing.consumers import Child
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.probes import Latch, Notes
from pqcore.testing.proxy import Proxy
from pqcore.testing.worker_pool import WorkerPool

JOBS = int(os.environ.get("PQCORE_TEST_WORKER_JOBS", "1000"))
"""The number of jobs that run while workers are killed."""
KILLS = 4
LEASE = 0.9
"""Seconds of a lease, which a worker extends after a third of it while its job runs."""


# Killed


def progressed(crew: WorkerPool, number: int) -> bool:
    return crew.count() >= number


def test_killed_workers_lose_no_job(harness: Harness) -> None:
    rng = random.Random(7)
    with WorkerPool(harness, {"max_crashes": 1000}, lease=2.0, concurrency=10) as crew:
        crew.queue.put_calls(*[crew.tasks["run"].call()] * JOBS)
        for child in [crew.hire() for _ in range(3)]:
            crew.at_work(child)
        for kill in range(KILLS):
            harness.eventually(partial(progressed, crew, JOBS * (kill + 1) // (KILLS + 2)))
            crew.kill_one(rng)
            crew.hire()
        harness.eventually(crew.all_done)
        crew.account(JOBS)


# Stopped


def test_sigterm_lets_running_jobs_end(harness: Harness) -> None:
    with WorkerPool(harness, lease="1h", concurrency=2) as crew:
        child = crew.at_work(crew.hire())
        first, second = crew.tasks["hold"](), crew.tasks["hold"]()
        pid = crew.begun(first)
        crew.begun(second)
        third = crew.tasks["hold"]()
        os.kill(pid, signal.SIGTERM)
        crew.release(first, second, third)
        assert child.recv(PATIENCE) == "stopped"
        assert [crew.row(job) for job in (first, second)] == [(True, False, 1, 0)] * 2
        done, leased, attempts, excused = crew.row(third)
        assert (done, leased) == (False, False)
        assert attempts == excused, "it was fetched ahead, at most"


def expect_haste(crew: WorkerPool, job: int, child: Child) -> None:
    """Check that after a second signal, a worker waits neither for running jobs nor for the end of the lease."""
    pid = crew.begun(job)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert child.recv(PATIENCE) == "stopped"
    child.process.join(PATIENCE)
    assert child.process.exitcode == 0
    assert crew.row(job) == (False, False, 1, 1)


def test_second_signal_stops_the_worker_immediately(harness: Harness) -> None:
    with WorkerPool(harness, lease="1h", grace="1h") as crew:
        child = crew.at_work(crew.hire())
        job = crew.tasks["hold"]()
        expect_haste(crew, job, child)
        assert crew.ended(job) == "shutdown"


@pytest.mark.only("blocking")
def test_second_signal_stops_a_worker_whose_job_ignores_it(harness: Harness) -> None:
    with WorkerPool(harness, lease="1h", grace="1h") as crew:
        child = crew.at_work(crew.hire())
        expect_haste(crew, crew.queue.task()(workers.deaf)(), child)


# Held up


@pytest.mark.parametrize("late", ["cancelled", "refused"])
def test_worker_paused_past_its_lease_loses_the_job(harness: Harness, late: str) -> None:
    with WorkerPool(harness, lease=1.5) as crew:
        first = crew.at_work(crew.hire())
        job = crew.tasks["hold" if late == "cancelled" else "nap"]()
        pid = crew.begun(job)
        os.kill(pid, signal.SIGSTOP)
        crew.at_work(crew.hire())
        second = crew.begun(job, 2)
        assert second != pid
        if late == "refused":
            assert crew.ended(job, 2) == "slept"
            done = "SELECT dequeued_at::text FROM {table} WHERE dequeued_at IS NOT NULL"
            [[at]] = harness.eventually(lambda: harness.sql(done))
        os.kill(pid, signal.SIGCONT)
        if late == "cancelled":
            assert crew.ended(job, 1) == "lost"
            assert crew.row(job) == (False, True, 2, 0)
            crew.release(job)
            assert crew.ended(job, 2) == "released"
        else:
            assert crew.ended(job, 1) == "slept"
        os.kill(pid, signal.SIGTERM)
        assert first.recv(PATIENCE) == "stopped"  # it has stored everything that it had to
        harness.eventually(lambda: crew.row(job) == (True, False, 2, 0))
        if late == "refused":
            assert harness.sql("SELECT dequeued_at::text FROM {table}") == [(at,)]


# Cut off


def test_worker_survives_the_loss_of_all_connections(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.task_queue()
    latch, seen = Latch(), Notes()

    @queue.task()
    async def hold(job_id: int) -> None:
        seen.add(job_id)
        await latch.passed()

    @queue.task()
    def plain(job_id: int) -> None:
        seen.add(job_id)

    def put(text: str) -> int:
        path = {"hold": hold, "plain": plain}[text]
        return int(path())

    with harness.working(queue):
        held = put("hold")
        seen.wait(1)
        for number in range(3):
            harness.eventually(harness.listening)
            assert harness.cut_connections() >= 1 + harness.listeners
            put("plain")
            seen.wait(2 + number)
        harness.cut_connections()
        latch.open()
        done = f"SELECT attempts FROM {{table}} WHERE id = {held} AND dequeued_at IS NOT NULL"
        assert harness.eventually(lambda: harness.sql(done)) == [(1,)]
    assert len(seen.items) == 4


@pytest.fixture
def proxy(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")  # a connection attempt during the silence is given up, too
    proxy = Proxy(harness.dsn)
    yield proxy
    proxy.close()


def test_worker_finds_jobs_after_a_connection_went_silent(harness: Harness, proxy: Proxy) -> None:
    harness.needs_sessions()
    direct = harness.task_queue()
    queue = harness.tasks(proxy.dsn, create=False)["q"]
    seen = Notes()

    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    again = direct.task()(note.task.function)
    with harness.working(queue, lease=2.0, stall_timeout=0.4, poll_interval=0.1):
        again()
        seen.wait(1)
        for number in range(2):
            assert proxy.stall() >= 1 + harness.listeners
            again()
            seen.wait(2 + number)


@pytest.mark.requires(Capability.LISTEN)
def test_worker_replaces_a_silent_listening_connection(
    harness: Harness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PROBE", 0.2)
    monkeypatch.setattr(waiting, "RETRY", 0.1)
    direct = harness.task_queue()
    queue = harness.tasks(proxy.dsn, create=False)["q"]
    seen = Notes()

    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    again = direct.task()(note.task.function)
    # A job that was leased when the answer was lost is free again after the lease has run out.
    with harness.working(queue, lease=2.0, stall_timeout=0.4, poll_interval=3600) as worker:
        [queue_state] = worker._worker_state.queue_states
        listener = harness.listener(queue_state.bridge.engine)
        for number in range(2):
            harness.eventually(lambda: queue_state.channel in listener._channels)
            again()
            seen.wait(2 * number + 1)
            proxy.stall()
            again()  # found after the silence is noticed
            seen.wait(2 * number + 2)


def test_worker_keeps_leases_while_a_connection_is_silent(harness: Harness, proxy: Proxy) -> None:
    direct = harness.task_queue()
    queue = harness.tasks(proxy.dsn, create=False)["q"]
    latch, seen = Latch(), Notes()

    @queue.task()
    async def hold(job_id: int) -> None:
        seen.add(job_id)
        await latch.passed()

    direct.task()(hold.task.function)()
    until = "SELECT leased_until::text FROM {table} WHERE now() < leased_until"
    with harness.working(queue, stall_timeout=0.3, lease=6.0), harness.working(direct, lease=6.0):
        seen.wait(1)
        leases = set(harness.sql(until))
        [(first,)] = leases

        def lengthened(times: int) -> bool:
            leases.update(harness.sql(until))
            return len(leases) > times

        for times in (1, 2):
            proxy.stall()
            harness.eventually(partial(lengthened, times))
        harness.eventually(lambda: harness.sql(f"SELECT 1 FROM {{table}} WHERE now() > '{first}'"))
        latch.open()
        harness.eventually(lambda: harness.sql("SELECT 1 FROM {table} WHERE dequeued_at IS NOT NULL"))
    assert len(seen.items) == 1


def stall_in_the_middle(monkeypatch: pytest.MonkeyPatch, stall: Callable[[], Any]) -> None:
    """Make the connection go silent between two statements of the transaction that stores an outcome."""
    keep = follow_ups._keep_result
    times = iter(range(100))

    async def stalled(*arguments: Any) -> None:
        if next(times) == 0:
            stall()
        await keep(*arguments)

    monkeypatch.setattr(follow_ups, "_keep_result", stalled)


@pytest.mark.parametrize("when", ["before", "between"])
def test_worker_stores_completions_after_a_connection_went_silent(
    harness: Harness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    if when == "between":
        harness.needs_sessions()  # the server ends its transaction
    direct = harness.task_queue()
    queue = harness.tasks(proxy.dsn, create=False)["q"]
    latch, seen = Latch(), Notes()

    @queue.task()
    async def hold(job_id: int) -> int:
        seen.add(job_id)
        await latch.passed()
        return 7

    handle = direct.task(keep_result="1h")(hold.task.function)()
    with harness.working(queue, lease=30.0, stall_timeout=0.4, poll_interval=0.1):
        seen.wait(1)
        if when == "before":
            proxy.stall()
        else:
            stall_in_the_middle(monkeypatch, proxy.stall)
        latch.open()
        assert handle.result(PATIENCE) == 7
    assert harness.sql("SELECT attempts FROM {table} WHERE dequeued_at IS NOT NULL") == [(1,)]


def test_worker_waits_for_a_server_that_is_silent_for_a_while(harness: Harness, proxy: Proxy) -> None:
    direct = harness.task_queue()
    queue = harness.tasks(proxy.dsn, create=False)["q"]
    seen = Notes()

    @queue.task()
    def note(job_id: int) -> None:
        seen.add(job_id)

    again = direct.task()(note.task.function)
    with harness.working(queue, lease=2.0, stall_timeout=0.3, poll_interval=0.1):
        again()
        seen.wait(1)
        before = proxy.stall(new=True)
        again()
        harness.eventually(lambda: proxy.stall(new=True) >= before + 2)  # it tries to connect
        proxy.resume()
        seen.wait(2)


# Refused


def test_completion_that_the_server_refuses_becomes_a_dead_letter_alone(harness: Harness) -> None:
    queue = harness.task_queue()
    latch, seen = Latch(), Notes()

    @queue.task()
    async def hold(job_id: int) -> None:
        seen.add(job_id)
        await latch.passed()

    handles = queue.put_calls(*[hold.call()] * 10)
    refused = int(handles[4])
    schema = quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation'; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER refuse BEFORE UPDATE ON {{table}} FOR EACH ROW"
        f" WHEN (NEW.id = {refused} AND NEW.dequeued_at IS NOT NULL) EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )
    with harness.working(queue):
        seen.wait(10)
        latch.open()
        harness.eventually(lambda: harness.sql("SELECT 1 FROM {table} WHERE dequeued_at IS NULL") == [])
    letter = queue.dead.get(refused)
    assert letter.reason == "failed"
    assert "not this one" in letter.error["message"]
    assert harness.sql("SELECT count(*) FROM {table}") == [(9,)]
    assert len(seen.items) == 10


class Told:
    """A plugin that notes the outcomes of a queue's jobs."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.ends: list[tuple[int, str]] = []

    def _note(self, event: JobEvent, end: str) -> None:
        if event.queue == self._queue:
            self.ends.append((event.job.id, end))

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> None:
        self._note(event, "succeeded")

    @hookimpl
    def pqcore_job_dead(self, event: JobEvent) -> None:
        self._note(event, "dead")

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self._note(event, "lost")


@pytest.fixture
def told(harness: Harness) -> Iterator[Told]:
    plugin = Told(harness.schema)
    plugins.register(plugin)
    yield plugin
    plugins.manager.unregister(plugin)


def refuse(harness: Harness, table: str, sqlstate: str, times: int, condition: str = "true") -> None:
    """Make the server refuse rows that are written to a table, a number of times."""
    schema = quote(harness.schema)
    harness.sql(f"CREATE SEQUENCE {schema}.refused", rows=False)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('{schema}.refused') <= {times} THEN RAISE 'not now' USING ERRCODE = '{sqlstate}'; END IF;"
        " RETURN NEW; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
        f" WHEN ({condition}) EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )


@pytest.mark.parametrize("sqlstate", ["40P01", "54001", "P0001"])
@pytest.mark.parametrize("way", ["plain", "kept"])
def test_completion_refused_for_a_while_is_repeated(harness: Harness, told: Told, sqlstate: str, way: str) -> None:
    """This holds for the statement that ends many jobs, and for the transaction that stores a result."""
    queue = harness.task_queue(harness.schema)
    latch, seen = Latch(), Notes()

    async def hold(job_id: int) -> int:
        seen.add(job_id)
        await latch.passed()
        return 7

    plain, kept = queue.task()(hold), queue.task(keep_result="1h")(hold)
    handles = queue.put_calls(*[plain.call()] * 3, *[kept.call()] * 3)
    refused = int(handles[1] if way == "plain" else handles[4])
    if way == "plain":
        refuse(harness, harness.table, sqlstate, 2, f"NEW.id = {refused} AND NEW.dequeued_at IS NOT NULL")
    else:
        results = TableName("queue", harness.schema).related("_results")
        refuse(harness, results, sqlstate, 2, f"NEW.job_id = {refused}")
    with harness.working(queue):
        seen.wait(6)
        latch.open()
        harness.eventually(lambda: harness.sql("SELECT 1 FROM {table} WHERE dequeued_at IS NULL") == [])
    assert sorted(seen.items) == sorted(int(handle) for handle in handles), "each was run once"
    assert sorted(told.ends) == [(int(handle), "succeeded") for handle in handles]
    assert told.ends[-1][0] == refused, "the others did not wait for it"
    assert queue.dead.count() == 0
    assert [handle.result(1) for handle in handles[3:]] == [7, 7, 7]


def test_completion_refused_for_too_long_becomes_a_dead_letter(
    harness: Harness, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_outcome, "REFUSED_FOR", 0.0)
    queue = harness.task_queue(harness.schema)

    @queue.task(keep_result="1h")
    def seven(job_id: int) -> int:
        return 7

    handle = seven()
    refuse(harness, TableName("queue", harness.schema).related("_results"), "P0001", 10**6, "NEW.state = 'done'")
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.id, letter.reason) == (int(handle), "failed")
    assert "it was run, but" in letter.error["message"]
    assert "not now" in letter.error["message"]
    assert told.ends == [(int(handle), "dead")]


@pytest.mark.only("blocking")
def test_work_dead_letters_a_completion_refused_for_too_long(
    harness: Harness, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_outcome, "REFUSED_FOR", 0.0)
    queue = harness.tasks().queue(harness.schema, timeout=0.01)
    handle = queue.task(keep_result="1h")(lambda job_id: 7)()
    refuse(harness, TableName("queue", harness.schema).related("_results"), "P0001", 10**6, "NEW.state = 'done'")
    queue.work(burst=True)
    [letter] = queue.dead.list()
    assert "it was run, but" in letter.error["message"]
    assert told.ends == [(int(handle), "dead")]


@pytest.mark.only("blocking")
@pytest.mark.parametrize("way", ["plain", "kept"])
def test_perform_stores_the_completion_after_a_deadlock(harness: Harness, told: Told, way: str) -> None:
    queue = harness.task_queue(harness.schema)
    handle = queue.task(keep_result="1h" if way == "kept" else None)(lambda job_id: 7)()
    if way == "plain":
        refuse(harness, harness.table, "40P01", 1, "NEW.dequeued_at IS NOT NULL")
    else:
        refuse(harness, TableName("queue", harness.schema).related("_results"), "40P01", 1)
    assert queue.perform(queue.lease(60))
    assert told.ends == [(int(handle), "succeeded")]


def test_dead_letter_that_cannot_be_stored_delays_no_other_job(harness: Harness, told: Told) -> None:
    queue = harness.tasks().queue(harness.schema, timeout=0.01)
    seen = Notes()

    @queue.task()
    def fail(job_id: int) -> None:
        raise ValueError("no")

    first = fail()
    second = queue.task()(lambda job_id: seen.add("run"))()
    refuse(harness, TableName("queue", harness.schema).related("_dead"), "23514", 10**6)
    if harness.mode == "blocking":
        queue.work(burst=True)
    else:
        harness.drain(queue)
    assert seen.items == ["run"]
    assert told.ends == [(int(second), "succeeded")]
    left = "SELECT id FROM {table} WHERE leased_until IS NOT NULL AND dequeued_at IS NULL"
    assert harness.sql(left) == [(int(first),)], "its lease runs out"


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_completion_whose_answer_was_lost_is_reported_as_success(
    harness: Harness, proxy: Proxy, told: Told, retention: str
) -> None:
    direct = harness.tasks().queue(harness.schema, retention=retention)
    queue = harness.tasks(proxy.dsn, create=False).queue(harness.schema, retention=retention)

    @queue.task(keep_result="1h")
    def seven(job_id: int) -> int:
        proxy.cut_at("COMMIT", answered=True)
        return 7

    handle = direct.task(keep_result="1h")(seven.task.function)()
    with harness.working(queue):
        assert handle.result(PATIENCE) == 7
        harness.eventually(lambda: told.ends)
    assert told.ends == [(int(handle), "succeeded")]


def test_job_leased_to_another_worker_is_reported_lost(harness: Harness, proxy: Proxy, told: Told) -> None:
    direct = harness.tasks().queue(harness.schema)
    queue = harness.tasks(proxy.dsn, create=False).queue(harness.schema)

    @queue.task(keep_result="1h")
    def seven(job_id: int) -> int:
        # As after a jump of the server's clock: the lease runs out, and another worker takes and finishes the job.
        harness.sql("UPDATE {table} SET attempts = attempts + 1, leased_until = NULL, dequeued_at = now()", rows=False)
        proxy.cut_at("COMMIT", answered=False)
        return 7

    handle = direct.task(keep_result="1h")(seven.task.function)()
    with harness.working(queue):
        harness.eventually(lambda: told.ends)
    assert told.ends == [(int(handle), "lost")]


def test_completion_without_an_answer_is_reported_once_the_server_answers(
    harness: Harness, proxy: Proxy, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    direct = harness.tasks().queue(harness.schema)
    queue = harness.tasks(proxy.dsn, create=False).queue(harness.schema)
    dead = TableName("queue", harness.schema).related("_dead")

    def seven(job_id: int) -> int:
        harness.sql(f"ALTER TABLE {dead} RENAME COLUMN attempts TO gone", rows=False)
        proxy.cut_at("COMMIT", answered=True)
        return 7

    queue.task(keep_result="1h")(seven)
    handle = direct.task(keep_result="1h")(seven)()
    with harness.working(queue):
        harness.eventually(lambda: "find_leases" in caplog.text)
        assert told.ends == []
        harness.sql(f"ALTER TABLE {dead} RENAME COLUMN gone TO attempts", rows=False)
        harness.eventually(lambda: told.ends)
    assert told.ends == [(int(handle), "succeeded")]


def test_job_finished_by_its_function_keeps_its_success_past_the_lease(harness: Harness, told: Told) -> None:
    queue = harness.tasks().queue(harness.schema)
    stopped: list[bool] = []

    def finish(job_id: int) -> None:
        current().finish()
        stopped.append(current().wait(LEASE))

    async def finish_async(job_id: int) -> None:
        await current().finish()
        await asyncio.sleep(LEASE)
        stopped.append(False)

    handle = queue.task()(finish if harness.mode == "blocking" else finish_async)()
    with harness.working(queue, lease=LEASE):
        harness.eventually(lambda: told.ends)
    assert stopped == [False]
    assert told.ends == [(int(handle), "succeeded")]


def test_completions_wait_until_a_full_disk_has_room(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    schema = quote(harness.schema)
    harness.sql(f"CREATE SEQUENCE {schema}.refused", rows=False)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('{schema}.refused') <= 3 THEN RAISE 'no space left on device' USING ERRCODE = '53100'; END IF;"
        " RETURN NEW; END $$",
        rows=False,
    )
    harness.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW"
        f" WHEN (NEW.dequeued_at IS NOT NULL) EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )
    queue.put_calls(*[note.call()] * 3)
    with harness.working(queue):
        harness.eventually(lambda: harness.sql("SELECT 1 FROM {table} WHERE dequeued_at IS NULL") == [])
    assert queue.dead.count() == 0
    assert harness.sql("SELECT count(*) FROM {table}") == [(3,)]
    assert len(seen.items) == 3


@pytest.mark.only("async")
@pytest.mark.requires(Capability.LISTEN)
def test_unanswered_call_is_found_though_a_wait_ends_meanwhile(harness: Harness, proxy: Proxy) -> None:
    # The listener waits and registers channels on one connection; the end of a wait hid that nothing arrived.
    async def scenario() -> None:
        opener = harness.opener
        session = opener.session(await opener.call("connect", proxy.dsn))
        await session.enter()
        await session.listen("pqcore_silence")
        proxy.stall()
        waiting = asyncio.ensure_future(session.wait(0.1))
        asking = asyncio.ensure_future(session.execute(session.sql.ping))
        await waiting
        session.abort_if_busy(session.busy_since)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(asking, PATIENCE)
        await session.close()

    harness.in_loop(scenario)
