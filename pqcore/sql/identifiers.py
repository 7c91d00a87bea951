"""Names: of tables and what belongs to them, of queues, of channels.

PostgreSQL's limits (63 bytes an identifier, no NUL, 2,704 bytes an index entry)
are kept here, so that a bad name fails before anything is sent.
"""

from __future__ import annotations

import re
from hashlib import md5, sha256
from typing import Any

from pqcore.errors import InvalidName

MAX_IDENTIFIER = 63  # bytes: NAMEDATALEN - 1
MAX_KEY = 500
"""Bytes: the most that a dedup key, group, limit or tenant may have."""
MAX_PRIORITY = 1_000_000
"""The highest priority; the lowest is as far below 0."""
MAX_QUEUE_NAME = 2_000  # bytes: an index entry, with the other keys, must stay under 2,704

_SUFFIX = re.compile(r"(?s)(.*)(?<!\\)/([^/]*)")


def quote(identifier: str) -> str:
    """Quote an SQL identifier; a double quote within is doubled."""
    return '"' + identifier.replace('"', '""') + '"'


def unquoted(quoted: str) -> str:
    """The identifier that `quote` quoted."""
    return quoted[1:-1].replace('""', '"')


def fit(identifier: str) -> str:
    """Shorten an identifier to 63 bytes, keeping it unique by a digest."""
    encoded = identifier.encode()
    if len(encoded) <= MAX_IDENTIFIER:
        return identifier
    digest = sha256(encoded).hexdigest()[:12]
    return encoded[: MAX_IDENTIFIER - 13].decode(errors="ignore") + "_" + digest


def check_text(name: object, what: str, most: int | None = None) -> str:
    """Refuse what PostgreSQL cannot hold as a name.

    Raises:
        InvalidName: Empty, no string, too long (bytes), with a NUL or a lone
            surrogate.
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
    r"""Split ``'apples/pickle'`` into the queue's name and its serializer's.

    The last slash divides; ``\/`` is a slash of the name itself.
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return name.replace("\\/", "/"), None
    return match[1].replace("\\/", "/"), match[2]


def literal(text: str) -> str:
    """A string constant in SQL, for the few statements that are built before a table is known to exist."""
    if "\\" not in text:
        return "'" + text.replace("'", "''") + "'"
    return " E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def channel(queue_name: str) -> str:
    """The NOTIFY channel of a queue: the one pq 1.9.1 uses, so that both wake each other.

    Counted in bytes, where pq counted characters and so could not notify for
    a name of 40 accented letters.
    """
    encoded = queue_name.encode()
    if len(encoded) <= MAX_IDENTIFIER:
        return queue_name
    return "pq_" + md5(encoded, usedforsecurity=False).hexdigest()


def control_channel(queue_name: str) -> str:
    """The channel on which workers hear that a job of theirs is to stop."""
    return channel(queue_name + ":control")


def results_channel(queue_name: str) -> str:
    """The channel on which those who wait for results hear that there is one."""
    return channel(queue_name + ":results")


class TableName:
    """A table, and what is named after it, quoted for SQL.

    ``str()`` gives the quoted name; psycopg2 takes it as a parameter too, as
    it took pq's, through ``__conform__``.
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
        """The quoted, qualified name of something beside the table."""
        return self.beside(fit(self.table + suffix))

    def beside(self, name: str) -> str:
        """The quoted name, qualified with the table's schema if it has one."""
        prefix = "" if self.schema is None else quote(self.schema) + "."
        return prefix + quote(name)

    def substitutions(self) -> dict[str, str]:
        """What the placeholders in SQL templates stand for."""
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
            "migrations": self.beside("pqcore_migrations"),
            "notify": self.related("_notify"),
            "notify_trigger": quote(fit(self.table + "_notify")),
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
            "data_check": quote(fit(self.table + "_has_data")),
        }

    def __conform__(self, protocol: Any) -> TableName:
        return self

    def getquoted(self) -> bytes:
        return str(self).encode()

    @classmethod
    def mro(cls) -> tuple[type, ...]:
        # psycopg2 looks here for an adapter of a base class before __conform__
        return (object,)
