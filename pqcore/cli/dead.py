"""The commands ``pqcore dead``: dead letters."""

from __future__ import annotations

import json

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import (
    IdCommand,
    any_queue_option,
    chosen_queue_option,
    confirm,
    duration,
    job_id_type,
    json_option,
    with_database,
    yes_option,
)
from pqcore.cli.output import (
    LONGEST_MESSAGE,
    described,
    emit,
    json_text,
    printable,
    shown,
    table,
    write,
    write_facts,
)
from pqcore.dead_letters import DeadLetter
from pqcore.operations import dead_letters
from pqcore.operations.list_jobs import count_dead_by_queue
from pqcore.plurals import counted, which_of
from pqcore.settings import QueueSettings


@click.group()
def dead() -> None:
    """Jobs that failed for good."""


@dead.command("list")
@click.option("--queue", metavar="NAME", help="The queue; by default, all queues that have dead letters.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="List at most N dead letters.",
)
@json_option
@with_database
def list_(database: Database, queue: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the latest first."""
    numbers: dict[str, int | None] = {queue: None} if queue is not None else dict(database.call(count_dead_by_queue))
    found: list[tuple[str, DeadLetter]] = []
    for name in numbers:
        settings = database.queue(name)
        found += [(name, DeadLetter(settings, row)) for row in database.call(dead_letters.list_latest, settings, limit)]
    if queue is None:
        found = sorted(found, key=lambda one: one[1].died_at, reverse=True)[:limit]
    if as_json:
        for name, letter in found:
            emit(json_views.letter(letter, name))
        return
    if not found:
        write("no dead letters" if queue is None else f"no dead letters in {queue!r}{database.meant(queue)}")
        return
    rows = [
        (
            one.id,
            *(() if queue is not None else (name,)),
            one.died_at,
            one.reason,
            one.attempts,
            json_views.task(one),
            described(one.error)[:LONGEST_MESSAGE],
        )
        for name, one in found
    ]
    heads = [">id", *(() if queue is not None else ("queue",)), "died at (UTC)", "reason", ">attempts", "task", "error"]
    table(heads, rows)
    if len(found) == limit:
        counted = [
            database.call(dead_letters.count, database.queue(name)) if number is None else number
            for name, number in numbers.items()
        ]
        if sum(counted) > limit:
            write(f"{limit} of {sum(counted)} dead letters are listed; --limit N lists more")


@dead.command(cls=IdCommand)
@click.argument("job_id", type=job_id_type, metavar="ID")
@any_queue_option
@json_option
@with_database
def show(database: Database, job_id: int, queue: str | None, as_json: bool) -> None:
    """Show a dead letter: its data, and the last traceback."""
    settings = database.queue_of(job_id, queue)
    queue = settings.name
    letter = DeadLetter(settings, database.call(dead_letters.find, settings, job_id))
    if as_json:
        emit(json_views.whole_letter(letter, queue))
        return
    write(f"job {letter.id} of {queue!r}: {letter.reason}")
    facts = {
        "task": json_views.task(letter),
        "died": shown(letter.died_at),
        "put": shown(letter.enqueued_at),
        "not before": shown(letter.schedule_at),
        "wanted by": shown(letter.expected_at),
        "attempts": f"{letter.attempts}, failed {letter.failures}",
        "headers": json.dumps(letter.headers, ensure_ascii=False) if letter.headers else "",
        "data": json_text(letter.raw) if isinstance(letter.raw, str) else f"{letter.size} bytes of {letter.serializer}",
        "error": described(letter.error),
    }
    write_facts(facts, letter.error)


def _chosen(
    database: Database, ids: tuple[int, ...], everything: bool, queue: str | None, options: str = "--all"
) -> list[tuple[QueueSettings, tuple[int, ...] | None]]:
    """Return the queues that the command concerns, each with the ids of its dead letters; None instead means all.

    Raises:
        click.UsageError: The command got neither ids nor "all", or both of them, or "all" without a queue.
        JobNotFound: No job has one of the ids.
    """
    if bool(ids) == everything:
        given = f"IDs are given together with {options}" if ids else "no dead letter is named"
        raise click.UsageError(f"{given}: give IDs, or {options}")
    if everything and queue is None:
        raise click.UsageError(f"{options} needs a queue: give --queue")
    if queue is not None:
        return [(database.queue(queue), tuple(dict.fromkeys(ids)) or None)]
    chosen: dict[str, list[int]] = {}
    for job_id in dict.fromkeys(ids):
        chosen.setdefault(database.queue_of(job_id, None).name, []).append(job_id)
    return [(database.queue(name), tuple(numbers)) for name, numbers in chosen.items()]


_ids = click.argument("job_ids", type=job_id_type, nargs=-1, metavar="[ID]...")


@dead.command(cls=IdCommand)
@_ids
@click.option("--all", "everything", is_flag=True, help="Retry all dead letters of the queue.")
@click.option("--reason", type=click.Choice(dead_letters.REASONS), help="Retry all dead letters with this reason.")
@chosen_queue_option
@yes_option
@json_option
@with_database
def retry(
    database: Database,
    job_ids: tuple[int, ...],
    everything: bool,
    reason: str | None,
    queue: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Run dead letters again, with the same ids.

    The jobs are due immediately, and their failures are counted from zero.
    """
    for settings, chosen in _chosen(database, job_ids, everything or reason is not None, queue, "--all or --reason"):
        if chosen is None:
            noun = "dead letter" if reason is None else f"{reason} dead letter"
            number = database.call(dead_letters.count, settings, reason)
            confirm(f"Retry all {counted(number, noun)} of {printable(settings.name)!r}?", yes=yes)
        number = database.call(dead_letters.revive, settings, chosen, reason)
        _done("retried", number, chosen, settings.name, as_json)


@dead.command(cls=IdCommand)
@_ids
@click.option("--all", "everything", is_flag=True, help="Delete all dead letters of the queue.")
@click.option(
    "--older-than",
    metavar="TIME",
    type=duration,
    help="Only dead letters that are at least this old, as in 14d.",
)
@chosen_queue_option
@yes_option
@json_option
@with_database
def purge(
    database: Database,
    job_ids: tuple[int, ...],
    everything: bool,
    older_than: float | None,
    queue: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete dead letters for good."""
    for settings, chosen in _chosen(database, job_ids, everything, queue):
        which = (
            f"all {counted(database.call(dead_letters.count, settings), 'dead letter')}"
            if chosen is None
            else counted(len(chosen), "dead letter")
        )
        age = "" if older_than is None else f" older than {older_than:g} seconds"
        if older_than is not None and chosen is None:
            which = "all dead letters"
        confirm(f"Delete {which} of {printable(settings.name)!r}{age} for good?", yes=yes)
        number = database.call(dead_letters.purge, settings, chosen, older_than or 0)
        _done("purged", number, None if older_than is not None else chosen, settings.name, as_json)


def _done(verb: str, number: int, chosen: tuple[int, ...] | None, queue: str, as_json: bool) -> None:
    if as_json:
        emit({"queue": queue, verb: number})
    else:
        write(f"{verb} {number}")
    if chosen is not None and number < len(chosen):
        raise CommandFailed(
            f"{which_of(len(chosen) - number, len(chosen), 'job')} not among the dead letters of {queue!r}"
        )


COMMANDS = (dead,)
