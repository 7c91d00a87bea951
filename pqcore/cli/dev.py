"""``pqcore dev``: an embedded server, the table, a worker and the web page, to try an application."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pqcore.cli.errors import UsageError
from pqcore.cli.web import GRACE, LOCAL, bound_socket, page_server, port_option
from pqcore.cli.worker import (
    log_to_stderr,
    modules_option,
    named_queues,
    queues_option,
    run_worker,
    targets_argument,
)
from pqcore.operations import admin
from pqcore.operations.readiness import describe_database
from pqcore.runner import BlockingRunner, open_blocking
from pqcore.web import web_app

VARIABLES = ("PQCORE_DSN", "DATABASE_URL")
"""The variables of the environment that lead an application to the server."""
JOB_GRACE = 5.0
"""Seconds that running jobs get to end after Ctrl-C."""
ANSWER_TIMEOUT = 30.0
"""Seconds that the server has to answer a statement while the table is made."""


@click.command()
@targets_argument
@queues_option
@modules_option
@port_option("Serve the page on this port of 127.0.0.1; 0 picks a free one.")
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the server's data in this folder; without this option, the data is deleted at the end.",
)
def dev(
    targets: tuple[str, ...], queues: tuple[str, ...], modules: tuple[str, ...], port: int, data: Path | None
) -> None:
    """Try an application, with a server, a worker and the web page.

    The command starts an embedded PostgreSQL, sets PQCORE_DSN and DATABASE_URL to the server's address, and then
    imports the modules of the targets. The command makes the table, runs a worker on the queues, and serves the web
    page. Ctrl-C ends everything. The command is for trials only: everybody on this machine can use the server and the
    page.
    """
    from pqcore.cli.targets import load_queues, look_here  # imported late, because this imports pqcore.tasks
    from pqcore.worker import Worker
    from pqcore_backends.embedded import EmbeddedServer

    log_to_stderr("info")
    with bound_socket("127.0.0.1", port) as bound, EmbeddedServer(data_dir=data) as server:
        os.environ.update(dict.fromkeys(VARIABLES, server.dsn()))
        look_here()
        found = load_queues(targets, named_queues(queues), modules)
        _make_tables(found, server.dsn())
        with _page(server.dsn(), found[0].engine.names, bound):
            click.echo(
                f"PostgreSQL {server.version} runs. In other terminals, set its address:\n\n"
                f"  export PQCORE_DSN={server.dsn()}\n\n"
                f"The page: http://127.0.0.1:{bound.getsockname()[1]}/\nStop with Ctrl-C.\n",
                err=True,
            )
            run_worker(Worker(*found, grace=JOB_GRACE, log_jobs=True), asyncio.new_event_loop)


def _make_tables(queues: Sequence[Any], dsn: str) -> None:
    """Make the tables of queues.

    Raises:
        UsageError: A queue is of another server.
    """
    ours = BlockingRunner(open_blocking(dsn).engine)
    try:
        expected = ours.call(describe_database)
    finally:
        ours.close()
    for engine in {id(queue.engine): queue.engine for queue in queues}.values():
        runner = BlockingRunner(engine.clone_for_worker(1, ANSWER_TIMEOUT))
        try:
            if (place := runner.call(describe_database)) != expected:
                raise UsageError(
                    f"the queues are in {place}, not on the embedded server: let the module take the DSN from a "
                    "variable, as in PQ(os.environ['PQCORE_DSN'])"
                )
            runner.call(admin.create)
        finally:
            runner.close()


@contextmanager
def _page(dsn: str, names: Any, bound: socket.socket) -> Iterator[None]:
    """Serve the page in a thread, which ends with the block."""
    app = web_app(dsn, changes=True, hosts=LOCAL, table=names.table, schema=names.schema)
    server, loop = page_server(app), asyncio.new_event_loop()

    def serve() -> None:
        try:
            loop.run_until_complete(server.serve(sockets=[bound]))
        finally:
            loop.close()

    thread = threading.Thread(target=serve, name="pqcore-page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
            thread.join(2 * GRACE)


COMMANDS = (dev,)
