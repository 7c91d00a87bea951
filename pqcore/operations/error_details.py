"""The last error of a job, as it is stored with the job: its type, message and traceback."""

from __future__ import annotations

import json
import traceback
from typing import Literal, TypeAlias

from pqcore.db.interrupts import is_from_outside
from pqcore.errors import ConfigurationError


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text; the worker sets it as the exception's cause."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


MAX_TRACEBACK = 20_000
"""The largest number of characters of a traceback that are kept, counted from its end."""
KeepErrors: TypeAlias = Literal["all", "type", "none"]
"""Which parts of the exceptions of jobs are stored: all parts, the type alone, or nothing."""
KEEP_ERRORS: tuple[KeepErrors, ...] = ("all", "type", "none")
_LEADING = ("pqcore.", "concurrent.futures.", "asyncio.")
_CALLER = "pqcore.tasks.declaring"
"""The module that calls functions: if it is the last one in a traceback, the function did not begin."""


def read_error(stored: str | None) -> dict[str, str]:
    """Return the ``type``, ``message`` and ``traceback`` of the error in a row; empty if the row has no error.

    A row that was written in SQL may have other JSON: missing parts are empty, and a value that is not an object
    becomes the message.
    """
    error = None if stored is None else json.loads(stored)
    if not error:
        return {}
    if not isinstance(error, dict):
        error = {"message": error}
    return {key: str(error.get(key) or "") for key in ("type", "message", "traceback")}


def error_text(error: dict[str, str] | None) -> str | None:
    """Return an error as JSON text that PostgreSQL can store."""
    return None if error is None else json.dumps(error).replace("\\u0000", "\\ufffd")


def describe_error(error: BaseException) -> dict[str, str]:
    """Return the ``type``, ``message`` and ``traceback`` of an exception, as they are stored with the job."""
    kind, cause = type(error), error.__cause__
    if isinstance(cause, RemoteTraceback):
        text = str(cause.args[0])
    else:
        text = "".join(traceback.format_exception(kind, error, error.__traceback__))
    try:
        message = str(error)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        message = f"<a {kind.__qualname__} that cannot be shown>"
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": _storable(message[:MAX_TRACEBACK]),
        "traceback": _storable(text[-MAX_TRACEBACK:]),
    }


def check_keep_errors(value: object) -> None:
    """Raise unless a value is one of `KeepErrors`.

    Raises:
        ConfigurationError: The value is not one of `KeepErrors`.
    """
    if value not in KEEP_ERRORS:
        raise ConfigurationError(f"keep_errors is {value!r}; choose 'all', 'type' or 'none'")


def reduce_error(error: dict[str, str] | None, keep: KeepErrors) -> dict[str, str] | None:
    """Return the parts of an error that are stored.

    Args:
        error: The error, as `describe_error` returns it; None without an error.
        keep: Which parts are stored.
    """
    if error is None or keep == "none":
        return None
    return error if keep == "all" else {"type": error["type"], "message": "", "traceback": ""}


def remove_outer_frames(error: BaseException) -> None:
    """Remove the frames outside the job's function from its exception: frames of the worker, its threads and pools.

    An exception of pqcore's own code, raised before the function was called, keeps its frames.
    """
    start = trace = error.__traceback__
    last = ""
    while start is not None and (last := start.tb_frame.f_globals.get("__name__", "")).startswith(_LEADING):
        start = start.tb_next
    if start is not None or last == _CALLER or isinstance(error.__cause__, RemoteTraceback):
        trace = start
    error.__traceback__ = trace


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
