"""The command ``pqcore reencode``: shows how data is encoded and under which keys, and re-encodes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import duration, import_option, json_option, with_database
from pqcore.cli.output import emit, table, write
from pqcore.operations import reencode as reencoding
from pqcore.operations.encodings import Encoding, count_all
from pqcore.settings import REENCODE_STEP, REENCODE_WAIT


@click.command()
@click.option(
    "--queue",
    "queues",
    metavar="NAME",
    multiple=True,
    help="A queue and its serializer, such as cards/json+fernet; repeatable.",
)
@click.option(
    "--accept", metavar="NAME", multiple=True, help="Another serializer whose data the queues may read; repeatable."
)
@import_option
@click.option("--count", "only_count", is_flag=True, help="Count the data by serializer and key, and change nothing.")
@click.option(
    "--step",
    metavar="N",
    type=click.IntRange(1, reencoding.MOST_STEP),
    default=REENCODE_STEP,
    show_default=True,
    help="Write at most N rows per transaction.",
)
@click.option("--all", "every", is_flag=True, help="Also re-encode data that already has its queue's encoding.")
@click.option(
    "--wait",
    metavar="TIME",
    type=duration,
    default=REENCODE_WAIT,
    show_default=True,
    help="How long to wait for rows that other transactions or leases hold.",
)
@json_option
@with_database
def reencode(
    database: Database,
    queues: Sequence[str],
    accept: Sequence[str],
    modules: Sequence[str],
    only_count: bool,
    step: int,
    every: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Re-encode data, after a key or a serializer has changed.

    The command covers jobs, chains, batches, dead letters, the archive and results.
    """
    from pqcore.cli.targets import import_modules  # imported late, because this imports pqcore.tasks

    import_modules(modules)
    if only_count:
        _show(database.call(count_all), as_json=as_json)
        return
    if not queues:
        raise click.UsageError("no queue is named: give --queue, as in --queue cards/json+fernet, or --count")
    opened = [database.queue(name, accept=tuple(accept)) for name in queues]
    done = database.call(reencoding.reencode, opened, step=step, every=every, wait=wait)
    if as_json:
        emit(asdict(done))
    else:
        write(f"{done.rewritten} rows were written")
        _show(done.after, as_json=False)
        for error in done.errors:
            write(f"left: {error}")
    if not done.complete:
        left = sum(one.number for one in done.left)
        raise CommandFailed(
            f"{left} stored values are not encoded as their queue writes them, or have an old key and belong to a queue"
            f" that was not named ({done.in_use} rows are in use, {done.failed} values cannot be read or encoded): run"
            " the command again after the jobs in use have ended"
        )


def _show(found: Sequence[Encoding], *, as_json: bool) -> None:
    if as_json:
        for one in found:
            emit(asdict(one))
        return
    if not found:
        write("the table has no data")
        return
    rows: list[tuple[Any, ...]] = [(one.queue, one.place, one.serializer, one.key, one.number) for one in found]
    table(("queue", "place", "serializer", "key", ">number"), rows)


COMMANDS = (reencode,)
