"""How a job's run ended, and what happens to a job whose outcome the server refuses to store."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from pqcore.errors import (
    AccessDenied,
    Closed,
    ConnectionLost,
    DatabaseError,
    InvalidData,
    PayloadTooLarge,
    PoolTimeout,
    PQError,
    SchemaError,
    SerializationError,
    StatementCancelled,
    TransientError,
)
from pqcore.job import BaseJob
from pqcore.operations.error_details import KeepErrors, describe_error, reduce_error
from pqcore.settings import Encoded

OutcomeKind: TypeAlias = Literal["done", "retry", "snooze", "crash", "dead", "drop"]
PUT_OFF = {"unknown": None, "unreadable": 7 * 86_400.0}
"""Reasons of a snooze that only another deployment can end, each with the seconds until the job becomes a dead letter;
None for never."""
_AILMENTS = ("25", "53", "55", "57", "58")
"""The first characters of SQLSTATEs for the server's own errors: it is read-only, a disk is full, a limit is reached,
I/O fails."""
_UNTRANSLATABLE = "22P05"
REFUSED_FOR = 300.0
"""Seconds for which storing an outcome is tried again after refusals that the job may have caused."""
_PASSING = (TransientError, StatementCancelled, AccessDenied)
"""Refusals that the job did not cause: storing its outcome is tried again while they last."""


@dataclass(eq=False, slots=True)  # not frozen: a frozen object takes ten times as long to make
class Outcome:
    """The way in which a leased job ends.

    Attributes:
        job: The job.
        kind: The kind of outcome. ``done``: finished. ``retry``: given back, with a failure counted. ``snooze``: given
            back without a failure. ``crash``: given back as if the lease had run out. ``dead``: a dead letter.
            ``drop``: deleted, as discarded or cancelled.
        result: The value that the function returned.
        encoded: The result in its stored form, if it was encoded already.
        result_error: Why the result cannot be stored, in the form of `describe_error`; the job is still done.
        error: The last exception, in the form of `describe_error`.
        delay: Seconds until the job is due again; None for immediately, in its old place.
        finished: Whether the function finished the job itself (`JobContext.finish`), so that the row may be gone.
        reason: Why the job is dead, dropped or postponed: ``failed``, ``crashed``, ``expired``, ``invalid``,
            ``unreadable``, ``discarded``, ``cancelled``, ``unknown``.
        by_hand: Whether no function was called, so that there is no result to keep.
        keep_errors: What is stored of the errors.
    """

    job: BaseJob
    kind: OutcomeKind
    result: Any = None
    encoded: Encoded | None = None
    result_error: dict[str, str] | None = None
    error: dict[str, str] | None = None
    delay: float | None = None
    reason: str = ""
    finished: bool = False
    by_hand: bool = False
    keep_errors: KeepErrors = "all"

    @property
    def stored_error(self) -> dict[str, str] | None:
        """The parts of ``error`` to store: all parts if the job is postponed, because workers need the reason."""
        return self.error if self.reason in PUT_OFF else reduce_error(self.error, self.keep_errors)

    @property
    def stored_result_error(self) -> dict[str, str] | None:
        """The stored parts of ``result_error``: at least the type of the error, to say why there is no result."""
        return reduce_error(self.result_error, "all" if self.keep_errors == "all" else "type")


def done_by_hand(job: BaseJob) -> Outcome:
    """Return the outcome of a job that a caller acknowledged, or took with `get`."""
    return Outcome(job, "done", by_hand=True)


def crashed(job: BaseJob, pause: float, message: str) -> Outcome:
    """Return the outcome of a crashed attempt whose worker still runs: the worker gives the job back.

    Args:
        job: The job.
        pause: Seconds until the job is due again after its first crash; each further crash doubles this time.
        message: What happened, for the list of attempts.
    """
    error = {"type": "crash", "message": message, "traceback": ""}
    return Outcome(job, "crash", error=error, delay=pause * 2 ** min(job.crashes, 10), reason="crashed")


def ails_server(error: PQError) -> bool:
    """Return whether the server or the connection, and not the job, caused an error.

    Storing the outcomes of other jobs then fails with the same error.
    """
    if isinstance(error, (ConnectionLost, PoolTimeout, Closed, SchemaError)):
        return True
    return type(error) is DatabaseError and (error.sqlstate or "").startswith(_AILMENTS)


def refuses_value(error: PQError) -> bool:
    """Return whether an error says that a value can never be stored."""
    return isinstance(error, (InvalidData, SerializationError, PayloadTooLarge))


def spells_errors_in_ascii(outcome: Outcome, refusal: PQError) -> bool:
    """In an outcome's errors, escape characters that the database's encoding lacks; return whether any was escaped.

    Args:
        outcome: The refused outcome, which is changed.
        refusal: The error of the refusal.
    """
    if getattr(refusal, "sqlstate", None) != _UNTRANSLATABLE:
        return False
    before = outcome.error, outcome.result_error
    outcome.error, outcome.result_error = map(_in_ascii, before)
    return before != (outcome.error, outcome.result_error)


def _in_ascii(error: dict[str, str] | None) -> dict[str, str] | None:
    return error and {name: text.encode("ascii", "backslashreplace").decode() for name, text in error.items()}


Verdict: TypeAlias = Literal["again", "bury", "leave"]
"""What follows a refusal. ``again``: storing the outcome is tried again. ``bury``: the job becomes a dead letter.
``leave``: the job's lease runs out."""


@dataclass(eq=False)
class Refusals:
    """A record of the server's refusals to store the outcome of one job.

    Attributes:
        number: The number of refusals.
        since: The time of the first refusal that the job may have caused, by the monotonic clock; None before it.
    """

    number: int = 0
    since: float | None = None

    def judge(self, outcome: Outcome, error: PQError) -> Verdict:
        """Count a refusal, and return what happens to the job.

        Args:
            outcome: The refused outcome.
            error: The server's error.
        """
        self.number += 1
        if ails_server(error) or isinstance(error, _PASSING):
            return "again"
        now = time.monotonic()
        if self.since is None:
            self.since = now
        if now - self.since < REFUSED_FOR and not refuses_value(error):
            return "again"
        self.number, self.since = 0, None
        return "leave" if outcome.kind == "dead" else "bury"


def dead_letter_of(outcome: Outcome, refusal: BaseException) -> Outcome:
    """Return the outcome "dead letter" for a job whose own outcome cannot be stored.

    Args:
        outcome: The refused outcome.
        refusal: The error of the refusal.
    """
    run = "it was run, but its follow-ups" if outcome.kind == "done" else "its outcome"
    error = {
        "type": f"{type(refusal).__module__}.{type(refusal).__qualname__}",
        "message": f"{run} cannot be stored: {refusal}",
        "traceback": "",
    }
    return replace(outcome, kind="dead", result=None, encoded=None, result_error=None, error=error, reason="failed")


def without_result(outcome: Outcome, refusal: BaseException) -> Outcome | None:
    """Return the outcome of a done job, with the refusal in place of its result.

    Return None if the job has no result, or its chain needs the result.

    Args:
        outcome: The refused outcome.
        refusal: The error of the refusal.
    """
    headers = outcome.job.headers
    if outcome.kind != "done" or outcome.result_error is not None or "keep" not in headers or headers.get("then"):
        return None
    return replace(outcome, encoded=None, result_error=describe_error(refusal))
