"""Threads in which a worker calls functions that are not coroutine functions, and blocking operations."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

JOIN_TIMEOUT = 2.0
"""Seconds to wait for threads that are ending."""


class ThreadCall:
    """A call that a thread makes, and later the outcome of the call.

    Args:
        context: The context variables of the call.

    Attributes:
        context: The context variables of the call.
        result: What the function returned.
        error: What the function raised; None if it returned.
    """

    __slots__ = ("context", "error", "result")

    def __init__(self, context: contextvars.Context) -> None:
        self.context = context
        self.result: Any = None
        self.error: BaseException | None = None

    def call(self) -> Any:
        """Make the call, in the thread; return its result."""
        raise NotImplementedError

    def make(self) -> None:
        """Make the call, and keep its outcome."""
        try:
            self.result = self.context.run(self.call)
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            self.error = exc

    def settle(self) -> None:
        """Handle the outcome, in the event loop."""
        raise NotImplementedError


class _AwaitedCall(ThreadCall):
    """A call whose caller awaits a future.

    Args:
        function: The function to call.
        late: Called with the result, or None after an exception, if the caller was cancelled meanwhile.
    """

    __slots__ = ("_function", "_late", "future")

    def __init__(self, function: Callable[[], Any], late: Callable[[Any], None] | None) -> None:
        super().__init__(contextvars.copy_context())
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._function = function
        self._late = late

    def call(self) -> Any:
        return self._function()

    def settle(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
        elif self._late is not None:
            self._late(self.result)


class Threads:
    """A pool of threads, started when needed, for the calls of one event loop.

    The threads are daemons: a thread that never ends does not keep the process from ending.

    Calls and outcomes are handed over in batches, because waking a thread costs more than a short call. A thread makes
    the waiting calls one after another. Before each call, if more calls wait and no other thread is waking up, the
    thread wakes another one, so that no call waits behind a long call. The event loop is woken once for all outcomes
    that have gathered.

    Args:
        number: The largest number of threads.
        name: The name of each thread.
    """

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._waiting: deque[ThreadCall] = deque()
        self._made: deque[ThreadCall] = deque()
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        """A queue that idle threads read: True wakes a thread, False ends a thread."""
        self._threads: list[threading.Thread] = []
        self._idle = 0
        """The number of threads that wait to be woken."""
        self._coming = False
        """Whether a thread was woken and has not looked for a call yet."""
        self._told = False
        """Whether the event loop was told of outcomes, and has not taken all of them yet."""
        self._busy = 0
        self._closed = False

    async def run(self, call: Callable[[], Any], late: Callable[[Any], None] | None = None) -> Any:
        """Make a call in a thread, in the context of the caller; if the caller is cancelled, the call goes on.

        Args:
            call: The call.
            late: Called with the result, or None after an exception, if the caller was cancelled meanwhile.
        """
        made = _AwaitedCall(call, late)
        self.submit(made)
        await made.future
        if made.error is None:
            return made.result
        try:
            raise made.error
        finally:
            del made  # otherwise the exception's traceback refers to the exception: a reference cycle

    def submit(self, call: ThreadCall) -> None:
        """Make a call in one of the threads. Call this only in the event loop.

        Raises:
            RuntimeError: No thread can be started.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._busy += 1
        with self._lock:
            self._waiting.append(call)
            new = self._call_thread()
        if new is not None:
            self._start(new)

    def _call_thread(self) -> threading.Thread | None:
        """Wake a thread for the waiting calls, or return a new one that must be started. The caller holds the lock."""
        if self._coming:
            return None
        if self._idle:
            self._wakes.put(True)
            self._coming = True  # set last: if Ctrl-C prevents the wake-up, `_coming` stays False
            self._idle -= 1
            return None
        if len(self._threads) >= self._number or self._closed:
            return None
        new = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._threads.append(new)
        self._coming = True
        return new

    def _start(self, new: threading.Thread) -> None:
        try:
            new.start()
        except BaseException as exc:
            with self._lock:
                self._coming = False
                self._threads.remove(new)
                if self._threads and isinstance(
                    exc, RuntimeError
                ):  # the process has too many threads: a running thread will make the call
                    return
                self._waiting.pop()
                self._busy -= 1
            raise

    def _work(self) -> None:
        awake = True
        while awake:
            call = self._next()
            while call is not None:
                call.make()
                call = self._next(call)
            awake = self._wakes.get()

    def _next(self, made: ThreadCall | None = None) -> ThreadCall | None:
        """Return the next call; None if no call waits.

        Args:
            made: The call that this thread has made; None if the thread was just woken.
        """
        new = None
        with self._lock:
            if made is None:
                self._coming = False
            else:
                self._made.append(made)
            call = self._waiting.popleft() if self._waiting else None
            if call is None:
                self._idle += 1
            elif self._waiting:
                new = self._call_thread()
            # If another thread is waking up, that thread soon reports these outcomes, too. Waking the event loop now
            # would not help, because the loop would not get the GIL earlier. This does not apply to a new thread, which
            # may fail to start.
            is_told_of = self._told or (call is not None and self._coming and new is None)
            must_tell = bool(self._made) and not is_told_of
            self._told |= must_tell
        if must_tell:
            assert self._loop is not None  # noqa: S101 - for the type checker
            with suppress(RuntimeError):  # the loop is closed: no caller waits any more
                self._loop.call_soon_threadsafe(self._settle)
        if new is not None:
            self._start(new)
        return call

    def _settle(self) -> None:
        """Handle the outcomes that have gathered; outcomes that come meanwhile wait for the next callback."""
        try:
            for _ in range(len(self._made)):
                call = self._made.popleft()
                self._busy -= 1
                call.settle()
        finally:
            with self._lock:
                self._told = bool(self._made)
            if self._told and self._loop is not None:
                self._loop.call_soon(self._settle)

    def close(self) -> None:
        """Have each thread end after its current call."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._wakes.put(False)

    async def ended(self, *, calls: bool) -> None:
        """Wait for the threads to end, for up to `JOIN_TIMEOUT` seconds.

        Args:
            calls: Whether to wait also for calls that are being made.
        """
        limit = time.monotonic() + JOIN_TIMEOUT
        while time.monotonic() < limit:
            alive = sum(thread.is_alive() for thread in self._threads)
            if alive <= (0 if calls else self._busy):
                return
            await asyncio.sleep(0.005)
