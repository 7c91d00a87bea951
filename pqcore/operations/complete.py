"""How a job that was run ends: done, tried again, put off, a dead letter, or dropped; and what follows from it.

A job that was done and of which nothing follows is finished with others like it
in one statement.  Else all that follows from it (its result, the next of its chain, its
batch, its places under limits) is one transaction with its end: both, or neither.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.runtime import backoff
from pqcore.db.session import Session
from pqcore.errors import (
    AccessDenied,
    Closed,
    ConnectionLost,
    DatabaseError,
    InvalidData,
    OutcomeUnknown,
    PayloadTooLarge,
    PoolTimeout,
    PQError,
    SchemaError,
    SerializationError,
    StatementCancelled,
    TransientError,
)
from pqcore.job import BaseJob
from pqcore.locked_keys import WAITS
from pqcore.operations import lease as leasing
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import Membership, count_down, without_batch
from pqcore.operations.concurrency_limits import limits_of, lock_limits, release_slots, try_lock_limits
from pqcore.operations.dead_letters import described
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.lease import ack_rows
from pqcore.operations.put import insert
from pqcore.operations.serialize import encode
from pqcore.rows import JobRow
from pqcore.settings import Encoded, QueueSettings
from pqcore.sql.identifiers import results_channel

logger = logging.getLogger("pqcore")

OutcomeKind: TypeAlias = Literal["done", "retry", "snooze", "crash", "dead", "drop"]
_AGAIN = ("retry", "snooze", "crash")
"""Ends after which the job is run again."""
PUT_OFF = {"unknown": None, "unreadable": 7 * 86_400.0}
"""Reasons of a snooze that need another deployment: seconds after which the job is a dead letter; None for never."""
TOGETHER = 100
"""Jobs of which something follows: so many end in one transaction."""
_AILMENTS = ("25", "53", "55", "57", "58")
"""SQLSTATEs, by how they begin, of what ails the server and not the job: read only, a full disk, a limit, a device."""
TRIES = 3
"""How often it is tried to store how a single job ended, after deadlocks and the like."""
REFUSED_FOR = 300.0
"""Seconds for which an end is tried again that the server refuses, for a reason that may be of the job."""
_PASSING = (TransientError, StatementCancelled, AccessDenied)
"""Refusals that are not of the job: its end is tried again for as long as they last."""


@dataclass(eq=False, slots=True)  # nobody changes one; but a frozen one takes ten times as long to make, for each job
class Outcome:
    """How a leased job ends.

    Attributes:
        job: The job.
        kind: ``done``; ``retry``: given back, with a failure on its record; ``snooze``: given back
            without; ``crash``: given back, as if the lease had run out; ``dead``: a dead letter;
            ``drop``: deleted, as discarded or cancelled.
        result: What the function returned.
        encoded: The same as it is stored, if it was encoded already.
        unkept: Why the result cannot be stored, as `described`; the job is done all the same.
        error: The last exception, as `described`.
        delay: Seconds until it is due again; None for at once, in its place.
        finished: Whether the function finished the job itself (`JobContext.finish`): then it may be gone.
        reason: Why it is dead, dropped or put off: ``failed``, ``crashed``, ``expired``, ``invalid``, ``unreadable``,
            ``discarded``, ``cancelled``, ``unknown``.
        by_hand: Whether its function was not called: then there is no result to be kept.
    """

    job: BaseJob
    kind: OutcomeKind
    result: Any = None
    encoded: Encoded | None = None
    unkept: dict[str, str] | None = None
    error: dict[str, str] | None = None
    delay: float | None = None
    reason: str = ""
    finished: bool = False
    by_hand: bool = False


def by_hand(job: BaseJob) -> Outcome:
    """The end of a job that a caller acknowledged, or took with `get`."""
    return Outcome(job, "done", by_hand=True)


J = TypeVar("J", bound=BaseJob)
_CONTINUED = ('"batch"', '"then"')
_FOLLOWED = ('"gate"', '"keep"', *_CONTINUED)
_OF_FOLLOWERS = ("batch", "batch_token", "then")


def _is_plain(outcome: Outcome) -> bool:
    return outcome.kind == "done" and not has_followers(outcome.job.raw_headers)


async def finish(
    engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome], connection: object = None
) -> list[Outcome]:
    """End leased jobs; those whose lease was lost are returned, and are as they were.

    Args:
        engine: Where.
        queue: Whose jobs.
        outcomes: How they end.
        connection: In whose transaction; as for `Queue.put`.

    Raises:
        PQError: The end of a job is not stored; others of the jobs may have ended.
    """
    if connection is not None:
        plain, others = _divided(outcomes)
        lost = await _finish_plain(engine, queue, plain, connection)
        for start in range(0, len(others), TOGETHER):
            lost += await _complete_batch(engine, queue, others[start : start + TOGETHER], connection, {})
        return lost
    endings = Endings(busy=None, buries=False)
    await _store_groups(engine, queue, _groups(outcomes), endings)
    for _, error in endings.refused:
        raise error
    return endings.lost


async def finish_one(engine: Engine, queue: QueueSettings, outcome: Outcome) -> Outcome | None:
    """End a leased job; how it ended, which is a dead letter if the server refuses what follows; None if it was lost.

    After a deadlock and the like it is tried again, `TRIES` times in all.

    Raises:
        PQError: The end is not stored.
    """
    failures = 0
    while True:
        endings = await finish_each(engine, queue, [outcome], wait=True)
        if not endings.refused:
            return None if endings.lost else endings.stored(outcome)
        [(_, error)] = endings.refused
        failures += 1
        if failures == TRIES or not isinstance(error, TransientError):
            raise error
        await engine.runtime.sleep(backoff(failures))


@dataclass(eq=False)
class Endings:
    """What became of the ends of several jobs. An outcome in none of the lists is stored.

    Attributes:
        lost: The lease of the job was not held; the job is as it was.
        refused: The end is not stored, for this error. After `OutcomeUnknown` it may be stored.
        buried: By the outcome's `id`, what was stored in its place: a dead letter, or an end without a result.
        busy: Not stored, as another transaction has the limit or group locked; None to wait for that transaction.
        buries: Whether a job that was done, and whose end holds a value that is refused, is a dead letter.
    """

    lost: list[Outcome] = field(default_factory=list)
    refused: list[tuple[Outcome, PQError]] = field(default_factory=list)
    buried: dict[int, Outcome] = field(default_factory=dict)
    busy: list[Outcome] | None = None
    buries: bool = True

    def stored(self, outcome: Outcome) -> Outcome:
        """Return how a job ended whose end is stored."""
        return self.buried.get(id(outcome), outcome)


async def finish_each(
    engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome], *, wait: bool = False
) -> Endings:
    """End leased jobs, in as few transactions as possible; a job whose end is refused does not hold up others.

    Args:
        engine: Where.
        queue: Whose jobs.
        outcomes: How they end.
        wait: Whether to wait for a transaction that has a job's limit or group locked.
    """
    endings = Endings(busy=None if wait else [])
    await _store_groups(engine, queue, _groups(outcomes), endings)
    return endings


async def stored_before(
    engine: Engine, queue: QueueSettings, doubtful: Sequence[tuple[Outcome, bool]]
) -> list[Outcome]:
    """Return the outcomes that an earlier try stored, of which the answer was lost; now the lease is not held.

    The job's row tells, whatever became of clocks. If the row was deleted, or the job waited for another run and was
    taken again, only the clock tells: until a lease runs out, nobody but its holder ends it.

    Args:
        engine: Where.
        queue: Whose jobs.
        doubtful: Outcomes, each with whether its lease has time left by the clock of this process.
    """
    leases = await leasing.last_leases(engine, queue, [outcome.job for outcome, _ in doubtful])
    ended = {lease for lease, is_over in leases if is_over}
    last: dict[int, int] = {}
    for (job, token), _ in leases:
        last[job] = max(token, last.get(job, 0))

    def is_stored(outcome: Outcome, *, in_time: bool) -> bool:
        job = outcome.job
        if (job.id, job.attempts) in ended:
            return True
        return in_time and (outcome.kind in _AGAIN or last.get(job.id, 0) < job.attempts)

    return [outcome for outcome, in_time in doubtful if is_stored(outcome, in_time=in_time)]


def ails_server(error: PQError) -> bool:
    """Whether an error is of the server or of the way there, and not of the job: other jobs meet it too."""
    if isinstance(error, (ConnectionLost, PoolTimeout, Closed, SchemaError)):
        return True
    return type(error) is DatabaseError and (error.sqlstate or "").startswith(_AILMENTS)


def refuses_value(error: PQError) -> bool:
    """Whether an error says that a value cannot be stored: not now, and not later."""
    return isinstance(error, (InvalidData, SerializationError, PayloadTooLarge))


Verdict: TypeAlias = Literal["again", "bury", "leave"]
"""What becomes of a job whose end is refused: it is tried again, the job is a dead letter, or its lease runs out."""


@dataclass(eq=False)
class Refusals:
    """Refusals to store how one job ended.

    Attributes:
        number: How many there were.
        since: When the first one was that may be of the job, by the monotonic clock; None before.
    """

    number: int = 0
    since: float | None = None

    def judge(self, outcome: Outcome, error: PQError) -> Verdict:
        """Count a refusal, and return what becomes of the job.

        Args:
            outcome: How the job was to end.
            error: What the server said.
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


def _divided(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes from which nothing follows, and the others."""
    plain: list[Outcome] = []
    others: list[Outcome] = []
    for one in outcomes:
        (plain if _is_plain(one) else others).append(one)
    return plain, others


def _groups(outcomes: Sequence[Outcome]) -> list[Sequence[Outcome]]:
    """Return outcomes in groups that are stored together."""
    plain, others = _divided(outcomes)
    groups: list[Sequence[Outcome]] = [plain] if plain else []
    return groups + [others[start : start + TOGETHER] for start in range(0, len(others), TOGETHER)]


async def _store_groups(
    engine: Engine, queue: QueueSettings, groups: Sequence[Sequence[Outcome]], endings: Endings
) -> PQError | None:
    """Store groups of ends, each in its own transaction, until something ails the server; what that is."""
    ailment: PQError | None = None
    for group in groups:
        if ailment is None:
            ailment = await _store(engine, queue, group, endings)
        else:  # which is not tried, so that it is known not to be stored
            error = ConnectionLost(str(ailment)) if isinstance(ailment, OutcomeUnknown) else ailment
            endings.refused += [(outcome, error) for outcome in group]
    return ailment


async def _store(engine: Engine, queue: QueueSettings, group: Sequence[Outcome], endings: Endings) -> PQError | None:
    """Store ends together or, if one of them is refused, each by itself; returns what ails the server."""
    left = group
    try:
        if _is_plain(group[0]):
            endings.lost += await _finish_plain(engine, queue, group, None)
        elif endings.busy is None:
            endings.lost += await _complete_batch(engine, queue, group, None, endings.buried)
        else:
            for pause in (*WAITS, None):
                busy: list[Outcome] = []
                endings.lost += await _complete_batch(engine, queue, left, None, endings.buried, busy)
                left = busy
                if pause is None or not busy:
                    endings.busy += busy
                    break
                await engine.runtime.sleep(pause)
    except PQError as exc:
        if ails_server(exc):
            endings.refused += [(outcome, exc) for outcome in left]
            return exc
        if len(left) > 1:
            return await _store_groups(engine, queue, [[outcome] for outcome in left], endings)
        if endings.buries and left[0].kind == "done" and refuses_value(exc):
            return await _bury(engine, queue, left[0], exc, endings)
        endings.refused.append((left[0], exc))
    return None


async def _bury(
    engine: Engine, queue: QueueSettings, outcome: Outcome, refusal: PQError, endings: Endings
) -> PQError | None:
    """End a job of which the server refuses what follows: without its result, or as a dead letter."""
    found = Endings(busy=None if endings.busy is None else [])
    instead = without_result(outcome, refusal) or dead_letter_of(outcome, refusal)
    ailment = await _store(engine, queue, [instead], found)
    if found.refused:
        endings.refused.append((outcome, found.refused[0][1]))
    elif found.lost:
        endings.lost.append(outcome)
    elif found.busy and endings.busy is not None:
        endings.busy.append(outcome)
    else:
        endings.buried[id(outcome)] = found.stored(instead)
    return ailment


def dead_letter_of(outcome: Outcome, refusal: BaseException) -> Outcome:
    """Return the dead letter that a job becomes whose end cannot be stored.

    Args:
        outcome: How the job was to end.
        refusal: Why.
    """
    run = "it was run, but what follows from it" if outcome.kind == "done" else "how it ended"
    error = {
        "type": f"{type(refusal).__module__}.{type(refusal).__qualname__}",
        "message": f"{run} cannot be stored: {refusal}",
        "traceback": "",
    }
    return replace(outcome, kind="dead", result=None, encoded=None, unkept=None, error=error, reason="failed")


def without_result(outcome: Outcome, refusal: BaseException) -> Outcome | None:
    """Return how a job ends of whose end the result alone may be refused: done, with the refusal in its place.

    None if it has no result, or a chain needs the result.

    Args:
        outcome: How the job was to end.
        refusal: Why.
    """
    headers = outcome.job.headers
    if outcome.kind != "done" or outcome.unkept is not None or "keep" not in headers or headers.get("then"):
        return None
    return replace(outcome, encoded=None, unkept=described(refusal))


async def _finish_plain(
    engine: Engine, queue: QueueSettings, outcomes: Sequence[Outcome], connection: object
) -> list[Outcome]:
    """Finish jobs from whose ends nothing follows, in one statement; those whose lease was lost."""
    lost = {id(job) for job in await leasing.ack(engine, queue, [outcome.job for outcome in outcomes], connection)}
    return [outcome for outcome in outcomes if id(outcome.job) in lost and not outcome.finished] if lost else []


def acknowledge(
    engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object
) -> Coroutine[Any, Any, list[J]]:
    """Finish leased jobs that somebody did by hand; returns those whose lease was lost.

    What follows from a job follows. It has no result: the next of its chain gets None.
    """
    for job in jobs:
        if is_continued(job.raw_headers):
            return _acknowledge_continued(engine, queue, jobs, connection)
    return leasing.ack(engine, queue, jobs, connection)


async def _acknowledge_continued(
    engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object
) -> list[J]:
    continued = {id(job): by_hand(job) for job in jobs if is_continued(job.raw_headers)}
    others = [job for job in jobs if id(job) not in continued]
    lost = {id(job) for job in await leasing.ack(engine, queue, others, connection)}
    lost |= {id(outcome.job) for outcome in await finish(engine, queue, list(continued.values()), connection)}
    return [job for job in jobs if id(job) in lost]


async def _complete_batch(
    engine: Engine,
    queue: QueueSettings,
    outcomes: Sequence[Outcome],
    connection: object,
    buried: dict[int, Outcome],
    later: list[Outcome] | None = None,
) -> list[Outcome]:
    limits_by_job = {o.job.id: limits for o in outcomes if (limits := limits_of(o.job.raw_headers)) is not None}

    async def work(s: Session) -> tuple[list[Outcome], list[Outcome]]:
        async with atomic(s):
            if later is None or not limits_by_job:
                await lock_limits(engine, queue, s, limits_by_job.values())
                busy = []
            else:
                locked = await try_lock_limits(engine, queue, s, limits_by_job)
                busy = [outcome for outcome in outcomes if outcome.job.id in limits_by_job.keys() - locked]
            begun = [outcome for outcome in outcomes if outcome not in busy]
            for outcome in begun:
                buried.pop(id(outcome), None)  # of an attempt that was undone
            ended = await _end_rows(s, queue, begun, buried)
            await _follow(engine, queue, s, [buried.get(id(outcome), outcome) for outcome in ended], locked=True)
        held = {id(outcome) for outcome in ended}
        return [outcome for outcome in begun if id(outcome) not in held and not outcome.finished], busy

    lost, busy = await engine.run(work, connection=connection)
    if later is not None:
        later += busy
    return lost


def has_followers(headers: str | None, words: Sequence[str] = _FOLLOWED) -> bool:
    """Whether something follows from the end of a job with these headers."""
    return headers is not None and any(word in headers for word in words)


def without_followers_text(job: BaseJob) -> str | None:
    """The headers of a dead letter from which what follows has followed already; None if they can stay as they are."""
    return json.dumps(without_followers(job.headers)) if is_continued(job.raw_headers) else None


def without_followers(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a job from which what follows has followed already."""
    return {name: value for name, value in headers.items() if name not in _OF_FOLLOWERS}


def is_continued(headers: str | None) -> bool:
    """Whether a job with these headers is of a chain that goes on, or of a batch."""
    return headers is not None and has_followers(headers, _CONTINUED)


async def follow(engine: Engine, queue: QueueSettings, outcome: Outcome) -> None:
    """Do what follows from the end of a job whose row is finished already: it was taken with `get`."""

    async def work(s: Session) -> None:
        async with atomic(s):
            await _follow(engine, queue, s, [outcome])

    if has_followers(outcome.job.raw_headers):
        await engine.run(work)


async def follow_given_up(engine: Engine, queue: QueueSettings, jobs: Sequence[BaseJob]) -> None:
    """Do what follows from jobs that were taken with `get` and that nobody performs: they count as done.

    One that waits again was taken in a transaction that was rolled back.
    """

    async def work(s: Session, job: BaseJob) -> None:
        query = s.sql.tasks.find_headers
        async with atomic(s):
            values = {"id": job.id, "q_name": queue.name, "put_at": None}
            if not await s.execute(query, query.bind(values)):
                await go_on(engine, queue, s, [by_hand(job)])

    for job in jobs:
        try:
            await engine.run(partial(work, job=job))
        except PQError:
            logger.exception(
                "%r: what follows from job %d, which was taken with get, cannot be done", queue.name, job.id
            )


async def cancel(engine: Engine, queue: QueueSettings, s: Session, job_id: int, headers: str) -> bool:
    """Delete a job that waits, and do what follows from that; whether it did wait."""
    query = s.sql.cancel
    async with atomic(s):
        if (limits := limits_of(headers)) is not None:
            await lock_limits(engine, queue, s, [limits])
        rows = await s.execute(query, query.bind({"id": job_id, "q_name": queue.name}))
        for _, found, put_at in rows:
            row = JobRow(job_id, None, b"", None, attempts=0, enqueued_at=put_at, headers=found)
            job = BaseJob(queue, row)
            await _follow(engine, queue, s, [Outcome(job, "drop", reason="cancelled")], locked=found == headers)
    return bool(rows)


async def _follow(
    engine: Engine, queue: QueueSettings, s: Session, ended: Sequence[Outcome], *, locked: bool = False
) -> None:
    limits_by_job = {outcome.job.id: limits_of(outcome.job.raw_headers) for outcome in ended}
    freed = {job: limits for job, limits in limits_by_job.items() if limits is not None}
    await release_slots(engine, queue, s, freed, locked=locked)
    await go_on(engine, queue, s, ended)


async def go_on(engine: Engine, queue: QueueSettings, s: Session, ended: Sequence[Outcome]) -> None:
    """Keep the results of jobs that ended, put the next of their chains, and tell their batches."""
    for outcome in ended:
        if outcome.by_hand and outcome.job.header_faults:  # a worker makes a dead letter of such a job
            job = outcome.job
            logger.error("%r: job %d ended without what its headers ask for: %s", queue.name, job.id, job.header_faults)
        await _keep_result(engine, queue, s, outcome)
        await _put_next(engine, queue, s, outcome)
    await _decrement_batch(engine, queue, s, ended)


async def _end_rows(
    s: Session, queue: QueueSettings, outcomes: Sequence[Outcome], buried: dict[int, Outcome]
) -> list[Outcome]:
    """Change the rows; those outcomes whose lease was held.

    Args:
        s: A session with a transaction open.
        queue: Whose jobs.
        outcomes: How they end.
        buried: Takes, by the `id` of an outcome, the dead letter of a job that was put off for too long.
    """
    ended = []
    done = [outcome for outcome in outcomes if outcome.kind == "done"]
    if done:
        held = {(job, token) for job, token in await ack_rows(s, queue, [outcome.job for outcome in done])}
        ended += [outcome for outcome in done if (outcome.job.id, outcome.job.attempts) in held]
    tasks = s.sql.tasks
    statements = {
        "retry": tasks.retry,
        "snooze": tasks.snooze,
        "crash": s.sql.nack,
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
            "token": outcome.job.attempts,
            "delay": outcome.delay,
            "error": error_text(outcome),
            "reason": outcome.reason,
            "failed": int(outcome.reason == "failed"),
            "headers": headers_of_the_dead(outcome.job),
            "patience": patience,
            "q_name": queue.name,
            "channel": queue.channel,
        }
        if await s.execute(query, query.bind(values)):
            ended.append(outcome)
        elif patience is not None and await s.execute(tasks.bury, tasks.bury.bind(values)):
            buried[id(outcome)] = replace(outcome, kind="dead")
            ended.append(outcome)
    return ended


def error_text(outcome: Outcome) -> str | None:
    """An outcome's error as it is stored."""
    return _json_text(outcome.error)


def _json_text(error: dict[str, str] | None) -> str | None:
    return None if error is None else json.dumps(error).replace("\\u0000", "\\ufffd")


def headers_of_the_dead(job: BaseJob) -> str | None:
    """Without its batch, and what nobody can read; None if they can stay as they are."""
    if job.raw_headers is None:
        return None
    return without_batch(job.headers) or (json.dumps(job.headers) if job.header_faults else None)


async def _keep_result(engine: Engine, queue: QueueSettings, s: Session, outcome: Outcome) -> None:
    keep = outcome.job.headers.get("keep")
    state = {"done": "done", "dead": "failed", "drop": outcome.reason}.get(outcome.kind)
    if not isinstance(keep, (int, float)) or state is None or outcome.by_hand:
        return
    encoded = outcome.encoded or Encoded(None, None)
    if outcome.kind == "done" and outcome.encoded is None and outcome.unkept is None:
        encoded = await encode(engine, queue, outcome.result)
    values = {
        "id": outcome.job.id,
        "q_name": queue.name,
        "state": state,
        "data": encoded.data,
        "payload": encoded.payload,
        "serializer": queue.serializer_name,
        "error": error_text(outcome) or _json_text(outcome.unkept),
        "keep": float(keep),
        "put_at": outcome.job.enqueued_at,
        "channel": results_channel(queue.name),
    }
    await s.execute(s.sql.tasks.keep_result, s.sql.tasks.keep_result.bind(values))


async def _put_next(engine: Engine, queue: QueueSettings, s: Session, outcome: Outcome) -> None:
    """Put the next of a chain; if one of it fails for good, the rest stays with its dead letter."""
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
    # Of a chain in a batch only the last, or the one that failed, counts.
    return outcome.kind == "done" and bool(outcome.job.headers.get("then"))
