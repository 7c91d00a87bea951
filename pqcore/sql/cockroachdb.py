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
    # Of several numbers in the headers of a row, the first.
    return substitute(template, r"\(regexp_matches\((headers, '.*?'), 'g'\)\)\[1\]", r"substring(\1)")


def _without_standby(template: str) -> str:
    return substitute(template, r"\nUNION ALL SELECT NULL, .* WHERE pg_is_in_recovery\(\)", "")


def _by_version(template: str) -> str:
    # A row of keys is known by its version. PostgreSQL's has a place too, `ctid`, by which it is found sooner.
    template = replace(template, "SELECT mine.ctid, mine.key FROM", "SELECT mine.version, mine.key FROM")
    template = replace(template, "SELECT ctid, key FROM", "SELECT version, key FROM")
    return substitute(
        template,
        r"kept\.ctid = ANY \(ARRAY\(SELECT locked\.ctid FROM (.*)\)\)",
        r"(kept.key, kept.version) IN (SELECT locked.key, locked.version FROM \1)",
    )


def _without_quota(template: str) -> str:
    # LIMIT cannot name columns of the query around it. What a lane gives beyond its room is left out later anyway.
    return substitute(_by_version(template), r" LIMIT least\(wanted\.quota, .*?\) \+ :spare::int", "")


_LEFT_OUT = re.compile(
    r"ALTER TABLE \{(table|keys)\} SET \(|DO \$do\$|(INSERT INTO|DELETE FROM) \{(table|keys)\} |DROP TRIGGER"
    r"|CREATE TRIGGER|CREATE OR REPLACE FUNCTION"
)


class CockroachDB(Dialect):
    """The statements for CockroachDB, from version 24.1 on."""

    name = "cockroachdb"
    missing: ClassVar[Mapping[Capability, str]] = {
        Capability.LISTEN: "CockroachDB has no LISTEN: waiters poll",
        Capability.PREPARED: "plans of prepared statements are not made anew, as DISCARD PLANS is not there",
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "partitions": "it divides tables into ranges by itself",
        "end and take": "a statement changes a table once",
        "group commit": "a statement that gives rows numbers of its own was not tried there",
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
        """Return a statement without what CockroachDB has not."""
        if name.startswith("take_lanes_"):
            template = _without_quota(template)
        return without_renumbering(without_notification(super().rewrite(name, template)))

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        """Yield tables with ids of a sequence, as groups go by the order of ids; no trigger, no settings for vacuum."""
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
