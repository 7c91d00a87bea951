"""Deferring signals while a step must not be left half done.

Python runs signal handlers in the main thread, between any two instructions of this thread. A handler may raise
KeyboardInterrupt, SystemExit, or the exception of a SIGALRM time limit. In the middle of a step, such an exception
could lose a job that was just taken for a caller, or leave a finished job stored as unfinished.
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
"""Signals whose handlers may raise; checking all existing signals would take a millisecond."""


class _Deferral:
    """A set of deferred signals: each is kept, and given to its handler later.

    Attributes:
        kept: The signals that arrived.
        broken_through: Whether a signal was handled immediately, because a signal with its number was already deferred.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self.kept: list[tuple[int, FrameType | None]] = []
        self.broken_through = False

    @property
    def put_off(self) -> Sequence[int]:
        """Return the deferred signals."""
        return tuple(self._handlers)

    @property
    def handlers(self) -> Sequence[Any]:
        """Return the handlers of the deferred signals."""
        return tuple(self._handlers.values())

    def _keep(self, number: int, frame: FrameType | None) -> None:
        others = [kept for kept in self.kept if kept[0] != number]
        if len(others) == len(self.kept):
            self.kept.append((number, frame))
        else:  # the second signal is not deferred, because the protected step may never end
            self.kept = others
            self.broken_through = True
            self._handlers[number](number, frame)

    def close(self, numbers: Iterable[int]) -> None:
        """From now on, defer each of these signals if its handler is written in Python."""
        self._handlers = {}
        for number in numbers:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._keep)

    def open(self) -> None:
        """Stop deferring, and call the handlers of the signals that were kept."""
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
            if left or self.kept:  # a handler raised, but the other handlers must still run
                self.open()


class _Here(threading.local):
    deferral: _Deferral | None = None


_here = _Here()


@contextmanager
def put_off() -> Iterator[None]:
    """Defer signals for the length of a block, except within `let_through`; only in the main thread.

    A second signal with the same number is not deferred.
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
    """Within `put_off`: handle signals as usual for the length of a block, beginning with the deferred ones."""
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
    """Call the handlers of signals that were deferred until now."""
    if _here.deferral is not None and _here.deferral.kept:
        with let_through():
            pass


def leaves(error: BaseException) -> bool:
    """Return whether an exception from a job's function must end the program, instead of counting as a failure.

    Signal handlers raise exceptions only in the main thread, so in any other thread the function itself raised the
    exception. The only other exception that ends the program is GreenletExit, by which gevent ends a greenlet.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return threading.current_thread() is threading.main_thread()
    return any(kind.__name__ == "GreenletExit" for kind in type(error).__mro__)


def is_from_outside(error: BaseException) -> bool:
    """Return whether an exception from a serializer, plugin or policy was raised by a signal handler or by gevent.

    Any other exception is a fault of the called code, whatever its class. For example, a panic of a Rust library is not
    an ``Exception``. Python's own handler of SIGINT leaves no frame in the traceback, so a KeyboardInterrupt in the
    main thread counts as raised by a signal.
    """
    if threading.current_thread() is threading.main_thread():
        deferral = _here.deferral
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and deferral is not None):
            return deferral is None or deferral.broken_through  # deferred signals raise nothing
        if deferral is not None:
            handlers: Sequence[Any] = deferral.handlers
        else:  # handlers of other signals rarely end a program, and checking all signals takes a millisecond
            numbers = signal.valid_signals() if isinstance(error, SystemExit) else SIGNALS
            handlers = [signal.getsignal(number) for number in numbers]
        if _was_raised_by(error, handlers) or (isinstance(error, SystemExit) and any(map(_leaves_no_trace, handlers))):
            return True
    return not isinstance(error, Exception) and any(
        kind.__name__ in ("GreenletExit", "Timeout") and kind.__module__.partition(".")[0] in _GREEN
        for kind in type(error).__mro__
    )


def _was_raised_by(error: BaseException, functions: Iterable[Any]) -> bool:
    """Return whether one of the functions, such as the handler of a SIGALRM time limit, raised the exception."""
    codes = {_code_of(function) for function in functions} - {None}
    trace = error.__traceback__
    while codes and trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code_of(function: Any) -> Any:
    """Return the code that a traceback shows if a function raises.

    Return None for a function that is not written in Python.
    """
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return getattr(type(function).__call__, "__code__", None) if code is None and callable(function) else code


def _leaves_no_trace(handler: Any) -> bool:
    """Return whether a signal handler leaves no frame in the traceback of an exception that it raises."""
    return callable(handler) and handler is not signal.default_int_handler and _code_of(handler) is None


_GREEN = ("greenlet", "gevent", "eventlet")
"""Packages that raise exceptions in a greenlet from outside."""
