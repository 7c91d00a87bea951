"""Waiting jobs of unknown tasks: such a job cannot run before a worker that knows its task is deployed."""

from __future__ import annotations

from dataclasses import dataclass

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.operations.worker_registry import knows, list_workers_of


@dataclass(frozen=True)
class UnknownTask:
    """The waiting jobs of a task that no living worker of their queue knows.

    Attributes:
        queue: The name of the queue.
        task: The path of the function.
        number: The number of waiting jobs, among the first 10,000 of each class of waiting jobs.
        workers: The number of the queue's workers that are alive.
    """

    queue: str
    task: str
    number: int
    workers: int


async def list_unknown_tasks(engine: Engine) -> list[UnknownTask]:
    """List the tasks of waiting jobs that no living worker of their queue knows, by queue and path."""

    async def work(s: Session) -> list[UnknownTask]:
        rows = await s.execute(s.sql.admin.waiting_tasks)
        workers = [worker for worker in await list_workers_of(s, None) if worker.alive] if rows else []
        found = []
        for queue, task, number in rows:
            here = [worker for worker in workers if queue in worker.queues]
            if not any(knows(worker, task) for worker in here):
                found.append(UnknownTask(queue, task, int(number), len(here)))
        return found

    return await engine.run(work, protect=False, patient=True)
