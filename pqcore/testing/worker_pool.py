"""Worker processes that a test starts, kills and stops, and a record of what they have run."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pqcore.testing import workers
from pqcore.testing.consumers import Child
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.workers import Site

if TYPE_CHECKING:
    from typing_extensions import Self


class WorkerPool:
    """Worker processes, and the jobs that they get.

    Args:
        harness: The harness of the test.
        task: The options of the tasks, `workers.FUNCTIONS`.
        **options: The options of the workers.

    Attributes:
        site: The values that the processes get.
        queue: The queue.
        tasks: The tasks that put jobs, by the function's name.
    """

    def __init__(self, harness: Harness, task: dict[str, Any] | None = None, **options: Any) -> None:
        self._harness = harness
        self.site = Site(harness.spec.name, harness.mode, harness.dsn, harness.schema, options, task or {})
        for statement in self.site.tables():
            harness.sql(statement, rows=False)
        self.queue = harness.task_queue()
        self.tasks = {name: self.queue.task(**self.site.task)(self.site.function(name)) for name in workers.FUNCTIONS}
        self._stack = ExitStack()
        self._children: dict[int, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    # Processes

    def hire(self) -> Child:
        """Start a worker."""
        child = Child(workers.work, self.site)
        self._children[child.process.pid or 0] = child
        self._stack.callback(child.kill)
        return child

    def hire_one(self) -> Child:
        """Start a process that performs one job at a time in its main thread; for blocking backends."""
        child = Child(workers.work_here, self.site)
        self._stack.callback(child.kill)
        return child

    def at_work(self, child: Child) -> Child:
        """Wait until the worker reports that it starts."""
        assert child.recv(3 * PATIENCE) == "starts"
        return child

    def kill_one(self, rng: random.Random) -> None:
        """Send SIGKILL to a worker that has just started a job, or to any worker if no worker has."""
        latest = f"SELECT worker FROM {self.site.table('runs')} ORDER BY at DESC LIMIT 10"
        busy = {worker for (worker,) in self._harness.sql(latest)} & set(self._children)
        self._children.pop(rng.choice(sorted(busy or self._children))).kill()

    # Runs of jobs

    def runs(self, where: str = "true") -> list[tuple[int, int, int, str | None]]:
        """Return the job, attempt and process of each run, and how the run ended."""
        rows = self._harness.sql(
            f"SELECT job, attempt, worker, ended FROM {self.site.table('runs')} WHERE {where} ORDER BY 1, 2"
        )
        return [(job, attempt, worker, ended) for job, attempt, worker, ended in rows]

    def count(self) -> int:
        """Return how many runs have started."""
        [[number]] = self._harness.sql(f"SELECT count(*) FROM {self.site.table('runs')}")
        return int(number)

    def begun(self, job_id: int, attempt: int = 1) -> int:
        """Wait until a job has started; return its process."""
        where = f"job = {job_id} AND attempt = {attempt}"
        [run] = self._harness.eventually(lambda: self.runs(where))
        return int(run[2])

    def ended(self, job_id: int, attempt: int = 1) -> str:
        """Wait until the function of a job has ended; return how it ended."""
        where = f"job = {job_id} AND attempt = {attempt} AND ended IS NOT NULL"
        [run] = self._harness.eventually(lambda: self.runs(where))
        return str(run[3])

    def release(self, *jobs: int) -> None:
        """Let functions continue."""
        values = ", ".join(f"({int(job)})" for job in jobs)
        self._harness.sql(f"INSERT INTO {self.site.table('released')} VALUES {values}", rows=False)

    # Jobs

    def row(self, job_id: int) -> tuple[Any, ...]:
        """Return whether the job is finished, whether it is leased, its attempts and its excused attempts."""
        [found] = self._harness.sql(
            "SELECT dequeued_at IS NOT NULL, leased_until IS NOT NULL, attempts, coalesce(excused, 0)"
            f" FROM {{table}} WHERE id = {int(job_id)}"
        )
        return tuple(found)

    def all_done(self) -> bool:
        """Return whether no job is left."""
        return not self._harness.sql("SELECT 1 FROM {table} WHERE dequeued_at IS NULL LIMIT 1")

    def account(self, number: int, *, failures: bool = False) -> None:
        """Check that every job was done under its last lease, and that every job that ran twice was delivered twice.

        Args:
            number: The number of jobs that were put.
            failures: Whether functions may have failed.
        """
        rows = self._harness.sql("SELECT id, attempts, coalesce(failures, 0), coalesce(excused, 0) FROM {table}")
        assert len(rows) == number
        assert self.all_done()
        assert self.queue.dead.count() == 0
        runs: dict[int, list[int]] = {}
        for job, attempt, _, _ in self.runs():
            runs.setdefault(job, []).append(attempt)
        for job, attempts, failed, excused in rows:
            assert failures or failed == 0
            assert runs[job][-1] == attempts, "it was finished by another run than the last"
            assert len(runs[job]) <= attempts - excused, "it was run more often than it was delivered"
        assert any(attempts - excused > 1 for _, attempts, _, excused in rows), "nobody died of being killed"
        assert any(len(attempts) > 1 for attempts in runs.values()), "nobody was killed in the middle of a job"
