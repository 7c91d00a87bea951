"""The root of the command line, and the groups of commands."""

from __future__ import annotations

import os
from typing import Any

import click

import pqcore
from pqcore.cli import (
    bench,
    dead,
    doctor,
    encodings,
    jobs,
    mcp,
    new_backend,
    plugins,
    queues,
    rules,
    serializers,
    stats,
    tables,
    web,
    worker,
    workers,
)
from pqcore.cli.errors import explained
from pqcore.errors import PQError

GROUPS = (
    tables, worker, workers, queues, jobs, dead, rules, stats, doctor, encodings, mcp, serializers, plugins,
    new_backend, bench, web,
)  # fmt: skip
"""Modules of commands; each has a tuple ``COMMANDS``."""
CONNECT_TIMEOUT = "10"
"""Seconds after which libpq gives a host up that does not answer, unless PGCONNECT_TIMEOUT says otherwise."""


class App(click.Group):
    """Shows pqcore's errors as messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PQError as exc:
            raise explained(ctx, exc) from exc


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pqcore.__version__, prog_name="pqcore")
def app() -> None:
    """Work on queues, and look after them."""
    os.environ.setdefault("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT)


for _group in GROUPS:
    for _command in _group.COMMANDS:
        app.add_command(_command)
