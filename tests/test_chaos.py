"""Short runs of `tests.chaos`: clients get true answers, no job is lost, and the checker finds forged lies."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any, TypeAlias

import pytest
from chaos import checker, failover
from chaos.checker import Entry, check
from chaos.faults import FaultOrder
from chaos.run import Report, run
from chaos.tables import WAITING, Event, Record, Row, Tables

HOUR = timedelta(hours=1)
ALWAYS = ("put", "take", "lease", "pop", "ack", "nack", "extend", "cancel", "keyed", "ask")
"""Operations that clients run successfully in every run."""


@pytest.fixture(scope="module")
def report() -> Report:
    return run(4.0, seed=3, settle=3.0, least=8)


@pytest.fixture(scope="module")
def left(report: Report) -> bytes:
    """The result of a run: the answers that clients got, and the tables."""
    return pickle.dumps((report.history, report.found))


@pytest.mark.timeout(240)
def test_chaos_loses_no_job_under_any_fault(report: Report) -> None:
    assert report.verdict.losses == []
    assert len(report.injected) >= 8
    assert not set(report.missing) & set(report.injected)
    for act in ALWAYS:
        assert report.verdict.counts[f"{act} ok"] > 0, act
    assert report.verdict.counts["told done"] > 0
    assert report.verdict.counts["ticks put"] > 0


@pytest.mark.timeout(240)
def test_failover_keeps_acknowledged_operations() -> None:
    report = failover.run(1.0, seed=5, backends=[("psycopg", "blocking"), ("asyncpg", "async")], settle=2.0, most=1)
    assert report.verdict.losses == []
    assert report.injected[failover.FAILOVER] == 1
    assert report.verdict.counts["put ok"] > 0


def test_chaos_injects_each_fault_as_often_as_another() -> None:
    order, rng, injected = FaultOrder(), Random(1), Counter[str]()
    for kinds, number in ((["cut", "kill", "freeze"], 9), (["kill", "silence"], 5), (["cut", "kill", "freeze"], 2)):
        injected.update(order.choose(kinds, rng) for _ in range(number))
    assert injected == {"cut": 4, "kill": 4, "freeze": 4, "silence": 4}


class Forger:
    """The result of a run, which a test then forges.

    Args:
        left: The pickled result.
    """

    def __init__(self, left: bytes) -> None:
        self.history: list[Entry]
        self.tables: Tables
        self.history, self.tables = pickle.loads(left)

    def told(self, act: str, outcome: str, such: Callable[[Entry], Any] = bool) -> Entry:
        """Return the first entry of a kind of operation with an outcome."""
        return next(e for e in self.history if (e["act"], e["outcome"]) == (act, outcome) and such(e))

    def unsay(self, act: str, token: str) -> None:
        """Remove all entries of one operation on a job."""
        self.history = [e for e in self.history if e["act"] != act or token not in e.get("tokens", ())]

    def say_again(self, act: str, outcome: str, such: Callable[[Entry], Any] = bool) -> None:
        self.history.append(dict(self.told(act, outcome, such)))

    def event(self, such: Callable[[Event], Any]) -> Event:
        return next(event for event in self.tables.events if such(event))

    def row(self, such: Callable[[Row], Any]) -> Row:
        return next(row for row in self.tables.rows if such(row))

    def forget(self, token: str) -> None:
        """Remove all traces of a job."""
        tables = self.tables
        tables.rows = [row for row in tables.rows if row.token != token]
        tables.events = [event for event in tables.events if event.token != token]
        tables.effects = [effect for effect in tables.effects if effect[0] != token]

    def double(self, put: Event) -> None:
        """Add a job that is put right after another one, with the same data."""
        place = self.tables.events.index(put) + 1
        self.tables.events.insert(place, replace(put, job=10**9))

    def run_together(self, needs: Callable[[Entry], Any]) -> None:
        """Add eight jobs that run at the same time as another one, under the same limits."""
        ended = {(event.job, event.attempts): event.token for event in self.tables.events if event.over}
        last = {(record.job, record.attempt): record for record in self.tables.records if record.over}
        gate_of = {token: entry for entry in self.history if entry["act"] == "gate" for token in entry["tokens"]}
        begun, gate = next(
            (record, gate_of[ended[lease]])
            for record in self.tables.records
            if not record.over and (lease := (record.job, record.attempt)) in set(last) & set(ended)
            if ended[lease] in gate_of and needs(gate_of[ended[lease]])
        )
        put = self.event(lambda event: event.job == begun.job)
        for job in range(10**9, 10**9 + 8):
            self.history.append({**gate, "tokens": [f"other-{job}"]})
            self.tables.events.append(replace(put, job=job, token=f"other-{job}"))
            over = replace(last[begun.job, begun.attempt], job=job)
            self.tables.records += [replace(begun, job=job), over]

    def without_effect(self, token: str) -> None:
        self.tables.effects = [effect for effect in self.tables.effects if effect[0] != token]


class Made:
    """An invented history of jobs under limits and in groups, in which one second passes from step to step."""

    def __init__(self) -> None:
        self.history: list[Entry] = []
        self.tables = Tables([], [], [], {}, [])
        self._now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self._n = 0
        self._last: dict[int, Event] = {}

    def _step(self) -> tuple[int, datetime]:
        self._n += 1
        return self._n, self._now + timedelta(seconds=self._n)

    def put(self, job: int, limits: dict[str, int], group: str | None = None) -> None:
        n, at = self._step()
        token = f"token-{job}"
        for act in ("gate", "put"):
            self.history.append({"act": act, "outcome": "begun", "tokens": [token], "limits": limits, "group": group})
        waits: dict[str, Any] = {"attempts": 0, "leased": WAITING, "over": False}
        waits |= {f"was_{name}": value for name, value in waits.items()}
        self._add(Event(n, at, job, "gated", token, "INSERT", None, due=at, distance=None, uptime=1.0, **waits))

    def _add(self, event: Event) -> None:
        self.tables.events.append(event)
        self._last[event.job] = event

    def _change(self, job: int, **changed: Any) -> None:
        n, at = self._step()
        last = self._last[job]
        changed |= {"was_attempts": last.attempts, "was_leased": last.leased, "was_over": last.over}
        self._add(replace(last, n=n, at=at, what="UPDATE", **changed))

    def begin(self, job: int, seconds: float = 3600) -> None:
        """Lease a job, and begin its function."""
        self._change(
            job, attempts=self._last[job].attempts + 1, leased=self._now + timedelta(seconds=self._n + seconds)
        )
        self.record(job, over=False)

    def wait(self, job: int) -> None:
        """Let a job whose lease ran out wait for admission again."""
        self._change(job, leased=WAITING)

    def record(self, job: int, *, over: bool, attempt: int | None = None) -> None:
        n, at = self._step()
        self.tables.records.append(Record(n, at, job, attempt or self._last[job].attempts, over))

    def end(self, job: int) -> None:
        """End a job's function, and finish the job."""
        self.record(job, over=True)
        self._change(job, leased=None, over=True)

    def losses(self) -> list[str]:
        last = self._last.values()
        self.tables.rows = [Row(event.job, event.queue, event.token, event.over, event.attempts) for event in last]
        return check(self.history, self.tables).losses


def test_chaos_checker_finds_jobs_past_one_of_their_limits() -> None:
    made = Made()
    for job in (1, 2, 3):
        made.put(job, {"wide": 2, "narrow": 1})
    made.begin(1)
    made.begin(2)  # as if pqcore ignored its second key
    made.end(1)
    made.end(2)
    made.begin(3)
    made.end(3)
    assert made.losses() == ["more jobs at the same time than their limit admits: narrow, 1 places: [1, 2] at 6"]


@pytest.mark.parametrize("running", [5, 6])
def test_chaos_checker_counts_the_places_of_a_limit(running: int) -> None:
    made = Made()
    for job in range(running):
        made.put(job, {"five": 5})
    for job in range(running):
        made.begin(job)
    for job in range(running):
        made.end(job)
    loss = f"more jobs at the same time than their limit admits: five, 5 places: {[*range(running)]} at 17"
    assert made.losses() == ([] if running == 5 else [loss])


def test_chaos_checker_finds_a_group_out_of_order() -> None:
    made = Made()
    for job in (1, 2, 3):
        made.put(job, {"five": 5}, "group")
    made.begin(1)
    made.end(1)
    made.begin(3)  # as if pqcore ignored the group
    made.end(3)
    made.begin(2)
    made.end(2)
    assert made.losses() == ["run before a job of its group that was put earlier: group: 3 before 2"]


def test_chaos_checker_excuses_a_run_whose_lease_ran_out() -> None:
    made = Made()
    made.put(1, {"one": 1}, "group")
    made.put(2, {"one": 1})
    made.begin(1, seconds=1)  # frozen until after job 2
    made.wait(1)
    made.begin(2)
    made.end(2)
    made.begin(1)
    made.record(1, over=True, attempt=1)
    made.end(1)
    assert made.losses() == []


def test_chaos_checker_excuses_no_run_whose_lease_held() -> None:
    made = Made()
    made.put(1, {"one": 1})
    made.put(2, {"one": 1})
    made.begin(1)
    made.wait(1)
    made.begin(2)
    made.record(1, over=True)
    made.end(2)
    assert made.losses() == ["more jobs at the same time than their limit admits: one, 1 places: [1, 2] at 6"]


def _losses_with_a_lease_given_back(left: bytes, *, heard: bool) -> list[str]:
    """Return the losses of a run in which one more lease ends, as after a nack that no client called."""
    run = Forger(left)
    number = Counter(token for e in run.history if e["act"] == "nack" for token in set(e.get("tokens", ())))
    nacked = run.told("nack", "ok", lambda e: number[e["tokens"][0]] == 2)  # begun and ended: the only one of its job
    run.unsay("nack", nacked["tokens"][0])
    if not heard:
        lease = nacked["tokens"], nacked["attempt"]
        run.history = [e for e in run.history if e["act"] != "leased" or (e["tokens"], e["attempt"]) != lease]
        run.history.append({"act": "lease", "outcome": "begun", "who": "interrupted", "n": 1, "t": 0.0, "log": "x"})
        run.history.append({"act": "lease", "outcome": "unknown", "who": "interrupted", "n": 1, "t": 0.0, "log": "x"})
    return check(run.history, run.tables).losses


def test_chaos_checker_excuses_a_lease_given_back_for_an_interrupted_caller(left: bytes) -> None:
    assert _losses_with_a_lease_given_back(left, heard=False) == []


def test_chaos_checker_excuses_no_lease_given_back_that_a_caller_got(left: bytes) -> None:
    losses = _losses_with_a_lease_given_back(left, heard=True)
    assert [loss.partition(":")[0] for loss in losses] == ["the end of a lease, done, and nobody asked for it"]


Forgery: TypeAlias = Callable[[Forger], Any]
FORGERIES: dict[str, Forgery] = {}
"""The changes that put a loss into a run, by the name of the loss."""


def forges(loss: str) -> Callable[[Forgery], Forgery]:
    def keep(forgery: Forgery) -> Forgery:
        FORGERIES[loss] = forgery
        return forgery

    return keep


def leased(event: Event) -> bool:
    return event.queue == "lease" and event.attempts > event.was_attempts and not event.over


def acked(event: Event) -> bool:
    return event.queue == "lease" and event.over and event.attempts == event.was_attempts and event.what == "UPDATE"


def popped(event: Event) -> bool:
    return event.queue == "pop" and event.over and event.attempts > event.was_attempts


@forges("an error that is none of pqcore's")
def _(run: Forger) -> None:
    run.told("put", "ok").update(outcome="failed", why="TypeError: of a driver's", foreign=True)


@forges("put, acknowledged, and not there")
def _(run: Forger) -> None:
    run.forget(run.told("put", "ok")["tokens"][0])


@forges("put, said to have failed, and there")
def _(run: Forger) -> None:
    run.told("put", "ok")["outcome"] = "failed"


@forges("put once, and there twice")
def _(run: Forger) -> None:
    run.double(run.event(lambda event: event.what == "INSERT"))


@forges("there, and put by nobody")
def _(run: Forger) -> None:
    run.unsay("put", run.told("put", "ok")["tokens"][0])


@forges("put together, and there in part")
def _(run: Forger) -> None:
    run.forget(run.told("put", "ok", lambda entry: len(entry["tokens"]) > 2)["tokens"][1])


@forges("put, and told the id of another's job")
def _(run: Forger) -> None:
    run.told("put", "ok", lambda entry: entry.get("jobs"))["jobs"][0] += 1


@forges("scheduled for another time than was said")
def _(run: Forger) -> None:
    event = run.event(lambda event: event.what == "INSERT" and event.distance and not ticked(event))
    event.distance = (event.distance or 0) + 3600


@forges("an effect twice")
def _(run: Forger) -> None:
    run.tables.effects.append(run.tables.effects[0])


@forges("done in a transaction, without its effect")
def _(run: Forger) -> None:
    run.without_effect(run.row(lambda row: row.queue == "work" and row.over).token)


@forges("an effect, and its job not done")
def _(run: Forger) -> None:
    run.row(lambda row: row.queue == "transaction" and row.over).over = False


@forges("taken, acknowledged, and without effect")
def _(run: Forger) -> None:
    run.without_effect(run.told("take", "ok", lambda entry: entry["tokens"])["tokens"][0])


@forges("an effect, and each who took it was told that it failed")
def _(run: Forger) -> None:
    begun = Counter(
        token for e in run.history if (e["act"], e["outcome"]) == ("take", "begun") for token in e["tokens"]
    )
    run.told("take", "ok", lambda entry: any(begun[token] == 1 for token in entry["tokens"]))["outcome"] = "failed"


@forges("a transaction was done in part")
def _(run: Forger) -> None:
    run.tables.tallies["a"] += 1


@forges("popped by two")
def _(run: Forger) -> None:
    run.say_again("pop", "ok", lambda entry: entry["tokens"])


@forges("popped, and there for others")
def _(run: Forger) -> None:
    token = run.told("pop", "ok", lambda entry: entry["tokens"])["tokens"][0]
    run.row(lambda row: row.token == token).over = False


@forges("popped, and reached nobody")
def _(run: Forger) -> None:
    for entry in run.history:
        if (entry["act"], entry["outcome"]) == ("pop", "ok"):
            entry["tokens"] = []


@forges("one lease given to two")
def _(run: Forger) -> None:
    run.say_again("leased", "ok")


@forges("leased to a client, and not in the table")
def _(run: Forger) -> None:
    run.told("leased", "ok")["attempt"] += 1000


@forges("leased, and reached nobody")
def _(run: Forger) -> None:
    run.history = [entry for entry in run.history if entry["act"] != "leased"]


@forges("the end of a lease, acknowledged, and not done")
def _(run: Forger) -> None:
    run.tables.events.remove(run.event(acked))


@forges("the end of a lease, done, and nobody asked for it")
def _(run: Forger) -> None:
    run.unsay("ack", run.event(acked).token)


@forges("the end of a lease, refused, and done")
def _(run: Forger) -> None:
    run.told("nack", "ok")["outcome"] = "failed"


@forges("the end of a lease, accepted twice")
def _(run: Forger) -> None:
    run.say_again("ack", "ok")


@forges("cancelled, and there")
def _(run: Forger) -> None:
    run.tables.events.remove(run.event(lambda event: event.what == "DELETE"))


@forges("not cancelled, as it was said, and gone")
def _(run: Forger) -> None:
    run.told("cancel", "ok", lambda entry: entry["cancelled"])["cancelled"] = False


@forges("gone, and cancelled by nobody")
def _(run: Forger) -> None:
    run.unsay("cancel", run.event(lambda event: event.what == "DELETE").token)


@forges("two jobs with one dedup key at the same time")
def _(run: Forger) -> None:
    run.double(run.event(lambda event: event.what == "INSERT" and event.dedup_key))


@forges("put under a dedup key, and the job told of is another's")
def _(run: Forger) -> None:
    run.told("keyed", "ok")["job"] = run.event(lambda event: event.queue == "transaction").job


@forges("put once under a key, and there twice")
def _(run: Forger) -> None:
    token = run.told("keyed", "ok", lambda entry: not entry["key"].startswith("shared"))["tokens"][0]
    run.double(run.event(lambda event: event.token == token and event.what == "INSERT"))


@forges("put once under a key, and told of two")
def _(run: Forger) -> None:
    entry = run.told("keyed", "ok", lambda entry: not entry["key"].startswith("shared"))
    run.history.append({**entry, "job": entry["job"] + 1})


@forges("changed, and never put")
def _(run: Forger) -> None:
    run.tables.events.remove(run.event(lambda put: put.what == "INSERT" and put.job == run.event(popped).job))


@forges("changed without a trace")
def _(run: Forger) -> None:
    run.tables.events.remove(run.event(lambda event: leased(event) and event.job == run.event(acked).job))


@forges("changed after it was done")
def _(run: Forger) -> None:
    run.tables.events.append(replace(run.event(popped), was_over=True))


@forges("its attempts do not rise by one")
def _(run: Forger) -> None:
    run.event(leased).attempts += 5


@forges("given to another under a lease that held")
def _(run: Forger) -> None:
    event = run.event(leased)
    event.was_leased = event.at + HOUR


@forges("given before it was due")
def _(run: Forger) -> None:
    event = run.event(popped)
    event.due = event.at + HOUR


@forges("ended, and held by nobody")
def _(run: Forger) -> None:
    run.event(acked).was_leased = None


@forges("not in the table, nor said to be gone")
def _(run: Forger) -> None:
    run.tables.rows.pop()


@forges("in the table, and not in the audit")
def _(run: Forger) -> None:
    job = run.tables.rows[0].job
    run.tables.events = [event for event in run.tables.events if event.job != job]


@forges("other in the table than in the audit")
def _(run: Forger) -> None:
    run.tables.rows[0].attempts += 1


@forges("a dead letter, though its retries have no limit")
def _(run: Forger) -> None:
    run.tables.dead.append("1: of nothing")


@forges("left over, and given to nobody who asks")
def _(run: Forger) -> None:
    run.tables.stuck.append("1 of queue")


@forges("an act that took too long")
def _(run: Forger) -> None:
    run.told("pop", "ok")["took"] = 2 * checker.ENDLESS


@forges("an act without end")
def _(run: Forger) -> None:
    stopped = run.told(
        "stopped", "ok", lambda entry: any(e.get("who") and e["log"] == entry["log"] for e in run.history)
    )
    begun = next(entry for entry in run.history if entry.get("who") and entry["log"] == stopped["log"])
    run.history.append({**begun, "act": "lease", "outcome": "begun", "n": 0, "t": stopped["t"] - 2 * checker.ENDLESS})


@forges("an answer to what another asked")
def _(run: Forger) -> None:
    run.told("ask", "ok")["answer"] = "another"


@forges("more jobs at the same time than their limit admits")
def _(run: Forger) -> None:
    run.run_together(lambda gate: gate["limits"])


@forges("jobs of one group at the same time")
def _(run: Forger) -> None:
    run.run_together(lambda gate: gate["group"])


@forges("run before a job of its group that was put earlier")
def _(run: Forger) -> None:
    group_of = {token: e["group"] for e in run.history if e["act"] == "gate" for token in e["tokens"] if e["group"]}
    ran = {record.job for record in run.tables.records}
    jobs: dict[str, set[int]] = defaultdict(set)
    for event in run.tables.events:
        if event.token in group_of and event.job in ran:
            jobs[group_of[event.token]].add(event.job)
    first = next(min(members) for members in jobs.values() if len(members) > 1)
    run.event(lambda event: event.job == first and event.over).n = 10**9


@forges("told lost, and done")
def _(run: Forger) -> None:
    run.told("told", "done")["outcome"] = "lost"


@forges("told done, and not done")
def _(run: Forger) -> None:
    run.told("told", "done")["job"] = 10**9


def ticked(event: Event) -> bool:
    return event.what == "INSERT" and event.token.startswith("tick-")


@forges("a tick put twice")
def _(run: Forger) -> None:
    run.double(run.event(lambda event: ticked(event) and run.tables.is_steady(event)))


@forges("a tick that was left out")
def _(run: Forger) -> None:
    run.tables.missed = "all"
    last = next(event for event in reversed(run.tables.events) if ticked(event))
    last.due += HOUR


@forges("no tick any more")
def _(run: Forger) -> None:
    run.tables.ticking = False


@pytest.mark.parametrize("loss", FORGERIES)
def test_chaos_checker_finds_a_forged_loss(left: bytes, loss: str) -> None:
    forged = Forger(left)
    FORGERIES[loss](forged)
    found = {each.partition(": ")[0] for each in check(forged.history, forged.tables).losses}
    assert loss in found


def test_chaos_checker_has_a_forgery_for_each_kind_of_loss() -> None:
    assert set(_known()) == set(FORGERIES)


def _known() -> Iterator[str]:
    """Return the losses that the checker can report, directly or through `_all`."""
    for node in ast.walk(ast.parse(inspect.getsource(checker))):
        named: ast.expr | None = None
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            named = node.value.elts[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_all":
            named = node.args[0]
        if isinstance(named, ast.Constant):
            yield str(named.value)
