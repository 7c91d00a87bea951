"""What several dialects do to a statement's template."""

from __future__ import annotations

import re

from pqcore.sql.fragments import AFTER_WAY, COLUMNS, MADE_WAY, RESET_COLUMNS, come_back

_NOTIFIED = ", pg_notify(:channel::text, '')::text"
_KEYED_BY_ID = re.compile(r"(?m)^(  (?:id|job_id)\s+(?:bigint|bigserial)\s+)PRIMARY KEY,$")


def quiet(template: str) -> str:
    """The same, and nobody is notified."""
    return template.replace(_NOTIFIED, "").replace("RETURNING pg_notify(:channel::text, '')::text", "RETURNING 1")


def of_unique_ids(template: str) -> str:
    """The same, for an engine that takes one change of a table in a statement: no id is held to come again."""
    for made_way in MADE_WAY.values():
        template = template.replace(made_way, "")
    same = (
        f"same AS (\n  INSERT INTO {{table}} ({COLUMNS}, group_key)\n"
        f"  SELECT {RESET_COLUMNS}, headers #>> '{{{{gate,group}}}}' FROM risen RETURNING id\n)"
    )
    template = template.replace(AFTER_WAY, "").replace(come_back("risen"), same)
    return template.replace(" + (SELECT count(*) FROM renumbered)", "").replace(
        "\nUNION ALL SELECT id FROM renumbered", ""
    )


def keyed_by_queue(statement: str) -> str:
    """The declaration of a table whose primary key names the queue beside the id."""
    found = _KEYED_BY_ID.search(statement)
    if found is None:
        return statement
    column = found[1].split()[0]
    declared = statement[: found.start()] + found[1].rstrip() + " NOT NULL," + statement[found.end() :]
    return declared.rpartition(")")[0].rstrip() + f",\n  PRIMARY KEY ({column}, q_name)\n)"
