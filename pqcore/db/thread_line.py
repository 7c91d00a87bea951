"""Lines for calls of threads; see `pqcore.db.group_commit`.

pqcore starts no thread for groups. One of the callers leads: it sends the waiting calls, including its own, and gives
the other callers their answers. Then it makes the first caller that came meanwhile the leader, and returns.

An interrupt (Ctrl-C, a time limit) may come between any two lines of a thread. So each step can be repeated. Answers
are given in nested ``finally`` clauses, and when the group is deleted. Each wait has a bound, after which the waiter
checks whether it has its answer, and leads if no other caller does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any

from pqcore.db import group_commit
from pqcore.db.group_commit import ALONE, MOST_CALLS, NOT_YET, Rest, Runner, Together, error_for_each
from pqcore.db.process_id import current, process_id, unforked_page
from pqcore.db.session import Session
from pqcore.errors import PQError

LOOK_AGAIN = 1.0
"""Seconds after which a caller checks whether its running call was answered without waking it."""


class _Call:
    """A thread's call.

    Attributes:
        value: The value of the call.
        bell: A lock for which the caller waits; another thread releases it to make the caller check.
        claimed: Whether a leader has taken the call.
        gone: Whether the caller was interrupted, and takes no answer.
        settled: Whether the call has its answer.
        answer: The answer, or the error.
    """

    __slots__ = ("answer", "bell", "claimed", "gone", "settled", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.claimed = self.settled = self.gone = False
        self.answer: Any = ALONE
        self.bell = threading.Lock()
        self.bell.acquire()

    def ring(self) -> None:
        """Wake the caller, which then checks whether its answer has come, or whether it is now the leader."""
        try:  # noqa: SIM105 - for each call, so no context manager
            self.bell.release()
        except RuntimeError:  # the bell is released already
            pass


class ThreadLine:
    """The calls of one operation, in one process.

    Args:
        runner: A function that runs a statement.
        together: The operation that the calls ask for.

    Attributes:
        since: See `pqcore.db.group_commit.Line`.
        waiting: The calls that wait for a group.
        rest: The switch that makes calls run separately for a while.
        runner: The function that runs a statement.
        together: The operation that the calls ask for.
    """

    def __init__(self, runner: Runner, together: Together) -> None:
        self.runner = runner
        self.together = together
        self._process = process_id()
        self.since = 0.0
        self.rest = Rest()
        self.waiting: deque[_Call] = deque()

    def is_here(self) -> bool:
        # `process_id` is partly inlined, because each operation runs this line.
        return self._process == (current.id if unforked_page[0] else process_id())

    def pass_on(self) -> None:
        # makes the first waiting caller lead
        while True:
            if not self.waiting:  # the usual case comes first, because each operation runs this
                self.since = 0.0
                if not self.waiting:  # otherwise a call came meanwhile, and waits because it saw that the line was busy
                    return
            with suppress(IndexError):  # an interrupted caller has just removed its call
                first = self.waiting[0]
                self.since = monotonic()
                first.ring()
                return

    async def join(self, value: Any) -> Any:
        if self.rest.is_on():
            return ALONE
        call, came = _Call(value), monotonic()
        try:
            self.waiting.append(call)
            while not call.settled:
                if call.claimed:
                    call.bell.acquire(timeout=LOOK_AGAIN)
                    continue
                if self.since:
                    left = self.since + group_commit.PATIENCE - monotonic()
                    rung = call.bell.acquire(timeout=min(max(left, 0.0), 5 * group_commit.PATIENCE))
                    if call.claimed or call.settled:
                        continue
                    now = monotonic()
                    if not rung and self.since + group_commit.PATIENCE > now:  # another statement runs, or will run
                        if self.since != NOT_YET or now - came < LOOK_AGAIN:
                            continue
                        # the appointed leader waits for a connection, or was interrupted and will never lead
                        came = now
                await self._lead()
        except BaseException:
            self._withdraw(call)
            raise
        if isinstance(call.answer, PQError):
            raise call.answer
        return call.answer

    def _withdraw(self, call: _Call) -> None:
        """Remove a call from the line, because its caller was interrupted."""
        call.gone = True
        with suppress(ValueError):  # the call is running
            self.waiting.remove(call)
            self.pass_on()  # the caller may have been appointed to lead

    async def _lead(self) -> None:
        """Send the waiting calls."""
        group = _Group(self)
        try:
            try:
                await group.go()
            finally:
                group.settle()
        finally:
            group.settle()
        await group.undo()


class _Group:
    """Calls that share a statement.

    Args:
        line: The line of the calls.
    """

    def __init__(self, line: ThreadLine) -> None:
        self._line = line
        self._came = len(line.waiting)
        self._began = NOT_YET
        self._calls: list[_Call] = []
        self._answers: Sequence[Any] | None = None
        self._failure: BaseException | None = None
        self._over = False  # `_over` is set last: `__del__` needs the other attributes
        line.since = NOT_YET

    async def go(self) -> None:
        """Send the waiting calls."""
        try:
            await self._line.runner(self._send)
        except PQError as exc:
            self._failure = exc

    async def _send(self, session: Session) -> None:
        values = self._claim()
        if values:
            self._answers = await self._line.together.run(session, values)
            self._line.rest.note(refused=False)

    def _claim(self) -> list[Any]:
        """Take calls out of the line, in order, and return their values."""
        line, waiting, calls, size = self._line, self._line.waiting, self._calls, 0
        self._began = line.since = monotonic()
        _move(waiting, calls, MOST_CALLS)
        for place, call in enumerate(calls):
            size += len(call.value)
            if place and size > line.together.most:
                waiting.extendleft(calls[: place - 1 : -1])
                del calls[place:]
                break
            call.claimed = True
        return [call.value for call in calls]

    def settle(self) -> None:
        """Let another caller lead the calls that came meanwhile, and answer the calls of this group.

        After an interrupt, the caller may call this method again.
        """
        if self._over:
            return
        line, calls = self._line, self._calls
        answers = self._answers
        if answers is None:
            answers = self._fail()
        if line.since == self._began:
            line.pass_on()
        for call, answer in zip(calls, answers, strict=True):
            call.answer = answer
            call.settled = True
            call.ring()
        self._over = True

    def _fail(self) -> Sequence[Any]:
        """Return the answers for calls that have none: an error, or `ALONE`."""
        claimed = self._began != NOT_YET
        if not claimed:
            _move(self._line.waiting, self._calls, self._came)
        make = error_for_each(self._failure, claimed=claimed)
        if self._calls:
            self._line.rest.note(refused=claimed and make is None)
        return [ALONE if make is None else make() for _ in self._calls]

    async def undo(self) -> None:
        """Undo the effects for callers that were interrupted meanwhile."""
        undo = self._line.together.undo
        if undo is not None and self._answers is not None:
            gone = [call.answer for call in self._calls if call.gone and call.answer is not ALONE]
            if gone:
                await undo(*gone)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):  # a further interrupt came before the group had ended
            try:
                self.settle()
            finally:
                self.settle()


def _move(waiting: deque[_Call], calls: list[_Call], number: int) -> None:
    """Move calls out of a line in one step of the interpreter, so that an interrupt loses none.

    A signal handler may run after each call in bytecode. So a call object that one method pops and another method
    appends can be lost between the two steps. `list.extend` calls `popleft` itself; if `popleft` raises, the list keeps
    the calls that were popped before.
    """
    with suppress(IndexError):  # the line is empty
        calls.extend(islice(iter(waiting.popleft, None), number))
