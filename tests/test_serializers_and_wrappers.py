"""Serializers that are extras, and wrappers: round trips, keys, refusals, and their discovery.

What any serializer does in a queue is in the conformance suite.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import traceback
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cbor2
import msgpack
import msgspec
import orjson
import pydantic
import pytest
import zstandard
from cryptography import fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pqcore.serializers
from pqcore import PQ, hookimpl
from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    KeyNotHeld,
    PluginError,
    PQError,
    SerializationError,
    SerializerNotInstalled,
    UnknownSerializer,
    UnsafeSerializer,
)
from pqcore.plugins import Plugins, plugins
from pqcore.serializers import (
    Cbor2,
    Fernet,
    Json,
    Msgpack,
    MsgspecJson,
    MsgspecMsgpack,
    Orjson,
    Pickle,
    PydanticJson,
    Serializer,
    SignedPickle,
    Wrapper,
    Zstd,
    authenticates,
    is_quick,
    stored_name,
)
from pqcore.serializers.keys import MARK_SIZE
from pqcore.testing.commands import run
from pqcore.testing.harness import Harness

LIBRARIES = {"orjson", "msgspec", "msgpack", "cbor2", "pydantic", "zstandard", "cryptography"}
KEYS = [fernet.Fernet.generate_key().decode() for _ in range(3)]
SECRETS = [uuid.uuid4().hex * 2 for _ in range(3)]
DSN = "postgresql://nobody@127.0.0.1:1/nowhere"  # nothing is sent before the first operation
UTC = dt.timezone.utc

checked = settings(
    deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


MOMENTS = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
JSON = trees(LEAVES, TEXTS)
PACKED = trees(LEAVES | st.binary(max_size=20) | MOMENTS, TEXTS | st.integers(0, 99))
RICH = trees(
    LEAVES
    | st.binary(max_size=20)
    | MOMENTS
    | st.integers()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.frozensets(st.integers(0, 9)),
    TEXTS | st.tuples(TEXTS, st.integers()),
)


class Line(msgspec.Struct):
    """Part of an order."""

    sku: str
    count: int


class Order(msgspec.Struct):
    """A struct."""

    id: int
    lines: list[Line]
    at: dt.datetime
    price: Decimal = Decimal("1.10")
    note: str | None = None
    weight: float | None = None


@dataclasses.dataclass
class Parcel:
    """A dataclass."""

    id: int
    label: str | None = None
    weight: float | None = None


class Cat(pydantic.BaseModel):
    """A model."""

    kind: Literal["cat"] = "cat"
    name: str
    lives: int = pydantic.Field(default=9, ge=0, alias="livesLeft")
    weight: float | None = None

    @pydantic.computed_field
    def shout(self) -> str:
        return self.name.upper()


class Constants(Cat):
    """A type with NaN as a float, which JSON lacks."""

    model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")


class Strings(Cat):
    """A type with NaN as a string."""

    model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")
    nothing: None = None


class Dog(pydantic.BaseModel):
    """Another."""

    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["dog"] = "dog"
    born: dt.date


ORDER = Order(7, [Line("x", 1), Line("y", 2)], dt.datetime(2020, 2, 29, 12, tzinfo=UTC))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


@pytest.fixture(autouse=True)
def _keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQCORE_FERNET_KEYS", KEYS[0])
    monkeypatch.setenv("PQCORE_PICKLE_KEYS", SECRETS[0])


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Make a plugin bring serializers, for the length of a test."""
    before = dict(plugins._serializers)
    registered: list[object] = []

    def bring(*brought: Any) -> None:
        class Plugin:
            @hookimpl
            def pqcore_register_serializers(self, register: Callable[[Any], None]) -> None:
                for each in brought:
                    register(each)

        registered.append(plugin := Plugin())
        plugins.register(plugin)

    yield bring
    for plugin in registered:
        plugins.manager.unregister(plugin)
    for name in plugins._serializers.keys() - before.keys():
        if any(point.name == name for point in plugins._points("pqcore.serializers")):
            continue  # a serializer of pqcore's, loaded meanwhile
        del plugins._serializers[name]


def stored(serializer: Serializer, value: Any) -> Any:
    """Write a value, check the written form, and return the value that is read."""
    raw = serializer.dumps(value)
    assert type(raw) is (bytes if serializer.binary else str)
    if not serializer.binary:
        json.loads(raw)
    return serializer.loads(raw)


def rows(pq: PQ) -> list[tuple[Any, ...]]:
    with pq["q"] as cursor:
        cursor.execute("SELECT data::text, payload, serializer FROM queue ORDER BY id")
        return list(cursor.fetchall())


# Round trips


@pytest.mark.parametrize("serializer", [Orjson(), MsgspecJson(), PydanticJson(Any)], ids=repr)
@given(value=JSON)
@checked
def test_json_serializers_read_each_other(serializer: Serializer, value: Any) -> None:
    assert stored(serializer, value) == value
    plain = Json()
    assert plain.loads(serializer.dumps(value)) == value
    assert serializer.loads(plain.dumps(value)) == value


@pytest.mark.parametrize(("writer", "reader"), [(Msgpack(), MsgspecMsgpack()), (MsgspecMsgpack(), Msgpack())], ids=repr)
@given(value=PACKED)
@checked
def test_messagepack_serializers_read_each_other(writer: Serializer, reader: Serializer, value: Any) -> None:
    assert stored(writer, value) == value
    assert reader.loads(writer.dumps(value)) == value


@given(value=RICH)
@checked
def test_cbor_keeps_types_that_json_does_not(value: Any) -> None:
    assert stored(Cbor2(), value) == value


@given(value=RICH)
@checked
def test_signed_pickle_keeps_objects(value: Any) -> None:
    serializer = SignedPickle(keys=SECRETS[:1])
    assert stored(serializer, value) == value
    assert stored(serializer, SimpleNamespace(value=(value, {1}))) == SimpleNamespace(value=(value, {1}))


@pytest.mark.parametrize(
    "serializer",
    [
        Zstd(),
        Fernet(keys=KEYS),
        Zstd(Fernet(keys=KEYS)),
        Fernet(Zstd(MsgspecJson()), keys=KEYS),
        Fernet(Zstd(Msgpack()), keys=KEYS),
        Zstd(Zstd(Pickle())),
        Zstd(SignedPickle(keys=SECRETS)),
    ],
    ids=lambda each: each.name,
)
@given(value=JSON)
@checked
def test_wrapped_serializer_returns_equal_values(serializer: Serializer, value: Any) -> None:
    assert stored(serializer, value) == value


@given(
    st.builds(
        Order,
        st.integers(-(2**63), 2**63 - 1),
        st.lists(st.builds(Line, TEXTS, st.integers(0, 9)), max_size=3),
        MOMENTS,
        st.decimals(allow_nan=False, allow_infinity=False),
        st.none() | TEXTS,
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
@checked
def test_msgspec_structs_come_back_as_structs(order: Order) -> None:
    for serializer in (MsgspecJson(Order), MsgspecMsgpack(Order), Zstd(MsgspecMsgpack(Order))):
        assert stored(serializer, order) == order
    assert stored(MsgspecJson(list[Order]), [order]) == [order]


@given(st.builds(Parcel, st.integers(-(2**63), 2**63 - 1), st.none() | TEXTS))
@checked
def test_msgspec_dataclasses_come_back_as_dataclasses(parcel: Parcel) -> None:
    for serializer in (MsgspecJson(Parcel), MsgspecMsgpack(Parcel), PydanticJson(Parcel)):
        assert stored(serializer, parcel) == parcel
    assert stored(Orjson(), parcel) == dataclasses.asdict(parcel)


@given(st.builds(Cat, name=TEXTS, livesLeft=st.integers(0, 9)) | st.builds(Dog, born=st.dates()))
@checked
def test_pydantic_models_come_back_as_models(animal: Cat | Dog) -> None:
    assert stored(PydanticJson(Cat | Dog), animal) == animal
    assert stored(Fernet(PydanticJson(type(animal)), keys=KEYS), animal) == animal


def test_pydantic_models_are_stored_by_alias_without_computed_fields() -> None:
    assert json.loads(PydanticJson(Cat).dumps(Cat(name="Tom", livesLeft=3))) == {
        "kind": "cat",
        "name": "Tom",
        "livesLeft": 3,
        "weight": None,
    }


def test_serializer_options_of_the_libraries_are_passed_on() -> None:
    assert stored(Orjson(default=str), {"a": Decimal("1.10")}) == {"a": "1.10"}
    assert stored(Orjson(option=orjson.OPT_NON_STR_KEYS), {1: 2}) == {"1": 2}
    assert stored(Msgpack(default=list), {1: {2}}) == {1: [2]}
    assert stored(Cbor2(default=lambda encoder, value: encoder.encode(repr(value))), [object]) == ["<class 'object'>"]
    tagged = cbor2.dumps(cbor2.CBORTag(4000, "x"))
    assert Cbor2(tag_hook=lambda *found: "known").loads(tagged) == "known"
    complexes = MsgspecJson(complex, enc_hook=str, dec_hook=lambda kind, value: kind(value))
    assert stored(complexes, 1 + 2j) == 1 + 2j
    assert MsgspecJson(Line, strict=False).loads('{"sku": "x", "count": "3"}') == Line("x", 3)


# Data that cannot be written, or read


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_serializers_refuse_nan_and_infinity(number: float) -> None:
    for serializer in (Json(), Orjson(), MsgspecJson(), PydanticJson(Any), Zstd(Orjson())):
        for value in (number, [None, {"a": [number]}]):
            with pytest.raises(ValueError, match=r"JSON|float|inf|nan"):
                serializer.dumps(value)
        assert stored(serializer, [None, {"a": [None, 1.5]}]) == [None, {"a": [None, 1.5]}]
    for typed in (Orjson(), MsgspecJson(Parcel), PydanticJson(Parcel)):
        with pytest.raises(ValueError, match=r"JSON|float|inf|nan"):
            typed.dumps(Parcel(1, None, number))
    for model in (Cat, Constants):
        with pytest.raises(ValueError, match="is not JSON"):
            PydanticJson(model).dumps(model(name="Tom", weight=number))
    strings = PydanticJson(Strings)
    assert repr(stored(strings, Strings(name="Tom", weight=number)).weight) == repr(number)


@pytest.mark.parametrize("serializer", [MsgspecJson(Order), MsgspecMsgpack(Order)], ids=repr)
@pytest.mark.parametrize(
    "value",
    [
        {"id": 1},
        "text",
        [],
        None,
        Line("x", 1),
        Order("seven", [], ORDER.at),  # type: ignore[arg-type] # msgspec does not check it
        Order(7, [Line("x", None)], ORDER.at),  # type: ignore[arg-type]
        {"function": "os.system", "args": [], "kwargs": {}},
    ],
)
def test_typed_serializer_refuses_values_of_other_types(serializer: Serializer, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        serializer.dumps(value)
    untyped: Serializer = MsgspecMsgpack() if serializer.binary else MsgspecJson()
    with pytest.raises(msgspec.ValidationError):
        serializer.loads(untyped.dumps(value))


def test_typed_serializer_accepts_a_dict_of_the_right_shape() -> None:
    shape = {"id": 7, "lines": [], "at": "2020-02-29T12:00:00Z"}
    assert stored(MsgspecJson(Order), shape) == Order(7, [], ORDER.at)
    assert stored(PydanticJson(Cat), {"name": "Tom", "livesLeft": 3}) == Cat(name="Tom", livesLeft=3)


def test_pydantic_serializer_refuses_a_model_that_is_not_valid() -> None:
    changed = Cat(name="Tom")
    changed.lives = -1
    wrong = Cat(name="Tom")
    wrong.name = 7  # type: ignore[assignment]
    for each in (changed, wrong, Cat.model_construct(name=None), {"name": "Tom", "livesLeft": "many"}, Dog):
        with pytest.raises(ValueError, match="the data is not a Cat: "):
            PydanticJson(Cat).dumps(each)


def test_pydantic_serializer_errors_name_the_field_without_its_value() -> None:
    secret = uuid.uuid4().hex
    wrong = {"name": secret, "livesLeft": secret}
    for attempt in (lambda: PydanticJson(Cat).loads(json.dumps(wrong)), lambda: PydanticJson(Cat).dumps(wrong)):
        with pytest.raises(ValueError, match="livesLeft: Input should be a valid integer") as caught:
            attempt()
        assert secret not in everything(caught.value)


@pytest.mark.parametrize("serializer", [Orjson(), MsgspecJson(), Msgpack(), MsgspecMsgpack(), Cbor2()], ids=repr)
def test_serializer_refuses_values_it_cannot_encode_before_connecting(serializer: Serializer) -> None:
    queue = PQ(DSN).queue("q", serializer=serializer)
    for value in (object(), {"a": [object()]}, "\ud800"):
        with pytest.raises(SerializationError, match=r"'q': .* cannot encode a "):
            queue.put(value)


def test_serializer_given_as_a_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give an instance"):
        PQ(DSN).queue("q", serializer=MsgspecJson)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="give an instance"):
        Zstd(MsgspecJson)  # type: ignore[arg-type]
    for wrong in (MsgspecJson, 7, None):
        with pytest.raises(ConfigurationError, match="give serializers, or their names"):
            PQ(DSN).queue("q", accept=(wrong,))


# Compression


def test_compression_makes_data_smaller() -> None:
    value = [{"name": "Cox", "kind": "apple"}] * 200
    assert len(Zstd().dumps(value)) * 20 < len(Json().dumps(value))
    assert len(Zstd(level=19).dumps(value)) <= len(Zstd(level=1).dumps(value))


def bomb(size: int, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(b'"' + b"0" * (size - 2) + b'"')


def test_decompression_bomb_is_refused_before_decompressing() -> None:
    serializer = Zstd(max_size=1_000)
    assert serializer.loads(bomb(1_000)) == "0" * 998
    for raw in (bomb(1_001), bomb(10_000_000)):
        assert len(raw) < 1_000
        with pytest.raises(ValueError, match=r"more than 1000: .* max_size"):
            serializer.loads(raw)


def test_decompression_bomb_with_a_false_size_is_refused() -> None:
    serializer = Zstd(max_size=1_000)
    with pytest.raises(ValueError, match="does not say its decompressed size"):
        serializer.loads(bomb(10_000_000, write_content_size=False))
    # A frame's header: magic, a descriptor that says how the size is written, the size (less 256, in two bytes).
    honest = bytearray(bomb(10_000_000))
    small = bytearray(bomb(1_000))
    assert honest[4] >> 6 == 2
    assert small[4] >> 6 == 1
    lying = small[:4] + bytes([small[4] & ~0x20 & 0xFF]) + b"\x58" + small[5:7] + honest[9:]
    assert zstandard.frame_content_size(bytes(lying)) == 1_000
    with pytest.raises(zstandard.ZstdError):
        serializer.loads(bytes(lying))
    with pytest.raises(zstandard.ZstdError):  # a second frame
        serializer.loads(bomb(900) + bomb(900))


def test_compression_refuses_to_write_data_that_it_would_not_read() -> None:
    assert Zstd(max_size=12).dumps("0" * 10)
    with pytest.raises(ValueError, match="13 bytes before compression, more than 12: "):
        Zstd(max_size=12).dumps("0" * 11)


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 23}, {"level": "3"}, {"max_size": 0}, {"max_size": None}])
def test_compression_options_of_bad_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Zstd(**options)


def test_serializer_can_be_shared_by_threads() -> None:
    shared: list[Serializer] = [
        Zstd(Msgpack()),
        Fernet(Zstd(MsgspecJson()), keys=KEYS),
        SignedPickle(keys=SECRETS),
        Orjson(),
        Cbor2(),
    ]
    started = threading.Barrier(4)

    def work(number: int) -> None:
        started.wait(60)
        for turn in range(100):
            value = [f"{number} {turn}"] * (turn % 7 * 50)
            for serializer in shared:
                assert serializer.loads(serializer.dumps(value)) == value

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# Keys


def everything(error: BaseException) -> str:
    """Return everything that an error and its causes show, including hidden causes."""
    told = []
    seen: set[int] = set()
    queue = [error]
    while queue:
        each = queue.pop()
        if id(each) not in seen:
            seen.add(id(each))
            told += [str(each), repr(each), repr(vars(each)), "".join(traceback.format_exception(each))]
            queue += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "\n".join(told)


KEYED: list[tuple[Callable[[list[str]], Serializer], list[str]]] = [
    (lambda keys: Fernet(keys=keys), KEYS),
    (lambda keys: Fernet(Zstd(), keys=keys), KEYS),
    (lambda keys: SignedPickle(keys=keys), SECRETS),
]


@pytest.mark.parametrize(("make", "keys"), KEYED)
def test_encryption_keys_can_be_rotated(make: Callable[[list[str]], Serializer], keys: list[str]) -> None:
    old, new, newest = keys
    written = make([old]).dumps("payload")
    assert make([new, old]).loads(written) == "payload"  # first, every reader gets the new key
    rewritten = make([new, old]).dumps("payload")
    assert make([new]).loads(rewritten) == "payload"  # data that is written then does not need the old key
    for others in ([new], [newest], [newest, new]):
        with pytest.raises(ValueError, match="another key"):
            make(others).loads(written)


@pytest.mark.parametrize(("make", "keys"), KEYED)
def test_key_not_held_is_distinguished_from_damage(make: Callable[[list[str]], Serializer], keys: list[str]) -> None:
    written = make(keys[:1]).dumps("payload")
    assert isinstance(written, bytes)
    with pytest.raises(KeyNotHeld):
        make(keys[1:]).loads(written)
    altered = written[:-8] + bytes(byte ^ 1 for byte in written[-8:])
    for damaged in (b"", b"gAAA", b"no token", written[:20], altered, b"\xff" * 20):
        with pytest.raises(ValueError, match="it was altered, or") as refused:
            make(keys).loads(damaged)
        assert not isinstance(refused.value, KeyNotHeld)


def test_key_not_held_of_an_inner_serializer_shows_no_plaintext() -> None:
    outer = KEYS[0]
    written = Fernet(SignedPickle(keys=SECRETS[:1]), keys=[outer]).dumps("s3cr3t")
    with pytest.raises(KeyNotHeld, match=r"cannot read its signed-pickle \(KeyNotHeld\)") as refused:
        Fernet(SignedPickle(keys=SECRETS[1:]), keys=[outer]).loads(written)
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize("kind", [BaseException, ValueError])
def test_decoder_error_after_decryption_shows_no_plaintext(kind: type[BaseException]) -> None:
    secret = uuid.uuid4().hex

    class Inner(Json):
        def loads(self, raw: Any) -> Any:
            raise kind(raw)

    serializer = Fernet(Inner(), keys=[KEYS[0]])
    written = serializer.dumps(secret)
    with pytest.raises(ValueError, match="the data was decrypted, but is not valid json") as refused:
        serializer.loads(written)
    assert secret not in "".join(traceback.format_exception(refused.value))


def test_serializer_is_quick_only_if_its_own_class_says_so() -> None:
    class Mine(Json):
        pass

    class Quick(Json):
        quick = True

    key = KEYS[0]
    quick = (Json(), Orjson(), MsgspecJson(), MsgspecMsgpack(), Msgpack(), Cbor2(), Quick(), Fernet(keys=[key]))
    slow = (
        Mine(),
        Zstd(),
        Pickle(),
        SignedPickle(keys=SECRETS[:1]),
        MsgspecJson(dict),
        PydanticJson(dict),
        Orjson(default=str),
        Cbor2(default=str),
        Msgpack(default=str),
        Fernet(Mine(), keys=[key]),
    )
    assert [is_quick(each) for each in (*quick, *slow)] == [True] * len(quick) + [False] * len(slow)


@pytest.mark.parametrize(("make", "keys"), KEYED)
def test_altered_ciphertext_and_signed_pickle_are_refused(
    make: Callable[[list[str]], Serializer], keys: list[str]
) -> None:
    serializer = make(keys)
    written = serializer.dumps({"amount": 10})
    assert isinstance(written, bytes)
    is_token = isinstance(serializer, Fernet)
    mark, written = written[:MARK_SIZE], written[MARK_SIZE:]
    raw = base64.urlsafe_b64decode(written) if is_token else written
    flipped = (raw[:place] + bytes([raw[place] ^ 2]) + raw[place + 1 :] for place in range(len(raw)))
    for altered in (b"", raw[:-1], raw[1:], raw + raw, raw[:32], *flipped):
        stored = base64.urlsafe_b64encode(altered) if is_token else altered
        for begin in (b"", mark):
            with pytest.raises(ValueError, match="it was altered, or"):
                serializer.loads(begin + stored)
    for place in range(MARK_SIZE):
        with pytest.raises(ValueError, match="it was altered, or"):
            serializer.loads(mark[:place] + bytes([mark[place] ^ 1]) + mark[place + 1 :] + written)
    for id_ in serializer.key_ids[1:]:  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="it was altered, or"):
            serializer.loads(b"key:%s:" % id_.encode() + written)
    assert serializer.loads(mark + written) == {"amount": 10}
    assert serializer.loads(written) == {"amount": 10}, "as other programs write it: any key is tried"


@pytest.mark.parametrize("forged", [bytes(32), b"", bytes(31), b"\x80\x05"])
def test_signed_pickle_is_not_unpickled_without_a_good_signature(tmp_path: Path, forged: bytes) -> None:
    folder = tmp_path / "made"
    trap = pickle.dumps(Trap(folder))
    signature = SignedPickle(keys=SECRETS[:1]).dumps("something else")[: MARK_SIZE + 32]
    serializer = SignedPickle(keys=SECRETS)
    for raw in (forged + trap, trap, signature + trap, SignedPickle(keys=[SECRETS[0] + "!"]).dumps(Trap(folder))):
        with pytest.raises(ValueError, match="it was not unpickled"):
            serializer.loads(raw)
    assert not folder.exists()
    serializer.loads(serializer.dumps(Trap(folder)))
    assert folder.exists()  # the trap works


def test_encryption_keys_are_in_no_repr_and_no_error() -> None:
    for serializer in (Fernet(keys=KEYS), SignedPickle(keys=SECRETS), Zstd(Fernet(keys=KEYS))):
        shown = [repr(serializer), str(serializer), repr(vars(serializer))]
        queue = PQ(DSN).queue("q", serializer=serializer)
        shown += [repr(queue), repr(vars(queue))]
        for raw in (b"nonsense", Fernet(keys=[fernet.Fernet.generate_key()]).dumps("x"), "text"):
            with pytest.raises(DeserializationError) as caught:
                queue.decode_row(1, queue.serializer_name, raw)
            shown.append(everything(caught.value))
        for key in KEYS + SECRETS:
            assert key not in "\n".join(shown)
            assert base64.urlsafe_b64decode(key).hex() not in "\n".join(shown)
    assert repr(Fernet(keys=KEYS)) == "<json+fernet with 3 keys>"
    assert repr(SignedPickle(keys=SECRETS[:1])) == "<signed-pickle with 1 key>"


@pytest.mark.parametrize("inner", [Json(), MsgspecJson(Line), PydanticJson(Cat), Msgpack(), Orjson()], ids=repr)
def test_encrypted_data_are_in_no_error(inner: Serializer) -> None:
    """The decrypted data is not what the inner serializer writes; json's error, for example, contains the document."""
    word = uuid.uuid4().hex
    secret = json.dumps(dict.fromkeys(("name", "count", "livesLeft", "sku"), word)).encode()[:-1]
    queue = PQ(DSN).queue("q", serializer=Fernet(inner, keys=KEYS))
    readable = None if isinstance(inner, (Json, Orjson)) else secret + b"}"
    for plain in (secret, secret + b"}}", b"\xff" + secret, readable):
        if plain is None:
            continue
        token = fernet.Fernet(KEYS[0].encode()).encrypt(plain)
        with pytest.raises(
            DeserializationError, match=f"the data was decrypted, but is not valid {inner.name}"
        ) as caught:
            queue.decode_row(1, queue.serializer_name, token)
        assert word not in everything(caught.value)


@pytest.mark.parametrize("kind", [Fernet, SignedPickle])
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], "needs a key: .*environment variable PQCORE_"),
        ("hunter2", "a list of keys"),
        (b"hunter2", "a list of keys"),
        (["hunter2"], "key 1 "),
        ([7], "key 1 "),
        (["\ud800"], "key 1 "),
    ],
)
def test_encryption_keys_of_bad_values_are_refused(kind: Any, keys: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        kind(keys=keys)
    assert "hunter2" not in everything(caught.value)


@pytest.mark.parametrize("key", ["h" * 44 + "=", "hunter2" + "é" * 37, KEYS[0][:-1], KEYS[0][:-4]])
def test_encryption_keys_refused_for_their_format_are_in_no_error(key: str) -> None:
    with pytest.raises(ConfigurationError, match="key 2 is not 32 bytes") as caught:
        Fernet(keys=[KEYS[1], key])
    assert key not in everything(caught.value)


def test_encryption_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, name, made in (
        ("PQCORE_FERNET_KEYS", "json+fernet", lambda key: Fernet(keys=[key])),
        ("PQCORE_PICKLE_KEYS", "signed-pickle", lambda key: SignedPickle(keys=[key])),
    ):
        keys = KEYS if "FERNET" in variable else SECRETS
        for divider in (",", " ", ", ", "\n"):
            monkeypatch.setenv(variable, divider.join(keys[:2]) + divider)
            serializer = plugins.serializer(name)
            assert made(keys[0]).loads(serializer.dumps(1)) == 1  # the first writes
            assert serializer.loads(made(keys[1]).dumps(2)) == 2
            with pytest.raises(ValueError, match="2 keys"):
                serializer.loads(made(keys[2]).dumps(2))
        for empty in ("", " , "):
            monkeypatch.setenv(variable, empty)
            with pytest.raises(ConfigurationError, match=variable):
                plugins.serializer(name)
        monkeypatch.setenv(variable, keys[2])  # an earlier failure is not remembered
        assert plugins.serializer(name).loads(made(keys[2]).dumps(3)) == 3


# Names


@pytest.mark.parametrize(
    ("name", "kind", "marked"),
    [
        ("json", Json, "json"),
        ("orjson", Orjson, "json"),
        ("msgspec", MsgspecJson, "json"),
        ("msgpack", Msgpack, "msgpack"),
        ("msgspec-msgpack", MsgspecMsgpack, "msgpack"),
        ("cbor2", Cbor2, "cbor2"),
        ("pickle", Pickle, "pickle"),
        ("signed-pickle", SignedPickle, "signed-pickle"),
        ("json+zstd", Zstd, "json+zstd"),
        ("msgspec+zstd+fernet", Fernet, "json+zstd+fernet"),
        ("msgspec-msgpack+zstd", Zstd, "msgpack+zstd"),
        ("pickle+fernet", Fernet, "pickle+fernet"),
    ],
)
def test_serializer_is_found_by_its_name(name: str, kind: type, marked: str) -> None:
    serializer = plugins.serializer(name)
    assert type(serializer) is kind
    assert serializer.name == name
    assert stored_name(serializer) == marked
    assert PQ(DSN)[f"a/{name}"].serializer_name == marked
    assert serializer.loads(serializer.dumps(["x"])) == ["x"]


def test_wrapped_serializer_by_name_equals_one_made_by_hand() -> None:
    by_name = plugins.serializer("msgpack+zstd+fernet")
    by_hand = Fernet(Zstd(Msgpack()), keys=KEYS)
    half = Fernet("msgpack+zstd", keys=KEYS)
    assert by_name.name == by_hand.name == half.name
    assert half.loads(by_name.dumps([1])) == by_hand.loads(half.dumps([1])) == [1]
    [layer, inner] = [by_hand, by_hand.inner]
    assert msgpack.unpackb(zstandard.decompress(fernet.Fernet(KEYS[0]).decrypt(layer.dumps([1])[MARK_SIZE:]))) == [1]
    assert isinstance(inner, Zstd)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zstd", "'zstd' wraps another: write it after the other, as in 'json\\+zstd'"),
        ("zstd+fernet", "'zstd' wraps another"),
        ("json+msgpack", "'msgpack' is not a wrapper"),
        ("json+", "unknown serializer '' in 'json\\+'"),
        ("+zstd", "unknown serializer ''"),
        ("json++zstd", "unknown serializer ''"),
        ("json+zst", "unknown serializer 'zst' in 'json\\+zst'; installed: .*zstd"),
        ("jso+zstd", "unknown serializer 'jso' in"),
        ("json+zstd ", "unknown serializer 'zstd '"),
        ("pydantic", "unknown serializer 'pydantic'"),
    ],
)
def test_serializer_names_that_are_invalid_are_refused(name: str, told: str) -> None:
    with pytest.raises(UnknownSerializer, match=told):
        PQ(DSN)[f"q/{name}"]


def test_safe_and_authenticating_properties_pass_through_wrappers() -> None:
    found = {
        name: (getattr(plugins.serializer(name), "safe", None), authenticates(plugins.serializer(name)))
        for name in ("json", "pickle", "signed-pickle", "json+zstd", "pickle+zstd", "pickle+fernet", "json+fernet+zstd")
    }
    assert found == {
        "json": (True, False),
        "pickle": (False, False),
        "signed-pickle": (True, True),
        "json+zstd": (True, False),
        "pickle+zstd": (False, False),
        "pickle+fernet": (True, True),
        "json+fernet+zstd": (True, True),
    }
    assert Zstd(SimpleNamespace(name="own", binary=True, dumps=bytes, loads=bytes)).safe is None


class Reversed(Wrapper):
    """Last byte first."""

    layer = "reversed"

    def wrap(self, raw: bytes) -> bytes:
        return raw[::-1]

    def unwrap(self, raw: bytes) -> bytes:
        return raw[::-1]


def test_plugin_may_register_a_wrapper_or_a_class(register: Callable[..., None]) -> None:
    class Needy(Json):
        name = "needy"

        def __init__(self) -> None:
            raise ConfigurationError("it needs more")

    register(Reversed, Needy)
    queue = PQ(DSN)["q/msgpack+reversed+zstd"]
    assert queue.decode_row(1, "msgpack+reversed+zstd", queue.encode_row([1]).raw) == [1]
    assert {"reversed", "needy"} <= set(plugins.serializer_names())
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="it needs more"):
            PQ(DSN)["q/needy"]


def test_serializer_name_may_contain_a_plus(register: Callable[..., None]) -> None:
    class Own(Json):
        name = "json+zstd+own"

    register(Own())
    assert type(plugins.serializer("json+zstd+own")) is Own


def test_wrappers_of_one_name_are_refused() -> None:
    class Rival(Wrapper):
        layer = "zstd"

    class Plugin:
        @hookimpl
        def pqcore_register_serializers(self, register: Callable[[Any], None]) -> None:
            register(Rival)

    fresh = Plugins()
    fresh.serializer("json+zstd")
    with pytest.raises(PluginError, match=r"two plugins bring a serializer 'zstd'.*Zstd.*Rival"):
        fresh.register(Plugin())


# Libraries that are missing, or broken


def python(code: str, *folders: Path) -> Any:
    """Run code in a fresh process; return the JSON that it prints."""
    root = Path(pqcore.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, root)))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_serializer_library_is_imported_when_it_is_chosen() -> None:
    [loaded, later] = python(f"""
        import importlib, json, pkgutil, sys
        import pqcore, pqcore.serializers
        from pqcore.plugins import plugins
        for module in pkgutil.iter_modules(pqcore.serializers.__path__, "pqcore.serializers."):
            importlib.import_module(module.name)
        for name in plugins.serializer_names():
            plugins.registered_serializer(name)
        libraries = {LIBRARIES!r}
        before = sorted(libraries & sys.modules.keys())
        plugins.serializer("msgpack")
        print(json.dumps([before, sorted(libraries & sys.modules.keys())]))
    """)
    assert loaded == []
    assert later == ["msgpack"]


def test_importing_pqcore_imports_none_of_the_optional_modules() -> None:
    found = python("""
        import json, sys, pqcore
        from pqcore import PQ, AsyncPQ
        print(json.dumps(sorted(name for name in sys.modules if name.startswith("pqcore.serializers."))))
    """)
    assert found == [f"pqcore.serializers.{name}" for name in ("keys", "pickles", "plain_json", "protocol", "storable")]


def test_serializers_package_exports_all_its_names() -> None:
    for name in pqcore.serializers.__all__:
        assert getattr(pqcore.serializers, name)
    with pytest.raises(AttributeError, match="Nonsense"):
        pqcore.serializers.Nonsense  # noqa: B018


MISSING = {
    "orjson": ("orjson", "Orjson()", "orjson"),
    "msgspec": ("msgspec", "MsgspecJson()", "msgspec"),
    "msgspec-msgpack": ("msgspec", "MsgspecMsgpack(int)", "msgspec"),
    "msgpack": ("msgpack", "Msgpack()", "msgpack"),
    "cbor2": ("cbor2", "Cbor2()", "cbor2"),
    "pydantic": ("pydantic", "PydanticJson(int)", "pydantic"),
    "json+zstd": ("zstandard", "Zstd()", "zstd"),
    "json+fernet": ("cryptography", "Fernet()", "fernet"),
}


def test_missing_serializer_library_fails_only_where_it_is_chosen() -> None:
    results = python(f"""
        import json, sys
        from importlib.machinery import PathFinder

        class Hiding(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name in {LIBRARIES!r} else super().find_spec(name, path, target)

        sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
        from pqcore import PQ
        from pqcore.serializers import *
        from pqcore.errors import SerializerNotInstalled, UnknownSerializer
        pq = PQ({DSN!r})
        results = {{}}
        for name, (_, expression, _) in {MISSING!r}.items():
            for attempt in (lambda: pq["q/" + name], lambda: eval(expression)):
                try:
                    attempt()
                except UnknownSerializer:
                    pass  # pydantic has no name
                except SerializerNotInstalled as exc:
                    results.setdefault(name, []).append([str(exc), isinstance(exc, ImportError)])
        for name in ("json", "pickle", "signed-pickle"):
            pq["q/" + name]
        print(json.dumps(results))
    """)
    assert results.keys() == MISSING.keys()
    for name, (library, _, extra) in MISSING.items():
        assert len(results[name]) == (1 if name == "pydantic" else 2)
        for message, is_import_error in results[name]:
            assert f"needs {library}: pip install 'pqcore[{extra}]'" in message
            assert is_import_error


def test_serializer_extras_are_declared_and_included_in_all() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    for _, _, extra in MISSING.values():
        assert f"\n{extra} = [" in text
    [together] = re.findall(r'^serializers = \["pqcore\[(.*)\]"\]$', text, re.MULTILINE)
    assert {extra for _, _, extra in MISSING.values()} == set(together.split(","))
    assert re.search(r'^all = .*"pqcore\[serializers\]"', text, re.MULTILINE)


@pytest.mark.parametrize("source", ["raise OSError('libzstd.so.1: cannot open')", "import nowhere_to_be_found"])
def test_broken_serializer_library_fails_only_where_it_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "zstandard.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zstandard")
    with pytest.raises(
        SerializerNotInstalled, match=r"cannot import zstandard: .*pip install 'pqcore\[zstd\]'"
    ) as caught:
        PQ(DSN)["q/json+zstd"]
    assert caught.value.__cause__ is not None
    assert PQ(DSN)["q/msgpack+fernet"].serializer_name == "msgpack+fernet"


# The command


def listed(*arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
    done = run("serializers", "--json", *arguments, variables=variables)
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}


def test_serializers_command_lists_installed_serializers() -> None:
    found = listed(PQCORE_FERNET_KEYS=KEYS[0])
    assert set(found) == {*MISSING, "json", "pickle", "signed-pickle", "zstd", "fernet"} - {
        "json+zstd",
        "json+fernet",
        "pydantic",
    }
    assert found["msgspec-msgpack"] == {
        "name": "msgspec-msgpack",
        "stored_as": "msgpack",
        "binary": True,
        "wraps": False,
        "safe": True,
        "distribution": "pqcore",
        "version": pqcore.__version__,
        "entry_point": "pqcore.serializers.with_msgspec",
        "error": None,
    }
    assert {name for name, each in found.items() if each["wraps"]} == {"zstd", "fernet"}
    assert {name for name, each in found.items() if each["safe"] is not True} == {"pickle", "zstd"}
    assert {name for name, each in found.items() if not each["binary"]} == {"json", "orjson", "msgspec", "pickle"}
    assert {name for name, each in found.items() if each["error"]} == {"signed-pickle"}
    assert "PQCORE_PICKLE_KEYS" in found["signed-pickle"]["error"]
    assert KEYS[0] not in json.dumps(found)


def test_serializers_command_names_broken_serializers(tmp_path: Path) -> None:
    info = tmp_path / "acme-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[pqcore.serializers]\nacme = acme_plugin\nempty = acme_empty\n")
    (tmp_path / "acme_plugin.py").write_text("raise ZeroDivisionError('boom \\x1b[31m')")
    (tmp_path / "acme_empty.py").write_text("")
    (tmp_path / "orjson.py").write_text("raise OSError('no such processor')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    found = listed(PYTHONPATH=path)
    assert (found["acme"]["distribution"], found["acme"]["version"]) == ("acme", "2.5")
    assert "boom" in found["acme"]["error"]
    assert found["acme"]["binary"] is None
    assert "brings no serializer 'empty'" in found["empty"]["error"]
    assert "no such processor" in found["orjson"]["error"]
    assert found["json"]["error"] is found["msgspec"]["error"] is None
    done = run("serializers", variables={"PYTHONPATH": path})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    for part in ("acme 2.5", "boom", "no such processor", "wrapper", "as wrapped", "msgpack"):
        assert part in done.stdout


def test_serializers_command_fields_are_documented() -> None:
    text = (Path(__file__).parent.parent / "docs/command-line/plugins.md").read_text()
    section = text[text.index("## pqcore serializers") :].partition("\n## ")[0]
    for field in listed()["json"]:
        assert f"`{field}`" in section


# In a queue


def test_rows_store_the_name_of_their_serializer(pq: PQ) -> None:
    for name in ("orjson", "msgpack", "msgspec+zstd+fernet"):
        pq[f"q/{name}"].put({"a": "é"})
    pq.queue("q", serializer=PydanticJson(Cat)).put(Cat(name="Tom"))
    [plain, packed, secret, cat] = rows(pq)
    assert plain == ('{"a":"é"}', None, "json")
    assert (packed[0], msgpack.unpackb(packed[1]), packed[2]) == (None, {"a": "é"}, "msgpack")
    assert secret[2] == "json+zstd+fernet"
    assert zstandard.decompress(fernet.Fernet(KEYS[0]).decrypt(bytes(secret[1])[MARK_SIZE:])) == '{"a":"é"}'.encode()
    assert cat[2] == "json"
    for name in ("json", "msgspec-msgpack", "orjson+zstd+fernet"):  # other serializers that read the same format
        job = pq[f"q/{name}"].get()
        assert job is not None
        assert job.data == {"a": "é"}


def test_reader_without_accept_refuses_the_row(pq: PQ) -> None:
    pq["q/msgpack+zstd"].put([1])
    for name, accept in (("q", ()), ("q/msgpack", ("zstd", "json+zstd")), ("q/msgpack+fernet", ("msgpack",))):
        [job] = pq.queue(name.partition("/")[0], serializer=name.partition("/")[2] or "json", accept=accept).peek()
        with pytest.raises(UnsafeSerializer, match=r"accept=\('msgpack\+zstd',\)"):
            job.data  # noqa: B018
    for accepted in ("msgpack+zstd", "msgspec-msgpack+zstd", Zstd(MsgspecMsgpack(list[int]))):
        assert pq.queue("q", accept=("nonsense", accepted)).peek()[0].data == [1]
    with pytest.raises(DeserializationError, match=r"Expected `str`"):
        pq.queue("q", accept=(Zstd(MsgspecMsgpack(list[str])),)).peek()[0].data  # noqa: B018


def test_pickle_is_refused_by_default_wrapped_or_not(pq: PQ, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    for name in ("q/pickle", "q/pickle+zstd", "q/pickle+fernet"):
        pq[name].put(Trap(folder))
    for reader in ("q", "q/json+zstd", "q/json+fernet", "q/signed-pickle"):
        for job in pq[reader].peek(3):
            with pytest.raises(UnsafeSerializer):
                job.data  # noqa: B018
    assert not folder.exists()


def test_encrypted_row_of_another_key_raises_deserialization_error(pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    pq["q/json+fernet"].put({"card": "hunter2"})
    monkeypatch.setenv("PQCORE_FERNET_KEYS", KEYS[1])  # read each time that a queue is made
    queue = pq.queue("q", serializer="json+fernet")
    job = queue.lease()
    assert job is not None
    with pytest.raises(DeserializationError, match=rf"job {job.id} .*1 key: .*PQCORE_FERNET_KEYS") as caught:
        job.data  # noqa: B018
    for secret in ("hunter2", *KEYS):
        assert secret not in everything(caught.value)
    job.nack()
    monkeypatch.setenv("PQCORE_FERNET_KEYS", f"{KEYS[1]},{KEYS[0]}")
    queue = pq.queue("q", serializer="json+fernet")
    [job] = queue.peek()
    queue.update(job.id, job.data)  # rotated
    assert fernet.Fernet(KEYS[1]).decrypt(bytes(rows(pq)[0][1])[MARK_SIZE:]) == b'{"card": "hunter2"}'


def test_queue_with_keys_reads_plain_json_only_if_accepted(pq: PQ) -> None:
    """Otherwise, a program that can write rows but has no key could make readers accept any data."""
    pq["q"].put("forged")
    with pq["q"] as cursor:
        cursor.execute("INSERT INTO queue (q_name, data) VALUES ('q', '\"forged\"')")  # as pq 1.9.1 writes
    for serializer in ("signed-pickle", "json+fernet", "json+fernet+zstd"):
        for job in pq[f"q/{serializer}"].peek(2):
            with pytest.raises(UnsafeSerializer, match=r"accept=\('json',\)"):
                job.data  # noqa: B018
        told = pq.queue("q", serializer=serializer, accept=("json",))
        assert [job.data for job in told.peek(2)] == ["forged"] * 2
    assert [job.data for job in pq["q/json+zstd"].peek(2)] == ["forged"] * 2


def test_serializer_can_change_while_rows_wait(pq: PQ) -> None:
    old = Fernet(Pickle(), keys=KEYS[2:])
    pq["q"].put("plain")
    pq["q/msgpack"].put("packed")
    pq.queue("q", serializer=old).put({"set"})
    queue = pq.queue("q", serializer=Fernet(Zstd(Cbor2()), keys=KEYS[:1]), accept=("json", "msgpack", old))
    queue.put({"new"})
    assert [job.data for job in queue.get_many(4)] == ["plain", "packed", {"set"}, {"new"}]


def test_typed_queue_reads_rows_of_untyped_queues(pq: PQ) -> None:
    queue = pq.queue("q", serializer=MsgspecJson(Order))
    queue.put(ORDER)
    assert queue.peek()[0].data == ORDER
    job_id = pq["q"].put({"id": "wrong"})
    pq["q"].put(json.loads(rows(pq)[0][0]))
    [first, second, third] = queue.get_many(3)
    assert first.data == third.data == ORDER
    with pytest.raises(DeserializationError, match=rf"job {job_id} .*Expected `int`, got `str` - at `\$.id`"):
        second.data  # noqa: B018
    with pytest.raises(SerializationError, match="missing required field"):
        queue.put({"id": 7})
    with pytest.raises(SerializationError):
        queue.put_many([ORDER, Order("x", [], ORDER.at)])  # type: ignore[arg-type]
    assert len(queue) == 0
    other = pq.queue("q", serializer=MsgspecMsgpack(Order), accept=(MsgspecJson(Order),))
    queue.put(ORDER)
    other.put(ORDER)
    assert [job.data for job in other.get_many(2)] == [ORDER, ORDER]


def test_small_row_that_decompresses_to_much_is_refused_with_little_memory(pq: PQ) -> None:
    row = bomb(2**28)
    assert len(row) < 10_000
    with pq["q"] as cursor:
        cursor.execute("INSERT INTO queue (q_name, payload, serializer) VALUES ('q', %s, 'json+zstd')", [row])
    tracemalloc.start()
    try:
        job = pq["q/json+zstd"].get()
        assert job is not None
        with pytest.raises(DeserializationError, match=f"more than {2**24}: give Zstd a larger max_size"):
            job.data  # noqa: B018
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("name", ["msgspec-msgpack+zstd+fernet"])
def test_bytes_round_trip_through_every_driver(harness: Harness, name: str) -> None:
    queue = harness.pq()[f"q/{name}"]
    value = {"bytes": bytes(range(256)), 7: ["é", None]}
    queue.put(value)
    queue.put_many([value, []])
    assert [queue.get().data for _ in range(3)] == [value, value, []]
    tasks = harness.tasks()[f"q/{name}"]
    calls = []

    @tasks.task(keep_result="1h")  # type: ignore[untyped-decorator]
    def task(job_id: int, *args: Any, **kwargs: Any) -> bytes:
        calls.append((args, kwargs))
        return b"\x00\xff"

    job = task(b"\x00\xff", 2, when=dt.datetime(2020, 2, 29, tzinfo=UTC))
    harness.drain(tasks)
    assert calls == [((b"\x00\xff", 2), {"when": dt.datetime(2020, 2, 29, tzinfo=UTC)})]
    assert job.result(1) == b"\x00\xff"


PAGES: dict[str, tuple[list[str], set[str]]] = {
    "serializers.md": (["['apple']", "2025"], {"json", "msgpack", "json+zstd"}),
    "how-to/encrypt-data.md": ([str({Decimal("1.10"), frozenset({1, 2})})], {"json+zstd+fernet"}),
    "how-to/change-a-serializer.md": ([str(["waits", "waits, too", "secret", "new"])], {"msgpack+zstd"}),
    "how-to/write-a-serializer.md": (["a line"], {"plist+vault"}),
}


@pytest.mark.parametrize("page", PAGES)
def test_serializers_document_code_prints_what_the_page_says(
    dsn: str, register: Callable[..., None], capsys: pytest.CaptureFixture[str], page: str
) -> None:
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert "postgresql://localhost/app" in code
    names: dict[str, Any] = {"__name__": "document"}
    try:
        exec(compile(code.replace("postgresql://localhost/app", dsn), page, "exec", dont_inherit=True), names)
        printed = capsys.readouterr().out.splitlines()
        found = rows(names["pq"])
    finally:
        names["pq"].close()
        for plugin in plugins.manager.get_plugins():
            if type(plugin).__name__ == "MySerializers":
                plugins.manager.unregister(plugin)
    expected, formats = PAGES[page]
    assert printed[: len(expected)] == expected
    if page == "serializers.md":
        assert int(printed[2]) < 100
    assert {marked for _, _, marked in found} >= formats


def test_serializer_errors_are_pqerrors() -> None:
    assert issubclass(SerializerNotInstalled, (PQError, ImportError))
