"""The commands ``pqcore create``, ``migrate``, ``adopt`` and ``expiry``: the table, and how long it keeps rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from pqcore import schema
from pqcore.cli.database import Database
from pqcore.cli.errors import CommandFailed
from pqcore.cli.options import duration, json_option, with_database
from pqcore.cli.output import emit, write
from pqcore.cli.output import table as write_table
from pqcore.errors import TableMissing
from pqcore.operations import admin, schema_info
from pqcore.operations.expiry import list_expiry, set_expiry
from pqcore.operations.roles import grant, script
from pqcore.schema.sequences import IdSequence
from pqcore.settings import KEEP_DEAD, KEEP_FINISHED
from pqcore.sql.identifiers import quote

_sequences_option = click.option(
    "--set-sequences",
    is_flag=True,
    help="If a sequence is below the highest stored id, also set the sequence to that id.",
)
_sql_option = click.option("--sql", "as_sql", is_flag=True, help="Write the SQL statements, and run none of them.")
_STOP_OLDER = (
    "stop workers of older versions before the first of this version starts on a queue with limits that must hold:"
    " together, old and new workers may run up to twice as many jobs as a limit allows"
)


def _named(number: int | None) -> str:
    return (
        "missing"
        if number is None
        else "a table of pq, or one made by hand"
        if number == 0
        else f"schema version {number}"
    )


def _write_roles(database: Database, table: str, prefix: str | None, *, as_json: bool) -> None:
    statements = database.call(script, prefix)
    if as_json:
        emit({"table": table, "statements": statements})
        return
    write(f"-- Roles of table {table}. They cannot log in: grant them to the roles of your applications.")
    for statement in statements:
        write(f"{statement};")


def _write_script(database: Database, table: str, statements: list[str], *, as_json: bool) -> None:
    if as_json:
        emit({"table": table, "statements": statements})
        return
    if not statements:
        write(f"-- table {table} is up to date: schema version {schema.latest()}")
        return
    write(f"-- Brings table {table} to schema version {schema.latest()}.")
    write("-- Run it with psql -v ON_ERROR_STOP=1, and not in one transaction: indexes may be built CONCURRENTLY.")
    for statement in statements:
        write(f"{statement};")


def _make(
    database: Database,
    found: int | None,
    *,
    as_json: bool,
    with_roles: bool = False,
    role_prefix: str | None = None,
    partitions: int | None = None,
    set_sequences: bool = False,
    kept: Mapping[str, float | None] | None = None,
) -> None:
    table = database.table
    changed = not database.call(schema_info.is_current)
    stop_older = changed and database.call(schema_info.needs_workers_stopped)
    behind: Sequence[IdSequence] = ()
    if changed or partitions is not None or set_sequences:
        behind = database.call(admin.create, partitions, set_sequences=set_sequences, **(kept or {}))
    roles = asdict(database.call(grant, role_prefix)) if with_roles else {}
    if as_json:
        facts: dict[str, Any] = {"table": table, "found": found, "version": schema.latest(), "changed": changed}
        if changed and found is not None:
            facts["stop_older_workers"] = stop_older
        if with_roles:
            facts["roles"] = roles
        if set_sequences:
            facts["sequences"] = {one.name: max(one.highest.values()) for one in behind}
        emit(facts)
        return
    if changed:
        how = "made" if found is None else f"migrated from {_named(found)}"
        write(f"table {table} was {how}; it has schema version {schema.latest()}")
        if stop_older:
            write(_STOP_OLDER)
    else:
        write(f"table {table} is up to date: schema version {found}")
    for role in roles.values():
        write(f"role {quote(role)}: GRANT {quote(role)} TO the role of an application")
    for one in behind:
        write(f"sequence {one.name} is set to {max(one.highest.values())}: the next id would have been {one.following}")
    if set_sequences and not behind:
        write("no sequence is behind the stored ids")


def _kept(text: str | float | None) -> float | None:
    """Read an option that is a duration, or ``none``."""
    return None if text is None or text == "none" else duration(text)


@click.command()
@_sql_option
@click.option(
    "--roles", is_flag=True, help="Also make database roles with the rights of producers, consumers and admins."
)
@click.option(
    "--role-prefix", metavar="NAME", help="With --roles: begin the roles' names with NAME instead of the table's name."
)
@click.option("--partitions", metavar="N", type=int, help="Split a new table into N partitions, by the queue's name.")
@click.option(
    "--keep-finished",
    metavar="TIME",
    type=_kept,
    default=KEEP_FINISHED,
    show_default=True,
    help="How long a new table keeps finished rows; 'none' keeps all.",
)
@click.option(
    "--keep-dead",
    metavar="TIME",
    type=_kept,
    default=KEEP_DEAD,
    show_default=True,
    help="How long a new table keeps dead letters; 'none' keeps all.",
)
@_sequences_option
@json_option
@with_database
def create(
    database: Database,
    as_sql: bool,
    roles: bool,
    role_prefix: str | None,
    partitions: int | None,
    keep_finished: float | None,
    keep_dead: float | None,
    set_sequences: bool,
    as_json: bool,
) -> None:
    """Make the table, or migrate it in place.

    The command does nothing if the table is up to date.
    """
    if role_prefix is not None and not roles:
        raise click.UsageError("--role-prefix names roles: give --roles too")
    if as_sql and roles:
        _write_roles(database, database.table, role_prefix, as_json=as_json)
        return
    if as_sql:
        statements = database.call(schema_info.script, partitions=partitions, set_sequences=set_sequences)
        _write_script(database, database.table, statements, as_json=as_json)
        return
    found = database.call(schema_info.version)
    _make(
        database,
        found,
        as_json=as_json,
        with_roles=roles,
        role_prefix=role_prefix,
        partitions=partitions,
        set_sequences=set_sequences,
        kept={"keep_finished": keep_finished, "keep_dead": keep_dead},
    )


@click.command()
@_sql_option
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if the table is not up to date.")
@_sequences_option
@json_option
@with_database
def migrate(database: Database, as_sql: bool, check: bool, set_sequences: bool, as_json: bool) -> None:
    """Bring a table up to the latest schema version, in place."""
    if as_sql and check:
        raise click.UsageError("--sql and --check are both given: give one of them")
    if check and set_sequences:
        raise click.UsageError("--check and --set-sequences are both given: give one; pqcore doctor checks sequences")
    table = database.table
    found = database.call(schema_info.version)
    if check:
        current = database.call(schema_info.is_current)
        if as_json:
            emit({"table": table, "found": found, "version": schema.latest(), "current": current})
        elif current:
            write(f"table {table} is up to date: schema version {found}")
        if not current:
            raise CommandFailed(
                f"table {table} is {_named(found)}; this version of pqcore needs schema version {schema.latest()}"
            )
        return
    if found is None:
        raise TableMissing(f"table {table} does not exist: pqcore create makes it")
    if as_sql:
        statements = database.call(schema_info.script, missing=False, set_sequences=set_sequences)
        _write_script(database, table, statements, as_json=as_json)
        return
    _make(database, found, as_json=as_json, set_sequences=set_sequences)


@click.command()
@click.option("--check", is_flag=True, help="Describe the table, and change nothing.")
@json_option
@with_database
def adopt(database: Database, check: bool, as_json: bool) -> None:
    """Take over a table of pq 1.9.1 in place.

    The command describes the table, and migrates it. The command changes no job.
    """
    table = database.table
    found = database.call(schema_info.version)
    if found:
        raise CommandFailed(
            f"table {table} is already a table of pqcore ({_named(found)}): run pqcore migrate to update it"
        )
    pqs = database.call(schema_info.read_pq_table)
    facts: dict[str, Any] = {
        "table": table,
        "rows": pqs.rows,
        "unfinished": pqs.unfinished,
        "queues": pqs.queues,
        "more": pqs.more,
        "trigger": pqs.trigger,
        "indexes": list(pqs.indexes),
    }
    if not as_json:
        more = "more than " if pqs.more else ""
        write(
            f"table {table} is a table of pq: {more}{pqs.rows} rows, {pqs.unfinished} of them unfinished,"
            f" in {pqs.queues} queues"
        )
        write(f"  its indexes stay: {', '.join(pqs.indexes) or 'none'}")
        if pqs.trigger:
            write("  its trigger pq_insert is replaced by one that notifies waiters once per statement")
    if not check:
        database.call(admin.create)
    if as_json:
        emit({**facts, "adopted": not check, "version": schema.latest()})
    elif check:
        write("nothing was changed: run pqcore adopt without --check to adopt the table")
    else:
        write(f"the table was adopted: it has schema version {schema.latest()}; workers of pq can still use it")


@click.command()
@click.option(
    "--queue",
    metavar="NAME",
    help="Set the times for this queue; by default, for all queues that have no times of their own.",
)
@click.option("--finished", metavar="TIME", help="How long to keep finished rows, as in 7d; 'none' keeps all.")
@click.option("--dead", metavar="TIME", help="How long to keep dead letters, as in 90d; 'none' keeps all.")
@json_option
@with_database
def expiry(database: Database, queue: str | None, finished: str | None, dead: str | None, as_json: bool) -> None:
    """Show or set how long finished rows are kept.

    For dead letters, --dead sets a separate time.
    """
    wanted = {"finished": finished, "dead": dead}
    chosen = {kind: _kept(text) for kind, text in wanted.items() if text is not None}
    name = None if queue is None else database.queue(queue).name
    if chosen:
        database.call(set_expiry, name, **chosen)
    found = database.call(list_expiry)
    for one in found:
        if as_json:
            emit(asdict(one))
    if as_json:
        return
    if not found:
        write("no times are set: all rows are kept")
        return
    rows = [
        (
            "all others" if one.queue is None else one.queue,
            one.kind,
            "no limit" if one.seconds is None else f"{one.seconds / 86_400:g}d",
            one.deleted,
        )
        for one in found
    ]
    write_table(("queue", "rows", "kept", ">deleted"), rows)


COMMANDS = (create, migrate, adopt, expiry)
