"""The last error of a job, as it is stored with the job: its type, message and traceback."""

from __future__ import annotations

import json
import traceback
from types import TracebackType
from typing import Literal, TypeAlias

from pqcore.db.interrupts import is_from_outside
from pqcore.errors import ConfigurationError

MAX_TRACEBACK = 20_000
"""The largest number of characters of a traceback that are kept, counted from its end."""
KeepErrors: TypeAlias = Literal["all", "type", "none"]
"""What is stored of the exceptions of jobs: all, the type alone, or nothing."""
KEEP_ERRORS: tuple[KeepErrors, ...] = ("all", "type", "none")
_LEADING = ("pqcore.", "concurrent.futures.", "asyncio.")


def read_error(stored: str | None) -> dict[str, str]:
    """Return the error in a row: ``type``, ``message``, ``traceback``; empty if the row has none."""
    return {} if stored is None else dict(json.loads(stored))


def error_text(error: dict[str, str] | None) -> str | None:
    """Return an error as JSON text that PostgreSQL can store."""
    return None if error is None else json.dumps(error).replace("\\u0000", "\\ufffd")


def describe_error(error: BaseException) -> dict[str, str]:
    """Return an exception in the form that is stored with the job: ``type``, ``message``, ``traceback``."""
    kind, _, trace = exc_info_of(error)
    text = "".join(traceback.format_exception(kind, error, trace))
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
    """Refuse what `KeepErrors` does not have.

    Raises:
        ConfigurationError: The value is none of them.
    """
    if value not in KEEP_ERRORS:
        raise ConfigurationError(f"keep_errors is {value!r}; choose 'all', 'type' or 'none'")


def reduce_error(error: dict[str, str] | None, keep: KeepErrors) -> dict[str, str] | None:
    """Return what is stored of an error.

    Args:
        error: The error, as `describe_error` tells it; None without one.
        keep: What is stored of it.
    """
    if error is None or keep == "none":
        return None
    return error if keep == "all" else {"type": error["type"], "message": "", "traceback": ""}


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return a function's exception for logging, without the frames outside the function."""
    return type(error), error, _traceback_of_function(error.__traceback__)


def _traceback_of_function(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames outside the function: those of the worker, its threads and its pools."""
    start = trace
    while start is not None and start.tb_frame.f_globals.get("__name__", "").startswith(_LEADING):
        start = start.tb_next
    return trace if start is None else start


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
