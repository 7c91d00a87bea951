"""The statements that pqcore runs, for programs that run them without pqcore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Paramstyle, Query

from .backends import Location
from .operations import MANY, QUEUE

LEASE = 60.0
"""Seconds; the default lease of `lease_many`."""


class Statements:
    """The texts of pqcore's statements on one table, with finished rows deleted.

    Args:
        place: The place of the table.
        paramstyle: The style of the placeholders.
        many: The largest number of jobs that ``get_many`` takes and ``lease`` leases.

    Attributes:
        table: The quoted name of the table.
        put, put_many, get, get_keep, get_many, lease, ack: The statements.
    """

    def __init__(self, place: Location, paramstyle: Paramstyle, many: int = MANY) -> None:
        names = TableName(place.table, place.schema)
        dialect = Dialect(names, paramstyle)
        self.place = place
        self.table = str(names)
        self.put = dialect.put_json
        self.put_many = dialect.put_many
        self.get = dialect.fetch("ordered", "delete", 1)
        self.get_keep = dialect.fetch("ordered", "keep", 1)
        self.get_many = dialect.fetch("ordered", "delete", many)
        self.lease = dialect.fetch("ordered", "lease", many)
        self.ack = dialect.ack["delete"]


VALUES: Mapping[str, Any] = {
    "q_name": QUEUE,
    "serializer": "json",
    "payload": None,
    "lease": LEASE,
    "priority": 0,
    "fails": False,
    **dict.fromkeys(
        ("schedule_at", "schedule_in", "expected_at", "expected_in", "headers", "group_key", "lane", "number"),
    ),
}
"""Return the parameters that are the same each time."""


def names(query: Query) -> list[str]:
    """Return the names of a statement's parameters, in the order of ``$1``, ``$2`` and so on."""
    return [query.order[place] for place in query.first]


def values(query: Query, **more: Any) -> tuple[Any, ...]:
    """Return the values of ``$1``, ``$2`` and so on."""
    return tuple(more[name] if name in more else VALUES[name] for name in names(query))


def expect(query: Query, *given: str) -> None:
    """Check that a statement takes the parameters of bare code, in this order."""
    assert names(query) == list(given), f"{query.name} takes {names(query)} now: change the bare loop, too"
