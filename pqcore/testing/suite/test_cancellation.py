"""Cancelled tasks: at any instant, no job is lost, and no connection suffers.

These scenarios are about asyncio itself, so they run in their own event loop, not behind the portal. The harness locks
rows from another connection, which holds a statement in flight; so the instant of a cancellation is known.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
import types
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from pqcore.async_queue import AsyncPQ
from pqcore.backend import Capability
from pqcore.db import listener as waiting
from pqcore.db.sources import lent
from pqcore.errors import TransactionAborted
from pqcore.sql.identifiers import channel, quote
from pqcore.testing.connections import Connection
from pqcore.testing.harness import PATIENCE, Harness, patiently
from pqcore.testing.undo import Undo

NEVER = 3600.0
RETENTIONS = ["keep", "delete", "archive"]
Take = Callable[[Any], Coroutine[Any, Any, Any]]
TAKES: dict[str, Take] = {
    "get": lambda queue: queue.get(block=False),
    "get_many": lambda queue: queue.get_many(5, block=False),
    "lease": lambda queue: queue.lease(NEVER, block=False),
    "lease_many": lambda queue: queue.lease_many(5, NEVER, block=False),
}
Scenario = Callable[[AsyncPQ], Awaitable[None]]


def run(harness: Harness, scenario: Scenario, **options: Any) -> None:
    """Run a scenario in an event loop; at its end, no connection may be left, and no complaint."""
    prepare(harness)
    complaints: list[str] = []

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncpg forgets one of its own futures if connecting is cancelled.
        if "connection_lost" not in str(context):
            complaints.append(str(context))

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(complain)
        async with opened(harness, **options) as pq:
            await scenario(pq)

    asyncio.run(main())
    gc.collect()  # so that complaints come here, and not in the next test
    assert complaints == []
    harness.eventually(lambda: harness.connections() == 0)


def prepare(harness: Harness) -> None:
    """Make the table, and leave no connection open."""
    harness.pq().close()
    harness.eventually(lambda: harness.connections() == 0)


def opened(harness: Harness, target: Any = None, **options: Any) -> AsyncPQ:
    options = {"poll_interval": NEVER, **options}
    target = harness.dsn if target is None else target
    return AsyncPQ(target, schema=harness.schema, backend=harness.spec.name, **options)


@contextmanager
def locked(harness: Harness) -> Iterator[Connection]:
    """Lock the table, so that all statements on it stay in flight; a commit releases them."""
    connection = harness.connect()
    connection.begin()
    connection.sql(f"LOCK TABLE {harness.table} IN ACCESS EXCLUSIVE MODE", rows=False)
    try:
        yield connection
    finally:
        connection.close()


async def eventually(condition: Callable[[], Any]) -> None:
    """Query the server until the answer is true, while the event loop continues."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not become true in {PATIENCE} seconds"
        await asyncio.sleep(0.005)


async def in_flight(harness: Harness, number: int = 1) -> None:
    """Wait until this number of statements wait for a lock."""
    statement = (
        f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{harness.application}' AND wait_event_type = 'Lock'"
    )
    await eventually(lambda: len(harness.sql(statement)) >= number)


def busy(harness: Harness) -> list[Any]:
    """Return the connections that are in a statement or transaction."""
    return harness.sql(
        "SELECT pid, state, query FROM pg_stat_activity"
        f" WHERE application_name = '{harness.application}' AND state <> 'idle'"
    )


async def steps(number: int = 20) -> None:
    """Let the other tasks take a few steps."""
    for _ in range(number):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Await a task that must end by its cancellation."""
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
    assert task.cancelled()


async def works(harness: Harness, pq: AsyncPQ) -> None:
    """Check that everything still works, and keeps working."""
    queue = pq["works"]
    for number in range(12):
        await queue.put(number)
    assert harness.sql("SELECT count(*) FROM {table} WHERE q_name = 'works'") == [(12,)]
    async with queue:
        assert len(await queue.get_many(5)) == 5
    assert [(await queue.get(timeout=0)).data for _ in range(7)] == list(range(5, 12))  # type: ignore[union-attr]
    assert harness.sql("SELECT 1 FROM {table} WHERE q_name = 'works' AND dequeued_at IS NULL") == []
    stuck = f"FROM pg_stat_activity WHERE application_name = '{harness.application}' AND state LIKE 'idle in%'"
    assert harness.sql(f"SELECT pid {stuck}") == []


def listed(taken: Any) -> list[Any]:
    if taken is None:
        return []
    return taken if isinstance(taken, list) else [taken]


async def listen(queue: Any) -> None:
    """Wait for the queue once, so that later waits are notified from their beginning."""
    rounds = patiently(f"{queue!r} is listened to")
    while channel(queue.name) not in queue.engine.listener._channels:
        next(rounds)
        assert await queue.get(timeout=0.02) is None


async def waits_for_good(queue: Any) -> None:
    """Wait until a waiter has had its last look, so that only a notification makes it look again."""
    listener, topic = queue.engine.listener, channel(queue.name)
    await eventually(lambda: listener._waiters.get(topic) and topic not in listener._unsettled)


async def drained(queue: Any) -> list[Any]:
    jobs = []
    while batch := await queue.get_many(100, block=False):
        jobs += batch
    return jobs


# Cancellation at a known instant


@pytest.mark.only("async")
@pytest.mark.parametrize(("retention", "times"), [*[(retention, 1) for retention in RETENTIONS], ("keep", 3)])
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_cancelled_get_puts_its_jobs_back(harness: Harness, retention: str, take: Take, times: int) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        ids = [
            await queue.put("soon", expected_at="1h"),
            await queue.put({"a": "…"}, "0s"),
            await queue.put("c"),
        ]
        columns = "id, q_name, enqueued_at, schedule_at, expected_at, data::text, serializer, dequeued_at, leased_until"
        before = harness.sql(f"SELECT {columns} FROM {{table}} ORDER BY id")
        with locked(harness) as lock:
            task = asyncio.create_task(take(queue))
            await in_flight(harness)
            for _ in range(times):
                task.cancel()
                await steps()
            lock.commit()
            await cancelled(task)
        assert harness.sql(f"SELECT {columns} FROM {{table}} ORDER BY id") == before
        jobs = await drained(queue)
        assert [(job.id, job.data) for job in jobs] == list(zip(ids, ["soon", {"a": "…"}, "c"], strict=True))
        if take in (TAKES["get"], TAKES["get_many"]):
            assert {job.attempts for job in jobs} == {1}  # as if nothing had happened
        await works(harness, pq)

    run(harness, scenario, retention=retention)


@pytest.mark.only("async")
@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_cancelled_get_puts_its_jobs_back_in_a_transaction_that_continues(
    harness: Harness, retention: str, take: Take
) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        ids = [await queue.put(number) for number in range(3)]
        with locked(harness) as lock:
            async with queue:
                child = asyncio.create_task(take(queue))
                await in_flight(harness)
                child.cancel()
                await steps()
                lock.commit()
                await cancelled(child)
                ids.append(await queue.put(3))
        assert [job.id for job in await drained(queue)] == ids
        await works(harness, pq)

    run(harness, scenario, retention=retention)


@pytest.mark.only("async")
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_block_rolls_back_when_its_own_task_was_cancelled_in_a_get(harness: Harness, take: Take) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        ids = [await queue.put(number) for number in range(3)]

        async def inner() -> None:
            async with queue:
                with suppress(asyncio.CancelledError):
                    await take(queue)
                with pytest.raises(TransactionAborted, match="cancelled in this block"):
                    await queue.put("never")

        async def goes_on() -> None:
            async with queue:
                with pytest.raises(TransactionAborted, match="begin it again"):
                    await inner()
                ids.append(await queue.put(3))

        with locked(harness) as lock:
            task = asyncio.create_task(goes_on())
            await in_flight(harness)
            task.cancel()
            await steps()
            lock.commit()
            await task
        assert [job.id for job in await drained(queue)] == ids
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
def test_cancelled_transaction_is_rolled_back(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        await queue.put("a")

        async def block() -> None:
            async with queue:
                await queue.put("never")
                assert (await queue.get()) is not None
                await queue.get(timeout=NEVER)
                await queue.get(timeout=NEVER)

        task = asyncio.create_task(block())
        await eventually(harness.listening)
        task.cancel()
        await cancelled(task)
        assert [job.data for job in await drained(queue)] == ["a"]
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.parametrize("retention", RETENTIONS)
def test_cancelled_get_puts_its_job_back_over_one_connection(harness: Harness, retention: str) -> None:
    async def scenario(_: AsyncPQ) -> None:
        connection = (await harness.opener.call("connect", harness.dsn)).connection
        pq = opened(harness, connection, retention=retention)
        queue = pq["q"]
        job_id = await queue.put("a")
        with locked(harness) as lock:
            task = asyncio.create_task(queue.get())
            await in_flight(harness)
            task.cancel()
            await steps()
            lock.commit()
            await cancelled(task)
        job = await queue.get(timeout=0)
        assert job is not None
        assert job.id == job_id
        waiter = asyncio.create_task(queue.get(timeout=NEVER))
        await steps()
        waiter.cancel()
        await cancelled(waiter)
        await works(harness, pq)
        await pq.close()

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("take", ["get", "lease"])
@pytest.mark.parametrize("retention", RETENTIONS)
def test_job_put_back_by_a_cancelled_get_wakes_another_waiter(harness: Harness, retention: str, take: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        await listen(queue)
        other = asyncio.create_task(queue.get(timeout=NEVER))
        await waits_for_good(queue)  # otherwise its next look may be the statement in flight
        with locked(harness) as lock:
            lock.sql("SET LOCAL pqcore.notify = 'off'", rows=False)  # otherwise this would wake the other waiter
            lock.sql(f"INSERT INTO {harness.table} (q_name, data) VALUES ('q', '1')", rows=False)
            task = asyncio.create_task(queue.get() if take == "get" else queue.lease())
            await in_flight(harness)
            task.cancel()
            await steps()
            lock.commit()
            await cancelled(task)
        job = await asyncio.wait_for(other, PATIENCE)
        assert job is not None
        assert job.data == 1

    run(harness, scenario, retention=retention)


@pytest.mark.only("async")
def test_cancelled_waiter_leaves_other_waiters_waiting(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        tasks = [asyncio.create_task(queue.get(timeout=NEVER)) for _ in range(4)]
        await eventually(harness.listening)
        for task in tasks[:3]:
            task.cancel()
            await cancelled(task)
        await queue.put("a")
        job = await asyncio.wait_for(tasks[3], PATIENCE)
        assert job is not None
        await works(harness, pq)

    run(harness, scenario)


@contextmanager
def without_probes() -> Iterator[None]:
    """Prevent checks whether the listening connection still works."""
    probe, waiting.PROBE = waiting.PROBE, NEVER
    try:
        yield
    finally:
        waiting.PROBE = probe


@pytest.mark.only("async")
def test_cancelled_put_leaves_its_connection_usable(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        await queue.put("first")
        with locked(harness) as lock:
            puts: list[Coroutine[Any, Any, Any]] = [queue.put("a") for _ in range(4)]
            tasks = [asyncio.create_task(put) for put in (*puts, queue.put_many([*"bc"]))]
            await in_flight(harness, 5)
            for task in tasks:
                task.cancel()
            await steps()
            lock.commit()
            for task in tasks:
                await cancelled(task)
        await eventually(lambda: busy(harness) == [])  # a statement that is not over would hold locks
        # It is unknown whether a cancelled put took effect, but it did so completely or not at all.
        assert {job.data for job in await drained(queue)} <= {"first", "a", "b", "c"}
        await works(harness, pq)

    run(harness, scenario, max_connections=5, group_commit=False)  # each put has its own connection


@pytest.mark.only("async")
def test_cancelled_commit_leaves_its_connection_usable(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        # The commit of any put takes a lock that another session holds.
        schema, key = quote(harness.schema), random.getrandbits(31)
        harness.sql(
            f"CREATE FUNCTION {schema}.hold() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM pg_advisory_xact_lock_shared({key}); RETURN NULL; END $$",
            rows=False,
        )
        harness.sql(
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED"
            f" FOR EACH ROW WHEN (NEW.q_name = 'q') EXECUTE FUNCTION {schema}.hold()",
            rows=False,
        )
        holder = harness.connect()
        holder.sql(f"SELECT pg_advisory_lock({key})::text")

        async def block() -> None:
            async with queue:
                await queue.put("a")

        task = asyncio.create_task(block())
        await in_flight(harness)
        task.cancel()
        await steps()
        holder.close()
        await cancelled(task)
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.parametrize("when", ["while it waits", "when its turn comes"])
def test_task_cancelled_while_waiting_for_a_connection_takes_none(harness: Harness, when: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        for _ in range(3):
            holding, go = asyncio.Event(), asyncio.Event()
            holder = asyncio.create_task(hold(queue, holding, go))
            await holding.wait()
            waiter = asyncio.create_task(queue.put("never"))
            await steps()
            if when == "while it waits":
                waiter.cancel()
                await steps()
            else:
                victims.append(waiter)
            go.set()
            await cancelled(waiter)
            await holder
        found = [job.data for job in await drained(queue)]
        # then its put may be in flight, and take effect although its caller is told nothing
        if when != "while it waits":
            found = [data for data in found if data != "never"]
        assert found == ["kept"] * 3
        await works(harness, pq)

    async def hold(queue: Any, holding: asyncio.Event, go: asyncio.Event) -> None:
        async with queue:
            await queue.put("kept")
            holding.set()
            await go.wait()
        while victims:
            victims.pop().cancel()  # the only connection became free, and no task has had a step since

    victims: list[asyncio.Task[Any]] = []
    run(harness, scenario, max_connections=1)


@pytest.mark.only("async")
def test_waiting_get_does_not_block_the_event_loop(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        await queue.put("a", "1h")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        assert await queue.get(timeout=0.2) is None
        assert ticks >= 10
        with locked(harness) as lock:
            task = asyncio.create_task(queue.get(block=False))
            await in_flight(harness)
            ticks = 0
            await eventually(lambda: ticks >= 10)
            assert not task.done()
            lock.commit()
            assert await task is None
        ticker.cancel()

    run(harness, scenario)


# Cancellation at each suspension


class Plan:
    """A plan that cancels a task at a suspension of it, or of a task that it started.

    Args:
        number: The number of the suspension, counted from one.
        when: ``"sent"``: right after the awaitable was requested; ``"answered"``: when the result is there, and the
            task would continue next.
    """

    current: ContextVar[Plan | None] = ContextVar("plan", default=None)

    def __init__(self, number: int, when: str) -> None:
        self._number = number
        self._when = when
        self.count = 0
        self.victim: asyncio.Task[Any]

    def suspended(self, awaited: Any) -> None:
        self.count += 1
        if self.count == self._number:
            if self._when == "answered" and asyncio.isfuture(awaited):
                # Called before the task is woken; the task asks for that only later.
                awaited.add_done_callback(lambda _: self.victim.cancel())
            else:
                asyncio.get_running_loop().call_soon(self.victim.cancel)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start the victim."""
        context = copy_context()
        context.run(self.current.set, self)
        self.victim = context.run(asyncio.create_task, work)
        return self.victim

    @staticmethod
    def install() -> None:
        """Make the running loop report the suspensions of all later tasks to plans."""

        async def watched(work: Coroutine[Any, Any, Any]) -> Any:
            return await step_by_step(work)

        asyncio.get_running_loop().set_task_factory(
            lambda loop, work, **options: asyncio.Task(watched(work), loop=loop, **options)
        )


@types.coroutine
def step_by_step(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await an awaitable, and report each suspension to the plan."""
    thrown: BaseException | None = None
    while True:
        try:
            awaited = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration as stop:
            return stop.value
        plan = Plan.current.get()
        if plan is not None:
            plan.suspended(awaited)
        try:
            thrown = None
            yield awaited
        except BaseException as exc:
            thrown = exc


async def interrupted(make: Callable[[], Coroutine[Any, Any, Any]], when: str) -> AsyncIterator[Any]:
    """Repeat an operation, and interrupt it one suspension later each time, until it ends without an interruption.

    Yields the result of the operation, or None.
    """
    Plan.install()
    for number in range(1, 100):
        plan = Plan(number, when)
        task = plan.start(make())
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done()
        yield None if task.cancelled() else task.result()
        if plan.count < number:
            assert number > 1
            return
    pytest.fail("it did not end")


@pytest.mark.only("async")
@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("kind", [*TAKES, "block"])
@pytest.mark.parametrize("when", ["sent", "answered"])
def test_cancellation_at_each_suspension_loses_no_job(harness: Harness, retention: str, kind: str, when: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        everything = set(await queue.put_many(range(300)))
        returned: list[int] = []
        seen: set[int] = set()

        def take() -> Coroutine[Any, Any, Any]:
            return take_in_a_block(queue, seen) if kind == "block" else TAKES[kind](queue)

        async for result in interrupted(take, when):
            returned += [job.id for job in listed(result)]
            await eventually(lambda: not busy(harness))
        left = [job.id for job in await drained(queue)]
        accounted(harness, everything, returned, left, seen if kind == "block" else None)
        await works(harness, pq)

    run(harness, scenario, retention=retention)


@pytest.mark.only("async")
@pytest.mark.parametrize("when", ["sent", "answered"])
# Tasks are wrapped here, and asyncpg cancels one of its own that has not begun.
@pytest.mark.filterwarnings("ignore:coroutine 'Connection._cancel' was never awaited:RuntimeWarning")
def test_cancellation_at_each_suspension_closes_an_opened_connection(harness: Harness, when: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        async def borrow() -> None:
            clone = pq.engine.clone_for_worker(1, 60.0)  # its connections are set up after they are open
            try:
                await lent(clone.source, lambda session: session.execute(session.sql.ping))
            finally:
                await clone.close()

        async for _ in interrupted(borrow, when):
            await eventually(lambda: not busy(harness))
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.parametrize("when", ["sent", "answered"])
def test_cancellation_at_each_suspension_puts_all_or_none(harness: Harness, when: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        many = pq["many"]
        acknowledged: list[int] = []
        async for job in interrupted(lambda: pq["one"].put("a"), when):
            acknowledged += listed(job)
            await eventually(lambda: not busy(harness))
        # Two statements in one transaction.
        async for jobs in interrupted(lambda: many.put_many(range(6_000)), when):
            acknowledged += listed(jobs)
            await eventually(lambda: not busy(harness))
            assert harness.sql("SELECT count(*) % 6000 FROM {table} WHERE q_name = 'many'") == [(0,)]
        assert set(acknowledged) <= {job for [job] in harness.sql("SELECT id FROM {table}")}
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("when", ["sent", "answered"])
def test_cancellation_while_beginning_to_listen_leaves_other_waiters_listening(harness: Harness, when: str) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        await listen(pq["a"])
        Plan.install()
        for number in range(1, 12):
            other = asyncio.create_task(pq["a"].get(timeout=NEVER))
            plan = Plan(number, when)
            task = plan.start(pq[f"b{number}"].get(timeout=NEVER))
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            await asyncio.wait([task], timeout=PATIENCE)
            await pq["a"].put(number)
            job = await asyncio.wait_for(other, PATIENCE)
            assert job is not None
            assert job.data == number

    with without_probes():
        run(harness, scenario)


# Cancellation at any instant


async def take_in_a_block(queue: Any, seen: set[int]) -> Any:
    async with queue:
        job = await queue.get(block=False)
        seen.add(job.id)
        await queue.put("beside", "1h")
        return job


def accounted(
    harness: Harness, everything: set[int], returned: list[int], left: list[int], seen: set[int] | None
) -> None:
    """Check that each job was returned to a caller or was left.

    A job taken within a block was seen by one that committed.
    """
    assert len(set(returned)) == len(returned)
    assert len(set(left)) == len(left)
    assert set(returned).isdisjoint(left)
    if seen is None:
        assert set(returned) | set(left) == everything
    else:  # it is unknown whether a cancelled commit took effect
        assert set(returned) <= everything - set(left) <= seen
        beside = harness.sql("SELECT count(*) FROM {table} WHERE schedule_at IS NOT NULL")
        assert beside == [(len(everything) - len(left),)]


@pytest.mark.only("async")
@pytest.mark.parametrize("kind", [*TAKES, "block"])
def test_cancellation_at_any_time_loses_no_job(harness: Harness, kind: str) -> None:
    rng = random.Random(kind)
    [retention] = rng.sample(RETENTIONS, 1)

    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        everything = set(await queue.put_many(range(400)))
        returned: list[int] = []
        seen: set[int] = set()
        cancellations = 0
        for _ in range(20):
            tasks: list[asyncio.Task[Any]] = []
            for _ in range(4):
                work = take_in_a_block(queue, seen) if kind == "block" else TAKES[kind](queue)
                tasks.append(asyncio.create_task(work))
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.004), tasks[-1].cancel)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, asyncio.CancelledError):
                    cancellations += 1
                else:
                    returned += [job.id for job in listed(result)]
        left = [job.id for job in await drained(queue)]
        assert cancellations >= 5
        accounted(harness, everything, returned, left, seen if kind == "block" else None)
        await works(harness, pq)
        assert harness.connections() <= 5

    run(harness, scenario, retention=retention, max_connections=4)


@pytest.mark.only("async")
def test_cancellation_at_any_time_of_the_first_wait_leaks_no_connection(harness: Harness) -> None:
    rng = random.Random(7)

    async def scenario(unused: AsyncPQ) -> None:
        for _ in range(10):
            # this connects, looks, opens a connection, and listens
            async with opened(harness, max_connections=2) as own:
                tasks = [asyncio.create_task(own[name].get(timeout=NEVER)) for name in "aabb"]
                for task in tasks[1:]:
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.03), task.cancel)
                await asyncio.wait(tasks[1:])
                await own["a"].put("a")
                job = await asyncio.wait_for(tasks[0], PATIENCE)
                assert job is not None
                # If connecting was cancelled, psycopg closes the connection at garbage collection.
                del tasks, task
                await eventually(lambda: gc.collect() >= 0 and harness.connections() <= 3)

    with without_probes():
        run(harness, scenario)


@pytest.mark.only("async")
def test_wait_for_around_a_get_loses_no_job(harness: Harness) -> None:
    rng = random.Random(11)

    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        got: list[Any] = []
        timeouts = 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.get(timeout=NEVER), 0.02)
        producer = asyncio.create_task(produce(queue, 60))
        while not producer.done() or len(got) < 60:
            try:
                # The limit grows, because a busy machine may finish no get within the first one.
                limit = rng.uniform(0, 0.01 + timeouts / 5_000)
                job = await asyncio.wait_for(queue.get(timeout=NEVER), limit)
            except asyncio.TimeoutError:
                timeouts += 1
                assert timeouts < 10_000, f"{len(got)} of 60 arrived"
            else:
                assert job is not None
                got.append(job.data)
        await producer
        assert sorted(got) == list(range(60))
        assert timeouts > 0
        assert await drained(queue) == []
        await works(harness, pq)

    async def produce(queue: Any, number: int) -> None:
        for item in range(number):
            await queue.put(item)

    run(harness, scenario)


# Tasks and transactions


@pytest.mark.only("async")
def test_tasks_started_in_a_block_share_its_transaction(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        async with queue:
            await asyncio.gather(*(queue.put(number) for number in range(10)))
            task = asyncio.create_task(pq["other"].put("x"))
            await task
            jobs = await asyncio.gather(*(queue.get(block=False) for _ in range(12)))
            assert sorted(job.data for job in jobs if job is not None) == list(range(10))
            await queue.put("kept")
            assert harness.sql("SELECT count(*) FROM {table}") == [(0,)]
            assert harness.connections() == 1
        assert harness.sql("SELECT count(*) FROM {table} WHERE dequeued_at IS NULL") == [(2,)]

        async def undone() -> None:
            async with queue:
                await asyncio.gather(*(queue.get() for _ in range(1)), *(queue.put(number) for number in range(5)))
                raise Undo

        with pytest.raises(Undo):
            await undone()
        assert [job.data for job in await drained(queue)] == ["kept"]
        await works(harness, pq)

    run(harness, scenario)


@pytest.mark.only("async")
def test_block_does_not_include_operations_of_other_tasks(harness: Harness) -> None:
    async def scenario(pq: AsyncPQ) -> None:
        queue = pq["q"]
        inside, done = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            await inside.wait()
            await queue.put("theirs")
            done.set()

        task = asyncio.create_task(other())
        async with queue:
            await queue.put("ours")
            inside.set()
            await asyncio.wait_for(done.wait(), PATIENCE)
            assert harness.sql("SELECT data::text FROM {table}") == [('"theirs"',)]
        await task
        assert len(await drained(queue)) == 2

    run(harness, scenario)


@pytest.mark.only("async")
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_block_does_not_include_a_task_that_outlives_it(harness: Harness, end: str) -> None:
    async def later(queue: Any, started: asyncio.Event, over: asyncio.Event) -> None:
        await queue.put("within")
        started.set()
        await over.wait()
        await queue.put("after")
        assert harness.sql("SELECT data::text FROM {table} WHERE data::text LIKE '%after%'") == [('"after"',)]
        async with queue:
            await queue.put("after too")

    async def block(queue: Any, over: asyncio.Event) -> asyncio.Task[None]:
        started = asyncio.Event()
        task = asyncio.create_task(steps())
        with suppress(Undo):
            async with queue:
                task = asyncio.create_task(later(queue, started, over))
                await started.wait()
                if end == "rollback":
                    raise Undo
        return task

    async def scenario(pq: AsyncPQ) -> None:
        over = asyncio.Event()
        task = await block(pq["q"], over)
        over.set()
        await task
        expected = ["within"] * (end == "commit") + ["after", "after too"]
        assert [job.data for job in await drained(pq["q"])] == expected
        await works(harness, pq)

    run(harness, scenario)


async def use(harness: Harness, pq: AsyncPQ) -> None:
    """Open connections, including one for LISTEN."""
    queue = pq["q"]
    await queue.put("a")
    async with queue:
        await queue.put("b")
    assert [job.data for job in await queue.get_many(10)] == ["a", "b"]
    waiter = asyncio.create_task(queue.get(timeout=NEVER))
    await eventually(harness.listening)
    await queue.put("c")
    job = await asyncio.wait_for(waiter, PATIENCE)
    assert job is not None
    await pq["other"].get(timeout=0.01)


@pytest.mark.only("async")
def test_pq_works_in_one_event_loop_after_another(harness: Harness) -> None:
    prepare(harness)

    def loops() -> None:
        pq = opened(harness)

        async def last() -> None:
            await use(harness, pq)
            await pq.close()

        for _ in range(8):
            asyncio.run(use(harness, pq))
            # At most three connections of this loop and of the one before, together.
            harness.eventually(lambda: gc.collect() >= 0 and harness.connections() <= 6)
        asyncio.run(last())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # see the next test
        loops()
        harness.eventually(lambda: gc.collect() >= 0 and harness.connections() == 0)


@pytest.mark.only("async")
def test_event_loop_that_ends_leaves_no_connections(harness: Harness) -> None:
    prepare(harness)

    def leave() -> None:
        pq = opened(harness)
        asyncio.run(use(harness, pq))
        harness.eventually(lambda: harness.connections() == 0)  # the server notices some time later

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the warnings are about the tested behaviour
        leave()
        gc.collect()


@pytest.mark.only("async")
def test_block_waiting_for_its_connection_returns_it_when_the_loop_ends(harness: Harness) -> None:
    async def block(queue: Any, left: asyncio.Event) -> None:
        async with queue:
            other = asyncio.create_task(queue.put("within"))
            await in_flight(harness)
            left.set()
        await other

    async def main() -> None:
        pq = opened(harness)
        left = asyncio.Event()
        kept.append(asyncio.create_task(block(pq["q"], left)))
        kept.append(pq)
        await left.wait()
        await steps()

    prepare(harness)
    kept: list[Any] = []  # so that garbage collection does not close the connection
    with locked(harness):
        asyncio.run(main())
    harness.eventually(lambda: harness.connections() == 0)
