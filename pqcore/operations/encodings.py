"""Reading and counting stored data by its encoding, slice by slice, in every table.

Data is in ready, scheduled, leased, parked and done rows, in dead letters, in the archive and in results. Headers hold
more data: the next calls of a chain, and the result of the previous call. The row of a batch holds the call
that is put after its jobs have ended. The row of a schedule holds the call that each tick puts.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.headers import check_link
from pqcore.serializers.keys import read_marks
from pqcore.sql.encoding_statements import ROWS, SLICE
from pqcore.sql.statement import Query

FIRST = 1 - 2**63
"""An id below all others. It is not the lowest integer: some drivers write the minus sign separately, and the absolute
value of the lowest integer is out of range."""


@dataclass(frozen=True, order=True)
class Encoding:
    """The number of data values of one queue, in one table or state, that have the same encoding.

    Attributes:
        queue: The queue that reads the data.
        place: The place of the data. ``ready``, ``scheduled``, ``leased``, ``parked`` or ``done``: jobs in this state.
            ``dead``, ``archive`` or ``results``: these tables. ``chains``: calls that follow, and results given to
            calls, in headers. ``batches``: calls that follow a batch. ``schedules``: calls that schedules put.
        serializer: The serializer's name that is stored with the data; empty for rows that pq wrote, which store none.
        key: The id of the key that encrypts or signs the data; several ids are joined with ``+``, the outermost first.
            The id is empty if the data does not contain one: no key was used, or another program wrote the data.
        number: The number of such data.
    """

    queue: str
    place: str
    serializer: str
    key: str
    number: int


class Piece(NamedTuple):
    """One encoded data value in the headers of a job, or in a stored call.

    Attributes:
        queue: The queue that reads the data.
        held: The dict that holds the data: ``serializer``, ``data`` and ``payload``.
    """

    queue: str
    held: dict[str, Any]

    @property
    def raw(self) -> str | bytes:
        data, payload = self.held["data"], self.held["payload"]
        return str(data) if payload is None else base64.b64decode(payload)

    @property
    def marks(self) -> tuple[str, ...]:
        raw = self.raw
        return () if isinstance(raw, str) else read_marks(raw)

    @property
    def sound(self) -> bool:
        """Return whether the piece has the form that `pqcore.operations.deferred_put.StoredPut` writes."""
        if not self.held.keys() >= {"serializer", "data", "payload"} or not isinstance(self.held["serializer"], str):
            return False
        data, payload = self.held["data"], self.held["payload"]
        if payload is None:
            return isinstance(data, str)
        try:
            base64.b64decode(payload)
        except (TypeError, ValueError):
            return False
        return data is None


def pieces_of(headers: Any, queue: str) -> Iterator[Piece]:
    """Return the encoded data in the headers of a job; skip data whose form shows that no put of pqcore wrote it."""
    if not isinstance(headers, dict):
        return
    previous = headers.get("previous")
    if isinstance(previous, dict) and (piece := Piece(queue, previous)).sound:
        yield piece
    links = headers.get("then")
    for link in links if isinstance(links, list) else ():
        yield from pieces_of_link(link)


def pieces_of_link(link: Any) -> Iterator[Piece]:
    """Return the encoded data of a follow-up; nothing if the form of the data shows that no put of pqcore wrote it."""
    try:
        check_link(link)
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError):
        return
    if (piece := Piece(link["queue"], link)).sound:
        yield piece
    yield from pieces_of(link["headers"], link["queue"])


def load_json(text: str | None) -> Any:
    """Return the value of JSON text; None if the text cannot be read."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


class Group(NamedTuple):
    """Rows of a slice with the same encoding.

    Attributes:
        last: The highest id of these rows.
        queue: The queue of these rows.
        state: The state of these rows.
        serializer: The serializer's name that is stored with their data.
        marks: The ids of the keys.
        linked: Whether their headers hold data.
        number: The number of these rows that have data.
    """

    last: int
    queue: str
    state: str
    serializer: str | None
    marks: tuple[str, ...]
    linked: bool
    number: int


class Slice(NamedTuple):
    """A slice of a table.

    Attributes:
        after: The id behind which the slice begins.
        last: The last id of the slice.
        groups: The groups of rows in the slice.
        following: The id behind which the next slice begins; None if this is the last slice.
    """

    after: int
    last: int
    groups: list[Group]
    following: int | None


class Counts:
    """A counter of data by encoding."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str, str, str]] = Counter()

    async def add(self, ask: Ask, place: str, found: Slice) -> None:
        """Count a slice."""
        for group in found.groups:
            self._numbers[group.queue, group.state, group.serializer or "", "+".join(group.marks)] += group.number
        if any(group.linked for group in found.groups):
            values = {"after": found.after, "last": found.last}
            rows = await ask(f"headers.{place}", values)
            for queue, headers in rows:
                self.add_pieces("chains", list(pieces_of(load_json(headers), queue)))

    def add_pieces(self, place: str, pieces: Sequence[Piece]) -> None:
        """Count data values from headers, or from the calls of batches and schedules."""
        for piece in pieces:
            self._numbers[piece.queue, place, str(piece.held["serializer"] or ""), "+".join(piece.marks)] += 1

    def found(self) -> list[Encoding]:
        return sorted(Encoding(*what, number) for what, number in self._numbers.items() if number)


def read_key_ids(marks: str) -> tuple[str, ...]:
    """Return the ids of keys that the beginning of stored data names."""
    return read_marks(marks.encode())


def find_statement(s: Session, name: str) -> Query:
    """Return a statement of `pqcore.sql.encoding_statements` by its name and the data's place, as in ``count.dead``."""
    kind, _, place = name.partition(".")
    found = getattr(s.sql.encodings, kind)
    return found[place] if place else found  # type: ignore[no-any-return]


Ask: TypeAlias = Callable[[str, Mapping[str, object]], Awaitable[Sequence[Row]]]
"""A function that runs a statement of `pqcore.sql.encoding_statements`; the statement only reads."""


def ask_alone(engine: Engine) -> Ask:
    """Return a function that runs each statement on a session that it gets from the engine."""

    async def ask(name: str, values: Mapping[str, object]) -> Sequence[Row]:
        return await engine.run(lambda s: ask_within(s)(name, values), protect=False, patient=True)

    return ask


def ask_within(s: Session) -> Ask:
    """Return a function that runs statements in a given session."""

    async def ask(name: str, values: Mapping[str, object]) -> Sequence[Row]:
        query = find_statement(s, name)
        return await s.execute(query, query.bind(values))

    return ask


async def read_slice(ask: Ask, place: str, after: int) -> Slice:
    """Read the slice of a table that begins after an id."""
    rows = await ask(f"count.{place}", {"after": after})
    groups = [
        Group(last, queue, state, serializer, read_key_ids(marks), linked, number)
        for last, queue, state, serializer, marks, linked, number, _ in rows
    ]
    last = max((group.last for group in groups), default=after)
    full = sum(looked_at for *_, looked_at in rows) >= SLICE
    return Slice(after, last, groups, last if full else None)


async def count_all(engine: Engine) -> list[Encoding]:
    """Count all data of the table by the fields of `Encoding`; this needs no key."""
    return await _count(ask_alone(engine), None)


async def count_part(s: Session, most: int) -> list[Encoding]:
    """Count the data of a part of the rows, in the same way as `count_all`.

    Args:
        s: A session.
        most: About how many rows of each table to look at; the rows that were put first are chosen.
    """
    return await _count(ask_within(s), most)


async def _count(ask: Ask, most: int | None) -> list[Encoding]:
    counts = Counts()
    for place in ROWS:
        looked, after = 0, FIRST
        while most is None or looked < most:
            found = await read_slice(ask, place, after)
            await counts.add(ask, place, found)
            looked += SLICE
            if found.following is None:
                break
            after = found.following
    async for place, calls in read_calls(ask):
        for call in calls:
            counts.add_pieces(place, list(pieces_of_link(load_json(call.text))))
    return counts.found()


class StoredCall(NamedTuple):
    """The call that follows a batch, or that a schedule puts.

    Attributes:
        id: The id of the batch, or the name of the schedule.
        queue: The queue of the batch or the schedule.
        text: The call, as JSON; None if the batch has none.
    """

    id: int | str
    queue: str
    text: str | None


async def read_calls(ask: Ask) -> AsyncIterator[tuple[str, list[StoredCall]]]:
    """Yield slices of calls, each with its place: first ``batches``, for open batches, and then ``schedules``."""
    after: int | str
    for place, statement, after in (("batches", "callbacks", FIRST), ("schedules", "scheduled_calls", "")):
        queue = ""
        while calls := [StoredCall(*row) for row in await ask(statement, {"after": after, "q_name": queue})]:
            yield place, calls
            after, queue, _ = calls[-1]
            if len(calls) < SLICE:
                break
