"""Threads in which a worker makes calls: which calls they make concurrently, and when their outcomes arrive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pqcore.worker.threads import Threads

PATIENCE = 20.0


def run(number: int, work: Callable[[Threads], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        threads = Threads(number, "calls")
        try:
            return await asyncio.wait_for(work(threads), PATIENCE)
        finally:
            threads.close()
            await threads.ended(calls=True)

    return asyncio.run(within())


def test_threads_make_as_many_calls_concurrently_as_there_are_threads() -> None:
    meeting = threading.Barrier(8)

    async def work(threads: Threads) -> None:
        for _ in range(3):  # first the threads are started, then they are woken
            await asyncio.gather(*(threads.run(lambda: meeting.wait(PATIENCE)) for _ in range(8)))

    run(8, work)


def test_threads_make_no_more_calls_concurrently() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1

    async def work(threads: Threads) -> None:
        await asyncio.gather(*(threads.run(call) for _ in range(100)))

    run(3, work)
    assert most == 3


def test_result_arrives_while_the_same_thread_makes_a_long_call() -> None:
    go_on = threading.Event()

    async def work(threads: Threads) -> list[Any]:
        short = [asyncio.ensure_future(threads.run(lambda n=n: n)) for n in range(5)]  # type: ignore[misc]
        long = asyncio.ensure_future(threads.run(lambda: go_on.wait(PATIENCE)))
        results = await asyncio.gather(*short)
        go_on.set()
        assert await long is True
        return results

    assert run(1, work) == [0, 1, 2, 3, 4]


def test_waiting_call_is_made_by_another_thread_while_one_makes_a_long_call() -> None:
    go_on = threading.Event()

    async def work(threads: Threads) -> None:
        await threads.run(int)  # one thread exists, and takes the first call
        long = asyncio.ensure_future(threads.run(lambda: go_on.wait(PATIENCE)))
        await asyncio.gather(*(threads.run(int) for _ in range(50)))
        go_on.set()
        assert await long is True

    run(2, work)


def test_exception_of_a_call_is_raised_where_it_is_awaited() -> None:
    def call() -> None:
        raise SystemExit(3)

    async def work(threads: Threads) -> None:
        with pytest.raises(SystemExit):
            await threads.run(call)
        assert await threads.run(lambda: "goes on") == "goes on"

    run(1, work)


def test_late_result_is_handed_over_if_the_caller_was_cancelled() -> None:
    go_on = threading.Event()

    def call() -> str:
        go_on.wait(PATIENCE)
        return "late"

    async def work(threads: Threads) -> str:
        got: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(threads.run(call, got.set_result))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        go_on.set()
        return await got

    assert run(1, work) == "late"


def test_call_fails_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def work(threads: Threads) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await threads.run(int)
        return str(await threads.run(lambda: "later"))

    assert run(1, work) == "later"
