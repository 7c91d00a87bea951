"""The follow-ups of a job's end: storing its result, putting the next job of its chain, counting it in its batch.

All follow-ups share one transaction with the end of the job: both are stored, or neither.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import Membership, count_down, without_batch
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.error_details import error_text
from pqcore.operations.job_outcome import Outcome, done_by_hand
from pqcore.operations.put import insert
from pqcore.operations.serialize import encode
from pqcore.settings import Encoded, QueueSettings
from pqcore.sql.identifiers import results_channel

logger = logging.getLogger("pqcore")

_CONTINUED = ('"batch"', '"then"')
_FOLLOWED = ('"keep"', *_CONTINUED)
_OF_FOLLOW_UPS = ("batch", "batch_token", "then")


def has_follow_ups(headers: str | None, words: Sequence[str] = _FOLLOWED) -> bool:
    """Return whether a job with these headers has follow-ups."""
    return headers is not None and any(word in headers for word in words)


def without_follow_ups(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a job without its follow-ups, which have already happened."""
    return {name: value for name, value in headers.items() if name not in _OF_FOLLOW_UPS}


def is_continued(headers: str | None) -> bool:
    """Return whether a job with these headers belongs to a batch, or to a chain that continues."""
    return headers is not None and has_follow_ups(headers, _CONTINUED)


async def run_follow_ups(engine: Engine, queue: QueueSettings, outcome: Outcome) -> None:
    """Run the follow-ups of a job that was taken with `get`, and whose row is therefore finished."""

    async def work(s: Session) -> None:
        async with atomic(s):
            await follow_up(engine, queue, s, [outcome])

    if has_follow_ups(outcome.job.raw_headers):
        await engine.run(work)


async def complete_given_up(engine: Engine, queue: QueueSettings, jobs: Sequence[BaseJob]) -> None:
    """Run the follow-ups of jobs that were taken with `get` and never performed; these jobs count as done.

    If such a job is unfinished, the transaction that took it was rolled back, and its follow-ups do not run.
    """

    async def work(s: Session, job: BaseJob) -> None:
        query = s.sql.tasks.find_headers
        async with atomic(s):
            values = {"id": job.id, "q_name": queue.name, "put_at": None}
            if not await s.execute(query, query.bind(values)):
                await follow_up(engine, queue, s, [done_by_hand(job)])

    for job in jobs:
        try:
            await engine.run(partial(work, job=job))
        except PQError:
            logger.exception("%r: cannot run the follow-ups of job %d, which was taken with get", queue.name, job.id)


async def follow_up(engine: Engine, queue: QueueSettings, s: Session, ended: Sequence[Outcome]) -> None:
    """Store the results of ended jobs, put the next jobs of their chains, and count the jobs in their batches."""
    for outcome in ended:
        if outcome.by_hand and outcome.job.header_faults:
            # A worker would have made a dead letter of this job; here the job has ended already.
            job = outcome.job
            logger.error(
                "%r: job %d ended, but its follow-ups were not put, because its headers are invalid: %s",
                queue.name,
                job.id,
                job.header_faults,
            )
        await _keep_result(engine, queue, s, outcome)
        await _enqueue_next_in_chain(engine, queue, s, outcome)
    await _decrement_batch(engine, queue, s, ended)


async def mark_deleted(s: Session, job_id: int, outcome: str) -> None:
    """Store how a deleted job ended, for the jobs that wait for it, in the transaction that deleted it."""
    query = s.sql.dependencies.mark_deleted
    await s.execute(query, query.bind({"id": job_id, "outcome": outcome}))


def dead_letter_headers(job: BaseJob, *, owed: bool = True) -> str | None:
    """Return the headers for the dead letter of a job, as JSON text; None if the headers can stay as they are.

    The new headers name no batch, because the batch has counted the job. Headers that pqcore could not read are left
    out.

    Args:
        job: The job.
        owed: Whether the dead letter has to run the job's follow-ups; otherwise they have already happened.
    """
    if job.raw_headers is None:
        return None
    if not owed:
        return json.dumps(without_follow_ups(job.headers)) if is_continued(job.raw_headers) else None
    return without_batch(job.headers) or (json.dumps(job.headers) if job.header_faults else None)


async def _keep_result(engine: Engine, queue: QueueSettings, s: Session, outcome: Outcome) -> None:
    keep = outcome.job.headers.get("keep")
    state = {"done": "done", "dead": "failed", "drop": outcome.reason}.get(outcome.kind)
    if not isinstance(keep, (int, float)) or state is None or outcome.by_hand:
        return
    encoded = outcome.encoded or Encoded(None, None)
    if outcome.kind == "done" and outcome.encoded is None and outcome.result_error is None:
        encoded = await encode(engine, queue, outcome.result)
    values = {
        "id": outcome.job.id,
        "q_name": queue.name,
        "state": state,
        "data": encoded.data,
        "payload": encoded.payload,
        "serializer": queue.serializer_name,
        "error": error_text(outcome.stored_error) or error_text(outcome.stored_result_error),
        "keep": float(keep),
        "put_at": outcome.job.enqueued_at,
        "channel": results_channel(queue.name),
    }
    await s.execute(s.sql.tasks.keep_result, s.sql.tasks.keep_result.bind(values))


async def _enqueue_next_in_chain(engine: Engine, queue: QueueSettings, s: Session, outcome: Outcome) -> None:
    """Put the next job of a chain; if a job fails for good, its dead letter keeps the rest of the chain instead."""
    chain = outcome.job.headers.get("then")
    if outcome.kind == "done" and chain:
        result = outcome.encoded or await encode(engine, queue, outcome.result)
        following = StoredPut.from_json(chain[0]).after(queue, result, chain[1:])
        await insert(engine, s, following.values(), None)


async def _decrement_batch(engine: Engine, queue: QueueSettings, s: Session, ended: Sequence[Outcome]) -> None:
    counted = [
        (membership, outcome.kind == "done")
        for outcome in ended
        if outcome.kind in ("done", "dead", "drop")
        and not _has_chain(outcome)
        and (membership := Membership.of(outcome.job.headers)) is not None
    ]
    await count_down(engine, queue, s, counted)


def _has_chain(outcome: Outcome) -> bool:
    # For a chain in a batch, only the last job counts, or the job that failed.
    return outcome.kind == "done" and bool(outcome.job.headers.get("then"))
