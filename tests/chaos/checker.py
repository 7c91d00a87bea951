"""The checker: it reads the logs of the clients and the tables, and finds contradictions."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from .client import CANCELLED
from .tables import WAITING, Event, Tables
from .worker_tasks import NAME, TICK

Entry: TypeAlias = dict[str, Any]
ENDED = ("ok", "unknown", "failed", "lost")
"""The outcomes of an act, from the client's view."""
EXACT = 0.002
"""The tolerance for distances between times, in seconds; clients give distances in milliseconds."""
ENDLESS = 120.0
"""Seconds within which each act ends, whatever fails: a client finds a silent connection closed after 20 seconds."""
SECOND = timedelta(seconds=1)
"""The time between two ticks."""


@dataclass
class Verdict:
    """The result of a run.

    Attributes:
        counts: How often each act ended in each way, as in ``put ok``.
        errors: The errors that clients got, by their names.
        losses: The contradictions that the checker found; empty if there is none.
    """

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)


def read(logs: Iterable[Path]) -> list[Entry]:
    """Return the entries of all clients' logs; the last line of a killed client may be incomplete."""
    found = []
    for log in filter(Path.exists, logs):  # a client that was killed immediately has no log
        for line in log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


class Told:
    """The answers that clients got, by act, outcome and job."""

    def __init__(self, history: Sequence[Entry]) -> None:
        self.history = history
        self.counts = Counter(f"{entry['act']} {entry['outcome']}" for entry in history)
        self._tokens: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._leases: dict[tuple[str, str], Counter[tuple[str, int]]] = defaultdict(Counter)
        for entry in history:
            how = entry["act"], entry["outcome"]
            self._tokens[how].update(entry.get("tokens", ()))
            if "attempt" in entry and "tokens" in entry:
                self._leases[how][entry["tokens"][0], entry["attempt"]] += 1

    def times(self, act: str, outcome: str) -> Counter[str]:
        """Return how often the act had this outcome, for each job."""
        return self._tokens[act, outcome]

    def jobs(self, act: str, outcome: str) -> set[str]:
        return set(self._tokens[act, outcome])

    def leases(self, act: str, outcome: str) -> Counter[tuple[str, int]]:
        """Return how often the act had this outcome, for each lease: by token and attempt."""
        return self._leases[act, outcome]

    def entries(self, act: str, *outcomes: str) -> Iterator[Entry]:
        return (entry for entry in self.history if entry["act"] == act and entry["outcome"] in outcomes)

    def unheard(self, act: str) -> int:
        """Return how many jobs may have been taken for clients that got no answer."""
        asked = sum(entry["n"] for entry in self.entries(act, "begun"))
        return int(asked - sum(entry["n"] for entry in self.entries(act, "ok", "failed")))


Finding: TypeAlias = Iterator[tuple[str, Any]]
Check: TypeAlias = Callable[[Told, Tables], Finding]


def _all(what: str, found: Iterable[Any]) -> Finding:
    return ((what, each) for each in sorted(found))


def check(history: Sequence[Entry], tables: Tables) -> Verdict:
    """Compare the answers that clients got with the tables; only `cancel` ever deletes a row."""
    told = Told(history)
    verdict = Verdict(told.counts)
    for each in (
        errors,
        waits,
        answers,
        puts,
        effects,
        pops,
        leases,
        endings,
        cancels,
        keys,
        changes,
        rows,
        limits,
        groups,
        ends,
        ticks,
    ):
        verdict.losses += [f"{what}: {which}" for what, which in each(told, tables)]
    verdict.errors.update(entry["why"].partition(":")[0] for entry in history if "why" in entry)
    there = {event.token for event in tables.events if event.what == "INSERT"}
    unknown = told.jobs("put", "unknown")
    verdict.counts["put unknown, and there"] = len(unknown & there)
    verdict.counts["put unknown, and not there"] = len(unknown - there)
    return verdict


def errors(told: Told, tables: Tables) -> Finding:
    """Check that clients got pqcore's own errors for all exceptions of drivers."""
    del tables
    yield from _all("an error that is none of pqcore's", (e["why"] for e in told.history if e.get("foreign")))


def puts(told: Told, tables: Tables) -> Finding:
    """Check that acknowledged puts exist and failed puts do not, and that `put_many` puts all of its jobs or none."""
    there = Counter(event.token for event in tables.events if event.what == "INSERT")
    yield from _all("put, acknowledged, and not there", told.jobs("put", "ok") - set(there))
    refused = told.jobs("put", "failed") | (told.jobs("keyed", "failed") - told.jobs("keyed", "unknown"))
    yield from _all("put, said to have failed, and there", refused & set(there))
    yield from _all("put once, and there twice", (token for token, number in there.items() if number > 1))
    known = told.jobs("put", "begun") | told.jobs("keyed", "begun") | {each.token for each in _ticks(tables)}
    yield from _all("there, and put by nobody", set(there) - known)
    for entry in told.entries("put", "begun"):
        if 0 < sum(token in there for token in entry["tokens"]) < len(entry["tokens"]):
            yield "put together, and there in part", entry["tokens"][0]
    token_of = {event.job: event.token for event in tables.events if event.what == "INSERT"}
    for entry in told.entries("put", "ok"):
        if "jobs" in entry and [token_of.get(job) for job in entry["jobs"]] != entry["tokens"]:
            yield "put, and told the id of another's job", entry["tokens"][0]
    distances = {e["tokens"][0]: e["distance"] for e in told.entries("put", "begun") if "distance" in e}
    for event in tables.events:
        if event.what == "INSERT" and event.token in distances:
            given = distances[event.token]
            if event.distance is None or abs(event.distance - given) > EXACT:
                yield "scheduled for another time than was said", event.token


def effects(told: Told, tables: Tables) -> Finding:
    """Check that a job that was taken or finished in a transaction has its effect exactly once."""
    written = Counter(token for token, _ in tables.effects)
    done = {row.token for row in tables.rows if row.over and row.queue in ("transaction", NAME)}
    yield from _all("an effect twice", (token for token, number in written.items() if number > 1))
    yield from _all("done in a transaction, without its effect", done - set(written))
    yield from _all("an effect, and its job not done", set(written) - done)
    yield from _all("taken, acknowledged, and without effect", told.jobs("take", "ok") - set(written))
    taken, failed = told.times("take", "begun"), told.times("take", "failed")
    lies = {token for token in written if failed[token] and failed[token] >= taken[token]}
    yield from _all("an effect, and each who took it was told that it failed", lies)
    tallied = sum(1 for _, counted in tables.effects if counted)
    for name, number in sorted(tables.tallies.items()):
        if number != tallied:
            yield "a transaction was done in part", f"tally {name} is {number}, of {tallied} effects"


def pops(told: Told, tables: Tables) -> Finding:
    """Check that popped jobs were delivered once; a popped job without a taker needs a lost answer or client."""
    done = {row.token for row in tables.rows if row.over and row.queue == "pop"}
    heard = told.times("pop", "ok")
    yield from _all("popped by two", (token for token, number in heard.items() if number > 1))
    yield from _all("popped, and there for others", set(heard) - done)
    unheard, explained = len(done - set(heard)), told.unheard("pop")
    told.counts["popped, and lost with a client or an answer"] = unheard
    if unheard > explained:
        yield "popped, and reached nobody", f"{unheard} jobs, of which {explained} are explained"


def leases(told: Told, tables: Tables) -> Finding:
    """Check that each lease was given to one client, which either got the answer or lost it."""
    given = {
        (event.token, event.attempts)
        for event in tables.events
        if event.queue == "lease" and event.attempts > event.was_attempts and not event.over
    }
    heard = told.leases("leased", "ok")
    yield from _all("one lease given to two", (lease for lease, number in heard.items() if number > 1))
    yield from _all("leased to a client, and not in the table", set(heard) - given)
    unheard, explained = len(given - set(heard)), told.unheard("lease")
    told.counts["leased, and lost with a client or an answer"] = unheard
    if unheard > explained:
        yield "leased, and reached nobody", f"{unheard} jobs, of which {explained} are explained"


def endings(told: Told, tables: Tables) -> Finding:
    """Check that the end of each lease agrees with the answer that its holder got."""
    found: dict[str, set[tuple[str, int]]] = {"ack": set(), "nack": set(), "extend": set()}
    for event in tables.events:
        if event.queue == "lease" and event.what == "UPDATE" and event.attempts == event.was_attempts:
            found[_ending(event)].add((event.token, event.attempts))
    for act, happened in found.items():
        begun, ok, unknown, failed, lost = (told.leases(act, outcome) for outcome in ("begun", *ENDED))

        def named(leases: Iterable[tuple[str, int]], act: str = act) -> list[str]:
            return [f"{act} of {token}, attempt {attempt}" for token, attempt in leases]

        yield from _all("the end of a lease, acknowledged, and not done", named(set(ok) - happened))
        unasked = happened - set(begun)
        if act == "nack":  # pqcore gives a lease back whose caller was interrupted before it got the answer
            unasked &= set(told.leases("leased", "ok"))  # `leases` counts the leases that no caller got
        yield from _all("the end of a lease, done, and nobody asked for it", named(unasked))
        refused = {lease for lease in (*failed, *lost) if not unknown[lease] and not ok[lease]}
        unheard = {lease for lease in begun if begun[lease] > sum(of[lease] for of in (ok, unknown, failed, lost))}
        yield from _all("the end of a lease, refused, and done", named((refused - unheard) & happened))
        if act != "extend":
            twice = (lease for lease, number in ok.items() if number > 1)
            yield from _all("the end of a lease, accepted twice", named(twice))


def _ending(event: Event) -> str:
    if event.over:
        return "ack"
    return "nack" if event.leased is None else "extend"


def cancels(told: Told, tables: Tables) -> Finding:
    """Check that cancelled jobs are gone and were not delivered afterwards, and that other jobs still exist."""
    gone = {event.token for event in tables.events if event.what == "DELETE" and event.queue in CANCELLED}
    said: dict[bool, set[str]] = {True: set(), False: told.jobs("cancel", "failed")}
    for entry in told.entries("cancel", "ok"):
        said[entry["cancelled"]].update(entry["tokens"])
    yield from _all("cancelled, and there", said[True] - gone)
    yield from _all("not cancelled, as it was said, and gone", said[False] & gone)
    yield from _all("gone, and cancelled by nobody", gone - told.jobs("cancel", "begun"))


def keys(told: Told, tables: Tables) -> Finding:
    """Check that a dedup key has one job at a time, and that a put under the key returned the id of that job."""
    holder: dict[tuple[str, str], int] = {}
    put = {event.job: event.token for event in tables.events if event.what == "INSERT"}
    key_of = {token: entry["key"] for entry in told.entries("keyed", "begun") for token in entry["tokens"]}
    for event in tables.events:
        key = event.queue, event.dedup_key or ""
        if event.what == "INSERT" and event.dedup_key is not None:
            if key in holder:
                yield "two jobs with one dedup key at the same time", event.token
            holder[key] = event.job
        elif holder.get(key) == event.job and (event.over or event.what == "DELETE"):
            del holder[key]
    ids: dict[str, set[int]] = defaultdict(set)
    for entry in told.entries("keyed", "ok"):
        key_found = key_of.get(put.get(entry["job"], ""))
        if key_found != entry["key"]:
            yield "put under a dedup key, and the job told of is another's", entry["tokens"][0]
        if not entry["key"].startswith("shared"):
            ids[entry["key"]].add(entry["job"])
    made = Counter(
        key_of[token] for token in put.values() if token in key_of and not key_of[token].startswith("shared")
    )
    yield from _all("put once under a key, and there twice", (key for key, number in made.items() if number > 1))
    yield from _all("put once under a key, and told of two", (key for key, found in ids.items() if len(found) > 1))


def changes(told: Told, tables: Tables) -> Finding:
    """Check that each change of a job may follow the previous change, by the server's clock."""
    del told
    for job, chain in tables.chains().items():
        if chain[0].what != "INSERT":
            yield "changed, and never put", f"{chain[0].token} ({job})"
        for before, after in pairwise(chain):
            if (before.attempts, before.leased, before.over) != (after.was_attempts, after.was_leased, after.was_over):
                yield "changed without a trace", f"{after.token} ({job})"
        for event in chain[1:]:
            if event.was_over:
                yield "changed after it was done", f"{event.token} ({job})"
            elif event.attempts not in (event.was_attempts, event.was_attempts + 1):
                yield "its attempts do not rise by one", f"{event.token} ({job})"
            elif event.what == "DELETE" and event.queue not in CANCELLED:
                continue  # the job is a dead letter, which another rule checks
            elif event.attempts > event.was_attempts or event.what == "DELETE":
                if _was_held(event):
                    yield "given to another under a lease that held", f"{event.token} ({job})"
                if event.attempts > event.was_attempts and event.due > event.at:
                    yield "given before it was due", f"{event.token} ({job})"
            elif event.was_leased is None and not _waits(event):
                yield "ended, and held by nobody", f"{event.token} ({job})"


def rows(told: Told, tables: Tables) -> Finding:
    """Check that the table agrees with the audit, and that a client that asks gets all remaining jobs."""
    del told
    last = {job: chain[-1] for job, chain in tables.chains().items()}
    alive = {job: (event.attempts, event.over) for job, event in last.items() if event.what != "DELETE"}
    there = {row.job: (row.attempts, row.over) for row in tables.rows}
    yield from _all("not in the table, nor said to be gone", set(alive) - set(there))
    yield from _all("in the table, and not in the audit", set(there) - set(alive))
    yield from _all("other in the table than in the audit", (j for j in alive if j in there and alive[j] != there[j]))
    yield from _all("a dead letter, though its retries have no limit", tables.dead)
    yield from _all("left over, and given to nobody who asks", tables.stuck)


def waits(told: Told, tables: Tables) -> Finding:
    """Check that each act ended within the time of the longest wait."""
    del tables
    last: dict[str, Entry] = {}
    for entry in told.history:
        if "who" in entry:
            last[entry["who"]] = entry
            if "took" in entry and entry["took"] > ENDLESS:
                yield "an act that took too long", f"{entry['act']} of {entry['who']}: {entry['took']} s"
    stopped = {entry["log"]: entry["t"] for entry in told.entries("stopped", "ok")}
    for entry in last.values():
        if entry["outcome"] == "begun" and stopped.get(entry["log"], entry["t"]) - entry["t"] > ENDLESS:
            yield "an act without end", f"{entry['act']} of {entry['who']}"


def answers(told: Told, tables: Tables) -> Finding:
    """Check that each client got the answer to its own question."""
    del tables
    wrong = (entry["asked"] for entry in told.entries("ask", "ok") if entry["answer"] != entry["asked"])
    yield from _all("an answer to what another asked", wrong)


@dataclass
class Gate:
    """The limits and the group that a job needs to run.

    Attributes:
        limits: How many jobs may run concurrently; the keys are the limits' names.
        group: The job's group, or None.
    """

    limits: dict[str, int]
    group: str | None


@dataclass
class Run:
    """A run or a lease of a job under limits or in a group, with the time during which it counts.

    A lease counts until the server ends it, or makes the job wait again. A run counts from its first record to its
    last. A run without a last record may have ended with the first. A run whose lease ran out counts until the server
    makes the job wait again, or gives it to another consumer. Its function may go on, or even begin, after that: jobs
    run at least once. A run whose job was given back or ended does not count any more.

    Attributes:
        job: The job.
        begun: The number of its first record, or of the event that leased the job.
        over: The number of the record or event that ended it.
    """

    job: int
    begun: int
    over: int


def _waits(event: Event) -> bool:
    """Return whether the job waits for admission after a change."""
    return event.leased == WAITING


def _was_held(event: Event) -> bool:
    """Return whether the job was under a lease before a change."""
    return event.was_leased is not None and event.at < event.was_leased < WAITING


def _ends_lease(event: Event, tables: Tables) -> bool:
    """Return whether a change ends a lease. Making the job wait ends only a lease that had run out."""
    if _waits(event):
        return not _was_held(event) or not tables.is_steady(event)
    return event.attempts > event.was_attempts or event.over or event.leased is None or event.what == "DELETE"


def _gates(told: Told, tables: Tables) -> dict[int, Gate]:
    """Return the limits and group of each job, by id, in the order of ids."""
    gates = {
        token: Gate(entry["limits"], entry["group"])
        for entry in told.entries("gate", "begun")
        for token in entry["tokens"]
    }
    put = {event.job: event.token for event in tables.events if event.what == "INSERT" and event.token in gates}
    return {job: gates[put[job]] for job in sorted(put)}


def _runs(tables: Tables) -> list[Run]:
    """Return the runs and the leases, in the order in which they began."""
    ended: dict[tuple[int, int], int] = {}
    begun: dict[tuple[int, int], int] = {}
    found = []
    for event in tables.events:
        lease = event.job, event.was_attempts
        if lease in begun and (_waits(event) or _ends_lease(event, tables)):
            found.append(Run(event.job, begun.pop(lease), event.n))
        if _ends_lease(event, tables):
            ended.setdefault(lease, event.n)
        if event.attempts > event.was_attempts and not event.over and not _waits(event):
            begun[event.job, event.attempts] = event.n
    found += [Run(job, n, sys.maxsize) for (job, _), n in begun.items()]
    last = {(record.job, record.attempt): record.n for record in tables.records if record.over}
    for record in tables.records:
        lease = record.job, record.attempt
        over = last.get(lease, record.n)
        if not record.over and ended.get(lease, over) >= record.n:
            found.append(Run(record.job, record.n, min(over, ended.get(lease, over))))
    return sorted(found, key=lambda run: run.begun)


def _too_many(runs: Sequence[Run], places: int) -> Iterator[str]:
    """Yield the jobs that run when another job begins, if they are too many."""
    found: dict[tuple[int, ...], int] = {}
    for number, run in enumerate(runs):
        jobs = {run.job} | {other.job for other in runs[:number] if other.over > run.begun}
        if len(jobs) > places:
            found.setdefault(tuple(sorted(jobs)), run.begun)
    yield from (f"{list(jobs)} at {begun}" for jobs, begun in found.items())


def limits(told: Told, tables: Tables) -> Finding:
    """Check that at no moment more jobs ran than a limit allows, for each limit."""
    gates = _gates(told, tables)
    places = {key: number for gate in gates.values() for key, number in gate.limits.items()}
    under: dict[str, list[Run]] = defaultdict(list)
    for run in _runs(tables):
        for key in gates[run.job].limits if run.job in gates else ():
            under[key].append(run)
    for key, runs in under.items():
        for jobs in _too_many(runs, places[key]):
            yield "more jobs at the same time than their limit admits", f"{key}, {places[key]} places: {jobs}"
    told.counts["runs and leases under limits"] = sum(map(len, under.values()))


def groups(told: Told, tables: Tables) -> Finding:
    """Check that the jobs of a group ran one at a time, each after all jobs that were put before it had ended."""
    gates = _gates(told, tables)
    members: dict[str, list[int]] = defaultdict(list)
    for job, gate in gates.items():
        if gate.group is not None:
            members[gate.group].append(job)
    done: dict[int, int] = {}
    for event in tables.events:
        if event.over or event.what == "DELETE":
            done.setdefault(event.job, event.n)
    within: dict[str, list[Run]] = defaultdict(list)
    for run in _runs(tables):
        group = gates[run.job].group if run.job in gates else None
        if group is not None:
            within[group].append(run)
    for group, runs in within.items():
        for jobs in _too_many(runs, 1):
            yield "jobs of one group at the same time", f"{group}: {jobs}"
        overtaken = {
            (run.job, job)
            for run in runs
            for job in members[group]
            if job < run.job and done.get(job, run.begun) >= run.begun
        }
        pairs = (f"{group}: {later} before {earlier}" for later, earlier in overtaken)
        yield from _all("run before a job of its group that was put earlier", pairs)
    told.counts["runs and leases in groups"] = sum(map(len, within.values()))


def ends(told: Told, tables: Tables) -> Finding:
    """Check that workers told their plugins the true end of each run.

    Failed runs are left out: the function may have finished the job in a transaction, and lost the answer.
    """
    done = {(event.job, event.attempts) for event in tables.events if event.over}
    said: dict[str, set[tuple[int, int]]] = {
        outcome: {(entry["job"], entry["attempt"]) for entry in told.entries("told", outcome)}
        for outcome in ("done", "lost", "failed")
    }
    lost = (said["lost"] - said["failed"]) & done
    yield from _all("told lost, and done", (f"{job}, attempt {attempt}" for job, attempt in lost))
    untrue = {job for job, _ in said["done"]} - {job for job, _ in done}
    yield from _all("told done, and not done", untrue)


def _ticks(tables: Tables) -> list[Event]:
    """Return the puts of the periodic task's jobs."""
    return [event for event in tables.events if event.what == "INSERT" and event.token.startswith(f"{TICK}-")]


def ticks(told: Told, tables: Tables) -> Finding:
    """Check that each tick has one job, that ticks go on, and that no tick is left out if missed ticks are put later.

    A stepped clock of the server shows no time twice: see `ServerClock`. But for a moment, sessions see different
    times, unlike on a real server. Then one session may set a tick back that another session has put, and the tick
    comes again.
    """
    put = {event.due for event in _ticks(tables)}
    steady = Counter(event.due for event in _ticks(tables) if tables.is_steady(event))
    told.counts["ticks put"] = len(put)
    yield from _all("a tick put twice", (str(tick) for tick, number in steady.items() if number > 1))
    if tables.missed == "all":
        gaps = (f"{before} to {after}" for before, after in pairwise(sorted(put)) if after - before > SECOND)
        yield from _all("a tick that was left out", gaps)
    if not tables.ticking:
        yield "no tick any more", "though workers run, and nothing fails"
