"""The batches whose jobs have not all ended, and the calls that follow a job, for the command line and the web page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pqcore.db.engine import Engine
from pqcore.times import UtcDatetime


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose jobs have not all ended.

    Attributes:
        id: The id of the batch.
        queue: The name of the queue in which it was opened.
        total: The number of its jobs.
        pending: The number of its jobs that have not ended.
        failed: The number of its jobs that have failed for good.
        opened_at: When the batch was put.
        then: The path of the function that is called after the batch; empty if the put that follows is not a call; None
            if nothing follows.
    """

    id: int
    queue: str
    total: int
    pending: int
    failed: int
    opened_at: UtcDatetime
    then: str | None


async def list_open_batches(engine: Engine, queue: str, n: int) -> list[OpenBatch]:
    """List the batches of a queue whose jobs have not all ended, the latest first.

    Args:
        engine: The engine.
        queue: The name of the queue.
        n: The largest number of batches to return.
    """
    rows = await engine.execute("admin.list_batches", {"q_name": queue, "id": None, "n": n}, protect=False)
    return [_batch(row) for row in rows]


async def find_open_batch(engine: Engine, batch: int) -> OpenBatch | None:
    """Return a batch; None if all of its jobs have ended."""
    rows = await engine.execute("admin.list_batches", {"q_name": None, "id": batch, "n": 1}, protect=False)
    return _batch(rows[0]) if rows else None


def following_calls(headers: Mapping[str, Any]) -> list[str]:
    """For each later put of a job's chain, return the path of the function that it calls; empty if it is not a call.

    Args:
        headers: The headers of the job.
    """
    links = headers.get("then")
    return [_function(link) for link in links] if isinstance(links, list) else []


def _batch(row: Any) -> OpenBatch:
    number, queue, total, pending, failed, opened_at, callback = row
    then = None if callback is None else _function(_parsed(callback))
    return OpenBatch(
        int(number),
        queue,
        int(total),
        int(pending),
        int(failed),
        cast(UtcDatetime, UtcDatetime.of(opened_at)),
        then,
    )


def _function(link: Any) -> str:
    """Return the path of the function that a stored put calls; empty for a put that is not a call."""
    data = _parsed(link.get("data")) if isinstance(link, dict) else None
    path = data.get("function") if isinstance(data, dict) else None
    return path if isinstance(path, str) else ""


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
