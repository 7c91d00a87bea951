"""Shielded work, which is never cancelled after it began: in its own task, or in the waiter's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pqcore.db import runtime
from pqcore.db.asyncio_runtime import AsyncioRuntime

PATIENCE = 10.0
pytestmark = pytest.mark.parametrize("own_task", [True, False], ids=["own task", "same task"])


class Trial:
    """Work that waits for ``answer``, and its outcome."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waits = asyncio.Event()
        self.undone: list[str] = []
        self.broken_off = 0

    async def work(self) -> str:
        self.waits.set()
        found = await self.answer
        await asyncio.sleep(0)
        return found

    async def undo(self, result: str) -> None:
        await asyncio.sleep(0)
        self.undone.append(result)

    def break_off(self) -> None:
        self.broken_off += 1

    def begin(self, own_task: bool, work: Callable[[], Any] | None = None) -> asyncio.Task[str]:
        shielded = AsyncioRuntime().shield((work or self.work)(), self.undo, self.break_off, own_task=own_task)
        return asyncio.ensure_future(shielded)


def run(test: Callable[[Trial], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Trial()), PATIENCE)

    asyncio.run(main())


def test_shielded_work_returns_its_result(own_task: bool) -> None:
    async def test(trial: Trial) -> None:
        task = trial.begin(own_task)
        await trial.waits.wait()
        trial.answer.set_result("job")
        assert await task == "job"
        assert (trial.undone, trial.broken_off) == ([], 0)

    run(test)


def test_shielded_work_raises_its_own_exception(own_task: bool) -> None:
    async def test(trial: Trial) -> None:
        task = trial.begin(own_task)
        await trial.waits.wait()
        trial.answer.set_exception(OSError("cut off"))
        with pytest.raises(OSError, match="cut off"):
            await task

    run(test)


@pytest.mark.parametrize("cancels", [1, 3])
def test_cancelled_shield_finishes_its_work_and_undoes_the_result(own_task: bool, cancels: int) -> None:
    async def test(trial: Trial) -> None:
        task = trial.begin(own_task)
        await trial.waits.wait()
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        assert not trial.answer.cancelled()
        trial.answer.set_result("job")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trial.undone == ["job"]

    run(test)


def test_cancelled_shield_of_work_that_fails_undoes_nothing(own_task: bool) -> None:
    async def test(trial: Trial) -> None:
        task = trial.begin(own_task)
        await trial.waits.wait()
        task.cancel()
        await asyncio.sleep(0)
        trial.answer.set_exception(OSError("cut off"))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trial.undone == []

    run(test)


def test_cancelled_shield_breaks_the_connection_off_when_no_answer_comes(
    own_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "AFTER_CANCEL", 0.05)

    async def test(trial: Trial) -> None:
        def break_off() -> None:
            trial.broken_off += 1
            trial.answer.set_exception(OSError("cut off"))

        trial.break_off = break_off  # type: ignore[method-assign]
        task = trial.begin(own_task)
        await trial.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (trial.broken_off, trial.undone) == (1, [])

    run(test)


def test_cancelled_shield_cancels_work_that_outlives_its_connection(
    own_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "AFTER_CANCEL", 0.05)
    ended = []

    async def test(trial: Trial) -> None:
        async def work() -> str:
            try:
                return await trial.work()
            finally:
                ended.append(True)

        task = trial.begin(own_task, work)
        await trial.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (trial.broken_off, ended) == (1, [True])

    run(test)


def test_shielded_work_that_is_cancelled_by_its_own_future_is_not_undone(own_task: bool) -> None:
    async def test(trial: Trial) -> None:
        task = trial.begin(own_task)
        await trial.waits.wait()
        trial.answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (trial.undone, trial.broken_off) == ([], 0)

    run(test)


def test_shielded_work_may_wait_for_a_turn_of_the_loop_while_it_is_cancelled(own_task: bool) -> None:
    async def test(trial: Trial) -> None:
        async def work() -> str:
            trial.waits.set()
            for _ in range(5):
                await asyncio.sleep(0)
            return "job"

        task = trial.begin(own_task, work)
        await trial.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trial.undone == ["job"]

    run(test)
