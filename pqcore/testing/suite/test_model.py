"""A queue and a model of it: after any operations, in any order, they agree.

Hypothesis chooses the steps, and shrinks a failure to the fewest steps. ``PQCORE_MODEL_EXAMPLES`` sets the number of
runs for each backend; the default is low, because the suite runs often.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pqcore.errors import JobNotFound, LeaseLost
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.undo import Undo

EXAMPLES = int(os.environ.get("PQCORE_MODEL_EXAMPLES", "7"))
STEPS = 30
QUEUES = ("one", "two")
HOUR = 3600
DEPTH = 3
"""The largest depth of nested transaction blocks."""
CROWDED = 12
"""The number of rows from which on a queue may be cleared."""

Times = tuple[int | None, int | None]
"""In how many hours a job is scheduled, and expected."""
TIMES = st.tuples(st.sampled_from([None, None, None, 1, 2]), st.sampled_from([None, 0, 3, 1]))


@dataclass(frozen=True)
class Gate:
    """The other options of a put. Jobs with equal options share a lane."""

    limits: tuple[tuple[str, int], ...] = ()
    group: str | None = None
    tenant: str | None = None
    priority: int = 0

    def options(self) -> dict[str, Any]:
        said = {"group": self.group, "tenant": self.tenant, "priority": self.priority, "limits": dict(self.limits)}
        return {name: value for name, value in said.items() if value}

    def keys(self) -> set[str]:
        """Return the limits and the group; a job needs a place under each."""
        return {key for key, _ in self.limits} | ({"group"} if self.group else set())


PLAIN = Gate()
ONE, TWO = ("one", 1), ("two", 2)
GATES = st.sampled_from(
    [
        *[PLAIN] * 4,
        Gate((ONE,)),
        Gate((TWO,)),
        Gate((TWO,), priority=3),
        Gate((ONE, TWO)),
        Gate(group="g"),
        Gate(group="g", priority=3),
        Gate((TWO,), "g", "tenant"),
        Gate(tenant="tenant"),
        Gate(priority=3),
        Gate(priority=-1),
    ]
)

Moment = tuple[int, ...]
"""Hours, and the number of the statement: time stands still between two statements, and is advanced by hours."""


@dataclass
class Row:
    """A row in the model."""

    queue: str
    data: int
    due: Moment
    expected: Moment | None
    attempts: int = 0
    leased_until: Moment | None = None
    done: bool = False
    gate: Gate = PLAIN
    waits: bool = True  # if it has a lane, it certainly waits on it; otherwise a take parks it when it finds it
    may_wait: bool = False  # its lease ran out, and a take may have parked it again

    def place(self) -> tuple[int, bool, Moment, Moment]:
        """Return the row's position in the order of its queue, without its id."""
        return -self.gate.priority, self.expected is None, self.expected or self.due, self.due


@dataclass
class Model:
    """The rows of the model, by id."""

    rows: dict[int, Row] = field(default_factory=dict)

    def ready(self, queue: str, now: Moment) -> list[int]:
        """Return the ids of the due jobs, in the order in which they are taken."""
        found = [
            (row.place(), job_id)
            for job_id, row in self.rows.items()
            if row.queue == queue and not row.done and row.due <= now and (row.leased_until or now) <= now
        ]
        return [job_id for _, job_id in sorted(found)]

    def is_admitted(self, job_ids: set[int], queue: str, now: Moment) -> bool:
        """Return whether limits and groups let jobs be leased, in addition to the leased ones."""
        rows = {job_id: row for job_id, row in self.rows.items() if row.queue == queue and not row.done}
        running = job_ids | {job_id for job_id, row in rows.items() if (row.leased_until or now) > now}
        for key, places in (ONE, TWO):
            under = {job_id for job_id in running if (key, places) in rows[job_id].gate.limits}
            if under & job_ids and len(under) > places:
                return False
        group = [job_id for job_id, row in sorted(rows.items()) if row.gate.group]
        return not job_ids & set(group[1:])

    def must_be_leased(self, queue: str, now: Moment) -> set[int]:
        """Return the jobs that a lease must find if it returns no other job.

        Keys may be reserved for a waiting job under several keys, so that other jobs wait, too.
        """
        ready = self.ready(queue, now)
        several = {job_id for job_id in ready if len(self.rows[job_id].gate.keys()) > 1}
        return {
            job_id
            for job_id in ready
            if self.is_admitted({job_id}, queue, now)
            and not any(self.rows[job_id].gate.keys() & self.rows[other].gate.keys() for other in several - {job_id})
        }

    def states(self, queue: str, now: Moment) -> dict[str, set[int]]:
        """Return the ids of the jobs in each state; jobs that wait for admission are ready."""
        found: dict[str, set[int]] = {"ready": set(self.ready(queue, now)), "scheduled": set(), "leased": set()}
        found["done"] = {job_id for job_id, row in self.rows.items() if row.queue == queue and row.done}
        for job_id, row in self.rows.items():
            if row.queue == queue and not row.done and job_id not in found["ready"]:
                held = row.leased_until is not None and row.leased_until > now
                found["leased" if held else "scheduled"].add(job_id)
        return found


def written(hours: int | None) -> str | None:
    return None if hours is None else f"{hours}h"


class Machine(RuleBasedStateMachine):
    """A machine that applies the same operations to both, and compares them."""

    harness: Harness
    retention: str

    queues = st.sampled_from(QUEUES)

    @initialize()
    def begin(self) -> None:
        self.pq = self.harness.pq(retention=self.retention)
        self.clock = 0
        self.statements = 0
        self.model = Model()
        self.blocks: list[Model] = []
        self.leases: list[Any] = []  # jobs, some of which are not held any more
        for name in QUEUES:
            self.pq[name].clear()
            self.put(name, [(None, None), (None, 2), (None, None)], PLAIN)

    def teardown(self) -> None:
        while getattr(self, "blocks", None):
            self.roll_back()
        self.pq.close()

    def filled(self, queue: str) -> str:
        """Return the queue, or the other one if nothing is due in it."""
        now = self.now()
        return min(QUEUES, key=lambda name: (not self.model.ready(name, now), name != queue))

    def now(self) -> Moment:
        self.statements += 1
        return self.clock, self.statements

    def after(self, now: Moment, hours: int | None) -> Moment | None:
        return None if hours is None else (now[0] + hours, now[1])

    def known(self, choice: int) -> int:
        """Return an id, usually of a row that exists or existed."""
        ids = sorted(self.model.rows)
        return ids[choice % len(ids)] if ids else choice + 1

    # Putting

    @rule(queue=queues, jobs=st.lists(TIMES, min_size=1, max_size=5), gate=GATES)
    def put(self, queue: str, jobs: list[Times], gate: Gate) -> None:
        for times in jobs:
            now = self.now()
            put = self.pq[queue].put(0, *map(written, times), **gate.options())
            self.was_put(queue, [put], times, gate, now)

    @rule(queue=queues, times=TIMES, number=st.integers(1, 4), gate=GATES)
    def put_many(self, queue: str, times: Times, number: int, gate: Gate) -> None:
        now = self.now()
        put = self.pq[queue].put_many([0] * number, *map(written, times), **gate.options())
        self.was_put(queue, put, times, gate, now)

    def was_put(self, queue: str, ids: list[int], times: Times, gate: Gate, now: Moment) -> None:
        schedule, expected = times
        for number, job_id in enumerate(ids):  # the times of rows that are put together differ by microseconds
            assert job_id not in self.model.rows
            due = self.after(now, schedule) or now
            expected_at = None if expected is None else (now[0] + expected, now[1], number)
            self.model.rows[job_id] = Row(queue, 0, due, expected_at, gate=gate, waits=schedule is None)

    # Taking

    @rule(queue=queues, n=st.integers(1, 3))
    def get(self, queue: str, n: int) -> None:
        queue = self.filled(queue)
        now = self.now()
        jobs = self.pq[queue].get_many(n, block=False)
        self.compare_taken(jobs, queue, n, now)
        for job in jobs:
            if self.retention == "keep":
                row = self.model.rows[job.id]
                row.done, row.leased_until = True, None
                row.attempts += 1
            else:
                del self.model.rows[job.id]

    @rule(queue=queues, n=st.integers(1, 3), hours=st.integers(1, 3))
    def lease(self, queue: str, n: int, hours: int) -> None:
        queue = self.filled(queue)
        now = self.now()
        jobs = self.pq[queue].lease_many(n, hours * HOUR, block=False)
        if not jobs and self.model.must_be_leased(queue, now):  # a take remembers for a moment that no job waits
            jobs = self.pq[queue].lease_many(n, hours * HOUR, timeout=PATIENCE)
        self.compare_leased(jobs, queue, n, now)
        for row in self.model.rows.values():
            if row.queue == queue and row.leased_until is not None and row.leased_until <= now:
                row.may_wait = row.gate != PLAIN
        for job in jobs:
            row = self.model.rows[job.id]
            row.attempts += 1
            row.leased_until, row.waits, row.may_wait = self.after(now, hours), False, False
            assert job.token == row.attempts
        self.leases += jobs

    def compare_leased(self, jobs: list[Any], queue: str, n: int, now: Moment) -> None:
        taken = {job.id for job in jobs}
        assert len(jobs) == len(taken) <= n
        ready = self.model.ready(queue, now)
        assert [job.id for job in jobs] == [job_id for job_id in ready if job_id in taken]
        assert self.model.is_admitted(taken, queue, now)
        assert jobs or not self.model.must_be_leased(queue, now)
        for lane in {self.model.rows[job_id].gate for job_id in taken}:
            waiting = [
                job_id
                for job_id in ready
                if (row := self.model.rows[job_id]).gate == lane and (row.waits or lane == PLAIN)
            ]
            if lane.group is None:
                assert set(waiting[: len(taken & set(waiting))]) <= taken
        assert [job.data for job in jobs] == [self.model.rows[job.id].data for job in jobs]

    def compare_taken(self, jobs: list[Any], queue: str, n: int, now: Moment) -> None:
        ready = self.model.ready(queue, now)
        if all(row.waits or not row.gate.priority for row in map(self.model.rows.__getitem__, ready)):
            assert [job.id for job in jobs] == ready[:n]
        else:  # a scheduled or returned job has its priority only after a take of a lease has found it
            assert {job.id for job in jobs} <= set(ready)
            assert len(jobs) == min(n, len(ready))
        assert [job.data for job in jobs] == [self.model.rows[job.id].data for job in jobs]

    # Leased jobs

    def holds(self, job: Any) -> Row | None:
        """Return the row, if the job's lease was not given to another consumer since."""
        row = self.model.rows.get(job.id)
        held = row is not None and not row.done and row.leased_until is not None and row.attempts == job.token
        return row if held else None

    @rule(
        choice=st.integers(0, 20),
        what=st.sampled_from([("ack", None), ("nack", None), ("nack", 0), ("nack", 2), ("extend", 1), ("extend", 2)]),
    )
    @precondition(lambda self: self.leases)
    def use_a_lease(self, choice: int, what: tuple[str, int | None]) -> None:
        job = self.leases[-1 - choice % len(self.leases)]
        verb, hours = what
        now = self.now()
        row = self.holds(job)
        if row is not None and row.may_wait:
            return
        queue = self.pq[QUEUES[0] if row is None else row.queue]
        arguments = [] if verb == "ack" else [None if hours is None else hours * HOUR]
        if row is None:
            with pytest.raises(LeaseLost):
                getattr(queue, verb)(job, *arguments)
            return
        getattr(queue, verb)(job, *arguments)
        if verb == "extend":
            row.leased_until = self.after(now, hours)
            return
        row.leased_until = None
        if verb == "nack":
            row.due = self.after(now, hours) or row.due
        elif self.retention == "keep":
            row.done = True
        else:
            del self.model.rows[job.id]

    # Operations by id

    @rule(queue=queues, choice=st.integers(0, 20), what=st.sampled_from(["cancel", "update", "retry"]))
    def name_one(self, queue: str, choice: int, what: str) -> None:
        job_id = self.known(choice)
        if what == "cancel":
            self.cancel(queue, job_id)
        elif what == "update":
            self.update(queue, job_id, choice)
        else:
            self.retry(queue, job_id)

    def cancel(self, queue: str, job_id: int) -> None:
        now = self.now()
        row = self.model.rows.get(job_id)
        waits = row is not None and row.queue == queue and not row.done and (row.leased_until or now) <= now
        assert self.pq[queue].cancel(job_id) is waits
        if waits:
            del self.model.rows[job_id]

    def update(self, queue: str, job_id: int, number: int) -> None:
        self.now()
        row = self.model.rows.get(job_id)
        if row is None or row.queue != queue:
            with pytest.raises(JobNotFound):
                self.pq[queue].update(job_id, number)
            return
        self.pq[queue].update(job_id, number)
        row.data = number

    def retry(self, queue: str, job_id: int) -> None:
        now = self.now()
        row = self.model.rows.get(job_id)
        again = row is not None and row.queue == queue and (row.done or job_id in self.states(queue, now)["scheduled"])
        assert self.pq[queue].retry(job_id) is again
        if again and row is not None:
            row.done, row.due, row.waits = False, now, False

    def states(self, queue: str, now: Moment) -> dict[str, set[int]]:
        return self.model.states(queue, now)

    @rule(queue=queues, what=st.sampled_from(["move one", "move two", "purge", "clear"]))
    def keep_house(self, queue: str, what: str) -> None:
        if what == "purge":
            self.purge(queue)
        elif what != "clear":
            self.move(1 if what == "move one" else 2)
        elif len(self.model.rows) > CROWDED:
            self.clear(queue)

    def move(self, most: int) -> None:
        source, target = QUEUES
        now = self.now()
        states = self.states(source, now)
        candidates = {
            job_id
            for job_id in states["ready"] | states["scheduled"]
            if self.model.rows[job_id].leased_until is None  # if its lease ran out, a consumer may still hold it
        }
        moved = self.pq[source].move(target, sorted(candidates)[:most])
        assert moved == len(sorted(candidates)[:most])
        for job_id in sorted(candidates)[:most]:
            self.model.rows[job_id].queue = target
            self.model.rows[job_id].waits = False

    # Operations on all jobs

    def purge(self, queue: str) -> None:
        self.now()
        gone = [job_id for job_id, row in self.model.rows.items() if row.queue == queue and row.done]
        assert self.pq[queue].purge(0) == len(gone)
        for job_id in gone:
            del self.model.rows[job_id]

    def clear(self, queue: str) -> None:
        self.now()
        self.pq[queue].clear()
        self.model.rows = {job_id: row for job_id, row in self.model.rows.items() if row.queue != queue}

    # Time

    @rule(hours=st.integers(1, 3))
    @precondition(lambda self: not self.blocks)
    def pass_time(self, hours: int) -> None:
        moved = ", ".join(
            f"{column} = {column} - interval '{hours} hours'"
            for column in ("enqueued_at", "schedule_at", "expected_at", "leased_until", "dequeued_at")
        )
        self.harness.sql(f"UPDATE {{table}} SET {moved}", rows=False)
        self.clock += hours

    # Transactions

    @rule(what=st.sampled_from(["open", "commit", "roll back"]))
    def end_or_open_a_block(self, what: str) -> None:
        if not self.blocks or (what == "open" and len(self.blocks) < DEPTH):
            self.open_block()
        elif what == "roll back":
            self.roll_back()
        else:
            self.commit()

    def open_block(self) -> None:
        self.pq[QUEUES[0]].__enter__()
        self.blocks.append(deepcopy(self.model))

    def commit(self) -> None:
        self.pq[QUEUES[0]].__exit__(None, None, None)
        self.blocks.pop()

    def roll_back(self) -> None:
        self.pq[QUEUES[0]].__exit__(Undo, Undo(), None)
        self.model = self.blocks.pop()

    # Conditions after each step

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for name in QUEUES:
            queue, now = self.pq[name], self.now()
            expected = self.model.ready(name, now)
            assert [job.id for job in queue.peek(100)] == expected
            assert queue.count() == len(expected)
            states: dict[str, set[int]] = {state: set() for state in ("ready", "parked", "scheduled", "leased", "done")}
            for job in queue.jobs(*states):
                states[job.state].add(job.id)
            parked = states.pop("parked")
            assert all(self.model.rows[job_id].gate != PLAIN for job_id in parked)
            found = {**states, "ready": states["ready"] | parked}
            assert found == self.states(name, now)


@pytest.mark.parametrize("retention", ["keep", "delete"])
def test_queue_behaves_as_its_model(harness: Harness, retention: str) -> None:
    class Bound(Machine):
        pass

    Bound.harness, Bound.retention = harness, retention
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
