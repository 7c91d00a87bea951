"""The dialect for Citus: tables are distributed by the queue's name, so that one node has all rows of a queue.

Citus sends most statements about one queue to that node unchanged. The dialect rewrites the statements that Citus
refuses. Citus refuses functions that are not immutable in RETURNING and in an assigned COALESCE; it also refuses an
UPDATE whose CTEs contain a UNION.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from pqcore.backend import Capability
from pqcore.hookspecs import hookimpl
from pqcore.rows import JobRow
from pqcore.sql.dialect import Dialect
from pqcore.sql.fragments import LANE
from pqcore.sql.rewrite import (
    NOTIFICATION,
    RENUMBERING,
    Rewrite,
    RewriteMiss,
    keyed_by_queue,
    replace,
    split,
    without_notification,
    without_renumbering,
    without_xmax,
)
from pqcore.sql.statement_set import read_statements

_NOW = "statement_timestamp()"
_TAKEN = ", ".join(f"c{place}" for place, _ in enumerate(JobRow._fields, 1))
_MADE = re.compile(r"CREATE TABLE IF NOT EXISTS (\{\w+\})")


def _beside(template: str) -> str:
    # Values that do not depend on the row are computed in a separate CTE.
    delay = f"{_NOW} + :delay::float8 * interval '1 second'"
    template = replace(template, f"coalesce({delay}, schedule_at)", "coalesce(clock.due, schedule_at)")
    return replace(template, " WHERE ", f" FROM (SELECT {delay} AS due) AS clock WHERE ", 1)


def _waiting(template: str) -> str:
    # A statement about rows on all nodes cannot use FOR UPDATE SKIP LOCKED, so it waits for rows that other sessions
    # have locked.
    template = replace(template, "WHERE id = ANY (ARRAY(SELECT id FROM {table}\n", "")
    return replace(template, " FOR UPDATE SKIP LOCKED))", "")


def _replaced(template: str) -> str:
    times = []
    for column in ("schedule_at", "expected_at"):
        head, tail = split(template, f"{column} = coalesce(")
        computed, rest = split(tail, "'1 second')")
        times.append(f"coalesce({computed}'1 second')")
        template = f"{head}{column} = clock.new_{column}{rest}"
    template = replace(template, f"ROW ({LANE})", "ROW (clock.lane, clock.leased, clock.new_priority)")
    computed = ", ".join((*times, LANE))
    clock = f"(SELECT {computed}) AS clock (new_schedule_at, new_expected_at, lane, leased, new_priority)"
    return replace(template, " WHERE ", f" FROM {clock} WHERE ", 1)


def _leased(template: str) -> str:
    until = f"{_NOW} + :lease::float8 * interval '1 second'"
    template = replace(template, f"ELSE {until} END", "ELSE clock.until END")
    picked = "WHERE id = ANY (ARRAY(SELECT id FROM picked))"
    return replace(template, picked, f"FROM (SELECT {until} AS until) AS clock {picked}", 1)


def _drawn(template: str) -> str:
    head, tail = split(template, "UPDATE {rates} AS kept")
    head = replace(head, "SELECT q_name, tokens,", "SELECT q_name, tokens, clock_timestamp() AS now,")
    head = replace(head, "SELECT q_name, least(", "SELECT q_name, now, least(")
    head = replace(head, "SELECT q_name, available,", "SELECT q_name, now, available,")
    changed, found = split(tail, "RETURNING")
    changed = replace(changed, "clock_timestamp()", "granted.now")
    changed = replace(
        changed,
        "WHERE kept.q_name = granted.q_name",
        "WHERE kept.q_name = granted.q_name AND kept.q_name = :q_name::text",
    )
    update = f"UPDATE {{rates}} AS kept{changed}RETURNING number, available"
    return f"{head.rstrip()}, drawn AS (\n{update}\n)\nSELECT{found} FROM drawn"


def _of_queue(template: str) -> str:
    # The assignments contain no functions: their values come from the row proposed for insertion (``excluded``).
    template = replace(template, "ON CONFLICT (job_id)", "ON CONFLICT (job_id, q_name)")
    return replace(template, " q_name = excluded.q_name,", "")


def _swept(template: str) -> str:
    # Each sweep deletes only the attempts of one queue, because these are all on one node.
    for condition in ("job_id > ", "job_id = ANY "):
        template = replace(template, f"WHERE {condition}", f"WHERE q_name = :q_name::text AND {condition}")
    return template


_TAKES = re.compile(r"(keep|delete|lease)_\d+_\w+")
_LEASES = re.compile(r"lease_\d+_\w+|take_lanes_\d+|end_and_take_\w+")


class Citus(Dialect):
    """The statements for tables that are distributed by the queue's name."""

    name = "citus"
    missing: ClassVar[Mapping[Capability, str]] = {
        Capability.LISTEN: "a distributed table has no triggers, and a notification stays on its node: waiters poll",
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "partitions": "Citus distributes the table over shards, which take the place of partitions",
        "group commit": "its statement numbers rows, which was not tested on Citus",
        "after": "a distributed table has no triggers, which tell that a job has ended",
        "put function": "a function that writes to a distributed table was not tested on Citus: use INSERT",
        "shared looks": "a statement is sent to the node of one queue",
        "move": "the table is distributed by queue, so a row cannot change its queue",
    }
    rewrites: ClassVar[Mapping[str, str | Rewrite]] = {
        **read_statements("citus.sql"),
        "explain_job": without_xmax,
        "heartbeat": _waiting,
        "nack": _beside,
        "crash": _beside,
        "retry": _beside,
        "snooze": _beside,
        "replace": _replaced,
        "put_replacing": _replaced,
        "take_tokens": _drawn,
        "keep_result": _of_queue,
        "report_progress": _of_queue,
        "sweep_attempts": _swept,
    }
    unknown_words = (*NOTIFICATION, *RENUMBERING, "TRIGGER")

    def rewrite(self, name: str, template: str) -> str:
        """Return a statement that Citus sends to the queue's node."""
        template = super().rewrite(name, without_renumbering(without_notification(template.strip())))
        if _LEASES.fullmatch(name):
            template = _leased(template)
        # The queue is the distribution column of the table of attempts, and Citus refuses to change it.
        template = template.replace("ON CONFLICT (job_id, place)", "ON CONFLICT (job_id, place, q_name)")
        template = template.replace("SET q_name = excluded.q_name, put_at", "SET put_at")
        template = template.replace("WHERE kept.ctid =", "WHERE kept.q_name = :q_name::text AND kept.ctid =")
        if _TAKES.fullmatch(name):
            start = max(template.rfind("\nUPDATE {table}"), template.rfind("\nDELETE FROM {table}"))
            if start < 0:
                raise RewriteMiss("UPDATE or DELETE FROM {table}", template)
            return f"{template[:start]}, taken ({_TAKEN}) AS ({template[start:]}\n)\nSELECT {_TAKEN} FROM taken"
        return template

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        """Add the queue to a table's primary key, and distribute the table; leave out triggers and functions."""
        made = _MADE.match(statement)
        if made and made[1] != "{migrations}":
            yield keyed_by_queue(statement)
            beside = "" if made[1] == "{table}" else ", colocate_with => $q${table}$q$"
            yield (
                f"SELECT create_distributed_table($q${made[1]}$q$, $q$q_name$q${beside})"
                f" WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $q${made[1]}$q$::regclass)"
            )
        elif not any(each in statement for each in ("TRIGGER", "RETURNS trigger", "{put_name}")):
            yield statement


@hookimpl
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Register the dialect."""
    register(Citus)
