"""The commands ``pqcore put``, ``get``, ``peek``, ``list``, ``purge`` and ``move``: the jobs of a queue."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed, UsageError
from pqcore.cli.options import (
    confirm,
    duration,
    job_id_type,
    json_option,
    queue_option,
    time_option,
    with_database,
    yes_option,
)
from pqcore.cli.output import LONGEST_MESSAGE, described, emit, printable, table, unencodable, write
from pqcore.db.engine import Engine
from pqcore.errors import DuplicateJob, SerializationError
from pqcore.job import BaseJob
from pqcore.operations import admin, fetch, list_jobs, put_many
from pqcore.operations.move import archive as archive_jobs
from pqcore.operations.move import move as move_jobs
from pqcore.operations.put import put as put_job
from pqcore.plurals import which_of
from pqcore.put_options import Dedup, given
from pqcore.settings import QueueSettings


def _pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            msg = f"{text!r}: write a name and a value, as in 'name=value'"
            raise click.BadParameter(msg)
        found[name] = value
    return found


def _numbers(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in _pairs(ctx, param, texts).items():
        if not value.isdecimal() or not int(value):
            msg = f"{name}={value}: write a number of jobs, as in 'reports=3'"
            raise click.BadParameter(msg)
        found[name] = int(value)
    return found


def _lines(stream: Iterator[str]) -> Iterator[Any]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield json_views.read(line, f"line {number}")


def _input() -> Any:
    """Return the standard input as a stream of text.

    Raises:
        UsageError: The standard input is a terminal, or closed.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no data: give it as an argument, as in '{\"n\": 1}', or on standard input")
    return sys.stdin


@click.command()
@click.argument("data", required=False)
@queue_option
@click.option("--lines", is_flag=True, help="Put one job for each line of standard input, all in one transaction.")
@time_option("--schedule-at", help="Run the job no earlier than: a time from now, such as 5m, or an ISO 8601 time.")
@time_option("--expected-at", help="The time by which the job is wanted: jobs with an earlier time are taken first.")
@click.option("--dedup", metavar="KEY", help="A key that only one unfinished job can have.")
@click.option("--group", metavar="NAME", help="The group; its jobs run one at a time, in order.")
@click.option(
    "--limit", "limits", metavar="NAME=N", multiple=True, callback=_numbers, help="Limit NAME to N concurrent jobs."
)
@click.option("--header", "headers", metavar="NAME=TEXT", multiple=True, callback=_pairs, help="A header of the job.")
@json_option
@with_database
def put(
    database: Database,
    /,
    data: str | None,
    queue: str,
    lines: bool,
    schedule_at: Any,
    expected_at: Any,
    dedup: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Put a job with JSON data.

    Without DATA, or with -, the command reads the data from standard input.
    """
    settings = database.queue(queue)
    try:
        if lines:
            if data not in (None, "-"):
                raise click.UsageError("--lines reads standard input: give no DATA")
            if dedup is not None:
                raise click.UsageError("--dedup is for a single job: leave out --lines")
            items = list(_lines(_input()))
            if not items:
                raise UsageError("standard input has no lines: nothing was put")
            more = given(**options)
            ids = database.call(put_many.put_many, settings, items, schedule_at, expected_at, None, more)
        else:
            text = _input().read() if data in (None, "-") else data
            if not text.strip():
                raise UsageError("the data is empty: give JSON, as in '{\"n\": 1}'")
            value = json_views.read(text, "the data")
            key = None if dedup is None else Dedup(dedup, on_conflict="error")
            more = given(dedup=key, **options)
            ids = [database.call(put_job, settings, value, schedule_at, expected_at, None, more)]
    except UnicodeDecodeError as exc:
        raise UsageError(f"standard input is not text: {exc}") from None
    except SerializationError as exc:
        raise UsageError(str(exc)) from exc
    except DuplicateJob as exc:
        if as_json:
            emit({"id": exc.job_id, "queue": queue, "put": False})
        else:
            write(str(exc.job_id))
            click.echo(str(exc), err=True)
        return
    for job_id in ids:
        if as_json:
            emit({"id": job_id, "queue": queue})
        else:
            write(str(job_id))


def _on_a_line(raw: str) -> str:
    """Return JSON text on one line; write the characters that stdout cannot show as JSON escapes."""
    missing = unencodable(raw)
    return "".join(
        " "
        if letter in "\n\r\t"
        else letter
        if letter.isprintable() and letter not in missing
        else json.dumps(letter)[1:-1]
        for letter in raw
    )


def _show(job: BaseJob, queue: str, *, as_json: bool) -> None:
    if as_json:
        emit(json_views.taken(job, queue))
    elif isinstance(job.raw, str):
        write(_on_a_line(job.raw))
    else:
        write(base64.b64encode(job.raw).decode())


async def _take(
    engine: Engine, settings: QueueSettings, n: int, wait: float, deliver: Callable[[BaseJob], None]
) -> int:
    """Take jobs in a transaction, and commit it only after the jobs are written; if writing fails, the jobs return."""
    await engine.enter({})
    done = False
    try:
        rows = await fetch.get(engine, settings, n, block=wait > 0, timeout=wait)
        for row in rows:
            deliver(BaseJob(settings, row))
        sys.stdout.flush()
        done = True
    finally:
        await engine.leave(failed=not done)
    return len(rows)


_n_option = click.option(
    "-n",
    "--number",
    "n",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Take at most N jobs.",
)


@click.command()
@queue_option
@_n_option
@click.option("--wait", metavar="TIME", type=duration, default=0, help="How long to wait for the first job.")
@click.option(
    "--retention",
    type=click.Choice(["keep", "delete", "archive"]),
    default="keep",
    show_default=True,
    help="Keep, delete or archive the row of each job.",
)
@json_option
@with_database
def get(database: Database, queue: str, n: int, wait: float, retention: str, as_json: bool) -> None:
    """Take due jobs, and write their data to stdout.

    The jobs are completed after their data has been written.
    """
    settings = database.queue(queue)
    settings.retention = retention  # type: ignore[assignment]
    number = database.call(_take, settings, n, wait, lambda job: _show(job, queue, as_json=as_json))
    if not number:
        raise CommandFailed(f"no job of {queue!r} is due{database.meant(queue)}")


@click.command()
@queue_option
@_n_option
@json_option
@with_database
def peek(database: Database, queue: str, n: int, as_json: bool) -> None:
    """Show the next due jobs, without taking them."""
    settings = database.queue(queue)
    rows = database.call(fetch.peek, settings, n)
    for row in rows:
        _show(BaseJob(settings, row), queue, as_json=as_json)
    if not rows:
        raise CommandFailed(f"no job of {queue!r} is due{database.meant(queue)}")


def _until(job: list_jobs.StoredJob) -> Any:
    """Return the time that matters for a job in its state."""
    if job.state in ("done", "dead"):
        return job.finished_at
    if job.state == "leased":
        return job.leased_until
    return job.schedule_at or job.enqueued_at


@click.command("list")
@queue_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*list_jobs.STATES, "all"]),
    help="Only jobs in this state; repeatable.  [default: all unfinished jobs]",
)
@click.option("--task", metavar="PATH", help="Only calls of this function, as in app.tasks.send.")
@click.option(
    "--older-than", metavar="TIME", type=duration, help="Only jobs that were put at least this long ago, as in 1h."
)
@click.option("--failed", is_flag=True, help="Only jobs that have failed at least once.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, list_jobs.MOST),
    default=100,
    show_default=True,
    help="List at most N jobs.",
)
@json_option
@with_database
def list_(
    database: Database,
    queue: str,
    states: Sequence[str],
    task: str | None,
    older_than: float | None,
    failed: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List the jobs of a queue, by state."""
    settings = database.queue(queue)
    wanted = list_jobs.STATES if "all" in states else tuple(states) or list_jobs.UNFINISHED
    found = database.call(
        list_jobs.list_by_state, settings, wanted, limit, task=task, older_than=older_than, failed=failed
    )
    if as_json:
        for job in found:
            emit(json_views.stored(job))
        return
    if not found:
        write(f"no such jobs in {queue!r}{database.meant(queue)}")
        return
    rows = [
        (
            job.id,
            job.state,
            _until(job),
            job.attempts,
            job.failures,
            job.task,
            job.parked_on or described(job.error)[:LONGEST_MESSAGE],
        )
        for job in found
    ]
    table((">id", "state", "due, until, at (UTC)", ">attempts", ">failures", "task", "waits for, or error"), rows)
    if len(found) == limit:
        write(f"only the first {limit} jobs are listed; --limit N lists more")


@click.command()
@queue_option
@click.option(
    "--older-than",
    metavar="TIME",
    type=duration,
    required=True,
    help="Only rows that finished at least this long ago, as in 14d; 0 deletes all finished rows.",
)
@yes_option
@json_option
@with_database
def purge(database: Database, queue: str, older_than: float, yes: bool, as_json: bool) -> None:
    """Delete finished rows from the table and the archive."""
    settings = database.queue(queue)
    which = f"that were finished over {older_than:g} seconds ago" if older_than else "that are finished"
    confirm(f"Delete all rows of {printable(queue)!r} {which}, for good?", yes=yes)
    number = database.call(admin.purge, settings, older_than)
    if as_json:
        emit({"queue": queue, "purged": number})
    else:
        write(f"purged {number}")


@click.command()
@click.argument("job_ids", type=job_id_type, nargs=-1, metavar="[ID]...")
@queue_option
@click.option("--to", "target", metavar="NAME", help="The queue to move waiting jobs to.")
@click.option("--all", "everything", is_flag=True, help="Move all ready, scheduled and parked jobs.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="With --all: move at most N jobs, the earliest due first."
)
@click.option("--to-archive", is_flag=True, help="Move finished rows to the archive table, not jobs to another queue.")
@click.option(
    "--older-than",
    metavar="TIME",
    type=duration,
    help="With --to-archive: only rows that finished at least this long ago.",
)
@yes_option
@json_option
@with_database
def move(
    database: Database,
    job_ids: tuple[int, ...],
    queue: str,
    target: str | None,
    everything: bool,
    limit: int | None,
    to_archive: bool,
    older_than: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Move jobs to another queue, or finished rows to the archive."""
    settings = database.queue(queue)
    if to_archive:
        if target is not None or job_ids or everything or limit is not None:
            raise click.UsageError("--to-archive moves finished rows: leave out IDs, --to, --all and --limit")
        number = database.call(archive_jobs, settings, older_than or 0)
        _moved({"queue": queue, "archived": number}, f"archived {number}", as_json=as_json)
        return
    if target is None:
        raise click.UsageError("no target is given: give --to NAME, or --to-archive")
    if older_than is not None:
        raise click.UsageError("--older-than is only for --to-archive: leave out --older-than")
    if bool(job_ids) == everything:
        given = "IDs are given together with --all" if job_ids else "no job is named"
        raise click.UsageError(f"{given}: give IDs, or --all")
    if job_ids and limit is not None:
        raise click.UsageError("--limit is only for --all, but IDs are given: leave out --limit")
    other = database.queue(target)
    chosen = tuple(dict.fromkeys(job_ids)) or None
    if chosen is None:
        how_many = "all" if limit is None else f"up to {limit}"
        confirm(f"Move {how_many} waiting jobs of {printable(queue)!r} to {printable(target)!r}?", yes=yes)
    number = database.call(move_jobs, settings, other, chosen, limit)
    _moved({"queue": queue, "to": target, "moved": number}, f"moved {number}", as_json=as_json)
    if chosen is not None and number < len(chosen):
        msg = f"{which_of(len(chosen) - number, len(chosen), 'job')} not waiting in {queue!r}"
        raise CommandFailed(f"{msg}, or has a dedup key that another job of {target!r} has")


def _moved(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        emit(facts)
    else:
        write(text)


COMMANDS = (put, get, peek, list_, purge, move)
