"""A key or a serializer changes while data is in every place: all data is re-encoded, and no job breaks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pqcore import Encoding
from pqcore.errors import ConfigurationError, DeserializationError, PQError
from pqcore.serializers import SignedPickle, key_id
from pqcore.sql.identifiers import TableName
from pqcore.tasks import current
from pqcore.testing.harness import Harness, patiently
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Notes

OLD, NEW = "the old key, which nobody uses any more", "the new key, with which everything is written"
FORGED = {
    "previous": {"serializer": 1, "data": {}, "payload": None},
    "then": [
        {"queue": "q", "data": "\0"},
        7,
        {"queue": "q", "serializer": "x", "data": None, "payload": "!", "headers": {}},
    ],
}


def signed(*keys: str) -> dict[str, Any]:
    return {"serializer": SignedPickle(keys=keys)}


OLD_ID, NEW_ID = key_id(OLD.encode()), key_id(NEW.encode())
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "key": (signed(OLD), signed(NEW, OLD), signed(NEW)),
    "serializer": ({"serializer": "json"}, {**signed(NEW), "accept": ("json",)}, signed(NEW)),
}
"""The settings with which a queue is opened before, during and after the re-encoding."""


class Program:
    """A process of an application: a queue with its settings, and its tasks.

    Attributes:
        ran: The arguments of the tasks' calls, and the previous results.
        mended: Whether the failing task has stopped failing.
    """

    def __init__(self, harness: Harness, options: dict[str, Any], ran: Notes, **more: Any) -> None:
        self.pq = harness.tasks()
        self.queue = self.pq.queue("q", **options, **more)
        self.ran = ran
        self.mended = False

        def note(job_id: int, value: Any) -> Any:
            ran.add((value, current().previous))
            return value

        def fail(job_id: int) -> str:
            if not self.mended:
                raise RuntimeError("broken")
            return "mended"

        self.note = self.queue.task()(note)
        self.fail = self.queue.task(max_retries=0)(fail)


def serializers(harness: Harness) -> set[tuple[str, str]]:
    return {(one.serializer, one.key) for one in harness.pq(create=False).encodings()}


@pytest.mark.parametrize("change", CHANGES)
def test_reencode_rewrites_data_in_every_table_and_state(harness: Harness, change: str) -> None:
    before, meanwhile, afterwards = CHANGES[change]
    ran = Notes()
    old = Program(harness, before, ran)
    archiving = old.pq.queue("q", **before, retention="archive")
    # Jobs that have ended.
    old.queue.put("archived")
    archiving.get()
    old.queue.put("kept")
    old.queue.get()
    kept = old.note("result", _keep_result="1h")
    old.queue.chain(old.fail.call(), old.note.call("after a dead letter"))
    harness.drain(old.queue)
    # Jobs that wait, each in its own way.
    old.queue.put("leased")
    leased = old.queue.lease("1h")
    held = old.queue.chain(old.note.call("first"), old.note.call("second"), old.note.call("third"))
    chained = old.queue.lease("1h")
    assert chained.id == held
    old.note("under a limit", _limits={"one": 1})
    old.note("parked", _limits={"one": 1})
    limited = old.queue.lease("1h")
    assert old.queue.lease("1h", block=False) is None
    old.note("scheduled", _schedule_at="1h")
    old.note("expected", _expected_at="1h")
    old.queue.chain(old.note.call("waiting"), old.note.call("next"))
    old.queue.batch(old.note.call("of a batch"), then=old.note.call("after a batch"))
    old.queue.schedule("rare", old.note, "0 0 29 2 *", args=["of a schedule"])

    new = Program(harness, meanwhile, ran)
    done = new.queue.reencode(wait=0)
    places = {one.place for one in done.before if one.queue == "q"}
    assert places == {
        "ready", "scheduled", "leased", "parked", "done", "dead", "archive", "results", "chains", "batches",
        "schedules",
    }  # fmt: skip
    assert not [one for one in done.before if one.key == NEW_ID]
    assert (done.failed, done.errors, done.in_use) == (0, [], 1), "the chain under a lease is as its holder read it"
    assert {(one.place, one.number) for one in done.left} == {("chains", 2)}
    old.queue.ack(leased)
    old.queue.ack(limited)
    old.queue.ack(chained)  # puts the second call as it was read
    done = new.queue.reencode()
    assert (done.failed, done.in_use, done.left, done.complete) == (0, 0, [], True)
    assert done.rewritten > 0
    again = new.queue.reencode()
    assert (again.rewritten, again.before, again.after) == (0, done.after, done.after)
    assert {(one.serializer, one.key) for one in done.after} == {("signed-pickle", NEW_ID)}

    last = Program(harness, afterwards, ran)  # the old key or serializer is gone
    assert last.queue.result(kept, 1) == "result"
    assert [letter.data["function"].rpartition(".")[2] for letter in last.queue.dead.list()] == ["fail"]
    [archived] = harness.sql(f"SELECT id, data::text, payload, serializer FROM {table_of(harness, '_archive')}")
    payload = None if archived[2] is None else bytes(archived[2])
    assert unwrapped(last.queue).decode_row(archived[0], archived[3], archived[1] or payload) == "archived"
    [scheduled] = last.queue.jobs("scheduled")
    last.queue.retry(scheduled.id)
    last.queue.trigger("rare")
    ran.items.clear()
    harness.drain(last.queue)
    assert sorted(value for value, _ in ran.items) == sorted(
        [
            "of a schedule",
            "second",
            "third",
            "parked",
            "scheduled",
            "expected",
            "waiting",
            "next",
            "of a batch",
            "after a batch",
        ]
    )
    assert dict(ran.items)["next"] == "waiting"
    assert last.queue.dead.count() == 1


def table_of(harness: Harness, suffix: str) -> str:
    return TableName("queue", harness.schema).related(suffix)


def test_reencode_rewrites_the_chain_of_a_dead_letter(harness: Harness) -> None:
    old = Program(harness, signed(OLD), Notes())
    old.queue.chain(old.fail.call(), old.note.call("after"))
    harness.drain(old.queue)
    Program(harness, signed(NEW, OLD), Notes()).queue.reencode()
    ran = Notes()
    last = Program(harness, signed(NEW), ran)
    last.mended = True
    assert last.queue.dead.retry_all() == 1
    harness.drain(last.queue)
    assert ran.items == [("after", "mended")]


def test_reencode_names_only_the_rows_of_a_missing_key(harness: Harness) -> None:
    pq = harness.pq()
    lost = "a key that nobody has kept, of thirty-two bytes"
    for key in (lost, OLD):
        pq.queue("q", **signed(key)).put_many([1, 2])
    pq["other"].put("plain")
    assert set(pq.encodings()) == {
        Encoding("other", "ready", "json", "", 1),
        Encoding("q", "ready", "signed-pickle", key_id(lost.encode()), 2),
        Encoding("q", "ready", "signed-pickle", OLD_ID, 2),
    }
    queue = pq.queue("q", **signed(NEW, OLD))
    for rewritten in (2, 0):
        done = queue.reencode()
        assert (done.rewritten, done.failed, [one.number for one in done.left]) == (rewritten, 2, [2])
        assert [one.key for one in done.left] == [key_id(lost.encode())]
        assert "job " in done.errors[0]
        assert key_id(lost.encode()) in done.errors[0]
    jobs = queue.peek(4)
    assert [job.data for job in jobs[2:]] == [1, 2]
    with pytest.raises(DeserializationError, match=key_id(lost.encode())):
        jobs[0].data  # noqa: B018


def test_reencode_returns_to_a_locked_row(harness: Harness) -> None:
    old = harness.queue(**signed(OLD))
    old.put_many(["locked", "free"])
    new = harness.queue(**signed(NEW, OLD))
    with ExitStack() as stack:
        with old:
            assert old.get().data == "locked"
            done = new.reencode(wait=0)
            assert (done.rewritten, done.in_use, [one.number for one in done.left]) == (1, 1, [1])
            join = stack.enter_context(harness.thread(lambda: new.reencode(wait=60)))
        assert join().left == []
    assert [job.data for job in harness.queue(**signed(NEW)).get_many(2)] == ["free"]


class Interrupted(BaseException):
    """An exception that ends a run in the middle."""


class Interrupting(SignedPickle):
    """A serializer that interrupts a run after some rows."""

    left = 5

    def rekey(self, raw: bytes) -> bytes:
        self.left -= 1
        if not self.left:
            raise Interrupted
        return super().rekey(raw)


def test_reencode_continues_where_it_was_interrupted(harness: Harness) -> None:
    harness.queue(**signed(OLD)).put_many(range(20))
    pq = harness.pq()
    with pytest.raises(Interrupted):
        pq.queue("q", serializer=Interrupting(keys=[NEW, OLD])).reencode(step=2)
    numbers = {one.key: one.number for one in pq.encodings()}
    assert numbers == {NEW_ID: 4, OLD_ID: 16}
    done = pq.reencode(pq.queue("q", **signed(NEW, OLD)), step=3)
    assert (done.rewritten, done.left, {one.key: one.number for one in done.before}) == (16, [], numbers)
    assert [job.data for job in pq.queue("q", **signed(NEW)).get_many(20)] == list(range(20))


def test_reencode_runs_beside_puts_and_gets(harness: Harness) -> None:
    number = 300
    old = harness.queue(**signed(OLD))
    old.put_many(range(number))
    taken: list[int] = []

    def put() -> None:
        queue = harness.queue(**signed(NEW, OLD))
        for n in range(number, number + 100):
            queue.put(n)

    def take() -> None:
        queue = harness.queue(**signed(NEW, OLD))
        for _ in patiently("all jobs taken"):
            if len(taken) == number + 100:
                break
            for job in queue.lease_many(3, "1h", wait=0.1):
                taken.append(job.data)
                job.ack()

    with harness.thread(put), harness.thread(take):
        for _ in patiently("all re-encoded"):
            if not harness.queue(**signed(NEW, OLD)).reencode(step=10).left:
                break
    assert sorted(taken) == list(range(number + 100))
    assert serializers(harness) == {("signed-pickle", NEW_ID)}


def test_chain_continues_through_queues_with_different_serializers(harness: Harness) -> None:
    pq = harness.tasks()
    ran = Notes()

    def note(job_id: int, value: Any) -> Any:
        ran.add((value, current().previous))
        return value

    def opened(*keys: str) -> tuple[Any, Any, Any, Any]:
        plain = pq.queue("plain", accept=(SignedPickle(keys=keys),))
        secret = pq.queue("secret", **signed(*keys), accept=("json",))
        return plain, secret, plain.task()(note), secret.task()(note)

    plain, secret, in_plain, in_secret = opened(OLD)
    plain.chain(in_plain.call(1), in_secret.call(2), in_plain.call(3))
    done = pq.reencode(opened(NEW, OLD)[1])
    assert (done.rewritten, done.left) == (1, [])
    assert Encoding("plain", "chains", "json", "", 1) in done.after
    assert Encoding("secret", "chains", "signed-pickle", NEW_ID, 1) in done.after
    plain, secret, *_ = opened(NEW)
    harness.drain(plain, secret)
    assert ran.items == [(1, None), (2, 1), (3, 2)]


def test_expired_lease_puts_no_follow_up_with_an_old_encoding(harness: Harness) -> None:
    old = Program(harness, signed(OLD), Notes())
    old.queue.chain(old.note.call(1), old.note.call(2))
    job = old.queue.lease("1h")
    harness.sql("UPDATE {table} SET leased_until = now() - interval '1 second'", rows=False)
    assert Program(harness, signed(NEW, OLD), Notes()).queue.reencode().left == []
    with pytest.raises(PQError, match="lease"):
        old.queue.ack(job)
    ran = Notes()
    harness.drain(Program(harness, signed(NEW), ran).queue)
    assert ran.items == [(1, None), (2, 1)]


class Stamped:
    """A serializer that writes the same data differently each time."""

    name = "stamped"
    binary = False

    def __init__(self) -> None:
        self._stamps = itertools.count(1)

    def dumps(self, value: Any) -> str:
        value = value["value"] if isinstance(value, dict) else value
        return json.dumps({"value": value, "stamp": next(self._stamps)})

    def loads(self, raw: Any) -> Any:
        return json.loads(raw)


def test_reencode_with_every_rewrites_each_row(harness: Harness) -> None:
    queue = harness.queue(serializer=Stamped())
    queue.put_many([1, 2, 3])
    assert queue.reencode().rewritten == 0
    assert queue.reencode(every=True, step=2).rewritten == 3
    assert [job.data for job in queue.get_many(3)] == [{"value": n, "stamp": n + 3} for n in (1, 2, 3)]


class Unnamed:
    """A serializer that has keys, but does not tell their ids."""

    name = "unnamed"
    binary = True
    authenticates = True

    def __init__(self, *keys: bytes) -> None:
        self.keys = keys

    def dumps(self, value: Any) -> bytes:
        return self.keys[0] + json.dumps(value).encode()

    def loads(self, raw: Any) -> Any:
        [key] = [key for key in self.keys if raw.startswith(key)]
        return json.loads(raw[len(key) :])


def test_reencode_changes_keys_that_rows_do_not_name(harness: Harness) -> None:
    pq = harness.pq()
    pq.queue("q", serializer=Unnamed(b"old")).put_many([1, 2])
    pq.queue("q", serializer=Unnamed(b"lost")).put(3)
    done = pq.queue("q", serializer=Unnamed(b"new", b"old")).reencode()
    assert (done.rewritten, done.failed, done.complete) == (2, 1, False)
    assert [job.data for job in pq.queue("q", serializer=Unnamed(b"new")).get_many(2)] == [1, 2]
    assert pq.queue("q", serializer=Unnamed(b"new", b"lost")).reencode().complete


def test_reencode_continues_past_foreign_rows(harness: Harness) -> None:
    queue = harness.queue(**signed(NEW, OLD), accept=("json",))
    forged = json.dumps(FORGED).replace("'", "''")
    for headers in (forged, '"then"', '{"then": 7}', '{"previous": []}'):
        harness.sql(f"INSERT INTO {{table}} (q_name, data, headers) VALUES ('q', '1', '{headers}')", rows=False)
    harness.sql(
        "INSERT INTO {table} (q_name, payload, serializer) VALUES ('q', 'key:zz', 'signed-pickle'), ('q', '', 'none')",
        rows=False,
    )
    done = queue.reencode()
    assert (done.rewritten, done.failed) == (4, 3)
    assert [job.data for job in queue.get_many(4)] == [1] * 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda pq, q: pq.reencode(), "no queue is named"),
        (lambda pq, q: pq.reencode(q, pq.queue("q")), "named twice"),
        (lambda pq, q: q.reencode(step=0), "step is 0"),
        (lambda pq, q: q.reencode(step=True), "step is True"),
        (lambda pq, q: q.reencode(wait="soon"), "soon"),
    ],
)
def test_reencode_refuses_bad_arguments(harness: Harness, wrong: Callable[..., Any], told: str) -> None:
    pq = harness.pq()
    queue = pq.queue("q")
    with pytest.raises(PQError, match=told):
        wrong(pq, queue)
    with queue, pytest.raises(ConfigurationError, match="outside of a transaction block"):
        queue.reencode()
    connection = harness.connect()
    connection.begin()
    with pytest.raises(ConfigurationError, match="transaction open"):
        harness.pq(connection.raw, create=False)["q"].reencode()
    connection.rollback()
