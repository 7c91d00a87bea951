"""The dialect for CockroachDB.

The statements were checked against CockroachDB's documentation, and run on PostgreSQL, but not on CockroachDB itself.

CockroachDB accepts PostgreSQL's statements except for features that it lacks. The missing features are
notifications, advisory locks before version 26, DISCARD PLANS, the state of a standby, vacuum settings of a table, and
triggers with transition tables. Use READ COMMITTED: at CockroachDB's default, SERIALIZABLE, a statement that conflicts
with another transaction fails with `pqcore.errors.TransientError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from pqcore.backend import Capability
from pqcore.hookspecs import hookimpl
from pqcore.sql.dialect import Dialect
from pqcore.sql.rewrite import (
    NOTIFICATION,
    RENUMBERING,
    Rewrite,
    replace,
    substitute,
    without_notification,
    without_renumbering,
    without_xmax,
)
from pqcore.sql.statement_set import read_statements


def _first_number(template: str) -> str:
    # If the headers of a row contain several numbers of batches, this expression finds only the first.
    return substitute(template, r"\(regexp_matches\((headers, '.*?'), 'g'\)\)\[1\]", r"substring(\1)")


def _without_standby(template: str) -> str:
    return substitute(template, r"\nUNION ALL SELECT NULL, .* WHERE pg_is_in_recovery\(\)", "")


def _by_version(template: str) -> str:
    # CockroachDB has no `ctid`, so the key and the version identify a row of {keys}. On PostgreSQL, `ctid` is faster.
    template = replace(template, "SELECT mine.ctid, mine.key FROM", "SELECT mine.version, mine.key FROM")
    template = replace(template, "SELECT ctid, key FROM", "SELECT version, key FROM")
    return substitute(
        template,
        r"kept\.ctid = ANY \(ARRAY\(SELECT locked\.ctid FROM (.*)\)\)",
        r"(kept.key, kept.version) IN (SELECT locked.key, locked.version FROM \1)",
    )


def _without_quota(template: str) -> str:
    # In CockroachDB, LIMIT cannot use columns of the surrounding query, so this LIMIT is removed. A later part of the
    # statement leaves out jobs beyond the room of a lane.
    return substitute(_by_version(template), r" LIMIT least\(wanted\.quota, .*?\) \+ :spare::int", "")


_LEFT_OUT = re.compile(
    r"ALTER TABLE \{(table|keys|dependencies)\} SET \(|DO \$do\$"
    r"|(INSERT INTO|DELETE FROM) \{(table|keys|dependencies)\} |DROP TRIGGER"
    r"|CREATE TRIGGER|CREATE OR REPLACE FUNCTION"
)


class CockroachDB(Dialect):
    """The statements for CockroachDB, from version 24.1 on."""

    name = "cockroachdb"
    missing: ClassVar[Mapping[Capability, str]] = {
        Capability.LISTEN: "CockroachDB has no LISTEN: waiters poll",
        Capability.PREPARED: "plans of prepared statements cannot be renewed, because there is no DISCARD PLANS",
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "partitions": "CockroachDB divides tables into ranges by itself",
        "end and take": "a statement can change a table only once",
        "after": "the trigger that tells that a job has ended was not tested on CockroachDB",
        "put function": "a function in PL/pgSQL was not tested on CockroachDB: use INSERT",
        "group commit": "its statement numbers rows, which was not tested on CockroachDB",
    }

    rewrites: ClassVar[Mapping[str, str | Rewrite]] = {
        **read_statements("cockroachdb.sql"),
        "explain_job": without_xmax,
        "live_batches": _first_number,
        "reserve": _by_version,
        "stats": _without_standby,
        "stats_all": _without_standby,
    }
    unknown_words = (
        *NOTIFICATION,
        *RENUMBERING,
        "TRIGGER",
        "DISCARD",
        "DO $",
        "advisory",
        "autovacuum",
        "ctid",
        "hashtext",
        "pg_control",
        "pg_is_in_recovery",
        "pg_listening",
        "plpgsql",
        "regexp_matches",
        "set_config",
    )

    def rewrite(self, name: str, template: str) -> str:
        """Return a statement without the features that CockroachDB lacks."""
        if name.startswith("take_lanes_"):
            template = _without_quota(template)
        return without_renumbering(without_notification(super().rewrite(name, template)))

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        """Yield statements without triggers and vacuum settings.

        Ids come from a sequence, because groups depend on the order of ids.
        """
        if statement.startswith("CREATE TABLE") and "bigserial" in statement:
            yield "SET serial_normalization = 'sql_sequence'"
        if not _LEFT_OUT.match(statement):
            yield statement
        elif "{data_check}" in statement and "ADD CONSTRAINT" in statement:
            yield "ALTER TABLE {table} ADD CONSTRAINT {data_check} CHECK (data IS NOT NULL OR payload IS NOT NULL)"


@hookimpl
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Register the dialect."""
    register(CockroachDB)
