"""A put that is to happen later: the next of a chain, what follows a batch."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import Any

from pqcore.lanes import lane_of_gate, lane_values
from pqcore.operations.put import NO_TIMES
from pqcore.settings import Encoded, QueueSettings


@dataclass(frozen=True)
class StoredPut:
    """A row, encoded, as JSON can hold it.

    Attributes:
        queue: The queue's name.
        serializer: Who encoded it.
        data: JSON text, or None.
        payload: Bytes in base64, or None.
        headers: Its headers.
        delay: Seconds, from when it is put until it is due.
    """

    queue: str
    serializer: str
    data: str | None
    payload: str | None
    headers: dict[str, Any]
    delay: float | None = None

    @classmethod
    def encode(cls, queue: QueueSettings, data: Any, headers: dict[str, Any], delay: float | None = None) -> StoredPut:
        """What a put of this data would store."""
        return cls.of(queue, queue.encode_row(data), headers, delay)

    @classmethod
    def of(
        cls, queue: QueueSettings, encoded: Encoded, headers: dict[str, Any], delay: float | None = None
    ) -> StoredPut:
        """Return what a put of data stores that was encoded already."""
        payload = None if encoded.payload is None else base64.b64encode(encoded.payload).decode()
        return cls(queue.name, queue.serializer_name, encoded.data, payload, headers, delay)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> StoredPut:
        """Read what `to_json` wrote."""
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dict(vars(self))

    def after(self, queue: QueueSettings, result: Encoded, chain: list[dict[str, Any]]) -> StoredPut:
        """Return the same, told of what came before it, and of what comes after.

        Args:
            queue: Whose serializer encoded the result.
            result: What came before.
            chain: What comes after.
        """
        previous = StoredPut.of(queue, result, {}).to_json()
        headers = {**self.headers, "previous": {key: previous[key] for key in ("data", "payload", "serializer")}}
        if chain:
            headers["then"] = chain
        return replace(self, headers=headers)

    @staticmethod
    def read_previous(queue: QueueSettings, job_id: int, stored: dict[str, Any]) -> Any:
        """What came before, as `after` wrote it."""
        raw = stored["data"] if stored["payload"] is None else base64.b64decode(stored["payload"])
        return queue.decode_row(job_id, stored["serializer"], raw)

    def with_headers(self, headers: dict[str, Any]) -> StoredPut:
        """The same with further headers, on those that come after it too; its own stay as they are."""
        if not headers:
            return self
        merged = {**headers, **self.headers}
        if "then" in merged:
            merged["then"] = [{**link, "headers": {**headers, **link["headers"]}} for link in merged["then"]]
        return replace(self, headers=merged)

    def values(self) -> dict[str, object]:
        """The values of the statement that puts it."""
        gate = self.headers.get("gate", {})
        return {
            **NO_TIMES,
            "q_name": self.queue,
            "serializer": self.serializer,
            "data": self.data,
            "payload": None if self.payload is None else base64.b64decode(self.payload),
            "headers": json.dumps(self.headers) if self.headers else None,
            "group_key": gate.get("group"),
            **lane_values(lane_of_gate(gate)),
            "schedule_in": self.delay,
        }
