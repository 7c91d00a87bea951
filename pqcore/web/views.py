"""What each page shows: the values for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pqcore.errors import JobNotFound
from pqcore.operations import activity, limits, list_jobs, rules, worker_registry
from pqcore.operations.explain import explain
from pqcore.operations.list_jobs import STATES, UNFINISHED, StoredJob
from pqcore.web import rendering
from pqcore.web.actions import ACTIONS, change_of_rule, possible
from pqcore.web.charts import Chart, chart
from pqcore.web.sampling import Figures, Sample, Sampler
from pqcore.web.target import Target

STEPS = (25, 100, 500)
"""How many jobs are listed, at most."""
BUSIEST = 20
"""Queues that are asked, where jobs of several are listed together."""
MOST_COUNTED = 20_000
"""Jobs of a queue, at most, that are counted by limit and group each time that its page is shown."""
_SPARKS = 40
"""Samples in a small chart."""

_DIGITS = 19
"""That the id of a job has, at most."""

Query = Mapping[str, str]
View = dict[str, Any]


class Views:
    """The pages of a table.

    Args:
        target: The table.
        sampler: Reads the table for pages that are kept up to date.
        changes: Whether visitors can change jobs.
    """

    def __init__(self, target: Target, sampler: Sampler, *, changes: bool) -> None:
        self._target = target
        self._sampler = sampler
        self._changes = changes

    async def queues(self, query: Query) -> View:
        """All queues."""
        sample = await self._sampler.latest()
        return {
            "sample": sample,
            "total": sample.total(),
            "queues": [(name, figures, self._spark(name)) for name, figures in sample.queues.items()],
        }

    async def queue(self, query: Query) -> View:
        """One queue; its jobs by state, task or id.

        Raises:
            InvalidName: It cannot be one's name.
        """
        name, state, task = query.get("name", ""), query.get("state", ""), query.get("task", "")
        settings = self._target.queue(name)
        sample = await self._sampler.latest()
        n = _step(query.get("n", ""))
        states = (state,) if state in STATES else UNFINISHED
        jobs = await self._target.call(list_jobs.list_by_state, settings, states, n, task=task or None)
        return {
            "name": name,
            "figures": sample.queues.get(name, Figures()),
            "charts": self._charts(name),
            "running": await self._target.call(list_jobs.list_by_state, settings, ("leased",), STEPS[0]),
            "jobs": jobs,
            "state": state if state in STATES else "",
            "states": STATES,
            "task": task,
            "n": n,
            "more": next((step for step in STEPS if step > n), None) if len(jobs) == n else None,
            "sample": sample,
            "limits": await self._limits(settings, sample.queues.get(name, Figures())),
            "rules": [(rule, change_of_rule(rule)) for rule in await self._target.call(rules.list_rules, settings)],
            "changes": _of_queue() if self._changes else (),
        }

    async def _limits(self, settings: Any, figures: Figures) -> list[limits.LimitUsage]:
        """Return the limits and groups in use for which most jobs wait; none where it takes long to count the jobs."""
        if figures.ready + figures.parked > MOST_COUNTED:
            return []
        found = await self._target.call(limits.list_limits, settings)
        return sorted(found, key=lambda usage: -usage.waiting)[: STEPS[0]]

    async def job(self, query: Query) -> View:
        """One job.

        Raises:
            JobNotFound: There is none.
        """
        given = query.get("id", "").strip()
        job_id = number(given)
        if job_id is None:
            raise JobNotFound(f"{given[:40]!r} is no id of a job: write a number")
        queue = self._target.queue(query["queue"]) if query.get("queue") else None
        job = await self._target.call(list_jobs.get_full_job, job_id, queue, rendering.MOST_SHOWN)
        text, cut = rendering.shown(job.raw, job.size)
        settings = self._target.queue(job.queue)
        waits = job.state not in ("done", "dead")
        return {
            "job": job,
            "data": text,
            "cut": cut,
            "explanation": await self._target.call(explain, job_id, settings) if waits else None,
            "headers": rendering.laid_out(job.headers)[: rendering.MOST_SHOWN] if job.headers else "",
            "changes": [(name, ACTIONS[name]) for name in possible(job.state)] if self._changes else (),
        }

    async def dead(self, query: Query) -> View:
        """Dead letters, of one queue or of those that have most."""
        counts = await self._target.call(list_jobs.count_dead_by_queue)
        chosen = query.get("queue", "")
        n = _step(query.get("n", ""))
        names = [chosen] if chosen else _most(counts)
        letters = await self._listed(names, "dead", n)
        letters.sort(key=lambda job: (job.finished_at is not None, job.finished_at, job.id), reverse=True)
        return {
            "counts": counts,
            "queue": chosen,
            "letters": letters[:n],
            "left_out": 0 if chosen else max(len(counts) - BUSIEST, 0),
            "n": n,
            "more": next((step for step in STEPS if step > n), None) if len(letters) >= n else None,
            "changes": ("retry-dead", "retry-unreadable", "purge-dead") if self._changes and chosen else (),
            "of_job": self._changes,
            "ACTIONS": ACTIONS,
        }

    async def workers(self, query: Query) -> View:
        """Workers, and other sessions that wait."""
        sample = await self._sampler.latest()
        ticks = await self._target.call(activity.list_ticks)
        names = {*sample.queues, *(tick.queue for tick in ticks)}
        leased = {name: figures.leased for name, figures in sample.queues.items() if figures.leased}
        running = await self._listed(_most(leased), "leased", STEPS[1])
        running.sort(key=lambda job: (job.leased_until is None, job.leased_until, job.id))
        return {
            "sample": sample,
            "running": running[: STEPS[1]],
            "leased": sum(leased.values()),
            "workers": await self._target.call(worker_registry.list_workers),
            "sessions": await self._target.call(activity.list_sessions, sorted(names)),
            "ticks": ticks,
        }

    async def _listed(self, names: Sequence[str], state: str, n: int) -> list[StoredJob]:
        found: list[StoredJob] = []
        for name in names:
            found += await self._target.call(list_jobs.list_by_state, self._target.queue(name), (state,), n)
        return found

    def _charts(self, name: str) -> list[Chart]:
        points, interval = self._sampler.past(name), self._sampler.interval
        return [
            chart(
                "Depth",
                "jobs",
                points,
                interval,
                [
                    ("ready", "ready", lambda each: each.ready),
                    ("leased", "leased", lambda each: each.leased),
                    ("scheduled", "scheduled", lambda each: each.scheduled + each.parked),
                ],
            ),
            chart("Throughput", "jobs/min", points, interval, [("finished", "done", lambda each: each.minute)]),
            chart(
                "Latency",
                "seconds",
                points,
                interval,
                [
                    ("oldest ready", "ready", lambda each: each.oldest),
                    ("median, due to done", "done", lambda each: each.median),
                    ("95 of 100", "scheduled", lambda each: each.slow),
                ],
            ),
        ]

    def _spark(self, name: str) -> Chart:
        points = self._sampler.past(name)[-_SPARKS:]
        return chart("Ready", "jobs", points, self._sampler.interval, [("ready", "ready", lambda each: each.ready)])


def summary(sample: Sample) -> str:
    """What there is, in a sentence."""
    total = sample.total()
    queues = f"{len(sample.queues)} queue{'' if len(sample.queues) == 1 else 's'}"
    return f"{queues}: {total.ready} ready, {total.leased} leased, {total.scheduled} scheduled, {total.dead} dead"


def number(given: str) -> int | None:
    """The id that was written; None if it is none."""
    if not given.isascii() or not given.isdecimal() or len(given) > _DIGITS or not 0 < int(given) < 2**63:
        return None
    return int(given)


def _most(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:BUSIEST]


def _of_queue() -> list[tuple[str, Any]]:
    return [(name, action) for name, action in ACTIONS.items() if not action.of_job]


def _step(given: str) -> int:
    return int(given) if given in map(str, STEPS) else STEPS[0]
