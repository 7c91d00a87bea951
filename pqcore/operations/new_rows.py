"""The rows that a put of many jobs stores, each with its own options, and their chunks."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pqcore.db.engine import Engine
from pqcore.errors import InvalidCall
from pqcore.operations.put import Times, behind_of, checked_options, times_of
from pqcore.put_options import Dedup, NewJob, PutOptions
from pqcore.settings import QueueSettings

if TYPE_CHECKING:
    from pqcore.operations.parents import Behind

EDGE_SIZE = 90
"""About how many characters a statement has for each job that a row waits for."""
_OWN = ("group", "limits", "headers", "tenant", "priority", "after")
_NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
encode_columns = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), default=datetime.isoformat
).encode
"""Encode columns of rows for the statements."""


class NewRow(NamedTuple):
    """A row to put.

    Attributes:
        place: The number of the item in its call, from 0.
        q_name: The queue.
        dedup: The dedup key, or None.
        text: The row's columns as a JSON object, in the form for the statements.
        behind: What the job waits for; None for nothing.
        columns: The row's columns, if the job may wait; empty otherwise.
        blocked: The values that `pqcore.operations.parents.await_parents` returned for the row; None before that, and
            if the job need not wait.
    """

    place: int
    q_name: str
    dedup: Dedup | None
    text: str
    behind: Behind | None = None
    columns: Mapping[str, Any] = _NO_COLUMNS
    blocked: Mapping[str, str] | None = None

    @classmethod
    def of(cls, place: int, values: Mapping[str, Any], dedup: Dedup | None, behind: Behind | None = None) -> NewRow:
        """Return the row for ``values``: the values of a statement of one row, but with the payload in base64."""
        columns = {name: value for name, value in values.items() if value is not None}
        if dedup is not None and dedup.period is None:
            columns["dedup_key"] = dedup.key
        text = encode_columns(columns)
        return cls(place, columns["q_name"], dedup, text, behind, columns if behind else _NO_COLUMNS)

    @property
    def size(self) -> int:
        """About how many characters the row adds to a statement."""
        return len(self.text) + (EDGE_SIZE * len(self.behind.parents) if self.behind else 0)

    @property
    def period(self) -> float | None:
        """The seconds for which the row's key is held; None without a key, or if the job's state decides how long."""
        return None if self.dedup is None else self.dedup.period

    @property
    def timed(self) -> bool:
        """Whether the row's key is held for a time; such keys are in a table of their own."""
        return self.period is not None

    @property
    def key(self) -> str:
        """The text of the dedup key; empty for none."""
        return "" if self.dedup is None else self.dedup.key

    @property
    def on_conflict(self) -> str:
        """What happens if another job has the key; empty without a key."""
        return "" if self.dedup is None else self.dedup.on_conflict

    def merged(self, later: NewRow) -> NewRow:
        """Merge this row with a later row of the same call that has the same key and replaces this row."""
        if self.dedup is None or self.on_conflict == "error":
            return self._replace(text=later.text, blocked=None)
        return self._replace(text=later.text, dedup=replace(self.dedup, on_conflict="replace"), blocked=None)

    def waiting(self, blocked: Mapping[str, str] | None) -> NewRow:
        """Return the row, changed so that its job waits for its parents; if ``blocked`` is None, return it unchanged.

        Args:
            blocked: See `NewRow`.
        """
        if blocked is None:
            return self
        return self._replace(text=encode_columns({**self.columns, "schedule_at": "infinity"}), blocked=blocked)


Chunk: TypeAlias = Sequence[NewRow]
"""Rows that one statement puts."""


def rows_of_jobs(
    engine: Engine, queue: QueueSettings, jobs: Iterable[object], times: Times, options: Mapping[str, Any]
) -> Iterator[NewRow]:
    """Return the rows of jobs that were given to `put_many`, encoded one by one.

    Args:
        engine: The engine.
        queue: The queue.
        jobs: The jobs.
        times: The times of jobs that give none.
        options: The options of jobs that give none; see `pqcore.operations.put.put`.

    Raises:
        InvalidCall: An item is no `NewJob`.
        PQError: An option is invalid, or the data of a job cannot be encoded.
    """
    common = checked_options(options)
    fixed = {"q_name": queue.name, "serializer": queue.serializer_name}
    for place, job in enumerate(jobs):
        if not isinstance(job, NewJob):
            kind = f"{type(job).__module__}.{type(job).__qualname__}"
            msg = f"item {place} of put_many is a {kind}, and item 0 is a NewJob; give either NewJob objects or data"
            raise InvalidCall(msg)
        chosen = _options_of(job, options, common)
        data, raw = queue.encode_row(job.data)
        payload = None if raw is None else base64.b64encode(raw).decode()
        values = {**fixed, "data": data, "payload": payload, **chosen.values(), **_times_of(job, times)}
        yield NewRow.of(place, values, chosen.dedup, behind_of(engine, queue, chosen))


def _options_of(job: NewJob, options: Mapping[str, Any], common: PutOptions) -> PutOptions:
    """Return the options of a job: for each option that the job does not give, the call's value."""
    dedup = job.dedup if job.dedup is None or isinstance(job.dedup, Dedup) else Dedup(job.dedup)
    own = {name: value for name in _OWN if (value := getattr(job, name)) is not None}
    if not own and (dedup is None or dedup.until != "started"):
        return replace(common, dedup=dedup)
    if "headers" in own:
        own["headers"] = {**(options.get("headers") or {}), **own["headers"]}
    return checked_options({**options, **own, "dedup": dedup})


def _times_of(job: NewJob, times: Times) -> Times:
    own = times_of(job.schedule_at, job.expected_at)
    if own is None:
        return times
    given = {"schedule": job.schedule_at, "expected": job.expected_at}
    return {name: times[name] if given[name[:8]] is None else value for name, value in own.items()}


def chunks_of(rows: Iterable[NewRow], most_rows: int, most_size: int) -> Iterator[Chunk]:
    """Return rows in chunks; a chunk is full with ``most_rows`` rows, or with ``most_size`` characters."""
    chunk: list[NewRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.size
        if len(chunk) >= most_rows or size >= most_size:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
