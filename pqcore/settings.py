"""The settings of a queue, and how a queue encodes and decodes data; both faces share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from itertools import islice
from logging import getLogger
from typing import Any, ClassVar, NamedTuple, TypeVar

from pqcore.current_rules import RuleCache
from pqcore.db.group_commit import Lines
from pqcore.db.interrupts import is_from_outside
from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    KeyNotHeld,
    PayloadTooLarge,
    SerializationError,
    Unreadable,
    UnsafeSerializer,
)
from pqcore.lane_book import LaneBook
from pqcore.plugins import plugins
from pqcore.queue_options import check_option
from pqcore.scan_position import ScanPosition
from pqcore.serializers import (
    Serializer,
    authenticates,
    fault_of,
    is_quick,
    json_decode,
    json_encode,
    pickle_dumps,
    pickle_loads,
    stored_name,
)
from pqcore.sql.identifiers import MAX_QUEUE_NAME, TableName, channel, check_text, split_queue_name
from pqcore.sql.statement import Retention
from pqcore.times import parse_rate

logger = getLogger("pqcore")

SHORTEST_POLL = 0.01
"""The shortest poll interval, in seconds: a waiter that polled more often would load the server."""


class Encoded(NamedTuple):
    """A job's data, ready to be stored."""

    data: str | None
    payload: bytes | None

    @property
    def raw(self) -> str | bytes:
        return self.payload if self.data is None else self.data  # type: ignore[return-value]


_encoded: Callable[[tuple[str | None, bytes | None]], Encoded] = partial(tuple.__new__, Encoded)
"""Make an `Encoded` without calling the Python-level ``__new__`` that each NamedTuple class has."""


def _identity(value: Any) -> Any:
    return value


QUICK_SIZE = 32_768
"""The size, in characters or bytes, above which decoding data takes longer than handing the data to a thread."""
QUICK_VALUES = 1_000
"""The number of values above which encoding data takes longer than handing the data to a thread; 32 characters of text
count as a value."""
KEEP_FINISHED, KEEP_DEAD = "7d", "90d"
"""How long a new table keeps finished rows and dead letters, by default."""
AS_IT_IS: Any = object()
"""A marker for a setting that must not change."""
REENCODE_STEP = 100
"""The default number of rows that `Queue.reencode` writes in one transaction."""
REENCODE_WAIT = 10.0
"""The default number of seconds that `Queue.reencode` waits for rows in use."""
KEPT_QUEUES = 1_000
"""The largest number of queues that a `PQ` keeps by name, without those in use or with changed settings."""


class QueueSettings:
    """The settings of a queue.

    Each setting can be set on a subclass, as a keyword of `PQ`, or on the queue.

    Attributes:
        name: The queue's name, without the name of a serializer.
        channel: The channel that is notified after a put into the queue.
        timeout: The default number of seconds that `get` waits.
        poll_interval: Seconds after which a waiter looks for jobs, even without a notification.
        retention: What happens to a finished row: ``"keep"`` marks it, ``"delete"`` deletes it, ``"archive"`` moves it
            to the archive table.
        serializer: The serializer, or its name, if the queue's name does not include one; JSON by default.
        accept: Further serializers, or their names, whose rows this queue reads.
        rate: How many jobs all workers together may lease in a period: ``"100/1m"`` or ``"10/s"``; None for no limit.
            After a pause, the jobs of one whole period may be leased together.
        max_size: The largest size of a job's encoded data, in bytes.
        cursor_kwargs: Keyword arguments for the cursor that ``with queue as cursor`` yields.
        converters: Serializers in pq's form: a dict of names to (dumps, loads), which convert between data and the
            values that ``encode`` takes.
        encode, decode: Replacements for `json`, in pq's form: they convert between these values and JSON text.
    """

    timeout: float = 1
    poll_interval: float = 1
    retention: Retention = "keep"
    accept: tuple[str | Serializer, ...] = ()
    max_size: int = 2**28
    rate: str | None = None
    cursor_kwargs: Mapping[str, Any] = {}
    logger = logger
    converters: ClassVar[dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
        "pickle": (pickle_dumps, pickle_loads)
    }
    dumps: Callable[[Any], Any] = staticmethod(_identity)
    loads: Callable[[Any], Any] = staticmethod(_identity)
    encode: Callable[[Any], str] = staticmethod(json_encode)
    decode: Callable[[str], Any] = staticmethod(json_decode)
    serializer: Serializer | None = None

    def __init__(self, name: str, table: TableName, serializer: Serializer | str | None, options: Mapping[str, Any]):
        suffix = None
        if serializer is None:
            name, suffix = split_queue_name(check_text(name, "queue name"))
        self.bound = ScanPosition()
        self.lanes = LaneBook()
        self.rule_cache = RuleCache()
        self.lines = Lines()
        self.name = check_text(name, "queue name", MAX_QUEUE_NAME)
        self.channel = channel(self.name)
        self.table = table
        self.serializer_name = "json"
        if serializer is None:
            serializer = options.get("serializer", self.serializer) if suffix is None else suffix
        self._use(serializer)
        for option, value in options.items():
            check_option(type(self), option)
            if option != "serializer":
                setattr(self, option, value)
        if self.retention not in ("keep", "delete", "archive"):
            msg = f"retention is {self.retention!r}; choose 'keep', 'delete' or 'archive'"
            raise ConfigurationError(msg)
        for option in ("timeout", "poll_interval", "max_size"):
            number = getattr(self, option)
            if not isinstance(number, (int, float)) or not number >= 0:
                msg = f"{option} is {number!r}; give a number that is not negative"
                raise ConfigurationError(msg)
        if self.poll_interval < SHORTEST_POLL:
            msg = f"poll_interval is {self.poll_interval!r}; give at least {SHORTEST_POLL} seconds"
            raise ConfigurationError(msg)
        if self.rate is not None:
            _ = self.bucket  # raises an error for an invalid rate
        if isinstance(self.accept, str) or not isinstance(self.accept, Iterable):
            msg = f"accept is {self.accept!r}; give a tuple of names: ({self.accept!r},)"
            raise ConfigurationError(msg)
        for each in self.accept:
            if isinstance(each, str):
                continue
            if fault := "it is a class; give an instance" if isinstance(each, type) else fault_of(each, writes=False):
                msg = f"accept has {each!r}; give serializers, or their names: {fault}"
                raise ConfigurationError(msg)

    @property
    def encodes_as_is(self) -> bool:
        """Whether pqcore's own encoder, and no other, encodes the data as JSON."""
        return self.serializer is None and self.dumps is _identity and self.writes_json

    @property
    def writes_json(self) -> bool:
        """Whether `encode_row` is known to return JSON: pqcore's own encoder writes it, or the encoder declares it."""
        if self.serializer is None:
            return self.encode is json_encode
        return bool(getattr(self.serializer, "valid_json", False))

    @property
    def bucket(self) -> tuple[int, float]:
        """The rate limit as a token bucket: its size, and the tokens per second."""
        size, length = parse_rate(self.rate or "")
        return size, size / length

    def _use(self, serializer: Serializer | str | None) -> None:
        if serializer is None or serializer == "json":
            self.serializer = None
            return
        if isinstance(serializer, str):
            self.serializer_name = serializer
            if serializer in self.converters:
                self.dumps, self.loads = self.converters[serializer]
                return
            serializer = plugins.serializer(serializer)
        elif isinstance(serializer, type):
            msg = f"serializer is the class {serializer.__qualname__}; give an instance: {serializer.__qualname__}(...)"
            raise ConfigurationError(msg)
        elif fault := fault_of(serializer):
            raise ConfigurationError(f"serializer cannot be used: {fault}")
        self.serializer = serializer
        self.serializer_name = stored_name(serializer)

    def encode_row(self, data: Any) -> Encoded:
        """Encode a job's data.

        Raises:
            SerializationError: The serializer cannot encode the data (a TypeError and ValueError).
            PayloadTooLarge: The result has more than ``max_size`` bytes.
        """
        serializer = self.serializer
        try:
            if serializer is not None:
                raw: Any = serializer.dumps(data)
            else:
                raw = self.encode(data if self.dumps is _identity else self.dumps(data))
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            kind = f"{type(data).__module__}.{type(data).__qualname__}"
            msg = f"queue {self.name!r}: {self.serializer_name} cannot encode a {kind}: {_text_of(exc)}"
            raise SerializationError(msg) from exc
        if self.encode is json_encode and serializer is None and len(raw) <= self.max_size:  # ASCII: len() counts bytes
            return _encoded((raw, None))
        if not isinstance(raw, bytes if serializer is not None and serializer.binary else str):
            msg = f"queue {self.name!r}: {self.serializer_name} returned a {type(raw).__name__} as the encoded data"
            raise SerializationError(msg)
        size = len(raw)
        if isinstance(raw, str):
            if "\0" in raw:
                msg = f"queue {self.name!r}: the encoded data contains a NUL, which PostgreSQL's text cannot hold"
                raise SerializationError(msg)
            if not raw.isascii():
                try:
                    size = len(raw.encode())
                except UnicodeEncodeError as exc:
                    msg = f"queue {self.name!r}: the encoded data is not valid Unicode: {exc}"
                    raise SerializationError(msg) from exc
        if size > self.max_size:
            msg = (
                f"queue {self.name!r}: the job's data has {size} bytes, more than max_size={self.max_size}: "
                "store it elsewhere and put a reference, or raise max_size (PostgreSQL's own limit is 1 GB)"
            )
            raise PayloadTooLarge(msg)
        return _encoded((None, raw) if isinstance(raw, bytes) else (raw, None))

    def decode_row(self, job_id: int, written_by: str | None, raw: str | bytes) -> Any:
        """Decode a row's data with the serializer that wrote it, if this queue accepts that serializer.

        Raises:
            UnsafeSerializer: This queue does not accept the serializer.
            Unreadable: The serializer cannot be loaded here, or it reports that another program can read the data.
            DeserializationError: The serializer did not write this data.
        """
        if written_by is None:  # pq wrote this row as JSON, or with the caller's converter
            written_by = self.serializer_name if self.serializer is None else "json"
        try:
            if written_by == self.serializer_name:
                if self.serializer is None:
                    decoded = self.decode(raw)  # type: ignore[arg-type]
                    return decoded if self.loads is _identity else self.loads(decoded)
                return self.serializer.loads(raw)
            if self.accept and (loads := self._accepted(written_by)) is not None:
                return loads(raw)
            # JSON is safe to read, even if another program wrote it.
            if written_by == "json" and not authenticates(self.serializer):
                return self.decode(raw)  # type: ignore[arg-type]
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            where = f"queue {self.name!r}: job {job_id}"
            if isinstance(exc, Unreadable):
                kind = KeyNotHeld if isinstance(exc, KeyNotHeld) else Unreadable
                raise kind(f"{where} cannot be read here as {written_by}: {_text_of(exc)}") from exc
            raise DeserializationError(f"{where} is not valid {written_by}: {_text_of(exc)}") from exc
        msg = (
            f"queue {self.name!r} reads {self.serializer_name}, but job {job_id} was written by {written_by!r}: "
            f"open the queue as {self.name + '/' + written_by!r}, or pass accept=({written_by!r},) if that is safe"
        )
        raise UnsafeSerializer(msg)

    def reads_quickly(self, written_by: str | None, raw: str | bytes, most: int = QUICK_SIZE) -> bool:
        """Return whether a row's data decodes in a fraction of a millisecond: small data of a fast serializer.

        Args:
            written_by: The name of the serializer that wrote the row.
            raw: The stored data.
            most: The largest size of small data, in characters or bytes.
        """
        if len(raw) > most or (written_by is not None and written_by != self.serializer_name):
            return False  # rows of another serializer are few, and that serializer may not be loaded yet
        if self.serializer is None:
            return self.decode is json_decode and self.loads is _identity
        return is_quick(self.serializer)

    def writes_quickly(self, data: Any) -> bool:
        """Return whether data encodes in a fraction of a millisecond, as far as its type and size tell."""
        if self.serializer is None:
            quick = self.encode is json_encode and self.dumps is _identity
        else:
            quick = is_quick(self.serializer)
        return quick and _is_small(data)

    def _accepted(self, written_by: str) -> Callable[[Any], Any] | None:
        """Return the decoder for rows of another serializer, if this queue accepts that serializer."""
        for each in self.accept:
            if not isinstance(each, str) and stored_name(each) == written_by:
                return each.loads
        if written_by in self.accept:
            if written_by in self.converters:
                loads = self.converters[written_by][1]
                return lambda raw: loads(self.decode(raw))
            return self.decode if written_by == "json" else _installed(written_by).loads
        for each in self.accept:  # an accepted serializer with another name may read the same format
            if isinstance(each, str) and each not in self.converters:
                with suppress(Unreadable):
                    found = _installed(each)
                    if stored_name(found) == written_by:
                        return found.loads
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.name!r} in {self.table}>"


def _text_of(error: BaseException) -> str:
    """Return the text of an exception from users' code, whose ``__str__`` may itself raise."""
    try:
        return str(error)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        return f"<a {type(error).__qualname__} that cannot be shown>"


def _is_small(data: Any) -> bool:
    """Return whether data has few and short values, all of built-in types."""
    left, room = [data], QUICK_VALUES
    while left:
        value = left.pop()
        room -= 1
        if isinstance(value, (str, bytes)):
            room -= len(value) // 32
        elif isinstance(value, (dict, list, tuple)):
            if len(value) > room:
                return False
            left.extend(value if not isinstance(value, dict) else (*value, *value.values()))
        elif value is not None and not isinstance(value, (bool, int, float)):
            return False  # code of the object's class may encode the object, and take long
        if room < 0:
            return False
    return True


def _installed(name: str) -> Serializer:
    """Return the installed serializer of a name.

    Raises:
        Unreadable: The serializer is not installed here, or lacks a library or a key.
    """
    try:
        return plugins.serializer(name)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        raise Unreadable(_text_of(exc)) from exc


Q = TypeVar("Q", bound=QueueSettings)


def forget_queues(kept: dict[str, Q], forgotten: MutableMapping[str, Q], make: Callable[[str], Q]) -> None:
    """Remove the oldest of the queues that a `PQ` keeps by name, to limit the memory that queues take.

    A queue stays if it differs from a new queue, because an attribute was set or a task was declared on it. While other
    code refers to a removed queue, the `PQ` finds the same queue object again by its name.

    Args:
        kept: The queues by name, the oldest first.
        forgotten: A weak mapping in which removed queues are found while they are referenced elsewhere.
        make: A function that makes a queue.
    """
    for name in list(islice(kept, len(kept) // 10)):
        if (queue := kept.pop(name, None)) is None:
            continue
        if _as_new(queue, make(name)):
            forgotten[name] = queue
        else:
            kept[name] = queue  # as the last key of the dict, the queue counts as the newest


def _as_new(queue: QueueSettings, new: QueueSettings) -> bool:
    own, other = vars(queue), vars(new)
    return own.keys() == other.keys() and all(_alike(value, other[name]) for name, value in own.items())


def _alike(value: object, other: object) -> bool:
    """Return whether two settings are equal; objects that each queue makes for itself need only have the same class."""
    if isinstance(value, (str, int, float, tuple, list, dict, set)) or callable(value):
        return value == other
    return type(value) is type(other)
