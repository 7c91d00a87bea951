"""Encoding and decoding within an operation, in a thread if the work could block the event loop."""

from __future__ import annotations

from typing import Any

from pqcore.db.engine import Engine
from pqcore.settings import Encoded, QueueSettings


async def encode(engine: Engine, queue: QueueSettings, data: Any) -> Encoded:
    """Return data as `QueueSettings.encode_row` does; use a thread if the work could block an event loop."""
    if not engine.runtime.suspends or queue.writes_quickly(data):
        return queue.encode_row(data)
    from asyncio import to_thread  # imported here, because asyncio takes long to import

    return await to_thread(queue.encode_row, data)


async def decode(engine: Engine, queue: QueueSettings, job_id: int, serializer: str | None, raw: str | bytes) -> Any:
    """Return data as `QueueSettings.decode_row` does; use a thread if the work could block an event loop."""
    if not engine.runtime.suspends or queue.reads_quickly(serializer, raw):
        return queue.decode_row(job_id, serializer, raw)
    from asyncio import to_thread

    return await to_thread(queue.decode_row, job_id, serializer, raw)
