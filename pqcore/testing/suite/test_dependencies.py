"""Jobs that wait for other jobs: when they run, and what happens to them if a job that they wait for fails."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from pqcore import After, Dedup, NewJob
from pqcore.errors import ConfigurationError, DuplicateJob, JobNotFound
from pqcore.operations import batches, put_many
from pqcore.sql.identifiers import TableName
from pqcore.tasks import current
from pqcore.testing.harness import Harness
from pqcore.testing.statement_names import noted_statements

RETENTIONS = ("keep", "delete", "archive")


def left(harness: Harness) -> tuple[int, int]:
    """Return how many jobs wait for others, and for how many parents, as stored."""
    names = TableName("queue", harness.schema)
    [[jobs, parents]] = harness.sql(
        f"SELECT (SELECT count(*) FROM {names.related('_blocked')}),"
        f" (SELECT count(*) FROM {names.related('_dependencies')})"
    )
    return int(jobs), int(parents)


def finish(queue: Any) -> Any:
    """Lease the next job and acknowledge it; return its data."""
    job = queue.lease(timeout=0, duration=60)
    if job is None:
        return None
    queue.ack(job)
    return job.data


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the statements that were sent, without those that begin and end transactions."""
    return noted_statements(monkeypatch, chosen=lambda name: name not in ("begin", "commit"))


@pytest.mark.parametrize("retention", RETENTIONS)
def test_job_runs_after_all_parents_are_done(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    a, b = queue.put("a"), queue.put("b")
    child = queue.put("child", after=[a, b])
    assert queue.status(child) == "scheduled"
    assert (queue.stats().scheduled, queue.stats().blocked, queue.stats().ready) == (1, 1, 2)
    [cause] = [cause for cause in queue.explain(child).causes if cause.code == "waits_for_jobs"]
    assert (cause.text, cause.jobs) == (f"It waits for jobs {a}, {b}.", (a, b))
    assert finish(queue) == "a"
    assert queue.explain(child).text.startswith(f"It waits for job {b}.")
    job = queue.lease(timeout=0, duration=60)
    assert (job.data, queue.get(block=False), len(queue)) == ("b", None, 0)
    queue.ack(job)
    assert (finish(queue), finish(queue), left(harness)) == ("child", None, (0, 0))


@pytest.mark.parametrize("retention", RETENTIONS)
def test_get_of_the_last_parent_releases_the_job(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    child = queue.put("child", after=queue.put("a"))
    assert [queue.get(block=False).data for _ in range(2)] == ["a", "child"]
    assert (queue.get(block=False), left(harness), child > 0) == (None, (0, 0), True)


def test_grandchild_runs_after_the_child(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    b = queue.put("b", after=[a])
    queue.put("c", after=[a, b])
    assert [finish(queue) for _ in range(4)] == ["a", "b", "c", None]


def test_job_waits_for_jobs_of_other_queues(harness: Harness) -> None:
    pq = harness.pq()
    ones, others = pq["ones"], pq["others"]
    others.put("child", after=[ones.put("a"), ones.put("b")])
    assert (finish(others), finish(ones), finish(others), finish(ones)) == (None, "a", None, "b")
    assert finish(others) == "child"


def test_waiting_consumer_is_woken_when_the_last_parent_ends(harness: Harness) -> None:
    pq = harness.pq()
    ones, others = pq["ones"], pq["others"]
    others.put("child", after=ones.put("a"))
    with harness.thread(lambda: others.get(timeout=30)) as join:
        harness.eventually(lambda: harness.waiting() or not harness.bounded(others))
        assert finish(ones) == "a"
        assert join().data == "child"


def test_job_whose_parents_are_done_is_put_as_usual(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    assert finish(queue) == "a"
    child = queue.put("child", after=[a])
    assert (queue.status(child), left(harness), finish(queue)) == ("ready", (0, 0), "child")


def test_empty_list_of_parents_is_no_parent(harness: Harness) -> None:
    queue = harness.queue()
    assert queue.status(queue.put("child", after=[])) == "ready"


@pytest.mark.parametrize(
    ("on_failure", "state"), [("dead", "dead"), ("run", "ready"), ("cancel", None)], ids=["dead", "run", "cancel"]
)
@pytest.mark.parametrize("end", ["bury", "cancel", "clear", "bury before the put"])
def test_failure_of_a_parent_has_the_chosen_effect(
    harness: Harness, on_failure: Any, state: str | None, end: str
) -> None:
    pq = harness.pq()
    ones, others = pq["ones"], pq["others"]
    a = ones.put("a")
    job: Any = ones.lease(timeout=0, duration=60) if "bury" in end else None
    if end == "bury before the put":
        job.bury("no luck")
    child = others.put("child", after=[After(a, on_failure), others.put("b")])
    if end == "bury":
        job.bury("no luck")
    elif end == "cancel":
        assert ones.cancel(a)
    elif end == "clear":
        ones.clear()
    assert finish(others) == "b"
    assert finish(others) == ("child" if on_failure == "run" else None)
    if on_failure == "dead":
        letter = others.dead.get(child)
        what = {"cancel": "was cancelled", "clear": "was deleted before it was done"}.get(end, "is a dead letter")
        assert letter.reason == "parent"
        assert letter.error["message"] == f"job {a}, which this job waited for, {what}"
        assert others.explain(child).causes[0].code == "dead_parent"
        assert others.dead.retry(child) == 1
        assert finish(others) == "child"
    elif on_failure == "cancel":
        with pytest.raises(JobNotFound):
            others.status(child)
    assert left(harness) == (0, 0)


def test_failure_passes_on_to_the_grandchild(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    b = queue.put("b", after=[a])
    c = queue.put("c", after=[b])
    queue.lease(timeout=0, duration=60).bury("no luck")
    assert [finish(queue) for _ in range(3)] == [None, None, None]
    assert [queue.dead.get(job).error["message"].partition(",")[0] for job in (b, c)] == [f"job {a}", f"job {b}"]


def test_parent_that_is_retried_is_still_waited_for(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("child", after=[queue.put("a")])
    queue.lease(timeout=0, duration=60).nack()
    assert [finish(queue) for _ in range(3)] == ["a", "child", None]


def test_running_parent_is_waited_for_and_can_be_ended_meanwhile(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a")
    job = queue.lease(timeout=0, duration=60)
    with queue:
        queue.put("child", after=[job.id])
        other = harness.pq(create=False)["q"]
        held = other.put("held")
        assert held > 0
        queue_two = harness.pq(create=False)["q"]
        queue_two.ack(job)  # waits for nothing
    assert sorted([finish(queue), finish(queue)]) == ["child", "held"]
    assert left(harness) == (0, 0)


def test_missing_parent_is_refused(harness: Harness) -> None:
    queue = harness.queue()
    with pytest.raises(JobNotFound, match="would wait for job 4711"):
        queue.put("child", after=[queue.put("a"), 4711])
    assert queue.status(queue.put("child", after=[After(4711, "run")])) == "ready"
    assert [finish(queue) for _ in range(3)] == ["a", "child", None]


@pytest.mark.parametrize("after", ["7", {"a": 1}, [1.5], [None], [True], 1.5])
def test_value_that_is_no_id_is_refused(harness: Harness, after: Any) -> None:
    queue = harness.queue()
    with pytest.raises(ConfigurationError):
        queue.put("child", after=after)
    assert len(queue) == 0


def test_parent_with_two_policies_is_refused(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    with pytest.raises(ConfigurationError, match="name each job once"):
        queue.put("child", after=[a, After(a, "run")])
    with pytest.raises(ConfigurationError, match="on_failure is 'bury'"):
        After(a, "bury")  # type: ignore[arg-type]
    queue.put("child", after=[a, a])
    assert [finish(queue), finish(queue)] == ["a", "child"]


def test_parent_of_another_table_is_refused(harness: Harness) -> None:
    queue = harness.task_queue()
    other = harness.tasks(table="others")["q"]

    @other.task()
    def work(job_id: int) -> None: ...

    with pytest.raises(ConfigurationError, match="cannot wait for it"):
        queue.put("child", after=[work()])


def test_dedup_key_that_is_taken_leaves_its_holder_as_it_is(harness: Harness) -> None:
    queue = harness.queue()
    a, holder = queue.put("a"), queue.put("holder", dedup="key")
    assert queue.put("child", after=[a], dedup="key") == holder
    with pytest.raises(DuplicateJob):
        queue.put("child", after=[a], dedup=Dedup("key", on_conflict="error"))
    with pytest.raises(ConfigurationError, match="on_conflict='replace'"):
        queue.put("child", after=[a], dedup=Dedup("key", on_conflict="replace"))
    child = queue.put("child", after=[holder], dedup=Dedup("other", until=60))
    assert left(harness) == (1, 1)
    assert queue.put("again", dedup=Dedup("other", until=60)) == child
    assert [finish(queue) for _ in range(4)] == ["a", "holder", "child", None]


def test_replaced_job_waits_no_longer(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    child = queue.put("child", after=[a], dedup="key")
    assert queue.put("new", dedup=Dedup("key", on_conflict="replace")) == child
    assert sorted([finish(queue), finish(queue)]) == ["a", "new"]
    assert (finish(queue), left(harness)) == (None, (0, 0))


def test_parents_and_child_are_put_in_one_transaction(harness: Harness) -> None:
    queue = harness.queue()
    with queue:
        child = queue.put("child", after=[queue.put("a"), queue.put("b")])
    assert [finish(queue) for _ in range(4)] == ["a", "b", "child", None]
    with pytest.raises(JobNotFound), queue:
        queue.put("lost", after=[queue.put("child", after=[queue.put("a")]), 4711])
    assert (left(harness), finish(queue), child > 0) == ((0, 0), None, True)


def test_rollback_of_the_put_leaves_the_parent_as_it_was(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    connection = harness.connect()
    connection.begin()
    queue.put("child", after=[a], connection=connection.raw)
    connection.rollback()
    assert [finish(queue), finish(queue), left(harness)] == ["a", None, (0, 0)]


@pytest.mark.parametrize("retention", RETENTIONS)
def test_put_does_not_wait_for_a_parent_that_a_transaction_has_taken(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    a = queue.put("a")
    other = harness.pq(create=False).queue("q", retention=retention)
    with queue:
        assert queue.get(block=False).data == "a"
        other.put("child", after=[a])
        assert finish(other) is None
    assert (finish(other), other.dead.count(), left(harness)) == ("child", 0, (0, 0))


def test_parent_whose_transaction_rolls_back_is_still_waited_for(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    other = harness.pq(create=False)["q"]

    def fail() -> None:
        other.put("child", after=[queue.get(block=False).id])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), queue:
        fail()
    assert (finish(other), finish(other), finish(other), a > 0) == ("a", "child", None, True)


def test_cancelled_child_leaves_nothing(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    child = queue.put("child", after=[a])
    assert queue.cancel(child)
    assert (left(harness), finish(queue), finish(queue)) == ((0, 0), "a", None)


def test_last_parents_that_end_together_release_the_job_once(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("child", after=[queue.put(n) for n in range(8)])
    jobs = queue.lease_many(8, 60, timeout=0)
    ones = [harness.pq(create=False)["q"] for _ in jobs]
    harness.at_once(*[lambda one=one, job=job: one.ack(job) for one, job in zip(ones, jobs, strict=True)])
    assert (finish(queue), finish(queue), left(harness)) == ("child", None, (0, 0))


def test_last_parents_in_open_transactions_release_the_job(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("child", after=[queue.put("a"), queue.put("b")])
    one, other = queue.lease_many(2, 60, timeout=0)
    first, second = harness.connect(), harness.connect()
    for connection, job in ((first, one), (second, other)):
        connection.begin()
        queue.ack(job, connection=connection.raw)  # neither sees the end of the other
    assert finish(queue) is None
    first.commit()
    assert finish(queue) is None
    second.commit()
    assert (finish(queue), finish(queue)) == ("child", None)


def test_times_limits_and_groups_of_the_child_hold_after_its_release(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    late = queue.put("late", schedule_at="1h", after=[a])
    queue.put("limited", limits={"key": 1}, priority=5, expected_at="1h", after=[a])
    assert finish(queue) == "a"
    assert (finish(queue), finish(queue), queue.status(late)) == ("limited", None, "scheduled")


def test_jobs_that_wait_and_awaited_jobs_stay_when_others_are_moved(harness: Harness) -> None:
    pq = harness.pq()
    ones, others = pq["ones"], pq["others"]
    a = ones.put("a")
    ones.put("child", after=[a])
    ones.put("free")
    assert ones.move(others) == 1
    assert (finish(others), finish(ones), finish(ones)) == ("free", "a", "child")


def test_function_reads_the_results_of_the_parents(harness: Harness) -> None:
    queue = harness.task_queue()
    heard: list[dict[int, Any]] = []

    async def read(job_id: int) -> None:
        found = current().results_of_parents()
        heard.append(await found if inspect.isawaitable(found) else found)

    def returned(job_id: int, number: int) -> list[int]:
        return [number]

    work, last = queue.task(keep_result="1h")(returned), queue.task()(read)
    a, b, c = work(1), work(2), work(3, _keep_result=None)
    last(_after=[a, b, c])
    last()
    harness.drain(queue)
    assert sorted(heard, key=len) == [{}, {a: [1], b: [2]}]


def test_job_waits_for_ten_thousand_parents(harness: Harness, statements: list[str]) -> None:
    queue = harness.queue()
    parents = queue.put_many(range(10_000))
    statements.clear()
    queue.put("child", after=parents)
    assert statements == ["await_parents", "put_blocked"]
    statements.clear()
    while jobs := [job for job in queue.lease_many(1000, 60, timeout=0) if job.data != "child"]:
        assert queue.ack_many(jobs) == []
    assert left(harness) == (0, 0)
    assert statements.count("ack_keep") == 10
    assert len(statements) < 100
    with pytest.raises(ConfigurationError, match="more than 10,000 jobs"):
        queue.put("child", after=range(1, 10_002))


def test_put_and_end_of_other_jobs_send_no_further_statement(harness: Harness, statements: list[str]) -> None:
    queue = harness.queue()
    queue.put("first")
    assert finish(queue) == "first"
    statements.clear()
    queue.put("a")
    job = queue.lease(timeout=0, duration=60)
    queue.ack(job)
    kinds = [name.partition("_")[0] for name in statements if name != "find_lanes"]  # which is due from time to time
    assert kinds == ["put", "lease", "ack"]


def test_worker_runs_tasks_after_their_parents(harness: Harness) -> None:
    queue = harness.task_queue()
    done: list[str] = []

    @queue.task()
    def work(job_id: int, name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        done.append(name)

    a, b = work("a"), work("bad")
    c = queue.put_call(work.options(after=[a]).call("c"))
    d = work("d", _after=[After(b, "run"), c])
    e = queue.put_call(work.options(after=[b]).call("e"))
    harness.drain(queue)
    assert done == ["a", "c", "d"]
    assert ([queue.status(job) for job in (a, b, c, d, e)]) == ["done", "dead", "done", "done", "dead"]


# Chains and batches.


class Noted:
    """A queue with a task that notes what it finds."""

    def __init__(self, harness: Harness) -> None:
        self.queue = harness.task_queue()
        self.ran: list[str] = []
        self.previous: list[Any] = []
        self.parents: list[dict[int, Any]] = []

        @self.queue.task(keep_result="1h", max_retries=0)
        async def work(job_id: int, name: str) -> str:
            self.ran.append(name)
            if name == "bad":
                raise ValueError(name)
            self.previous.append(current().previous)
            found = current().results_of_parents()
            self.parents.append(await found if inspect.isawaitable(found) else found)
            return name

        self.work = work

    def stored(self, harness: Harness) -> tuple[int, int]:
        """Return how many jobs and how many open batches there are."""
        [[jobs, batches]] = harness.sql(
            "SELECT (SELECT count(*) FROM {table}),"
            f" (SELECT count(*) FROM {TableName('queue', harness.schema).related('_batches')})"
        )
        return int(jobs), int(batches)


def test_chain_starts_after_the_parents_of_its_first_call(harness: Harness) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    a, b = work("a"), work("b")
    first = queue.chain(work.options(after=[a, b]).call("c"), work.call("d"))
    assert (queue.status(first), left(harness)) == ("scheduled", (1, 2))
    queue.chain(work.call("e", _after=first))
    harness.drain(queue)
    assert noted.ran[:3] == ["a", "b", "c"]
    assert sorted(noted.ran[3:]) == ["d", "e"]
    found = dict(zip(noted.ran, zip(noted.previous, noted.parents, strict=True), strict=True))
    assert found["c"] == (None, {a: "a", b: "b"})
    assert found["d"] == ("c", {})
    assert found["e"] == (None, {first: "c"})
    assert left(harness) == (0, 0)


@pytest.mark.parametrize("on_failure", ["dead", "cancel", "run"])
def test_chain_ends_or_goes_on_if_a_parent_of_its_first_call_fails(harness: Harness, on_failure: Any) -> None:
    noted = Noted(harness)
    parent = noted.work("bad")
    noted.queue.chain(noted.work.call("c", _after=After(parent, on_failure)), noted.work.call("d"))
    harness.drain(noted.queue)
    assert noted.ran == (["bad", "c", "d"] if on_failure == "run" else ["bad"])
    assert noted.queue.dead.count() == (2 if on_failure == "dead" else 1)
    if on_failure == "dead":
        [letter] = [letter for letter in noted.queue.dead.list() if letter.reason == "parent"]
        assert noted.queue.dead.retry(letter.id)
        harness.drain(noted.queue)
        assert noted.ran == ["bad", "c", "d"]
    assert left(harness) == (0, 0)


def test_later_call_of_a_chain_and_callback_of_a_batch_refuse_after(harness: Harness) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    a = queue.put("a")
    waits = work.options(after=a).call("b")
    first_only = r"only the first call .* give after to the first call"
    with pytest.raises(ConfigurationError, match=first_only):
        queue.chain(work.call("c"), waits)
    with pytest.raises(ConfigurationError, match=first_only):
        queue.chain(waits, waits)
    with pytest.raises(ConfigurationError, match=first_only):
        queue.batch((work.call("c"), waits), work.call("d"))
    with pytest.raises(ConfigurationError, match=r"callback of a batch cannot have after.* give after to these calls"):
        queue.batch(work.call("c"), then=waits)
    assert (noted.stored(harness), left(harness)) == ((1, 0), (0, 0))


def test_missing_parent_of_one_call_refuses_the_chain_or_batch(harness: Harness) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    waits = work.options(after=4711).call("b")
    with pytest.raises(JobNotFound, match="chain: item 0 would wait for job 4711"):
        queue.chain(waits, work.call("c"))
    for calls in ((work.call("a"), waits), (work.call("a"), (waits, work.call("c")))):
        with pytest.raises(JobNotFound, match="batch: item 1 would wait for job 4711"):
            queue.batch(*calls, then=work.call("then"))
    assert (noted.stored(harness), left(harness)) == ((0, 0), (0, 0))


def test_batch_in_the_callers_transaction_waits_only_if_it_commits(harness: Harness) -> None:
    noted, caller = Noted(harness), harness.connect()
    queue, work = noted.queue, noted.work
    a = work("a")
    for end, blocked in ((caller.rollback, 0), (caller.commit, 2)):
        caller.begin()
        queue.batch(work.call("b", _after=a), work.call("c", _after=a), connection=caller.raw)
        end()
        assert left(harness) == (blocked, blocked)
    harness.drain(queue)
    assert (noted.ran[0], sorted(noted.ran)) == ("a", ["a", "b", "c"])


def test_batch_waits_for_the_parents_of_its_calls(harness: Harness) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    late = queue.put(work.call("late").data(), "1h")
    batch = queue.batch(
        work.call("a"),
        work.call("b", _after=late),
        (work.call("c", _after=late), work.call("d")),
        then=work.call("then"),
    )
    harness.drain(queue)
    assert (noted.ran, left(harness), noted.stored(harness)[1]) == (["a"], (2, 2), 1)
    assert queue.retry(late)
    harness.drain(queue)
    assert noted.ran[:2] == ["a", "late"]
    assert sorted(noted.ran[2:5]) == ["b", "c", "d"]
    assert noted.ran[5:] == ["then"]
    assert noted.previous[-1] == {"batch": batch.id, "total": 3, "failed": 0}
    assert (left(harness), noted.stored(harness)[1]) == ((0, 0), 0)


@pytest.mark.parametrize("late", [False, True], ids=["put before the failure", "put after the failure"])
@pytest.mark.parametrize(("on_failure", "failed"), [("dead", 2), ("cancel", 2), ("run", 0)])
def test_batch_counts_calls_whose_parents_failed(harness: Harness, on_failure: Any, failed: int, late: bool) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    parent = work("bad")
    if late:
        harness.drain(queue)
    after = After(parent, on_failure)
    batch = queue.batch(
        work.call("a", _after=after),
        (work.call("b", _after=after), work.call("c")),
        work.call("d"),
        then=work.call("then"),
    )
    harness.drain(queue)
    ran = ["a", "b", "c", "d"] if on_failure == "run" else ["d"]
    assert sorted(noted.ran) == sorted(["bad", "then", *ran])
    assert noted.ran[-1] == "then"
    assert noted.previous[-1] == {"batch": batch.id, "total": 3, "failed": failed}
    assert queue.dead.count() == (3 if on_failure == "dead" else 1)
    assert (left(harness), noted.stored(harness)[1]) == ((0, 0), 0)


def test_batch_counts_calls_of_a_cancelled_parent_and_their_own_children(harness: Harness) -> None:
    noted = Noted(harness)
    queue, work = noted.queue, noted.work
    parent = queue.put(work.call("parent").data(), "1h")
    first = queue.batch(work.call("a", _after=parent), then=work.call("first"))
    second = queue.batch(work.call("b", _after=After(first.jobs[0], "cancel")), then=work.call("second"))
    assert queue.cancel(parent)
    harness.drain(queue)
    assert sorted(noted.ran) == ["first", "second"]
    assert sorted(noted.previous, key=lambda found: found["batch"]) == [
        {"batch": batch.id, "total": 1, "failed": 1} for batch in (first, second)
    ]


@pytest.mark.parametrize("retention", RETENTIONS)
def test_get_returns_what_follows_the_failure_of_a_parent(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    parent = queue.put("parent", "1h")
    child = queue.put("child", after=parent)
    grandchild = queue.put("grandchild", after=child)
    queue.put("last", after=After(grandchild, "run"))
    assert queue.cancel(parent)
    assert queue.get(block=False).data == "last"
    assert (queue.get(block=False), queue.dead.count(), left(harness)) == (None, 2, (0, 0))


# Many jobs in one call.

STATEMENTS = ["await_parents", "put_each", "block"]
CHECKS = ("session_settings", "isolation", "identify", "read_version", "find_table", "current_rules")
"""Statements that a new connection, or one that was idle for long, needs in addition."""


def without_checks(statements: list[str]) -> list[str]:
    """Return the names of statements that do not check the connection or the rules."""
    return [name for name in statements if name not in CHECKS]


@pytest.fixture
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bulk puts send statements every two rows."""
    for module in (put_many, batches):
        monkeypatch.setattr(module, "CHUNK_ROWS", 2)


def stored(harness: Harness, name: str) -> list[list[tuple[Any, ...]]]:
    """Return the stored jobs of a queue, and what they wait for; ids are numbered in their order."""
    names = TableName("queue", harness.schema)
    minutes = "CASE WHEN isfinite({0}) THEN round(extract(epoch FROM {0} - {1}) / 60)::int END"
    number = "(SELECT count(*) FROM {{table}} AS job WHERE q_name = '" + name + "' AND job.id < {0})::int"
    jobs = harness.sql(
        "SELECT data::text, headers::jsonb::text, group_key, dedup_key, parked_on, leased_until::text, priority,"
        f" coalesce(schedule_at = 'infinity', false), {minutes.format('schedule_at', 'enqueued_at')},"
        f" {minutes.format('expected_at', 'enqueued_at')} FROM {{table}} WHERE q_name = '{name}' ORDER BY id"
    )
    waits = harness.sql(
        f"SELECT {number.format('job_id')}, put_at = (SELECT enqueued_at FROM {{table}} WHERE id = job_id),"
        f" {minutes.format('schedule_at', 'put_at')} FROM {names.related('_blocked')} WHERE q_name = '{name}'"
        " ORDER BY job_id"
    )
    edges = harness.sql(
        f"SELECT {number.format('job_id')}, parent_id, parent_put_at::text, on_failure, polled, gone, outcome"
        f" FROM {names.related('_dependencies')} WHERE q_name = '{name}' ORDER BY job_id, parent_id"
    )
    keys = harness.sql(
        f"SELECT dedup_key, {number.format('job_id')} FROM {names.related('_dedup')} WHERE q_name = '{name}' ORDER BY 1"
    )
    return [jobs, waits, edges, keys]


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("way", ["put_many", "put_calls"])
def test_jobs_put_together_wait_as_those_put_one_by_one(harness: Harness, retention: str, way: str) -> None:
    pq = harness.tasks()
    parents = pq["parents"]
    running, done, dead = (parents.put(name) for name in ("running", "done", "dead"))
    _, finished, failed = (parents.lease(timeout=0, duration=60) for _ in range(3))
    parents.ack(finished)
    failed.bury("no luck")
    waiting = parents.put("waiting")
    options: list[dict[str, Any]] = [
        {},
        {"after": waiting},
        {"after": []},
        {"after": [waiting, running], "schedule_at": "1h", "expected_at": "2h", "limits": {"a": 1}, "priority": 7},
        {"after": done, "schedule_at": "1h", "limits": {"a": 1}},
        {"after": [done, running], "limits": {"a": 1}, "headers": {"x": 1}},
        {"after": dead, "group": "g"},
        {"after": [After(dead, "cancel"), After(done), After(waiting, "run")], "tenant": "t"},
        {"after": [After(dead, "run"), After(4711, "run")], "limits": {"a": 1}},
        {"after": [After(4711, "run"), running], "dedup": "key"},
        {"after": waiting, "dedup": Dedup("key", until="started"), "schedule_at": "9h"},
        {"after": waiting, "dedup": Dedup("held", until="1h")},
        {"after": running, "dedup": Dedup("held", until="1h")},
        {"schedule_at": "1h"},
    ]
    found = []
    for name in ("one", "many"):
        queue = pq.queue(name, retention=retention)
        work = queue.task(name="follow")(lambda job_id, number: None)
        if name == "one" and way == "put_many":
            ids = [queue.put(number, **each) for number, each in enumerate(options)]
        elif name == "one":
            ids = [queue.put_call(work.options(**each).call(number)) for number, each in enumerate(options)]
        elif way == "put_many":
            ids = queue.put_many(NewJob(number, **each) for number, each in enumerate(options))
        else:
            ids = queue.put_calls(*[work.options(**each).call(number) for number, each in enumerate(options)])
        places = sorted(set(ids))
        assert [places.index(job) for job in ids] == [*range(10), 9, 10, 10, 11]
        found.append(stored(harness, name))
    assert found[0] == found[1]
    assert [len(each) for each in found[0]] == [12, 7, 12, 1]


def test_jobs_put_together_run_after_their_parents(harness: Harness) -> None:
    queue = harness.task_queue()
    ran: list[str] = []

    @queue.task()
    def work(job_id: int, name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        ran.append(name)

    good, bad = queue.put_calls(work.call("good"), work.call("bad"))
    children = queue.put_calls(
        work.options(after=good).call("a"),
        work.call("b", _after=[good, After(bad, "run")]),
        work.call("dead", _after=[good, bad]),
        work.call("cancelled", _after=After(bad, "cancel")),
        work.call("free"),
    )
    queue.put_calls(work.call("last", _after=[After(child, "run") for child in children]))
    harness.drain(queue)
    assert sorted(ran[:-1]) == ["a", "b", "free", "good"]
    assert ran[-1] == "last"
    assert [queue.status(job) for job in children[:3]] == ["done", "done", "dead"]
    with pytest.raises(JobNotFound):
        queue.status(children[3])
    assert left(harness) == (0, 0)


@pytest.mark.parametrize("chunks", ["one", "several"])
def test_missing_parent_of_one_job_refuses_all_jobs(
    harness: Harness, chunks: str, request: pytest.FixtureRequest
) -> None:
    if chunks == "several":
        request.getfixturevalue("chunks_of_two")
    queue, caller = harness.task_queue(), harness.connect()
    work = queue.task()(lambda job_id, number: None)
    a = queue.put("a")
    jobs = [(0, None), (1, a), (2, [a, 4711, After(4712, "run")]), (3, [4713, 4711]), (4, None)]

    def refused(**options: Any) -> None:
        with pytest.raises(JobNotFound, match=r"put_many: item 2 and 1 more would wait for jobs 4711, 4713, which"):
            queue.put_many([NewJob(number, after=after) for number, after in jobs], **options)
        with pytest.raises(JobNotFound, match=r"put_calls: item 2 and 1 more would wait for jobs 4711, 4713, which"):
            queue.put_calls(*[work.options(after=after).call(number) for number, after in jobs], **options)
        with pytest.raises(JobNotFound, match=r"put_calls: item 0 would wait for job 4711, which"):
            queue.put_calls(work.options(after=4711).call(0), **options)

    refused()
    with queue:
        before = queue.put("before")
        refused()
    refused(connection=caller.raw)
    if caller.session.in_transaction():
        caller.commit()
    caller.begin()
    refused(connection=caller.raw)
    caller.commit()
    assert harness.sql("SELECT id, awaited FROM {table} ORDER BY id") == [(a, None), (before, None)]
    assert left(harness) == (0, 0)


@pytest.mark.usefixtures("chunks_of_two")
def test_jobs_of_several_chunks_wait_for_the_same_parents(harness: Harness) -> None:
    queue = harness.queue()
    parents = queue.put_many(["a", "b"])
    queue.put_many(NewJob(number, after=parents) for number in range(5))
    assert left(harness) == (5, 10)
    assert [finish(queue) for _ in range(8)] == ["a", "b", 0, 1, 2, 3, 4, None]
    assert left(harness) == (0, 0)


def test_bulk_put_in_the_callers_transaction_is_undone_with_it(harness: Harness) -> None:
    queue, caller = harness.queue(), harness.connect()
    a = queue.put("a")
    for end, blocked in ((caller.rollback, 0), (caller.commit, 2)):
        caller.begin()
        queue.put_many([NewJob("b", after=a), NewJob("c", after=a)], connection=caller.raw)
        assert left(harness) == (0, 0)
        end()
        assert left(harness) == (blocked, blocked)
        assert harness.sql("SELECT awaited FROM {table} WHERE data::text = '\"a\"'") == [(bool(blocked) or None,)]
    assert [finish(queue) for _ in range(4)] == ["a", "b", "c", None]


@pytest.mark.parametrize("number", [2, 500])
def test_bulk_put_sends_the_same_statements_for_any_number_of_jobs(
    harness: Harness, statements: list[str], number: int
) -> None:
    queue = harness.task_queue()
    work = queue.task()(lambda job_id, number: None)
    parents = queue.put_many(range(3))
    statements.clear()
    queue.put_many([NewJob(n, after=parents) for n in range(number)])
    assert without_checks(statements) == STATEMENTS
    statements.clear()
    handles = queue.put_calls(*[work.options(after=parents[n % 3]).call(n) for n in range(number)])
    assert without_checks(statements) == STATEMENTS
    statements.clear()
    queue.put_many([NewJob(n, after=[]) for n in range(number)])
    assert statements == ["put_each"]
    assert left(harness) == (2 * number, 4 * number)
    assert len(set(handles)) == number


def test_chunk_of_a_bulk_put_is_sized_by_its_parents(harness: Harness, statements: list[str]) -> None:
    queue = harness.queue()
    parents = queue.put_many(range(10_000))
    statements.clear()
    queue.put_many([NewJob(n, after=parents) for n in range(4)])
    assert statements == STATEMENTS * 2
    assert left(harness) == (4, 40_000)


@pytest.mark.parametrize("way", ["put_many", "put_calls"])
def test_job_waits_for_all_jobs_of_a_bulk_put(harness: Harness, way: str) -> None:
    queue = harness.task_queue()
    ran: list[Any] = []

    @queue.task()
    def work(job_id: int, name: Any) -> None:
        ran.append(name)

    if way == "put_many":
        parents = queue.put_many([work.call(n).data() for n in range(1000)])
    else:
        parents = queue.put_calls(*[work.call(n) for n in range(1000)])
    last = work.options(after=iter(parents))
    queue.put_calls(last.call("a"), last.call("b"))
    work("c", _after=parents)
    queue.put_many([NewJob(work.call("d").data(), after=iter(parents))] * 2)
    assert left(harness) == (5, 5000)
    jobs = queue.lease_many(1000, 60, timeout=0)
    assert queue.ack_many(jobs[1:]) == []
    assert queue.get(block=False) is None
    queue.ack(jobs[0])
    harness.drain(queue)
    assert sorted(ran) == ["a", "b", "c", "d", "d"]


def test_dedup_keys_of_jobs_put_together_decide_what_waits(harness: Harness) -> None:
    queue = harness.queue()
    a, holder = queue.put("a"), queue.put("holder", dedup="key")
    assert queue.put_many([NewJob("child", after=a, dedup="key")]) == [holder]
    for refused, error in (
        (NewJob("child", after=a, dedup=Dedup("key", on_conflict="error")), DuplicateJob),
        (NewJob("child", after=a, dedup=Dedup("key", on_conflict="replace")), ConfigurationError),
        (NewJob("child", after=4711, dedup="key"), JobNotFound),
    ):
        with pytest.raises(error):
            queue.put_many([NewJob("first", after=a), refused])
    assert left(harness) == (0, 0)
    b, c, d, e = queue.put_many(
        [
            NewJob("b", after=a, dedup="b"),
            NewJob("not put", after=[a, holder], dedup="b"),
            NewJob("replaced", after=a, dedup=Dedup("d", until="1h")),
            NewJob("new", dedup=Dedup("d", until="1h", on_conflict="replace")),
        ]
    )
    assert (b == c, d == e, left(harness)) == (True, True, (1, 1))
    assert sorted(finish(queue) for _ in range(3)) == ["a", "holder", "new"]
    assert (finish(queue), finish(queue), left(harness)) == ("b", None, (0, 0))


def test_bulk_put_does_not_wait_for_a_parent_that_a_transaction_has_taken(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a")
    other = harness.pq(create=False)["q"]
    with queue:
        assert queue.get(block=False).data == "a"
        other.put_many([NewJob("b", after=a), NewJob("c", after=a)])
        assert finish(other) is None
    assert [finish(other) for _ in range(3)] == ["b", "c", None]
    assert left(harness) == (0, 0)


def test_retried_job_waits_no_longer(harness: Harness) -> None:
    queue = harness.queue()
    a = queue.put("a", "1h")
    child, other = queue.put_many([NewJob("child", after=a), NewJob("other", after=a)])
    assert queue.retry(child)
    assert (queue.status(child), queue.status(other), left(harness)) == ("ready", "scheduled", (1, 1))
    assert (queue.stats().blocked, finish(queue), finish(queue)) == (1, "child", None)
