"""Tools that read, and change nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pqcore import json_views
from pqcore.dead_letters import DeadLetter
from pqcore.doctor.examine import examine
from pqcore.job import BaseJob
from pqcore.mcp.tool_arguments import Age, JobId, QueueName, State
from pqcore.operations import (
    admin,
    attempts,
    dead_letters,
    explain,
    fetch,
    limits,
    list_jobs,
    rules,
    worker_registry,
)

if TYPE_CHECKING:
    from pqcore.mcp.answers import Redactor
    from pqcore.runner import PQRunner


class ReadTools:
    """The tools; the model reads their docstrings.

    Args:
        runner: The runner of operations on the table.
        redactor: The maker of answers.
    """

    def __init__(self, runner: PQRunner, redactor: Redactor) -> None:
        self._runner = runner
        self._redactor = redactor

    async def list_queues(self, queue: QueueName | None = None) -> dict[str, Any]:
        """List the queues, with the number of jobs in each state.

        `ready` jobs are due and wait for a worker. `scheduled` jobs are not due yet. `leased` jobs are being run.
        `parked` jobs wait for a place under a limit, or for their turn in a group. `dead` jobs failed for good.
        `oldest` is the number of seconds for which the oldest ready job has been due. A queue without any of these jobs
        is listed only if it is named.
        """
        settings = None if queue is None else self._runner.queue(queue)
        found = await self._runner.call(admin.count_queues, settings)
        return {"queues": self._redactor.documents(json_views.figures(name, each) for name, each in found.items())}

    async def list_jobs(
        self,
        queue: QueueName,
        states: Annotated[
            list[State] | None, Field(description="Only jobs in these states; without it, all unfinished jobs.")
        ] = None,
        task: Annotated[
            str | None, Field(description="Only calls of this function, by its path, as in 'app.tasks.send'.")
        ] = None,
        older_than: Annotated[
            Age | None, Field(description="Only jobs that were put at least this long ago, as in '1h'.")
        ] = None,
        failed: Annotated[bool, Field(description="Only jobs that have failed at least once.")] = False,
        limit: Annotated[int, Field(ge=1, le=500, description="Number of jobs, at most.")] = 50,
    ) -> dict[str, Any]:
        """List jobs of a queue by state, without their data.

        Waiting jobs come in the order in which they will be taken; done and dead jobs come latest first. A filter that
        matches few jobs of a large queue is slow.
        """
        found = await self._runner.call(
            list_jobs.list_by_state,
            self._runner.queue(queue),
            list_jobs.UNFINISHED if states is None else states,
            limit,
            task=task,
            older_than=older_than,
            failed=failed,
        )
        return {"jobs": self._redactor.documents(map(json_views.stored, found)), "more": len(found) == limit}

    async def show_job(self, job_id: JobId, queue: QueueName | None = None) -> dict[str, Any]:
        """Show everything that is stored about one job, in any state: its state, times, data, and the last traceback.

        `past_attempts` has the attempts that failed, crashed or were snoozed. `runs` tells which worker runs the job,
        and since when. Fields that are listed in `cut` are incomplete. Data that is not JSON is not decoded; `payload`
        has it in base64.
        """
        settings = None if queue is None else self._runner.queue(queue)
        job = await self._runner.call(list_jobs.get_full_job, job_id, settings, self._redactor.reach)
        past = await self._runner.call(attempts.read_attempts, job.queue, job_id)
        runs = None
        if job.state == "leased":
            runs = await self._runner.call(worker_registry.find_runner, self._runner.queue(job.queue), job_id)
        fields = {**json_views.whole(job), "size": job.size, "runs": json_views.runs(runs)}
        fields["past_attempts"] = json_views.past_attempts(past)
        if isinstance(job.raw, str) and job.size > self._redactor.reach and fields["data"] is None:
            fields["data"] = job.raw  # the beginning of the data, which is not JSON
        return self._redactor.document(fields)

    async def explain_job(self, job_id: JobId, queue: QueueName | None = None) -> dict[str, Any]:
        """Tell why a job does not run: each cause in a sentence, with the action that removes the cause.

        The most important cause comes first. If no cause is listed, nothing keeps the job from running. `position` is
        the number of jobs that come before this job. `notes` do not keep the job from running. `past_attempts` has the
        attempts that failed, crashed or were snoozed.
        """
        settings = None if queue is None else self._runner.queue(queue)
        found = await self._runner.call(explain.explain, job_id, settings)
        return self._redactor.explanation(json_views.explanation(found))

    async def peek_jobs(
        self, queue: QueueName, limit: Annotated[int, Field(ge=1, le=20, description="Number of jobs, at most.")] = 5
    ) -> dict[str, Any]:
        """Show the next due jobs of a queue, in order, with their data, without taking them."""
        settings = self._runner.queue(queue)
        rows = await self._runner.call(fetch.peek, settings, limit)
        jobs = (json_views.taken(BaseJob(settings, row), settings.name) for row in rows)
        return {"jobs": self._redactor.documents(jobs)}

    async def list_dead_letters(
        self, queue: QueueName, limit: Annotated[int, Field(ge=1, le=100, description="Number of jobs, at most.")] = 10
    ) -> dict[str, Any]:
        """List the dead letters of a queue (jobs that failed for good), the latest first, with error and traceback.

        `reason` is the cause: `failed` (no retries left), `crashed` (running the job killed its workers), `expired`
        (the deadline had passed), `invalid` (the data is damaged), `unreadable` (no worker had the serializer or key).
        `total` is the number of dead letters. `show_job` shows the data of a dead letter.
        """
        settings = self._runner.queue(queue)
        rows = await self._runner.call(dead_letters.list_latest, settings, limit)
        found = [DeadLetter(settings, row) for row in rows]
        total = len(found) if len(found) < limit else await self._runner.call(dead_letters.count, settings)
        dead = ({**json_views.letter(each, settings.name), "error": each.error or None} for each in found)
        return {"dead_letters": self._redactor.documents(dead), "total": total}

    async def list_workers(self, queue: QueueName | None = None) -> dict[str, Any]:
        """List the workers, with the queues and tasks (paths of functions) of each, and the jobs that it runs.

        `alive` tells whether a worker has renewed its row within the last minute. A worker that is not alive has died,
        or cannot reach the server. `app.emails.*` stands for all functions of a module. `running` has the jobs that the
        worker ran when it last renewed its row, which it does every 10 s.
        """
        settings = None if queue is None else self._runner.queue(queue)
        found = await self._runner.call(worker_registry.list_workers, settings)
        return {"workers": self._redactor.documents(map(json_views.worker, found))}

    async def list_rules(self, queue: QueueName) -> dict[str, Any]:
        """List the rules that operators have set for a queue: limits, rates, weights of shares, and pauses.

        Each rule has a `kind` and a `name`. For a limit, `number` is how many jobs under it may run concurrently. For a
        rate, `number` jobs may begin in `period` seconds. For a pause, `name` is `queue`, or `task:`, `limit:` or
        `group:` followed by a name; the pause ends at `until`, or when an operator ends the pause.
        """
        settings = self._runner.queue(queue)
        found = await self._runner.call(rules.list_rules, settings)
        return {"rules": self._redactor.documents(json_views.rule(each, settings.name) for each in found)}

    async def list_limits(self, queue: QueueName) -> dict[str, Any]:
        """List the limits and groups of a queue that are in use.

        `places` is how many jobs may run concurrently. `rule` is the number that an operator has set, and `newest` the
        number with which the newest job was put. `rate` is how many jobs may begin in a period. `running` has the ids
        of the jobs that run under the limit or group, and `waiting` the number of waiting jobs.
        """
        settings = self._runner.queue(queue)
        found = await self._runner.call(limits.list_limits, settings)
        return {"limits": self._redactor.documents(json_views.limit(each, settings.name) for each in found)}

    async def run_doctor(
        self,
        queues: Annotated[
            list[QueueName] | None,
            Field(
                max_length=10,
                description="The queues whose take statements are explained; without it, the three with most jobs.",
            ),
        ] = None,
    ) -> dict[str, Any]:
        """Look for problems of the table, its server, or the connection, and say what to do.

        Each finding has a `level` of `ok`, `warning` or `problem`, a `message`, and `advice`. The statements that take
        jobs are only planned (EXPLAIN), not run.
        """
        names = [self._runner.queue(name).name for name in queues or ()]
        found = await self._runner.call(examine, names)
        return {"findings": self._redactor.documents(map(asdict, found))}
