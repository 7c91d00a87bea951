"""The command ``pqcore mcp``: a server of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import click

from pqcore.async_queue import AsyncPQ
from pqcore.cli.database import resolved
from pqcore.cli.errors import UsageError
from pqcore.cli.options import database_options
from pqcore.mcp import LIMIT
from pqcore.queue import PQ
from pqcore.runner import PQRunner, open_async


@click.command()
@click.option("--allow-changes", is_flag=True, help="Also offer tools that change jobs and rules.")
@click.option("--no-data", is_flag=True, help="Hide the data of jobs, and the messages of errors.")
@click.option(
    "--data-limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=LIMIT,
    show_default=True,
    help="Show at most N characters of a job's data, of its headers and of its traceback.",
)
@click.option(
    "--http", "address", metavar="HOST:PORT", help="Serve over HTTP at this address, not over stdin and stdout."
)
@click.option(
    "--token",
    metavar="TOKEN",
    envvar="PQCORE_MCP_TOKEN",
    show_envvar=True,
    help="With --http: accept only clients that send this token.",
)
@database_options
def mcp(
    *,
    allow_changes: bool,
    no_data: bool,
    data_limit: int,
    address: str | None,
    token: str | None,
    dsn: str,
    **options: Any,
) -> None:
    """Serve the Model Context Protocol, over stdin and stdout.

    The server offers tools that read queues.

    Without --allow-changes, no tool changes anything.
    """
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    try:
        from pqcore.mcp.server import http_server, listening_address, mcp_server
    except ImportError as exc:
        raise UsageError(f"the MCP server needs {exc.name}: pip install 'pqcore[mcp]'") from exc
    where = None if address is None else listening_address(address, token or None)
    pq = open_async(resolved(dsn), **options)
    server = mcp_server(
        pq, hide_data=no_data, limit=data_limit, changes=allow_changes, token=None if where is None else token or None
    )
    if where is None:
        # otherwise Ctrl-C would wait for the reader of stdin, which does not end
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        asyncio.run(_served(pq, server.run_stdio_async()))
    else:
        asyncio.run(_served(pq, http_server(server, *where).serve()))


async def _served(pq: AsyncPQ | PQ, serving: Any) -> None:
    try:
        await serving
    finally:
        await PQRunner(pq).close()


COMMANDS = (mcp,)
