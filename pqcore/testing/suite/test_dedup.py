"""Dedup keys: one job of a queue has a key at a time, however many puts run concurrently."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import ConfigurationError, DuplicateJob, InvalidTimeSpec, PQError
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import MAX_KEY, TableName
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.undo import Undo

PUTTERS = 25
UNTIL = ["finished", "started", "1h"]
CONFLICTS = ["keep", "replace", "error"]


def undo(*truths: bool) -> None:
    assert all(truths)
    raise Undo


def put(queue: Any, data: Any, dedup: Any, **options: Any) -> tuple[str, int | None]:
    """Return whether a put was skipped, and the id of the job that has the key then."""
    try:
        return "put", int(queue.put(data, dedup=dedup, **options))
    except DuplicateJob as exc:
        return "refused", exc.job_id


def contents(harness: Harness) -> list[tuple[int, str]]:
    return [(job, text) for job, text in harness.sql("SELECT id, data::text FROM {table} ORDER BY id")]


def held(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the keys that are held for a time."""
    return harness.sql(f"SELECT dedup_key, job_id FROM {TableName('queue', harness.schema).related('_dedup')}")


def take(queue: Any) -> Any:
    return queue.get(block=False)


@pytest.mark.parametrize("on_conflict", CONFLICTS)
@pytest.mark.parametrize("until", UNTIL)
def test_concurrent_puts_under_one_dedup_key_store_one_job(harness: Harness, until: str, on_conflict: Any) -> None:
    queue = harness.queue(max_connections=25)
    dedup = Dedup("key", until, on_conflict)
    for round_ in range(1, 4):
        found = harness.at_once(*(partial(put, queue, number, dedup) for number in range(PUTTERS)))
        [(job_id, data)] = contents(harness)
        assert {job for _, job in found} == {job_id}
        refused = sum(1 for outcome, _ in found if outcome == "refused")
        assert refused == (PUTTERS - 1 if on_conflict == "error" else 0)
        assert 0 <= int(data) < PUTTERS
        assert held(harness) == ([("key", job_id)] if until == "1h" else [])
        if round_ == 2:  # the row is gone: the key is free, or held until its time
            queue.get()
            harness.sql("DELETE FROM {table}", rows=False)
        else:
            queue.clear()
        if until == "1h":
            harness.sql(
                f"UPDATE {TableName('queue', harness.schema).related('_dedup')} SET until = clock_timestamp()",
                rows=False,
            )


@pytest.mark.parametrize("until", UNTIL)
def test_dedup_keys_put_concurrently_store_one_job_each(harness: Harness, until: str) -> None:
    queue = harness.queue(max_connections=8)

    def work(seed: int) -> list[int]:
        keys = [f"key-{(number * 7 + seed) % 20}" for number in range(20)]
        return sorted(queue.put(key, dedup=Dedup(key, until)) for key in keys)

    found = harness.at_once(*(partial(work, seed) for seed in range(8)))
    ids = [job for job, _ in contents(harness)]
    assert len(ids) == 20
    assert all(one == ids for one in found)


@pytest.mark.parametrize("until", ["finished", "started"])
def test_concurrent_puts_and_gets_lose_no_dedup_key(harness: Harness, until: str) -> None:
    queue = harness.queue(max_connections=12)
    seen: list[int] = []
    over = threading.Event()

    def consume() -> None:
        while True:
            last = over.is_set()
            job = queue.lease(60, block=False)
            if job is not None:
                seen.append(job.id)
                job.ack()
            elif last:
                return

    def produce() -> list[int]:
        return [queue.put(number, dedup=Dedup("key", until)) for number in range(30)]

    with harness.thread(consume) as consumed:
        try:
            produced = harness.at_once(*[produce] * 8)
        finally:
            over.set()
        consumed()
    assert len(set(seen)) == len(seen)
    assert {job for ids in produced for job in ids} == set(seen)
    assert queue.put("again", dedup="key") not in seen


@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
@pytest.mark.parametrize("until", UNTIL)
def test_dedup_put_returns_the_id_of_the_job_that_holds_the_key(harness: Harness, until: str, on_conflict: Any) -> None:
    queue = harness.queue()
    dedup = Dedup("key", until, on_conflict)
    first = queue.put("a", dedup=dedup)
    assert queue.put("b", dedup=dedup) == first
    assert contents(harness) == [(first, '"a"' if on_conflict == "keep" else '"b"')]
    assert queue.stats().ready == 1


@pytest.mark.parametrize("until", UNTIL)
def test_duplicate_job_error_names_the_holder_of_the_key(harness: Harness, until: str) -> None:
    queue = harness.queue()
    first = queue.put("a", dedup=Dedup("key", until))
    with pytest.raises(DuplicateJob, match="key") as caught:
        queue.put("b", dedup=Dedup("key", until, "error"))
    assert caught.value.job_id == first
    assert isinstance(caught.value, (PQError, ValueError))
    assert contents(harness) == [(first, '"a"')]


def test_dedup_given_as_a_string_holds_until_finished(harness: Harness) -> None:
    queue = harness.queue()
    first = queue.put("a", dedup="key")
    job = queue.lease()
    assert queue.put("b", dedup="key") == first
    job.ack()
    assert queue.put("c", dedup="key") > first


def test_dedup_keys_of_other_queues_and_other_spellings_are_distinct(harness: Harness) -> None:
    pq = harness.pq()
    ids = [
        pq[name].put(1, dedup=Dedup(key, until)) for name in ("a", "b") for key in ("k", "K", "k ") for until in UNTIL
    ]
    # Keys held by a job and keys held for a time are independent.
    assert len(set(ids)) == 2 * 3 * 2


ENDS: dict[str, Callable[[Any], Any]] = {
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many(1),
    "ack": lambda queue: queue.lease().ack(),
    "ack_many": lambda queue: queue.ack_many(queue.lease_many(1)),
    "cancel": lambda queue: queue.cancel(queue.peek()[0].id),
    "clear": lambda queue: queue.clear(),
}


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
@pytest.mark.parametrize("end", ENDS)
def test_finished_job_gives_up_its_dedup_key(harness: Harness, end: str, retention: str) -> None:
    queue = harness.queue(retention=retention)
    ids = []
    for _ in range(3):
        ids.append(queue.put(1, dedup=Dedup("key", on_conflict="error")))
        ENDS[end](queue)
    assert len(set(ids)) == 3
    assert queue.stats().ready == 0


def let_run_out(harness: Harness, queue: Any) -> None:
    queue.lease()
    harness.expire()


def take_again(harness: Harness, queue: Any) -> None:
    let_run_out(harness, queue)
    queue.lease()


STILL_HELD: dict[str, Callable[[Harness, Any], Any]] = {
    "leased": lambda harness, queue: queue.lease(),
    "given back": lambda harness, queue: queue.lease().nack(),
    "put off": lambda harness, queue: queue.lease().nack("1h"),
    "a lease that ran out": let_run_out,
    "taken again": take_again,
}


@pytest.mark.parametrize("way", STILL_HELD)
@pytest.mark.parametrize("on_conflict", ["keep", "error"])
def test_dedup_until_finished_holds_the_key_until_the_job_ends(harness: Harness, way: str, on_conflict: Any) -> None:
    queue = harness.queue()
    first = queue.put("a", dedup="key")
    STILL_HELD[way](harness, queue)
    assert put(queue, "b", Dedup("key", "finished", on_conflict))[1] == first
    assert contents(harness) == [(first, '"a"')]


@pytest.mark.parametrize("way", ["lease", "lease_many", "get"])
def test_dedup_until_started_holds_the_key_until_the_job_is_fetched(harness: Harness, way: str) -> None:
    queue = harness.queue()
    dedup = Dedup("key", "started", "error")
    first = queue.put("a", dedup=dedup)
    assert put(queue, "b", dedup) == ("refused", first)
    if way == "get":
        assert queue.get().id == first
    elif way == "lease":
        assert queue.lease().id == first
    else:
        assert [job.id for job in queue.lease_many(5)] == [first]
    second = queue.put("c", dedup=dedup)
    assert second > first
    assert put(queue, "d", dedup) == ("refused", second)
    harness.expire()  # the first job waits again, without its key
    assert put(queue, "e", dedup) == ("refused", second)
    left = [second] if way == "get" else [first, second]  # the first job is admitted again
    assert sorted(job.id for _ in left for job in queue.lease_many(5, block=False)) == left


@pytest.mark.read_committed
def test_rolled_back_lease_takes_its_dedup_key_back(harness: Harness) -> None:
    queue = harness.queue()
    dedup = Dedup("key", "started")
    first = queue.put("a", dedup=dedup)
    with pytest.raises(Undo), queue:
        undo(queue.lease(block=False).id == first)
    assert queue.put("b", dedup=dedup) == first


def test_parked_job_keeps_a_dedup_key_held_until_started(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("first", limits={"l": 1})
    dedup = Dedup("key", "started", "error")
    waiting = queue.put("a", dedup=dedup, limits={"l": 1})
    first = queue.lease(block=False)
    assert queue.lease(block=False) is None
    assert queue.status(waiting) == "parked"
    assert put(queue, "b", dedup) == ("refused", waiting)
    first.ack()
    assert queue.lease(block=False).id == waiting
    assert put(queue, "b", dedup)[0] == "put"


@pytest.mark.parametrize("end", ["get", "ack", "cancel", "clear"])
def test_dedup_key_for_a_period_is_held_after_the_job_ends(harness: Harness, end: str) -> None:
    queue = harness.queue(retention="delete")
    dedup = Dedup("key", "1h")
    first = queue.put("a", dedup=dedup)
    ENDS[end](queue)
    assert queue.put("b", dedup=dedup) == first
    assert put(queue, "b", Dedup("key", 3600, "error")) == ("refused", first)
    assert contents(harness) == []
    harness.sql(
        f"UPDATE {TableName('queue', harness.schema).related('_dedup')} SET until = clock_timestamp()", rows=False
    )
    assert queue.put("c", dedup=dedup) > first
    assert put(queue, "d", Dedup("key", timedelta(hours=1), "error"))[0] == "refused"


def test_dedup_key_whose_period_ended_is_free_while_its_job_waits(harness: Harness) -> None:
    queue = harness.queue()
    first = queue.put("a", dedup=Dedup("key", "1h"))
    [[left]] = harness.sql(
        "SELECT extract(epoch FROM until - clock_timestamp())::float8"
        f" FROM {TableName('queue', harness.schema).related('_dedup')}"
    )
    assert 3600 - PATIENCE < left <= 3600
    second = queue.put("b", dedup=Dedup("other", 0))
    assert queue.put("c", dedup=Dedup("other", 0)) > second > first
    assert queue.stats().ready == 3


# Replacing


def test_dedup_replace_stores_new_data_and_times(harness: Harness) -> None:
    queue = harness.queue()
    dedup = Dedup("key", on_conflict="replace")
    first = queue.put("a", "2h", "3h", dedup=dedup, headers={"n": 1})
    assert (queue.stats().scheduled, queue.stats().ready) == (1, 0)
    assert queue.put("b", dedup=dedup, headers={"n": 2}) == first
    assert (queue.stats().scheduled, queue.stats().ready) == (0, 1)
    job = queue.lease()
    assert (job.id, job.data, job.headers, job.schedule_at, job.expected_at) == (first, "b", {"n": 2}, None, None)


@pytest.mark.parametrize("until", UNTIL)
def test_dedup_replace_reschedules(harness: Harness, until: str) -> None:
    queue = harness.queue()
    dedup = Dedup("key", until, "replace")
    first = queue.put("a", dedup=dedup)
    assert queue.put("b", "1h", dedup=dedup) == first
    assert (queue.stats().scheduled, queue.stats().ready) == (1, 0)
    assert queue.put("c", timedelta(0), "1h", dedup=dedup) == first
    job = queue.get()
    assert (job.data, job.schedule_at is not None, job.expected_at is not None) == ("c", True, True)


@pytest.mark.parametrize("until", ["finished", "1h"])
@pytest.mark.parametrize("end", ["leased", "finished"])
def test_dedup_replace_leaves_a_job_that_is_not_waiting(harness: Harness, until: str, end: str) -> None:
    queue = harness.queue()
    dedup = Dedup("key", until, "replace")
    first = queue.put("a", dedup=dedup)
    job = queue.lease()
    if end == "finished":
        job.ack()
    second = queue.put("b", dedup=dedup)
    if (until, end) == ("finished", "finished"):
        assert contents(harness) == [(first, '"a"'), (second, '"b"')]
    else:
        assert second == first
        assert contents(harness) == [(first, '"a"')]
        if end == "leased":
            job.ack()


def test_dedup_replace_changes_the_serializer_with_the_data(harness: Harness) -> None:
    pq = harness.pq()
    dedup = Dedup("key", on_conflict="replace")
    first = pq["q"].put("a", dedup=dedup)
    assert pq["q/pickle"].put({1, 2}, dedup=dedup) == first
    assert pq["q/pickle"].get().data == {1, 2}


@pytest.mark.requires(Capability.LISTEN)
def test_dedup_replace_with_a_due_job_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=3600)
    dedup = Dedup("key", on_conflict="replace")
    first = queue.put("a", "30d", dedup=dedup)
    with harness.thread(lambda: queue.get(timeout=3600)) as got:
        harness.eventually(harness.listening)
        assert queue.put("b", dedup=dedup) == first
        assert (got().id, queue.get(block=False)) == (first, None)


@pytest.mark.parametrize("until", ["finished", "1h"])
@pytest.mark.parametrize("gates", [({"group": "a"}, {"group": "b"}), ({"limits": {"a": 1}}, {"limits": {"b": 1}})])
def test_dedup_replace_of_a_parked_job_waits_for_the_new_jobs_limits(
    harness: Harness, until: str, gates: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    queue = harness.queue()
    dedup = Dedup("key", until, "replace")
    running = [queue.put("first", **gate) and queue.lease(block=False) for gate in gates]
    moved = queue.put("a", dedup=dedup, **gates[0])
    behind = queue.put("behind", **gates[0])
    assert queue.lease(block=False) is None
    assert queue.stats().parked == 2
    assert queue.put("b", dedup=dedup, **gates[1]) == moved
    running[0].ack()
    assert queue.lease(block=False).id == behind
    assert queue.lease(block=False) is None
    assert queue.status(moved) == "parked"
    running[1].ack()
    job = queue.lease(block=False)
    assert (job.id, job.data) == (moved, "b")


def test_dedup_replace_of_a_parked_job_can_postpone_it(harness: Harness) -> None:
    queue = harness.queue()
    dedup = Dedup("key", on_conflict="replace")
    queue.put("first", limits={"l": 1})
    first = queue.lease(block=False)
    later = queue.put("a", dedup=dedup, limits={"l": 1})
    assert queue.lease(block=False) is None
    assert queue.put("b", "1h", dedup=dedup, limits={"l": 1}) == later
    assert queue.status(later) == "scheduled"
    queue.put("next", limits={"l": 1})
    first.ack()
    assert queue.lease(block=False).data == "next"


def test_dedup_replace_of_a_parked_job_can_remove_its_limit(harness: Harness) -> None:
    queue = harness.queue()
    dedup = Dedup("key", on_conflict="replace")
    queue.put("first", limits={"l": 1})
    queue.lease(block=False)
    free = queue.put("a", dedup=dedup, limits={"l": 1})
    assert queue.lease(block=False) is None
    assert queue.put("b", dedup=dedup) == free
    assert queue.lease(block=False).data == "b"


# Transactions


@pytest.mark.parametrize("until", UNTIL)
def test_rolled_back_put_leaves_the_dedup_key_free(harness: Harness, until: str) -> None:
    queue, caller = harness.queue(), harness.connect()
    caller.begin()
    undone = queue.put("a", dedup=Dedup("key", until), connection=caller.raw)
    assert queue.put("a2", dedup=Dedup("key", until), connection=caller.raw) == undone
    caller.rollback()
    assert contents(harness) == held(harness) == []
    with pytest.raises(Undo), queue:
        undo(queue.put("b", dedup=Dedup("key", until)) > 0)
    assert contents(harness) == held(harness) == []
    assert put(queue, "c", Dedup("key", until, "error"))[0] == "put"


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("until", UNTIL)
def test_dedup_put_waits_for_the_transaction_that_put_the_key_first(
    harness: Harness, until: str, commits: bool
) -> None:
    queue, caller = harness.queue(), harness.connect()
    caller.begin()
    first = queue.put("a", dedup=Dedup("key", until), connection=caller.raw)
    with harness.thread(lambda: queue.put("b", dedup=Dedup("key", until))) as second:
        harness.eventually(
            lambda: harness.sql(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                f" AND application_name = '{harness.application}'"
            )
        )
        if commits:
            caller.commit()
        else:
            caller.rollback()
        assert (second() == first) == commits
    assert contents(harness) == ([(first, '"a"')] if commits else [(second(), '"b"')])


def test_duplicate_job_error_leaves_its_transaction_usable(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a", dedup="key")
    with queue:
        with pytest.raises(DuplicateJob):
            queue.put("b", dedup=Dedup("key", on_conflict="error"))
        queue.put("c")
    assert [data for _, data in contents(harness)] == ['"a"', '"c"']


def test_get_and_put_of_one_dedup_key_are_undone_together(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("a", dedup="key")
    with pytest.raises(Undo), queue:
        undo(take(queue).data == "a", queue.put("b", dedup="key") > 0)
    assert take(queue).data == "a"
    assert take(queue) is None


# Valid keys


@pytest.mark.parametrize("key", ["", "\0", "a\0b", "\ud800", 5, None, b"key", "k" * (MAX_KEY + 1), "…" * MAX_KEY])
def test_dedup_key_of_a_bad_value_is_refused(harness: Harness, key: Any) -> None:
    with pytest.raises((PQError, ValueError)):
        Dedup(key)
    if key is not None:
        with pytest.raises((PQError, ValueError)):
            harness.queue().put(1, dedup=key)


@pytest.mark.parametrize("key", ["k" * MAX_KEY, "'; --", "{}", ":key", "%s", "æøå", " "])
@pytest.mark.parametrize("until", UNTIL)
def test_dedup_key_may_be_any_valid_text(harness: Harness, key: str, until: str) -> None:
    queue = harness.queue()
    first = queue.put(1, dedup=Dedup(key, until))
    assert queue.put(2, dedup=Dedup(key, until)) == first
    assert queue.put(3, dedup=Dedup(key, until, "replace")) == first
    assert queue.get().data == 3


@pytest.mark.parametrize("options", [{"until": "never"}, {"until": -1}, {"until": None}, {"on_conflict": "ignore"}])
def test_dedup_options_that_are_invalid_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidTimeSpec)):
        Dedup("key", **options)


def test_put_many_takes_no_dedup_key(harness: Harness) -> None:
    queue = harness.queue()
    with pytest.raises(TypeError):
        queue.put_many([1, 2], dedup="key")
    assert contents(harness) == []


def test_dedup_replace_in_an_open_transaction_blocks_no_running_job(harness: Harness) -> None:
    queue, caller = harness.queue(), harness.connect()
    queue.put("old", dedup="key")
    queue.put("plain")
    jobs = queue.lease_many(2, block=False)
    caller.begin()
    try:
        holder = queue.put("new", dedup=Dedup("key", on_conflict="replace"), connection=caller.raw)
        assert holder == jobs[0].id
        with harness.thread(lambda: queue.ack_many(jobs)) as join:
            assert join() == []
    finally:
        caller.rollback()
