"""The command ``pqcore web``: a web page that shows queues and jobs."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed, UsageError
from pqcore.cli.options import duration, with_database
from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.net import bracketed, is_loopback
from pqcore.web import web_app

if TYPE_CHECKING:
    import uvicorn

F = TypeVar("F", bound=Callable[..., Any])

PORT = 8642
"""The default port."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""The names with which a browser on this machine addresses the page."""
GRACE = 5
"""Seconds that running requests get to finish after a stop signal."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        CommandFailed: The address is in use, or cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        reason = exc.strerror or exc
        raise CommandFailed(f"cannot serve on {host}, port {port}: {reason}; choose another --port") from None


def _where(host: str, port: int) -> str:
    return f"http://{bracketed(host)}:{port}/"


def page_server(app: Any, root_path: str = "") -> uvicorn.Server:
    """Return the server of a web page; when told to stop, the server ends within `GRACE` seconds.

    Args:
        app: The page, from `web_app`.
        root_path: The path under which a proxy serves the page.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as exc:
        raise ConfigurationError(f"the web page needs {exc.name}: pip install 'pqcore[web]'") from exc

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.sampler.stop()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # an access log would show the token, and the names of queues
        lifespan="on",
        root_path=root_path.rstrip("/"),
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config)


def port_option(text: str) -> Callable[[F], F]:
    """Return the option for the port of the page, with a help text."""
    return click.option(
        "--port", metavar="PORT", type=click.IntRange(0, 65535), default=PORT, show_default=True, help=text
    )


@click.command()
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to serve on.")
@port_option("The port to serve on; 0 picks a free one.")
@click.option(
    "--token",
    metavar="TOKEN",
    envvar="PQCORE_WEB_TOKEN",
    show_envvar=True,
    help="The token that visitors must give; required if other machines can reach the page.",
)
@click.option("--allow-changes", is_flag=True, help="Let visitors retry, cancel and purge jobs, and set rules.")
@click.option(
    "--interval",
    metavar="TIME",
    type=duration,
    default="2s",
    show_default=True,
    help="Time between two reads of the table.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Also answer requests for this host name, such as a proxy's; repeatable.",
)
@click.option(
    "--root-path", metavar="PATH", default="", help="The path under which a proxy serves the page, as in /queues."
)
@with_database
def web(
    database: Database,
    host: str,
    port: int,
    token: str | None,
    allow_changes: bool,
    interval: float,
    names: tuple[str, ...],
    root_path: str,
) -> None:
    """Serve a live web page of queues and jobs, until stopped."""
    if not token and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no token: set PQCORE_WEB_TOKEN (or give --token),"
            " or serve on 127.0.0.1, behind a proxy that authenticates visitors"
        )
    # Without a token, another site must not reach the page by a name that resolves to this address (DNS rebinding).
    hosts = None if token and not names else [*LOCAL, host, *names]
    app = web_app(database.pq, changes=allow_changes, token=token or None, hosts=hosts, interval=interval)
    server = page_server(app, root_path)
    database.call(Engine.execute, "ping", {})
    with bound_socket(host, port) as bound:
        for number in (signal.SIGINT, signal.SIGTERM):  # these signals stop the server gracefully
            signal.signal(number, lambda *_: None)
        click.echo(f"serving on {_where(host, bound.getsockname()[1])}; stop with Ctrl-C", err=True)
        server.run(sockets=[bound])


COMMANDS = (web,)
