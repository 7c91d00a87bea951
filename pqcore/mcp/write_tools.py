"""Tools that change jobs and rules; a server offers them only if changes are allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pqcore import json_views
from pqcore.errors import ConfigurationError
from pqcore.mcp.tool_arguments import (
    Age,
    JobId,
    JobIds,
    LimitName,
    PausedGroup,
    PausedLimit,
    PausedTask,
    QueueName,
    Time,
)
from pqcore.operations import admin, dead_letters, move, put, retry, rules
from pqcore.put_options import given
from pqcore.times import typed

if TYPE_CHECKING:
    from pqcore.mcp.answers import Redactor
    from pqcore.runner import PQRunner


class WriteTools:
    """The tools; the model reads their docstrings.

    Args:
        runner: The runner of operations on the table.
        redactor: The maker of answers.
    """

    def __init__(self, runner: PQRunner, redactor: Redactor) -> None:
        self._runner = runner
        self._redactor = redactor

    async def put_job(
        self,
        queue: QueueName,
        data: Annotated[str, Field(description='The data, as JSON text, as in \'{"to": "ann"}\'.')],
        schedule_at: Annotated[
            Time | None,
            Field(description="Run the job no earlier than this: a time from now, as in '5m', or in ISO 8601."),
        ] = None,
        expected_at: Annotated[
            Time | None,
            Field(description="The time by which the job is wanted: jobs with an earlier time are taken first."),
        ] = None,
        dedup: Annotated[
            str | None, Field(description="A key that only one unfinished job of the queue can have.")
        ] = None,
    ) -> dict[str, Any]:
        """Put a job into a queue, and return its id.

        In a queue of tasks, a worker will run the function that the data names.

        If another job has the dedup key, nothing is put, and the answer has the id of that job.
        """
        settings = self._runner.queue(queue)
        value = json_views.read(data, "data")
        job_id = await self._runner.call(
            put.put, settings, value, typed(schedule_at), typed(expected_at), None, given(dedup=dedup)
        )
        return self._redactor.document({"id": job_id, "queue": settings.name})

    async def retry_jobs(self, queue: QueueName, job_ids: JobIds) -> dict[str, Any]:
        """Make dead, done or scheduled jobs due now; they keep their ids.

        Jobs that wait for other jobs no longer wait for them.

        Dead or done jobs run once more, with their follow-ups. Other jobs are not changed. `was` has the previous state
        of each job; `none` means that the job does not exist.
        """
        settings = self._runner.queue(queue)
        outcomes = [await self._runner.call(retry.retry, settings, job_id) for job_id in dict.fromkeys(job_ids)]
        return {
            "jobs": self._redactor.documents(
                {"id": each.id, "queue": settings.name, "was": each.state, "retried": each.done} for each in outcomes
            )
        }

    async def retry_dead_letters(
        self,
        queue: QueueName,
        reason: Annotated[
            Literal["failed", "crashed", "expired", "invalid", "unreadable", "parent"],
            Field(description="Only dead letters with this reason."),
        ],
    ) -> dict[str, Any]:
        """Retry the dead letters of a queue that have the given reason: they become due now, and keep their ids.

        Workers without the serializer or key postponed `unreadable` jobs for a week: retry them after the right workers
        are deployed.
        """
        settings = self._runner.queue(queue)
        retried = await self._runner.call(dead_letters.revive, settings, None, reason)
        return self._redactor.document({"queue": settings.name, "reason": reason, "retried": retried})

    async def cancel_job(
        self,
        queue: QueueName,
        job_id: JobId,
        running: Annotated[bool, Field(description="If the job runs, ask its worker to stop it.")] = False,
    ) -> dict[str, Any]:
        """Delete a waiting job, or, with `running`, ask the worker of a running job to stop it.

        `outcome` is `deleted`, `asked` (to stop), or `none` (neither).
        """
        settings = self._runner.queue(queue)
        outcome = "none"
        if await self._runner.call(admin.cancel, settings, job_id, running=False):
            outcome = "deleted"
        elif running and await self._runner.call(admin.cancel, settings, job_id, running=True):
            outcome = "asked"
        return self._redactor.document({"id": job_id, "queue": settings.name, "outcome": outcome})

    async def move_jobs(
        self,
        queue: QueueName,
        to: Annotated[str, Field(description="The queue to move the jobs to.")],
        job_ids: Annotated[
            JobIds | None, Field(description="The jobs to move. Give either `job_ids` or `all_jobs`.")
        ] = None,
        all_jobs: Annotated[
            bool, Field(description="Move all ready, scheduled and parked jobs, or `limit` of them.")
        ] = False,
        limit: Annotated[
            int | None, Field(ge=1, description="With `all_jobs`: move at most N jobs, the earliest due first.")
        ] = None,
    ) -> dict[str, Any]:
        """Move waiting, scheduled or parked jobs to another queue; they keep their ids, times and records.

        Running jobs stay, and so do jobs whose dedup key is taken in the other queue.
        """
        _say_which(job_ids, all_jobs=all_jobs)
        if job_ids and limit is not None:
            raise ConfigurationError(
                f"limit is {limit}, but job_ids is given; limit is only for all_jobs: leave out limit"
            )
        settings, target = self._runner.queue(queue), self._runner.queue(to)
        moved = await self._runner.call(move.move, settings, target, job_ids, limit)
        return self._redactor.document({"queue": settings.name, "to": target.name, "moved": moved})

    async def pause(
        self,
        queue: QueueName,
        until: Annotated[
            Time | None, Field(description="When the pause ends; without it, when `resume` is called.")
        ] = None,
        task: PausedTask | None = None,
        limit: PausedLimit | None = None,
        group: PausedGroup | None = None,
    ) -> dict[str, Any]:
        """Stop all jobs of a queue, or of one task, limit or group, from starting.

        Running jobs continue, and puts are accepted.

        Give at most one of `task`, `limit` and `group`; without any, the whole queue is paused.
        """
        settings = self._runner.queue(queue)
        await self._runner.call(rules.pause, settings, typed(until), task=task, limit=limit, group=group)
        what = {"task": task, "limit": limit, "group": group}
        return self._redactor.document({"queue": settings.name, **what, "paused": True})

    async def resume(
        self,
        queue: QueueName,
        task: PausedTask | None = None,
        limit: PausedLimit | None = None,
        group: PausedGroup | None = None,
    ) -> dict[str, Any]:
        """End a pause of a queue, or of one task, limit or group of it.

        `resumed` tells whether there was such a pause.
        """
        settings = self._runner.queue(queue)
        resumed = await self._runner.call(rules.resume, settings, task=task, limit=limit, group=group)
        what = {"task": task, "limit": limit, "group": group}
        return self._redactor.document({"queue": settings.name, **what, "resumed": resumed})

    async def set_limit(
        self,
        queue: QueueName,
        name: LimitName,
        places: Annotated[int | None, Field(description="Number of jobs; null to remove the rule.")],
    ) -> dict[str, Any]:
        """Set how many jobs under a limit may run concurrently.

        This rule overrides the numbers with which jobs were put. Without a rule, the number of the newest job applies.
        """
        settings = self._runner.queue(queue)
        await self._runner.call(rules.set_limit, settings, name, places)
        return self._redactor.document({"queue": settings.name, "name": name, "places": places})

    async def set_rate(
        self,
        queue: QueueName,
        name: LimitName,
        rate: Annotated[
            str | None,
            Field(description="Jobs per time, as in '10/s', '600/min' or '100/5m'; null to remove the rule."),
        ],
    ) -> dict[str, Any]:
        """Set how many jobs under a limit may begin in a period."""
        settings = self._runner.queue(queue)
        await self._runner.call(rules.set_rate, settings, name, rate)
        return self._redactor.document({"queue": settings.name, "name": name, "rate": rate})

    async def set_weight(
        self,
        queue: QueueName,
        share: Annotated[str, Field(description="The share; '' is the share of jobs that name none.")],
        weight: Annotated[float | None, Field(description="A number above 0; null to remove the rule, which means 1.")],
    ) -> dict[str, Any]:
        """Set the weight of a share.

        A share of weight 3 gets three times as many jobs as a share of weight 1, while both shares have jobs.
        """
        settings = self._runner.queue(queue)
        await self._runner.call(rules.set_weight, settings, share, weight)
        return self._redactor.document({"queue": settings.name, "share": share, "weight": weight})

    async def purge_finished(
        self,
        queue: QueueName,
        older_than: Annotated[
            Age, Field(description="Only jobs that finished at least this long ago, as in '14d'; '0s' for all.")
        ],
    ) -> dict[str, Any]:
        """Delete the rows of done jobs, kept or archived, permanently. Waiting jobs and dead letters stay."""
        settings = self._runner.queue(queue)
        purged = await self._runner.call(admin.purge, settings, older_than)
        return self._redactor.document({"queue": settings.name, "purged": purged})

    async def purge_dead_letters(
        self,
        queue: QueueName,
        older_than: Annotated[
            Age, Field(description="Only jobs that died at least this long ago, as in '14d'; '0s' for all.")
        ],
        job_ids: Annotated[
            JobIds | None, Field(description="The dead letters to delete. Give either `job_ids` or `all_jobs`.")
        ] = None,
        all_jobs: Annotated[
            bool, Field(description="Delete all dead letters of the queue that are old enough.")
        ] = False,
    ) -> dict[str, Any]:
        """Delete jobs that failed for good, with their errors."""
        _say_which(job_ids, all_jobs=all_jobs)
        settings = self._runner.queue(queue)
        purged = await self._runner.call(dead_letters.purge, settings, job_ids, older_than)
        return self._redactor.document({"queue": settings.name, "purged": purged})


def _say_which(job_ids: list[int] | None, *, all_jobs: bool) -> None:
    if bool(job_ids) == all_jobs:
        raise ConfigurationError(
            f"job_ids is {job_ids!r} and all_jobs is {all_jobs}; give the ids of jobs, or set all_jobs to true"
        )
