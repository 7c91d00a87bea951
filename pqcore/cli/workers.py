"""The commands ``pqcore workers`` and ``pqcore quiet``: the running workers."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import json_option, with_database
from pqcore.cli.output import emit, table, write
from pqcore.operations.worker_registry import list_workers, set_quiet
from pqcore.plurals import which_of

_SHOWN = 5
"""The largest number of a worker's tasks, and of its jobs, in a table; ``--json`` shows all."""


@click.command()
@click.option("--queue", metavar="NAME", help="List only workers of this queue.")
@json_option
@with_database
def workers(database: Database, queue: str | None, as_json: bool) -> None:
    """List the running workers.

    The list also has workers that ran within the last hour and did not shut down cleanly.
    For each worker, the list has the jobs that ran when the worker last renewed its entry.
    """
    found = database.call(list_workers, None if queue is None else database.queue(queue))
    if as_json:
        for worker in found:
            emit(json_views.worker(worker))
    elif found:
        table(
            (
                *("worker", "host", ">pid", "alive", "queues", "tasks", ">concurrency", "runs", "version", "started"),
                "seen",
            ),
            [
                (
                    worker.id,
                    worker.host,
                    worker.pid,
                    ("quiet" if worker.quiet else "yes") if worker.alive else "no",
                    ", ".join(worker.queues),
                    _first(worker.tasks),
                    worker.concurrency,
                    _first([f"{job.id} since {job.since:%H:%M:%S}" for job in worker.running]),
                    worker.version,
                    worker.started_at,
                    worker.seen_at,
                )
                for worker in found
            ],
        )
    else:
        write(f"no worker {'' if queue is None else f'of {queue!r} '}is listed in table {database.table}")


@click.command()
@click.argument("worker_ids", nargs=-1, required=True, metavar="WORKER...")
@click.option("--end", is_flag=True, help="Tell the workers to take jobs again.")
@json_option
@with_database
def quiet(database: Database, worker_ids: tuple[str, ...], end: bool, as_json: bool) -> None:
    """Tell workers to take no more jobs.

    The workers finish their running jobs, and then stay idle. The command
    "pqcore workers" shows the ids of workers. A worker obeys within 10 s.
    """
    missing = 0
    for worker_id in dict.fromkeys(worker_ids):
        listed = database.call(set_quiet, worker_id, quiet=not end)
        missing += not listed
        if as_json:
            emit({"id": worker_id, "quiet": not end, "listed": listed})
        elif listed:
            write(f"worker {worker_id} takes {'jobs again' if end else 'no more jobs'} from its next renewal on")
        else:
            write(f"no worker {worker_id} is listed in table {database.table}")
    if missing:
        raise CommandFailed(f"{which_of(missing, len(set(worker_ids)), 'worker')} not listed; see pqcore workers")


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


COMMANDS = (workers, quiet)
