"""The results of the jobs that a job waited for."""

from __future__ import annotations

from typing import Any

from pqcore.db.engine import Engine
from pqcore.errors import PayloadTooLarge
from pqcore.job import BaseJob
from pqcore.operations.serialize import decode
from pqcore.settings import QueueSettings

LARGEST = 16 * 2**20
"""The largest number of bytes that the results of a job's parents may have in all."""


async def read_parent_results(engine: Engine, queue: QueueSettings, job: BaseJob) -> dict[int, Any]:
    """Return the results of the jobs that a job waited for, by id; jobs without a kept result are left out.

    Args:
        engine: The engine.
        queue: The queue of the job, whose serializers decode the results.
        job: The job.

    Raises:
        DeserializationError: The queue cannot decode a result.
        PayloadTooLarge: The results have more than `LARGEST` bytes in all.
    """
    parents = job.headers.get("depends_on")
    if not isinstance(parents, list) or not parents:
        return {}
    values = {"ids": [each for each in parents if type(each) is int], "put_at": job.enqueued_at}
    [[size]] = await engine.execute("dependencies.size_of_results", values, protect=False)
    if size > LARGEST:
        msg = f"the results of the jobs that job {job.id} waited for have {size:,} bytes; at most {LARGEST:,} are read"
        raise PayloadTooLarge(f"{msg}: read them one by one, with queue.result(id)")
    rows = await engine.execute("dependencies.find_results", values, protect=False)
    found: dict[int, Any] = {}
    for job_id, data, payload, serializer in rows:
        raw = data if payload is None else bytes(payload)
        found[job_id] = await decode(engine, queue, job_id, serializer, "null" if raw is None else raw)
    return found
