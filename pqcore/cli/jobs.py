"""The commands ``pqcore status``, ``show``, ``explain``, ``retry`` and ``cancel``: single jobs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import IdCommand, any_queue_option, job_id_type, json_option, with_database
from pqcore.cli.output import described, emit, json_text, shown, table, write, write_facts
from pqcore.errors import JobNotFound
from pqcore.operations import admin, attempts, dependencies, list_jobs, results
from pqcore.operations.attempts import PastAttempt
from pqcore.operations.explain import explain as explain_job
from pqcore.operations.explanation import Cause
from pqcore.operations.retry import retry as retry_job
from pqcore.operations.worker_registry import find_runner
from pqcore.plurals import which_of


@click.command(cls=IdCommand)
@click.argument("job_id", type=job_id_type)
@any_queue_option
@json_option
@with_database
def status(database: Database, job_id: int, queue: str | None, as_json: bool) -> None:
    """Show the state of a job, its attempts and its last error."""
    settings = database.queue_of(job_id, queue)
    info = database.call(results.inspect, settings, job_id)
    if as_json:
        emit({"id": job_id, "queue": settings.name, **dataclasses.asdict(info)})
        return
    write(f"job {job_id} of {settings.name!r}: {info.state}")
    facts = {
        "put": shown(info.enqueued_at),
        "not before": shown(info.schedule_at),
        "wanted by": shown(info.expected_at),
        "attempts": f"{info.attempts}, failed {info.failures}" if info.attempts else "",
        "progress": "" if info.progress is None else json.dumps(info.progress, ensure_ascii=False),
        "last error": described(info.error),
    }
    write_facts(facts, {})


@click.command()
@click.argument("job_id", type=job_id_type)
@any_queue_option
@click.option("--running", is_flag=True, help="If the job runs, ask its worker to stop it.")
@json_option
@with_database
def cancel(database: Database, job_id: int, queue: str | None, running: bool, as_json: bool) -> None:
    """Delete a waiting job; with --running, stop a running one."""
    settings = database.queue_of(job_id, queue)
    queue = settings.name
    outcome = "none"
    if database.call(admin.cancel, settings, job_id, running=False):
        outcome = "deleted"
    elif running and database.call(admin.cancel, settings, job_id, running=True):
        outcome = "asked"
    if as_json:
        emit({"id": job_id, "queue": queue, "outcome": outcome})
    elif outcome == "deleted":
        write(f"job {job_id} of {queue!r} was deleted")
    elif outcome == "asked":
        write(f"job {job_id} of {queue!r} is running, and was asked to stop")
    if outcome == "none":
        state = database.call(results.inspect, settings, job_id).state  # JobNotFound: the job has no row
        told = {
            "leased": "is running: give --running to stop it",
            "dead": "is dead: pqcore dead purge deletes it",
            "done": "is done: there is nothing to cancel",
        }
        raise CommandFailed(f"job {job_id} of {queue!r} {told.get(state, f'is {state}: nothing was cancelled')}")


@click.command(cls=IdCommand)
@click.argument("job_id", type=job_id_type, metavar="ID")
@any_queue_option
@json_option
@with_database
def show(database: Database, job_id: int, queue: str | None, as_json: bool) -> None:
    """Show everything that is stored about a job.

    The output has the data, the state and times, the past attempts, and the last traceback.
    """
    settings = None if queue is None else database.queue(queue)
    job = database.call(list_jobs.get_full_job, job_id, settings)
    past = database.call(attempts.read_attempts, job.queue, job_id)
    found = database.call(find_runner, database.queue(job.queue), job_id) if job.state == "leased" else None
    parents = database.call(dependencies.find_open_parents, job.id) if job.state == "scheduled" else ""
    raw = job.raw
    if as_json:
        attempts_shown = json_views.past_attempts(past, with_tracebacks=True)
        emit({**json_views.whole(job), "runs": json_views.runs(found), "past_attempts": attempts_shown})
        return
    write(f"job {job.id} of {job.queue!r}: {job.state}")
    facts = {
        "task": job.task,
        "put": shown(job.enqueued_at),
        "not before": shown(None if parents else job.schedule_at),
        "wanted by": shown(job.expected_at),
        "leased to": shown(job.leased_until),
        "runs on": "" if found is None else f"{found[0].host}:{found[0].pid} since {shown(found[1].since)}",
        "waits for": job.parked_on or parents,
        "ended": shown(job.finished_at),
        "reason": job.reason,
        "attempts": f"{job.attempts}, failed {job.failures}" if job.attempts else "",
        "group": job.group,
        "dedup key": job.dedup_key,
        "headers": json.dumps(job.headers, ensure_ascii=False) if job.headers else "",
        "data": json_text(raw) if isinstance(raw, str) else f"{len(raw)} bytes of {job.serializer}",
        "last error": described(job.error),
    }
    write_facts(facts, {})
    _write_attempts(past)
    write_facts({}, job.error)


def _write_attempts(past: Sequence[PastAttempt]) -> None:
    """Write the past attempts of a job, if it has any."""
    if past:
        write("\npast attempts:")
        columns = (">attempt", "outcome", "ended", "worker", "error")
        rows = [(each.attempt, each.outcome, each.ended_at, each.worker, described(each.error)) for each in past]
        table(columns, rows)


@click.command(cls=IdCommand)
@click.argument("job_id", type=job_id_type, metavar="ID")
@any_queue_option
@json_option
@with_database
def explain(database: Database, job_id: int, queue: str | None, as_json: bool) -> None:
    """Explain why a job does not run. Say what to do about each cause."""
    found = database.call(explain_job, job_id, None if queue is None else database.queue(queue))
    if as_json:
        emit(json_views.explanation(found))
        return
    of = "" if found.queue is None else f" of {found.queue!r}"
    write(f"job {job_id}{of}: {found.state}")
    if not found.causes:
        write(f"  {found.text}")
    for number, cause in enumerate(found.causes, 1):
        write(f"  {number}. {cause.text}")
        write(_lines(cause))
    for note in found.notes:
        write(f"  note: {note.text}")
        write(_lines(note))
    _write_attempts(found.past_attempts)


def _lines(cause: Cause) -> str:
    """Return the lines below a cause: its remedy, and its code."""
    return f"     {cause.action}  [{cause.code}]"


@click.command(cls=IdCommand)
@click.argument("job_ids", type=job_id_type, nargs=-1, required=True, metavar="ID...")
@any_queue_option
@json_option
@with_database
def retry(database: Database, job_ids: tuple[int, ...], queue: str | None, as_json: bool) -> None:
    """Make dead, done or scheduled jobs due now.

    The jobs keep their ids. Jobs that wait for other jobs no longer wait for them.
    """
    left = 0
    for job_id in dict.fromkeys(job_ids):
        try:
            settings = database.queue_of(job_id, queue)
        except JobNotFound as exc:  # the other jobs are retried
            left += 1
            if as_json:
                emit({"id": job_id, "queue": None, "was": "none", "retried": False})
            else:
                write(str(exc))
            continue
        outcome = database.call(retry_job, settings, job_id)
        left += not outcome.done
        of = f"of {settings.name!r}"
        if as_json:
            emit({"id": job_id, "queue": settings.name, "was": outcome.state, "retried": outcome.done})
        elif outcome.done:
            write(f"job {job_id} {of} was {outcome.state}, and is due now")
        else:
            known = "does not exist" if outcome.state == "none" else f"is {outcome.state}: it was left unchanged"
            write(f"job {job_id} {of} {known}")
    if left:
        raise CommandFailed(f"{which_of(left, len(set(job_ids)), 'job')} unchanged")


COMMANDS = (status, show, explain, retry, cancel)
