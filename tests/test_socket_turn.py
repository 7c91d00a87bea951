"""Threads that wait for notifications read the listening socket in turn: see `pqcore.db.socket_turn`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from pqcore import PQ
from pqcore.db import channels
from pqcore.db.socket_turn import SocketTurn
from pqcore.testing.harness import PATIENCE

NEVER = 3600.0
INSERT = "INSERT INTO queue (q_name, data) VALUES ('{}', '1')"


@pytest.fixture(params=["psycopg2", "psycopg"])
def pq(request: pytest.FixtureRequest, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PQ]:
    monkeypatch.setattr(channels, "SETTLE", NEVER)
    with PQ(dsn, backend=request.param, poll_interval=NEVER) as pq:
        pq.create()
        yield pq


@pytest.fixture
def put(dsn: str) -> Iterator[Callable[[str], Any]]:
    """Put a job over another connection."""
    with PQ(dsn, backend="psycopg") as other:
        yield lambda name: other[name].put(1)


@pytest.fixture
def stood_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the listener's own thread read nothing."""
    goes_on = threading.Event()
    monkeypatch.setattr(SocketTurn, "wait_idle", lambda turn, seconds: goes_on.wait(PATIENCE))
    yield
    goes_on.set()


class Waiters:
    """Threads that wait for a job of a queue each."""

    def __init__(self, pq: PQ, threads: ThreadPoolExecutor) -> None:
        self._pq = pq
        self._threads = threads

    def wait(self, name: str, timeout: float = NEVER) -> Callable[[], Any]:
        """Start a thread that waits for a job, and wait until it waits; return a function that returns the job."""
        queue, listener = self._pq[name], self._pq.engine.listener
        if name not in listener._channels:
            assert queue.get(timeout=0.1) is None
        found = self._threads.submit(queue.get, timeout=timeout)
        eventually(lambda: name in listener._waiters)  # type: ignore[union-attr]
        return partial(found.result, PATIENCE)


@pytest.fixture
def waiters(pq: PQ) -> Iterator[Waiters]:
    with ThreadPoolExecutor(8) as threads:
        yield Waiters(pq, threads)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("stood_still")
def test_thread_that_waits_is_woken_without_the_listeners_own_thread(
    waiters: Waiters, put: Callable[[str], Any]
) -> None:
    for _ in range(3):
        job = waiters.wait("a")
        put("a")
        assert job() is not None


@pytest.mark.usefixtures("stood_still")
def test_thread_that_waits_wakes_those_that_wait_on_other_queues(waiters: Waiters, put: Callable[[str], Any]) -> None:
    first = waiters.wait("a")
    others = {name: waiters.wait(name) for name in "bcd"}
    for name, job in others.items():
        put(name)
        assert job() is not None
    put("a")
    assert first() is not None


def test_waiters_are_woken_after_the_thread_that_read_has_left(waiters: Waiters, put: Callable[[str], Any]) -> None:
    first = waiters.wait("a")
    other = waiters.wait("b")
    put("a")
    assert first() is not None
    put("b")
    assert other() is not None


def test_thread_that_comes_after_the_listeners_own_reads_again(waiters: Waiters, put: Callable[[str], Any]) -> None:
    other = waiters.wait("b")
    for _ in range(3):
        job = waiters.wait("a")
        put("a")
        assert job() is not None
    put("b")
    assert other() is not None


def test_thread_that_reads_is_woken_by_its_own_process(pq: PQ, waiters: Waiters) -> None:
    job = waiters.wait("a")
    looked = threading.Event()
    line = pq.engine.line

    def look(*args: Any) -> Any:
        looked.set()
        return line(*args)

    pq.engine.line = look  # type: ignore[assignment]
    pq.engine.wake("a")
    assert looked.wait(PATIENCE)
    pq["a"].put(1)
    assert job() is not None


def test_waiters_are_woken_though_a_reader_was_interrupted_as_it_left(
    waiters: Waiters, put: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def interrupted(turn: SocketTurn, waiter: Any) -> None:
        kept.append(waiter)  # as a traceback would keep it
        raise KeyboardInterrupt

    first = waiters.wait("a")
    other = waiters.wait("b")
    with monkeypatch.context() as patch:
        patch.setattr(SocketTurn, "leave", interrupted)
        put("a")
        with pytest.raises(KeyboardInterrupt):
            first()
    assert kept
    put("b")
    assert other() is not None
