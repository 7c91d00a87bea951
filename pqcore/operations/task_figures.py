"""The numbers of jobs of each task of a queue."""

from __future__ import annotations

from dataclasses import dataclass

from pqcore.db.engine import Engine


@dataclass(frozen=True)
class TaskFigures:
    """The numbers of jobs of a task in a queue, among the first 10,000 jobs of each class.

    Attributes:
        task: The path of the function.
        waiting: Jobs that wait: ready, scheduled or parked.
        leased: Jobs held under a lease.
        done: Jobs finished within the last hour, among the jobs that were put last.
        dead: Dead letters.
        failed: Unfinished jobs that have failed at least once.
    """

    task: str
    waiting: int
    leased: int
    done: int
    dead: int
    failed: int


async def count_by_task(engine: Engine, queue: str, n: int) -> list[TaskFigures]:
    """Count the jobs of a queue by task; the tasks with the most jobs come first.

    Args:
        engine: The engine.
        queue: The name of the queue.
        n: The largest number of tasks to return.
    """
    values = {"q_name": queue, "n": n}
    rows = await engine.execute("admin.count_by_task", values, protect=False, patient=True)
    return [TaskFigures(task, *map(int, numbers)) for task, *numbers in rows]
