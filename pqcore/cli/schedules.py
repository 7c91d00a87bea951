"""The commands ``pqcore schedule``: periodic tasks as rows."""

from __future__ import annotations

import json
from typing import Any

import click

from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import json_option, queue_option, with_database
from pqcore.cli.output import emit, table, write
from pqcore.errors import ScheduleNotFound
from pqcore.operations import schedules
from pqcore.operations.schedules import Schedule
from pqcore.settings import QueueSettings
from pqcore.tasks.schedules import new_schedule


@click.group()
def schedule() -> None:
    """Periodic tasks that are made at run time."""


def _facts(one: Schedule) -> dict[str, Any]:
    """Return the fields of a schedule, for the JSON output."""
    return {**vars(one), "args": None if one.args is None else list(one.args), "paused": one.paused}


@schedule.command("list")
@click.option("--queue", metavar="NAME", help="The queue; without it, all queues.")
@json_option
@with_database
def list_(database: Database, queue: str | None, as_json: bool) -> None:
    """List schedules by name."""
    found = database.call(schedules.list_schedules, None if queue is None else database.queue(queue))
    if as_json:
        for one in found:
            emit(_facts(one))
        return
    if not found:
        write("no schedules")
        return
    rows = [
        (one.queue, one.name, one.task, one.cron, one.tz, one.missed, "paused" if one.paused else "") for one in found
    ]
    table(["queue", "name", "task", "cron", "time zone", "missed", "state"], rows)


def _arguments(ctx: click.Context, param: click.Parameter, text: str) -> Any:
    """Read the arguments of a task, as JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, (list, dict)):
        raise click.BadParameter(f"{text!r} is not a JSON list or object: write one, as in '[1, \"two\"]'")
    return value


@schedule.command()
@click.argument("name")
@click.argument("task", metavar="PATH")
@click.argument("cron")
@click.argument("arguments", metavar="[ARGUMENTS]", default="[]", callback=_arguments)
@queue_option
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="The time zone of the expression.")
@click.option(
    "--missed",
    type=click.Choice(["latest", "all", "skip"]),
    default="latest",
    show_default=True,
    help="If ticks passed while no worker ran: put jobs for the latest tick, for all ticks, or for none (skip).",
)
@click.option("--priority", metavar="N", type=int, default=0, help="The priority of the jobs.")
@json_option
@with_database
def add(
    database: Database,
    name: str,
    task: str,
    cron: str,
    arguments: Any,
    queue: str,
    tz: str,
    missed: Any,
    priority: int,
    as_json: bool,
) -> None:
    """Make a schedule, or replace the schedule NAME.

    PATH is the name of the task, CRON the expression in quotes. ARGUMENTS are a JSON list, or a JSON object of keyword
    arguments.
    """
    settings = database.queue(queue)
    args, kwargs = (arguments, {}) if isinstance(arguments, list) else ((), arguments)
    options = {"priority": priority} if priority else {}
    new = new_schedule(settings, name, task, cron, args, kwargs, tz, missed, options)
    made = database.call(schedules.set_schedule, settings, new)
    if as_json:
        emit(_facts(made))
    else:
        write(f"schedule {name!r} of {settings.name!r} puts {task} at {cron} ({tz})")


def _missing(settings: QueueSettings, name: str) -> CommandFailed:
    listed = "pqcore schedule list shows the schedules of all queues"
    return CommandFailed(f"queue {settings.name!r} has no schedule {name!r}; {listed}")


def _found(database: Database, operation: Any, settings: QueueSettings, name: str) -> Any:
    """Run an operation on a schedule that should exist.

    Raises:
        CommandFailed: The queue has no such schedule.
    """
    try:
        return database.call(operation, settings, name)
    except ScheduleNotFound as exc:
        raise _missing(settings, name) from exc


def _change(database: Database, change: Any, name: str, queue: str, done: str, *, as_json: bool) -> None:
    settings = database.queue(queue)
    if _found(database, change, settings, name) is False:
        raise _missing(settings, name)
    if as_json:
        emit({"queue": settings.name, "name": name, "done": done})
    else:
        write(f"schedule {name!r} of {settings.name!r} is {done}")


@schedule.command()
@click.argument("name")
@queue_option
@json_option
@with_database
def remove(database: Database, name: str, queue: str, as_json: bool) -> None:
    """Remove a schedule, but keep the jobs that it has already put."""
    _change(database, schedules.remove_schedule, name, queue, "removed", as_json=as_json)


@schedule.command()
@click.argument("name")
@queue_option
@json_option
@with_database
def pause(database: Database, name: str, queue: str, as_json: bool) -> None:
    """Pause a schedule: its ticks put no jobs."""
    _change(database, schedules.pause_schedule, name, queue, "paused", as_json=as_json)


@schedule.command()
@click.argument("name")
@queue_option
@json_option
@with_database
def resume(database: Database, name: str, queue: str, as_json: bool) -> None:
    """Resume a schedule: its ticks put jobs again, from now on."""
    _change(database, schedules.resume_schedule, name, queue, "resumed", as_json=as_json)


@schedule.command()
@click.argument("name")
@queue_option
@json_option
@with_database
def run(database: Database, name: str, queue: str, as_json: bool) -> None:
    """Put the job of a schedule now."""
    settings = database.queue(queue)
    job_id, _ = _found(database, schedules.trigger, settings, name)
    if as_json:
        emit({"queue": settings.name, "name": name, "id": job_id})
    else:
        write(f"put job {job_id}")


COMMANDS = (schedule,)
