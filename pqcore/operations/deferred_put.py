"""Puts of encoded data. A `StoredPut` happens later, in a chain or after a batch; a `DirectPut` happens now."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pqcore.lanes import lane_of_gate, lane_values
from pqcore.operations.put import NO_TIMES, Times
from pqcore.put_options import Dedup
from pqcore.settings import Encoded, QueueSettings

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.operations.parents import Behind


@dataclass(frozen=True)
class StoredPut:
    """An encoded row, in a form that JSON can hold.

    Attributes:
        queue: The queue's name.
        serializer: The name of the serializer that encoded the data.
        data: JSON text, or None.
        payload: Bytes in base64, or None.
        headers: The headers of the job.
        delay: Seconds from the put until the job is due.
    """

    queue: str
    serializer: str
    data: str | None
    payload: str | None
    headers: dict[str, Any]
    delay: float | None = None

    @classmethod
    def encode(cls, queue: QueueSettings, data: Any, headers: dict[str, Any], delay: float | None = None) -> Self:
        """Return what a put of this data would store."""
        return cls.of(queue, queue.encode_row(data), headers, delay)

    @classmethod
    def of(cls, queue: QueueSettings, encoded: Encoded, headers: dict[str, Any], delay: float | None = None) -> Self:
        """Return what a put stores for data that was already encoded."""
        payload = None if encoded.payload is None else base64.b64encode(encoded.payload).decode()
        return cls(queue.name, queue.serializer_name, encoded.data, payload, headers, delay)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> StoredPut:
        """Read what `to_json` wrote."""
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """Return the put as a value that JSON can hold."""
        return dict(vars(self))

    def after(self, queue: QueueSettings, result: Encoded, chain: list[dict[str, Any]]) -> StoredPut:
        """Return the same put with two more headers: the previous job's result, and the remaining calls of the chain.

        Args:
            queue: The queue whose serializer encoded the result.
            result: The result of the job before.
            chain: The calls that come after this one.
        """
        previous = StoredPut.of(queue, result, {}).to_json()
        headers = {**self.headers, "previous": {key: previous[key] for key in ("data", "payload", "serializer")}}
        if chain:
            headers["then"] = chain
        return replace(self, headers=headers)

    @staticmethod
    def read_previous(queue: QueueSettings, job_id: int, stored: dict[str, Any]) -> Any:
        """Decode the result of the previous job of the chain, which `after` stored in the headers."""
        raw = stored["data"] if stored["payload"] is None else base64.b64decode(stored["payload"])
        return queue.decode_row(job_id, stored["serializer"], raw)

    def with_headers(self, headers: dict[str, Any]) -> Self:
        """Return the same put with additional headers, which the later calls of its chain get, too.

        If the put already has a header of the same name, that header stays.
        """
        if not headers:
            return self
        merged = {**headers, **self.headers}
        if "then" in merged:
            merged["then"] = [{**link, "headers": {**headers, **link["headers"]}} for link in merged["then"]]
        return replace(self, headers=merged)

    def values(self) -> dict[str, object]:
        """Return the values of the statement that puts the job."""
        return {**self.columns(), "payload": None if self.payload is None else base64.b64decode(self.payload)}

    def columns(self) -> dict[str, object]:
        """Return the values of a statement that puts the job together with other jobs: the payload is in base64."""
        gate = self.headers.get("gate", {})
        return {
            **NO_TIMES,
            "q_name": self.queue,
            "serializer": self.serializer,
            "data": self.data,
            "payload": self.payload,
            "headers": json.dumps(self.headers, separators=(",", ":")) if self.headers else None,
            "group_key": gate.get("group"),
            **lane_values(lane_of_gate(gate)),
            "schedule_in": self.delay,
        }


@dataclass(frozen=True)
class DirectPut(StoredPut):
    """An encoded row that is put now, together with other rows; it is never stored as JSON for a later put.

    Attributes:
        times: The times, in the form for the statements.
        dedup: The dedup key, or None.
        behind: What the job waits for; None for nothing.
    """

    times: Times = field(default_factory=lambda: NO_TIMES)
    dedup: Dedup | None = None
    behind: Behind | None = None

    def columns(self) -> dict[str, object]:
        """Return the values of the statement that puts the job, without the dedup key."""
        return {**super().columns(), **self.times}
