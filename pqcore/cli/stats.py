"""The commands ``pqcore stats`` and ``pqcore top``: the numbers of jobs, now and as they change."""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.options import duration, json_option, with_database
from pqcore.cli.output import emit, printable, shown, table, write
from pqcore.operations import admin
from pqcore.operations.activity import Activity, read_activity

if TYPE_CHECKING:
    from rich.table import Table

SHORTEST = 0.1
"""The shortest time between two frames, in seconds."""
_COLUMNS = ("queue", ">ready", ">scheduled", ">leased", ">parked", ">dead", ">oldest")


def _collect(database: Database, queue: str | None) -> dict[str, dict[str, Any]]:
    """Return the counts of jobs of each queue that has waiting jobs or dead letters, by the queue's name."""
    settings = None if queue is None else database.queue(queue)
    found = database.call(admin.count_queues, settings)
    return {name: json_views.figures(name, each) for name, each in found.items()}


def _age(length: float | None) -> str:
    if length is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if length >= size:
            return f"{length / size:.1f}{unit}"
    return f"{length:.1f}s"


def _cells(queue: dict[str, Any]) -> tuple[Any, ...]:
    counts = (queue[name] for name in ("ready", "scheduled", "leased", "parked", "dead"))
    return (queue["queue"], *counts, _age(queue["oldest"]))


def _mark(stale: float | None) -> None:
    if stale is not None:
        write(f"the server is a standby: the last commit that it knows is {_age(stale)} old")


@click.command()
@click.option("--queue", metavar="NAME", help="Only this queue.")
@json_option
@with_database
def stats(database: Database, queue: str | None, as_json: bool) -> None:
    """Count the waiting jobs and the dead letters of each queue."""
    found = _collect(database, queue)
    if as_json:
        for each in found.values():
            emit(each)
    elif found:
        table(_COLUMNS, [_cells(each) for each in found.values()])
        _mark(next(iter(found.values()))["stale"])
    else:
        write(f"nothing waits in table {database.table}")
        _mark(database.call(admin.count_waiting, None)[1].stale)


@dataclass
class _Frame:
    """The content that `top` shows at one time."""

    at: datetime
    clock: float
    queues: dict[str, dict[str, Any]]
    activity: Activity
    puts: float | None
    """Puts per second since the last frame."""

    def document(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "puts_per_second": self.puts,
            "dead_rows": self.activity.dead_rows,
            "connections": self.activity.connections,
            "oldest_snapshot": self.activity.oldest,
            "notification_queue_usage": self.activity.notifications,
            "queues": list(self.queues.values()),
        }

    def footer(self) -> str:
        rate = "" if self.puts is None else f"{self.puts:.1f} put/s, "
        oldest = "" if self.activity.oldest is None else f", oldest snapshot {_age(self.activity.oldest)}"
        unread = self.activity.notifications or 0.0
        full = "" if unread < 0.01 else f", notification queue {100 * unread:.0f} % full"
        return f"{rate}{self.activity.dead_rows} dead rows, {self.activity.connections} connections{oldest}{full}"


def _frame(database: Database, queue: str | None, last: _Frame | None) -> _Frame:
    queues = _collect(database, queue)
    activity = database.call(read_activity)
    clock = time.monotonic()
    puts = None
    if last is not None and activity.inserted >= last.activity.inserted:
        puts = (activity.inserted - last.activity.inserted) / max(clock - last.clock, 0.001)
    return _Frame(datetime.now(timezone.utc), clock, queues, activity, puts)


def _rendered(frame: _Frame, name: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=box.SIMPLE_HEAD,
        title=Text(printable(f"{name}  {frame.at:%H:%M:%S} UTC")),
        caption=Text(frame.footer()),
        title_justify="left",
        caption_justify="left",
    )
    for column in _COLUMNS:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for queue in frame.queues.values():
        made.add_row(*(Text(shown(cell)) for cell in _cells(queue)))
    return made


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    return max(value, SHORTEST)


@click.command()
@click.option("--queue", metavar="NAME", help="Only this queue.")
@click.option(
    "--interval",
    metavar="TIME",
    type=duration,
    default="2s",
    show_default=True,
    callback=_seconds,
    help="Time between two updates.",
)
@click.option("--once", is_flag=True, help="Show one frame, and exit.")
@json_option
@with_database
def top(database: Database, queue: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Show the counts of each queue repeatedly, until stopped."""
    with _stop_signals() as stops_within:
        _follow(database, queue, interval, once, as_json, stops_within)


@contextmanager
def _stop_signals() -> Iterator[Callable[[float], bool]]:
    """Handle SIGINT and SIGTERM; yield a function that waits for a signal, and returns whether one came in time.

    The handler writes to a socket. A `threading.Event` would need a lock, which may be held when the handler runs.
    """
    stopped, stopping = socket.socketpair()

    def stop(*_: object) -> None:
        with suppress(OSError):  # the command has ended, and the socket is closed
            stopping.send(b".")

    with stopped, stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        yield lambda seconds: bool(select.select([stopped], [], [], seconds)[0])


def _follow(
    database: Database,
    queue: str | None,
    interval: float,
    once: bool,
    as_json: bool,
    stops_within: Callable[[float], bool],
) -> None:
    from rich.console import Console
    from rich.live import Live

    frame = _frame(database, queue, None)
    name = f"table {database.table}"

    def follow(show: Any) -> None:
        nonlocal frame
        while not stops_within(interval):
            frame = _frame(database, queue, frame)
            show(frame)

    if as_json or once or not sys.stdout.isatty():

        def line(frame: _Frame) -> None:
            if as_json:
                emit(frame.document())
                sys.stdout.flush()
                return
            write(f"{name}  {frame.at:%H:%M:%S} UTC  {frame.footer()}")
            table(_COLUMNS, [_cells(each) for each in frame.queues.values()])
            sys.stdout.flush()

        line(frame)
        if not once:
            follow(line)
        return
    # stdout is not redirected, because rich's replacement has no encoding, which `shown` needs.
    with Live(
        _rendered(frame, name), console=Console(), screen=True, auto_refresh=False, redirect_stdout=False
    ) as live:
        follow(lambda frame: live.update(_rendered(frame, name), refresh=True))


COMMANDS = (stats, top)
