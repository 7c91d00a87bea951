"""What the logs and the table say about an upgrade: how long programs waited, and whether a job was lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CALLS = ("put", "put later", "put keyed", "got", "leased", "acked", "looked")
"""Calls whose length is the time that a program waits; those that wait for a job are not among them."""
TAKES_ONCE = ("got", "got waiting", "acked")
TAKES = (*TAKES_ONCE, "ran")
LATE = 1.0
"""Seconds until a job that was put for later is due; see `client`."""


@dataclass(frozen=True)
class Event:
    """A line of a client's log.

    Attributes:
        client: The client's name.
        what: What was done.
        at: When it was done, in seconds since 1970.
        took: The length of the call, in seconds.
        job: The job's name, or the text of an error.
    """

    client: str
    what: str
    at: float
    took: float
    job: str


@dataclass(frozen=True)
class Phase:
    """A part of the run.

    Attributes:
        name: Its name.
        began, ended: Its times, in seconds since 1970.
    """

    name: str
    began: float
    ended: float


@dataclass
class Waits:
    """The longest waits of a phase, in seconds.

    Attributes:
        phase: The phase.
        puts: The number of puts.
        takes: The number of jobs that were taken.
        put: The longest put.
        take: The longest call that takes or finishes a job, or finds none.
        delivery: The longest time from the end of a put, or from the time for which the job was put, until a consumer
            or worker has the job.
        keyed: The same, of jobs that need admission.
        by_client: The longest call of each client.
        slowest: The job that was delivered last after its time, and the client that took it.
    """

    phase: Phase
    puts: int = 0
    takes: int = 0
    put: float = 0.0
    take: float = 0.0
    delivery: float = 0.0
    keyed: float = 0.0
    by_client: dict[str, float] = field(default_factory=dict)
    slowest: str = ""


def waits(phases: Sequence[Phase], events: Iterable[Event], rows: str = "row-") -> list[Waits]:
    """Return the longest waits of each phase.

    A wait belongs to the phase in which it ended.

    Args:
        phases: The phases, in order.
        events: All events.
        rows: The beginning of the names of jobs that were there before; their delays are not measured.
    """
    found = [Waits(phase) for phase in phases]
    put_at: dict[str, tuple[float, bool]] = {}
    everything = sorted(events, key=lambda event: event.at)
    for event in everything:
        if event.what.startswith("put"):
            late = LATE - event.took if event.what == "put later" else 0.0
            put_at[event.job] = (event.at + max(late, 0.0), event.what == "put keyed")
    for event in everything:
        each = next((one for one in found if one.phase.began <= event.at < one.phase.ended), None)
        if each is None:
            continue
        if event.what in CALLS:
            kind = "put" if event.what.startswith("put") else "take"
            setattr(each, kind, max(getattr(each, kind), event.took))
            each.by_client[event.client] = max(each.by_client.get(event.client, 0.0), event.took)
        each.puts += event.what.startswith("put")
        each.takes += event.what in TAKES
        if event.what in (*TAKES, "leased") and event.what != "acked" and event.job in put_at:
            due, keyed = put_at[event.job]
            delay = event.at - due
            if keyed:
                each.keyed = max(each.keyed, delay)
            elif delay > each.delivery:
                each.delivery, each.slowest = delay, f"{event.job}, by {event.client}"
    return found


def losses(events: Iterable[Event], states: Mapping[str, Sequence[str]], rows: str = "row-") -> list[str]:
    """Return what is wrong with the jobs of the run: an empty list if every job was finished once.

    Args:
        events: All events.
        states: The states of the jobs in the table at the end, by name.
        rows: The beginning of the names of jobs that were there before.
    """
    put: Counter[str] = Counter()
    once: dict[str, Counter[str]] = defaultdict(Counter)
    ran: Counter[str] = Counter()
    wrong = []
    for event in events:
        if event.what == "error":
            wrong.append(f"{event.client} had an error: {event.job}")
        elif event.what.startswith("put"):
            put[event.job] += 1
        elif event.what in TAKES_ONCE:
            once[event.job][event.what] += 1
        elif event.what == "ran":
            ran[event.job] += 1
    for job in put:
        found = list(states.get(job, ()))
        if found != ["finished"]:
            wrong.append(f"{job} was put, and its rows are {found or 'missing'}")
        elif not once[job] and not ran[job]:
            wrong.append(f"{job} is finished, and no client took it")
    for job, ways in once.items():
        if ways.total() + (ran[job] > 0) > 1:
            wrong.append(f"{job} was taken {ways.total()} times: {dict(ways)}")
        if not job.startswith(rows) and job not in put:
            wrong.append(f"{job} was taken, and no put of it was recorded")
    wrong += [f"{job} is in the table, and no put of it was recorded" for job in states if job not in put]
    return wrong
