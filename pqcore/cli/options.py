"""Options and types that several commands use."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import click
from click.shell_completion import CompletionItem

from pqcore.argument_checks import IDS
from pqcore.cli.database import DEFAULT_DSN, Database
from pqcore.cli.errors import UsageError
from pqcore.errors import InvalidTimeSpec
from pqcore.plugins import plugins
from pqcore.times import seconds, typed


def duration(text: str | float) -> float:
    """Read an option that is a duration: seconds, or a number and a unit.

    Raises:
        click.BadParameter: The text cannot be read.
    """
    length: str | float = text
    with suppress(ValueError):
        length = float(text)
    try:
        return seconds(length)
    except InvalidTimeSpec:
        msg = f"{text!r} is not a time: write seconds, or a number and a unit, as in '30s' or '14d'"
        raise click.BadParameter(msg) from None


def size(text: str | int) -> int:
    """Read an option that is a size: bytes, or a number and a unit.

    Raises:
        click.BadParameter: The text is not a size.
    """
    from pqcore.worker.recycling import parse_size

    try:
        return parse_size(text)
    except ValueError as exc:
        msg = f"{text!r} is not a size: {exc}"
        raise click.BadParameter(msg) from None


def _when(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | timedelta | None:
    """Return a point in time, or a distance from now."""
    try:
        return typed(text)
    except InvalidTimeSpec as exc:
        raise click.BadParameter(str(exc)) from None


def time_option(name: str, *, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # noqa: A002 - as click
    """Give a command an option that is a point in time, or a distance from now."""
    return click.option(name, metavar="TIME", callback=_when, help=help)


def job_id_type(text: str | int) -> int:
    """Read an argument that is the id of a job.

    Raises:
        click.BadParameter: The text is not an id.
    """
    with suppress(ValueError):
        if int(text) and int(text) in IDS:
            return int(text)
    msg = f"{str(text)!r} is not the id of a job: write a whole number, as pqcore list shows it"
    raise click.BadParameter(msg)


class IdCommand(click.Command):
    """A command that takes ids of dead letters, which may be negative: a negative number is not taken for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; see click."""
        ctx.ignore_unknown_options = any(given[:1] == "-" and given[1:].isdecimal() for given in args)
        return super().parse_args(ctx, args)


def _backends(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in plugins.backend_names() if name.startswith(incomplete)]


_DATABASE = (
    click.option(
        "--dsn",
        envvar="PQCORE_DSN",
        show_envvar=True,
        default=DEFAULT_DSN,
        help="The address of the database; by default, libpq's PG* variables decide.",
    ),
    click.option("--backend", metavar="NAME", shell_complete=_backends, help="The driver; by default, pqcore chooses."),
    click.option("--table", metavar="NAME", default="queue", show_default=True, help="The table of the queues."),
    click.option("--schema", metavar="NAME", help="The table's schema; by default the first in the search path."),
)


def database_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for the table: ``dsn``, ``backend``, ``table`` and ``schema``."""
    for option in reversed(_DATABASE):
        function = option(function)
    return function


def with_database(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for the table; the command gets a `Database`, which is open until it returns."""

    @functools.wraps(function)
    def wrapped(*args: Any, dsn: str, backend: str | None, table: str, schema: str | None, **kwargs: Any) -> Any:
        with Database(dsn, backend=backend, table=table, schema=schema) as database:
            return function(database, *args, **kwargs)

    return database_options(wrapped)


queue_option = click.option("--queue", metavar="NAME", required=True, help="The queue.")
any_queue_option = click.option(
    "--queue", metavar="NAME", help="The queue; by default, the queue that has a job with this ID."
)
chosen_queue_option = click.option(
    "--queue", metavar="NAME", help="The queue of the dead letters; required, unless IDs are given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, one object per line.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")


import_option = click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import this module, which registers serializers; repeatable.",
)


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation, unless told not to; if nobody can be asked, refuse.

    Raises:
        UsageError: There is no terminal, and ``--yes`` was not given.
        click.Abort: The answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on: give --yes.")
    click.confirm(question, abort=True, err=True)
