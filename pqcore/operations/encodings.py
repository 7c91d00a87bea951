"""How data are encoded, wherever they lie: reading them in slices, and counting them.

Data lie in rows that are ready, scheduled, leased, parked or done, in dead letters, in the archive and in results.
Headers carry more: the calls that follow in a chain, and the result that a call was given.  A batch has the call that
is put when its jobs have ended.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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
"""An id that is below all others: a driver may write it as a number behind a minus."""


@dataclass(frozen=True, order=True)
class Encoding:
    """How some of the data are encoded.

    Attributes:
        queue: The queue that reads the data.
        place: ``ready``, ``scheduled``, ``leased``, ``parked`` or ``done``: jobs in this state; ``dead``, ``archive``
            or ``results``; ``chains``: calls that are to follow, and results that a call was given, in headers;
            ``batches``: calls that follow a batch.
        serializer: What the data are stored as; empty for rows of pq's, which do not say.
        key: The id of the key that the data are encrypted or signed with; of several ones, the outermost first, with
            ``+`` in between. Empty if the data do not say: without a key, or from another program.
        number: How many there are.
    """

    queue: str
    place: str
    serializer: str
    key: str
    number: int


class Piece(NamedTuple):
    """Encoded data in headers.

    Attributes:
        queue: The queue that reads the data.
        held: What holds the data: ``serializer``, ``data`` and ``payload``.
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
        """Whether it is what `pqcore.operations.deferred_put.StoredPut` writes."""
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
    """Return the encoded data in headers of a job; without what no put wrote."""
    if not isinstance(headers, dict):
        return
    previous = headers.get("previous")
    if isinstance(previous, dict) and (piece := Piece(queue, previous)).sound:
        yield piece
    links = headers.get("then")
    for link in links if isinstance(links, list) else ():
        yield from pieces_of_link(link)


def pieces_of_link(link: Any) -> Iterator[Piece]:
    """Return the encoded data of a call that follows; nothing if no put wrote it."""
    try:
        check_link(link)
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError):
        return
    if (piece := Piece(link["queue"], link)).sound:
        yield piece
    yield from pieces_of(link["headers"], link["queue"])


def load_json(text: str | None) -> Any:
    """Return what JSON text says; None if it cannot be read."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


class Group(NamedTuple):
    """Rows of a slice that are alike.

    Attributes:
        last: The highest id.
        queue: Their queue.
        state: Their state.
        serializer: What their data are stored as.
        marks: The ids of the keys.
        linked: Whether their headers carry data.
        number: How many of them have data.
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
        after: The id behind which it begins.
        last: The last id of it.
        groups: What it holds.
        following: The id behind which the next one begins; None if there is none.
    """

    after: int
    last: int
    groups: list[Group]
    following: int | None


class Counts:
    """Counts data by how they are encoded."""

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
        """Count data in headers, or of batches."""
        for piece in pieces:
            self._numbers[piece.queue, place, str(piece.held["serializer"] or ""), "+".join(piece.marks)] += 1

    def found(self) -> list[Encoding]:
        return sorted(Encoding(*what, number) for what, number in self._numbers.items() if number)


def read_key_ids(marks: str) -> tuple[str, ...]:
    """Return the ids of keys that stored data begin with."""
    return read_marks(marks.encode())


def find_statement(s: Session, name: str) -> Query:
    """Return a statement of `pqcore.sql.encoding_statements`, by its name and place, as in ``count.dead``."""
    kind, _, place = name.partition(".")
    found = getattr(s.sql.encodings, kind)
    return found[place] if place else found  # type: ignore[no-any-return]


Ask: TypeAlias = Callable[[str, Mapping[str, object]], Awaitable[Sequence[Row]]]
"""Runs a statement of `pqcore.sql.encoding_statements` that only reads."""


def ask_alone(engine: Engine) -> Ask:
    """Return a function that runs each statement by itself."""

    async def ask(name: str, values: Mapping[str, object]) -> Sequence[Row]:
        return await engine.run(lambda s: ask_within(s)(name, values), protect=False, patient=True)

    return ask


def ask_within(s: Session) -> Ask:
    """Return a function that runs statements with a session."""

    async def ask(name: str, values: Mapping[str, object]) -> Sequence[Row]:
        query = find_statement(s, name)
        return await s.execute(query, query.bind(values))

    return ask


async def read_slice(ask: Ask, place: str, after: int) -> Slice:
    """Read the slice of a table that begins behind an id."""
    rows = await ask(f"count.{place}", {"after": after})
    groups = [
        Group(last, queue, state, serializer, read_key_ids(marks), linked, number)
        for last, queue, state, serializer, marks, linked, number, _ in rows
    ]
    last = max((group.last for group in groups), default=after)
    full = sum(looked_at for *_, looked_at in rows) >= SLICE
    return Slice(after, last, groups, last if full else None)


async def count_all(engine: Engine) -> list[Encoding]:
    """Count all data of the table, by queue, place, serializer and key; no key is needed for that."""
    return await _count(ask_alone(engine), None)


async def count_part(s: Session, most: int) -> list[Encoding]:
    """Count data as `count_all` does, of a part of the rows.

    Args:
        s: A session.
        most: Rows of each table that are looked at, about: those that were put first.
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
    last = FIRST
    while rows := await ask("callbacks", {"after": last}):
        for batch, _, text in rows:
            last = batch
            counts.add_pieces("batches", list(pieces_of_link(load_json(text))))
        if len(rows) < SLICE:
            break
    return counts.found()
