"""Calls that are put together: by `chain`, `batch` and `put_calls`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pqcore.errors import ConfigurationError, InvalidCall
from pqcore.job import JobId
from pqcore.operations.batches import chain_calls
from pqcore.tasks.declaring import Call

if TYPE_CHECKING:
    from pqcore.db.engine import Engine
    from pqcore.operations.deferred_put import DirectPut, StoredPut


def batch_puts(engine: Engine, calls: Iterable[Call | tuple[Call, ...]]) -> list[DirectPut]:
    """Return the calls of a batch in the form in which one put stores them all; a tuple of calls is a chain."""
    return [chain_put(engine, call if isinstance(call, tuple) else [call], "batch") for call in calls]


def chain_put(engine: Engine, calls: Iterable[Call], what: str = "chain") -> DirectPut:
    """Return the first call of a chain, with the other calls in its headers; see `_checked_calls`."""
    links = _checked_calls(calls, what)
    if not links:
        raise ConfigurationError("a chain needs at least one call")
    first, *others = links
    return chain_calls(first.first(engine), [call.stored("chain") for call in others])


def callback_put(call: Call | None) -> StoredPut | None:
    """Return the form in which a batch stores its callback; None if the batch has no callback; see `_checked_calls`."""
    return None if call is None else _checked_calls([call], "batch")[0].stored("callback")


def direct_puts(engine: Engine, calls: Iterable[Call]) -> list[DirectPut]:
    """Return calls in the form in which `put_calls` puts them; see `_checked_calls`."""
    return [call.direct(engine) for call in _checked_calls(calls, "put_calls")]


def _checked_calls(calls: Iterable[Call], what: str) -> list[Call]:
    """Check the calls that a caller gave to `chain`, `batch` or `put_calls`.

    Args:
        calls: The calls.
        what: The name of the method that puts them, for the message.

    Raises:
        InvalidCall: One of the values is not a call, or the call was put already.
        ConfigurationError: One of the calls has a connection of its own.
    """
    links = list(calls)
    for call in links:
        if isinstance(call, Call):
            if call.connection is not None:
                msg = f"{call.task.path}: a call for {what} cannot have a connection; write {what}(..., connection=...)"
                raise ConfigurationError(msg)
            continue
        given: Any = call
        if len(links) == 1 and isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
            msg = f"{what} takes each call as an argument, and was given a {type(given).__name__}: write {what}(*calls)"
            raise InvalidCall(msg)
        put = ""
        if isinstance(given, JobId):
            put = f"; job {int(given)} was put already, and stays put"
        elif inspect.iscoroutine(given):
            given.close()  # the coroutine of the put was not awaited, so nothing was put
        msg = (
            f"{what} takes calls that are not put yet: write task.call(...), without await; it was given {given!r}{put}"
        )
        raise InvalidCall(msg)
    return links
