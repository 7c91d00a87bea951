"""``pqcore status`` and ``pqcore cancel``: single jobs."""

from __future__ import annotations

import dataclasses
import json

import click

from pqcore.cli.database import Database
from pqcore.cli.errors import Failed
from pqcore.cli.options import json_option, queue_option, with_database
from pqcore.cli.output import described, emit, shown, write
from pqcore.operations import managing, results


@click.command()
@click.argument("job_id", type=int)
@queue_option
@json_option
@with_database
def status(database: Database, job_id: int, queue: str, as_json: bool) -> None:
    """Show where a job is, and what is known of it."""
    info = database.call(results.inspect, database.queue(queue), job_id)
    if as_json:
        emit({"id": job_id, "queue": queue, **dataclasses.asdict(info)})
        return
    write(f"job {job_id} of {queue!r}: {info.state}")
    facts = {
        "put": shown(info.enqueued_at),
        "not before": shown(info.schedule_at),
        "wanted by": shown(info.expected_at),
        "taken": f"{info.attempts} times, failed {info.failures}" if info.attempts else "",
        "progress": "" if info.progress is None else json.dumps(info.progress),
        "last error": described(info.error),
    }
    for name, value in facts.items():
        if value:
            write(f"  {name + ':':<12}{value}")


@click.command()
@click.argument("job_id", type=int)
@queue_option
@click.option("--running", is_flag=True, help="If it is being worked on, ask its worker to stop it.")
@json_option
@with_database
def cancel(database: Database, job_id: int, queue: str, running: bool, as_json: bool) -> None:
    """Delete a job that waits; with --running, stop one that runs."""
    settings = database.queue(queue)

    outcome = "none"
    if database.call(managing.cancel, settings, job_id, running=False):
        outcome = "deleted"
    elif running and database.call(managing.cancel, settings, job_id, running=True):
        outcome = "asked"
    if as_json:
        emit({"id": job_id, "queue": queue, "outcome": outcome})
    elif outcome == "deleted":
        write(f"job {job_id} of {queue!r} is deleted")
    elif outcome == "asked":
        write(f"job {job_id} of {queue!r} runs, and is asked to stop")
    if outcome == "none":
        hint = "" if running else "; --running stops one that runs"
        raise Failed(f"job {job_id} of {queue!r} does not wait{' or run' if running else ''}{hint}")


COMMANDS = (status, cancel)
