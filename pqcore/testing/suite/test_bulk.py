"""Putting and getting many jobs together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import ConfigurationError, PayloadTooLarge, PQError, SerializationError
from pqcore.operations import put_many
from pqcore.testing.connections import Connection
from pqcore.testing.harness import Harness


class Boom(Exception):
    """A failure of the user's code."""


@contextmanager
def failing(block: Any) -> Iterator[None]:
    """Run a block that ends with an exception of the user's code."""
    with pytest.raises(Boom), block:  # noqa: PT012
        yield
        raise Boom


@pytest.fixture
def chunks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make put_many send a statement every ten rows."""
    monkeypatch.setattr(put_many, "CHUNK_ROWS", 10)


small_chunks = pytest.mark.usefixtures("chunks_of_ten")


def breaking(items: Iterable[Any], error: BaseException) -> Iterator[Any]:
    """Yield items, and fail at the end."""
    yield from items
    raise error


def stored(harness: Harness) -> dict[int, Any]:
    """Return what the rows hold, by id, as others see it."""
    return {job_id: json.loads(data) for job_id, data in harness.sql("SELECT id, data::text FROM {table} ORDER BY id")}


def statements(harness: Harness) -> list[int]:
    """Return how many rows each statement inserted, if there was one transaction."""
    assert len(harness.sql("SELECT DISTINCT xmin::text FROM {table}")) == 1
    return [
        number
        for number, _ in harness.sql(
            "SELECT count(*), cmin::text::bigint FROM {table} GROUP BY cmin::text::bigint ORDER BY cmin::text::bigint"
        )
    ]


# put_many


@small_chunks
def test_put_many_returns_ids_in_the_order_of_the_items(harness: Harness) -> None:
    queue = harness.queue()
    for number in (1, 2, 9, 10, 11, 20, 35):
        items = [{"place": place} for place in range(number)]
        ids = queue.put_many(items)
        assert ids == sorted(set(ids))
        assert stored(harness) == dict(zip(ids, items, strict=True))
        assert [job.id for job in queue.get_many(100)] == ids
        queue.clear()


@pytest.mark.parametrize("items", [[], (), iter([])], ids=repr)
def test_put_many_of_nothing_returns_no_ids(harness: Harness, items: Any) -> None:
    queue, connection = harness.queue(), harness.connect()
    assert queue.put_many(items) == []
    assert queue.put_many(items, "1h", "2h") == []
    assert queue.put_many(items, connection=connection.raw) == []
    with queue:
        assert queue.put_many(items) == []
        queue.put("one")
    assert list(stored(harness).values()) == ["one"]


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda items: (item for item in items)])
def test_put_many_accepts_any_iterable(harness: Harness, kind: Callable[[Any], Any]) -> None:
    queue = harness.queue()
    ids = queue.put_many(kind(["a", "b", "c"]))
    assert stored(harness) == dict(zip(ids, "abc", strict=True))


def test_put_many_keeps_the_order_of_values_of_all_kinds(harness: Harness) -> None:
    queue = harness.queue()
    items = [None, "", 'quote " \\ {} , NULL', "nul \x00", "…æøå!", [], {}, 0, False, 2**70, [None], {"a": "}"}, "null"]
    ids = queue.put_many(items)
    jobs = queue.get_many(99)
    assert [job.id for job in jobs] == ids
    assert [job.data for job in jobs] == items
    assert [type(job.data) for job in jobs] == [type(item) for item in items]


def test_put_many_of_several_statements_is_one_transaction(harness: Harness) -> None:
    queue = harness.queue()
    ids = queue.put_many(number for number in range(12_001))
    assert len(set(ids)) == 12_001
    assert ids == sorted(ids)
    assert list(stored(harness).items()) == list(zip(ids, range(12_001), strict=True))
    assert statements(harness) == [5_000, 5_000, 2_001]
    jobs = queue.get_many(12_001)
    assert [job.data for job in jobs] == list(range(12_001))


def test_put_many_splits_chunks_by_size(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_many, "CHUNK_SIZE", 1_000)
    queue = harness.queue()
    sizes = [400, 400, 400, 10, 5_000, 10, 2_000, 10]
    items = [character * size for character, size in zip("abcdefgh", sizes, strict=True)]
    ids = queue.put_many(items)
    assert stored(harness) == dict(zip(ids, items, strict=True))
    assert statements(harness) == [3, 2, 2, 1]


def test_put_many_reads_items_as_it_sends_them(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_many, "CHUNK_ROWS", 10)
    held, most = 0, 0

    class Text(str):
        """Encoded data that is counted while anything refers to it."""

        __slots__ = ()

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    class Counting:
        name = "json"
        binary = False
        valid_json = True

        def dumps(self, value: Any) -> Text:
            nonlocal held, most
            held += 1
            most = max(most, held)
            return Text(json.dumps(value))

        def loads(self, raw: Any) -> Any:
            return json.loads(raw)

    queue = harness.queue(serializer=Counting())
    ids = queue.put_many(number for number in range(300))
    assert stored(harness) == dict(zip(ids, range(300), strict=True))
    assert 10 <= most <= 2 * 10 + 1  # the data being sent, the next data, and the current item


@small_chunks
@pytest.mark.parametrize("wrong", ["generator", "unencodable", "too large"])
def test_put_many_writes_nothing_when_its_items_raise(harness: Harness, wrong: str) -> None:
    queue = harness.queue(max_size=50)
    error = Boom("mine")

    def items(after: int) -> Iterator[Any]:
        yield from range(after)
        if wrong == "generator":
            raise error
        yield object() if wrong == "unencodable" else "x" * 50
        yield "never asked for"

    kinds = {"generator": Boom, "unencodable": SerializationError, "too large": PayloadTooLarge}
    for after in (0, 5, 10, 15, 20, 25, 30):
        with pytest.raises(kinds[wrong]) as caught:
            queue.put_many(items(after))
        assert wrong != "generator" or caught.value is error
        assert stored(harness) == {}
    ids = queue.put_many(range(25))
    assert stored(harness) == dict(zip(ids, range(25), strict=True))
    assert harness.connections() == 1


@small_chunks
def test_put_many_whose_items_raise_is_undone_within_the_block(harness: Harness) -> None:
    queue = harness.queue()
    with queue:
        queue.put("before")
        with pytest.raises(Boom):
            queue.put_many(breaking(range(25), Boom()))
        with pytest.raises(SerializationError):
            queue.put_many([*range(25), object()])
        queue.put_many(["after", "that"])
    assert list(stored(harness).values()) == ["before", "after", "that"]


@small_chunks
def test_put_many_is_undone_when_the_server_refuses_a_row(harness: Harness) -> None:
    queue = harness.queue()
    harness.sql("ALTER TABLE {table} ADD CHECK (data::text <> '25')", rows=False)
    with pytest.raises(PQError) as caught:
        queue.put_many(range(35))
    assert isinstance(caught.value, ValueError)
    assert stored(harness) == {}
    with queue:
        queue.put("before")
        with pytest.raises(PQError):
            queue.put_many(range(35))
        queue.put("after")
    assert list(stored(harness).values()) == ["before", "after"]
    assert harness.connections() == 1


@small_chunks
def test_put_many_in_a_block_ends_with_the_block(harness: Harness) -> None:
    queue = harness.queue()
    with failing(queue):
        assert len(queue.put_many(range(25))) == 25
        assert len(queue) == 25
        assert stored(harness) == {}
    assert stored(harness) == {}
    with queue:
        ids = queue.put_many(range(25))
        with failing(queue):
            queue.put_many(range(25, 50))
        assert stored(harness) == {}
    assert stored(harness) == dict(zip(ids, range(25), strict=True))


@small_chunks
def test_put_many_on_the_callers_connection_puts_all_or_none(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    before = getattr(connection.raw, "autocommit", None)
    with pytest.raises(Boom):
        queue.put_many(breaking(range(25), Boom()))
    assert (stored(harness), connection.session.in_transaction()) == ({}, False)
    assert getattr(connection.raw, "autocommit", None) == before
    ids = queue.put_many(range(25))
    assert stored(harness) == dict(zip(ids, range(25), strict=True))
    connection.begin()
    with pytest.raises(Boom):
        queue.put_many(breaking(range(25, 50), Boom()))
    more = queue.put_many(range(25, 50))
    assert list(stored(harness)) == ids
    connection.commit()
    assert list(stored(harness)) == ids + more


@small_chunks
@pytest.mark.parametrize("begun", [False, True])
def test_put_many_with_connection_argument_puts_all_or_none(harness: Harness, begun: bool) -> None:
    queue, connection = harness.queue(), harness.connect()

    def idle() -> Connection:
        if begun:
            connection.begin()
        return connection

    for error, items in (
        (Boom, lambda: breaking(range(25), Boom())),
        (SerializationError, lambda: [*range(25), object()]),
    ):
        with pytest.raises(error):
            queue.put_many(items(), connection=idle().raw)
        if begun:
            connection.rollback()
        assert (stored(harness), connection.session.in_transaction()) == ({}, False)
    ids = queue.put_many(range(25), connection=idle().raw)
    if begun:
        assert stored(harness) == {}
        connection.commit()
    assert stored(harness) == dict(zip(ids, range(25), strict=True))


def test_put_many_refuses_a_statement_that_would_be_too_large(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_many, "WHOLE_SIZE", 1_000)
    queue, connection = harness.queue(), harness.connect()
    with pytest.raises(PayloadTooLarge, match="begin a transaction"):
        queue.put_many(itertools.repeat("x" * 100), connection=connection.raw)  # an endless iterator
    assert (stored(harness), connection.session.in_transaction()) == ({}, False)
    connection.begin()
    assert len(queue.put_many(["x" * 100] * 20, connection=connection.raw)) == 20
    connection.commit()
    assert len(stored(harness)) == 20


@small_chunks
def test_put_many_applies_times_to_all_items(harness: Harness) -> None:
    queue = harness.queue()
    moment = datetime(2030, 1, 2, 3, 4, 5, 678, timezone.utc)
    queue.put_many(range(25), "2m", moment)
    queue.put_many(range(25), moment, timedelta(hours=-1))
    found = harness.sql(
        "SELECT extract(epoch FROM schedule_at - enqueued_at)::int, (expected_at AT TIME ZONE 'UTC')::text,"
        " (schedule_at AT TIME ZONE 'UTC')::text, extract(epoch FROM expected_at - enqueued_at)::int"
        " FROM {table} ORDER BY id"
    )
    text = "2030-01-02 03:04:05.000678"
    assert [row[:2] for row in found[:25]] == [(120, text)] * 25
    assert [row[2:] for row in found[25:]] == [(text, -3600)] * 25
    assert queue.get_many(100, block=False) == []
    queue.put_many(range(3), "0s", moment)
    assert [job.data for job in queue.get_many(100, block=False)] == [0, 1, 2]


@small_chunks
@pytest.mark.only("blocking")  # a generator cannot await
@pytest.mark.parametrize("over", ["DSN", "connection"])
@pytest.mark.parametrize("block", [False, True], ids=["alone", "block"])
def test_put_many_of_items_read_from_another_queue_moves_or_is_refused(
    harness: Harness, over: str, block: bool
) -> None:
    # The generator runs during put_many: on the only connection, it must not wait for put_many to end.
    pq = harness.pq(None if over == "DSN" else harness.connect().raw)
    pq["from"].put_many(range(25))

    def items() -> Iterator[Any]:
        while (job := pq["from"].get(block=False)) is not None:
            yield job.data

    def move() -> bool:
        with suppress(PQError):
            with pq["to"] if block else nullcontext():
                pq["to"].put_many(items())
            return True
        return False

    with harness.thread(move) as join:
        try:
            moved = join()
        except AssertionError:
            harness.cut_connections()  # so that the transaction does not stay open
            raise
    if moved:
        assert [job.data for job in pq["to"].get_many(99, block=False)] == list(range(25))
    elif block:
        assert [job.data for job in pq["from"].get_many(99, block=False)] == list(range(25))


def test_put_many_wakes_a_waiting_get_many(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    with harness.thread(lambda: queue.get_many(10, timeout=3600)) as join:
        other.put_many([1, 2, 3])
        assert [job.data for job in join()] == [1, 2, 3]


# get_many


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_get_many_takes_up_to_n_jobs_in_order(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put("last")
    ids = queue.put_many(range(10), timedelta(hours=-1))
    [first] = queue.put_many(["first"], None, "1h")
    jobs = queue.get_many(4)
    assert [job.id for job in jobs] == [first, *ids[:3]]
    assert [job.data for job in jobs] == ["first", 0, 1, 2]
    assert [job.attempts for job in jobs] == [1] * 4
    assert len(queue) == 8
    assert [job.data for job in queue.get_many(7)] == list(range(3, 10))
    assert [job.data for job in queue.get_many(7)] == ["last"]
    assert queue.get_many(7, block=False) == []
    assert [job.data for job in queue.get_many(1, block=False)] == []


def test_get_many_waits_for_the_first_job_only(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    with harness.thread(lambda: queue.get_many(10, timeout=3600)) as join:
        assert [job.data for job in join()] == [1]


@pytest.mark.requires(Capability.LISTEN)
def test_get_many_takes_all_due_jobs_after_waiting(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    with harness.thread(lambda: queue.get_many(3, timeout=3600)) as join:
        harness.eventually(harness.listening)
        other.put_many([1, 2, 3, 4])
        assert [job.data for job in join()] == [1, 2, 3]
    assert [job.data for job in queue.get_many(3)] == [4]


def test_get_many_returns_an_empty_list_after_its_timeout(harness: Harness) -> None:
    queue = harness.queue(timeout=0.01)
    queue.put("later", "1h")
    assert queue.get_many(3) == []
    assert queue.get_many(3, timeout=0.01) == []
    assert queue.get_many(3, timeout=0) == []
    assert queue.get_many(3, False) == []


@pytest.mark.parametrize("n", [0, -1, 10**6, True, False, 1.0, "x", "1", None, [1]], ids=repr)
def test_number_of_jobs_that_is_invalid_is_refused(harness: Harness, n: Any) -> None:
    queue = harness.queue()
    queue.put("job")
    for operation in (queue.get_many, queue.lease_many, queue.peek):
        with pytest.raises(ValueError, match="n is ") as caught:
            operation(n)
        assert isinstance(caught.value, ConfigurationError)
    assert queue.get(block=False).data == "job"


def test_number_of_jobs_larger_than_the_queue_gets_all_jobs(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(range(5))
    assert [job.data for job in queue.peek(100_000)] == list(range(5))
    assert [job.data for job in queue.get_many(100_000)] == list(range(5))


@pytest.mark.read_committed
def test_get_many_is_undone_with_a_failed_block(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    ids = queue.put_many(range(10))
    with failing(queue):
        assert [job.id for job in queue.get_many(4)] == ids[:4]
        assert [job.id for job in other.get_many(3)] == ids[4:7]
        with failing(queue):
            assert [job.id for job in queue.get_many(9)] == ids[7:]
            assert other.get_many(9, block=False) == []
        assert [job.id for job in queue.get_many(2)] == ids[7:9]
    jobs = other.get_many(9, block=False)
    assert [job.id for job in jobs] == ids[:4] + ids[7:]
    assert {job.attempts for job in jobs} == {1}


@pytest.mark.read_committed
@pytest.mark.parametrize("way", ["get_many", "get_many in blocks", "lease_many"])
@pytest.mark.parametrize("retention", ["keep", "delete"])
def test_get_many_consumers_never_take_the_same_job(harness: Harness, way: str, retention: str) -> None:
    queue = harness.queue(retention=retention)
    ids = queue.put_many(range(100)) + queue.put_many(range(100), timedelta(hours=-1), "1h")
    ids += queue.put_many(range(100), None, "1h")

    def consume() -> list[int]:
        taken: list[int] = []
        while True:
            if way == "get_many":
                jobs = queue.get_many(7, block=False)
            elif way == "lease_many":
                jobs = queue.lease_many(7, block=False)
                assert queue.ack_many(jobs) == []
            else:
                with queue:
                    jobs = queue.get_many(7, block=False)
            if not jobs:
                return taken
            taken += [job.id for job in jobs]

    with ExitStack() as stack:
        joins = [stack.enter_context(harness.thread(consume)) for _ in range(4)]
        shares = [join() for join in joins]
    assert sorted(job_id for share in shares for job_id in share) == sorted(ids)
    assert queue.get_many(7, block=False) == []
    assert harness.connections() <= 4


def test_waiting_get_many_calls_share_new_jobs(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)

    def consume() -> list[int]:
        taken: list[int] = []
        while not taken or taken[-1] >= 0:
            taken += [job.data for job in queue.get_many(1, timeout=3600)]
        return taken[:-1]

    with harness.thread(consume) as one, harness.thread(consume) as two:
        for number in range(20):
            other.put_many([2 * number, 2 * number + 1])
        other.put_many([-1, -1])
        assert sorted(one() + two()) == list(range(40))
