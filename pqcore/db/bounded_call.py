"""Calls of a driver that continue after a cancellation, for a bounded time."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Generator
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pqcore.db import runtime

if TYPE_CHECKING:
    import asyncio  # asyncio takes long to import, and sessions of threads do not need it

T = TypeVar("T")


LEFT = "the connection was broken off, and the driver's call did not end"


class CallingSession(Protocol):
    """A session that calls its driver: see `pqcore.db.session.Session`."""

    busy_since: float | None
    state_unknown: bool
    waited_for: Any
    left_call: float | None

    def abort_if_busy(self, since: float | None) -> None: ...


def still_cancelled() -> bool:
    """Return whether the running task was cancelled and the cancellation was not taken back.

    Versions of Python before 3.11 do not count cancellations, so with these versions, the result is always True.
    """
    from asyncio import current_task

    task = current_task()
    return sys.version_info < (3, 11) or task is None or task.cancelling() > 0


def _left(session: CallingSession, since: float | None) -> bool:
    """Return whether the session abandoned the call that began at ``since``."""
    return since is not None and session.left_call == since


@coroutine
def bounded(call: Awaitable[T], session: CallingSession) -> Generator[Any, Any, T]:
    """Await a driver's call; if a cancelled call takes more than `AFTER_CANCEL` seconds, close its connection.

    After a cancellation, drivers ask the server to cancel the statement, and some drivers wait for the answer without a
    time limit. The function yields everything that the call yields. A task for each call would cost more than a short
    statement.

    Raises:
        ConnectionAbortedError: The session closed the connection, but the call did not end, so it was abandoned.
    """
    steps = call.__await__()
    cancelled: BaseException | None = None
    timer: asyncio.TimerHandle | None = None
    since = session.busy_since
    try:
        waited_for = session.waited_for = next(steps)
        while True:
            try:
                sent = yield waited_for
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - passed on to the call
                if not _left(session, since):
                    cancelled = exc
                if timer is None:
                    from asyncio import get_running_loop

                    timer = get_running_loop().call_later(runtime.AFTER_CANCEL, session.abort_if_busy, since)
                waited_for = session.waited_for = steps.throw(exc)
            else:
                waited_for = session.waited_for = steps.send(sent)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except Exception as exc:
        if cancelled is None or not session.state_unknown or not still_cancelled():
            raise  # a driver's own timeout also cancels the task, and takes the cancellation back
        raise cancelled from exc
    except BaseException as exc:
        if cancelled is None and _left(session, since) and not isinstance(exc, GeneratorExit):
            raise ConnectionAbortedError(LEFT) from exc
        raise
    finally:
        if timer is not None:
            timer.cancel()
