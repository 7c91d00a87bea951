"""The values of an attempt's row, which the statement that ends the attempt stores."""

from __future__ import annotations

import os
import socket

from pqcore.operations.job_outcome import Outcome

MAX_MESSAGE, MAX_TRACEBACK = 2_000, 4_000
"""The largest numbers of characters that are kept of each attempt: the beginning of the message, the end of the
traceback."""
_ENDED = {"retry": "failed", "crash": "crashed"}
_NOTHING: dict[str, object] = dict.fromkeys(("attempt", "outcome", "worker", "error_type", "message", "traceback"))


def attempt_values(outcome: Outcome) -> dict[str, object]:
    """Return the parameters that describe an attempt, for the statement that ends and stores the attempt.

    All parameters are None if there was no attempt: the job was postponed for other workers, was given back before its
    function ended, or became a dead letter before it ran.

    Args:
        outcome: How the attempt ended.
    """
    ended = _ENDED.get(outcome.kind)
    if outcome.kind == "snooze" and not outcome.reason:
        ended = "snoozed"
    elif outcome.kind == "dead" and outcome.reason == "failed":
        ended = "failed"
    if ended is None:
        return _NOTHING
    error = outcome.stored_error or {}
    return {
        "attempt": outcome.job.attempts,
        "outcome": ended,
        "worker": this_process(),
        "error_type": error.get("type"),
        "message": _stored(error.get("message"))[:MAX_MESSAGE],
        "traceback": _stored(error.get("traceback"))[-MAX_TRACEBACK:],
    }


def this_process() -> str:
    """Return the name under which attempts record this process: its host and its process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _stored(text: str | None) -> str:
    """Replace the characters of a text that PostgreSQL cannot store."""
    return (text or "").replace("\0", "\ufffd").encode("utf-8", "replace").decode()
