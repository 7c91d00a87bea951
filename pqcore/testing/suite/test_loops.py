"""One `AsyncPQ` in several event loops: concurrently, and one after the other."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, ref

import pytest

from pqcore.async_queue import AsyncPQ
from pqcore.backend import Capability
from pqcore.testing.databases import prepared
from pqcore.testing.harness import PATIENCE, Harness

pytestmark = pytest.mark.only("async")
PLACES = 2


@pytest.fixture
def pq(harness: Harness) -> AsyncPQ:
    """Return an `AsyncPQ` that was not used in any loop yet."""
    harness.pq().close()
    harness.eventually(lambda: harness.connections() == 0)
    options: dict[str, Any] = {"schema": harness.schema, "backend": harness.spec.name, "prepared": prepared()}
    return AsyncPQ(harness.dsn, max_connections=PLACES, **options)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def running_loop() -> Iterator[Run]:
    """Run a loop in a thread; yield a function that runs a coroutine there, and end the loop as `asyncio.run` does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

    try:
        yield run
    finally:
        run(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_event_loops_that_alternate_keep_their_connections(harness: Harness, pq: AsyncPQ) -> None:
    with running_loop() as first, running_loop() as second:
        for number in range(10):
            first(pq["q"].put(number))
            second(pq["q"].put(number))
        assert harness.connections() == 2
    harness.eventually(lambda: harness.connections() == 0)
    assert asyncio.run(pq["q"].count()) == 20


def test_event_loops_have_separate_connection_limits(harness: Harness, pq: AsyncPQ) -> None:
    async def many() -> None:  # with times, so that each put runs by itself
        await asyncio.gather(*(pq["q"].put(number, expected_at="1h") for number in range(10)))

    with running_loop() as first, running_loop() as second:
        for _ in range(3):
            first(many())
            second(many())
        assert harness.connections() == 2 * PLACES


@pytest.mark.requires(Capability.LISTEN)
def test_event_loops_listen_separately(harness: Harness, pq: AsyncPQ) -> None:
    pq["q"].poll_interval = 3600
    with running_loop() as first, running_loop() as second:
        for run in (first, second, first, second):
            assert run(pq["q"].get(timeout=0.05)) is None
        assert len(harness.waiting()) == 2
        with harness.thread(lambda: first(pq["q"].get(timeout=PATIENCE))) as join:
            second(pq["q"].put("from the other loop"))
            assert join().data == "from the other loop"
    harness.eventually(lambda: harness.connections() == 0)


def test_close_ends_the_connections_of_other_event_loops(harness: Harness, pq: AsyncPQ) -> None:
    with running_loop() as first, running_loop() as second:
        for run in (first, second):
            run(pq["q"].put("a"))
            run(pq["q"].get(timeout=0))
            assert run(pq["q"].get(timeout=0.05)) is None
        second(pq.close())
        harness.eventually(lambda: harness.connections() == 0)


def test_event_loop_that_ended_is_not_referenced(harness: Harness, pq: AsyncPQ) -> None:
    loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    async def use() -> None:
        loops.add(asyncio.get_running_loop())
        await pq["q"].put("a")
        await pq["q"].get(timeout=0.01)
        await pq["q"].get(timeout=0.01)

    for _ in range(5):
        asyncio.run(use())
    gc.collect()
    harness.eventually(lambda: harness.connections() == 0)
    assert len(loops) == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_event_loop_closed_without_shutdown_leaves_no_connection(harness: Harness, pq: AsyncPQ) -> None:
    known: list[ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pq["q"].put("a"))
        loop.close()
        known.append(ref(loop))
    del loop
    gc.collect()
    harness.eventually(lambda: harness.connections() == 0)
    assert [loop() for loop in known] == [None] * 3


def test_event_loop_whose_generators_were_shut_down_can_be_used_again(harness: Harness, pq: AsyncPQ) -> None:
    loop = asyncio.new_event_loop()
    try:
        for _ in range(2):
            loop.run_until_complete(pq["q"].put("a"))
            loop.run_until_complete(loop.shutdown_asyncgens())
            harness.eventually(lambda: harness.connections() == 0)
    finally:
        loop.close()
