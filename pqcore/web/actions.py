"""The actions on jobs and rules that a page offers if it allows changes; each asks a question first."""

from __future__ import annotations

from pqcore.operations.rules import Rule
from pqcore.web.changes import (
    KEPT_OF,
    PAUSED,
    Action,
    Field,
    cancel_job,
    count_group,
    count_movable,
    count_old_dead,
    count_old_finished,
    counting_dead,
    move_jobs,
    pause,
    pause_schedule,
    purge_dead,
    purge_done,
    purge_letter,
    quiet_worker,
    resume,
    resume_schedule,
    retry_dead,
    retry_group,
    retry_job,
    retry_unreadable,
    run_now,
    set_expiry,
    set_limit,
    set_rate,
    set_weight,
    wake_worker,
)

_AGE = Field("older_than", "Only if older than", "as in 30s, 2h or 14d; 0s for all", "14d")
_WHAT = (
    Field("what", "What", "", "queue", choices=PAUSED),
    Field("name", "Its name", "for a task its path, as in app.emails.send; empty for the queue", required=False),
)
_GROUP = tuple(Field(name, name.capitalize(), required=False, fixed=True) for name in ("task", "error", "reason"))
_WORKER = Field("worker", "Worker", fixed=True)
_LIMIT = Field("name", "Limit", "the name that jobs were put under")

ACTIONS: dict[str, Action] = {
    "retry": Action(
        "Retry",
        "Run job {id} of {queue} again?",
        "The job is due immediately, and keeps its id. A dead or done job starts again with no failures.",
        "The job is due now.",
        retry_job,
        then="job",
    ),
    "cancel": Action(
        "Cancel",
        "Cancel job {id} of {queue}?",
        "A waiting job is deleted. A running job is asked to stop: its worker cancels a coroutine; a function in a"
        " thread must check whether it should stop.",
        "The job is cancelled, or was asked to stop.",
        cancel_job,
        dangerous=True,
    ),
    "purge": Action(
        "Purge",
        "Delete dead letter {id} of {queue} for good?",
        "It cannot be restored.",
        "The dead letter is deleted.",
        purge_letter,
        dangerous=True,
        then="dead",
    ),
    "retry-dead": Action(
        "Retry all dead letters",
        "Run all {count} of {queue} again?",
        "Each is due immediately, keeps its id, and starts with no failures.",
        "Dead letters that are due now: {n}.",
        retry_dead,
        of_job=False,
        counts=counting_dead(None),
        then="dead",
    ),
    "retry-group": Action(
        "Retry the group",
        "Run {count} of {queue} again?",
        "These are the dead letters of {task} with {error} ({reason}). Each is due immediately, keeps its id, and"
        " starts with no failures.",
        "Dead letters that are due now: {n}.",
        retry_group,
        of_job=False,
        fields=_GROUP,
        counts=count_group,
        then="dead",
    ),
    "retry-unreadable": Action(
        "Retry unreadable ones",
        "Run again the {count} of {queue} that no worker could read?",
        "Each is due immediately, keeps its id, and starts with no failures. First deploy workers that can read them.",
        "Dead letters that are due now: {n}.",
        retry_unreadable,
        of_job=False,
        counts=counting_dead("unreadable"),
        then="dead",
    ),
    "purge-dead": Action(
        "Purge dead letters",
        "Delete {count} of {queue} for good?",
        "These are the dead letters that died {older_than} ago, or earlier. They cannot be restored.",
        "Dead letters that are deleted: {n}.",
        purge_dead,
        of_job=False,
        dangerous=True,
        fields=(_AGE,),
        counts=count_old_dead,
        then="dead",
    ),
    "purge-done": Action(
        "Purge finished jobs",
        "Delete the rows of {count} of {queue} for good?",
        "These are the jobs that finished {older_than} ago, or earlier: kept rows and archived rows.",
        "Finished jobs that are deleted: {n}.",
        purge_done,
        of_job=False,
        dangerous=True,
        fields=(_AGE,),
        counts=count_old_finished,
    ),
    "move": Action(
        "Move jobs",
        "Move {count} of {queue} to another queue?",
        "The other queue: {to}. The jobs keep their ids and times. Leased jobs stay, and so do jobs whose dedup keys"
        " exist in that queue.",
        "Jobs that are moved: {n}.",
        move_jobs,
        of_job=False,
        fields=(Field("to", "To the queue"),),
        counts=count_movable,
    ),
    "pause": Action(
        "Pause",
        "Pause {queue}, or a part of it?",
        "Within a second, no more of its jobs start. Running jobs go on, and jobs can still be put.",
        "The pause is set.",
        pause,
        of_job=False,
        fields=(
            *_WHAT,
            Field("until", "Until", "as in 30m or 2030-01-31T12:00Z; empty: until you resume", required=False),
        ),
    ),
    "resume": Action(
        "Resume",
        "Resume {queue}, or a part of it?",
        "Its jobs start again immediately.",
        "Pauses that ended: {n}.",
        resume,
        of_job=False,
        fields=_WHAT,
    ),
    "limit": Action(
        "Set a limit",
        "Set a limit of {queue}?",
        "At most this many jobs under the limit run concurrently, whatever number the jobs were put with.",
        "The limit is changed.",
        set_limit,
        of_job=False,
        fields=(_LIMIT, Field("places", "Jobs", "a number; empty removes the rule", required=False)),
    ),
    "rate": Action(
        "Set a rate",
        "Set a rate of {queue}?",
        "At most this many jobs under the limit start in the given time.",
        "The rate is changed.",
        set_rate,
        of_job=False,
        fields=(_LIMIT, Field("rate", "Rate", "as in 10/s, 600/min or 100/5m; empty removes it", required=False)),
    ),
    "weight": Action(
        "Set a weight",
        "Set the weight of a share of {queue}?",
        "While other shares have jobs too, this share gets that many times the jobs of a share of weight 1.",
        "The weight is changed.",
        set_weight,
        of_job=False,
        fields=(
            Field("name", "Share", "empty: the jobs without a tenant", required=False),
            Field("weight", "Weight", "a number above 0; empty: 1", required=False),
        ),
    ),
    "expiry": Action(
        "Set how long rows are kept",
        "How long does {queue} keep rows?",
        "Workers delete older rows, in small steps. A time that you leave empty is not changed; 'none' keeps all rows.",
        "The times are changed.",
        set_expiry,
        of_job=False,
        fields=(
            Field("of", "Of", "", KEPT_OF[0], choices=KEPT_OF),
            Field("finished", "Finished rows", "as in 7d, or none", required=False),
            Field("dead", "Dead letters", "as in 90d, or none", required=False),
        ),
    ),
    "run-now": Action(
        "Run now",
        "Run the periodic task {name} of {queue} now?",
        "Within a minute, a worker that declares the task puts the job for the last time that the task was due. For a"
        " task with missed='skip', no job is put. If the task is a schedule, its job is put immediately.",
        "The job was put, or a worker puts it within a minute.",
        run_now,
        of_job=False,
        fields=(Field("name", "Task", fixed=True),),
        then="workers",
    ),
    "pause-schedule": Action(
        "Pause",
        "Pause the schedule {name} of {queue}?",
        "Until you resume the schedule, its ticks put no jobs. Jobs that it has already put stay.",
        "The schedule is paused.",
        pause_schedule,
        of_job=False,
        fields=(Field("name", "Schedule", fixed=True),),
        then="workers",
    ),
    "resume-schedule": Action(
        "Resume",
        "Resume the schedule {name} of {queue}?",
        "Its ticks put jobs again from now on. Ticks during the pause put no jobs.",
        "The schedule is resumed.",
        resume_schedule,
        of_job=False,
        fields=(Field("name", "Schedule", fixed=True),),
        then="workers",
    ),
    "quiet-worker": Action(
        "Quiet",
        "Tell worker {worker} to take no more jobs?",
        "The worker finishes its running jobs, and does not stop. It obeys at its next renewal, within 10 s.",
        "The worker takes no more jobs from its next renewal on.",
        quiet_worker,
        of_job=False,
        fields=(_WORKER,),
        then="workers",
    ),
    "wake-worker": Action(
        "Take jobs again",
        "Let worker {worker} take jobs again?",
        "The worker obeys at its next renewal, within 10 s.",
        "The worker takes jobs again from its next renewal on.",
        wake_worker,
        of_job=False,
        fields=(_WORKER,),
        then="workers",
    ),
}
"""All actions; the keys are their names in requests."""

_POSSIBLE = {
    "dead": ("retry", "purge"),
    "done": ("retry",),
    "scheduled": ("retry", "cancel"),
    "ready": ("cancel",),
    "parked": ("cancel",),
    "leased": ("cancel",),
}


def possible(state: str) -> tuple[str, ...]:
    """Return the names of the actions on a job in this state."""
    return _POSSIBLE[state]


def change_of_rule(rule: Rule) -> dict[str, str]:
    """Return the query string of the link that changes a rule: the action's name, and its fields."""
    if rule.kind == "pause":
        what, _, name = rule.name.partition(":")
        return {"do": "resume", "what": what, "name": name}
    value = {"limit": "places"}.get(rule.kind, rule.kind)
    return {"do": rule.kind, "name": rule.name, value: rule.value}
