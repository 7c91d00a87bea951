"""Putting off signals while something must not be left half done.

Python runs the handlers of signals in the main thread, between any two instructions of it.  What a handler raises
(KeyboardInterrupt; SystemExit; the exception of a time limit that uses SIGALRM) would leave a job taken for nobody,
or one that was done not stored as done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_NAMES = ("INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "XCPU", "BREAK")
SIGNALS = tuple(int(getattr(signal, f"SIG{name}")) for name in _NAMES if hasattr(signal, f"SIG{name}"))
"""Signals whose handlers may raise; to look at all that there are takes a millisecond."""


class _Deferral:
    """Signals that are put off: each is kept, and given to its handler when that is allowed.

    Attributes:
        kept: The signals that came.
        broken_through: Whether a signal was not put off, as it was the second of its number.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self.kept: list[tuple[int, FrameType | None]] = []
        self.broken_through = False

    @property
    def put_off(self) -> Sequence[int]:
        """The signals that are put off."""
        return tuple(self._handlers)

    @property
    def handlers(self) -> Sequence[Any]:
        """The handlers of the signals that are put off."""
        return tuple(self._handlers.values())

    def _keep(self, number: int, frame: FrameType | None) -> None:
        others = [kept for kept in self.kept if kept[0] != number]
        if len(others) == len(self.kept):
            self.kept.append((number, frame))
        else:  # the second one is not put off: what goes on may never end
            self.kept = others
            self.broken_through = True
            self._handlers[number](number, frame)

    def close(self, numbers: Iterable[int]) -> None:
        """Put those of these signals off that have a handler written in Python."""
        self._handlers = {}
        for number in numbers:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._keep)

    def open(self) -> None:
        """Put none off, and call the handlers of those that were kept."""
        left = list(self._handlers)
        try:
            while left:
                if signal.getsignal(left[-1]) == self._keep:
                    signal.signal(left[-1], self._handlers[left[-1]])
                left.pop()
            while self.kept:
                number, frame = self.kept.pop(0)
                self._handlers[number](number, frame)
        finally:
            if left or self.kept:  # a handler raised: the others are not left out for it
                self.open()


class _Here(threading.local):
    deferral: _Deferral | None = None


_here = _Here()


@contextmanager
def put_off() -> Iterator[None]:
    """Put signals off for the length of a block, but for what is within `let_through`; in the main thread.

    A second signal of the same number is not put off.
    """
    if _here.deferral is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    deferral = _Deferral()
    try:
        _here.deferral = deferral
        deferral.close(SIGNALS)
        yield
    finally:
        _here.deferral = None
        deferral.open()


@contextmanager
def let_through() -> Iterator[None]:
    """Within `put_off`: have signals handled as ever for the length of a block, first those that were put off."""
    deferral = _here.deferral
    if deferral is None:
        yield
        return
    numbers = deferral.put_off
    try:
        _here.deferral = None
        deferral.open()
        yield
    finally:
        _here.deferral = deferral
        deferral.close(numbers)


def handle_kept() -> None:
    """Call the handlers of signals that were put off until now."""
    if _here.deferral is not None and _here.deferral.kept:
        with let_through():
            pass


def leaves(error: BaseException) -> bool:
    """Whether an exception that a job's function raised here ends the program, and is no failure of the job.

    In other threads than the main one nothing but the function itself can have raised it.  gevent ends a greenlet by
    an exception, too.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return threading.current_thread() is threading.main_thread()
    return any(kind.__name__ == "GreenletExit" for kind in type(error).__mro__)


def is_from_outside(error: BaseException) -> bool:
    """Whether an exception that left a serializer, a plugin or a policy was raised by a signal's handler, or by gevent.

    Anything else is a fault of the code that was called, whatever its class. A panic of a Rust library is no
    ``Exception``. Python's own handler of SIGINT leaves no trace, so a KeyboardInterrupt in the main thread counts
    as one of a signal.
    """
    if threading.current_thread() is threading.main_thread():
        deferral = _here.deferral
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and deferral is not None):
            return deferral is None or deferral.broken_through  # signals that are put off raise nothing
        if deferral is not None:
            handlers: Sequence[Any] = deferral.handlers
        else:  # those of other signals seldom end a program, and to look at all of them takes a millisecond
            numbers = signal.valid_signals() if isinstance(error, SystemExit) else SIGNALS
            handlers = [signal.getsignal(number) for number in numbers]
        if _was_raised_by(error, handlers) or (isinstance(error, SystemExit) and any(map(_leaves_no_trace, handlers))):
            return True
    return not isinstance(error, Exception) and any(
        kind.__name__ in ("GreenletExit", "Timeout") and kind.__module__.partition(".")[0] in _GREEN
        for kind in type(error).__mro__
    )


def _was_raised_by(error: BaseException, functions: Iterable[Any]) -> bool:
    """Whether an exception came out of one of these functions, as a time limit by SIGALRM does."""
    codes = {_code_of(function) for function in functions} - {None}
    trace = error.__traceback__
    while codes and trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code_of(function: Any) -> Any:
    """Return the code that a traceback shows if a function raises; None for one that is not written in Python."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return getattr(type(function).__call__, "__code__", None) if code is None and callable(function) else code


def _leaves_no_trace(handler: Any) -> bool:
    """Whether a handler of a signal may raise SystemExit, and is not seen in a traceback."""
    return callable(handler) and handler is not signal.default_int_handler and _code_of(handler) is None


_GREEN = ("greenlet", "gevent", "eventlet")
"""Packages whose exceptions are raised in a greenlet from outside."""
