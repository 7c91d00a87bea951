"""Data that takes long to decode, or that this or every program cannot decode; and results that cannot be stored."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    JobFailed,
    JobNotFound,
    KeyNotHeld,
    LeaseLost,
    ResultNotStored,
    SerializationError,
    Unreadable,
)
from pqcore.operations.job_outcome import PUT_OFF
from pqcore.serializers import Json, Wrapper
from pqcore.sql.identifiers import TableName
from pqcore.tasks import current
from pqcore.tasks.registry import TaskDeclarations
from pqcore.testing import workers
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.probes import Latch, Notes
from pqcore.testing.suite.test_serializers import Backwards
from pqcore.testing.undo import Undo
from pqcore.worker import serializer_threads

LEASE = 0.9
"""Seconds; short, so that a lease runs out while a job is decoded, unless it is extended."""


class Panic(BaseException):
    """An exception like the panic of a Rust library: no `Exception`."""


class Unspeakable(BaseException):
    """An exception that cannot be shown, either."""

    def __str__(self) -> str:
        raise Panic


class Slow(Json):
    """A serializer that takes as long as a test says, for the data that a test names."""

    name = "slow"

    def __init__(self, word: str) -> None:
        self.word, self.latch, self.seen = word, Latch(), Notes()

    def _wait(self, text: str, what: str) -> None:
        if self.word in text:
            self.seen.add(what)
            self.latch.wait()

    def dumps(self, value: Any) -> str:
        text = super().dumps(value)
        self._wait(text, "encodes")
        return text

    def loads(self, raw: Any) -> Any:
        self._wait(raw, "decodes")
        return super().loads(raw)


class Raising(Json):
    """A serializer that raises for data with a certain word."""

    name = "raising"

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.mended = False

    def dumps(self, value: Any) -> str:
        if value == "unwritable":
            raise self.error
        return super().dumps(value)

    def loads(self, raw: Any) -> Any:
        if "poison" in raw and not self.mended:
            raise self.error
        return super().loads(raw)


class Locked(Wrapper):
    """A serializer that seems to encrypt: the stored data names its key."""

    layer = "locked"
    authenticates = True

    def __init__(self, inner: Any = None, keys: tuple[str, ...] = ("k1",)) -> None:
        super().__init__(inner)
        self.keys = keys

    def wrap(self, raw: bytes) -> bytes:
        return self.keys[0].encode() + b":" + raw[::-1]

    def unwrap(self, raw: bytes) -> bytes:
        key, colon, rest = raw.partition(b":")
        if not colon:
            raise ValueError("damaged")
        if key.decode() not in self.keys:
            raise KeyNotHeld(f"key {key.decode()} is not held")
        return rest[::-1]


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks that a test declares before the next test."""
    for registry in ("handler_registry", "_tasks"):
        monkeypatch.setattr(TaskDeclarations, registry, dict(getattr(TaskDeclarations, registry)))


def noted(seen: Notes, item: Any, result: Any) -> Any:
    """Note that a function was run, and return its result."""
    seen.add(item)
    return result


def come_due(harness: Harness) -> None:
    harness.sql("UPDATE {table} SET schedule_at = clock_timestamp() WHERE schedule_at > clock_timestamp()", rows=False)


def dead(harness: Harness) -> str:
    return TableName("queue", harness.schema).related("_dead")


def rows(harness: Harness, columns: str) -> list[tuple[Any, ...]]:
    return harness.sql(f"SELECT {columns} FROM {{table}} WHERE dequeued_at IS NULL ORDER BY id")


def letters(queue: Any) -> list[tuple[int, str]]:
    return sorted((letter.id, letter.reason) for letter in queue.dead.list())


# Slow serializers


@pytest.mark.parametrize("doing", ["decodes", "encodes"])
def test_slow_serializer_delays_no_other_job_and_no_lease(
    harness: Harness, doing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serializer_threads, "SLOW_SERIALIZER", 0.05)
    slow, seen, beats = Slow("sluggish"), Notes(), Notes()
    pq = harness.tasks()
    queue, other = pq.queue("q", serializer=slow), pq["other"]

    @queue.task(keep_result="1h")
    def echo(job_id: int, text: str) -> str:
        seen.add(job_id)
        return "sluggish" if doing == "encodes" else text

    @other.task()
    async def beat(job_id: int) -> None:
        beats.add(job_id)

    if doing == "decodes":
        slow.latch.open()
    jobs = [echo("sluggish" if doing == "decodes" else "") for _ in range(3)]
    slow.latch = Latch()
    slow.seen = Notes()
    try:
        with harness.working(queue, other, lease=LEASE), harness.working(queue, other, lease=LEASE):
            assert set(slow.seen.wait(1)) == {doing}
            [[ends]] = harness.sql("SELECT max(leased_until)::text FROM {table} WHERE q_name = 'q'")
            number = 0
            while not harness.sql(f"SELECT 1 FROM {{table}} WHERE now() > '{ends}' LIMIT 1"):
                beat()
                number += 1
                beats.wait(number)
            seen.wait(0 if doing == "decodes" else 3)
            assert len(slow.seen.items) <= 3  # one for each job, however often leases would have run out
            slow.latch.open()
            seen.wait(3)
            harness.eventually(lambda: all(job.status() == "done" for job in jobs))
    finally:
        slow.latch.open()
    assert sorted(seen.items) == sorted(map(int, jobs))
    assert {row[0] for row in harness.sql("SELECT attempts FROM {table} WHERE q_name = 'q'")} == {1}
    what = "decoding" if doing == "decodes" else "encoding the result of"
    assert f"serializer 'slow' has been {what} job" in caplog.text


def _sluggish(harness: Harness) -> tuple[Any, Slow, Notes, Any]:
    """Return a queue with a job that takes long to decode, its serializer, the runs, and the job."""
    slow, seen = Slow("sluggish"), Notes()
    queue = harness.tasks().queue("q", serializer=slow)
    echo = queue.task()(lambda job_id, text: seen.add(job_id))
    slow.latch.open()
    job = echo("sluggish")
    slow.latch, slow.seen = Latch(), Notes()
    return queue, slow, seen, job


def test_job_is_cancelled_while_it_is_decoded(harness: Harness) -> None:
    queue, slow, seen, job = _sluggish(harness)
    try:
        with harness.working(queue) as worker:
            slow.seen.wait(1)
            assert job.cancel(running=True)
            [held] = worker._worker_state.queue_states[0].active_jobs.values()
            harness.eventually(lambda: held.context is not None and held.context.cancelled)
            slow.latch.open()
            harness.eventually(lambda: not rows(harness, "id"))
    finally:
        slow.latch.open()
    assert (seen.items, queue.dead.count()) == ([], 0)


def test_job_being_decoded_when_its_worker_stops_is_returned(harness: Harness) -> None:
    queue, slow, seen, job = _sluggish(harness)
    try:
        with harness.working(queue, grace=0.1):
            slow.seen.wait(1)
    finally:
        slow.latch.open()
    assert rows(harness, "id, attempts, failures, excused, leased_until IS NULL") == [(int(job), 1, None, 1, True)]
    assert seen.items == []


def test_job_whose_lease_is_lost_while_decoding_is_not_run(
    harness: Harness,
) -> None:
    queue, slow, seen, job = _sluggish(harness)
    try:
        with harness.working(queue, lease=LEASE) as worker:
            slow.seen.wait(1)
            harness.sql("UPDATE {table} SET attempts = attempts + 1, leased_until = now() + interval '1 h'", rows=False)
            [held] = worker._worker_state.queue_states[0].active_jobs.values()
            harness.eventually(lambda: held.context is not None and held.context.cancelled)
            slow.latch.open()
            harness.eventually(lambda: not worker._worker_state.is_busy())
    finally:
        slow.latch.open()
    assert (seen.items, rows(harness, "id, attempts")) == ([], [(int(job), 2)])


def test_result_is_decoded_outside_the_event_loop(harness: Harness) -> None:
    slow = Slow("sluggish")
    slow.latch.open()
    pq = harness.tasks()
    queue, other = pq.queue("q", serializer=slow), pq["other"]
    job = queue.task(keep_result="1h")(lambda job_id: "sluggish")()
    harness.drain(queue)
    slow.latch, slow.seen = Latch(), Notes()
    found: list[Any] = []
    try:
        with harness.thread(lambda: found.append(job.result(PATIENCE))) as join:
            slow.seen.wait(1)
            assert other.count() == 0  # this needs the event loop, if there is one
            slow.latch.open()
            join()
    finally:
        slow.latch.open()
    assert found == ["sluggish"]


# Data that another deployment can read


def _put_off(harness: Harness, queue: Any, jobs: int = 1) -> None:
    """Let a worker look at jobs that it cannot read."""
    harness.drain(queue)
    columns = "attempts, failures, excused, leased_until IS NULL, schedule_at > clock_timestamp(), error->>'type'"
    assert rows(harness, columns) == [(1, None, 1, True, True, "unreadable")] * jobs
    assert (queue.stats().scheduled, queue.dead.count()) == (jobs, 0)


@pytest.mark.parametrize("what", ["serializer", "accept", "key"])
def test_unreadable_job_waits_for_a_worker_that_can_read_it(
    harness: Harness, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    pq, seen = harness.tasks(), Notes()
    right: dict[str, Any] = {"serializer": Backwards()}
    wrong: dict[str, Any] = {"accept": ("backwards",)}
    message = "unknown serializer 'backwards'"
    if what == "accept":
        wrong, message = {}, "accept=('backwards',)"
    elif what == "key":
        right, wrong = {"serializer": Locked(keys=("k2", "k1"))}, {"serializer": Locked()}
        message = "key k2 is not held"
    writer, worker = pq.queue("q", **right), pq.queue("q", **wrong)
    job = writer.task()(lambda job_id, text: seen.add((job_id, text)))("text")
    _put_off(harness, worker)
    assert message in caplog.text
    assert "postponed for 60 seconds" in caplog.text
    assert message in worker.inspect(job).error["message"]
    come_due(harness)
    harness.drain(writer)
    assert (seen.items, job.status()) == ([(job, "text")], "done")


def test_unreadable_job_becomes_a_dead_letter_after_a_week(harness: Harness) -> None:
    pq, seen = harness.tasks(), Notes()
    writer, worker = pq.queue("q", serializer=Backwards()), pq["q"]
    task = writer.task()(lambda job_id: seen.add(job_id))
    job, invalid = task(), worker.put("no call")
    harness.drain(worker)
    for days, there in ((6, True), (8, False)):
        seconds = 86_400 * days
        harness.sql(
            f"UPDATE {{table}} SET error = jsonb_set(error::jsonb, '{{since}}',"
            f" to_jsonb(extract(epoch FROM now()) - {seconds}))::json, schedule_at = now()",
            rows=False,
        )
        harness.drain(worker)
        assert bool(rows(harness, "id")) is there
    assert letters(worker) == [(int(job), "unreadable"), (invalid, "invalid")]
    assert (worker.dead.count(), worker.dead.count("unreadable"), worker.dead.count("failed")) == (2, 1, 0)
    assert "was written by 'backwards'" in worker.dead.get(int(job)).error["message"]
    with pytest.raises(ConfigurationError, match="unreadable"):
        worker.dead.retry_all("nonsense")
    assert worker.dead.retry_all("unreadable") == 1
    harness.drain(writer)
    assert (seen.items, letters(worker)) == ([job], [(invalid, "invalid")])


def test_job_of_an_unknown_function_says_so_and_never_becomes_a_dead_letter(harness: Harness) -> None:
    queue = harness.task_queue()
    queue.put({"function": "nowhere.at.all", "args": [], "kwargs": {}})
    harness.drain(queue)
    assert PUT_OFF["unknown"] is None
    harness.sql(
        "UPDATE {table} SET error = jsonb_set(error::jsonb, '{since}', '0')::json, schedule_at = now()", rows=False
    )
    harness.drain(queue)
    assert rows(harness, "attempts, excused, error->>'type'") == [(2, 2, "unknown")]


def test_unreadable_job_past_its_deadline_expires(harness: Harness) -> None:
    pq = harness.tasks()
    job = pq.queue("q", serializer=Backwards()).task(deadline=timedelta(seconds=-1))(lambda job_id: None)()
    worker = pq["q"]
    harness.drain(worker)
    assert letters(worker) == [(int(job), "expired")]


def test_damaged_data_of_a_known_serializer_make_a_dead_letter(harness: Harness) -> None:
    pq = harness.tasks()
    queue = pq.queue("q", serializer=Locked(), accept=("pickle",))
    harness.sql("INSERT INTO {table} (q_name, payload, serializer) VALUES ('q', '\\x00ff', 'json+locked')", rows=False)
    harness.sql("INSERT INTO {table} (q_name, payload, serializer) VALUES ('q', 'k1:xx', 'json+locked')", rows=False)
    harness.sql("INSERT INTO {table} (q_name, data, serializer) VALUES ('q', '\"x\"', 'pickle')", rows=False)
    harness.drain(queue)
    assert [reason for _, reason in letters(queue)] == ["invalid"] * 3


@pytest.mark.only("blocking")
def test_unreadable_popped_job_is_put_again_unchanged(harness: Harness) -> None:
    pq, seen = harness.tasks(retention="delete"), Notes()
    writer, reader = pq.queue("q", serializer=Backwards()), pq["q"]
    writer.task(headers={"a": 1}, group="g")(lambda job_id, text: seen.add(text))("text")
    columns = "encode(payload, 'hex'), serializer, headers::text, group_key"
    before = rows(harness, columns)
    assert reader.perform(reader.get(block=False)) is False
    assert rows(harness, columns) == before
    come_due(harness)
    assert writer.perform(writer.get(block=False)) is True
    assert seen.items == ["text"]


# Data that no deployment can read

KINDS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: ValueError("bad"),
    "panic": lambda: Panic("bad"),
    "SystemExit": lambda: SystemExit("bad"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "unspeakable": Unspeakable,
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_exception_of_any_kind_makes_a_dead_letter(harness: Harness, kind: str) -> None:
    seen = Notes()
    queue = harness.tasks().queue("q", serializer=Raising(KINDS[kind]()))
    task = queue.task(keep_result="1h")(lambda job_id, text: noted(seen, text, text))
    poison, good, fine = task("poison"), task("good"), task("fine")
    harness.drain(queue)
    assert (sorted(seen.items), letters(queue)) == (["fine", "good"], [(int(poison), "invalid")])
    assert good.result(PATIENCE) == "good"
    assert fine.status() == "done"


@pytest.mark.only("blocking")
@pytest.mark.parametrize("kind", KINDS)
def test_decoder_exception_of_any_kind_does_not_end_work(harness: Harness, kind: str) -> None:
    assert threading.current_thread() is threading.main_thread()
    seen = Notes()
    queue = harness.tasks().queue("q", serializer=Raising(KINDS[kind]()))
    task = queue.task(keep_result="1h")(lambda job_id, text: noted(seen, text, "unwritable"))
    poison, good = task("poison"), task("good")
    queue.work(burst=True)
    assert (seen.items, letters(queue)) == (["good"], [(int(poison), "invalid")])
    with pytest.raises(ResultNotStored):
        good.result(PATIENCE)


@pytest.mark.parametrize("kind", ["panic", "SystemExit"])
def test_serializer_exception_of_any_kind_is_wrapped_in_a_pqerror(harness: Harness, kind: str) -> None:
    serializer = Raising(KINDS[kind]())
    queue = harness.pq().queue("q", serializer=serializer)
    for items in (["unwritable"], ["fine", "unwritable"]):
        with pytest.raises(SerializationError, match="bad") as refused:
            queue.put_many(items) if len(items) > 1 else queue.put(*items)
        assert refused.value.__cause__ is serializer.error
    assert queue.count() == 0
    queue.put("poison")
    job = queue.get()
    with pytest.raises(DeserializationError, match="bad") as caught:
        job.data  # noqa: B018
    assert (caught.value.job.id, caught.value.job.raw) == (job.id, '"poison"')
    assert caught.value.__cause__ is serializer.error


@pytest.mark.only("blocking")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [TimeoutError, Panic, KeyboardInterrupt, SystemExit])
def test_signal_handler_exception_in_a_decoder_passes_unchanged(
    harness: Harness,
    kind: type[BaseException],
    wrapped: bool,
) -> None:
    class Interrupted(Json):
        name = "interrupted"

        def loads(self, raw: Any) -> Any:
            signal.raise_signal(signal.SIGALRM)
            return super().loads(raw)

    def limit(*_: Any) -> None:
        raise kind

    queue = harness.pq().queue("q", serializer=Interrupted())
    queue.put(1)
    job = queue.get()
    before = signal.signal(signal.SIGALRM, partial(limit, "more") if wrapped else limit)
    try:
        with pytest.raises(kind):
            job.data  # noqa: B018
    finally:
        signal.signal(signal.SIGALRM, before)


def test_data_too_large_for_memory_are_retried_until_max_crashes(harness: Harness) -> None:
    serializer = Raising(MemoryError())
    queue = harness.tasks().queue("q", serializer=serializer)
    job = queue.task()(lambda job_id, text: None)("poison")
    harness.drain(queue)
    assert rows(harness, "attempts, failures, excused, schedule_at > clock_timestamp()") == [(1, None, None, True)]
    harness.sql("UPDATE {table} SET attempts = 5, schedule_at = now()", rows=False)
    serializer.mended = True  # it is not decoded a second time
    serializer.error = AssertionError()
    harness.drain(queue)
    assert letters(queue) == [(int(job), "crashed")]


# Burying


def _poisoned(harness: Harness, **options: Any) -> tuple[Any, int, int]:
    """Return a queue with a job that cannot be decoded before a job that can."""
    queue = harness.pq(**options).queue("q", serializer=Raising(ValueError("bad")))
    return queue, queue.put("poison"), queue.put("good")


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_bury_stores_a_popped_job_as_a_dead_letter_with_its_block(harness: Harness, retention: str) -> None:
    queue, poison, good = _poisoned(harness, retention=retention)
    [[before]] = harness.sql(f"SELECT enqueued_at FROM {{table}} WHERE id = {poison}")
    found = []

    def consume(*, undo: bool) -> None:
        with queue:
            job = queue.get(block=False)
            try:
                found.append(job.data)
            except DeserializationError as error:
                queue.bury(error.job, error)
            if undo:
                raise Undo

    with pytest.raises(Undo):
        consume(undo=True)
    assert (queue.dead.count(), queue.count()) == (0, 2)
    consume(undo=False)
    assert (letters(queue), queue.count()) == ([(poison, "invalid")], 1)
    consume(undo=False)
    assert (found, queue.count()) == (["good"], 0)
    letter = queue.dead.get(poison)
    assert (letter.raw, letter.attempts, letter.failures, letter.error["type"]) == (
        '"poison"',
        0,
        0,
        "pqcore.errors.DeserializationError",
    )
    assert letter.enqueued_at == before
    assert "bad" in letter.error["message"]
    assert harness.sql(f"SELECT 1 FROM {{table}} WHERE id = {poison}") == []
    queue.serializer.mended = True
    assert queue.dead.retry(poison) == 1
    job = queue.get(block=False)
    assert (job.id, job.data) == (poison, "poison")
    assert good != poison


def test_bury_stores_a_leased_job_as_a_dead_letter(harness: Harness) -> None:
    queue, poison, good = _poisoned(harness)
    job = queue.lease(block=False)
    with pytest.raises(DeserializationError) as caught:
        job.data  # noqa: B018
    job.bury(caught.value)
    assert letters(queue) == [(poison, "invalid")]
    with pytest.raises(LeaseLost):
        job.bury("once more")
    job = queue.lease(block=False)
    job.bury("it is of no use")
    letter = queue.dead.get(good)
    assert (letter.reason, letter.failures, letter.error["message"]) == ("failed", 1, "it is of no use")
    assert queue.count() == 0


def test_bury_is_undone_with_the_transaction(harness: Harness) -> None:
    queue, poison, _ = _poisoned(harness)
    job = queue.lease(block=False)

    def undone() -> None:
        with queue:
            queue.bury(job, Unreadable("key 5 is not held"))
            raise Undo

    with pytest.raises(Undo):
        undone()
    assert queue.dead.count() == 0
    queue.bury(job, Unreadable("key 5 is not held"))
    assert letters(queue) == [(poison, "unreadable")]


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_bury_refuses_a_job_that_was_not_taken(harness: Harness, retention: str) -> None:
    queue, poison, _ = _poisoned(harness, retention=retention)
    [peeked] = queue.peek()
    with pytest.raises(JobNotFound):
        queue.bury(peeked)
    job = queue.get(block=False)
    for wrong in (5, ["text"]):
        with pytest.raises(ConfigurationError, match="error is"):
            queue.bury(job, wrong)
    queue.bury(job)
    with pytest.raises(JobNotFound):
        job.bury()
    assert (letters(queue), queue.count()) == ([(poison, "failed")], 1)


@pytest.mark.parametrize("way", ["lease", "get"])
def test_batch_counts_buried_jobs(harness: Harness, way: str) -> None:
    queue, seen = harness.task_queue(), Notes()

    @queue.task()
    def task(job_id: int) -> None:
        pass

    @queue.task()
    def after(job_id: int) -> None:
        seen.add(current().previous["failed"])

    queue.batch(task.call(), task.call(), then=after.call())
    with queue:
        queue.bury(getattr(queue, way)(block=False), "it is of no use")
    harness.drain(queue)
    popped_by_async = way == "get" and harness.mode == "async"  # which continues when the job is taken
    assert seen.items == [0 if popped_by_async else 1]


def test_undecodable_job_deleted_by_get_says_how_to_keep_it(harness: Harness) -> None:
    queue, poison, _ = _poisoned(harness, retention="delete")
    job = queue.get(block=False)
    with pytest.raises(DeserializationError, match=r"only job\.raw still has the data: job\.bury\(error\)") as caught:
        job.data  # noqa: B018
    job.bury(caught.value)
    queue.serializer.mended = True
    queue.dead.retry(poison)
    assert {queue.get(block=False).data for _ in range(2)} == {"poison", "good"}


# Results that cannot be stored


class Opaque:
    """An object that neither JSON nor pickle can hold."""

    def __reduce__(self) -> Any:
        raise TypeError("opaque")


def test_result_that_cannot_be_encoded_leaves_the_job_done_after_one_run(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    opaque = queue.task(max_retries=3, retry_in=None)(lambda job_id: noted(seen, job_id, Opaque()))
    job, free = opaque(_keep_result="1h"), opaque()
    harness.drain(queue)
    assert (sorted(seen.items), job.status(), free.status(), queue.dead.count()) == ([job, free], "done", "done", 0)
    with pytest.raises(ResultNotStored, match="Opaque is not JSON") as caught:
        job.result(PATIENCE)
    assert caught.value.error["type"] == "pqcore.errors.SerializationError"
    assert "Opaque" in queue.inspect(job).error["message"]


def test_result_that_the_server_refuses_leaves_the_job_done(harness: Harness) -> None:
    seen = Notes()
    queue = harness.tasks(encode=lambda data: json.dumps(data).replace('"broken"', "broken")).queue("q")
    job = queue.task(keep_result="1h", max_retries=3, retry_in=None)(lambda job_id: noted(seen, job_id, "broken"))()
    harness.drain(queue)
    assert (seen.items, job.status(), queue.dead.count()) == ([job], "done", 0)
    with pytest.raises(ResultNotStored, match="InvalidData"):
        job.result(PATIENCE)


def test_chain_whose_needed_result_cannot_be_stored_becomes_a_dead_letter(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    made: list[Any] = [Opaque(), 5]

    @queue.task(keep_result="1h", max_retries=3, retry_in=None)
    def first(job_id: int) -> Any:
        return noted(seen, "first", made.pop(0))

    @queue.task()
    def second(job_id: int) -> None:
        seen.add(current().previous)

    job = queue.chain(first.call(), second.call())
    harness.drain(queue)
    assert (seen.items, letters(queue)) == (["first"], [(int(job), "failed")])
    assert "it was run, but its follow-ups" in queue.dead.get(job).error["message"]
    with pytest.raises(JobFailed):
        job.result(PATIENCE)
    queue.dead.retry(job)
    harness.drain(queue)
    assert seen.items == ["first", "first", 5]


def test_result_that_cannot_leave_its_process_leaves_the_job_done(harness: Harness, tmp_path: Any) -> None:
    queue = harness.task_queue()
    declared = queue.task(run_in="process", max_retries=3, retry_in=None)(workers.return_opaque)
    kept, free = declared(str(tmp_path / "kept"), _keep_result="1h"), declared(str(tmp_path / "free"))
    harness.drain(queue, concurrency=1)
    assert [(tmp_path / name).read_text() for name in ("kept", "free")] == ["run\n", "run\n"]
    assert (kept.status(), free.status(), queue.dead.count()) == ("done", "done", 0)
    with pytest.raises(ResultNotStored, match="cannot be pickled"):
        kept.result(PATIENCE)


@pytest.mark.only("blocking")
@pytest.mark.parametrize("way", ["get", "lease", "work"])
def test_retried_job_gets_the_arguments_as_stored(harness: Harness, way: str) -> None:
    queue, seen = harness.task_queue(), Notes()

    def pops(job_id: int, items: list[int], *, more: dict[str, int]) -> None:
        seen.add((list(items), dict(more)))
        items.clear()
        more.clear()
        raise RuntimeError

    queue.task(max_retries=2, retry_in=None)(pops)([1, 2], more={"a": 1})
    if way == "work":
        queue.work(burst=True)
    else:
        while (job := getattr(queue, way)(block=False)) is not None:
            queue.perform(job)
    assert seen.items == [([1, 2], {"a": 1})] * 3


def test_worker_retries_a_job_with_the_arguments_as_stored(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()

    async def pops(job_id: int, items: list[int]) -> None:
        seen.add(list(items))
        items.clear()
        raise RuntimeError

    queue.task(max_retries=2, retry_in=None)(pops)([1, 2])
    harness.drain(queue)
    assert seen.items == [[1, 2]] * 3
