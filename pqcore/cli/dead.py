"""``pqcore dead``: dead letters."""

from __future__ import annotations

import json

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import JOB_ID, confirm, duration, json_option, queue_option, with_database, yes_option
from pqcore.cli.output import (
    LONGEST_MESSAGE,
    described,
    emit,
    printable,
    shown,
    table,
    write,
    write_facts,
)
from pqcore.dead_letters import DeadLetter
from pqcore.operations import dead_letters


@click.group()
def dead() -> None:
    """Jobs that failed for good."""


@dead.command("list")
@queue_option
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), default=100, show_default=True, help="How many, at most."
)
@json_option
@with_database
def list_(database: Database, queue: str, limit: int, as_json: bool) -> None:
    """List dead letters, the latest first."""
    settings = database.queue(queue)
    found = [DeadLetter(settings, row) for row in database.call(dead_letters.list_latest, settings, limit)]
    if as_json:
        for letter in found:
            emit(json_views.letter(letter, queue))
        return
    total = len(found) if len(found) < limit else database.call(dead_letters.count, settings)
    if not found:
        write(f"no dead letters in {queue!r}")
        return
    rows = [
        (one.id, one.died_at, one.reason, one.attempts, json_views.task(one), described(one.error)[:LONGEST_MESSAGE])
        for one in found
    ]
    table((">id", "died at (UTC)", "reason", ">attempts", "task", "error"), rows)
    if total > len(found):
        write(f"{len(found)} of {total}; --limit shows more")


@dead.command()
@click.argument("job_id", type=JOB_ID, metavar="ID")
@queue_option
@json_option
@with_database
def show(database: Database, job_id: int, queue: str, as_json: bool) -> None:
    """Show a dead letter: its data, and the last traceback."""
    settings = database.queue(queue)
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
        "headers": json.dumps(letter.headers) if letter.headers else "",
        "data": letter.raw if isinstance(letter.raw, str) else f"{letter.size} bytes of {letter.serializer}",
        "error": described(letter.error),
    }
    write_facts(facts, letter.error)


def _chosen(ids: tuple[int, ...], everything: bool) -> tuple[int, ...] | None:
    """Which are meant; None for all.

    Raises:
        click.UsageError: Neither is said, or both.
    """
    if bool(ids) == everything:
        raise click.UsageError("give IDs, or --all")
    return tuple(dict.fromkeys(ids)) or None


_ids = click.argument("job_ids", type=JOB_ID, nargs=-1, metavar="[ID]...")


@dead.command()
@_ids
@click.option("--all", "everything", is_flag=True, help="All of the queue's.")
@click.option(
    "--reason", type=click.Choice(dead_letters.REASONS), help="All that died for this reason, as in unreadable."
)
@queue_option
@yes_option
@json_option
@with_database
def retry(
    database: Database,
    job_ids: tuple[int, ...],
    everything: bool,
    reason: str | None,
    queue: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Make jobs of dead letters again: same id, due immediately, with a clean record."""
    chosen = _chosen(job_ids, everything or reason is not None)
    settings = database.queue(queue)
    if chosen is None:
        which = "" if reason is None else f"{reason} "
        number = database.call(dead_letters.count, settings, reason)
        confirm(f"Retry all {number} {which}dead letters of {printable(queue)!r}?", yes=yes)
    number = database.call(dead_letters.revive, settings, chosen, reason)
    _done("retried", number, chosen, queue, as_json)


@dead.command()
@_ids
@click.option("--all", "everything", is_flag=True, help="All of the queue's.")
@click.option("--older-than", metavar="TIME", type=duration, help="Only those that died so long ago, as in 14d.")
@queue_option
@yes_option
@json_option
@with_database
def purge(
    database: Database,
    job_ids: tuple[int, ...],
    everything: bool,
    older_than: float | None,
    queue: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete dead letters for good."""
    chosen = _chosen(job_ids, everything)
    settings = database.queue(queue)
    which = f"all {database.call(dead_letters.count, settings)}" if chosen is None else str(len(chosen))
    age = "" if older_than is None else f" older than {older_than:g} seconds"
    if older_than is not None and chosen is None:
        which = "all"
    confirm(f"Delete {which} dead letters of {printable(queue)!r}{age} for good?", yes=yes)
    number = database.call(dead_letters.purge, settings, chosen, older_than or 0)
    _done("purged", number, None if older_than is not None else chosen, queue, as_json)


def _done(verb: str, number: int, chosen: tuple[int, ...] | None, queue: str, as_json: bool) -> None:
    if as_json:
        emit({"queue": queue, verb: number})
    else:
        write(f"{verb} {number}")
    if chosen is not None and number < len(chosen):
        raise CommandFailed(f"{len(chosen) - number} of the {len(chosen)} named are no dead letters of {queue!r}")


COMMANDS = (dead,)
