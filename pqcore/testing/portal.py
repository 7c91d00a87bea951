"""A portal that makes the asynchronous face look blocking, so that a scenario is written once.

A `Portal` is an event loop in a thread. Each calling thread has its own task in the loop, so that a transaction lasts
from one call to the next. A call costs about 30 microseconds, which suits tests but not benchmarks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from pqcore.async_queue import AsyncPQ, AsyncQueue, AsyncQueueIterator
from pqcore.dead_letters import AsyncDeadLetters
from pqcore.job import AsyncJob
from pqcore.tasks import AsyncEnqueuer, AsyncHandle, Batch

_WRAPPED = (AsyncPQ, AsyncQueue, AsyncJob, AsyncQueueIterator, AsyncDeadLetters, AsyncEnqueuer)
ENDING = 10.0
"""The largest number of seconds to wait for cancelled tasks: a limit is needed, because a driver's call may not end."""
_DECORATORS = ("task", "periodic")


class Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="portal", daemon=True)
        self._thread.start()
        self._callers: dict[int, asyncio.Queue[Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._local = threading.local()

    def call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Make an awaitable in the loop, await it there, and return the result.

        Raises:
            RuntimeError: This is a forked child, in which the loop's thread does not run.
        """
        if os.getpid() != self._pid:
            msg = "the portal's event loop runs in the parent process; make a portal in the child"
            raise RuntimeError(msg)
        if not hasattr(self._local, "inbox"):
            self._local.inbox = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()
        future: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._local.inbox.put_nowait, (make, future))
        return future.result()

    async def _serve(self) -> asyncio.Queue[Any]:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks.append(asyncio.get_running_loop().create_task(self._work(inbox)))
        return inbox

    async def _work(self, inbox: asyncio.Queue[Any]) -> None:
        while True:
            make, future = await inbox.get()
            try:
                future.set_result(await make())
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                future.set_exception(exc)

    def close(self) -> None:
        """Stop the loop and its tasks."""

        async def stop() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=ENDING)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Blocking:
    """An asynchronous object whose methods are called through a portal."""

    def __init__(self, target: Any, portal: Portal) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_portal", portal)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.iscoroutinefunction(value):
            return lambda *args, **kwargs: self._call(value, *map(unwrapped, args), **kwargs)
        if name == "transaction":
            return lambda: _BlockingContext(value(), self._portal)
        if callable(value) and name == "queue":
            return lambda *args, **kwargs: self._wrap(value(*args, **kwargs))
        if callable(value) and name in _DECORATORS:
            return lambda *args, **kwargs: self._decorator(value(*args, **kwargs))
        return self._wrap(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._target, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.update(value)
        else:
            setattr(self._target, name, value)

    def __getitem__(self, name: str) -> Any:
        return self._wrap(self._target[name])

    def __len__(self) -> int:
        return int(self.count())

    def __iter__(self) -> Any:
        return self._wrap(aiter_(self._target))

    def __next__(self) -> Any:
        return self._call(self._target.__anext__)

    def __enter__(self) -> Any:
        entered = self._call(self._target.__aenter__)
        return self if entered is self._target else entered

    def __exit__(self, *exc: object) -> None:
        self._call(self._target.__aexit__, *exc)

    def __repr__(self) -> str:
        return repr(self._target)

    def __eq__(self, other: object) -> bool:
        return self._target is unwrapped(other)

    __hash__ = object.__hash__

    def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        return self._wrap(self._portal.call(lambda: method(*args, **kwargs)))

    def _decorator(self, decorate: Callable[[Any], Any]) -> Any:
        if isinstance(decorate, _WRAPPED):  # a decorator without parentheses has made a task
            return self._wrap(decorate)
        return lambda function: self._wrap(decorate(unwrapped(function)))

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._wrap(item) for item in value]
        if isinstance(value, AsyncHandle):
            return BlockingHandle.of(value, self._portal)
        if isinstance(value, Batch):
            return dataclasses.replace(value, jobs=self._wrap(value.jobs))
        return Blocking(value, self._portal) if isinstance(value, _WRAPPED) else value


class BlockingHandle(int):
    """An `AsyncHandle` whose methods are called through a portal; like a handle, the object is also a number."""

    _blocking: Blocking

    @classmethod
    def of(cls, handle: AsyncHandle[Any], portal: Portal) -> BlockingHandle:
        """Return a blocking handle of the same job."""
        made = cls(handle)
        made._blocking = Blocking(handle, portal)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blocking, name)


class _BlockingContext:
    def __init__(self, context: Any, portal: Portal) -> None:
        self._context = context
        self._portal = portal

    def __enter__(self) -> Any:
        return self._portal.call(self._context.__aenter__)

    def __exit__(self, *exc: object) -> Any:
        return self._portal.call(lambda: self._context.__aexit__(*exc))


def unwrapped(value: Any) -> Any:
    """Return the object inside a `Blocking`, also within a list."""
    if isinstance(value, list):
        return [unwrapped(item) for item in value]
    if isinstance(value, BlockingHandle):
        return value._blocking._target
    return value._target if isinstance(value, Blocking) else value


def aiter_(target: Any) -> Any:
    """Call ``__aiter__`` of an object's class, as `aiter` does."""
    return type(target).__aiter__(target)
