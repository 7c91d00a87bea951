"""Serializers, which convert data into what a row holds, and back; and the data that they refuse."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pqcore import AsyncQueue, Queue, hookimpl
from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    InvalidData,
    PayloadTooLarge,
    PQError,
    SerializationError,
    UnknownSerializer,
    UnsafeSerializer,
)
from pqcore.plugins import plugins
from pqcore.serializers import Serializer
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped

OBJECTS = {
    "when": datetime(2020, 2, 29, 12, 30, tzinfo=timezone.utc),
    "text": "…æøå!",
    "latin-1": "".join(map(chr, range(256))),
    "price": Decimal("1.10"),
    "set": frozenset({1, "two"}),
    "tuple": (b"\x00\xff", 1j, None),
    "object": SimpleNamespace(kind="Cox"),
    1: "a key that JSON has not",
}
ROWS = "SELECT data::text, encode(payload, 'escape'), serializer FROM {table} ORDER BY id"


class Backwards:
    """A binary serializer: JSON with its bytes reversed, after bytes that are no valid text."""

    name = "backwards"
    binary = True
    mark = b"\x00\xff'\\"

    def dumps(self, value: Any) -> bytes:
        return self.mark + json.dumps(value).encode()[::-1]

    def loads(self, raw: Any) -> Any:
        if not raw.startswith(self.mark):
            msg = "no mark"
            raise LookupError(msg)
        return json.loads(raw[len(self.mark) :][::-1])


class Wrapped:
    """A text serializer: JSON within an object."""

    name = "wrapped"
    binary = False

    def dumps(self, value: Any) -> str:
        return json.dumps({"wrapped": value}, ensure_ascii=False)

    def loads(self, raw: Any) -> Any:
        return json.loads(raw)["wrapped"]


class Plugin:
    """A plugin that brings serializers."""

    def __init__(self, serializers: tuple[Serializer, ...]) -> None:
        self._serializers = serializers

    @hookimpl
    def pqcore_register_serializers(self, register: Callable[[Serializer], None]) -> None:
        for serializer in self._serializers:
            register(serializer)


@contextmanager
def installed(*serializers: Serializer) -> Iterator[None]:
    """Install a plugin with the serializers, for the length of a block."""
    plugin = Plugin(serializers)
    plugins.register(plugin)
    try:
        yield
    finally:
        plugins.manager.unregister(plugin)
        for serializer in serializers:
            plugins._serializers.pop(serializer.name)


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


def queue_class(harness: Harness, **attributes: Any) -> type:
    """Return a subclass of the harness's kind of queue."""
    base = AsyncQueue if harness.mode == "async" else Queue
    return type("Mine", (base,), attributes)


def writers(queue: Any, job_id: int, data: Any) -> tuple[Callable[[], Any], ...]:
    """Return every way to write data."""
    return (
        lambda: queue.put(data),
        lambda: queue.put_many(["kept too", data]),
        lambda: queue.update(job_id, data),
    )


def plain(value: Any) -> str:
    """Encode with all characters unescaped."""
    return json.dumps(value, ensure_ascii=False)


# Round trips


def test_pickle_keeps_objects(harness: Harness) -> None:
    queue = harness.queue("q/pickle")
    queue.put(OBJECTS)
    queue.put_many([OBJECTS, "…æøå!"])
    assert queue.peek()[0].data == OBJECTS
    assert [queue.get().data for _ in range(3)] == [OBJECTS, OBJECTS, "…æøå!"]


def test_pickle_is_stored_as_pq_stores_it(harness: Harness) -> None:
    queue = harness.queue("q/pickle")
    queue.put(OBJECTS)
    [[text, payload, serializer]] = harness.sql(ROWS)
    assert json.loads(text) == pickle.dumps(OBJECTS, 0).decode("latin-1")
    assert (payload, serializer) == (None, "pickle")
    assert queue.get().size == len(text)


def test_pickle_reads_what_pq_wrote(harness: Harness) -> None:
    pq = harness.pq()
    text = json.dumps(pickle.dumps(OBJECTS, 0).decode("latin-1")).replace("'", "''")
    assert "\\\\" in text  # a server with other quoting rules would read this differently
    harness.sql(f"INSERT INTO {{table}} (q_name, data) VALUES ('q', '{text}')", rows=False)
    assert pq["q/pickle"].peek()[0].data == OBJECTS
    job = pq["q"].get()
    assert job.serializer is None
    assert job.data == pickle.dumps(OBJECTS, 0).decode("latin-1")  # a string is read as the row's serializer says


def test_queue_class_adds_converters(harness: Harness) -> None:
    converters = {"hex": (lambda data: data.hex(), bytes.fromhex)}
    pq = harness.pq(queue_class=queue_class(harness, converters=converters))
    queue = pq["q/hex"]
    queue.put(b"\x00\xff")
    assert harness.sql(ROWS) == [('"00ff"', None, "hex")]
    assert queue.name == "q"
    assert queue.get().data == b"\x00\xff"
    with pytest.raises(UnknownSerializer):
        harness.pq()["q/hex"]


def test_encode_and_decode_arguments_are_used(harness: Harness) -> None:
    pq = harness.pq(
        encode=lambda data: json.dumps({"data": data}, default=str), decode=lambda text: json.loads(text)["data"]
    )
    pq["q"].put([Decimal("1.10"), "é"])
    assert harness.sql(ROWS) == [('{"data": ["1.10", "\\u00e9"]}', None, "json")]
    assert pq["q"].get().data == ["1.10", "é"]
    pq["q/pickle"].put(OBJECTS)
    assert pq["q/pickle"].get().data == OBJECTS


def test_dumps_and_loads_wrap_encode_and_decode(harness: Harness) -> None:
    queue = harness.queue(dumps=str.upper, loads=lambda data: data + "!")
    queue.put("apple")
    assert harness.sql(ROWS) == [('"APPLE"', None, "json")]
    assert queue.get().data == "APPLE!"


def test_binary_serializer_of_a_plugin_writes_the_payload_column(harness: Harness) -> None:
    with installed(Backwards()):
        queue = harness.queue("q/backwards")
        raw = b"\x00\xff'\\" + b'{"a": "\\u00e9"}'[::-1]
        queue.put({"a": "é"})
        queue.put_many([{"a": "é"}, None, []])
        assert harness.sql(ROWS)[0] == (None, "\\000\\377'\\\\" + '}"9e00u\\\\" :"a"{', "backwards")
        [first, second] = queue.get_many(2)
        assert first.raw == second.raw == raw
        assert first.size == len(raw)
        assert first.serializer == "backwards"
        assert first.data == second.data == {"a": "é"}
        leased = queue.lease()
        assert leased.data is None
        leased.ack()
        assert queue.get().data == []


@pytest.mark.utf8
def test_text_serializer_of_a_plugin_writes_the_data_column(harness: Harness) -> None:
    with installed(Wrapped()):
        queue = harness.queue("q/wrapped")
        queue.put("…æøå!")
        assert harness.sql(ROWS) == [('{"wrapped": "…æøå!"}', None, "wrapped")]
        assert queue.get().data == "…æøå!"


def test_serializer_may_be_given_as_an_object(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq.queue("a/b", serializer=Backwards())
    queue.put([1, 2])
    assert harness.sql("SELECT q_name, data IS NULL, serializer FROM {table}") == [("a/b", True, "backwards")]
    assert queue.peek()[0].data == [1, 2]
    assert pq.queue("a/b", serializer=Backwards()).get().data == [1, 2]
    wrapped = pq.queue("a/b", serializer=Wrapped())
    wrapped.put(3)
    assert wrapped.get().data == 3


def test_serializer_may_be_given_by_name(harness: Harness) -> None:
    pq = harness.pq()
    pq.queue("a/b", serializer="pickle").put(OBJECTS)
    assert harness.sql("SELECT q_name, serializer FROM {table}") == [("a/b", "pickle")]
    assert pq.queue("a/b", serializer="pickle").get().data == OBJECTS


def test_serializer_may_be_set_by_the_queue_class(harness: Harness) -> None:
    pq = harness.pq(queue_class=queue_class(harness, serializer=Backwards()))
    for name in ("q", "q/json", "q/pickle"):
        pq[name].put([name])
    assert [row[2] for row in harness.sql(ROWS)] == ["backwards", "json", "pickle"]
    assert [pq[name].get().data for name in ("q", "q/json", "q/pickle")] == [["q"], ["q/json"], ["q/pickle"]]


def test_binary_data_survives_archiving(harness: Harness) -> None:
    queue = harness.pq(retention="archive").queue("q", serializer=Backwards())
    queue.put("é")
    queue.get()
    [[payload]] = harness.sql(f"SELECT encode(payload, 'hex') FROM \"{harness.schema}\".queue_archive")
    assert bytes.fromhex(payload) == Backwards().dumps("é")


# Rows of another serializer


def test_json_is_read_by_every_queue(harness: Harness) -> None:
    pq = harness.pq()
    pq["q"].put_many([1, 2, 3])
    assert pq["q/pickle"].get().data == 1
    assert pq.queue("q", serializer=Backwards()).get().data == 2
    assert pq.queue("q", serializer=Wrapped()).get().data == 3


def test_pickle_is_not_loaded_unless_accepted(harness: Harness, tmp_path: Path) -> None:
    pq = harness.pq()
    folder = tmp_path / "made"
    job_id = pq["q/pickle"].put(Trap(folder))
    pq["q/pickle"].put(Trap(folder))
    job = pq["q"].get()
    with pytest.raises(UnsafeSerializer, match="accept=\\('pickle',\\)") as caught:
        job.data  # noqa: B018
    assert isinstance(caught.value, DeserializationError)
    assert (job.id, job.attempts, job.serializer) == (job_id, 1, "pickle")
    assert json.loads(job.raw) == pickle.dumps(Trap(folder), 0).decode("latin-1")
    assert pq["q/pickle"].peek()[0].id != job_id  # the job was taken
    assert not folder.exists()
    job = pq.queue("q", accept=("pickle",)).get()
    assert not folder.exists()  # only on request
    assert job.data is None
    assert folder.exists()


def test_row_cannot_choose_a_serializer_that_is_not_accepted(harness: Harness, tmp_path: Path) -> None:
    pq = harness.pq()
    folder = tmp_path / "made"
    text = json.dumps(pickle.dumps(Trap(folder), 0).decode("latin-1")).replace("'", "''")
    for name in ("pickle", "Pickle", "q/pickle", "", "json ", "os"):
        harness.sql(f"INSERT INTO {{table}} (q_name, data, serializer) VALUES ('q', '{text}', '{name}')", rows=False)
    for accepted in ((), ("backwards",)):
        for job in pq.queue("q", accept=accepted).get_many(3):
            with pytest.raises(UnsafeSerializer):
                job.data  # noqa: B018
    assert len(pq["q"]) == 0
    assert not folder.exists()


def test_rows_of_accepted_serializers_are_read(harness: Harness) -> None:
    with installed(Backwards(), Wrapped()):
        pq = harness.pq(accept=("backwards", "pickle"))
        for name in ("q/backwards", "q/pickle", "q", "q/wrapped"):
            pq[name].put([name])
        assert [pq["q"].get().data for _ in range(3)] == [["q/backwards"], ["q/pickle"], ["q"]]
        with pytest.raises(UnsafeSerializer, match="'wrapped'"):
            pq["q"].get().data  # noqa: B018


def test_converters_are_accepted_by_name_too(harness: Harness) -> None:
    converters = {"hex": (lambda data: data.hex(), bytes.fromhex)}
    pq = harness.pq(queue_class=queue_class(harness, converters=converters))
    pq["q/hex"].put(b"\xff")
    pq["q/hex"].put(b"\x00")
    with pytest.raises(UnsafeSerializer):
        pq["q"].get().data  # noqa: B018
    assert pq.queue("q", accept=("hex",)).get().data == b"\x00"


def test_accepting_a_serializer_that_is_not_installed_says_so(harness: Harness) -> None:
    with installed(Backwards()):
        harness.pq()["q/backwards"].put(1)
    job = harness.queue(accept=("backwards",)).get()
    with pytest.raises(DeserializationError, match="unknown serializer 'backwards'"):
        job.data  # noqa: B018


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("data", "'\"no pickle\"'"),
        ("data, serializer", "'\"no pickle\"', 'pickle'"),
        ("data, serializer", "'[1]', 'pickle'"),
        pytest.param("data, serializer", "'\"…\"', 'pickle'", marks=pytest.mark.utf8),
        ("data, serializer", "repeat('1', 5000)::json, 'json'"),
        ("payload, serializer", "'\\xff'::bytea, 'json'"),
        ("payload, serializer", "'no mark'::bytea, 'backwards'"),
    ],
)
def test_undecodable_rows_are_delivered(harness: Harness, columns: str, values: str) -> None:
    with installed(Backwards()):
        queue = harness.queue("q/pickle", accept=("backwards",), timeout=0)
        queue.put("before")
        harness.sql(f"INSERT INTO {{table}} (q_name, {columns}) VALUES ('q', {values})", rows=False)
        queue.put("after")
        iterator = iter(queue)
        assert next(iterator).data == "before"
        job = next(iterator)
        for _ in range(2):
            with pytest.raises(DeserializationError, match=f"job {job.id}") as caught:
                job.data  # noqa: B018
            assert isinstance(caught.value, ValueError)
            assert caught.value.__cause__ is not None
        assert job.raw
        assert next(iterator).data == "after"
        assert next(iterator) is None


def test_row_nested_deeply_is_decoded_or_raises_deserialization_error(harness: Harness) -> None:
    queue = harness.queue()
    nested = "(repeat('[', 6000) || repeat(']', 6000))::json"
    harness.sql(f"INSERT INTO {{table}} (q_name, data, serializer) VALUES ('q', {nested}, 'json')", rows=False)
    job = queue.get()
    try:
        found, depth = unwrapped(job).data, 0
    except DeserializationError:  # too deep for this Python; 3.14 allows more
        return
    while found:
        [found], depth = found, depth + 1
    assert depth == 5999


def test_undecodable_job_can_be_given_new_data(harness: Harness) -> None:
    queue = harness.queue()
    harness.sql("INSERT INTO {table} (q_name, data, serializer) VALUES ('q', '1', 'nonsense')", rows=False)
    job = queue.lease()
    with pytest.raises(UnsafeSerializer):
        job.data  # noqa: B018
    job.data = "mended"
    assert (job.data, job.serializer) == ("mended", "json")
    job.nack()
    assert queue.get().data == "mended"


# Updates


def test_update_writes_with_the_queues_serializer(harness: Harness) -> None:
    pq = harness.pq()
    plainly, pickled, binary = pq["q"], pq["q/pickle"], pq.queue("q", serializer=Backwards())
    job_id = plainly.put("old")
    assert binary.update(job_id, "é") == len(Backwards().dumps("é"))
    assert binary.peek()[0].data == "é"
    assert harness.sql("SELECT data::text, serializer FROM {table}") == [(None, "backwards")]
    size = pickled.update(job_id, {1, 2})
    assert pickled.peek()[0].data == {1, 2}
    [[text, payload, serializer]] = harness.sql(ROWS)
    assert (size, payload, serializer) == (len(text), None, "pickle")
    assert plainly.update(job_id, "…") == len('"\\u2026"')
    assert harness.sql(ROWS) == [('"\\u2026"', None, "json")]
    assert plainly.get().data == "…"


def test_setting_job_data_updates_the_job_object(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq.queue("q", serializer=Backwards())
    pq["q"].put("old")
    job = queue.lease()
    assert (job.data, job.serializer) == ("old", "json")
    job.data = "new"
    raw = Backwards().dumps("new")
    assert (job.data, job.raw, job.size, job.serializer) == ("new", raw, len(raw), "backwards")
    job.nack()
    assert queue.get().data == "new"


# Refusals


@pytest.mark.parametrize("name", ["q/nonsense", "q/Pickle", "q/pickle ", "a/b", "json/"])
def test_serializer_of_an_unknown_name_is_refused(harness: Harness, name: str) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(UnknownSerializer, match=r"installed: .*json.*pickle") as caught:
        pq[name]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KeyError)
    assert repr(name.rpartition("/")[2]) in str(caught.value)
    assert harness.connections() == 0  # so nothing can have been written


def test_serializer_argument_of_an_unknown_name_is_refused(harness: Harness) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(UnknownSerializer, match="'nonsense'"):
        pq.queue("q", serializer="nonsense")


def _circular() -> list[Any]:
    data: list[Any] = []
    data.append({"self": data})
    return data


def _deep() -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(100_000):
        data = {"a": data}
    return data


def _nested(levels: int, around: Callable[[Any], Any] = lambda inner: {"a": inner}) -> Any:
    data: Any = "]}" * 600  # brackets in text do not count
    for _ in range(levels):
        data = around(data)
    return data


NOT_JSON: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: {"a": [float("inf")]},
    "minus infinity": lambda: [-float("inf")],
    "datetime": lambda: datetime(2020, 1, 1, tzinfo=timezone.utc),
    "set": lambda: {1, 2},
    "bytes": lambda: b"bytes",
    "a tuple as key": lambda: {(1, 2): 3},
    "circular": _circular,
    "object": lambda: {"a": object()},
    "too deep": _deep,
    "deeper than readers read": lambda: _nested(501, lambda inner: (inner,)),
    "as deep in dicts": lambda: _nested(501),
    "a number and its text as keys": lambda: {"a": [{1: 2, "1": 3}]},
    "None and its text as keys": lambda: [{"null": 1, None: 2}],
    "a fraction and its text as keys": lambda: ({"1.5": 1, 1.5: 2},),
    "a boolean and its text as keys": lambda: {"x": {"true": 1, True: 2}},
}


@pytest.mark.parametrize("make", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_data_that_are_not_json_are_refused(harness: Harness, make: Callable[[], Any]) -> None:
    queue = harness.queue()
    job_id = queue.put("kept")
    job = queue.lease()
    data = make()

    def assign() -> None:
        job.data = data

    for attempt in (*writers(queue, job_id, data), assign):
        with pytest.raises(SerializationError, match="'q': json cannot encode a ") as caught:
            attempt()
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ValueError)
        assert caught.value.__cause__ is not None
    assert job.data == "kept"
    assert harness.sql(ROWS) == [('"kept"', None, "json")]


@pytest.mark.parametrize("data", [_deep, lambda: lambda: None], ids=["too deep", "a function without a name"])
def test_data_that_cannot_be_pickled_are_refused(harness: Harness, data: Callable[[], Any]) -> None:
    queue = harness.queue("q/pickle")
    with pytest.raises(SerializationError, match="pickle cannot encode"):
        queue.put(data())
    assert harness.sql(ROWS) == []


def test_data_that_resemble_refused_data_come_back(harness: Harness) -> None:
    queue = harness.queue()
    values = [
        _nested(500),
        [{"n": n, "1": {"2": None}} for n in range(1_000)],
        {"1": 1, "null": 2, "true": 3, "1.5": "}, {" * 1_000, "a": '"1":'},
    ]
    for value in values:
        queue.put(value)
    queue.put_many(values)
    assert [job.data for job in queue.get_many(6)] == values * 2
    queue.put({1: 2, 3: {None: 4}})
    assert queue.get().data == {"1": 2, "3": {"null": 4}}


def test_headers_that_cannot_be_read_back_are_refused(harness: Harness) -> None:
    queue = harness.queue()
    for headers in ({"a": _nested(501)}, {"a": {1: 2, "1": 3}}, {"a": float("nan")}):
        with pytest.raises(SerializationError, match="headers"):
            queue.put(1, headers=headers)
        with pytest.raises(SerializationError, match="headers"):
            queue.put_many([1, 2], headers=headers)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (SimpleNamespace(binary=True, dumps=bytes, loads=bytes), "no 'name'"),
        (SimpleNamespace(name="x", binary=True, dumps=bytes), "no method 'loads'"),
        (SimpleNamespace(name="x", binary=True, loads=bytes, dumps="dumps"), "no method 'dumps'"),
        (SimpleNamespace(name="x", dumps=bytes, loads=bytes), "no 'binary'"),
        (SimpleNamespace(name=7, binary=True, dumps=bytes, loads=bytes), "the name 7"),
        (SimpleNamespace(name="", binary=True, dumps=bytes, loads=bytes), "the name ''"),
        (SimpleNamespace(name="x" * 201, binary=True, dumps=bytes, loads=bytes), "1 to 200"),
        (SimpleNamespace(name="a\0b", binary=True, dumps=bytes, loads=bytes), "printable"),
        (SimpleNamespace(name="x", stored_as=b"y", binary=True, dumps=bytes, loads=bytes), "the stored_as b'y'"),
        (Backwards, "give an instance"),
        (7, "no 'name'"),
    ],
)
def test_serializer_object_of_a_bad_type_is_refused_when_given(harness: Harness, given: Any, told: str) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(ConfigurationError, match=told):
        pq.queue("q", serializer=given)
    with pytest.raises(ConfigurationError, match=told):
        harness.pq(create=False, serializer=given)
    if "dumps" not in told and "binary" not in told:  # a serializer only for reading need not write
        with pytest.raises(ConfigurationError, match="accept"):
            pq.queue("q", accept=(given,))


def test_put_many_writes_nothing_if_a_late_item_cannot_be_encoded(harness: Harness) -> None:
    queue = harness.queue()
    with pytest.raises(SerializationError):
        queue.put_many([*range(10_001), object()])  # enough that some were sent before
    assert harness.sql(ROWS) == []
    assert len(queue.put_many(range(3))) == 3


def test_serializer_that_returns_the_wrong_type_is_refused(harness: Harness) -> None:
    pq = harness.pq()
    text_for_bytes, bytes_for_text = Wrapped(), Backwards()
    text_for_bytes.binary, bytes_for_text.binary = True, False
    for serializer in (text_for_bytes, bytes_for_text):
        with pytest.raises(SerializationError, match=serializer.name):
            pq.queue("q", serializer=serializer).put(1)
    with pytest.raises(SerializationError):
        pq.queue("q", encode=lambda data: data).put(1)
    assert harness.sql(ROWS) == []


@pytest.mark.parametrize("data", [float("nan"), [float("-inf")]])
def test_encode_output_that_is_invalid_json_is_refused_by_the_server(harness: Harness, data: Any) -> None:
    queue = harness.queue(encode=json.dumps)
    job_id = queue.put("kept")
    for attempt in writers(queue, job_id, data):
        with pytest.raises(InvalidData) as caught:
            attempt()
        assert isinstance(caught.value, ValueError)
        assert caught.value.sqlstate == "22P02"
    assert harness.sql(ROWS) == [('"kept"', None, "json")]
    assert queue.get().data == "kept"


@pytest.mark.parametrize("data", ["\ud800", "a\udfff\ud800b", {"\ud800": 1}, [{"a": {"\udc00": "\ud83d"}}]])
@pytest.mark.parametrize("name", ["q", "q/pickle"])
def test_lone_surrogates_round_trip_or_are_refused(harness: Harness, name: str, data: Any) -> None:
    queue = harness.queue(name)
    job_id = queue.put("kept")
    for attempt in writers(queue, job_id, data):
        before = harness.sql(ROWS)
        try:
            attempt()
        except PQError:
            assert harness.sql(ROWS) == before
    for job in queue.get_many(10):
        assert job.data in ("kept", "kept too", data)


@pytest.mark.parametrize("text", ["\ud800", "a\0b"], ids=["lone surrogate", "NUL"])
def test_text_that_the_server_cannot_hold_is_refused(harness: Harness, text: str) -> None:
    queue = harness.queue(encode='"{}"'.format)
    job_id = queue.put("kept")
    for attempt in writers(queue, job_id, text):
        with pytest.raises(PQError) as caught:
            attempt()
        assert isinstance(caught.value, ValueError), caught.value
    assert harness.sql(ROWS) == [('"kept"', None, "json")]
    queue.put("after")
    assert len(queue) == 2


@pytest.mark.parametrize("character", ["a", "é", *(pytest.param(one, marks=pytest.mark.utf8) for one in "…🍎")])
def test_max_size_counts_bytes(harness: Harness, character: str) -> None:
    pq = harness.pq(encode=plain)
    data = character * 10
    size = len(plain(data).encode())
    job_id = pq["q"].put("kept")
    exact, tight = pq.queue("q", max_size=size), pq.queue("q", max_size=size - 1)
    for attempt in writers(tight, job_id, data):
        with pytest.raises(PayloadTooLarge, match=f"{size} bytes.*max_size={size - 1}") as caught:
            attempt()
        assert isinstance(caught.value, ValueError)
    assert harness.sql(ROWS) == [('"kept"', None, "json")]
    exact.put(data)
    assert [job.data for job in exact.get_many(2)] == ["kept", data]


def test_max_size_holds_for_bytes(harness: Harness) -> None:
    pq = harness.pq()
    size = len(Backwards().dumps("data"))
    with pytest.raises(PayloadTooLarge):
        pq.queue("q", serializer=Backwards(), max_size=size - 1).put("data")
    assert harness.sql(ROWS) == []
    pq.queue("q", serializer=Backwards(), max_size=size).put("data")
    assert len(pq["q"]) == 1


def test_rows_larger_than_max_size_are_still_read(harness: Harness) -> None:
    pq = harness.pq()
    pq["q"].put("x" * 100)
    assert pq.queue("q", max_size=10).get().data == "x" * 100
