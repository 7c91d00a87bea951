"""Functions with which dialects rewrite the templates of statements."""

from __future__ import annotations

import re
from collections.abc import Callable

from pqcore.errors import PluginError
from pqcore.sql.fragments import AFTER_WAY, COLUMNS, GROUP_AND_PRIORITY, MADE_WAY, RESET_COLUMNS, come_back

Rewrite = Callable[[str], str]
"""A function that makes a dialect's template from a statement's template."""

NOTIFICATION = ("pg_notify",)
"""The `pqcore.sql.dialect.Dialect.unknown_words` for a dialect that uses `without_notification`."""
RENUMBERING = ("made_way", "renumbered")
"""The unknown words for a dialect that uses `without_renumbering`."""

_NOTIFIED = r"pg_notify\(:\w+::text, ''\)::text"
_KEYED_BY_ID = re.compile(r"(?m)^(  (?:id|job_id)\s+(?:bigint|bigserial)\s+)PRIMARY KEY,$")
_KEYED_BY_JOB = re.compile(r"PRIMARY KEY \((job_id, \w+)\)")
_KEYED_BY_QUEUE = re.compile(r"PRIMARY KEY \([^)]*\bq_name\b|\bq_name\s+text\s+PRIMARY KEY")


class RewriteMiss(PluginError):
    """A template does not contain the text that a dialect replaces: the statement changed, but the dialect did not.

    Args:
        wanted: The text, or the pattern.
        template: The template.
    """

    def __init__(self, wanted: str, template: str) -> None:
        super().__init__(f"{wanted!r} does not occur in {template!r}")


def replace(template: str, old: str, new: str, count: int = -1) -> str:
    """Replace a text in a template, as `str.replace` does.

    Raises:
        RewriteMiss: The template does not contain the text.
    """
    if old not in template:
        raise RewriteMiss(old, template)
    return template.replace(old, new, count)


def substitute(template: str, pattern: str, new: str, count: int = 0) -> str:
    """Replace the matches of a pattern in a template, as `re.sub` does.

    Raises:
        RewriteMiss: The pattern matches nothing.
    """
    changed, found = re.subn(pattern, new, template, count=count)
    if not found:
        raise RewriteMiss(pattern, template)
    return changed


def split(template: str, separator: str) -> tuple[str, str]:
    """Split a template at the first separator, into the text before and the text after it.

    Raises:
        RewriteMiss: The template does not contain the separator.
    """
    head, found, tail = template.partition(separator)
    if not found:
        raise RewriteMiss(separator, template)
    return head, tail


def without_notification(template: str) -> str:
    """Remove the notifications from a statement, if it has any."""
    template = re.sub(f", {_NOTIFIED}", "", template)
    template = re.sub(f"THEN {_NOTIFIED} END", "THEN NULL END", template)
    return re.sub(f"(RETURNING|SELECT) {_NOTIFIED}", r"\1 1", template)


def without_renumbering(template: str) -> str:
    """Remove from a statement the parts that give rows new ids, if it has such parts.

    This function serves engines that allow only one change of a table in each statement. On such an engine, ids must
    never repeat, because no row can get a new id.
    """
    for made_way in MADE_WAY.values():
        template = template.replace(made_way, "")
    same = (
        f"same AS (\n  INSERT INTO {{table}} ({COLUMNS}, group_key, priority)\n"
        f"  SELECT {RESET_COLUMNS}, {GROUP_AND_PRIORITY} FROM risen RETURNING id\n)"
    )
    template = template.replace(AFTER_WAY, "").replace(come_back("risen"), same)
    return template.replace(" + (SELECT count(*) FROM renumbered)", "").replace(
        "\nUNION ALL SELECT id FROM renumbered", ""
    )


def keyed_by_queue(statement: str) -> str:
    """Return the declaration of a table with a primary key that consists of the queue and the id.

    A declaration whose key already names the queue is returned unchanged.

    Raises:
        RewriteMiss: The table has another key, or none.
    """
    found = _KEYED_BY_ID.search(statement)
    if found is None:
        statement = _KEYED_BY_JOB.sub(r"PRIMARY KEY (\1, q_name)", statement)
        if not _KEYED_BY_QUEUE.search(statement):
            raise RewriteMiss(_KEYED_BY_ID.pattern, statement)
        return statement
    column = found[1].split()[0]
    declared = statement[: found.start()] + found[1].rstrip() + " NOT NULL," + statement[found.end() :]
    return declared.rpartition(")")[0].rstrip() + f",\n  PRIMARY KEY ({column}, q_name)\n)"


def without_xmax(template: str) -> str:
    """Remove the system column xmax from a statement, for engines in which xmax is missing, or shows no locks."""
    return replace(template, "xmax::text", "NULL::text")
