"""Round trips of values that JSON lacks, by serializer: each value is put into a queue, and taken.

``python -m tests.round_trips`` writes the table into docs/serializers.md; a test sees that it is current.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from pqcore import PQ
from pqcore.errors import PQError
from pqcore.serializers import SignedPickle

DOCUMENT = Path(__file__).parent.parent / "docs/serializers.md"
BEGIN, END = "<!-- round trips: python -m tests.round_trips -->\n", "<!-- end of round trips -->"
SERIALIZERS = ("json", "orjson", "msgspec", "msgpack", "msgspec-msgpack", "cbor2", "signed-pickle")
CENTRAL = dt.timezone(dt.timedelta(hours=1))


@dataclasses.dataclass
class Point:
    """An example."""

    x: int


class Colour(enum.Enum):
    """An example."""

    RED = "red"


VALUES: dict[str, Any] = {
    "bytes": b"\x00\xff",
    "a bytearray": bytearray(b"\x00\xff"),
    "a tuple": (1, 2),
    "tuples within": [(1,), {"a": (2,)}],
    "a set": {1},
    "a frozenset": frozenset({1}),
    "a `Decimal`": Decimal("1.10"),
    "an integer of 64 bits": 2**63 - 1,
    "an unsigned one": 2**64 - 1,
    "a larger one": 2**64,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a datetime in UTC": dt.datetime(2025, 3, 1, 12, tzinfo=dt.timezone.utc),
    "in another zone": dt.datetime(2025, 3, 1, 12, tzinfo=CENTRAL),
    "without a zone": dt.datetime(2025, 3, 1, 12),  # noqa: DTZ001 - that is the point
    "a date": dt.date(2025, 3, 1),
    "a time": dt.time(12, 30),
    "a timedelta": dt.timedelta(hours=1),
    "a `UUID`": uuid.UUID(int=7),
    "a dataclass": Point(1),
    "an enum": Colour.RED,
    "integers as keys": {1: 2},
    "`None` as a key": {None: 1},
    "tuples as keys": {(1, 2): 3},
    "keys that collide": {1: 2, "1": 3},
    "a NUL in text": "a\0b",
    "half a surrogate pair": "\ud800",
}
SAME, REFUSED = "same", "refused"


def outcome(queue: Any, value: Any) -> str:
    """Put a value and take it; return the result in the words of the table."""
    try:
        queue.put(value)
    except PQError:
        return REFUSED
    found = queue.get().data
    if type(found) is type(value) and (repr(found) == repr(value) or found == value):
        return SAME if getattr(found, "utcoffset", int)() == getattr(value, "utcoffset", int)() else "in UTC"
    return f"`{found!r}`"


def lines(dsn: str) -> Iterator[str]:
    """Yield the table, line by line."""
    with PQ(dsn) as pq:
        pq.create()
        queues = {
            name: pq.queue("trips", serializer=SignedPickle(keys=["k" * 32]) if name == "signed-pickle" else name)
            for name in SERIALIZERS
        }
        yield "| | " + " | ".join(f"`{name}`" for name in SERIALIZERS) + " |"
        yield "| --- " * (len(SERIALIZERS) + 1) + "|"
        for name, value in VALUES.items():
            yield f"| {name} | " + " | ".join(outcome(queue, value) for queue in queues.values()) + " |"


def written(dsn: str) -> str:
    """Return the document with the present table."""
    text = DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    table = "\n".join(lines(dsn))
    return f"{head}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    from pqcore_backends.embedded import EmbeddedServer

    with EmbeddedServer() as server:
        DOCUMENT.write_text(written(server.dsn()), "utf-8")
