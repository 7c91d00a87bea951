"""Storing how jobs ended: done, retried, postponed, dead, or dropped.

Done jobs without follow-ups end together, in one statement. Any other job ends in one transaction with its follow-ups
(`pqcore.operations.follow_ups`): both are stored, or neither.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.runtime import backoff
from pqcore.db.session import Session
from pqcore.errors import ConnectionLost, OutcomeUnknown, PQError, TransientError
from pqcore.job import BaseJob
from pqcore.lanes import has_lane
from pqcore.operations.atomic import atomic
from pqcore.operations.attempt_values import attempt_values
from pqcore.operations.error_details import error_text
from pqcore.operations.follow_ups import dead_letter_headers, follow_up, has_follow_ups, is_continued, mark_deleted
from pqcore.operations.job_outcome import (
    PUT_OFF,
    Outcome,
    ails_server,
    dead_letter_of,
    done_by_hand,
    refuses_value,
    spells_errors_in_ascii,
    without_result,
)
from pqcore.operations.lease import ack, ack_rows, find_held, ids_and_tokens, last_leases
from pqcore.settings import QueueSettings

_AGAIN = ("retry", "snooze", "crash")
"""Kinds of outcomes after which the job runs again."""
TOGETHER = 100
"""The largest number of jobs with follow-ups that end in one transaction."""
TRIES = 3
"""Attempts to store the outcome of a single job, after deadlocks and other transient errors."""

LOCKED = "the row of job {} is locked by another transaction: its outcome is stored as soon as the lock is released"
LOCK_NOT_AVAILABLE = "55P03"
"""The SQLSTATE for a lock that could not be obtained."""

J = TypeVar("J", bound=BaseJob)


def is_plain(outcome: Outcome) -> bool:
    """Return whether a job was done, and has no follow-ups."""
    return outcome.kind == "done" and not has_follow_ups(outcome.job.raw_headers)


async def finish(
    engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome], connection: object = None
) -> list[Outcome]:
    """End leased jobs; return the jobs whose leases were lost, which are unchanged.

    Args:
        engine: The engine.
        queue: The queue of the jobs.
        outcomes: The outcomes of the jobs.
        connection: A connection whose open transaction is used; see `Queue.put`.

    Raises:
        PQError: The end of a job is not stored; other jobs may have ended.
    """
    if connection is not None:
        plain, others = _divide(outcomes)
        lost = await _ack_plain(engine, queue, plain, connection)
        for start in range(0, len(others), TOGETHER):
            lost += await _complete_batch(engine, queue, others[start : start + TOGETHER], connection, {})
        return lost
    endings = Endings(buries=False, waits=True)
    await _store_groups(engine, queue, _group(outcomes), endings)
    for _, error in endings.refused:
        raise error
    return endings.lost


async def finish_one(engine: Engine, queue: QueueSettings, outcome: Outcome) -> Outcome | None:
    """End a leased job, and return its outcome, or None if the lease was lost.

    If the server refuses a follow-up, the outcome is a dead letter. After a deadlock or another transient error, the
    operation tries again, up to `TRIES` attempts in all.

    Raises:
        PQError: The outcome is not stored.
    """
    failures = 0
    while True:
        endings = Endings(waits=True)
        await _store_groups(engine, queue, [[outcome]], endings)
        if not endings.refused:
            return None if endings.lost else endings.stored(outcome)
        [(_, error)] = endings.refused
        failures += 1
        if failures == TRIES or not isinstance(error, TransientError):
            raise error
        await engine.runtime.sleep(backoff(failures))


@dataclass(eq=False)
class Endings:
    """The results of storing the outcomes of several jobs. An outcome that is in none of the lists was stored.

    Attributes:
        lost: Outcomes that were not stored, because the leases of the jobs were lost; these jobs are unchanged.
        refused: Outcomes that were not stored, each with the error; after `OutcomeUnknown`, one may have been stored.
        buried: The outcomes that were stored in place of given ones, by the `id` of the given outcome. Each is a dead
            letter, or an end without a result.
        buries: Whether a done job with a refused value in its outcome becomes a dead letter.
        waits: Whether to wait for rows that other transactions have locked. Otherwise the outcomes of such jobs are
            refused, and the other outcomes are stored.
    """

    lost: list[Outcome] = field(default_factory=list)
    refused: list[tuple[Outcome, PQError]] = field(default_factory=list)
    buried: dict[int, Outcome] = field(default_factory=dict)
    buries: bool = True
    waits: bool = False

    def stored(self, outcome: Outcome) -> Outcome:
        """Return the outcome that was stored for a job: the given outcome, or the one that replaced it."""
        return self.buried.get(id(outcome), outcome)


async def finish_each(engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome]) -> Endings:
    """End leased jobs in as few transactions as possible; a refused outcome does not hold up other jobs."""
    endings = Endings()
    await _store_groups(engine, queue, _group(outcomes), endings)
    return endings


async def find_already_stored(
    engine: Engine, queue: QueueSettings, doubtful: Sequence[tuple[Outcome, bool]]
) -> list[Outcome]:
    """Return the outcomes that an earlier try has stored, although the server's answer was lost.

    The leases of the given jobs are no longer held. If the row of a job still exists, the row shows whether the holder
    ended the lease. But the row may be deleted, or the job taken again. Then the outcome counts as stored while the
    lease has time left by this process's clock, because only the holder can end a lease before it runs out.

    Args:
        engine: The engine.
        queue: The queue of the jobs.
        doubtful: The outcomes, each with whether its lease has time left by this process's clock.
    """
    leases = await last_leases(engine, queue, [outcome.job for outcome, _ in doubtful])
    ended = {lease for lease, is_over in leases if is_over}
    last: dict[int, int] = {}
    for (job, token), _ in leases:
        last[job] = max(token, last.get(job, 0))

    def is_stored(outcome: Outcome, *, in_time: bool) -> bool:
        job = outcome.job
        if (job.id, job.token) in ended:
            return True
        return in_time and (outcome.kind in _AGAIN or last.get(job.id, 0) < job.token)

    return [outcome for outcome, in_time in doubtful if is_stored(outcome, in_time=in_time)]


def _divide(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Divide outcomes into two lists: done jobs without follow-ups, and all other jobs."""
    plain: list[Outcome] = []
    others: list[Outcome] = []
    for one in outcomes:
        (plain if is_plain(one) else others).append(one)
    return plain, others


def _group(outcomes: Sequence[Outcome]) -> list[Sequence[Outcome]]:
    """Return outcomes in groups, each of which is stored in one transaction."""
    plain, others = _divide(outcomes)
    groups: list[Sequence[Outcome]] = [plain] if plain else []
    return groups + [others[start : start + TOGETHER] for start in range(0, len(others), TOGETHER)]


async def _store_groups(
    engine: Engine, queue: QueueSettings, groups: Sequence[Sequence[Outcome]], endings: Endings
) -> PQError | None:
    """Store groups of outcomes, each in its own transaction; stop at an error of the server itself, and return it."""
    ailment: PQError | None = None
    for group in groups:
        if ailment is None:
            ailment = await _store(engine, queue, group, endings)
        else:  # these outcomes were not sent, so it is certain that the server did not store them
            error = ConnectionLost(str(ailment)) if isinstance(ailment, OutcomeUnknown) else ailment
            endings.refused += [(outcome, error) for outcome in group]
    return ailment


async def _store(engine: Engine, queue: QueueSettings, group: Sequence[Outcome], endings: Endings) -> PQError | None:
    """Store outcomes together or, if one is refused, one by one; if the server itself fails, return the error."""
    try:
        if is_plain(group[0]):
            missing = await _ack_plain(engine, queue, group, None, free=not endings.waits)
        else:
            missing = await _complete_batch(engine, queue, group, None, endings.buried, free=not endings.waits)
        endings.lost += missing if endings.waits else await _refuse_locked(engine, missing, endings)
    except PQError as exc:
        if ails_server(exc):
            endings.refused += [(outcome, exc) for outcome in group]
            return exc
        if len(group) > 1:
            return await _store_groups(engine, queue, [[outcome] for outcome in group], endings)
        if spells_errors_in_ascii(group[0], exc):
            return await _store(engine, queue, group, endings)
        if endings.buries and group[0].kind == "done" and refuses_value(exc):
            return await _dead_letter_instead(engine, queue, group[0], exc, endings)
        endings.refused.append((group[0], exc))
    return None


async def _refuse_locked(engine: Engine, missing: Sequence[Outcome], endings: Endings) -> list[Outcome]:
    """Refuse the outcomes of jobs whose rows are locked by other transactions.

    Return the jobs whose leases were lost.
    """
    try:
        held = await find_held(engine, [outcome.job for outcome in missing])
    except PQError as exc:  # the error does not matter for the other outcomes, which are stored
        endings.refused += [(outcome, exc) for outcome in missing]
        return []
    lost: list[Outcome] = []
    for outcome in missing:
        if (outcome.job.id, outcome.job.token) in held:
            error = TransientError(LOCKED.format(outcome.job.id), LOCK_NOT_AVAILABLE)
            endings.refused.append((outcome, error))
        else:
            lost.append(outcome)
    return lost


async def _dead_letter_instead(
    engine: Engine, queue: QueueSettings, outcome: Outcome, refusal: PQError, endings: Endings
) -> PQError | None:
    """End a job without its result, or as a dead letter, because the server refuses its follow-up."""
    found = Endings(waits=endings.waits)
    instead = without_result(outcome, refusal) or dead_letter_of(outcome, refusal)
    ailment = await _store(engine, queue, [instead], found)
    if found.refused:
        [(_, error)] = found.refused
        endings.refused.append((outcome, error))
    elif found.lost:
        endings.lost.append(outcome)
    else:
        endings.buried[id(outcome)] = found.stored(instead)
    return ailment


async def _ack_plain(
    engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome], connection: object, *, free: bool = False
) -> list[Outcome]:
    """Finish jobs without follow-ups in one statement; return the jobs that it did not finish, as `ack` does."""
    lost = {id(job) for job in await ack(engine, queue, [outcome.job for outcome in outcomes], connection, free=free)}
    return [outcome for outcome in outcomes if id(outcome.job) in lost and not outcome.finished] if lost else []


def acknowledge(
    engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object
) -> Coroutine[Any, Any, list[J]]:
    """Finish leased jobs for a caller of `ack`; return the jobs whose leases were lost.

    The operation runs the follow-ups of the jobs. An acknowledged job has no result, so the next job of its chain gets
    None.
    """
    for job in jobs:
        if is_continued(job.raw_headers):
            return _acknowledge_continued(engine, queue, jobs, connection)
    return ack(engine, queue, jobs, connection)


async def _acknowledge_continued(
    engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object
) -> list[J]:
    continued = {id(job): done_by_hand(job) for job in jobs if is_continued(job.raw_headers)}
    others = [job for job in jobs if id(job) not in continued]
    lost = {id(job) for job in await ack(engine, queue, others, connection)}
    lost |= {id(outcome.job) for outcome in await finish(engine, queue, list(continued.values()), connection)}
    return [job for job in jobs if id(job) in lost]


async def _complete_batch(
    engine: Engine,
    queue: QueueSettings,
    outcomes: Sequence[Outcome],
    connection: object,
    buried: dict[int, Outcome],
    *,
    free: bool = False,
) -> list[Outcome]:
    async def work(s: Session) -> list[Outcome]:
        async with atomic(s):
            for outcome in outcomes:
                buried.pop(id(outcome), None)  # an earlier try, since rolled back, may have added the outcome
            found = await _lock_free(s, queue, outcomes) if free else outcomes
            ended = await _end_rows(s, queue, found, buried, free=free)
            await follow_up(engine, queue, s, [buried.get(id(outcome), outcome) for outcome in ended])
            if any(has_lane(outcome.job.raw_headers) for outcome in ended):
                await tell(queue, s)
        return ended

    held = {id(outcome) for outcome in await engine.run(work, connection=connection)}
    return [outcome for outcome in outcomes if id(outcome) not in held and not outcome.finished]


async def tell(queue: QueueSettings, s: Session) -> None:
    """Notify waiters, when the transaction commits, that places under keys are free."""
    await s.execute(s.sql.tasks.tell, s.sql.tasks.tell.bind({"channel": queue.channel}))


async def _lock_free(s: Session, queue: QueueSettings, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Lock the rows of jobs that no other transaction has locked, and return their outcomes; wait for no row.

    Done jobs are left out: the statement that finishes them locks their rows itself.
    """
    if all(outcome.kind == "done" for outcome in outcomes):
        return outcomes
    query = s.sql.tasks.lock_held
    values = {**ids_and_tokens([outcome.job for outcome in outcomes]), "q_name": queue.name}
    free = {(job, token) for job, token in await s.execute(query, query.bind(values))}
    return [outcome for outcome in outcomes if (outcome.job.id, outcome.job.token) in free]


async def _end_rows(
    s: Session, queue: QueueSettings, outcomes: Sequence[Outcome], buried: dict[int, Outcome], *, free: bool
) -> list[Outcome]:
    """Change the rows of jobs as their outcomes say; return the outcomes whose leases were held.

    Args:
        s: A session with an open transaction.
        queue: The queue of the jobs.
        outcomes: The outcomes of the jobs.
        buried: A dict that receives the dead letter of a job that was postponed for too long, by the `id` of the
            outcome.
        free: Whether to leave out done jobs whose rows other transactions have locked.
    """
    ended = []
    done = [outcome for outcome in outcomes if outcome.kind == "done"]
    if done:
        held = {
            (job, token) for job, token, *_ in await ack_rows(s, queue, [outcome.job for outcome in done], free=free)
        }
        ended += [outcome for outcome in done if (outcome.job.id, outcome.job.token) in held]
    tasks = s.sql.tasks
    statements = {
        "retry": tasks.retry,
        "snooze": tasks.snooze,
        "crash": s.sql.attempts.crash,
        "dead": tasks.bury,
        "drop": tasks.drop,
    }
    for outcome in sorted(outcomes, key=lambda outcome: outcome.job.id):
        if outcome.kind == "done":
            continue
        put_off = outcome.kind == "snooze" and outcome.reason in PUT_OFF
        patience = PUT_OFF[outcome.reason] if put_off else None
        query = tasks.put_off if put_off else statements[outcome.kind]
        values = {
            "id": outcome.job.id,
            "token": outcome.job.token,
            "delay": outcome.delay,
            "error": error_text(outcome.stored_error),
            "reason": outcome.reason,
            "failed": int(outcome.reason == "failed"),
            "headers": dead_letter_headers(outcome.job),
            "patience": patience,
            "q_name": queue.name,
            "channel": queue.channel,
            **attempt_values(outcome),
        }
        if rows := await s.execute(query, query.bind(values)):
            ended.append(outcome)
            if outcome.kind == "drop" and any(awaited for _, awaited in rows):
                await mark_deleted(s, outcome.job.id, outcome.reason or "discarded")
        elif patience is not None and await s.execute(tasks.bury, tasks.bury.bind(values)):
            buried[id(outcome)] = replace(outcome, kind="dead")
            ended.append(outcome)
    return ended
