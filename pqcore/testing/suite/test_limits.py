"""Concurrency limits, FIFO groups and rates: they hold for all consumers together, and lose no job."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pqcore import lane_book
from pqcore.backend import Capability
from pqcore.errors import ConfigurationError, DatabaseError, InvalidName, LeaseLost
from pqcore.operations import admission
from pqcore.sql.identifiers import MAX_KEY, TableName, quote
from pqcore.tasks import Fixed
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Latch, Notes
from pqcore.testing.undo import Undo

ONE = {"limits": {"one": 1}}


def sweep(harness: Harness, queue: Any) -> None:
    """Do what each worker does twice per minute."""
    core = unwrapped(queue)
    harness.wait_for(lambda: core.engine.run(lambda s: admission.sweep(core, s)))


def slots(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the jobs that hold a place, and the keys."""
    table = TableName("queue", harness.schema).related("_keys")
    return harness.sql(
        "SELECT kept.key, job.id FROM (SELECT DISTINCT ON (q_name, key) q_name, key, running FROM"
        f" {table} ORDER BY q_name, key, version DESC) AS kept"
        f" JOIN {harness.table} AS job ON job.id = ANY (kept.running) AND job.q_name = kept.q_name"
        " WHERE dequeued_at IS NULL AND parked_on IS NULL AND leased_until IS NOT NULL"
        " ORDER BY 1, 2"
    )


def all_leased(queue: Any, n: int = 100) -> list[Any]:
    return list(queue.lease_many(n, "1h", block=False))


def data(jobs: Sequence[Any]) -> list[Any]:
    return [job.data for job in jobs]


class Gauge:
    """A gauge of how many functions are inside, and of the largest number ever inside concurrently; by key.

    Attributes:
        full: Set when the allowed number was inside concurrently; the first functions wait for it.
    """

    def __init__(self, **allowed: int) -> None:
        self._lock = threading.Lock()
        self._allowed = allowed
        self.full = threading.Event()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.done: list[int] = []
        self.log: list[tuple[str, int]] = []

    @contextmanager
    def within(self, job: int, *keys: str) -> Iterator[None]:
        with self._lock:
            self.log.append(("begin", job))
            self.now.update(keys)
            for key in keys:
                self.most[key] = max(self.most[key], self.now[key])
            if all(self.now[key] >= number for key, number in self._allowed.items()):
                self.full.set()
        try:
            yield
        finally:
            with self._lock:
                self.now.subtract(keys)
                self.log.append(("end", job))

    def finished(self, job: int) -> None:
        with self._lock:
            self.done.append(job)

    def one_at_a_time(self) -> bool:
        """Return whether each run that began ended before another began."""
        return [kind for kind, _ in self.log] == ["begin", "end"] * (len(self.log) // 2) and all(
            begun[1] == ended[1] for begun, ended in zip(self.log[::2], self.log[1::2], strict=True)
        )


# Limits


def test_concurrency_limit_of_three_holds_under_eight_consumers(harness: Harness) -> None:
    queue = harness.queue(max_connections=8)
    ids = [queue.put(number, limits={"three": 3}) for number in range(30)]
    free = queue.put_many(range(10))
    gauge, pause = Gauge(three=3), threading.Event()

    def consume(seed: int) -> None:
        chance = random.Random(seed)
        while len(gauge.done) < len(ids) + len(free):
            job = queue.lease(60, wait=0.1)
            if job is None:
                continue
            keys = job.headers.get("gate", {}).get("limits", ())
            with gauge.within(job.id, *keys):
                assert not keys or gauge.full.wait(PATIENCE)
                pause.wait(chance.random() / 200)
            if chance.random() < 0.1:
                job.nack()
            else:
                job.ack()
                gauge.finished(job.id)

    harness.at_once(*(partial(consume, seed) for seed in range(8)))
    assert sorted(gauge.done) == ids + free
    assert gauge.most["three"] == 3
    assert slots(harness) == []
    assert queue.stats().parked == 0


def test_concurrency_limit_of_three_holds_under_workers(harness: Harness) -> None:
    queue = harness.task_queue()
    gauge = Gauge(task=3)

    @queue.task(limit=3, limits=lambda number: {f"host-{number % 2}": 2})
    async def limited(job_id: int, number: int) -> None:
        with gauge.within(job_id, "task", f"host-{number % 2}"):
            assert await asyncio.to_thread(gauge.full.wait, PATIENCE)
            await asyncio.sleep(number % 5 / 1_000)
        gauge.finished(job_id)

    ids = [int(limited(number)) for number in range(24)]
    with ExitStack() as workers:
        for _ in range(3):
            workers.enter_context(harness.working(queue, concurrency=4))
        harness.eventually(lambda: len(gauge.done) >= len(ids))
    assert sorted(gauge.done) == ids
    assert gauge.most["task"] == 3
    assert max(gauge.most["host-0"], gauge.most["host-1"]) == 2
    assert slots(harness) == []


def test_concurrency_limit_of_three_holds_for_functions_in_threads(harness: Harness) -> None:
    queue = harness.task_queue()
    gauge, pause = Gauge(task=3), threading.Event()

    @queue.task(limit=3)
    def limited(job_id: int) -> None:
        with gauge.within(job_id, "task"):
            assert gauge.full.wait(PATIENCE)
            pause.wait(0.002)
        gauge.finished(job_id)

    ids = [int(limited()) for _ in range(18)]
    with harness.working(queue, concurrency=8):
        harness.eventually(lambda: len(gauge.done) >= len(ids))
    assert (sorted(gauge.done), gauge.most["task"]) == (ids, 3)


@pytest.mark.parametrize("runs_in", ["a thread", "the loop"])
def test_concurrency_limit_holds_for_jobs_that_are_leased_several_for_a_place(harness: Harness, runs_in: str) -> None:
    queue = harness.task_queue()
    gauge, over = Gauge(), Latch()

    def run(job_id: int, number: int) -> None:
        with gauge.within(job_id, "task"):
            if number == 100:
                over.wait()
        gauge.finished(job_id)

    if runs_in == "a thread":
        limited = queue.task(limit=2)(run)
    else:

        @queue.task(limit=2)
        async def limited(job_id: int, number: int) -> None:
            if number == 100:
                await asyncio.to_thread(run, job_id, number)
            else:
                run(job_id, number)

    @queue.task()
    def free(job_id: int) -> None:
        gauge.finished(job_id)

    ids = queue.put_calls(*[limited.call(number) for number in range(200)])
    with harness.working(queue, concurrency=4):
        harness.eventually(lambda: len(gauge.done) >= 100)
        other = free()  # in a free slot, although jobs wait for the place that a long job holds
        harness.eventually(lambda: int(other) in gauge.done)
        harness.eventually(lambda: len(gauge.done) == 200)  # under the other place
        over.open()
        harness.eventually(lambda: len(gauge.done) == 201)
    assert sorted(gauge.done) == sorted([*map(int, ids), int(other)])
    assert gauge.most["task"] <= 2
    [[version]] = harness.sql(f"SELECT max(version) FROM {TableName('queue', harness.schema).related('_keys')}")
    assert version < 100, "each take leased one or two"


def test_next_job_under_a_limit_starts_before_the_end_of_the_last_one_is_stored(harness: Harness) -> None:
    harness.needs_end_and_take()
    queue, held = harness.task_queue(), harness.connect()
    started: list[int] = []
    locked, went_on = threading.Event(), threading.Event()

    @queue.task(limit=1)
    def limited(job_id: int, number: int) -> None:
        if locked.is_set():
            went_on.set()
        elif number % 10 == 9:
            held.begin()
            held.sql(f"SELECT 1 FROM {harness.table} WHERE id = {job_id} FOR UPDATE")  # so that its end is not stored
            locked.set()
        started.append(job_id)

    ids = queue.put_calls(*[limited.call(number) for number in range(100)])
    with harness.working(queue, concurrency=4):
        for _ in range(5):  # on a busy machine, a job that was leased ahead may have been given back
            assert locked.wait(PATIENCE)
            if went_on.wait(1.0):
                break
            locked.clear()
            held.rollback()
        assert went_on.is_set()
        held.rollback()
        harness.eventually(lambda: len(started) == len(ids))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_concurrency_limit_leases_as_many_jobs_as_it_has_slots(harness: Harness, n: int) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    queue.put_many(range(10), limits={"l": n})
    leased = all_leased(queue, 1) + all_leased(queue)
    assert data(leased) == list(range(n))
    assert all_leased(other) == []
    stats = other.stats()
    assert (stats.leased, stats.parked, stats.ready, other.count()) == (n, 10 - n, 0, 10 - n)
    leased[0].ack()
    assert data(all_leased(other)) == [n]
    for job in leased[1:]:
        job.ack()
    assert data(all_leased(queue)) == list(range(n + 1, min(2 * n, 10)))


def test_concurrency_limit_lets_other_jobs_pass(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["a", "b", "c"], **ONE)
    queue.put("free")
    queue.put("other", limits={"other": 1})
    assert [queue.lease(block=False).data for _ in range(3)] == ["a", "free", "other"]
    assert queue.lease(block=False) is None
    assert queue.stats().parked == 2


def test_limit_keys_belong_to_their_queue(harness: Harness) -> None:
    pq = harness.pq()
    for name in ("a", "b"):
        pq[name].put(1, **ONE)
        assert pq[name].lease(block=False) is not None
    other = harness.pq(table="other")["a"]
    other.put(1, **ONE)
    assert other.lease(block=False) is not None


def test_concurrency_limit_and_group_of_one_name_are_distinct(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1, limits={"x": 1})
    queue.put(2, group="x")
    assert data(all_leased(queue)) == [1, 2]


def test_parked_jobs_continue_in_the_queues_order(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("first", **ONE)
    running = queue.lease(block=False)
    queue.put("c", **ONE)
    queue.put("d", **ONE)
    queue.put("b", None, "2h", **ONE)
    queue.put("a", None, "1h", **ONE)
    assert all_leased(queue) == []
    order = []
    while running is not None:
        order.append(running.data)
        running.ack()
        running = queue.lease(block=False)
    assert order == ["first", "a", "b", "c", "d"]


def test_free_slot_is_given_in_the_queues_order_of_the_take(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("first", **ONE)
    first = queue.lease(block=False)
    queue.put("old", **ONE)
    assert all_leased(queue) == []
    first.ack()
    queue.put("urgent", None, "0s", **ONE)
    assert data(all_leased(queue)) == ["urgent"]


def test_slot_outlasts_an_expired_lease(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(["a", "b"], **ONE)
    first = queue.lease(block=False)
    for attempt in (2, 3):
        harness.expire()
        again = all_leased(queue)
        assert [(job.id, job.attempts) for job in again] == [(ids[0], attempt)]
    with pytest.raises(LeaseLost):
        first.ack()
    assert slots(harness) == [("limit:one", ids[0])]
    again[0].ack()
    assert data(all_leased(queue)) == ["b"]


GIVE_UP: dict[str, Callable[[Any, Any], object]] = {
    "ack": lambda queue, job: job.ack(),
    "ack_many": lambda queue, job: queue.ack_many([job]),
    "nack": lambda queue, job: job.nack("1h"),
}


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
@pytest.mark.parametrize("way", GIVE_UP)
def test_ended_job_releases_its_slot_to_the_next(harness: Harness, way: str, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put_many(range(4), **ONE)
    for number in range(4):
        [job] = all_leased(queue)
        assert job.data == number
        GIVE_UP[way](queue, job)
    assert slots(harness) == []
    assert queue.stats().scheduled == (4 if way == "nack" else 0)


def test_nacked_job_goes_behind_the_jobs_parked_for_its_slot(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["a", "b"], **ONE)
    [job] = all_leased(queue)
    job.nack()
    assert data(all_leased(queue)) == ["b"]
    assert queue.stats().parked == 1


@pytest.mark.requires(Capability.LISTEN)
def test_released_slot_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=3600)
    queue.put_many(["a", "b"], **ONE)
    first = queue.lease()
    with harness.thread(lambda: queue.lease(60, wait=3600)) as second:
        harness.eventually(lambda: queue.stats().parked and harness.listening())
        first.ack()
        assert second().data == "b"


def test_slot_released_in_the_callers_transaction_is_free_after_its_commit(harness: Harness) -> None:
    queue, caller = harness.queue(), harness.connect(harness.committed_dsn())
    queue.put_many(["a", "b"], **ONE)
    [job] = all_leased(queue)
    assert all_leased(queue) == []
    caller.begin()
    queue.ack(job, connection=caller.raw)
    assert all_leased(queue) == []
    caller.rollback()
    assert all_leased(queue) == []
    caller.begin()
    queue.ack(job, connection=caller.raw)
    caller.commit()
    assert data(all_leased(queue)) == ["b"]


def test_rolled_back_lease_holds_no_slot(harness: Harness) -> None:
    queue = harness.queue(target=harness.committed_dsn())
    queue.put_many(["a", "b", "c"], **ONE)

    def undone() -> None:
        assert data(all_leased(queue)) == ["a"]
        assert queue.stats().parked == 2
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert slots(harness) == []
    assert (queue.stats().ready, queue.stats().parked) == (1, 2)
    assert data(all_leased(queue)) == ["a"]


@pytest.mark.parametrize("gate", [ONE, {"group": "g"}], ids=["limit", "group"])
def test_admission_does_not_wait_for_a_transaction_that_locks_the_key(harness: Harness, gate: Any) -> None:
    queue, other = harness.queue(target=harness.committed_dsn()), harness.queue(create=False)
    queue.put_many(["a", "b", "c"], **gate)
    queue.put("other key", limits={"other": 1})
    queue.put("plain")
    with queue:
        [first] = all_leased(queue, 1)
        with harness.thread(lambda: all_leased(other)) as join:
            assert data(join()) == ["other key", "plain"]
        assert other.lease(60, wait=0.5) is None
    assert first.data == "a"
    queue.ack(first)
    given = []
    for _ in range(2):
        job = other.lease(60, wait=PATIENCE)
        assert (job.attempts, job.crashes) == (1, 0)
        given.append(job.data)
        other.ack(job)
    # A job that was postponed may be overtaken by a parked job of its limit, but never by one of its group.
    assert (sorted(given) if gate is ONE else given) == ["b", "c"]


def test_slot_freed_in_an_open_block_is_given_after_its_commit(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    queue.put_many(["a", "b", "c"], limits={"two": 2})
    first = queue.lease(60, wait=0)
    with queue:
        queue.ack(first)
        with harness.thread(lambda: all_leased(other)) as join:
            assert data(join()) == ["b"]  # the end locks no key
    assert data(all_leased(other)) == ["c"]


def test_worker_does_not_wait_for_a_transaction_that_locks_a_limit_key(harness: Harness) -> None:
    queue, held = harness.task_queue(), harness.connect(harness.committed_dsn())
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    @queue.task(limits=lambda name: {name: 2} if name != "plain" else {})
    def named(job_id: int, name: str) -> None:
        if name == "locked":
            begun.set()
            assert go_on.wait(PATIENCE)
        done.append(name)

    ours = queue.put("mine", limits={"locked": 2})
    job = queue.lease(3600, wait=0)
    assert job.id == ours
    named("locked")
    with harness.working(queue, concurrency=4):
        assert begun.wait(PATIENCE)
        held.begin()
        queue.ack(job, connection=held.raw)
        go_on.set()
        for name in ("locked", "other", "plain"):
            named(name)
        harness.eventually(lambda: not unfinished(harness, {"other", "plain", "locked"}))
        held.commit()
    assert sorted(done) == ["locked", "locked", "other", "plain"]
    assert slots(harness) == []


def unfinished(harness: Harness, names: set[str]) -> int:
    """Return how many calls with one of these arguments are not finished."""
    rows = harness.sql("SELECT data::text FROM {table} WHERE dequeued_at IS NULL")
    return sum(any(f'"{name}"' in text for name in names) for [text] in rows)


# Admission that fails


@contextmanager
def refusing(harness: Harness, action: str) -> Iterator[None]:
    """Make the server do something other than giving places."""
    place, schema = TableName("queue", harness.schema).related("_keys"), quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NULL; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER refuse AFTER UPDATE ON {place} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse()",
        rows=False,
    )
    yield
    harness.sql(f"DROP FUNCTION {schema}.refuse() CASCADE", rows=False)


REFUSALS = {
    "lock not available": "RAISE 'no' USING ERRCODE = '55P03'",
    "cancelled": "RAISE 'no' USING ERRCODE = '57014'",
    "not serializable": "RAISE 'no' USING ERRCODE = '40001'",
    "deadlock": "RAISE 'no' USING ERRCODE = '40P01'",
    "out of memory": "RAISE 'no' USING ERRCODE = '53200'",
    "session ended": "PERFORM pg_terminate_backend(pg_backend_pid())",
}


@pytest.mark.parametrize("action", REFUSALS.values(), ids=REFUSALS.keys())
def test_job_whose_admission_fails_is_put_back(harness: Harness, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_book, "ASIDE", 3.0)  # lanes stay set aside, even if the machine is busy
    harness.needs_sessions()
    queue = harness.queue()
    queue.put_many(["a", "b"], limits={"two": 2})
    with refusing(harness, action):
        with pytest.raises(DatabaseError):
            queue.lease(60, wait=0)
        assert (queue.stats().ready, queue.stats().leased) == (2, 0)
        queue.put("plain")
        assert data(all_leased(queue)) == ["plain"]
    assert (queue.stats().ready, slots(harness)) == (2, [])
    jobs = queue.lease_many(9, "1h", wait=PATIENCE)
    assert [(job.data, job.attempts, job.crashes) for job in jobs] == [("a", 1, 0), ("b", 1, 0)]


def test_jobs_behind_jobs_that_cannot_be_admitted_are_leased(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(5), limits={"two": 2})
    queue.put("plain")
    with refusing(harness, "RAISE 'no'"):
        job = queue.lease(60, wait=0)
        assert job.data == "plain"
        job.ack()
        with pytest.raises(DatabaseError):
            queue.lease(60, wait=0)
    jobs = [queue.lease(60, wait=PATIENCE), queue.lease(60, wait=PATIENCE)]
    assert [(job.attempts, job.crashes) for job in jobs] == [(1, 0)] * 2


def test_worker_runs_jobs_behind_jobs_that_cannot_be_admitted(harness: Harness) -> None:
    queue = harness.task_queue()
    seen, others = Notes(), Notes()

    @queue.task(limits={"two": 2})
    def gated(job_id: int) -> None:
        seen.add(job_id)

    @queue.task()
    def plain(job_id: int) -> None:
        others.add(job_id)

    queue.put_calls(*[gated.call()] * 20)
    with refusing(harness, "RAISE 'no'"):
        queue.put_calls(*[plain.call()] * 5)
        with harness.working(queue, concurrency=2):
            others.wait(5)
        assert seen.items == []
    harness.drain(queue)
    assert len(set(seen.items)) == len(seen.items) == 20
    assert harness.sql("SELECT DISTINCT attempts FROM {table}") == [(1,)]
    assert queue.dead.count() == 0


@pytest.mark.only("blocking")
def test_work_performs_jobs_behind_jobs_that_cannot_be_admitted_first(harness: Harness) -> None:
    queue = harness.task_queue(timeout=0.01)
    seen, others = Notes(), Notes()

    @queue.task(limits={"two": 2})
    def gated(job_id: int) -> None:
        seen.add(job_id)

    @queue.task()
    def plain(job_id: int) -> None:
        others.add(job_id)

    queue.put_calls(*[gated.call()] * 3, plain.call())
    with ExitStack() as stack, refusing(harness, "RAISE 'no'"):
        stack.enter_context(harness.thread(partial(queue.work, burst=True)))
        others.wait(1)
        assert seen.items == []
    assert len(seen.items) == 3


def test_lanes_are_all_served_where_one_take_considers_fewer(harness: Harness) -> None:
    queue = harness.queue()
    number = 2 * lane_book.MOST + 50
    queue.put_many([None] * number)
    harness.sql(
        """UPDATE {table} SET headers = json_build_object('gate', json_build_object('limits',
        json_build_object('key ' || id, 1)))""",
        rows=False,
    )
    jobs: list[Any] = []
    while taken := all_leased(queue, number):
        jobs += taken
    assert (len(jobs), len(slots(harness))) == (number, number)
    assert queue.ack_many(jobs) == []
    assert slots(harness) == []


def test_job_that_get_took_waits_under_its_limit_no_more(harness: Harness) -> None:
    queue = harness.queue(retention="keep")
    queue.put_many(["taken", "next"], **ONE)
    assert queue.get(block=False).data == "taken"
    assert (queue.stats().ready, queue.stats().parked) == (1, 0)
    assert queue.lease(60, block=False).data == "next"
    assert queue.stats().parked == 0


def test_number_of_the_newest_put_counts_for_a_limit(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["a", "b"], **ONE)
    queue.put_many(["c", "d"], limits={"one": 2})
    first, second = all_leased(queue)
    assert (first.data, second.data) == ("a", "b")
    assert all_leased(queue) == []
    queue.put("e", **ONE)
    queue = harness.queue(create=False)  # a program may see another's change some milliseconds later
    queue.ack(second)
    assert all_leased(queue) == []
    queue.ack(first)
    done = []
    while jobs := all_leased(queue):
        assert len(jobs) == 1
        done += data(jobs)
        queue.ack_many(jobs)
    assert sorted(done) == ["c", "d", "e"]


def test_get_ignores_concurrency_limits(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(3), **ONE)
    assert data(queue.get_many(5)) == [0, 1, 2]


@pytest.mark.parametrize(
    "limits",
    [{"a": 0}, {"a": -1}, {"a": 2**31}, {"a": 1.5}, {"a": True}, {"a": "3"}, {"a": None}, {"": 1}, {5: 1}, {"\0": 1}],
)
def test_concurrency_limit_of_a_bad_value_is_refused(harness: Harness, limits: Any) -> None:
    queue = harness.queue()
    for attempt in (partial(queue.put, 1), partial(queue.put_many, [1])):
        with pytest.raises((ConfigurationError, InvalidName)):
            attempt(limits=limits)
    assert queue.count() == 0


@pytest.mark.parametrize("key", ["'; --", "{}", ":key", "%s", "…æøå", " ", "a" * MAX_KEY, 'gate"', '"gate"', "limit:"])
def test_concurrency_limit_and_group_may_be_any_valid_text(harness: Harness, key: str) -> None:
    queue = harness.queue()
    for gate in ({"limits": {key: 1}}, {"group": key}):
        queue.put_many([1, 2], **gate)
        [first] = all_leased(queue)
        assert queue.stats().parked == 1
        first.ack()
        [second] = all_leased(queue)
        second.ack()
        assert (first.data, second.data) == (1, 2)


# Several limits


def test_job_under_several_limits_needs_all_its_slots(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("x", limits={"x": 1})
    queue.put("xy", limits={"x": 1, "y": 1})
    queue.put("y", limits={"y": 1})
    first = all_leased(queue)
    assert data(first) == ["x", "y"]  # a job that waits for x does not block y
    first[0].ack()
    assert all_leased(queue) == []
    first[1].ack()
    [both] = all_leased(queue)
    assert both.data == "xy"
    assert slots(harness) == [("limit:x", both.id), ("limit:y", both.id)]
    both.ack()
    assert slots(harness) == []


@pytest.mark.parametrize("keys", [("x", "y"), ("y", "x")])
def test_jobs_under_several_limits_do_not_deadlock(harness: Harness, keys: tuple[str, str]) -> None:
    queue = harness.queue()
    one, two = keys
    queue.put(one, limits={one: 1})
    queue.put(two, limits={two: 1})
    on_one, on_two = all_leased(queue)
    queue.put("both", limits={one: 1, two: 1})
    assert all_leased(queue) == []
    on_two.ack()
    queue.put(two, limits={two: 1})
    # Either "both" holds the place of `two`, which this job wants, or "both" still waits for the place of `one`.
    on_two_again = queue.lease(block=False)
    queue.put("both too", limits={two: 1, one: 1})
    assert all_leased(queue) == []
    on_one.ack()
    if on_two_again is not None:
        on_two_again.ack()
    done = []
    while jobs := all_leased(queue):
        done += data(jobs)
        queue.ack_many(jobs)
    assert sorted(done) == sorted(["both", "both too"] + ([two] if on_two_again is None else []))


def test_scarce_slot_is_kept_and_plentiful_slot_is_given_to_others(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("all", limits={"all": 2})
    queue.put("all, too", limits={"all": 2})
    queue.put("a", limits={"z host": 1})
    most, most_too, host = all_leased(queue)
    queue.put("of a", limits={"all": 2, "z host": 1})
    queue.put("any", limits={"all": 2})
    assert all_leased(queue) == []
    most.ack()  # "of a" is given the place, and cannot use it
    assert data(all_leased(queue)) == ["any"]
    host.ack()
    assert all_leased(queue) == []
    most_too.ack()
    assert data(all_leased(queue)) == ["of a"]


def test_jobs_that_older_code_parked_are_admitted(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many([1, 2], limits={"x": 1, "y": 2})
    queue.put_many([3, 4], limits={"x": 2, "y": 1})
    harness.sql(
        "UPDATE {table} SET leased_until = 'infinity', parked_on = CASE WHEN id <= 2 THEN 'limit:y' ELSE 'limit:x' END",
        rows=False,
    )
    done: list[Any] = []
    while jobs := all_leased(queue):
        assert len(jobs) == 1
        done += data(jobs)
        queue.ack_many(jobs)
    assert sorted(done) == [1, 2, 3, 4]
    assert slots(harness) == []


def test_jobs_under_several_limits_all_run_within_them(harness: Harness) -> None:
    queue = harness.queue(max_connections=6)
    chance = random.Random(7)
    limits = {"a": 1, "b": 1, "c": 2, "d": 3}
    ids = []
    for _ in range(60):
        keys = chance.sample(sorted(limits), chance.choice([1, 2, 3]))
        ids.append(queue.put(keys, limits={key: limits[key] for key in keys}))
    gauge = Gauge()

    def consume(seed: int) -> None:
        rng = random.Random(seed)
        while len(gauge.done) < len(ids):
            jobs = queue.lease_many(rng.choice([1, 2, 5]), 60, wait=0.1)
            with ExitStack() as stack:
                for job in jobs:
                    stack.enter_context(gauge.within(job.id, *job.data))
            for job in jobs:
                if rng.random() < 0.1:
                    job.nack()
                else:
                    job.ack()
                    gauge.finished(job.id)

    harness.at_once(*(partial(consume, seed) for seed in range(6)))
    assert sorted(gauge.done) == ids
    assert all(gauge.most[key] <= places for key, places in limits.items())
    assert slots(harness) == []


# Parked jobs


@pytest.fixture
def parked(harness: Harness) -> tuple[Any, Any, list[int]]:
    """Return a queue, the job that has the only place, and the ids of the jobs that wait for it."""
    queue = harness.queue()
    queue.put("first", **ONE)
    ids = queue.put_many(["a", "b", "c"], **ONE)
    [first] = all_leased(queue)
    assert [queue.status(job) for job in ids] == ["parked"] * 3
    return queue, first, ids


Parked = tuple[Any, Any, list[int]]


def test_parked_job_is_in_stats_and_inspect(harness: Harness, parked: Parked) -> None:
    queue, _, ids = parked
    stats = queue.stats()
    assert (stats.ready, stats.scheduled, stats.leased, stats.oldest, stats.parked) == (0, 0, 1, None, 3)
    assert harness.pq(create=False).stats()["q"] == stats
    assert (len(queue), data(queue.peek(5))) == (3, ["a", "b", "c"])  # pq's operations ignore limits
    assert (queue.inspect(ids[0]).state, queue.inspect(ids[0]).attempts) == ("parked", 0)


def test_parked_job_counts_no_crash(parked: Parked) -> None:
    queue, first, _ = parked
    for _ in range(3):
        assert all_leased(queue) == []
    first.ack()
    [job] = all_leased(queue)
    assert (job.data, job.crashes, job.failures) == ("a", 0, 0)
    assert (job.attempts, job.token) == (1, 1)


def test_parked_job_is_fetched_by_get(harness: Harness, parked: Parked) -> None:
    queue, _, _ = parked
    assert [job.data for job in queue.get_many(10, block=False)] == ["a", "b", "c"]
    assert queue.get(block=False) is None


def test_parked_job_can_be_cancelled(harness: Harness, parked: Parked) -> None:
    queue, first, ids = parked
    assert queue.cancel(ids[0]) is True
    assert queue.cancel(ids[0]) is False
    assert queue.cancel(ids[2], running=True) is True
    first.ack()
    [job] = all_leased(queue)
    assert job.id == ids[1]
    job.ack()
    assert (slots(harness), queue.stats().parked) == ([], 0)


def test_parked_job_can_be_updated(parked: Parked) -> None:
    queue, first, ids = parked
    queue.update(ids[0], "new")
    first.ack()
    assert data(all_leased(queue)) == ["new"]


def test_parked_jobs_are_deleted_by_clear(harness: Harness, parked: Parked) -> None:
    queue, _, _ = parked
    queue.clear()
    assert (slots(harness), queue.stats().parked, queue.stats().leased) == ([], 0, 0)
    queue.put("new", **ONE)
    assert data(all_leased(queue)) == ["new"]


def pop_late(harness: Harness, queue: Any, job: Any) -> None:
    harness.expire()
    assert queue.get(block=False).id == job.id


GONE: dict[str, Callable[[Harness, Any, Any], object]] = {
    "deleted": lambda harness, queue, job: harness.sql(f"DELETE FROM {{table}} WHERE id = {job.id}", rows=False),
    "finished": lambda harness, queue, job: harness.sql(
        f"UPDATE {{table}} SET dequeued_at = now(), leased_until = NULL WHERE id = {job.id}", rows=False
    ),
    "taken": pop_late,
}


@pytest.mark.parametrize("way", GONE)
@pytest.mark.parametrize("gate", [ONE, {"group": "g"}], ids=["limit", "group"])
def test_slot_of_a_job_that_is_gone_is_free(harness: Harness, way: str, gate: Any) -> None:
    queue = harness.queue()
    queue.put_many(["first", "second", "third"], **gate)
    [first] = all_leased(queue)
    assert queue.stats().parked == 2
    GONE[way](harness, queue, first)
    [second] = all_leased(queue)
    assert second.data == "second"
    sweep(harness, queue)
    assert all_leased(queue) == []  # the place of a running job is not swept
    second.ack()
    assert data(all_leased(queue)) == ["third"]


ELSEWHERE = {
    "finished": "dequeued_at = now()",  # as pq does
    "finished by older code": "dequeued_at = now(), attempts = attempts + 1, leased_until = NULL",
    "leased by older code": "attempts = attempts + 1, leased_until = now() + interval '1 hour'",
}
"""Changes of waiting jobs that leave them on their lane."""


@pytest.mark.parametrize("change", ELSEWHERE)
@pytest.mark.parametrize("gate", [ONE, {"group": "g"}], ids=["limit", "group"])
def test_waiting_jobs_that_others_took_hold_up_no_job_behind_them(harness: Harness, change: str, gate: Any) -> None:
    queue = harness.queue()
    taken = queue.put_many(range(200), **gate)[:198]
    harness.sql(f"UPDATE {{table}} SET {ELSEWHERE[change]} WHERE id <= {taken[-1]}", rows=False)
    leased = change.startswith("leased")
    assert queue.count() == 2
    if not leased:
        assert data(queue.peek(9)) == [198, 199]
        assert queue.stats().parked + queue.stats().ready == 2
        assert [job.id for job in queue.jobs("parked")] == [taken[-1] + 2]
    if not (leased and "group" in gate):
        [job] = all_leased(queue)
        assert job.data == 198
        job.ack()
    sweep(harness, queue)
    assert harness.sql("SELECT count(*) FROM {table} WHERE parked_on IS NOT NULL") == [
        (2 if leased and "group" in gate else 1,)
    ]
    assert data(queue.get_many(9, block=False))[-1] == 199


@pytest.mark.parametrize("sweeps", [False, True])
def test_running_jobs_count_though_the_row_of_their_key_was_lost(
    harness: Harness, parked: Parked, sweeps: bool
) -> None:
    queue, first, _ = parked
    harness.sql(f"DELETE FROM {TableName('queue', harness.schema).related('_keys')}", rows=False)
    if sweeps:
        sweep(harness, queue)
    assert all_leased(queue) == []
    first.ack()
    assert data(all_leased(queue)) == ["a"]


def test_sweep_counts_running_jobs_that_their_key_misses(harness: Harness, parked: Parked) -> None:
    queue, first, _ = parked
    harness.sql(f"UPDATE {TableName('queue', harness.schema).related('_keys')} SET running = '{{{{}}}}'", rows=False)
    sweep(harness, queue)
    assert all_leased(queue) == []
    first.ack()
    assert data(all_leased(queue)) == ["a"]


def test_sweep_without_parked_jobs_changes_nothing(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    sweep(harness, queue)
    assert queue.get().data == 1


def test_cancelled_running_job_releases_its_slot(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(["a", "b", "c"], **ONE)
    [first] = all_leased(queue)
    harness.expire()
    assert queue.cancel(first.id)
    assert data(all_leased(queue)) == ["b"]
    assert slots(harness) == [("limit:one", ids[1])]


def test_rolled_back_cancellation_unparks_no_job(harness: Harness, parked: Parked) -> None:
    queue, first, ids = parked

    def undone() -> None:
        assert queue.cancel(ids[0])
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    first.ack()
    assert data(all_leased(queue)) == ["a"]


def test_parked_job_locked_by_another_transaction_is_skipped(harness: Harness, parked: Parked) -> None:
    queue, first, ids = parked
    caller = harness.connect()
    caller.begin()
    caller.sql(f"SELECT 1 FROM {harness.table} WHERE id = {ids[0]} FOR UPDATE")
    first.ack()
    [job] = all_leased(queue)
    assert job.data == "b"
    caller.rollback()
    job.ack()
    assert data(all_leased(queue)) == ["a"]


def test_parked_jobs_hide_no_free_job(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(300), **ONE)
    queue.put("free")
    assert queue.lease(block=False).data == 0
    assert queue.lease(block=False).data == "free"
    assert queue.stats().parked == 299


# Groups


def test_group_runs_in_order_one_job_concurrently(harness: Harness) -> None:
    queue = harness.queue()
    for number in range(5):
        queue.put(number, group="g")
    for number in range(5):
        [job] = all_leased(queue)
        assert job.data == number
        job.ack()
    assert slots(harness) == []


def test_groups_run_independently(harness: Harness) -> None:
    queue = harness.queue()
    for _ in range(3):
        for group in "abc":
            queue.put(group, group=group)
    queue.put("free")
    assert data(all_leased(queue)) == ["a", "b", "c", "free"]


def test_group_runs_in_the_order_of_puts_whatever_expected_at(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("first", group="g")
    queue.put("urgent", None, "0s", group="g")
    queue.put("due", timedelta(days=-1), group="g")
    order = []
    while jobs := all_leased(queue):
        [job] = jobs
        order.append(job.data)
        job.ack()
    assert order == ["first", "urgent", "due"]


def test_scheduled_job_holds_up_its_group(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("later", "1h", group="g")
    queue.put("next", group="g")
    assert all_leased(queue) == []
    assert queue.stats().parked == 1
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE schedule_at IS NOT NULL", rows=False)
    [job] = all_leased(queue)
    assert job.data == "later"
    job.nack("1h")
    assert all_leased(queue) == []
    assert queue.cancel(job.id)
    assert data(all_leased(queue)) == ["next"]


def test_expired_lease_holds_up_its_group(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(["a", "b"], group="g")
    [old] = all_leased(queue)
    harness.expire()
    assert [(job.data, job.attempts) for job in all_leased(queue)] == [("a", 2)]
    harness.expire()
    [last] = all_leased(queue)
    with pytest.raises(LeaseLost):
        old.ack()
    assert all_leased(queue) == []
    last.ack()
    assert data(all_leased(queue)) == ["b"]


def test_cancelled_job_lets_its_group_continue(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(["a", "b", "c"], group="g")
    assert queue.cancel(ids[0])
    [second] = all_leased(queue)
    assert second.data == "b"
    second.ack()
    assert data(all_leased(queue)) == ["c"]


def test_group_runs_a_job_of_an_older_transaction_before_parked_jobs(harness: Harness) -> None:
    queue, caller = harness.queue(), harness.connect()
    caller.begin()
    old = queue.put("old", group="g", connection=caller.raw)
    queue.put("b", group="g")
    queue.put("c", group="g")
    [second] = all_leased(queue)
    assert second.id > old
    caller.commit()
    assert all_leased(queue) == []
    second.ack()
    [first] = all_leased(queue)
    assert first.data == "old"
    first.ack()
    assert data(all_leased(queue)) == ["c"]


def test_group_stays_in_order_through_every_end_of_its_jobs(harness: Harness) -> None:
    queue = harness.queue(max_connections=6)
    groups = {name: [queue.put(name, group=name) for _ in range(15)] for name in "abc"}
    number = sum(map(len, groups.values()))
    gauges = {name: Gauge() for name in groups}

    def consume(seed: int) -> None:
        chance = random.Random(seed)
        while sum(len(gauge.done) for gauge in gauges.values()) < number:
            for job in queue.lease_many(chance.choice([1, 2, 5, 10]), 60, wait=0.1):
                gauge = gauges[job.data]
                with gauge.within(job.id):
                    what = chance.random()
                if what < 0.15:
                    job.nack()
                elif what < 0.3:
                    job.nack(chance.random() / 100)
                elif what < 0.5:  # its consumer dies
                    own.at(job.id)
                else:
                    gauge.finished(job.id)
                    job.ack()

    own = Expiring(harness)
    harness.at_once(*(partial(consume, seed) for seed in range(6)))
    for name, ids in groups.items():
        assert gauges[name].done == ids
        assert gauges[name].one_at_a_time()
    assert slots(harness) == []


class Expiring:
    """A helper for several threads that makes single leases run out."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._lock = threading.Lock()

    def at(self, job: int) -> None:
        with self._lock:
            self._harness.sql(
                f"UPDATE {{table}} SET leased_until = clock_timestamp() WHERE id = {job} AND leased_until IS NOT NULL",
                rows=False,
            )


def test_group_stays_in_order_under_workers_with_retries_and_dead_letters(harness: Harness) -> None:
    pq = harness.tasks()
    queue = pq["q"]
    gauges = {name: Gauge() for name in "ab"}
    tries: Counter[int] = Counter()

    @queue.task(group=lambda name, ends: name, max_retries=3, retry=Fixed(0.001))
    async def ordered(job_id: int, name: str, ends: list[str]) -> None:
        with gauges[name].within(job_id):
            await asyncio.sleep(0.001)
            end = ends[tries[job_id]] if tries[job_id] < len(ends) else "done"
            tries[job_id] += 1
        if end == "fail":
            raise ValueError(name)
        gauges[name].finished(job_id)

    ends = [[], ["fail"], ["fail"] * 4, [], ["fail", "fail"]] * 3
    ids = {name: [int(ordered(name, each)) for each in ends] for name in gauges}
    done = {name: [job for job, each in zip(ids[name], ends, strict=True) if len(each) < 4] for name in gauges}
    with ExitStack() as workers:
        for _ in range(3):
            workers.enter_context(harness.working(queue, concurrency=5))
        harness.eventually(lambda: all(len(gauges[name].done) >= len(done[name]) for name in gauges))
    for name, gauge in gauges.items():
        assert gauge.done == done[name]
        assert gauge.one_at_a_time()
        begun = [job for kind, job in gauge.log if kind == "begin"]
        assert begun == sorted(begun)
    assert sorted(letter.id for letter in queue.dead.list()) == sorted(
        job for name in gauges for job in ids[name] if job not in done[name]
    )


@pytest.mark.parametrize("group", ["", 5, b"g", "\0", "\ud800", "g" * (MAX_KEY + 1)])
def test_group_of_a_bad_value_is_refused(harness: Harness, group: Any) -> None:
    queue = harness.queue()
    for attempt in (partial(queue.put, 1), partial(queue.put_many, [1])):
        with pytest.raises((ConfigurationError, InvalidName)):
            attempt(group=group)
    assert queue.count() == 0


# Rates


def rates(harness: Harness) -> str:
    return TableName("queue", harness.schema).related("_rates")


def age(harness: Harness, time: str) -> None:
    """Move the rate limits' times into the past."""
    harness.sql(f"UPDATE {rates(harness)} SET refilled_at = refilled_at - interval '{time}'", rows=False)


def test_rate_limit_leases_its_number_per_period(harness: Harness) -> None:
    queue, other = harness.queue(rate="5/1h"), harness.queue(rate="5/1h", create=False)
    queue.put_many(range(30))
    assert data(all_leased(queue, 3) + all_leased(other) + all_leased(queue)) == [0, 1, 2, 3, 4]
    assert queue.lease(block=False) is other.lease(block=False) is None
    age(harness, "12 min")
    assert data(all_leased(other)) == [5]
    age(harness, "13 min")
    assert data(all_leased(queue)) == [6]
    age(harness, "100 days")
    assert data(all_leased(queue)) == [7, 8, 9, 10, 11]
    assert all_leased(other) == []


def test_rate_limit_applies_to_one_queue_and_to_leases_only(harness: Harness) -> None:
    pq = harness.pq()
    limited, free = pq.queue("a", rate="1/1h"), pq.queue("b")
    for queue in (limited, free):
        queue.put_many(range(5))
    assert len(all_leased(limited)) == 1
    assert len(all_leased(free)) == 5
    assert len(limited.get_many(5, block=False)) == 4


def test_rate_limit_charges_nothing_for_jobs_not_leased(harness: Harness) -> None:
    queue = harness.queue(rate="3/1h")
    for _ in range(5):
        assert all_leased(queue) == []
    queue.put_many(["a", "b"], **ONE)
    assert data(all_leased(queue)) == ["a"]
    for _ in range(5):
        assert all_leased(queue) == []
    queue.put_many(["c", "d", "e"])
    assert data(all_leased(queue)) == ["c", "d"]


def test_rate_limit_holds_under_concurrent_consumers(harness: Harness) -> None:
    size, number = 40, 90
    queue = harness.queue(rate=f"{size}/1s", max_connections=8)
    queue.put_many(range(number))
    taken: list[int] = []

    def consume(seed: int) -> None:
        chance = random.Random(seed)
        while len(taken) < number:
            taken.extend(job.id for job in queue.lease_many(chance.choice([1, 1, 2, 5]), 3600, wait=0.05))

    harness.at_once(*(partial(consume, seed) for seed in range(8)))
    assert sorted(taken) == list(range(1, number + 1))
    # The beginning of each lease, by the server's clock.
    moments = [
        float(moment)
        for [moment] in harness.sql("SELECT extract(epoch FROM leased_until)::float8 FROM {table} ORDER BY 1")
    ]
    for first in range(number):
        for last in range(first + size, number):
            # Between two leases with this distance, the bucket was filled once, and then refilled at the rate. A lease
            # begins a moment after its token is taken.
            assert last - first + 1 <= size + (moments[last] - moments[first] + 0.25) * size + 1


def test_rate_limited_waiter_gets_a_job_when_the_rate_allows_it(harness: Harness) -> None:
    queue = harness.queue(rate="10/1s", poll_interval=3600)
    queue.put_many(range(12))
    assert len(all_leased(queue)) >= 10
    assert queue.lease(wait=PATIENCE).data in (10, 11)


@pytest.mark.parametrize("rate", ["", "5", "5/", "/1s", "0/1s", "-1/1s", "1.5/1s", "5/0s", "5/x", "x/1s", 5, "5/1s/2"])
def test_rate_limit_of_a_bad_value_is_refused(harness: Harness, rate: Any) -> None:
    with pytest.raises(ConfigurationError):
        harness.queue(rate=rate)
