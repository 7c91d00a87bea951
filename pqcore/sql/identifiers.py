"""Names of tables and the objects that belong to them, of queues, and of channels.

PostgreSQL's limits (63 bytes for an identifier, no NUL, 2,704 bytes for an index entry) are checked here, so that a bad
name fails before anything is sent.
"""

from __future__ import annotations

import re
from hashlib import md5, sha256
from typing import Any

from pqcore.errors import InvalidName

MAX_IDENTIFIER = 63  # bytes: NAMEDATALEN - 1
MAX_KEY = 500
"""The largest number of bytes of a dedup key, group, limit or tenant."""
MAX_PRIORITY = 1_000_000
"""The highest priority; the lowest is its negative."""
MAX_QUEUE_NAME = 2_000
"""The largest number of bytes of a queue's name: an index entry with further columns has at most 2,704 bytes."""

PUT_ARGUMENTS = (
    "(text, jsonb, timestamptz, timestamptz, interval, text, jsonb, jsonb, integer, interval, timestamptz, interval,"
    " integer, text, text, jsonb, text, text, text, jsonb)"
)
"""The types of the arguments of the function that puts jobs from SQL, which identify the function."""

_NAMED = ("archive", "blocked", "dead", "dependencies")
"""The tables that a function finds in the schema of the queue's table."""

_SUFFIX = re.compile(r"(?s)(.*)(?<!\\)/([^/]*)")


def quote(identifier: str) -> str:
    """Quote an SQL identifier; a double quote in the identifier is doubled."""
    return '"' + identifier.replace('"', '""') + '"'


def unquoted(quoted: str) -> str:
    """Return the identifier that `quote` quoted."""
    return quoted[1:-1].replace('""', '"')


def fit(identifier: str) -> str:
    """Shorten an identifier to 63 bytes; a digest keeps it unique."""
    encoded = identifier.encode()
    if len(encoded) <= MAX_IDENTIFIER:
        return identifier
    digest = sha256(encoded).hexdigest()[:12]
    return encoded[: MAX_IDENTIFIER - 13].decode(errors="ignore") + "_" + digest


def check_text(name: object, what: str, most: int | None = None) -> str:
    """Raise unless PostgreSQL can hold a value as a name.

    Raises:
        InvalidName: The value is empty, not a string, too long in bytes, or has a NUL or a lone surrogate.
    """
    if not isinstance(name, str):
        msg = f"{what} must be a string, not {type(name).__name__}: {name!r}"
        raise InvalidName(msg)
    if not name:
        msg = f"{what} is empty"
        raise InvalidName(msg)
    if "\0" in name:
        msg = f"{what} {name[:80]!r} contains a NUL, which PostgreSQL cannot store"
        raise InvalidName(msg)
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        msg = f"{what} {name[:80]!r} is not valid Unicode: {exc.reason}"
        raise InvalidName(msg) from exc
    if most is not None and size > most:
        msg = f"{what} {name[:80]!r}... has {size} bytes; at most {most}"
        raise InvalidName(msg)
    return name


def split_queue_name(name: str) -> tuple[str, str | None]:
    r"""Split ``'apples/pickle'`` into the names of the queue and the serializer.

    The last slash is the separator; ``\/`` is a slash in the name itself.
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return name.replace("\\/", "/"), None
    return match[1].replace("\\/", "/"), match[2]


def literal(text: str) -> str:
    """Return a string constant in SQL, for the few statements that are built before the table is known to exist."""
    if "\\" not in text:
        return "'" + text.replace("'", "''") + "'"
    return " E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def channel(queue_name: str) -> str:
    """Return the NOTIFY channel of a queue. pq 1.9.1 uses the same channel, so pq and pqcore wake each other.

    The length is counted in bytes; pq counted characters, and so could not notify for a name of 40 accented letters.
    """
    encoded = queue_name.encode()
    if len(encoded) <= MAX_IDENTIFIER:
        return queue_name
    return "pq_" + md5(encoded, usedforsecurity=False).hexdigest()


def control_channel(queue_name: str) -> str:
    """Return the channel that tells workers to stop a job."""
    return channel(queue_name + ":control")


def results_channel(queue_name: str) -> str:
    """Return the channel that announces results to waiters."""
    return channel(queue_name + ":results")


class TableName:
    """A table, and the objects named after it, quoted for SQL.

    ``str()`` gives the quoted name. As with pq's class, psycopg2 also accepts the object as a parameter, through
    ``__conform__``.
    """

    def __init__(self, table: str, schema: str | None = None) -> None:
        if schema is None and isinstance(table, str) and table.count(".") == 1:
            schema, table = table.split(".")
        self.table = check_text(table, "table name", MAX_IDENTIFIER)
        self.schema = None if schema is None else check_text(schema, "schema name", MAX_IDENTIFIER)

    def __str__(self) -> str:
        return self.related("")

    def __repr__(self) -> str:
        return f"<table {self}>"

    def related(self, suffix: str) -> str:
        """Return the quoted, qualified name of another object of the table."""
        return self.qualified(fit(self.table + suffix))

    def qualified(self, name: str) -> str:
        """Return the quoted name, qualified with the table's schema if it has one."""
        prefix = "" if self.schema is None else quote(self.schema) + "."
        return prefix + quote(name)

    @property
    def put_function(self) -> str:
        """The unquoted name of the function that puts jobs from SQL: ``pqcore_put_`` and then the table's name.

        The function of the default table ``queue`` is ``pqcore_put``.
        """
        return "pqcore_put" if self.table == "queue" else fit("pqcore_put_" + self.table)

    def substitutions(self) -> dict[str, str]:
        """Return the values of the placeholders in SQL templates."""
        return {
            "table": str(self),
            "archive": self.related("_archive"),
            "slots": self.related("_slots"),
            "dead": self.related("_dead"),
            "results": self.related("_results"),
            "batches": self.related("_batches"),
            "ticks": self.related("_ticks"),
            "rates": self.related("_rates"),
            "dedup": self.related("_dedup"),
            "keys": self.related("_keys"),
            "rules": self.related("_rules"),
            "workers": self.related("_workers"),
            "attempts": self.related("_attempts"),
            "samples": self.related("_samples"),
            "schedules": self.related("_schedules"),
            "blocked": self.related("_blocked"),
            "dependencies": self.related("_dependencies"),
            "migrations": self.qualified("pqcore_migrations"),
            "notify": self.related("_notify"),
            "notify_trigger": quote(fit(self.table + "_notify")),
            "ended": self.related("_ended"),
            **{f"{place}_name": quote(fit(f"{self.table}_{place}")) for place in _NAMED},
            "ended_name": quote(fit(self.table + "_ended")),
            "put_function": self.qualified(self.put_function),
            "put_name": quote(self.put_function),
            "ready_index": quote(fit(self.table + "_ready")),
            "urgent_index": quote(fit(self.table + "_urgent")),
            "hidden_index": quote(fit(self.table + "_hidden")),
            "archive_index": quote(fit(self.table + "_archive_age")),
            "dedup_index": quote(fit(self.table + "_unfinished")),
            "group_index": quote(fit(self.table + "_groups")),
            "parked_index": quote(fit(self.table + "_parked")),
            "waiting_index": quote(fit(self.table + "_waiting")),
            "slots_job_index": quote(fit(self.table + "_slots_job")),
            "dead_index": quote(fit(self.table + "_dead_age")),
            "results_index": quote(fit(self.table + "_results_age")),
            "dependencies_parent_index": quote(fit(self.table + "_dependencies_parent")),
            "dependencies_open_index": quote(fit(self.table + "_dependencies_open")),
            "dependencies_ended_index": quote(fit(self.table + "_dependencies_ended")),
            "data_check": quote(fit(self.table + "_has_data")),
        }

    def __conform__(self, protocol: Any) -> TableName:
        return self

    def getquoted(self) -> bytes:
        return str(self).encode()

    @classmethod
    def mro(cls) -> tuple[type, ...]:
        # psycopg2 looks here for an adapter of a base class before it uses __conform__
        return (object,)
