"""Interrupts (Ctrl-C, a time limit) at any line of a thread.

An interrupt is raised at each line of pqcore and of the backend in turn, until a call succeeds.
"""

from __future__ import annotations

import gc
import linecache
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pqcore
from pqcore.backend import Capability
from pqcore.db import group_commit
from pqcore.errors import OutcomeUnknown, SerializationError
from pqcore.plugins import plugins
from pqcore.testing.databases import prepared
from pqcore.testing.harness import PATIENCE, Harness

pytestmark = [
    pytest.mark.only("blocking"),
    # An interrupt may come before a coroutine has begun, or while interrupted work is being closed.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # A connection that is interrupted before pqcore has it is closed when it is deleted. If that warning were raised as
    # an error, it would keep the connection open.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]
PLACES = 2
"""The largest number of connections of a pool."""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Collect interrupted objects here, so that warnings about them do not reach another test."""
    yield
    gc.collect()


class Interrupted(BaseException):
    """An exception like KeyboardInterrupt, which would end the tests if it were not caught."""


class TimeLimit(Exception):
    """An exception as time limits raise it from their SIGALRM handler."""


KINDS = (Interrupted, TimeLimit)
"""The exceptions, raised at one line and the next in turn, because other acts meet the same line again."""


def interrupted(harness: Harness, act: Callable[[], object]) -> Iterator[BaseException]:
    """Call a function, and interrupt it at its first line, then at its second, and so on until it returns.

    Args:
        harness: The harness of the test.
        act: The function.
    """
    backend = sys.modules[type(plugins.make(harness.spec, prepared=prepared() is not False)).__module__]
    ours = (str(Path(pqcore.__file__).parent), str(backend.__file__))
    left = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return (
            at_line if frame.f_code.co_filename.startswith(ours) and "testing" not in frame.f_code.co_filename else None
        )

    def at_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line" and left > 0 and not _of_a_lock(frame):
            left -= 1
            if left == 0:
                raised.append(KINDS[number % len(KINDS)]())
                raise raised[0]
        return at_line

    before, number = sys.gettrace(), 0
    raised: list[BaseException] = []  # kept, as a shell does, so that objects in its traceback stay alive
    while True:
        number += 1
        left = number
        raised.clear()
        sys.settrace(trace)
        try:
            act()
        except (*KINDS, SerializationError):  # raised like an error of a serializer
            assert raised
        finally:
            sys.settrace(before)
        if not raised:
            assert number > 50
            return
        yield raised[0]


def _of_a_lock(frame: FrameType) -> bool:
    """Return whether the line takes a lock.

    It also shows when the lock is released, where no signal handler can run.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return line in ("with self._lock:", "with self.connection.lock:")


def lends_all(queue: Any) -> None:
    """Use all connections of a pool at the same moment."""
    together = threading.Barrier(PLACES)
    errors: list[BaseException] = []

    def hold() -> None:
        try:
            with queue:
                together.wait(PATIENCE)
        except BaseException as exc:
            errors.append(exc)
            together.abort()

    threads = [threading.Thread(target=hold) for _ in range(PLACES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def is_committed(harness: Harness, queue: Any) -> None:
    """Check that the thread is in no block: others see what it puts."""
    job_id = queue.put("after")
    assert harness.sql(f"SELECT id FROM {{table}} WHERE id = {job_id}") == [(job_id,)]


def put(queue: Any) -> None:
    queue.put("a")


def nested(queue: Any) -> None:
    with queue, queue:
        queue.put("a")


def take(queue: Any) -> None:
    queue.get(block=False)


ACTS = [put, nested, take]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_interrupt_at_any_line_leaves_no_block_open_and_no_connection_lost(
    harness: Harness, act: Callable[[Any], None]
) -> None:
    harness.needs_sessions()
    queue = harness.queue(max_connections=PLACES, pool_timeout=PATIENCE)
    for number, _ in enumerate(interrupted(harness, lambda: act(queue))):
        is_committed(harness, queue)
        if number % 8 == 0:
            lends_all(queue)
    lends_all(queue)
    idle = f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{harness.application}' AND state LIKE 'idle in%'"
    harness.eventually(lambda: not harness.sql(idle))
    assert harness.connections() <= PLACES
    queue.close()
    harness.eventually(lambda: harness.connections() == 0)


def put_one(queue: Any, data: str) -> int:
    return int(queue.put(data))


def get_one(queue: Any, data: str) -> int:
    return int(queue.get(block=False).id)


@pytest.mark.parametrize("call", [put_one, get_one], ids=["put", "get"])
def test_interrupt_at_any_line_of_a_leader_leaves_no_follower_waiting(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any, str], int]
) -> None:
    harness.needs_sessions()
    monkeypatch.setattr(group_commit, "PATIENCE", 2.0)  # so that the first waiter leads
    queue = harness.queue(max_connections=PLACES, pool_timeout=PATIENCE)
    queue.put_many(["there"] * 3_000)
    call(queue, "first")
    [line] = queue.lines
    told: dict[str, object] = {}

    def follow(data: str) -> None:
        try:
            told[data] = call(queue, data)
        except OutcomeUnknown as exc:
            told[data] = exc

    def have_others_follow(began: float) -> None:
        with ExitStack() as stack:
            waits(1)
            for _ in range(3):
                stack.enter_context(harness.thread(partial(follow, f"follower {next(numbers)}")))
            waits(3)
            if line.since == began:
                line.pass_on()

    def waits(number: int) -> None:
        """Wait until this number of calls wait in the line, or the leader is gone."""
        deadline = time.monotonic() + group_commit.PATIENCE
        while len(line.waiting) < number and not gone.is_set() and time.monotonic() < deadline:
            time.sleep(0)

    def lead() -> None:
        late: BaseException | None = None
        gone.clear()
        line.since = began = time.monotonic()
        with harness.thread(partial(have_others_follow, began)):
            try:
                call(queue, "leader")
            except (*KINDS, SerializationError) as exc:
                late = exc
            gone.set()
        try:
            if late is not None:
                raise late
        finally:
            late = None  # otherwise it refers to itself, and its content is deleted during another act

    numbers, gone = count(), threading.Event()
    for number, _ in enumerate(interrupted(harness, lead)):
        lends_all(queue)
        if number % 8 == 0:
            is_committed(harness, queue)
    lends_all(queue)
    given = [job for job in told.values() if isinstance(job, int)]
    assert len(set(given)) == len(given)
    assert len(told) == next(numbers)
    found = dict(harness.sql("SELECT id, data #>> '{}' FROM {table} WHERE dequeued_at IS NULL"))
    if call is get_one:
        assert not found.keys() & set(given)
    else:
        assert all(found[job] == data for data, job in told.items() if isinstance(job, int))
        data = [each for each in found.values() if each.startswith("follower")]
        assert len(set(data)) == len(data), "none is put twice"
    assert harness.connections() <= PLACES
    queue.close()


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_interrupt_at_any_line_leaves_the_callers_connection_unchanged(
    harness: Harness, act: Callable[[Any], None]
) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    mode = getattr(connection.raw, "autocommit", None)
    for _ in interrupted(harness, lambda: act(queue)):
        is_committed(harness, queue)
        assert getattr(connection.raw, "autocommit", None) == mode
        with harness.thread(lambda: queue.put("from another thread")) as join:
            join()


@pytest.mark.requires(Capability.POOL)
@pytest.mark.parametrize("act", [put, nested], ids=lambda act: act.__name__)
def test_interrupt_at_any_line_returns_connections_to_the_callers_pool(
    harness: Harness, act: Callable[[Any], None]
) -> None:
    queue = harness.pq(pool=harness.pool(PLACES), pool_timeout=PATIENCE)["q"]
    for number, _ in enumerate(interrupted(harness, lambda: act(queue))):
        is_committed(harness, queue)
        if number % 8 == 0:
            lends_all(queue)
    lends_all(queue)


@pytest.mark.requires(Capability.LISTEN)
def test_interrupt_at_any_line_of_a_wait_leaves_other_waiters_working(harness: Harness) -> None:
    queue = harness.queue(max_connections=PLACES, pool_timeout=PATIENCE, poll_interval=3600)
    for number, _ in enumerate(interrupted(harness, lambda: queue.get(timeout=0.001))):
        if number % 8 == 0:
            with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
                queue.put("a")
                assert join().data == "a"
    queue.close()
    harness.eventually(lambda: harness.connections() == 0)


def test_interrupt_in_an_inner_block_undoes_only_that_block(harness: Harness) -> None:
    queue = harness.queue()
    for _ in interrupted(harness, lambda: outer(queue)):
        assert [job.data for job in queue.peek(10)] in ([], ["outer"], ["outer", "inner"])
        queue.clear()
    assert [job.data for job in queue.peek(10)] == ["outer", "inner"]


def outer(queue: Any) -> None:
    late: BaseException | None = None
    with queue:
        queue.put("outer")
        try:
            with queue:
                queue.put("inner")
        except (*KINDS, SerializationError) as exc:
            late = exc
    try:
        if late is not None:
            raise late
    finally:
        late = None  # it would refer to itself
