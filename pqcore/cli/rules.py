"""The commands ``pqcore pause``, ``resume``, ``limit``, ``rate``, ``weight``, ``rules`` and ``limits``.

The commands set and show rules. Workers may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from pqcore import json_views
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import json_option, queue_option, time_option, with_database
from pqcore.cli.output import emit, table, write
from pqcore.operations import rules as operations
from pqcore.operations.limits import list_limits

NONE = "none"
"""The word that users write in place of a value to remove a rule."""


def _what_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose what a pause stops."""
    for option in (
        click.option("--group", metavar="NAME", help="Only jobs of this group; pqcore get ignores this pause."),
        click.option("--limit", metavar="NAME", help="Only jobs under this limit; pqcore get ignores this pause."),
        click.option(
            "--task",
            metavar="PATH",
            help="Only calls of this task, such as app.tasks.send; pqcore get ignores this pause.",
        ),
    ):
        function = option(function)
    return function


def _named(queue: str, what: dict[str, str | None]) -> str:
    """Return words for what is paused: the queue, a task, a limit or a group."""
    for kind, name in what.items():
        if name is not None:
            return f"{kind} {name!r} of {queue!r}"
    return f"queue {queue!r}"


@click.command()
@queue_option
@_what_options
@time_option(
    "--until",
    help="End of the pause: a time from now, such as 5m, or an ISO 8601 time.  [default: pqcore resume]",
)
@json_option
@with_database
def pause(
    database: Database, queue: str, until: datetime | timedelta | None, as_json: bool, **what: str | None
) -> None:
    """Stop jobs of a queue, task, limit or group from starting.

    Running jobs go on.
    """
    settings = database.queue(queue)
    database.call(operations.pause, settings, until, **what)
    if as_json:
        emit({"queue": queue, **what, "paused": True})
    else:
        write(f"{_named(queue, what)} is paused{database.meant_if_unused(queue)}")


@click.command()
@queue_option
@_what_options
@json_option
@with_database
def resume(database: Database, queue: str, as_json: bool, **what: str | None) -> None:
    """End a pause."""
    settings = database.queue(queue)
    resumed = database.call(operations.resume, settings, **what)
    if as_json:
        emit({"queue": queue, **what, "resumed": resumed})
    elif resumed:
        write(f"{_named(queue, what)} is resumed")
    if not resumed:
        meant = database.meant(queue) or "; pqcore rules lists the pauses of a queue"
        raise CommandFailed(f"{_named(queue, what)} was not paused{meant}")


def _set(
    database: Database, change: Callable[..., Any], kind: str, queue: str, name: str, value: Any, *, as_json: bool
) -> None:
    settings = database.queue(queue)
    database.call(change, settings, name, value)
    if as_json:
        emit({"queue": queue, "kind": kind, "name": name, "value": value})
    elif value is None:
        write(f"the {kind} of {name!r} of {queue!r} is removed{database.meant_if_unused(queue)}")
    else:
        write(f"the {kind} of {name!r} of {queue!r} is {value}{database.meant_if_unused(queue)}")


def _number(kind: type[int | float]) -> Callable[..., Any]:
    """Return a callback that reads an argument, which is either a number or `NONE`."""

    def read(ctx: click.Context, param: click.Parameter, text: str) -> float | None:
        if text == NONE:
            return None
        try:
            return kind(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a number: write one, or {NONE} to remove the rule") from None

    return read


@click.command()
@click.argument("name")
@click.argument("places", metavar="N|none", callback=_number(int))
@queue_option
@json_option
@with_database
def limit(database: Database, name: str, places: int | None, queue: str, as_json: bool) -> None:
    """Set how many jobs under a limit may run concurrently.

    NAME is the limit. N overrides the numbers that producers give when they put jobs.
    """
    _set(database, operations.set_limit, "limit", queue, name, places, as_json=as_json)


@click.command()
@click.argument("name")
@click.argument("rate", metavar="RATE|none")
@queue_option
@json_option
@with_database
def rate(database: Database, name: str, rate: str, queue: str, as_json: bool) -> None:
    """Set how many jobs under a limit may start per period.

    NAME is the limit. Write the rate as in 10/s, 600/min or 100/5m.
    """
    _set(database, operations.set_rate, "rate", queue, name, None if rate == NONE else rate, as_json=as_json)


@click.command()
@click.argument("share")
@click.argument("weight", metavar="N|none", callback=_number(float))
@queue_option
@json_option
@with_database
def weight(database: Database, share: str, weight: float | None, queue: str, as_json: bool) -> None:
    """Set the weight of a share of a queue.

    A share of weight 3 gets three times as many jobs as a share of weight 1.
    """
    _set(database, operations.set_weight, "weight", queue, share, weight, as_json=as_json)


@click.command()
@queue_option
@json_option
@with_database
def rules(database: Database, queue: str, as_json: bool) -> None:
    """List the limits, rates, weights and pauses that are set."""
    found = database.call(operations.list_rules, database.queue(queue))
    if as_json:
        for rule in found:
            emit(json_views.rule(rule, queue))
        return
    if not found:
        write(f"no rules are set for {queue!r}{database.meant(queue)}")
        return
    rows = [(rule.kind, rule.name, rule.value, rule.until, rule.changed_at) for rule in found]
    table(("kind", "name", ">value", "until (UTC)", "set at (UTC)"), rows)


@click.command()
@queue_option
@json_option
@with_database
def limits(database: Database, queue: str, as_json: bool) -> None:
    """List the limits and groups in use.

    For each limit or group, the list has the number of places, the running jobs, and the number of waiting jobs.
    """
    found = database.call(list_limits, database.queue(queue))
    if as_json:
        for usage in found:
            emit(json_views.limit(usage, queue))
        return
    if not found:
        write(f"no limits or groups of {queue!r} are in use{database.meant(queue)}")
        return
    rows = [
        (
            each.kind,
            each.name,
            "paused" if each.paused else each.places,
            each.newest,
            each.rule,
            each.rate,
            len(each.running),
            each.waiting,
        )
        for each in found
    ]
    columns = ("kind", "name", ">places", ">newest put", ">rule", ">rate", ">running", ">waiting")
    table(columns, rows)


COMMANDS = (pause, resume, limit, rate, weight, rules, limits)
