"""The values for the template of each page."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from pqcore.errors import AccessDenied, ConfigurationError, DatabaseError, JobNotFound, StatementCancelled
from pqcore.operations import activity, limits, list_jobs, results, rules, worker_registry
from pqcore.operations.activity import Tick
from pqcore.operations.attempts import read_attempts
from pqcore.operations.dead_groups import DeadGroup, list_dead_groups
from pqcore.operations.explain import explain
from pqcore.operations.list_jobs import STATES, UNFINISHED, StoredJob, WholeJob
from pqcore.operations.open_batches import OpenBatch, find_open_batch, following_calls, list_open_batches
from pqcore.operations.task_figures import TaskFigures, count_by_task
from pqcore.operations.worker_registry import WorkerInfo
from pqcore.settings import QueueSettings
from pqcore.tasks.periodic import NOTICED, seconds_late, ticks_after
from pqcore.web import rendering
from pqcore.web.actions import ACTIONS, change_of_rule, possible
from pqcore.web.charts import Chart, chart
from pqcore.web.history import SPANS, USUAL, History, Past
from pqcore.web.sampling import Figures, Sample, Sampler, remember
from pqcore.web.target import Target
from pqcore.web.time_limits import ANSWER, SEARCH, NoAnswer, within

STEPS = (25, 100, 500)
"""The lengths of a list of jobs that a visitor can choose from."""
BUSIEST = 20
"""The largest number of queues that are read, where jobs of several queues are listed together."""
MOST_COUNTED = 20_000
"""The largest number of jobs of a queue that are counted by limit and group each time its page is shown."""
MOST_TASKS = 50
"""The largest number of tasks of a queue whose figures are shown."""
TASKS_RENEWED = 30.0
"""Seconds after which the jobs of a queue are counted by task again."""
MOST_GROUPS = 50
"""The largest number of groups of dead letters that are shown."""
MOST_SEARCHED = 200
"""The largest number of characters of a searched text, and of a progress that is shown."""

_DIGITS = 19
"""The largest number of digits of a job's id."""

Query = Mapping[str, str]
View = dict[str, Any]
Runs = dict[tuple[str, int], tuple[WorkerInfo, datetime]]
"""The worker that runs each job, and since when, by the queue and the id of the job."""


class ScheduledTick(NamedTuple):
    """A periodic task with its next tick.

    Attributes:
        tick: The task and its last tick.
        coming: The next tick; None if it is unknown.
        late: Whether a tick is due that no worker has put.
    """

    tick: Tick
    coming: datetime | None
    late: bool


class Views:
    """The pages of a table.

    Args:
        target: The table.
        sampler: The sampler that reads the table for pages that are kept up to date.
        changes: Whether visitors can change jobs.
    """

    def __init__(self, target: Target, sampler: Sampler, *, changes: bool) -> None:
        self._target = target
        self._sampler = sampler
        self._history = History(target, sampler)
        self._changes = changes
        self._tasks: dict[str, tuple[float, Sequence[TaskFigures]]] = {}

    async def queues(self, query: Query) -> View:
        """Return the values of the page of all queues."""
        sample = await self._sampler.shown()
        past = await self._history.of_queues(list(sample.queues))
        return {
            "sample": sample,
            "total": sample.total(),
            "queues": [(name, figures, self._spark(past[name])) for name, figures in sample.queues.items()],
        }

    async def queue(self, query: Query) -> View:
        """Return the values of a queue's page, with its jobs by state, task or id.

        Raises:
            InvalidName: No queue can have this name.
        """
        name, state, task = query.get("name", ""), query.get("state", ""), query.get("task", "")
        settings = self._target.queue(name)
        span = query.get("span", "") if query.get("span", "") in SPANS else USUAL
        sample = await self._sampler.shown()
        n, search = _step(query.get("n", "")), query.get("search", "").replace("\0", "")[:MOST_SEARCHED]
        states, skip = _begin((state,) if state in STATES else UNFINISHED, query.get("from", ""))
        jobs: list[StoredJob] = []
        too_slow = False
        if "still" not in query:
            listed = partial(list_jobs.list_by_state, task=task or None, search=search or None, skip=skip)
            try:
                jobs = await within(SEARCH, self._target.search(listed, settings, states, n))
            except (NoAnswer, StatementCancelled):
                too_slow = True
        running = await self._target.read(list_jobs.list_by_state, settings, ("leased",), STEPS[0])
        return {
            "name": name,
            "figures": sample.queues.get(name, Figures()),
            "charts": self._charts(await self._history.of_queue(name, SPANS[span])),
            "spans": SPANS,
            "usual": USUAL,
            "span": span,
            "running": running,
            "progress": await self._progress_of(running),
            "runs": await self._runs(settings),
            "jobs": jobs,
            "state": state if state in STATES else "",
            "states": STATES,
            "task": task,
            "n": n,
            "more": next((step for step in STEPS if step > n), None) if len(jobs) == n and not skip else None,
            "begin": query.get("from", ""),
            "next": _next(jobs, states, skip) if len(jobs) == n else None,
            "search": search,
            "too_slow": too_slow,
            "unknown": [each for each in sample.unknown if each.queue == name],
            "tasks": await self._tasks_of(name),
            "batches": await self._batches_of(name),
            "sample": sample,
            "limits": await self._limits(settings, sample.queues.get(name, Figures())),
            "rules": [(rule, change_of_rule(rule)) for rule in await self._target.read(rules.list_rules, settings)],
            "changes": _of_queue() if self._changes else (),
        }

    async def _tasks_of(self, name: str) -> Sequence[TaskFigures]:
        """Return the figures of each task of a queue, which are at most `TASKS_RENEWED` seconds old.

        The result is empty if counting takes long, or if the role or the engine cannot count the jobs.
        """
        known = self._tasks.get(name)
        if known is None or time.monotonic() > known[0] + TASKS_RENEWED:
            found: Sequence[TaskFigures] = ()
            with suppress(NoAnswer, DatabaseError):
                found = await within(ANSWER, self._target.search(count_by_task, name, MOST_TASKS))
            known = remember(self._tasks, name, (time.monotonic(), found))
        return known[1]

    async def _batches_of(self, name: str) -> list[OpenBatch]:
        """Return the latest open batches of a queue; none if the role may not read them."""
        with suppress(AccessDenied):
            return await self._target.read(list_open_batches, name, STEPS[0])
        return []

    async def _batch_of(self, job: WholeJob) -> OpenBatch | None:
        """Return the open batch of a job; None if it has none, or the role may not read batches."""
        batch = job.headers.get("batch")
        with suppress(AccessDenied):
            return await self._target.read(find_open_batch, batch) if isinstance(batch, int) else None
        return None

    async def _runs(self, settings: Any) -> Runs:
        """Return which worker runs each job of a queue; empty if the role may not read the list of workers."""
        with suppress(AccessDenied):
            return _runs(await self._target.read(worker_registry.list_workers, settings))
        return {}

    async def _limits(self, settings: Any, figures: Figures) -> list[limits.LimitUsage]:
        """Return the limits and groups in use for which most jobs wait; none if counting the jobs takes long."""
        if figures.ready + figures.parked > MOST_COUNTED:
            return []
        found = await self._target.read(limits.list_limits, settings)
        return sorted(found, key=lambda usage: -usage.waiting)[: STEPS[0]]

    async def job(self, query: Query) -> View:
        """Return the values of a job's page.

        Raises:
            JobNotFound: No job has this id.
        """
        given = query.get("id", "").strip()
        job_id = number(given)
        if job_id is None:
            raise JobNotFound(f"{given[:40]!r} is not the id of a job: write a number")
        queue = self._target.queue(query["queue"]) if query.get("queue") else None
        job = await self._target.read(list_jobs.get_full_job, job_id, queue, rendering.MOST_SHOWN)
        text, cut = rendering.shown(job.raw, job.size)
        settings = self._target.queue(job.queue)
        waits = job.state not in ("done", "dead")
        return {
            "job": job,
            "data": text,
            "cut": cut,
            "explanation": await self._target.read(explain, job_id, settings) if waits else None,
            "attempts": await self._target.read(read_attempts, job.queue, job_id),
            "runner": await self._target.read(worker_registry.find_runner, settings, job_id)
            if job.state == "leased"
            else None,
            "progress": await self._progress(settings, job),
            "batch": await self._batch_of(job),
            "following": following_calls(job.headers),
            "headers": rendering.laid_out(job.headers)[: rendering.MOST_SHOWN] if job.headers else "",
            "changes": [(name, ACTIONS[name]) for name in possible(job.state)] if self._changes else (),
        }

    async def _progress(self, settings: QueueSettings, job: StoredJob) -> str:
        """Return the progress that a job has reported; empty if it has reported none, or the role may not see it."""
        with suppress(AccessDenied, JobNotFound):
            progress = (await self._target.read(results.inspect, settings, job.id)).progress
            return "" if progress is None else rendering.laid_out(progress)[:MOST_SEARCHED]
        return ""

    async def _progress_of(self, jobs: Sequence[StoredJob]) -> dict[tuple[str, int], str]:
        """Return the progress of each job that has reported it; the keys are the queue and the id of the job."""
        found: dict[tuple[str, int], str] = {}
        with suppress(AccessDenied):
            for queue in {job.queue for job in jobs}:
                ids = [job.id for job in jobs if job.queue == queue]
                progress = await self._target.read(results.list_progress, queue, ids)
                texts = {number: json.dumps(each, ensure_ascii=False) for number, each in progress.items()}
                found |= {(queue, number): text[:MOST_SEARCHED] for number, text in texts.items()}
        return found

    async def dead(self, query: Query) -> View:
        """Return the values of the page of dead letters: of one queue, or of the queues with most dead letters."""
        counts = await self._target.read(list_jobs.count_dead_by_queue)
        chosen = query.get("queue", "")
        n = _step(query.get("n", ""))
        names = [chosen] if chosen else _most(counts)
        _, skip = _begin(("dead",), query.get("from", "") if chosen else "")
        letters = await self._listed(names, "dead", n, skip)
        groups: list[DeadGroup] | None = None
        with suppress(NoAnswer, StatementCancelled):
            settings = self._target.queue(chosen) if chosen else None
            groups = await within(SEARCH, self._target.search(list_dead_groups, settings, MOST_GROUPS))
        letters.sort(key=lambda job: (job.finished_at is not None, job.finished_at, job.id), reverse=True)
        return {
            "counts": counts,
            "queue": chosen,
            "letters": letters[:n],
            "groups": groups,
            "most_groups": MOST_GROUPS,
            "begin": skip,
            "next": f"dead:{skip + n}" if chosen and len(letters) == n else None,
            "left_out": 0 if chosen else max(len(counts) - BUSIEST, 0),
            "n": n,
            "more": next((step for step in STEPS if step > n), None) if len(letters) >= n and not skip else None,
            "changes": ("retry-dead", "retry-unreadable", "purge-dead") if self._changes and chosen else (),
            "of_job": self._changes,
            "ACTIONS": ACTIONS,
        }

    async def workers(self, query: Query) -> View:
        """Return the values of the page of workers and other waiting sessions."""
        sample = await self._sampler.shown()
        ticks = await self._target.read(activity.list_ticks)
        names = {*sample.queues, *(tick.queue for tick in ticks)}
        leased = {name: figures.leased for name, figures in sample.queues.items() if figures.leased}
        running = await self._listed(_most(leased), "leased", STEPS[1])
        running.sort(key=lambda job: (job.leased_until is None, job.leased_until, job.id))
        workers = await self._target.read(worker_registry.list_workers)
        return {
            "sample": sample,
            "running": running[: STEPS[1]],
            "progress": await self._progress_of(running[: STEPS[1]]),
            "leased": sum(leased.values()),
            "workers": workers,
            "runs": _runs(workers),
            "sessions": await self._target.read(activity.list_sessions, sorted(names)),
            "ticks": [_schedule(tick) for tick in ticks],
        }

    async def _listed(self, names: Sequence[str], state: str, n: int, skip: int = 0) -> list[StoredJob]:
        found: list[StoredJob] = []
        listed = partial(list_jobs.list_by_state, skip=skip)
        for name in names:
            found += await self._target.read(listed, self._target.queue(name), (state,), n)
        return found

    def _charts(self, past: Past) -> list[Chart]:
        points, gap = past
        return [
            chart(
                "Depth",
                "jobs",
                points,
                gap,
                [
                    ("ready", "ready", lambda each: each.ready),
                    ("leased", "leased", lambda each: each.leased),
                    ("scheduled", "scheduled", lambda each: each.scheduled + each.parked),
                ],
            ),
            chart("Throughput", "jobs/min", points, gap, [("finished", "done", lambda each: each.minute)]),
            chart(
                "Latency",
                "seconds",
                points,
                gap,
                [
                    ("oldest ready", "ready", lambda each: each.oldest),
                    ("median time from due to done", "done", lambda each: each.median),
                    ("95th percentile", "scheduled", lambda each: each.slow),
                ],
            ),
        ]

    def _spark(self, past: Past) -> Chart:
        return chart("Ready", "jobs", *past, [("ready", "ready", lambda each: each.ready)])


def summary(sample: Sample) -> str:
    """Return a sentence that sums a sample up."""
    total = sample.total()
    queues = f"{len(sample.queues)} queue{'' if len(sample.queues) == 1 else 's'}"
    return f"{queues}: {total.ready} ready, {total.leased} leased, {total.scheduled} scheduled, {total.dead} dead"


def number(given: str) -> int | None:
    """Return the id in a text; None if the text is not an id."""
    if not given.isascii() or not given.isdecimal() or len(given) > _DIGITS or not 0 < int(given) < 2**63:
        return None
    return int(given)


def _most(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:BUSIEST]


def followed(query: Query) -> Query:
    """Return the parameters for a page's stream; for a search, or a later page of jobs, the stream omits the jobs."""
    still = query.keys() & {"search", "from"}
    return {**{name: value for name, value in query.items() if name not in still}, **({"still": "1"} if still else {})}


def parts_followed(parts: Sequence[str], query: Query) -> list[str]:
    """Return the parts of a page that its stream keeps up to date."""
    return [part for part in parts if part != "jobs" or "still" not in query]


def _runs(workers: Sequence[WorkerInfo]) -> Runs:
    """Return which worker runs each job, and since when; the keys are the queue and the id of the job."""
    return {(job.queue, job.id): (worker, job.since) for worker in workers if worker.alive for job in worker.running}


def _schedule(tick: Tick) -> ScheduledTick:
    """Return a periodic task with its next tick, if the tick is known."""
    coming = None
    if tick.cron is not None and tick.tz is not None and not tick.paused:
        with suppress(ConfigurationError):  # cronsim is missing, or another version wrote the expression
            coming = next(ticks_after(tick.cron, tick.tz, tick.read_at), None)
    return ScheduledTick(tick, coming, (seconds_late(tick) or 0.0) > NOTICED)


def _begin(states: Sequence[str], given: str) -> tuple[Sequence[str], int]:
    """Return the states that a page lists, and how many jobs of the first state are on earlier pages.

    Args:
        states: The states of all pages.
        given: The start of the page: a state, a colon and a number; empty for the first page.
    """
    state, _, skip = given.partition(":")
    if state not in states or not skip.isascii() or not skip.isdecimal() or len(skip) > _DIGITS - 1:
        return states, 0
    return states[states.index(state) :], int(skip)


def _next(jobs: Sequence[StoredJob], states: Sequence[str], skip: int) -> str:
    """Return where the page after these jobs begins; see `_begin`."""
    last = jobs[-1].state
    number = sum(job.state == last for job in jobs)
    return f"{last}:{number + (skip if last == states[0] else 0)}"


def _of_queue() -> list[tuple[str, Any]]:
    return [
        (name, action)
        for name, action in ACTIONS.items()
        if not action.of_job and not any(field.fixed for field in action.fields)
    ]


def _step(given: str) -> int:
    return int(given) if given in map(str, STEPS) else STEPS[0]
