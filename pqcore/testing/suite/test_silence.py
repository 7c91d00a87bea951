"""A server that does not answer: a connection that went silent, a table that is locked. Every wait has a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from pqcore.async_queue import AsyncPQ
from pqcore.backend import Capability
from pqcore.db import channels, runtime
from pqcore.db import listener as waiting
from pqcore.errors import ConfigurationError, ConnectionLost, PoolTimeout, StatementCancelled
from pqcore.sql.identifiers import channel
from pqcore.sql.statement import Query
from pqcore.testing.connections import statement
from pqcore.testing.harness import PATIENCE, Harness, patiently
from pqcore.testing.probes import Notes
from pqcore.testing.proxy import Proxy

NEVER = 3600.0
SHORT = 1.0
BOUND = 5.0
"""Seconds within which short waits must end, even on a busy machine."""


@pytest.fixture
def proxy(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    proxy = Proxy(harness.dsn)
    yield proxy
    proxy.close()


def heard(harness: Harness, pq: Any, *names: str) -> None:
    """Wait for queues once, so that LISTEN is in force for them."""
    for name in names:
        rounds = patiently(f"{name!r} is listened to")
        while channel(name) not in harness.listener(pq[name].engine)._channels:
            next(rounds)
            assert pq[name].get(timeout=0.02) is None


def ended(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and what it returns or raises."""
    began = time.monotonic()
    try:
        result = call()
    except Exception as exc:
        result = exc
    return time.monotonic() - began, result


# The listening connection


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.parametrize("asked", [False, True], ids=["before", "after"])
def test_silent_listening_connection_blocks_no_other_operation(
    harness: Harness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setattr(waiting, "PROBE", 0.1 if asked else NEVER)
    pq = harness.pq(proxy.dsn)
    pq["q"].put("warm")
    assert pq["q"].get().data == "warm"
    heard(harness, pq, "q")
    proxy.stall(last=True)
    if asked:  # the listener asks the server, and waits for an answer
        session = harness.listener(pq["q"].engine)._session
        harness.eventually(lambda: session.busy_since is not None)
    with harness.thread(lambda: ended(lambda: pq["other"].get(timeout=0.2))) as other:
        took, job = ended(lambda: pq["q"].get(timeout=0.2))
        assert (took < BOUND, job) == (True, None)
        took, job_id = ended(lambda: pq["third"].put(1))
        assert took < BOUND
        took, job = other()
        assert (took < BOUND, job) == (True, None)
    assert pq["third"].get(timeout=0.2).id == job_id
    assert ended(pq.close)[0] < BOUND


@pytest.mark.requires(Capability.LISTEN)
def test_silent_listening_connection_is_replaced_by_a_new_waiter(
    harness: Harness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ANSWER", SHORT)
    monkeypatch.setattr(waiting, "RETRY", 0.05)
    pq = harness.pq(proxy.dsn, poll_interval=NEVER)
    heard(harness, pq, "q")
    proxy.stall(last=True)
    heard(harness, pq, "r")  # the attempt to register it finds that the server does not answer
    with harness.thread(partial(pq["r"].get, timeout=NEVER)) as join:
        harness.eventually(harness.listening)
        harness.pq(create=False)["r"].put("a")
        assert join().data == "a"


@pytest.mark.requires(Capability.LISTEN)
def test_listening_connection_that_cannot_be_opened_blocks_no_operation(harness: Harness, proxy: Proxy) -> None:
    pq = harness.pq(proxy.dsn)
    pq["q"].put(1)
    assert pq["q"].get(block=False).data == 1
    proxy.silence_new()
    took, _ = ended(lambda: pq["q"].get(timeout=0.1))
    assert took < BOUND
    assert ended(pq.close)[0] < BOUND


@pytest.mark.requires(Capability.LISTEN)
def test_listening_connection_has_no_idle_session_timeout(harness: Harness) -> None:
    harness.needs_sessions()
    pq = harness.pq(poll_interval=NEVER)
    heard(harness, pq, "q")
    [[value]] = harness.sql(
        "SELECT count(*) FROM pg_settings WHERE name = 'idle_session_timeout'"  # PostgreSQL 14 and later
    )
    if value:
        query = statement("SELECT current_setting('idle_session_timeout')")
        assert on_listener(harness, pq["q"], query) == [("0",)]


def on_listener(harness: Harness, queue: Any, query: Query) -> list[tuple[Any, ...]]:
    """Run a statement on the listening connection, while nobody else uses it."""
    listener = harness.listener(queue.engine)

    async def work() -> list[tuple[Any, ...]]:
        await listener._session_lock.enter()
        try:
            return [tuple(row) for row in await listener._session.execute(query)]
        finally:
            listener._session_lock.leave()

    return harness.wait_for(work)


# Other calls


def calls(queue: Any) -> dict[str, Callable[[], Any]]:
    def block() -> None:
        with queue:
            queue.put("in a block")

    return {
        "put": lambda: queue.put(1),
        "put_many": lambda: queue.put_many([1, 2]),
        "get": lambda: queue.get(timeout=0.1),
        "lease": lambda: queue.lease(wait=0.1),
        "block": block,
    }


@pytest.mark.parametrize("name", ["put", "put_many", "get", "lease", "block"])
def test_call_on_a_silent_connection_ends_with_connection_lost(harness: Harness, proxy: Proxy, name: str) -> None:
    queue = harness.pq(proxy.dsn, answer_timeout=SHORT, max_connections=2)["q"]
    queue.put("warm")
    proxy.stall(new=True)
    took, result = ended(calls(queue)[name])
    assert isinstance(result, ConnectionLost)
    assert took < BOUND
    proxy.resume()
    with harness.thread(lambda: queue.put("again")) as join:  # a put over the next connection
        assert join()


def test_close_ends_while_the_server_is_silent(harness: Harness, proxy: Proxy) -> None:
    pq = harness.pq(proxy.dsn, answer_timeout=SHORT)
    barrier = threading.Barrier(3)

    def hold() -> None:
        with pq["q"]:
            pq["q"].put(1)
            barrier.wait(PATIENCE)

    harness.at_once(hold, hold, hold)  # three connections, which are idle now
    if Capability.LISTEN in harness.spec.capabilities:
        heard(harness, pq, "r")
    proxy.stall(new=True)
    assert ended(pq.close)[0] < 2 * BOUND


def test_answer_timeout_does_not_apply_to_migrations_and_may_be_none(harness: Harness) -> None:
    pq = harness.pq(answer_timeout=SHORT)
    unlimited = harness.pq(create=False, answer_timeout=None)["q"]
    other = harness.connect()
    other.begin()
    other.sql("LOCK TABLE {table}".replace("{table}", harness.table), rows=False)
    with harness.thread(lambda: unlimited.put(1)) as join:
        pause = threading.Event()
        pause.wait(2 * SHORT)
        other.rollback()
        assert join() > 0
    assert pq["q"].count() == 1


@pytest.mark.parametrize("limit", [0, -1, "x"])
def test_answer_timeout_of_a_bad_value_is_refused(harness: Harness, limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="answer_timeout"):
        harness.pq(answer_timeout=limit)


@contextmanager
def locked(harness: Harness) -> Iterator[None]:
    """Lock the table for the length of a block."""
    other = harness.connect()
    other.begin()
    other.sql(f"LOCK TABLE {harness.table} IN ACCESS EXCLUSIVE MODE", rows=False)
    try:
        yield
    finally:
        other.rollback()


def waiting_for_locks(harness: Harness) -> list[Any]:
    return harness.sql(
        f"SELECT pid FROM pg_stat_activity WHERE application_name = '{harness.application}'"
        " AND wait_event_type = 'Lock'"
    )


def test_answer_timeout_cancels_a_blocked_statement_on_the_server(harness: Harness) -> None:
    harness.needs_sessions()
    harness.needs_method("cancel")
    queue = harness.pq(answer_timeout=2.0)["q"]
    queue.put("warm")
    names = ("put", "get", "block")
    with locked(harness), ExitStack() as stack:
        joins = {name: stack.enter_context(harness.thread(partial(ended, calls(queue)[name]))) for name in names}
        harness.eventually(lambda: len(waiting_for_locks(harness)) == len(names))
        for name, join in joins.items():
            _, result = join()
            assert isinstance(result, StatementCancelled), name
            assert "answer_timeout" in str(result)
        harness.eventually(lambda: not waiting_for_locks(harness))
    assert queue.count() == 1
    assert queue.put("again")


def test_connections_set_client_connection_check_interval(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.queue()
    queue.put(1)
    here = harness.sql("SELECT count(*) FROM pg_settings WHERE name = 'client_connection_check_interval'")
    with queue:
        rows = harness.sql_within(
            queue, "SELECT coalesce(current_setting('client_connection_check_interval', true), '-')"
        )
    assert rows == [("10s" if here[0][0] else "-",)]


@pytest.mark.only("blocking")
def test_pool_timeout_bounds_the_wait_for_the_callers_one_connection(harness: Harness) -> None:
    queue = harness.pq(harness.connect().raw, pool_timeout=SHORT)["q"]
    queue.put(1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with queue:
            queue.put(2)
            entered.set()
            assert leave.wait(PATIENCE)

    with harness.thread(hold) as join:
        assert entered.wait(PATIENCE)
        took, result = ended(lambda: queue.get(timeout=0.1))
        assert isinstance(result, PoolTimeout)
        assert took < BOUND
        leave.set()
        join()


# Cancelled tasks


AWAITED: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "put": lambda queue: queue.put(1),
    "get": lambda queue: queue.get(block=False),
    "waiting get": lambda queue: queue.get(timeout=NEVER),
    "lease": lambda queue: queue.lease(wait=NEVER),
    "count": lambda queue: queue.count(),
}


async def _block(queue: Any) -> None:
    async with queue:
        await queue.put(1)


@pytest.mark.only("async")
def test_cancelled_task_ends_while_the_server_is_silent(
    harness: Harness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "AFTER_CANCEL", SHORT)
    harness.pq()

    async def scenario() -> None:
        pq = AsyncPQ(
            proxy.dsn, schema=harness.schema, backend=harness.spec.name, max_connections=8, answer_timeout=NEVER
        )
        queue = pq["q"]
        works = {**AWAITED, "block": _block}
        await asyncio.gather(*(queue.put("warm") for _ in range(8)))
        await queue.clear()
        proxy.stall(new=True)
        tasks = [asyncio.ensure_future(asyncio.wait_for(work(queue), 0.2)) for work in works.values()]
        _, pending = await asyncio.wait(tasks, timeout=12.0)
        assert not pending, [name for name, task in zip(works, tasks, strict=True) if task in pending]
        for task in tasks:
            assert isinstance(task.exception(), asyncio.TimeoutError)
        await asyncio.wait_for(pq.close(), 12.0)

    harness.in_loop(scenario)


# An endless series of names


@pytest.mark.requires(Capability.LISTEN)
def test_listener_forgets_queues_without_waiters(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.needs_method("unlisten")
    monkeypatch.setattr(channels, "SLICE", 0.02)
    monkeypatch.setattr(channels, "LINGER", 0.1)
    pq = harness.pq()
    names = [f"q{number}" for number in range(30)]
    harness.at_once(*(partial(pq[name].get, timeout=0.1) for name in names))
    listener = harness.listener(pq["q0"].engine)
    kept = ("_channels", "_counts", "_unsettled", "_waited", "_waiters", "_wishes")
    harness.eventually(lambda: listener._session is not None and not any(getattr(listener, name) for name in kept))
    harness.eventually(lambda: not harness.waiting())
    query = statement("SELECT channel FROM pg_listening_channels() AS channel")
    harness.eventually(lambda: on_listener(harness, pq["q0"], query) == [])


@pytest.mark.requires(Capability.LISTEN)
def test_listener_hears_a_forgotten_channel_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "SLICE", 0.02)
    monkeypatch.setattr(channels, "LINGER", 0.05)
    pq = harness.pq(poll_interval=NEVER)
    other = harness.queue("q", create=False)
    for number in range(2):
        with harness.thread(partial(pq["q"].get, timeout=NEVER)) as join:
            harness.eventually(harness.listening)
            other.put(number)
            assert join().data == number
        harness.eventually(lambda: not harness.waiting())


@pytest.mark.requires(Capability.LISTEN)
def test_listener_polls_channels_above_its_maximum(harness: Harness) -> None:
    pq = harness.pq(poll_interval=NEVER)
    harness.listener(pq["a"].engine)._most = 2
    heard(harness, pq, "a", "b")
    with harness.thread(partial(pq["c"].get, timeout=NEVER)) as join:
        harness.pq(create=False)["c"].put("c")
        assert join().data == "c"
    assert sorted(harness.listener(pq["a"].engine)._channels) == ["a", "b"]


# Notifications for the caller


@pytest.mark.requires(Capability.LISTEN, adopted=True)
def test_notifications_of_the_callers_channels_are_left_to_the_caller(harness: Harness) -> None:
    connection = harness.connect()
    raw = connection.raw
    own = Notes()
    if hasattr(raw, "add_listener"):  # asyncpg
        harness.wait_for(lambda: raw.add_listener("mine", lambda *event: own.add(event[2])))
    else:
        connection.sql("LISTEN mine", rows=False)
        if hasattr(raw, "add_notify_handler"):
            raw.add_notify_handler(lambda notify: own.add(notify.channel))
    pq = harness.pq(raw, poll_interval=NEVER)
    with harness.thread(partial(pq["q"].get, timeout=NEVER)) as join:
        harness.eventually(harness.listening)
        for _ in range(3):
            harness.sql("NOTIFY mine", rows=False)
        harness.pq(create=False)["q"].put("a")
        assert join().data == "a"
    pq["q"].count()  # notifications that arrived are read by then
    if isinstance(getattr(raw, "notifies", None), list):  # psycopg2
        assert [notify.channel for notify in raw.notifies] == ["mine"] * 3
    elif isinstance(getattr(raw, "notifications", None), Sized):  # a driver that keeps all of them for its users
        assert [channel for _, channel, _ in raw.notifications].count("mine") == 3
    elif hasattr(raw, "add_listener") or hasattr(raw, "add_notify_handler"):
        harness.eventually(lambda: own.items == ["mine"] * 3)


# A worker's functions


@pytest.mark.only("blocking")
def test_task_whose_own_connection_went_silent_ends(harness: Harness, proxy: Proxy) -> None:
    queue = harness.task_queue()
    shaky = harness.pq(proxy.dsn, create=False, answer_timeout=SHORT)["elsewhere"]
    shaky.put("warm")
    seen = Notes()

    @queue.task(max_retries=0)
    def through_pqcore(job_id: int) -> None:
        with shaky:
            seen.add("pqcore")
            proxy.stall()
            shaky.put(1)

    handle = through_pqcore()
    with harness.working(queue):
        harness.eventually(lambda: queue.status(int(handle)) == "dead")
    assert seen.items == ["pqcore"]


@pytest.mark.only("blocking")
def test_task_past_its_timeout_loses_the_block_that_it_waits_in(
    harness: Harness, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    queue = harness.task_queue()
    shaky = harness.pq(proxy.dsn, create=False)["elsewhere"]
    shaky.put("warm")

    @queue.task(max_retries=0, timeout=0.2)
    def in_a_block(job_id: int) -> None:
        with shaky as cursor:
            tells = hasattr(shaky.engine.block().transaction.session.driver, "busy") and hasattr(cursor, "execute")
            run = cursor.execute if tells else partial(harness.sql_within, shaky)
            run("SELECT 1")
            proxy.stall()
            run("SELECT 2")

    handle = in_a_block()
    with harness.working(queue, stall_timeout=0.3):
        harness.eventually(lambda: queue.status(int(handle)) == "dead")
    assert "was told to stop" in caplog.text
    assert "transaction block waits was closed" in caplog.text
