"""Lines of concurrent calls, without a server: an interrupt or cancellation at any moment leaves no caller waiting."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import pytest

from pqcore.db import group_commit, runtime, thread_line
from pqcore.db.group_commit import ALONE, Together
from pqcore.db.runtime import run_sync
from pqcore.db.task_line import TaskLine
from pqcore.db.thread_line import ThreadLine
from pqcore.errors import OutcomeUnknown, PoolTimeout

L = TypeVar("L", ThreadLine, TaskLine)
PATIENCE = 20.0
"""Seconds that a test waits for an event."""
OTHERS = ["b", "c", "d"]


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


class TimeLimit(Exception):
    """Raised as by a time limit, from the handler of SIGALRM."""


class Sent:
    """The groups of values that were sent; the answer to a value is the value in capitals.

    Args:
        pauses: How often other tasks have their turn before a statement, and during it.
        nap: Seconds that a statement blocks its thread.
        busy: Whether no connection is free, but for calls by themselves.
    """

    def __init__(self, pauses: int = 0, nap: float = 0.0, *, busy: bool = False) -> None:
        self.groups: list[list[str]] = []
        self.undone: list[str] = []
        self._busy = busy
        self._pauses = pauses
        self._nap = nap

    def line(self, kind: Callable[..., L], *, undoes: bool = False) -> L:
        """Return a line for these groups; optionally one that undoes calls whose callers are gone."""
        return kind(self.run, Together(self.together, self.undo if undoes else None))

    async def undo(self, *answers: str) -> None:
        self.undone += answers
        for _ in range(self._pauses):
            await asyncio.sleep(0)

    async def run(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run an operation as an engine does that always has a free connection."""
        for _ in range(self._pauses):
            await asyncio.sleep(0)
        if self._busy:
            raise PoolTimeout("none is free")
        return await operation(None)

    async def together(self, session: object, values: Sequence[str]) -> list[str]:
        self.groups.append([*values])
        if self._nap:
            time.sleep(self._nap)  # noqa: ASYNC251 - stepped, not in a loop
        for _ in range(self._pauses):
            await asyncio.sleep(0)
        return [value.upper() for value in values]

    def check(self, value: str, answer: object) -> None:
        """Check that a caller got the true answer: its call was sent alone, or took effect once."""
        times = Counter(value for group in self.groups for value in group)[value]
        if answer is ALONE or isinstance(answer, PoolTimeout):
            assert times == 0, "the caller does it again"
        elif isinstance(answer, (OutcomeUnknown, asyncio.CancelledError, Interrupted, TimeLimit)):
            assert times <= 1
        else:
            assert answer == value.upper()
            assert times == 1


def traced(number: int, kind: type[BaseException], raised: list[int]) -> Callable[..., Any]:
    """Return a trace function that raises an exception at an instruction of the line, as a signal handler does."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != thread_line.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and left > 0:
            left -= 1
            if left == 0:
                raised.append(frame.f_lineno)
                raise kind
        return trace

    return trace


class Caller:
    """A thread that makes a call; optionally it is interrupted at an instruction."""

    def __init__(self, line: ThreadLine, value: str, trace: Callable[..., Any] | None = None) -> None:
        self.value = value
        self.answer: object = None
        self._line, self._trace = line, trace
        self.thread = threading.Thread(target=self._call, daemon=True)
        self.thread.start()

    def _call(self) -> None:
        sys.settrace(self._trace)
        try:
            self.answer = run_sync(self._line.join(self.value))
        except BaseException as exc:
            self.answer = exc  # kept, as a shell does, so that objects in its traceback stay alive
        finally:
            sys.settrace(None)

    def joins(self) -> None:
        """Wait until the call waits in the line, or has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.value not in [call.value for call in self._line.waiting] and self.thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0)

    def is_over(self) -> bool:
        self.thread.join(PATIENCE)
        return not self.thread.is_alive()


def is_free(line: ThreadLine, sent: Sent) -> bool:
    """Return whether a further call succeeds, and leaves the line free."""
    sent._busy = False
    last = Caller(line, "last")
    assert last.is_over()
    sent.check("last", last.answer)
    return line.since == 0.0 and not line.waiting


def interrupted(number: int, whom: int, *, busy: bool) -> tuple[list[Caller], list[int]]:
    """Let four threads call while a statement runs, and interrupt one thread at an instruction.

    Args:
        number: Which instruction.
        whom: Which of them.
        busy: Whether the pool has no connection for them.

    Returns:
        The callers, and the line at which it was interrupted; no line if it has fewer instructions.
    """
    raised: list[int] = []
    sent = Sent(busy=busy)
    line = sent.line(ThreadLine)
    line.since = began = time.monotonic()
    callers = []
    for place, value in enumerate(["a", *OTHERS]):
        kind = (Interrupted, TimeLimit)[number % 2]
        callers.append(Caller(line, value, traced(number, kind, raised) if place == whom else None))
        callers[-1].joins()
    if line.since == began:
        line.pass_on()
    for caller in callers:
        assert caller.is_over(), f"{caller.value} waits after an interrupt at line {raised}"
        sent.check(caller.value, caller.answer)
    assert is_free(line, sent)
    return callers, raised


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let callers check soon whether they were forgotten, and appoint the first waiting caller as leader."""
    monkeypatch.setattr(thread_line, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(group_commit, "PATIENCE", 0.1)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("whom", "least", "busy"),
    [(0, 400, False), (1, 40, False), (0, 200, True)],
    ids=["leader", "follower", "leader without a connection"],
)
def test_interrupt_of_a_thread_at_any_instruction_leaves_no_caller_waiting(whom: int, least: int, busy: bool) -> None:
    number, missed = 0, 0
    while missed < 3:  # sometimes another task leads
        number += 1
        callers, raised = interrupted(number, whom, busy=busy)
        missed += not raised
        others = [caller.answer for place, caller in enumerate(callers) if place != whom]
        assert all(isinstance(answer, (str, OutcomeUnknown, PoolTimeout)) or answer is ALONE for answer in others)
    assert number > least


@pytest.mark.usefixtures("_impatient")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_random_moments_leave_no_thread_waiting() -> None:
    """Exceptions that `PyThreadState_SetAsyncExc` raises in threads which call repeatedly."""
    sent = Sent(nap=0.0002)
    line = sent.line(ThreadLine)
    stop = threading.Event()
    told: list[tuple[str, object]] = []

    def call(value: str) -> None:
        answer: object = None
        try:
            answer = run_sync(line.join(value))
        except BaseException as exc:
            answer = exc.with_traceback(None)
        told.append((value, answer))

    def work(name: int) -> None:
        count = 0
        while not stop.is_set():
            with suppress(TimeLimit):
                while not stop.is_set():
                    count += 1
                    call(f"{name}-{count}")

    threads = [threading.Thread(target=work, args=[name], daemon=True) for name in range(8)]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    for _ in range(1_500):
        ident = ctypes.c_ulong(rng.choice(threads).ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(TimeLimit))
        time.sleep(0.0005)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert any(isinstance(answer, TimeLimit) for _, answer in told)
    assert max(map(len, sent.groups)) > 1
    times = Counter(value for group in sent.groups for value in group)
    assert max(times.values()) == 1
    for value, answer in told:
        if answer is ALONE:
            assert times[value] == 0
        elif isinstance(answer, str):
            assert (answer, times[value]) == (value.upper(), 1)
    assert is_free(line, sent)


async def turns(number: int) -> None:
    """Let the event loop run other tasks several times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def caught(value: Awaitable[Any]) -> object:
    try:
        return await value
    except BaseException as exc:
        return exc


@pytest.mark.parametrize("whom", range(4))
@pytest.mark.parametrize("after", range(14))
def test_cancelled_caller_takes_no_other_along_at_any_step(whom: int, after: int) -> None:
    async def act() -> None:
        sent = Sent(pauses=3)
        line = sent.line(TaskLine)
        line.since = began = time.monotonic()
        values = ["a", *OTHERS]
        tasks = [asyncio.ensure_future(caught(line.join(value))) for value in values]
        await turns(1)
        if line.since == began:
            line.pass_on()
        await turns(after)
        over = tasks[whom].done()
        tasks[whom].cancel()
        answers = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        for value, answer in zip(values, answers, strict=True):
            sent.check(value, answer)
        others = [answer for place, answer in enumerate(answers) if place != whom or over]
        assert all(isinstance(answer, str) for answer in others)
        assert await asyncio.wait_for(line.join("e"), PATIENCE) == "E"
        await turns(5)
        assert line.since == 0.0
        assert not line.waiting

    asyncio.run(act())


@pytest.mark.parametrize("after", range(14))
def test_line_goes_on_after_all_tasks_of_its_loop_were_cancelled(after: int) -> None:
    """As programs do that raise this to stop, and then go on."""

    async def act() -> None:
        sent = Sent(pauses=3)
        line = sent.line(TaskLine)
        line.since = began = time.monotonic()
        values = ["a", *OTHERS]
        tasks = [asyncio.ensure_future(caught(line.join(value))) for value in values]
        await turns(1)
        if line.since == began:
            line.pass_on()
        await turns(after)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *tasks}:
            task.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        for value, answer in zip(values, answers, strict=True):
            sent.check(value, answer)
        assert await asyncio.wait_for(line.join("e"), PATIENCE) == "E"
        await turns(5)
        assert line.since == 0.0
        assert not line.waiting

    asyncio.run(act())


def test_loop_that_ends_amid_concurrent_calls_begins_no_task(caplog: pytest.LogCaptureFixture) -> None:
    sent = Sent(pauses=10**9)  # a statement that goes on when its loop ends

    async def stay() -> None:
        """Keep the loop from ending until no call waits any longer."""
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(3 * group_commit.PATIENCE)

    async def act() -> None:
        line = sent.line(TaskLine)
        line.since = time.monotonic()
        tasks.extend(asyncio.ensure_future(caught(line.join(value))) for value in OTHERS)
        tasks.append(asyncio.ensure_future(stay()))
        await turns(2)

    tasks: list[asyncio.Future[object]] = []
    asyncio.run(act())
    gc.collect()
    assert all(task.done() for task in tasks)
    assert sent.groups == []
    assert caplog.messages == []


@pytest.mark.parametrize("whom", range(4))
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("after", range(16))
def test_answer_to_a_cancelled_caller_is_undone_and_others_wait_for_nothing(
    whom: int, before: bool, after: int
) -> None:
    async def act() -> None:
        sent = Sent(pauses=3)
        line = sent.line(TaskLine, undoes=True)
        line.since = began = time.monotonic()
        values = ["a", *OTHERS]
        tasks = [asyncio.ensure_future(caught(line.join(value))) for value in values]
        await turns(1)
        if not before and line.since == began:
            line.pass_on()
        await turns(after)
        over, start = tasks[whom].done(), time.monotonic()
        tasks[whom].cancel()
        if before and line.since == began:
            line.pass_on()
        answer = await tasks[whom]
        assert time.monotonic() - start < runtime.AFTER_CANCEL / 2, "there was nothing to wait for"
        done = values[whom] in [value for group in sent.groups for value in group]
        assert isinstance(answer, str) or not over
        assert sent.undone == ([] if isinstance(answer, str) or not done else [values[whom].upper()])
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert await asyncio.wait_for(line.join("e"), PATIENCE) == "E"
        await turns(5)
        assert (line.since, len(line.waiting), line.claimed, line.undone) == (0.0, 0, set(), {})

    asyncio.run(act())
