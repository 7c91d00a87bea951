"""The command ``pqcore workers``, which lists the running workers."""

from __future__ import annotations

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.options import json_option, with_database
from pqcore.cli.output import emit, table, write
from pqcore.operations.worker_registry import list_workers

_SHOWN = 5
"""The largest number of a worker's tasks in a table; ``--json`` shows all."""


@click.command()
@click.option("--queue", metavar="NAME", help="List only workers of this queue.")
@json_option
@with_database
def workers(database: Database, queue: str | None, as_json: bool) -> None:
    """List the running workers.

    The list also has workers that ran within the last hour and did not stop in order.
    """
    found = database.call(list_workers, None if queue is None else database.queue(queue))
    if as_json:
        for worker in found:
            emit(json_views.worker(worker))
    elif found:
        columns = ("worker", "host", ">pid", "alive", "queues", "tasks", ">concurrency", "version", "started", "seen")
        table(
            columns,
            [
                (
                    worker.id,
                    worker.host,
                    worker.pid,
                    "yes" if worker.alive else "no",
                    ", ".join(worker.queues),
                    _first(worker.tasks),
                    worker.concurrency,
                    worker.version,
                    worker.started_at,
                    worker.seen_at,
                )
                for worker in found
            ],
        )
    else:
        write(f"no worker {'' if queue is None else f'of {queue!r} '}is listed in table {database.table}")


def _first(tasks: tuple[str, ...]) -> str:
    more = f", and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
    return ", ".join(tasks[:_SHOWN]) + more


COMMANDS = (workers,)
