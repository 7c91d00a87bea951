"""The database that a command works on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pqcore.cli.errors import remember, remember_none
from pqcore.db.dsn import with_options
from pqcore.operations import list_jobs
from pqcore.runner import BlockingRunner, open_blocking
from pqcore.settings import QueueSettings

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_DSN = "postgresql://"
"""Says nothing: drivers take all of it from libpq's PG* variables."""
CONNECTIONS = 2
"""Connections of a command, at most."""


def resolved(dsn: str) -> str:
    """Return the DSN for the driver, and have error messages leave out what ``--dsn`` gave."""
    if dsn != DEFAULT_DSN:
        remember(click.get_current_context(), dsn)
    elif service := os.environ.get("PGSERVICE"):  # which libpq reads, and asyncpg only in a DSN
        return with_options(DEFAULT_DSN, service=service)
    else:
        remember_none(click.get_current_context())
    return dsn


class Database(BlockingRunner):
    """A table, and the operations on it, for a command.

    Args:
        dsn: As the command was given it.
        **options: As for `PQ`.

    Attributes:
        pq: A `PQ`, or an `AsyncPQ` if the backend has only an asynchronous face.
    """

    def __init__(self, dsn: str, **options: Any) -> None:
        self.pq = open_blocking(resolved(dsn), max_connections=CONNECTIONS, **options)
        super().__init__(self.pq.engine)

    @property
    def table(self) -> str:
        """The table's quoted name."""
        return str(self.engine.names)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self.engine.spec.name

    def queue(self, name: str, **options: Any) -> QueueSettings:
        """Return a queue, as ``pq[name]``; or with options of its own."""
        return self.pq.queue(name, **options) if options else self.pq[name]

    def queue_of(self, job_id: int, name: str | None) -> QueueSettings:
        """Return the queue that is named, or else that of a job, wherever the job is.

        Raises:
            JobNotFound: No queue is named, and there is no such job.
        """
        if name is None:
            name = self.call(list_jobs.get_full_job, job_id, None, 0).queue
        return self.queue(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
