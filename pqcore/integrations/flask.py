"""Flask: an extension that serves as the application's PQ, and the command ``flask pqcore``.

pq = PQCore()

@pq["emails"].task()
def send(job_id, to): ...

def create_app():
app = Flask(__name__)
app.config["PQCORE_DSN"] = "postgresql://localhost/app"
pq.init_app(app)
return app
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

try:
    import click
    from flask import Flask, current_app, has_app_context
    from flask.cli import ScriptInfo
except ImportError as exc:
    msg = f"pqcore.integrations.flask needs {exc.name}: pip install 'pqcore[flask]'"
    raise ImportError(msg) from exc

from pqcore import queue as core
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.dsn import dsn_text
from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.events import JobEvent
from pqcore.hookspecs import hookimpl
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName
from pqcore.tasks import PQ

EXTENSION = "pqcore"
"""The extension's name in an application: ``app.extensions["pqcore"]``."""
_OPTIONS = ("backend", "max_connections", "pool_timeout", "answer_timeout", "prepared")
"""Options of `PQ` that the application's configuration sets: ``PQCORE_BACKEND``..."""
_TARGET = f"{__name__}:worker_pq"


class PQCore(PQ):
    """The `pqcore.tasks.PQ` of the current application, or of the only application if none is current.

    Queues can be named and tasks declared before an application exists.

    Args:
        app: A first application; see `init_app`.
        table: See `pqcore.PQ`.
        schema: See `pqcore.PQ`.
        queue_class: See `pqcore.PQ`.
        **options: Settings of all queues; see `QueueSettings`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        table: str = "queue",
        schema: str | None = None,
        queue_class: type[core.Queue] | None = None,
        **options: Any,
    ) -> None:
        # This replaces PQ's own constructor, which would need to know the database.
        self._engines: WeakKeyDictionary[Flask, Engine] = WeakKeyDictionary()
        self._begin(_AppEngine(self, TableName(table, schema)), queue_class, options)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Connect an application by its configuration; connections are opened when needed.

        Args:
            app: The application, with ``PQCORE_DSN`` and optionally ``PQCORE_BACKEND``, ``PQCORE_MAX_CONNECTIONS``,
                ``PQCORE_POOL_TIMEOUT`` and ``PQCORE_PREPARED``; see `pqcore.PQ`.

        Raises:
            ConfigurationError: There is no DSN, an option is invalid, or the application already has a `PQCore`.
        """
        if EXTENSION in app.extensions:
            raise ConfigurationError(f"the application {app.name!r} has a PQCore already: call init_app once")
        dsn = dsn_text(app.config.get("PQCORE_DSN"))
        if not dsn:
            said = "empty" if dsn is not None else f"a {type(app.config.get('PQCORE_DSN')).__qualname__}"
            msg = (
                f"PQCORE_DSN of the application {app.name!r} is {said}; give a DSN, as in 'postgresql://localhost/app'"
            )
            raise ConfigurationError(msg)
        given = {name: app.config[key] for name in _OPTIONS if (key := f"PQCORE_{name.upper()}") in app.config}
        self._engines[app] = Engine("blocking", BlockingRuntime(), self.engine.names, dsn, None, **given)
        app.extensions[EXTENSION] = self
        app.cli.add_command(_command)

    def current_engine(self) -> Engine:
        """Return the engine of the current application, or of the only one.

        Raises:
            ConfigurationError: No application is current, or it was not given to `init_app`.
        """
        if has_app_context():
            app = _current()
            found = self._engines.get(app)
            if found is None:
                raise ConfigurationError(f"the application {app.name!r} has no PQCore: call init_app(app) first")
            return found
        engines = list(self._engines.values())
        if len(engines) == 1:
            return engines[0]
        if engines:
            msg = f"there are {len(engines)} applications, and none is current: call this within app.app_context()"
        else:
            msg = "there is no application yet: call init_app(app) first"
        raise ConfigurationError(msg)


class _AppEngine(Engine):
    """A stand-in for the application's engine, because queues are made before an application exists.

    Attributes:
        extension: The extension, which finds the engine of the current application.
        names: The table, which is the same for all applications.
    """

    __slots__ = ("extension", "names")

    def __init__(self, extension: PQCore, names: TableName) -> None:
        self.extension = extension
        self.names = names

    # called for names that are not in __dict__, which is empty unless a test has filled it
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.extension.current_engine(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in (*_AppEngine.__slots__, "__dict__") or self.__dict__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.extension.current_engine(), name, value)


def _current() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


# flask pqcore


def worker_pq() -> PQCore:
    """Return the application's `PQCore`, for ``flask pqcore worker``.

    Each job runs in its own application context.

    Raises:
        ConfigurationError: The application has no `PQCore`.
    """
    # Without a context, this is a process that a supervisor has started.
    app = _current() if has_app_context() else ScriptInfo(os.environ.get("FLASK_APP")).load_app()
    extension: PQCore | None = app.extensions.get(EXTENSION)
    if extension is None:
        raise ConfigurationError(f"the application {app.name!r} has no PQCore: call init_app(app)")
    if plugins.manager.get_plugin(__name__) is None:
        plugins.register(_InContext(app), __name__)
    return extension


class _InContext:
    """A plugin that runs jobs in contexts of an application."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    @hookimpl
    def pqcore_around_run(self, event: JobEvent) -> AbstractContextManager[object]:
        return self._app.app_context()


@click.command(
    "pqcore",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run any pqcore command on the application's queues.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def _command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    from pqcore.cli import main

    path = ctx.ensure_object(ScriptInfo).app_import_path
    if path is not None:  # so that the worker's processes find the application
        os.environ["FLASK_APP"] = path
    ctx.exit(main(_completed(ctx, list(arguments)), name="flask pqcore"))


def _completed(ctx: click.Context, arguments: list[str]) -> list[str]:
    """Return the command line with the table and the queues of the application."""
    from pqcore.cli.app import app as root

    command: click.Command | None = root
    place = 0
    while isinstance(command, click.Group) and place < len(arguments):
        command = command.get_command(ctx, arguments[place])
        place += 1
    if command is None or isinstance(command, click.Group):
        return arguments
    if command is root.get_command(ctx, "worker"):
        return [*arguments[:place], _TARGET, *arguments[place:]]
    config, names = current_app.config, current_app.extensions[EXTENSION].engine.names
    known = {
        "dsn": dsn_text(config["PQCORE_DSN"]),
        "backend": config.get("PQCORE_BACKEND"),
        "table": names.table,
        "schema": names.schema,
    }
    taken = {parameter.name for parameter in command.params}
    options = [f"--{name}={value}" for name, value in known.items() if value is not None and name in taken]
    return [*arguments[:place], *options, *arguments[place:]]
