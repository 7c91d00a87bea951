"""The causes for which a job does not run, in words: a description of each, and an action that removes it."""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.operations.explanation import SHOWN, Cause, named, shown_time
from pqcore.times import UtcDatetime

# Jobs that are missing or finished


def not_found(job_id: int, queue: str | None) -> Cause:
    """Return the `Cause` for a job for which no row is found."""
    where = "The table" if queue is None else f"Queue {queue!r}"
    return Cause(
        "unknown_id",
        f"{where} has no job {job_id}: it was never put, its put is not committed, or it was finished and deleted.",
        "Commit the transaction that puts the job, or put the job again.",
    )


def of_another_queue(job_id: int, queue: str, named_queue: str) -> Cause:
    """Return the `Cause` for a job that belongs to another queue than the caller named."""
    return Cause(
        "other_queue",
        f"Job {job_id} is of queue {queue!r}, not of {named_queue!r}.",
        f"Run a worker of queue {queue!r}, or move the job: pq[{queue!r}].move({named_queue!r}, [{job_id}]).",
    )


def ended(job_id: int, state: str) -> Cause:
    """Return the `Cause` for a job that ended, and whose result was kept, but not its row."""
    said = {
        "done": "ended well",
        "failed": "failed for good",
        "cancelled": "was cancelled",
        "discarded": "was discarded by its function or its retry policy",
    }
    return Cause(
        f"ended_{state}",
        f"Job {job_id} {said.get(state, 'has ended')}, and only its result is kept.",
        "Put the job again.",
    )


def done(job_id: int, place: str) -> Cause:
    """Return the `Cause` for a job that is done."""
    archived = place == "archive"
    return Cause(
        "archived" if archived else "done",
        f"Job {job_id} is done{', and in the archive' if archived else ''}.",
        f"To run it once more: retry({job_id}).",
    )


_DIED = {
    "failed": ("failed for good: it had no retries left", "Fix what failed"),
    "crashed": ("was lost too often, because its worker died", "Fix what kills the worker"),
    "expired": ("was not started before its deadline", "If it is still wanted"),
    "invalid": (
        "has data that are not a call of a function",
        "Fix the data with update() after the retry, or fix the worker",
    ),
    "unreadable": ("could not be read: no worker had its serializer or key", "Give the workers the serializer or key"),
    "parent": ("waited for a job that failed", "Fix what failed, and retry that job"),
    "unknown": ("names a function that no worker knew", "Run a worker that declares the function"),
}


def _in_brackets(error: dict[str, str]) -> str:
    """Return an error in brackets, for the text of a cause; only its type if its message was not kept."""
    said = ": ".join(filter(None, (error.get("type", "").removeprefix("builtins."), error.get("message"))))
    return f" ({said})" if said else ""


def dead(job_id: int, reason: str | None, error: dict[str, str]) -> Cause:
    """Return the `Cause` for a dead letter."""
    text, first = _DIED.get(reason or "", (f"is a dead letter with the reason {reason!r}", "Fix that"))
    said = _in_brackets(error)
    code = f"dead_{reason}" if reason in _DIED else "dead"
    return Cause(code, f"Job {job_id} {text}{said}.", f"{first}, then call retry({job_id}).")


# Jobs that a consumer holds


def locked(pid: int | None, seconds: float | None, application: str | None, *, own: bool) -> Cause:
    """Return the `Cause` for a job whose row is locked or changed by an open transaction."""
    if own:
        return Cause(
            "locked_here",
            "This transaction has taken or changed the job, and is not committed.",
            "Commit it, or roll it back.",
        )
    age = "" if seconds is None else f", open for {seconds:.0f} s"
    who = "a prepared transaction" if pid is None else f"the transaction of server process {pid}"
    name = f" ({application})" if application else ""
    action = "COMMIT PREPARED or ROLLBACK PREPARED it" if pid is None else "Commit it or roll it back"
    end = "" if pid is None else f", or end it: SELECT pg_terminate_backend({pid})"
    return Cause("locked", f"Its row is locked or changed by {who}{name}{age}.", f"{action}{end}.")


def running(
    job_id: int,
    until: UtcDatetime,
    *,
    stops: bool,
    workers: tuple[str, ...],
    where: tuple[str, UtcDatetime] | None = None,
) -> Cause:
    """Return the `Cause` for a job under a lease; ``where`` is the worker and the start of the run, if known."""
    if stops:
        return Cause(
            "stopping",
            f"Job {job_id} is running, and was asked to stop; its lease ends at {shown_time(until)}.",
            "Wait until its function ends.",
            workers=workers,
            until=until,
        )
    if not workers:
        return Cause(
            "leased_without_worker",
            f"Job {job_id} is leased until {shown_time(until)}, and no worker of its queue is alive: its worker may"
            " have died, or a consumer without a worker has it.",
            "Wait until the lease expires: then the next worker takes the job.",
            until=until,
        )
    runs = f"runs on {where[0]} since {shown_time(where[1])}" if where else "runs, or waits in a worker for a free slot"
    return Cause(
        "leased",
        f"Job {job_id} {runs}; its lease ends at {shown_time(until)}, if it is not extended.",
        f"Wait until it ends. To stop it: cancel({job_id}, running=True).",
        workers=workers,
        until=until,
    )


# Jobs that are not due


def scheduled(job_id: int, due: UtcDatetime, attempts: int, failures: int, error: dict[str, str]) -> Cause:
    """Return the `Cause` for a job that is not due."""
    when, kind = shown_time(due), error.get("type", "")
    now = f"To make it due now: retry({job_id})."
    if kind == "unknown":
        return Cause(
            "unknown_task",
            f"Its last worker has no such function: {error.get('message', '')}. The next try is at {when}.",
            f"Run a worker that declares the function. {now}",
            until=due,
        )
    if kind == "unreadable":
        return Cause(
            "unreadable",
            f"Its last worker cannot read its data: {error.get('message', '')}. The next try is at {when}.",
            f"Give the workers the serializer or key. {now}",
            until=due,
        )
    if failures:
        said = _in_brackets(error)
        return Cause(
            "retry", f"It failed {_times(failures)}{said}, and is tried again at {when}.", f"Wait. {now}", until=due
        )
    if attempts or error:
        return Cause(
            "put_off", f"A consumer took it, and gave it back: it is due again at {when}.", f"Wait. {now}", until=due
        )
    return Cause("scheduled", f"It is scheduled for {when}.", f"Wait. {now}", until=due)


def waits_for_jobs(job_id: int, parents: Sequence[int], number: int) -> Cause:
    """Return the `Cause` for a job that waits for other jobs.

    Args:
        job_id: The job.
        parents: Some of the jobs that it waits for.
        number: The number of the jobs that it waits for.
    """
    more = f" and {number - len(parents):,} more" if number > len(parents) else ""
    text = f"It waits for {'job' if number == 1 else 'jobs'} {', '.join(map(str, parents))}{more}."
    action = f"Wait, or look at explain({parents[0]}). To make it due now: retry({job_id})."
    return Cause("waits_for_jobs", text, action, jobs=tuple(parents))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def expired(job_id: int, deadline: UtcDatetime) -> Cause:
    """Return the `Cause` for a job whose deadline has passed."""
    return Cause(
        "expired",
        f"Its deadline was {shown_time(deadline)}: the worker that takes the job will turn it into a dead letter.",
        f"Put the job again with a later deadline, and cancel({job_id}).",
    )


# Limits and rates of keys


def limit_full(key: str, places: int, own: int, jobs: Sequence[int], workers: tuple[str, ...], *, ruled: bool) -> Cause:
    """Return the `Cause` for a job whose limit has no free place.

    Args:
        key: The key of the limit.
        places: The number of places of the key.
        own: The number of places that the job was put with.
        jobs: The jobs that hold the places.
        workers: The workers of the queue that are alive.
        ruled: Whether an operator has set the number of places.
    """
    name = key.removeprefix("limit:")
    set_by = " by a rule" if ruled else "" if own == places else f" by the newest put, and this job asks for {own}"
    if places <= 0:
        return Cause(
            "limit_zero",
            f"Limit {name!r} has no places{set_by}.",
            f"Set a number, or remove the rule: set_limit({name!r}, None).",
            key,
        )
    return Cause(
        "limit_full",
        f"Limit {name!r} has {places} place{'' if places == 1 else 's'}{set_by}, held by {named(jobs)}.",
        f"Wait until one of them ends, or set more places: set_limit({name!r}, {places + 1}).",
        key,
        tuple(jobs[:SHOWN]),
        workers,
    )


def limit_reserved(key: str, job: int) -> Cause:
    """Return the `Cause` for a job whose key is reserved for a job under several keys."""
    return Cause(
        "limit_reserved",
        f"{_called(key)} is reserved for job {job}, which needs several limits and has waited for a long time.",
        f"Wait until job {job} has run, or cancel({job}).",
        key,
        (job,),
    )


def rate_of_key(key: str, until: UtcDatetime) -> Cause:
    """Return the `Cause` for a job whose key has used up its rate."""
    return Cause(
        "rate_of_key",
        f"The rate of {_called(key, 'limit')} is used up until {shown_time(until)}.",
        f"Wait, or change the rate: set_rate({key.partition(':')[2]!r}, ...).",
        key,
        until=until,
    )


def key_locked(key: str, pid: int | None, seconds: float | None, application: str | None, *, own: bool) -> Cause:
    """Return the `Cause` for a job that waits because an open transaction has leased another job under the same key."""
    cause = locked(pid, seconds, application, own=own)
    who = "this transaction" if own else cause.text.removeprefix("Its row is locked or changed by ").rstrip(".")
    return Cause(
        "key_locked",
        f"A job of {_called(key, key.partition(':')[0])} was leased in {who}, which is not committed.",
        cause.action,
        key,
    )


def _called(key: str, kind: str | None = None) -> str:
    of, _, name = key.partition(":")
    return f"{(kind or of.capitalize())} {name!r}"


# Groups


def behind_in_group(group: str, head: int, state: str, until: UtcDatetime | None, *, failed: bool) -> Cause:
    """Return the `Cause` for a job that is not yet the next of its group.

    Args:
        group: The group.
        head: The first unfinished job of the group.
        state: The state of that job.
        until: When that job's lease ends, or when that job is due.
        failed: Whether that job waits for a retry.
    """
    text = f"It waits for its turn in group {group!r}: job {head}, which was put before it, "
    key = f"group:{group}"
    when = "" if until is None else f" {shown_time(until)}"
    if state == "leased":
        return Cause(
            "group_running",
            f"{text}runs under a lease until{when}.",
            f"Wait until job {head} ends, or stop it: cancel({head}, running=True).",
            key,
            (head,),
        )
    if state == "scheduled":
        code, why = ("group_retry", "failed, and is tried again at") if failed else ("group_scheduled", "is due at")
        return Cause(
            code,
            f"{text}{why}{when}.",
            f"Wait, or call retry({head}), which makes job {head} due now, or cancel({head}).",
            key,
            (head,),
        )
    return Cause(
        "group_waiting",
        f"{text}waits too.",
        f"Free job {head} (explain({head}) says how), or cancel({head}).",
        key,
        (head,),
    )


# Jobs before it


def behind(jobs: Sequence[int], most: int) -> Cause:
    """Return the `Cause` for a job that has other jobs before it."""
    number = (
        f"{most:,} or more jobs are" if len(jobs) >= most else "1 job is" if len(jobs) == 1 else f"{len(jobs)} jobs are"
    )
    return Cause(
        "behind",
        f"{number} before it, the first of them {named(jobs[:1])}.",
        "Wait, or run more workers.",
        jobs=tuple(jobs[:SHOWN]),
    )


# Rates of queues, and pauses


def rate_of_queue(rate: str, until: UtcDatetime) -> Cause:
    """Return the `Cause` for a job whose queue has used up its rate."""
    return Cause(
        "rate_of_queue",
        f"The rate of its queue, {rate}, is used up until {shown_time(until)}.",
        "Wait, or raise the rate.",
        until=until,
    )


def paused(queue: str, name: str, until: UtcDatetime | None) -> Cause:
    """Return the `Cause` for a job whose queue, task or key is paused.

    Args:
        queue: The name of the queue.
        name: The paused object, as in its rule: ``queue``, or ``task:``, ``limit:`` or ``group:`` and a name.
        until: When the pause ends; None if only `resume` ends it.
    """
    when = "until it is resumed" if until is None else f"until {shown_time(until)}"
    kind, _, what = name.partition(":")
    if kind == "queue":
        return Cause("queue_paused", f"Queue {queue!r} is paused {when}.", "Resume it: resume().", until=until)
    code, key = ("task_paused", None) if kind == "task" else ("key_paused", name)
    text = f"{kind.capitalize()} {what!r} of queue {queue!r} is paused {when}."
    return Cause(code, text, f"Resume it: resume({kind}={what!r}).", key, until=until)


# The table


def no_table(text: str) -> Cause:
    """Return the `Cause` for a job whose table is missing."""
    return Cause("table_missing", f"{text}.", "Make the table: pqcore create, or pq.create().")


def outdated(text: str) -> Cause:
    """Return the `Cause` for a job whose table is older than this pqcore."""
    return Cause("schema_outdated", f"{text}.", "Migrate the table: pqcore migrate, or pq.create().")


def too_new(text: str) -> Cause:
    """Return the `Cause` for a job whose table is newer than this pqcore."""
    return Cause("schema_too_new", f"{text}.", "Upgrade pqcore here, and in the workers.")


def hidden(text: str) -> Cause:
    """Return the `Cause` for a job that row-level security may hide."""
    return Cause(
        "hidden",
        f"{text[:1].upper()}{text[1:]}.",
        "Create a policy for the role, or ask as the owner of the table, or as a role with BYPASSRLS.",
    )


def old_snapshot(seconds: float) -> Cause:
    """Return the note about a transaction that keeps VACUUM from removing dead rows."""
    return Cause(
        "old_snapshot",
        f"A transaction has been open for {seconds:.0f} s: dead rows stay in the table, and slow down the workers.",
        "End the transaction; pqcore doctor names it.",
    )
