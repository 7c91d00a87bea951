"""Citus: the tables are distributed by the queue's name, so that a queue, with all that belongs to it, is on one node.

A statement of a queue is sent to that node as it is.  What is reworded here is what Citus does not send: functions that
are not immutable in a RETURNING, or in a COALESCE of what is set, and an UPDATE whose CTEs are a union.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from pqcore.backend import Capability
from pqcore.hookspecs import hookimpl
from pqcore.sql.dialect import Dialect
from pqcore.sql.rewrite import keyed_by_queue, of_unique_ids, quiet

_NOW = "statement_timestamp()"
_TAKEN = ", ".join(f"c{place}" for place in range(1, 12))
_MADE = re.compile(r"CREATE TABLE IF NOT EXISTS (\{\w+\})")


def _beside(template: str) -> str:
    # What is computed without the row is computed beside it.
    delay = f"{_NOW} + :delay::float8 * interval '1 second'"
    template = template.replace(f"coalesce({delay}, schedule_at)", "coalesce(clock.due, schedule_at)")
    return template.replace(" WHERE ", f" FROM (SELECT {delay} AS due) AS clock WHERE ", 1)


def _replaced(template: str) -> str:
    times = dict(re.findall(r"(schedule_at|expected_at) = (coalesce\(.*?'1 second'\))", template))
    for column, expression in times.items():
        template = template.replace(expression, f"clock.new_{column}", 1)
    computed = ", ".join(f"{expression} AS new_{column}" for column, expression in times.items())
    return template.replace(" WHERE ", f" FROM (SELECT {computed}) AS clock WHERE ", 1)


# A key whose time is over is given up first.
_CLAIM = f"""
WITH gone AS (
  DELETE FROM {{dedup}} WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text AND until <= {_NOW}
  RETURNING job_id
)
INSERT INTO {{dedup}} AS held (q_name, dedup_key, job_id, until)
SELECT :q_name::text, :dedup_key::text, 0, clock_timestamp() + :period::float8 * interval '1 second'
FROM (SELECT count(*) FROM gone) AS done
ON CONFLICT (q_name, dedup_key) DO NOTHING RETURNING job_id"""


def _drawn(template: str) -> str:
    head, update, tail = template.partition("UPDATE {rates} AS kept")
    head = head.replace("SELECT q_name, tokens,", "SELECT q_name, tokens, clock_timestamp() AS now,")
    head = head.replace("SELECT q_name, least(", "SELECT q_name, now, least(")
    head = head.replace("SELECT q_name, available,", "SELECT q_name, now, available,")
    changed, _, found = tail.partition("RETURNING")
    changed = changed.replace("clock_timestamp()", "granted.now")
    changed = changed.replace(
        "WHERE kept.q_name = granted.q_name", "WHERE kept.q_name = granted.q_name AND kept.q_name = :q_name::text"
    )
    return f"{head.rstrip()}, drawn AS (\n{update}{changed}RETURNING number, available\n)\nSELECT{found} FROM drawn"


def _of_queue(template: str) -> str:
    # What is set is computed without functions: in the row that was to be inserted.
    template = template.replace("ON CONFLICT (job_id)", "ON CONFLICT (job_id, q_name)")
    return template.replace(" q_name = excluded.q_name,", "")


_REWORDED: dict[str, Callable[[str], str]] = {
    "nack": _beside,
    "retry": _beside,
    "snooze": _beside,
    "replace": _replaced,
    "put_replacing": _replaced,
    "claim_key": lambda _: _CLAIM,
    "draw": _drawn,
    "keep_result": _of_queue,
    "report_progress": _of_queue,
    "sweep_results": lambda _: f"DELETE FROM {{results}} WHERE expires_at <= {_NOW}",
}
_TAKES = re.compile(r"(keep|delete|lease)_\d+_\w+")


class Citus(Dialect):
    """The statements for tables that are distributed by the queue's name."""

    name = "citus"
    missing: ClassVar[Mapping[Capability, str]] = {
        Capability.LISTEN: "a distributed table has no triggers, and a notification stays on its node: waiters poll",
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "partitions": "its shards are such partitions",
        "shared looks": "a statement is sent to the node of one queue",
        "move": "a job does not change its queue: that is what the tables are distributed by",
    }

    def reworded(self, name: str, template: str) -> str:
        """A statement that Citus sends to the node of the queue."""
        template = of_unique_ids(quiet(template.strip()))
        if reword := _REWORDED.get(name):
            return reword(template)
        if _TAKES.fullmatch(name):
            start = max(template.rfind("\nUPDATE {table}"), template.rfind("\nDELETE FROM {table}"))
            return f"{template[:start]}, taken ({_TAKEN}) AS ({template[start:]}\n)\nSELECT {_TAKEN} FROM taken"
        return template

    def declared(self, statement: str) -> Iterable[str]:
        """Tables with the queue in their keys, each distributed once it is made; no trigger, and no function for it."""
        made = _MADE.match(statement)
        if made and made[1] != "{migrations}":
            yield keyed_by_queue(statement)
            beside = "" if made[1] == "{table}" else ", colocate_with => $q${table}$q$"
            yield (
                f"SELECT create_distributed_table($q${made[1]}$q$, $q$q_name$q${beside})"
                f" WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $q${made[1]}$q$::regclass)"
            )
        elif "TRIGGER" not in statement and "RETURNS trigger" not in statement:
            yield statement


@hookimpl
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Bring the dialect."""
    register(Citus)
