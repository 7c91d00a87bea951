"""The database that a command uses."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from pqcore.argument_hints import nearest
from pqcore.cli.errors import remember, remember_none
from pqcore.db.dsn import with_options
from pqcore.errors import PQError
from pqcore.operations import admin, list_jobs
from pqcore.runner import BlockingRunner, open_blocking
from pqcore.settings import QueueSettings

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_DSN = "postgresql://"
"""An empty DSN: drivers take everything from libpq's PG* variables."""
CONNECTIONS = 2
"""The largest number of connections of a command."""


def resolved(dsn: str) -> str:
    """Return the DSN for the driver, and make error messages leave out the DSN that ``--dsn`` gave."""
    if dsn != DEFAULT_DSN:
        remember(click.get_current_context(), dsn)
    elif service := os.environ.get("PGSERVICE"):  # libpq reads PGSERVICE; asyncpg reads a service only in a DSN
        return with_options(DEFAULT_DSN, service=service)
    else:
        remember_none(click.get_current_context())
    return dsn


class Database(BlockingRunner):
    """A table, and the operations on it, for a command.

    Args:
        dsn: The DSN that the command was given.
        **options: Options of `PQ`.

    Attributes:
        pq: A `PQ`, or an `AsyncPQ` if the backend has only an asynchronous face.
    """

    def __init__(self, dsn: str, **options: Any) -> None:
        self.pq = open_blocking(resolved(dsn), max_connections=CONNECTIONS, **options)
        super().__init__(self.pq.engine)

    @property
    def table(self) -> str:
        """Return the table's quoted name."""
        return str(self.engine.names)

    @property
    def backend(self) -> str:
        """Return the name of the backend."""
        return self.engine.spec.name

    def queue(self, name: str, **options: Any) -> QueueSettings:
        """Return a queue, as ``pq[name]`` does, or a new one with options."""
        return self.pq.queue(name, **options) if options else self.pq[name]

    def queue_of(self, job_id: int, name: str | None) -> QueueSettings:
        """Return the named queue, or else the queue of a job in any state.

        Raises:
            JobNotFound: The command names no queue, and the job does not exist.
        """
        if name is None:
            name = self.call(list_jobs.get_full_job, job_id, None, 0).queue
        return self.queue(name)

    def meant(self, name: str) -> str:
        """Return the end of a message about a queue without jobs: a similar name, which the user may have meant."""
        with suppress(PQError):  # the role may not count jobs, and the message is complete without a suggestion
            there = self.call(admin.count_queues)
            other = None if name in there else nearest(name, there)
            if other is not None:
                return f"; did you mean {other!r}?"
        return ""

    def meant_if_unused(self, name: str) -> str:
        """Return the end of a message about a rule that was set: a similar name, if the queue has no waiting jobs."""
        with suppress(PQError):  # the rule is set, even if the role may not list jobs
            if not self.call(list_jobs.list_by_state, self.queue(name), list_jobs.UNFINISHED, 1):
                return self.meant(name)
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
