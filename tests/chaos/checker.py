"""Reads what clients wrote down, and the tables, and finds what cannot be."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from .tables import Event, Tables
from .work import NAME

Entry: TypeAlias = dict[str, Any]
ENDED = ("ok", "unknown", "failed", "lost")
"""How an act may end, as a client is told."""
EXACT = 0.002
"""Seconds: a distance that a client gave in milliseconds is kept as closely."""


@dataclass
class Verdict:
    """What came of a run.

    Attributes:
        counts: How often each act ended in each way, as in ``put ok``.
        errors: The errors that clients were given, by their names.
        losses: What cannot be: empty, if all is well.
    """

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)


def read(logs: Iterable[Path]) -> list[Entry]:
    """What all clients wrote down; the last line of one that was killed may be half a line."""
    found = []
    for log in filter(Path.exists, logs):  # one that was killed at once has none
        for line in log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


class Told:
    """What clients were told, by act, outcome and job."""

    def __init__(self, history: Sequence[Entry]) -> None:
        self.history = history
        self.counts = Counter(f"{entry['act']} {entry['outcome']}" for entry in history)
        self._tokens: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._leases: dict[tuple[str, str], Counter[tuple[str, int]]] = defaultdict(Counter)
        for entry in history:
            how = entry["act"], entry["outcome"]
            self._tokens[how].update(entry.get("tokens", ()))
            if "attempt" in entry:
                self._leases[how][entry["tokens"][0], entry["attempt"]] += 1

    def times(self, act: str, outcome: str) -> Counter[str]:
        """How often an act on each job ended so."""
        return self._tokens[act, outcome]

    def jobs(self, act: str, outcome: str) -> set[str]:
        return set(self._tokens[act, outcome])

    def leases(self, act: str, outcome: str) -> Counter[tuple[str, int]]:
        """How often an act on each lease ended so, by token and attempt."""
        return self._leases[act, outcome]

    def entries(self, act: str, *outcomes: str) -> Iterator[Entry]:
        return (entry for entry in self.history if entry["act"] == act and entry["outcome"] in outcomes)

    def unheard(self, act: str) -> int:
        """How many jobs may have been taken for clients that did not hear of it."""
        asked = sum(entry["n"] for entry in self.entries(act, "begun"))
        return int(asked - sum(entry["n"] for entry in self.entries(act, "ok", "failed")))


Finding: TypeAlias = Iterator[tuple[str, Any]]
Check: TypeAlias = Callable[[Told, Tables], Finding]


def _all(what: str, found: Iterable[Any]) -> Finding:
    return ((what, each) for each in sorted(found))


def check(history: Sequence[Entry], tables: Tables) -> Verdict:
    """Hold what clients were told against what is in the tables, of which no row is ever deleted but by `cancel`."""
    told = Told(history)
    verdict = Verdict(told.counts)
    for each in (errors, puts, effects, pops, leases, endings, cancels, keys, changes, rows):
        verdict.losses += [f"{what}: {which}" for what, which in each(told, tables)]
    verdict.errors.update(entry["why"].partition(":")[0] for entry in history if "why" in entry)
    there = {event.token for event in tables.events if event.what == "INSERT"}
    unknown = told.jobs("put", "unknown")
    verdict.counts["put unknown, and there"] = len(unknown & there)
    verdict.counts["put unknown, and not there"] = len(unknown - there)
    return verdict


def errors(told: Told, tables: Tables) -> Finding:
    """What drivers raise within pqcore is told as an error of pqcore's."""
    del tables
    yield from _all("an error that is none of pqcore's", (e["why"] for e in told.history if e.get("foreign")))


def puts(told: Told, tables: Tables) -> Finding:
    """A put that was acknowledged is there, one that failed is not, and many are put together or not at all."""
    there = Counter(event.token for event in tables.events if event.what == "INSERT")
    yield from _all("put, acknowledged, and not there", told.jobs("put", "ok") - set(there))
    refused = told.jobs("put", "failed") | (told.jobs("keyed", "failed") - told.jobs("keyed", "unknown"))
    yield from _all("put, said to have failed, and there", refused & set(there))
    yield from _all("put once, and there twice", (token for token, number in there.items() if number > 1))
    yield from _all("there, and put by nobody", set(there) - told.jobs("put", "begun") - told.jobs("keyed", "begun"))
    for entry in told.entries("put", "begun"):
        if 0 < len(set(entry["tokens"]) & set(there)) < len(entry["tokens"]):
            yield "put together, and there in part", entry["tokens"][0]
    distances = {e["tokens"][0]: e["distance"] for e in told.entries("put", "begun") if "distance" in e}
    for event in tables.events:
        if event.what == "INSERT" and event.token in distances:
            given = distances[event.token]
            if event.distance is None or abs(event.distance - given) > EXACT:
                yield "scheduled for another time than was said", event.token


def effects(told: Told, tables: Tables) -> Finding:
    """A job that was taken in a transaction, or finished by a worker in one, has its effect, and that once."""
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
    """What was popped is gone for others; what was popped and reached nobody is explained."""
    done = {row.token for row in tables.rows if row.over and row.queue == "pop"}
    heard = told.times("pop", "ok")
    yield from _all("popped by two", (token for token, number in heard.items() if number > 1))
    yield from _all("popped, and there for others", set(heard) - done)
    unheard, explained = len(done - set(heard)), told.unheard("pop")
    told.counts["popped, and lost with a client or an answer"] = unheard
    if unheard > explained:
        yield "popped, and reached nobody", f"{unheard} jobs, of which {explained} are explained"


def leases(told: Told, tables: Tables) -> Finding:
    """Each lease is given to one, who heard of it, or whose answer was lost."""
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
    """What a holder was told of the end of its lease is what became of it."""
    found: dict[str, set[tuple[str, int]]] = {"ack": set(), "nack": set(), "extend": set()}
    for event in tables.events:
        if event.queue == "lease" and event.what == "UPDATE" and event.attempts == event.was_attempts:
            found[_ending(event)].add((event.token, event.attempts))
    for act, happened in found.items():
        begun, ok, unknown, failed, lost = (told.leases(act, outcome) for outcome in ("begun", *ENDED))

        def named(leases: Iterable[tuple[str, int]], act: str = act) -> list[str]:
            return [f"{act} of {token}, attempt {attempt}" for token, attempt in leases]

        yield from _all("the end of a lease, acknowledged, and not done", named(set(ok) - happened))
        yield from _all("the end of a lease, done, and nobody asked for it", named(happened - set(begun)))
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
    """A job that was cancelled is gone, and was not given to anybody after; others are there still."""
    gone = {event.token for event in tables.events if event.what == "DELETE"}
    said: dict[bool, set[str]] = {True: set(), False: told.jobs("cancel", "failed")}
    for entry in told.entries("cancel", "ok"):
        said[entry["cancelled"]].update(entry["tokens"])
    yield from _all("cancelled, and there", said[True] - gone)
    yield from _all("not cancelled, as it was said, and gone", said[False] & gone)
    yield from _all("gone, and cancelled by nobody", gone - told.jobs("cancel", "begun"))


def keys(told: Told, tables: Tables) -> Finding:
    """A dedup key has one job at a time, and a put under it gives the id of that."""
    holder: dict[tuple[str, str], int] = {}
    put = {event.job: event.token for event in tables.events if event.what == "INSERT"}
    key_of = {token: entry["key"] for entry in told.entries("keyed", "begun") for token in entry["tokens"]}
    for event in tables.events:
        key = event.queue, event.dedup_key or ""
        if event.what == "INSERT" and event.dedup_key is not None:
            if key in holder:
                yield "two jobs of one dedup key at once", event.token
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
    """Each change of a job is one that may follow the last, by the server's clock."""
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
            elif event.attempts > event.was_attempts or event.what == "DELETE":
                if event.was_leased is not None and event.was_leased > event.at:
                    yield "given to another under a lease that held", f"{event.token} ({job})"
                if event.attempts > event.was_attempts and event.due > event.at:
                    yield "given before it was due", f"{event.token} ({job})"
            elif event.was_leased is None:
                yield "ended, and held by nobody", f"{event.token} ({job})"


def rows(told: Told, tables: Tables) -> Finding:
    """The table is what the audit says, and all that is left is given to who asks."""
    del told
    last = {job: chain[-1] for job, chain in tables.chains().items()}
    alive = {job: (event.attempts, event.over) for job, event in last.items() if event.what != "DELETE"}
    there = {row.job: (row.attempts, row.over) for row in tables.rows}
    yield from _all("not in the table, nor said to be gone", set(alive) - set(there))
    yield from _all("in the table, and not in the audit", set(there) - set(alive))
    yield from _all("other in the table than in the audit", (j for j in alive if j in there and alive[j] != there[j]))
    yield from _all("a dead letter, though it is to be tried for ever", tables.dead)
    yield from _all("left over, and given to nobody who asks", tables.stuck)
