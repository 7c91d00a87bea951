"""Lines of calls of threads; see `pqcore.db.group_commit`.

No thread is ours.  One of the callers leads: it sends what waits, its own call among it, and answers the others.  Then
it appoints the first of those that came meanwhile, and returns.

An interrupt (Ctrl-C, a time limit) may come between any two lines of a thread.  So each step can be done again, the
answers are given in nested ``finally`` clauses, and when the group is deleted; and each wait has a bound, after which
the waiter looks for itself, and leads if nobody does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from pqcore.db import group_commit
from pqcore.db.group_commit import ALONE, MOST_CALLS, NOT_YET, Rest, Runner, Together, error_for_each
from pqcore.db.process_id import current, process_id, unforked_page
from pqcore.db.session import Session
from pqcore.db.sources import Loan
from pqcore.errors import PQError

LOOK_AGAIN = 1.0
"""Seconds after which a caller whose call is under way looks whether it was answered, and not told."""


class _Call:
    """A call of a thread.

    Attributes:
        value: What it carries.
        bell: Locked while there is nothing to look at.
        claimed: Whether a leader has taken it.
        gone: Whether its caller was interrupted, and takes no answer.
        settled: Whether it has its answer.
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
        """Have the caller look."""
        try:  # noqa: SIM105 - for each call, so no context manager
            self.bell.release()
        except RuntimeError:  # it was rung before
            pass


class ThreadLine:
    """The calls of one operation, of one process.

    Args:
        runner: Runs a statement.
        together: What several calls ask for.

    Attributes:
        since: See `pqcore.db.group_commit.Line`.
        waiting: The calls that wait to travel.
        rest: Whether calls go by themselves for a while.
        runner: The same.
        together: The same.
    """

    def __init__(self, runner: Runner, together: Together) -> None:
        self.runner = runner
        self.together = together
        self._process = process_id()
        self.since = 0.0
        self.rest = Rest()
        self.waiting: deque[_Call] = deque()

    def is_here(self) -> bool:
        return self._process == (current.id if unforked_page[0] else process_id())  # for each operation, so no call

    def end(self, began: float) -> None:
        if self.since == began:
            self.pass_on()

    def pass_on(self) -> None:
        """Have the first of those that wait lead; if there is none, the line is free."""
        while True:
            with suppress(IndexError):
                first = self.waiting[0]
                self.since = time.monotonic()
                first.ring()
                return
            self.since = 0.0
            if not self.waiting:  # else a call came in between, and has seen no free line
                return

    async def join(self, value: Any) -> Any:
        if self.rest.is_on():
            return ALONE
        call, came = _Call(value), time.monotonic()
        try:
            self.waiting.append(call)
            while not call.settled:
                if call.claimed:
                    call.bell.acquire(timeout=LOOK_AGAIN)
                    continue
                if self.since:
                    left = self.since + group_commit.PATIENCE - time.monotonic()
                    rung = call.bell.acquire(timeout=min(max(left, 0.0), 5 * group_commit.PATIENCE))
                    if call.claimed or call.settled:
                        continue
                    now = time.monotonic()
                    if not rung and self.since + group_commit.PATIENCE > now:  # of another statement
                        if self.since != NOT_YET or now - came < LOOK_AGAIN:
                            continue
                        came = now  # who was to lead waits for a connection, or was interrupted and never will
                await self._lead()
        except BaseException:
            self._withdraw(call)
            raise
        if isinstance(call.answer, PQError):
            raise call.answer
        return call.answer

    def _withdraw(self, call: _Call) -> None:
        """Have a call travel no more, as its caller was interrupted."""
        call.gone = True
        with suppress(ValueError):  # it is under way
            self.waiting.remove(call)
            self.pass_on()  # maybe it was to lead

    async def _lead(self) -> None:
        """Send what waits."""
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
    """Calls that travel together.

    Args:
        line: Whence.
    """

    def __init__(self, line: ThreadLine) -> None:
        self._line = line
        self._came = len(line.waiting)
        self._began = NOT_YET
        self._calls: list[_Call] = []
        self._answers: Sequence[Any] | None = None
        self._failure: BaseException | None = None
        self._over = False  # the last, as `__del__` looks for it
        line.since = NOT_YET

    async def go(self) -> None:
        """Send what waits."""
        try:
            await self._line.runner(Loan(), self._send, protect=True)
        except PQError as exc:
            self._failure = exc

    async def _send(self, session: Session) -> None:
        values = self._claim()
        if values:
            self._answers = await self._line.together.run(session, values)
            self._line.rest.note(refused=False)

    def _claim(self) -> list[Any]:
        """Take calls out of the line, in their order, and return their values."""
        line, waiting, calls, size = self._line, self._line.waiting, self._calls, 0
        self._began = line.since = time.monotonic()
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
        """Have another lead what came meanwhile, and answer the calls; may be called again after an interrupt."""
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
        """Return the answers to the calls where there are none: an error, or `ALONE`."""
        claimed = self._began != NOT_YET
        if not claimed:
            _move(self._line.waiting, self._calls, self._came)
        make = error_for_each(self._failure, claimed=claimed)
        if self._calls:
            self._line.rest.note(refused=claimed and make is None)
        return [ALONE if make is None else make() for _ in self._calls]

    async def undo(self) -> None:
        """Undo what was done for callers that were interrupted meanwhile."""
        undo = self._line.together.undo
        if undo is not None and self._answers is not None:
            gone = [call.answer for call in self._calls if call.gone and call.answer is not ALONE]
            if gone:
                await undo(*gone)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):  # interrupted again, on its way to the end
            try:
                self.settle()
            finally:
                self.settle()


def _move(waiting: deque[_Call], calls: list[_Call], number: int) -> None:
    """Move calls out of a line in one step of the interpreter, so that an interrupt in between loses none.

    A signal handler may run after each call that bytecode makes, so a call that was popped by one and is appended by
    the next can be lost on the way. `list.extend` calls `popleft` itself, and keeps what it got when that raises.
    """
    with suppress(IndexError):  # those were all
        calls.extend(islice(iter(waiting.popleft, None), number))
