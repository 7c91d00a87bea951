"""The history checker: fabricated histories, good and bad."""

from __future__ import annotations

import pickle
import random
import threading
import time
from dataclasses import replace

import pytest

from pqcore.errors import LeaseLost
from pqcore.testing.history import History, Kind, Operation, Outcome, check


def op(
    kind: Kind,
    begin: int,
    end: int,
    job: int | None = 1,
    *,
    token: int | None = None,
    key: object = None,
    outcome: Outcome = "ok",
) -> Operation:
    return Operation(kind, begin, end, job, token, key, outcome)


def found(*operations: Operation, left: tuple[int, ...] = ()) -> list[str]:
    return check(History(operations), left)


PUT = op("put", 0, 1)
LEASED = op("lease", 2, 3, token=1)
AGAIN = op("lease", 10, 11, token=2)


GOOD: dict[str, tuple[Operation, ...]] = {
    "nothing": (),
    "popped": (PUT, op("get", 2, 3)),
    "popped while it was put": (op("put", 0, 5), op("get", 2, 3)),
    "leased and acknowledged": (PUT, LEASED, op("ack", 4, 5, token=1)),
    "leased while the last lease was given back": (
        PUT,
        LEASED,
        op("nack", 9, 12, token=1),
        AGAIN,
        op("ack", 13, 14),
    ),
    "redelivered, and the late ack refused": (
        PUT,
        LEASED,
        AGAIN,
        op("ack", 12, 13, token=1, outcome="lost"),
        op("ack", 14, 15, token=2),
    ),
    "popped after its lease ran out": (PUT, LEASED, op("get", 4, 5, token=2), op("ack", 6, 7, token=1, outcome="lost")),
    "given back by rollback, then popped": (PUT, op("get", 2, 3, outcome="undone"), op("get", 4, 5)),
    "maybe popped": (PUT, op("get", 2, 3, outcome="unknown")),
    "maybe acknowledged": (PUT, LEASED, op("ack", 4, 5, token=1, outcome="unknown")),
    "maybe acknowledged, and again": (
        PUT,
        LEASED,
        op("ack", 4, 5, token=1, outcome="unknown"),
        op("ack", 6, 7, token=1),
    ),
    "one failed get explains one loss": (PUT, op("get", 2, 3, None, outcome="unknown")),
    "one failed put explains one ghost": (op("put", 0, 1, None, outcome="unknown"), op("get", 2, 3)),
    "a put that failed and one that was undone need not arrive": (
        op("put", 0, 1, None, outcome="unknown"),
        op("put", 0, 1, outcome="undone"),
    ),
}


@pytest.mark.parametrize("operations", GOOD.values(), ids=GOOD)
def test_history_accepts_good_histories(operations: tuple[Operation, ...]) -> None:
    assert found(*operations) == []


def test_history_accepts_jobs_that_are_left() -> None:
    assert found(PUT, left=(1,)) == []
    assert found(PUT, LEASED, left=(1,)) == []


BAD: dict[str, tuple[str, tuple[Operation, ...]]] = {
    "never delivered": ("job 1 was lost", (PUT,)),
    "vanished under a lease": ("job 1 was lost", (PUT, LEASED)),
    "vanished though its ack was refused": (
        "job 1 was lost",
        (PUT, LEASED, AGAIN, op("ack", 12, 13, token=1, outcome="lost")),
    ),
    "vanished after a rollback": ("job 1 was lost", (PUT, op("get", 2, 3, outcome="undone"))),
    "two losses, one failed get": ("was lost", (PUT, op("put", 0, 1, 2), op("get", 2, 3, None, outcome="unknown"))),
    "never put, popped": ("job 1 is a ghost: it was never put", (op("get", 2, 3),)),
    "never put, leased": ("job 1 is a ghost: it was never put", (LEASED, op("ack", 4, 5, token=1))),
    "undone, and yet popped": ("job 1 is a ghost", (op("put", 0, 1, outcome="undone"), op("get", 2, 3))),
    "popped before it was put": ("taken before it was put", (op("put", 4, 5), op("get", 2, 3))),
    "popped twice": ("job 1 was delivered twice", (PUT, op("get", 2, 5), op("get", 4, 6))),
    "leased after it was popped": ("after it was finished", (PUT, op("get", 2, 3), op("lease", 4, 5, token=1))),
    "leased after it was acknowledged": (
        "after it was finished",
        (PUT, LEASED, op("ack", 4, 5, token=1), AGAIN),
    ),
    "leased twice with one token": (
        "twice with one token",
        (PUT, LEASED, replace(LEASED, begin=4, end=5), op("ack", 6, 7, token=1)),
    ),
    "acknowledged twice": (
        "job 1 was acknowledged twice",
        (PUT, LEASED, op("ack", 4, 6, token=1), op("ack", 5, 7, token=1)),
    ),
    "popped and acknowledged": (
        "job 1 was popped and acknowledged",
        (PUT, LEASED, op("get", 4, 5, token=2), op("ack", 6, 7, token=1)),
    ),
    "acknowledged with an old token": ("the ack succeeded", (PUT, LEASED, AGAIN, op("ack", 12, 13, token=1))),
    "acknowledged with an old token, overlapping": (
        "the ack succeeded",
        (PUT, LEASED, AGAIN, op("ack", 9, 12, token=1)),
    ),
    "acknowledged with an old token, which was popped": (
        "the ack succeeded",
        (PUT, LEASED, op("get", 4, 5, token=2), op("ack", 6, 7, token=1)),
    ),
    "given back with an old token": (
        "the nack succeeded",
        (PUT, LEASED, AGAIN, op("nack", 12, 13, token=1), op("ack", 14, 15, token=2)),
    ),
}


@pytest.mark.parametrize(("message", "operations"), BAD.values(), ids=BAD)
def test_history_reports_each_violation(message: str, operations: tuple[Operation, ...]) -> None:
    violations = found(*operations)
    assert any(message in line for line in violations), violations


def test_history_names_the_lost_job() -> None:
    lost = [op("put", 0, 1, job) for job in range(5)]
    assert len(found(*lost, left=(0, 3))) == 3


def pair(*takes: Operation, key: object = "k", second: object = "k") -> list[str]:
    """Return the violations for two jobs that were put one after the other."""
    return found(op("put", 0, 1, 1, key=key), op("put", 2, 3, 2, key=second), *takes)


def test_history_reports_disorder() -> None:
    [violation] = pair(op("get", 10, 11, 2), op("get", 12, 13, 1))
    assert "key 'k': job 2 was put after job 1, and taken before it" in violation
    assert pair(op("get", 10, 11, 2, token=1), op("get", 12, 13, 1, token=1))


def test_history_accepts_order() -> None:
    assert pair(op("get", 10, 11, 1), op("get", 12, 13, 2)) == []


def test_history_accepts_any_order_of_overlapping_gets() -> None:
    assert pair(op("get", 10, 12, 2), op("get", 11, 13, 1)) == []


def test_history_accepts_any_order_of_overlapping_puts() -> None:
    assert (
        found(op("put", 0, 2, 1, key="k"), op("put", 1, 3, 2, key="k"), op("get", 10, 11, 2), op("get", 12, 13, 1))
        == []
    )


def test_history_keys_are_checked_separately() -> None:
    assert pair(op("get", 10, 11, 2), op("get", 12, 13, 1), second="other") == []
    assert pair(op("get", 10, 11, 2), op("get", 12, 13, 1), key=None, second=None) == []


def test_history_accepts_redelivery() -> None:
    first, again = op("lease", 4, 5, 1, token=1), op("lease", 12, 13, 1, token=2)
    acks = op("ack", 14, 15, 1, token=2), op("ack", 14, 15, 2, token=1)
    assert pair(first, op("lease", 10, 11, 2, token=1), again, *acks) == []
    # also if the first delivery was to an unknown consumer
    assert pair(op("lease", 10, 11, 2, token=1), again, *acks) == []


def test_history_counts_no_take_that_was_rolled_back() -> None:
    assert pair(op("get", 4, 9, 1, outcome="undone"), op("get", 10, 11, 2), op("get", 12, 13, 1)) == []


def test_history_finds_the_disorder_that_a_pairwise_check_finds() -> None:
    rng = random.Random(5)
    disorderly = 0
    for _ in range(300):
        jobs = []
        for job in range(rng.randrange(2, 8)):
            put, take = rng.randrange(20), 20 + rng.randrange(20)
            jobs.append(
                (op("put", put, put + rng.randrange(4), job, key="k"), op("get", take, take + rng.randrange(4), job))
            )
        expected = {
            put_b.job
            for put_a, take_a in jobs
            for put_b, take_b in jobs
            if put_a.end < put_b.begin and take_b.end < take_a.begin
        }
        told = found(*(operation for both in jobs for operation in both))
        assert {int(line.split("job ")[1].split()[0]) for line in told} == expected
        disorderly += bool(expected)
    assert 50 < disorderly < 300


def test_history_records_operations() -> None:
    history = History()
    before = time.monotonic_ns()
    with history.record("put", key="k") as put:
        put.job = 7
    with history.record("get") as nothing:
        assert nothing.job is None
    with history.record("lease") as lease:
        lease.jobs = [(7, 1), (8, 1)]
    with history.record("ack", token=1) as ack:
        ack.job = 7
    after = time.monotonic_ns()
    assert [(o.kind, o.job, o.token, o.key, o.outcome) for o in history.operations] == [
        ("put", 7, None, "k", "ok"),
        ("lease", 7, 1, None, "ok"),
        ("lease", 8, 1, None, "ok"),
        ("ack", 7, 1, None, "ok"),
    ]
    instants = [instant for o in history.operations for instant in (o.begin, o.end)]
    assert min(instants) >= before
    assert max(instants) <= after


def test_history_records_all_puts_of_a_batch_or_none() -> None:
    history = History()
    with history.record("put") as op:
        op.jobs = [(1, None), (2, None)]
    with history.record("get") as op:
        op.jobs = []
    assert [o.job for o in history.operations] == [1, 2]


def test_history_records_outcomes_of_exceptions() -> None:
    history = History()

    def fail(kind: Kind, exc: Exception, job: int | None = None, outcome: Outcome | None = None) -> None:
        def work() -> None:
            with history.record(kind) as op:
                op.job, op.outcome = job, outcome
                raise exc

        with pytest.raises(type(exc)):
            work()

    fail("ack", LeaseLost("late"), 7)
    fail("get", ConnectionError())
    fail("put", ConnectionError(), 8)
    fail("get", ValueError(), 9, "undone")
    assert [(o.kind, o.job, o.outcome) for o in history.operations] == [
        ("ack", 7, "lost"),
        ("get", None, "unknown"),
        ("put", 8, "unknown"),
        ("get", 9, "undone"),
    ]


def test_history_merges_histories_of_threads_and_processes() -> None:
    history = History()

    def work(first: int) -> None:
        for job in range(first, first + 200):
            with history.record("put") as op:
                op.job = job

    threads = [threading.Thread(target=work, args=(number * 200,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = History([op("get", 2**62, 2**62 + 1, job) for job in range(800)])
    merged = History.merged([history, pickle.loads(pickle.dumps(other))])
    assert len(merged.operations) == 1600
    assert check(merged) == []
    assert len(check(history)) == 800
