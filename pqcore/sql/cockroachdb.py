"""CockroachDB: checked against its documentation, and on PostgreSQL; nothing here was run on CockroachDB itself.

It takes PostgreSQL's statements but for those that name what it has not: notifications, advisory locks before
version 26, DISCARD PLANS, a standby's state, settings of a table that steer vacuum, triggers with the rows of a
statement.  It is to be used at READ COMMITTED: at its own default, SERIALIZABLE, what meets another transaction
fails with `pqcore.errors.TransientError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from pqcore.backend import Capability
from pqcore.hookspecs import hookimpl
from pqcore.sql.dialect import Dialect
from pqcore.sql.rewrite import of_unique_ids, quiet

_LOCKS = "pqcore locks"
"""The queue under whose name keys are locked."""
_NOW = "statement_timestamp()"

_REWORDED: dict[str, str] = {
    # Instead of an advisory lock, a row: who inserts or updates it has it locked until the transaction ends. There is
    # no trying, so admission waits.
    "lock_keys": f"""
INSERT INTO {{dedup}} (q_name, dedup_key, job_id, until)
SELECT '{_LOCKS}', gate.lock::text, 0, {_NOW} FROM unnest(:locks::bigint[]) AS gate (lock) ORDER BY gate.lock
ON CONFLICT (q_name, dedup_key) DO UPDATE SET until = excluded.until RETURNING 'read committed', job_id""",
    "try_keys": f"""
INSERT INTO {{dedup}} (q_name, dedup_key, job_id, until)
SELECT '{_LOCKS}', gate.lock::text, 0, {_NOW} FROM unnest(:locks::bigint[]) AS gate (lock) ORDER BY gate.lock
ON CONFLICT (q_name, dedup_key) DO UPDATE SET until = excluded.until
RETURNING dedup_key::bigint, true, 'read committed'""",
    "sweep_dedup": f"""
DELETE FROM {{dedup}} WHERE (q_name = :q_name::text AND until <= {_NOW})
  OR (q_name = '{_LOCKS}' AND until <= {_NOW} - interval '1 hour')""",
    # Migrations are not kept apart: run them one at a time.
    "lock_migrations": "SELECT true",
    "unlock_migrations": "SELECT true",
    "lock_schema": "SELECT true",
    "partitions": "SELECT NULL::text WHERE false",
    "replan": "SELECT 1",
    # Never run, as nobody listens.
    "register": "SELECT NULL::text WHERE false AND :channels::text[] IS NULL",
    "unregister": "SELECT NULL::text WHERE false AND :channels::text[] IS NULL",
    "notification_usage": "SELECT 0",
    "listening": "SELECT NULL::text WHERE false",
    "notify_always": "SELECT NULL::text WHERE false",
    "session_settings": (
        "SELECT NULL::text WHERE false AND :names::text[] IS NULL AND :values::text[] IS NULL AND :mild::bool[] IS NULL"
    ),
    "notify_waiters": "SELECT NULL::text WHERE false",
}
_ALL_MATCHES = re.compile(r"\(regexp_matches\((headers, '.*?'), 'g'\)\)\[1\]")
_STANDBY = re.compile(r"\nUNION ALL SELECT NULL, .* WHERE pg_is_in_recovery\(\)")
_LEFT_OUT = re.compile(
    r"ALTER TABLE \{table\} SET \(|DO \$do\$|INSERT INTO \{table\} |DELETE FROM \{table\} |DROP TRIGGER|CREATE TRIGGER"
    r"|CREATE OR REPLACE FUNCTION"
)


class CockroachDB(Dialect):
    """The statements for CockroachDB, from version 24.1 on."""

    name = "cockroachdb"
    missing: ClassVar[Mapping[Capability, str]] = {
        Capability.LISTEN: "CockroachDB has no LISTEN: waiters poll",
        Capability.PREPARED: "plans of prepared statements are not made anew, as DISCARD PLANS is not there",
    }
    unsupported: ClassVar[Mapping[str, str]] = {"partitions": "it divides tables into ranges by itself"}

    def reworded(self, name: str, template: str) -> str:
        """A statement without what CockroachDB has not."""
        if name in _REWORDED:
            return _REWORDED[name]
        if name == "live_batches":  # of several numbers in the headers of a row the first
            template = _ALL_MATCHES.sub(r"substring(\1)", template)
        return _STANDBY.sub("", of_unique_ids(quiet(template)))

    def declared(self, statement: str) -> Iterable[str]:
        """Ids of a sequence, as groups go by the order of ids; no trigger, and no settings for vacuum."""
        if statement.startswith("CREATE TABLE") and "bigserial" in statement:
            yield "SET serial_normalization = 'sql_sequence'"
        if not _LEFT_OUT.match(statement):
            yield statement
        elif "{data_check}" in statement and "ADD CONSTRAINT" in statement:
            yield "ALTER TABLE {table} ADD CONSTRAINT {data_check} CHECK (data IS NOT NULL OR payload IS NOT NULL)"


@hookimpl
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Bring the dialect."""
    register(CockroachDB)
