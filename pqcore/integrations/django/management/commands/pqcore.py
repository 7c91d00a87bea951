"""The command ``manage.py pqcore``, which runs any command of pqcore on a table of ``PQCORE``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from pqcore.errors import PQError
from pqcore.integrations.django.queues import DjangoPQ, pqs

TARGETS = "pqcore.integrations.django.worker"
"""The module in which a worker finds the tables."""


class Command(BaseCommand):
    """Runs a command of pqcore; a worker finds the tasks of all apps."""

    help = "Any command of pqcore's, on a table of PQCORE: manage.py pqcore worker --queues emails, stats, doctor, ..."
    requires_system_checks: Sequence[str] = ()
    _own_process = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--using", default="default", metavar="ALIAS", help="The table's alias in settings.PQCORE.")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="See pqcore --help.")

    def run_from_argv(self, argv: list[str]) -> None:
        self._own_process = True
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command.

        Raises:
            CommandError: The settings are wrong, or the command line is not installed.
            SystemExit: The command failed, with its exit code.
        """
        try:
            import click
            import rich  # noqa: F401 - needed later; both are of the same extra
        except ImportError as exc:
            raise CommandError(f"manage.py pqcore needs {exc.name}: pip install 'pqcore[cli]'") from exc
        from pqcore.cli.app import app
        from pqcore.cli.exit import leave

        try:
            pq = pqs[options["using"]]
        except PQError as exc:
            raise CommandError(str(exc)) from exc
        arguments = _without_djangos(options["arguments"])
        if arguments[:1] == ["worker"]:
            arguments = ["worker", *_worker_arguments(pq, arguments[1:])]
        defaults = _defaults(click.Context(app), app, _table_options(pq))
        with _environment():
            try:
                code: object = app.main(arguments or ["--help"], prog_name="manage.py pqcore", default_map=defaults)
            except SystemExit as exc:
                code = exc.code
        number = code if isinstance(code, int) else 0 if code is None else 1
        if self._own_process:
            number = leave(number)
        if number:
            sys.exit(number)


def _without_djangos(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the options that Django has already read, wherever they are."""
    left: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument in ("--settings", "--pythonpath"):
            next(given, None)
        elif not argument.startswith(("--settings=", "--pythonpath=")):
            left.append(argument)
    return left


def _table_options(pq: DjangoPQ) -> dict[str, Any]:
    """Return the options that name the table for pqcore's commands.

    No command line or environment contains the password.
    """
    names = pq.configuration.names
    return {"dsn": pq.lender.dsn(), "backend": pq.lender.backend, "table": names.table, "schema": names.schema}


def _defaults(context: Any, group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default options about the table, by command."""
    found: dict[str, Any] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            found[name] = _defaults(context, command, values)
        elif {"dsn", "table"} <= (taken := {parameter.name for parameter in command.params}):
            found[name] = {name: value for name, value in values.items() if name in taken}
    return found


@contextmanager
def _environment() -> Iterator[None]:
    """Set the environment variables with which the command's processes find the Django project as this process did.

    PQCORE_DSN is left out, because it names the table for processes without settings.
    """
    said = dict(os.environ)
    own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*own, *_split(said.get("PYTHONPATH"))]))
    os.environ.pop("PQCORE_DSN", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(said)


def _worker_arguments(pq: DjangoPQ, arguments: list[str]) -> list[str]:
    """Return the arguments of a worker; a worker without a target runs the named queues, or all queues with tasks.

    Raises:
        CommandError: A module of tasks cannot be imported.
    """
    import click

    from pqcore.cli.errors import UsageError
    from pqcore.cli.targets import import_modules
    from pqcore.cli.worker import worker

    try:
        context = worker.make_context("worker", list(arguments), resilient_parsing=True)
    except click.ClickException:  # the command itself has printed the message
        return arguments
    if context.params["targets"]:
        return arguments
    table = pq.configuration
    if not context.params["queues"]:
        try:
            import_modules([TARGETS])
        except UsageError as exc:
            raise CommandError(exc.message, returncode=2) from exc
        names = importlib.import_module(TARGETS).queues_to_work_on(table.alias)
        arguments = [f"--queues={','.join(names)}", *arguments]
    return [f"{TARGETS}:{table.alias}", *arguments]


def _split(path: str | None) -> list[str]:
    return path.split(os.pathsep) if path else []
