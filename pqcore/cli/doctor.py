"""The command ``pqcore doctor``, which checks the table and its server."""

from __future__ import annotations

from dataclasses import asdict

import click

from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import import_option, json_option, with_database
from pqcore.cli.output import emit, printable
from pqcore.doctor.examine import examine
from pqcore.plurals import counted

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option(
    "--queue",
    "queues",
    metavar="NAME",
    multiple=True,
    help="Check the plans (EXPLAIN) of the statements that take jobs of this queue; repeatable.",
)
@click.option("--read-only", is_flag=True, help="Send no test notification; every other check only reads.")
@import_option
@json_option
@with_database
def doctor(
    database: Database, queues: tuple[str, ...], read_only: bool, modules: tuple[str, ...], as_json: bool
) -> None:
    """Check the table and the server, and say how to fix problems.

    The command also checks the connection to the server.
    """
    from pqcore.cli.targets import import_modules  # imported late, because this imports pqcore.tasks

    import_modules(modules)
    names = [database.queue(name).name for name in queues]
    found = database.call(examine, names, read_only=read_only)
    for one in found:
        message, advice = database.engine.redact(one.message), database.engine.redact(one.advice)
        if as_json:
            emit({**asdict(one), "message": message, "advice": advice})
            continue
        level = click.style(f"{one.level:<8}", fg=_COLOURS[one.level])
        click.echo(f"{level} {one.check:<12} {printable(message)}")
        if advice:
            click.echo(f"{'':<21} -> {printable(advice)}")
    problems = sum(one.level == "problem" for one in found)
    if problems:
        warnings = sum(one.level == "warning" for one in found)
        raise CommandFailed(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}")


COMMANDS = (doctor,)
