"""The root of the command line, and the groups of commands."""

from __future__ import annotations

import os
from typing import Any

import click

import pqcore
from pqcore.cli import (
    bench,
    dead,
    dev,
    doctor,
    encodings,
    jobs,
    mcp,
    new_backend,
    plugins,
    queues,
    rules,
    schedules,
    serializers,
    stats,
    tables,
    web,
    worker,
    workers,
)
from pqcore.cli.errors import explained
from pqcore.errors import PQError

GROUPS = {
    "Tables": (tables, doctor, encodings),
    "Queues": (queues, stats),
    "Jobs": (jobs, dead, schedules),
    "Workers": (worker, workers, dev),
    "Limits and pauses": (rules,),
    "Servers": (web, mcp),
    "Drivers and plugins": (plugins, serializers, new_backend, bench),
}
"""Modules of commands under the headings of the help; each module has a tuple ``COMMANDS``."""
CONNECT_TIMEOUT = "10"
"""Seconds after which libpq gives up a host that does not answer, unless PGCONNECT_TIMEOUT is set."""


class App(click.Group):
    """A group that shows commands under headings, and pqcore's errors as messages."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, modules in GROUPS.items():
            commands = sorted((command for module in modules for command in module.COMMANDS), key=_name)
            width = formatter.width - 6 - max(len(_name(command)) for command in commands)
            with formatter.section(heading):
                formatter.write_dl([(_name(command), command.get_short_help_str(width)) for command in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PQError as exc:
            raise explained(ctx, exc) from exc


def _name(command: click.Command) -> str:
    return command.name or ""


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pqcore.__version__, prog_name="pqcore")
def app() -> None:
    """Put and run jobs, and manage queues."""
    os.environ.setdefault("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT)


for _modules in GROUPS.values():
    for _module in _modules:
        for _command in _module.COMMANDS:
            app.add_command(_command)
